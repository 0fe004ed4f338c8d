"""Parameter groups, schedules, the weight average and early stopping against the reference's numbers."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from utils.dataset.config import load_hyp
from utils.system.paths import ROOT
from utils.training.average import ModelEMA, ema_constants
from utils.training.engine import Engine, NonFiniteLoss, rng_state, set_rng_state
from utils.training.fit import EarlyStopping, fit
from utils.training.optim import build_optimizer
from utils.training.schedule import Schedule, lr_factor, scaled_weight_decay

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lr_golden(golden) -> dict:
    return json.loads((golden / "lr.json").read_text())


@pytest.fixture(scope="module")
def hyp() -> dict:
    return load_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml")


def all_of(model: nn.Module) -> list[dict]:
    return [{"params": list(model.parameters()), "role": "matrix", "decay": True}]


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "linear_b32_e6", "adamw_b32", "adam_b32", "b128", "p6_single_cls_label_smoothing"]
)
def test_schedule_follows_the_reference(lr_golden, hyp, name):
    run = lr_golden["runs"][name]
    settings, scalars = run["settings"], run["scalars"]
    schedule = Schedule(
        hyp,
        settings["epochs"],
        scalars["nb"],
        settings["batch_size"],
        cosine=settings.get("cos_lr", False),
        warmup_batches=scalars["nw"],  # the reference's length; ours is shorter in so short a run
    )
    for row in run["rows"]:
        got = schedule.at(row[0])
        late = row[0] > scalars["nw"] and row[0] // scalars["nb"] > scalars["nw"] // scalars["nb"]
        # After its warm-up the reference is an epoch late: its scheduler starts counting after the first epoch. Here an
        # epoch has the learning rate that the schedule gives it.
        step = schedule.at(row[0] - scalars["nb"] if late else row[0])
        groups = [{"initial_lr": hyp["lr0"], "role": role} for role in ("bias", "matrix", "norm")]
        assert [schedule.rate(group, step) for group in groups] == pytest.approx(row[2:5], abs=1e-9)
        assert got.accumulate == row[6]
        if not settings.get("optimizer", "SGD").startswith("Adam"):  # the reference gives Adam no momentum warm-up
            assert got.momentum == pytest.approx(row[5], abs=1e-9)


def test_warmup_never_takes_more_than_a_quarter_of_the_run(hyp):
    assert Schedule(hyp, epochs=100, batches_per_epoch=200, batch_size=16).warmup_batches == 600  # 3 epochs
    assert Schedule(hyp, epochs=100, batches_per_epoch=10, batch_size=16).warmup_batches == 100  # at least 100 batches
    assert Schedule(hyp, epochs=5, batches_per_epoch=10, batch_size=16).warmup_batches == round(0.25 * 50)
    assert Schedule(hyp, 20, 30, 16, longest_warmup=0.05).warmup_batches == 30


def test_adam_warms_its_momentum_up(hyp):
    optimizer = build_optimizer(all_of(nn.Linear(2, 2)), "AdamW")
    Schedule(hyp, 100, 200, 16).apply(optimizer, 0)
    assert [g["betas"][0] for g in optimizer.param_groups] == [hyp["warmup_momentum"]]


def test_a_group_keeps_its_own_rate(hyp):
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [all_of(m)[0] | {"rate": rate} for m, rate in zip(layers, (1.0, 0.1), strict=True)]
    optimizer, schedule = build_optimizer(groups, lr=0.01), Schedule(hyp, 4, 100, 16)
    for batch in (0, 50, 399):
        schedule.apply(optimizer, batch)
        one, tenth = (g["lr"] for g in optimizer.param_groups)
        assert tenth == pytest.approx(0.1 * one)
    assert one == pytest.approx(0.01 * (0.25 * (1 - hyp["lrf"]) + hyp["lrf"]))


def test_lr_factor(lr_golden):
    g = lr_golden["lr_factor"]
    for cosine, key in ((False, "linear"), (True, "cosine")):
        got = [lr_factor(e, g["epochs"], g["lrf"], cosine) for e in range(len(g[key]))]
        assert got == pytest.approx(g[key], abs=1e-12)
    got = [lr_factor(e, 300, 0.1, True) for e in (0, 1, 150, 299)]
    assert got == pytest.approx(g["cosine_lrf0.1_epochs300_at_0_1_150_299"], abs=1e-12)


def test_weight_decay_scaling(lr_golden):
    for row in lr_golden["weight_decay_scaling"]["table_for_0.0005"]:
        assert scaled_weight_decay(5e-4, row["batch"]) == pytest.approx(row["weight_decay"], abs=1e-15)


def test_param_groups_of_yolov5s(lr_golden):
    from models.yolo import Model

    g = lr_golden["param_groups_yolov5s"]
    model = Model(ROOT / "models/yolov5s.yaml")
    bias, matrix, norm, answer = (group["params"] for group in model.parameter_groups())
    groups = bias, matrix + answer, norm  # YOLOv5's three
    names = {id(p): n for n, p in model.named_parameters()}
    assert [len(x) for x in groups] == g["counts"]
    assert [sum(p.numel() for p in x) for x in groups] == g["numel"]
    assert [[names[id(p)] for p in x[:3]] for x in groups] == g["first3_each"]
    assert [[names[id(p)] for p in x[-2:]] for x in groups] == g["last2_each"]
    optimizer = build_optimizer(model.parameter_groups(), weight_decay=5e-4)
    decays = {x["role"]: x["weight_decay"] for x in optimizer.param_groups}
    assert [decays[role] for role in ("bias", "matrix", "norm")] == g["weight_decay"]
    assert decays["answer"] == decays["matrix"]


def test_ema(lr_golden):
    g = lr_golden["ema"]
    model = nn.BatchNorm1d(2)
    ema = ModelEMA(model, g["decay0"], g["tau"])
    for updates, decay in g["decay_by_updates"].items():
        assert ema.decay_at(int(updates)) == pytest.approx(decay, abs=1e-12)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked.fill_(9)
    ema.update()
    d = ema.decay_at(1)
    assert ema.model.weight.tolist() == pytest.approx([d * 1 + (1 - d) * 3] * 2)
    assert ema.model.num_batches_tracked == 0  # integers keep their start value


def test_ema_of_a_weight_that_layers_share():
    """It has a name in each of them, and is averaged once."""
    shared = nn.PReLU()
    model = nn.ModuleList([shared, nn.PReLU(), shared])
    ema = ModelEMA(model, 0.9, 1e-9)
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    ema.update()
    assert [v.item() for v in ema.model.state_dict().values()] == pytest.approx([0.35] * 3)


def test_ema_window_is_a_twentieth_of_the_run_and_yolov5s_in_long_ones():
    assert ema_constants(200_000) == pytest.approx((0.9999, 2000))
    assert ema_constants(1_000_000) == pytest.approx((0.9999, 2000))
    decay, tau = ema_constants(1000)
    assert (1 / (1 - decay), tau) == pytest.approx((50, 10))
    assert ema_constants(3)[0] == 0  # so short a run is not averaged


def test_early_stopping(lr_golden):
    for case in lr_golden["early_stopping"]:
        stopper = EarlyStopping(case["patience"])
        assert [stopper(e, f) for e, f in enumerate(case["fitness"])] == case["stop"]
        assert stopper.best_epoch == case["best_epoch_end"]


class Sum:
    """The least a balancer can be."""

    def __init__(self):
        self.steps = 0

    def backward(self, losses, batch_size, scaler=None, present=None):
        (sum(losses) * batch_size).backward()

    def step(self, stepped=True):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def make_engine(hyp, model=None, batches=6, **kwargs) -> Engine:
    model = model or tiny()
    model(torch.zeros(2, 3, 5, 5))
    optimizer = build_optimizer(all_of(model))
    schedule = Schedule(hyp, 4, batches, 16, warmup_batches=0)
    average = ModelEMA(model, *ema_constants(schedule.steps))
    return Engine(model, optimizer, schedule, Sum(), CPU, average, **kwargs)


def batch_loss(engine: Engine, n: int) -> torch.Tensor:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(n))
    return engine.model(x).square().mean()


def run_batches(engine: Engine, first: int, stop: int, batches: int = 6) -> None:
    engine.model.train()
    for n in range(first, stop):
        engine.begin(n)
        engine.end((batch_loss(engine, n),), 4, last=n % batches == batches - 1)


def test_no_gradient_is_lost_at_the_end_of_an_epoch(hyp):
    engine = make_engine(hyp)  # 16 of 64 pictures a batch: a step every 4 batches
    run_batches(engine, 0, 4)
    assert engine.balancer.steps == 1
    run_batches(engine, 4, 6)  # the epoch ends after 2 more batches: their gradient is used
    assert engine.balancer.steps == 2
    assert all(p.grad is None for p in engine.model.parameters())


def test_accumulated_step_equals_one_large_batch(hyp):
    one, many = make_engine(hyp), make_engine(hyp)
    start = copy.deepcopy(one.model.state_dict())
    many.model.load_state_dict(start)
    for e in (one, many):
        e.model.eval()  # batch statistics would differ between the two
    many.begin(0)
    for n in range(4):
        stepped = many.end((batch_loss(many, n),), 4)
    assert stepped
    one.begin(0)
    loss = torch.stack([batch_loss(one, n) for n in range(4)]).mean()
    one.end((loss,), 16, last=True)
    for a, b in zip(one.model.parameters(), many.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert not torch.equal(a, start["3.weight"]) or a.shape != start["3.weight"].shape


def test_resumed_run_equals_the_uncut_one(hyp):
    uncut = make_engine(hyp)
    run_batches(uncut, 0, 12)
    first = make_engine(hyp)
    run_batches(first, 0, 6)
    weights, state = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.state_dict())
    second = make_engine(hyp)
    second.model.load_state_dict(weights)
    second.load_state_dict(state)
    run_batches(second, 6, 12)
    for a, b in zip(uncut.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    ema = zip(uncut.ema.model.state_dict().values(), second.ema.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in ema)


def test_the_scale_of_float16_is_resumed(hyp, tmp_path):
    first, second = (make_engine(hyp, amp_dtype=torch.float16) for _ in range(2))
    first.scaler.scale(torch.ones(1))
    first.scaler.update(1024.0)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.scaler.get_scale() == 1024 and second.scaler.state_dict() == first.scaler.state_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_names_the_batch_and_changes_nothing(hyp, value):
    engine = make_engine(hyp)
    engine.begin(0)
    before = [p.detach().clone() for p in engine.model.parameters()]
    with pytest.raises(NonFiniteLoss, match="epoch 3 batch 7"):
        engine.end((batch_loss(engine, 0) * value,), 4, last=True, where="epoch 3 batch 7")
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))


def test_non_finite_gradient_of_a_finite_loss_stops_before_the_step(hyp):
    engine = make_engine(hyp)
    engine.begin(0)
    before = [p.detach().clone() for p in engine.model.parameters()]
    loss = (engine.model[0].weight * 0).sum().sqrt()  # 0, with an infinite derivative
    with pytest.raises(NonFiniteLoss, match="gradient is not finite .* epoch 1 batch 2"):
        engine.end((loss,), 4, last=True, where="epoch 1 batch 2")
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))


def test_rng_state_is_plain_and_restores(tmp_path):
    import random

    import numpy as np

    torch.save(rng_state(CPU), tmp_path / "rng.pt")
    first = random.random(), np.random.rand(), torch.rand(1).item()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True), CPU)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


@pytest.mark.parametrize(("first", "best"), [(3, 2), (2, 0)])  # every epoch is trained; none is better for two
def test_a_run_that_was_cut_before_its_end_trains_nothing_more(hyp, first, best):
    def never(*_):
        raise AssertionError("there is nothing left to do")

    stopper = EarlyStopping(patience=1 if best == 0 else 0)
    before = EarlyStopping(stopper.patience)
    for epoch in range(first):
        before(epoch, 0.5 if epoch == best else 0.1)
    stopper.load_state_dict(before.state_dict())
    assert fit(make_engine(hyp), 3, never, never, never, never, stopper, first_epoch=first) == 0


@pytest.mark.parametrize("measured", [{}, {0: 0.5}])
def test_a_run_that_measures_seldom_goes_on(hyp, measured):
    """It is at a measurement that a run ends early: with --noval there is none, and others have one in ten epochs."""
    engine, trained = make_engine(hyp), []
    engine.balancer.end_epoch = lambda: None
    stopper, before = EarlyStopping(patience=2), EarlyStopping(patience=2)
    for epoch, fitness in measured.items():
        before(epoch, fitness)
    stopper.load_state_dict(before.state_dict())
    count = fit(
        engine, 6, lambda epoch, stop: trained.append(epoch) or {}, lambda _: None, lambda *_: None, lambda *_: None,
        stopper, first_epoch=4,
    )  # fmt: skip
    assert count == 2 and trained == [4, 5]


def test_an_epoch_that_finds_nothing_is_not_the_best(hyp):
    engine, saved = make_engine(hyp), {}
    engine.balancer.end_epoch = lambda: None
    fitness = [0.0, 0.2, 0.1]
    fit(
        engine, 3, lambda *_: {}, lambda epoch: (fitness[epoch], {}), lambda *_: None,
        lambda epoch, names: saved.update({epoch: names}), EarlyStopping(),
    )  # fmt: skip
    assert saved == {-1: ("last",), 0: ("last",), 1: ("last", "best"), 2: ("last",)}


def test_a_signal_during_validation_stops_after_the_epoch_is_saved(hyp):
    trained, saved = [], []

    def evaluate(epoch: int) -> tuple[float, dict]:
        os.kill(os.getpid(), signal.SIGINT)
        return 0.5, {}

    def train_epoch(epoch: int, stop) -> dict:
        trained.append(epoch)
        return {}

    def save(epoch: int, names: Sequence[str]) -> None:
        saved.append(epoch)

    engine = make_engine(hyp)
    engine.balancer.end_epoch = lambda: None
    with pytest.raises(KeyboardInterrupt):
        fit(engine, 3, train_epoch, evaluate, lambda *_: None, save, EarlyStopping())
    assert trained == [0] and saved == [-1, 0]


def test_the_average_has_running_statistics_too():
    model = nn.Sequential(nn.BatchNorm1d(2))
    average = ModelEMA(model, 0.5, 1e-9)
    model[0].running_mean.fill_(4.0)
    average.update()
    assert average.model[0].running_mean.tolist() == [2.0, 2.0]
