"""Muon: momentum SGD whose steps for weight matrices are made orthogonal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from utils.system.devices import cpu_gains_from_bfloat16

# Quintic x ↦ a x + b x³ + c x⁵ whose iteration drives singular values in (0, 1] to about 1 (0.7 … 1.2).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: U Vᵀ of the singular value decomposition U S Vᵀ.

    Args:
        matrices: [..., m, n]; each by itself. Zero stays zero.
        iterations: Newton-Schulz iterations; five give singular values between about 0.7 and 1.2.

    Returns:
        The same shape and type; computed in bfloat16, which is enough for a direction, where the device is fast at it.
    """
    a, b, c = COEFFICIENTS
    fast = matrices.is_cuda or (matrices.device.type == "cpu" and cpu_gains_from_bfloat16())
    x = matrices.to(torch.bfloat16 if fast else torch.float32).reshape(-1, *matrices.shape[-2:])
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum; in groups with `orthogonal=True` the step of each weight is made orthogonal.

    For a weight seen as a matrix [out, in · k · k], with gradient g, momentum buffer v and learning rate η:

        v ← μ v + (1 − μ) g,   d = (1 − μ) g + μ v,   W ← W − η s orthogonalize(d),   s = scale · √max(1, out / in·k·k)

    so the size of a step does not depend on the size of the gradient. Groups without the flag get plain SGD:
    v ← μ v + g, W ← W − η (g + μ v). Weight decay is decoupled in the first case, part of the gradient in the second.

    `state[W]["share"]`, where it is set, multiplies the orthogonal step and its decay: weights that were trained before
    need smaller ones than new weights, and the size of the gradient, which tells plain SGD so, is lost here.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Args:
        params: Parameters or groups.
        lr: η.
        momentum: μ.
        scale: Ratio of the learning rate of orthogonal steps to that of plain ones.
    """

    def __init__(
        self, params: Iterable, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0, scale: float = 2.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "scale": scale, "orthogonal": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._orthogonal if group["orthogonal"] else self._plain)(group, params)
        return loss

    def _buffers(self, params: list[Tensor]) -> list[Tensor]:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return [self.state[p]["momentum_buffer"] for p in params]

    def _plain(self, group: dict, params: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        buffers = self._buffers(params)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        steps = torch._foreach_add(grads, buffers, alpha=group["momentum"])
        torch._foreach_add_(params, steps, alpha=-group["lr"])

    def _orthogonal(self, group: dict, params: list[Tensor]) -> None:
        grads, buffers, momentum = [p.grad for p in params], self._buffers(params), group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        directions = torch._foreach_lerp(grads, buffers, momentum)
        shares = [self.state[p].get("share", 1.0) for p in params]
        torch._foreach_mul_(params, [1 - group["lr"] * group["weight_decay"] * share for share in shares])
        same_shape = defaultdict(list)  # one batch of matrices a shape: a network repeats its layers
        for p, d, share in zip(params, directions, shares, strict=True):
            same_shape[p.shape].append((p, d, share))
        for shape, members in same_shape.items():
            rows, columns = shape[0], shape[1:].numel()
            stacked = torch.stack([d.reshape(rows, columns) for _, d, _ in members])
            size = group["lr"] * group["scale"] * max(1.0, rows / columns) ** 0.5
            for (p, _, share), d in zip(members, orthogonalize(stacked), strict=True):
                p.add_(d.view(shape), alpha=-size * share)
