"""How a scalarizer or an aggregator of torchjd (https://torchjd.org) becomes a balancer of the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.balancing.base import Balancer, all_reduce_sum, flatten, is_distributed, loss_scale
from utils.balancing.torchjd_state import copied, load_module_state, module_state


class Scalarized(Balancer):
    """A function of the losses, by a scalarizer of torchjd.

    The scalarizer sees the losses' values (averaged over the processes) and gives their weights, dS/dL_i; the network
    gets the gradient of sum_i (dS/dL_i) L_i, which is that of the scalarizer. Where a task is absent from a batch, the
    scalarizer sees its last value, and nothing is learned from it.

    Args:
        name: of the balancer.
        scalarizer: a `torchjd.scalarization.Scalarizer` for T values.
        num_tasks, shared, interval: see `Balancer`.
        task_weights: factors of the losses before they reach the scalarizer; all 1 if None.
    """

    module = "scalarization"  # of torchjd

    def __init__(
        self,
        name: str,
        scalarizer: nn.Module,
        num_tasks: int,
        shared: Iterable[Tensor] = (),
        interval: int = 10,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_tasks, shared, interval, task_weights)
        self.name, self.scalarizer = name, scalarizer
        self.factors = list(self._weights)
        self._learned: list[nn.Parameter] = []  # parameters whose gradients are wanted
        self._last: Tensor | None = None  # [T] last value of each task
        self._effective: Tensor | None = None  # [T] weights of the last batch
        self._pending: list[Tensor] = []  # over the micro-batches: gradients of the parameters, sum of losses, pictures

    @property
    def weights(self) -> Tensor:
        return super().weights if self._effective is None else self._effective.detach().float().cpu()

    def combine(self, losses: Tensor | Sequence[Tensor]) -> Tensor:
        if self._effective is None:
            return super().combine(losses)
        self._check_number(losses)
        return sum(w * loss for w, loss in zip(self._effective.unbind(), losses, strict=True))

    def _weigh(self, losses: Sequence[Tensor], batch_size: int, present: Sequence[bool] | None) -> Tensor:
        """Weights [T] of a batch's losses, from the scalarizer."""
        raw = torch.stack([loss.detach().reshape(()).float() for loss in losses])
        self.scalarizer.to(raw.device)
        counts = raw.isfinite() & (raw != 0)
        if present is not None and not all(present):
            counts &= torch.tensor([bool(p) for p in present], device=raw.device)
        sums = all_reduce_sum(torch.stack((torch.where(counts, raw, 0.0), counts.float())))
        seen = sums[1] > 0
        last = torch.ones_like(raw) if self._last is None else self._last.to(raw.device)
        self._last = torch.where(seen, sums[0] / sums[1].clamp_min(1), last)

        factors = raw.new_tensor(self.factors)
        values = (self._last * factors).requires_grad_()
        out = self.scalarizer(values)
        weight, *grads = torch.autograd.grad(out, [values, *self._learned])
        grads = [torch.where(seen, g, 0.0) * batch_size for g in grads]
        new = [*grads, self._last * batch_size, raw.new_tensor(float(batch_size)), (~seen).any().float()]
        self._pending = [a + b for a, b in zip(self._pending, new, strict=True)] if self._pending else new
        if is_distributed():
            dist.broadcast(weight, 0)  # some draw their weights at random
        return weight * factors

    def backward(
        self,
        losses: Sequence[Tensor],
        batch_size: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        present: Sequence[bool] | None = None,
    ) -> None:
        self._check_number(losses)
        self._effective = self._weigh(losses, batch_size, present)
        super().backward(losses, batch_size, scaler, present)

    def step(self, stepped: bool = True) -> None:
        super().step(stepped)
        pending, self._pending = self._pending, []
        if not stepped or not pending:
            return
        *grads, losses, pictures, absent = pending
        self._learn([g / pictures for g in grads], losses / pictures, absent)

    def _learn(self, grads: list[Tensor], losses: Tensor, absent: Tensor) -> None:
        """Learn from an optimiser step.

        Args:
            grads: of the parameters `_learned`.
            losses: [T] means per picture, without the factors.
            absent: above 0 where a task was absent.
        """

    def state_dict(self) -> dict:
        state = super().state_dict() | {"scalarizer": module_state(self.scalarizer)}
        return state | {key: copied(getattr(self, key)) for key in ("_last", "_effective")}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.scalarizer.to(self._device())
        load_module_state(self.scalarizer, state["scalarizer"], self._device())
        for key in ("_last", "_effective"):
            setattr(self, key, copied(state[key], self._device()))
        self._pending = []


class Learned(Scalarized):
    """A scalarizer with parameters, which an Adam of their own trains, without decay, after each optimiser step.

    Args:
        lr: its learning rate; the others: see `Scalarized`.
    """

    def __init__(self, *args: Any, lr: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lr, self._learned = lr, list(self.scalarizer.parameters())
        self._optimizer = torch.optim.Adam(self._learned, lr=lr)

    def _learn(self, grads: list[Tensor], losses: Tensor, absent: Tensor) -> None:
        if all(bool(g.isfinite().all()) for g in grads):
            for p, g in zip(self._learned, grads, strict=True):
                p.grad = g
            self._optimizer.step()
            self._optimizer.zero_grad()

    def state_dict(self) -> dict:
        return super().state_dict() | {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._optimizer.load_state_dict(state["optimizer"])


class DWA(Scalarized):
    """Its weights follow the losses of whole epochs."""

    def end_epoch(self) -> None:
        super().end_epoch()
        self.scalarizer.step()


class FAMO(Scalarized):
    """FAMO compares the losses before and after a step on the same batch.

    To spare that second forward pass, the losses of the next optimiser step stand in for them; the noise of the batches
    cancels, as each enters twice with opposite signs.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._previous: Tensor | None = None  # [T] mean losses of the last optimiser step, times the factors

    def _learn(self, grads: list[Tensor], losses: Tensor, absent: Tensor) -> None:
        mean, absent = losses * losses.new_tensor(self.factors), bool(absent)
        if self._previous is not None and not absent:
            with torch.no_grad():
                self.scalarizer(self._previous)
            self.scalarizer.update(mean)
        self._previous = None if absent else mean

    def state_dict(self) -> dict:
        optimizer = self.scalarizer._optimizer
        famo = None if optimizer is None else optimizer.state_dict()
        return super().state_dict() | {"famo_optimizer": famo, "_previous": copied(self._previous)}

    def load_state_dict(self, state: dict) -> None:
        device = self._device()
        self.scalarizer.to(device)
        if state.get("famo_optimizer") is not None:  # a state of another balancer is refused below
            # One update that changes nothing makes FAMO create its optimiser.
            self.scalarizer(torch.ones(self.num_tasks, device=device))
            self.scalarizer.update(torch.ones(self.num_tasks, device=device))
            self.scalarizer._optimizer.load_state_dict(state["famo_optimizer"])
        super().load_state_dict(state)
        self._previous = copied(state["_previous"], device)


class Aggregated(Balancer):
    """A combination of the task gradients, by an aggregator of torchjd.

    For each batch, each task's gradient is taken with respect to all parameters, T backward passes in all. Parameters
    that only one task reaches get that task's gradient; those that several reach, the shared trunk, get the
    aggregation of their Jacobian [T, P]. Loss scaling is undone before and put back after the aggregation. Under
    distributed training the Jacobian is averaged over the processes here, since gradients that are not accumulated by
    `backward` do not pass through DistributedDataParallel. Where a task is absent from a batch, the sum is taken.

    Args:
        name: of the balancer.
        aggregator: a `torchjd.aggregation.Aggregator`.
        num_tasks, shared, interval: see `Balancer`.
        task_weights: factors of the losses; all 1 if None.
        params: all trainable parameters of the network.
        factor: of the aggregation.
    """

    module = "aggregation"  # of torchjd
    needs_shared = True

    def __init__(
        self,
        name: str,
        aggregator: nn.Module,
        num_tasks: int,
        shared: Iterable[Tensor] = (),
        interval: int = 10,
        task_weights: Sequence[float] | None = None,
        params: Iterable[Tensor] = (),
        factor: float = 1.0,
    ) -> None:
        from torchjd.aggregation import WeightedAggregator

        super().__init__(num_tasks, shared, interval, task_weights)
        self.name, self.aggregator, self.factor = name, aggregator, factor
        self.params = [p for p in params if p.requires_grad]
        self._combination: Tensor | None = None  # [T] weights of the last aggregation, where it has any
        if isinstance(aggregator, WeightedAggregator):
            aggregator.weighting.register_forward_hook(self._keep_weights)

    def _keep_weights(self, _module: nn.Module, _inputs: tuple, weights: Tensor) -> None:
        self._combination = weights.detach()

    @property
    def weights(self) -> Tensor:
        """Weights [T] that the last aggregation gave the tasks; the factors where it has none."""
        fixed = super().weights
        return fixed if self._combination is None else fixed * self._combination.float().cpu() * self.factor

    def backward(
        self,
        losses: Sequence[Tensor],
        batch_size: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        present: Sequence[bool] | None = None,
    ) -> None:
        self._check_number(losses)
        window = self._open_window()
        scale = loss_scale(scaler, losses[0]) * batch_size
        self._collect(losses, batch_size, present)
        grads = []
        for i, (loss, w) in enumerate(zip(losses, self._weights, strict=True)):
            row: Sequence[Tensor | None] = [None] * len(self.params)
            if loss.requires_grad:
                keep = i + 1 < self.num_tasks
                row = torch.autograd.grad(loss * (w * scale), self.params, retain_graph=keep, allow_unused=True)
            grads.append([None if g is None else g.detach() for g in row])
        if window.due:
            window.add([self._at_shared(row) for row in grads], scale)
        common, single = self._split(grads)
        if is_distributed():
            self._average(grads)
        for k, i in single:
            accumulate(self.params[k], grads[i][k])
        if common:
            self._aggregate(common, grads, losses, present, scale)

    def _split(self, grads: list[list[Tensor | None]]) -> tuple[list[int], list[tuple[int, int]]]:
        """Indices of the parameters that several tasks reach, and (parameter, task) of those that one reaches."""
        common, single = [], []
        for k in range(len(self.params)):
            tasks = [i for i in range(self.num_tasks) if grads[i][k] is not None]
            if len(tasks) == 1:
                single.append((k, tasks[0]))
            elif tasks:
                common.append(k)
        return common, single

    def _at_shared(self, row: list[Tensor | None]) -> Tensor:
        """A task's gradient at W [P], for the record."""
        where = {id(p): g for p, g in zip(self.params, row, strict=True)}
        return flatten([where.get(id(p)) for p in self.shared], self.shared)

    def _average(self, grads: list[list[Tensor | None]]) -> None:
        """Mean over the processes, in place, in one exchange."""
        found = [g for row in grads for g in row if g is not None]
        flat = all_reduce_sum(torch.cat([g.reshape(-1) for g in found])) / dist.get_world_size()
        for g, mean in zip(found, flat.split([g.numel() for g in found]), strict=True):
            g.copy_(mean.view(g.shape))

    def _aggregate(
        self,
        common: list[int],
        grads: list[list[Tensor | None]],
        losses: Sequence[Tensor],
        present: Sequence[bool] | None,
        scale: Tensor,
    ) -> None:
        params = [self.params[k] for k in common]
        rows = [flatten([row[k] for k in common], params) for row in grads]
        jacobian = torch.stack(rows) / scale
        # Rows of zeros are absent tasks (of all processes); solvers cannot take values that are not finite.
        largest = jacobian.abs().amax(1).tolist()
        usable = all(0 < x < float("inf") for x in largest)
        gone = present is not None and not all(present) and not is_distributed()
        total = self.aggregator(jacobian) * self.factor if usable and not gone else jacobian.sum(0)
        total = total * scale
        if is_distributed():
            dist.broadcast(total, 0)  # some draw at random
        for p, g in zip(params, total.split([p.numel() for p in params]), strict=True):
            accumulate(p, g.view(p.shape))

    def state_dict(self) -> dict:
        state = super().state_dict() | {"aggregator": module_state(self.aggregator)}
        return state | {"combination": copied(self._combination)}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        load_module_state(self.aggregator, state["aggregator"], self._device())
        self._combination = state["combination"]


class NashMTL(Aggregated):
    """Its problem is set up at step 0 of its count, so a resumed run begins that count anew."""

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.aggregator.weighting.step = 0.0


def accumulate(p: Tensor, grad: Tensor) -> None:
    """Add to `p.grad`, in the dtype and memory layout of `p`."""
    if p.grad is None:
        p.grad = torch.empty_like(p).copy_(grad)
    else:
        p.grad += grad
