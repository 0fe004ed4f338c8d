"""The comparison: its strategies, and runs that fail, were cut or are done."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_comparison import TABLE, fake_runs
from tiny_data import make_data
from tiny_weights import save_cfg

import compare_joint
import train_joint
import val_joint
from compare.results import METRICS, read_run
from compare.runs import parse_strategy, perform, plan, run_all, run_on_ray
from utils.system.yamls import load_yaml, save_yaml

TINY = ["--img", "64", "--batch-size", "4", "--workers", "0", "--amp", "off", "--save-period", "1"]


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
        ("mine=--hyp 'C:\\my hyps\\a.yaml'", "_cls", ("--hyp", "C:\\my hyps\\a.yaml")),
    ],
)
def test_strategies(text, ending, options):
    strategy = parse_strategy(text)
    assert (strategy.ending, strategy.options) == (ending, options)


@pytest.mark.parametrize(
    "text",
    ["gradnrom", "a/b=--x", "a\\b=--x", "=--x", "fixd:1,2", "fixed:", "det-only=--x", "uw=--balancer mgda", "--x=a b"],
)
def test_no_such_strategy(text):
    with pytest.raises(ValueError, match="--strategies"):
        parse_strategy(text)


@pytest.mark.parametrize("text", ["a=--seed 7", "a=--epochs=40", "a=--epoch 40", "a=--name b", "a=--single"])
def test_a_strategy_leaves_the_budget_alone(text):
    with pytest.raises(ValueError, match="would be no comparison"):
        parse_strategy(text)


@pytest.mark.parametrize(
    "budget", [["--seed", "7"], ["--img", "64", "--cfg=s.yaml"], ["--see", "7"], ["--epoch", "9"], ["--balancer", "uw"]]
)
def test_the_budget_leaves_the_strategies_alone(tmp_path, budget):
    with pytest.raises(ValueError, match="would be no comparison"):
        plan([parse_strategy("uw")], [0], {"d": tmp_path / "d.yaml"}, "yolov5n", budget, 2, tmp_path)


def test_runs_made_with_other_options_are_not_mixed_in(tmp_path):
    def jobs(epochs: int) -> list:
        return plan([parse_strategy("uw")], [0], {"d": tmp_path / "d.yaml"}, "yolov5n", [], epochs, tmp_path)

    (job,) = jobs(2)
    job.folder.parent.mkdir(parents=True)
    job.folder.with_name(f"{job.folder.name}.json").write_text(json.dumps(list(job.options)))
    assert jobs(2) == [job]
    with pytest.raises(ValueError, match="choose another --out"):
        jobs(3)
    with pytest.raises(ValueError, match="each may stand once"):
        plan([parse_strategy("uw")] * 2, [0], {}, "yolov5n", [], 2, tmp_path)
    for one, other in (("fixed:1,2", "fixed_1_2=--noval"), ("A=--noval", "a=--nosave")):  # one folder
        with pytest.raises(ValueError, match="each may stand once"):
            plan([parse_strategy(one), parse_strategy(other)], [0], {}, "yolov5n", [], 2, tmp_path)


def test_runs_on_other_data_are_not_mixed_in(data, tmp_path, monkeypatch):
    """A label, a name or a file that an option names changed after the first run."""
    (hyp := tmp_path / "hyp.yaml").write_text("fliplr: 0.5")
    args = ["--data", str(data), "--strategies", f"mine=--hyp={hyp}", "--seeds", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(compare_joint, "run_all", lambda jobs, *_: [start(job) for job in jobs])

    def start(job) -> None:
        if not job.note.exists():
            job.note.parent.mkdir(parents=True, exist_ok=True)
            monkeypatch.setattr("compare.runs.subprocess.run", lambda *_, **__: SimpleNamespace(returncode=1))
            perform(job, "cpu")
        begun.append(job)

    def again() -> None:
        compare_joint.main(*compare_joint.parse_opt(args))

    begun = []
    again()
    hyp.write_text("fliplr: 0.3")
    again()  # what failed before it began is tried again
    begun[0].note.unlink()
    again()
    (begun[0].folder / "weights").mkdir(parents=True)
    (begun[0].folder / "weights" / "last.pt").touch()
    label = next((data.parent / "train" / "labels").glob("*.txt"))
    for file, changed in ((hyp, "fliplr: 0.4"), (label, "0 1 0\n"), (data, data.read_text().replace("square", "cube"))):
        before = file.read_text()
        file.write_text(changed)
        assert before != changed
        with pytest.raises(ValueError, match="not what they were when this run began: choose another --out"):
            again()
        file.write_text(before)
        again()


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


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


def performed(jobs: list, devices: tuple = ("cpu",), say=lambda _: None) -> dict[str, str]:
    """Why jobs failed."""
    failed: dict[str, str] = {}
    run_all(jobs, devices, failed, say)
    return failed


@pytest.mark.slow
def test_a_run_is_two_commands(data, tiny, tmp_path):
    (job,) = plan([parse_strategy("det-only")], [0], {"published": data}, tiny, TINY, 2, tmp_path / "out")
    assert performed([job]) == {}
    assert job.finished and job.log.read_text().count("$ ") == 2
    assert read_run(job).figures["map50"] is not None and len(read_run(job).epochs) == 2


def test_a_command_that_fails_is_told(tmp_path, monkeypatch):
    (job,) = plan([parse_strategy("bad=--balancer nothing")], [0], {"d": tmp_path / "d.yaml"}, "m", TINY, 2, tmp_path)
    (tmp_path / "train_joint.py").write_text("import sys\nprint('a line')\nsys.exit('train_joint.py: no such data')\n")
    monkeypatch.setattr("compare.runs.ROOT", tmp_path)
    failed = performed([job])
    assert failed == {job.name: f"training failed (train_joint.py: no such data); see {job.log}"} and not job.finished


def test_a_run_on_each_gpu_at_a_time(tmp_path, monkeypatch):
    """Every device has one run before any gets its second: two that wait for each other both come through."""
    jobs = plan([parse_strategy("uw")], range(6), {"d": tmp_path / "d.yaml"}, "m", TINY, 2, tmp_path)
    both, used = threading.Barrier(2, timeout=60), []

    def perform(job, device):
        used.append((device, both.wait()))
        return "" if job.seed else "why"

    monkeypatch.setattr("compare.runs.perform", perform)
    assert performed(jobs, compare_joint.devices("cuda:0,1")) == {jobs[0].name: "why"}
    assert sorted(device for device, _ in used) == ["0"] * 3 + ["1"] * 3
    assert compare_joint.devices("") == [""] and compare_joint.devices("cpu") == ["cpu"]


@pytest.mark.slow
def test_one_that_fails_is_alone_and_one_that_was_cut_goes_on(data, tiny, tmp_path, here):
    strategies = [parse_strategy("bad=--balancer nothing"), parse_strategy("detach")]
    bad, good = jobs = plan(strategies, [0], {"published": data}, tiny, TINY, 2, tmp_path / "out")
    said = []
    failed = performed(jobs, say=said.append)
    assert list(failed) == [bad.name] and "invalid choice: 'nothing'" in failed[bad.name]
    assert good.finished and not bad.finished
    first = read_run(good)
    assert list(performed(jobs, say=said.append)) == [bad.name]  # tried again; the finished one is left alone
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
    args += ["--out", str(tmp_path / "o"), "--device", "cpu", "--epochs", "1", *TINY]
    args += [r"--group-regex=-?^(\d)"]  # begins as an option does
    monkeypatch.setattr("sys.argv", ["compare_joint.py", *args])
    assert compare_joint.main(*compare_joint.parse_opt(args)) == 0
    report = (tmp_path / "o" / "report.md").read_text()
    for fold in ("fold0", "fold1"):
        assert "--bootstrap 1000" in (tmp_path / "o" / fold / "det-only_seed0.log").read_text()
    assert "fold0, fold1" in report and "None of 10 groups is both trained on and validated on" in report
    with pytest.raises(ValueError, match="holds other folds"):
        compare_joint.main(*compare_joint.parse_opt([*args, "--folds", "3"]))
    (data.parent / "train" / "images" / "1.png").unlink()
    with pytest.raises(ValueError, match="folds of other pictures"):
        compare_joint.main(*compare_joint.parse_opt(args))
    save_yaml(data, load_yaml(data) | {"cls_nc": 0, "cls_names": []})
    with pytest.raises(ValueError, match="has no image classes .* which joint, uw would learn"):
        compare_joint.main(*compare_joint.parse_opt([*args, "--strategies", "joint", "det-only", "uw"]))


def test_groups_are_drawn_where_every_picture_has_one(data, capsys):
    assert compare_joint.usable_pattern([data], None) == "" == capsys.readouterr().out
    assert compare_joint.usable_pattern([data], r"^(\d+)") == r"^(\d+)"
    assert compare_joint.usable_pattern([data], r"^(\d)\.") == ""
    assert "no intervals over groups: 2 of 12 pictures have no group" in capsys.readouterr().out


@pytest.mark.slow
def test_a_comparison_that_is_stopped_has_a_report(data, tmp_path, monkeypatch, capsys):
    """Of the runs that are finished and can be read."""
    runs = fake_runs(data, tmp_path / "out", TABLE)
    (runs[0].job.folder / "val" / "metrics.json").write_text("{")

    def stopped(jobs, devices, failed):
        failed[jobs[-1].name] = "training failed (why)"
        raise KeyboardInterrupt

    monkeypatch.setattr("compare_joint.run_all", stopped)
    args = ["--data", str(data), "--strategies", *TABLE, "--seeds", "3", "--out", str(tmp_path / "out")]
    with pytest.raises(KeyboardInterrupt):
        compare_joint.main(*compare_joint.parse_opt([*args, "--group-regex", r"^(\d+)"]))
    report = (tmp_path / "out" / "report.md").read_text()
    assert "7 of 12 runs of 2 epochs; seeds 0, 1; data published" in report
    assert "published: 12 of 12 groups are both trained on and validated on" in report
    assert f"**Failed**: {runs[0].job.name}: its figures cannot be read" in report
    assert "failed: cls-only, seed 2, published: training failed (why)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_local_ray_cluster(data, tmp_path):
    pytest.importorskip("ray", reason="needs ray, which --ray asks for")
    jobs = plan([parse_strategy("bad=--balancer nothing")], [0], {"d": data}, "yolov5n", TINY, 2, tmp_path / "out")
    jobs += plan([parse_strategy("det-only")], [0], {"d": data}, "yolov5n", TINY, 2, tmp_path / "out")
    failed: dict[str, str] = {}
    run_on_ray(jobs, "local", 0, failed, lambda _: None)
    assert list(failed) == [jobs[0].name] and "invalid choice" in failed[jobs[0].name]
    assert read_run(jobs[1]).figures["map50"] is not None
