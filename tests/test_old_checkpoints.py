"""Checkpoints of YOLOv5's releases: the same outputs, whatever version, system, Python or NumPy wrote them."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict

import numpy as np
import pytest
import torch
from old_yolov5 import VERSIONS, Detect, DetectionModel, rename_globals, save_release, yaml_of
from test_checkpoint import as_global, write_zip
from torch import nn

from models.common import BottleneckCSP, Conv
from models.load import load_model
from models.yolo import Model
from utils.weights.checkpoint import UnsafeCheckpointError, load_checkpoint, strip_checkpoint


def same_outputs(file, network: nn.Module, fuse: bool = False) -> float:
    """Largest difference between our network from `file` and the one that was pickled."""
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = load_model(file, fuse=fuse)(x)[0], network(x)
    assert ours.shape == theirs.shape
    assert theirs[0, :96, 4].logit().std() > 0.01  # objectness of the first anchor: it follows the picture
    difference = float((ours - theirs).abs().max())
    print(f"largest difference of a decoded box {difference:.1e} px, at sizes up to {theirs[..., 2:4].max():.0f} px")
    return difference


@pytest.mark.slow
@pytest.mark.parametrize(("version", "stripped"), [*((v, False) for v in VERSIONS), ("v5.0", True), ("v7.0", True)])
def test_releases(tmp_path, monkeypatch, version, stripped):
    file = tmp_path / "best.pt"
    network = save_release(file, version, monkeypatch, stripped)
    assert same_outputs(file, network) < 1e-3
    checkpoint = load_checkpoint(file)
    assert checkpoint.names == {0: "cat", 1: "dog"} and checkpoint.stride == [8, 16, 32]
    assert (checkpoint.epoch, checkpoint.best_fitness) == ((-1, None) if stripped else (3, 0.25))
    if version in ("v7.0", "master"):
        assert checkpoint.opt["evolve_population"] == "/home/me/yolov5/data/hyps" and checkpoint.hyp == {"lr0": 0.01}
    else:
        assert checkpoint.opt == {} and checkpoint.hyp == {"box": 0.05}
    if not stripped:
        return
    assert same_outputs(file, network, fuse=True) < 1e-2
    strip_checkpoint(file, tmp_path / "ours.pt")
    assert torch.load(tmp_path / "ours.pt", weights_only=True)["format"] == "yolov5-joint"
    assert same_outputs(tmp_path / "ours.pt", network) < 1e-3


def test_a_checkpoint_from_the_wild(shared):
    """No outputs are known of it: its layers are walked through once more, to an old Detect."""
    file = shared / "weights" / "yolov5n_wild.pt"
    checkpoint = load_checkpoint(file)
    assert checkpoint.names == {0: "Biodegradable", 1: "Non-biodegradable"}
    assert checkpoint.date == "2022-11-30T09:38:22.116641" and len(checkpoint.opt) == 39
    ours = Model.from_checkpoint(checkpoint).eval()
    assert len(ours.state_dict()) == 349 and sum(p.numel() for p in ours.parameters()) == 1_766_623
    assert ours(torch.rand(1, 3, 64, 64))[0].isfinite().all()
    network = DetectionModel.__new__(DetectionModel)
    nn.Module.__init__(network)
    detect = Detect(ours.detect, buffer=True)
    detect.i, detect.f = ours.detect.i, ours.detect.f
    network.model, network.save = nn.Sequential(*ours.model[: detect.i], detect), ours.save
    assert same_outputs(file, network) < 1e-3 and same_outputs(file, network, fuse=True) < 1e-2


def test_layers_of_v5_have_the_known_number_of_parameters():
    model = Model(yaml_of("v5.0", nc=80, depth=0.33, width=0.5))  # yolov5s as v5.0 printed it
    assert sum(p.numel() for p in model.parameters()) == 7_276_605
    assert sum(p.numel() for p in model.fuse().parameters()) == 7_266_973


@pytest.mark.slow
def test_spellings_of_other_pythons_systems_and_numpys(tmp_path, monkeypatch):
    old_numpy = {f"numpy._core.multiarray {n}": f"numpy.core.multiarray {n}" for n in ("_reconstruct", "scalar")}
    for windows, renamed in (
        (False, old_numpy),
        (False, {"pathlib PurePosixPath": "pathlib PosixPath"}),
        (False, {"pathlib PurePosixPath": "pathlib._local PosixPath"}),  # Python 3.13
        (True, {"pathlib PureWindowsPath": "pathlib WindowsPath"}),
        (True, {"pathlib PureWindowsPath": "pathlib._local WindowsPath"}),
    ):
        file = tmp_path / "last.pt"
        save_release(file, "master", monkeypatch, windows=windows, best_fitness=np.array([0.25]), score=np.float64(0.5))
        rename_globals(file, renamed)
        checkpoint = load_checkpoint(file)
        path = "C:\\yolov5\\data\\hyps" if windows else "/home/me/yolov5/data/hyps"
        assert checkpoint.opt["evolve_population"] == path and checkpoint.best_fitness == 0.25


def test_values_that_a_user_or_a_newer_torch_may_have_put_in(tmp_path, monkeypatch):
    file = tmp_path / "odd.pt"
    tagged = nn.Parameter(torch.ones(2))
    tagged.decay = False  # torch pickles a parameter with attributes by another function
    content = {
        "opt": Namespace(imgsz=320, device="0", freeze=[0], seen=frozenset([1]), cache=None, when=(1, 2.5)),
        "optimizer": {"state": defaultdict(dict, {0: {"step": torch.tensor(3.0)}}), "param_groups": [{"p": tagged}]},
        "best_fitness": np.float32(0.5),
        "dtype": torch.float16,
        "device": torch.device("cuda:0"),
        "size": torch.Size([1, 2]),
        "seen": np.int64(7),
        "done": np.bool_(True),
    }
    network = save_release(file, "v7.0", monkeypatch, **content)
    checkpoint = load_checkpoint(file)
    assert checkpoint.opt["when"] == (1, 2.5) and checkpoint.opt["seen"] == {1} and checkpoint.best_fitness == 0.5
    assert same_outputs(file, network) < 1e-3


def _with_activations(change) -> DetectionModel:
    model = DetectionModel("v6.0", seed=3)
    change(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("act", [nn.Hardswish(), nn.ReLU(), nn.LeakyReLU(0.2, inplace=True), nn.Mish()])
def test_another_activation_everywhere(tmp_path, monkeypatch, act):
    def change(model):
        for m in model.modules():
            if isinstance(m, Conv):
                m.act = act

    network = save_release(tmp_path / "a.pt", "v6.0", monkeypatch, model=_with_activations(change))
    assert same_outputs(tmp_path / "a.pt", network) < 1e-3
    assert "activations" not in load_checkpoint(tmp_path / "a.pt").model_yaml


@pytest.mark.slow
def test_arguments_of_the_yamls_activation_stay(tmp_path, monkeypatch):
    """The file's modules say nn.ELU, its yaml with what."""

    def change(model):
        model.yaml = {**model.yaml, "activation": "torch.nn.ELU(0.5)"}
        for m in model.modules():
            if isinstance(m, Conv):
                m.act = nn.ELU(0.5)

    network = save_release(tmp_path / "a.pt", "v6.0", monkeypatch, model=_with_activations(change))
    assert same_outputs(tmp_path / "a.pt", network) < 1e-3
    assert load_checkpoint(tmp_path / "a.pt").model_yaml["activation"] == "torch.nn.ELU(0.5)"


@pytest.mark.slow
def test_layers_with_activations_of_their_own(tmp_path, monkeypatch):
    """BottleneckCSP had a LeakyReLU inside in v5.0 and has a SiLU now: what the file says counts, once ours as well."""
    rows = yaml_of("v6.0")
    rows["backbone"] = [[*row[:2], "BottleneckCSP", row[3]] if row[2] == "C3" else row for row in rows["backbone"]]

    def change(model):
        ours = Model(rows)
        for i in (2, 4, 6, 8):
            facts = {k: getattr(model.model[i], k) for k in ("i", "f", "np")}
            model.model[i] = ours.model[i]
            vars(model.model[i]).update(facts | {"type": "models.common.BottleneckCSP"})
            for name in ("sources", "args"):
                vars(model.model[i]).pop(name)
            model.model[i].act = nn.LeakyReLU(0.1, inplace=True)
        model.model[3].act = nn.ReLU()
        model.yaml = rows
        assert any(isinstance(m, BottleneckCSP) for m in model.modules())

    file = tmp_path / "csp.pt"
    network = save_release(file, "v6.0", monkeypatch, model=_with_activations(change))
    assert same_outputs(file, network) < 1e-3
    checkpoint = load_checkpoint(file)
    assert "activation" not in checkpoint.model_yaml
    assert checkpoint.model_yaml["activations"]["model.2"] == "nn.LeakyReLU(0.1)"
    strip_checkpoint(file, tmp_path / "ours.pt", half=False)
    assert same_outputs(tmp_path / "ours.pt", network) < 1e-3
    with pytest.raises(ValueError, match="no layer with an activation at `model.99`"):
        Model(rows | {"activations": {"model.99": "nn.ReLU()"}})


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        ("models.yolo", "SegmentationModel", "a segmentation model of YOLOv5"),
        ("models.yolo", "ClassificationModel", "a classification model of YOLOv5"),
        ("torchvision.models.resnet", "ResNet", "a classification model of torchvision"),
        ("ultralytics.nn.tasks", "DetectionModel", "the `ultralytics` package"),
        ("utils.activations", "FReLU", "could run code"),
    ],
)
def test_models_of_another_kind_are_called_by_it(tmp_path, module, name, what):
    with pytest.raises(UnsafeCheckpointError, match=f"names `{module}.{name}`: .*{what}"):
        load_checkpoint(write_zip(tmp_path / "other.pt", as_global(module, name)))


def test_rows_of_other_tasks_are_called_by_it():
    for name, task in (("Segment", "segmentation"), ("Classify", "classification")):
        content = yaml_of("v6.0")
        content["head"] = [*content["head"][:-1], [[17, 20, 23], 1, name, ["nc"]]]
        with pytest.raises(ValueError, match=f"`{name}` is the head of YOLOv5's {task} models"):
            Model(content)
