"""Yaml files: read with an error that names file and line, written from plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from utils.system.files import read_text
from utils.system.plain import plain


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
    text = yaml.safe_dump(plain(data), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
