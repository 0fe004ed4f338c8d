"""The model yamls that YOLOv5 ships beside its sizes: they build, with the figures that are known of them."""

from __future__ import annotations

import json

import pytest
import torch

from models.load import largest_stride
from models.parser import load_model_yaml, parse_model
from models.yolo import Model

STRIDES = {
    "yolov3": [8, 16, 32], "yolov3-spp": [8, 16, 32], "yolov3-tiny": [16, 32], "yolov5-bifpn": [8, 16, 32],
    "yolov5-fpn": [8, 16, 32], "yolov5-p2": [4, 8, 16, 32], "yolov5-p34": [8, 16], "yolov5-p6": [8, 16, 32, 64],
    "yolov5-p7": [8, 16, 32, 64, 128], "yolov5-panet": [8, 16, 32], "yolov5s-ghost": [8, 16, 32],
    "yolov5s-transformer": [8, 16, 32], "yolov5s-LeakyReLU": [8, 16, 32],
}  # fmt: skip
PARAMETERS = {  # with 80 classes, as published
    "yolov3": 61_949_149, "yolov3-tiny": 8_852_366, "yolov5-panet": 46_563_709, "yolov5-p6": 76_770_172,
    "yolov5s-LeakyReLU": 7_235_389,
}  # fmt: skip


def layers_of(name: str, **keys):
    content, file = load_model_yaml(f"{name}.yaml")
    with torch.device("meta"):
        return parse_model(content | keys, file)[0]


@pytest.mark.parametrize("name", STRIDES)
def test_hub_yamls_build(name):
    content, _ = load_model_yaml(f"{name}.yaml")
    small = content | {"width_multiple": content["width_multiple"] / 16, "depth_multiple": 0.1}
    model = Model(small, nc=2).eval()
    assert model.stride.tolist() == STRIDES[name] and model.detect.i == len(model.model) - 1
    side = model.multiple  # 32 for yolov5-p34, whose backbone goes deeper than its levels
    decoded, maps = model(torch.rand(1, 3, side, 2 * side))
    assert decoded.isfinite().all() and [m.shape[3] for m in maps] == [2 * side / s for s in STRIDES[name]]
    if name == "yolov5-p34":  # whatever pads or measures pictures has to know it
        assert model(torch.rand(1, 3, 64, 96), augment=True)[0].isfinite().all() and model.summary()["gflops"] > 0
        assert largest_stride(model) == 32
    areas = model.detect.anchors.prod(2).mean(1) * model.stride**2
    assert (areas.diff() > 0).all()  # small objects at small strides


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_known_ones(name):
    assert sum(m.np for m in layers_of(name)) == PARAMETERS[name]


def test_facts_of_the_reference(golden):
    facts = json.loads((golden / "models.json").read_text())["yaml_facts"]
    for name in ("yolov5-p2", "yolov5-p34", "yolov5-p6", "yolov5-p7"):
        content, _ = load_model_yaml(f"{name}.yaml")
        assert {k: content[k] for k in facts[name]} == facts[name]


@pytest.mark.slow
def test_what_sets_them_apart():
    panet, bifpn = layers_of("yolov5-panet"), layers_of("yolov5-bifpn")
    assert [(a.f, b.f) for a, b in zip(panet, bifpn, strict=True) if a.f != b.f] == [([-1, 14], [-1, 14, 6])]
    assert [m.type for m in layers_of("yolov5s-transformer")].count("C3TR") == 1
    assert {m.type for m in layers_of("yolov5s-ghost")} >= {"GhostConv", "C3Ghost"}
    act = layers_of("yolov5s-LeakyReLU")[1].act
    assert isinstance(act, torch.nn.LeakyReLU) and act.negative_slope == 0.1
