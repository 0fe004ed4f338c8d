"""YOLOv5's names of many kinds, with its signatures, for programs that import them from a clone of it.

They are those that such programs ask for most (docs/yolov5-compatibility.md lists them); most stand elsewhere here.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from utils.augmentations import letterbox
from utils.boxes import (
    box_iou,
    check_img_size,
    clip_boxes,
    make_divisible,
    non_max_suppression,
    scale_boxes,
    xywh2xyxy,
    xywhn2xyxy,
    xyxy2xywh,
    xyxy2xywhn,
)
from utils.metrics import fitness
from utils.results.drawing import save_one_box
from utils.system.display import can_show
from utils.system.downloads import address_of, fetch_address
from utils.system.paths import ROOT, find_file, increment_path
from utils.system.voice import LOGGER
from utils.system.yamls import load_yaml, save_yaml
from utils.torch_utils import time_sync
from utils.weights.checkpoint import latest_run, load_checkpoint, strip_checkpoint

__all__ = [
    "LOGGER", "ROOT", "Path", "Profile", "apply_classifier", "box_iou", "check_file", "check_img_size", "check_imshow",
    "check_requirements", "check_suffix", "check_yaml", "clip_boxes", "clip_coords", "colorstr", "cv2", "fitness",
    "get_latest_run", "increment_path", "is_ascii", "letterbox", "make_divisible", "non_max_suppression", "np", "os",
    "print_args", "save_one_box", "scale_boxes", "scale_coords",
    "set_logging", "strip_optimizer", "torch", "xywh2xyxy", "xywhn2xyxy", "xyxy2xywh", "xyxy2xywhn",
    "yaml_load", "yaml_save",
]  # fmt: skip

COLORS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
STYLES = {"end": 0, "bold": 1, "underline": 4}
CODES = (
    STYLES
    | {color: 30 + i for i, color in enumerate(COLORS)}
    | {f"bright_{color}": 90 + i for i, color in enumerate(COLORS)}
)


# --- boxes ------------------------------------------------------------------------------------------------------------


def scale_coords(
    img1_shape: Sequence[int], coords: np.ndarray | Tensor, img0_shape: Sequence[int], ratio_pad: Any = None
) -> np.ndarray | Tensor:
    """`scale_boxes` by its name until v6.2."""
    return scale_boxes(img1_shape, coords, img0_shape, ratio_pad)


def clip_coords(boxes: np.ndarray | Tensor, shape: Sequence[int]) -> None:
    """`clip_boxes` by its name until v6.2, in place."""
    clip_boxes(boxes, shape)


def apply_classifier(
    x: list[Tensor | None], model: nn.Module, img: Tensor, im0: np.ndarray | list[np.ndarray]
) -> list[Tensor | None]:
    """Keep the detections whose class a second network finds too, looking at the box alone.

    Args:
        x: Per picture [n, 6]: xyxy in pixels of the network's input, confidence, class.
        model: Pictures [n, 3, 224, 224], RGB in 0..1 → logits of the same classes.
        img: The network's input [B, 3, h, w].
        im0: The pictures, BGR [H, W, 3].
    """
    pictures = [im0] if isinstance(im0, np.ndarray) else im0
    for i, found in enumerate(x):
        if found is None or not len(found):
            continue
        boxes = xyxy2xywh(found[:, :4])
        boxes[:, 2:] = boxes[:, 2:].amax(1, keepdim=True) * 1.3 + 30  # a square, and what surrounds the object
        corners = scale_boxes(img.shape[2:], xywh2xyxy(boxes), pictures[i].shape[:2]).int().tolist()
        crops = [cv2.resize(pictures[i][y1:y2, x1:x2], (224, 224))[..., ::-1] for x1, y1, x2, y2 in corners]
        batch = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2) / np.float32(255)).to(found.device)
        x[i] = found[model(batch).argmax(1) == found[:, 5].long()]
    return x


# --- files ------------------------------------------------------------------------------------------------------------


def check_suffix(
    file: str | Path | Sequence[str | Path] = "yolov5s.pt", suffix: str | Sequence[str] = (".pt",), msg: str = ""
) -> None:
    """Raises ValueError where a file name, or one of several, ends otherwise than in one of `suffix`."""
    allowed = [suffix] if isinstance(suffix, str) else list(suffix)
    for name in [file] if isinstance(file, (str, Path)) else file:
        end = Path(name).suffix.lower()
        if file and suffix and end and end not in allowed:
            raise ValueError(f"{msg}{name}: its name must end in {' or '.join(allowed)}")


def check_file(file: str | Path, suffix: str | Sequence[str] = "") -> str:
    """Path of a file: as given, of its http(s) address once that is fetched, or by name in data/ and models/.

    Raises:
        FileNotFoundError: It is in none of these places.
        ValueError: Its name ends otherwise than in one of `suffix`.
    """
    check_suffix(file, suffix)
    if not str(file) or Path(file).is_file():
        return str(file)
    if address := address_of(file):
        return str(fetch_address(address, [Path(address.partition("?")[0]).suffix.lower()]))
    return str(find_file(file))


def check_yaml(file: str | Path, suffix: str | Sequence[str] = (".yaml", ".yml")) -> str:
    """See `check_file`."""
    return check_file(file, suffix)


def yaml_load(file: str | Path = "data.yaml") -> Any:
    """Content of a yaml."""
    return load_yaml(file)


def yaml_save(file: str | Path = "data.yaml", data: Mapping | None = None) -> None:
    """Write a yaml."""
    save_yaml(file, dict(data or {}))


def get_latest_run(search_dir: str | Path = ".") -> str:
    """The newest last.pt below a folder, "" where there is none."""
    try:
        return str(latest_run(search_dir))
    except FileNotFoundError:
        return ""


def strip_optimizer(f: str | Path = "best.pt", s: str | Path = "") -> None:
    """Take the training state out of a checkpoint, in place or to `s`. A file that YOLOv5 wrote is not written over."""
    if not s and load_checkpoint(f).format == "yolov5":
        LOGGER.warning(f"{f}: YOLOv5 wrote it, so it stays as it is")
        return
    strip_checkpoint(f, s or None)
    LOGGER.info(f"{f}: stripped of its training state{f', saved as {s}' if s else ''}")


# --- console ----------------------------------------------------------------------------------------------------------


def set_logging(name: str | int | None = None, verbose: bool = True) -> logging.Logger:
    """Sets how much `LOGGER` says, and returns it.

    Args:
        name: Without effect; a number is the process' rank, as in v5.0: all but -1 and 0 are quiet.
        verbose: Whether it says more than warnings.
    """
    quiet = isinstance(name, int) and name not in (-1, 0)
    LOGGER.setLevel(logging.INFO if verbose and not quiet else logging.WARNING)
    return LOGGER


def colorstr(*input: Any) -> str:  # noqa: A002 - its name
    """Text in colours of a terminal: `colorstr("blue", "bold", "text")`; of one argument in blue and bold."""
    *styles, text = input if len(input) > 1 else ("blue", "bold", input[0])
    return "".join(f"\033[{CODES[s]}m" for s in styles) + f"{text}\033[0m"


def print_args(
    args: Mapping | Namespace | str | None = None, show_file: bool | Namespace = True, show_func: bool = False
) -> None:
    """Say with which arguments a script or function runs; None: those of the function that calls this.

    v6.1 and earlier call it as `print_args(name, opt)`.
    """
    caller = inspect.currentframe().f_back
    if isinstance(args, str):
        title, args = args, show_file
    else:
        file, function = Path(caller.f_code.co_filename).stem, caller.f_code.co_name
        title = ": ".join([file] * bool(show_file) + [function] * bool(show_func))
    if args is None:
        names, _, _, values = inspect.getargvalues(caller)
        args = {name: values[name] for name in names}
    values = vars(args) if isinstance(args, Namespace) else args
    LOGGER.info(colorstr(f"{title}: ") + ", ".join(f"{k}={v}" for k, v in values.items()))


def check_requirements(
    requirements: Any = ROOT / "requirements.txt",
    exclude: Any = (),
    install: bool = True,
    cmds: str = "",
    **kwargs: Any,
) -> None:
    """Does nothing, on purpose: here nothing is ever installed by a script. What is missing shows at its import."""


def check_imshow(warn: bool = False) -> bool:
    """Whether windows can be opened."""
    return can_show(warn)


def is_ascii(s: Any = "") -> bool:
    """Whether a text, or the text of a list or a dict of names, is ASCII alone."""
    return str(s).isascii()


class Profile(contextlib.ContextDecorator):
    """Stopwatch, as context or decorator.

    Args:
        t: Seconds to begin with.
        device: Whose queue is waited for, at both ends.

    Attributes:
        dt: Seconds of the last block.
        t: Seconds of all blocks.
    """

    def __init__(self, t: float = 0.0, device: torch.device | str | None = None) -> None:
        self.t, self.dt, self.device = t, 0.0, device

    def __enter__(self) -> Profile:
        self.start = self.time()
        return self

    def __exit__(self, *error: object) -> None:
        self.dt = self.time() - self.start
        self.t += self.dt

    def time(self) -> float:
        return time_sync(self.device)
