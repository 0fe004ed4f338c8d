"""Diagrams: training curves, precision and recall, confusion matrices.

Every figure is made from matplotlib's `Figure` and Agg canvas directly, never through pyplot: the user's backend, open
figures and settings stay as they are, and the functions may run in a worker thread. Each `plot_*` function makes the
folder that it needs and returns the file that it wrote.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from utils.results.figures import (
    BLUE,
    GREEN,
    ORANGE,
    Names,
    class_color,
    draw_curve,
    finish,
    name_list,
    safe_text,
    save,
    subplots,
)
from utils.results.fonts import class_name

MANY = 20  # from here on classes get thin unnamed lines, small ticks and no annotations

# ---------------------------------------------------------------------------------------------------- training curves


def read_results(csv_file: str | Path) -> dict[str, np.ndarray]:
    """Columns of a results.csv, ours or YOLOv5's: name -> float64 [E], NaN where a field is empty.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it holds no epoch, or something that is no number.
    """
    csv_file = Path(csv_file)
    with csv_file.open(newline="", encoding="utf-8") as f:
        header, *rows = [[field.strip() for field in row] for row in csv.reader(f)] or [[]]
    rows = [row for row in rows if len(row) == len(header)]  # the last one may be cut short
    if "epoch" not in header or not rows:
        raise ValueError(f"{csv_file}: no epoch in this file, nothing to draw")
    try:
        values = np.array([[float(v or "nan") for v in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{csv_file}: {error}") from error
    return dict(zip(header, values.T, strict=True))


def plot_results(csv_file: str | Path, fname: str | Path | None = None) -> Path:
    """Draw all losses, metrics, task weights and learning rates of a run.

    Args:
        csv_file: results.csv of a run, joint or not, ours or YOLOv5's.
        fname: where to write; results.png beside the csv by default.

    Raises:
        FileNotFoundError, ValueError: see `read_results`.
    """
    data = read_results(csv_file)
    epochs = data["epoch"]
    joint = "train/image_loss" in data
    fig, axes = subplots(3 if joint else 2, 3, 14, 11 if joint else 7.5)
    panels = iter(axes.flat)

    def panel(title: str, columns: Sequence[tuple[str, str, str]], ylabel: str, best=False, last=False) -> None:
        ax = next(panels)
        for column, label, color in columns:
            y = data.get(column)
            if y is not None and np.isfinite(y).any():
                label += f" (best {np.nanmax(y):.3f})" if best else f" (last {y[-1]:.3g})" if last else ""
                draw_curve(ax, epochs, y, color, label, trend=not last)
        if best and ax.has_data():
            ax.set_ylim(-0.02, min(1.02, ax.get_ylim()[1] * 1.08))
        finish(ax, title, ylabel)

    titles = {"box": "box loss", "obj": "objectness loss", "cls": "class loss", "image": "image loss"}
    for part in ("box", "obj", "cls", "image")[: 4 if joint else 3]:
        columns = [(f"train/{part}_loss", "train", BLUE), (f"val/{part}_loss", "val", ORANGE)]
        panel(titles[part], columns, "loss per picture")
    columns = [("metrics/precision", "precision", BLUE), ("metrics/recall", "recall", ORANGE)]
    panel("precision and recall (val, boxes)", columns, "share", best=True)
    columns = [("metrics/mAP_0.5", "mAP50", BLUE), ("metrics/mAP_0.5:0.95", "mAP50-95", ORANGE)]
    panel("mean average precision (val, boxes)", columns, "mAP", best=True)
    if joint:
        columns = [
            ("metrics/image_accuracy", "accuracy", BLUE),
            ("metrics/image_balanced_accuracy", "balanced accuracy", ORANGE),
            ("metrics/image_macro_f1", "macro F1", GREEN),
        ]
        panel("image-level answer (val)", columns, "share", best=True)
        columns = [("weights/det", "detection", BLUE), ("weights/image", "image", ORANGE)]
        panel("task weights", columns, "weight", last=True)
    groups = [
        ("x/lr0", "lr0: biases", BLUE, "-"),
        ("x/lr1", "lr1: weights", ORANGE, "-"),
        ("x/lr2", "lr2: norms", GREEN, ":"),
    ]
    ax = next(panels)
    for column, label, color, style in groups:
        if column in data:
            ax.plot(epochs, data[column], color=color, ls=style, lw=3 if style == ":" else 1.6, label=label)
    finish(ax, "learning rates by parameter group", "learning rate")
    fig.suptitle(safe_text(Path(csv_file).resolve().parent.name, 60), fontsize=13)
    return save(fig, fname or Path(csv_file).with_name("results.png"))


# --------------------------------------------------------------------------------------- precision, recall, confidence


def _row_classes(n: int, names: Names, classes: Sequence[int] | None) -> list[int]:
    """Class of each of the n curves."""
    if classes is None:
        if len(names) != n:
            raise ValueError(f"{n} curves for {len(names)} class names: say with classes= which class each curve is of")
        return sorted(names) if isinstance(names, Mapping) else list(range(n))
    if len(classes) != n:
        raise ValueError(f"{n} curves, but classes= has {len(classes)} entries")
    return [int(c) for c in classes]


def _class_curves(ax, px, py, names: Names, classes: Sequence[int], notes: Sequence[str]) -> None:
    """One line per class, named in the legend; where there are many, grey ones with the five lowest named."""
    order = np.argsort(np.mean(py, axis=1)) if len(py) else []
    named = set(range(len(classes)) if len(classes) <= MANY else order[:5])
    for k, (y, c, note) in enumerate(zip(py, classes, notes, strict=True)):
        if k in named:
            label = f"{safe_text(class_name(names, c))} {note}"
            ax.plot(px, y, lw=1.3, color=class_color(c), label=label, zorder=2.5)
        else:
            ax.plot(px, y, lw=0.6, color="#9aa5b1", alpha=0.6)
    if len(classes) > MANY:
        ax.plot([], [], lw=0.6, color="#9aa5b1", label=f"{len(classes) - len(named)} more; the 5 lowest are named")


def _finish_unit_axes(fig: Figure, ax, title: str, xlabel: str, ylabel: str) -> None:
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    finish(ax, title, ylabel, xlabel, legend=False)
    if ax.get_legend_handles_labels()[0]:
        fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", fontsize=10, framealpha=1)


def plot_pr_curve(px, py, ap, fname: str | Path, names: Names, classes=None, counts=None) -> Path:
    """Draw precision over recall at IoU 0.5, a line per class and their mean.

    Args:
        px: recall, [P].
        py: precision, [C, P].
        ap: average precision, [C] at IoU 0.5 or [C, T] with IoU 0.5 first.
        fname: where to write (.png).
        names: names of all classes.
        classes: class index of each of the C rows; needed unless there is a row for every name.
        counts: objects of each row, for the legend.

    Raises:
        ValueError: when rows and names do not agree.
    """
    py, ap = np.atleast_2d(np.asarray(py, dtype=np.float64)), np.asarray(ap, dtype=np.float64)
    if not np.size(ap):
        py, classes = np.zeros((0, np.size(px))), []
    ap50 = ap[:, 0] if ap.ndim == 2 else ap
    classes = _row_classes(len(py), names, classes)
    notes = [f"{a:.3f}" + (f" ({int(counts[k])})" if counts is not None else "") for k, a in enumerate(ap50)]
    fig, ((ax,),) = subplots(1, 1, 9, 6)
    _class_curves(ax, px, py, names, classes, notes)
    if len(py):
        ax.plot(px, py.mean(0), lw=3, color="#1a3f8f", zorder=3, label=f"all {len(py)} classes {ap50.mean():.3f} mAP50")
    title = "precision-recall curve at IoU 0.5" + (": AP50 (objects)" if counts is not None else ": AP50 by class")
    _finish_unit_axes(fig, ax, title, "recall", "precision")
    return save(fig, fname)


def plot_metric_curve(
    px,
    py,
    fname: str | Path,
    names: Names,
    xlabel: str = "confidence",
    ylabel: str = "F1",
    classes=None,
    threshold: float | None = None,
) -> Path:
    """Draw precision, recall or F1 over the confidence threshold: a line per class and their mean, marked at a point.

    Args:
        px: confidence threshold, [P].
        py: the metric, [C, P].
        fname: where to write (.png).
        names, classes: see `plot_pr_curve`.
        xlabel, ylabel: names of the axes; `ylabel` is the metric.
        threshold: where to mark the mean, such as the threshold that the tables use; None: at its maximum.

    Raises:
        ValueError: when rows and names do not agree.
    """
    px, py = np.asarray(px, dtype=np.float64), np.asarray(py, dtype=np.float64).reshape(-1, np.size(px))
    classes = _row_classes(len(py), names, [] if not len(py) else classes)
    fig, ((ax,),) = subplots(1, 1, 9, 6)
    _class_curves(ax, px, py, names, classes, [f"max {y.max():.2f}" for y in py])
    if len(py):
        mean = py.mean(0)
        best = int(mean.argmax()) if threshold is None else int(np.abs(px - threshold).argmin())
        label = f"all {len(py)} classes {mean[best]:.2f} at {px[best]:.3f}"
        ax.plot(px, mean, lw=3, color="#1a3f8f", zorder=3, label=label)
        ax.plot(px[best], mean[best], "o", color="#1a3f8f", ms=8, mec="white", clip_on=False, zorder=5)
    _finish_unit_axes(fig, ax, f"{ylabel} over the {xlabel} threshold at IoU 0.5", f"{xlabel} threshold", ylabel)
    return save(fig, fname)


# --------------------------------------------------------------------------------------------------- confusion matrix


def plot_confusion_matrix(
    matrix,
    names: Names,
    title: str = "confusion matrix",
    fname: str | Path = "confusion_matrix.png",
    normalize: bool = True,
) -> Path:
    """Draw a confusion matrix, predicted class down, true class across, with counts.

    Args:
        matrix: [C, C] counts of predicted class (rows) by true class (columns), or [C + 1, C + 1] for detection, where
            the last row holds missed objects and the last column boxes on background.
        names: names of the C classes.
        title: its title.
        fname: where to write (.png).
        normalize: colour by the share of each true class (column); else by the count.

    Raises:
        ValueError: when matrix and names do not fit.
    """
    counts, labels = np.asarray(matrix, dtype=np.float64), [safe_text(n) for n in name_list(names)]
    n = len(labels)
    if counts.shape not in ((n, n), (n + 1, n + 1)):
        raise ValueError(f"confusion matrix of shape {list(counts.shape)} for {n} classes")
    background = len(counts) == n + 1
    totals = counts.sum(0)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)

    size = len(counts)
    side = float(np.clip(3.6 + 0.75 * size, 5.5, 13))
    fig, ((ax,),) = subplots(1, 1, side + 1.2, side)
    values, top = (share, 1.0) if normalize else (counts, max(counts.max(initial=0.0), 1.0))
    shown = np.ma.masked_where(counts == 0, values)
    many = size > MANY + 1
    # With many classes colour alone tells: the square root lifts the few confusions out of the white.
    norm = PowerNorm(0.5 if many else 1.0, vmin=0, vmax=top)
    mesh = ax.imshow(shown, cmap="Blues", norm=norm, interpolation="nearest", aspect="equal")
    bar = fig.colorbar(mesh, ax=ax, shrink=0.8, fraction=0.046, pad=0.02)
    bar.set_label("share of the true class (column)" if normalize else "count", fontsize=10)
    if not many:
        font = float(np.clip(13.5 - 0.3 * size, 7.5, 12))
        for (i, j), count in np.ndenumerate(counts):
            if count:
                text = f"{share[i, j]:.2f}\n({count:g})" if normalize else f"{count:g}"
                color = "white" if values[i, j] > 0.68 * top else "black"
                ax.text(j, i, text, ha="center", va="center", fontsize=font, color=color)
    tick_font = float(np.clip(620 / size, 4.5, 6.5)) if many else 10
    step = max(1, math.ceil(size / 110))  # beyond that not every name has room
    ticks = np.arange(0, size, step)
    across = labels + ["background"] * background
    down = labels + ["missed"] * background
    if not many:
        across = [f"{label}\n(n={total:g})" for label, total in zip(across, totals, strict=True)]
    ax.set_xticks(ticks, [across[k] for k in ticks], fontsize=tick_font, rotation=90 if size > 6 else 0)
    ax.set_yticks(ticks, [down[k] for k in ticks], fontsize=tick_font)
    ax.tick_params(length=2 if many else 3.5, width=0.5)
    if size <= 120:
        ax.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="#dddddd", lw=0.3 if many else 0.8)
        ax.tick_params(which="minor", length=0)
    ax.set_xlabel("true class", fontsize=11)
    ax.set_ylabel("predicted class", fontsize=11)
    ax.set_title(safe_text(title, 80), fontsize=12)
    return save(fig, fname)
