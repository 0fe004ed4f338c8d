"""Boxes: conversions, overlaps and non-maximum suppression.

Two box forms are used. ``xyxy`` is left, top, right, bottom; ``xywh`` is centre x, centre y, width, height. Both are in
pixels unless a name ends in ``n`` (normalised: divided by the picture's width and height). Every function keeps the
array type (numpy or torch) it was given, unless its signature says otherwise.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Array = TypeVar("Array", np.ndarray, Tensor)
RatioPad = tuple[tuple[float, float], tuple[float, float]]  # (gain height, gain width), (pad width, pad height)

MAX_NMS_BOXES = 30000  # the best-scored boxes that enter the suppression


# --- sizes --------------------------------------------------------------------------------------------------------


def make_divisible(x: float, divisor: int | Tensor) -> int:
    """Returns the smallest multiple of ``divisor`` that is not below ``x``. A tensor of divisors: its largest."""
    if isinstance(divisor, Tensor):
        divisor = int(divisor.max())
    return math.ceil(x / divisor) * divisor


def input_multiple(stride: Tensor | Sequence[float] | float) -> int:
    """What the sides of a network's input must be a multiple of, in pixels: its largest stride, 32 at least.

    A backbone may go deeper than the levels that Detect reads, as that of yolov5-p34.yaml does.
    """
    return max(int(torch.as_tensor(stride).max()), 32)


def check_img_size(imgsz: int | Sequence[int], s: int = 32, floor: int = 0) -> int | list[int]:
    """Rounds a network input size (one side, or height and width) up to a multiple of the stride ``s``, ``floor`` at
    least."""
    if isinstance(imgsz, (int, np.integer)):
        return max(make_divisible(int(imgsz), int(s)), floor)
    return [max(make_divisible(int(side), int(s)), floor) for side in imgsz]


# --- conversions --------------------------------------------------------------------------------------------------


def _like(x: Array) -> Array:
    return torch.empty_like(x) if isinstance(x, Tensor) else np.empty_like(x)


def xyxy2xywh(x: Array) -> Array:
    """Corner form to centre form, ``[..., 4]`` (further columns are copied)."""
    y = _like(x)
    y[..., 0] = (x[..., 0] + x[..., 2]) / 2
    y[..., 1] = (x[..., 1] + x[..., 3]) / 2
    y[..., 2] = x[..., 2] - x[..., 0]
    y[..., 3] = x[..., 3] - x[..., 1]
    y[..., 4:] = x[..., 4:]
    return y


def xywh2xyxy(x: Array) -> Array:
    """Centre form to corner form, ``[..., 4]`` (further columns are copied)."""
    y = _like(x)
    half_w, half_h = x[..., 2] / 2, x[..., 3] / 2
    y[..., 0] = x[..., 0] - half_w
    y[..., 1] = x[..., 1] - half_h
    y[..., 2] = x[..., 0] + half_w
    y[..., 3] = x[..., 1] + half_h
    y[..., 4:] = x[..., 4:]
    return y


def xywhn2xyxy(x: Array, w: float = 640, h: float = 640, padw: float = 0, padh: float = 0) -> Array:
    """Normalised centre form to corners in pixels of a ``w`` x ``h`` picture, moved by the padding."""
    y = _like(x)
    half_w, half_h = x[..., 2] / 2, x[..., 3] / 2
    y[..., 0] = w * (x[..., 0] - half_w) + padw
    y[..., 1] = h * (x[..., 1] - half_h) + padh
    y[..., 2] = w * (x[..., 0] + half_w) + padw
    y[..., 3] = h * (x[..., 1] + half_h) + padh
    y[..., 4:] = x[..., 4:]
    return y


def xyxy2xywhn(x: Array, w: float = 640, h: float = 640, clip: bool = False, eps: float = 0.0) -> Array:
    """Corners in pixels to the normalised centre form. ``clip`` limits the corners to ``w - eps`` and ``h - eps``
    first; the input is left as it is."""
    if clip:
        x = clip_boxes(x.clone() if isinstance(x, Tensor) else x.copy(), (h - eps, w - eps))
    y = _like(x)
    y[..., 0] = (x[..., 0] + x[..., 2]) / 2 / w
    y[..., 1] = (x[..., 1] + x[..., 3]) / 2 / h
    y[..., 2] = (x[..., 2] - x[..., 0]) / w
    y[..., 3] = (x[..., 3] - x[..., 1]) / h
    y[..., 4:] = x[..., 4:]
    return y


def clip_boxes(boxes: Array, shape: Sequence[float]) -> Array:
    """Limits corner boxes ``[..., >=4]`` to a picture of ``shape`` (height, width), in place; returns them."""
    if isinstance(boxes, Tensor):
        boxes[..., 0:4:2].clamp_(0, shape[1])
        boxes[..., 1:4:2].clamp_(0, shape[0])
    else:
        boxes[..., 0:4:2] = boxes[..., 0:4:2].clip(0, shape[1])
        boxes[..., 1:4:2] = boxes[..., 1:4:2].clip(0, shape[0])
    return boxes


def scale_boxes(
    img1_shape: Sequence[int], boxes: Array, img0_shape: Sequence[int], ratio_pad: RatioPad | None = None
) -> Array:
    """Takes corner boxes ``[..., >=4]`` from the network input back to the picture, in place, and clips them to it.

    Args:
        img1_shape: height, width of the network input.
        img0_shape: height, width of the picture.
        ratio_pad: how the picture was letterboxed: (gain height, gain width), (pad width, pad height). Each axis uses
            its own gain: they differ by rounding. None: worked out from the two shapes.
    """
    if ratio_pad is None:
        gain_h = gain_w = min(img1_shape[0] / img0_shape[0], img1_shape[1] / img0_shape[1])
        pad_w = (img1_shape[1] - img0_shape[1] * gain_w) / 2
        pad_h = (img1_shape[0] - img0_shape[0] * gain_h) / 2
    else:
        (gain_h, gain_w), (pad_w, pad_h) = ratio_pad
    boxes[..., 0:4:2] -= pad_w
    boxes[..., 1:4:2] -= pad_h
    boxes[..., 0:4:2] /= gain_w
    boxes[..., 1:4:2] /= gain_h
    return clip_boxes(boxes, img0_shape)


# --- overlaps -----------------------------------------------------------------------------------------------------


def box_iou(box1: Tensor, box2: Tensor, eps: float = 1e-7) -> Tensor:
    """Intersection over union ``[n,m]`` of all pairs of corner boxes ``[n,4]`` and ``[m,4]``."""
    top_left = torch.maximum(box1[:, None, :2], box2[None, :, :2])
    bottom_right = torch.minimum(box1[:, None, 2:4], box2[None, :, 2:4])
    inter = (bottom_right - top_left).clamp_(min=0).prod(2)
    area1 = (box1[:, 2:4] - box1[:, :2]).prod(1)
    area2 = (box2[:, 2:4] - box2[:, :2]).prod(1)
    return inter / (area1[:, None] + area2 - inter + eps)


def bbox_ioa(box1: np.ndarray, box2: np.ndarray, eps: float = 1e-7) -> np.ndarray:
    """Intersection over the area of ``box2``, ``[n,m]``, for all pairs of corner boxes ``[n,4]`` and ``[m,4]``."""
    top_left = np.maximum(box1[:, None, :2], box2[None, :, :2])
    bottom_right = np.minimum(box1[:, None, 2:4], box2[None, :, 2:4])
    inter = (bottom_right - top_left).clip(0).prod(2)
    return inter / ((box2[:, 2:4] - box2[:, :2]).prod(1) + eps)


def bbox_iou(
    box1: Tensor,
    box2: Tensor,
    xywh: bool = True,
    GIoU: bool = False,
    DIoU: bool = False,
    CIoU: bool = False,
    eps: float = 1e-7,
) -> Tensor:
    """Overlap of box ``i`` with box ``i``: ``[..., 4]`` and ``[..., 4]`` (broadcast) to ``[...]``; differentiable.

    Plain IoU, or GIoU (Rezatofighi et al., CVPR 2019), or DIoU and CIoU (Zheng et al., AAAI 2020, eq. 7 and 10). Boxes
    are in the centre form where ``xywh``, otherwise corners. Empty boxes give finite values and gradients.
    """
    if xywh:
        x1, y1, w1, h1 = box1.unbind(-1)
        x2, y2, w2, h2 = box2.unbind(-1)
        left1, right1, top1, bottom1 = x1 - w1 / 2, x1 + w1 / 2, y1 - h1 / 2, y1 + h1 / 2
        left2, right2, top2, bottom2 = x2 - w2 / 2, x2 + w2 / 2, y2 - h2 / 2, y2 + h2 / 2
    else:
        left1, top1, right1, bottom1 = box1.unbind(-1)
        left2, top2, right2, bottom2 = box2.unbind(-1)
        w1, h1 = right1 - left1, bottom1 - top1 + eps
        w2, h2 = right2 - left2, bottom2 - top2 + eps

    inter_w = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    inter_h = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    inter = inter_w * inter_h
    union = w1 * h1 + w2 * h2 - inter + eps
    iou = inter / union
    if not (GIoU or DIoU or CIoU):
        return iou

    hull_w = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_h = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    if GIoU and not (DIoU or CIoU):
        hull = hull_w * hull_h + eps
        return iou - (hull - union) / hull

    diagonal = hull_w**2 + hull_h**2 + eps
    distance = ((left2 + right2 - left1 - right1) ** 2 + (top2 + bottom2 - top1 - bottom1) ** 2) / 4
    if not CIoU:
        return iou - distance / diagonal
    # The clamp keeps the shape of a box without height finite; any other height passes unchanged.
    shape1, shape2 = torch.atan(w1 / h1.clamp(min=eps)), torch.atan(w2 / h2.clamp(min=eps))
    v = (4 / math.pi**2) * (shape2 - shape1) ** 2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    return iou - (distance / diagonal + v * alpha)


# --- non-maximum suppression --------------------------------------------------------------------------------------


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """One thread on the CPU: waking the others costs several times more than these many small steps themselves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _native_nms() -> Callable[[Tensor, Tensor, float], Tensor]:
    """torchvision's suppression, from its library of kernels alone where that is found: importing the whole package
    pulls in PyTorch's compiler, which takes as long as PyTorch itself."""
    spec = importlib.util.find_spec("torchvision")
    found = [] if spec is None else sorted(Path(spec.origin).parent.glob("_C*"))
    for file in (f for f in found if f.suffix in (".so", ".pyd")):
        with suppress(OSError):  # it needs something that the package's own start makes known
            torch.ops.load_library(file)
    if not hasattr(torch.ops.torchvision, "nms"):
        import torchvision  # noqa: F401
    return torch.ops.torchvision.nms


def _greedy_nms(boxes: Tensor, scores: Tensor, iou_thres: float, max_keep: int) -> Tensor:
    """Indices of the first ``max_keep`` boxes that greedy suppression keeps; boxes come best first.

    What it keeps among the first k boxes does not depend on the boxes after them, so it works on a growing prefix and
    stops as soon as enough are kept. This gives the same answer as suppressing all boxes, many times faster.
    """
    prefix = max(4 * max_keep, 512)
    while True:
        keep = _native_nms()(boxes[:prefix], scores[:prefix], iou_thres)
        if len(keep) >= max_keep or prefix >= len(boxes):
            return keep[:max_keep]
        prefix *= 4


def non_max_suppression(
    prediction: Tensor | Sequence[Tensor],
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    labels: Sequence[Tensor] = (),
    max_det: int = 300,
    nm: int = 0,
) -> list[Tensor]:
    """Turns decoded predictions into detections, best first. There is no time limit: the answer never depends on the
    machine's speed. The input is not changed.

    Args:
        prediction: decoded output ``[B,n,5+nc+nm]`` (xywh in pixels, objectness, class scores, ``nm`` further columns),
            or what a network returns, whose first item it is.
        conf_thres: score = objectness x class; both the objectness and the score must be above it.
        iou_thres: of two boxes of one class with an IoU above it the lower-scored one goes.
        classes: keep these classes alone.
        agnostic: boxes suppress boxes of other classes too.
        multi_label: a box may give one detection per class (when there is more than one class).
        labels: per picture known boxes ``[k,5]`` (class, xywh in pixels) that enter with score 1.
        max_det: most detections per picture.

    Returns:
        One tensor ``[k,6+nm]`` (x1, y1, x2, y2, score, class, further columns x objectness) a picture.

    Raises:
        ValueError: a threshold outside 0..1.
    """
    for name, value in (("confidence", conf_thres), ("IoU", iou_thres)):
        if not 0 <= value <= 1:
            raise ValueError(f"the {name} threshold must lie in 0..1, got {value}")
    while not isinstance(prediction, Tensor):  # a joint network's is ((boxes, maps), logits)
        prediction = prediction[0]
    device = prediction.device
    if device.type == "mps":  # torchvision has no suppression for it
        prediction = prediction.cpu()
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction = prediction.float()
    nc = prediction.shape[2] - 5 - nm
    wanted = None if classes is None else torch.as_tensor(classes, device=prediction.device, dtype=prediction.dtype)

    output = []
    with _one_thread(prediction.device):
        candidates = prediction[..., 4] > conf_thres
        for i, rows in enumerate(prediction):
            rows = rows[candidates[i]]
            boxes, weighted = xywh2xyxy(rows[:, :4]), rows[:, 5:] * rows[:, 4:5]
            scores, extra = weighted[:, :nc], weighted[:, nc:]
            if len(labels) and len(labels[i]):
                known = labels[i].to(rows)
                boxes = torch.cat((boxes, xywh2xyxy(known[:, 1:5])))
                scores = torch.cat((scores, nn.functional.one_hot(known[:, 0].long(), nc).to(scores)))
                extra = torch.cat((extra, extra.new_zeros(len(known), nm)))
            row, cls, score = _answers(scores, conf_thres, wanted, multi_label and nc > 1)
            boxes, cls = boxes[row], cls.to(boxes.dtype)
            # Classes do not meet when each is moved to a place of its own; float64 keeps the fractions of a pixel.
            apart = boxes.double()
            if not agnostic and len(apart):
                apart += cls[:, None] * (apart.amax() - apart.amin() + 1)
            keep = _greedy_nms(apart, score.double(), iou_thres, max_det)
            output.append(torch.cat((boxes[keep], score[keep, None], cls[keep, None], extra[row[keep]]), 1))
    return [found.to(device) for found in output]


def _answers(
    scores: Tensor, conf_thres: float, wanted: Tensor | None, multi_label: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, class and score, each ``[k]``, of the scores ``[n,nc]`` that may enter suppression, best first.

    The order is stable, so that equal scores give equal answers everywhere.
    """
    if multi_label:
        row, cls = (scores > conf_thres).nonzero(as_tuple=True)
        score = scores[row, cls]
    else:
        score, cls = scores.max(1)
        row = (score > conf_thres).nonzero(as_tuple=True)[0]
        score, cls = score[row], cls[row]
    if wanted is not None:
        keep = torch.isin(cls.to(wanted.dtype), wanted)
        row, cls, score = row[keep], cls[keep], score[keep]
    if len(score) > MAX_NMS_BOXES:  # finding the last that may enter is faster than sorting all
        keep = score >= score.kthvalue(len(score) - MAX_NMS_BOXES + 1).values
        row, cls, score = row[keep], cls[keep], score[keep]
    score, order = score.sort(descending=True, stable=True)
    order = order[:MAX_NMS_BOXES]
    return row[order], cls[order], score[:MAX_NMS_BOXES]
