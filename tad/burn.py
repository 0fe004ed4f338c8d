"""A copy of a video with its events drawn in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from tad.video import VideoFile
from utils.plots import colors
from utils.results.timelines import Event
from utils.system.files import whole_file
from utils.system.packages import need

STRIP, ROW = 14, 18  # pixels of a class's strip in the timeline below, and of a line of text


def lanes(events: Sequence[Event], labels: Sequence[str], duration: float, width: int) -> np.ndarray:
    """The timeline below the picture: a strip per class, BGR uint8 [labels · STRIP, width, 3]."""
    out = np.full((STRIP * len(labels), width, 3), 24, np.uint8)
    for e in events:
        row = labels.index(e.label)
        left, right = (round(np.clip(t / duration, 0, 1) * (width - 1)) for t in (e.start, e.end))
        out[row * STRIP + 1 : (row + 1) * STRIP - 1, left : right + 1] = colors(row, True)
    for row, label in enumerate(labels):
        at = (2, (row + 1) * STRIP - 3)
        cv2.putText(out, _ascii(label), at, cv2.FONT_HERSHEY_SIMPLEX, 0.33, (255, 255, 255), 1, cv2.LINE_AA)
    return out


def annotate(
    picture: np.ndarray, strip: np.ndarray, now: float, duration: float, running: Sequence[tuple]
) -> np.ndarray:
    """A BGR picture with the events that run now at its top left, and the timeline below with a line at `now`.

    Args:
        running: (text, BGR colour) of each.
    """
    picture = np.concatenate([picture, strip])
    for i, (text, color) in enumerate(running):
        y = ROW * (i + 1)
        for shade, width in (((0, 0, 0), 3), (color, 1)):
            cv2.putText(picture, text, (4, y - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.45, shade, width, cv2.LINE_AA)
    x = round(np.clip(now / duration, 0, 1) * (picture.shape[1] - 1))
    picture[-len(strip) :, x : x + 1] = 255
    return picture


def burn(
    source: VideoFile,
    events: Sequence[Event],
    labels: Sequence[str],
    file: Path,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Write `file`: the source's pictures at their own times, with events; sound, and what is damaged, is left out.

    Args:
        events: Those to draw.
        labels: Classes in order; each has a strip below the picture.
        watch: Called after every frame.
    """
    av = need("av", "Writing videos")
    duration = source.duration
    with VideoFile(source.path, threads=0) as inner, whole_file(file) as temporary:
        # sides must be even; the format is named since the temporary file has another suffix
        width, height = source.width // 2 * 2, source.height // 2 * 2
        strip = lanes(events, labels, duration, width)
        with av.open(str(temporary), "w", format="mp4") as outer:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            target = outer.add_stream(codec, rate=inner.rate)
            target.width, target.height, target.pix_fmt = width, (height + len(strip)) // 2 * 2, "yuv420p"
            target.codec_context.time_base = inner.time_base
            for number, frame in inner.in_order():
                now = number / source.fps
                picture = frame.to_ndarray(format="bgr24")[:height, :width]
                running = [
                    (f"{_ascii(e.label)} {e.score:.2f}", colors(labels.index(e.label), True))
                    for e in events
                    if e.start <= now < e.end
                ]
                picture = annotate(picture, strip, now, duration, running)[: target.height]
                new = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
                new.pts, new.time_base = frame.pts, inner.time_base
                outer.mux(target.encode(new))
                watch()
            outer.mux(target.encode())


def _ascii(text: str) -> str:
    """OpenCV's font has no other letters."""
    return text.encode("ascii", "replace").decode()
