"""Polygons under a projective warp: their parts inside the frame, and the boxes of these.

Polygons are float [k, 2], vertices in pixels; homogeneous points are [k, 3].
"""

from __future__ import annotations

import numpy as np

MIN_DEPTH = 1e-3  # projected points nearer to the camera plane than this are cut off


def _frame_planes(width: float, height: float) -> np.ndarray:
    """Half planes [5, 3]: a homogeneous point is in the frame, and before the camera, where `plane @ point >= 0`."""
    return np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, width], [0, -1, height]], dtype=np.float64)


def _plane_distances(points: np.ndarray, width: float, height: float) -> np.ndarray:
    distances = points @ _frame_planes(width, height).T
    distances[:, 0] -= MIN_DEPTH
    return distances


def clip_polygon(points: np.ndarray, width: float, height: float) -> np.ndarray:
    """Part of a closed polygon inside the frame 0 … width, 0 … height (Sutherland and Hodgman, CACM 1974).

    Args:
        points: [k, 2], or homogeneous [k, 3].

    Returns:
        [j, 2]; j = 0 where nothing is inside.
    """
    points = np.asarray(points, np.float64)
    if points.shape[1] == 2:
        points = np.concatenate((points, np.ones((len(points), 1))), axis=1)
    corners = points.tolist()
    for n, (a, b, c) in enumerate(_frame_planes(width, height).tolist()):
        offset = MIN_DEPTH if n == 0 else 0.0
        distances = [a * x + b * y + c * w - offset for x, y, w in corners]
        clipped = []
        for i, (corner, d) in enumerate(zip(corners, distances, strict=True)):
            previous, e = corners[i - 1], distances[i - 1]
            if (d >= 0) != (e >= 0):
                t = e / (e - d)
                clipped.append([p + t * (q - p) for p, q in zip(previous, corner, strict=True)])
            if d >= 0:
                clipped.append(corner)
        corners = clipped
    out = np.array(corners).reshape(-1, 3)
    return out[:, :2] / out[:, 2:]


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Four vertices [n, 4, 2] of boxes [n, 4] xyxy, going round."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Homogeneous images [..., 3] of points [..., 2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def _frame_corners_inside(polygon: np.ndarray, matrix: np.ndarray, width: float, height: float) -> np.ndarray:
    """Corners [j, 2] of the frame that lie in a warped polygon [k, 2] (even-odd rule, tested before the warp)."""
    frame = box_corners(np.array([[0, 0, width, height]], np.float64))[0]
    corners = project(frame, np.linalg.inv(matrix))
    valid = corners[:, 2] > 0  # the others are seen only behind the camera
    x, y = (corners[:, :2] / np.where(valid, corners[:, 2], 1)[:, None]).T
    (x1, y1), (x2, y2) = polygon.T[:, :, None], np.roll(polygon, -1, axis=0).T[:, :, None]
    crosses = (y1 > y) != (y2 > y)
    at = x1 + (y - y1) * (x2 - x1) / np.where(crosses, y2 - y1, 1)
    return frame[valid & ((crosses & (x < at)).sum(0) % 2 == 1)]


def warped_polygon_boxes(polygons: list[np.ndarray], matrix: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes [n, 4] (xyxy) of the parts of n warped polygons that lie in the frame 0 … width, 0 … height.

    Exact for any simple polygon: the extremes of the visible part are vertices in the frame, crossings of an edge with
    the border, or corners of the frame. Zeros where nothing is visible.
    """
    boxes = np.zeros((len(polygons), 4))
    if not polygons:
        return boxes
    lengths = np.array([len(p) for p in polygons])
    starts = np.cumsum(lengths) - lengths
    here = project(np.concatenate(polygons).astype(np.float64), matrix)
    following = np.arange(1, len(here) + 1)
    following[starts + lengths - 1] = starts
    there = here[following]
    # Each edge is cut to its visible span t0 … t1 (Liang and Barsky, TOG 1984), all edges at once.
    d0, d1 = _plane_distances(here, width, height), _plane_distances(there, width, height)
    change = np.where(d0 == d1, 1, d0 - d1)
    t = d0 / change
    t0 = np.where((d0 < 0) & (d1 >= 0), t, 0).max(1)
    t1 = np.where((d0 >= 0) & (d1 < 0), t, 1).min(1)
    visible = (t0 <= t1) & ~((d0 < 0) & (d1 < 0)).any(1)
    step = there - here
    ends = np.stack((here + t0[:, None] * step, here + t1[:, None] * step), axis=1)
    ends = ends[..., :2] / np.where(visible[:, None, None], ends[..., 2:], 1)
    low = np.where(visible[:, None], ends.min(1), np.inf)
    high = np.where(visible[:, None], ends.max(1), -np.inf)
    low, high = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    outside = d0 < 0
    partly = np.logical_or.reduceat(outside, starts).any(1) & ~np.logical_and.reduceat(outside, starts).any(1)
    for n in np.flatnonzero(partly):  # only these can hold a corner of the frame
        held = _frame_corners_inside(polygons[n], matrix, width, height)
        if len(held):
            low[n], high[n] = np.minimum(low[n], held.min(0)), np.maximum(high[n], held.max(0))
    found = np.isfinite(low).all(1)
    boxes[found] = np.concatenate((low, high), axis=1)[found]
    return boxes.clip(0, [width, height, width, height])  # against rounding in the crossings
