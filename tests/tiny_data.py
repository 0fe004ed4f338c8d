"""A detection set of a few small pictures, in the form of coco128: images/ and labels/ beside one another, a yaml."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.system.paths import ROOT
from utils.system.yamls import load_yaml, save_yaml

COCO_NAMES = load_yaml(ROOT / "data" / "coco128.yaml")["names"]


def draw_set(folder: Path, classes: tuple[int, ...] = (0, 39, 79), pictures: int = 6, size: int = 64) -> Path:
    """Bright rectangles of these class numbers on grey; returns the data yaml, which has the 80 names of COCO."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "train2017").mkdir(parents=True)
    for i in range(pictures):
        im = np.full((size, size, 3), 60, np.uint8)
        x, y, r = (int(v) for v in rng.integers((20, 20, 8), (44, 44, 16)))
        cv2.rectangle(im, (x - r, y - r), (x + r, y + r), (255, 255 - 40 * (i % 3), 200), -1)
        cv2.imwrite(str(folder / "images" / "train2017" / f"{i:012}.jpg"), im)
        row = f"{classes[i % len(classes)]} {x / size:.6f} {y / size:.6f} {2 * r / size:.6f} {2 * r / size:.6f}\n"
        (folder / "labels" / "train2017" / f"{i:012}.txt").write_text(row)
    content = {"path": str(folder), "train": "images/train2017", "val": "images/train2017", "test": None}
    save_yaml(folder / "set.yaml", content | {"names": COCO_NAMES})
    return folder / "set.yaml"
