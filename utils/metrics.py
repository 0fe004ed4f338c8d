"""Metrics of both tasks: precision, recall, AP and the confusion matrix of the boxes; accuracy, F1, AUROC and
calibration of the image-level answer.

`DetectionMetrics` and `ImageMetrics` take one picture or one batch at a time and give a plain dictionary at the end.
What several processes collected merges into what one of them would have, to the last bit: it is put into the order of
the batches' numbers before anything is summed up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from utils.boxes import box_iou

IOU_LEVELS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
CURVE_POINTS = np.linspace(0, 1, 1000)  # the confidences of the curves
RECALL_POINTS = np.linspace(0, 1, 101)  # where the precision envelope is integrated
FITNESS_WEIGHTS = (0.0, 0.0, 0.1, 0.9)  # of P, R, mAP50, mAP50-95


# --- fitness ------------------------------------------------------------------------------------------------------


def fitness(metrics: np.ndarray, weight: Sequence[float] = FITNESS_WEIGHTS) -> np.ndarray:
    """Detection fitness ``[n]`` of rows ``[n, >=4]`` that start with P, R, mAP50, mAP50-95."""
    return (np.asarray(metrics)[:, :4] * np.asarray(weight)).sum(1)


def joint_fitness(map50: float, map50_95: float, image_accuracy: float | None = None, weight: float = 0.5) -> float:
    """Detection fitness averaged with the image accuracy, which has the share ``weight`` (0..1).

    Without an image accuracy (a detection-only model, or no picture with a known image label): detection fitness.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the image accuracy's share of the fitness must lie in 0..1, got {weight}")
    detection = FITNESS_WEIGHTS[2] * map50 + FITNESS_WEIGHTS[3] * map50_95
    return float(detection if image_accuracy is None else (1 - weight) * detection + weight * image_accuracy)


# --- average precision --------------------------------------------------------------------------------------------


def smooth(y: np.ndarray, f: float = 0.05) -> np.ndarray:
    """Box filter over the fraction ``f`` of the points ``[n]``; the end values are repeated beyond the ends."""
    width = round(len(y) * f * 2) // 2 + 1
    ends = np.ones(width // 2)
    padded = np.concatenate((ends * y[0], y, ends * y[-1]))
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def compute_ap(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Area under a precision-recall curve ``[n]``: the envelope (the best precision at that recall or beyond), linear
    between its points, by the trapezoid rule over 101 recalls.

    Returns:
        The area, the envelope and its recalls ``[n+2]`` (with the end points (0, 1) and (1, 0)).
    """
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([1.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    y = np.interp(RECALL_POINTS, recall, envelope)
    area = ((y[1:] + y[:-1]) / 2 * np.diff(RECALL_POINTS)).sum()
    return float(area), envelope, recall


@dataclass(frozen=True)
class APResult:
    """What `ap_per_class` finds, for the ``k`` classes that have labels."""

    classes: np.ndarray  # [k] class numbers
    tp: np.ndarray  # [k] true positives at the threshold
    fp: np.ndarray  # [k] false positives at the threshold
    p: np.ndarray  # [k] precision at the threshold
    r: np.ndarray  # [k] recall at the threshold
    f1: np.ndarray  # [k] F1 at the threshold
    ap: np.ndarray  # [k, IoU levels]
    threshold: float  # the confidence with the largest mean F1
    p_curve: np.ndarray  # [k, 1000] over CURVE_POINTS
    r_curve: np.ndarray  # [k, 1000]
    f1_curve: np.ndarray  # [k, 1000]
    pr_curve: np.ndarray  # [k, 1000] precision at IoU 0.5 over recall (CURVE_POINTS)


def ap_per_class(
    tp: np.ndarray,
    conf: np.ndarray,
    pred_cls: np.ndarray,
    target_cls: np.ndarray,
    eps: float = 1e-16,
    precision_without_detections: float = 0.0,
) -> APResult:
    """Average precision, and precision, recall and F1 where the class-mean F1 (smoothed) is largest.

    Args:
        tp: ``[n, levels]``, whether a detection is right at each IoU level.
        conf, pred_cls: ``[n]``, confidence and class of the detections.
        target_cls: ``[m]``, classes of the labels. Detections of a class without labels count nowhere.
        precision_without_detections: the precision of a class that has no detection at the threshold. YOLOv5 says 1,
            which lifts its mean precision; pass 1.0 to compare with it. Nothing else depends on it.
    """
    order = np.argsort(-conf, kind="stable")
    tp, conf, pred_cls = tp[order], conf[order], pred_cls[order]
    classes, label_counts = np.unique(target_cls, return_counts=True)
    k = len(classes)
    ap = np.zeros((k, tp.shape[1]))
    p_curve, r_curve, pr_curve = (np.zeros((k, len(CURVE_POINTS))) for _ in range(3))
    for row, (cls, n_labels) in enumerate(zip(classes, label_counts, strict=True)):
        mine = pred_cls == cls
        if not mine.any():
            continue
        hits = tp[mine].cumsum(0)
        misses = (~tp[mine].astype(bool)).cumsum(0)
        recall = hits / (n_labels + eps)
        precision = hits / (hits + misses)
        # Confidences fall, and interp wants them to rise.
        r_curve[row] = np.interp(-CURVE_POINTS, -conf[mine], recall[:, 0], left=0)
        p_curve[row] = np.interp(-CURVE_POINTS, -conf[mine], precision[:, 0], left=precision_without_detections)
        for level in range(tp.shape[1]):
            ap[row, level], envelope, at = compute_ap(recall[:, level], precision[:, level])
            if level == 0:
                pr_curve[row] = np.interp(CURVE_POINTS, at, envelope)

    f1_curve = 2 * p_curve * r_curve / (p_curve + r_curve + eps)
    best = smooth(f1_curve.mean(0), 0.1).argmax() if k else 0
    p, r, f1 = p_curve[:, best], r_curve[:, best], f1_curve[:, best]
    n_tp = (r * label_counts).round()
    n_fp = (n_tp / (p + eps) - n_tp).round()
    threshold = float(CURVE_POINTS[best])
    return APResult(classes.astype(int), n_tp, n_fp, p, r, f1, ap, threshold, p_curve, r_curve, f1_curve, pr_curve)


# --- matching and confusion ---------------------------------------------------------------------------------------


def match_predictions(detections: Tensor, labels: Tensor, iouv: np.ndarray = IOU_LEVELS) -> np.ndarray:
    """Which detections are right, bool ``[n, levels]``.

    A detection claims the label of its class that it overlaps most; a label goes to the first detection that claims it
    with an IoU of at least the level. Detections ``[n,6]`` come best first (xyxy, confidence, class); labels ``[m,5]``
    (class, xyxy) in the same pixels.
    """
    correct = np.zeros((len(detections), len(iouv)), dtype=bool)
    if not len(detections) or not len(labels):
        return correct
    iou = box_iou(labels[:, 1:5], detections[:, :4])
    iou = (iou * (labels[:, :1] == detections[:, 5])).cpu().numpy()
    claimed = len(iou) - 1 - iou[::-1].argmax(0)  # of equal overlaps the last label
    overlap = iou.max(0)
    for level, threshold in enumerate(iouv):
        valid = (overlap >= threshold).nonzero()[0]
        if len(valid):
            _, first = np.unique(claimed[valid], return_index=True)
            correct[valid[first], level] = True
    return correct


class ConfusionMatrix:
    """Counts of predicted class (rows) by true class (columns); the last of each is the background.

    Every detection above ``conf`` is counted once: beside the label it overlaps best (above ``iou_thres``, whatever the
    classes), or as background where it has none. That includes pictures in which nothing matches and pictures without
    labels, whose false positives YOLOv5 leaves out. Every label is counted once, too.
    """

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45):
        self.nc, self.conf, self.iou_thres = nc, conf, iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1))

    def process_batch(self, detections: Tensor | None, labels: Tensor) -> None:
        """Adds a picture: detections ``[n,6]`` (None: no detection) and labels ``[m,5]`` (class, xyxy)."""
        true = labels[:, 0].cpu().numpy().astype(int)
        partner = np.full(len(true), self.nc)  # the predicted class of each label
        if detections is not None and len(detections):
            detections = detections[detections[:, 4] > self.conf]
            predicted = detections[:, 5].cpu().numpy().astype(int)
            spare = np.ones(len(predicted), dtype=bool)
            if len(true) and len(predicted):
                iou = box_iou(labels[:, 1:5], detections[:, :4]).cpu().numpy()
                claimed, overlap = iou.argmax(0), iou.max(0)
                valid = (overlap > self.iou_thres).nonzero()[0]
                valid = valid[np.argsort(-overlap[valid], kind="stable")]
                taken, first = np.unique(claimed[valid], return_index=True)
                partner[taken] = predicted[valid[first]]
                spare[valid[first]] = False
            np.add.at(self.matrix, (predicted[spare], self.nc), 1)
        np.add.at(self.matrix, (partner, true), 1)


# --- accumulation -------------------------------------------------------------------------------------------------


def unique_keys(names: dict[int, str]) -> dict[int, str]:
    """Class names as dictionary keys: a name that occurs twice gets its class number."""
    seen = list(names.values())
    return {i: name if seen.count(name) == 1 else f"{name} ({i})" for i, name in names.items()}


def in_order(numbers: Sequence[int], *lists: list) -> list[list]:
    """The lists in the order of the numbers; entries of one number stay as they are."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    return [[entries[i] for i in order] for entries in lists]


class DetectionMetrics:
    """Collects detections and labels picture by picture.

    Args:
        names: class number to name.
        precision_without_detections: see `ap_per_class`.
    """

    def __init__(self, names: dict[int, str], precision_without_detections: float = 0.0):
        self.names = dict(names)
        self.confusion = ConfusionMatrix(len(names))
        self.images = 0
        self.result: APResult | None = None  # set by compute()
        self._precision_without_detections = precision_without_detections
        self._correct: list[np.ndarray] = []
        self._found: list[np.ndarray] = []  # confidence, class
        self._labels: list[np.ndarray] = []
        self._numbers: list[int] = []
        self._images_with = np.zeros(len(names), dtype=int)

    def update(self, detections: Tensor, labels: Tensor, number: int = 0) -> None:
        """Adds a picture: detections ``[n,6]`` best first, labels ``[m,5]`` (class, xyxy), both in its own pixels;
        ``number`` is that of its batch."""
        detections, labels = detections.detach().cpu(), labels.detach().cpu()
        self.images += 1
        self._correct.append(match_predictions(detections, labels))
        self._found.append(detections[:, 4:6].numpy())
        self._labels.append(labels[:, 0].numpy())
        self._numbers.append(number)
        self._images_with[np.unique(self._labels[-1]).astype(int)] += 1
        self.confusion.process_batch(detections, labels)

    def merge(self, other: DetectionMetrics) -> None:
        """Adds the pictures that another one collected."""
        self.images += other.images
        self.confusion.matrix += other.confusion.matrix
        self._images_with += other._images_with
        for name in ("_correct", "_found", "_labels", "_numbers"):
            getattr(self, name).extend(getattr(other, name))

    def per_picture(self) -> list[list[np.ndarray]]:
        """Of each picture, in the order of the batches: tp ``[n,10]``; confidence and class ``[n,2]``; label class
        ``[m]``."""
        return in_order(self._numbers, self._correct, self._found, self._labels)

    def stats(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Arguments of `ap_per_class`: tp ``[n,10]``, confidence ``[n]``, class ``[n]``, label class ``[m]``."""
        correct, found, labels = self.per_picture()
        correct = np.concatenate([np.zeros((0, len(IOU_LEVELS)), dtype=bool), *correct])
        found = np.concatenate([np.zeros((0, 2), dtype=np.float32), *found])
        return correct, found[:, 0], found[:, 1], np.concatenate([np.zeros(0, dtype=np.float32), *labels])

    def compute(self) -> dict:
        """Means over the classes that have labels, and each class; a class without labels has None as its metrics."""
        stats = self.stats()
        result = self.result = ap_per_class(*stats, precision_without_detections=self._precision_without_detections)
        objects = np.bincount(stats[3].astype(int), minlength=len(self.names))
        rows = {int(c): i for i, c in enumerate(result.classes)}

        def values(i: int | slice) -> dict:
            def mean(x: np.ndarray) -> float:
                return float(np.mean(x[i])) if len(result.classes) else 0.0

            return {
                "precision": mean(result.p),
                "recall": mean(result.r),
                "f1": mean(result.f1),
                "map50": mean(result.ap[:, 0]),
                "map50_95": mean(result.ap),
            }

        unknown = dict.fromkeys(("precision", "recall", "f1", "map50", "map50_95"))
        per_class = {}
        for c, key in unique_keys(self.names).items():
            counts = {"images": int(self._images_with[c]), "objects": int(objects[c])}
            per_class[key] = counts | (values(rows[c]) if c in rows else unknown)
        confusion = self.confusion.matrix.astype(int).tolist()
        return values(slice(None)) | {"per_class": per_class, "confusion_matrix": confusion}

    @property
    def maps(self) -> np.ndarray:
        """mAP50-95 ``[nc]`` of each class after `compute`; the mean for a class without labels."""
        assert self.result is not None, "call compute() first"
        mean = self.result.ap.mean() if len(self.result.classes) else 0.0
        maps = np.full(len(self.names), mean, dtype=float)
        maps[self.result.classes] = self.result.ap.mean(1)
        return maps


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve by ranks (Mann-Whitney; ties count half). None unless both kinds occur."""
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if not n_pos or not n_neg:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over ``bins`` equal bins, by their share (Guo et al., ICML 2017, eq. 3).

    A bin holds the confidences above its left and up to its right end.
    """
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


class ImageMetrics:
    """Collects the image-level answers; pictures whose label is unknown are counted and left out.

    Args:
        cls_names: class number to name.
    """

    def __init__(self, cls_names: dict[int, str]):
        self.names = dict(cls_names)
        self.unknown = 0
        self._probs: list[np.ndarray] = []
        self._true: list[np.ndarray] = []
        self._numbers: list[int] = []

    def update(self, probs: Tensor, target: Tensor, number: int = 0) -> None:
        """Adds a batch, by its number: probabilities ``[B,C]``, targets ``[B,C]`` (one-hot; a row of zeros is
        unknown)."""
        probs, target = probs.detach().float().cpu().numpy(), target.detach().float().cpu().numpy()
        if probs.shape != target.shape or probs.shape[1] != len(self.names):
            raise ValueError(
                f"expected probabilities and targets of {len(self.names)} image classes, got shapes "
                f"{probs.shape} and {target.shape}"
            )
        known = target.sum(1) > 0
        self.unknown += int((~known).sum())
        self._probs.append(np.nan_to_num(probs[known]))
        self._true.append(target[known].argmax(1))
        self._numbers.append(number)

    def merge(self, other: ImageMetrics) -> None:
        """Adds the batches that another one collected."""
        self.unknown += other.unknown
        for name in ("_probs", "_true", "_numbers"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def known(self) -> int:
        return sum(map(len, self._true))

    @property
    def matrix(self) -> np.ndarray:
        """Counts ``[C,C]`` of predicted class (rows) by true class (columns)."""
        matrix = np.zeros((len(self.names), len(self.names)))
        for probs, true in zip(self._probs, self._true, strict=True):
            np.add.at(matrix, (probs.argmax(1), true), 1)
        return matrix

    def compute(self) -> dict:
        """Accuracy, balanced accuracy (mean recall of the classes that occur), macro F1 (mean over the classes that
        occur or are predicted), AUROC (one class against the rest, mean where defined), ECE (15 bins), each class and
        the confusion matrix. What is undefined, as all is without known labels, is None."""
        matrix = self.matrix
        counts_table = matrix.astype(int).tolist()
        keys = unique_keys(self.names)
        support, predicted, hits = matrix.sum(0), matrix.sum(1), matrix.diagonal()
        counts = {"known": self.known, "unknown": self.unknown}
        if not self.known:
            overall = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"))
            empty = dict.fromkeys(("precision", "recall", "f1", "auroc")) | {"support": 0}
            per_class = {key: dict(empty) for key in keys.values()}
            return overall | counts | {"per_class": per_class, "confusion_matrix": counts_table}

        probs, true = map(np.concatenate, in_order(self._numbers, self._probs, self._true))
        precision = hits / np.maximum(predicted, 1)
        recall = hits / np.maximum(support, 1)
        f1 = 2 * hits / np.maximum(support + predicted, 1)
        areas = [auroc(probs[:, c], true == c) for c in range(len(keys))]
        defined = [a for a in areas if a is not None]
        overall = {
            "accuracy": float(hits.sum() / len(true)),
            "balanced_accuracy": float(recall[support > 0].mean()),
            "macro_f1": float(f1[support + predicted > 0].mean()),
            "auroc": float(np.mean(defined)) if defined else None,
            "ece": expected_calibration_error(probs.max(1), probs.argmax(1) == true),
        }
        columns = {"precision": precision, "recall": recall, "f1": f1}
        per_class = {
            key: {name: float(values[c]) for name, values in columns.items()}
            | {"auroc": areas[c], "support": int(support[c])}
            for c, key in keys.items()
        }
        return overall | counts | {"per_class": per_class, "confusion_matrix": counts_table}
