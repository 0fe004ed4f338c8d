"""A small joint-labelled data set whose pixels tell the image class and the object, for tests of the loader."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.dataset.scan import DatasetIndex, scan_dataset

NO_AUGMENTATION = dict.fromkeys(
    (
        "hsv_h",
        "hsv_s",
        "hsv_v",
        "degrees",
        "translate",
        "scale",
        "shear",
        "perspective",
        "flipud",
        "fliplr",
        "mosaic",
        "mixup",
        "copy_paste",
    ),
    0.0,
)
HYP = NO_AUGMENTATION | {
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "translate": 0.1,
    "scale": 0.5,
    "fliplr": 0.5,
    "mosaic": 1.0,
    "mixup": 0.3,
}
COLOURS = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255]], np.uint8)  # BGR, class 0, 1, 2, unknown
VIEWS = [0, 0, 0, 0, 1, 1, 1, 2, 2, -1, -1, 2]  # of the pictures of `folder`


def write_folder(root: Path) -> Path:
    """Twelve pictures of different sizes in the colour of their image class, each with a black object."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i, view in enumerate(VIEWS):
        w, h = rng.integers(40, 180, 2)
        im = np.tile(COLOURS[view], (h, w, 1))
        x1, y1, x2, y2 = int(w * 0.25), int(h * 0.3), int(w * 0.5), int(h * 0.8)
        im[y1:y2, x1:x2] = 0
        box = np.array([x1 + x2, y1 + y2, 2 * (x2 - x1), 2 * (y2 - y1)]) / 2 / [w, h, w, h]
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) / [w, h]
        row = f"{i % 3} " + " ".join(map(str, corners.ravel() if i % 2 else box))
        one_hot = "" if view < 0 else " ".join(str(int(c == view)) for c in range(3))
        cv2.imwrite(str(root / "images" / f"{i:02d}.png"), im)
        (root / "labels" / f"{i:02d}.txt").write_text(f"{row}\n\n{one_hot}")
    return root


def scan(root: Path) -> DatasetIndex:
    return scan_dataset(str(root / "images"), 3, 3, cache=False, verbose=False)
