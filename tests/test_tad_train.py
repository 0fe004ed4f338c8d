"""The three command lines of temporal detection, on clips small enough to train on in seconds."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import av
import pytest
import torch
import yaml
from tad_set import SMALL, make_set, train

import detect_tad
import tad.training
import train_tad
import val_tad
from tad.load import load_model
from tad.predict import predict_video
from tad.validation import of_videos
from tad.weights import to_public
from utils.results.timelines import Event
from utils.weights.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("squares") / "set")


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    file = tmp_path_factory.mktemp("cfg") / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return file


@pytest.fixture(scope="module")
def trained(data, cfg, tmp_path_factory):
    return train(data, cfg, tmp_path_factory.mktemp("runs"), "--noplots")


@pytest.mark.slow
def test_what_a_run_leaves(data, cfg, tmp_path):
    trained = train(data, cfg, tmp_path)
    names = {
        "weights/best.pt", "weights/last.pt", "results.csv", "training_history.json", "training_curves.png",
        "TRAINING_SUMMARY.md", "timelines.png", "map_over_tiou.png", "false_positives.png", "detections.json",
        "metrics.json", "opt.yaml", "model.yaml",
    }  # fmt: skip
    assert all((trained / name).is_file() for name in names)
    with (trained / "results.csv").open(newline="") as f:
        rows = [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(f)]
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert all(float(row["train/total_loss"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    assert [bool(row["metrics/mAP"]) for row in rows] == [False, True, False, True]  # every second epoch
    summary = (trained / "TRAINING_SUMMARY.md").read_text()
    assert "| red |" in summary and "4 epochs" in summary and "| frames | 32 |" in summary
    checkpoint = load_checkpoint(trained / "weights" / "last.pt")
    assert checkpoint.epoch == 3 and checkpoint.train_state is None


@pytest.mark.slow
def test_validation_repeats_the_figures_of_the_run(trained, data, tmp_path):
    words = ["--data", str(data), "--weights", str(trained / "weights/best.pt"), "--amp", "off", "--device", "cpu"]
    metrics = val_tad.main(val_tad.parse_opt([*words, "--workers", "0", "--project", str(tmp_path)]))
    wanted = json.loads((trained / "metrics.json").read_text())
    assert metrics["average_map"] == pytest.approx(wanted["average_map"], abs=1e-9)
    # and so does any other evaluator of the results file
    words = ["--data", str(data), "--detections", str(tmp_path / "exp/detections.json"), "--project", str(tmp_path)]
    again = val_tad.main(val_tad.parse_opt(words))
    assert again["average_map"] == pytest.approx(metrics["average_map"], abs=1e-9)
    assert again["map"] == metrics["map"]


def test_results_belong_to_videos_by_name_or_path(capsys):
    event = [Event(0, 1, "a", 0.5)]
    assert of_videos({"x/v1.mp4": event, "v.2": event}, {"v1", "v.2"}, "f") == {"v1": event, "v.2": event}
    assert of_videos({"x/v.2": event}, {"v.2"}, "f") == {"v.2": event}
    assert list(of_videos({"v1": event, "v1.5": event}, {"v1"}, "f")) == ["v1", "v1.5"]
    assert "f: 1 of its 2 videos, such as v1.5, are none" in "".join(capsys.readouterr())
    assert list(of_videos({"v1": event, "w": event}, {"v1"}, "f")) == ["v1", "w"]
    assert "f: 1 of its 2 videos, such as w, are none of the 1 to judge by" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match="f: 1 of its 1 videos, such as w, are none of the 1 to judge by, such as v1"):
        of_videos({"w": event}, {"v1"}, "f")
    with pytest.raises(ValueError, match="has results of the video v1 twice"):
        of_videos({"v1": event, "a/v1.avi": event}, {"v1"}, "f")


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--cache", "ram"], ["--cache", "disk"], ["--workers", "2", "--cache", "ram"]])
def test_cached_frames_and_workers_change_no_draw(trained, data, cfg, tmp_path, more):
    run = train(data, cfg, tmp_path, "--epochs", "1", "--noplots", *more)
    losses = [json.loads((r / "training_history.json").read_text())["epochs"][0]["train"] for r in (trained, run)]
    # resized before the cache in one piece instead of frame by frame in two: grey levels may differ by rounding
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    if "disk" in more:
        assert list((data.parent / "videos" / ".frames").glob("*.npy"))


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "reason"), [("ram", "GB of memory"), ("disk", "cannot be written")])
def test_frames_that_cannot_be_kept_are_decoded_as_needed(
    trained, data, cfg, tmp_path, monkeypatch, capsys, cache, reason
):
    copy = shutil.copytree(data.parent, tmp_path / "set", ignore=shutil.ignore_patterns(".frames"))
    moved = copy / data.name
    moved.write_text(data.read_text().replace(str(data.parent), str(copy)))
    (copy / "videos" / ".frames").write_text("in the way")
    monkeypatch.setattr("tad.data.available_memory", lambda: (1 << 30) + (1000 if cache == "ram" else 1 << 30))
    run = train(moved, cfg, tmp_path, "--epochs", "1", "--noplots", "--cache", cache)
    assert re.search(rf"--cache {cache}: 0 of \d+ videos are kept: .*{reason}", capsys.readouterr().out)
    losses = [json.loads((r / "training_history.json").read_text())["epochs"][0]["train"] for r in (trained, run)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(trained, data, cfg, tmp_path, monkeypatch):
    real = tad.training.train_epoch

    def stopping(run, engine, net, loader, epoch, stop):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)  # is noticed after the first batch
        return real(run, engine, net, loader, epoch, stop)

    monkeypatch.setattr(tad.training, "train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(data, cfg, tmp_path)
    monkeypatch.undo()
    last = tmp_path / "exp/weights/last.pt"
    assert load_checkpoint(last).epoch == 1
    train_tad.main(train_tad.parse_opt(["--resume", str(last)]))
    whole, parts = (load_checkpoint(r / "weights/last.pt").state_dict for r in (trained, tmp_path / "exp"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    histories = [json.loads((r / "training_history.json").read_text())["epochs"] for r in (trained, tmp_path / "exp")]
    for a, b in zip(*histories, strict=True):
        assert a["train"] == b["train"] and a["metrics"] == b["metrics"] and a["lr"] == b["lr"]


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_classes_alone(trained, data, cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(tad.training, "finish", lambda *_: {})
    run = train(data, cfg, tmp_path, "--epochs", "1")
    turned = tmp_path / "turned.yaml"
    turned.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | {"names": ["red", "blue"]}))
    words = ["--resume", str(run / "weights/last.pt"), "--data", str(turned)]
    with pytest.raises(ValueError, match="knows the classes") as error:
        train_tad.main(train_tad.parse_opt(words))
    assert "blue, red, and" in str(error.value) and "red, blue" in str(error.value)


def test_an_exported_network_is_told_from_a_damaged_one(tmp_path):
    (tmp_path / "best.onnx").write_bytes(b"onnx")
    with pytest.raises(ValueError, match=r"best\.onnx is an exported file"):
        load_model(tmp_path / "best.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_frozen_layers_learn_the_same_with_activations_kept_or_computed_again(data, tmp_path, amp):
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(SMALL | {"freeze": True, "depth": 3, "epochs": 2}))
    courses = []
    for choice in ("on", "off"):
        run = train(
            data, tmp_path / "frozen.yaml", tmp_path / choice, "--checkpointing", choice, "--noplots", "--amp", amp
        )
        history = json.loads((run / "training_history.json").read_text())["epochs"]
        courses.append([epoch["train"]["total"] for epoch in history])
    assert courses[0] == pytest.approx(courses[1], rel=1e-5 if amp == "off" else 1e-2)


@pytest.mark.slow
def test_events_of_files(trained, data, tmp_path, capsys):
    folder = data.parent / "videos"
    (tmp_path / "in").mkdir()
    for name in ("v6.mp4", "v7.mp4"):
        (tmp_path / "in" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "in" / "broken.mp4").write_bytes(b"nothing")
    words = ["--weights", str(trained / "weights/best.pt"), "--source", str(tmp_path / "in"), "--conf", "0.01"]
    words += ["--project", str(tmp_path / "out"), "--save-vid", "--device", "cpu", "--amp", "off"]
    events = detect_tad.main(detect_tad.parse_opt(words))
    assert {Path(f).name for f in events} == {"v6.mp4", "v7.mp4"}
    out = tmp_path / "out/exp"
    told, bars = capsys.readouterr()
    assert "window" not in bars  # which a log file would be full of
    assert "broken.mp4: no video that can be read" in told and "1 file(s) with problems" in told
    results = json.loads((out / "detections.json").read_text())["results"]
    with (out / "events.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == sum(map(len, results.values())) == sum(map(len, events.values())) > 0
    assert (out / "v6_timeline.png").stat().st_size > 1000
    with av.open(str(out / "v6.mp4")) as video:
        pictures = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    assert len(pictures) == 60 and pictures[0].shape[1] == 48 and pictures[0].shape[0] > 40


def test_windows_overlap_or_not_events_are_those_of_the_validation(trained, data):
    """A file alone gives what validation of its subset gave."""
    model = load_model(trained / "weights/best.pt")
    saved = json.loads((trained / "detections.json").read_text())["results"]["v6"]
    events, video = predict_video(model, data.parent / "videos/v6.mp4", torch.device("cpu"), None)
    assert video.frames == 60 and len(events) == len(saved) > 0
    for ours, wanted in zip(events, saved, strict=True):
        assert list(ours[:2]) == pytest.approx(wanted["segment"], abs=0.011)
        assert ours.score == pytest.approx(wanted["score"], abs=2e-4)


@pytest.mark.slow
def test_a_public_checkpoint_runs(trained, data, cfg, tmp_path):
    model = load_model(trained / "weights/best.pt")
    torch.save({"epoch": 1, "state_dict_ema": to_public(model.state_dict())}, tmp_path / "epoch_1.pth")
    words = ["--data", str(data), "--weights", str(tmp_path / "epoch_1.pth"), "--device", "cpu", "--amp", "off"]
    words += ["--project", str(tmp_path), "--workers", "0"]
    with pytest.raises(ValueError, match="give --cfg and --data"):
        val_tad.main(val_tad.parse_opt(words))
    metrics = val_tad.main(val_tad.parse_opt([*words, "--cfg", str(cfg)]))
    wanted = json.loads((trained / "metrics.json").read_text())
    assert metrics["average_map"] == pytest.approx(wanted["average_map"], abs=1e-6)


@pytest.mark.slow
def test_training_starts_from_other_weights(trained, data, cfg, tmp_path, capsys):
    run = train(data, cfg, tmp_path, "--weights", str(trained / "weights/best.pt"), "--epochs", "1", "--noplots")
    assert "tensors (train_tad.py)" in capsys.readouterr().out
    first = json.loads((run / "training_history.json").read_text())["epochs"][0]["train"]["total"]
    scratch = json.loads((trained / "training_history.json").read_text())["epochs"][0]["train"]["total"]
    assert first < scratch


@pytest.mark.slow
def test_what_is_left_out_is_listed(data, cfg, tmp_path, capsys):
    other = tmp_path / "set"
    make_set(other, 4, 2)
    content = json.loads((other / "annotations.json").read_text())
    content["database"]["v0"]["annotations"].append({"segment": [2, 1], "label": "red"})
    content["database"]["gone"] = content["database"]["v1"]
    content["database"]["v2"]["frame"] = 70
    content["database"]["v1"]["duration"] = 60
    (other / "annotations.json").write_text(json.dumps(content))
    whole = (other / "videos/v3.mp4").read_bytes()
    (other / "videos/v3.mp4").write_bytes(whole[: len(whole) // 2])  # cut: its list of frames is gone
    run = train(other / "data.yaml", cfg, tmp_path, "--epochs", "1", "--noplots", "--batch-size", "1")
    listed = (run / "left_out_train.csv").read_text()
    assert "v0, event 3: ends at 1 s" in listed and "gone.mp4 is not there" in listed
    assert "v1: 60 s in the annotations, 2.4 s in the file; events are placed by the former" in listed
    assert "| training / validation videos | 3 / 2 |" in (run / "TRAINING_SUMMARY.md").read_text()
    assert (
        "v3.mp4: no video that can be read" in listed and "v2: 70 frames in the annotations, 60 in the file" in listed
    )
    with pytest.raises(ValueError, match="--strict"):
        train(other / "data.yaml", cfg, tmp_path, "--epochs", "1", "--strict", "--batch-size", "1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": "trainning"}, "no video of the subset 'trainning'; the file has training"),
        ({"names": ["red"]}, "has the label 'blue', which is none of the classes red"),
        ({"names": ["red", "red"]}, "names: expected a list of different class names"),
        ({"more": 1}, "unknown key more"),
        ({"annotations": "none.json"}, "none.json is not there"),
        ({"videos": "none"}, "no video of training is left"),
    ],
)
def test_a_wrong_data_yaml_is_told_in_a_sentence(data, cfg, tmp_path, change, says):
    raw = yaml.safe_load(data.read_text()) | change
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train(file, cfg, tmp_path)


def test_a_command_line_ends_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_tad.py", "--data", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit, match=r"^train_tad\.py: .*none\.yaml"):
        runpy.run_path(str(ROOT / "train_tad.py"), run_name="__main__")


def test_a_picture_detector_is_refused(trained, tmp_path):
    content = {
        "epoch": 0, "best_fitness": 0.0, "ema": None, "train_state": None, "opt": {}, "hyp": {}, "date": "",
        "model": {"yaml": {"nc": 1}, "names": {0: "a"}, "cls_names": {}, "nc": 1, "cls_nc": 0, "stride": [8.0],
                  "state_dict": {"a": torch.zeros(1)}},
    }  # fmt: skip
    save_checkpoint(tmp_path / "picture.pt", content)
    with pytest.raises(ValueError, match="holds a picture detector, which detect.py and val_joint.py run"):
        load_model(tmp_path / "picture.pt")


@pytest.mark.slow
def test_it_learns(tmp_path):
    """mAP@0.5 above 0.9 on clips that were not trained on."""
    data, cfg = make_set(tmp_path / "set", 24, 6), tmp_path / "learn.yaml"
    more = {"epochs": 15, "schedule_epochs": 15, "warmup_epochs": 2, "backbone_drop": 0.0, "eval_every": 15, "dim": 48,
            "heads": 3, "mlp": 96, "adapter": 12, "channels": 48, "detector_heads": 4, "ema": 0.9, "depth": 2,
            "flip": 0.0, "randaugment": False, "jitter": False, "crop_area": 0.8, "batch": 4, "lr": 0.004,
            "backbone_lr": 0.004, "adapter_lr": 0.004, "detector_drop": 0.0}  # fmt: skip
    cfg.write_text(yaml.safe_dump(SMALL | more))
    run = train(data, cfg, tmp_path, "--noplots", "--cache", "ram")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["map"]["0.5"] > 0.9
