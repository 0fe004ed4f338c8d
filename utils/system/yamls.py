"""Yaml files: read with an error that names file and line, written from plain values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from utils.system.files import read_text


def load_yaml(path: str | Path) -> Any:
    """Content of a yaml file (see `read_text`). ValueError with file and line if it is no yaml."""
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ValueError(f"{place}: {getattr(error, 'problem', None) or error}") from None


def save_yaml(path: str | Path, data: dict) -> None:
    """Write plain values (paths and numpy numbers become text and numbers) as yaml, keys in their order."""
    text = yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy and torch scalars
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write {type(value).__name__} to yaml")
