"""YOLOv5's names: each kind of program that imports from a YOLOv5 clone, by the calls that such programs make."""

from __future__ import annotations

import importlib

import pytest
import torch
from old_yolov5 import save_release
from tiny_weights import save_weights
from torch import nn

import detect
import models.common
import train
import val
from models.experimental import attempt_load
from models.yolo import Detect, DetectionModel, Model

# The network ----------------------------------------------------------------------------------------------------------


def test_a_network_has_yolov5s_attributes(tmp_path):
    model = attempt_load(save_weights(tmp_path / "w.pt", joint=False))
    assert type(model) is DetectionModel is Model and type(model).__name__ == "DetectionModel"
    image = torch.rand(1, 3, 64, 64)
    expected = model(image)[0]
    assert torch.equal(model(image, augment=False, visualize=False)[0], expected)
    assert torch.equal(model(image, False, True)[0], expected)  # profile

    detect_layer = model.model[-1]
    assert isinstance(detect_layer, Detect) and type(detect_layer).__name__ == "Detect" and detect_layer.inplace is True
    detect_layer.inplace = False
    assert [g.shape for g in detect_layer.anchor_grid] == [(1, 3, 1, 1, 2)] * 3
    assert detect_layer.anchor_grid[0].view(3, 2).tolist() == [[10, 13], [16, 30], [33, 23]]
    assert detect_layer.anchor_grid[2].view(3, 2).tolist() == [[116, 90], [156, 198], [373, 326]]


def test_class_count_can_be_set_to_what_it_is(tmp_path):
    model = Model("yolov5n.yaml", nc=4)
    model.nc = 4  # every training script of YOLOv5
    assert model.nc == 4
    with pytest.raises(ValueError, match="answers for 4 classes, not 5"):
        model.nc = 5


def test_results_and_wrapper_say_that_they_are_of_models_common(tmp_path):
    wrapped = models.common.AutoShape(attempt_load(save_weights(tmp_path / "w.pt")))
    assert type(wrapped).__module__ == "models.common"  # what SAHI asks
    results = wrapped(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy())
    assert isinstance(results, models.common.Detections) and type(results).__module__ == "models.common"


@pytest.mark.parametrize("version", ["v6.1", "v7.0"])
def test_each_layer_of_a_checkpoint_has_its_own_activation(tmp_path, monkeypatch, version):
    """Grad-CAM hooks one layer's activation: what it catches must be that layer's."""
    save_release(tmp_path / "old.pt", version, monkeypatch)
    model = attempt_load(tmp_path / "old.pt")
    model.requires_grad_(True)
    layer = model.model._modules["23"]._modules["cv3"]._modules["act"]
    caught = {"activation": [], "gradient": []}
    layer.register_forward_hook(lambda m, inputs, output: caught["activation"].append(output))
    layer.register_full_backward_hook(lambda m, grad_in, grad_out: caught["gradient"].append(grad_out[0]))
    model(torch.rand(1, 3, 64, 64))[0][..., 4:].sum().backward()
    assert [t.shape for t in caught["activation"]] == [t.shape for t in caught["gradient"]] == [(1, 128, 2, 2)]
    assert caught["gradient"][0].abs().sum() > 0
    acts = [id(m.act) for m in model.modules() if isinstance(m, models.common.Conv)]
    assert len(set(acts)) == len(acts)
    assert isinstance(layer, nn.SiLU)


# Scripts as functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train", "val", "detect", "export"])
def test_parse_opt_passes_over_a_callers_flags(script, monkeypatch):
    parse_opt = importlib.import_module(script).parse_opt
    monkeypatch.setattr("sys.argv", ["sweep.py", "--device", "cpu", "--count", "7"])
    for opt in (parse_opt(True), parse_opt(known=True), parse_opt(["--device", "cpu", "--sweep"], known=True)):
        assert opt.device == "cpu" and not hasattr(opt, "count")
    with pytest.raises(SystemExit):
        parse_opt(["--count", "7"])
    assert train.parse_opt is not val.parse_opt is not detect.parse_opt
