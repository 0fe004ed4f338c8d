"""Checkpoints: our own, made of tensors and plain values, and those of YOLOv5, read without running them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.system.files import whole_file
from utils.weights.reader import UnsafeCheckpointError, read_pickled, refuse_expanded
from utils.weights.yolov5 import facts_of_yolov5, pixel_anchors

__all__ = [
    "Checkpoint", "UnsafeCheckpointError", "latest_run", "load_checkpoint", "save_checkpoint", "strip_checkpoint",
]  # fmt: skip

FORMAT, VERSION = "yolov5-joint", 1
MAX_VALUES, MAX_DEPTH = 1_000_000, 32  # far beyond any run
EXPORTED = (".onnx", ".torchscript", ".xml", ".engine", ".mlmodel", ".mlpackage", ".pb", ".tflite")


@dataclass
class Checkpoint:
    """What a checkpoint holds, whoever wrote it.

    Attributes:
        file: Where it was read from.
        format: `yolov5-joint` or `yolov5`.
        epoch: Last finished epoch from 0; -1 where the writer removed it.
        model_yaml: The network: `Model(model_yaml)`.
        state_dict: float32 weights; the moving average where there is one.
        model_state_dict: float32 weights as trained; the same object as `state_dict` where there is no average.
        anchors: Per level a list of (w, h) in pixels.
        hyp: Hyper-parameters, loss gains not scaled to the run where the file has them so.
        opt: Options of the run; paths as text.
        train_state: What resuming needs (optimizer, scaler, balancer, rng … as the trainer wrote it, and `ema`, `model`
            for the average and the weights as trained); None in a stripped checkpoint and in YOLOv5's.
    """

    file: Path
    format: str
    epoch: int
    best_fitness: float | None
    model_yaml: dict[str, Any]
    state_dict: dict[str, Tensor]
    model_state_dict: dict[str, Tensor]
    names: dict[int, str]
    cls_names: dict[int, str]
    stride: list[float]
    anchors: list[list[list[float]]]
    opt: dict[str, Any] = field(default_factory=dict)
    hyp: dict[str, Any] = field(default_factory=dict)
    train_state: dict[str, Any] | None = None
    date: str | None = None


def save_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes a checkpoint to a temporary file beside `path` and renames it, so that `path` is always a whole one.

    Tensors go to the CPU, tensor views without the rest of their storage; numpy numbers become Python numbers, paths
    text and mappings dicts.

    Args:
        checkpoint: Keys format, version, epoch, best_fitness, model (yaml, names, cls_names, nc, cls_nc, stride,
            state_dict), ema (state_dict, updates) or None, train_state or None, opt, hyp, date.

    Raises:
        TypeError: A value is neither a tensor nor plain; the message names its key.
    """
    path = Path(path)
    content = _each({"format": FORMAT, "version": VERSION} | dict(checkpoint), "", _storable, [MAX_VALUES])
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def copy_checkpoint(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint file; like a save, it appears under its name only when it is whole."""
    with whole_file(Path(target)) as temporary:
        shutil.copyfile(source, temporary)


def save_epoch(folder: Path, names: Sequence[str], checkpoint: Mapping[str, Any]) -> None:
    """A run's state after an epoch (-1: at its start) as `NAME.pt` for each name, the first written, the others copied.

    Raises:
        OSError: The disk is full, say; the message tells what stands.
    """
    first, *others = (folder / f"{name}.pt" for name in names)
    written = False
    try:
        save_checkpoint(first, checkpoint)
        written = True
        for file in others:
            copy_checkpoint(first, file)
        if checkpoint["epoch"] < 0:  # of an earlier run in this folder (--exist-ok): it would pass for this one's
            (folder / "best.pt").unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter on a full disk
        before = f"the {first} of before stands" if first.exists() else "no checkpoint was saved before"
        stands = f"{first} is whole" if written else before
        raise OSError(f"epoch {checkpoint['epoch']} could not be saved in {folder} ({error}); {stands}") from error


def refuse_exported(path: Path) -> None:
    """Raises ValueError where a file, or a folder, is a network that was exported."""
    if (path.suffix.lower() in EXPORTED and path.exists()) or (path.is_dir() and any(path.glob("*.xml"))):
        raise ValueError(f"{path} is an exported file, and a checkpoint is needed here: give the .pt it was made from")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint of ours, or one that YOLOv5 v5.0 or later wrote, onto the CPU. Nothing in it is executed.

    Raises:
        FileNotFoundError: No such file.
        UnsafeCheckpointError: It names a class or function that no checkpoint needs.
        ValueError: It is no checkpoint (an exported file is none), damaged, or of a newer format.
    """
    path = Path(path)
    refuse_exported(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there")
    content = read_pickled(path)
    ours = content.get("format") == FORMAT
    if ours and content.get("version", 0) > VERSION:
        raise ValueError(f"{path}: written by a newer version (format {content['version']}, known {VERSION}); update")
    try:
        facts = _facts_of_ours(content) if ours else facts_of_yolov5(content)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    return Checkpoint(file=path, format=FORMAT if ours else "yolov5", **facts)


def strip_checkpoint(path: str | Path, out: str | Path | None = None, half: bool = True) -> None:
    """Keeps what inference needs: the averaged weights, without the training state. A YOLOv5 file is converted.

    Args:
        out: Where to write; None: in place.
        half: Store convolution and linear weights in float16, as YOLOv5 does. Everything else keeps its precision.
    """
    checkpoint = load_checkpoint(path)
    state = {
        k: v.half() if half and v.is_floating_point() and v.dim() > 1 and k.endswith("weight") else v
        for k, v in checkpoint.state_dict.items()
    }
    model = {
        "yaml": checkpoint.model_yaml,
        "names": checkpoint.names,
        "cls_names": checkpoint.cls_names,
        "nc": len(checkpoint.names),
        "cls_nc": len(checkpoint.cls_names),
        "stride": checkpoint.stride,
        "state_dict": state,
    }
    record = {
        "epoch": checkpoint.epoch,
        "best_fitness": checkpoint.best_fitness,
        "model": model,
        "ema": None,
        "train_state": None,
        "opt": checkpoint.opt,
        "hyp": checkpoint.hyp,
        "date": checkpoint.date or datetime.now().isoformat(),
    }
    save_checkpoint(out or path, record)


def latest_run(*folders: str | Path) -> Path:
    """The `last.pt` below some folders, by default the working folder, that was written last.

    Raises:
        FileNotFoundError: There is none.
    """
    folders = folders or (".",)
    files = [f for folder in folders for f in Path(folder).rglob("last.pt")]
    if not files:
        places = " and ".join(str(Path(f).resolve()) for f in folders)
        raise FileNotFoundError(f"no run to resume: no last.pt below {places}; give one with --resume PATH")
    return max(files, key=lambda f: f.stat().st_mtime)


def _each(value: Any, key: str, leaf: Callable[[Any, str], Any], left: list[int]) -> Any:
    """`value` with its dicts, lists and tuples made anew, and what is neither these nor a plain value given to `leaf`.

    Args:
        left: How many values there may still be, as its only element: objects that hold each other have no end.
    """
    left[0] -= 1
    if left[0] < 0 or key.count(".") > MAX_DEPTH:
        raise ValueError("values are nested too deeply" if left[0] >= 0 else f"more than {MAX_VALUES} values")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        for k in value:
            if type(k) not in (bool, int, float, str):
                raise TypeError(f"checkpoint[{key}] has a key of type {type(k).__name__}; text or a number can be kept")
        return {k: _each(v, f"{key}.{k}".removeprefix("."), leaf, left) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_each(v, f"{key}.{i}", leaf, left) for i, v in enumerate(value))
    return leaf(value, key)


def _storable(value: Any, key: str) -> Any:
    """`value` as `torch.load(weights_only=True)` can read it."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(
        f"checkpoint[{key}] is a {type(value).__name__}; only tensors and plain Python values can be kept, so that the "
        "file loads without running code"
    )


def _facts_of_ours(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `Checkpoint` from the content of a file of ours.

    Raises:
        ValueError: It holds what we do not write, or lacks something.
    """
    tensors: dict[str, Tensor] = {}

    def leaf(value: Any, key: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(f"`{key}` is a {getattr(value, 'origin', type(value).__name__)}")
        tensors[key] = value.detach()
        return tensors[key]

    try:
        content = _each(content, "", leaf, [MAX_VALUES])
        refuse_expanded(tensors)
        model, ema = content["model"], content.get("ema")
        weights = _float32(model["state_dict"])
        averaged = _float32(ema["state_dict"]) if ema else weights
        train_state = content.get("train_state")
        if train_state is not None:
            train_state = train_state | {"ema": ema, "model": model["state_dict"]}
        return {
            "epoch": content["epoch"],
            "best_fitness": content.get("best_fitness"),
            "model_yaml": model["yaml"],
            "state_dict": averaged,
            "model_state_dict": weights,
            "names": model["names"],
            "cls_names": model["cls_names"],
            "stride": model["stride"],
            "anchors": pixel_anchors(averaged, model["stride"]),
            "opt": content.get("opt") or {},
            "hyp": content.get("hyp") or {},
            "train_state": train_state,
            "date": content.get("date"),
        }
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, MemoryError) as e:
        raise ValueError(f"a damaged or incomplete checkpoint ({type(e).__name__}: {e})") from e


def _float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
