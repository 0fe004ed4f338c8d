"""From answers of the network to the events of a video: decoding, seconds, suppression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tad_golden import arrays, figures, mask, unit

from tad.segments import (
    best_candidates,
    decode,
    gaussian,
    iou,
    points,
    round_events,
    suppress,
    suppress_video,
    to_seconds,
)

# The other decays of the public implementation; `suppress` takes any.
DECAYS = {
    1: lambda s: lambda overlap, _: np.where(overlap >= np.float32(s["iou_threshold"]), 1 - overlap, 1),
    0: lambda s: lambda overlap, _: (overlap < np.float32(s["iou_threshold"])).astype(np.float32),
    2: lambda s: gaussian(s["sigma"]),
    3: lambda s: (
        lambda overlap, length: np.where(
            overlap >= s["t1"] + s["t2"] * length, np.exp(-(overlap**2) / np.float32(s["sigma"])), 1
        )
    ),
}


def voted(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, least: float) -> np.ndarray:
    """For each kept segment the mean of those that overlap it by `least`, weighted by their scores; nan for none."""
    weights = (iou(kept, segments) >= least) * scores
    with np.errstate(invalid="ignore"):
        return weights @ segments / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("run", figures("decode_nms")["nms_runs"], ids=lambda r: r["key"][4:])
def test_suppression(run):
    z, settings_ = arrays("decode_nms"), run["settings"]
    segments, scores, labels = (z[f"in/{run['input']}/{k}"] for k in ("segments", "scores", "labels"))
    soft = settings_["use_soft_nms"]
    decay = DECAYS[settings_.get("method", 2) if soft else 0](settings_)
    least = settings_.get("min_score", 0.0) if soft else max(settings_.get("min_score", 0.0), 1e-9)
    if not soft and settings_.get("min_score"):
        kept = scores > settings_["min_score"]
        segments, scores, labels = segments[kept], scores[kept], labels[kept]
    one = labels if settings_["multiclass"] else np.zeros_like(labels)
    ours = suppress_video(segments, scores, one, decay, least, settings_["max_seg_num"])
    wanted = [z[f"{run['key']}/{k}"] for k in ("segments", "scores", "labels")]
    assert len(ours[0]) == run["kept"]
    assert np.allclose(ours[1], wanted[1], atol=1e-6)
    if settings_["multiclass"]:
        rows = [np.column_stack([x[0], x[2]]) for x in (ours, wanted)]
        alive = wanted[1] > 0
        assert np.array_equal(rows[0][alive], rows[1][alive])
        assert sorted(map(tuple, rows[0][~alive])) == sorted(map(tuple, rows[1][~alive]))  # all tie at 0
    else:  # where classes are one, segments are averaged afterwards, which the recipe never does
        assert np.allclose(
            voted(ours[0], segments, scores, settings_["voting_thresh"]), wanted[0], atol=1e-4, equal_nan=True
        )


def test_decoding():
    z = arrays("decode_nms")
    logits, offsets = (
        torch.cat([torch.from_numpy(z[f"decode/{k}{i}"]) for i in range(4)], 2).transpose(1, 2)
        for k in ("logits", "offsets")
    )
    valid = torch.cat([torch.from_numpy(z[f"decode/mask{i}"]) for i in range(4)], 1)
    segments = decode(offsets, points(48, 4))
    for b in range(2):
        assert np.allclose(segments[b][valid[b]], z[f"decode/proposals{b}"], atol=1e-5)
        assert np.allclose(logits[b][valid[b]].sigmoid(), z[f"decode/scores{b}"], atol=1e-6)


@pytest.mark.parametrize("case", figures("decode_nms")["to_seconds"], ids=lambda c: str(c["meta"]["fps"]))
def test_seconds(case):
    meta = case["meta"]
    ours = to_seconds(
        torch.tensor(case["input"]), meta["fps"], meta["duration"], meta["snippet_stride"],
        meta.get("window_start_frame", 0), meta["offset_frames"],
    )  # fmt: skip
    assert np.allclose(ours, case["seconds"], atol=1e-4)


def candidates(window: dict, pre_score: float = 0.001, pre_top: int = 2000):
    a, b = window["logits_stream_base"], window["offsets_stream_base"]
    logits, offsets = [], []
    for level in range(6):
        t = 768 >> level
        logits.append(np.float32(-9 + 11 * np.abs(unit((1, 20, t), a + level)) ** 3))
        offsets.append(np.float32(np.maximum(2.5 * unit((1, 2, t), b + level) + 1.5, 0)))
    logits, offsets = (torch.from_numpy(np.concatenate(x, 2)).transpose(1, 2)[0] for x in (logits, offsets))
    valid = torch.cat([mask([window["valid"]], 768)[0, :: 2**level] for level in range(6)])
    meta = window["meta"]
    segments, scores, classes = best_candidates(logits, offsets, valid, points(768, 6), pre_score, pre_top)
    segments = to_seconds(segments, meta["fps"], meta["duration"], 4, meta["window_start_frame"])
    return (*round_events(segments, scores), classes.numpy())


def test_windows_to_events_of_a_video():
    """Four windows of two videos through everything that follows the network."""
    z, info = arrays("decode_nms"), figures("decode_nms")
    of_video: dict[str, list] = {}
    for i, window in enumerate(info["windows"]):
        found = candidates(window)
        assert len(found[1]) == info["candidates_per_window"][i]
        for ours, key in zip(found, ("segments", "scores", "labels"), strict=True):
            assert np.allclose(ours, z[f"post/window{i}/{key}"], atol=1e-9), key
        of_video.setdefault(window["meta"]["video_name"], []).append(found)
    top = candidates(info["windows"][2], 0.05, 100)
    wanted = info["window2_thresh0.05_top100"]
    assert np.allclose(top[0], [w["segment"] for w in wanted]) and np.allclose(top[1], [w["score"] for w in wanted])
    for video, parts in of_video.items():
        segments, scores, classes = (np.concatenate(p) for p in zip(*parts, strict=True))
        segments, scores, classes = suppress_video(segments, scores, classes, gaussian(0.7))
        segments, scores = round_events(segments, scores)
        assert np.allclose(segments, z[f"post/final/{video}/segments"], atol=1e-9)
        assert np.allclose(scores, z[f"post/final/{video}/scores"], atol=1.01e-4)
        assert (scores != z[f"post/final/{video}/scores"]).sum() <= 2
        # labels there count by first appearance among the candidates
        assert np.array_equal(classes, z[f"post/final/{video}/labels"])
        fifty = suppress_video(*(np.concatenate(p) for p in zip(*parts, strict=True)), gaussian(0.7), most=50)[1]
        assert np.allclose(fifty, info["final_max50_scores"][video], atol=1e-4)


ROWS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(1, 99), st.integers(0, 2)), min_size=1, max_size=30
)


@settings(deadline=None, max_examples=50)
@given(ROWS)
@example([(1, 1, 2, 0), (1, 2, 2, 0), (0, 1, 3, 0), (0, 3, 2, 0)])  # of equal scores
def test_suppression_is_that_of_a_plain_loop(rows):
    segments = np.array([(a, a + n) for a, n, _, _ in rows], float)
    scores = np.array([s / 100 for *_, s, _ in rows])
    ours, with_scores = suppress(segments, scores, gaussian(0.7))
    left, wanted, order = {i: s for i, s in enumerate(scores)}, [], list(range(len(rows)))
    while left:
        best = max(order, key=lambda i: np.float32(left[i]))  # the first of equal scores
        order[order.index(best)] = order[0]  # its place is taken by the first one, as published
        order.pop(0)
        score = left.pop(best)
        wanted.append((best, score))
        for j in left:
            a, b = segments[best], segments[j]
            inter = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
            overlap = inter / (a[1] - a[0] + b[1] - b[0] + 2e-6 - inter)
            left[j] *= np.exp(-(overlap**2) / 0.7)
    assert np.allclose(with_scores, [s for _, s in wanted], atol=1e-5)
    assert (np.diff(with_scores) <= 0).all() and sorted(ours) == list(range(len(rows)))
    for most in (1, len(rows) // 2):  # stopping early is exact
        early, _ = suppress(segments, scores, gaussian(0.7), most=most)
        assert np.array_equal(early, ours[:most])


def test_a_double_falls_to_a_quarter():
    _, scores = suppress(np.array([[2.0, 4.0], [2.0, 4.0]]), np.array([1.0, 1.0]), gaussian(0.7))
    assert scores[1] == pytest.approx(0.239651, abs=1e-6)
    _, scores = suppress(np.array([[2.0, 2.0], [2.0, 2.0]]), np.array([1.0, 1.0]), gaussian(0.7))
    assert scores[1] == 1  # segments that last no time do not overlap


def test_no_candidates():
    segments, scores, classes = suppress_video(np.zeros((0, 2)), np.zeros(0), np.zeros(0, int), gaussian(0.7))
    assert segments.shape == (0, 2) and len(scores) == len(classes) == 0
    empty = best_candidates(torch.full((90, 3), -20.0), torch.ones(90, 2), torch.ones(90, dtype=torch.bool),
                            points(48, 4), 0.001, 10)  # fmt: skip
    assert [len(x) for x in empty] == [0, 0, 0]


def test_iou():
    for case in figures("eval")["pieces"]["tiou"]:
        assert np.allclose(iou([case["a"]], case["b"])[0], case["value"])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3000), st.integers(1, 700), st.floats(10, 60))
def test_seconds_come_back_within_a_frame(first, length, fps):
    """Annotation → sampled frames → seconds: at most a frame of the video is lost."""
    frames = 4000
    duration = frames / fps
    start, end = first / fps * 1.0001, min((first + length) / fps, duration)
    grid = torch.tensor([[int(start / duration * frames) / 4, int(end / duration * frames) / 4]])
    back = to_seconds(grid, frames / duration, duration, 4)[0].tolist()
    assert abs(back[0] - start) <= 1.01 / fps and abs(back[1] - end) <= 1.01 / fps
