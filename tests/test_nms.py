"""Non-maximum suppression against the reference numbers, a plain loop and its invariants."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision

from utils import boxes as boxes_module
from utils.boxes import box_iou, non_max_suppression, xywh2xyxy


def random_prediction(n: int = 400, nc: int = 3, seed: int = 0, size: float = 320) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return torch.cat((rand(1, n, 2) * size, 10 + rand(1, n, 2) * 80, rand(1, n, 1 + nc)), 2)


def plain_nms(prediction: torch.Tensor, conf: float, iou: float) -> list[list[float]]:
    """One picture, best class alone, written as the loop of the definition."""
    rows = []
    for x in prediction:
        score, cls = (x[5:] * x[4]).max(0)
        if x[4] > conf and score > conf:
            rows.append([*xywh2xyxy(x[:4]).tolist(), score.item(), cls.item()])
    rows.sort(key=lambda r: -r[4])
    kept: list[list[float]] = []
    for r in rows:
        same = [k for k in kept if k[5] == r[5]]
        if not same or box_iou(torch.tensor([r[:4]]), torch.tensor([k[:4] for k in same])).max() <= iou:
            kept.append(r)
    return kept


def test_reference_cases(golden):
    cases = json.loads((golden / "nms.json").read_text())["cases"]
    arrays = np.load(golden / "nms.npz")
    assert len(cases) >= 18
    for case in cases:
        prediction = torch.from_numpy(arrays[f"pred/{case['pred']}"])
        before = prediction.clone()
        kwargs = dict(case["kwargs"])
        if case["uses_apriori_labels"]:
            kwargs["labels"] = [torch.from_numpy(arrays["apriori_labels_image0"]), torch.zeros(0, 5)]
        out = non_max_suppression(prediction, **kwargs)
        assert torch.equal(prediction, before)
        assert [len(o) for o in out] == case["n_out"], case["name"]
        for i, found in enumerate(out):
            expected = arrays[f"out/{case['name']}/{i}"]
            if case["uses_apriori_labels"] and i == 0:  # the two known boxes tie at 1.0; ours keep their own order
                expected[:2] = expected[1::-1]
            np.testing.assert_allclose(found[:, :4].numpy(), expected[:, :4], atol=1e-3, err_msg=case["name"])
            np.testing.assert_allclose(found[:, 4].numpy(), expected[:, 4], atol=1e-6, err_msg=case["name"])
            np.testing.assert_array_equal(found[:, 5].numpy(), expected[:, 5], err_msg=case["name"])
            np.testing.assert_allclose(found[:, 6:].numpy(), expected[:, 6:], atol=1e-6, err_msg=case["name"])


@pytest.mark.parametrize(("conf", "iou"), [(0.001, 0.6), (0.25, 0.45), (0.1, 0.1)])
def test_agrees_with_the_definition(conf, iou):
    prediction = random_prediction()
    expected = torch.tensor(plain_nms(prediction[0], conf, iou))
    found = non_max_suppression(prediction, conf, iou, max_det=1000)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_the_early_stop_changes_nothing(monkeypatch):
    prediction = random_prediction(6000, nc=2)
    quick = non_max_suppression(prediction, 0.001, 0.6, multi_label=True, max_det=150)[0]
    monkeypatch.setattr(
        boxes_module,
        "_greedy_nms",
        lambda b, s, iou, keep: torchvision.ops.nms(b, s, iou)[:keep],
    )
    torch.testing.assert_close(non_max_suppression(prediction, 0.001, 0.6, multi_label=True, max_det=150)[0], quick)
    assert len(quick) == 150


def test_the_best_boxes_enter(monkeypatch):
    prediction = random_prediction()
    scores = (prediction[0, :, 5:] * prediction[0, :, 4:5]).max(1).values.sort(descending=True).values
    expected = non_max_suppression(prediction, scores[50].item(), 0.6)[0]  # fifty scores are above it
    monkeypatch.setattr(boxes_module, "MAX_NMS_BOXES", 50)
    torch.testing.assert_close(non_max_suppression(prediction, 0.001, 0.6)[0], expected)


def test_both_thresholds_are_strict():
    two = torch.tensor([[[50.0, 50, 20, 20, 1.0, 0.5], [50, 50, 20, 20, 1.0, 0.25]]])
    assert len(non_max_suppression(two, conf_thres=0.5, iou_thres=0.5)[0]) == 0
    assert len(non_max_suppression(two, conf_thres=0.25, iou_thres=0.5)[0]) == 1
    # The objectness is tested on its own, before the score is.
    prior = torch.tensor([[[50.0, 50, 20, 20, 0.3, 1.0]]])
    assert len(non_max_suppression(prior, conf_thres=0.3)[0]) == 0
    # An IoU equal to the threshold stays.
    thirds = torch.tensor([[[50.0, 50, 40, 20, 1.0, 0.9], [70.0, 50, 40, 20, 1.0, 0.8]]])
    half = torch.tensor([[[50.0, 50, 40, 20, 1.0, 0.9], [60.0, 50, 20, 20, 1.0, 0.8]]])  # IoU 0.5 exactly
    assert len(non_max_suppression(half, 0.1, iou_thres=0.5)[0]) == 2
    assert len(non_max_suppression(half, 0.1, iou_thres=0.49)[0]) == 1
    assert len(non_max_suppression(thirds, 0.1, iou_thres=0.34)[0]) == 2


def test_classes_are_apart_whatever_the_picture_size():
    # A fixed shift of 7680 px per class makes classes meet in larger pictures.
    far = torch.tensor([[[7730.0, 50, 20, 20, 1.0, 0.9, 0.0], [50.0, 50, 20, 20, 1.0, 0.0, 0.8]]])
    assert len(non_max_suppression(far, 0.1, 0.1)[0]) == 2
    same_place = torch.tensor([[[50.0, 50, 20, 20, 1.0, 0.9, 0.0], [50.0, 50, 20, 20, 1.0, 0.0, 0.8]]])
    assert len(non_max_suppression(same_place, 0.1, 0.1)[0]) == 2
    assert len(non_max_suppression(same_place, 0.1, 0.1, agnostic=True)[0]) == 1


def test_no_candidates_half_precision_and_tuple():
    prediction = random_prediction(50)
    empty = non_max_suppression(prediction * torch.tensor([1, 1, 1, 1, 0, 1, 1, 1]))[0]
    assert empty.shape == (0, 6)
    assert non_max_suppression(torch.zeros(2, 0, 8), multi_label=True)[1].shape == (0, 6)
    assert len(non_max_suppression((prediction.bfloat16(), None))[0])


def test_bad_threshold_is_an_error():
    with pytest.raises(ValueError, match="confidence threshold"):
        non_max_suppression(torch.zeros(1, 1, 6), conf_thres=1.2)


def test_classes_do_not_meet_left_of_the_picture():
    """They are told apart by moving them; boxes may begin below 0."""
    boxes = torch.tensor([[95.0, 5, 10, 10, 0.9, 1, 0], [-5.0, 5, 10, 10, 0.8, 0, 1]])[None]
    assert len(non_max_suppression(boxes)[0]) == 2
