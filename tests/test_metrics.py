"""Metrics of both tasks against the reference numbers, scikit-learn and the definitions."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import metrics as M


@pytest.fixture(scope="module")
def reference(golden):
    return np.load(golden / "metrics.npz"), json.loads((golden / "metrics.json").read_text())


# --- detection ----------------------------------------------------------------------------------------------------


def test_average_precision(reference):
    arrays, facts = reference
    cases = [c for c in facts["ap_cases"] if "raises" not in c]
    assert len(cases) >= 11
    for case in cases:
        get = lambda key: arrays[f"ap/{case['name']}/{key}"]  # noqa: B023, E731
        stats = [get(k) for k in ("tp", "conf", "pred_cls", "target_cls")]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the reference warns where there is no label
            out = M.ap_per_class(*stats, precision_without_detections=1.0)
        np.testing.assert_array_equal(out.classes, get("out_ap_class"))
        for key in ("tp", "fp", "p", "r", "f1", "ap"):
            np.testing.assert_allclose(getattr(out, key), get(f"out_{key}"), atol=1e-9, err_msg=case["name"])
        # Ours differs in the precision of classes without a detection at the threshold alone.
        ours = M.ap_per_class(*stats)
        np.testing.assert_allclose(ours.f1, get("out_f1"), atol=1e-9)
        np.testing.assert_allclose(ours.p, np.where((out.p == 1) & (out.r == 0), 0, out.p), atol=1e-9)


def test_a_whole_validation(golden):
    """53486 predictions of the reference's own validation of a real data set."""
    arrays = np.load(golden / "validation.npz")
    expected = json.loads((golden / "validation.json").read_text())["val"]
    tp = np.unpackbits(arrays["stats_tp"], axis=1)[:, :10].astype(bool)
    stats = [arrays[f"stats_{k}"] for k in ("conf", "pred_cls", "target_cls")]
    out = M.ap_per_class(tp, *stats, precision_without_detections=1.0)
    means = [out.p.mean(), out.r.mean(), out.ap[:, 0].mean(), out.ap.mean()]
    np.testing.assert_allclose(means, [expected[k] for k in ("P", "R", "mAP50", "mAP50_95")], atol=1e-9)


def test_a_class_without_a_detection_at_the_threshold_has_precision_0():
    # Class 0 is right at 0.9 and wrong at 0.5, class 1 speaks up only at 0.1: the reference says P = 1 for it.
    conf = np.repeat(np.array([0.9, 0.5, 0.1], dtype=np.float32), [20, 20, 40])
    pred_cls = np.repeat([0, 1], 40)
    tp = np.repeat(np.isin(np.arange(80), [*range(20), 40])[:, None], 10, axis=1)
    out = M.ap_per_class(tp, conf, pred_cls, np.array([0] * 20 + [1] * 20))
    assert out.threshold > 0.5
    np.testing.assert_allclose(out.p, [1, 0], atol=0.01)
    np.testing.assert_allclose(out.r, [1, 0], atol=0.01)


def test_compute_ap(reference):
    arrays, _ = reference
    for j in range(4):
        ap, envelope, recall = M.compute_ap(arrays[f"compute_ap/{j}/recall"], arrays[f"compute_ap/{j}/precision"])
        assert ap == pytest.approx(float(arrays[f"compute_ap/{j}/ap"]), abs=1e-9)
        np.testing.assert_allclose(envelope, arrays[f"compute_ap/{j}/mpre"], atol=1e-9)
        np.testing.assert_allclose(recall, arrays[f"compute_ap/{j}/mrec"], atol=1e-9)


def test_smooth_and_fitness(reference):
    arrays, facts = reference
    for name, fraction in facts["smooth_f"].items():
        out = M.smooth(arrays[f"smooth/{name}/in"], fraction)
        np.testing.assert_allclose(out, arrays[f"smooth/{name}/out"], atol=1e-9)
    np.testing.assert_allclose(M.fitness(arrays["fitness/in"]), arrays["fitness/out"], atol=1e-12)


def test_joint_fitness():
    assert M.joint_fitness(0.5, 0.2) == pytest.approx(0.23)
    assert M.joint_fitness(0.5, 0.2, 0.9) == pytest.approx((0.23 + 0.9) / 2)
    assert M.joint_fitness(0.5, 0.2, 0.9, weight=0.25) == pytest.approx(0.75 * 0.23 + 0.25 * 0.9)
    with pytest.raises(ValueError, match="share"):
        M.joint_fitness(0.5, 0.2, 0.9, weight=1.5)


def test_matching(reference):
    arrays, facts = reference
    for case in facts["process_batch_cases"]:
        detections, labels = (torch.from_numpy(arrays[f"pb/{case['name']}/{k}"]) for k in ("detections", "labels"))
        correct = M.match_predictions(detections, labels, arrays["iouv"])
        np.testing.assert_array_equal(correct, arrays[f"pb/{case['name']}/correct"], err_msg=case["name"])
    np.testing.assert_array_equal(M.IOU_LEVELS, arrays["iouv"])


def test_confusion_matrix(reference):
    arrays, facts = reference
    forgotten = {}
    for case in facts["confusion_cases"]:
        matrix = M.ConfusionMatrix(case["nc"], case["conf"], case["iou_thres"])
        pictures = []
        for i, none in enumerate(case["detections_none"]):
            labels = torch.from_numpy(arrays[f"cm/{case['name']}/{i}/labels"])
            detections = None if none else torch.from_numpy(arrays[f"cm/{case['name']}/{i}/detections"])
            matrix.process_batch(detections, labels)
            pictures.append((detections, labels))
        expected = arrays[f"cm/{case['name']}/matrix"].copy()
        # Where nothing matches in a picture the reference forgets its false positives; all else is the same.
        forgotten[case["name"]] = int((matrix.matrix - expected)[:-1, -1].sum())
        assert forgotten[case["name"]] >= 0
        expected[:, -1] = matrix.matrix[:, -1]
        np.testing.assert_array_equal(matrix.matrix, expected, err_msg=case["name"])
        confident = sum(int((d[:, 4] > case["conf"]).sum()) for d, _ in pictures if d is not None)
        assert matrix.matrix[:-1].sum() == confident  # each detection once
        assert matrix.matrix[:, :-1].sum() == sum(len(labels) for _, labels in pictures)  # each label once
    assert forgotten["normal"] == 0 and forgotten["no_overlap_at_all"] > 0


def test_confusion_matrix_counts_pictures_without_labels():
    matrix = M.ConfusionMatrix(2)
    matrix.process_batch(torch.tensor([[0, 0, 9, 9, 0.9, 1.0], [0, 0, 9, 9, 0.1, 1.0]]), torch.zeros(0, 5))
    matrix.process_batch(torch.zeros(0, 6), torch.zeros(0, 5))
    np.testing.assert_array_equal(matrix.matrix, [[0, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_detection_metrics_counts_and_undefined_classes():
    metrics = M.DetectionMetrics({0: "a", 1: "b", 2: "b"})
    box = [10.0, 10, 50, 50]
    metrics.update(torch.tensor([[*box, 0.9, 0.0]]), torch.tensor([[0.0, *box], [1, *box]]))
    metrics.update(torch.zeros(0, 6), torch.tensor([[0.0, *box]]))
    metrics.update(torch.zeros(0, 6), torch.zeros(0, 5))
    out = metrics.compute()
    assert metrics.images == 3
    assert set(out["per_class"]) == {"a", "b (1)", "b (2)"}
    assert out["per_class"]["a"]["images"] == 2 and out["per_class"]["a"]["objects"] == 2
    assert out["per_class"]["a"]["recall"] == pytest.approx(0.5)
    assert out["per_class"]["b (1)"]["map50"] == 0.0
    assert out["per_class"]["b (2)"]["map50"] is None  # no labels: undefined, and not in the mean
    assert out["map50"] == pytest.approx(out["per_class"]["a"]["map50"] / 2)
    np.testing.assert_allclose(metrics.maps, [2 * out["map50_95"], 0, out["map50_95"]])


def test_detection_metrics_of_nothing():
    empty = M.DetectionMetrics({0: "a"})
    assert empty.compute()["map50"] == 0.0
    background = M.DetectionMetrics({0: "a"})
    background.update(torch.tensor([[0, 0, 9, 9, 0.9, 0.0]]), torch.zeros(0, 5))
    assert background.compute()["precision"] == 0.0
    assert background.confusion.matrix[0, 1] == 1


# --- image-level answer -------------------------------------------------------------------------------------------


def one_hot(true: np.ndarray, classes: int) -> torch.Tensor:
    return torch.eye(classes)[torch.as_tensor(true)]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 60))
def test_image_metrics_agree_with_scikit_learn(seed, classes, n):
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    probs = rng.dirichlet(np.ones(classes), n).round(2)  # rounding makes ties
    probs /= probs.sum(1, keepdims=True)
    metrics = M.ImageMetrics({i: f"c{i}" for i in range(classes)})
    for part in np.array_split(np.arange(n), 3):
        metrics.update(torch.from_numpy(probs[part]), one_hot(true[part], classes))
    out = metrics.compute()
    probs = probs.astype(np.float32)
    predicted = probs.argmax(1)
    assert out["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted but do not occur
        assert out["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(true, predicted))
    assert out["macro_f1"] == pytest.approx(sk.f1_score(true, predicted, average="macro"))
    p, r, f1, support = sk.precision_recall_fscore_support(true, predicted, labels=np.arange(classes), zero_division=0)
    areas = []
    for c, row in enumerate(out["per_class"].values()):
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx([p[c], r[c], f1[c]])
        assert row["support"] == support[c]
        if 0 < support[c] < n:
            areas.append(sk.roc_auc_score(true == c, probs[:, c]))
            assert row["auroc"] == pytest.approx(areas[-1])
        else:
            assert row["auroc"] is None
    assert out["auroc"] == (pytest.approx(np.mean(areas)) if areas else None)
    np.testing.assert_array_equal(
        np.array(out["confusion_matrix"]).T, sk.confusion_matrix(true, predicted, labels=np.arange(classes))
    )


def test_calibration_error():
    # Two bins: 0.95 sure and 3 of 4 right, 0.55 sure and 1 of 2 right.
    confidence, correct = np.array([0.95] * 4 + [0.55] * 2), np.array([1, 1, 1, 0, 1, 0], dtype=bool)
    expected = (4 * abs(0.95 - 0.75) + 2 * abs(0.55 - 0.5)) / 6
    assert M.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert M.expected_calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0


def test_unknown_pictures_are_counted_and_left_out():
    metrics = M.ImageMetrics({0: "x", 1: "y"})
    metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), torch.tensor([[1.0, 0], [0, 0], [0, 1]]))
    out = metrics.compute()
    assert (out["known"], out["unknown"], out["accuracy"]) == (2, 1, 0.5)


def test_image_metrics_without_known_labels_are_none():
    metrics = M.ImageMetrics({0: "x", 1: "y"})
    metrics.update(torch.tensor([[0.9, 0.1]]), torch.zeros(1, 2))
    out = metrics.compute()
    assert out["accuracy"] is None and out["auroc"] is None and out["unknown"] == 1
    assert out["per_class"]["x"]["support"] == 0
    json.dumps(out)
    with pytest.raises(ValueError, match="image classes"):
        metrics.update(torch.zeros(1, 3), torch.zeros(1, 3))


def test_equal_confidences_keep_the_order_of_the_detections():
    tp, conf, cls = np.array([[True], [False]]), np.array([0.5, 0.5]), np.zeros(2)
    first, second = (M.ap_per_class(hits, conf, cls, np.zeros(1)).ap[0, 0] for hits in (tp, tp[::-1]))
    assert first > second


def test_equal_scores_count_half_in_auroc():
    assert M.auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert M.auroc(np.array([0.2, 0.5, 0.5, 0.9]), np.array([False, True, False, True])) == 0.875
