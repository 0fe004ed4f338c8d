"""The comparison's arithmetic, and its report."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import seen_on_a_phone
from fake_comparison import TABLE, fake_runs
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import make_data

from compare.disagreements import find_disagreements, read_answer, right_box
from compare.figures import training_curves
from compare.report import write_report
from compare.results import (
    METRICS,
    best_strategy,
    by_strategy,
    delta_m,
    difference_on_draws,
    paired_difference,
    pareto_front,
    read_run,
    spread,
)
from utils.dataset.config import load_data_config
from utils.dataset.scan import scan_dataset
from utils.system.paths import UniqueStems


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


def test_differences_and_delta_m_by_hand(data, tmp_path):
    groups = by_strategy(fake_runs(data, tmp_path / "out", TABLE))
    mean, half, n = paired_difference(groups["gradnorm"], groups["det-only"], "map50_95")
    assert (mean, n) == (pytest.approx((-0.10 - 0.08) / 2), 2)
    assert half == pytest.approx(12.7062 * math.sqrt(0.0002) / math.sqrt(2), rel=1e-4)  # t of one degree of freedom
    assert paired_difference(groups["det-only"], groups["cls-only"], "accuracy") is None
    assert delta_m(groups, "gradnorm") == pytest.approx(100 * ((0.22 / 0.31 - 1) + (0.91 / 0.90 - 1)) / 2)
    assert delta_m(groups, "det-only") is None
    assert math.isnan(paired_difference(groups["gradnorm"][:1], groups["det-only"], "map50_95")[1])


def test_an_interval_on_folds_is_over_the_folds(data, tmp_path):
    """Two seeds of three folds: seeds judge by the same pictures, so three differences count, not six."""
    table = {
        "joint": [(0.11, 0.9), (0.22, 0.9), (0.33, 0.9), (0.13, 0.9), (0.22, 0.9), (0.35, 0.9)],
        "det-only": [(0.10, None), (0.20, None), (0.30, None)] * 2,
    }
    groups = by_strategy(fake_runs(data, tmp_path / "out", table, ("fold0", "fold1", "fold2")))
    mean, half, n = paired_difference(groups["joint"], groups["det-only"], "map50_95")
    assert (mean, n) == (pytest.approx((0.02 + 0.02 + 0.04) / 3), 6)
    assert half == pytest.approx(4.3027 * np.std([0.02, 0.02, 0.04], ddof=1) / math.sqrt(3), rel=1e-4)
    # the spread is that of the seeds: the folds differ by ten times as much
    assert spread(groups["joint"], "map50_95") == pytest.approx((1.36 / 6, math.sqrt(4 * 0.01**2 / 3)))
    assert best_strategy(groups, "map50_95") == "joint"  # leads in every pair, though the folds lie far apart
    one = {name: runs[:3] for name, runs in groups.items()}
    assert math.isnan(spread(one["joint"], "map50_95")[1])


def test_an_interval_over_groups_averages_seeds_and_folds(data, tmp_path):
    """Two seeds of two folds: what only a seed does goes out of the mean, and of two folds each draws by itself."""
    table = {"joint": [(0.2, 0.9)] * 4, "det-only": [(0.2, None)] * 4}
    groups = by_strategy(fake_runs(data, tmp_path / "out", table, ("fold0", "fold1")))
    rng = np.random.default_rng(1)
    of_fold = {fold: rng.normal(0, 0.01, 4000) for fold in ("fold0", "fold1")}
    for ours, theirs in zip(groups["joint"], groups["det-only"], strict=True):
        theirs.draws = {"map50_95": rng.normal(0.2, 0.05, 4000)}
        sign = 1 if ours.job.seed else -1
        ours.draws = {"map50_95": theirs.draws["map50_95"] + of_fold[ours.job.fold] + sign * 0.5 + 0.03}
    low, high = difference_on_draws(groups["joint"], groups["det-only"], "map50_95")
    half = 1.96 * 0.01 / math.sqrt(2)
    assert (low, high) == (pytest.approx(0.03 - half, abs=0.001), pytest.approx(0.03 + half, abs=0.001))
    one = [r for r in groups["joint"] if r.job.fold == "fold0"]
    low, high = difference_on_draws(one, groups["det-only"], "map50_95")
    assert high - low == pytest.approx(2 * 1.96 * 0.01, abs=0.002)
    assert difference_on_draws(groups["joint"], groups["det-only"], "accuracy") is None  # not of this network
    one[0].draws = {}
    assert difference_on_draws(groups["joint"], groups["det-only"], "map50_95") is None  # a mean over some is another


def test_what_some_runs_lack_is_compared_over_the_others(data, tmp_path):
    table = {
        "joint": [(0.30, 0.9), (0.10, 0.5)],
        "uw": [(0.90, 0.9)],
        "det-only": [(0.30, None)],
        "cls-only": [(None, 0.9)],
    }
    groups = by_strategy(fake_runs(data, tmp_path / "out", table))
    assert delta_m(groups, "joint") == pytest.approx(0)
    assert best_strategy(groups, "map50_95") is None  # uw has one run
    uneven = {
        "joint": [(0.50, 0.9), (0.30, 0.9), (0.51, 0.9), (0.31, 0.9)],
        "uw": [(0.45, 0.9), (None, 0.9), (0.46, 0.9)],
    }
    groups = by_strategy(fake_runs(data, tmp_path / "uneven", uneven, ("fold0", "fold1")))
    groups["uw"] = [r for r in groups["uw"] if r.job.fold == "fold0"]  # the easier one: its mean is higher than joint's
    assert best_strategy(groups, "map50_95") == "joint"


def test_the_best_is_marked_only_where_it_leads_by_more_than_the_spread(data, tmp_path):
    groups = by_strategy(fake_runs(data, tmp_path / "out", TABLE))
    assert best_strategy(groups, "map50_95") is None  # detach and det-only are within their spread
    assert best_strategy({k: groups[k] for k in ("gradnorm", "detach")}, "map50_95") == "detach"
    assert best_strategy(groups, "parameters") is None  # nobody's merit
    one = by_strategy(fake_runs(data, tmp_path / "one", {k: v[:1] for k, v in TABLE.items()}))
    assert best_strategy(one, "map50_95") is None  # one run has no spread


def test_a_task_that_is_off_has_no_figures(data, tmp_path):
    runs = {r.strategy: r.figures for r in fake_runs(data, tmp_path / "out", TABLE)}
    assert runs["cls-only"]["map50"] is None and runs["cls-only"]["loss_det"] is None
    assert runs["det-only"]["accuracy"] is None and runs["det-only"]["loss_image"] is None
    (run,) = fake_runs(data, tmp_path / "mgda", {"mgda": [(0.2, 0.9)]})
    history = json.loads((run.job.folder / "training_history.json").read_text())
    history["epochs"][-1]["task_weights"]["det"] = 0.0  # as aggregators may leave it, with the task on
    (run.job.folder / "training_history.json").write_text(json.dumps(history))
    assert read_run(run.job).figures["map50_95"] == 0.2
    assert runs["gradnorm"]["latency"] == 6.0 and runs["gradnorm"]["epoch_seconds"] == 2.5


def test_a_history_without_its_first_epoch_is_drawn(data, tmp_path):
    """What is left where a damaged history was moved away before a run went on."""
    (run,) = fake_runs(data, tmp_path / "out", {"gradnorm": [(0.2, 0.9)]})
    epochs = [e["epoch"] for e in run.epochs]
    run.epochs.pop(0)
    line = training_curves({"gradnorm": [run]}).axes[0].lines[0]
    assert len(line.get_ydata()) == len(epochs) > 1 and np.isnan(line.get_ydata()[0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(points):
    named = {str(i): (float(x), float(y)) for i, (x, y) in enumerate(points)}
    front = pareto_front(named)
    assert front
    for name, (x, y) in named.items():
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in named.values())
        assert (name in front) != beaten


@pytest.mark.parametrize(
    ("box", "labels", "right"),
    [
        ([0, 0.5, 0.5, 0.2, 0.2], [[0, 0.5, 0.5, 0.2, 0.2]], True),
        ([1, 0.5, 0.5, 0.2, 0.2], [[0, 0.5, 0.5, 0.2, 0.2]], False),  # another class
        ([0, 0.7, 0.5, 0.2, 0.2], [[0, 0.5, 0.5, 0.2, 0.2]], False),  # elsewhere
        (None, [[0, 0.5, 0.5, 0.2, 0.2]], False),
        (None, [], True),
        ([0, 0.5, 0.5, 0.2, 0.2], [], False),
    ],
)
def test_right_boxes(box, labels, right):
    assert right_box(box if box is None else np.array(box), np.array(labels, np.float32).reshape(-1, 5)) == right


# --- report ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.loads, self.pictures, self.text = [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.pictures += tag == "img"
        self.loads += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
def test_the_report_has_what_was_measured_and_loads_nothing(data, tmp_path):
    runs = fake_runs(data, tmp_path / "out", TABLE)
    write_report(runs, {"uw, seed 0, published": "training failed (why)"}, tmp_path / "out", ["compare", "x y"])
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "other groups" not in markdown  # none were drawn
    assert "| gradnorm | 2 |" in markdown and "0.220 ± 0.028" in markdown and "training failed (why)" in markdown
    for picture in ("pareto", "curves", "balance", "confusion_detection", "confusion_image"):
        assert (tmp_path / "out" / f"{picture}.png").stat().st_size > 5000 and f"({picture}.png)" in markdown
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.loads and all(link.startswith("data:") for link in page.loads)
    assert page.pictures == 5 + 6  # diagrams, and pictures 6 to 11, of which alone two strategies answer otherwise
    assert "6.png; true (white): disc, plain; gradnorm: square, plain; detach: square, striped" in page.text
    assert "training failed (why)" in page.text and "'x y'" in page.text
    with open(tmp_path / "out" / "results.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 8 and rows[0]["strategy"] == "gradnorm" and float(rows[0]["map50_95"]) == 0.2
    assert set(METRICS) <= set(rows[0]) and {r["accuracy"] for r in rows if r["strategy"] == "det-only"} == {""}


@pytest.mark.slow
def test_the_report_says_what_other_groups_would_change(data, tmp_path):
    runs = fake_runs(data, tmp_path / "out", TABLE, group=r"^(\d+)")
    write_report(runs, {}, tmp_path / "out", ["compare"])
    markdown = (tmp_path / "out" / "report.md").read_text()
    table = markdown.partition("## What other groups would change")[2].partition("##")[0]
    assert "| strategy | mAP50-95 | accuracy |" in table
    assert "| gradnorm | **-0.090 to -0.090** | **+0.010 to +0.010** |" in table
    assert "| det-only" not in table and "| cls-only" not in table
    metrics = runs[0].job.folder / "val" / "metrics.json"
    metrics.write_text(metrics.read_text().replace(r"^(\\d+)", r"^(\\d)"))  # drawn with another pattern
    runs[0] = read_run(runs[0].job)
    write_report(runs, {}, tmp_path / "out", ["compare"])
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "1 of 8 runs were validated without drawing these groups" in markdown
    assert "| gradnorm |" not in markdown.partition("## What other groups")[2]
    for run in runs:
        run.draws = {}
    write_report(runs, {}, tmp_path / "out", ["compare"])
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "fewer than 5" in markdown and "## What other groups" not in markdown


def test_curves_are_drawn_where_there_is_more_than_their_last_epoch(data, tmp_path):
    groups = by_strategy(fake_runs(data, tmp_path / "out", TABLE))
    titles = [ax.get_title() for ax in training_curves(groups).axes]
    assert "training loss, image" in titles and "mAP50-95" in titles
    for run in itertools.chain(*groups.values()):  # as `--noval` leaves them
        run.epochs[0] |= {"val": None, "metrics": None}
    assert [ax.get_title() for ax in training_curves(groups).axes] == titles[:2]


@pytest.mark.parametrize(
    ("text", "box", "view"),
    [
        ("2 0.5 0.5 0.1 0.1 0.9\n2 0.1 0.5 0.1 0.1 0.8\n\n0 1 0\n", 2, 1),
        ("2 0.5 0.5 0.1 0.1 0.1\n\n0 0 0 0 1 0\n", None, 4),  # an unsure box, six image classes
        ("0 0 0 0 0 1\n", None, 5),
        ("\n0 0 1\n", None, 2),
        ("1 0.5 0.5 0.1 0.1 0.9\n", 1, -1),
        ("", None, -1),
    ],
)
def test_answers_are_read_back(tmp_path, text, box, view):
    (tmp_path / "0.txt").write_text(text)
    answer = read_answer(tmp_path / "0.txt")
    assert answer.image_class == view
    assert answer.box is None if box is None else answer.box[0] == box


def test_pictures_of_one_stem_are_not_taken_for_each_other(data, tmp_path):
    """A second picture 6 beside the first; the validation says whose answers are in which file."""
    runs = fake_runs(data, tmp_path / "out", {name: TABLE[name][:1] for name in ("gradnorm", "detach")})
    content = load_data_config(data)
    index = scan_dataset(content.val, content.nc, content.cls_nc, verbose=False)
    captions = [text for _, text in find_disagreements(runs, index, content, 99)]
    assert len(captions) == 6
    (data.parent / "other").mkdir()
    seven = next(str(f) for f in index.im_files if str(f).endswith("/7.png"))
    other = shutil.move(seven, data.parent / "other" / "6.png")
    index.im_files = np.array([str(other) if str(f) == seven else str(f) for f in index.im_files])
    for run in runs:
        (run.job.folder / "val" / "labels" / "7.txt").rename(run.job.folder / "val" / "labels" / "6_2.txt")
        stems = UniqueStems()
        assert [stems(f) for f in index.im_files if str(f).endswith("/6.png")] == ["6", "6_2"]
        stems.save(run.job.folder / "val")
    again = [text for _, text in find_disagreements(runs, index, content, 99)]
    assert sorted(again) == sorted(text.replace("7.png", "6.png") for text in captions)


@pytest.mark.slow
def test_the_page_in_a_browser(data, tmp_path):
    write_report(fake_runs(data, tmp_path / "out", TABLE), {}, tmp_path / "out", ["compare"])
    assert seen_on_a_phone(tmp_path / "out" / "report.html", tmp_path / "browser") == (11, 0, 0)
