"""The built-in clips: deterministic, with the events that their pictures show, patients apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.echo_clips import VALVES, EchoClip, Machine, draw_beats, ecg, generate, squeeze
from tad.annotations import read_annotations
from tad.video import VideoFile

CLASSES = {"AR": "diastole", "PR": "diastole", "MR": "systole", "TR": "systole"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips") / "echo"
    generate(root, seed=3, train_patients=2, valid_patients=1, clips=1, workers=2)
    return root


@pytest.mark.slow
def test_files_and_annotations_agree(clips):
    annotations = read_annotations(clips / "annotations.json")
    assert not annotations.problems
    assert len(annotations.subset("training")) == 2 and len(annotations.subset("validation")) == 1
    patients = {s: {r.name[:4] for r in annotations.subset(s)} for s in ("training", "validation")}
    assert not patients["training"] & patients["validation"]
    for record in annotations.records.values():
        with VideoFile(clips / "videos" / f"{record.name}.mp4") as video:
            assert video.frames == record.frames and video.duration == pytest.approx(record.duration, abs=0.01)
        assert all(e.label in CLASSES and e.end <= record.duration for e in record.events)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_clips(clips, tmp_path):
    generate(tmp_path / "again", seed=3, train_patients=2, valid_patients=1, clips=1, workers=1)
    one, two = (json.loads((r / "annotations.json").read_text()) for r in (clips, tmp_path / "again"))
    assert one == two
    for file in (clips / "videos").iterdir():
        with VideoFile(file) as a, VideoFile(tmp_path / "again" / "videos" / file.name) as b:
            assert np.array_equal(a.read([0, 40]), b.read([0, 40]))
    with pytest.raises(FileExistsError, match="no phantom clips"):
        generate(tmp_path, train_patients=1, valid_patients=1, clips=1)


@pytest.mark.slow
def test_events_lie_in_their_phase():
    found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        clip = EchoClip(rng, Machine.draw(rng), *VALVES[seed % 4], 60)
        for first, end, label in clip.events():
            found += 1
            for frame in range(first, end):
                beat = next(b for b in clip.beats if b.start <= frame < b.end)
                assert ("systole" if frame < beat.middle else "diastole") == CLASSES[label] and beat.leaks
    assert found > 10


def test_beats_cover_the_clip():
    beats = draw_beats(np.random.default_rng(0), 100, 0.5)
    assert beats[0].start <= 0 and beats[-1].end >= 100
    assert all(a.end == b.start and a.start < a.middle < a.end for a, b in zip(beats, beats[1:], strict=False))
    contraction = [squeeze(beats, f) for f in range(100)]
    assert 0 <= min(contraction) < 0.1 and 0.9 < max(contraction) <= 1
    peaks = ecg(beats, np.array([b.start for b in beats]))
    assert (peaks > 0.7).all() and ecg(beats, np.array([beats[1].middle + 4])) < 0.5
