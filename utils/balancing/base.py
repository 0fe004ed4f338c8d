"""What every balancer shares: the protocol of the training loop, the weighted sum, and the task gradients at W.

W are the weights of the last layers that all tasks share. With T tasks, losses L_i and weights w_i, the main backward
pass leaves sum_i w_i dL_i/dW in `W.grad`. So only T - 1 task gradients have to be taken on their own, each by a
first-order backward pass that stops at W; the last one follows by subtraction. The task left to the subtraction is the
one with the largest weighted norm, because there the rounding of the others can do no harm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over the processes, bit-equal on all of them; `x` itself where there is only one."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def loss_scale(scaler: torch.amp.GradScaler | None, like: Tensor) -> Tensor:
    """The factor that `scaler` applies to losses, as a tensor on the device of `like`, without waiting for it."""
    one = torch.ones((), dtype=torch.float32, device=like.device)
    return scaler.scale(one) if scaler is not None and scaler.is_enabled() else one


def flat_gradient(loss: Tensor, shared: Sequence[Tensor], task: int = 0) -> Tensor:
    """Gradient of a scalar with respect to `shared` as one float32 vector [P]; keeps the graph. 0 without a graph.

    Raises:
        ValueError: The loss has a graph that does not reach all of `shared`, so these are not layers that tasks share.
    """
    grads: Sequence[Tensor | None] = [None] * len(shared)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        if missed := [i for i, g in enumerate(grads) if g is None]:
            raise ValueError(
                f"the loss of task {task} does not depend on shared[{missed[0]}], {tuple(shared[missed[0]].shape)}: "
                "`shared` are the weights of the last layers that all tasks have in common"
            )
    return flatten(grads, shared)


def trained(shared: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The tensors of `shared`, one or several, that are not frozen."""
    return [p for p in ((shared,) if isinstance(shared, Tensor) else shared) if p.requires_grad]


def flatten(grads: Iterable[Tensor | None], shared: Sequence[Tensor]) -> Tensor:
    """Gradients of `shared` as one float32 vector [P], a copy; None counts as 0."""
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, shared, strict=True)]
    return torch.cat([g.detach().reshape(-1).float() for g in parts])


def gram(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Norms [T] and pairwise cosines [T,T] of `rows` [T,P], whatever their scale (no overflow or underflow)."""
    peak = rows.abs().amax(1, keepdim=True)
    unit = rows / torch.where(peak > 0, peak, torch.ones_like(peak))
    product = unit @ unit.T
    length = product.diagonal().sqrt()
    cosine = product / (length[:, None] * length).clamp_min(torch.finfo(rows.dtype).tiny)
    return peak[:, 0] * length, cosine


@dataclass
class Measurement:
    """Task gradients of one optimiser step, means over its pictures and over all processes."""

    norms: list[float]  # ||dL_i/dW||_2, unweighted
    cosines: list[list[float]]
    losses: list[float]  # mean since the last measurement; NaN where the task was absent all that time
    steps: list[float]  # optimiser steps in which the task was present since the last measurement
    present: list[bool]  # whether this step's batches had the task


@dataclass
class _Window:
    """What is collected over the micro-batches of one optimiser step."""

    due: bool
    derived: int | None  # the task whose gradient is left to the subtraction
    before: Tensor | None = None  # W.grad before the first micro-batch
    total: Tensor | None = None  # change of W.grad since then
    rows: dict[int, Tensor] = field(default_factory=dict)  # task -> gradient, times weight, scale and batch size
    scale: Tensor | float = 0.0  # sum of (loss scale * batch size)
    losses: Tensor | None = None  # [2,T]: sum of loss * pictures, sum of pictures, over batches that have the task


class Balancer:
    """Base of the balancers, and the protocol that a training loop follows:

        balancer.backward(losses, batch_size, scaler)   # in place of loss.backward(), once a batch
        balancer.step(stepped)                          # after each optimiser step, or skipped one
        balancer.end_epoch()

    This class sums the losses with constant weights, and measures the task gradients at `shared` every `interval`
    optimiser steps. Gradients and losses of all micro-batches of an optimiser step belong to one measurement, weighted
    by their pictures: that is what one large batch would have given.

    Args:
        num_tasks: T.
        shared: W, parameters that every task's loss depends on; those that are frozen are left out. Nothing is
            measured where none is left.
        interval: optimiser steps from one measurement to the next; 0 measures never.
        task_weights: initial weights [T], positive; all 1 if None.

    Raises:
        ValueError: A number of tasks, an interval or weights that make no sense; `shared` that are no parameters.
    """

    name = "balancer"

    def __init__(
        self,
        num_tasks: int,
        shared: Tensor | Iterable[Tensor] = (),
        interval: int = 10,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        weights = [1.0] * num_tasks if task_weights is None else [float(w) for w in task_weights]
        if num_tasks < 1:
            raise ValueError(f"a balancer needs at least one task, not {num_tasks}")
        if len(weights) != num_tasks:
            raise ValueError(f"{len(weights)} task weights given for {num_tasks} tasks: give one for each")
        if not all(math.isfinite(w) and w > 0 for w in weights):
            raise ValueError(f"task weights must be positive numbers, not {weights}")
        if interval < 0 or interval != int(interval):
            raise ValueError(f"the measuring interval must be a whole number of optimiser steps from 0, not {interval}")
        self.num_tasks = num_tasks
        self.shared = trained(shared)
        if not all(p.is_leaf for p in self.shared):
            raise ValueError("`shared` must hold parameters, not what is computed from them: their `.grad` is read")
        self.interval = int(interval)
        self.steps = 0  # optimiser steps taken
        self.skipped = 0  # measurements thrown away: gradients or losses not finite, or a skipped optimiser step
        self.epoch = 0
        self._weights = weights
        self._derived: int | None = None
        self._window: _Window | None = None
        self._losses: Tensor | None = None  # [3,T] since the last measurement: loss * pictures, pictures, steps
        self._reset_stats()

    # ---- the protocol -------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """Task weights [T], float32 on the CPU."""
        return torch.tensor(self._weights, dtype=torch.float32)

    def combine(self, losses: Tensor | Sequence[Tensor]) -> Tensor:
        """sum_i w_i L_i with constant weights: a scalar with the graph of the losses; no side effect."""
        self._check_number(losses)
        return sum(w * loss for w, loss in zip(self._weights, losses, strict=True))

    def backward(
        self,
        losses: Sequence[Tensor],
        batch_size: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        present: Sequence[bool] | None = None,
    ) -> None:
        """Add the gradient of `batch_size * combine(losses)` to `.grad`, and measure task gradients where due.

        Args:
            losses: T scalars with a graph, means per picture.
            batch_size: pictures of the batch; under distributed training, where gradients are averaged, those of all
                processes. It weights the micro-batches of an optimiser step.
            scaler: scales the loss, as for `scaler.scale(loss).backward()`; measured gradients are unscaled.
            present: which tasks have a label in this batch; a task whose loss is exactly 0 never counts as present.
        """
        self._check_number(losses)
        window = self._open_window()
        scale = loss_scale(scaler, losses[0]) * batch_size
        if window.due:
            if window.derived is not None and window.before is None:
                window.before = flatten([p.grad for p in self.shared], self.shared)
            for i, loss in enumerate(losses):
                if i != window.derived:
                    # Weighted, as in the main pass: float16 then overflows here only where it does there.
                    row = flat_gradient(loss * (self._weights[i] * scale), self.shared, i)
                    window.rows[i] = window.rows[i] + row if i in window.rows else row
            window.scale = window.scale + scale
        self._collect(losses, batch_size, present)
        (self._objective(losses) * scale).backward()
        if window.due and window.derived is not None:
            window.total = flatten([p.grad for p in self.shared], self.shared) - window.before

    def step(self, stepped: bool = True) -> None:
        """Close the optimiser step: `stepped` is False where it was skipped or its gradients were thrown away."""
        window, self._window = self._window, None
        if window is None:
            return
        if not stepped:
            self.skipped += window.due
            return
        self.steps += 1
        if window.losses is not None:
            new = torch.cat((window.losses, (window.losses[1:] > 0).to(window.losses)))
            self._losses = new if self._losses is None else self._losses.to(new.device) + new
        if window.due:
            measured = self._measure(window)
            if measured is None:
                self.skipped += 1
            else:
                self._record(measured)
                self._rebalance(measured)

    def end_epoch(self) -> None:
        """Call at the end of each epoch."""
        self.epoch += 1

    def stats(self) -> dict:
        """What was measured since the last call; None where nothing was.

        `grad_norms` [T] mean of ||dL_i/dW||, `cosine` its mean over the pairs of tasks, `conflict_share` the share of
        the measured pairs with a negative cosine, `measured` and `skipped` numbers of measurements, `weights` now.
        """
        s = self._stats
        norms = [n / c if c else None for n, c in zip(s["norms"], s["seen"], strict=True)]
        out = {
            "grad_norms": norms if any(n is not None for n in norms) else None,
            "cosine": s["cosine"] / s["pairs"] if s["pairs"] else None,
            "conflict_share": s["conflicts"] / s["pairs"] if s["pairs"] else None,
            "measured": s["measured"],
            "skipped": self.skipped - s["skipped_before"],
            "weights": list(self._weights),
        }
        self._reset_stats()
        return out

    def state_dict(self) -> dict:
        """Everything that the next step depends on, plain numbers and lists."""
        return {
            "name": self.name,
            "weights": list(self._weights),
            "steps": self.steps,
            "skipped": self.skipped,
            "epoch": self.epoch,
            "derived": self._derived,
            "losses": None if self._losses is None else self._losses.tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()` of a balancer of the same name and number of tasks."""
        if state.get("name") != self.name:
            raise ValueError(f"the saved state is of the balancer '{state.get('name')}', this one is '{self.name}'")
        if len(state["weights"]) != self.num_tasks:
            raise ValueError(f"the saved state has {len(state['weights'])} tasks, this balancer {self.num_tasks}")
        self._weights = [float(w) for w in state["weights"]]
        self.steps, self.skipped, self.epoch = int(state["steps"]), int(state["skipped"]), int(state["epoch"])
        self._derived = state["derived"]
        self._losses = None if state["losses"] is None else torch.tensor(state["losses"], device=self._device())
        self._window = None
        self._reset_stats()

    def __repr__(self) -> str:
        weights = ", ".join(f"{w:.4g}" for w in self._weights)
        return f"{type(self).__name__}(tasks={self.num_tasks}, weights=[{weights}], interval={self.interval})"

    # ---- for subclasses -----------------------------------------------------------------------------------------

    def _objective(self, losses: Sequence[Tensor]) -> Tensor:
        """The scalar that is minimised, per picture."""
        return self.combine(losses)

    def _rebalance(self, measured: Measurement) -> None:
        """Change the weights after a measurement."""

    def _measures(self) -> bool:
        return self.num_tasks > 1 and bool(self.shared) and self.interval > 0

    def _due(self) -> bool:
        return self._measures() and self.steps % self.interval == 0

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _check_number(self, losses: Sequence[Tensor]) -> None:
        if len(losses) != self.num_tasks:
            raise ValueError(f"{len(losses)} losses given to a balancer of {self.num_tasks} tasks")

    def _device(self) -> torch.device:
        return self.shared[0].device if self.shared else torch.device("cpu")

    def _open_window(self) -> _Window:
        if self._window is None:
            self._window = _Window(due=self._due(), derived=self._derived)
        return self._window

    @torch.no_grad()
    def _collect(self, losses: Sequence[Tensor], batch_size: int, present: Sequence[bool] | None) -> None:
        """Add the losses of a batch to the window, leaving out tasks that are absent or not finite."""
        if not self._measures():
            return
        values = torch.stack([loss.detach().reshape(()).float() for loss in losses])
        counts = values.isfinite() & (values != 0)
        if present is not None and not all(present):
            counts &= torch.tensor([bool(p) for p in present], device=values.device)
        pictures = counts * float(batch_size)
        new = torch.stack((torch.where(counts, values, 0.0) * batch_size, pictures))
        window = self._window
        window.losses = new if window.losses is None else window.losses + new

    @torch.no_grad()
    def _measure(self, window: _Window) -> Measurement | None:
        """Close a measurement: one exchange between processes, one read from the device. None if not finite."""
        rows = [window.rows[i] for i in sorted(window.rows)]
        if window.derived is not None:
            rows.append(window.total)
        scale = torch.as_tensor(window.scale, dtype=torch.float32, device=rows[0].device).reshape(1)
        sums = torch.cat((self._losses, window.losses[1:]))
        self._losses = None
        if is_distributed():
            # W.grad may already be the mean over the processes; averaging it once more changes nothing.
            packed = all_reduce_sum(torch.cat((*rows, scale))) / dist.get_world_size()
            *rows, scale = packed.split([len(rows[0])] * len(rows) + [1])
            sums = all_reduce_sum(sums)
            sums[2] /= dist.get_world_size()
        if window.derived is not None:
            total = rows.pop()
            rows.insert(window.derived, total - sum(rows))
        norms, cosines = gram(torch.stack(rows) / (scale * scale.new_tensor(self._weights)[:, None]))
        # The one place where the host waits for the device.
        numbers = iter(torch.cat((norms, cosines.reshape(-1), sums.reshape(-1).to(norms))).tolist())
        t = self.num_tasks
        norms, *cosines = (list(itertools.islice(numbers, t)) for _ in range(t + 1))
        total_loss, pictures, steps, now = (list(itertools.islice(numbers, t)) for _ in range(4))
        if not all(map(math.isfinite, norms)):
            self._derived = None
            return None
        weighted = [w * n for w, n in zip(self._weights, norms, strict=True)]
        self._derived = max(range(t), key=weighted.__getitem__)
        losses = [s / p if p > 0 else math.nan for s, p in zip(total_loss, pictures, strict=True)]
        return Measurement(norms, cosines, losses, steps, present=[n > 0 for n in now])

    def _record(self, measured: Measurement) -> None:
        s = self._stats
        s["measured"] += 1
        for i, here in enumerate(measured.present):
            if here:
                s["norms"][i] += measured.norms[i]
                s["seen"][i] += 1
        for i, j in itertools.combinations(range(self.num_tasks), 2):
            if measured.present[i] and measured.present[j]:
                s["cosine"] += measured.cosines[i][j]
                s["conflicts"] += measured.cosines[i][j] < 0
                s["pairs"] += 1

    def _reset_stats(self) -> None:
        zeros = [0.0] * self.num_tasks
        self._stats = {"norms": zeros, "seen": [0] * self.num_tasks, "cosine": 0.0, "conflicts": 0, "pairs": 0}
        self._stats |= {"measured": 0, "skipped_before": self.skipped}
