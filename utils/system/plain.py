"""Values that yaml and json can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any


def plain(value: Any, finite: bool = False) -> Any:
    """`value` as numbers, text, None, dicts and lists: tensors and arrays become numbers and lists, paths text.

    Args:
        finite: NaN and infinities, which json has no word for, become None.

    Raises:
        TypeError: It holds something else.
    """
    if isinstance(value, Mapping):
        return {plain(k): plain(v, finite) for k, v in value.items()}
    if hasattr(value, "tolist"):  # of NumPy and PyTorch
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [plain(v, finite) for v in value]
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    raise TypeError(f"cannot write {value!r} of type {type(value).__name__}")
