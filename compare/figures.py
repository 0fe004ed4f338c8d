"""The diagrams of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure

from compare.results import DETECTION_REFERENCE, IMAGE_REFERENCE, Run, column, epoch_count, pareto_front
from utils.results.figures import DPI, GREY, class_color, finish, safe_text, subplots

Groups = dict[str, list[Run]]
MOST_NUMBERED = 20  # classes of a confusion matrix whose cells have their numbers written in


def png(fig: Figure) -> bytes:
    out = BytesIO()
    fig.savefig(out, dpi=DPI, format="png")
    return out.getvalue()


def pareto_picture(groups: Groups) -> Figure:
    """mAP50-95 against image accuracy: every run a dot, means large, their front as steps, references as lines."""
    fig, axes = subplots(1, 1, 7, 5)
    ax = axes[0, 0]
    means = {}
    for i, (name, runs) in enumerate(groups.items()):
        both = [r.figures for r in runs if r.figures["map50_95"] is not None and r.figures["accuracy"] is not None]
        if both:
            x, y = (np.array([f[key] for f in both]) for key in ("accuracy", "map50_95"))
            ax.scatter(x, y, s=16, color=class_color(i), alpha=0.5)
            ax.scatter(x.mean(), y.mean(), s=90, color=class_color(i), edgecolor="black", label=safe_text(name))
            means[name] = (float(x.mean()), float(y.mean()))
    front = [means[name] for name in pareto_front(means)]
    if len(front) > 1:
        ax.step(*np.array(front).T, where="pre", color="black", lw=1, ls="--", label="front of the means")
    for reference, key, line, style in (
        (DETECTION_REFERENCE, "map50_95", ax.axhline, ":"),
        (IMAGE_REFERENCE, "accuracy", ax.axvline, "-."),
    ):
        if values := column(groups.get(reference, []), key):
            line(np.mean(values), color=GREY, ls=style, label=f"{reference}, mean")
    finish(ax, "Both tasks, every run", "mAP50-95", "image accuracy", empty="no strategy answers both")
    return fig


def _series(runs: Sequence[Run], value: Callable[[dict], float | None]) -> np.ndarray:
    """Mean over the runs of a value of each epoch, NaN where no run has one."""
    epochs = epoch_count(runs)
    table = np.full((len(runs), epochs), np.nan)
    for row, r in zip(table, runs, strict=True):
        for e in r.epochs:
            found = value(e)
            row[e["epoch"]] = np.nan if found is None else found
    counts = np.isfinite(table).sum(0)
    return np.divide(np.nansum(table, 0), counts, out=np.full(epochs, np.nan), where=counts > 0)


def _entry(group: str, key: str) -> Callable[[dict], float | None]:
    return lambda epoch: (epoch.get(group) or {}).get(key)


def _overlaid(groups: Groups, panels: Sequence[tuple[str, str, Callable[[dict], float | None], bool]]) -> Figure:
    """A panel for each (title, metric whose task must be on, value, logarithmic), a line for each strategy."""
    columns = 2
    rows = -(-len(panels) // columns)
    fig, axes = subplots(rows, columns, 11, 3.6 * rows)
    for ax in axes.ravel()[len(panels) :]:
        ax.axis("off")
    lines = {}
    for ax, (title, needs, value, logarithmic) in zip(axes.ravel(), panels, strict=False):
        for i, (name, runs) in enumerate(groups.items()):
            y = _series(runs, value)
            if np.isfinite(y).any() and (not needs or column(runs, needs)):
                (lines[name],) = ax.plot(np.arange(len(y)), y, color=class_color(i), lw=1.4, marker=".")
        if logarithmic and ax.has_data():
            ax.set_yscale("log")
        finish(ax, title, legend=False)
    fig.legend(lines.values(), [safe_text(name) for name in lines], loc="outside lower center", ncols=4, fontsize=9)
    return fig


def training_curves(groups: Groups) -> Figure:
    """Metrics and unweighted losses by epoch, means over the runs; those of validation only where it was made more than
    once, which `--noval` leaves out."""
    panels = [
        ("training loss, detection", "map50_95", _entry("train", "det"), True),
        ("training loss, image", "accuracy", _entry("train", "image"), True),
    ]
    if any(sum(bool(epoch["val"]) for epoch in run.epochs) > 1 for runs in groups.values() for run in runs):
        panels += [
            ("validation loss, detection", "map50_95", _entry("val", "det"), True),
            ("validation loss, image", "accuracy", _entry("val", "image"), True),
            ("mAP50-95", "map50_95", _entry("metrics", "map50_95"), False),
            ("image accuracy", "accuracy", _entry("metrics", "image_accuracy"), False),
        ]
    return _overlaid(groups, panels)


def balance_curves(groups: Groups) -> Figure:
    """Task weights and gradients at the shared layer by epoch, means over the runs."""
    return _overlaid(
        groups,
        [
            ("task weight, detection", "map50_95", _entry("task_weights", "det"), True),
            ("task weight, image", "accuracy", _entry("task_weights", "image"), True),
            ("gradient norm (unweighted), detection", "", _entry("grad_norms", "det"), True),
            ("gradient norm (unweighted), image", "", _entry("grad_norms", "image"), True),
            ("cosine of the task gradients", "", lambda epoch: epoch.get("grad_cosine"), False),
        ],
    )


def confusion_matrices(groups: Groups, task: str, names: Sequence[str]) -> Figure | None:
    """Confusion matrices side by side, summed over the runs, each column (a true class) as shares; None without any."""
    found = {name: sum(r.confusion[task] for r in runs if task in r.confusion) for name, runs in groups.items()}
    found = {name: np.asarray(matrix, float) for name, matrix in found.items() if np.ndim(matrix) == 2}
    if not found:
        return None
    columns = min(len(found), 4)
    rows = -(-len(found) // columns)
    fig, axes = subplots(rows, columns, 3.2 * columns, 3.2 * rows)
    for ax in axes.ravel()[len(found) :]:
        ax.axis("off")
    for ax, (name, matrix) in zip(axes.ravel(), found.items(), strict=False):
        share = matrix / np.maximum(matrix.sum(0, keepdims=True), 1)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        labels = [*names, "nothing"][: len(matrix)]
        shown = labels if len(labels) <= 2 * MOST_NUMBERED else []
        ticks = {"ticks": range(len(shown)), "labels": [safe_text(n, 9) for n in shown], "fontsize": 7}
        ax.set_xticks(**ticks, rotation=45)
        ax.set_yticks(**ticks)
        for i, j in np.argwhere(matrix) if len(matrix) <= MOST_NUMBERED else ():
            value = share[i, j]
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value > 0.5 else "k")
        ax.set_title(safe_text(name), fontsize=9)
        ax.set_xlabel("true", fontsize=8)
        ax.set_ylabel("answered", fontsize=8)
    return fig


def spread_text(found: tuple[float, float] | None, digits: int) -> str:
    """Mean ± standard deviation, without the latter where it is unknown; "–" for none."""
    if found is None:
        return "–"
    mean, sd = found
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ± {sd:.{digits}f}")
