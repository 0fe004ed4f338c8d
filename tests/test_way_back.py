"""`export.py --include yolov5`: a checkpoint for YOLOv5's own scripts, as far as it can be told without them."""

from __future__ import annotations

import pickletools
import shutil
import zipfile
from pathlib import Path

import old_yolov5
import pytest
import torch
from tiny_weights import NAMES, save_weights

import export
import models.yolo
from models.build import transfer
from models.experimental import attempt_load
from models.yolo import Model
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml
from utils.weights.checkpoint import load_checkpoint, save_checkpoint
from utils.weights.reader import read_pickled
from utils.weights.yolov5 import modules_of, plain


def write(weights: Path) -> Path:
    (file,) = export.run(weights=weights, imgsz=64, include=["yolov5"])
    assert file == weights.with_name(f"{weights.stem}_yolov5.pt")
    return file


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> tuple[Path, Path]:
    weights = save_weights(tmp_path_factory.mktemp("way_back") / "best.pt")
    return weights, write(weights)


def globals_of(file: Path) -> set[str]:
    """What a checkpoint's pickle names."""
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))
    return {arg for op, arg, _ in pickletools.genops(data) if op.name in ("GLOBAL", "STACK_GLOBAL")}


def test_a_file_of_yolov5_comes_back_as_it_was(theirs, tmp_path):
    """Modules, their classes and attributes, and the values of these."""
    source = tmp_path / "heart.pt"
    shutil.copy(theirs / "yolov5n_heart_det.pt", source)
    file = write(source)
    before, after = (read_pickled(f) for f in (source, file))
    assert list(before) == list(after) and globals_of(file) <= globals_of(source) | {"torch FloatStorage"}
    pairs = list(zip(modules_of(before["model"]), modules_of(after["model"]), strict=True))
    assert len(pairs) > 200
    made_anew = {"grid", "anchor_grid", "hyp", "yaml_file"}  # caches, and what only a message or a training asks for
    for (path, old), (same, new) in pairs:
        assert (same, new.origin) == (path, old.origin)
        attributes = {k for k in old.state if not k.startswith("_")} - {"class_weights"}
        assert attributes <= set(new.state), path
        for group in ("_parameters", "_buffers", "_modules"):
            assert list(new.state[group]) == list(old.state[group]), path
            for name, value in old.state[group].items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value.float(), new.state[group][name].float()), f"{path}.{name}"
        for name in attributes - made_anew:
            assert plain(old.state[name]) == plain(new.state[name]), f"{path}.{name}"
    detect = after["model"].state["_modules"]["model"].state["_modules"]["24"]
    assert len(detect.state["grid"]) == len(detect.state["anchor_grid"]) == 3
    assert (after["model"].state["nc"], after["model"].state["hyp"]["lr0"]) == (4, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["yolov5n_cls.yaml", "yolov5s_dual.yaml", "hub/yolov5s-ghost.yaml"])
def test_yolov5s_walk_through_the_layers_gives_our_boxes(tmp_path, monkeypatch, cfg):
    """Loaded with classes that have nothing of ours but the layers: they walk by `f`, `i`, `save` and `anchor_grid`."""
    torch.manual_seed(0)
    model = Model(load_yaml(ROOT / "models" / cfg) | {"width_multiple": 0.1, "depth_multiple": 0.1}, nc=3)
    model.names, weights = NAMES, tmp_path / "w.pt"
    save_checkpoint(weights, {"epoch": 0, "model": model.record(), "ema": None, "opt": {}, "hyp": {"box": 0.05}})
    file = write(weights)
    monkeypatch.setattr(models.yolo, "DetectionModel", old_yolov5.DetectionModel)
    monkeypatch.setattr(models.yolo, "Detect", old_yolov5.Detect)
    loaded = torch.load(file, weights_only=False)["model"].float().eval()
    assert type(loaded) is old_yolov5.DetectionModel and type(loaded.model[-1]) is old_yolov5.Detect
    assert (loaded.nc, loaded.names, loaded.stride.tolist(), loaded.hyp) == (3, NAMES, [8, 16, 32], {"box": 0.05})
    image = torch.rand(1, 3, 64, 96)
    assert torch.allclose(loaded(image), model.eval()(image).boxes, rtol=1e-6, atol=1e-4)
    rows = [*loaded.yaml["backbone"], *loaded.yaml["head"]]
    assert rows[-1][2] == "Detect" and len(rows) == len(loaded.model) and "cls_nc" not in loaded.yaml


@pytest.mark.slow
def test_it_names_what_yolov5_knows_alone(joint):
    ours = {"models.heads", "models.autoshape", "models.load"}
    names = globals_of(joint[1])
    assert {"models.yolo DetectionModel", "models.yolo Detect", "models.common Conv"} < names
    assert not {n for n in names if n.split()[0] in ours or n.split()[0].startswith(("utils.", "__main__"))}


@pytest.mark.slow
def test_layers_that_yolov5_has_elsewhere_or_with_more_attributes(tmp_path):
    content = load_yaml(ROOT / "models" / "yolov5n.yaml") | {"width_multiple": 0.1}
    content["backbone"][1] = [-1, 1, "MixConv2d", [128, [1, 3], 2]]
    content["backbone"][8] = [-1, 3, "C3TR", [1024]]
    weights = tmp_path / "w.pt"
    model = {"epoch": 0, "model": Model(content, nc=2).record(), "ema": None, "opt": {}, "hyp": {}}
    save_checkpoint(weights, model)
    file = write(weights)
    assert "models.experimental MixConv2d" in globals_of(file)
    (block,) = (m for _, m in modules_of(read_pickled(file)["model"]) if m.origin == "models.common.TransformerBlock")
    assert block.state["c2"] == block.state["_modules"]["linear"].state["out_features"] > 0


def test_our_own_reader_takes_it_back(joint):
    weights, file = joint
    checkpoint, image = load_checkpoint(file), torch.rand(1, 3, 64, 64)
    assert (checkpoint.format, checkpoint.names, checkpoint.cls_names) == ("yolov5", NAMES, {})
    assert torch.equal(attempt_load(file)(image).boxes, attempt_load(weights)(image).boxes)
    said = []
    transfer(Model(checkpoint.model_yaml), checkpoint, say=said.append)
    assert " 0 left out, 0 new" in said[0]


@pytest.mark.slow
def test_what_yolov5_cannot_have_is_refused(tmp_path):
    model = Model("yolov5n_cls.yaml", cls_nc=2)
    record = {"epoch": 0, "ema": None, "opt": {}, "hyp": {}}
    save_checkpoint(tmp_path / "fused.pt", record | {"model": model.eval().fuse().record()})
    with pytest.raises(ValueError, match="batch norms are folded"):
        write(tmp_path / "fused.pt")
    content = load_yaml(ROOT / "models" / "yolov5n.yaml")
    content["head"].insert(-1, ["image", 1, "Conv", [8, 3, 2]])
    save_checkpoint(tmp_path / "image.pt", record | {"model": Model(content).record()})
    with pytest.raises(ValueError, match="layer 24 reads `image`"):
        write(tmp_path / "image.pt")
    assert not list(tmp_path.glob("*_yolov5.pt"))
