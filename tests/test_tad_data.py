"""What a window shows: windows, truncation, annotations, transforms; the figures of the reference, and properties."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tad_golden import arrays, figures
from tad_set import make_set

import detect_tad
from tad.annotations import grid_events, read_annotations, read_results, results_json
from tad.config import TadConfig
from tad.data import FrameCache, load_data
from tad.transforms import (
    JITTER,
    OPERATIONS,
    ClipTransform,
    centre_box,
    cutout,
    jitter,
    random_box,
    resize,
    short_side_size,
)
from tad.windows import Window, events_inside, frame_numbers, sampled, sliding_windows, truncate
from utils.results.timelines import Event

DATA = figures("data")


def rows_of(samples: int, frames: int, size: int, overlap: float) -> list[dict]:
    rows = []
    for window in sliding_windows(samples, size, overlap):
        numbers, valid = frame_numbers(window, size, frames, 4)
        rows.append(
            {
                "start_sample": window.start, "end_sample_exclusive": window.end,
                "window_start_frame": window.start * 4, "valid": valid, "first_index": int(numbers[0]),
                "last_valid_index": int(numbers[valid - 1]), "last_index": int(numbers[-1]),
                "index_sum": int(numbers.sum()),
            }
        )  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("key", "size", "overlap"),
    [
        ("windows_test", 768, 0.5),
        ("windows_test_frames_not_multiple_of_4", 768, 0.5),
        ("windows_val_overlap_0.25", 768, 0.25),
        ("windows_small_16_overlap_0.5", 16, 0.5),
    ],
)
def test_windows(key, size, overlap):
    for text, wanted in DATA[key].items():
        n = int(text)
        frames = n if "not_multiple" in key else n * 4
        assert rows_of(sampled(frames, 4), frames, size, overlap) == wanted, text


@pytest.mark.parametrize("case", DATA["frame_count_mismatch"], ids=lambda c: f"{c['decoder_frames']}")
def test_a_file_of_another_length_than_its_annotation(case):
    windows = sliding_windows(sampled(case["annotation_frames"], 4), 768, 0.5)
    for window, wanted in zip(windows, case["windows"], strict=True):
        numbers, valid = frame_numbers(window, 768, case["decoder_frames"], 4)
        ours = {"start": window.start, "end": window.end, "valid": valid, "first": numbers[0],
                "last": numbers[valid - 1]}  # fmt: skip
        assert ours == wanted


def test_a_window_after_the_end_of_the_file_is_told():
    with pytest.raises(ValueError, match="the video has 100 frames.*frame 928"):
        frame_numbers(Window(232, 1000), 768, 100, 4)


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([16, 64, 768]), st.sampled_from([0.5, 0.6, 0.75, 0.9]))
def test_windows_cover_the_video(samples, size, overlap):
    windows = sliding_windows(samples, size, overlap)
    seen = set()
    for window in windows:
        assert 0 <= window.start < window.end <= samples and window.end - window.start <= size
        seen |= set(range(window.start, window.end))
    assert seen == set(range(samples))


def replay(draws):
    """Draws as given (a number: always that one), and the bounds that were asked for."""
    asked = []

    def draw(low, high):
        asked.append([low, high])
        return draws if isinstance(draws, int) else draws[len(asked) - 1]

    return draw, asked


@pytest.mark.parametrize("case", DATA["random_truncation"], ids=lambda c: c["name"])
def test_truncation(case):
    k = case["scale_factor"]
    stride = 4 // k
    segments = np.array(case["segments"], np.float32) * k
    draw, asked = replay(case["draws_given"])
    samples, size = sampled(case["total_frames"], stride), case["trunc_len"] * k
    crop = tuple(case["crop_ratio"]) if case["crop_ratio"] else None
    window, kept, labels = truncate(segments, np.array(case["labels"]), samples, size, case["thresh"], crop, draw)
    assert len(asked) == case["number_of_draws"]
    for ours, wanted in zip(asked, case["bounds_asked"], strict=False):
        assert wanted == "..." or ours == wanted
    assert np.allclose(kept / k, np.array(case["out_segments"]).reshape(-1, 2))
    assert labels.tolist() == case["out_labels"]
    numbers, valid = frame_numbers(window, size, case["total_frames"], stride)
    ours = [valid // k, len(numbers), numbers[0], numbers[-1], numbers.sum(), len(set(numbers.tolist()))]
    keys = ("valid", "n_indices", "first_index", "last_index", "index_sum", "distinct_indices")
    assert ours == [case[key] for key in keys]


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.lists(st.tuples(st.integers(0, 199), st.integers(0, 60))))
def test_what_truncation_promises(seed, samples, rows):
    segments = np.array([(a, min(a + n, samples)) for a, n in rows if a < samples], np.float32).reshape(-1, 2)
    labels = np.arange(len(segments))
    rng = np.random.default_rng(seed)
    draw = lambda a, b: int(rng.integers(a, b + 1))  # noqa: E731
    window, kept, of = truncate(segments, labels, samples, 64, 0.75, (0.9, 1.0), draw)
    length = window.end - window.start
    assert window.start >= 0 and window.end <= samples
    if samples > 64:
        assert length == 64
    else:
        assert max(round(0.9 * samples), 1) <= length <= samples
    for segment, label in zip(kept, of, strict=True):
        whole = segments[label]
        if length < samples:
            assert 0 <= segment[0] <= segment[1] <= length
            assert segment[1] - segment[0] >= 0.75 * (whole[1] - whole[0]) - 1e-4
        shown = [max(whole[0], window.start), min(whole[1], window.end)] if length < samples else whole
        assert (segment + window.start).tolist() == pytest.approx(list(shown))


def write(tmp_path, database) -> str:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"database": database}))
    return str(file)


def test_annotations_on_the_grid(tmp_path):
    info = DATA["ground_truth"]
    annotations = read_annotations(write(tmp_path, info["records"]))
    assert annotations.labels() == info["class_map"]
    assert [r.name for r in annotations.records.values() if r.events] == info["kept_videos"]
    for item in info["items"]:
        record = annotations.records[item["video"]]
        segments, labels = grid_events(record, record.frames, 4, info["class_map"])
        assert segments.tolist() == item["segments"] and labels.tolist() == item["labels"]
        assert record.frames / record.duration == pytest.approx(item["fps"])


def test_events_of_validation_windows(tmp_path):
    info = DATA["validation_windows_with_gt"]
    record = read_annotations(write(tmp_path, {"v": info["record"]})).records["v"]
    segments, labels = grid_events(record, record.frames, 4, ["a", "b", "c"])
    found = []
    for window in sliding_windows(sampled(record.frames, 4), 768, 0.25):
        inside, of = events_inside(segments, labels, window)
        if len(inside):
            found.append({"start_frame": window.start * 4, "segments": inside.tolist(), "labels": of.tolist()})
    assert found == info["windows"]


GOOD = {"subset": "training", "duration": 10.0, "frame": 300, "annotations": [{"segment": [1, 2], "label": "a"}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"duration": 0}, "v: duration 0; the video is left out"),
        ({"duration": None}, "v: duration None"),
        ({"subset": 3}, "v: no subset"),
        ({"frame": -1}, "v: frame -1"),
        ({"annotations": "none"}, "'annotations' is no list"),
        ({"annotations": [{"segment": [3, 2], "label": "a"}]}, "v, event 1: ends at 2 s, not after its start 3 s"),
        ({"annotations": [{"segment": [2, 2], "label": "a"}]}, "not after its start"),
        ({"annotations": [{"segment": [-1, 2], "label": "a"}]}, "begins at -1 s, before the video; taken from 0"),
        ({"annotations": [{"segment": [-2, -1], "label": "a"}]}, "ends at -1 s, before the video; left out"),
        ({"annotations": [{"segment": [11, 12], "label": "a"}]}, "after the video's end 10 s"),
        (
            {"annotations": [{"segment": [1, 99], "label": "a"}]},
            "after the video's end 10 s; taken as it is",
        ),
        ({"annotations": [{"segment": [1], "label": "a"}]}, "no segment [start, end]"),
        ({"annotations": [{"segment": [1, "x"], "label": "a"}]}, "segment [1, 'x'] with label 'a'"),
        ({"annotations": [{"segment": [1, 2]}]}, "with label None"),
    ],
)
def test_what_is_left_out_is_told(tmp_path, change, says):
    annotations = read_annotations(write(tmp_path, {"v": GOOD | change, "w": GOOD}))
    (problem,) = annotations.problems
    assert says in problem
    assert annotations.records["w"].events[0].label == "a"


def test_an_event_that_begins_a_hair_too_early_is_kept(tmp_path):
    record = read_annotations(write(tmp_path, {"v": GOOD | {"annotations": [{"segment": [-0.02, 2], "label": "a"}]}}))
    assert record.records["v"].events == (Event(0.0, 2.0, "a"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"database": {"v": {}, "v": {}}}', "'v' stands twice"),
        ("{", "no json .*line 1"),
        ("[]", "annotations are an object"),
        ("{}", "no 'database'"),
        ("\xff", "not a UTF-8 text file"),
    ],
)
def test_a_file_that_is_no_annotation(tmp_path, text, says):
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=says) as error:
        read_annotations(file)
    assert str(file) in str(error.value)
    with pytest.raises(FileNotFoundError, match="are not there"):
        read_annotations(tmp_path / "b.json")


def test_suffixes_of_videos_may_be_in_capitals(tmp_path):
    data = make_set(tmp_path / "set", 2, 1)
    videos = data.parent / "videos"
    for file in list(videos.iterdir()):
        file.rename(file.with_suffix(".MP4"))
    loaded = load_data(data)
    assert all(loaded.video(record).is_file() for record in loaded.records("train"))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of change")
def test_kept_frames_are_those_of_the_video_that_is_there(tmp_path):
    """Also where a video was replaced by one of the same time, as `cp -p` does; and no file is held open."""
    data = make_set(tmp_path / "set", 2, 1)
    file = next((data.parent / "videos").glob("*.mp4"))
    other = next(f for f in (data.parent / "videos").glob("*.mp4") if f != file)
    times, found = file.stat(), []
    for _ in range(2):
        cache = FrameCache("disk", 2, 32, 1)
        cache.fill([file])
        found.append(np.array(cache.get(file)))
        time.sleep(0.02)
        file.write_bytes(other.read_bytes())
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert found[0].shape != found[1].shape or (found[0] != found[1]).any()
    assert cache.get(file) is not cache.get(file)


def test_a_segment_of_one_number_is_told(tmp_path):
    (tmp_path / "r.json").write_text('{"results": {"v": [{"segment": [1.0], "label": "x", "score": 0.5}]}}')
    with pytest.raises(ValueError, match="v has a row without segment, label and score"):
        read_results(tmp_path / "r.json")


def test_an_unknown_subset_or_label_is_told(tmp_path):
    annotations = read_annotations(write(tmp_path, {"v": GOOD}))
    with pytest.raises(ValueError, match=r"no video of the subset 'test'; the file has training \(1 videos\)"):
        annotations.subset("test")
    with pytest.raises(ValueError, match="video v has the label 'a', which is none of the classes b, c"):
        annotations.check_labels(["b", "c"])


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["subset", "duration", "frame", "annotations", "segment", "label", "v"]),
                        inner, max_size=5), max_leaves=12)  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(["v", "w"]), JSON))
def test_any_json_is_read_or_refused(tmp_path_factory, database):
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps({"database": database}))
    annotations = read_annotations(file)
    for record in annotations.records.values():
        assert record.duration > 0 and all(e.end > e.start >= 0 for e in record.events)
    assert len(annotations.records) + len(annotations.problems) >= len(database)


def test_results_there_and_back(tmp_path):
    rows = [{"segment": [1.5, 2.0], "label": "a", "score": 0.5}]
    (tmp_path / "r.json").write_text(json.dumps({"results": {"v": rows, "w": []}}))
    found = read_results(tmp_path / "r.json")
    assert results_json(found) == {"results": {"v": rows, "w": []}}
    (tmp_path / "bad.json").write_text(json.dumps({"results": {"v": [{"segment": [1]}]}}))
    with pytest.raises(ValueError, match="bad.json: v has a row without"):
        read_results(tmp_path / "bad.json")


# Transforms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DATA["resize_sizes_wh"], ids=lambda c: f"{c['width']}x{c['height']}")
def test_sizes(case):
    w, h = case["width"], case["height"]
    assert list(short_side_size(w, h, 182)) == case["short_182"]
    assert list(short_side_size(w, h, 160)) == case["short_160"]
    assert list(centre_box(*case["short_160"], 160)) == case["centre_crop_160_xyxy"]


@pytest.mark.parametrize("case", DATA["random_resized_crop"]["cases"])
def test_training_crop(case):
    areas = 0.08 + np.array(case["area_draws"]) * 0.92
    low, high = np.log([3 / 4, 4 / 3])
    aspects = np.exp(low + np.array(case["aspect_draws"]) * (high - low))
    draw, asked = replay(case["offset_draws"])
    assert list(random_box(case["width"], case["height"], areas, aspects, draw)) == case["box_xyxy"]
    assert asked == case["offset_bounds"]


def near(ours: np.ndarray, wanted: np.ndarray, within: int, share: float = 1.0) -> None:
    """At least that share of the values differs by no more than `within` grey levels."""
    difference = np.abs(ours.astype(int) - wanted.astype(int))
    assert (difference <= within).mean() >= share, difference.max()


def test_resizing():
    z = arrays("transforms")
    picture = z["resize/input"]
    for name in ("short_28", "short_36", "short_41", "short_60"):
        wanted = z[f"resize/{name}"]
        near(resize(picture, wanted.shape[1::-1]), wanted, 1)
    near(resize(picture[5:30, 7:50], (32, 32)), z["resize/crop_y5_30_x7_50_to_32x32"], 1)
    assert np.array_equal(picture[:, ::-1], z["flip/output"])


@pytest.mark.parametrize("case", DATA["colour_jitter"], ids=lambda c: c["key"])
def test_colour_jitter(case):
    z = arrays("transforms")
    order = [JITTER[i] for i in case["order_of_0brightness_1contrast_2saturation_3hue"]]
    ours = jitter(z["jitter/input"][None], order, {name: case[name] for name in JITTER})[0]
    near(ours, z[case["key"]], 1, 0.999)


@pytest.mark.parametrize("case", DATA["randaug_ops"]["ops"], ids=lambda c: c["key"])
def test_operations(case):
    z = arrays("transforms")
    picture, wanted = z["randaug/input"], z[case["key"]]
    name = case["key"].removeprefix("randaug/").removeprefix("enhance_")
    if name.startswith("cutout"):
        assert np.array_equal(cutout(picture, *case["centre_fraction_xy"]), wanted)
        return
    sign = -1 if name.endswith("_minus") else 1
    name = name.removesuffix("_plus").removesuffix("_minus").removesuffix("_3bits")
    ours = OPERATIONS[name](picture, sign, 0.5, 0.5)
    geometric = "degrees" in case or any(k.startswith("fraction") for k in case)
    near(ours, wanted, 2, 0.95 if geometric else 1.0)


def test_the_same_draw_for_all_frames_of_a_clip():
    config = TadConfig()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (180, 320, 3), dtype=np.uint8)
    for seed in range(12):
        transform = ClipTransform(config, 320, 180, np.random.default_rng(seed))
        clip = transform.clip(np.stack([transform.frame(picture)] * 3))
        assert clip.shape == (3, 160, 160, 3) and clip.dtype == np.uint8
        assert np.array_equal(clip[0], clip[1]) and np.array_equal(clip[0], clip[2])
        again = ClipTransform(config, 320, 180, np.random.default_rng(seed))
        assert np.array_equal(clip, again.clip(np.stack([again.frame(picture)] * 3)))


def test_validation_sees_the_middle():
    picture = np.zeros((180, 320, 3), np.uint8)
    picture[:, 160] = 255
    seen = ClipTransform(TadConfig(), 320, 180).frame(picture)
    assert seen.shape == (160, 160, 3) and 78 <= seen[80, :, 0].argmax() <= 81


def test_the_home_of_an_unknown_user_is_a_path_that_is_not_there(tmp_path):
    (tmp_path / "clips.yaml").write_text("path: ~no-such-user/clips\nannotations: a.json\ntrain: train\nval: val\n")
    with pytest.raises(FileNotFoundError, match="~no-such-user/clips/a.json is not there"):
        load_data(tmp_path / "clips.yaml")
    assert [str(file) for file in detect_tad.sources("~no-such-user/a.mp4")] == ["~no-such-user/a.mp4"]
