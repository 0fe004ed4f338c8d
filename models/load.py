"""Weight files → a network ready for inference, alone or as an ensemble, whatever format the file has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.exported import read_onnx, read_onnx_opencv, read_openvino, read_torchscript
from models.yolo import Model
from utils.boxes import input_multiple
from utils.checkpoint import load_checkpoint
from utils.downloads import fetch_official, is_official
from utils.paths import ROOT


class Ensemble(nn.Module):
    """Several detectors that answer as one.

    Their boxes are put side by side (non-max suppression then chooses among them); their image-level probabilities are
    averaged over the members that have the branch.

    Args:
        models: Fused networks in evaluation mode with equal class names.

    Raises:
        ValueError: No member, or the members' classes or fixed picture sizes differ, or one suppresses boxes itself.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        if not models:
            raise ValueError("an ensemble needs at least one model")
        first = models[0]
        joint = next((m for m in models if m.cls_nc), first)
        for i, m in enumerate(models, 1):
            if m.names != first.names:
                raise ValueError(f"ensemble: weights 1 and {i} name different object classes: {first.names}, {m.names}")
            if m.cls_nc and m.cls_names != joint.cls_names:
                raise ValueError(
                    f"ensemble: weights {i} name image classes {m.cls_names}, others name {joint.cls_names}"
                )
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

    def forward(self, images: Tensor, augment: bool = False):
        """images [B,3,H,W] → `(decoded [B,n,5+nc], None)`, with a branch `((decoded, None), logits [B,cls_nc])`.

        n counts the boxes of all members; the logits are the logarithm of the mean probabilities, so that their softmax
        is that mean.
        """
        answers = [predict(m, images, augment) for m in self.models]
        boxes = torch.cat([decoded for decoded, _ in answers], 1), None
        probs = [p for _, p in answers if p is not None]
        return (boxes, torch.stack(probs).mean(0).log()) if probs else boxes


def predict(model: nn.Module, images: Tensor, augment: bool = False) -> tuple[Tensor, Tensor | None]:
    """The two answers of a network in evaluation mode, whether it has the image branch or not.

    Args:
        model: From `load_model`, or any `Model` in evaluation mode.
        images: [B,3,H,W], RGB in 0..1.
        augment: Test-time augmentation.

    Returns:
        Decoded boxes float32 [B,n,5+nc] in pixels of the input; image-level probabilities float32 [B,cls_nc] or None.
    """
    output = model(images, augment=augment)
    if model.cls_nc:
        (decoded, _), logits = output
        return decoded.float(), logits.float().softmax(1)
    return output[0].float(), None


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
        A module with `.names`, `.cls_names` (dicts), `.nc`, `.cls_nc` (0 without an image branch) and `.stride`.

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
        model = _reader(path, dnn)(path, device, fuse).eval().requires_grad_(False)
        models.append(model.half() if half else model.float())
    return models[0] if len(models) == 1 else Ensemble(models)


def find_weights(weights: str | Path) -> Path:
    """The weight file: as given, or from the project's root; YOLOv5's official weights are fetched where they are not.

    Raises:
        FileNotFoundError: It is in neither place, and not to be had.
        ValueError: The name is that of an official model for another task.
    """
    path = Path(weights).expanduser()
    for candidate in (path, ROOT / path):
        if candidate.exists():
            return candidate
    if is_official(path.name):
        return fetch_official(path)
    raise FileNotFoundError(
        f"weights {path} are not here (looked for {path.absolute()} and {ROOT / path}): pass the path of a .pt file,"
        " such as runs/train/exp/weights/best.pt after a training"
    )


def _read_checkpoint(path: Path, device: torch.device, fuse: bool) -> nn.Module:
    model = Model.from_checkpoint(load_checkpoint(path)).to(device).eval()
    return model.fuse() if fuse else model


# A format is a function (path, device, fuse) → module that answers as `Model` does in evaluation mode.
_READERS = {
    ".pt": _read_checkpoint,
    ".torchscript": read_torchscript,
    ".onnx": read_onnx,
    ".xml": read_openvino,
    "_openvino_model": read_openvino,  # a folder
}


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
