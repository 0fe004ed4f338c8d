"""What moves the weights: parameter groups, optimisers, learning-rate schedule, weight average, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from utils.training.muon import Muon

NOMINAL_BATCH = 64  # gradients are accumulated to about this many pictures before a step
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Muon")
SHORT_RUN = 10_000  # batches
FINE_TUNING = 0.2  # share of Muon's step that weights of another model take


def choose_optimizer(name: str, nominal_batch: int, batches: int, batch_size: int) -> tuple[str, int]:
    """Optimiser and nominal batch where they are left to the program (`auto`, 0).

    A run of fewer than 10,000 batches gets Muon without accumulation: such a run ends long before SGD has converged
    (docs/training.md has the measurements). Longer runs get YOLOv5's SGD and 64 pictures.
    """
    if name == "auto":
        name = "Muon" if batches < SHORT_RUN else "SGD"
    return name, nominal_batch or (batch_size if name == "Muon" else NOMINAL_BATCH)


def scaled_weight_decay(weight_decay: float, batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> float:
    """Weight decay for the batch that a step really sees: `wd · batch · accumulate / nominal`, YOLOv5's rule."""
    accumulate = max(round(nominal_batch / batch_size), 1)
    return weight_decay * batch_size * accumulate / nominal_batch


def param_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters as YOLOv5 does: `(biases, weights, norm weights)`; only the second one decays."""
    norms = tuple(v for k, v in nn.__dict__.items() if "Norm" in k and isinstance(v, type))
    biases, weights, norm_weights = [], [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(p)
            elif name == "weight" and isinstance(module, norms):
                norm_weights.append(p)
            else:
                weights.append(p)
    return biases, weights, norm_weights


def build_optimizer(
    model: nn.Module,
    name: str = "SGD",
    lr: float = 0.01,
    momentum: float = 0.937,
    weight_decay: float = 5e-4,
    transferred: Collection[str] = (),
    fine_tuning: bool = False,
) -> torch.optim.Optimizer:
    """Optimiser with the three groups of `param_groups`, in that order.

    Args:
        name: `SGD` (Nesterov), `Adam` (decay is part of the gradient), `AdamW` (decay is decoupled from it), or `Muon`:
            orthogonal steps for weights that a norm follows, and SGD for the others, of which the weights of the
            answers (Detect's convolutions, the image branch's logits) are a fourth group.
        momentum: SGD's momentum, or β₁ of Adam and AdamW (β₂ is 0.999).
        transferred: Names of parameters that hold weights of another model: Muon moves them by `FINE_TUNING` of a step.
        fine_tuning: The run began with weights of another model: Muon's steps are orthogonal for the logits too.

    Raises:
        ValueError: An optimiser of that name is not offered.
    """
    biases, weights, norm_weights = param_groups(model)
    if name == "SGD":
        optimizer = torch.optim.SGD(biases, lr=lr, momentum=momentum, nesterov=True)
    elif name in ("Adam", "AdamW"):
        optimizer = getattr(torch.optim, name)(biases, lr=lr, betas=(momentum, 0.999), weight_decay=0.0)
    elif name == "Muon":
        optimizer = Muon(biases, lr=lr, momentum=momentum)
        # A layer without a bias is one that a norm follows; the others give the network's answers. In fine-tuning the
        # image branch has to catch up with the detector: its small task weight scales the gradient of its last layer,
        # and plain SGD would learn just as slowly. From scratch both start together (docs/training.md has figures).
        always = (nn.Linear,) if fine_tuning else ()
        orthogonal = {
            id(m.weight)
            for m in model.modules()
            if isinstance(m, always) or (getattr(m, "bias", 0) is None and getattr(m.weight, "ndim", 0) > 1)
        }
        answers = [p for p in weights if id(p) not in orthogonal]
        weights = [p for p in weights if id(p) in orthogonal]
    else:
        raise ValueError(f"--optimizer {name}: choose one of {', '.join(OPTIMIZERS)}")
    optimizer.add_param_group({"params": weights, "weight_decay": weight_decay})
    optimizer.add_param_group({"params": norm_weights, "weight_decay": 0.0})
    if name == "Muon":
        optimizer.param_groups[1]["orthogonal"] = True
        optimizer.add_param_group({"params": answers, "weight_decay": weight_decay})
        known = set(transferred)
        trained = {id(p) for name, p in model.named_parameters() if name in known}
        for p in weights:
            if id(p) in trained:
                optimizer.state[p]["share"] = FINE_TUNING
    return optimizer


def lr_factor(epoch: float, epochs: int, lrf: float, cosine: bool = False) -> float:
    """Learning rate at `epoch` as a share of lr0: from 1 down to `lrf`, in a line or along half a cosine."""
    if cosine:
        return (1 - math.cos(epoch * math.pi / epochs)) / 2 * (lrf - 1) + 1
    return max(1 - epoch / epochs, 0) * (1 - lrf) + lrf


@dataclass(frozen=True)
class Step:
    """What holds for one batch: the learning rate of each group, the momentum, and how many batches make a step."""

    lr: tuple[float, float, float]  # biases, weights, norm weights (a fourth group has that of the weights)
    momentum: float
    accumulate: int


class Schedule:
    """Learning rates, momentum and accumulation by batch number alone, so that a resumed run needs no state.

    During warm-up the bias group falls from `warmup_bias_lr`, the others rise from 0, the momentum rises from
    `warmup_momentum`, and the accumulation grows from 1 to `nominal_batch / batch_size`; all linear in the number.

    Args:
        hyp: `lr0 lrf momentum warmup_epochs warmup_momentum warmup_bias_lr`.
        warmup_batches: Length of the warm-up; None: YOLOv5's `max(warmup_epochs · batches, 100)`, but never more than
            `max_warmup` of the whole run (in YOLOv5 a short run on few pictures can be all warm-up).
    """

    max_warmup = 0.25

    def __init__(
        self,
        hyp: Mapping[str, float],
        epochs: int,
        batches_per_epoch: int,
        batch_size: int,
        cosine: bool = False,
        nominal_batch: int = NOMINAL_BATCH,
        warmup_batches: int | None = None,
    ) -> None:
        self.hyp, self.epochs, self.batches, self.cosine = dict(hyp), epochs, batches_per_epoch, cosine
        self.full_accumulate = nominal_batch / batch_size
        if warmup_batches is None:
            limit = round(self.max_warmup * epochs * batches_per_epoch)
            warmup_batches = min(max(round(hyp["warmup_epochs"] * batches_per_epoch), 100), limit)
            warmup_batches = 0 if hyp["warmup_epochs"] <= 0 else warmup_batches
        self.warmup_batches = warmup_batches

    def at(self, batch: int) -> Step:
        """The step plan of batch number `batch`, counted from the start of the run."""
        lr = self.hyp["lr0"] * lr_factor(batch // self.batches, self.epochs, self.hyp["lrf"], self.cosine)
        momentum, accumulate = self.hyp["momentum"], max(round(self.full_accumulate), 1)
        if batch > self.warmup_batches or self.warmup_batches == 0:
            return Step((lr, lr, lr), momentum, accumulate)
        t = batch / self.warmup_batches
        bias_lr = self.hyp["warmup_bias_lr"] + (lr - self.hyp["warmup_bias_lr"]) * t
        start = self.hyp["warmup_momentum"]
        accumulate = max(1, round(1 + (self.full_accumulate - 1) * t))
        return Step((bias_lr, lr * t, lr * t), start + (momentum - start) * t, accumulate)

    @property
    def steps(self) -> int:
        """About how many optimiser steps the run takes."""
        return round(self.epochs * self.batches / max(round(self.full_accumulate), 1))

    def apply(self, optimizer: torch.optim.Optimizer, batch: int) -> Step:
        """Set the optimiser for batch number `batch` (momentum, or β₁ for Adam and AdamW) and return the plan."""
        step = self.at(batch)
        lrs = step.lr + step.lr[1:2] * (len(optimizer.param_groups) - 3)  # further groups are weights
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
            if "momentum" in group:
                group["momentum"] = step.momentum
            else:
                group["betas"] = (step.momentum, group["betas"][1])
        return step


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

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, updates
        # the tensors of both sides are paired once: both modules keep theirs for life
        live, mean = model.state_dict(), self.model.state_dict()
        keys = [k for k, v in mean.items() if v.dtype.is_floating_point]
        self._live, self._mean = [live[k] for k in keys], [mean[k] for k in keys]

    def decay_at(self, updates: int) -> float:
        return self.decay * (1 - math.exp(-updates / self.tau))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present state; call after an optimiser step."""
        self.updates += 1
        torch._foreach_lerp_(self._mean, self._live, 1 - self.decay_at(self.updates))

    def state_dict(self) -> dict:
        return {"state_dict": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping) -> None:
        self.model.load_state_dict(state["state_dict"])
        self.updates = int(state["updates"])


class EarlyStopping:
    """Says when fitness has not risen for `patience` epochs; 0 never stops. A tie is no rise.

    Call it once per epoch with the epoch's number and fitness; it returns True when the run should stop.
    """

    def __init__(self, patience: int = 100) -> None:
        self.patience = patience or math.inf
        self.best_fitness, self.best_epoch = 0.0, 0

    def __call__(self, epoch: int, fitness: float) -> bool:
        if fitness > self.best_fitness:
            self.best_fitness, self.best_epoch = fitness, epoch
        return epoch - self.best_epoch >= self.patience

    def state_dict(self) -> dict:
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping) -> None:
        self.best_fitness, self.best_epoch = state["best_fitness"], state["best_epoch"]
