"""Learning rates: a linear warm-up, then half a cosine, by the number of the batch alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

FINAL = 1e-8


class Step(NamedTuple):
    """What holds for one batch: every batch is a step."""

    accumulate: int = 1


def learning_rate(base: float, batch: int, warmup: int, total: int) -> float:
    """The rate of batch number `batch`, counted from 0: it starts at 0 and is `base` after `warmup` batches."""
    if batch < warmup:
        return base * batch / max(warmup - 1, 1)
    share = (batch - warmup) / max(total - warmup, 1)
    return FINAL + (base - FINAL) * (1 + math.cos(math.pi * share)) / 2


class WarmupCosine:
    """Sets the rates of an optimiser whose groups keep their base rate as `initial_lr`.

    Args:
        batches: Batches of an epoch.
        warmup_epochs, schedule_epochs: Length of the warm-up, and of the whole curve (training may end before).
        epochs: Epochs of the run.
    """

    def __init__(self, batches: int, warmup_epochs: float, schedule_epochs: int, epochs: int) -> None:
        self.warmup_batches = round(warmup_epochs * batches)
        self.total = max(schedule_epochs, epochs) * batches
        self.steps = epochs * batches

    def apply(self, optimizer: torch.optim.Optimizer, batch: int) -> Step:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(group["initial_lr"], batch, self.warmup_batches, self.total)
        return Step()
