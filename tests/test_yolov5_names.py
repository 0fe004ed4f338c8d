"""YOLOv5's names: each kind of program that imports from a YOLOv5 clone, by the calls that such programs make."""

from __future__ import annotations

import importlib

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from old_yolov5 import save_release
from PIL import Image
from tiny_weights import save_weights
from torch import nn

import detect
import models.common
import train
import val
from models.experimental import attempt_load
from models.yolo import Detect, DetectionModel, Model
from utils import plots

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


@pytest.mark.slow
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


# Drawing --------------------------------------------------------------------------------------------------------------


def test_annotator_draws_into_the_callers_picture():
    im0 = np.full((120, 200, 3), 90, np.uint8)
    annotator = plots.Annotator(im0, line_width=2, example=str({0: "cat"}))
    for *xyxy, conf, cls in torch.tensor([[20.0, 40, 80, 100, 0.9, 0], [100, 40, 190, 110, 0.5, 1]]):
        annotator.box_label(xyxy, f"cat {conf:.2f}", color=plots.colors(int(cls), True))
    assert annotator.result() is im0 and annotator.im is im0 and annotator.lw == 2
    assert tuple(im0[70, 80]) == plots.colors(0, True) and tuple(im0[80, 190]) == plots.colors(1, True)
    assert (im0[26:38, 20:60] != 90).any(), "a label stands above its box before anybody asks for the result"
    before = im0.copy()
    annotator.box_label([5, 5, 15, 15])
    assert (im0 != before).any()


def test_annotator_takes_other_pictures_and_arguments():
    array = np.full((90, 90, 3), 90, np.uint8)
    for im in (Image.fromarray(array), array[..., ::-1], np.frombuffer(array.tobytes(), np.uint8).reshape(90, 90, 3)):
        annotator = plots.Annotator(im, 3, 12, "Arial.ttf", True)
        annotator.box_label((20, 20, 70, 70), "ü", (1, 2, 3), (4, 5, 6))
        annotator.text((30, 40), "track 7", txt_color=(0, 255, 0))
        drawn = annotator.result()
        assert drawn.shape == array.shape and tuple(drawn[60, 20]) == (1, 2, 3)
        assert (drawn[40:60, 30:60] == (0, 255, 0)).all(2).any()
    assert (array == 90).all()


@given(i=st.integers(-5, 10**7))
def test_colours_are_rgb_unless_asked_otherwise(i):
    rgb = plots.colors(i)
    assert plots.colors(torch.tensor(float(i % 1000)), True) == plots.colors(i % 1000)[::-1]
    assert plots.colors(i, bgr=True) == rgb[::-1] and all(type(c) is int and 0 <= c <= 255 for c in rgb)


def test_plot_one_box_and_save_one_box(tmp_path):
    img = np.full((100, 100, 3), 90, np.uint8)
    assert plots.plot_one_box(np.array([20, 30, 60, 80]), img, label="dog 0.9", color=[0, 0, 255]) is None
    assert tuple(img[60, 20]) == (0, 0, 255)
    plots.plot_one_box([70, 30, 90, 80], img)
    crop = plots.save_one_box(torch.tensor([20, 30, 60, 80]), img, file=tmp_path / "crops" / "dog.jpg", BGR=True)
    assert crop.shape == (61, 51, 3) and (tmp_path / "crops" / "dog.jpg").exists()


@pytest.mark.parametrize("pixels", [False, True])
def test_plot_images_takes_fractions_and_pixels(tmp_path, pixels):
    images = torch.full((2, 3, 96, 128), 0.5)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.25, 0.5], [1, 1, 0.25, 0.5, 0.25, 0.5]])
    if pixels:  # as YOLOv5's predictions come, with a confidence
        targets[:, 2:] *= torch.tensor([128, 96, 128, 96])
        targets = torch.cat((targets, torch.tensor([[0.9], [0.1]])), 1).numpy()
    mosaic = plots.plot_images(images, targets, ["a.jpg", "b.jpg"], tmp_path / "batch.png", {0: "cat", 1: "dog"})
    assert np.array_equal(cv2.imread(str(tmp_path / "batch.png")), mosaic)
    found = [(mosaic == plots.colors(c, True)).all(2) for c in (0, 1)]
    ys, xs = np.nonzero(found[0])
    assert np.ptp(ys) > np.ptp(xs) > 50 and found[1].any() != pixels  # the weak one is left out
    plots.plot_images(images.numpy() * 255, targets, None, tmp_path / "same.png")
    assert cv2.imread(str(tmp_path / "same.png")).mean() > 100


@pytest.mark.slow
def test_plot_results_writes_results_png(tmp_path):
    rows = ["epoch, train/box_loss, metrics/mAP_0.5", "0, 0.1, 0.2", "1, 0.05, 0.3"]
    (tmp_path / "results.csv").write_text("\n".join(rows))
    for arguments in ({"file": str(tmp_path / "results.csv")}, {"file": "", "dir": tmp_path}):
        plots.plot_results(**arguments)
        assert cv2.imread(str(tmp_path / "results.png")) is not None
        (tmp_path / "results.png").unlink()
