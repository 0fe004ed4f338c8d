"""An exported file against the network that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from models.export.int8 import Calibration
from models.export.network import ExportNetwork, random_pictures, smooth_pictures
from models.export.readers import ExportedModel

TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2  # float32 files, and those with float16 in them
INT8_TOLERANCE = 0.25  # of sides of the picture, confidences and probabilities: what exceeds it is broken, not rounded
INT8_BATCHES, INT8_CONFIDENCE = 16, 0.25  # a box that nobody would be shown may move as it likes


@dataclass
class Difference:
    """Largest differences over all inputs.

    Attributes:
        boxes: Coordinates, pixels.
        scores: Objectness and class confidences, or the scores of detections.
        probs: Image-level probabilities; None without an image branch.
        scaled: Of all values |a - b| / max(1, |b|), in int8 of boxes |a - b| / the picture's side. The tolerance is for
            it: a float32 holds seven digits, so a coordinate of some hundred pixels cannot agree as closely as a
            probability.
        detections: Detections compared; None for a file without non-max suppression inside.
    """

    boxes: float = 0.0
    scores: float = 0.0
    probs: float | None = None
    scaled: float = 0.0
    detections: int | None = None

    def __str__(self) -> str:
        text = f"boxes {self.boxes:.1e} px, confidences {self.scores:.1e}"
        text += "" if self.probs is None else f", image probabilities {self.probs:.1e}"
        return text + ("" if self.detections is None else f" ({self.detections} detections compared)")


@torch.inference_mode()
def check_export(
    network: ExportNetwork,
    exported: ExportedModel,
    file: Path,
    half: bool = False,
    plain: ExportedModel | None = None,
    calibration: Calibration | None = None,
) -> Difference:
    """Runs pictures through both: noise and a smooth picture, in which a file for any size also takes another size and
    number; of int8 those that its ranges are for, since others may exceed them.

    Args:
        exported: The file as it was read back.
        plain: The same without suppression inside, where `exported` has that. Its boxes are compared with the
            network's, and what our suppression makes of them with the detections of `exported`. (Of two boxes with
            nearly one score the network's rounding and the file's may prefer either.)
        file: The name to use in a message.
        half: The file holds float16.
        calibration: The file is int8, measured on these.

    Raises:
        ValueError: They differ by more than the tolerance.
    """
    tolerance = INT8_TOLERANCE if calibration else HALF_TOLERANCE if half else TOLERANCE
    total, unit = Difference(), max(network.metadata.imgsz) if calibration else 1
    for images in _inputs(network, calibration):
        answer = network(images)
        decoded, probs = (answer, None) if isinstance(answer, Tensor) else answer
        theirs = exported(images)
        boxes = theirs.boxes
        if calibration:
            boxes, decoded = _shown(boxes), _shown(decoded)
        if plain is not None:
            unsuppressed = plain(images)
            boxes = unsuppressed.boxes
            _compare_detections(total, theirs.detections(**exported.nms), unsuppressed.detections(**exported.nms))
        compare(total, "scores", boxes[..., 4:], decoded[..., 4:])
        if calibration and boxes.shape == decoded.shape:
            clear = decoded[..., 4:].amax(-1) > INT8_CONFIDENCE
            boxes, decoded = boxes[clear], decoded[clear]
        compare(total, "boxes", boxes[..., :4], decoded[..., :4], unit)
        if probs is not None:
            compare(total, "probs", theirs.probs, probs)
    if not total.scaled <= tolerance:
        raise ValueError(
            f"{file} answers otherwise than the network it was made from: largest difference {total.scaled:.1e} "
            f"(relative above {unit}), allowed are {tolerance:.0e}; {total}; nothing was written"
        )
    return total


def _shown(boxes: Tensor) -> Tensor:
    """Boxes [B,n,4+nc] with the confidences that people are shown, of decoded ones [B,n,5+nc]."""
    return torch.cat([boxes[..., :4], boxes[..., 4:5] * boxes[..., 5:]], -1)


def _inputs(network: ExportNetwork, calibration: Calibration | None) -> Iterator[Tensor]:
    """Pictures [B,3,H,W] to compare answers on, of the network's type and on its device."""
    if calibration:
        yield from (torch.from_numpy(images).to(network.example) for images in islice(calibration, INT8_BATCHES))
        return
    (height, width), stride = network.metadata.imgsz, network.metadata.stride
    batch, channels = network.example.shape[:2]
    shapes = [(batch, channels, (height, width))]
    if network.metadata.dynamic:
        shapes.append((batch + 1, channels, (max(stride, height // 2 // stride * stride), width + stride)))
    for shape in shapes:
        for pictures in (random_pictures, smooth_pictures):
            yield pictures(*shape).to(network.example)


def compare(total: Difference, key: str, ours: Tensor, theirs: Tensor, unit: float = 1.0) -> None:
    """Raises what `total` has under `key`, and its `scaled`, to the difference of two tensors.

    Args:
        unit: What a difference is divided by, or by the value where that is larger.
    """
    if ours.shape != theirs.shape:
        total.scaled = float("inf")
        return
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    difference = (ours - theirs).abs()
    if difference.numel():
        setattr(total, key, max(getattr(total, key) or 0.0, float(difference.max())))
        # NaN compares as unequal to everything and must not be lost in a maximum
        scaled = (difference / theirs.abs().clamp(min=unit)).nan_to_num(nan=float("inf")).max()
        total.scaled = max(total.scaled, float(scaled))


def _compare_detections(total: Difference, found: list[Tensor], expected: list[Tensor]) -> None:
    """Each picture's detections with ours for the same boxes, whatever the order of nearly equal scores."""
    total.detections = total.detections or 0
    for ours, theirs in zip(found, expected, strict=True):
        total.detections += len(theirs)
        if len(ours) != len(theirs):
            total.scaled = float("inf")
            continue
        if len(ours):
            apart = (ours[:, None].double().cpu() - theirs[None].double().cpu()).abs().amax(2)
            nearest = ours[apart.argmin(0).to(ours.device)]
            compare(total, "boxes", nearest[:, :4], theirs[:, :4])
            compare(total, "scores", nearest[:, 4:], theirs[:, 4:])
