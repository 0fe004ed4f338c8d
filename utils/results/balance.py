"""task_weights.png: how the tasks of a run were balanced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.results.curves import read_results
from utils.results.figures import BLUE, GREEN, GREY, ORANGE, RED, draw_curve, finish, save, subplots

TASKS = (("det", "detection", BLUE), ("image", "image", ORANGE))


def _series(history: Sequence[Mapping], *keys: str) -> np.ndarray:
    """One number per epoch record, NaN where it, or the group that holds it, is missing."""
    values = []
    for value in history:
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        values.append(math.nan if value is None else float(value))
    return np.array(values)


def _task_loss(history: Sequence[Mapping], split: str, task: str) -> np.ndarray:
    """Loss of a task per epoch; that of detection is the sum of its parts where it does not stand there itself."""
    loss = _series(history, split, task)
    if task == "det":
        parts = sum(_series(history, split, part) for part in ("box", "obj", "cls"))
        loss = np.where(np.isfinite(loss), loss, parts)
    return loss


def _positive(y: np.ndarray) -> np.ndarray:
    """`y` with NaN where a logarithmic axis has no place for it."""
    return np.where(np.isfinite(y) & (y > 0), y, np.nan)


def plot_task_weights(history: Sequence[Mapping], fname: str | Path, trace: str | Path | None = None) -> Path:
    """Draw how the tasks were balanced over a run: weights, losses, gradient norms, agreement of the gradients.

    Args:
        history: the epoch records of training_history.json ("epoch", "task_weights", "train", "val", "grad_norms",
            "grad_cosine", "conflict_share"); any of them may be missing or None.
        fname: where to write (.png).
        trace: balancer_trace.csv of the run; a third row of diagrams then shows each update of the balancer.

    Raises:
        ValueError: when there is no record.
    """
    if not history:
        raise ValueError("no epoch record to draw task weights from")
    epochs = _series(history, "epoch")
    fig, axes = subplots(3 if trace else 2, 3, 15, 12.5 if trace else 8.5)
    if trace:
        _draw_trace(axes[2], read_results(trace))
    weight_ax, loss_ax, weighted_ax, norm_ax, weighted_norm_ax, angle_ax = axes[:2].flat
    for task, label, color in TASKS:
        weight, norm = _series(history, "task_weights", task), _series(history, "grad_norms", task)
        loss, val_loss = _task_loss(history, "train", task), _task_loss(history, "val", task)
        last = weight[np.isfinite(weight)][-1:]
        draw_curve(weight_ax, epochs, weight, color, label + "".join(f" (last {w:.3g})" for w in last), trend=False)
        draw_curve(loss_ax, epochs, _positive(loss), color, f"{label}, train")
        draw_curve(loss_ax, epochs, _positive(val_loss), color, f"{label}, val", dashed=True, trend=False)
        draw_curve(weighted_ax, epochs, _positive(weight * loss), color, label)
        draw_curve(norm_ax, epochs, _positive(norm), color, label)
        draw_curve(weighted_norm_ax, epochs, _positive(weight * norm), color, label)
    draw_curve(angle_ax, epochs, _series(history, "grad_cosine"), GREEN, "mean cosine")
    draw_curve(angle_ax, epochs, _series(history, "conflict_share"), RED, "share of steps in conflict (cosine < 0)")
    if angle_ax.has_data():
        angle_ax.axhline(0, color=GREY, lw=1)
        angle_ax.set_ylim(-1.05, 1.05)
    for ax in (loss_ax, weighted_ax, norm_ax, weighted_norm_ax):
        if ax.has_data():
            ax.set_yscale("log")
            ax.grid(True, which="minor", alpha=0.12)
    if weight_ax.has_data():
        weight_ax.set_ylim(0, weight_ax.get_ylim()[1] * 1.05)
    finish(weight_ax, "task weights $w_i$", "weight")
    finish(loss_ax, "task losses $L_i$, unweighted", "loss per picture (log)")
    finish(weighted_ax, "weighted training losses $w_i L_i$", "loss per picture (log)")
    finish(norm_ax, r"gradient norms $g_i = \Vert\nabla_W L_i\Vert_2$ at the shared layers", "norm (log)")
    finish(weighted_norm_ax, "weighted gradient norms $w_i g_i$", "norm (log)")
    finish(angle_ax, "agreement of the task gradients", "cosine, share")
    return save(fig, fname)


def _draw_trace(axes: np.ndarray, trace: Mapping[str, np.ndarray]) -> None:
    """Three diagrams of every update of the balancer, over the optimiser steps."""
    weight_ax, pull_ax, ratio_ax = axes
    missing = np.full(len(trace["step"]), np.nan)
    for task, label, color in TASKS:
        weight, norm, ratio = (trace.get(f"{key}/{task}", missing) for key in ("weight", "norm", "ratio"))
        draw_curve(weight_ax, trace["step"], _positive(weight), color, label, trend=False)
        draw_curve(pull_ax, trace["step"], _positive(weight * norm), color, label)
        draw_curve(ratio_ax, trace["step"], ratio, color, label, trend=False)
    for ax in (weight_ax, pull_ax):
        if ax.has_data():
            ax.set_yscale("log")
    finish(weight_ax, "task weights $w_i$ after each update", "weight (log)", "optimiser step")
    finish(pull_ax, "weighted gradient norms $w_i g_i$ at each update", "norm (log)", "optimiser step")
    finish(ratio_ax, "training ratios $r_i$ (above 1: lags)", "ratio", "optimiser step", empty="this balancer has none")
