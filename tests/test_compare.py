"""The comparison: its strategies, its arithmetic, its report, and runs that fail, were cut or are done."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import make_data
from tiny_weights import save_cfg

import compare_joint
import train_joint
import val_joint
from compare.disagreements import find_disagreements, read_answer, right_box
from compare.figures import training_curves
from compare.report import write_report
from compare.results import (
    METRICS,
    best_strategy,
    by_strategy,
    delta_m,
    paired_difference,
    pareto_front,
    read_run,
    spread,
)
from compare.runs import parse_strategy, perform, plan, run_all, run_on_ray
from utils.dataset.config import load_data_config
from utils.dataset.scan import scan_dataset
from utils.system.yamls import load_yaml, save_yaml

ZERO = dict.fromkeys(("precision", "recall", "f1", "map50", "map50_95"), 0.0)
TINY = ["--epochs", "2", "--img", "64", "--batch-size", "4", "--workers", "0", "--amp", "off", "--save-period", "1"]


# --- strategies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ending", "options"),
    [
        ("gradnorm", "_cls", ("--balancer", "gradnorm")),
        ("fixed:1,0.1", "_cls", ("--balancer", "fixed", "--task-weights", "1", "0.1")),
        ("det-only", "", ()),
        ("dual", "_dual", ("--balancer", "fixed")),
        ("gradnorm-equal", "_cls", ("--balancer", "gradnorm", "--task-priorities", "1", "1")),
        ("p2=--task-priorities 1 0.2", "_cls", ("--task-priorities", "1", "0.2")),
    ],
)
def test_strategies(text, ending, options):
    strategy = parse_strategy(text)
    assert (strategy.ending, strategy.options) == (ending, options)


@pytest.mark.parametrize("text", ["gradnrom", "a/b=--x", "=--x", "fixd:1,2", "fixed:", "det-only=--balancer uw"])
def test_no_such_strategy(text):
    with pytest.raises(ValueError, match="--strategies"):
        parse_strategy(text)


@pytest.mark.parametrize("text", ["a=--seed 7", "a=--epochs=40", "a=--epoch 40", "a=--name b"])
def test_a_strategy_leaves_the_budget_alone(text):
    with pytest.raises(ValueError, match="the comparison's own"):
        parse_strategy(text)


@pytest.mark.parametrize("budget", [["--seed", "7"], ["--img", "64", "--cfg=yolov5s_cls.yaml"], ["--see", "7"]])
def test_the_budget_leaves_the_strategies_alone(tmp_path, budget):
    with pytest.raises(ValueError, match="the comparison's own"):
        plan([parse_strategy("uw")], [0], {"d": tmp_path / "d.yaml"}, "yolov5n", budget, tmp_path)


def test_runs_made_with_other_options_are_not_mixed_in(tmp_path):
    def jobs(epochs: str) -> list:
        return plan([parse_strategy("uw")], [0], {"d": tmp_path / "d.yaml"}, "yolov5n", ["--epochs", epochs], tmp_path)

    (job,) = jobs("2")
    job.folder.parent.mkdir(parents=True)
    job.folder.with_name(f"{job.folder.name}.json").write_text(json.dumps(list(job.options)))
    assert jobs("2") == [job]
    with pytest.raises(ValueError, match="choose another --out"):
        jobs("3")
    with pytest.raises(ValueError, match="each may stand once"):
        plan([parse_strategy("uw")] * 2, [0], {}, "yolov5n", [], tmp_path)
    with pytest.raises(ValueError, match="each may stand once"):  # one folder
        plan([parse_strategy("fixed:1,2"), parse_strategy("fixed_1_2=--noval")], [0], {}, "yolov5n", [], tmp_path)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def fake_runs(
    data: Path, folder: Path, table: dict[str, list[tuple[float | None, float | None]]], folds: tuple = ("published",)
) -> list:
    """Finished runs with these (mAP50-95, accuracy), as trainings would leave them: the folds of one seed, then those
    of the next."""
    jobs = plan(
        [parse_strategy(name) for name in table],
        range(-(-max(map(len, table.values())) // len(folds))),
        dict.fromkeys(folds, data),
        "yolov5n",
        ["--epochs", "2"],
        folder,
    )
    runs = []
    for job in jobs:
        number = job.seed * len(folds) + folds.index(job.fold)
        if number >= len(table[job.strategy.name]):
            continue
        map50_95, accuracy = table[job.strategy.name][number]
        (job.folder / "val" / "labels").mkdir(parents=True)
        detection = ZERO | {"map50_95": map50_95 or 0.0, "confusion_matrix": [[1, 0, 0], [0, 1, 0], [2, 0, 0]]}
        image = {"accuracy": accuracy, "balanced_accuracy": accuracy, "macro_f1": accuracy, "ece": 0.1}
        image = None if accuracy is None else image | {"confusion_matrix": [[3, 1], [0, 2]]}
        speed = {"preprocess": 1.0, "inference": 2.0, "nms": 3.0}
        metrics = {"detection": detection, "image": image, "speed_ms": speed}
        (job.folder / "val" / "metrics.json").write_text(json.dumps(metrics))
        weights = {"det": 0.0 if map50_95 is None else 1.0} | ({} if accuracy is None else {"image": 1.0})
        options = job.options[job.options.index("--task-weights") + 1 :] if "--task-weights" in job.options else ()
        save_yaml(job.folder / "opt.yaml", {"task_weights": [float(w) for w in options[:2]] or None})
        norms = {"det": 2.0, "image": 1.0} if len(weights) == 2 else None
        epochs = [
            {
                "epoch": e, "train": {"det": 0.2, "image": 0.6}, "val": {"det": 0.1, "image": 0.5},
                "task_weights": weights, "grad_norms": norms,
                "grad_cosine": 0.1, "metrics": {"map50_95": map50_95, "image_accuracy": accuracy},
                "seconds": 2.0 + e, "peak_memory_gb": 1.0,
            }
            for e in range(2)
        ]  # fmt: skip
        (job.folder / "training_history.json").write_text(json.dumps({"epochs": epochs}))
        (job.folder / "finished.json").write_text('{"parameters": 1800000, "gflops": 4.2}')
        for i in range(12):  # the second strategy answers otherwise from picture 6 on
            view = "1 0" if i < 6 or job.strategy.name == "gradnorm" else "0 1"
            (job.folder / "val" / "labels" / f"{i}.txt").write_text(f"0 0.5 0.5 0.3 0.3 0.9\n\n{view}\n")
        runs.append(read_run(job))
    return runs


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


TABLE = {
    "gradnorm": [(0.20, 0.90), (0.24, 0.92)],
    "detach": [(0.30, 0.80), (0.31, 0.82)],
    "det-only": [(0.30, None), (0.32, None)],
    "cls-only": [(None, 0.90), (None, 0.90)],
}


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


def test_what_some_runs_lack_is_compared_over_the_others(data, tmp_path):
    table = {
        "joint": [(0.30, 0.9), (0.10, 0.5)],
        "uw": [(0.90, 0.9)],
        "det-only": [(0.30, None)],
        "cls-only": [(None, 0.9)],
    }
    groups = by_strategy(fake_runs(data, tmp_path / "out", table))
    assert delta_m(groups, "joint") == pytest.approx(0)
    assert best_strategy(groups, "map50_95") is None and best_strategy(groups, "accuracy") is None


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
    runs = fake_runs(data, tmp_path / "out", {name: TABLE[name][:1] for name in ("gradnorm", "detach")})
    content = load_data_config(data)
    index = scan_dataset(content.val, content.nc, content.cls_nc, verbose=False)
    assert len(find_disagreements(runs, index, content, 99)) == 6
    index.im_files = np.array([str(f).replace("/7.png", "/other/6.png") for f in index.im_files])
    assert len(find_disagreements(runs, index, content, 99)) == 4


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path) -> str:
    """What `--model` names: the beginning of the yamls of tiny networks."""
    for ending in ("", "_cls"):
        save_cfg(tmp_path / f"tiny{ending}.yaml", f"yolov5n{ending}")
    return str(tmp_path / "tiny")


def run_here(command: list[str], stdout, **_) -> SimpleNamespace:
    """In place of `subprocess.run`: a script in this process, without the seconds that a start takes."""
    assert command[0] == sys.executable and Path(command[1]).is_file()
    script = {"train_joint.py": train_joint, "val_joint.py": val_joint}[Path(command[1]).name]
    code = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        try:
            script.main(script.parse_opt(command[2:]))
        except SystemExit as end:
            code = end.code
    return SimpleNamespace(returncode=code)


@pytest.fixture
def here(monkeypatch, no_curves) -> None:
    monkeypatch.setattr("compare.runs.subprocess", SimpleNamespace(run=run_here, STDOUT=subprocess.STDOUT))


@pytest.mark.slow
def test_a_run_is_two_commands(data, tiny, tmp_path):
    (job,) = plan([parse_strategy("det-only")], [0], {"published": data}, tiny, TINY, tmp_path / "out")
    assert run_all([job], ["cpu"], lambda _: None) == {}
    assert job.finished and job.log.read_text().count("$ ") == 2
    assert read_run(job).figures["map50"] is not None and len(read_run(job).epochs) == 2


def test_a_command_that_fails_is_told(tmp_path, monkeypatch):
    (job,) = plan([parse_strategy("bad=--balancer nothing")], [0], {"d": tmp_path / "d.yaml"}, "m", TINY, tmp_path)
    (tmp_path / "train_joint.py").write_text("import sys\nprint('a line')\nsys.exit('train_joint.py: no such data')\n")
    monkeypatch.setattr("compare.runs.ROOT", tmp_path)
    failed = run_all([job], ["cpu"], lambda _: None)
    assert failed == {job.name: f"training failed (train_joint.py: no such data); see {job.log}"} and not job.finished


def test_a_run_on_each_gpu_at_a_time(tmp_path, monkeypatch):
    """Every device has one run before any gets its second: two that wait for each other both come through."""
    jobs = plan([parse_strategy("uw")], range(6), {"d": tmp_path / "d.yaml"}, "m", TINY, tmp_path)
    both, used = threading.Barrier(2, timeout=60), []

    def perform(job, device):
        used.append((device, both.wait()))
        return "" if job.seed else "why"

    monkeypatch.setattr("compare.runs.perform", perform)
    assert run_all(jobs, compare_joint.devices("cuda:0,1"), lambda _: None) == {jobs[0].name: "why"}
    assert sorted(device for device, _ in used) == ["0"] * 3 + ["1"] * 3
    assert compare_joint.devices("") == [""] and compare_joint.devices("cpu") == ["cpu"]


@pytest.mark.slow
def test_one_that_fails_is_alone_and_one_that_was_cut_goes_on(data, tiny, tmp_path, here):
    strategies = [parse_strategy("bad=--balancer nothing"), parse_strategy("detach")]
    bad, good = jobs = plan(strategies, [0], {"published": data}, tiny, TINY, tmp_path / "out")
    said = []
    failed = run_all(jobs, ["cpu"], said.append)
    assert list(failed) == [bad.name] and "invalid choice: 'nothing'" in failed[bad.name]
    assert good.finished and not bad.finished
    first = read_run(good)
    assert list(run_all(jobs, ["cpu"], said.append)) == [bad.name]  # tried again; the finished one is left alone
    assert any("finished before" in line for line in said)
    assert good.log.read_text().count("$ ") == 2 and bad.log.read_text().count("$ ") == 2

    # As if it had been cut in its second epoch
    for name in ("finished.json", "val"):
        path = good.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy(good.folder / "weights" / "epoch0.pt", good.folder / "weights" / "last.pt")
    assert perform(good, "cpu") == ""
    assert "--resume" in good.log.read_text()
    again = read_run(good)
    assert len(again.epochs) == 2
    keys = [k for k, m in METRICS.items() if m.task]
    assert [again.figures[k] for k in keys] == [first.figures[k] for k in keys]


@pytest.mark.slow
def test_the_command_on_folds(data, tiny, tmp_path, monkeypatch, here):
    args = ["--data", str(data), "--strategies", "det-only", "--seeds", "1", "--folds", "2", "--model", tiny]
    args += ["--out", str(tmp_path / "o"), "--group-regex", r"^(\d)", "--device", "cpu", "--epochs", "1", *TINY[2:]]
    monkeypatch.setattr("sys.argv", ["compare_joint.py", *args])
    assert compare_joint.main(*compare_joint.parse_opt(args)) == 0
    assert "fold0, fold1" in (tmp_path / "o" / "report.md").read_text()
    with pytest.raises(ValueError, match="holds other folds"):
        compare_joint.main(*compare_joint.parse_opt([*args, "--folds", "3"]))
    (data.parent / "train" / "images" / "1.png").unlink()
    with pytest.raises(ValueError, match="folds of other pictures"):
        compare_joint.main(*compare_joint.parse_opt(args))
    save_yaml(data, load_yaml(data) | {"cls_nc": 0, "cls_names": []})
    with pytest.raises(ValueError, match="has no image classes .* which joint, uw would learn"):
        compare_joint.main(*compare_joint.parse_opt([*args, "--strategies", "joint", "det-only", "uw"]))


@pytest.mark.slow
def test_a_comparison_that_is_stopped_has_a_report(data, tmp_path, monkeypatch, capsys):
    """Of the runs that are finished and can be read."""
    runs = fake_runs(data, tmp_path / "out", TABLE)
    (runs[0].job.folder / "val" / "metrics.json").write_text("{")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("compare_joint.run_all", stopped)
    args = ["--data", str(data), "--strategies", *TABLE, "--seeds", "3", "--out", str(tmp_path / "out")]
    with pytest.raises(KeyboardInterrupt):
        compare_joint.main(*compare_joint.parse_opt([*args, "--group-regex", r"^(\d+)"]))
    report = (tmp_path / "out" / "report.md").read_text()
    assert "7 runs of 2 epochs; seeds 0, 1; data published" in report
    assert "published: 12 of 12 groups are both trained on and validated on" in report
    assert f"**Failed**: {runs[0].job.name}: its figures cannot be read" in report
    assert "without" in capsys.readouterr().out


@pytest.mark.slow
def test_a_local_ray_cluster(data, tmp_path):
    pytest.importorskip("ray", reason="needs ray, which --ray asks for")
    jobs = plan([parse_strategy("bad=--balancer nothing")], [0], {"d": data}, "yolov5n", TINY, tmp_path / "out")
    jobs += plan([parse_strategy("det-only")], [0], {"d": data}, "yolov5n", TINY, tmp_path / "out")
    failed = run_on_ray(jobs, "local", gpus=0, say=lambda _: None)
    assert list(failed) == [jobs[0].name] and "invalid choice" in failed[jobs[0].name]
    assert read_run(jobs[1]).figures["map50"] is not None


@pytest.mark.slow
def test_the_page_in_a_browser(data, tmp_path):
    """Headless Chromium, without a network: no error on the console, every picture is shown, no sideways scrolling."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    write_report(fake_runs(data, tmp_path / "out", TABLE), {}, tmp_path / "out", ["compare"])
    page = (tmp_path / "out" / "report.html").read_text()
    probe = (
        "<script>onload = () => document.title = 'pictures ' + document.images.length + ' broken ' + "
        "[...document.images].filter(i => !i.naturalWidth).length + ' wide ' + "
        "(document.documentElement.scrollWidth > innerWidth)</script></body>"
    )
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --window-size=500,900 --dump-dom"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "probe.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in seen.stderr
    assert "<title>pictures 11 broken 0 wide false</title>" in seen.stdout
