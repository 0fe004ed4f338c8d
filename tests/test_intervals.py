"""Intervals by drawing groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import make_data

import val_joint
from models.yolo import Model
from utils.metrics import DetectionMetrics
from utils.results.intervals import group_intervals, interval_lines, read_draws, write_draws
from utils.weights.checkpoint import save_checkpoint

NAMES, VIEWS = {0: "a", 1: "b"}, {0: "u", 1: "v"}


def collected(right: list[bool], classes: list[int]) -> DetectionMetrics:
    """A labelled box a picture, of these classes; found where `right`, else missed with a box elsewhere."""
    metrics = DetectionMetrics(NAMES)
    for hit, c in zip(right, classes, strict=True):
        x = 10.0 if hit else 60.0
        metrics.update(torch.tensor([[x, 10, x + 20, 30, 0.9, c]]), torch.tensor([[c, 10.0, 10, 30, 30]]))
    return metrics


@pytest.mark.slow
def test_more_pictures_of_the_same_groups_are_no_more_evidence():
    """Twelve groups of one picture, and the same groups with twenty equal pictures each: the same accuracy interval."""
    rng = np.random.default_rng(0)
    true, right = np.arange(12) % 2, rng.random(12) < 0.7
    found = {}
    for copies in (1, 20):
        groups = np.repeat([f"p{i}" for i in range(12)], copies)
        t, r = np.repeat(true, copies), np.repeat(right, copies)
        image = (VIEWS, t, np.where(r, t, 1 - t))
        found[copies], _ = group_intervals(collected(r.tolist(), t.tolist()), groups, 200, image)
    assert found[1]["image"] == found[20]["image"]
    low, high = found[1]["image"]["accuracy"]
    assert low < right.mean() < high and high - low > 0.3  # 95 % of a share of twelve is that wide
    single, _ = group_intervals(collected(r.tolist(), t.tolist()), [f"q{i}" for i in range(240)], 200, image)
    low, high = single["image"]["accuracy"]
    assert high - low < 0.15  # what drawing pictures would have claimed


@pytest.mark.slow
def test_percentiles_against_the_binomial_distribution():
    from scipy.stats import binom

    right = np.arange(40) < 28
    true = np.arange(40) % 2
    image = (VIEWS, true, np.where(right, true, 1 - true))
    out, _ = group_intervals(collected(right.tolist(), true.tolist()), [str(i) for i in range(40)], 1000, image)
    assert out["image"]["accuracy"] == pytest.approx(binom.ppf([0.025, 0.975], 40, 0.7) / 40, abs=0.026)


def test_what_is_perfect_in_every_group_has_no_width():
    classes = [i % 2 for i in range(12)]
    out, _ = group_intervals(collected([True] * 12, classes), [str(i) for i in range(12)], 50)
    assert out["detection"]["map50"] == pytest.approx((0.995, 0.995))
    assert out["detection"]["per_class"]["b"]["map50_95"] == pytest.approx((0.995, 0.995))
    assert out["image"] is None and out["few"] == {}


def test_without_a_labelled_box_there_is_no_interval():
    metrics = DetectionMetrics(NAMES)
    for _ in range(12):
        metrics.update(torch.tensor([[10.0, 10, 30, 30, 0.9, 0]]), torch.zeros(0, 5))
    out, draws = group_intervals(metrics, [str(i) for i in range(12)], 20)
    assert out["detection"]["map50"] is None and not draws


def test_an_object_and_a_view_of_one_name_are_both_told():
    classes = [1] * 3 + [0] * 9
    image = ({0: "u", 1: "b"}, np.array([1] * 4 + [0] * 8), np.zeros(12, int))
    out, _ = group_intervals(collected([True] * 12, classes), [str(i) for i in range(12)], 20, image)
    assert out["few"] == {"b": 3, "b (image class)": 4}


def test_a_class_in_few_groups_has_none_and_neither_has_the_mean():
    """Class b stands in four groups of ten, however many pictures they have."""
    classes = [0] * 6 + [1] * 40
    groups = [f"p{i}" for i in range(6)] + [f"q{i % 4}" for i in range(40)]
    out, _ = group_intervals(
        collected([True, False] * 23, classes), groups, 50, (VIEWS, np.zeros(46, int), np.zeros(46, int))
    )
    assert out["few"] == {"b": 4} and out["groups"] == 10
    assert out["detection"]["map50"] is None and out["detection"]["per_class"]["b"]["map50"] is None
    assert out["detection"]["per_class"]["a"]["map50"] is not None
    assert out["image"]["accuracy"] == (1.0, 1.0)
    results = {"detection": {"map50": 0.5, "map50_95": 0.5}, "image": {"accuracy": 1.0, "balanced_accuracy": 1.0}}
    text = "\n".join(interval_lines(out, results))
    assert "b (4)" in text and "accuracy 1.000 (1.000 to 1.000)" in text and "mAP50 0.500" not in text


def test_two_networks_are_drawn_alike():
    """Where one is right on one picture more, it is ahead by that picture's share of every draw, and never behind,
    though the intervals of the two overlap."""
    classes = [i % 2 for i in range(12)]
    groups, true = [f"p{i}" for i in range(12)], np.array(classes)
    more = np.arange(12) < 7
    less = more & (np.arange(12) != 3)
    values = []
    for right in (more, less):
        image = (VIEWS, true, np.where(right, true, 1 - true))
        out, draws = group_intervals(collected(right.tolist(), classes), groups, 300, image)
        assert out["image"]["accuracy"] == pytest.approx(np.percentile(draws["accuracy"], (2.5, 97.5)))
        assert set(draws) == {"map50", "map50_95", "accuracy", "balanced_accuracy"}
        values.append(draws["accuracy"])
    twelfths = 12 * (values[0] - values[1])
    assert twelfths.min() == pytest.approx(0) and twelfths.mean() == pytest.approx(1, abs=0.2)
    assert twelfths == pytest.approx(twelfths.round())
    assert np.percentile(values[0], 2.5) < np.percentile(values[1], 97.5)


def test_draws_are_read_back(tmp_path):
    values = {"map50": np.array([0.5, np.nan, 1 / 3]), "accuracy": np.array([0.0, 1.0, 0.25])}
    write_draws(values, tmp_path / "bootstrap.csv")
    read = read_draws(tmp_path / "bootstrap.csv")
    assert list(read) == ["map50", "accuracy"]
    for key, column in values.items():
        np.testing.assert_allclose(read[key], column, rtol=1e-5)


@pytest.fixture(scope="module")
def data_and_weights(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("set")
    data = make_data(folder / "data")
    torch.manual_seed(0)
    model = Model("yolov5n_cls.yaml", nc=2, cls_nc=2)
    save_checkpoint(folder / "new.pt", {"epoch": 0, "model": model.record(), "opt": {}, "hyp": {}})
    return data, folder / "new.pt"


@pytest.mark.slow
def test_the_command(data_and_weights, tmp_path, capsys):
    data, weights = data_and_weights
    fixed = {"imgsz": 64, "workers": 0, "plots": False, "device": "cpu", "project": tmp_path, "name": "v"}
    results = val_joint.run(data, weights, bootstrap=20, group_regex=r"^(\d+)", **fixed)
    assert results["intervals"]["groups"] == 12 and results["intervals"]["draws"] == 20
    low, high = results["intervals"]["image"]["accuracy"]
    assert 0 <= low <= results["image"]["accuracy"] <= high <= 1
    assert "20 draws of 12 groups" in capsys.readouterr().out
    saved = json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert saved["intervals"]["image"]["accuracy"] == [low, high]
    assert saved["intervals"]["pattern"] == r"^(\d+)"
    drawn = read_draws(tmp_path / "v" / "bootstrap.csv")["accuracy"]
    assert len(drawn) == 20 and np.percentile(drawn, (2.5, 97.5)) == pytest.approx((low, high), rel=1e-5)
    val_joint.run(data, weights, exist_ok=True, **fixed)
    assert not (tmp_path / "v" / "bootstrap.csv").exists()  # it would be taken for this validation's
    with pytest.raises(ValueError, match="must say which"):
        val_joint.run(data, weights, bootstrap=20, **fixed | {"name": "w"})
    with pytest.raises(ValueError, match="finds nothing in"):
        val_joint.run(data, weights, bootstrap=20, group_regex="^p", **fixed | {"name": "x"})
