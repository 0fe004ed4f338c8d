"""Which frames a window takes, and which events it shows. All numbers count sampled frames unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TRIES = 200  # random windows looked at for one that shows an event
INSIDE = 0.75  # share of an event that a validation window must show for the event to count there


class Window(NamedTuple):
    """A stretch of sampled frames: `start` to `end`, the end not included."""

    start: int
    end: int


def sampled(frames: int, stride: int) -> int:
    """Number of sampled frames of a video."""
    return -(-frames // stride)


def sliding_windows(samples: int, size: int, overlap: float) -> list[Window]:
    """Windows that cover a video: the last one is moved back to end with the video.

    A video whose length is a multiple of the step gets its last window twice, as in the public evaluation; the second
    copy's events are suppressed with the other doubles.
    """
    step = max(int(size * (1 - overlap)), 1)
    windows = []
    for i in range(max(1, samples // step)):
        start, end = i * step, i * step + size
        if end > samples:
            windows.append(Window(max(0, samples - size), samples))
            break
        windows.append(Window(start, end))
    return windows


def frame_numbers(window: Window, size: int, frames: int, stride: int) -> tuple[np.ndarray, int]:
    """Frame numbers of the video for a window of `size`, and how many of them are real; the last one is repeated.

    Args:
        frames: Frames that the video file has; where the annotation promises more, the window is shorter.

    Raises:
        ValueError: The file ends before the window begins.
    """
    numbers = np.arange(0, frames, stride)[window.start : window.end]
    if not len(numbers):
        raise ValueError(f"the video has {frames} frames, and a window should begin at frame {window.start * stride}")
    return np.pad(numbers, (0, size - len(numbers)), mode="edge"), len(numbers)


def truncate(
    segments: np.ndarray,
    labels: np.ndarray,
    samples: int,
    size: int,
    keep: float,
    crop: tuple[float, float] | None,
    draw: Callable[[int, int], int],
) -> tuple[Window, np.ndarray, np.ndarray]:
    """A random training window of a video, with what it shows of the events.

    A video longer than `size` gives a window of that size, a shorter one is cut to a share of its length between the
    two of `crop` (None: stays whole). Windows are drawn until one shows at least the share `keep` of some event; after
    200 the last is taken without any.

    Args:
        segments, labels: The video's events, float [N, 2] and int [N].
        draw: Random whole number between two, both included.

    Returns:
        The window, the events that it shows relative to its start, their labels.
    """
    length = size
    if samples <= size:
        if crop is None:
            return Window(0, samples), segments, labels
        length = draw(max(round(crop[0] * samples), 1), min(round(crop[1] * samples), samples))
        if length == samples:
            return Window(0, samples), segments, labels
    whole = np.abs(segments[:, 1] - segments[:, 0])
    for _ in range(TRIES):
        start = draw(0, samples - length)
        left, right = np.maximum(segments[:, 0], start), np.minimum(segments[:, 1], start + length)
        shown = np.maximum(right - left, 0)
        kept = (whole > 0) & (shown >= keep * whole)
        if kept.any():
            break
    return Window(start, start + length), np.stack([left, right], 1)[kept] - start, labels[kept]


def events_inside(segments: np.ndarray, labels: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Events of which a validation window shows more than three quarters, cut to it and relative to its start."""
    left, right = np.maximum(segments[:, 0], window.start), np.minimum(segments[:, 1], window.end)
    whole = segments[:, 1] - segments[:, 0]
    kept = (whole > 0) & (right - left > INSIDE * whole)
    return np.stack([left, right], 1)[kept] - window.start, labels[kept]
