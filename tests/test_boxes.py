"""Box conversions and overlaps against the reference numbers, and their invariants."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from utils import boxes as B

KINDS = {"iou": {}, "giou": {"GIoU": True}, "diou": {"DIoU": True}, "ciou": {"CIoU": True}}


@pytest.fixture(scope="module")
def reference(golden):
    return np.load(golden / "boxes.npz"), json.loads((golden / "boxes.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["xywh", "xyxy"])
def test_elementwise_iou(reference, kind, form):
    arrays, _ = reference
    box1, box2 = (torch.from_numpy(arrays[f"iou/box{i}_{form}"]).requires_grad_(i == 1) for i in (1, 2))
    value = B.bbox_iou(box1, box2, xywh=form == "xywh", **KINDS[kind])
    expected = arrays[f"iou/{kind}_from_{form}"]
    known = ~np.isnan(expected)  # the reference gives NaN for the CIoU of a 0x0 box; ours is finite
    assert torch.isfinite(value).all()
    np.testing.assert_allclose(value.detach().numpy()[known], expected[known], atol=1e-5)
    value.sum().backward()
    assert torch.isfinite(box1.grad).all()
    if form == "xywh":
        expected = arrays[f"iou/{kind}_grad_box1_xywh"]
        sound = np.isfinite(expected).all(1)
        if kind == "ciou":
            # Next to an empty box the shape term's slope is a division by (almost) zero: any number is as good.
            sound &= (arrays["iou/box1_xywh"][:, 2:] > 0).all(1)
        assert sound.sum() >= 30
        np.testing.assert_allclose(box1.grad.numpy()[sound], expected[sound], atol=1e-5, rtol=1e-4)


def test_pairwise_overlaps(reference):
    arrays, _ = reference
    one, two = arrays["iou/box1_xyxy"][:8], arrays["iou/box2_xyxy"][:10]
    np.testing.assert_allclose(
        B.box_iou(torch.from_numpy(one), torch.from_numpy(two)).numpy(), arrays["box_iou/matrix"], atol=1e-5
    )
    np.testing.assert_allclose(
        B.bbox_ioa(one.astype(np.float64), two.astype(np.float64)), arrays["bbox_ioa/matrix"], atol=1e-9
    )


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_conversions(reference, to):
    arrays, _ = reference
    x = lambda name: to(arrays[f"conv/{name}"].copy())  # noqa: E731
    size = {"w": 640, "h": 480}
    cases = {
        "xyxy2xywh": B.xyxy2xywh(x("xyxy")),
        "xywh2xyxy_of_xyxy2xywh": B.xywh2xyxy(B.xyxy2xywh(x("xyxy"))),
        "xywhn2xyxy_w640_h480": B.xywhn2xyxy(x("xywhn"), **size),
        "xywhn2xyxy_w640_h480_padw12.5_padh3": B.xywhn2xyxy(x("xywhn"), **size, padw=12.5, padh=3),
        "xyxy2xywhn_w640_h480": B.xyxy2xywhn(x("xyxy"), **size),
        "xyxy2xywhn_w640_h480_clip_eps1e-3": B.xyxy2xywhn(x("xyxy"), **size, clip=True, eps=1e-3),
        "clip_h480_w640": B.clip_boxes(x("xyxy"), (480, 640)),
    }
    for name, out in cases.items():
        assert isinstance(out, type(x("xyxy")))
        np.testing.assert_allclose(np.asarray(out), arrays[f"conv/{name}"], atol=1e-9, err_msg=name)


def test_conversions_leave_the_input_and_copy_further_columns():
    x = np.arange(12, dtype=np.float64).reshape(2, 6)
    before = x.copy()
    for convert in (B.xyxy2xywh, B.xywh2xyxy, B.xywhn2xyxy, lambda a: B.xyxy2xywhn(a, clip=True)):
        np.testing.assert_array_equal(convert(x)[:, 4:], before[:, 4:])
        np.testing.assert_array_equal(x, before)


def test_scale_boxes(reference):
    arrays, facts = reference
    for case in facts["scale_boxes"]:
        boxes = torch.from_numpy(arrays["scale/boxes"].copy())
        out = B.scale_boxes(case["img1_hw"], boxes, case["img0_hw"], case["ratio_pad"])
        assert out is boxes  # in place
        np.testing.assert_allclose(out.numpy(), arrays[f"scale/out_{case['i']}"], atol=1e-3, rtol=1e-5)


def test_scale_boxes_uses_the_gain_of_each_axis():
    # The reference takes the height's gain for both axes; the two differ where a side was rounded.
    boxes = np.array([[10.0, 20.0, 110.0, 70.0]])
    out = B.scale_boxes((100, 200), boxes, (1000, 1000), ((0.5, 0.25), (10.0, 20.0)))
    np.testing.assert_allclose(out, [[0, 0, 400, 100]])


def test_sizes(reference):
    _, facts = reference
    for case in facts["make_divisible"]:
        assert B.make_divisible(case["x"], case["divisor"]) == case["out"]
    for case in facts["check_img_size"]:
        assert B.check_img_size(case["imgsz"], s=case["stride"], floor=case["floor"]) == case["out"]
    assert B.make_divisible(33, torch.tensor([8.0, 16.0, 32.0])) == 64
