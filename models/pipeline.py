"""The frames of a source through a network: several at once, the answers in the order of the frames."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from models.predictor import Predictor
from utils.results.frames import Frame
from utils.results.sources import FileSource, ScreenSource, StreamSource
from utils.system.threads import in_order

STREAMS = 8  # passes at once: each needs memory of its own
FRAME_BYTES = 256 << 20  # of the frames on their way through the network
WAIT = 4  # batches that a frame of a rare shape may wait for others of its shape

Draw = Callable[[Frame, np.ndarray, np.ndarray | None], np.ndarray | None]


class Found(NamedTuple):
    """What was found on a frame.

    Attributes:
        detections: float32 [n,6]: x1, y1, x2, y2 in whole pixels of the frame, confidence, class; best first.
        probs: Image-level probabilities [cls_nc], or None.
        sides: Height and width of the network's input.
        ms: Milliseconds of inference.
        drawn: The frame with its answers, uint8 BGR [H,W,3], or None.
    """

    frame: Frame
    detections: np.ndarray
    probs: np.ndarray | None
    sides: tuple[int, int]
    ms: float
    drawn: np.ndarray | None


def find(
    predictor: Predictor,
    source: FileSource | StreamSource | ScreenSource,
    imgsz: Sequence[int],
    draw: Draw,
    one_by_one: bool = False,
) -> Iterator[Found]:
    """What is found on each frame, in their order.

    Frames of files go through the network in batches of one input shape. On a processor several passes run at once, on
    a share of the cores each: nobody waits for the slowest of many short steps, and reading, drawing and
    writing fill the gaps. What a frame's answer is depends on none of this.

    Args:
        draw: Called with a frame and its answers, in any thread.
        one_by_one: Each frame on its own, when the last one's answer was taken; live sources are never read ahead.
    """
    if source.live or one_by_one:
        for frames in source:
            for part in [[frame] for frame in frames] if one_by_one else [frames]:
                yield from _look(predictor, part, imgsz, draw)
        return
    count = sys.maxsize if source.videos else len(source.images)
    cores, own, twins = torch.get_num_threads(), threading.local(), []
    streams = min(streams_of(predictor), count)
    share = -(-count // streams)

    def look(batch: list[tuple[int, Frame]]) -> list[tuple[int, Found]]:
        if not hasattr(own, "predictor"):
            own.predictor = predictor.twin()
            twins.append(own.predictor)
        numbers, frames = zip(*batch, strict=True)
        return list(zip(numbers, _look(own.predictor, frames, imgsz, draw), strict=True))

    def sides(frame: Frame) -> tuple[int, int]:
        return predictor.input_shape(frame.image, imgsz, auto=True)

    def size(frame: Frame) -> int:
        held = FRAME_BYTES // (frame.image.nbytes * (streams + 2))
        return max(1, min(predictor.batch_of(sides(frame)), share, held))

    torch.set_num_threads(max(1, cores // streams))  # of threads that begin now
    ready, due = {}, 0
    try:
        frames = (frame for one in source for frame in one)
        for done in in_order(look, batches(frames, sides, size), streams, ahead=streams + 1):
            ready.update(done)
            while due in ready:
                yield ready.pop(due)
                due += 1
    finally:
        torch.set_num_threads(cores)
        for twin in twins:
            predictor.clock.seconds.update(twin.clock.seconds)
            predictor.seen, predictor.shape = predictor.seen + twin.seen, twin.shape


def streams_of(predictor: Predictor) -> int:
    """Threads that ask the network at once."""
    if predictor.device.type == "cpu":
        return min(torch.get_num_threads(), STREAMS)
    return 2 if predictor.device.type == "cuda" else 1  # one prepares while the other's pictures are on the GPU


def batches(
    frames: Iterable[Frame], sides: Callable[[Frame], tuple[int, int]], size: Callable[[Frame], int]
) -> Iterator[list[tuple[int, Frame]]]:
    """Frames with their numbers, together with others of the same input shape.

    A batch goes when it is full, or when its first frame has waited while `WAIT` of them could have been filled.

    Args:
        sides: Input shape of a frame.
        size: Frames like this one that make a batch.
    """
    waiting: dict[tuple[int, int], list[tuple[int, Frame]]] = {}  # in the order of their first frames
    for number, frame in enumerate(frames):
        shape = sides(frame)
        batch = waiting.setdefault(shape, [])
        batch.append((number, frame))
        if len(batch) >= size(frame):
            yield waiting.pop(shape)
        for shape, ((first, frame), *_) in list(waiting.items())[:1]:
            if number - first >= WAIT * size(frame):
                yield waiting.pop(shape)
    yield from waiting.values()


def _look(predictor: Predictor, frames: Sequence[Frame], imgsz: Sequence[int], draw: Draw) -> list[Found]:
    before = predictor.clock.seconds["inference"]
    found, probs = predictor([f.image for f in frames], imgsz, auto=True, bgr=True)
    ms = (predictor.clock.seconds["inference"] - before) / len(frames) * 1e3
    answers = []
    for i, frame in enumerate(frames):
        detections, own = (
            _whole_pixels(found[i].float().cpu().numpy()),
            None if probs is None else probs[i].cpu().numpy(),
        )
        sides = predictor.input_shape(frame.image, imgsz, auto=True)
        answers.append(Found(frame, detections, own, sides, ms, draw(frame, detections, own)))
    return answers


def _whole_pixels(detections: np.ndarray) -> np.ndarray:
    """Detections [n,6] with the boxes in whole pixels; boxes under a pixel keep their fractions."""
    boxes = detections[:, :4]
    rounded = boxes.round()
    vanishing = (rounded[:, 2:] <= rounded[:, :2]).any(1, keepdims=True)
    return np.concatenate([np.where(vanishing, boxes, rounded), detections[:, 4:]], 1)
