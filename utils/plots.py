"""YOLOv5's names for drawing, with its signatures; the modules of `utils.results` do the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.results import batches, curves, drawing
from utils.results.drawing import save_one_box

__all__ = ["Annotator", "colors", "plot_images", "plot_one_box", "plot_results", "save_one_box"]

PALETTE = 1024  # classes and tracks further on begin again with the first one's colour


def colors(i: int, bgr: bool = False) -> tuple[int, int, int]:
    """Colour of class or track `i`, RGB or BGR, 0..255."""
    color = drawing.colors(int(i) % PALETTE)
    return color if bgr else color[::-1]


class Annotator(drawing.Annotator):
    """Draws boxes and labels at once, into the caller's own array.

    A PIL picture, and an array that cannot be drawn into (one with turned channels, say), is copied: take `result()`.

    Args:
        im: uint8 [H, W, 3], or a PIL picture; colours have its order of channels.
        line_width, font_size: px; by default they grow with the picture.
        font, pil, example: without effect: the font is DejaVu Sans in any case.

    Attributes:
        im: The picture.
        lw: Width of lines, px.
    """

    def __init__(
        self,
        im: np.ndarray | Image.Image,
        line_width: int | None = None,
        font_size: int | None = None,
        font: str = "Arial.ttf",
        pil: bool = False,
        example: str = "abc",
    ) -> None:
        array = im if isinstance(im, np.ndarray) else np.array(im)
        super().__init__(array, line_width, font_size, array.flags.c_contiguous and array.flags.writeable)
        self.lw = self.line_width

    @property
    def im(self) -> np.ndarray:
        return self._im

    def box_label(
        self,
        box: Sequence[float],
        label: str | None = "",
        color: Sequence[int] = (128, 128, 128),
        txt_color: Sequence[int] | None = None,
    ) -> None:
        """Draw a box, xyxy in px, and its label; without `txt_color` black or white, which reads best."""
        self.box(box, label or "", color, txt_color)
        self.result()

    def text(
        self, xy: Sequence[float], text: str, txt_color: Sequence[int] = (255, 255, 255), anchor: str = "top"
    ) -> None:
        """Draw a line of text whose upper (or, with `anchor="bottom"`, lower) left corner is at `xy` px."""
        y = xy[1] - (self.font_size if anchor == "bottom" else 0)
        super().text((xy[0], y), text, txt_color, background=None)
        self.result()


def plot_one_box(
    x: Sequence[float],
    img: np.ndarray,
    color: Sequence[int] | None = None,
    label: str | None = None,
    line_thickness: int | None = 3,
) -> None:
    """Draw a box, xyxy in px, into a picture: YOLOv5's way until v5.0."""
    Annotator(img, line_width=line_thickness).box_label(x, label, color or colors(0, bgr=True))


def plot_images(
    images,
    targets,
    paths: Sequence[str] | None = None,
    fname: str | Path = "images.jpg",
    names: Mapping[int, str] | Sequence[str] | None = None,
) -> np.ndarray:
    """Draw a batch with its boxes as a mosaic and write it, in the format of the file's suffix.

    Args:
        images: [B, 3, H, W], RGB, of 0..255 or 0..1; tensor or array.
        targets: [N, 6] image index, class, x, y, w, h, or [N, 7], the confidence last (those above 0.25 are drawn);
            centre and size as fractions of the picture, or in pixels.
        paths: B file names for the captions, or None.
        names: names of the classes; None: their numbers.

    Returns:
        The mosaic, uint8 [h, w, 3], BGR.
    """
    images, targets = (batches.to_numpy(v) for v in (images, targets))
    if images.dtype != np.uint8:
        images = images / (255 if images.max(initial=0) > 1 else 1)
    if targets.size and targets[:, 2:6].max() > 1.01:
        height, width = images.shape[2:]
        targets = np.concatenate((targets[:, :2], targets[:, 2:6] / (width, height, width, height), targets[:, 6:]), 1)
    return batches.plot_images(images, targets, None, paths, fname, names or ())


def plot_results(file: str | Path = "path/to/results.csv", dir: str | Path = "") -> None:  # noqa: A002 - its name
    """Draw a run's results.csv, or that of the folder `dir`, as results.png beside it."""
    file = Path(file) if file else Path(dir) / "results.csv"
    curves.plot_results(file, file.with_name("results.png"))
