"""The training engine: optimiser steps, schedule, precision, weight average, and the state that a resumed run needs.

It knows nothing of boxes or pictures: a model, task losses and a balancer are all it is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from utils.system.devices import World, autocast
from utils.training.average import ModelEMA
from utils.training.schedule import Schedule, Step


class Balancer(Protocol):
    """What the engine asks of a balancer; see `utils/balancing/base.py`. A training loop also calls `end_epoch`."""

    def backward(
        self, losses: Sequence[torch.Tensor], batch_size: int, scaler: Any = None, present: Sequence[bool] | None = None
    ) -> None: ...

    def step(self, stepped: bool = True) -> None: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class NonFiniteLoss(RuntimeError):
    """A loss that is NaN or infinite; the message names the batch."""


class Engine:
    """Drives one run's optimisation.

    A batch is `step = engine.begin(n)`, the forward pass under `engine.autocast()`, `engine.end(losses, …)`.

    Args:
        model: The bare module, on its device and in its memory layout.
        optimizer: As `utils.training.optim.build_optimizer` makes it.
        schedule: Learning rates, momentum and accumulation by batch number.
        balancer: Turns task losses into gradients.
        ema: The model's weight average, which follows each step.
        amp_dtype: Autocast type; None is float32. float16 brings a gradient scaler.
        max_norm: Gradients are clipped to this norm.
        parts: Parameters that no common gradient reaches, each part clipped by its own norm, so that one cannot
            shorten the steps of another; None: all are one part.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        balancer: Balancer,
        device: torch.device,
        ema: ModelEMA,
        amp_dtype: torch.dtype | None = None,
        max_norm: float = 10.0,
        world: World | None = None,
        parts: Sequence[Sequence[nn.Parameter]] | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.balancer = model, optimizer, schedule, balancer
        self.device, self.amp_dtype, self.max_norm = device, amp_dtype, max_norm
        self.world = world or World()
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)
        self.ema = ema
        parts = [list(model.parameters())] if parts is None else parts
        self._parts = [trained for part in parts if (trained := [p for p in part if p.requires_grad])]
        self._pending = 0  # batches whose gradients wait for a step
        self._plan: Step | None = None
        optimizer.zero_grad(set_to_none=True)

    def autocast(self):
        return autocast(self.device, self.amp_dtype is not None, self.amp_dtype)

    def begin(self, batch: int) -> Step:
        """Set the optimiser for batch number `batch` of the run."""
        self._plan = self.schedule.apply(self.optimizer, batch)
        return self._plan

    def end(
        self,
        losses: Sequence[torch.Tensor],
        batch_size: int,
        present: Sequence[bool] | None = None,
        last: bool = False,
        where: str = "",
    ) -> bool:
        """Back-propagate one batch and step when enough batches have been gathered.

        Args:
            losses: One differentiable mean-per-picture loss per task.
            batch_size: Pictures in the batch over all ranks; the gradient is that of the sum over pictures.
            present: Which tasks have a label in the batch.
            last: The epoch's last batch: step now, so that no gradient is lost between epochs.
            where: Names the batch in an error.

        Returns:
            Whether the optimiser stepped.

        Raises:
            NonFiniteLoss: A loss, or without a scaler a gradient, is NaN or infinite; the weights are unchanged.
        """
        values = torch.stack([loss.detach().reshape(()) for loss in losses])
        finite = torch.isfinite(values).all()
        if self.world.distributed:  # all ranks stop together, or the others would wait for ever
            flag = finite.to(torch.int32)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
            finite = flag.bool()
        if not finite:
            own = ", ".join(f"{v:.4g}" for v in values.tolist())
            raise NonFiniteLoss(f"a loss is not finite (here {own}) in {where}")
        self.balancer.backward(losses, batch_size, self.scaler if self.scaler.is_enabled() else None, present)
        self._pending += 1
        if self._pending < self._plan.accumulate and not last:
            return False
        self._step(where)
        return True

    def _step(self, where: str) -> None:
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norms = [nn.utils.clip_grad_norm_(part, self.max_norm, foreach=True) for part in self._parts]
        norm = torch.stack([n.to(self.device) for n in norms]).norm()
        if not self.scaler.is_enabled() and not torch.isfinite(norm):  # the same on every rank: gradients are shared
            raise NonFiniteLoss(f"a gradient is not finite (norm {float(norm):.4g}) in {where}")
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)  # skipped inside when float16 overflowed
        self.scaler.update()
        stepped = not self.scaler.is_enabled() or self.scaler.get_scale() >= scale
        self.balancer.step(stepped)
        self.optimizer.zero_grad(set_to_none=True)
        self._pending = 0
        if stepped:
            self.ema.update()

    def state_dict(self) -> dict:
        """Everything besides the model's weights that a resumed run needs, as plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "balancer": self.balancer.state_dict(),
            "ema": self.ema.state_dict(),
            "rng": rng_state(self.device),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: The state is that of an earlier version, whose optimiser had other groups.
        """
        if not all("initial_lr" in group for group in state["optimizer"]["param_groups"]):
            raise ValueError("the training state is that of an earlier version, which cannot be resumed; use --weights")
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.balancer.load_state_dict(state["balancer"])
        self.ema.load_state_dict(state["ema"])
        set_rng_state(state["rng"], self.device)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch; `deterministic` also asks torch for repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def rng_state(device: torch.device) -> dict:
    """State of every random generator that training draws from, as plain values."""
    version, keys, gauss = random.getstate()
    name, words, pos, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), int(pos), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def set_rng_state(state: dict, device: torch.device) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state.get("cuda") is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if state.get("mps") is not None and device.type == "mps":
        torch.mps.set_rng_state(state["mps"].cpu())
