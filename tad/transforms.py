"""What is done to the pictures of a clip: one random draw for all of its frames.

Frames are uint8 RGB [T, H, W, 3]. OpenCV resizes and turns hues, as in the published recipe, so that its pixels can be
compared; the fifteen operations follow PIL's definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from tad.config import TadConfig

LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
ASPECT = (3 / 4, 4 / 3)  # of training crops, width to height
CANDIDATES = 10
JITTER = ("brightness", "contrast", "saturation", "hue")


class Box(NamedTuple):
    """Pixels of a crop: left, top, right, bottom."""

    left: int
    top: int
    right: int
    bottom: int


def short_side_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height after a resize of the shorter side to `short`; the aspect stays."""
    scale = short / min(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, without smoothing before; size is (width, height)."""
    return frame if frame.shape[1::-1] == size else cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)


def centre_box(width: int, height: int, side: int) -> Box:
    left, top = (width - side) // 2, (height - side) // 2
    return Box(left, top, left + side, top + side)


def random_box(width: int, height: int, areas: np.ndarray, aspects: np.ndarray, draw: Callable[[int, int], int]) -> Box:
    """The first candidate that fits, at a random place; the centred square where none does.

    Args:
        areas, aspects: Shares of the picture's area, and widths to heights, of the candidates.
        draw: Random whole number between two, both included.
    """
    area = width * height
    for share, aspect in zip(areas, aspects, strict=True):
        w, h = (int(round(math.sqrt(share * area * a))) for a in (aspect, 1 / aspect))
        if w <= width and h <= height:
            left, top = draw(0, width - w), draw(0, height - h)
            return Box(left, top, left + w, top + h)
    return centre_box(width, height, min(width, height))


# Colours --------------------------------------------------------------------------------------------------------------


def jitter(frames: np.ndarray, order: list[str], factors: dict[str, float]) -> np.ndarray:
    """Brightness, contrast, saturation (factors) and hue (share of a full turn) in that order, clipped at the end."""
    out = np.empty_like(frames)
    for frame, target in zip(frames, out, strict=True):  # one frame at a time: floats of a clip are large
        v = frame.astype(np.float32)
        for name in order:
            f = np.float32(factors[name])
            if name == "brightness":
                v = v * f
            elif name == "contrast":
                v = f * v + (1 - f) * (v @ LUMA).mean()
            elif name == "saturation":
                v = f * v + (1 - f) * (v @ LUMA)[..., None]
            elif int(255 * factors[name]):
                v = turn_hue(np.clip(v, 0, 255).astype(np.uint8), int(255 * factors[name])).astype(np.float32)
        target[...] = np.clip(v, 0, 255).astype(np.uint8)
    return out


def turn_hue(frame: np.ndarray, steps: int) -> np.ndarray:
    """Turn the hue by so many of OpenCV's 180 steps."""
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + steps) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def blend(image: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    """PIL's: other + factor · (image − other), cut off below the point."""
    other = np.asarray(other, np.float32)
    return np.clip(other + np.float32(factor) * (image.astype(np.float32) - other), 0, 255).astype(np.uint8)


def grey(frame: np.ndarray) -> np.ndarray:
    """PIL's luma of a frame, uint8."""
    r, g, b = (frame[..., i].astype(np.uint32) for i in range(3))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(np.uint8)


def smooth(frame: np.ndarray) -> np.ndarray:
    """PIL's SMOOTH filter; the border stays."""
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    out = frame.copy()
    filtered = cv2.filter2D(frame.astype(np.float32), -1, kernel / 13)
    out[1:-1, 1:-1] = np.clip(filtered + 0.5, 0, 255).astype(np.uint8)[1:-1, 1:-1]
    return out


def autocontrast(frame: np.ndarray) -> np.ndarray:
    out = frame.copy()
    for c in range(3):
        low, high = int(frame[..., c].min()), int(frame[..., c].max())
        if high > low:
            scale = 255 / (high - low)
            table = np.clip((np.arange(256) * scale - low * scale).astype(int), 0, 255).astype(np.uint8)
            out[..., c] = table[frame[..., c]]
    return out


def equalize(frame: np.ndarray) -> np.ndarray:
    out = frame.copy()
    for c in range(3):
        counts = np.bincount(frame[..., c].ravel(), minlength=256)
        used = counts[counts > 0]
        step = int(used.sum() - used[-1]) // 255
        if len(used) > 1 and step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1]])
            out[..., c] = np.clip((step // 2 + before) // step, 0, 255).astype(np.uint8)[frame[..., c]]
    return out


# Places ---------------------------------------------------------------------------------------------------------------


def warp(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Affine map [2, 2] about the picture's middle, or with a shift [2, 3]; bilinear, black outside."""
    h, w = frame.shape[:2]
    middle = np.array([(w - 1) / 2, (h - 1) / 2])
    linear = matrix[:, :2]
    shift = middle - linear @ middle + (matrix[:, 2] if matrix.shape[1] == 3 else 0)
    return cv2.warpAffine(frame, np.column_stack([linear, shift]), (w, h), flags=cv2.INTER_LINEAR)


def shear(frame: np.ndarray, degrees: float, axis: str) -> np.ndarray:
    """Along x or y."""
    t = math.tan(math.radians(degrees))
    return warp(frame, np.array([[1, -t], [0, 1]] if axis == "x" else [[1, 0], [t, 1]], float))


def translate(frame: np.ndarray, share: float, axis: str) -> np.ndarray:
    """By a share of the picture's width or height."""
    h, w = frame.shape[:2]
    x, y = (share * w, 0) if axis == "x" else (0, share * h)
    return warp(frame, np.array([[1, 0, x], [0, 1, y]], float))


def rotate(frame: np.ndarray, degrees: float) -> np.ndarray:
    """Clockwise on the screen."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warp(frame, np.array([[c, -s], [s, c]]))


def cutout(frame: np.ndarray, x: float, y: float, share: float = 0.18) -> np.ndarray:
    """A grey square of that share of the shorter side, its middle at shares x, y of the picture."""
    h, w = frame.shape[:2]
    side = int(share * min(h, w))
    left, top = math.floor(x * w - side / 2), math.floor(y * h - side / 2)
    out = frame.copy()
    out[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 128
    return out


# Magnitude 9 of 10, as published. `sign` is ±1, x and y the middle of the cut-out.
OPERATIONS: dict[str, Callable[[np.ndarray, int, float, float], np.ndarray]] = {
    "shear_x": lambda f, sign, x, y: shear(f, sign * 15.471, "x"),
    "shear_y": lambda f, sign, x, y: shear(f, sign * 15.471, "y"),
    "translate_x": lambda f, sign, x, y: translate(f, sign * 0.18, "x"),
    "translate_y": lambda f, sign, x, y: translate(f, sign * 0.18, "y"),
    "rotate": lambda f, sign, x, y: rotate(f, sign * 27),
    "posterize": lambda f, sign, x, y: f & 0xE0,
    "solarize": lambda f, sign, x, y: np.where(f >= 230, 255 - f, f),
    "colour": lambda f, sign, x, y: blend(f, grey(f)[..., None], 1.72),
    "contrast": lambda f, sign, x, y: blend(f, int(grey(f).mean() + 0.5), 1.72),
    "brightness": lambda f, sign, x, y: blend(f, 0, 1.72),
    "sharpness": lambda f, sign, x, y: blend(f, smooth(f), 1.72),
    "autocontrast": lambda f, sign, x, y: autocontrast(f),
    "equalize": lambda f, sign, x, y: equalize(f),
    "invert": lambda f, sign, x, y: 255 - f,
    "cutout": lambda f, sign, x, y: cutout(f, x, y),
}


# Clips ----------------------------------------------------------------------------------------------------------------


class ClipTransform:
    """The transform of one clip: `frame` for each frame as it is decoded, then `clip` for all of them.

    Args:
        config: Sizes, and what may happen in training.
        width, height: Size of the decoded pictures.
        rng: Draws everything at once, so a clip depends on its own seed alone; None: the plain transform of validation.
    """

    def __init__(self, config: TadConfig, width: int, height: int, rng: np.random.Generator | None = None) -> None:
        self.side, self.rng, self.config = config.imgsz, rng, config
        self.size = short_side_size(width, height, config.imgsz if rng is None else config.short_side)
        if rng is None:
            self.box = centre_box(*self.size, self.side)
            return
        areas = rng.uniform(config.crop_area, 1.0, CANDIDATES)
        aspects = np.exp(rng.uniform(*np.log(ASPECT), CANDIDATES))
        self.box = random_box(*self.size, areas, aspects, lambda a, b: int(rng.integers(a, b + 1)))
        self.mirrored = bool(rng.random() < config.flip)
        chosen = np.sort(rng.choice(len(OPERATIONS), 2, replace=False))
        self.operations = [list(OPERATIONS)[i] for i in chosen] if config.randaugment else []
        self.sign, self.at = int(rng.choice([-1, 1])), rng.random(2).tolist()
        self.order = [JITTER[i] for i in rng.permutation(len(JITTER))] if config.jitter else []
        self.factors = dict(zip(JITTER, [*rng.uniform(0.5, 1.5, 3), rng.uniform(-0.1, 0.1)], strict=True))

    def frame(self, picture: np.ndarray) -> np.ndarray:
        """Resize and crop one picture uint8 [H, W, 3] → [side, side, 3]."""
        left, top, right, bottom = self.box
        return resize(resize(picture, self.size)[top:bottom, left:right], (self.side, self.side))

    def clip(self, frames: np.ndarray) -> np.ndarray:
        """What follows for all frames uint8 [T, side, side, 3]."""
        if self.rng is None:
            return frames
        if self.mirrored:
            frames = frames[:, :, ::-1]
        for name in self.operations:
            frames = np.stack([OPERATIONS[name](np.ascontiguousarray(f), self.sign, *self.at) for f in frames])
        return jitter(frames, self.order, self.factors) if self.order else np.ascontiguousarray(frames)
