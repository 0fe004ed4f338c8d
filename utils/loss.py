"""Losses: YOLOv5's detection loss, the cross-entropy of the image-level branch, and both together.

Every loss here is a mean per picture, computed in float32 whatever precision the network ran in, and vectorised over
pictures, targets, anchors and levels. All return a graph even where nothing is labelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.boxes import bbox_iou

# Objectness weights of the levels, smallest stride first: small objects are the hardest, so their level counts most.
BALANCE_3_LEVELS = (4.0, 1.0, 0.4)
BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
# A target also trains the neighbour cells that its centre is nearest to: (none, left, top, right, bottom), in cells.
NEIGHBOURS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))
FOCAL_ALPHA = 0.25


def smooth_bce(eps: float = 0.1) -> tuple[float, float]:
    """Positive and negative targets of binary cross-entropy under label smoothing `eps` (1 - eps/2, eps/2)."""
    return 1.0 - 0.5 * eps, 0.5 * eps


class FocalLoss(nn.Module):
    """Binary cross-entropy on logits, element by element, with focal modulation where gamma > 0.

    Focal loss: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5, with soft targets t:
    p_t = t p + (1 - t)(1 - p), loss = alpha_t (1 - p_t)^gamma BCE.

    Args:
        gamma: focusing parameter; 0 is plain binary cross-entropy (alpha does not apply then).
        alpha: weight of the positive targets, 1 - alpha of the negative ones.
        pos_weight: factor of the positive part of the cross-entropy.
    """

    def __init__(self, gamma: float = 0.0, alpha: float = FOCAL_ALPHA, pos_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.alpha, self.pos_weight = float(gamma), float(alpha), float(pos_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss per element, shape of `logits`; `target` in 0..1 has the same shape."""
        pos_weight = None if self.pos_weight == 1.0 else logits.new_tensor(self.pos_weight)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=pos_weight)
        if self.gamma > 0:
            prob = logits.sigmoid()
            p_t = target * prob + (1 - target) * (1 - prob)
            alpha_t = target * self.alpha + (1 - target) * (1 - self.alpha)
            loss = loss * alpha_t * (1.0 - p_t) ** self.gamma
        return loss


class Assignment(NamedTuple):
    """Matches of all levels, level by level; within a level ordered by neighbour (see NEIGHBOURS), anchor, target."""

    counts: list[int]  # matches per level
    image: Tensor  # int64 [M]
    anchor: Tensor  # int64 [M]
    gj: Tensor  # int64 [M] cell row
    gi: Tensor  # int64 [M] cell column
    box: Tensor  # float32 [M,4] x,y (relative to the cell), w,h in cells
    anchor_wh: Tensor  # float32 [M,2] anchor size in cells
    cls: Tensor  # int64 [M]
    cell: Tensor  # int64 [M] index into the flattened [B,na,ny,nx] of the level


class ComputeLoss:
    """YOLOv5's detection loss: CIoU of the boxes, objectness and class binary cross-entropy.

    Args:
        model: a network with `.detect` (`anchors` [nl,na,2] in grid units, `stride` [nl], `na`, `nl`, `nc`); may be
            wrapped for distributed training.
        hyp: hyperparameters `box obj cls obj_pw cls_pw anchor_t fl_gamma label_smoothing`; `model.hyp` if None.

    Calling it with the raw maps of the training output, a list of nl tensors [B,na,ny,nx,5+nc], and targets float
    [N,6] (image index, class, x, y, w, h normalised) returns `(total, parts)`: total [1] = (box + obj + cls) * B with
    a graph, parts [3] = box, obj, cls, times their gains, detached.
    """

    def __init__(self, model: nn.Module, hyp: dict | None = None) -> None:
        model = getattr(model, "module", model)
        detect = model.detect
        self.hyp = dict(model.hyp if hyp is None else hyp)
        self.anchors, self.nl, self.na, self.nc = detect.anchors, detect.nl, detect.na, detect.nc
        levels = BALANCE_3_LEVELS if self.nl == 3 else (BALANCE + BALANCE[-1:] * self.nl)[: self.nl]
        self.balance = list(levels)
        self.cls_pos, self.cls_neg = smooth_bce(self.hyp.get("label_smoothing", 0.0))
        gamma = self.hyp.get("fl_gamma", 0.0)
        self.bce_cls = FocalLoss(gamma, pos_weight=self.hyp.get("cls_pw", 1.0))
        self.bce_obj = FocalLoss(gamma, pos_weight=self.hyp.get("obj_pw", 1.0))

    def __call__(self, p: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        box, obj, cls = self.parts(p, targets)
        total = (box + obj + cls) * p[0].shape[0]
        return total.reshape(1), torch.stack((box, obj, cls)).detach()

    def parts(self, p: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three losses, each a differentiable scalar, times their gains."""
        with torch.autocast(p[0].device.type, enabled=False):
            match = self.assign([x.shape for x in p], targets.to(p[0].device, torch.float32))
            cells = match.cell.split(match.counts)
            box = cls = p[0].new_zeros((), dtype=torch.float32)
            quality = match.box.new_zeros(0)
            if match.cell.numel():
                # One pass over the matches of all levels; each level counts as the mean over its own matches.
                rows = [x.reshape(-1, x.shape[-1]).index_select(0, i) for x, i in zip(p, cells, strict=True)]
                pred = torch.cat(rows).float()
                level_mean = torch.cat([pred.new_full((n,), 1 / max(n, 1)) for n in match.counts])
                half = pred[:, :4].sigmoid() * 2
                wh = half[:, 2:].square() * match.anchor_wh
                iou = bbox_iou(torch.cat((half[:, :2] - 0.5, wh), 1), match.box, CIoU=True).reshape(-1)
                box = ((1.0 - iou) * level_mean).sum()
                quality = iou.detach().clamp_min(0)
                if self.nc > 1:
                    want = torch.full_like(pred[:, 5:], self.cls_neg)
                    want.scatter_(1, match.cls[:, None], self.cls_pos)
                    cls = (self.bce_cls(pred[:, 5:], want).mean(1) * level_mean).sum()
            obj = self._objectness(p, cells, quality.split(match.counts))
        return box * self.hyp["box"], obj * self.hyp["obj"], cls * self.hyp["cls"]

    def _objectness(self, p: list[Tensor], cells: tuple[Tensor, ...], quality: tuple[Tensor, ...]) -> Tensor:
        total = 0.0
        for i, (x, cell, iou) in enumerate(zip(p, cells, quality, strict=True)):
            target = x.new_zeros(x.shape[:4], dtype=torch.float32)
            if cell.numel():
                # The last match of a cell wins. Each of them writes the last one's value, so the order of writing,
                # which GPUs do not keep, cannot matter.
                order = torch.arange(cell.numel(), device=cell.device)
                last = torch.zeros(target.numel(), dtype=torch.int64, device=cell.device)
                last.scatter_reduce_(0, cell, order, "amax")
                target.view(-1)[cell] = iou[last[cell]]
            total = total + self.bce_obj(x[..., 4].float(), target).mean() * self.balance[i]
        return total

    @torch.no_grad()
    def assign(self, shapes: list[torch.Size], targets: Tensor) -> Assignment:
        """Match targets [N,6] to anchors and cells of maps of `shapes` [B,na,ny,nx,no].

        An anchor fits where neither side differs from the target's by a factor of `anchor_t` or more. It is trained
        in the cell of the centre and in the up to two neighbour cells nearest to the centre.
        """
        device = targets.device
        grid = torch.tensor([[s[3], s[2]] for s in shapes], device=device)  # nx, ny per level [nl,2]
        anchors = self.anchors.to(device, torch.float32)
        xy = targets[:, 2:4] * grid[:, None]  # [nl,N,2]
        wh = targets[:, 4:6] * grid[:, None]
        ratio = wh[:, None] / anchors[:, :, None]  # [nl,na,N,2]
        fits = torch.maximum(ratio, 1 / ratio).amax(3) < self.hyp["anchor_t"]
        from_end = grid[:, None] - xy
        near = (xy % 1 < 0.5) & (xy > 1)
        far = (from_end % 1 < 0.5) & (from_end > 1)
        centre = torch.ones_like(near[..., :1])
        neighbour = torch.cat((centre, near, far), 2).transpose(1, 2)  # [nl,5,N]
        level, side, anchor, index = (neighbour[:, :, None] & fits[:, None]).nonzero().unbind(1)

        offset = xy.new_tensor(NEIGHBOURS)[side]
        centre_xy, size, target = xy[level, index], grid[level], targets[index, :2].long()
        cell_xy = (centre_xy - offset).long()
        cell_xy = torch.minimum(cell_xy.clamp_min(0), size - 1)
        gi, gj = cell_xy.unbind(1)
        image, cls = target.unbind(1)
        return Assignment(
            counts=torch.bincount(level, minlength=self.nl).tolist(),
            image=image,
            anchor=anchor,
            gj=gj,
            gi=gi,
            box=torch.cat((centre_xy - cell_xy, wh[level, index]), 1),
            anchor_wh=anchors[level, anchor],
            cls=cls,
            cell=((image * self.na + anchor) * size[:, 1] + gj) * size[:, 0] + gi,
        )


def image_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the image-level answer on soft targets, averaged over the pictures whose label is known.

    Args:
        logits: [B,C].
        targets: [B,C]; rows sum to 1, or to 0 where the label is unknown.
        label_smoothing: share of each target that is spread evenly over the classes.

    Returns:
        A scalar in float32; 0 with a graph where no label is known.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"image logits have shape {tuple(logits.shape)}, image targets {tuple(targets.shape)}")
    targets = targets.to(logits.device, torch.float32)
    weight = targets.sum(1)
    smooth = targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[1]
    loss = -(smooth * logits.float().log_softmax(1)).sum(1)
    return (loss * (weight > 0)).sum() / weight.sum().clamp_min(1e-12)


@dataclass(frozen=True)
class Losses:
    """What a criterion computed of a batch, each loss under its name, as means per picture.

    Attributes:
        parts: Detached scalars for the records, gains included.
        tasks: The scalars with a graph that a balancer weighs against one another.
        present: Whether the batch has a label of each task.
    """

    parts: dict[str, Tensor]
    tasks: dict[str, Tensor]
    present: dict[str, bool]


def scale_gains(hyp: dict, model: nn.Module, imgsz: int, label_smoothing: float) -> dict:
    """Loss gains for the number of levels, classes and pixels (YOLOv5's scaling), in a copy of `hyp`."""
    levels = 3 / model.detect.nl
    return hyp | {
        "box": hyp["box"] * levels,
        "cls": hyp["cls"] * model.nc / 80 * levels,
        "obj": hyp["obj"] * (imgsz / 640) ** 2 * levels,
        "label_smoothing": label_smoothing,
    }


class ComputeJointLoss:
    """Both tasks: YOLOv5's detection loss, and the image loss where the model has the branch.

    Args:
        model: see `ComputeLoss`; `model.cls_nc` > 0 where it has the image-level branch.
        hyp: as for `ComputeLoss`, plus `image_label_smoothing`; `model.hyp` if None.

    Attributes:
        parts, tasks: Names of what is recorded (box, obj, cls and, with the branch, image) and of what is balanced
            (det and, with the branch, image), in that order.

    Calling it with the training output (`(maps, logits)`, or the list of maps alone), targets [N,6] and image_targets
    [B,cls_nc] returns `Losses`.
    """

    def __init__(self, model: nn.Module, hyp: dict | None = None) -> None:
        self.detection = ComputeLoss(model, hyp)
        self.label_smoothing = float(self.detection.hyp.get("image_label_smoothing", 0.0))
        image = ("image",) if getattr(model, "module", model).cls_nc else ()
        self.parts, self.tasks = ("box", "obj", "cls", *image), ("det", *image)

    def __call__(
        self, predictions: list[Tensor] | tuple[list[Tensor], Tensor], targets: Tensor, image_targets: Tensor | None
    ) -> Losses:
        maps, logits = predictions if isinstance(predictions, tuple) else (predictions, None)
        box, obj, cls = self.detection.parts(maps, targets)
        parts = {"box": box.detach(), "obj": obj.detach(), "cls": cls.detach()}
        tasks, present = {"det": box + obj + cls}, {"det": targets.shape[0] > 0}
        if logits is not None:
            if image_targets is None:
                image_targets = torch.zeros_like(logits, dtype=torch.float32)
            # Looked up before the copy to the device, where reading it back would wait for the device.
            known = bool((image_targets.sum(1) > 0).any()) if image_targets.device.type == "cpu" else True
            image_targets = image_targets.to(logits.device, non_blocking=True)
            with torch.autocast(logits.device.type, enabled=False):
                image = image_loss(logits, image_targets, self.label_smoothing)
            parts["image"], tasks["image"], present["image"] = image.detach(), image, known
        return Losses(parts, tasks, present)
