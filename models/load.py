"""Weight files → a network ready for inference, alone or as an ensemble, whatever format the file has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.answer import Answer
from models.export.readers import read_onnx, read_onnx_opencv, read_openvino, read_torchscript
from models.yolo import Model
from utils.boxes import input_multiple
from utils.dataset.config import DataConfig, load_data_config
from utils.system.downloads import address_of, fetch_address, fetch_official, is_official
from utils.system.paths import ROOT
from utils.system.voice import say, warn
from utils.weights.checkpoint import load_checkpoint


class Ensemble(nn.Module):
    """Several detectors that answer as one.

    Their boxes are put side by side, their image-level probabilities averaged, see `Answer.together`.

    Args:
        models: Fused networks in evaluation mode for the same classes. Where these are spelled differently a line says
            so, and the names of the first network that has any are used.

    Raises:
        ValueError: No member, or the members' classes differ in number or order, or their fixed picture sizes differ,
            or one suppresses boxes itself.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        if not models:
            raise ValueError("an ensemble needs at least one model")
        first = next((m for m in models if m.names), models[0])
        joint = next((m for m in models if m.cls_nc), first)
        for i, m in enumerate(models, 1):
            _compare_classes(i, "object", m.nc, m.names, first.nc, first.names)
            if m.cls_nc:
                _compare_classes(i, "image", m.cls_nc, m.cls_names, joint.cls_nc, joint.cls_names)
            if getattr(m, "nms", None):
                raise ValueError(f"ensemble: weights {i} have non-max suppression inside; export them without --nms")
        sizes = {m.imgsz for m in models if getattr(m, "imgsz", None)}
        if len(sizes) > 1:
            raise ValueError(f"ensemble: exported files that take pictures of {sizes} alone; export with --dynamic")
        self.imgsz = next(iter(sizes), None)
        self.exported = any(getattr(m, "exported", False) for m in models)
        self.models = nn.ModuleList(models)
        self.names, self.nc = first.names, first.nc
        self.cls_names, self.cls_nc = joint.cls_names, joint.cls_nc
        self.stride = max(models, key=largest_stride).stride

    def forward(self, images: Tensor, augment: bool = False) -> Answer:
        """Pictures [B,3,H,W], RGB, 0..1 → the members' answers together."""
        return Answer.together([m(images, augment=augment) for m in self.models])


def _compare_classes(i: int, kind: str, nc: int, names: dict, expected_nc: int, expected: dict) -> None:
    """Says where an ensemble's member `i` spells classes otherwise; ValueError where it answers for other ones."""
    if nc != expected_nc:
        raise ValueError(f"ensemble: weights {i} have {nc} {kind} classes ({names}), others {expected_nc} ({expected})")
    other = {c: f"{name}, {names.get(c)}" for c, name in expected.items() if names and names.get(c) != name}
    if other and sorted(names.values()) == sorted(expected.values()):
        raise ValueError(f"ensemble: weights {i} have the {kind} classes in another order: {names}, others {expected}")
    if other:
        warn(f"ensemble: weights {i} spell {kind} classes otherwise: {other}; the first spelling is used")


def name_classes(model: nn.Module, data: DataConfig | str | Path | None = None) -> None:
    """Names for the object classes of a network that brings none, as some exported files do; says which.

    Args:
        model: From `load_model`; others keep their names.
        data: Data yaml, or its content, to take them from where it has as many; else they are class0, class1, …

    Raises:
        FileNotFoundError: `data` is needed, and not there.
    """
    if model.names:
        return
    model.names = {i: f"class{i}" for i in range(model.nc)}
    config = data if data is None or isinstance(data, DataConfig) else load_data_config(data)
    if config and config.nc == model.nc:
        model.names = dict(config.names)
        say(f"The weights name no classes; their names are taken from {config.source}")
    else:
        why = f", and {config.source} has {config.nc}" if config else ""
        say(f"The weights name none of their {model.nc} classes{why}; they are called class0 to class{model.nc - 1}")


def largest_stride(model: nn.Module) -> int:
    """What the sides of an input must be a multiple of, in pixels."""
    return input_multiple(model.stride)


def input_dtype(model: nn.Module) -> torch.dtype:
    """The type that the network wants its pictures in: its weights' type, float32 where it shows none."""
    return next((p.dtype for p in model.parameters()), torch.float32)


def device_of(model: nn.Module) -> torch.device:
    """Where the network computes."""
    return next((p.device for p in model.parameters()), getattr(model, "device", torch.device("cpu")))


def load_model(
    weights: str | Path | Sequence[str | Path],
    device: torch.device | str = "cpu",
    fuse: bool = True,
    half: bool = False,
    dnn: bool = False,
) -> nn.Module:
    """A network for inference: evaluation mode, no gradients, on `device`.

    Args:
        weights: A weight file, or several for an ensemble: .pt, or what `export.py` or YOLOv5 made of one.
        device: Where to compute.
        fuse: Fold batch normalisation into the convolutions.
        half: float16 weights; for CUDA only (on a processor use bfloat16 autocast).
        dnn: Run .onnx files by OpenCV instead of ONNX Runtime.

    Returns:
        A module with `.names` ({} where an exported file has none: see `name_classes`), `.cls_names`, `.nc`, `.cls_nc`
        (0 without an image branch) and `.stride`.

    Raises:
        FileNotFoundError: No such file; says where to get it.
        ModuleNotFoundError: The package that runs an exported file is not installed; says how to get it.
        ValueError: Not a weight file, or one of a format that cannot be read.
    """
    files = [weights] if isinstance(weights, (str, Path)) else list(weights)
    device = torch.device(device)
    if half and device.type != "cuda":
        raise ValueError(f"float16 weights need a CUDA device, not {device}; use bfloat16 autocast there")
    models = []
    for file in files:
        path = find_weights(file)
        model = _reader(path, dnn)(path, device).eval().requires_grad_(False)
        if fuse and isinstance(model, Model):
            model.fuse()
        models.append(model.half() if half else model.float())
    return models[0] if len(models) == 1 else Ensemble(models)


def find_weights(weights: str | Path) -> Path:
    """The weight file: as given, or from the project's root; YOLOv5's official weights are fetched where they are not.

    An http(s) address is fetched to the working folder, unless a file of its name is there.

    Raises:
        FileNotFoundError: It is in neither place, and not to be had.
        ValueError: The name is that of an official model for another task, or the address names no weight file.
    """
    if address := address_of(weights):
        return fetch_address(address, FETCHED)
    path = Path(os.path.expanduser(weights))
    for candidate in (path, ROOT / path):
        openvino = candidate.name.endswith("_openvino_model") or any(candidate.glob("*.xml"))
        if candidate.is_dir() and not openvino:
            inside = next(
                (candidate / f for f in ("weights/best.pt", "weights/last.pt", "best.pt") if (candidate / f).is_file()),
                "a file in it",
            )
            raise ValueError(f"weights {candidate} is a folder: did you mean {inside}?")
        if candidate.exists():
            return candidate
    if is_official(path.name):
        return fetch_official(path)
    raise FileNotFoundError(
        f"weights {path} are not here (looked for {path.absolute()} and {ROOT / path}): pass the path of a .pt file,"
        " such as runs/train/exp/weights/best.pt after a training"
    )


def _read_checkpoint(path: Path, device: torch.device) -> nn.Module:
    return Model.from_checkpoint(load_checkpoint(path)).to(device)


# A format is a function (path, device) → module that answers as `Model` does in evaluation mode.
_READERS = {
    ".pt": _read_checkpoint,
    ".torchscript": read_torchscript,
    ".onnx": read_onnx,
    ".xml": read_openvino,
    "_openvino_model": read_openvino,  # a folder
}
FETCHED = (".pt", ".torchscript", ".onnx")  # formats that are one file, and so can be had from an address


def _reader(path: Path, dnn: bool = False):
    kind = path.suffix.lower()
    if path.is_dir():
        kind = next((end for end in _READERS if path.name.endswith(end)), "")
    if dnn and kind == ".onnx":
        return read_onnx_opencv
    try:
        return _READERS[kind]
    except KeyError:
        known = ", ".join(_READERS)
        raise ValueError(f"weights {path}: files of this format cannot be read here, only {known}") from None
