"""What every balancer shares: the protocol of the training loop, the weighted sum, and the task gradients at W.

W are the weights of the last layers that all tasks share. The gradient of each of the T tasks is taken on its own, by a
first-order backward pass that stops at W; every ten optimiser steps that is next to nothing.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

LONGEST_TRACE = 100_000  # measurements kept for `Balancer.stats`, in case nobody ever takes them


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
class Window:
    """What is collected over the micro-batches of one optimiser step."""

    due: bool  # whether task gradients are measured in it
    rows: Tensor | None = None  # [T,P]: gradients, times weight, loss scale and batch size
    scale: Tensor | float = 0.0  # sum of (loss scale * batch size)
    losses: Tensor | None = None  # [2,T]: sum of loss * pictures, sum of pictures, over batches that have the task

    def add(self, rows: Sequence[Tensor], scale: Tensor | float) -> None:
        """Take in the gradients [T,P] of one batch."""
        new = torch.stack(list(rows))
        self.rows = new if self.rows is None else self.rows + new
        self.scale = self.scale + scale


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
    needs_shared = False  # whether it works on the gradients of shared layers, and is pointless where there are none
    takes_zero = False  # whether a task weight may be 0
    home = torch.device("cpu")  # where the network is, for state that has no shared layer to be beside

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
        if not all(math.isfinite(w) and (w > 0 or w == 0 and self.takes_zero) for w in weights) or not any(weights):
            raise ValueError(
                f"task weights must be positive numbers, not {weights}; --balancer fixed alone takes a 0, which "
                "switches a task off"
            )
        if interval < 0 or interval != int(interval):
            raise ValueError(f"the measuring interval must be a whole number of optimiser steps from 0, not {interval}")
        self.num_tasks = num_tasks
        self.shared = trained(shared)
        if not all(p.is_leaf for p in self.shared):
            raise ValueError("`shared` must hold parameters, not what is computed from them")
        self.interval = int(interval)
        self.steps = 0  # optimiser steps taken
        self.skipped = 0  # measurements thrown away: gradients or losses not finite, or a skipped optimiser step
        self.epoch = 0
        self._weights = weights
        self._window: Window | None = None
        self._losses: Tensor | None = None  # [3,T] since the last measurement: loss * pictures, pictures, steps
        self._trace: deque[dict] = deque(maxlen=LONGEST_TRACE)
        self._skipped_before = 0  # by the last call of `stats`

    # ---- the protocol -------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """Task weights [T], float32 on the CPU."""
        return torch.tensor(self._weights, dtype=torch.float32)

    def combine(self, losses: Tensor | Sequence[Tensor]) -> Tensor:
        """What is minimised: sum_i w_i L_i over the weights above 0, a scalar with a graph; no side effect."""
        self._check_number(losses)
        return sum(w * loss for w, loss in zip(self._weights, losses, strict=True) if w)

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
            # Weighted, as in the main pass: float16 then overflows here only where it does there.
            weighted = [loss * (w * scale) for w, loss in zip(self._weights, losses, strict=True)]
            window.add([flat_gradient(loss, self.shared, i) for i, loss in enumerate(weighted)], scale)
        self._collect(losses, batch_size, present)
        (self.combine(losses) * scale).backward()

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
                ratios = self._rebalance(measured)
                self._trace.append(self._row(measured, ratios))

    def end_epoch(self) -> None:
        """Call at the end of each epoch, on every process, before the state is saved."""
        self.epoch += 1
        if is_distributed() and self._losses is not None:  # the first one's state is that of all in a resumed run
            self._losses = all_reduce_sum(self._losses) / dist.get_world_size()

    def stats(self) -> dict:
        """What was measured since the last call; None where nothing was.

        `grad_norms` [T] mean of ||dL_i/dW||, `cosine` its mean over the pairs of tasks, `conflict_share` the share of
        the measured pairs with a negative cosine, `measured` and `skipped` numbers of measurements, `weights` now, and
        `trace`, the measurements themselves, oldest first.

        A row of the trace is plain data: `step`, the number of optimiser steps up to and with this one; per task
        `losses` (mean since the row before), `norms`, `weights` as they are after it, and `ratios` r_i where the
        balancer has any, each None for a task that was absent; `cosines` of the pairs of tasks that were there.
        """
        rows = list(self._trace)
        self._trace.clear()
        norms = [_mean([row["norms"][i] for row in rows]) for i in range(self.num_tasks)]
        cosines = [c for row in rows for c in row["cosines"]]
        before, self._skipped_before = self._skipped_before, self.skipped
        return {
            "grad_norms": norms if any(n is not None for n in norms) else None,
            "cosine": _mean(cosines),
            "conflict_share": _mean([c < 0 for c in cosines]),
            "measured": len(rows),
            "skipped": self.skipped - before,
            "weights": list(self._weights),
            "trace": rows,
        }

    def state_dict(self) -> dict:
        """Everything that the next step depends on, and measurements that nobody took yet: plain numbers and lists."""
        return {
            "name": self.name,
            "weights": list(self._weights),
            "steps": self.steps,
            "skipped": self.skipped,
            "epoch": self.epoch,
            "losses": None if self._losses is None else self._losses.tolist(),
            "trace": list(self._trace),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()` of a balancer of the same name and number of tasks."""
        if state.get("name") != self.name:
            raise ValueError(f"the saved state is of the balancer '{state.get('name')}', this one is '{self.name}'")
        if len(state["weights"]) != self.num_tasks:
            raise ValueError(f"the saved state has {len(state['weights'])} tasks, this balancer {self.num_tasks}")
        self._weights = [float(w) for w in state["weights"]]
        self.steps, self.skipped, self.epoch = int(state["steps"]), int(state["skipped"]), int(state["epoch"])
        self._losses = None if state["losses"] is None else torch.tensor(state["losses"], device=self._device())
        self._window = None
        self._trace = deque(state.get("trace", ()), LONGEST_TRACE)  # runs before there was one have none
        self._skipped_before = self.skipped

    def __repr__(self) -> str:
        weights = ", ".join(f"{w:.4g}" for w in self._weights)
        return f"{type(self).__name__}(tasks={self.num_tasks}, weights=[{weights}], interval={self.interval})"

    # ---- for subclasses -----------------------------------------------------------------------------------------

    def _rebalance(self, measured: Measurement) -> list[float | None] | None:
        """Change the weights after a measurement; returns r_i [T] where the balancer computes them."""

    def _measures(self) -> bool:
        """Whether there is anything to measure: not where a task is switched off, since nothing meets the others."""
        return self.num_tasks > 1 and bool(self.shared) and self.interval > 0 and all(self._weights)

    def _due(self) -> bool:
        return self._measures() and self.steps % self.interval == 0

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _check_number(self, losses: Sequence[Tensor]) -> None:
        if len(losses) != self.num_tasks:
            raise ValueError(f"{len(losses)} losses given to a balancer of {self.num_tasks} tasks")

    def _device(self) -> torch.device:
        return self.shared[0].device if self.shared else self.home

    def _open_window(self) -> Window:
        if self._window is None:
            self._window = Window(due=self._due())
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
    def _measure(self, window: Window) -> Measurement | None:
        """Close a measurement: one exchange between processes, one read from the device. None if not finite."""
        rows, t = window.rows, self.num_tasks
        scale = torch.as_tensor(window.scale, dtype=torch.float32, device=rows.device).reshape(1)
        sums = torch.cat((self._losses, window.losses[1:]))
        self._losses = None
        if is_distributed():
            packed = all_reduce_sum(torch.cat((rows.flatten(), scale))) / dist.get_world_size()
            rows, scale = packed[:-1].view_as(rows), packed[-1:]
            sums = all_reduce_sum(sums)
            sums[2] /= dist.get_world_size()
        norms, cosines = gram(rows / (scale * scale.new_tensor(self._weights)[:, None]))
        # The one place where the host waits for the device.
        numbers = torch.cat((norms[None], cosines, sums.to(norms))).tolist()
        norms, cosines, (total, pictures, steps, now) = numbers[0], numbers[1 : t + 1], numbers[t + 1 :]
        if not all(map(math.isfinite, norms)):
            return None
        losses = [s / p if p > 0 else math.nan for s, p in zip(total, pictures, strict=True)]
        return Measurement(norms, cosines, losses, steps, present=[n > 0 for n in now])

    def _row(self, measured: Measurement, ratios: list[float | None] | None) -> dict:
        """The measurement as a row of the trace."""
        here = measured.present
        pairs = itertools.combinations(range(self.num_tasks), 2)
        return {
            "step": self.steps,
            "losses": [None if math.isnan(x) else x for x in measured.losses],
            "norms": [x if there else None for x, there in zip(measured.norms, here, strict=True)],
            "weights": self.weights.tolist(),
            "ratios": ratios or [None] * self.num_tasks,
            "cosines": [measured.cosines[i][j] for i, j in pairs if here[i] and here[j]],
        }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
