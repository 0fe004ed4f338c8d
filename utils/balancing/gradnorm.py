"""GradNorm (Chen et al., ICML 2018): the derivative of its loss in closed form, and the balancer that descends it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from utils.balancing.base import Balancer, Measurement, flat_gradient, trained


def gradnorm_gradient(
    weights: Sequence[float],
    norms: Sequence[float],
    ratios: Sequence[float],
    alpha: float,
    priorities: Sequence[float] | None = None,
) -> tuple[list[float], list[float]]:
    """Derivative of GradNorm's loss with respect to the task weights, in closed form.

    With G_i = w_i g_i and priorities p_i, here taken to sum to T:

        Ḡ = sum_i G_i / T,    r_i = ratio_i / (sum_j p_j ratio_j / T)
        L_grad = sum_i | G_i - p_i Ḡ r_i^alpha |,    the targets p_i Ḡ r_i^alpha being constants
        dL_grad/dw_i = sign(G_i - p_i Ḡ r_i^alpha) g_i

    because G_i is linear in w_i: no second-order graph is needed. p = 1 is the paper (section 3.1 and equation 2).

    The rest follows from what a priority should mean: a task of priority n counts as n tasks. Let task i stand n_i
    times among N = sum_i n_i tasks. The paper's mean of the ratios over the N tasks is then sum_i n_i ratio_i / N, that
    of the norms sum_i G_i / N, G_i being what all copies of i pull together, and the targets of the copies of i add up
    to n_i (sum_j G_j / N) r_i^alpha. With p_i = T n_i / N this is p_i Ḡ r_i^alpha. So Ḡ stays the plain mean of G_i,
    while the mean of the ratios is weighted by the priorities; the targets then sum to about T Ḡ (exactly so where
    alpha is 1 or the ratios are equal), and weights that sum to T can meet them.

    Args:
        weights: w [T].
        norms: g [T], ||dL_i/dW||_2 of the unweighted losses.
        ratios: L_i / L_i(0) [T], positive.
        alpha: strength of the restoring force; at 0 G_i are drawn to the proportion of the priorities.
        priorities: p [T], positive; their scale does not matter. All equal if None.

    Returns:
        dL_grad/dw [T], and the targets [T].
    """
    priorities = [1.0] * len(weights) if priorities is None else priorities
    weighted = [w * g for w, g in zip(weights, norms, strict=True)]
    mean_norm = sum(weighted) / sum(priorities)
    mean_ratio = sum(p * r for p, r in zip(priorities, ratios, strict=True)) / sum(priorities)
    targets = [p * mean_norm * (r / mean_ratio) ** alpha for p, r in zip(priorities, ratios, strict=True)]
    gradient = [
        math.copysign(g, d) if (d := wg - t) else 0.0 for wg, t, g in zip(weighted, targets, norms, strict=True)
    ]
    return gradient, targets


class GradNorm(Balancer):
    """GradNorm: task weights that keep the tasks' gradients at a common scale and their training at a common pace.

    Z. Chen, V. Badrinarayanan, C.-Y. Lee, A. Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing
    in Deep Multitask Networks", ICML 2018, section 3 and algorithm 1.

    With W the weights of the last shared layers, g_i = ||dL_i/dW||_2, G_i = w_i g_i, their mean Ḡ, priorities p_i with
    sum T, and r_i the ratio L_i / L_i(0) over the mean of these ratios (weighted by p), the weights descend

        L_grad = sum_i | G_i - p_i Ḡ r_i^alpha |,    dL_grad/dw_i = sign(G_i - p_i Ḡ r_i^alpha) g_i

    and are scaled to sum to T, so that the learning rate of the network keeps its meaning. A task that lags (r_i > 1)
    gains weight. Equal priorities are the paper's method; others say how hard the tasks may pull at W: two tasks that
    keep pace end at G_1 : G_2 = p_1 : p_2, whatever the scale of their losses (derived in `gradnorm_gradient`). Where
    this departs from, or fills in, the paper:

    * The step is taken in log w: log w_i changes by at most `lr` in the direction of the derivative, so no weight can
      reach 0 or turn negative, and the unit of the losses does not matter. It ends at the kink of L_grad, G_i = target,
      where the derivative changes its sign, so weights settle instead of jumping to and fro (truncated subgradient
      step: Asi and Duchi, SIAM J. Optim. 2019).
    * L_i(0) is the mean of the first `init_steps` optimiser steps in which the task was present, not one noisy batch.
      These steps are measured one by one, whatever the interval, so that a short run is balanced early on.
    * log g_i and log L_i are smoothed over measurements by an exponential mean with a time constant of `smoothing`
      optimiser steps, corrected for its start: single batches differ so much that the weights would follow their noise
      (the logarithm, because gradients have spikes). 0 turns it off.
    * A task that is absent from a step (no label, or a loss that is exactly 0) takes no part in that update, and the
      others share their own weight. Where a gradient or loss is not finite, the update is left out and counted.

    Args:
        num_tasks: T.
        alpha: strength of the restoring force. Higher draws tasks to equal pace more strongly; 0 only equalises norms.
        lr: largest change of log w_i by one update, before the weights are scaled to their sum.
        interval: optimiser steps from one update to the next.
        task_weights: initial weights [T], positive; scaled to sum to T.
        shared: W, the weights of the last layers that all tasks share.
        init_steps: optimiser steps over which L_i(0) is taken.
        smoothing: time constant in optimiser steps, see above.
        freeze_after: number of epochs after which the weights stay (and gradients are measured on); None never.
        floor: smallest weight that can be reached; below 1, their mean.
        priorities: p [T], positive; scaled to sum to T. All equal if None.

    Raises:
        ValueError: An option out of its range; `backward` and `update`: a loss that does not depend on all of W, or is
            negative.

    Example:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(4, 8), torch.nn.ModuleList([torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)])
        >>> optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.01)
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> y = torch.stack((x.sum(1), 10 * x[:, 0]), 1)  # the second task is a hundred times larger
        >>> balancer = GradNorm(num_tasks=2, alpha=1.5, interval=1)
        >>> for _ in range(50):
        ...     features = trunk(x).relu()
        ...     losses = [(head(features)[:, 0] - y[:, i]).square().mean() for i, head in enumerate(heads)]
        ...     weights = balancer.update(losses, shared=trunk.weight)
        ...     optimizer.zero_grad()
        ...     balancer.combine(losses).backward()
        ...     optimizer.step()
        >>> bool(weights[0] > weights[1]), round(float(weights.sum()), 4)
        (True, 2.0)

    `update` serves a loop of one batch a step. `backward` and `step` handle gradient accumulation, loss scaling and
    distributed training too (see `Balancer`).
    """

    name = "gradnorm"
    needs_shared = True

    def __init__(
        self,
        num_tasks: int,
        alpha: float = 1.5,
        lr: float = 0.2,
        interval: int = 10,
        task_weights: Sequence[float] | None = None,
        shared: Tensor | Iterable[Tensor] = (),
        init_steps: int = 10,
        smoothing: float = 30.0,
        freeze_after: int | None = None,
        floor: float = 1e-6,
        priorities: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_tasks, shared, interval, task_weights)
        if interval < 1:
            raise ValueError(f"GradNorm's interval must be at least 1 optimiser step, not {interval}")
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"GradNorm's alpha must be 0 or more, not {alpha}")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"GradNorm's lr must be positive, not {lr}")
        if not smoothing >= 0:
            raise ValueError(f"GradNorm's smoothing must be 0 or more optimiser steps, not {smoothing}")
        if init_steps < 1:
            raise ValueError(f"GradNorm's init_steps must be at least 1, not {init_steps}")
        if not 0 <= floor < 1:
            raise ValueError(f"GradNorm's floor must be in [0, 1), not {floor}")
        if freeze_after is not None and freeze_after < 1:
            raise ValueError(f"GradNorm's freeze_after must be at least 1 epoch, not {freeze_after}")
        priorities = [1.0] * num_tasks if priorities is None else [float(p) for p in priorities]
        if len(priorities) != num_tasks or not all(math.isfinite(p) and p > 0 for p in priorities):
            raise ValueError(f"GradNorm's priorities must be {num_tasks} positive numbers, not {priorities}")
        self.alpha, self.lr, self.smoothing = float(alpha), float(lr), float(smoothing)
        self.init_steps, self.freeze_after, self.floor = int(init_steps), freeze_after, float(floor)
        self.priorities = [p * num_tasks / sum(priorities) for p in priorities]
        self.updates = 0
        self._measured_at = 0  # optimiser steps taken at the last measurement
        total = sum(self._weights)
        self._weights = self._above_floor([w * num_tasks / total for w in self._weights])
        zeros = [0.0] * num_tasks
        # Exponential means of logarithms as (weighted sum, sum of weights); L(0) as (sum over steps, number of steps).
        self._moments = {k: list(zeros) for k in ("norm", "norm_weight", "loss", "loss_weight", "initial", "counted")}

    def update(self, losses: Sequence[Tensor], shared: Tensor | Iterable[Tensor] | None = None) -> Tensor:
        """Measure T gradients of `losses` at `shared` where due, and adjust the weights; counts as an optimiser step.

        Call it before the backward pass of the same losses. No `.grad` changes, and the graph stays.

        Args:
            losses: T scalars with a graph.
            shared: W, if not given to the constructor; one tensor or several.

        Returns:
            The weights [T].

        Raises:
            ValueError: No W, or none that trains; a loss that does not depend on all of W.
        """
        self._check_number(losses)
        if shared is not None:
            self.shared = trained(shared)
        if not self.shared:
            raise ValueError("GradNorm needs the parameters that the tasks share, and none that trains was given")
        window = self._open_window()
        if window.due:
            weighted = [loss * w for loss, w in zip(losses, self._weights, strict=True)]
            window.add([flat_gradient(loss, self.shared, i) for i, loss in enumerate(weighted)], 1.0)
        self._collect(losses, 1, None)
        self.step()
        return self.weights

    @property
    def frozen(self) -> bool:
        """Whether the weights stay as they are from now on."""
        return self.freeze_after is not None and self.epoch >= self.freeze_after

    @property
    def initial_losses(self) -> list[float | None]:
        """L(0) [T], None for a task that was not seen yet."""
        m = self._moments
        return [s / n if n else None for s, n in zip(m["initial"], m["counted"], strict=True)]

    def _due(self) -> bool:
        return self._measures() and (self.steps < self.init_steps or super()._due())

    def _rebalance(self, measured: Measurement) -> list[float | None] | None:
        if self.frozen:
            return None
        m, elapsed = self._moments, max(self.steps - self._measured_at, 1)
        self._measured_at = self.steps
        for i, (loss, steps) in enumerate(zip(measured.losses, measured.steps, strict=True)):
            if steps > 0 and loss > 0:
                self._smooth("loss", i, loss, elapsed)
                if m["counted"][i] < self.init_steps:
                    m["initial"][i] += loss * steps
                    m["counted"][i] += steps
            if measured.present[i] and measured.norms[i] > 0:
                self._smooth("norm", i, measured.norms[i], elapsed)
        # A gradient of exactly 0 says as little about a task as its absence.
        tasks = [i for i in range(self.num_tasks) if measured.present[i] and measured.norms[i] > 0]
        if any(measured.losses[i] < 0 for i in tasks):
            raise ValueError(f"GradNorm needs losses that are not negative, got {measured.losses}")
        if len(tasks) < 2:
            return None
        norms = [math.exp(m["norm"][i] / m["norm_weight"][i]) for i in tasks]
        ratios = [math.exp(m["loss"][i] / m["loss_weight"][i]) * m["counted"][i] / m["initial"][i] for i in tasks]
        weights = [self._weights[i] for i in tasks]
        priorities = [self.priorities[i] for i in tasks]
        gradient, targets = gradnorm_gradient(weights, norms, ratios, self.alpha, priorities)
        moved = []
        for w, g, d, target in zip(weights, norms, gradient, targets, strict=True):
            to_kink = abs(math.log(target) - math.log(w * g)) if target > 0 else math.inf  # 0 by underflow
            moved.append(w * math.exp(-math.copysign(min(self.lr, to_kink), d) if d else 0.0))
        # The tasks of this update keep the sum that they had, so all weights together always sum to T.
        share = sum(weights)
        for i, w in zip(tasks, self._above_floor([w * share / sum(moved) for w in moved]), strict=True):
            self._weights[i] = w
        self.updates += 1
        mean = sum(p * r for p, r in zip(priorities, ratios, strict=True)) / sum(priorities)
        relative = {i: r / mean for i, r in zip(tasks, ratios, strict=True)}
        return [relative.get(i) for i in range(self.num_tasks)]

    def _above_floor(self, weights: list[float]) -> list[float]:
        """`weights` with those below the floor raised to it, at the cost of the others; the sum stays."""
        total, low = sum(weights), 0
        while low < (now := sum(w <= self.floor for w in weights)) < len(weights):  # who pays may fall below it too
            low = now
            above = (total - low * self.floor) / sum(w for w in weights if w > self.floor)
            weights = [w * above if w > self.floor else self.floor for w in weights]
        return weights

    def _smooth(self, kind: str, i: int, value: float, elapsed: int) -> None:
        """Take `value`, measured `elapsed` optimiser steps after the last one, into the exponential mean of task i."""
        m, keep = self._moments, math.exp(-elapsed / self.smoothing) if self.smoothing else 0.0
        m[kind][i] = keep * m[kind][i] + (1 - keep) * math.log(value)
        m[f"{kind}_weight"][i] = keep * m[f"{kind}_weight"][i] + (1 - keep)

    def state_dict(self) -> dict:
        moments = {k: list(v) for k, v in self._moments.items()}
        return super().state_dict() | {
            "moments": moments, "updates": self.updates, "measured_at": self._measured_at,
            "priorities": list(self.priorities),
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._moments = {k: [float(x) for x in state["moments"][k]] for k in self._moments}
        self.updates, self._measured_at = int(state["updates"]), int(state.get("measured_at", state["steps"]))
        # A run goes on with the priorities that it began with; before there were any, all were equal.
        self.priorities = [float(p) for p in state.get("priorities", [1.0] * self.num_tasks)]

    def __repr__(self) -> str:
        priorities = ", ".join(f"{p:.4g}" for p in self.priorities)
        return f"{super().__repr__()[:-1]}, alpha={self.alpha:g}, priorities=[{priorities}])"
