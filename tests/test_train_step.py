"""Three optimiser steps of yolov5n on a fixed batch against the reference: model, loss, optimiser, weight average."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch

from models.yolo import Model
from utils.balancing import Fixed
from utils.loss import ComputeJointLoss
from utils.training.average import ModelEMA
from utils.training.optim import build_optimizer


@torch.no_grad()
def set_weights_by_recipe(model: Model) -> None:
    """Weights that depend on the state-dict keys alone (recipe R1 of the reference numbers)."""
    head = f"model.{len(model.model) - 1}."
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.zero_()
            continue
        if key.endswith(("anchors", "anchor_grid")):
            continue
        u = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF).random_sample(value.numel())
        if key.endswith("running_mean"):
            u = (u - 0.5) * 0.2
        elif key.endswith("running_var"):
            u = 0.8 + 0.4 * u
        elif value.ndim == 4:
            gain = 0.4 if key.startswith(head) else 1.5
            u = (2 * u - 1) * gain * np.sqrt(3 / np.prod(value.shape[1:]))
        elif key.endswith("bias"):
            u = (u - 0.5) * 2 if key.startswith(head) else u - 0.5
        else:
            u = 0.8 + 0.4 * u
        value.copy_(torch.from_numpy(u.astype(np.float32)).view(value.shape))


@pytest.mark.slow
def test_three_steps_follow_the_reference(golden):
    facts = json.loads((golden / "train_step.json").read_text())
    hyp = json.loads((golden / "loss.json").read_text())["hyp_scratch_low"]
    hyp = hyp | {"cls": hyp["cls"] * 4 / 80, "obj": hyp["obj"] * (128 / 640) ** 2}
    model = Model("yolov5n.yaml", nc=4).train()
    set_weights_by_recipe(model)
    model.hyp = hyp
    optimizer = build_optimizer(model.parameter_groups(), "SGD", lr=0.01, momentum=0.937, weight_decay=5e-4)
    assert [len(g["params"]) for g in optimizer.param_groups] == [60, 57, 57, 3]  # Detect's are the last
    ema = ModelEMA(model)
    balancer = Fixed(1)
    criterion = ComputeJointLoss(model)
    images = torch.from_numpy(np.random.RandomState(104).random_sample(4 * 3 * 128 * 128).astype(np.float32))
    images, targets = images.view(4, 3, 128, 128), torch.tensor(facts["targets"])

    for i, step in enumerate(facts["float32"]["steps"]):
        losses = criterion(model(images), targets, None)
        got = [4 * losses.tasks["det"].item(), *(losses.parts[k].item() for k in ("box", "obj", "cls"))]
        np.testing.assert_allclose(got, [step[k] for k in ("total", "lbox", "lobj", "lcls")], rtol=1e-4)
        balancer.backward([losses.tasks["det"]], batch_size=4)
        if i == 0:
            for name, p in model.named_parameters():
                want = facts["float32"]["grad_norm_per_param_step0"][name]
                assert p.grad.norm().item() == pytest.approx(want, rel=1e-3), name
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], rel=1e-3)
        optimizer.step()
        balancer.step()
        optimizer.zero_grad()
        ema.update()

        tolerance = {"rtol": 1e-4 if i == 0 else 1e-3, "atol": 1e-6}
        for probe, state in (("probe", model.state_dict()), ("ema_probe", ema.model.state_dict())):
            for name, values in step[probe].items():
                np.testing.assert_allclose(
                    state[name].flatten()[:4], values, err_msg=f"{i} {probe} {name}", **tolerance
                )
        total = sum(p.detach().double().abs().sum().item() for p in model.parameters())
        assert total == pytest.approx(step["param_abs_sum"], rel=1e-6)
