"""Events in time, and the picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.results.figures import GREY, Names, class_color, new_figure, safe_text, save


class Event(NamedTuple):
    """An event in seconds; predictions have a score."""

    start: float
    end: float
    label: str
    score: float = 1.0


def plot_timelines(
    truth: Mapping[str, Sequence[Event] | None],
    predictions: Mapping[str, Sequence[Event]],
    labels: Names,
    file: str | Path,
    least: float = 0.2,
    title: str = "",
    duration: float = 0,
    unit: str = "seconds",
) -> Path:
    """A strip per row (a video, say): above its line the true events, below the predicted ones, the stronger the surer.

    Args:
        truth: By row; a row without truth (None) has predictions alone.
        predictions: By row.
        labels: In class order, or by class number; the colours are those of the classes' boxes.
        least: Predictions of lower scores are left out.
        title: In place of one that says what is drawn.
        duration: The axis is at least so long.
        unit: Of the times.
    """
    rows = list(truth)
    fig = new_figure(11, 1.2 + 0.42 * max(len(rows), 1))
    ax = fig.subplots()
    numbered = labels if isinstance(labels, Mapping) else dict(enumerate(labels))
    colors = {label: class_color(i) for i, label in numbered.items()}
    end = duration
    for y, row in enumerate(rows):
        known = truth[row] or ()
        found = [e for e in predictions.get(row, ()) if e.score >= least]
        for events, top, strength in ((known, y - 0.38, lambda e: 1.0), (found, y + 0.02, lambda e: e.score)):
            for e in events:
                color, alpha = colors.get(e.label, (0.4, 0.4, 0.4)), float(np.clip(strength(e), 0.15, 1))
                ax.barh(top, e.end - e.start, 0.34, e.start, align="edge", color=color, alpha=alpha, lw=0)
        ax.axhline(y, color=GREY, lw=0.5)
        end = max([end, *(e.end for e in (*known, *found))])
    ax.set_xlim(0, max(end * 1.01, 0.1))
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.set_yticks(range(len(rows)), [safe_text(row) for row in rows], fontsize=8)
    ax.set_xlabel(unit, fontsize=10)
    told = "events above, predictions below" if any(truth.values()) else "predictions"
    ax.set_title(safe_text(title, 80) or f"Timelines: {told} (score from {least:g})", fontsize=12)
    handles = [ax.barh(0, 0, color=color, label=safe_text(label)) for label, color in colors.items()]
    if handles:
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), framealpha=0.8)
    return save(fig, file)
