"""Every balancer by its name: resume, torchjd's gradients, the command line, the documentation."""

from __future__ import annotations

import argparse
import copy
import doctest
import math

import pytest
import torch
from torch import Tensor, nn
from two_tasks import TwoTasks, train

import utils.balancing.gradnorm
from utils.balancing import (
    BALANCERS,
    Fixed,
    GradNorm,
    add_balancer_arguments,
    build_balancer,
    build_balancer_from_args,
)
from utils.balancing.torchjd import TORCHJD_BALANCERS, balancer_class
from utils.balancing.torchjd_adapters import Aggregated, Scalarized
from utils.balancing.torchjd_state import load_module_state, module_state

# ---- resume ---------------------------------------------------------------------------------------------------------


def build(name: str, model: TwoTasks, **options):
    try:
        return build_balancer(name, 2, model.shared, model.parameters(), **options)
    except ValueError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise


def drop_a_task(step: int, losses: list[Tensor]) -> list[Tensor]:
    return [losses[0], losses[1] * 0] if step % 7 == 3 else losses


@pytest.mark.slow
@pytest.mark.parametrize("name", BALANCERS)
def test_every_balancer_trains_and_resumes_where_it_was_cut(name, tmp_path):
    whole, cut, later = TwoTasks(), TwoTasks(), TwoTasks()
    balancers = [build(name, m, interval=3) for m in (whole, cut, later)]
    start = [x.item() for x in whole.losses()]
    train(whole, balancers[0], 10, edit=drop_a_task, micro=2)
    balancers[0].end_epoch()
    want = train(whole, balancers[0], 20, 10, edit=drop_a_task, micro=2)
    train(cut, balancers[1], 10, edit=drop_a_task, micro=2)
    balancers[1].end_epoch()
    train(cut, balancers[1], 14, 10, edit=drop_a_task, micro=2)
    torch.save({"model": cut.state_dict(), "balancer": balancers[1].state_dict()}, tmp_path / "last.pt")

    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    later.load_state_dict(saved["model"])
    balancers[2].load_state_dict(saved["balancer"])
    got = train(later, balancers[2], 20, 14, edit=drop_a_task, micro=2)
    torch.testing.assert_close(torch.stack(got), torch.stack(want[4:]), rtol=0, atol=0)
    torch.testing.assert_close(later.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert sum(x.item() for x in whole.losses()) < sum(start)
    assert balancers[0].stats()["measured"] > 0
    assert torch.isfinite(balancers[0].weights).all()
    assert math.isfinite(balancers[0].combine(whole.losses()).item())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stch", {"weights": torch.tensor([1.0, 2.0])}),
        ("config", {"pref_vector": torch.tensor([1.0, 2.0])}),
        ("aligned_mtl", {"pref_vector": torch.tensor([1.0, 2.0])}),
    ],
)
def test_options_are_where_the_network_is(name, options):
    p = nn.Parameter(torch.empty(3, device="meta"))
    balancer = build_balancer(name, 2, [p], [p], **options)
    module = balancer.scalarizer if isinstance(balancer, Scalarized) else balancer.aggregator
    found = [v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor)]
    assert found and all(v.device.type == "meta" for v in found)


def test_state_without_a_shared_layer_is_where_the_network_is():
    """As with two networks in one file, whose scalarizer has nothing to measure."""
    model, p = TwoTasks(), nn.Parameter(torch.empty(3, device="meta"))
    first = build("famo", model)
    first.shared = []
    train(model, first, 3)
    later = build_balancer("famo", 2, (), [p])
    later.load_state_dict(first.state_dict())
    assert later._previous.device.type == "meta"


def test_what_torchjd_keeps_on_the_processor_stays_there():
    """GradVac makes its running means there, on whatever device the gradients are."""
    model = TwoTasks()
    balancer = build("gradvac", model)
    train(model, balancer, 3)
    state = module_state(balancer.aggregator)
    later = build("gradvac", TwoTasks()).aggregator
    load_module_state(later, state, torch.device("meta"))
    (means,) = [part._phi_t for part in later.modules() if hasattr(part, "_phi_t")]
    assert means.device.type == "cpu" and means.any()


def test_a_state_of_another_balancer_is_refused():
    with pytest.raises(ValueError, match="'fixed'.*'gradnorm'"):
        GradNorm(2).load_state_dict(Fixed(2).state_dict())
    with pytest.raises(ValueError, match="3 tasks"):
        Fixed(2).load_state_dict(Fixed(3).state_dict())


# ---- torchjd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, e in TORCHJD_BALANCERS.items() if issubclass(balancer_class(n), Scalarized)])
def test_a_scalarizer_gives_torchjds_gradient(name):
    model = TwoTasks()
    balancer = build(name, model)
    torch.manual_seed(0)
    balancer.backward(model.losses())
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(0)
    build(name, model).scalarizer(torch.stack(model.losses())).backward()
    for g, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["upgrad", "pcgrad", "mgda", "imtl_g", "aligned_mtl", "config", "cagrad", "nash_mtl"])
def test_an_aggregator_gives_torchjds_gradient(name):
    from torchjd.autojac import jac_to_grad, mtl_backward

    model = TwoTasks()
    balancer = build(name, model)
    balancer.backward(model.losses(), batch_size=1)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    features = model.trunk(model.x).tanh()
    losses = [(head(features)[:, 0] - model.y[:, i]).square().mean() for i, head in enumerate(model.heads)]
    mtl_backward(losses, features=features)
    jac_to_grad(model.trunk.parameters(), build(name, model).aggregator)
    for g, (key, p) in zip(got, model.named_parameters(), strict=True):
        factor = balancer.factor if key.startswith("trunk") else 1.0
        torch.testing.assert_close(g, p.grad * factor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_uw_learns_the_inverse_of_each_loss():
    """At rest exp(-s_i) L_i = 1, and the weight is exp(-s_i) / 2; also from micro-batches under a loss scale."""
    p = nn.Parameter(torch.zeros(()))
    balancer = build_balancer("uw", 2, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for _ in range(150):
        for _ in range(2):
            balancer.backward([p + 10.0, p + 0.2], batch_size=4, scaler=scaler)
        balancer.step()
    assert balancer.weights.tolist() == pytest.approx([0.05, 2.5], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", BALANCERS)
def test_a_loss_scale_changes_nothing_under_accumulation(name):
    plain, scaled = TwoTasks(), TwoTasks()
    balancers = [build(name, m, interval=2) for m in (plain, scaled)]
    want = train(plain, balancers[0], 5, micro=2)
    got = train(scaled, balancers[1], 5, micro=2, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**14))
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scaled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)
    norms = [b.stats()["grad_norms"] for b in balancers]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_float16_overflow_reaches_the_scaler_through_an_aggregator():
    model = TwoTasks()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    balancer = build("mgda", model)
    before = copy.deepcopy(model.state_dict())
    train(model, balancer, 1, scaler=scaler, edit=lambda k, losses: [losses[0] * 1e38, losses[1]])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    train(model, balancer, 2, scaler=scaler)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["upgrad", "dualproj", "pcgrad", "graddrop", "gradvac"])
def test_without_conflict_these_aggregators_give_the_sum(name):
    p = nn.Parameter(torch.zeros(2))
    build_balancer(name, 2, [p], [p]).backward([p[0], 10 * p[1]])
    assert p.grad.tolist() == pytest.approx([1.0, 10.0], rel=1e-3)


def test_an_absent_task_makes_an_aggregator_add_up():
    p = nn.Parameter(torch.zeros(2))
    balancer = build_balancer("mgda", 2, [p], [p])
    balancer.backward([p[0] + 1, 10 * p[1] + 1], present=[True, False])
    assert p.grad.tolist() == [1.0, 10.0]
    p.grad = None
    balancer.backward([p[0] + 1, 10 * p[1] + 1], present=[True, True])
    assert p.grad.tolist() != [1.0, 10.0]


def test_dwa_gives_weight_to_the_task_that_descends_slowly():
    p = nn.Parameter(torch.zeros(()))
    balancer = build_balancer("dwa", 2)
    for epoch in range(3):
        balancer.backward([p + 1.0, p + 1.0 / 2**epoch])
        balancer.step()
        balancer.end_epoch()
    balancer.backward([p + 1.0, p + 0.1])
    w = balancer.weights.tolist()
    assert w[0] > 1.05 > 0.95 > w[1] and sum(w) == pytest.approx(2, rel=1e-3)


def test_famo_gives_weight_to_the_task_that_descends_slowly():
    p = nn.Parameter(torch.zeros(()))
    balancer = build_balancer("famo", 2, lr=0.1)
    for step in range(30):
        balancer.backward([p + 1.0, p + 0.9**step])
        balancer.step()
    # the weights are those of log losses: times the loss, they are the tasks' shares
    first, second = (w * x for w, x in zip(balancer.weights.tolist(), (1.0, 0.9**29), strict=True))
    assert first > second * 1.2


def test_options_of_others_are_checked():
    with pytest.raises(ValueError, match="scale_mode"):
        build("aligned_mtl", TwoTasks(), scale_mode="largest")
    with pytest.raises(ValueError, match="alpha must be positive"):
        build("fairgrad", TwoTasks(), alpha=-1.0)
    with pytest.raises(ValueError, match="2 numbers"):
        build("upgrad", TwoTasks(), pref_vector=torch.ones(3))
    with pytest.raises(ValueError, match="temperature"):
        build("dwa", TwoTasks(), alpha=1.0)
    with pytest.raises(ValueError, match="params"):
        build_balancer("mgda", 2, TwoTasks().shared)
    with pytest.raises(ValueError, match="gradnorm, fixed"):
        build_balancer("nonsense", 2)


# ---- command line and documentation ---------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_balancer_arguments(parser)
    return parser.parse_args(words)


def test_help_lists_every_balancer_with_its_paper():
    parser = argparse.ArgumentParser()
    add_balancer_arguments(parser)
    text = " ".join(parser.format_help().split())
    for name, (about, *_) in BALANCERS.items():
        assert f"{name} {about}" in text
        assert about.endswith(")") and "20" in about.rsplit("(", 1)[1]


def test_the_command_line_builds_what_it_says():
    model = TwoTasks()
    balancer = build_balancer_from_args(parse(), 2, model.shared, model.parameters())
    assert isinstance(balancer, GradNorm) and balancer.alpha == 1.5
    balancer = build_balancer_from_args(parse("--task-priorities", "1.8", "0.2"), 2, model.shared)
    assert balancer.priorities == pytest.approx([1.8, 0.2])
    words = "--gradnorm-alpha 0.5 --gradnorm-lr 0.1 --gradnorm-interval 3 --task-weights 1 0.01 --gradnorm-freeze 2"
    balancer = build_balancer_from_args(parse(*words.split()), 2, model.shared)
    assert (balancer.alpha, balancer.lr, balancer.interval, balancer.freeze_after) == (0.5, 0.1, 3, 2)
    assert balancer.weights.tolist() == pytest.approx([2 / 1.01, 0.02 / 1.01])
    layers = [model.trunk[0].weight, model.trunk[2].weight]
    assert len(build_balancer_from_args(parse("--gradnorm-layers", "all"), 2, layers).shared) == 2
    only = build_balancer_from_args(parse(), 2, layers).shared
    assert len(only) == 1 and only[0] is layers[1]
    balancer = build_balancer_from_args(parse("--balancer", "fixed", "--task-weights", "1", "0.1"), 2, model.shared)
    assert isinstance(balancer, Fixed) and balancer.weights.tolist() == pytest.approx([1, 0.1])
    words = ["--balancer", "dwa", "--balancer-option", "temperature=5"]
    assert build_balancer_from_args(parse(*words), 2, model.shared).scalarizer.temperature == 5
    words = "--balancer-option smoothing=5 --balancer-option init_steps=3 floor=0.01"
    balancer = build_balancer_from_args(parse(*words.split()), 2, model.shared)
    assert (balancer.smoothing, balancer.init_steps, balancer.floor) == (5, 3, 0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--balancer-option alpha=0.5", "use --gradnorm-alpha"),
        ("--balancer-option name=1", "no option name .* smoothing"),
        ("--balancer-option smoothing", "KEY=VALUE"),
        ("--balancer-option init_steps=2.5", "whole number"),
        ("--balancer mgda --balancer-option epsilon=x", "takes a number"),
        ("--balancer fixed --balancer-option c=1", "options: none"),
        ("--balancer upgrad --balancer-option pref_vector=1,2,3", "2 numbers"),
        ("--gradnorm-freeze -3", "at least 1 epoch"),
        ("--task-priorities 1", "--task-priorities needs 2 numbers"),
        ("--task-priorities 1 0", "2 positive numbers"),
    ],
)
def test_options_that_make_no_sense_are_named(words, message):
    model = TwoTasks()
    with pytest.raises(ValueError, match=message):
        build_balancer_from_args(parse(*words.split()), 2, model.shared, list(model.parameters()))


def test_options_reach_torchjd():
    model = TwoTasks()

    def built(words: str):
        return build_balancer_from_args(parse(*words.split()), 2, model.shared, list(model.parameters())).aggregator

    assert "max_iters=7" in repr(built("--balancer mgda --balancer-option max_iters=7"))
    preferring = built("--balancer upgrad --balancer-option pref_vector=1,3")
    plain = built("--balancer upgrad")
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert not torch.allclose(preferring(jacobian), plain(jacobian))


def test_flags_of_gradnorm_without_effect_are_told(capsys):
    build_balancer_from_args(parse("--balancer", "uw", "--gradnorm-alpha", "0.5"), 2, TwoTasks().shared)
    assert "WARNING: --gradnorm-alpha has no effect on --balancer uw" in capsys.readouterr().out


def test_without_shared_layers_the_default_is_the_fixed_sum(capsys):
    assert isinstance(build_balancer_from_args(parse(), 2, []), Fixed)
    assert "share no layer that trains" in (said := capsys.readouterr().out) and "(--balancer fixed)" in said
    assert isinstance(build_balancer_from_args(parse("--balancer", "uw"), 1, []), Fixed)
    aggregators = [n for n, e in TORCHJD_BALANCERS.items() if issubclass(balancer_class(n), Aggregated)]
    for name in ("gradnorm", *aggregators):
        with pytest.raises(ValueError, match=f"--balancer {name} needs layers that both tasks share.*--balancer fixed"):
            build_balancer_from_args(parse("--balancer", name), 2, [], [nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="2 numbers"):
        build_balancer_from_args(parse("--task-weights", "1"), 2, [])


def test_the_example_in_the_documentation_runs():
    result = doctest.testmod(utils.balancing.gradnorm)
    assert result.attempted >= 8 and result.failed == 0
