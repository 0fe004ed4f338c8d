"""What the label files of a split hold, drawn: `labels.jpg`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from utils.results.curves import MANY
from utils.results.figures import BLUE, GREY, Names, class_color, finish, name_list, new_figure, safe_text, save


def _bars(ax, labels: Sequence[str], counts, bar_colors, title: str, ylabel: str) -> None:
    """Named bars with their counts; small and upright names where there are many."""
    counts = np.asarray(counts)
    ax.bar(np.arange(len(counts)), counts, color=bar_colors, width=0.8)
    ax.set_ylim(0, max(1.0, counts.max(initial=0) * 1.15))
    upright = len(labels) > 8 or max(map(len, labels), default=0) > 12
    font = 10 if len(labels) <= MANY else max(4.5, min(8, 620 / len(labels)))
    ax.set_xticks(np.arange(len(labels)), labels, rotation=90 if upright else 0, fontsize=font)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    if len(labels) <= MANY:
        for k, count in enumerate(counts):
            ax.text(k, count, f"{int(count)}", ha="center", va="bottom", fontsize=9)
    ax.set_title(title, fontsize=12)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.tick_params(axis="y", labelsize=9)
    ax.grid(True, axis="y", alpha=0.3)
    ax.set_axisbelow(True)


def _density(fig: Figure, ax, x, y, title: str, xlabel: str, ylabel: str, downwards: bool = False) -> None:
    """Counts of points of the unit square in 50 x 50 cells; `downwards`: y grows down, as in a picture."""
    counts, _, _ = np.histogram2d(x, y, bins=50, range=((0, 1), (0, 1)))
    if len(x):
        extent, origin = ((0, 1, 1, 0), "upper") if downwards else ((0, 1, 0, 1), "lower")
        mesh = ax.imshow(np.ma.masked_equal(counts.T, 0), extent=extent, origin=origin, cmap="viridis", vmin=0)
        bar = fig.colorbar(mesh, ax=ax, shrink=0.85)
        bar.set_label("boxes per cell", fontsize=9)
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    finish(ax, title, ylabel, xlabel, empty="no boxes")


def _pair_table(ax, classes, image_class, labels: Sequence[str], cls_labels: Sequence[str]) -> None:
    """Objects by class and by the image-level class of their picture: shows at once what never occurs together."""
    table = np.zeros((len(labels), len(cls_labels) + 1), dtype=np.int64)
    image_class = np.where(image_class < 0, len(cls_labels), image_class)  # unknown: the last column
    np.add.at(table, (classes, image_class), 1)
    columns = [*cls_labels, "unknown"][: len(cls_labels) + bool(table[:, -1].any())]
    table = table[:, : len(columns)]
    ax.imshow(np.ma.masked_equal(table, 0), cmap="Blues", vmin=0, vmax=max(table.max(), 1), aspect="auto")
    font = 10 if max(table.shape) <= 8 else 7
    for (i, j), count in np.ndenumerate(table):
        color = "white" if count > 0.68 * table.max() else "black"
        ax.text(j, i, str(count), ha="center", va="center", fontsize=font, color=color)
    upright = len(columns) > 5 or max(map(len, columns)) > 10
    ax.set_xticks(np.arange(len(columns)), columns, fontsize=font, rotation=90 if upright else 0)
    ax.set_yticks(np.arange(len(labels)), labels, fontsize=font)
    ax.set_title("objects by class and image-level class", fontsize=12)
    ax.set_xlabel("image-level class of the picture", fontsize=10)


def plot_labels(index, names: Names, cls_names: Names, save_dir: str | Path) -> Path:
    """Draw what the label files hold: objects and pictures per class, and where boxes lie and how large they are.

    Args:
        index: a DatasetIndex (its `objects` [N, 5], `object_offsets` [n + 1] and `image_class` [n], -1 unknown).
        names: names of the object classes.
        cls_names: names of the image-level classes; empty for data without them.
        save_dir: folder that gets labels.jpg.
    """
    labels = [safe_text(n, 16) for n in name_list(names)]
    cls_labels = [safe_text(n, 16) for n in name_list(cls_names)]
    objects, image_class = np.asarray(index.objects), np.asarray(index.image_class)
    per_picture = np.diff(np.asarray(index.object_offsets))
    classes, width, height = objects[:, 0].astype(int), objects[:, 3], objects[:, 4]
    many = len(labels) > MANY

    fig = new_figure(16, 15 if many else 9.5)
    top = [list("AAAAAA"), list("BBBCCC")] if many else [list("AABBCC")]
    axes = fig.subplot_mosaic([*top, list("DDEEFF")])

    counts = np.bincount(classes, minlength=len(labels))
    _bars(axes["A"], labels, counts, [class_color(i) for i in range(len(labels))], "objects per class", "objects")
    extra = ["B", "C"]
    if cls_labels:
        known = [int((image_class == i).sum()) for i in range(len(cls_labels))]
        bar_colors = [class_color(i + len(labels)) for i in range(len(cls_labels))] + [GREY]
        title, counts = "pictures per image-level class", [*known, int((image_class < 0).sum())]
        _bars(axes[extra.pop(0)], [*cls_labels, "unknown"], counts, bar_colors, title, "pictures")
        if not many and len(cls_labels) <= MANY:
            of_object = np.repeat(image_class, per_picture)
            _pair_table(axes[extra.pop()], classes, of_object, labels, cls_labels)
    if extra:
        ax, most = axes[extra.pop(0)], int(per_picture.max(initial=0))
        step = max(1, math.ceil((most + 1) / 50))
        ax.hist(per_picture, bins=np.arange(0, most + step + 1, step) - 0.5, color=BLUE, rwidth=0.9)
        finish(ax, "objects per picture", "pictures", "objects")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlim(-0.75, max(most, 1) + 0.75)
    if extra:
        ax = axes[extra.pop()]
        if len(objects):
            ax.hist(np.sqrt(width * height), bins=np.linspace(0, 1, 51), color=BLUE, rwidth=0.9)
        finish(ax, "box size", "boxes", r"$\sqrt{w h}$ as a share of the picture", empty="no boxes")

    ax = axes["D"]
    shown = np.random.default_rng(0).permutation(len(objects))[:1000]
    # Drawn at the same centre: a box of the whole picture would fill the diagram.
    patches = [Rectangle((0.5 - width[k] / 2, 0.5 - height[k] / 2), width[k], height[k]) for k in shown]
    edges = [class_color(classes[k]) for k in shown]
    ax.add_collection(PatchCollection(patches, facecolor="none", edgecolor=edges, lw=0.7, alpha=0.5))
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    finish(ax, f"box shapes, centred ({len(shown)} boxes)", "share of the height", "share of the width")
    _density(fig, axes["E"], objects[:, 1], objects[:, 2], "box centres", "x / width", "y / height", downwards=True)
    _density(fig, axes["F"], width, height, "box sizes", "box width / picture width", "box height / picture height")
    fig.suptitle(f"{len(per_picture)} pictures, {len(objects)} objects", fontsize=14)
    return save(fig, Path(save_dir) / "labels.jpg")
