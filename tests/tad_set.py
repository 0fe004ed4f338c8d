"""Clips small enough to train temporal detection on in seconds, a network for them, and its training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

import train_tad
from data.echo_clips import write_video
from tad.config import config_from
from tad.model import TadModel
from utils.weights.checkpoint import save_checkpoint

SMALL = {
    "frames": 32, "frame_stride": 1, "imgsz": 32, "short_side": 34, "dim": 24, "depth": 1, "heads": 2, "mlp": 48,
    "grid": 2, "adapter": 6, "backbone_drop": 0.2, "freeze": False, "channels": 16, "detector_heads": 2,
    "blocks": [1, 1, 2], "epochs": 4, "schedule_epochs": 4, "warmup_epochs": 1, "lr": 0.001, "adapter_lr": 0.001,
    "backbone_lr": 0.001, "ema": 0.5, "eval_from": 0, "eval_every": 2, "pre_top": 100, "max_events": 50,
}  # fmt: skip


def squares(rng: np.random.Generator, frames: int = 60) -> tuple[list[np.ndarray], list[dict]]:
    """Noise in which a red or a blue square stands for a while, twice."""
    pictures = [rng.integers(60, 120, (40, 48, 3), dtype=np.uint8) for _ in range(frames)]
    events, start = [], int(rng.integers(2, 10))
    for label in rng.permutation(["red", "blue"]):
        end = start + int(rng.integers(8, 20))
        y, x = rng.integers(4, 20, 2)
        for picture in pictures[start:end]:
            picture[y : y + 16, x : x + 16] = (20, 20, 255) if label == "red" else (255, 20, 20)  # BGR
        events.append({"segment": [start / 25, end / 25], "label": str(label)})
        start = end + int(rng.integers(3, 8))
    return pictures, events


def make_set(root: Path, train: int = 6, val: int = 2, frames: int = 60) -> Path:
    """A data yaml with its clips, 25 frames a second."""
    (root / "videos").mkdir(parents=True)
    database = {}
    for i in range(train + val):
        pictures, events = squares(np.random.default_rng(i), frames)
        write_video(root / "videos" / f"v{i}.mp4", pictures)
        subset = "training" if i < train else "validation"
        database[f"v{i}"] = {"subset": subset, "duration": frames / 25, "frame": frames, "annotations": events}
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    data = {"path": str(root), "annotations": "annotations.json", "train": "training", "val": "validation"}
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    return root / "data.yaml"


def train(data: Path, cfg: Path, project: Path, *more: str) -> Path:
    """Train as a user would; returns the run's folder."""
    words = ["--data", str(data), "--cfg", str(cfg), "--project", str(project), "--workers", "0", "--amp", "off"]
    train_tad.main(train_tad.parse_opt([*words, "--device", "cpu", *more]))
    return project / "exp"


def save_network(model: TadModel, file: Path) -> Path:
    """A checkpoint as training leaves it."""
    rest = {"epoch": 0, "best_fitness": 0.0, "ema": None, "train_state": None, "opt": {}, "hyp": {}, "date": ""}
    save_checkpoint(file, {"model": model.record(), **rest})
    return file


def save_new_network(file: Path) -> Path:
    """A checkpoint of the small network that has learnt nothing."""
    return save_network(TadModel(config_from(SMALL, "test"), ["blue", "red"]), file)
