"""Models for `torch.hub`, under the names that YOLOv5's users know.

model = torch.hub.load("path/to/this/folder", "custom", "best.pt", source="local")
results = model("picture.jpg")
results.print()
results.pandas().xyxy[0], results.image_class[0]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.autoshape import AutoShape
from models.experimental import DetectMultiBackend
from models.load import find_weights
from models.yolo import Model
from utils.system.devices import select_device
from utils.system.downloads import address_of
from utils.system.voice import say
from utils.weights.checkpoint import load_checkpoint

dependencies = ["torch"]


def custom(
    path: str | Path = "path/to/model.pt",
    autoshape: bool = True,
    _verbose: bool = True,
    device: str | int | torch.device | None = None,
) -> nn.Module:
    """A model from a weight file, YOLOv5's or ours.

    Args:
        path: The weight file, or its http(s) address. A name without a suffix is that of a .pt file.
        autoshape: Take pictures of any kind (see `models.autoshape.AutoShape`); off gives a `DetectMultiBackend`, whose
            `.model` is the network, not fused.
        device: `"cpu"`, `"0"`, `0`, `"cuda:0"`, a torch.device, …; None: the best there is.

    Raises:
        FileNotFoundError: No such file; says where to get it.
    """
    if not Path(path).suffix and not Path(path).exists() and not address_of(path):
        path = f"{path}.pt"
    target = _device(device)
    model = DetectMultiBackend(path, target, fuse=autoshape)
    if _verbose:
        say(f"{path}: {model.model.nc} object classes, {model.model.cls_nc} image classes, on {target}")
    return AutoShape(model) if autoshape else model


def _create(
    name: str,
    pretrained: bool = True,
    channels: int = 3,
    classes: int = 80,
    autoshape: bool = True,
    _verbose: bool = True,
    device: str | int | torch.device | None = None,
) -> nn.Module:
    """A YOLOv5 by size; `pretrained` takes its official weights, as far as the shapes match, from `<name>.pt`.

    That file is looked for in the working folder and the project's, and fetched from YOLOv5's release where it is in
    neither. Without `pretrained`, or with other channels or classes, it is a network to train, not wrapped.
    """
    if pretrained and channels == 3 and classes == 80:
        return custom(f"{name}.pt", autoshape, _verbose, device)
    model = Model(f"{name}.yaml", ch=channels, nc=classes)
    if pretrained:
        taken, left_out, _ = model.transfer(load_checkpoint(find_weights(f"{name}.pt")).state_dict)
        if _verbose:
            say(f"{name}.pt: {len(taken)} tensors taken, {len(left_out)} left out")
    return model.to(_device(device))


def _device(device: str | int | torch.device | None) -> torch.device:
    name = "" if device is None else str(device)
    return select_device("0" if name == "cuda" else name)


yolov5n, yolov5s, yolov5m, yolov5l, yolov5x = (partial(_create, f"yolov5{size}") for size in "nsmlx")
yolov5n6, yolov5s6, yolov5m6, yolov5l6, yolov5x6 = (partial(_create, f"yolov5{size}6") for size in "nsmlx")
