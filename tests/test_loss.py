"""The detection loss against the reference's numbers, the image loss, and both together."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.loss import ComputeJointLoss, ComputeLoss, FocalLoss, image_loss, scale_gains, smooth_bce

HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "anchor_t": 4.0, "fl_gamma": 0.0}
ANCHORS_P5 = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
ANCHORS_P6 = [
    [19, 27, 44, 40, 38, 94],
    [96, 68, 86, 152, 180, 137],
    [140, 301, 303, 264, 238, 542],
    [436, 615, 739, 380, 925, 792],
]
CASES = [
    "normal",
    "no_targets",
    "single_target",
    "crowded_duplicates",
    "border_extreme",
    "nc1",
    "nc80",
    "label_smoothing_0.1",
    "focal_1.5",
    "focal_1.5_no_targets",
    "cls_pw_2_obj_pw_0.5",
    "anchor_t_2",
    "scaled_gains",
    "p6_normal",
]


def head(nc: int = 4, p6: bool = False, cls_nc: int = 0) -> SimpleNamespace:
    """What the loss needs of a model."""
    stride = torch.tensor([8.0, 16.0, 32.0, 64.0] if p6 else [8.0, 16.0, 32.0])
    anchors = torch.tensor(ANCHORS_P6 if p6 else ANCHORS_P5).float().view(-1, 3, 2) / stride[:, None, None]
    detect = SimpleNamespace(anchors=anchors, stride=stride, na=3, nl=len(stride), nc=nc)
    return SimpleNamespace(detect=detect, cls_nc=cls_nc, hyp=HYP)


def maps(nc: int = 4, batch: int = 2, size: int = 64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = [(batch, 3, size // s, size // s, 5 + nc) for s in (8, 16, 32)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shape]


TARGETS = torch.tensor([[0, 1, 0.4, 0.5, 0.3, 0.4], [1, 3, 0.7, 0.2, 0.1, 0.2], [1, 0, 0.2, 0.8, 0.3, 0.3]])


@pytest.fixture(scope="module")
def reference(golden):
    with np.load(golden / "loss.npz") as arrays:
        return json.loads((golden / "loss.json").read_text()), dict(arrays)


def build(reference, name: str) -> tuple[ComputeLoss, list[torch.Tensor], torch.Tensor, dict]:
    facts, arrays = reference
    case = facts["cases"][name]
    loss = ComputeLoss(head(case["nc"], case["p6"]), facts["hyp_scratch_low"] | case["hyp_overrides"])
    p = [torch.tensor(arrays[f"{case['pred_key']}_{i}"]).requires_grad_() for i in range(3 + case["p6"])]
    return loss, p, torch.tensor(arrays[case["targets_key"]]), case


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_references(reference, name):
    loss, p, targets, case = build(reference, name)
    for call in case["calls"]:
        for x in p:
            x.grad = None
        total, parts = loss(p, targets)
        total.backward()
        assert total.shape == (1,)
        want = [call["total"], call["lbox"], call["lobj"], call["lcls"]]
        np.testing.assert_allclose([total.item(), *parts.tolist()], want, rtol=1e-5, atol=1e-6)
        # The reference's list has five entries whatever the number of levels; ours has one per level.
        np.testing.assert_allclose(loss.balance, call["balance_after"][: len(p)], rtol=1e-9)
    assert len(loss.balance) == len(p)
    for i, x in enumerate(p):
        np.testing.assert_allclose(x.grad, reference[1][f"{name}/grad_{i}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["normal", "border_extreme", "crowded_duplicates", "no_targets"])
def test_assignment_is_the_references(reference, name):
    loss, p, targets, case = build(reference, name)
    match = loss.assign([x.shape for x in p], targets)
    names = {"b": "image", "a": "anchor", "gj": "gj", "gi": "gi", "tbox": "box", "anch": "anchor_wh", "tcls": "cls"}
    got = {key: getattr(match, name).split(match.counts) for key, name in names.items()}
    assert match.counts == case["matches_per_layer"]
    for level in range(3):
        for key, values in got.items():
            value = values[level]
            np.testing.assert_allclose(value, reference[1][f"bt/{name}/L{level}/{key}"], atol=1e-5, err_msg=key)


def test_criterion_is_the_references(reference):
    table = reference[0]["criterion_table"]
    logits = torch.tensor(table["logits"], requires_grad=True)
    for row in table["rows"]:
        value = FocalLoss(row["gamma"], pos_weight=row["pos_weight"])(logits, torch.full_like(logits, row["target"]))
        grad = torch.autograd.grad(value.sum(), logits)[0]
        np.testing.assert_allclose(value.detach(), row["value"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(grad, row["grad"], rtol=1e-4, atol=1e-7)
    for eps, pair in reference[0]["smooth_bce"].items():
        assert smooth_bce(float(eps)) == pytest.approx(tuple(pair))


def test_gradients_stay_finite_where_a_predicted_box_is_empty():
    p = maps()
    with torch.no_grad():
        for x in p:
            x[..., 2:4] = -200.0  # sigmoid gives exactly 0: width and height 0
    total, _ = ComputeLoss(head())(p, TARGETS)
    total.backward()
    assert torch.isfinite(total).all()
    assert all(torch.isfinite(x.grad).all() for x in p)


def test_empty_target_boxes_match_nothing():
    empty = torch.tensor([[0, 1, 0.5, 0.5, 0.0, 0.0], [0, 1, 0.5, 0.5, 0.2, 0.0]])
    total, _ = ComputeLoss(head())(maps(), empty)
    nothing, _ = ComputeLoss(head())(maps(), torch.zeros(0, 6))
    assert torch.equal(total, nothing)


def test_a_cell_takes_the_last_target_that_falls_into_it():
    loss, p = ComputeLoss(head()), maps(batch=1)
    first, second = torch.tensor([[0, 1, 0.4, 0.5, 0.3, 0.4]]), torch.tensor([[0, 1, 0.4, 0.5, 0.25, 0.5]])
    # The same boxes in both orders: box and class losses agree, objectness follows the last.
    one, two = (loss(p, torch.cat(t))[1] for t in ((first, second), (second, first)))
    assert one[0] == pytest.approx(float(two[0]), rel=1e-5)
    assert one[2] == pytest.approx(float(two[2]), rel=1e-5)
    assert one[1] != two[1]


def test_loss_is_a_mean_per_picture():
    p = maps(batch=1)
    targets = TARGETS[:1]
    once, _ = ComputeLoss(head())(p, targets)
    twice, _ = ComputeLoss(head())([torch.cat((x, x)) for x in p], torch.cat((targets, targets + torch.eye(6)[:1])))
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-5)


def test_any_number_of_levels_has_its_own_balance():
    for levels in (1, 2, 4, 5, 7):
        model = head()
        model.detect.nl = levels
        model.detect.stride = torch.tensor([8.0 * 2**i for i in range(levels)])
        assert len(ComputeLoss(model).balance) == levels


def test_half_precision_maps_give_a_float32_loss():
    p = maps()
    full, _ = ComputeLoss(head())(p, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        half, parts = ComputeLoss(head())([x.bfloat16() for x in p], TARGETS)
    assert half.dtype == parts.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=2e-2)


# ---- image loss -----------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0], [0.0, 1.0, 0.0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_image_loss_on_one_hot_rows_is_cross_entropy(smoothing):
    labels = torch.tensor([0, 2, 1, 1])
    got = image_loss(LOGITS, F.one_hot(labels, 3).float(), smoothing)
    want = F.cross_entropy(LOGITS, labels, label_smoothing=smoothing)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


def test_image_loss_leaves_out_unknown_rows():
    targets = F.one_hot(torch.tensor([0, 2, 1, 1]), 3).float()
    targets[1] = targets[3] = 0
    for smoothing in (0.0, 0.2):
        assert torch.equal(image_loss(LOGITS, targets, smoothing), image_loss(LOGITS[::2], targets[::2], smoothing))


def test_image_loss_without_any_label_is_zero_with_a_graph():
    logits = LOGITS.clone().requires_grad_()
    loss = image_loss(logits, torch.zeros(4, 3), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(4, 3))


@given(share=st.floats(0, 1), smoothing=st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_image_loss_is_linear_in_mixed_targets(share, smoothing):
    one, two = torch.eye(3)[:1], torch.eye(3)[2:]
    mixed = image_loss(LOGITS[:1], share * one + (1 - share) * two, smoothing)
    parts = share * image_loss(LOGITS[:1], one, smoothing) + (1 - share) * image_loss(LOGITS[:1], two, smoothing)
    assert mixed.item() == pytest.approx(parts.item(), rel=1e-4)


def test_image_loss_says_which_shapes_differ():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\)"):
        image_loss(LOGITS, torch.zeros(4, 2))


# ---- both tasks -----------------------------------------------------------------------------------------------------


def test_joint_loss_names_its_parts_and_tasks():
    p, logits = maps(), LOGITS[:2].clone().requires_grad_()
    image_targets = F.one_hot(torch.tensor([1, 0]), 3).float()
    criterion = ComputeJointLoss(head(cls_nc=3))
    losses = criterion((p, logits), TARGETS, image_targets)
    detection, three = ComputeLoss(head())(p, TARGETS)
    assert criterion.parts == tuple(losses.parts) == ("box", "obj", "cls", "image")
    assert criterion.tasks == tuple(losses.tasks) == tuple(losses.present) == ("det", "image")
    assert torch.equal(torch.stack([losses.parts[k] for k in ("box", "obj", "cls")]), three)
    assert losses.tasks["det"].item() * 2 == pytest.approx(detection.item(), rel=1e-6)
    assert torch.equal(losses.tasks["image"], losses.parts["image"])
    assert losses.present == {"det": True, "image": True}
    assert not any(x.requires_grad for x in losses.parts.values())
    sum(losses.tasks.values()).backward()
    assert all(x.grad is not None for x in (*p, logits))


def test_joint_loss_of_a_detection_model_is_the_detection_loss():
    losses = ComputeJointLoss(head())(maps(), TARGETS, torch.zeros(2, 0))
    assert 2 * losses.tasks["det"].item() == pytest.approx(ComputeLoss(head())(maps(), TARGETS)[0].item())
    assert list(losses.tasks) == ["det"] and list(losses.parts) == ["box", "obj", "cls"]


def test_joint_loss_of_a_batch_without_labels():
    p, logits = maps(), LOGITS[:2].clone().requires_grad_()
    losses = ComputeJointLoss(head(cls_nc=3))((p, logits), torch.zeros(0, 6), torch.zeros(2, 3))
    sum(losses.tasks.values()).backward()
    assert losses.present == {"det": False, "image": False}
    assert losses.parts["image"] == 0 and losses.parts["box"] == 0 and losses.parts["obj"] > 0
    assert all(torch.isfinite(x.grad).all() for x in (*p, logits))


def test_gains_are_scaled_to_levels_classes_and_pixels():
    model = SimpleNamespace(detect=SimpleNamespace(nl=4), nc=20)
    scaled = scale_gains({"box": 0.05, "cls": 0.5, "obj": 1.0}, model, 1280, 0.1)
    assert scaled == pytest.approx({"box": 0.0375, "cls": 0.09375, "obj": 3.0, "label_smoothing": 0.1})


def test_the_image_label_smoothing_is_the_hyperparameters():
    network = head(cls_nc=3)
    network.hyp = network.hyp | {"image_label_smoothing": 0.1}
    logits, targets = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]), torch.eye(3)[:2]
    losses = ComputeJointLoss(network)((maps(), logits), TARGETS, targets)
    assert losses.parts["image"].item() == pytest.approx(image_loss(logits, targets, 0.1).item())
