"""The drop-in promise: the flag tables of the compatibility page are true, plain data pass through the same scripts."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_weights import made
from old_yolov5 import save_release
from tiny_data import COCO_NAMES, draw_set
from tiny_weights import NAMES, save_weights

import detect
import hubconf
import models.common
import train_joint
import val_joint
from benchmarks import parity
from models.autoshape import AutoShape
from models.build import build_model, layers, transfer
from models.experimental import attempt_load
from models.load import load_model
from models.yolo import Model
from utils.boxes import non_max_suppression
from utils.dataset.config import DataConfig, load_data_config
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml, save_yaml
from utils.training.options import Options, follow_old_flags
from utils.weights.checkpoint import load_checkpoint

PAGE = ROOT / "docs" / "yolov5-compatibility.md"
SCRIPTS = {"train_joint": "train", "val_joint": "val", "detect": "detect", "export": "export"}


# The flag tables ------------------------------------------------------------------------------------------------------


class Caught(Exception):
    pass


def actions_of(script: str, monkeypatch) -> dict[tuple[str, ...], argparse.Action]:
    """The options of a script by their names."""

    def catch(self, *args, **kwargs):
        raise Caught(self)

    with monkeypatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        importlib.import_module(script).parse_opt([])
    parser = caught.value.args[0]
    return {tuple(a.option_strings): a for a in parser._actions if a.dest != "help"}


def shown(value) -> str:
    """A default as the tables write it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value))
    if isinstance(value, Path):
        value = value.relative_to(ROOT) if value.is_absolute() else value
        return value.as_posix()
    return {None: "none", False: "off", "": "''"}.get(value, str(value)) if value != 0 or value is False else str(value)


def table_of(script: str) -> dict[tuple[str, ...], tuple[str, str, str]]:
    """Flag names -> (YOLOv5's default, ours, difference) of the page's table for a script."""
    sections = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    section = next(s for s in sections if f"`{script}.py`" in s.partition("\n")[0])
    rows = {}
    for line in section.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("| `--"):
            assert len(cells) == 4, line
            rows[tuple(re.findall(r"`(--?[\w-]+)`", cells[0]))] = tuple(c.strip("`") for c in cells[1:])
    return rows


@pytest.mark.parametrize("script", SCRIPTS)
def test_tables_show_our_flags(script, monkeypatch):
    ours, table = actions_of(script, monkeypatch), table_of(script)
    assert set(table) >= set(ours), "flags that the page does not have"
    gone = {names for names, (_, here, _) in table.items() if here == "–"}
    assert set(table) - set(ours) == gone, "flags that the page has and the script has not"
    for names, action in ours.items():
        yolov5, here, difference = table[names]
        assert here == shown(action.default), names
        assert yolov5 == here or difference, f"{names}: another default, and no word about it"


@pytest.mark.parametrize("script", SCRIPTS)
def test_tables_show_yolov5s_flags(script, monkeypatch, golden):
    theirs = {tuple(f["flags"]): f for f in json.loads((golden / "flags.json").read_text())[SCRIPTS[script]]}
    ours, table = actions_of(script, monkeypatch), table_of(script)
    assert {names for names, (yolov5, _, _) in table.items() if yolov5 != "–"} == set(theirs)
    for names, flag in theirs.items():
        yolov5, _, difference = table[names]
        assert yolov5 == shown(flag["default"]), names
        action = ours.get(names)
        if action is None:
            assert difference, f"{names}: gone, and no word about it"
            continue
        choices = list(action.choices) if action.choices else None
        same = action.dest == flag["dest"] and choices == flag["choices"] and action.nargs == flag["nargs"]
        numbers = {"int": int, "float": float}
        same &= numbers.get(flag["type"]) == (action.type if action.type in numbers.values() else None)
        assert same or difference, f"{names}: other values, and no word about it"


@pytest.mark.parametrize("script", SCRIPTS)
def test_abbreviations_that_work_in_yolov5_work_here(script, monkeypatch, golden):
    theirs = {
        name: f["dest"] for f in json.loads((golden / "flags.json").read_text())[SCRIPTS[script]] for name in f["flags"]
    }
    ours = {name: a.dest for names, a in actions_of(script, monkeypatch).items() for name in names}
    page = PAGE.read_text(encoding="utf-8")
    for name, dest in theirs.items():
        for n in range(3, len(name)):
            short = name[:n]
            if short in theirs or sum(k.startswith(short) for k in [*theirs, "--help"]) > 1:
                continue
            found = [k for k in ours if k.startswith(short)]
            assert len(found) == 1 and ours[found[0]] == dest or f"`{short}`" in page, short


def test_cloud_flags_are_accepted_and_said_to_do_nothing(capsys, tmp_path):
    opt = train_joint.parse_opt(["--entity", "me", "--upload_dataset", "--data", str(tmp_path / "none.yaml")])
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        train_joint.main(opt)
    assert "--entity, --upload_dataset: without effect" in capsys.readouterr().out


def test_flags_of_earlier_releases(capsys, tmp_path):
    missing = ["--data", str(tmp_path / "none.yaml"), "--hyp", str(tmp_path / "none.yaml")]  # nothing is trained
    opt = train_joint.parse_opt([*missing, "--adam", "--linear-lr", "--artifact_alias", "best"])
    with pytest.raises(FileNotFoundError):
        train_joint.main(opt)
    said = capsys.readouterr().out
    assert follow_old_flags(Options(**vars(opt))).optimizer == "Adam" and "--adam: taken as --optimizer Adam" in said
    assert "--linear-lr: without effect" in said and "--artifact_alias: without effect" in said
    opt = train_joint.parse_opt(["--notest", "--cache-images", "--save_period=5"])
    assert (opt.noval, opt.cache, opt.save_period) == (True, "ram", 5)
    for flags in (["--adam", "--optimizer", "SGD"], ["--linear-lr", "--cos-lr"]):
        with pytest.raises(ValueError, match="contradicts"):
            train_joint.main(train_joint.parse_opt([*missing, *flags]))


@pytest.mark.parametrize(("script", "flag"), [("train", "--hyp"), ("val", "--data")])
def test_yolov5s_script_names_hand_over(tmp_path, monkeypatch, script, flag):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", flag, str(tmp_path / "none.yaml"), "--device", "cpu"])
    with pytest.raises(SystemExit, match="none.yaml' not found"):
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    theirs, ours = importlib.import_module(script), importlib.import_module(f"{script}_joint")
    assert all(getattr(theirs, name) is getattr(ours, name) for name in ("main", "parse_opt"))


# Plain detection data -------------------------------------------------------------------------------------------------


def common(data: Path, tmp_path: Path) -> list[str]:
    return ["--data", str(data), "--img", "64", "--device", "cpu", "--project", str(tmp_path / "runs")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_curves")
def test_80_classes_without_image_rows(tmp_path, capsys):
    data = draw_set(tmp_path / "set")
    training = [*common(data, tmp_path), "--epochs", "1", "--batch", "3", "--workers", "0", "--noplots", "--amp", "off"]
    train_joint.main(train_joint.parse_opt([*training, "--cfg", "yolov5n.yaml"]))
    best = tmp_path / "runs" / "exp" / "weights" / "best.pt"
    checkpoint = load_checkpoint(best)
    assert checkpoint.names == COCO_NAMES and checkpoint.cls_names == {} and checkpoint.model_yaml["nc"] == 80
    assert "image_accuracy" not in (tmp_path / "runs" / "exp" / "results.csv").read_text()

    val_joint.main(
        val_joint.parse_opt([*common(data, tmp_path), "--weights", str(best), "--name", "val", "--workers", "0"])
    )
    metrics = json.loads((tmp_path / "runs" / "val" / "metrics.json").read_text())
    assert metrics["image"] is None and metrics["counts"]["objects"] == 6
    counts = {name: row["objects"] for name, row in metrics["detection"]["per_class"].items() if row["objects"]}
    assert counts == {"person": 2, "bottle": 2, "toothbrush": 2}  # classes 0, 39 and 79

    source = tmp_path / "set" / "images" / "train2017"
    flags = ["--source", str(source), "--weights", str(best), "--conf", "0.0001", "--save-txt", "--name", "detect"]
    detect.main(detect.parse_opt([*flags, *common(data, tmp_path)[2:]]))
    rows = [
        row.split()
        for f in (tmp_path / "runs" / "detect" / "labels").glob("*.txt")
        for row in f.read_text().splitlines()
    ]
    assert rows and all(len(row) == 5 and 0 <= int(row[0]) < 80 for row in rows)
    assert "view" not in capsys.readouterr().out


def test_without_cfg_and_weights_it_is_yolov5s(tmp_path):
    data = draw_set(tmp_path / "set", pictures=2)
    opt = train_joint.parse_opt(["--data", str(data)])
    model, _ = build_model(opt, load_data_config(data), {}, say=lambda line: None)
    assert (model.yaml_file, model.nc, model.cls_nc) == ("yolov5s.yaml", 80, 0)


def test_data_that_are_not_there_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("asked the network"))
    content = load_yaml(ROOT / "data" / "coco128.yaml") | {"path": str(tmp_path / "coco128")}
    save_yaml(tmp_path / "coco128.yaml", content)
    with pytest.raises(FileNotFoundError) as error:
        train_joint.main(train_joint.parse_opt(["--data", str(tmp_path / "coco128.yaml"), "--device", "cpu"]))
    assert f"Fetch {content['download']} and unpack it so that {tmp_path / 'coco128'} is its folder" in str(error.value)


# Checkpoints and transfer ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_curves")
def test_a_checkpoint_of_v5_trains_validates_and_detects(tmp_path, monkeypatch, capsys):
    old = tmp_path / "old.pt"
    save_release(old, "v5.0", monkeypatch, stripped=False)
    names = {0: "cat", 1: "dog"}
    data = draw_set(tmp_path / "set", classes=(0, 1))
    save_yaml(data, load_yaml(data) | {"names": names})
    training = [*common(data, tmp_path), "--epochs", "1", "--batch", "3", "--workers", "0", "--noplots", "--amp", "off"]
    train_joint.run(**vars(train_joint.parse_opt([*training, "--weights", str(old), "--freeze", "0", "1", "3"])))
    said = capsys.readouterr().out
    assert re.search(r"Transferred from .*old\.pt: \d+ tensors taken, 0 left out, 0 new", said)
    assert "taken: layers 0 to 24\n" in said and "layers [0, 1, 3]" in said
    best = load_checkpoint(tmp_path / "runs" / "exp" / "weights" / "best.pt")
    before, after = load_checkpoint(old).state_dict, best.state_dict
    same = {int(k.split(".")[1]) for k in before if k in after and torch.equal(before[k].half(), after[k].half())}
    assert {0, 1, 3} <= same and best.model_yaml["backbone"][0][2] == "Focus"
    assert not torch.equal(before["model.2.cv1.conv.weight"].half(), after["model.2.cv1.conv.weight"].half())

    val_joint.main(
        val_joint.parse_opt([*common(data, tmp_path), "--weights", str(old), "--name", "val", "--workers", "0"])
    )
    assert json.loads((tmp_path / "runs" / "val" / "metrics.json").read_text())["counts"]["objects"] == 6
    source = str(tmp_path / "set" / "images" / "train2017")
    flags = ["--source", source, "--weights", str(old), "--name", "detect", "--conf", "0.01", "--save-csv"]
    detect.main(detect.parse_opt([*flags, *common(data, tmp_path)[2:]]))
    assert (tmp_path / "runs" / "detect" / "predictions.csv").read_text().count("\n") > 1
    with pytest.raises(ValueError, match="YOLOv5 wrote it.*start with --weights"):
        train_joint.main(train_joint.parse_opt(["--resume", str(old)]))


def test_transfer_to_a_joint_model_lists_every_tensor(tmp_path):
    weights = save_weights(tmp_path / "plain.pt", joint=False)  # 3 classes
    cfg = load_yaml(ROOT / "models" / "yolov5n_cls.yaml") | {"width_multiple": 0.1}
    save_yaml(tmp_path / "tiny_cls.yaml", cfg)
    data = {"path": str(tmp_path), "train": "x", "val": "x", "names": ["a", "b"], "cls_names": ["u", "v"]}
    opt = argparse.Namespace(
        weights=str(weights), cfg=str(tmp_path / "tiny_cls.yaml"), freeze=[10], image_gradient=None
    )
    said = []
    report = tmp_path / "run" / "transfer.txt"
    model, taken = build_model(opt, load_data_config(data), {}, say=said.append, report=lambda: report)
    own, theirs = model.state_dict(), load_checkpoint(weights).state_dict
    lines = report.read_text().splitlines()[1:]
    listed = {
        kind: [line[10:].split(" [")[0] for line in lines if line.startswith(kind)] for kind in ("taken", "left", "new")
    }
    assert sorted(listed["taken"] + listed["left"]) == sorted(theirs) and sorted(
        listed["taken"] + listed["new"]
    ) == sorted(own)
    assert all(torch.equal(own[k], theirs[k]) for k in listed["taken"])
    assert taken == listed["taken"]
    assert f"{len(listed['taken'])} tensors taken, 7 left out, {len(listed['new'])} new" in said[0]
    assert "layers 0 to 23" in said[1] and "layer 24: model.24.anchors" in said[2] and "layers 24 to 25" in said[3]
    assert any(line.startswith("left out  model.24.m.0.weight [24,") and ": here [21," in line for line in lines)
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {str(i) for i in range(10)}
    other = Model(cfg | {"width_multiple": 0.2})
    said.clear()
    transfer(other, load_checkpoint(weights), exclude=("model.",), say=said.append)
    assert "0 tensors taken" in said[0] and "nothing fits" in said[1]


def test_layer_numbers_in_words():
    everything = [f"model.{i}.weight" for i in (0, 1, 3, 4, 9)]  # 2 and 5 to 8 have no tensors
    assert layers(everything, everything) == "layers 0 to 9"
    assert layers([everything[0], *everything[3:]], everything) == "layers 0, 4 to 9"
    assert layers(["model.3.m.0.cv1.conv.weight"], everything) == "layer 3"


# In Python ------------------------------------------------------------------------------------------------------------


def test_run_from_python_knows_its_options():
    with pytest.raises(TypeError, match="knows no img_size"):
        train_joint.run(img_size=320)


def test_what_scripts_of_yolov5_users_call(tmp_path, monkeypatch):
    weights = save_weights(tmp_path / "best.pt", joint=False)
    monkeypatch.chdir(tmp_path)
    model = torch.hub.load(
        str(ROOT),
        "custom",
        path=str(weights),
        source="local",
        force_reload=True,
        device=torch.device("cpu"),
        _verbose=False,
    )
    model.conf, model.iou, model.max_det, model.agnostic, model.multi_label, model.amp = 0.2, 0.5, 3, True, False, False
    assert model.stride == 32 and model.yaml["nc"] == 3 and model.names[1] == "MR" and model.hyp == {}
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    results = model.cpu().eval()([picture, picture], size=64, augment=False, profile=True)
    rows = json.loads(results.pandas().xywhn[0].to_json(orient="records"))
    assert len(rows) == 3 and set(rows[0]) == {"xcenter", "ycenter", "width", "height", "confidence", "class", "name"}
    assert results.pandas().xyxy[0].value_counts("name").sum() == 3
    assert len(results) == results.n == 2 and len(results.t) == 3 and results.s == (2, 3, 64, 64)
    assert results.imgs is results.ims and "Speed:" in str(results) and "Detections of 2 pictures" in repr(results)
    assert [r.xyxy[0].shape for r in results.tolist()] == [(3, 6)] * 2
    assert results.save() == Path("runs/detect/exp") and len(results.crop(save=False)) == 6
    half = model.half()(picture, 64)
    assert torch.allclose(half.xyxy[0][:, :4], results.xyxy[0][:, :4], atol=2)


def test_hub_functions_by_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"yolov5{size}{six}" for size in "nsmlx" for six in ("", "6")]
    assert all(callable(getattr(hubconf, name)) for name in names)
    model = hubconf.yolov5n6(pretrained=False, classes=2, channels=1, device="cpu")
    assert model.nc == 2 and model.model[0].conv.in_channels == 1 and len(model.stride) == 4


def section_rows(title: str) -> list[list[str]]:
    """Cells of the rows of a section's table, without its head."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]


def test_python_names_of_the_page_are_there():
    names = []
    for theirs, here in section_rows("In Python"):
        side = theirs if "the same" in here else here
        names += re.findall(r"`((?:models|utils|train|val|train_joint|val_joint|detect|export)\.\w[\w.]*)", side)
    wanted = "models.common.DetectMultiBackend", "val.run", "models.yolo.DetectionModel", "export.run"
    assert set(wanted) < set(names) and len(names) > 12
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_names_that_programs_import_are_there():
    rows = {module.strip("`"): re.findall(r"`(\w+)`", names) for module, names in section_rows("Names that programs")}
    assert {"utils.general", "utils.torch_utils", "utils.datasets", "utils.plots", "models.experimental"} < set(rows)
    for module, names in rows.items():
        missing = [name for name in names if not hasattr(importlib.import_module(module), name)]
        assert names and not missing, module
        listed = getattr(importlib.import_module(module), "__all__", [])
        assert set(names) >= set(listed) - {"ImageClassifier", "ImageHead", "DetectMultiBackend"}, "names left out"


def test_names_that_are_not_here_are_not_here():
    text = PAGE.read_text(encoding="utf-8").split("\nNot here are the names")[1].split("\n## ")[0]
    for module, name in (("utils.general", "check_dataset"), ("utils.general", "init_seeds"), ("train", "train")):
        assert f"{name}`" in text and not hasattr(importlib.import_module(module), name)
    for module in ("utils.callbacks", "utils.loggers", "models.tf"):
        assert f"`{module}`" in text
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)


@pytest.mark.slow
def test_loaders_by_yolov5s_names(tmp_path):
    file = save_weights(tmp_path / "w.pt", joint=False)
    image = torch.rand(1, 3, 64, 96)
    expected = load_model(file)(image).boxes
    for model in (attempt_load(file), attempt_load([file], map_location="cpu"), attempt_load(str(file), None, True)):
        assert type(model) is Model and torch.equal(model(image)[0], expected) and model.names[1] == "MR"
    assert attempt_load([file, file], device=torch.device("cpu"))(image)[0].shape[1] == 2 * expected.shape[1]
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in attempt_load(file, fuse=False).modules())

    model = models.common.DetectMultiBackend(file, device=torch.device("cpu"), dnn=False, data=None, fp16=True)
    stride, names, pt = model.stride, model.names, model.pt
    model.warmup(imgsz=(1, 3, 64, 64))
    boxes, maps = model(image, augment=False, visualize=False)
    assert (stride, names[1], pt, model.onnx, model.engine, model.fp16) == (32, "MR", True, False, False, False)
    assert torch.equal(boxes, expected) and [m.shape for m in maps][2] == (1, 3, 2, 3, 8)
    assert non_max_suppression(model(image), max_det=3)[0].shape == (3, 6)
    joint = models.common.DetectMultiBackend(save_weights(tmp_path / "joint.pt"))
    boxes, maps, probs = joint(image)
    assert boxes.shape == (1, 378, 8) and len(maps) == 3 and probs.shape == (1, 2)
    assert joint(image, augment=True)[1] is None
    assert models.common.AutoShape is AutoShape
    with pytest.raises(AttributeError, match="no attribute Nothing"):
        models.common.Nothing  # noqa: B018
    exported = made("torchscript")
    content = DataConfig(None, tmp_path, [], [], [], 3, {0: "a", 1: "b", 2: "c"})
    wrapped, bare = models.common.AutoShape(joint, verbose=False), models.common.AutoShape(joint.model)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    (a, b), (probs, same) = zip(
        *((r.xyxy[0], r.image_probs) for r in (m(picture) for m in (wrapped, bare))), strict=True
    )
    assert torch.equal(a, b) and torch.equal(probs, same) and wrapped.cls_names == joint.model.cls_names
    assert not joint.triton and torch.equal(joint.from_numpy(picture), torch.from_numpy(picture))
    model = models.common.DetectMultiBackend([exported], data=content)
    assert model.jit and not model.pt and model.names == NAMES  # its own come first
    boxes, probs = model(torch.rand(1, 3, *model.model.imgsz))
    assert probs.shape == (1, 2) and boxes.shape[2] == 8


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parity_of_validation_at_a_users_thresholds(theirs, shared):
    """One mode of the page's table; `benchmarks/parity.py` makes all of it."""
    content = json.loads((theirs / "checkpoint_expected.json").read_text())
    expected = next(e for e in content["val"] if e["tag"] == "conf0.25_iou0.45")
    data = {"path": str(shared / "heart"), "train": "train/images", "val": "valid/images", "cls_nc": 3}
    data["names"] = {int(k): v for k, v in content["loaded"]["names"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = parity.compare(expected, theirs / content["file"], data)
    assert row.pop("boxes") == (146, 146)
    assert all(ours == pytest.approx(theirs, abs=2e-3) for ours, theirs in row.values())


def test_the_page_names_files_that_are_there():
    text = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:tests|benchmarks|utils|models|data)/[\w./-]+\.(?:py|yaml))`", text)):
        assert (ROOT / name).is_file() or name == "models/hub/anchors.yaml", name
    for name in set(re.findall(r"python (?:-m pytest )?((?:(?:tests|benchmarks)/)?\w+\.py)", text)):
        assert (ROOT / name).is_file(), name
