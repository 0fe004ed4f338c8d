"""Batches of training and validation drawn as one picture, with their boxes, names and image-level labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.results.drawing import (
    DARK,
    WHITE,
    Annotator,
    colors,
    draw_text,
    fill,
    font,
    image_label_text,
    shorten,
    text_mask,
    write_image,
)
from utils.results.fonts import class_name


def to_numpy(x) -> np.ndarray:
    return x.detach().float().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def _to_bgr(images) -> np.ndarray:
    """[B, 3, H, W] RGB, uint8 or float 0..1, tensor or array -> uint8 [B, H, W, 3] BGR."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.numpy() if not images.is_floating_point() else images.float().numpy()
    if images.dtype != np.uint8:
        images = np.rint(images.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(images[:, ::-1].transpose(0, 2, 3, 1))


def plot_images(
    images,
    targets,
    image_targets,
    paths: Sequence[str] | None,
    fname: str | Path | None,
    names: Mapping[int, str] | Sequence[str],
    cls_names: Mapping[int, str] | Sequence[str] = (),
    max_subplots: int = 16,
    conf_thres: float = 0.25,
    max_size: int = 1920,
) -> np.ndarray:
    """Draw a batch as a mosaic with boxes, class names, file names and image-level labels, and write it as JPEG.

    Args:
        images: [B, 3, H, W], RGB, uint8 (or float 0..1), tensor or array, any device.
        targets: [N, 6] image index, class, x, y, w, h (normalised centre and size), or [N, 7], the confidence last.
        image_targets: [B, cls_nc] one-hot, mixed, probabilities or zero rows (unknown); None or [B, 0]: no such task.
        paths: B file names for the captions, or None.
        fname: where to write (.jpg), or None to only return the mosaic.
        names: names of the object classes.
        cls_names: names of the image-level classes.
        max_subplots: at most so many pictures are shown.
        conf_thres: boxes with a confidence up to this are left out ([N, 7] targets only).
        max_size: longest side of the mosaic in px; tiles are 320 to 640 px, small pictures are enlarged.

    Returns:
        The mosaic, uint8 [h, w, 3], BGR.
    """
    images = _to_bgr(images[:max_subplots])
    targets = to_numpy(targets).reshape(len(targets), -1) if len(targets) else np.zeros((0, 6), np.float32)
    if image_targets is not None:
        image_targets = to_numpy(image_targets[:max_subplots])
        image_targets = image_targets if image_targets.ndim == 2 and image_targets.shape[1] else None
    count, height, width = images.shape[:3]
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    scale = min(max(max_size // columns, 320), 640) / max(height, width, 1)
    tile_h, tile_w = max(1, round(height * scale)), max(1, round(width * scale))

    font_size = max(12, round(max(tile_h, tile_w) / 30))
    line_h = sum(font(font_size).getmetrics()) + 2
    caption_h = line_h * ((paths is not None) + (image_targets is not None))
    gap = 6
    cell_h, cell_w = tile_h + caption_h + gap, tile_w + gap
    mosaic = np.full((rows * cell_h + gap, columns * cell_w + gap, 3), 255, np.uint8)

    for i, im in enumerate(images):
        x, y = gap + i % columns * cell_w, gap + i // columns * cell_h
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        tile = Annotator(cv2.resize(im, (tile_w, tile_h), interpolation=interpolation), font_size=font_size)
        for row in _rows_of_image(targets, i, conf_thres):
            center, half = row[2:4] * (tile_w, tile_h), row[4:6] * (tile_w, tile_h) / 2
            label = class_name(names, int(row[1])) + (f" {row[6]:.2f}" if len(row) > 6 else "")
            tile.box((*(center - half), *(center + half)), label, colors(int(row[1])))
        fill(mosaic, x, y, x + tile_w, y + caption_h, DARK)
        lines = [] if paths is None else [(Path(paths[i]).name, WHITE)]
        if image_targets is not None:
            lines.append((image_label_text(image_targets[i], cls_names), (120, 230, 255)))
        for k, (text, color) in enumerate(lines):
            mask = text_mask(shorten(text, font_size, tile_w - 12), font_size)
            draw_text(mosaic, x + 6, y + 1 + k * line_h, mask, color)
        mosaic[y + caption_h : y + caption_h + tile_h, x : x + tile_w] = tile.result()
    if fname is not None:
        write_image(fname, mosaic)
    return mosaic


def _rows_of_image(targets: np.ndarray, i: int, conf_thres: float) -> np.ndarray:
    """Boxes of picture `i`; those with a confidence best first, the weak ones left out."""
    rows = targets[targets[:, 0] == i]
    if targets.shape[1] > 6:
        rows = rows[rows[:, 6] > conf_thres]
        rows = rows[np.argsort(-rows[:, 6], kind="stable")]
    return rows
