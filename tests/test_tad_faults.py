"""Videos and annotations with faults, through the command lines: what can be used is used, the rest is told."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
from tad_set import SMALL, make_set, save_new_network, train

import detect_tad
import train_tad
import val_tad


def cut(file: Path) -> None:
    """Cut a video behind its list of frames, which then promises more than there is."""
    whole = file.with_name("whole.mp4")
    with av.open(str(file)) as source, av.open(str(whole), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = whole.read_bytes()
    file.write_bytes(content[: len(content) * 6 // 10])
    whole.unlink()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """Each fault once in both subsets, beside two videos without one."""
    data = make_set(tmp_path_factory.mktemp("faulty") / "set", 6, 6)
    videos, annotations = data.parent / "videos", data.parent / "annotations.json"
    content = json.loads(annotations.read_text())
    for first in (0, 6):
        cut(videos / f"v{first}.mp4")
        (videos / f"v{first + 1}.mp4").write_text("no video")
        (videos / f"v{first + 2}.mp4").unlink()
        content["database"][f"v{first + 3}"]["duration"] = 0
    annotations.write_text(json.dumps(content))
    return data


TOLD = [
    "60 frames in the annotations",
    "no video that can be read",
    "mp4 is not there",
    "duration 0; the video is left",
]


@pytest.mark.slow
def test_the_good_videos_are_trained_on_validated_and_detected_in(faulty, tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL | {"epochs": 1, "schedule_epochs": 1}))
    run = train(faulty, tmp_path / "small.yaml", tmp_path, "--batch-size", "1", "--noplots")
    assert (run / "weights/best.pt").is_file()
    words = ["--weights", str(run / "weights/best.pt"), "--device", "cpu", "--amp", "off", "--project", str(tmp_path)]
    val_tad.main(val_tad.parse_opt([*words, "--data", str(faulty), "--workers", "0", "--noplots", "--name", "val"]))
    for file, own in {run / "left_out_train.csv": "v0", tmp_path / "val/left_out_val.csv": "v6"}.items():
        text = file.read_text()
        assert all(part in text for part in TOLD) and f"{own}: 60 frames in the annotations" in text
    results = json.loads((tmp_path / "val/detections.json").read_text())["results"]
    assert set(results) == {"v6", "v10", "v11"}  # the cut one with what it has
    assert "v0.mp4: damaged; for frames" in capsys.readouterr().out
    source = ["--source", str(faulty.parent / "videos"), "--nosave"]
    events = detect_tad.main(detect_tad.parse_opt([*words, *source, "--name", "detect"]))
    assert {Path(f).stem for f in events} == {f"v{i}" for i in (0, 3, 4, 5, 6, 9, 10, 11)}
    assert "2 file(s) with problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"database": {', "annotations.json: no json .Expecting .* in line 1, column 15"),
        ("[]", "annotations.json: annotations are an object"),
        ('{"database": {}}', "annotations.json: no event that could be used is in it"),
        ('{"database": {"v": {"subset": "training", "duration": 0}}}', "annotations.json: no event that could be used"),
    ],
)
def test_annotations_that_are_none_end_in_a_sentence(tmp_path, text, says):
    root = make_set(tmp_path / "set", 1, 1).parent
    (root / "annotations.json").write_text(text)
    (root / "data.yaml").write_text("path: .\nannotations: annotations.json\ntrain: training\nval: validation\n")
    weights = str(save_new_network(tmp_path / "w.pt"))
    for script, more in ((train_tad, []), (val_tad, ["--weights", weights]), (val_tad, ["--detections", "none.json"])):
        words = ["--data", str(root / "data.yaml"), "--project", str(tmp_path / "runs"), "--device", "cpu", *more]
        with pytest.raises(ValueError, match=says):
            script.main(script.parse_opt(words))
    assert not (tmp_path / "runs").exists()


def test_validation_without_an_event_is_told_before_the_training(tmp_path):
    root = make_set(tmp_path / "set", 2, 2).parent
    content = json.loads((root / "annotations.json").read_text())
    for record in content["database"].values():
        if record["subset"] == "validation":
            record["annotations"] = []
    (root / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL))
    weights = str(save_new_network(tmp_path / "w.pt"))
    words = ["--data", str(root / "data.yaml"), "--project", str(tmp_path), "--device", "cpu"]
    for call in (
        lambda: train(root / "data.yaml", tmp_path / "small.yaml", tmp_path, "--batch-size", "1"),
        lambda: val_tad.main(val_tad.parse_opt([*words, "--weights", weights])),
    ):
        with pytest.raises(ValueError, match="no video of validation that can be read has an event to find"):
            call()


def test_a_results_file_is_judged_by_what_could_be_read_and_says_so(faulty, tmp_path, capsys):
    (tmp_path / "r.json").write_text('{"results": {}}')
    words = ["--data", str(faulty), "--detections", str(tmp_path / "r.json"), "--project", str(tmp_path), "--noplots"]
    val_tad.main(val_tad.parse_opt(words))
    assert "duration 0; the video is left" in (tmp_path / "exp/left_out_val.csv").read_text()
    with pytest.raises(ValueError, match="--strict: "):
        val_tad.main(val_tad.parse_opt([*words, "--strict"]))
