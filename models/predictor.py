"""From pictures to answers in their own pixels, with a stop-watch: for detection, AutoShape and validation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from models.answer import Answer
from models.export.readers import fixed_size
from models.load import device_of, input_dtype, largest_stride
from utils.augmentations import letterbox
from utils.boxes import scale_boxes
from utils.system.devices import autocast, synchronize, to_input


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
        **nms,
    ):
        self.model, self.device, self.dtype, self.layout = model, device or device_of(model), dtype, layout
        self.augment, self.nms = augment, nms
        self.clock, self.seen, self.shape = Stopwatch(self.device), 0, (0, 3, 0, 0)

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

        Args:
            shape: Height and width of the input.
            auto: Pictures of one size are padded to the next stride only, where the network takes any size.
            bgr: They are as OpenCV reads them, not RGB.
        """
        with self.clock("preprocess"):
            images = self.letterboxed(pictures, shape, auto, bgr)
        answer, found = self.answer(images)
        for detections, picture in zip(found, pictures, strict=True):
            scale_boxes(images.shape[2:], detections[:, :4], picture.shape[:2])
        return found, answer.probs

    def letterboxed(
        self, pictures: Sequence[np.ndarray], shape: Sequence[int], auto: bool = False, bgr: bool = False
    ) -> Tensor:
        """The same pictures in one input, uint8 [B,3,H,W], RGB."""
        auto = auto and len({im.shape for im in pictures}) == 1 and not fixed_size(self.model)
        boxed = np.stack([letterbox(im, shape, stride=largest_stride(self.model), auto=auto)[0] for im in pictures])
        rgb = boxed[..., ::-1] if bgr else boxed
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)))

    def milliseconds(self, stages: Sequence[str] = ("preprocess", "inference", "nms")) -> tuple[float, ...]:
        """Time a picture of these stages."""
        return tuple(self.clock.seconds[stage] * 1e3 / max(self.seen, 1) for stage in stages)

    def _input(self, images: Tensor) -> Tensor:
        return to_input(images, self.device, self.layout).to(input_dtype(self.model))

    def _ask(self, inputs: Tensor) -> Answer:
        with autocast(self.device, self.dtype is not None, self.dtype):
            return self.model(inputs, augment=self.augment)
