"""Pictures of a training and a validation: curves, mAP over tIoU, kinds of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tad.metrics import ERRORS, Scores, error_kinds
from utils.results.figures import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    class_color,
    draw_curve,
    finish,
    new_figure,
    safe_text,
    save,
    subplots,
)

ERROR_COLORS = dict(zip(ERRORS, (GREEN, "#f0c040", "#8050a0", ORANGE, "#a05030", RED), strict=True))


def plot_map(scores: Scores, file: str | Path) -> Path:
    """Average precision over tIoU, of each class and their mean."""
    fig = new_figure(7, 5)
    ax = fig.subplots()
    for c, label in enumerate(scores.classes):
        ax.plot(
            scores.thresholds, scores.ap[:, c], color=class_color(c), lw=1, marker="o", ms=3, label=safe_text(label)
        )
    ax.plot(scores.thresholds, scores.ap.mean(1), color=BLUE, lw=3, label=f"mAP, average {scores.average:.3f}")
    ax.set_ylim(0, 1.02)
    finish(ax, "Average precision over tIoU", "AP", "tIoU")
    return save(fig, file)


def plot_errors(truth: Mapping, predictions: Mapping, threshold: float, file: str | Path, most: int = 5) -> Path:
    """What the best predictions are, for once to `most` times as many as there are events."""
    fig = new_figure(7, 5)
    ax = fig.subplots()
    for times in range(1, most + 1):
        kinds = error_kinds(truth, predictions, threshold, times)
        total, bottom = max(sum(kinds.values()), 1), 0.0
        for kind, count in kinds.items():
            label = kind if times == 1 else None
            ax.bar(times, count / total, 0.8, bottom, color=ERROR_COLORS[kind], label=label)
            bottom += count / total
    ax.set_xticks(range(1, most + 1), [f"{n}×" for n in range(1, most + 1)])
    ax.set_ylim(0, 1)
    finish(ax, f"What the best predictions are (tIoU {threshold:g})", "share", "predictions per event", legend=False)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save(fig, file)


def plot_training(history: Sequence[Mapping], file: str | Path) -> Path:
    """Losses, mAP, learning rates, and seconds with memory, over the epochs."""
    fig, axes = subplots(2, 2, 12, 8)
    epochs = [record["epoch"] for record in history]

    def column(*path: str) -> list[float]:
        values = []
        for record in history:
            for key in path:
                record = record.get(key) if isinstance(record, Mapping) else None
            values.append(np.nan if record is None else float(record))
        return values

    for key, color in (("total", BLUE), ("cls", ORANGE), ("reg", GREEN)):
        draw_curve(axes[0, 0], epochs, column("train", key), color, key)
    finish(axes[0, 0], "Training loss")
    keys = list(dict.fromkeys(k for record in history for k in (record.get("metrics") or {})))
    for i, key in enumerate(keys):
        label = "average mAP" if key == "map" else key.replace("map_", "mAP@")
        draw_curve(
            axes[0, 1], epochs, column("metrics", key), BLUE if key == "map" else class_color(i), label, trend=False
        )
    finish(axes[0, 1], "Validation")
    groups = max((len(record["lr"]) for record in history), default=0)
    for i in range(groups):
        rates = [record["lr"][i] for record in history]
        draw_curve(axes[1, 0], epochs, rates, class_color(i), f"group {i}", trend=False)
    finish(axes[1, 0], "Learning rate at the epoch's end")
    draw_curve(axes[1, 1], epochs, column("seconds"), BLUE, "seconds an epoch", trend=False)
    draw_curve(axes[1, 1], epochs, column("peak_memory_gb"), ORANGE, "peak memory, GiB", trend=False)
    finish(axes[1, 1], "Time and memory")
    return save(fig, file)
