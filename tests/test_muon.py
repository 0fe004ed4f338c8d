"""Orthogonal steps: their size and direction, and what they bring on a problem with a known answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.yolo import Model
from utils.training.muon import Muon, orthogonalize
from utils.training.optim import FINE_TUNING, build_optimizer, choose_optimizer


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (3, 6, 20)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(x))
    assert values.min() > 0.3 and values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    alignment = (orthogonalize(x) * (u @ v)).sum() / (u @ v).square().sum()
    assert 0.6 < alignment < 1.2


def test_zero_gradient_is_no_step():
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_step_does_not_depend_on_the_size_of_the_gradient():
    weights = [nn.Parameter(torch.zeros(4, 6)) for _ in range(2)]
    g = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for w, factor in zip(weights, (1.0, 2.0**14), strict=True):
        w.grad = g * factor
        Muon([{"params": [w], "orthogonal": True}], lr=0.1).step()
    assert torch.allclose(*weights, atol=1e-3)
    assert weights[0].abs().max() > 0.01 and (weights[0] * g).sum() < 0  # downhill


def test_plain_groups_are_nesterov_sgd():
    torch.manual_seed(0)
    ours = nn.Linear(3, 2)
    theirs = copy.deepcopy(ours)
    mine = Muon(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for n in range(5):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(n))
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_roles_say_which_weights_are_orthogonalised():
    model = Model("yolov5s_dual.yaml")
    names = {id(p): name for name, p in model.named_parameters()}
    roles = {names[id(p)]: group["role"] for group in model.parameter_groups() for p in group["params"]}
    assert set(roles) == set(names.values())
    assert roles["model.0.conv.weight"] == "matrix" and roles["model.0.bn.weight"] == "norm"
    assert roles["model.24.m.0.weight"] == "answer" and roles["model.24.m.0.bias"] == "bias"
    head = next(name for name in roles if name.endswith("head.logits.weight")).removesuffix(".logits.weight")
    assert roles[f"{head}.logits.weight"] == "logits" and roles[f"{head}.hidden.weight"] == "matrix"
    assert {role for name, role in roles.items() if ".spatial." in name or ".mlp." in name} == {"answer", "bias"}
    for orthogonal in (("matrix",), ("matrix", "logits")):
        optimizer = build_optimizer(model.parameter_groups(), "Muon", weight_decay=0.1, orthogonal=orthogonal)
        turned = tuple(g["role"] for g in optimizer.param_groups if g["orthogonal"])
        assert turned == orthogonal
        still = [g["role"] for g in optimizer.param_groups if g["weight_decay"] == 0]
        assert still == ["bias", "norm"]


def test_choice_of_optimizer():
    short = {"batches": 1000, "batch_size": 16}
    assert choose_optimizer("auto", 0, **short) == ("Muon", 16)
    assert choose_optimizer("auto", 0, batches=10_000, batch_size=16) == ("SGD", 64)
    assert choose_optimizer("SGD", 32, **short) == ("SGD", 32)


def test_transferred_weights_take_smaller_steps_also_after_resume():
    def step(optimizer, model):
        before = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        return [(model[i].weight - b).norm().item() for i, b in zip((0, 2), before, strict=True)]

    def network():
        torch.manual_seed(0)
        conv = [nn.Conv2d(4, 4, 3, bias=False) for _ in range(2)]
        return nn.Sequential(conv[0], nn.ReLU(), conv[1])

    def groups(model):
        return [{"params": list(model.parameters()), "role": "matrix", "decay": True}]

    model = network()
    optimizer = build_optimizer(groups(model), "Muon", weight_decay=0.0, transferred=[model[0].weight])
    taken, new = step(optimizer, model)
    assert taken / new == pytest.approx(FINE_TUNING, rel=0.1)
    resumed = build_optimizer(
        groups(model), "Muon", weight_decay=0.0
    )  # as `--resume` does: nothing is transferred then
    resumed.load_state_dict(optimizer.state_dict())
    taken, new = step(resumed, model)
    assert taken / new == pytest.approx(FINE_TUNING, rel=0.1)


def test_orthogonal_steps_are_those_of_the_docstring():
    """Nesterov momentum, the factor of the shape, and the share of a tensor, which its decay has too."""
    torch.manual_seed(0)
    w, lr, mu, decay, share = nn.Parameter(torch.randn(6, 2)), 0.1, 0.9, 0.01, 0.5
    optimizer = Muon([{"params": [w], "orthogonal": True}], lr=lr, momentum=mu, weight_decay=decay)
    optimizer.state[w]["share"] = share
    want, v = w.detach().clone(), torch.zeros(6, 2)
    for _ in range(3):
        g = w.grad = torch.randn(6, 2)
        v = mu * v + (1 - mu) * g
        d = (1 - mu) * g + mu * v
        want = want * (1 - lr * decay * share) - lr * share * 2 * (6 / 2) ** 0.5 * orthogonalize(d)
        optimizer.step()
        assert torch.allclose(w, want, atol=1e-5)
