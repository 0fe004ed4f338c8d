"""Trainings from end to end on a few small pictures: joint and plain, cut and resumed, stopped by a bad loss."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tiny_data import SIZE, make_data
from tiny_weights import save_cfg
from two_processes import command, run_as_two

import train_joint
from models.run import build_engine, find_resumed, start
from models.training import resize_batch, to_training
from models.yolo import Model
from utils.dataset.config import load_hyp
from utils.system.paths import ROOT, pasted
from utils.system.yamls import load_yaml, save_yaml
from utils.training.evolve import evolve, read_history
from utils.training.options import Options
from utils.weights import checkpoint
from utils.weights.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def tiny_cfg(tmp_path_factory) -> Path:
    return save_cfg(tmp_path_factory.mktemp("cfg") / "tiny_cls.yaml")


def arguments(data: Path, cfg: Path | str, project: Path, **options) -> list[str]:
    given = {"img": SIZE, "epochs": 2, "batch-size": 4, "device": "cpu", "workers": 0, "amp": "off"} | options
    args = ["--data", str(data), "--cfg", str(cfg), "--project", str(project), "--noautoanchor"]
    for name, value in given.items():
        args += (
            [f"--{name}"] if value is True else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        )
    return args


def train(*args, **options) -> dict:
    return train_joint.main(train_joint.parse_opt(arguments(*args, **options)))


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "training_history.json").read_text())["epochs"]


@pytest.fixture(scope="module")
def trained(data, tiny_cfg, tmp_path_factory) -> Path:
    """The folder of a run of one epoch, which no test may change."""
    folder = tmp_path_factory.mktemp("trained")
    train(data, tiny_cfg, folder, epochs=1, noplots=True)
    return folder / "exp"


@pytest.fixture(scope="module")
def uncut(data, tiny_cfg, tmp_path_factory) -> Path:
    """The folder of a run of two epochs, which no test may change."""
    folder = tmp_path_factory.mktemp("uncut")
    train(data, tiny_cfg, folder, epochs=2, noplots=True)
    return folder / "exp"


@pytest.mark.parametrize(("optimizer", "momentum", "warmup"), [("Muon", 0.1, 2), ("SGD", 0.03, 25)])
def test_short_runs_warm_up_fast_and_their_statistics_follow(data, tiny_cfg, tmp_path, optimizer, momentum, warmup):
    words = arguments(data, tiny_cfg, tmp_path, optimizer=optimizer, epochs=100)
    opt = Options(**vars(train_joint.parse_opt(words)))
    run, model, _ = start(opt, load_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml"), None)
    engine = build_engine(run, model, batches=1, transferred=[])
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {momentum}
    assert engine.schedule.warmup_batches == warmup


@pytest.mark.slow
def test_joint_run_leaves_everything_a_user_expects(data, tiny_cfg, tmp_path):
    results = train(data, tiny_cfg, tmp_path)
    folder = tmp_path / "exp"
    expected = [
        "opt.yaml",
        "hyp.yaml",
        "results.csv",
        "training_history.json",
        "metrics.json",
        "weights/last.pt",
        "weights/best.pt",
        "labels.jpg",
        "train_batch0.jpg",
        "val_batch0_labels.jpg",
        "val_batch0_pred.jpg",
        "results.png",
        "task_weights.png",
        "balancer_trace.csv",
        "confusion_matrix.png",
        "image_confusion_matrix.png",
        "PR_curve.png",
        "F1_curve.png",
        "P_curve.png",
        "R_curve.png",
    ]
    assert [name for name in expected if not (folder / name).is_file()] == []
    check_tensorboard(folder)
    assert 0 <= results["image"]["accuracy"] <= 1 and results["counts"]["images"] == 12
    records = history(folder)
    assert [r["epoch"] for r in records] == [0, 1]
    weights = records[-1]["task_weights"]
    assert sum(weights.values()) == pytest.approx(2) and min(weights.values()) > 0
    assert all(v > 0 for v in records[0]["grad_norms"].values())
    steps = records[0]["grad_measured"]  # the first ten steps of the run one by one, then every tenth
    assert steps == 3 and records[0]["grad_skipped"] == 0
    assert -1 <= records[0]["grad_cosine"] <= 1 and records[0]["grad_cosine"] != 0
    conflicts = records[0]["conflict_share"] * steps
    assert 0 <= conflicts <= steps and conflicts == pytest.approx(round(conflicts))
    plain = torch.load(folder / "weights/best.pt", weights_only=True)
    assert plain["model"]["cls_names"] == {0: "plain", 1: "striped"}
    assert plain.get("train_state") is None  # stripped


def check_tensorboard(folder: Path) -> None:
    """Scalars of both tasks for each epoch, the run's pictures and the network's graph, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    wanted = {"train/box_loss", "val/image_loss", "metrics/mAP_0.5", "metrics/image_accuracy", "weights/det", "x/lr0"}
    wanted |= {"interference/cosine", "interference/conflict_share"}
    assert wanted <= set(tags["scalars"]) and [e.step for e in events.Scalars("metrics/mAP_0.5")] == [0, 1]
    assert {"labels", "train_batch0", "val_batch0_pred", "results", "task_weights"} <= set(tags["images"])
    picture = np.frombuffer(events.Images("train_batch0")[0].encoded_image_string, np.uint8)
    assert cv2.imdecode(picture, cv2.IMREAD_COLOR).std() > 0
    layers = {name[1] for node in events.Graph().node if len(name := node.name.split("/")) > 2}
    assert {"Conv[0]", "C3[17]", "Detect[24]", "ImageHead[25]"} <= layers


@pytest.mark.slow
def test_losses_of_both_tasks_fall(data, tiny_cfg, tmp_path):
    # Training losses only: after so few steps the batch norms still remember their initial statistics.
    hyp = tmp_path / "hyp.yaml"
    save_yaml(hyp, load_yaml(ROOT / "data/hyps/hyp.no-augmentation.yaml") | {"lr0": 0.02})
    whole = {"batch-size": 12, "nosave": True}  # an epoch is one step
    train(data, tiny_cfg, tmp_path, epochs=36, hyp=hyp, noval=True, noplots=True, **whole)
    records = history(tmp_path / "exp")
    first, last = records[0]["train"], records[-1]["train"]
    assert last["det"] < 0.7 * first["det"] and last["image"] < 0.3 * first["image"]


@pytest.mark.slow
def test_plain_detection_data(tmp_path):
    data = make_data(tmp_path / "plain", joint=False)
    results = train(data, "yolov5n.yaml", tmp_path, epochs=1, noplots=True)
    assert results["image"] is None and "map50" in results["detection"]
    assert load_checkpoint(tmp_path / "exp/weights/best.pt").cls_names == {}
    with pytest.raises(ValueError, match="cls_nc"):
        train(data, "yolov5n_cls.yaml", tmp_path, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "at"), [(False, 1), (False, 2), (True, 2), (False, 3)])
def test_resumed_run_follows_the_uncut_one(data, tiny_cfg, tmp_path, monkeypatch, request, tuning, at):
    options = {"epochs": 2, "noplots": True}
    if tuning:  # and with a process that reads the data
        options["workers"] = 1
        options["weights"] = request.getfixturevalue("trained") / "weights/last.pt"
        train(data, tiny_cfg, tmp_path, name="uncut", **options)
    whole = tmp_path / "uncut" if tuning else request.getfixturevalue("uncut")
    saved = checkpoint.save_checkpoint
    calls = []

    def cut(path, state):  # as if the machine had gone down after a save: of the start, the first epoch, the last one
        saved(path, state)
        if path.name == "last.pt":
            calls.append(path)
            if len(calls) == at:
                raise OSError("cut")

    monkeypatch.setattr(checkpoint, "save_checkpoint", cut)
    with pytest.raises(OSError, match="cut"):
        train(data, tiny_cfg, tmp_path, name="cut", **options)
    monkeypatch.setattr(checkpoint, "save_checkpoint", saved)
    train_joint.main(train_joint.parse_opt(["--resume", str(tmp_path / "cut/weights/last.pt"), "--device", "cpu"]))
    assert [r["epoch"] for r in history(tmp_path / "cut")] == [0, 1]
    for a, b in zip(history(whole), history(tmp_path / "cut"), strict=True):
        assert a["train"] == b["train"] and a["task_weights"] == b["task_weights"] and a["metrics"] == b["metrics"]
    a, b = ((run / "balancer_trace.csv").read_text().splitlines() for run in (whole, tmp_path / "cut"))
    assert a == b and len(a) == 1 + 6  # of six optimiser steps
    a, b = (load_checkpoint(run / "weights/last.pt").state_dict for run in (whole, tmp_path / "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="finished"):
        train_joint.main(train_joint.parse_opt(["--resume", str(tmp_path / "cut/weights/last.pt")]))


@pytest.mark.slow
def test_result_does_not_depend_on_the_number_of_workers(data, tiny_cfg, tmp_path, trained):
    train(data, tiny_cfg, tmp_path, epochs=1, workers=2, noplots=True)
    a, b = (history(run)[0] for run in (trained, tmp_path / "exp"))
    assert a["train"] == b["train"] and a["metrics"] == b["metrics"]


@pytest.mark.slow
def test_bad_loss_stops_the_run_and_names_the_batch(data, tiny_cfg, tmp_path, monkeypatch):
    compute = train_joint.ComputeJointLoss.__call__
    calls = []

    def broken(self, *args):
        losses = compute(self, *args)
        calls.append(1)
        if len(calls) == 2:
            losses.tasks["det"] = losses.tasks["det"] * float("nan")
        return losses

    monkeypatch.setattr(train_joint.ComputeJointLoss, "__call__", broken)
    with pytest.raises(train_joint.NonFiniteLoss, match=r"epoch 0 batch 1 with pictures .*\.png"):
        train(data, tiny_cfg, tmp_path, noplots=True)
    checkpoint = load_checkpoint(tmp_path / "exp/weights/last.pt")
    assert checkpoint.train_state is not None and all(torch.isfinite(v).all() for v in checkpoint.state_dict.values())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child process")
def test_ctrl_c_leaves_a_usable_checkpoint(data, tiny_cfg, tmp_path):
    args = arguments(data, tiny_cfg, tmp_path, epochs=500, noplots=True, noval=True)
    process = subprocess.Popen([sys.executable, str(ROOT / "train_joint.py"), *args], stdout=subprocess.DEVNULL)
    last = tmp_path / "exp/weights/last.pt"
    deadline = time.time() + 120
    while not last.exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    checkpoint = load_checkpoint(last)
    assert checkpoint.train_state is not None and checkpoint.epoch >= -1


def test_frozen_batch_norms_keep_their_statistics_where_they_are_synchronised_too(tiny_cfg):
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(Model(tiny_cfg))
    first, *others = (m for m in model.modules() if isinstance(m, torch.nn.SyncBatchNorm))
    first.weight.requires_grad_(False)
    to_training(model)
    assert not first.training and all(m.training for m in others)


@pytest.mark.slow
def test_the_final_validation_is_on_the_device_of_the_run(data, tiny_cfg, tmp_path, monkeypatch):
    """--device 0,1,2 is that of three processes, each with its share of the batch; the last one is alone."""
    monkeypatch.setattr("models.run.select_device", lambda device, batch: torch.device("cpu"))
    opt = Options(**vars(train_joint.parse_opt(arguments(data, tiny_cfg, tmp_path, epochs=1, noplots=True))))
    hyp = load_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml")
    assert train_joint.train(opt.but(device="0,1,2"), hyp)["detection"]


@pytest.mark.slow
def test_transfer_and_freeze(data, tiny_cfg, tmp_path, trained, capsys):
    train(data, tiny_cfg, tmp_path, epochs=1, weights=trained / "weights/best.pt", freeze=10, noplots=True)
    assert "Transferred" in capsys.readouterr().out
    a, b = (load_checkpoint(run / "weights/last.pt").state_dict for run in (trained, tmp_path / "exp"))
    assert torch.equal(a["model.0.conv.weight"], b["model.0.conv.weight"])
    assert not torch.equal(a["model.17.cv3.conv.weight"], b["model.17.cv3.conv.weight"])


def test_multi_scale_is_a_function_of_the_batch_number():
    images = torch.zeros(1, 3, 320, 320)
    sizes = [resize_batch(images, 320, 32, (0, n)).shape[-1] for n in range(40)]
    assert sizes == [resize_batch(images, 320, 32, (0, n)).shape[-1] for n in range(40)]
    assert len(set(sizes)) > 5 and min(sizes) >= 160 and max(sizes) <= 480 and all(s % 32 == 0 for s in sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--image-weights"],
        ["--quad"],
        ["--rect"],
        ["--rect", "--image-weights"],
        ["--rect", "--quad"],
        ["--multi-scale"],
        ["--cache", "disk"],
    ],
)
def test_flags_of_the_data_path_train(data, tiny_cfg, tmp_path, flags):
    args = arguments(data, tiny_cfg, tmp_path, epochs=1, noplots=True)
    train_joint.main(train_joint.parse_opt([*args, *flags]))
    assert np.isfinite(history(tmp_path / "exp")[0]["train"]["det"])


@pytest.mark.slow
def test_evolve_keeps_the_fittest(data, tiny_cfg, tmp_path):
    best = train(data, tiny_cfg, tmp_path, epochs=1, evolve=2, **{"evolve_population": tmp_path})
    folder = tmp_path / "exp"
    assert len((folder / "evolve.csv").read_text().splitlines()) == 3
    assert load_yaml(folder / "hyp_evolve.yaml")["lr0"] == best["lr0"]
    trials = read_history(folder / "evolve.csv")
    (kept,) = folder.glob("generation*/weights/last.pt")  # of the others the weights are gone
    assert kept.parts[-3] == f"generation{[t.fitness for t in trials].index(max(t.fitness for t in trials))}"
    assert len(list(folder.glob("generation*/results.csv"))) == 2


def test_options_that_cannot_be_as_asked_are_told(data, tiny_cfg, tmp_path, capsys):
    with pytest.raises(ValueError, match="--freeze 99: freezes every layer"):
        train(data, tiny_cfg, tmp_path, imgsz=70, freeze=99)
    train(data, tiny_cfg, tmp_path, imgsz=70, epochs=1, noval=True, nosave=True)
    assert "--imgsz 70: 96 is used, a multiple of the stride 32" in capsys.readouterr().out


@pytest.mark.slow
def test_evolution_goes_on_from_a_table_of_yolov5(data, tiny_cfg, tmp_path):
    old = tmp_path / "old.csv"
    head = "metrics/precision, metrics/recall, metrics/mAP_0.5, metrics/mAP_0.5:0.95, val/box_loss, lr0, momentum"
    old.write_text(f"   {head}\n  0.1, 0.2, 0.9, 0.8, 0.05, 0.0123, 0.9\n  0.1, 0.2, 0.1, 0.1, 0.05, 0.05, 0.7\n")
    trials = read_history(old)
    assert [t.fitness for t in trials] == pytest.approx([0.81, 0.1])
    assert trials[0].hyp == {"lr0": 0.0123, "momentum": 0.9}
    options = {"epochs": 1, "resume_evolve": old, "exist-ok": True}
    best = train(data, tiny_cfg, tmp_path, evolve=1, **options)
    assert best["lr0"] == 0.0123 and best["box"] == load_yaml(ROOT / "data/hyps/hyp.scratch-low.yaml")["box"]
    table = tmp_path / "exp/evolve.csv"
    assert [t.hyp["lr0"] for t in read_history(table)][:2] == [0.0123, 0.05] and len(read_history(table)) == 3
    assert old.read_text().startswith("   metrics/precision")
    folders = []
    evolve(
        lambda _, folder: folders.append(folder), tmp_path / "exp", 1, best
    )  # its own table, unasked; None: diverged
    assert folders == [tmp_path / "exp/generation3"]  # the earlier ones keep theirs
    assert [t.fitness for t in read_history(table)][3:] == [0.0] and len(read_history(table)) == 4
    old.write_text("epoch, loss\n0, 1\n")
    with pytest.raises(ValueError, match=r"old.csv: not the table of an evolution, it has no column metrics/mAP_0.5"):
        read_history(old)


def test_evolution_and_name_cfg_have_yolov5s_folders(data, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(train_joint, "ROOT", tmp_path)
    folders = []
    for name in ("evolve_run", "train"):
        monkeypatch.setattr(train_joint, name, lambda opt, hyp: folders.append(train_joint.take_folder(opt)))
    for more in ({"evolve": 1}, {"name": "cfg"}):
        train(data, tiny_cfg, tmp_path / "runs/train", **more)
    assert folders == [tmp_path / "runs/evolve/exp", tmp_path / "runs/train/tiny_cls"]


def test_a_run_is_saved_before_its_first_batch_over_an_older_one(data, tiny_cfg, tmp_path, monkeypatch, capsys):
    last = tmp_path / "exp/weights/last.pt"
    last.parent.mkdir(parents=True)
    for file in (last, last.with_name("best.pt")):
        file.write_bytes(b"of an older run")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_joint, "train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(data, tiny_cfg, tmp_path, noplots=True, **{"exist-ok": True})
    checkpoint = load_checkpoint(last)
    assert checkpoint.train_state is not None and checkpoint.epoch == -1
    assert [f.name for f in last.parent.iterdir()] == ["last.pt"]  # nothing that passes for this run's best
    assert f"Continue from its start with: python train_joint.py --resume {pasted(last)}" in capsys.readouterr().out


@pytest.mark.slow
def test_resume_auto_goes_on_with_the_unfinished_run_or_starts_one(data, tiny_cfg, tmp_path, monkeypatch):
    options = {"epochs": 2, "noplots": True, "resume": "auto"}
    saved, calls = checkpoint.save_checkpoint, []

    def cut(path, state):
        saved(path, state)
        calls.append(path)
        if len(calls) == 2:
            raise OSError("cut")

    monkeypatch.setattr(checkpoint, "save_checkpoint", cut)
    with pytest.raises(OSError, match="cut"):
        train(data, tiny_cfg, tmp_path, **options)
    left = tmp_path / "exp/weights/.last.pt.123-abc.tmp"  # of a process that was killed while it wrote
    left.write_bytes(b"half")
    train(data, tiny_cfg, tmp_path, **options)
    assert not left.exists()
    assert [r["epoch"] for r in history(tmp_path / "exp")] == [0, 1] and not (tmp_path / "exp2").exists()
    train(data, tiny_cfg, tmp_path, **options)  # nothing is unfinished now
    assert [r["epoch"] for r in history(tmp_path / "exp2")] == [0, 1]


def test_resume_auto_takes_no_run_of_another_name(tmp_path, monkeypatch):
    """`seed1` is the beginning of `seed10`, which is also the name of its tenth run."""
    names = {"seed1": "seed1", "seed13": "seed1", "seed10": "seed10", "seed1_large": "seed1_large", "[s]": "[s]"}
    names["heart/seed1"] = "heart/seed1"
    for i, folder in enumerate(names):
        file = tmp_path / folder / "weights/last.pt"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
        os.utime(file, (i, i))

    def load(file: Path) -> SimpleNamespace:
        return SimpleNamespace(train_state={}, opt={"name": names[str(file.parents[1].relative_to(tmp_path))]})

    monkeypatch.setattr("models.run.load_checkpoint", load)
    for name, folder in {
        "seed1": "seed13",
        "seed10": "seed10",
        "[s]": "[s]",
        "seed": None,
        "heart/seed1": "seed1",
    }.items():
        found = find_resumed(Options(resume="auto", name=name, cfg="", project=str(tmp_path)))
        assert (found and found.parents[1].name) == folder


@pytest.mark.slow
def test_a_resumed_run_keeps_its_classes_but_its_data_may_have_moved(data, tiny_cfg, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_joint, "train_epoch", interrupt)
        train(data, tiny_cfg, tmp_path, epochs=1, noplots=True)
    last, content = tmp_path / "exp/weights/last.pt", load_yaml(data)
    for change in ({"names": ["disc", "square"]}, {"cls_names": ["striped", "plain"]}, {"nc": 3, "names": list("abc")}):
        save_yaml(tmp_path / "changed.yaml", content | change)
        resumed = train_joint.parse_opt(["--resume", str(last), "--data", str(tmp_path / "changed.yaml")])
        with pytest.raises(ValueError, match=r"changed.yaml: the run to resume began with the classes .*square"):
            train_joint.main(resumed)
    shutil.copytree(data.parent, tmp_path / "moved")
    save_yaml(tmp_path / "moved/data.yaml", content | {"path": str(tmp_path / "moved")})
    train_joint.main(train_joint.parse_opt(["--resume", str(last), "--data", str(tmp_path / "moved/data.yaml")]))
    assert load_checkpoint(last).train_state is None and len(history(tmp_path / "exp")) == 1


@pytest.mark.slow
def test_two_runs_of_one_name_have_a_folder_each(data, tiny_cfg, tmp_path, monkeypatch):
    def second(*_, **__):  # starts while the first has written nothing yet
        monkeypatch.undo()
        train(data, tiny_cfg, tmp_path, epochs=1, noplots=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_joint, "build_loaders", second)
    with pytest.raises(KeyboardInterrupt):
        train(data, tiny_cfg, tmp_path, epochs=1, noplots=True)
    assert not (tmp_path / "exp/results.csv").exists() and (tmp_path / "exp2/results.csv").exists()


@pytest.mark.slow
def test_a_full_disk_is_told_in_a_sentence(data, tiny_cfg, tmp_path, monkeypatch):
    saved = checkpoint.save_checkpoint

    def full(path, state):
        if state["epoch"] >= 0:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        saved(path, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(
        OSError, match=r"epoch 0 could not be saved in .*weights \(.*write failed\); the .*last.pt of before"
    ):
        train(data, tiny_cfg, tmp_path, noplots=True)
    assert load_checkpoint(tmp_path / "exp/weights/last.pt").epoch == -1


def test_several_devices_from_python_do_not_start_the_caller_anew(data, tiny_cfg, monkeypatch):
    monkeypatch.setattr(train_joint, "launch_per_gpu", lambda count: pytest.fail("the caller was started anew"))
    with pytest.raises(ValueError, match=r"--device 0,1: each GPU needs a process"):
        train_joint.run(data=str(data), cfg=str(tiny_cfg), device="0,1")
    started = []
    monkeypatch.setattr(train_joint, "launch_per_gpu", lambda count: sys.exit(started.append(count)))
    monkeypatch.setattr(sys, "argv", ["train_joint.py", "--data", str(data), "--device", "0,1"])
    with pytest.raises(SystemExit):
        train_joint.command_line()
    assert started == [2]


@pytest.mark.slow
@pytest.mark.parametrize("off", [False, True])
def test_two_processes_train_as_one(data, tiny_cfg, tmp_path, off, second, capsys):
    options = {"balancer": "fixed", "task-weights": [0, 1]} if off else {}  # then the detector's layers get no gradient
    args = arguments(data, tiny_cfg, tmp_path, epochs=1, noplots=True, **options)
    _, other = run_as_two(second, command, "train_joint", args)
    records = history(tmp_path / "exp")
    assert len(records) == 1 and np.isfinite(records[0]["train"]["det"])
    assert (tmp_path / "exp/weights/best.pt").is_file() and not (tmp_path / "exp2").exists()
    said = capsys.readouterr().out
    assert said.count("Results saved to") == 2 and not other  # the final validation and the run, of one process


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "off", "on"), [([0, 1], "detect", "image_head"), ([1, 0], "image_head", "detect")])
def test_a_task_of_weight_0_is_not_trained(data, tiny_cfg, tmp_path, trained, weights, off, on):
    start = trained / "weights/last.pt"
    results = train(
        data, tiny_cfg, tmp_path, balancer="fixed", **{"task-weights": weights}, weights=start, noplots=True, epochs=1
    )
    before, after = (Model.from_checkpoint(load_checkpoint(f)) for f in (start, tmp_path / "exp/weights/last.pt"))
    for part, moved in ((off, False), (on, True)):
        pairs = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        same = [torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs]
        assert all(same) is not moved, part
    record = history(tmp_path / "exp")[-1]
    assert list(record["task_weights"].values()) == weights and record["grad_norms"] is None
    assert record["train"]["det"] > 0 and record["train"]["image"] > 0
    assert results["image"] and results["detection"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes of torchrun in /proc")
def test_torchrun_starts_a_killed_run_again_and_it_goes_on(data, tiny_cfg, tmp_path):
    args = arguments(data, tiny_cfg, tmp_path, epochs=8, noplots=True, resume="auto")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max-restarts", "1", str(ROOT / "train_joint.py"), *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        table, deadline = tmp_path / "exp/results.csv", time.time() + 200
        while time.time() < deadline and not (table.exists() and table.read_text().count("\n") > 2):
            time.sleep(0.05)  # until the second epoch is written down: by then the first is saved
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(300) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    starts = re.findall(r"Training epochs (\d) to 7", (tmp_path / "log.txt").read_text())
    assert len(starts) == 2 and starts[0] == "0" and int(starts[1]) >= 1
    assert [r["epoch"] for r in history(tmp_path / "exp")] == list(range(8)) and not (tmp_path / "exp2").exists()
    assert load_checkpoint(tmp_path / "exp/weights/last.pt").train_state is None
