"""The way back: the detection part of a joint model as plain weights under YOLOv5's names."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from models.export.check import Difference, compare
from models.export.network import random_pictures
from models.yolo import Model
from utils.weights.checkpoint import load_checkpoint


def write_state_dict(weights: Path, file: Path) -> None:
    """Writes an ordered dict of float32 tensors `model.N.…`, the last of Detect, for `torch.load(weights_only=True)`.

    Raises:
        ValueError: See `refuse_fused`.
    """
    model = Model.from_checkpoint(load_checkpoint(weights))
    refuse_fused(model, weights)
    torch.save(detection_part(model), file)


def refuse_fused(model: Model, weights: Path) -> None:
    """Raises ValueError where the batch norms are folded into the convolutions, which YOLOv5 cannot take."""
    if not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()):
        raise ValueError(
            f"{weights}: its batch norms are folded into the convolutions; YOLOv5's models have them apart"
        )


def check_state_dict(weights: Path, file: Path, imgsz: tuple[int, int]) -> Difference:
    """Loads what was written into a network without a branch, strictly, and compares its boxes with the joint one's.

    Raises:
        ValueError: They are not equal.
    """
    plain = Model(load_checkpoint(weights).model_yaml, cls_nc=0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    return compare_boxes(weights, plain, file, imgsz)


@torch.inference_mode()
def compare_boxes(weights: Path, plain: Model, file: Path, imgsz: tuple[int, int]) -> Difference:
    """Compares the boxes of a network, which was read from `file`, with those of `weights`.

    Raises:
        ValueError: They are not equal.
    """
    whole = Model.from_checkpoint(load_checkpoint(weights)).eval()
    images = random_pictures(1, whole.yaml["ch"], imgsz)
    boxes, expected = plain.eval()(images).boxes, whole(images).boxes
    total = Difference()
    compare(total, "boxes", boxes[..., :4], expected[..., :4])
    compare(total, "scores", boxes[..., 4:], expected[..., 4:])
    if total.scaled > 0:
        raise ValueError(f"{file}: the boxes are not those of {weights} ({total}); nothing was written")
    return total


def detection_part(model: Model) -> OrderedDict[str, Tensor]:
    """The tensors of all layers up to Detect, under the names that they have in YOLOv5."""
    state = model.state_dict()
    return OrderedDict((k, v.detach().clone()) for k, v in state.items() if int(k.split(".")[1]) <= model.detect.i)
