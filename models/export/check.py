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
# Of sides of the picture, confidences and probabilities, on average: rounding moves some box as far, a fault moves all.
INT8_TOLERANCE = 0.25
INT8_BATCHES, INT8_CONFIDENCE = 16, 0.25  # a box that nobody would be shown may move as it likes


@dataclass
class Difference:
    """Largest differences over all inputs.

    Attributes:
        boxes: Coordinates, pixels.
        scores: Objectness and class confidences, or the scores of detections.
        probs: Image-level probabilities; None without an image branch.
        scaled: Of all values |a - b| / max(1, |b|), in int8 the largest of the means of boxes (in sides of the
            picture), confidences and probabilities. The tolerance is for it: a float32 holds seven digits, so a
            coordinate of some hundred pixels cannot agree as closely as a probability.
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
    total, rounded = Difference(), []
    for images in _inputs(network, calibration):
        answer = network(images)
        decoded, probs = (answer, None) if isinstance(answer, Tensor) else answer
        theirs = exported(images)
        boxes = theirs.boxes
        if calibration:
            rounded.append((boxes, decoded, theirs.probs, probs))
            continue
        if plain is not None:
            unsuppressed = plain(images)
            boxes = unsuppressed.boxes
            _compare_detections(total, theirs.detections(**exported.nms), unsuppressed.detections(**exported.nms))
        compare(total, "scores", boxes[..., 4:], decoded[..., 4:])
        compare(total, "boxes", boxes[..., :4], decoded[..., :4])
        if probs is not None:
            compare(total, "probs", theirs.probs, probs)
    if calibration:
        _compare_rounded(total, rounded, max(network.metadata.imgsz))
    if not total.scaled <= tolerance:
        raise ValueError(
            f"{file} answers otherwise than the network it was made from: {'mean' if calibration else 'largest'} "
            f"difference {total.scaled:.1e} (relative above 1), allowed are {tolerance:.0e}; {total}; nothing was "
            "written"
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


def _compare_rounded(total: Difference, answers: list[tuple[Tensor, ...]], side: int) -> None:
    """Compares an int8 file's answers with the network's, over all inputs at once.

    Boxes that either is sure of count by themselves, since among thousands that neither shows they would not be seen.

    Args:
        answers: Of each input both boxes [B,n,5+nc] and both probabilities [B,cls_nc] or None, the file's first.
    """
    if any(boxes.shape != decoded.shape for boxes, decoded, *_ in answers):
        total.scaled = float("inf")
        return
    boxes, decoded = (_shown(torch.cat([answer[i].flatten(0, 1) for answer in answers])) for i in (0, 1))
    compare(total, "scores", boxes[:, 4:], decoded[:, 4:], mean=True)
    clear = torch.maximum(boxes, decoded)[:, 4:].amax(-1) > INT8_CONFIDENCE
    compare(total, "scores", boxes[clear, 4:].amax(-1), decoded[clear, 4:].amax(-1), mean=True)
    compare(total, "boxes", boxes[clear, :4], decoded[clear, :4], side, mean=True)
    if answers[0][3] is not None:
        compare(total, "probs", *(torch.cat([answer[i] for answer in answers]) for i in (2, 3)), mean=True)


def compare(total: Difference, key: str, ours: Tensor, theirs: Tensor, unit: float = 1.0, mean: bool = False) -> None:
    """Raises what `total` has under `key` to the largest difference of two tensors, and its `scaled`.

    Args:
        unit: What a difference is divided by, or by the value where that is larger.
        mean: `scaled` is the mean of the differences in place of the largest.
    """
    if ours.shape != theirs.shape:
        total.scaled = float("inf")
        return
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    difference = (ours - theirs).abs()
    if difference.numel():
        setattr(total, key, max(getattr(total, key) or 0.0, float(difference.max())))
        # NaN compares as unequal to everything and must not be lost in a maximum
        scaled = (difference / theirs.abs().clamp(min=unit)).nan_to_num(nan=float("inf"))
        total.scaled = max(total.scaled, float(scaled.mean() if mean else scaled.max()))


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
