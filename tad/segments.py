"""Points in time, their segments, and how overlapping ones are suppressed.

Segments are (start, end) in rows of two. Inside a window they count in sampled frames, in a video in seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

FIRST_RANGE = 4.0  # the finest level answers for distances up to this, every coarser one up to twice as much
LAST_RANGE = 10_000.0

Decay = Callable[[np.ndarray, float], np.ndarray]  # (IoUs with the segment taken, its length) → factors of scores


def points(length: int, levels: int) -> Tensor:
    """All points of a window [P, 4]: time, smallest and largest distance that its level answers for, stride."""
    rows = []
    for level in range(levels):
        stride = 2**level
        low = 0.0 if level == 0 else FIRST_RANGE * 2 ** (level - 1)
        high = LAST_RANGE if level == levels - 1 else FIRST_RANGE * 2**level
        t = torch.arange(length // stride, dtype=torch.float32) * stride
        rows.append(torch.stack([t, *(torch.full_like(t, v) for v in (low, high, stride))], 1))
    return torch.cat(rows)


def decode(offsets: Tensor, at: Tensor) -> Tensor:
    """Distances [..., P, 2] in units of the strides, at points [P, 4] → segments [..., P, 2] in sampled frames."""
    t, stride = at[:, 0], at[:, 3]
    return torch.stack([t - offsets[..., 0] * stride, t + offsets[..., 1] * stride], -1)


def best_candidates(
    logits: Tensor, offsets: Tensor, valid: Tensor, at: Tensor, pre_score: float, pre_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of one window: pairs of point and class with the highest scores.

    Args:
        logits, offsets, valid: One window of the network's answer: [P, classes], [P, 2], [P].
        at: Its `points`.
        pre_score: Scores must be above it.
        pre_top: At most so many.

    Returns:
        Segments [N, 2] in sampled frames, scores [N] in falling order (ties in the order of points), classes [N].
    """
    scores = logits.float()[valid].sigmoid()
    segments = decode(offsets.float(), at)[valid]
    flat = scores.flatten()
    kept = torch.nonzero(flat > pre_score)[:, 0]
    order = torch.sort(flat[kept], descending=True, stable=True).indices[:pre_top]
    kept = kept[order]
    classes = scores.shape[1]
    return segments[kept // classes], flat[kept], kept % classes


def to_seconds(
    segments: Tensor, fps: float, duration: float, frame_stride: int, first_frame: int = 0, offset_frames: int = 0
) -> Tensor:
    """Sampled frames of a window that begins at the video's frame `first_frame` → seconds inside the video."""
    return ((segments * frame_stride + (first_frame + offset_frames)) / fps).clamp(0, duration)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of segments [N, 2] with segments [M, 2], as the THUMOS evaluation has it: [N, M], 0 without any overlap."""
    a, b = np.asarray(a, np.float64).reshape(-1, 1, 2), np.asarray(b, np.float64).reshape(1, -1, 2)
    inter = np.clip(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0, None)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    return inter / np.clip(union, 1e-8, None)


# Suppression ----------------------------------------------------------------------------------------------------------


def gaussian(sigma: float) -> Decay:
    """Soft-NMS (Bodla et al. 2017): scores × exp(−IoU²/σ)."""
    return lambda overlap, _: np.exp(-(overlap**2) / np.float32(sigma))


def suppress(
    segments: np.ndarray, scores: np.ndarray, decay: Decay, min_score: float = 0.0, most: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy suppression of one class: take the best, lower what overlaps it, and so on.

    A segment once taken never changes, so stopping after `most` of them is exact.

    Args:
        segments, scores: float [N, 2] and [N].
        decay: How an overlap lowers scores, such as `gaussian(0.7)`.
        min_score: Segments whose score falls below it are dropped.

    Returns:
        Indices of the segments taken, in order, and the scores they were taken with.
    """
    segments, scores = np.asarray(segments, np.float32), np.asarray(scores, np.float32).copy()
    starts, ends = segments[:, 0], segments[:, 1]
    lengths = ends - starts + np.float32(1e-6)
    left = np.arange(len(scores))
    taken, with_scores = [], []
    while len(left) and len(taken) < most:
        best = int(np.argmax(scores[left]))
        i = left[best]
        left[best] = left[0]  # the first one takes the place of the one taken, as in the original algorithm: it
        left = left[1:]  # settles which of two equal scores comes next
        taken.append(i)
        with_scores.append(scores[i])
        inter = np.maximum(np.minimum(ends[left], ends[i]) - np.maximum(starts[left], starts[i]), np.float32(0))
        overlap = inter / (lengths[left] + lengths[i] - inter)
        scores[left] *= decay(overlap, lengths[i])
        if min_score > 0:
            left = left[scores[left] >= min_score]
    return np.array(taken, int), np.array(with_scores, np.float32)


def suppress_video(
    segments: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    decay: Decay,
    min_score: float = 0.0,
    most: int = 2000,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Suppression per class, then the best of all: segments [M, 2], scores [M] in falling order, classes [M]."""
    parts = []
    for cls in dict.fromkeys(np.asarray(classes).tolist()):  # in order of first appearance, which settles ties
        of_class = np.flatnonzero(classes == cls)
        taken, with_scores = suppress(segments[of_class], scores[of_class], decay, min_score, most)
        parts.append((of_class[taken], with_scores))
    if not parts:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, int)
    index, with_scores = (np.concatenate(p) for p in zip(*parts, strict=True))
    order = np.argsort(-with_scores, kind="stable")[:most]
    index = index[order]
    return segments[index], with_scores[order], classes[index]


def round_events(segments: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segments to 2 and scores to 4 decimals, as results are written (and as suppression sees them)."""
    return np.round(np.asarray(segments, np.float64), 2), np.round(np.asarray(scores, np.float64), 4)
