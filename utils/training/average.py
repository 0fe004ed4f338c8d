"""The weight average that is validated and saved in place of the weights of the last step."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn

from utils.system.devices import World


def ema_constants(updates: int) -> tuple[float, float]:
    """Decay and tau of the weight average for a run of so many optimiser steps.

    YOLOv5 averages over about the last 10,000 steps (decay 0.9999, tau 2000), which suits runs of 200,000 steps and
    more. In a shorter run its average never leaves the ramp and is hardly one; here both constants shrink with the
    run, so that the window is 5 % of it.
    """
    window = min(max(0.05 * updates, 1.0), 10_000.0)
    return 1 - 1 / window, 0.2 * window


class ModelEMA:
    """Exponential moving average of everything floating in a model's state (weights and BN statistics).

    `average ← d · average + (1 − d) · model` with `d = decay · (1 − exp(−updates / tau))`, so that the average follows
    closely at the start of a run. Integer buffers keep the value that they had at the start.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, 0
        # the tensors of both sides are paired once: both modules keep theirs for life
        live, mean = model.state_dict(), self.model.state_dict()
        once = {v.data_ptr() or k: k for k, v in mean.items()}.values()  # one that layers share has a name in each
        keys = [k for k in once if mean[k].dtype.is_floating_point]
        self._live, self._mean = [live[k] for k in keys], [mean[k] for k in keys]

    def decay_at(self, updates: int) -> float:
        return self.decay * (1 - math.exp(-updates / self.tau))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present state; call after an optimiser step."""
        self.updates += 1
        torch._foreach_lerp_(self._mean, self._live, 1 - self.decay_at(self.updates))

    def share(self, world: World) -> None:
        """Rank 0's average on every rank: each saw other pictures, so their batch norms' statistics differ."""
        if not world.distributed:
            return
        flat = torch.cat([mean.reshape(-1) for mean in self._mean])
        torch.distributed.broadcast(flat, 0)
        for mean, part in zip(self._mean, flat.split([mean.numel() for mean in self._mean]), strict=True):
            mean.copy_(part.view_as(mean))

    def state_dict(self) -> dict:
        return {"state_dict": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping) -> None:
        self.model.load_state_dict(state["state_dict"])
        self.updates = int(state["updates"])
