"""Confidence intervals of validation's metrics by drawing groups (patients …), not pictures, with replacement.

Pictures of one patient are alike, so a bootstrap that draws pictures takes them for independent and its intervals are
far too narrow. Here a draw is as many groups as there are, and all pictures of each (the cluster bootstrap: Davison
and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8); the interval is from the 2.5th to the 97.5th
percentile of the metric over the draws. Few groups cannot tell it: a class in fewer than five has none, nor has a mean
that it enters.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.dataset.split import FEW_GROUPS
from utils.metrics import DetectionMetrics, ap_per_class, unique_keys

Interval = tuple[float, float]
DRAWS_FILE = "bootstrap.csv"  # the values of all draws, in the folder of a validation


def group_intervals(
    detection: DetectionMetrics,
    groups: Sequence[str],
    draws: int,
    image: tuple[dict[int, str], np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> tuple[dict, dict[str, np.ndarray]]:
    """95 % intervals of mAP50 and mAP50-95 and, with `image`, of accuracy and balanced accuracy.

    Args:
        detection: what was collected, picture by picture.
        groups: [n] group of each picture, in the same order.
        draws: how often groups are drawn.
        image: names of the image classes; int [n] true class of each picture (-1: unknown) and int [n] answered class.

    Returns:
        First `groups` and `draws` (numbers), `few` (classes with too few groups, and how many), and in `detection` and
        `image` a (low, high) for each metric, or None. `detection` has `per_class` with those of each class. Second the
        values of all draws, [draws], by metric, of those that have an interval. Equal groups and seeds draw equally,
        whatever the network: the differences of two networks' values are those of pairs.
    """
    rng = np.random.default_rng(seed)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    pictures_of = [np.flatnonzero(member == g) for g in range(count)]
    pictures = detection.per_picture()
    names = unique_keys(detection.names)
    box_values = np.full((draws, len(names), 2), np.nan)
    image_values = np.full((draws, 2), np.nan)
    for d in range(draws):
        chosen = np.concatenate([pictures_of[g] for g in rng.integers(0, count, count)])
        correct, found, labels = (np.concatenate([column[i] for i in chosen]) for column in pictures)
        result = ap_per_class(correct, found[:, 0], found[:, 1], labels)
        box_values[d, result.classes] = np.stack((result.ap[:, 0], result.ap.mean(1)), 1)
        if image is not None:
            image_values[d] = _accuracies(*(column[chosen] for column in image[1:]))

    in_groups = _groups_of([np.unique(labels).astype(int) for labels in pictures[2]], member, len(names))
    few = {names[c]: n for c, n in enumerate(in_groups) if 0 < n < FEW_GROUPS}
    enough = not few and count >= FEW_GROUPS
    means = np.stack([_mean(box_values[:, :, k]) for k in range(2)], 1)
    keys = ("map50", "map50_95")
    per_class = {
        names[c]: {key: middle_95(box_values[:, c, k], in_groups[c] >= FEW_GROUPS) for k, key in enumerate(keys)}
        for c in range(len(names))
    }
    out = {"groups": count, "draws": draws, "few": few}
    out["detection"] = {key: middle_95(means[:, k], enough) for k, key in enumerate(keys)} | {"per_class": per_class}
    out["image"] = None
    values = dict(zip(keys, means.T, strict=True))
    if image is not None:
        views = unique_keys(image[0])
        in_groups = _groups_of([np.array([c]) if c >= 0 else np.array([], int) for c in image[1]], member, len(views))
        few_views = {views[c]: n for c, n in enumerate(in_groups) if 0 < n < FEW_GROUPS}
        enough = not few_views and count >= FEW_GROUPS
        few |= {f"{name} (image class)" if name in few else name: n for name, n in few_views.items()}
        values |= dict(zip(("accuracy", "balanced_accuracy"), image_values.T, strict=True))
        out["image"] = {key: middle_95(values[key], enough) for key in ("accuracy", "balanced_accuracy")}
    ends = out["detection"] | (out["image"] or {})
    return out, {key: column for key, column in values.items() if ends[key] is not None}


def write_draws(values: dict[str, np.ndarray], file: Path) -> None:
    """The values of `group_intervals` as a table: a metric a column, a draw a row (empty where it has no value)."""
    with file.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(values)
        writer.writerows(
            [f"{v:.6g}" if np.isfinite(v) else "" for v in row] for row in zip(*values.values(), strict=True)
        )


def read_draws(file: Path) -> dict[str, np.ndarray]:
    """What `write_draws` wrote."""
    with file.open(newline="", encoding="utf-8") as f:
        header, *rows = csv.reader(f)
    columns = np.array([[float(v) if v else np.nan for v in row] for row in rows]).reshape(len(rows), len(header)).T
    return dict(zip(header, columns, strict=True))


def interval_lines(intervals: dict, results: dict) -> list[str]:
    """The intervals as text, beside the metrics that they belong to."""
    titles = {
        "map50": "mAP50",
        "map50_95": "mAP50-95",
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
    }
    texts = [
        f"{titles[key]} {results[task][key]:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"
        for task in ("detection", "image")
        for key, ends in (intervals[task] or {}).items()
        if key in titles and ends is not None
    ]
    head = f"95 % intervals, {intervals['draws']} draws of {intervals['groups']} groups: "
    lines = [head + ("; ".join(texts) or "none")]
    for name, ends in intervals["detection"]["per_class"].items():
        if ends["map50_95"] is not None:
            parts = [f"{titles[k]} {low:.3f} to {high:.3f}" for k, (low, high) in ends.items()]
            lines.append(f"  {name}: {', '.join(parts)}")
    if intervals["few"]:
        listed = ", ".join(f"{name} ({n})" for name, n in intervals["few"].items())
        lines.append(
            f"  no interval, nor one of a mean over it, for classes in fewer than {FEW_GROUPS} groups: {listed}"
        )
    return lines


def _groups_of(classes: Sequence[np.ndarray], member: np.ndarray, count: int) -> list[int]:
    """In how many groups each class occurs; `classes` are those of each picture."""
    found = {(int(c), int(g)) for own, g in zip(classes, member, strict=True) for c in own}
    return [sum(c == k for k, _ in found) for c in range(count)]


def _accuracies(true: np.ndarray, answered: np.ndarray) -> Interval:
    """Accuracy and balanced accuracy over the pictures of a known class; NaN without any."""
    right, true = (answered == true)[true >= 0], true[true >= 0]
    if not len(true):
        return np.nan, np.nan
    return float(right.mean()), float(np.mean([right[true == c].mean() for c in np.unique(true)]))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the classes that a draw has, [draws]; NaN where it has none."""
    known = np.isfinite(values)
    counts = known.sum(1)
    return np.where(counts, np.where(known, values, 0).sum(1) / np.maximum(counts, 1), np.nan)


def middle_95(values: np.ndarray, enough: bool = True) -> Interval | None:
    """From the 2.5th to the 97.5th percentile of the values that there are; None without any, or where they are not
    enough."""
    values = values[np.isfinite(values)]
    if not enough or not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
