"""Anchor check and anchor search against the reference's figures."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.yolo import Model
from utils.autoanchor import (
    _closeness,
    _fitness,
    anchor_recall,
    autoanchor,
    check_anchor_order,
    check_anchors,
    kmean_anchors,
    label_sizes,
)
from utils.dataset.scan import DatasetIndex
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml


@pytest.fixture(scope="module")
def reference(golden):
    return json.loads((golden / "autoanchor.json").read_text()), np.load(golden / "autoanchor.npz")


def make_index(shapes, wh, image_index) -> DatasetIndex:
    """Index of labels of normalised sizes `wh`, label i in picture image_index[i] (ascending)."""
    n, total = len(shapes), len(wh)
    objects = np.zeros((total, 5), np.float32)
    objects[:, 3:5] = wh
    offsets = np.searchsorted(image_index, np.arange(n + 1)).astype(np.int64)
    names = np.array([f"{i:04d}.jpg" for i in range(n)])
    no_points = np.zeros((0, 2), np.float32)
    point_offsets = np.zeros(total + 1, np.int64)
    unknown = np.full(n, -1, np.int64)
    return DatasetIndex(names, names, np.int32(shapes), objects, offsets, no_points, point_offsets, unknown)


@pytest.fixture(scope="module")
def heart(reference):
    data = reference[1]
    wh, shapes = data["heart_train/label_wh_normalised"], data["heart_train/image_shapes_wh_per_label"]
    return make_index(shapes, wh, np.arange(len(wh)))


@pytest.fixture(scope="module")
def mixed(reference):
    data = reference[1]
    return make_index(
        data["mixed/image_shapes_wh"], data["mixed/label_wh_normalised"], data["mixed/image_index_per_label"]
    )


def make_model(anchors, strides=(8, 16, 32)):
    stride = torch.tensor(strides, dtype=torch.float32)
    grid = torch.tensor(anchors, dtype=torch.float32).view(len(strides), -1, 2) / stride.view(-1, 1, 1)
    return SimpleNamespace(detect=SimpleNamespace(anchors=grid, stride=stride))


def test_recall_on_synthetic_sizes(reference):
    facts, data = reference
    for case in facts["synthetic"]:
        recall = anchor_recall(data["synthetic/wh"], data[f"anchors_{case['anchors']}"], case["thr"])
        assert recall == pytest.approx((case["bpr"], case["aat"]), abs=1e-6), case


@pytest.mark.parametrize("name", ["heart_train", "mixed"])
def test_recall_on_data_sets(reference, heart, mixed, name):
    facts, data = reference
    index = heart if name == "heart_train" else mixed
    for case in facts[name]["no_random_scale"]:
        anchors = data[f"anchors_{case['anchors']}"]
        recall = anchor_recall(label_sizes(index, case["imgsz"]), anchors, case.get("thr", 4.0))
        assert recall == pytest.approx((case["bpr"], case["aat"]), abs=1e-6), case


def test_check_with_random_scale(reference, heart):
    facts, data = reference
    np.testing.assert_allclose(label_sizes(heart, 320), data["heart_train/wh_pixels_320"], atol=1e-4)
    for case in facts["heart_train"]["with_check_anchors"]:
        recall = check_anchors(heart, data["anchors_P5"], case["imgsz"], 4.0, seed=case["numpy_seed"])
        assert recall == pytest.approx((case["bpr"], case["aat"]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_search_is_as_good_as_the_references(reference, heart, number):
    case = reference[0]["heart_train"]["kmean_anchors"][number]
    wh = label_sizes(heart, case["imgsz"])
    anchors = kmean_anchors(wh, case["n"], case["imgsz"], case["thr"], case["gen"], seed=0)
    assert anchors.shape == (case["n"], 2) and anchors.dtype == np.float32
    assert (np.diff(anchors.prod(1)) >= 0).all()
    best = _closeness(wh, anchors).max(1)
    fitness = (best * (best > 1 / case["thr"])).mean()
    assert fitness >= case["fitness"] - 0.01
    assert _fitness(np.log(wh), anchors, case["thr"]) == pytest.approx(fitness, abs=1e-5)
    assert anchor_recall(wh, anchors, case["thr"])[0] >= case["bpr"] - 0.01


def test_autoanchor_replaces_a_poor_fit(reference, mixed, capsys):
    facts, data = reference
    after = facts["mixed"]["check_anchors_at_160_seed0"]
    model = make_model(data["anchors_P5"])
    assert autoanchor(mixed, model, 160) is True
    pixels = (model.detect.anchors * model.detect.stride.view(-1, 1, 1)).numpy()
    assert anchor_recall(label_sizes(mixed, 160), pixels, 4.0)[0] >= after["bpr_after"] - 0.01
    assert (np.diff(pixels.prod(-1).mean(-1)) > 0).all()  # small anchors on the fine level
    assert "poor fit" in capsys.readouterr().out


def test_anchors_of_like_size_keep_their_size(reference, capsys):
    """The order of the levels is one of pixels: in grid units the areas of like anchors fall."""
    rng = np.random.default_rng(0)
    index = make_index([[640, 640]] * 60, rng.uniform(20, 60, (60, 2)) / 640, np.arange(60))
    model = make_model(np.full((9, 2), 500.0))
    assert autoanchor(index, model, 640) is True
    pixels = (model.detect.anchors * model.detect.stride.view(-1, 1, 1)).numpy()
    said = float(re.search(r"replaced: \S+ anchors/target, (\S+) BPR", capsys.readouterr().out)[1])
    assert anchor_recall(label_sizes(index, 640), pixels, 4.0)[0] == pytest.approx(said, abs=1e-3)
    assert pixels.min() > 15 and pixels.max() < 70


def test_anchors_of_a_yaml_keep_their_size():
    yaml = load_yaml(ROOT / "models/yolov5n.yaml")
    like = [[20, 20, 24, 24, 30, 30], [32, 32, 36, 36, 40, 40], [45, 45, 50, 50, 60, 60]]
    for anchors in (like, like[::-1]):  # in the wrong order they are turned, as in YOLOv5
        detect = Model({**yaml, "anchors": anchors}).detect
        assert (detect.anchors * detect.stride.view(-1, 1, 1)).flatten(1).tolist() == like


def test_autoanchor_keeps_a_good_fit(reference, heart, capsys):
    model = make_model(reference[1]["anchors_P5"])
    before = model.detect.anchors.clone()
    assert autoanchor(heart, model, 320) is False
    assert torch.equal(model.detect.anchors, before)
    assert "6.20 anchors/target, 1.000 Best Possible Recall" in capsys.readouterr().out


def test_autoanchor_without_usable_labels(mixed):
    model = make_model(np.full((9, 2), 500.0))
    before = model.detect.anchors.clone()
    assert autoanchor(mixed.subset([]), model, 160, verbose=False) is False
    tiny = make_index([[100, 100]] * 3, np.full((3, 2), 0.005), np.arange(3))
    assert autoanchor(tiny, model, 160, verbose=False) is False
    assert torch.equal(model.detect.anchors, before)


def test_search_with_few_labels_is_deterministic():
    wh = np.array([[20, 30], [20, 30], [40, 10]], np.float32)
    a, b = (kmean_anchors(wh, 9, 160, 4.0, gen=50, seed=3) for _ in range(2))
    assert np.array_equal(a, b) and anchor_recall(wh, a, 4.0)[0] == 1
    assert np.isfinite(kmean_anchors(np.array([[20, 0]]), 3, 160, gen=5)).all()
    with pytest.raises(ValueError, match="no label reaches"):
        kmean_anchors(np.ones((5, 2)), 9, 160)


def test_anchor_order(reference):
    case = reference[0]["check_anchor_order"]
    detect = make_model(case["input_per_layer"], case["stride"]).detect
    detect.anchors = torch.tensor(case["input_per_layer"])
    check_anchor_order(detect)
    assert detect.anchors.tolist() == case["output_per_layer"]
    check_anchor_order(detect)
    assert detect.anchors.tolist() == case["output_per_layer"]


def test_recall_without_labels():
    assert anchor_recall(np.zeros((0, 2)), np.ones((9, 2)), 4.0) == (0.0, 0.0)
