"""`detect.py --clip-summary`: what a clip says as a whole, from the answers on its frames."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_weights import NAMES, VIEWS, save_weights

import detect
from utils.results.clips import Clip, ClipSummaries
from utils.results.frames import Frame
from utils.results.timelines import Event, plot_timelines

NOTHING = np.zeros((0, 6), np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "joint.pt")


def found(*classes: int, confidence: float = 0.5) -> np.ndarray:
    return np.array([[0, 0, 9, 9, confidence, c] for c in classes], np.float32).reshape(-1, 6)


def clip_of(seen: str, fps: float = 10, stride: int = 1, confidence: float = 0.5) -> Clip:
    """A clip in which class 0 is seen in the frames marked x."""
    clip = Clip("a.mp4", NAMES, {})
    for number in range(stride, len(seen) + 1, stride):
        there = found(0, 0, confidence=confidence) if seen[number - 1] == "x" else NOTHING
        clip.add(((number - 1) / fps, number / fps), number, there, None)
    return clip


def test_short_gaps_are_bridged_and_long_ones_are_not():
    """At 10 frames a second, 0.2 s without the class are still its interval, 0.3 s end it."""
    clip = clip_of("..xx..x...x..")
    cat = clip.record()["seen"]["cat"]
    assert [(i["start"], i["end"], i["first_frame"], i["last_frame"], i["frames"]) for i in cat] == [
        (0.2, 0.7, 3, 7, 3),
        (1.0, 1.1, 11, 11, 1),
    ]
    assert clip.record()["seconds"] == 1.3 and clip.record()["view"] is None


def test_one_frame_without_the_class_is_bridged_however_long_it_lasts():
    assert [(i.start, i.end) for i in clip_of("x.xx..x", fps=1).intervals[0]] == [(0, 4), (6, 7)]


def test_times_are_the_videos_whatever_the_stride():
    one, five = clip_of("x" * 20 + "." * 20 + "x" * 20), clip_of("x" * 20 + "." * 20 + "x" * 20, stride=5)
    assert [(i.start, i.end) for i in one.intervals[0]] == [(0, 2), (4, 6)]
    assert [(i.start, i.end) for i in five.intervals[0]] == [(0.4, 2), (4.4, 6)]  # frames 5 to 20, and 45 to 60


def test_the_view_is_that_of_the_mean_log_probability():
    """Two unsure frames against a sure one: the vote and the mean probability would both say otherwise."""
    clip = Clip("a.mp4", NAMES, VIEWS)
    answers = np.array([[0.55, 0.45], [0.55, 0.45], [0.3, 0.7]])
    for k, probs in enumerate(answers):
        clip.add((k, k + 1), k + 1, NOTHING, probs)
    view, mean = clip.view(), np.log(answers).mean(0)
    assert view["name"] == "PLAX" and view["agreeing"] == pytest.approx(1 / 3, abs=1e-4)
    assert list(view["log_probabilities"].values()) == pytest.approx(mean, abs=1e-4)
    assert view["probability"] == pytest.approx(np.exp(mean[1]) / np.exp(mean).sum(), abs=1e-4)
    clip.add((3, 4), 4, NOTHING, np.array([1.0, 0.0]))  # one impossibility is no infinity
    assert np.isfinite(list(clip.view()["log_probabilities"].values())).all()


def test_live_streams_go_by_the_clock(tmp_path):
    clips = ClipSummaries(tmp_path, NAMES, {}, pictures=False)
    for k, (seconds, there) in enumerate([(0.0, True), (0.1, True), (0.5, False), (1.0, False), (2.0, True)]):
        frame = Frame(np.zeros((4, 4, 3), np.uint8), "rtsp://cam/1", "stream", "", k + 1, 10.0, seconds)
        clips.add(frame, found(1) if there else NOTHING, None)
    clips.finish()
    record = json.loads((tmp_path / "clips" / "cam_1.json").read_text())
    assert [(i["start"], i["end"]) for i in record["seen"]["MR"]] == [(0, 0.2), (2, 2.1)]


def write_video(file: Path, pictures: int, fps: float = 10) -> Path:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), fps, (128, 96))
    for k in range(pictures):
        writer.write(np.full((96, 128, 3), 9 * k, np.uint8))
    writer.release()
    return file


def detect_in(weights: Path, source: Path, tmp_path: Path, **options) -> Path:
    settings = {"imgsz": 96, "max_det": 4, "device": "cpu", "project": tmp_path / "runs", "clip_summary": True}
    return detect.run(weights, source, **settings | options)


@pytest.mark.parametrize("stride", [1, 3])
def test_a_video_is_summed_up_from_the_very_answers_on_its_frames(weights, tmp_path, stride, capsys):
    write_video(tmp_path / "a.avi", 12), write_video(tmp_path / "b.avi", 4)
    out = detect_in(weights, tmp_path, tmp_path, save_csv=True, vid_stride=stride)
    assert sorted(f.name for f in (out / "clips").iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    record = json.loads((out / "clips" / "a.json").read_text())
    assert record["clip"] == str(tmp_path / "a.avi") and record["frames"] == 12 // stride
    assert record["seconds"] == 1.2 and record["view"]["name"] == "PLAX" and record["view"]["agreeing"] == 1
    with (out / "predictions.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["Image Name"] == "a.avi"]
    assert set(record["seen"]) == {r["Prediction"] for r in rows}
    for name, intervals in record["seen"].items():
        own = [r for r in rows if r["Prediction"] == name]
        frames = sorted({int(r["frame"]) for r in own})
        assert sum(i["frames"] for i in intervals) == len(frames)
        assert (intervals[0]["first_frame"], intervals[-1]["last_frame"]) == (frames[0], frames[-1])
        assert intervals[0]["start"] == pytest.approx((frames[0] - 1) / 10)
        assert intervals[-1]["end"] == pytest.approx(frames[-1] / 10)
        assert max(i["confidence"] for i in intervals) == max(float(r["Confidence"]) for r in own)
    assert "1.20 s; view PLAX" in capsys.readouterr().out
    height, width = cv2.imread(str(out / "clips" / "a.png")).shape[:2]
    assert width > 1000 and height > 200


def test_a_folder_of_frames_is_a_clip_without_times(weights, tmp_path, capsys):
    frames = tmp_path / "patient.1"
    frames.mkdir()
    for k in (8, 9, 10):
        cv2.imwrite(str(frames / f"{k}.png"), np.full((96, 128, 3), 9 * k, np.uint8))
    out = detect_in(weights, frames, tmp_path, nosave=True)
    assert [f.name for f in (out / "clips").iterdir()] == ["patient.1.json"]  # no picture of it with --nosave
    record = json.loads((out / "clips" / "patient.1.json").read_text())
    assert record["frames"] == 3 and record["seconds"] is None
    interval = next(iter(record["seen"].values()))[0]
    assert interval["start"] is None and interval["end"] is None and interval["first_frame"] >= 1
    assert capsys.readouterr().out.count("10.png is read before 8.png: write numbers with leading zeros") == 1


@pytest.mark.slow
def test_a_plain_detector_has_no_view(tmp_path):
    plain = save_weights(tmp_path / "plain.pt", joint=False, seed=1)
    out = detect_in(plain, write_video(tmp_path / "a.avi", 3), tmp_path)
    record = json.loads((out / "clips" / "a.json").read_text())
    assert record["view"] is None and record["seen"] and (out / "clips" / "a.png").exists()
    none = detect_in(plain, tmp_path / "a.avi", tmp_path, conf_thres=1.0)
    assert json.loads((none / "clips" / "a.json").read_text())["seen"] == {}
    assert not (none / "clips" / "a.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_may_look_like_formulas_or_be_no_text(tmp_path):
    weights = save_weights(tmp_path / "plain.pt", joint=False, seed=1)
    out = detect_in(weights, write_video(tmp_path / "q$a_b_c$.avi", 2), tmp_path)
    assert sorted(f.name for f in (out / "clips").iterdir()) == ["q_a_b_c_.json", "q_a_b_c_.png"]
    (frames := tmp_path / "caf\udce9").mkdir()
    cv2.imwrite(str(tmp_path / "1.png"), np.full((96, 128, 3), 90, np.uint8))
    (tmp_path / "1.png").rename(frames / "1.png")
    out = detect_in(weights, frames, tmp_path)
    assert [f.suffix for f in (out / "clips").iterdir() if f.suffix == ".json"] == [".json"]


def test_a_title_is_whole(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("utils.results.timelines.save", lambda fig, _: titles.append(fig.axes[0].get_title()))
    title = "patient_07_clip_02.mp4: view PLAX 0.83 (on 95 % of the frames)"
    plot_timelines({"MR": []}, {"MR": [Event(0, 1, "MR")]}, ["MR"], tmp_path / "a.png", 0, title, 2, "seconds")
    assert titles == [title]


def test_without_the_flag_nothing_is_summed_up(weights, tmp_path):
    assert not (detect_in(weights, write_video(tmp_path / "a.avi", 2), tmp_path, clip_summary=False) / "clips").exists()
