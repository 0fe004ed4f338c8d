"""Assignment, losses and recipe of temporal detection: the figures of the reference, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tad_golden import arrays, clip, figures, mask, small_model, unit
from torchvision.ops import sigmoid_focal_loss

from tad.loss import assign, diou, focal, window_losses
from tad.optim import build_optimizer
from tad.schedule import WarmupCosine, learning_rate
from tad.segments import decode, points
from tad.weights import to_public
from utils.training.average import ModelEMA

CASES = figures("assign_loss")["cases"]


def events(case: dict) -> tuple[list, list]:
    segments = [torch.tensor(s, dtype=torch.float32).reshape(-1, 2) for s in case["segments"]]
    return segments, [torch.tensor(n, dtype=torch.long) for n in case["labels"]]


def losses_of(case: dict, normaliser: torch.Tensor, logits, offsets, valid):
    segments, labels = events(case)
    return window_losses(
        (logits, offsets, valid), points(case["T"], case["levels"]), segments, labels, normaliser,
        training=case["training"], label_smoothing=case["label_smoothing"], reg_weight=case["loss_weight"],
    )  # fmt: skip


def answers(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, offsets and valid points of a case, by its rule."""
    k, t, n = case["prediction_stream"], case["T"], len(case["segments"])
    logits, offsets = [], []
    for i in range(case["levels"]):
        logits.append(np.float32(3 * unit((n, case["classes"], t >> i), k + i) - 1))
        offsets.append(np.float32(np.maximum(3 * unit((n, 2, t >> i), k + 100 + i) + 1.2, 0)))
    logits, offsets = (torch.from_numpy(np.concatenate(x, 2)).transpose(1, 2).contiguous() for x in (logits, offsets))
    return logits, offsets, torch.cat([mask(case["valid_lengths"], t)[:, :: 2**i] for i in range(case["levels"])], 1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_losses_targets_and_gradients(case):
    z, name = arrays("assign_loss"), case["name"]
    logits, offsets, valid = answers(case)
    if f"{name}/logits" in z:
        assert np.array_equal(logits, z[f"{name}/logits"]) and np.array_equal(offsets, z[f"{name}/offsets"])
        assert np.array_equal(valid, z[f"{name}/valid"])
    logits.requires_grad_(), offsets.requires_grad_()
    at = points(case["T"], case["levels"])
    pairs = [assign(at, s, n, case["classes"]) for s, n in zip(*events(case), strict=True)]
    target, distances = (torch.stack(p) for p in zip(*pairs, strict=True))
    positive = (target.sum(-1) > 0) & valid
    assert positive.nonzero().tolist() == case["positive_points"]
    if f"{name}/cls_target" in z:
        assert np.array_equal(target, z[f"{name}/cls_target"])
        assert np.allclose(distances[positive], z[f"{name}/reg_target"][positive.numpy()], atol=1e-5)
    else:
        assert np.array_equal(target[positive], z[f"{name}/positive_cls_target"])
        assert np.allclose(distances[positive], z[f"{name}/positive_reg_target"], atol=1e-5)
    normaliser = torch.tensor(float(case["normaliser_before"]))
    losses = losses_of(case, normaliser, logits, offsets, valid)
    assert losses.positives.item() == case["positives"]
    assert losses.cls.item() == pytest.approx(case["cls_loss"], rel=1e-5)
    assert losses.reg.item() == pytest.approx(case["reg_loss"], rel=1e-5, abs=1e-7)
    assert normaliser.item() == pytest.approx(case["normaliser_after"], rel=1e-6)
    (losses.cls + losses.reg).backward()
    for grad, key, stats in ((logits.grad, "grad_logits", "grad_cls_stats"),
                             (offsets.grad, "grad_offsets", "grad_reg_stats")):  # fmt: skip
        if f"{name}/{key}" in z:
            assert np.allclose(grad, z[f"{name}/{key}"], atol=1e-6)
        assert grad.double().abs().sum().item() == pytest.approx(case[stats]["abs_sum"], rel=1e-4, abs=1e-7)


def test_points():
    assert np.array_equal(points(48, 4), arrays("assign_loss")["points_small"])
    assert np.array_equal(points(768, 6), arrays("decode_nms")["points_true_size"])
    assert len(points(768, 6)) == 1512


def test_focal_and_diou_of_single_values():
    z = arrays("assign_loss")
    logit, target = (torch.from_numpy(z[f"focal/{k}"]).float() for k in ("logit", "target"))
    logit.requires_grad_()
    loss = focal(logit, target)
    loss.sum().backward()
    assert np.allclose(loss.detach(), z["focal/loss"], rtol=1e-5, atol=1e-7)
    assert np.allclose(logit.grad, z["focal/grad"], rtol=1e-4, atol=1e-7)
    assert torch.allclose(loss, sigmoid_focal_loss(logit, target), atol=1e-6)
    predicted = torch.from_numpy(z["diou/pred"]).requires_grad_()
    loss = diou(predicted, torch.from_numpy(z["diou/target"]))
    loss.sum().backward()
    assert np.allclose(loss.detach(), z["diou/loss"], rtol=1e-5, atol=1e-6)
    assert np.allclose(predicted.grad, z["diou/grad_pred"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "loss"),
    [((0, 2), (0, 2), 0.0), ((0, 2), (4, 6), 1 + 16 / 36), ((0, 4), (2, 4), 0.5 + 1 / 16), ((3, 3), (3, 3), 1.0)],
)
def test_diou_by_hand(a, b, loss):
    assert diou(torch.tensor(a).float(), torch.tensor(b).float()).item() == pytest.approx(loss, abs=1e-6)


def test_who_answers_by_hand():
    at = points(48, 4)
    target, _ = assign(at, torch.tensor([[10.0, 20.0]]), torch.tensor([0]), 3)
    who = {(t, int(s)) for t, _, _, s in at[target[:, 0] > 0].tolist()}
    # level 1: 12 and 18 lie on the border of the middle; level 2: 8 is inside its range at 12, 16 is too near
    assert who == {(14.0, 2), (16.0, 2), (12.0, 4)}


EVENTS = st.lists(
    st.tuples(st.integers(0, 44), st.integers(0, 40), st.integers(0, 2)).map(
        lambda e: (e[0] + 0.25 * (e[1] % 3), e[0] + e[1] * 0.75, e[2])
    ),
    max_size=6,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(EVENTS)
def test_assignment_is_that_of_a_plain_loop(rows):
    at = points(48, 4)
    segments = torch.tensor([r[:2] for r in rows], dtype=torch.float32).reshape(-1, 2)
    labels = torch.tensor([r[2] for r in rows], dtype=torch.long)
    target, distances = assign(at, segments, labels, 3)
    for i, (t, low, high, stride) in enumerate(at.tolist()):
        passing = []
        for (start, end), label in zip(segments.tolist(), labels.tolist(), strict=True):
            middle = (start + end) / 2
            inside = max(start, middle - 1.5 * stride) < t < min(end, middle + 1.5 * stride)
            if inside and low <= max(t - start, end - t) <= high:
                passing.append((end - start, start, end, label))
        wanted = [0.0] * 3
        if passing:
            shortest = min(passing, key=lambda p: p[0])
            for length, *_, label in passing:
                if length <= shortest[0] + 1e-3:
                    wanted[label] = 1.0
            ends = [(t - shortest[1]) / stride, (shortest[2] - t) / stride]
            assert distances[i].tolist() == pytest.approx(ends, abs=1e-5)
        assert target[i].tolist() == wanted


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.5, 40)), min_size=1, max_size=8))
def test_decoding_undoes_encoding(rows):
    at = points(48, 4)
    for start, length in rows:
        segment = torch.tensor([start, start + length])
        offsets = torch.stack([at[:, 0] - segment[0], segment[1] - at[:, 0]], 1) / at[:, 3:]
        assert torch.allclose(decode(offsets, at), segment.expand(len(at), 2), atol=1e-3)


def test_the_normaliser_moves_before_it_is_used():
    normaliser = torch.tensor(100.0)
    case = next(c for c in CASES if c["name"] == "two_segments")
    logits, offsets, valid = answers(case)
    first = losses_of(case, normaliser, logits, offsets, valid).cls
    second = losses_of(case, normaliser, logits, offsets, valid).cls
    assert normaliser.item() == pytest.approx(0.9 * 90.8 + 0.8) and second > first
    before = normaliser.clone()
    losses_of(case | {"training": False}, normaliser, logits, offsets, valid)
    assert torch.equal(normaliser, before)


# Recipe ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", figures("data")["schedule"], ids=lambda c: c["name"])
def test_learning_rates(case):
    n = case["iterations_per_epoch"]
    warmup, total = case["warmup_epochs"] * n, case["max_epochs"] * n
    for batch, rates in case["at"].items():
        ours = [learning_rate(base, int(batch), warmup, total) for base in case["base_lr"]]
        assert ours == pytest.approx(rates, rel=1e-9)
    sums = [sum(learning_rate(base, k, warmup, total) for k in range(total)) for base in case["base_lr"]]
    assert sums == pytest.approx(case["sum_all"], rel=1e-9)


@pytest.mark.slow
def test_eight_steps_of_the_recipe():
    """Gradients of the first step, then losses, norms, weights and averages of eight steps."""
    info, z = figures("train_small"), arrays("train_small")
    model = small_model().train()
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0  # of drop path
    groups = model.parameter_groups()
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    schedule = WarmupCosine(3, 1, 4, 4)
    average = ModelEMA(model, 0.999, tau=1e-9)
    at = points(48, 4)
    for step in info["steps"]:
        schedule.apply(optimizer, step["step"])
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(step["lr"], rel=1e-6)
        answer = model(clip(2, 48, 32, 32, step["clip_seed"]), mask(step["valid_lengths"], 48))
        losses = window_losses(answer, at, *events(step), model.detector.head.loss_normalizer)
        assert losses.cls.item() == pytest.approx(step["cls_loss"], rel=1e-4)
        assert losses.reg.item() == pytest.approx(step["reg_loss"], rel=1e-4)
        (losses.cls + losses.reg).backward()
        if step["step"] == 0:
            grads = {n: p.grad for n, p in to_public(dict(model.named_parameters())).items()}
            for name in (n for n in z.files if n.startswith("grad/")):
                ours = grads[f"module.{name[5:]}"]
                assert np.abs(ours.numpy() - z[name]).max() <= 2e-4, name
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        assert model.detector.head.loss_normalizer.item() == pytest.approx(step["normaliser"], rel=1e-6)
    after, mean = to_public(model.state_dict()), to_public(average.model.state_dict())
    compared = 0
    for name in z.files:
        kind, _, public = name.partition("/")
        if kind in ("after", "ema") and "loss_normalizer" not in public:
            # in the reference the averaged normaliser is a whole number that falls by one a step; ours is the average
            ours = (after if kind == "after" else mean)[f"module.{public}"]
            assert np.abs(ours.numpy() - z[name]).max() <= (5e-5 if kind == "after" else 5e-6), name
            compared += 1
    assert compared > 300
    frozen = {n for n in info["unchanged_after_training"]}
    begun = to_public(small_model().state_dict())
    unchanged = {n.removeprefix("module.") for n in after if torch.equal(after[n], begun[n])}
    assert unchanged == frozen
    for kind, net in (("eval_live", model.eval()), ("eval_ema", average.model)):
        with torch.no_grad():
            logits, offsets, valid = net(clip(2, 48, 32, 32, 101), mask([48, 48], 48))
        assert np.abs(logits[0][valid[0]].sigmoid().numpy() - z[f"{kind}/scores0"]).max() <= 5e-5
        assert np.abs(decode(offsets, at)[0].numpy() - z[f"{kind}/proposals0"]).max() <= 1e-3


def test_the_average_of_weights():
    info = figures("data")["ema"]
    net = torch.nn.Module()
    net.w = torch.nn.Parameter(torch.tensor(info["start_w"]))
    net.register_buffer("n", torch.tensor(float(info["start_n"])))
    average = ModelEMA(net, info["decay"], tau=1e-9)
    wanted_n, whole_n = float(info["start_n"]), info["start_n"]
    for step, (count, row) in enumerate(zip(info["positives"], info["after_each_update"], strict=True), 1):
        net.w.data.copy_(torch.tensor(row["live_w"]))
        net.n.copy_(0.9 * net.n + 0.1 * count)
        average.update()
        wanted_n = 0.999 * wanted_n + 0.001 * row["live_n"]
        assert average.model.w.tolist() == pytest.approx(row["ema_w"], abs=1e-6)
        assert net.n.item() == pytest.approx(row["live_n"], rel=1e-6)
        assert average.model.n.item() == pytest.approx(wanted_n, rel=1e-6)
        # the reference keeps a whole number: each step cuts off what the average has behind the point
        assert row["ema_n_dtype"] == "torch.int64" and row["ema_n"] == int(0.999 * whole_n + 0.001 * row["live_n"])
        assert abs(average.model.n.item() - row["ema_n"]) > 0.9 * min(step, 5)
        whole_n = row["ema_n"]


def test_muon_takes_adams_steps_for_all_but_matrices():
    torch.manual_seed(0)
    model = small_model(freeze=False, optimizer="muon", lr=1e-3, weight_decay=0.1)
    twin = small_model(freeze=False)
    optimizer = build_optimizer(model)
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.01, 1e-3]
    plain = optimizer.param_groups[1]["params"]
    names = {id(p): name for name, p in model.named_parameters()}
    others = dict(twin.named_parameters())
    same = [others[names[id(p)]] for p in plain]
    adam = torch.optim.AdamW(same, lr=1e-3, weight_decay=0.1)
    assert all("head.weight" not in names[id(p)] for p in optimizer.param_groups[0]["params"])
    for step in range(3):
        for p, q in zip(plain, same, strict=True):
            p.grad = q.grad = torch.full_like(p, 0.1 * (step + 1)) + p.detach() * 0.01
        optimizer.step()
        adam.step()
    for p, q in zip(plain, same, strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    trained = sum(len(g["params"]) for g in optimizer.param_groups)
    assert trained == sum(p.requires_grad for p in model.parameters())
