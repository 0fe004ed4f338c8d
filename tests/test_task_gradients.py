"""What is measured at W: which tensors W may hold, what an optimiser step collects, the trace; tasks switched off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from two_tasks import TwoTasks, train

from utils.balancing import Fixed, GradNorm, build_balancer


def test_w_may_be_one_tensor_or_several():
    a, b = TwoTasks(), TwoTasks()
    one, several = GradNorm(2, interval=1), GradNorm(2, interval=1)
    for _ in range(5):
        one.update(a.losses(), shared=a.trunk[2].weight)
        several.update(b.losses(), shared=b.shared)
    assert (
        one.updates == 5 and torch.equal(one.weights, several.weights) and not torch.equal(one.weights, torch.ones(2))
    )
    assert len(GradNorm(2, shared=a.trunk[2].weight).shared) == 1


def test_weights_that_the_tasks_do_not_share_are_refused():
    model = TwoTasks()
    heads = [head.weight for head in model.heads]
    with pytest.raises(ValueError, match=r"task 0 does not depend on shared\[1\]"):
        GradNorm(2).update(model.losses(), shared=heads)
    with pytest.raises(ValueError, match=r"shared\[1\]"):
        Fixed(2, heads, interval=1).backward(model.losses())
    with pytest.raises(ValueError, match="parameters"):
        GradNorm(2, shared=model.trunk(model.x))


def test_the_first_steps_are_measured_one_by_one_and_then_every_interval():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=5, init_steps=4, smoothing=0)
    history = train(model, balancer, 14, micro=2)
    changes = [0] + [k for k in range(1, 14) if not torch.equal(history[k], history[k - 1])]
    assert changes == [0, 1, 2, 3, 5, 10] and balancer.updates == 6
    assert balancer.state_dict()["moments"]["counted"] == [4, 4]


def test_smoothing_counts_optimiser_steps():
    """What a measurement weighs after s steps is exp(-s / smoothing), whatever the interval."""
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=10, init_steps=1, smoothing=20)
    train(model, balancer, 11)
    new = 1 - math.exp(-10 / 20)
    first = 1 - math.exp(-1 / 20)
    assert balancer.state_dict()["moments"]["norm_weight"][0] == pytest.approx(first * math.exp(-10 / 20) + new)


def test_a_loss_that_is_not_finite_between_measurements_does_not_spoil_the_next_one():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=5, init_steps=1)
    for k in range(6):
        losses = model.losses()
        if k == 2:  # a step that the loop throws away, as float16's scaler does
            balancer.backward([losses[0] * math.nan, losses[1]])
            model.zero_grad()
            balancer.step(stepped=True)
            continue
        balancer.backward(losses)
        model.zero_grad()
        balancer.step()
    assert balancer.updates == 2 and all(math.isfinite(x) for x in balancer.state_dict()["moments"]["loss"])
    assert torch.isfinite(balancer.weights).all()


def test_micro_batches_of_unequal_size_are_weighted_by_their_pictures():
    rows = [slice(0, 8), slice(8, 64)]
    whole, parts = TwoTasks(), TwoTasks()
    balancers = [GradNorm(2, shared=m.shared, interval=1, init_steps=2) for m in (whole, parts)]
    for _ in range(3):
        balancers[0].backward(whole.losses(), batch_size=64)
        for r in rows:
            balancers[1].backward(parts.losses(r), batch_size=r.stop - r.start)
        for model, balancer in zip((whole, parts), balancers, strict=True):
            balancer.step()
            model.zero_grad()
    assert balancers[1].initial_losses == pytest.approx(balancers[0].initial_losses, rel=1e-5)
    torch.testing.assert_close(balancers[1].weights, balancers[0].weights, rtol=1e-4, atol=0)
    norms = [b.stats()["grad_norms"] for b in balancers]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_no_weight_falls_below_the_floor():
    p = nn.Parameter(torch.ones(1))
    balancer = GradNorm(2, shared=p, interval=1, floor=0.1, lr=1.0, smoothing=0)
    for _ in range(20):
        balancer.backward([p.sum() * 1e6, p.sum()])
        balancer.step()
    assert balancer.weights.tolist() == pytest.approx([0.1, 1.9])
    start = GradNorm(3, task_weights=(1e-9, 1e-9, 1.0), floor=1e-3)
    assert start.weights.tolist() == pytest.approx([1e-3, 1e-3, 2.998])
    start = GradNorm(3, task_weights=(1, 8, 12), floor=0.9)  # the second pays for the first, and falls below it
    assert start.weights.tolist() == pytest.approx([0.9, 0.9, 1.2])


def test_a_lonely_pair_at_the_floor_keeps_its_share():
    """Three tasks, of which the heavy one is absent: the two others have nothing to give each other."""
    p = nn.Parameter(torch.ones(1))
    balancer = GradNorm(3, shared=p, interval=1, smoothing=0, task_weights=(1e-9, 1e-9, 1.0))
    balancer.backward([p.sum(), 2 * p.sum(), 0 * p.sum()])
    balancer.step()
    assert torch.isfinite(balancer.weights).all() and balancer.weights.sum() == pytest.approx(3.0)


def test_frozen_weights_stay_and_interference_is_measured_on():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=2, freeze_after=1, init_steps=1)
    train(model, balancer, 4)
    balancer.end_epoch()
    balancer.stats()
    before = balancer.weights
    train(model, balancer, 8, 4)
    assert torch.equal(balancer.weights, before) and not torch.equal(before, torch.ones(2))
    stats = balancer.stats()
    assert stats["measured"] == 2 and stats["cosine"] is not None


# ---- the trace ------------------------------------------------------------------------------------------------------


def test_the_trace_has_a_row_for_each_update_and_hands_it_out_once():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=2, init_steps=3, smoothing=0)
    history = train(model, balancer, 7)
    rows = balancer.stats()["trace"]
    assert [row["step"] for row in rows] == [1, 2, 3, 5, 7] and balancer.stats()["trace"] == []
    for row in rows:
        assert row["weights"] == history[row["step"] - 1].tolist()
        assert all(x > 0 for x in (*row["losses"], *row["norms"]))
        assert len(row["cosines"]) == 1 and -1 <= row["cosines"][0] <= 1
        assert sum(row["ratios"]) == pytest.approx(2)  # their mean is 1
    first, last = rows[0], rows[-1]
    assert first["ratios"] == pytest.approx([1.0, 1.0]) and last["ratios"] != first["ratios"]
    assert first["losses"] == pytest.approx([x.item() for x in TwoTasks().losses()])


def test_the_trace_of_a_sum_has_no_ratios_and_an_absent_task_no_numbers():
    model = TwoTasks()
    balancer = Fixed(2, model.shared, interval=1)
    train(model, balancer, 1, edit=lambda k, losses: [losses[0], losses[1] * 0])
    (row,) = balancer.stats()["trace"]
    assert row["ratios"] == [None, None] and row["weights"] == [1.0, 1.0]
    assert row["losses"][1] is None and row["norms"][1] is None and row["cosines"] == []
    assert row["losses"][0] > 0 and row["norms"][0] > 0


def test_resume_neither_loses_nor_repeats_rows_of_the_trace():
    whole, cut, later = TwoTasks(), TwoTasks(), TwoTasks()
    balancers = [GradNorm(2, shared=m.shared, interval=1) for m in (whole, cut, later)]
    train(whole, balancers[0], 9)
    train(cut, balancers[1], 3)
    rows = balancers[1].stats()["trace"]
    train(cut, balancers[1], 6, 3)
    later.load_state_dict(cut.state_dict())
    balancers[2].load_state_dict(balancers[1].state_dict())
    train(later, balancers[2], 9, 6)
    assert rows + balancers[2].stats()["trace"] == balancers[0].stats()["trace"]


# ---- tasks that are switched off ------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [0, 1])
def test_a_task_of_weight_0_leaves_its_own_parameters_without_a_gradient(off):
    model, weights = TwoTasks(), [1.0, 1.0]
    weights[off] = 0.0
    balancer = Fixed(2, model.shared, interval=1, task_weights=weights)
    balancer.backward(model.losses(), batch_size=2)
    balancer.step()
    assert all(p.grad is None for p in model.heads[off].parameters())
    got = [p.grad.clone() for p in (*model.trunk.parameters(), *model.heads[1 - off].parameters())]
    model.zero_grad()
    (2 * model.losses()[1 - off]).backward()
    want = [p.grad for p in (*model.trunk.parameters(), *model.heads[1 - off].parameters())]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert balancer.stats()["trace"] == []


def test_a_task_that_is_off_may_have_any_loss():
    model = TwoTasks()
    balancer = Fixed(2, model.shared, task_weights=(0, 1))
    assert torch.isfinite(balancer.combine([model.losses()[0] * math.nan, model.losses()[1]]))


@pytest.mark.slow
def test_only_the_fixed_sum_takes_a_weight_of_0():
    model = TwoTasks()
    for name in ("gradnorm", "uw", "mgda"):
        with pytest.raises(ValueError, match="fixed alone takes a 0"):
            build_balancer(name, 2, model.shared, model.parameters(), task_weights=(0, 1))
    for weights in ((0, 0), (-1, 1), (math.nan, 1), (math.inf, 1)):
        with pytest.raises(ValueError, match="task weights"):
            Fixed(2, task_weights=weights)
