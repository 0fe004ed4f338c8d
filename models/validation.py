"""Validation: batches in, the metrics of both tasks out; the shares of several processes make one whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.predictor import Predictor
from utils.boxes import scale_boxes, xywh2xyxy
from utils.dataloaders import JointLoader, create_dataloader
from utils.dataset.config import DataConfig, ensure_data
from utils.dataset.scan import DatasetIndex, refuse_set, report_problems, scan_dataset
from utils.metrics import DetectionMetrics, ImageMetrics, joint_fitness
from utils.results.intervals import group_intervals
from utils.system.devices import World, gather_objects, main_first
from utils.system.voice import warn

STAGES = ("preprocess", "inference", "loss", "nms", "metrics")


class Picture(NamedTuple):
    """A picture's answers: detections [n,6] in its pixels, and image-level probabilities [cls_nc] or None."""

    path: str
    size: tuple[int, int]  # height, width
    detections: np.ndarray
    with_known: np.ndarray  # the same with the known boxes merged in, where these are asked for
    probs: np.ndarray | None


@dataclass
class Collected:
    """What validation has gathered so far, on the processor; lists hold (number of the batch, entry)."""

    detection: DetectionMetrics
    image: ImageMetrics | None
    unlabelled: int = 0  # pictures without an image label, where the data has such labels
    losses: list[tuple[int, dict[str, tuple[float, int]]]] = field(default_factory=list)  # mean, of how many pictures
    pictures: list[tuple[int, Picture]] = field(default_factory=list)
    drawings: list[tuple[int, tuple]] = field(default_factory=list)  # what `draw_batch` draws
    seconds: Counter = field(default_factory=Counter)

    def merge(self, other: Collected) -> None:
        self.detection.merge(other.detection)
        if self.image is not None:
            self.image.merge(other.image)
        self.unlabelled += other.unlabelled
        self.seconds.update(other.seconds)
        for name in ("losses", "pictures", "drawings"):
            entries = getattr(self, name)
            entries.extend(getattr(other, name))
            entries.sort(key=lambda entry: entry[0])


class Evaluator:
    """Measures a network batch by batch.

    Several processes each take every `world.size`-th batch of those that one process would form, from that of their
    rank on (`create_dataloader(…, once=True)`). What they collect is put into the batches' order before anything is
    summed up, so the result does not depend on their number by a single bit.

    Args:
        predictor: Asks the network.
        data: Names the classes.
        single_cls: All object classes count as one.
        criterion: Joint loss; gives the validation losses.
        keep: Keep the answers of every picture; `known`: those with the known boxes merged in, too.
        drawn: Keep so many first batches for drawing.
        world: The processes that share the work.

    Attributes:
        names, cls_names: Object and image classes to report; cls_names is {} without that task.
        collected: See `Collected`.

    Raises:
        ValueError: The network answers for other classes than the data has.
    """

    def __init__(
        self,
        predictor: Predictor,
        data: DataConfig,
        single_cls: bool = False,
        criterion=None,
        keep: bool = False,
        known: bool = False,
        drawn: int = 0,
        world: World | None = None,
    ):
        self.predictor, self.data, self.single_cls, self.criterion = predictor, data, single_cls, criterion
        self.keep, self.known, self.drawn, self.world = keep, known, drawn, world or World()
        self.names, self.cls_names = classes_of(predictor.model, data, single_cls)
        image = ImageMetrics(self.cls_names) if self.cls_names else None
        self.collected = Collected(DetectionMetrics(self.names), image, seconds=predictor.clock.seconds)
        self._next = self.world.rank

    @torch.no_grad()
    def update(self, batch: tuple) -> None:
        """Adds the next batch, as `utils.dataloaders.collate` makes it."""
        images, targets, image_targets, paths, shapes = batch
        number, input_shape, all_of_it = self._next, images.shape[2:], self.collected
        self._next += self.world.size
        answer, found = self.predictor.answer(images)
        if self.criterion is not None and answer.maps is not None:
            all_of_it.losses.append((number, self._losses(answer.raw, targets, image_targets)))
        found = [d.cpu() for d in found]
        probs = None if answer.probs is None else answer.probs.cpu()
        labels = labels_of(targets, input_shape, shapes)
        with self.predictor.clock("metrics"):
            in_picture = []
            for detections, own, shape in zip(found, labels, shapes, strict=True):
                detections[:, 5] *= not self.single_cls
                in_picture.append(scale_boxes(input_shape, detections.clone(), *shape))
                all_of_it.detection.update(in_picture[-1], own, number)
            all_of_it.unlabelled += int((image_targets.sum(1) == 0).sum()) if self.data.cls_nc else 0
            if all_of_it.image is not None:
                all_of_it.image.update(probs, image_targets, number)
        if self.keep:
            with_known = self._with_known(answer, targets, input_shape, shapes) if self.known else in_picture
            for i, (path, (size, _)) in enumerate(zip(paths, shapes, strict=True)):
                own = None if probs is None else probs[i].numpy()
                picture = Picture(str(path), size, in_picture[i].numpy(), with_known[i].numpy(), own)
                all_of_it.pictures.append((number, picture))
        if number < self.drawn:
            all_of_it.drawings.append((number, (images, targets, image_targets, found, probs, paths)))

    def merge(self, others: list[Collected]) -> None:
        """Adds what other processes collected from other batches."""
        for other in others:
            self.collected.merge(other)

    def gather(self) -> bool:
        """Brings what all processes collected together on the first one, and says whether this is it."""
        self.merge(gather_objects(self.collected, self.world)[1:])
        return self.world.is_main

    def intervals(self, index: DatasetIndex, groups: dict[str, str], draws: int) -> tuple[dict, dict]:
        """Intervals over groups (by picture file) of what was validated, and the draws; see `group_intervals`."""
        pictures, image = [picture for _, picture in self.collected.pictures], None
        if self.cls_names:
            true = dict(zip(map(str, index.im_files), index.image_class.tolist(), strict=True))
            answered = np.array([p.probs.argmax() for p in pictures])
            image = (self.cls_names, np.array([true[p.path] for p in pictures]), answered)
        return group_intervals(self.collected.detection, [groups[p.path] for p in pictures], draws, image)

    def compute(self, fitness_weight: float = 0.5) -> dict:
        """Metrics of both tasks, counts, losses (None without a criterion), milliseconds a picture, fitness.

        Args:
            fitness_weight: Share of the image accuracy in the fitness, 0..1.
        """
        everything = self.collected
        detection = everything.detection.compute()
        detection["maps"] = everything.detection.maps.tolist()  # mAP50-95 by class number
        image = everything.image.compute() if everything.image is not None else None
        accuracy = image["accuracy"] if image else None
        pictures = everything.detection.images
        return {
            "detection": detection,
            "image": image,
            "counts": {
                "images": pictures,
                "objects": sum(c["objects"] for c in detection["per_class"].values()),
                "images_without_image_label": everything.unlabelled,
            },
            "losses": mean_losses([losses for _, losses in everything.losses]),
            "speed_ms": {stage: everything.seconds[stage] * 1e3 / max(pictures, 1) for stage in STAGES},
            "fitness": joint_fitness(detection["map50"], detection["map50_95"], accuracy, fitness_weight),
            "conf_threshold_used": everything.detection.result.threshold,
        }

    def _losses(self, raw, targets: Tensor, image_targets: Tensor) -> dict[str, tuple[float, int]]:
        """Each loss, and the pictures that it is the mean of: the image loss takes those with a known label alone."""
        with self.predictor.clock("loss"):
            parts = self.criterion(raw, targets.to(self.predictor.device), image_targets).parts
            known, pictures = int((image_targets.sum(1) > 0).sum()), len(image_targets)
            return {name: (float(loss), known if name == "image" else pictures) for name, loss in parts.items()}

    def _with_known(self, answer, targets: Tensor, input_shape, shapes: list) -> list[Tensor]:
        """Detections with the known boxes among them: these enter files, but never the metrics."""
        height, width = input_shape
        boxes = torch.cat((targets[:, 1:2], targets[:, 2:6] * torch.tensor([width, height, width, height])), 1)
        known = [boxes[targets[:, 0] == i].to(self.predictor.device) for i in range(len(shapes))]
        merged = [d.cpu() for d in answer.detections(labels=known, **self.predictor.nms)]
        for detections in merged:
            detections[:, 5] *= not self.single_cls
        return [scale_boxes(input_shape, d, *shape) for d, shape in zip(merged, shapes, strict=True)]


def labels_of(targets: Tensor, input_shape: tuple[int, int], shapes: list) -> list[Tensor]:
    """Per picture labels [m,5] (class, xyxy in its pixels) of a batch's targets [N,6]."""
    height, width = input_shape
    targets = targets.cpu().float()
    labels = torch.cat((targets[:, 1:2], xywh2xyxy(targets[:, 2:6]) * torch.tensor([width, height, width, height])), 1)
    own = [labels[targets[:, 0] == i] for i in range(len(shapes))]
    for rows, shape in zip(own, shapes, strict=True):
        scale_boxes(input_shape, rows[:, 1:], *shape)
    return own


def mean_losses(batches: list[dict[str, tuple[float, int]]]) -> dict[str, float] | None:
    """Mean losses a picture of batches of (mean, pictures) each, and `det`, the sum of all but the image loss."""
    if not batches:
        return None
    sums, pictures = Counter(), Counter()
    for losses in batches:
        for name, (loss, count) in losses.items():
            sums[name] += loss * count if count else 0.0
            pictures[name] += count
    means = {name: sums[name] / max(count, 1) for name, count in pictures.items()}
    return means | {"det": sum(mean for name, mean in means.items() if name != "image")}


def classes_of(model: nn.Module, data: DataConfig, single_cls: bool) -> tuple[dict[int, str], dict[int, str]]:
    """Object and image classes to report; {} for the image task where the network or the data lacks it.

    Raises:
        ValueError: The network answers for other classes than the data has.
    """
    if not single_cls and model.nc != data.nc:
        raise ValueError(
            f"{data.source} has {data.nc} object classes ({', '.join(data.names.values())}), the network {model.nc} "
            f"({', '.join(dict(model.names).values())}): validate on the data it was trained for, or use --single-cls"
        )
    if data.cls_nc and model.cls_nc and model.cls_nc != data.cls_nc:
        raise ValueError(
            f"{data.source} has {data.cls_nc} image classes ({', '.join(data.cls_names.values())}), the network "
            f"{model.cls_nc} ({', '.join(dict(model.cls_names).values())})"
        )
    for ours, theirs in ((data.names, model.names), (data.cls_names, model.cls_names)):
        if ours and theirs and not single_cls and ours != dict(theirs):
            warn(f"{data.source} names the classes {ours}, the network {dict(theirs)}; the data's are used")
    names = (data.with_one_class() if single_cls else data).names
    return names, data.cls_names if data.cls_nc and model.cls_nc else {}


def make_loader(
    data: DataConfig,
    task: str,
    imgsz: int,
    batch_size: int,
    stride: int,
    *,
    single_cls: bool = False,
    workers: int = 8,
    strict: bool = False,
    square: bool = False,
    world: World | None = None,
) -> JointLoader:
    """Pictures of a split in batches of like shape, without augmentation; `square`, or `speed`, pads all to squares.

    Each process of `world` gets its share of the batches.
    """
    split, world = task if task in ("train", "val", "test") else "val", world or World()
    with main_first(world):
        ensure_data(data, (split,))
        kinds = {"single_cls": single_cls, "root": data.path, "prefix": split, "verbose": world.is_main}
        index = scan_dataset(getattr(data, split), data.nc, data.cls_nc, **kinds)
    report_problems(index.problems, strict, verbose=world.is_main)
    refuse_set(index, split, unlabelled=False)
    square = square or task == "speed"
    return create_dataloader(
        index, imgsz, batch_size, stride=stride, rect=not square, pad=0.0 if square else 0.5, cls_nc=data.cls_nc,
        workers=workers, rank=world.rank, world_size=world.size, once=True, prefix=split,
    )[0]  # fmt: skip
