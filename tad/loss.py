"""Which point answers for which event, and the two losses of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tad.segments import decode

RADIUS = 1.5  # points so many strides around an event's middle may answer for it
SAME_LENGTH = 1e-3  # events at most so much longer than the shortest share its class target
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
MOMENTUM = 0.9  # of the running number of positives


class Losses(NamedTuple):
    """Both losses and the number of points that answer for an event."""

    cls: Tensor
    reg: Tensor
    positives: Tensor


def assign(at: Tensor, segments: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Targets of every point of one window (Zhang et al. 2022, section 3.4; centre sampling as in FCOS).

    A point answers for an event when it lies strictly inside of it and within 1.5 strides of its middle, and when the
    larger of its two distances to the ends is in the range of its level (both ends included). Of several the shortest
    counts, of equally short ones the first.

    Args:
        at: `points` [P, 4].
        segments, labels: Events of the window in sampled frames [N, 2], and their classes [N].

    Returns:
        Class target [P, classes] of 0 and 1, and the distances to both ends in strides [P, 2], arbitrary where the
        class target is 0.
    """
    t, low, high, stride = (at[:, i, None] for i in range(4))
    if not len(segments):
        return at.new_zeros(len(at), classes), at.new_zeros(len(at), 2)
    start, end = segments[:, 0], segments[:, 1]
    left, right = t - start, end - t  # [P, N]
    middle = (start + end) / 2
    inside = torch.minimum(t - torch.maximum(start, middle - RADIUS * stride),
                           torch.minimum(end, middle + RADIUS * stride) - t) > 0  # fmt: skip
    farthest = torch.maximum(left, right)
    answers = inside & (farthest >= low) & (farthest <= high)
    lengths = torch.where(answers, end - start, torch.inf)
    shortest, which = lengths.min(1).values, lengths.argmin(1)
    united = answers & (lengths <= shortest[:, None] + SAME_LENGTH)
    target = (united.to(at.dtype) @ F.one_hot(labels.long(), classes).to(at.dtype)).clamp(max=1)
    rows = torch.arange(len(at), device=at.device)
    return target, torch.stack([left[rows, which], right[rows, which]], 1) / stride


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid focal loss of each logit (Lin et al. 2017), in float32."""
    logits = logits.float()
    p = logits.sigmoid()
    wrong = p * (1 - target) + (1 - p) * target
    weight = ALPHA * target + (1 - ALPHA) * (1 - target)
    return weight * wrong**GAMMA * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def diou(a: Tensor, b: Tensor) -> Tensor:
    """1 − DIoU of segments in pairs (Zheng et al. 2020, in one dimension): [..., 2], [..., 2] → [...]."""
    inter = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    enclosing = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    distance = (a.sum(-1) - b.sum(-1)) / 2
    return 1 - inter / union.clamp(min=1e-7) + distance**2 / (enclosing**2).clamp(min=1e-7)


def window_losses(
    answer: tuple[Tensor, Tensor, Tensor],
    at: Tensor,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    normaliser: Tensor,
    training: bool = True,
    label_smoothing: float = 0.0,
    reg_weight: float = 1.0,
) -> Losses:
    """Focal loss over all real points and DIoU loss over those that answer, each divided by the running positives.

    Args:
        answer: Logits, offsets and valid points, as the network gives them.
        at: `points` of a window.
        segments, labels: Per window its events in sampled frames, and their classes.
        normaliser: The head's buffer; in training it is moved first, then used.
        reg_weight: Weight of the second loss; 0: as large as the first.
    """
    logits, offsets, valid = answer
    classes = logits.shape[-1]
    pairs = [assign(at, s, n, classes) for s, n in zip(segments, labels, strict=True)]
    target, distances = (torch.stack(p) for p in zip(*pairs, strict=True))
    positive = (target.sum(-1) > 0) & valid
    count = positive.sum()
    if training:
        normaliser.copy_(MOMENTUM * normaliser + (1 - MOMENTUM) * count.clamp(min=1))
    divisor = normaliser.detach().clone() if training else count.clamp(min=1).float()

    smooth = target * (1 - label_smoothing) + label_smoothing / (classes + 1)
    cls = focal(logits, smooth)[valid].sum() / divisor
    predicted, wanted = decode(offsets.float(), at)[positive], decode(distances, at)[positive]
    reg = diou(predicted, wanted).sum() / divisor if len(wanted) else offsets.float().sum() * 0
    weight = reg_weight if reg_weight > 0 else cls.detach() / reg.detach().clamp(min=0.01)
    return Losses(cls, reg * weight, count)
