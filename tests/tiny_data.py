"""Sets of a few small pictures: a joint one with its two splits, and a detection one in the form of coco128."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.system.paths import ROOT
from utils.system.yamls import load_yaml, save_yaml

COCO_NAMES = load_yaml(ROOT / "data" / "coco128.yaml")["names"]
SIZE = 64  # of a picture, in pixels


def draw_set(folder: Path, classes: tuple[int, ...] = (0, 39, 79), pictures: int = 6, size: int = SIZE) -> Path:
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


def make_data(folder: Path, pictures: int = 12, joint: bool = True) -> Path:
    """Bright squares (class 0) and discs (class 1); the image class says whether the background is plain or striped."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        for sub in ("images", "labels"):
            (folder / split / sub).mkdir(parents=True)
        for i in range(pictures):
            view, kind = i % 2, i // 2 % 2
            im = np.full((SIZE, SIZE, 3), 60, np.uint8)
            if view:
                im[np.arange(SIZE) // 4 % 2 == 0] = 120
            x, y, r = (int(v) for v in rng.integers((16, 16, 8), (48, 48, 14)))
            if kind:
                cv2.circle(im, (x, y), r, (255, 255, 255), -1)
            else:
                cv2.rectangle(im, (x - r, y - r), (x + r, y + r), (255, 255, 255), -1)
            cv2.imwrite(str(folder / split / "images" / f"{i}.png"), im)
            row = f"{kind} {x / SIZE} {y / SIZE} {2 * r / SIZE} {2 * r / SIZE}\n"
            one_hot = f"\n{1 - view} {view}" if joint else ""
            (folder / split / "labels" / f"{i}.txt").write_text(row + one_hot)
    content = {
        "path": str(folder),
        "train": "train/images",
        "val": "valid/images",
        "nc": 2,
        "names": ["square", "disc"],
    }
    if joint:
        content |= {"cls_nc": 2, "cls_names": ["plain", "striped"]}
    save_yaml(folder / "data.yaml", content)
    return folder / "data.yaml"
