"""Pictures: boxes and the image-level answer drawn on photographs, and what it takes to write on them.

Everything here works on copies unless it is told otherwise, holds no global state besides small caches and may run in a
worker thread. Nothing is downloaded for the texts, see `utils.results.fonts`.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.results.fonts import FONT, class_name, font_for, writable_text
from utils.system.paths import increment_path

DARK, WHITE = (24, 24, 24), (255, 255, 255)
UNKNOWN_IMAGE_LABEL = "image ?"
MIN_FONT_SIZE = 9

# Wong, Points of view: Color blindness, Nature Methods 2011 (RGB; black left out, blue lightened for dark pictures).
_BASE_COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 190, 125),
    (240, 228, 66),
    (232, 84, 32),
    (222, 123, 178),
    (64, 120, 242),
)


@lru_cache(maxsize=1024)
def _rgb(i: int) -> tuple[int, int, int]:
    if i < len(_BASE_COLORS):
        return _BASE_COLORS[i]
    # Golden-angle hues: neighbouring indices stay far apart, whatever the number of classes.
    hue = (0.11 + (i - len(_BASE_COLORS)) * 0.61803398875) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55)[i % 2], (0.95, 0.85)[i // 2 % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def colors(i: int) -> tuple[int, int, int]:
    """Colour of class `i` as a BGR triple of 0..255; a class has the same colour in every picture and diagram."""
    return _rgb(int(i))[::-1]


def image_label_text(row, cls_names: Mapping[int, str] | Sequence[str], max_classes: int = 3) -> str:
    """Text for an image-level target or answer.

    Args:
        row: `[cls_nc]`, one-hot, a mix of views, probabilities, or all zero where the answer is unknown.
        cls_names: names of the image-level classes.
        max_classes: at most so many classes are named; shares under 0.05 are not.

    Returns:
        `"PLAX"` for a one-hot row, `"PSAX 0.62 / A4C 0.38"` for shares or probabilities, `"image ?"` where unknown.
    """
    row = np.asarray(row, dtype=np.float64).reshape(-1)
    if not row.size or not np.isfinite(row).all() or row.sum() <= 0:
        return UNKNOWN_IMAGE_LABEL
    order = [int(i) for i in np.argsort(-row, kind="stable")]
    if row[order[0]] == 1.0 and np.count_nonzero(row) == 1:
        return class_name(cls_names, order[0])
    shown = [i for i in order[:max_classes] if row[i] >= 0.05] or order[:1]
    return " / ".join(f"{class_name(cls_names, i)} {row[i]:.2f}" for i in shown)


@lru_cache(maxsize=64)
def font(size: int, file: Path = FONT) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels."""
    return ImageFont.truetype(str(file), size)


def _length(text: str, size: int) -> float:
    """Width of a line of text in px at a font size."""
    return font(size, font_for(text) or FONT).getlength(text)


@lru_cache(maxsize=2048)
def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage 0..255 of one line of text, uint8 [ascent + descent, width]; all lines of a size are equally high."""
    ascent, descent = font(size).getmetrics()
    mask = Image.new("L", (max(1, math.ceil(_length(text, size))), ascent + descent))
    face = font(size, font_for(text) or FONT)
    ImageDraw.Draw(mask).text((0, ascent), text, fill=255, font=face, anchor="ls")
    array = np.asarray(mask)
    array.setflags(write=False)
    return array


def _one_line(text: str) -> str:
    return writable_text("".join(c if c.isprintable() else " " for c in str(text)))


def shorten(text: str, size: int, max_width: float) -> str:
    """`text` with its middle replaced by an ellipsis where it is wider than `max_width` px at font size `size`."""
    text = _one_line(text)
    if _length(text, size) <= max_width:
        return text
    keep = len(text) - 1
    while keep > 1:
        # The end of a file name says more than its middle: frame numbers and suffixes stand there.
        short = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        if _length(short, size) <= max_width:
            return short
        keep -= 1
    return text[:1]


def draw_text(im: np.ndarray, x: int, y: int, mask: np.ndarray, color: Sequence[int]) -> None:
    """Blend a text mask into `im` with its upper left corner at (x, y); what lies outside is cut."""
    height, width = im.shape[:2]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + mask.shape[1], width), min(y + mask.shape[0], height)
    if x1 >= x2 or y1 >= y2:
        return
    alpha = mask[y1 - y : y2 - y, x1 - x : x2 - x, None].astype(np.float32) / 255
    region = im[y1:y2, x1:x2]
    region[:] = np.rint(region + (np.asarray(color, np.float32) - region) * alpha).astype(np.uint8)


def fill(im: np.ndarray, x1: int, y1: int, x2: int, y2: int, color: Sequence[int], opacity: float = 1.0) -> None:
    region = im[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    region[:] = np.rint(region * (1.0 - opacity) + np.asarray(color, np.float32) * opacity).astype(np.uint8)


def text_color_on(color: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher contrast on the BGR colour `color` (WCAG 2.1, relative luminance)."""
    blue, green, red = ((c / 255) ** 2.2 for c in color)
    return (0, 0, 0) if 0.0722 * blue + 0.7152 * green + 0.2126 * red > 0.179 else WHITE


class Annotator:
    """Draws boxes, labels and the image-level answer on a copy of one picture, or on the picture itself.

    Boxes are drawn at once and all texts in `result`, so that no line crosses a text; a label goes above its box, or to
    the first place around the box where it neither leaves the picture nor covers another text.

    Args:
        im: uint8 [H, W, 3], BGR. It is copied, never altered, unless `in_place`.
        line_width: of the boxes, px; by default it grows with the picture.
        font_size: px; by default it grows with the picture.
        in_place: draw into `im`, which must be contiguous and writable.

    Raises:
        ValueError: when `im` is not a uint8 picture of three channels.
    """

    def __init__(
        self, im: np.ndarray, line_width: int | None = None, font_size: int | None = None, in_place: bool = False
    ):
        if im.ndim != 3 or im.shape[2] != 3 or im.dtype != np.uint8:
            raise ValueError(f"expected a BGR picture, uint8 [H, W, 3], got {im.dtype} {list(im.shape)}")
        self._im = im if in_place else np.array(im, order="C")
        mean_side = (im.shape[0] + im.shape[1]) / 2
        self.line_width = int(line_width) if line_width else max(2, round(mean_side * 0.003))
        self.font_size = int(font_size) if font_size else max(12, round(mean_side * 0.02))
        self._labels: list[tuple] = []  # box, text, its plate's colour, its own
        self._texts: list[tuple] = []  # arguments of _plate
        self._plates: list[tuple[int, int, int, int]] = []  # what labels must not cover: x1, y1, x2, y2

    def box(
        self, xyxy, label: str = "", color: Sequence[int] = (230, 159, 0), text_color: Sequence[int] | None = None
    ) -> None:
        """Draw a box. xyxy: 4 numbers in px; label: its text, may be empty; color, text_color: BGR, the text's by
        default black or white."""
        height, width = self._im.shape[:2]
        corners = np.array([float(v) for v in xyxy]).reshape(2, 2)
        if not np.isfinite(corners).all():
            return
        # A side outside the picture stays outside, but within what OpenCV's integers hold.
        (x1, y1), (x2, y2) = np.rint(corners.clip(-99, (width + 99, height + 99))).astype(int).tolist()
        color = tuple(int(c) for c in color)
        # A thin dark rim keeps the line visible on a background of its own colour.
        cv2.rectangle(self._im, (x1, y1), (x2, y2), DARK, self.line_width + 2, cv2.LINE_AA)
        cv2.rectangle(self._im, (x1, y1), (x2, y2), color, self.line_width, cv2.LINE_AA)
        if label:
            self._labels.append(((x1, y1, x2, y2), str(label), color, text_color or text_color_on(color)))

    def text(
        self,
        xy,
        text: str,
        color: Sequence[int] = WHITE,
        background: Sequence[int] | None = DARK,
        opacity: float = 0.75,
        font_size: int | None = None,
    ) -> None:
        """Draw one line of text with its upper left corner at `xy` px, on a plate of `background` (None: no plate)."""
        size = font_size or self.font_size
        mask = text_mask(_one_line(text), size)
        self._texts.append((int(xy[0]), int(xy[1]), mask, size, color, background, opacity))

    def image_label(self, text: str, corner: str = "top-left") -> None:
        """Draw the image-level answer, e.g. "PLAX 0.98", in a corner, on a dark plate that any background lets read.

        Args:
            text: what to write; its size shrinks, and it is shortened in the end, so that it fits the picture.
            corner: "top-left", "top-right", "bottom-left" or "bottom-right".

        Raises:
            ValueError: for another corner.
        """
        vertical, _, horizontal = corner.partition("-")
        if vertical not in ("top", "bottom") or horizontal not in ("left", "right"):
            raise ValueError(f"corner must be top-left, top-right, bottom-left or bottom-right, not {corner!r}")
        height, width = self._im.shape[:2]
        size, text = round(self.font_size * 1.15), _one_line(text)
        while size > MIN_FONT_SIZE and _length(text, size) + size > width:
            size -= 1
        mask = text_mask(shorten(text, size, width - size), size)
        plate_h, plate_w = self._plate_size(mask, size)
        x = 0 if horizontal == "left" else width - plate_w
        y = 0 if vertical == "top" else height - plate_h
        self._texts.append((x, y, mask, size, WHITE, DARK, 0.8))

    def result(self) -> np.ndarray:
        """The picture with all that was drawn so far, uint8 [H, W, 3], BGR."""
        for text in self._texts:
            self._plate(*text)
        for box, label, color, text_color in self._labels:
            mask = text_mask(shorten(label, self.font_size, self._im.shape[1] - self.font_size), self.font_size)
            x, y = self._place(box, *self._plate_size(mask, self.font_size))
            self._plate(x, y, mask, self.font_size, text_color, color, 1.0)
        self._texts.clear()
        self._labels.clear()
        return self._im

    @staticmethod
    def _plate_size(mask: np.ndarray, size: int) -> tuple[int, int]:
        return mask.shape[0], mask.shape[1] + 2 * max(2, size // 4)

    def _plate(self, x, y, mask, size, color, background, opacity) -> None:
        height, width = self._plate_size(mask, size)
        if background is not None:
            fill(self._im, x, y, x + width, y + height, background, opacity)
        draw_text(self._im, x + max(2, size // 4), y, mask, color)
        self._plates.append((x, y, x + width, y + height))

    def _place(self, box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int]:
        """Upper left corner for a label plate: the first place around the box that is free and inside the picture."""
        im_h, im_w = self._im.shape[:2]
        x1, y1, x2, y2 = box
        half = self.line_width // 2
        left, right = x1 - half, x2 + half + 1 - width
        above, below, top, bottom = y1 - half - height, y2 + half + 1, y1 + half + 1, y2 - half - height
        spots = ((left, above), (left, below), (right, above), (right, below), (left, top), (left, bottom))
        taken = np.asarray(self._plates, dtype=np.int64).reshape(-1, 4)
        best, best_cost = (left, above), math.inf
        for x, y in spots:
            inside_x, inside_y = min(max(x, 0), max(im_w - width, 0)), min(max(y, 0), max(im_h - height, 0))
            overlap_w = np.minimum(taken[:, 2], inside_x + width) - np.maximum(taken[:, 0], inside_x)
            overlap_h = np.minimum(taken[:, 3], inside_y + height) - np.maximum(taken[:, 1], inside_y)
            # A place that had to be pushed back into the picture vertically is worse than one that fits.
            cost = float((overlap_w.clip(0) * overlap_h.clip(0)).sum()) + abs(inside_y - y) * width * 0.5
            if cost < best_cost:
                best, best_cost = (inside_x, inside_y), cost
            if best_cost == 0:
                break
        return best


def write_image(file: str | Path, im: np.ndarray) -> None:
    """Write a BGR picture in the format of the suffix, folders made as needed; any Unicode path works.

    Raises:
        OSError: when the picture cannot be encoded or written.
    """
    file = Path(file)
    ok, data = cv2.imencode(file.suffix, im)
    if not ok:
        raise OSError(f"could not encode {file} (picture of shape {list(im.shape)})")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.tobytes())  # cv2.imwrite fails on non-ASCII paths under Windows


def save_one_box(
    xyxy,
    im: np.ndarray,
    file: str | Path = "im.jpg",
    gain: float = 1.02,
    pad: int = 10,
    square: bool = False,
    BGR: bool = False,  # noqa: N803 - the name YOLOv5's users know
    save: bool = True,
) -> np.ndarray:
    """Cut a box out of a picture, a little enlarged, and write it as JPEG.

    Args:
        xyxy: 4 numbers in px of `im`.
        im: uint8 [H, W, 3], BGR.
        file: where to write; an existing file is kept and a number is added to the name (im.jpg, im2.jpg, ...).
        gain: width and height are multiplied by it, then `pad` px are added.
        pad: px.
        square: make the box a square of its longer side first.
        BGR: return the crop as BGR instead of RGB; the file has the right colours either way.
        save: write the file.

    Returns:
        The crop, uint8 [h, w, 3], clipped to the picture; empty (and nothing is written) where the box lies outside it.
    """
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    width, height = x2 - x1, y2 - y1
    if square:
        width = height = max(width, height)
    width, height = width * gain + pad, height * gain + pad
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    im_h, im_w = im.shape[:2]
    left, right = (int(min(max(center_x + s * width / 2, 0), im_w)) for s in (-1, 1))
    top, bottom = (int(min(max(center_y + s * height / 2, 0), im_h)) for s in (-1, 1))
    crop = im[top:bottom, left:right]
    if save and crop.size:
        write_image(increment_path(Path(file).with_suffix(".jpg")), crop)
    return crop if BGR else crop[..., ::-1]
