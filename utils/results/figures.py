"""What all diagrams share: figures without pyplot, safe texts, colours, curves with their smoothed line.

Figures are made from matplotlib's `Figure` and Agg canvas directly: the user's backend, open figures and settings stay
as they are, and a diagram may be drawn in a worker thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.results.drawing import colors
from utils.results.fonts import FONT, class_name, font_for

if TYPE_CHECKING:  # it is imported where something is drawn, which few runs of a detection do
    from matplotlib.figure import Figure

Names = Mapping[int, str] | Sequence[str]
DPI = 150
BLUE, ORANGE, GREEN, RED, GREY = "#1f6fb4", "#e0761a", "#2a8f4a", "#c23b3b", "#777777"


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of `width` x `height` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(fig)
    return fig


def subplots(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Figure of `width` x `height` inches and its [rows, columns] array of axes."""
    fig = new_figure(width, height)
    return fig, fig.subplots(rows, columns, squeeze=False)


def save(fig: Figure, fname: str | Path) -> Path:
    """Write a figure, in the format of the file's suffix; the folder is made as needed."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    texts = fig.findobj(Text)
    font = font_for("".join(text.get_text() for text in texts))
    if font not in (None, FONT):  # characters that the usual font lacks come from another
        font_manager.fontManager.addfont(font)
        for text in texts:
            text.set_family([*text.get_family(), font_manager.FontProperties(fname=font).get_name()])
    fname = Path(fname)
    fname.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(fname, dpi=DPI, **({"pil_kwargs": {"quality": 92}} if fname.suffix == ".jpg" else {}))
    return fname


def safe_text(name: Any, limit: int = 24) -> str:
    """A user's name as matplotlib text: no mathematics, not hidden from legends, not too long."""
    name = "".join(c if c.isprintable() else " " for c in str(name))
    name = name if len(name) <= limit else name[: limit - 1] + "…"
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def class_color(i: int) -> tuple[float, float, float]:
    """Colour of class `i` as RGB of 0..1, a little darker than in pictures because the ground is white here."""
    blue, green, red = colors(i)
    return red / 255 * 0.9, green / 255 * 0.9, blue / 255 * 0.9


def name_list(names: Names) -> list[str]:
    """Names in class order; a dict need not be sorted."""
    return [class_name(names, i) for i in (sorted(names) if isinstance(names, Mapping) else range(len(names)))]


def smooth(y, sigma: float | None = None) -> np.ndarray:
    """Smoothed curve [E]: at each epoch the straight line fitted around it with Gaussian weights.

    The line (Cleveland 1979, local regression) keeps the ends of a falling curve from being pulled inwards. `sigma`: in
    epochs, by default 3 for long runs and less for short ones. Values that are not finite are skipped.
    """
    y = np.asarray(y, dtype=np.float64)
    sigma = sigma or float(np.clip(len(y) / 12, 1, 3))
    offset = np.subtract.outer(np.arange(len(y)), np.arange(len(y)))  # row: where, column: measured epoch
    weight = np.exp(-0.5 * (offset / sigma) ** 2) * np.isfinite(y)
    value = np.where(np.isfinite(y), y, 0.0)
    s0, s1, s2 = weight.sum(1), (weight * offset).sum(1), (weight * offset**2).sum(1)
    t0, t1 = weight @ value, (weight * offset) @ value
    determinant = s0 * s2 - s1**2
    straight = determinant > 1e-9 * np.maximum(s0 * s2, 1e-300)
    line = np.divide(s2 * t0 - s1 * t1, determinant, out=np.full(len(y), np.nan), where=straight)
    mean = np.divide(t0, s0, out=np.full(len(y), np.nan), where=s0 > 0)
    return np.where(straight, line, mean)


def draw_curve(ax, x, y, color: str, label: str, dashed: bool = False, trend: bool = True) -> None:
    """Dots joined by a line, and a dotted smoothed line, as YOLOv5's users know it; nothing where nothing is known."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(y)
    if not known.any():
        return
    marker = {"marker": "o", "markersize": 3.5 if len(x) <= 60 else 1.5}
    ax.plot(x[known], y[known], color=color, label=label, lw=1.3, ls="--" if dashed else "-", **marker)
    if trend and known.sum() > 5:
        ax.plot(x[known], smooth(y)[known], color=color, ls=":", lw=2.4, alpha=0.75)


def finish(ax, title: str, ylabel: str = "", xlabel: str = "epoch", legend: bool = True, empty="not measured") -> None:
    """Title, names of the axes, grid and legend; `empty` is said where nothing was drawn."""
    ax.set_title(title, fontsize=12)
    ax.set_xlabel(xlabel, fontsize=10)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.grid(True, alpha=0.3)
    ax.tick_params(labelsize=9)
    if xlabel == "epoch":
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if not ax.has_data():
        ax.text(0.5, 0.5, empty, ha="center", va="center", transform=ax.transAxes, color=GREY, fontsize=11)
        ax.set(xticks=[], yticks=[])
    elif legend and ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=9, framealpha=0.8)
