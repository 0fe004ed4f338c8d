"""A small model with two tasks, and training loops for it, of one process and of two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.balancing import BALANCERS, build_balancer
from utils.system.devices import init_world, leave_world

RANDOM = ("random", "graddrop")  # rank 0 draws for all


class TwoTasks(nn.Module):
    """A trunk and two heads; the last layer of the trunk is W."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
        self.register_buffer("x", torch.randn(64, 4))
        self.register_buffer("y", torch.stack((self.x.sum(1), 3 * self.x[:, 0].sin()), 1))

    @property
    def shared(self) -> list[nn.Parameter]:
        return [self.trunk[2].weight]

    def losses(self, rows: slice = slice(None)) -> list[Tensor]:
        return self(self.x[rows], self.y[rows])

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        features = self.trunk(x).tanh()
        return [(head(features)[:, 0] - y[:, i]).square().mean() for i, head in enumerate(self.heads)]


def train(
    model: TwoTasks, balancer, steps: int, start: int = 0, micro: int = 1, scaler=None, edit=None
) -> list[Tensor]:
    """Plain SGD through the protocol; `edit(step, losses)` may change the losses. Returns the weights per step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = []
    for k in range(start, steps):
        torch.manual_seed(k)
        for part in range(micro):
            n = 64 // micro
            losses = model.losses(slice(part * n, part * n + n))
            losses = edit(k, losses) if edit else losses
            balancer.backward(losses, batch_size=n, scaler=scaler)
        for p in model.parameters():
            p.grad /= 64
        stepped = True
        if scaler is not None:
            scaler.unscale_(optimizer)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            stepped = scaler.get_scale() >= before
        else:
            optimizer.step()
        balancer.step(stepped)
        optimizer.zero_grad()
        history.append(balancer.weights)
    return history


def losses_with(w: nn.Parameter, norms: Sequence[float], values: Sequence[float]) -> list[Tensor]:
    """Scalar losses of the given values, whose gradients with respect to w [1] are the given norms; 0 is absent."""
    change = (w - w.detach()).sum()
    return [(g * change + v) if v else 0 * w.sum() for g, v in zip(norms, values, strict=True)]


def one_of_two(folder: Path) -> None:
    """Train with every balancer on half of each batch; writes FOLDER/RANK.pt: weights per step, W, cosine."""
    world = init_world(torch.device("cpu"))
    out = {}
    for name in BALANCERS:
        model = TwoTasks()
        wrapped = nn.parallel.DistributedDataParallel(model)
        try:
            balancer = build_balancer(name, 2, model.shared, model.parameters(), interval=2)
        except ValueError as error:
            if "pip install" not in str(error):
                raise
            continue  # its solver is not there
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        weights = []
        torch.manual_seed(world.rank)  # ranks draw different numbers
        for _ in range(8):
            for part in range(2):
                rows = slice(32 * part + world.rank, 32 * part + 32, 2)
                balancer.backward(wrapped(model.x[rows], model.y[rows]), batch_size=32)
            for p in model.parameters():
                p.grad /= 64
            optimizer.step()
            balancer.step()
            optimizer.zero_grad()
            weights.append(balancer.weights)
        out[name] = [torch.stack(weights), model.trunk[2].weight.detach(), balancer.stats()["cosine"]]
    torch.save(out, folder / f"{world.rank}.pt")
    leave_world(world)


def cut_of_two(folder: Path) -> list[Tensor]:
    """Two processes whose losses differ end an epoch between two measurements; each goes on, and so does a balancer
    that has the first one's saved state: the weights of both after the next measurement."""
    world = init_world(torch.device("cpu"))
    w = nn.Parameter(torch.ones(1))
    balancers = [build_balancer("gradnorm", 2, [w], init_steps=1, interval=4) for _ in range(2)]
    values = [(1.0, 1.0), (0.5 + world.rank, 0.9), (0.2, 0.3 + 0.4 * world.rank), (0.3, 0.3), (0.2, 0.2)]

    def go_on(balancer, values: Sequence[tuple[float, float]]) -> Tensor:
        for pair in values:
            balancer.backward(losses_with(w, (1.0, 2.0), pair), batch_size=2)
            balancer.step()
        return balancer.weights

    go_on(balancers[0], values[:3])
    balancers[0].end_epoch()
    if world.is_main:
        torch.save(balancers[0].state_dict(), folder / "state.pt")
    torch.distributed.barrier()
    balancers[1].load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    weights = [go_on(balancer, values[3:]) for balancer in balancers]
    leave_world(world)
    return weights
