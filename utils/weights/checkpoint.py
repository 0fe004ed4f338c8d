"""Checkpoints: our own, made of tensors and plain values, and those of YOLOv5, read without running them."""

from __future__ import annotations

import copy
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.system.files import whole_file
from utils.weights.yolov5 import (
    Stub,
    UnsafeCheckpointError,
    begins_as_zip,
    modules_of,
    plain,
    read_yolov5,
    refuse_expanded,
    state_dict_of,
)

__all__ = [
    "Checkpoint", "UnsafeCheckpointError", "latest_run", "load_checkpoint", "save_checkpoint", "strip_checkpoint",
]  # fmt: skip

FORMAT, VERSION = "yolov5-joint", 1
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
    content = {k: _storable(v, k) for k, v in ({"format": FORMAT, "version": VERSION} | dict(checkpoint)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def copy_checkpoint(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint file; like a save, it appears under its name only when it is whole."""
    with whole_file(Path(target)) as temporary:
        shutil.copyfile(source, temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint of ours, or one that YOLOv5 v5.0 or later wrote, onto the CPU. Nothing in it is executed.

    Raises:
        FileNotFoundError: No such file.
        UnsafeCheckpointError: It names a class or function that no checkpoint needs.
        ValueError: It is no checkpoint (an exported file is none), damaged, or of a newer format.
    """
    path = Path(path)
    if (path.suffix.lower() in EXPORTED and path.exists()) or (path.is_dir() and any(path.glob("*.xml"))):
        raise ValueError(f"{path} is an exported file, which runs but cannot be trained: give the .pt it was made from")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there")
    if not _is_ours(path):
        return _from_yolov5(path, read_yolov5(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file may raise anything
        read_yolov5(path)  # says what is wrong, such as a name that could run code
        # PyTorch's text, where it is about weights_only, advises to load without safety
        why = "PyTorch's safe loader refuses it" if "weights" in str(e).lower() else f"{type(e).__name__}: {e}"
        raise ValueError(f"{path}: a damaged checkpoint ({why})") from e
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: no checkpoint")
    if content.get("version", 0) > VERSION:
        raise ValueError(f"{path}: written by a newer version (format {content['version']}, known {VERSION}); update")
    return _from_ours(path, content)


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


def _storable(value: Any, key: str) -> Any:
    """`value` as `torch.load(weights_only=True)` can read it."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        for k in value:
            if type(k) not in (bool, int, float, str):
                raise TypeError(f"checkpoint[{key}] has a key of type {type(k).__name__}; text or a number can be kept")
        return {k: _storable(v, f"{key}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(v, f"{key}.{i}") for i, v in enumerate(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(
        f"checkpoint[{key}] is a {type(value).__name__}; only tensors and plain Python values can be kept, so that the "
        "file loads without running code"
    )


def _is_ours(path: Path) -> bool:
    """Whether a file says at its start that it is of our format; it is read with care in either case."""
    if not begins_as_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            name = next((n for n in names if n.endswith("/data.pkl")), None)
            # PyTorch would run a TorchScript archive, and does not mind the case of names
            script = any(n.lower().endswith("constants.pkl") for n in names)
            return name is not None and not script and FORMAT.encode() in archive.open(name).read(200)
    except Exception:  # a damaged archive may raise anything; reading it as YOLOv5's says what is wrong
        return False


def _float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    refuse_expanded(state)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _pixel_anchors(state: Mapping[str, Tensor], stride: list[float]) -> list[list[list[float]]]:
    anchors = next((v for k, v in state.items() if k.endswith(".anchors")), None)
    if anchors is None or len(anchors) != len(stride):
        return []
    return (anchors.float() * torch.tensor(stride).view(-1, 1, 1)).tolist()


def _from_ours(path: Path, content: dict) -> Checkpoint:
    try:
        model, ema = content["model"], content.get("ema")
        weights = _float32(model["state_dict"])
        averaged = _float32(ema["state_dict"]) if ema else weights
        train_state = content.get("train_state")
        if train_state is not None:
            train_state = train_state | {"ema": ema, "model": model["state_dict"]}
        return Checkpoint(
            file=path,
            format=FORMAT,
            epoch=content["epoch"],
            best_fitness=content.get("best_fitness"),
            model_yaml=model["yaml"],
            state_dict=averaged,
            model_state_dict=weights,
            names=model["names"],
            cls_names=model["cls_names"],
            stride=model["stride"],
            anchors=_pixel_anchors(averaged, model["stride"]),
            opt=content.get("opt") or {},
            hyp=content.get("hyp") or {},
            train_state=train_state,
            date=content.get("date"),
        )
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, MemoryError) as e:
        raise ValueError(f"{path}: an incomplete checkpoint ({type(e).__name__}: {e})") from e


def _from_yolov5(path: Path, content: dict) -> Checkpoint:
    model = content.get("model")
    ema = content.get("ema")
    ema = ema[0] if isinstance(ema, (tuple, list)) and ema else ema  # early releases kept (average, updates)
    best = ema if isinstance(ema, Stub) else model
    if not isinstance(best, Stub) or not isinstance(best.state.get("yaml"), dict):
        bare = any(isinstance(v, Tensor) for v in content.values())
        what = "bare weights without a model yaml" if bare else "no YOLOv5 detection model"
        raise ValueError(f"{path}: holds {what}")
    try:
        averaged = _independent(state_dict_of(best))
        weights = averaged if best is model or not isinstance(model, Stub) else _independent(state_dict_of(model))
        model_yaml = copy.deepcopy(plain(best.state["yaml"]))
        model_yaml |= _activations(best)
        stride = [float(s) for s in plain(best.state["stride"])]
        names = plain(best.state.get("names") or list(map(str, range(model_yaml["nc"]))))
        names = names if isinstance(names, dict) else dict(enumerate(names))
        opt = plain(content.get("opt")) or {}
        hyp = opt.get("hyp") if isinstance(opt.get("hyp"), dict) else plain(best.state.get("hyp"))
        fitness = plain(content.get("best_fitness"))
        fitness = fitness[0] if isinstance(fitness, list) and fitness else fitness
        date = content.get("date")
        return Checkpoint(
            file=path,
            format="yolov5",
            epoch=int(content.get("epoch", -1)),
            best_fitness=None if fitness is None else float(fitness),
            model_yaml=model_yaml,
            state_dict=averaged,
            model_state_dict=weights,
            names={int(k): str(v) for k, v in names.items()},
            cls_names={},
            stride=stride,
            anchors=_pixel_anchors(averaged, stride),
            opt=opt,
            hyp=hyp or {},
            date=date if isinstance(date, str) else None,
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError, MemoryError) as e:
        raise ValueError(f"{path}: not the YOLOv5 checkpoint that it looks like ({type(e).__name__}: {e})") from e


def _independent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float().clone() if v.is_floating_point() else v.clone() for k, v in state.items()}


def _activations(model: Stub) -> dict[str, Any]:
    """Keys of a model yaml for activations that the layers would not have by themselves.

    `activation` is that of the plain convolutions where it is not YOLOv5's usual SiLU; `activations` maps the paths of
    layers with another one to theirs (v5.0 has a LeakyReLU inside of BottleneckCSP, for example).
    """
    found: dict[str, tuple[bool, str]] = {}

    for path, m in modules_of(model):
        act = (m.state.get("_modules") or {}).get("act")
        if isinstance(act, Stub) and not act.origin.endswith(".Identity"):
            slope = act.state.get("negative_slope")
            text = f"nn.{type(act).__name__}({'' if slope is None else float(slope)})"
            found[path] = m.origin in ("models.common.Conv", "models.common.DWConv"), text
    of_convs = Counter(text for is_conv, text in found.values() if is_conv).most_common(1)
    usual = of_convs[0][0] if of_convs else "nn.SiLU()"
    others = {path: text for path, (is_conv, text) in found.items() if text != (usual if is_conv else "nn.SiLU()")}
    keys = {"activation": usual if usual != "nn.SiLU()" else None, "activations": others}
    return {key: value for key, value in keys.items() if value}
