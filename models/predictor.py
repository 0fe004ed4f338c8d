"""From pictures to answers in their own pixels, with a stop-watch: for detection, AutoShape and validation."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from models.answer import Answer
from models.export.readers import fixed_size
from models.load import device_of, input_dtype, largest_stride
from utils.augmentations import letterbox, letterboxed_shape
from utils.boxes import scale_boxes
from utils.system.devices import autocast, synchronize, to_input

# Pixels of the inputs that share a pass. A processor gains nothing from more, a picture of 1280 is enough by itself;
# a GPU has more cores to fill.
PIXELS = {"cpu": 4 * 640 * 640, "cuda": 16 * 640 * 640}


class Stopwatch:
    """Adds up the seconds spent in named stages, with the device's queue emptied at both ends."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        synchronize(self.device)
        began = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - began


class Predictor:
    """A network, and what it takes to ask it: precision, memory layout, suppression.

    Args:
        model: From `load_model`, or any network that gives an `Answer`.
        dtype: Autocast to this type; None: as the network is.
        layout: Memory layout of the input; None: as it comes.
        augment: Test-time augmentation.
        batch: Pictures at most that share a pass when it is called; 0: what suits the device and their size.
        nms: Arguments for `Answer.detections`.

    Attributes:
        clock: Seconds spent on "preprocess", "inference" and "nms".
        seen: Pictures so far.
        shape: Of the last input, (B, 3, H, W).
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        layout: torch.memory_format | None = None,
        augment: bool = False,
        batch: int = 0,
        **nms,
    ):
        self.model, self.device, self.dtype, self.layout = model, device or device_of(model), dtype, layout
        self.augment, self.batch, self.nms = augment, batch, nms
        self.clock, self.seen, self.shape = Stopwatch(self.device), 0, (0, 3, 0, 0)

    def twin(self) -> Predictor:
        """Another one of the same network, for another thread, with a stop-watch of its own."""
        other = copy.copy(self)
        other.clock, other.seen = Stopwatch(self.device), 0
        return other

    @torch.no_grad()
    def warm_up(self, shape: Sequence[int]) -> None:
        """A first pass on a GPU, which sets up the kernels and is no part of the speed."""
        self.shape = tuple(shape)
        if self.device.type == "cuda":
            self._ask(self._input(torch.zeros(*shape, dtype=torch.uint8)))

    def answer(self, images: Tensor) -> tuple[Answer, list[Tensor]]:
        """Pictures uint8 [B,3,H,W], RGB → the network's answer, and its detections [k,6] in pixels of the input."""
        with self.clock("preprocess"):
            inputs = self._input(images)
        with self.clock("inference"):
            answer = self._ask(inputs)
        with self.clock("nms"):
            found = answer.detections(**self.nms)
        self.seen, self.shape = self.seen + len(images), tuple(images.shape)
        return answer, found

    @torch.inference_mode()
    def __call__(
        self, pictures: Sequence[np.ndarray], shape: Sequence[int], auto: bool = False, bgr: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """Pictures uint8 [h,w,3] of any sizes → detections [k,6] in their pixels, image-level probabilities or None.

        Pictures of one input shape share a pass, so the answer on one does not depend on the others.

        Args:
            shape: Height and width of the input.
            auto: Pad each picture to the next stride only, where the network takes any size.
            bgr: They are as OpenCV reads them, not RGB.
        """
        together: dict[tuple[int, int], list[int]] = {}
        for i, picture in enumerate(pictures):
            together.setdefault(self.input_shape(picture, shape, auto), []).append(i)
        left, answers = list(together.items()), {}
        while left:
            sides, chosen = left.pop()
            part, others = chosen[: self.batch_of(sides)], chosen[self.batch_of(sides) :]
            if others:
                left.append((sides, others))
            with self.clock("preprocess"):
                images = self._letterboxed([pictures[i] for i in part], shape, auto, bgr)
            try:
                answer, found = self.answer(images)
            except torch.OutOfMemoryError:  # of a GPU
                if len(part) == 1:
                    raise
                self.batch = len(part) // 2
                left.append((sides, part))
                continue
            probs = answer.probs
            for k, (i, detections) in enumerate(zip(part, found, strict=True)):
                scale_boxes(sides, detections[:, :4], pictures[i].shape[:2])
                answers[i] = detections, None if probs is None else probs[k]
        ordered = [answers[i] for i in range(len(pictures))]
        probs = [p for _, p in ordered if p is not None]
        return [detections for detections, _ in ordered], torch.stack(probs) if probs else None

    def input_shape(self, picture: np.ndarray, shape: Sequence[int], auto: bool) -> tuple[int, int]:
        """Height and width of a picture's input, which letterboxing gives it; arguments as of a call."""
        return letterboxed_shape(picture.shape, shape, auto and not fixed_size(self.model), largest_stride(self.model))

    def batch_of(self, sides: Sequence[int]) -> int:
        """Pictures that share a pass at these sides of the input."""
        return self.batch or max(1, PIXELS.get(self.device.type, 0) // (sides[0] * sides[1]))

    def _letterboxed(self, pictures: Sequence[np.ndarray], shape: Sequence[int], auto: bool, bgr: bool) -> Tensor:
        """Pictures of one input shape in one input, uint8 [B,3,H,W], RGB."""
        auto, stride = auto and not fixed_size(self.model), largest_stride(self.model)
        boxed = [letterbox(im, shape, stride=stride, auto=auto)[0] for im in pictures]
        rgb = np.stack([cv2.cvtColor(im, cv2.COLOR_BGR2RGB) for im in boxed] if bgr else boxed)
        images = torch.from_numpy(rgb).permute(0, 3, 1, 2)  # channels last
        return images if self.layout is torch.channels_last else images.contiguous()

    def milliseconds(self) -> tuple[float, ...]:
        """Time a picture of "preprocess", "inference" and "nms"."""
        return tuple(
            self.clock.seconds[stage] * 1e3 / max(self.seen, 1) for stage in ("preprocess", "inference", "nms")
        )

    def _input(self, images: Tensor) -> Tensor:
        return to_input(images, self.device, self.layout).to(input_dtype(self.model))

    def _ask(self, inputs: Tensor) -> Answer:
        with autocast(self.device, self.dtype is not None, self.dtype):
            return self.model(inputs, augment=self.augment)
