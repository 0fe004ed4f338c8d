"""Task balancing: GradNorm's mathematics and robustness, the training protocol, torchjd's balancers."""

from __future__ import annotations

import argparse
import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from two_processes import run_as_two
from two_tasks import RANDOM, TwoTasks, cut_of_two, losses_with, one_of_two, train

from benchmarks import gradnorm_toy
from models.yolo import Model
from utils.balancing import BALANCERS, Fixed, GradNorm, build_balancer
from utils.balancing.base import gram
from utils.balancing.gradnorm import gradnorm_gradient
from utils.loss import ComputeJointLoss


def updated(balancer: GradNorm, norms, losses=None, times: int = 1) -> list[float]:
    """The weights after updates with gradients of these norms and losses of these values; a loss of 0 is absent."""
    w = nn.Parameter(torch.ones(1))
    for _ in range(times):
        balancer.update(losses_with(w, norms, losses or [1.0] * len(norms)), shared=w)
    return balancer.weights.tolist()


# ---- the mathematics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priorities", [None, (1.5, 1.2, 0.3)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_closed_form_is_the_double_backward_derivative(alpha, seed, priorities):
    torch.manual_seed(seed)
    shared = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 6, 5, dtype=torch.float64)
    losses = [((i + 1) * (x @ shared.T).tanh() - y[i]).square().mean() for i in range(3)]
    ratios = torch.rand(3, dtype=torch.float64) + 0.5
    weights = (torch.rand(3, dtype=torch.float64) + 0.2).requires_grad_()

    # As the paper has it: norms of the gradients of w_i L_i with a graph, targets constant.
    grads = [
        torch.autograd.grad(w * loss, shared, create_graph=True)[0] for w, loss in zip(weights, losses, strict=True)
    ]
    norms = torch.stack([g.norm() for g in grads])
    p = torch.ones(3, dtype=torch.float64) if priorities is None else torch.tensor(priorities, dtype=torch.float64)
    targets = p * norms.mean().detach() * (ratios / (p * ratios).mean()) ** alpha
    want = torch.autograd.grad((norms - targets).abs().sum(), weights)[0]

    plain = [torch.autograd.grad(loss, shared, retain_graph=True)[0].norm().item() for loss in losses]
    got, got_targets = gradnorm_gradient(weights.tolist(), plain, ratios.tolist(), alpha, priorities)
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(torch.tensor(got_targets, dtype=torch.float64), targets, rtol=1e-6, atol=1e-12)


positive = st.floats(1e-6, 1e6)


@given(
    tasks=st.integers(2, 5),
    data=st.data(),
    alpha=st.floats(0, 3),
    lr=st.floats(0.01, 2),
    smoothing=st.sampled_from([0.0, 5.0, 100.0]),
    rescale=st.sampled_from([1e-4, 1.0, 1e4]),
)
@settings(max_examples=10, deadline=None)
@pytest.mark.slow
def test_weights_stay_above_the_floor_and_sum_to_the_number_of_tasks(tasks, data, alpha, lr, smoothing, rescale):
    vectors = st.lists(positive, min_size=tasks, max_size=tasks)
    rounds = data.draw(st.lists(st.tuples(vectors, vectors), min_size=1, max_size=8))
    start, priorities = (data.draw(st.lists(st.floats(1e-3, 1e3), min_size=tasks, max_size=tasks)) for _ in range(2))
    priorities = data.draw(st.sampled_from([[1.0] * tasks, priorities]))
    floor = data.draw(st.sampled_from([1e-6, 0.5, 0.99]))
    balancer = GradNorm(
        tasks, alpha, lr, interval=1, task_weights=start, smoothing=smoothing, floor=floor, priorities=priorities
    )
    for step in range(100):
        norms, losses = rounds[step % len(rounds)]
        if step >= 50:  # the unit of the first loss changes
            norms, losses = ([v[0] * rescale, *v[1:]] for v in (norms, losses))
        weights = updated(balancer, norms, losses)
        assert min(weights) > 0.999 * floor
        assert sum(weights) == pytest.approx(tasks, rel=1e-6)
    assert balancer.updates == 100


def test_gradient_norms_become_equal_where_alpha_is_zero():
    balancer = GradNorm(3, alpha=0, interval=1, smoothing=0)
    weights = updated(balancer, [1.0, 10.0, 0.1], times=60)
    weighted = torch.tensor(weights) * torch.tensor([1.0, 10.0, 0.1])
    torch.testing.assert_close(weighted, weighted.mean().expand(3), rtol=1e-4, atol=0)


def test_the_unit_of_a_loss_does_not_matter():
    """A loss 10,000 times larger gets a weight 10,000 times smaller, relative to the other."""
    ratios = []
    for unit in (1e-4, 1.0, 1e4):
        balancer = GradNorm(2, interval=1, smoothing=0)
        one, two = updated(balancer, [0.5 * unit, 2.0], [3.0 * unit, 1.0], times=100)
        ratios.append(one / two * unit)
    assert ratios == pytest.approx([4.0] * 3, rel=1e-2)


@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_a_task_that_stalls_gains_weight(alpha):
    """The sign of the restoring force: with equal gradients the task that lags behind gets the larger weight."""
    balancer = GradNorm(2, alpha, interval=1, init_steps=1, smoothing=0)
    for step in range(40):
        stalled, falling = updated(balancer, [1.0, 1.0], [1.0, max(0.95**step, 0.3)])
    # At rest G_i is proportional to r_i^alpha.
    assert stalled / falling == pytest.approx((1 / 0.3) ** alpha, rel=0.02)

    neutral = GradNorm(2, 0.0, interval=1)
    assert updated(neutral, [1.0, 1.0], [1.0, 0.3]) == pytest.approx([1.0, 1.0])


def at_rest(priorities, alpha=0.0, unit=1.0) -> list[float]:
    """Weighted norms of two tasks that keep pace, `unit` scaling the first task's loss."""
    balancer = GradNorm(2, alpha, interval=1, smoothing=0, priorities=priorities)
    one, two = updated(balancer, [0.5 * unit, 2.0], [3.0 * unit, 1.0], times=80)
    return [one * 0.5 * unit, two * 2.0]


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("priorities", [(1, 1), (1.9, 0.1), (1.8, 0.2), (0.5, 1.5), (9, 1), (1, 30)])
def test_tasks_that_keep_pace_pull_in_proportion_to_their_priorities(priorities, alpha):
    one, two = at_rest(priorities, alpha)
    assert one / two == pytest.approx(priorities[0] / priorities[1], rel=1e-4)


@pytest.mark.parametrize("priorities", [(1, 1), (1.8, 0.2), (0.5, 1.5)])
def test_priorities_do_not_know_the_unit_of_a_loss(priorities):
    plain, larger = at_rest(priorities), at_rest(priorities, unit=1000.0)
    assert larger[0] / larger[1] == pytest.approx(plain[0] / plain[1], rel=1e-4)


def test_a_priority_of_two_is_a_task_that_counts_twice():
    """Three tasks, the first two alike: their targets together are those of one task of twice the priority."""
    gradient, targets = gradnorm_gradient([0.4, 0.4, 1.5], [3.0, 3.0, 0.7], [0.9, 0.9, 0.2], 1.5)
    merged, joined = gradnorm_gradient([0.8, 1.5], [3.0, 0.7], [0.9, 0.2], 1.5, (2.0, 1.0))
    assert joined == pytest.approx([targets[0] + targets[1], targets[2]])
    assert merged == pytest.approx([gradient[0], gradient[2]])


def test_equal_priorities_are_the_published_method_bit_for_bit():
    runs = []
    for priorities in (None, (1, 1), (7, 7)):
        model = TwoTasks()
        runs.append(torch.stack(train(model, GradNorm(2, shared=model.shared, interval=1, priorities=priorities), 15)))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][-1], torch.ones(2))


def test_a_task_that_lags_gains_under_priorities_too():
    """At rest G_i is proportional to p_i r_i^alpha."""
    balancer = GradNorm(2, 1.5, interval=1, init_steps=1, smoothing=0, priorities=(1.8, 0.2))
    updated(balancer, [1.0, 1.0])
    stalled, falling = updated(balancer, [1.0, 1.0], [1.0, 0.3], times=60)
    assert stalled / falling == pytest.approx(9 * (1 / 0.3) ** 1.5, rel=1e-3)


def test_an_absent_task_leaves_the_priorities_of_the_others_as_they_are():
    balancer = GradNorm(3, alpha=0, interval=1, smoothing=0, priorities=(2.0, 0.5, 0.5))
    weights = updated(balancer, [1.0, 3.0, 1.0], [1.0, 1.0, 0.0], times=60)
    assert weights[0] / (3 * weights[1]) == pytest.approx(4, rel=1e-4)
    assert weights[2] == 1.0 and sum(weights) == pytest.approx(3)


def test_priorities_are_kept_on_resume_and_shown():
    balancer = GradNorm(2, priorities=(9, 1))
    assert balancer.priorities == pytest.approx([1.8, 0.2]) and "priorities=[1.8, 0.2]" in repr(balancer)
    state = balancer.state_dict()
    later = GradNorm(2)
    later.load_state_dict(state)
    assert later.priorities == balancer.priorities
    for key in ("priorities", "trace"):  # of a run before there were any
        del state[key]
    balancer.load_state_dict(state | {"derived": 1})
    assert balancer.priorities == [1.0, 1.0] and balancer.stats()["trace"] == []


def test_a_step_is_bounded_and_ends_at_the_target():
    balancer = GradNorm(2, alpha=0, lr=0.1, interval=1, smoothing=0)
    one, two = updated(balancer, [100.0, 1.0])
    assert one / two == pytest.approx(math.exp(-0.2), rel=1e-5)
    balancer = GradNorm(2, alpha=0, lr=10, interval=1, smoothing=0)
    one, two = updated(balancer, [1.1, 1.0])
    assert one * 1.1 == pytest.approx(two, rel=1e-5)


def test_initial_loss_is_the_mean_of_the_first_steps():
    balancer = GradNorm(2, interval=1, init_steps=4)
    for value in (4.0, 2.0, 1.0, 1.0, 50.0):
        updated(balancer, [1.0, 1.0], [value, 1.0])
    assert balancer.initial_losses == [2.0, 1.0]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_gram_at_any_scale(scale):
    rows = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [0.0, 0.0]])
    norms, cosines = gram(rows * scale)
    torch.testing.assert_close(norms / scale, torch.tensor([5.0, 5.0, 0.0]))
    torch.testing.assert_close(cosines, torch.diag(torch.tensor([1.0, 1.0, 0.0])), atol=1e-6, rtol=0)


# ---- measuring in the training loop ---------------------------------------------------------------------------------


def exact(model: TwoTasks) -> tuple[list[float], float]:
    one, two = (torch.autograd.grad(loss, model.shared, retain_graph=True)[0].flatten() for loss in model.losses())
    return [one.norm().item(), two.norm().item()], torch.cosine_similarity(one, two, 0).item()


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.01), (0.01, 1.0)])
def test_measured_gradients_are_those_of_the_unweighted_losses(weights, micro):
    """Also from four micro-batches."""
    model = TwoTasks()
    balancer = Fixed(2, model.shared, interval=1, task_weights=weights)
    for step in range(3):
        norms, cosine = exact(model)
        train(model, balancer, 1, micro=micro)
        stats = balancer.stats()
        assert stats["measured"] == 1
        assert stats["grad_norms"] == pytest.approx(norms, rel=1e-3), step
        assert stats["cosine"] == pytest.approx(cosine, abs=1e-3)
        assert stats["conflict_share"] == (cosine < 0)
    assert balancer.stats()["grad_norms"] is None


def test_the_network_gets_the_gradient_of_the_weighted_sum_and_nothing_else():
    model, balancer = TwoTasks(), None
    balancer = GradNorm(2, shared=model.shared, interval=1, task_weights=(1.5, 0.5))
    balancer.backward(model.losses(), batch_size=3)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses = model.losses()
    (3 * (1.5 * losses[0] + 0.5 * losses[1])).backward()
    for g, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad)


def test_micro_batches_give_the_weights_of_one_batch():
    runs = []
    for micro in (1, 4):
        model = TwoTasks()
        runs.append(train(model, GradNorm(2, shared=model.shared, interval=1), 12, micro=micro))
    torch.testing.assert_close(torch.stack(runs[0]), torch.stack(runs[1]), rtol=1e-4, atol=0)


def test_update_alone_gives_the_weights_of_the_training_protocol():
    model, other = TwoTasks(), TwoTasks()
    want = train(model, GradNorm(2, shared=model.shared, interval=2), 9)
    alone, got = GradNorm(2, interval=2), []
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    for _ in range(9):
        losses = other.losses()
        weights = alone.weights
        got.append(alone.update(losses, other.shared))
        optimizer.zero_grad()
        # `update` comes before the backward pass; the training protocol applies new weights from the next step on.
        sum(w * loss for w, loss in zip(weights, losses, strict=True)).backward()
        optimizer.step()
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-4, atol=0)


def test_float16_scaling_does_not_change_the_weights():
    plain, scaled = TwoTasks(), TwoTasks()
    want = train(plain, GradNorm(2, shared=plain.shared, interval=1), 8)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    got = train(scaled, GradNorm(2, shared=scaled.shared, interval=1), 8, scaler=scaler)
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-3, atol=0)


def test_an_overflow_skips_the_update():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(model, balancer, 5, scaler=scaler)
    weights, updates = balancer.weights, balancer.updates
    state = copy.deepcopy(balancer.state_dict())
    train(model, balancer, 1, scaler=scaler, edit=lambda k, losses: [losses[0] * 1e38, losses[1]])
    assert torch.equal(balancer.weights, weights) and balancer.updates == updates
    assert balancer.skipped == 1 and balancer.stats()["skipped"] == 1
    assert balancer.state_dict()["moments"] == state["moments"]
    train(model, balancer, 1, scaler=scaler)
    assert balancer.updates == updates + 1


def test_bfloat16_autocast():
    model = TwoTasks()
    balancer = Fixed(2, model.shared, interval=1)
    norms, _ = exact(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses()
    balancer.backward(losses)
    balancer.step()
    assert balancer.stats()["grad_norms"] == pytest.approx(norms, rel=0.05)


# ---- what goes wrong in real batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_loss_of_zero_or_not_finite_changes_nothing(value):
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=1)
    train(model, balancer, 6)
    before = balancer.state_dict()
    losses = model.losses()
    balancer.backward([losses[0], losses[1] * value])
    model.zero_grad()
    balancer.step()
    after = balancer.state_dict()
    assert after["weights"] == before["weights"]
    assert all(sums[1] == before["moments"][key][1] for key, sums in after["moments"].items())
    assert balancer.steps == 7
    train(model, balancer, 4)
    assert balancer.updates == 10 and balancer.state_dict()["weights"] != before["weights"]


def test_an_absent_task_from_the_very_start():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=1, init_steps=2)
    train(model, balancer, 3, edit=lambda k, losses: [losses[0], losses[1] * 0])
    assert balancer.initial_losses[1] is None and balancer.updates == 0
    train(model, balancer, 3)
    assert balancer.updates == 3
    assert balancer.initial_losses[1] == pytest.approx(sum(x.item() for x in model.losses()[1:]), rel=0.3)


def test_the_caller_can_mark_a_task_as_absent():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=1)
    balancer.backward(model.losses(), present=(False, True))
    balancer.step()
    assert balancer.initial_losses[0] is None and balancer.updates == 0
    assert balancer.stats()["cosine"] is None


def test_with_three_tasks_the_present_ones_share_their_weight():
    balancer = GradNorm(3, interval=1, smoothing=0)
    weights = updated(balancer, [1.0, 5.0, 2.0], [1.0, 1.0, 0.0])
    assert weights[2] == 1.0
    assert weights[0] > 1 > weights[1]
    assert sum(weights) == pytest.approx(3)


def test_a_frozen_layer_is_left_out_of_w():
    model = TwoTasks()
    model.trunk[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="fixed"):
        build_balancer("gradnorm", 2, model.shared)
    balancer = GradNorm(2, shared=[*model.shared, model.trunk[0].weight], interval=1)
    assert len(balancer.shared) == 1


def test_weights_stay_after_freeze():
    model = TwoTasks()
    balancer = GradNorm(2, shared=model.shared, interval=1, freeze_after=1)
    train(model, balancer, 3)
    balancer.end_epoch()
    weights = balancer.weights
    assert balancer.frozen and not torch.equal(weights, torch.ones(2))
    train(model, balancer, 3)
    assert torch.equal(balancer.weights, weights) and balancer.updates == 3


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -1}, {"alpha": math.nan}, {"lr": 0}, {"interval": 0}, {"smoothing": -1}, {"init_steps": 0},
        {"task_weights": (1, 0)}, {"task_weights": (1, -1)}, {"task_weights": (1, 1, 1)}, {"floor": 1}, {"nonsense": 1},
        {"interval": 2.5}, {"freeze_after": 0}, {"priorities": (1, 0)}, {"priorities": (1, -1)},
        {"priorities": (1, math.inf)}, {"priorities": (1, 1, 1)},
    ],
)  # fmt: skip
def test_bad_options_are_named(options):
    key = next(iter(options)).replace("_", ".")
    with pytest.raises(ValueError, match=key):
        build_balancer("gradnorm", 2, TwoTasks().shared, **options)


def test_wrong_number_of_losses():
    with pytest.raises(ValueError, match="3 losses.*2 tasks"):
        Fixed(2).combine(torch.ones(3))


# ---- the early users' check -----------------------------------------------------------------------------------------

TINY = {
    "nc": 4,
    "cls_nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 10, 16, 24, 24, 16], [24, 24, 32, 20, 30, 40]],
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C3", [32]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[-1, 1, "C3", [32]], [[3, 5], 1, "Detect", ["nc", "anchors"]], [[3, 5], 1, "ImageHead", ["cls_nc"]]],
}
# YOLOv5's gains times 8: on pictures this small they leave the detection task with the larger gradient.
TINY_HYP = {"box": 0.4, "obj": 8.0, "cls": 4.0, "anchor_t": 4.0}


def picture_batch(generator: torch.Generator, n: int = 8, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Grey pictures, the shade being their image class, with one coloured rectangle each, the colour its class."""
    view = torch.randint(0, 3, (n,), generator=generator)
    images = torch.rand(n, 3, size, size, generator=generator) * 0.2 + view.view(-1, 1, 1, 1) * 0.15
    targets = torch.zeros(n, 6)
    for i in range(n):
        cls = int(torch.randint(0, 4, (1,), generator=generator))
        w, h = torch.randint(16, 33, (2,), generator=generator).tolist()
        x, y = (int(torch.randint(0, size - s + 1, (1,), generator=generator)) for s in (w, h))
        images[i, cls % 3, y : y + h, x : x + w] = 0.5 if cls == 3 else 1.0
        targets[i] = torch.tensor([i, cls, (x + w / 2) / size, (y + h / 2) / size, w / size, h / size])
    return images, targets, nn.functional.one_hot(view, 3).float()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_early_users_check(seed):
    """4 classes, batch 8, 5 epochs of 10 batches, weights (1.0, 0.01) at first."""
    torch.manual_seed(seed)
    model = Model(copy.deepcopy(TINY)).train()
    model.hyp = TINY_HYP
    balancer = GradNorm(2, alpha=1.5, interval=1, task_weights=(1.0, 0.01), shared=model.shared_parameters())
    criterion = ComputeJointLoss(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    weights, losses = [balancer.weights], []
    for _ in range(50):
        images, targets, image_targets = picture_batch(generator)
        found = criterion(model(images), targets, image_targets)
        balancer.backward(list(found.tasks.values()), batch_size=8, present=list(found.present.values()))
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        balancer.step()
        optimizer.zero_grad()
        weights.append(balancer.weights)
        losses.append([x.item() for x in found.tasks.values()])
    weights, losses = torch.stack(weights), torch.tensor(losses)
    assert (weights[-1] - weights[0]).abs().max() > 0.5
    assert (weights[21:] - weights[20:-1]).abs().max() < 0.05
    assert weights.min() > 0.01
    assert (losses[-10:].mean(0) < losses[:10].mean(0)).all()


# ---- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_hold_equal_weights_and_match_one(tmp_path, second):
    run_as_two(second, one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) >= len(BALANCERS) - 2
    for name in first:
        assert torch.equal(first[name][0], second[name][0]), name
        assert torch.equal(first[name][1], second[name][1]), name
        if name in RANDOM:
            continue
        model = TwoTasks()
        balancer = build_balancer(name, 2, model.shared, model.parameters(), interval=2)
        weights = torch.stack(train(model, balancer, 8, micro=2))
        torch.testing.assert_close(first[name][0], weights, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(first[name][1], model.trunk[2].weight.detach(), rtol=1e-4, atol=1e-5, msg=name)
        assert first[name][2] == pytest.approx(balancer.stats()["cosine"], abs=1e-3)


@pytest.mark.slow
def test_two_processes_that_were_cut_go_on_as_if_they_had_not_been(tmp_path, second):
    (uncut, resumed), _ = run_as_two(second, cut_of_two, tmp_path)
    assert torch.equal(uncut, resumed) and not torch.equal(uncut, torch.ones(2))


@pytest.mark.slow
def test_gradnorm_beats_equal_weights_on_the_papers_toy_problem():
    """Section 4 of the paper, two tasks of scale 1 and 100, shortened."""
    args = argparse.Namespace(steps=250, inputs=20, outputs=10)
    equal, ours = (gradnorm_toy.train(method, 2, 0, args)["loss"][-1] for method in ("equal", "gradnorm 1.5"))
    assert ours < 0.7 * equal


def square(w: Tensor, scale: float) -> Tensor:
    return scale * (w * w).mean()


def test_the_first_steps_are_measured_whatever_the_interval():
    w, balancer = nn.Parameter(torch.ones(3)), GradNorm(2, interval=10, init_steps=4)
    for _ in range(21):
        balancer.update([square(w, 1.0), square(w, 3.0)], shared=w)
    assert [row["step"] for row in balancer.stats()["trace"]] == [1, 2, 3, 4, 11, 21]


def test_smoothing_counts_optimiser_steps_not_measurements():
    w, balancer = nn.Parameter(torch.ones(3)), GradNorm(2, interval=10, init_steps=1, smoothing=30.0)
    for step in range(11):
        balancer.update([square(w, math.e if step else 1.0), square(w, 1.0)], shared=w)
    _, (a, b) = (row["ratios"] for row in balancer.stats()["trace"])
    kept = math.exp(-10 / 30)
    assert a / b == pytest.approx(math.exp((1 - kept) / (1 - kept * math.exp(-1 / 30))), rel=1e-4)


def test_initial_weights_stay_above_the_floor_too():
    assert GradNorm(2, task_weights=[1e-9, 1.0], floor=0.1).weights.tolist() == pytest.approx([0.1, 1.9])
