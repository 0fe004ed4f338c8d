"""The yaml of a tiny network, and a weight file with random weights, which the tests of detection share."""

from __future__ import annotations

from pathlib import Path

import torch

from models.yolo import Model
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml, save_yaml
from utils.weights.checkpoint import save_checkpoint

NAMES = {0: "cat", 1: "MR", 2: "dog"}
VIEWS = {0: "PSAX", 1: "PLAX"}


def save_cfg(file: Path, name: str = "yolov5n_cls", width: float = 0.125) -> Path:
    """The yaml of a network of YOLOv5's form with few channels, for trainings."""
    save_yaml(file, load_yaml(ROOT / "models" / f"{name}.yaml") | {"width_multiple": width})
    return file


def save_weights(file: Path, joint: bool = True, seed: int = 0) -> Path:
    """A small network that finds something anywhere; with the image branch it prefers the second view."""
    torch.manual_seed(seed)
    cfg = load_yaml(ROOT / "models" / ("yolov5n_cls.yaml" if joint else "yolov5n.yaml"))
    model = Model(cfg | {"width_multiple": 0.1}, nc=3, cls_nc=2 if joint else None)
    model.names = NAMES
    with torch.no_grad():
        for conv in model.detect.m:
            conv.weight.mul_(10)
            conv.bias.view(3, -1)[:, 4:] += 5
        if joint:
            model.cls_names = VIEWS
            last_bias = [p for p in model.image_head.parameters() if p.shape == (2,)][-1]
            last_bias.copy_(torch.tensor([0.0, 2.0]))
    state = {"format": "yolov5-joint", "version": 1, "epoch": 0, "best_fitness": 0.0, "model": model.record()}
    save_checkpoint(file, state | {"ema": None, "train_state": None, "opt": {}, "hyp": {}, "date": "2026-01-01"})
    return file
