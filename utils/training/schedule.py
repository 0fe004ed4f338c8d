"""Learning rates, momentum and accumulation of a run, by batch number alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

NOMINAL_BATCH = 64  # gradients are accumulated to about this many pictures before a step


def scaled_weight_decay(weight_decay: float, batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> float:
    """Weight decay for the batch that a step really sees: `wd · batch · accumulate / nominal`, YOLOv5's rule."""
    accumulate = max(round(nominal_batch / batch_size), 1)
    return weight_decay * batch_size * accumulate / nominal_batch


def lr_factor(epoch: float, epochs: int, lrf: float, cosine: bool = False) -> float:
    """Learning rate at `epoch` as a share of lr0: from 1 down to `lrf`, in a line or along half a cosine."""
    if cosine:
        return (1 - math.cos(epoch * math.pi / epochs)) / 2 * (lrf - 1) + 1
    return max(1 - epoch / epochs, 0) * (1 - lrf) + lrf


@dataclass(frozen=True)
class Step:
    """What holds for one batch: the learning rate as a share of each group's own, the momentum, the accumulation."""

    factor: float  # by epoch
    warmup: float  # 1 after the warm-up
    momentum: float
    accumulate: int  # batches a step


class Schedule:
    """Learning rates, momentum and accumulation by batch number alone, so that a resumed run needs no state.

    A group's learning rate is its own `initial_lr` times a factor that falls from 1 to `lrf`. During warm-up groups of
    the role `bias` fall from `warmup_bias_lr`, the others rise from 0, the momentum rises from `warmup_momentum`, and
    the accumulation grows from 1 to `nominal_batch / batch_size`; all linear in the number.

    Args:
        hyp: `lrf momentum warmup_epochs warmup_momentum warmup_bias_lr`.
        warmup_batches: Length of the warm-up; None: YOLOv5's `max(warmup_epochs · batches, 100)`, but never more than
            `longest_warmup` of the whole run (in YOLOv5 a short run on few pictures can be all warm-up).
        longest_warmup: That share.
    """

    def __init__(
        self,
        hyp: Mapping[str, float],
        epochs: int,
        batches_per_epoch: int,
        batch_size: int,
        cosine: bool = False,
        nominal_batch: int = NOMINAL_BATCH,
        warmup_batches: int | None = None,
        longest_warmup: float = 0.25,
    ) -> None:
        self.hyp, self.epochs, self.batches, self.cosine = dict(hyp), epochs, batches_per_epoch, cosine
        self.full_accumulate = nominal_batch / batch_size
        if warmup_batches is None:
            limit = round(longest_warmup * epochs * batches_per_epoch)
            warmup_batches = min(max(round(hyp["warmup_epochs"] * batches_per_epoch), 100), limit)
            warmup_batches = 0 if hyp["warmup_epochs"] <= 0 else warmup_batches
        self.warmup_batches = warmup_batches

    def at(self, batch: int) -> Step:
        """The step plan of batch number `batch`, counted from the start of the run."""
        factor = lr_factor(batch // self.batches, self.epochs, self.hyp["lrf"], self.cosine)
        momentum, accumulate = self.hyp["momentum"], max(round(self.full_accumulate), 1)
        if batch > self.warmup_batches or self.warmup_batches == 0:
            return Step(factor, 1.0, momentum, accumulate)
        t = batch / self.warmup_batches
        start = self.hyp["warmup_momentum"]
        accumulate = max(1, round(1 + (self.full_accumulate - 1) * t))
        return Step(factor, t, start + (momentum - start) * t, accumulate)

    def rate(self, group: Mapping, step: Step) -> float:
        """Learning rate of a parameter group under that plan."""
        lr = group["initial_lr"] * step.factor
        if step.warmup == 1:
            return lr
        start = self.hyp["warmup_bias_lr"] if group.get("role") == "bias" else 0.0
        return start + (lr - start) * step.warmup

    @property
    def steps(self) -> int:
        """About how many optimiser steps the run takes."""
        return round(self.epochs * self.batches / max(round(self.full_accumulate), 1))

    def apply(self, optimizer: torch.optim.Optimizer, batch: int) -> Step:
        """Set the optimiser for batch number `batch` (momentum, or β₁ for Adam and AdamW) and return the plan."""
        step = self.at(batch)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group, step)
            if "momentum" in group:
                group["momentum"] = step.momentum
            else:
                group["betas"] = (step.momentum, group["betas"][1])
        return step
