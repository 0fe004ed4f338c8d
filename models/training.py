"""One epoch of a joint or plain detector, and what is written down of it; `utils.training.fit` does the rest."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from models.run import Run
from utils.loss import ComputeJointLoss
from utils.results.batches import plot_images
from utils.system.devices import all_reduce_mean, peak_memory_gb, to_input
from utils.system.process import SafeStop
from utils.system.voice import say
from utils.training.engine import Engine

# Columns of results.csv: YOLOv5's under its names, then those of the image task -> where an epoch's record has them.
METRICS = {
    "metrics/precision": "precision",
    "metrics/recall": "recall",
    "metrics/mAP_0.5": "map50",
    "metrics/mAP_0.5:0.95": "map50_95",
}
IMAGE_METRICS = {
    "metrics/image_accuracy": "image_accuracy",
    "metrics/image_balanced_accuracy": "image_balanced_accuracy",
    "metrics/image_macro_f1": "image_macro_f1",
}


def train_epoch(
    run: Run, engine: Engine, net: nn.Module, loader, criterion: ComputeJointLoss, epoch: int, stop: SafeStop
) -> dict:
    """Train for one epoch.

    Args:
        net: The network to call: the engine's model, or that in its wrapper for several processes.

    Returns:
        Mean `losses` by name, `seconds` and `images_per_s`.
    """
    opt, batches, seen = run.opt, len(loader), 0
    names = (*criterion.parts, *(task for task in criterion.tasks if task not in criterion.parts))
    means = torch.zeros(len(names), device=run.device)
    to_training(net)
    bar = Progress(run, loader, criterion, epoch)
    began = time.perf_counter()
    for i, (images, targets, image_targets, paths, _) in enumerate(bar.batches):
        n = i + batches * epoch  # batches since the start of the run
        engine.begin(n)
        images = to_input(images, run.device, run.layout)
        if opt.multi_scale:
            images = resize_batch(images, run.imgsz, engine.model.multiple, seed=(opt.seed, n))
        with engine.autocast():
            predictions = net(images)
        losses = criterion(predictions, targets.to(run.device), image_targets)
        scale = 4 if opt.quad else 1  # a quarter of the pictures, each of four
        where = f"epoch {epoch} batch {i} with pictures {', '.join(Path(p).name for p in paths[:8])}"
        engine.end(
            [scale * loss for loss in losses.tasks.values()],
            len(images) * run.world.size,
            list(losses.present.values()),
            last=i == batches - 1,
            where=where,
        )
        values = losses.tasks | losses.parts
        now = torch.stack([values[name].detach().reshape(()) for name in names])
        means += (all_reduce_mean(now.float(), run.world) - means) / (i + 1)
        seen += len(images) * run.world.size * scale
        rate = seen / (time.perf_counter() - began)
        bar.show(means.tolist(), engine.balancer.weights.tolist(), images.shape[-1], rate)
        if run.world.is_main and n < 3 and not opt.noplots:
            file = run.save_dir / f"train_batch{n}.jpg"
            plot_images(images, targets, image_targets, paths, file, run.data.names, run.data.cls_names)
        stop.check()
    seconds = time.perf_counter() - began
    return {
        "losses": dict(zip(names, means.tolist(), strict=True)),
        "seconds": seconds,
        "images_per_s": seen / seconds,
    }


def to_training(net: nn.Module) -> None:
    """Training mode, but for the batch norms of frozen layers, --sync-bn's too, whose statistics stay as they are."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
            module.eval()


class Progress:
    """YOLOv5's progress bar over an epoch's batches, a column for each loss and each task weight."""

    def __init__(self, run: Run, loader, criterion: ComputeJointLoss, epoch: int) -> None:
        self.run, self.parts, self.left = run, len(criterion.parts), len(loader)
        self.weights = len(criterion.tasks) if len(criterion.tasks) > 1 else 0
        self.epoch = f"{epoch}/{run.opt.epochs - 1}"
        weights = [f"w_{task}" for task in criterion.tasks][: self.weights]
        head = ["Epoch", "Mem", *(f"{part}_loss" for part in criterion.parts), *weights, "Size", "img/s"]
        say(("\n" + "%11s" * len(head)) % tuple(head))
        often = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file needs no animation
        self.batches = tqdm(
            loader, disable=not run.world.is_main, bar_format="{l_bar}{bar:10}{r_bar}", mininterval=often
        )

    def show(self, losses: list[float], weights: list[float], size: int, rate: float) -> None:
        self.left -= 1
        if self.run.world.is_main:
            row = (*losses[: self.parts], *weights[: self.weights])
            text = "%11s" * 2 % (self.epoch, f"{peak_memory_gb(self.run.device):.3g}G") + "%11.4g" * len(row) % row
            self.batches.set_description(f"{text}{size:11d}{rate:11.4g}", refresh=self.left == 0)


def resize_batch(images: torch.Tensor, imgsz: int, stride: int, seed: tuple[int, int]) -> torch.Tensor:
    """Multi-scale training: the batch at a random size within ±50 % of `imgsz`, a multiple of the stride."""
    size = random.Random(f"{seed}").randrange(int(imgsz * 0.5), int(imgsz * 1.5) + stride) // stride * stride
    factor = size / max(images.shape[2:])
    if factor == 1:
        return images
    shape = [int(np.ceil(x * factor / stride) * stride) for x in images.shape[2:]]
    return nn.functional.interpolate(images, size=shape, mode="bilinear", align_corners=False)


def table_columns(criterion: ComputeJointLoss) -> dict[str, tuple]:
    """Columns of results.csv: YOLOv5's in its order, then those of the image task where there is one."""
    detection = [part for part in criterion.parts if part not in criterion.tasks]
    image = [part for part in criterion.parts if part in criterion.tasks]
    losses = {split: {f"{split}/{p}_loss": (split, p) for p in detection} for split in ("train", "val")}
    columns = {"epoch": ("epoch",)} | losses["train"] | {k: ("metrics", v) for k, v in METRICS.items()} | losses["val"]
    columns |= {f"x/lr{i}": ("lr", i) for i in range(3)}
    if image:
        columns |= {f"{split}/{p}_loss": (split, p) for split in ("train", "val") for p in image}
        columns |= {k: ("metrics", v) for k, v in IMAGE_METRICS.items()}
        columns |= {f"weights/{task}": ("task_weights", task) for task in criterion.tasks}
    return columns


def more_scalars(criterion: ComputeJointLoss) -> dict[str, tuple]:
    """What TensorBoard gets beside the columns of results.csv."""
    return {
        "metrics/f1": ("metrics", "f1"),
        "metrics/fitness": ("metrics", "fitness"),
        **{f"grad_norms/{task}": ("grad_norms", task) for task in criterion.tasks},
        "interference/cosine": ("grad_cosine",),
        "interference/conflict_share": ("conflict_share",),
        "speed/images_per_s": ("images_per_s",),
        "speed/epoch_seconds": ("seconds",),
        "memory/peak_gb": ("peak_memory_gb",),
    }


def epoch_record(run: Run, engine: Engine, criterion: ComputeJointLoss, epoch: int, trained: dict, results) -> dict:
    """One entry of training_history.json, also the source of results.csv and TensorBoard.

    Args:
        results: What validation returned; None where the epoch was not validated.
    """
    stats = engine.balancer.stats()
    norms = stats["grad_norms"]
    metrics = None
    if results:
        image = results["image"] or {}
        metrics = {k: results["detection"][k] for k in ("precision", "recall", "f1", "map50", "map50_95")}
        metrics |= {f"image_{k}": image.get(k) for k in ("accuracy", "balanced_accuracy", "macro_f1")}
        metrics["fitness"] = results["fitness"]
    return {
        "epoch": epoch,
        "train": trained["losses"],
        "val": results["losses"] if results else None,
        "task_weights": dict(zip(criterion.tasks, engine.balancer.weights.tolist(), strict=True)),
        "grad_norms": dict(zip(criterion.tasks, norms, strict=True)) if norms else None,
        "grad_cosine": stats["cosine"],
        "conflict_share": stats["conflict_share"],
        "grad_measured": stats["measured"],  # steps that these three are means of
        "grad_skipped": stats["skipped"],
        "metrics": metrics,
        "lr": [group["lr"] for group in engine.optimizer.param_groups],
        "seconds": trained["seconds"],
        "images_per_s": trained["images_per_s"],
        "peak_memory_gb": peak_memory_gb(run.device),
        "trace": [trace_row(criterion.tasks, row) for row in stats["trace"]],
    }


PER_TASK = {"loss": "losses", "norm": "norms", "weight": "weights", "ratio": "ratios"}


def trace_columns(tasks: Sequence[str]) -> list[str]:
    """Columns of balancer_trace.csv; none where there is nothing to balance."""
    return ["step", *(f"{key}/{task}" for key in PER_TASK for task in tasks), "cosine"] if len(tasks) > 1 else []


def trace_row(tasks: Sequence[str], row: dict) -> dict:
    """A measurement of the balancer, see `Balancer.stats`, by the columns of balancer_trace.csv."""
    flat = {f"{key}/{task}": row[many][i] for key, many in PER_TASK.items() for i, task in enumerate(tasks)}
    return flat | {"step": row["step"], "cosine": next(iter(row["cosines"]), None)}  # of the one pair of two tasks
