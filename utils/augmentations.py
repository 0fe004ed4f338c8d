"""Augmentations of pictures and their labels: letterbox, colour, warps, mosaic, mixup, copy-paste.

Pictures are OpenCV BGR uint8 [h, w, 3]. Labels are float [n, 5]: class and x1, y1, x2, y2 in pixels. `segments` are n
arrays [k, 2] of polygon vertices in pixels, [0, 2] for objects that are known by their box alone. No function keeps
state: what is random is drawn from the `numpy.random.Generator` given, and the inputs are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from utils.boxes import bbox_ioa
from utils.polygons import MIN_DEPTH, box_corners, clip_polygon, project, warped_polygon_boxes

FILL = 114  # grey level around and between pictures


# --- one picture --------------------------------------------------------------------------------------------------


def letterbox(
    im: np.ndarray,
    new_shape: int | Sequence[int] = (640, 640),
    color: tuple[int, int, int] = (FILL, FILL, FILL),
    auto: bool = True,
    scaleFill: bool = False,  # noqa: N803 (YOLOv5's name)
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Fits a picture into `new_shape` (one side, or height and width), keeping its aspect ratio, and pads the rest.

    Args:
        auto: pad to the next multiple of `stride` alone, not to all of `new_shape`.
        scaleFill: stretch to `new_shape` instead of padding (only where `auto` is off).
        scaleup: also enlarge small pictures.

    Returns:
        The picture, the ratios (width, height), and half of the padding (width, height) before it is rounded: of an
        odd padding the larger half goes to the right and the bottom.
    """
    ratio, size, (dw, dh), (top, bottom, left, right) = _fit(im.shape, new_shape, auto, scaleFill, scaleup, stride)
    if size != im.shape[1::-1]:
        im = cv2.resize(im, size, interpolation=cv2.INTER_LINEAR)
    if top or bottom or left or right:
        im = cv2.copyMakeBorder(im, top, bottom, left, right, cv2.BORDER_CONSTANT, value=color)
    return im, ratio, (dw, dh)


def letterboxed_shape(
    shape: Sequence[int], new_shape: int | Sequence[int] = (640, 640), auto: bool = True, stride: int = 32
) -> tuple[int, int]:
    """Height and width of what `letterbox` makes of a picture of that shape."""
    _, (width, height), _, (top, bottom, left, right) = _fit(shape, new_shape, auto, False, True, stride)
    return height + top + bottom, width + left + right


def _fit(
    shape: Sequence[int], new_shape: int | Sequence[int], auto: bool, scale_fill: bool, scaleup: bool, stride: int
) -> tuple[tuple[float, float], tuple[int, int], tuple[float, float], tuple[int, int, int, int]]:
    """Ratio (width, height), size (width, height), half of the padding (width, height), and the padding at top, bottom,
    left and right; arguments as of `letterbox`."""
    height, width = shape[:2]
    new_height, new_width = (new_shape, new_shape) if isinstance(new_shape, (int, np.integer)) else new_shape
    gain = min(new_height / height, new_width / width)
    if not scaleup:
        gain = min(gain, 1.0)
    ratio = (gain, gain)
    size = (max(round(width * gain), 1), max(round(height * gain), 1))  # a thin picture keeps one pixel
    dw, dh = new_width - size[0], new_height - size[1]
    if auto:
        dw, dh = dw % stride, dh % stride
    elif scale_fill:
        dw, dh = 0, 0
        size = (new_width, new_height)
        ratio = (new_width / width, new_height / height)
    dw, dh = dw / 2, dh / 2
    padding = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    return ratio, size, (dw, dh), padding


def shift_hsv(im: np.ndarray, multipliers: Sequence[float]) -> np.ndarray:
    """Multiplies hue (a circle), saturation and value (both limited to 255) of a picture by the three numbers."""
    x = np.arange(256)
    hue, saturation, value = (x * m for m in multipliers)
    table = np.stack((hue % 180, saturation.clip(0, 255), value.clip(0, 255)), axis=1).astype(np.uint8)[:, None]
    hsv = cv2.LUT(cv2.cvtColor(im, cv2.COLOR_BGR2HSV), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def augment_hsv(im: np.ndarray, hgain: float, sgain: float, vgain: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies hue, saturation and value by numbers drawn from 1 - gain … 1 + gain; all gains 0: the same picture."""
    if not (hgain or sgain or vgain):
        return im
    return shift_hsv(im, rng.uniform(-1, 1, 3) * (hgain, sgain, vgain) + 1)


def copy_paste(
    im: np.ndarray,
    labels: np.ndarray,
    segments: list[np.ndarray],
    p: float,
    rng: np.random.Generator,
    owner: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Pastes mirrored copies of the share `p` of the objects that have a polygon (after Ghiasi et al., CVPR 2021).

    A copy goes to the mirrored place in the same picture, unless it would hide 30 % of another object's box.

    Args:
        owner: uint8 [h, w], which picture a pixel comes from; written to, so that it stays true.

    Returns:
        Picture, labels and segments, the copies last; the inputs themselves where nothing is pasted.
    """
    with_polygon = [i for i, segment in enumerate(segments) if len(segment)]
    count = round(p * len(with_polygon))
    if not count:
        return im, labels, segments
    width = im.shape[1]
    mask = np.zeros(im.shape[:2], np.uint8)
    labels, segments = labels.copy(), list(segments)
    for i in rng.choice(with_polygon, count, replace=False):
        x1, y1, x2, y2 = labels[i, 1:5]
        box = np.array([width - x2, y1, width - x1, y2])
        if (bbox_ioa(box[None], labels[:, 1:5]) >= 0.3).any():
            continue
        cv2.drawContours(mask, [segments[i].astype(np.int32)], -1, 1, cv2.FILLED)
        labels = np.concatenate((labels, [[labels[i, 0], *box]]))
        segments.append(np.stack((width - segments[i][:, 0], segments[i][:, 1]), axis=1))
    pasted = cv2.flip(mask, 1).astype(bool)
    im = im.copy()
    im[pasted] = cv2.flip(im, 1)[pasted]
    if owner is not None:
        owner[pasted] = cv2.flip(owner, 1)[pasted]
    return im, labels, segments


# --- warp ---------------------------------------------------------------------------------------------------------


def perspective_matrix(
    in_wh: tuple[int, int],
    out_wh: tuple[int, int],
    *,
    perspective: tuple[float, float] = (0.0, 0.0),
    angle: float = 0.0,
    scale: float = 1.0,
    shear: tuple[float, float] = (0.0, 0.0),
    translate: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Homogeneous matrix [3, 3] from input to output pixels.

    Moves the centre of the input to the origin, then applies perspective (per pixel), rotation (degrees) with scaling,
    shear (degrees) and moves the origin to the fraction `translate` of the output.
    """
    centre = np.array([[1, 0, -in_wh[0] / 2], [0, 1, -in_wh[1] / 2], [0, 0, 1]])
    project = np.array([[1, 0, 0], [0, 1, 0], [*perspective, 1]])
    rotate = np.eye(3)
    rotate[:2] = cv2.getRotationMatrix2D(center=(0, 0), angle=angle, scale=scale)
    tan_x, tan_y = np.tan(np.radians(shear))
    skew = np.array([[1, tan_x, 0], [tan_y, 1, 0], [0, 0, 1]])
    move = np.array([[1, 0, translate[0] * out_wh[0]], [0, 1, translate[1] * out_wh[1]], [0, 0, 1]])
    return move @ skew @ rotate @ project @ centre


def warp_image(
    im: np.ndarray, matrix: np.ndarray, out_wh: tuple[int, int], flags: int = cv2.INTER_LINEAR, fill: int = FILL
) -> np.ndarray:
    """Warps a picture by a homogeneous matrix [3, 3]; `fill` is where no pixel falls."""
    border = (fill,) * 3
    if (matrix[2, :2] == 0).all():
        return cv2.warpAffine(im, matrix[:2] / matrix[2, 2], out_wh, flags=flags, borderValue=border)
    return cv2.warpPerspective(im, matrix, out_wh, flags=flags, borderValue=border)


def box_candidates(
    box1: np.ndarray,
    box2: np.ndarray,
    wh_thr: float = 2,
    ar_thr: float = 100,
    area_thr: float | np.ndarray = 0.1,
    eps: float = 1e-16,
) -> np.ndarray:
    """Which boxes are worth keeping, bool [n]: box1 before, box2 after a warp, both [4, n] xyxy.

    Kept are boxes over `wh_thr` px wide and high, with over the share `area_thr` of their area left (one number, or one
    per box) and an aspect ratio under `ar_thr`.
    """
    w1, h1 = box1[2] - box1[0], box1[3] - box1[1]
    w2, h2 = box2[2] - box2[0], box2[3] - box2[1]
    aspect = np.maximum(w2 / (h2 + eps), h2 / (w2 + eps))
    return (w2 > wh_thr) & (h2 > wh_thr) & (w2 * h2 / (w1 * h1 + eps) > area_thr) & (aspect < ar_thr)


def warp_labels(
    targets: np.ndarray,
    segments: Sequence[np.ndarray],
    matrix: np.ndarray,
    scale: float,
    out_wh: tuple[int, int],
) -> np.ndarray:
    """Labels [m, 5] (m <= n, float64) after a warp, cut to the output; what is hardly left of an object is dropped.

    A polygon gives the box of its visible part and is kept from 1 % of its area on, a box gives the box around its four
    warped corners and is kept from 10 % on (`scale` is the warp's, so that shrinking alone drops nothing).
    """
    targets = np.array(targets, np.float64).reshape(-1, 5)
    if not len(targets):
        return targets
    width, height = out_wh
    points = project(box_corners(targets[:, 1:5]), matrix)
    depth = points[..., 2]
    points = points[..., :2] / np.where(depth > MIN_DEPTH, depth, 1)[..., None]
    boxes = np.concatenate((points.min(1), points.max(1)), axis=1).clip(0, [width, height, width, height])
    area_thr = np.full(len(targets), 0.1)
    polygons = {i: s for i, s in enumerate(segments) if len(s)}
    if polygons:
        area_thr[list(polygons)] = 0.01
    for i in np.flatnonzero((depth <= MIN_DEPTH).any(1)):  # partly behind the camera
        polygons.setdefault(int(i), box_corners(targets[i : i + 1, 1:5])[0])
    if polygons:
        boxes[list(polygons)] = warped_polygon_boxes(list(polygons.values()), matrix, width, height)
    keep = box_candidates(targets[:, 1:5].T * scale, boxes.T, area_thr=area_thr)
    targets[:, 1:5] = boxes
    return targets[keep]


def random_perspective(
    im: np.ndarray,
    targets: np.ndarray,
    segments: Sequence[np.ndarray] = (),
    *,
    rng: np.random.Generator,
    degrees: float = 10.0,
    translate: float = 0.1,
    scale: float = 0.1,
    shear: float = 10.0,
    perspective: float = 0.0,
    border: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rotation, scaling, shear, translation and perspective.

    Args:
        targets: [n, 5] class and xyxy in pixels.
        degrees, shear: the largest angles (degrees). scale: factor 1 - scale … 1 + scale. translate: fraction of the
            output. perspective: per pixel, 0 … 0.001.
        border: rows, columns added on each side (negative: cropped, as for a mosaic).

    Returns:
        Picture, labels [m, 5], and the matrix [3, 3] used.
    """
    in_wh = (im.shape[1], im.shape[0])
    out_wh = (in_wh[0] + 2 * border[1], in_wh[1] + 2 * border[0])
    project = rng.uniform(-perspective, perspective, 2)
    angle = rng.uniform(-degrees, degrees)
    factor = rng.uniform(1 - scale, 1 + scale)
    skew = rng.uniform(-shear, shear, 2)
    place = rng.uniform(0.5 - translate, 0.5 + translate, 2)
    matrix = perspective_matrix(
        in_wh, out_wh, perspective=project, angle=angle, scale=factor, shear=skew, translate=place
    )
    if in_wh != out_wh or (matrix != np.eye(3)).any():
        im = warp_image(im, matrix, out_wh)
    return im, warp_labels(targets, segments, matrix, factor, out_wh), matrix


# --- several pictures ---------------------------------------------------------------------------------------------


def mosaic4(
    images: Sequence[np.ndarray], centre: tuple[int, int], size: int, canvas: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four pictures (upper left, upper right, lower left, lower right) around a point of a canvas of twice the size.

    Args:
        centre: y, x of the point where the four meet.
        canvas: uint8 [2 * size, 2 * size, 3] to write to, so that none needs to be made.

    Returns:
        The canvas; the part of it that each picture covers, int [4, 4] xyxy; and where each picture's upper left corner
        would lie, int [4, 2] x, y (it may lie beyond the canvas).
    """
    side = 2 * size
    if canvas is None:
        canvas = np.empty((side, side, 3), np.uint8)
    canvas[...] = FILL
    yc, xc = centre
    covered, origins = np.zeros((4, 4), int), np.zeros((4, 2), int)
    for i, im in enumerate(images):
        h, w = im.shape[:2]
        x, y = (xc if i % 2 else xc - w), (yc if i >= 2 else yc - h)
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, side), min(y + h, side)
        canvas[y1:y2, x1:x2] = im[y1 - y : y2 - y, x1 - x : x2 - x]
        covered[i], origins[i] = (x1, y1, x2, y2), (x, y)
    return canvas, covered, origins


def clip_labels(
    labels: np.ndarray, segments: list[np.ndarray], width: float, height: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels and polygons cut to a canvas; a polygon wholly outside becomes a point, which no warp keeps."""
    labels = labels.copy()
    labels[:, 1:5] = labels[:, 1:5].clip(0, [width, height, width, height])
    out = []
    for segment in segments:
        if len(segment) and (segment.min() < 0 or (segment > (width, height)).any()):
            clipped = clip_polygon(segment, width, height)
            segment = clipped if len(clipped) else segment[:1].clip(0, (width, height))
        out.append(segment)
    return labels, out


def mixup(
    im: np.ndarray, labels: np.ndarray, im2: np.ndarray, labels2: np.ndarray, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Blends two pictures of one size, `ratio` of the first, and keeps the labels of both (Zhang et al., ICLR 2018)."""
    return (im * ratio + im2 * (1 - ratio)).astype(np.uint8), np.concatenate((labels, labels2))


# --- what is seen of each picture ---------------------------------------------------------------------------------


def visible_areas(rectangles: np.ndarray, matrix: np.ndarray, out_wh: tuple[int, int]) -> np.ndarray:
    """Area [n] (pixels of the output) that rectangles [n, 4] (xyxy, input pixels) cover after a warp."""
    width, height = out_wh
    rectangles = np.asarray(rectangles, np.float64)
    if not matrix[[0, 1, 2, 2], [1, 0, 0, 1]].any():  # scaled and moved alone
        boxes = rectangles * matrix[[0, 1, 0, 1], [0, 1, 0, 1]] + matrix[[0, 1, 0, 1], 2]
        boxes = (boxes / matrix[2, 2]).clip(0, [width, height, width, height])
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = np.zeros(len(rectangles))
    for i, quad in enumerate(project(box_corners(rectangles), matrix)):
        x, y = clip_polygon(quad, width, height).T
        areas[i] = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    return areas


def owner_areas(owner: np.ndarray, count: int, matrix: np.ndarray, out_wh: tuple[int, int]) -> np.ndarray:
    """Pixels [count] of the output that show each picture, counted; owner uint8 [h, w] holds its number, 255: none."""
    warped = warp_image(owner, matrix, out_wh, cv2.INTER_NEAREST, 255)
    return np.bincount(warped.ravel(), minlength=256)[:count].astype(np.float64)


def mix_image_classes(classes: Sequence[int], areas: Sequence[float], cls_nc: int) -> np.ndarray:
    """Image target [cls_nc] (float32) of a composed picture: the share that each class has of the visible known area.

    Areas are in pixels. Classes of -1 are unknown and left out. Zeros (unknown) where no picture with a known class is
    visible.
    """
    classes, areas = np.asarray(classes, int), np.asarray(areas, np.float64)
    known = classes >= 0
    share = np.bincount(classes[known], areas[known], minlength=cls_nc)[:cls_nc]
    total = share.sum()
    # A thousandth of a pixel is rounding, not a view of anything.
    return (share / total if total > 1e-3 else np.zeros(cls_nc)).astype(np.float32)
