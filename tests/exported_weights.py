"""Weights whose answers depend on the picture, for tests of exported files, and the exports of them."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from tiny_weights import save_weights

import export
from models.answer import Answer
from models.export.network import random_pictures, smooth_pictures
from models.yolo import Model
from utils.weights.checkpoint import load_checkpoint, save_checkpoint

FORMATS = ("torchscript", "onnx", "openvino")
NMS_FLAGS = (("nms", True), ("conf_thres", 0.2), ("iou_thres", 0.4), ("topk_all", 20))
NMS = {"conf_thres": 0.2, "iou_thres": 0.4, "max_det": 20, "agnostic": False}


def save_lively_weights(file: Path, joint: bool = True, seed: int = 0, model: Model | None = None) -> Path:
    """Random weights with the batch statistics of some pictures: without them every cell gives nearly one answer."""
    if model is None:
        model = Model.from_checkpoint(load_checkpoint(save_weights(file, joint, seed)))
        with torch.no_grad():
            for conv in model.detect.m:
                conv.weight.div_(4)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    with torch.no_grad():
        for k, pictures in enumerate((random_pictures, smooth_pictures, smooth_pictures)):
            model.train()(pictures(4, model.yaml["ch"], (128, 128), seed=k))
        for norm in norms:
            norm.running_var.mul_(1.2)  # calmer, as a trained network is: rounding is not blown up from layer to layer
    state = {"format": "yolov5-joint", "version": 1, "epoch": 0, "best_fitness": 0.0, "model": model.record()}
    save_checkpoint(file, state | {"ema": None, "train_state": None, "opt": {}, "hyp": {}, "date": "2026-01-01"})
    return file


def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO as on a processor without bfloat16, so that its answers are PyTorch's to the last digits."""
    monkeypatch.setattr("models.export.readers.openvino_has_bfloat16", lambda: False)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed when the process ends


@functools.cache
def lively_weights() -> Path:
    return save_lively_weights(Path(_folder().name) / "w.pt")


@functools.cache
def made(name: str, size: tuple[int, int] = (64, 96), **options) -> Path:
    """`lively_weights` in a format, made once for all tests, which must not change it."""
    own = Path(tempfile.mkdtemp(dir=_folder().name)) / "w.pt"
    shutil.copy(lively_weights(), own)
    return export.run(weights=own, imgsz=size, include=[name], **options)[0]


def largest_difference(ours: Answer, theirs: Answer) -> float:
    """Of the boxes and of the image-level probabilities: |a - b| / max(1, |b|)."""
    pairs = [(a, b) for a, b in ((ours.boxes, theirs.boxes), (ours.probs, theirs.probs)) if b is not None]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)
