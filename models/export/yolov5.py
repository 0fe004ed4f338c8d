"""The way back as a checkpoint: the detection part as the module that YOLOv5's own scripts load.

YOLOv5 pickles its networks whole, so its checkpoints name its classes and hold what their objects hold. Ours stand
under the same names in the same modules, with the same attributes for layers and weights; what differs is set here. In
a folder of YOLOv5 (v6.2 or later) the file becomes its classes, in ours ours.
"""

from __future__ import annotations

from pathlib import Path

import torch

from models.common import TransformerBlock
from models.export.check import Difference
from models.export.state_dict import compare_boxes, detection_part, refuse_fused
from models.yolo import DetectionModel
from utils.weights.checkpoint import load_checkpoint


def write_yolov5(weights: Path, file: Path) -> None:
    """Writes a checkpoint as YOLOv5's `strip_optimizer` leaves one, but with float32 weights, so that none is rounded.

    Raises:
        ValueError: YOLOv5 cannot have this network; the message says why.
    """
    checkpoint = load_checkpoint(weights)
    model = DetectionModel.from_checkpoint(checkpoint)
    refuse_fused(model, weights)
    content = {
        "epoch": -1,
        "best_fitness": checkpoint.best_fitness,
        "model": as_yolov5(model),
        "ema": None,
        "updates": None,
        "optimizer": None,
        "opt": checkpoint.opt,
        "git": None,
        "date": checkpoint.date,
    }
    torch.save(content, file)


def check_yolov5(weights: Path, file: Path, imgsz: tuple[int, int]) -> Difference:
    """Reads what was written as any checkpoint of YOLOv5 and compares its boxes with those of `weights`.

    Raises:
        ValueError: They are not equal.
    """
    return compare_boxes(weights, DetectionModel.from_checkpoint(load_checkpoint(file)), file, imgsz)


def as_yolov5(model: DetectionModel) -> DetectionModel:
    """A network of the detection part, whose attributes are those that YOLOv5 gives its own.

    Raises:
        ValueError: A detection row reads the picture itself, which no row of YOLOv5's can.
    """
    for i, m in enumerate(model.model[: model.detect.i + 1]):
        if "image" in (m.f if isinstance(m.f, list) else [m.f]):
            raise ValueError(f"layer {i} reads `image`, which YOLOv5's rows cannot: use --include state_dict")
    plain = DetectionModel(yaml_of_detection(model.yaml))
    plain.load_state_dict(detection_part(model))
    plain.eval().requires_grad_(False)
    detect, stride = plain.detect, plain.stride
    ready = {"anchor_grid": detect.anchor_grid, "grid": [torch.empty(0)] * detect.nl, "stride": stride, "inplace": True}
    del detect.stride  # a buffer here, an attribute there, where a buffer of this name would not be found
    detect.__dict__.update(ready)  # past the property
    for m in plain.model:
        m.type = f"{type(m).__module__}.{type(m).__qualname__}"
    for m in plain.modules():
        if isinstance(m, TransformerBlock):
            m.c2 = m.linear.out_features
    # past the properties too, which read the same from the layers
    plain.__dict__.update(stride=stride, nc=model.nc, names=dict(model.names), hyp=dict(model.hyp or {}), inplace=True)
    return plain


def yaml_of_detection(content: dict) -> dict:
    """A model yaml without what is ours: the rows below Detect and the keys that go with them."""
    detect = next(i for i, row in enumerate(content["head"]) if row[2] == "Detect")
    ours = ("cls_nc", "activations", "head")
    return {k: v for k, v in content.items() if k not in ours} | {"head": content["head"][: detect + 1]}
