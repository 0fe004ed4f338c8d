"""Optimisers of temporal detection: the published AdamW, and Muon for small networks from scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from tad.model import TadModel
from utils.training.muon import Muon

BETAS, EPS = (0.9, 0.999), 1e-8
MOMENTUM = 0.9  # of Muon
PLAIN = ("cls_head", "reg_head", "_conv.conv", "dwconv", "scale")  # answers, depthwise filters and factors: no matrices


class MuonAdam(Muon):
    """Muon whose other groups take AdamW's steps instead of plain momentum.

    A network from scratch meets the few pixels that matter as a weak direction of its gradients, next to strong ones
    that tell nothing; orthogonal steps take both alike. Answers, norms and factors keep Adam's steps.
    """

    def _plain(self, group: dict, params: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p] |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        means, squares = ([self.state[p][k] for p in params] for k in ("mean", "square"))
        torch._foreach_lerp_(means, grads, 1 - BETAS[0])
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - BETAS[1])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, mean, square in zip(params, means, squares, strict=True):
            first, second = (1 - beta ** self.state[p]["step"] for beta in BETAS)
            p.addcdiv_(mean, (square / second).sqrt_().add_(EPS), value=-group["lr"] / first)


def build_optimizer(model: TadModel) -> torch.optim.Optimizer:
    """The optimiser that the configuration asks for; every group keeps its base rate as `initial_lr`."""
    c = model.config
    if c.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameter_groups(), betas=BETAS, eps=EPS)
    else:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if p.ndim > 1 and not any(word in name for word in PLAIN)]
        ids = {id(p) for p in matrices}
        others = [p for _, p in trained if id(p) not in ids]
        groups = [
            {"params": matrices, "lr": c.muon_lr, "weight_decay": c.weight_decay, "orthogonal": True},
            {"params": others, "lr": c.lr, "weight_decay": c.weight_decay},
        ]
        optimizer = MuonAdam(groups, momentum=MOMENTUM)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
