"""Data and hyperparameter yamls: read, checked and completed. Nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.dataset.files import has_wildcard, split_glob
from utils.system.paths import ROOT, find_file
from utils.system.voice import say, warn
from utils.system.yamls import load_yaml

# Generators of demo sets that a data yaml may name under `download:`, as module:function.
GENERATORS = {"phantom": "data.phantom:generate"}

SPLITS = ("train", "val", "test")

# YOLOv5's hyp.scratch-low.yaml, then the keys of the image task.
DEFAULT_HYP: dict[str, float | str] = {
    "lr0": 0.01,
    "lrf": 0.01,
    "momentum": 0.937,
    "weight_decay": 0.0005,
    "warmup_epochs": 3.0,
    "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1,
    "box": 0.05,
    "cls": 0.5,
    "cls_pw": 1.0,
    "obj": 1.0,
    "obj_pw": 1.0,
    "iou_t": 0.2,
    "anchor_t": 4.0,
    "fl_gamma": 0.0,
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "degrees": 0.0,
    "translate": 0.1,
    "scale": 0.5,
    "shear": 0.0,
    "perspective": 0.0,
    "flipud": 0.0,
    "fliplr": 0.5,
    "mosaic": 1.0,
    "mixup": 0.0,
    "copy_paste": 0.0,
    "image_mix": "same_class",
    "image_label_smoothing": 0.0,
}
OPTIONAL_HYP = ("anchors", "label_smoothing")  # anchors per level; the flag of the same name, as runs save it
HYP_CHOICES = {"image_mix": ("area", "same_class")}
_PROBABILITIES = ("flipud", "fliplr", "mosaic", "mixup", "copy_paste")
_BELOW_ONE = ("momentum", "warmup_momentum", "image_label_smoothing", "label_smoothing")


@dataclass
class DataConfig:
    """A data yaml after checking.

    Attributes:
        yaml_file: where it was read from, None for a dict.
        path: absolute root folder of the data.
        train, val, test: absolute paths of picture folders, list files, globs or pictures; [] where not given.
        nc, names: number and names of the object classes.
        cls_nc, cls_names: number and names of the image classes; 0 and {} for plain detection data.
        download: a generator's name or a URL, never code.
        group: pattern that finds a picture's group (such as its patient) in its file name, see `utils.dataset.split`.
    """

    yaml_file: Path | None
    path: Path
    train: list[str]
    val: list[str]
    test: list[str]
    nc: int
    names: dict[int, str]
    cls_nc: int = 0
    cls_names: dict[int, str] | None = None
    download: str | None = None
    group: str | None = None

    def __post_init__(self):
        if self.cls_names is None:
            self.cls_names = {i: f"image_class{i}" for i in range(self.cls_nc)}

    def with_one_class(self) -> DataConfig:
        """The same data with all object classes as one, as `--single-cls` takes them."""
        return replace(self, nc=1, names=self.names if len(self.names) == 1 else {0: "item"})

    @property
    def source(self) -> str:
        """Name of the configuration for messages."""
        return str(self.yaml_file or "data configuration")


def load_data_config(source: str | Path | dict) -> DataConfig:
    """Read and check a data yaml (a path, a name such as `heart.yaml`, or its content as a dict).

    A relative `path:` counts from the yaml's folder, then, as in YOLOv5, from the project root: the one that holds the
    data is taken, the first where none does.

    Raises:
        FileNotFoundError: no such yaml.
        ValueError: names file and key.
    """
    if isinstance(source, dict):
        file, raw, home = None, source, Path.cwd()
    else:
        file = find_file(source)
        raw, home = load_yaml(file), file.parent
    where = str(file or "data configuration")
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected keys such as train:, val: and names:, found {type(raw).__name__}")

    nc, names = _classes(raw, "nc", "names", "class", where)
    if nc == 0:
        raise ValueError(f"{where}: names: at least one object class is needed")
    cls_nc, cls_names = _classes(raw, "cls_nc", "cls_names", "image_class", where)
    entries = {split: _entries(raw, split, where) for split in SPLITS}
    root, paths = _resolve(raw.get("path"), entries, home, where)
    download = raw.get("download") or None
    if download is not None and not isinstance(download, str):
        raise ValueError(f"{where}: download: expected a generator's name or a URL")
    return DataConfig(
        file, root, paths["train"], paths["val"], paths["test"], nc, names, cls_nc, cls_names, download,
        pattern(raw.get("group"), f"{where}: group"),
    )  # fmt: skip


def pattern(value: Any, where: str) -> str | None:
    """A regular expression as it is, None for none. ValueError, opened by `where`, for what is no such expression."""
    if value in (None, ""):
        return None
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where}: {value!r} is no regular expression ({error})") from None
    return value


def _classes(raw: dict, count_key: str, names_key: str, prefix: str, where: str) -> tuple[int, dict[int, str]]:
    """Number and names of classes, each of which may be left out (but not both for objects)."""
    count, names = raw.get(count_key), raw.get(names_key)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise ValueError(f"{where}: {count_key}: expected a whole number, got {count!r}")
    if names is None:
        if count is None and count_key == "nc":
            raise ValueError(f"{where}: names: missing (a list of the class names)")
        return count or 0, {i: f"{prefix}{i}" for i in range(count or 0)}
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise ValueError(f"{where}: {names_key}: expected a list or a mapping of numbers to names, got {names!r}")
    table = {}
    for key, name in names.items():
        if isinstance(key, str) and key.isascii() and key.isdigit():
            key = int(key)
        if isinstance(key, bool) or not isinstance(key, int):
            raise ValueError(f"{where}: {names_key}: class number {key!r} is not a whole number")
        if isinstance(name, bool) or name is None or isinstance(name, (list, dict)):
            raise ValueError(f"{where}: {names_key}: name {name!r} of class {key} is not text; put it in quotes")
        table[key] = str(name)
    if sorted(table) != list(range(len(table))):
        raise ValueError(f"{where}: {names_key}: class numbers must be 0..{len(table) - 1}, got {sorted(table)}")
    if count is not None and count != len(table):
        raise ValueError(f"{where}: {count_key} is {count}, but {names_key} has {len(table)} names")
    return len(table), {i: table[i] for i in range(len(table))}


def _entries(raw: dict, split: str, where: str) -> list[str]:
    value = raw.get(split)
    values = value if isinstance(value, list) else [value]
    values = [v for v in values if v not in (None, "")]
    if not all(isinstance(v, (str, os.PathLike)) for v in values):
        raise ValueError(f"{where}: {split}: expected a path or a list of paths, got {value!r}")
    return [str(v) for v in values]


def _resolve(path: Any, entries: dict[str, list[str]], home: Path, where: str) -> tuple[Path, dict[str, list[str]]]:
    """Root folder and absolute entries, taken from the first base under which there is data."""
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{where}: path: expected a folder, got {path!r}")
    folder = Path(os.path.expanduser(path or ""))
    bases = [folder] if folder.is_absolute() else [home / folder, ROOT / folder]
    layouts = []
    for base in (Path(os.path.abspath(b)) for b in bases):
        paths = {split: [_under(base, entry) for entry in values] for split, values in entries.items()}
        found = sum(_exists(p) for values in paths.values() for p in values)
        layouts.append((found > 0, base.is_dir() and bool(path), base, paths))
    # max keeps the first of equals: data under the yaml's folder wins
    _, _, root, paths = max(layouts, key=lambda layout: layout[:2])
    return root, paths


def _under(base: Path, entry: str) -> str:
    target = os.path.abspath(base / os.path.expanduser(entry))
    if entry.startswith("../") and not _exists(target):
        # Some sets on the web write ../train/images for a folder that is beside their yaml.
        inside = os.path.abspath(base / entry[3:])
        if _exists(inside):
            return inside
    return target


def _exists(path: str) -> bool:
    """Whether there is such a file or folder, or the folder that a pattern begins in."""
    if not has_wildcard(path):
        return os.path.exists(path)
    head, rest = split_glob(path)
    return any(c in rest.split(os.sep)[0] for c in "*?[") and os.path.isdir(head)


def ensure_data(cfg: DataConfig, splits: Iterable[str] = ("train", "val")) -> None:
    """Nothing where the data of `splits` is there; else make the demo set that `download:` names, or say what to do.

    Raises:
        FileNotFoundError: the data is not there and no generator of this project makes it.
        ValueError: `splits` names a key that the yaml does not have.
    """
    missing = []
    for split in splits:
        paths = getattr(cfg, split)
        if not paths:
            raise ValueError(f"{cfg.source}: {split}: missing, but needed here")
        missing += [(split, p) for p in paths if not _exists(p)]
    if not missing:
        return
    tried = "\n".join(f"  {split}: {p}" for split, p in missing)
    advice = f"Put the data there, or set `path:` in {cfg.source} to the folder where it is."
    if cfg.download in GENERATORS and not (cfg.path.exists() and any(cfg.path.iterdir())):
        _generate(cfg)
        return
    if cfg.download in GENERATORS:
        advice = f"{cfg.path} exists but lacks these. " + advice
    elif cfg.download and re.match(r"https?://", cfg.download.strip()) and len(cfg.download.split()) == 1:
        advice = (
            f"Data is not downloaded by itself. Fetch {cfg.download} and unpack it so that {cfg.path} is its folder. "
            + advice
        )
    elif cfg.download:
        advice = f"`download:` holds neither a URL nor one of {sorted(GENERATORS)} and is never executed. " + advice
    raise FileNotFoundError(f"{cfg.source}: no data at\n{tried}\n{advice}")


def _generate(cfg: DataConfig) -> None:
    module, function = GENERATORS[cfg.download].split(":")
    bar = "=" * 78
    say(
        f"{bar}\nNO REAL DATA at {cfg.path}\n"
        f"Making a SYNTHETIC PHANTOM there ('{cfg.download}'): pictures drawn by a program, of no medical value.\n"
        f"To use real data, set `path:` in {cfg.source} to its folder, or pass --data YOUR.yaml.\n{bar}"
    )
    cfg.path.parent.mkdir(parents=True, exist_ok=True)
    # Made beside and renamed, so that an interrupted run leaves no half set that would pass for data.
    workshop = Path(tempfile.mkdtemp(prefix=f".{cfg.path.name}-", dir=cfg.path.parent))
    try:
        getattr(importlib.import_module(module), function)(workshop / "set")
        with contextlib.suppress(OSError):
            cfg.path.rmdir()  # empty, checked by the caller
        os.replace(workshop / "set", cfg.path)
    except OSError:
        if not (cfg.path.is_dir() and any(cfg.path.iterdir())):
            raise
        say(f"{cfg.path} has been made by another run meanwhile, and is used")
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def load_hyp(source: str | Path | dict) -> dict[str, float | str]:
    """Hyperparameters from a yaml (path or name) or a dict, checked, with DEFAULT_HYP for what is left out.

    A key left out or unknown gives a warning (unknown ones are dropped); a value that is no number or out of its
    range is a ValueError that names file and key.
    """
    if isinstance(source, dict):
        where, raw = "hyperparameters", source
    else:
        file = find_file(source)
        where, raw = str(file), load_yaml(file)
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected hyperparameters such as lr0: 0.01, found {type(raw).__name__}")

    known = [*DEFAULT_HYP, *OPTIONAL_HYP]
    unknown = [str(key) for key in raw if key not in known]
    if unknown:
        warn(f"{where}: unknown keys are ignored: {', '.join(unknown)}")
    # Only YOLOv5's keys are worth a warning: its own files lack ours.
    absent = [k for k in DEFAULT_HYP if k not in raw and not k.startswith("image_")]
    if absent:
        warn(f"{where}: defaults are used for {', '.join(absent)}")
    hyp = dict(DEFAULT_HYP)
    for key in known:
        if key in raw:
            hyp[key] = _hyp_value(key, raw[key], where)
    return hyp


def _hyp_value(key: str, value: Any, where: str) -> float | str:
    if key in HYP_CHOICES:
        if value not in HYP_CHOICES[key]:
            raise ValueError(f"{where}: {key}: expected {' or '.join(HYP_CHOICES[key])}, got {value!r}")
        return value
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # yaml reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {key}: expected a number, got {value!r}")
    if key in _PROBABILITIES and not 0 <= number <= 1:
        raise ValueError(f"{where}: {key}: a probability lies in 0..1, got {value!r}")
    if number < 0 or (key in _BELOW_ONE and number >= 1):
        raise ValueError(f"{where}: {key}: {value!r} is out of range")
    return number
