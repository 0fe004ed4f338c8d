"""Optimisers: from the groups that a model sorts its parameters into, under the names of `--optimizer`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from utils.training.muon import Muon
from utils.training.options import OPTIMIZERS
from utils.training.schedule import NOMINAL_BATCH

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


def build_optimizer(
    groups: Sequence[dict],
    name: str = "SGD",
    lr: float = 0.01,
    momentum: float = 0.937,
    weight_decay: float = 5e-4,
    transferred: Collection[nn.Parameter] = (),
    orthogonal: Collection[str] = ("matrix",),
) -> torch.optim.Optimizer:
    """Optimiser over the groups of a model.

    Args:
        groups: As `Model.parameter_groups` makes them: `params`, their `role`, whether they `decay`, and, where it is
            not 1, their own `rate` as a multiple of `lr`.
        name: `SGD` (Nesterov), `Adam` (decay is part of the gradient), `AdamW` (decay is decoupled from it), or `Muon`:
            orthogonal steps for the groups whose role is in `orthogonal`, and SGD for the others.
        momentum: SGD's momentum, or β₁ of Adam and AdamW (β₂ is 0.999).
        transferred: Parameters that hold weights of another model: Muon moves them by `FINE_TUNING` of a step.

    Returns:
        The optimiser; each of its groups keeps its `role`, and its learning rate as `initial_lr`.

    Raises:
        ValueError: An optimiser of that name is not offered.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"--optimizer {name}: choose one of {', '.join(OPTIMIZERS)}")
    made = []
    for group in groups:
        own = lr * group.get("rate", 1.0)
        made.append({"params": group["params"], "role": group["role"], "lr": own, "initial_lr": own})
        made[-1]["weight_decay"] = weight_decay if group["decay"] else 0.0
    if name == "SGD":
        return torch.optim.SGD(made, lr=lr, momentum=momentum, nesterov=True)
    if name in ("Adam", "AdamW"):
        return getattr(torch.optim, name)(made, lr=lr, betas=(momentum, 0.999), weight_decay=0.0)
    for group in made:
        group["orthogonal"] = group["role"] in orthogonal
    optimizer, known = Muon(made, lr=lr, momentum=momentum), {id(p) for p in transferred}
    for group in made:
        if group["orthogonal"]:
            optimizer.state.update({p: {"share": FINE_TUNING} for p in group["params"] if id(p) in known})
    return optimizer
