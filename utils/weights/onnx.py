"""ONNX files that keep weights outside: found by a walk through the bytes, without the package onnx.

ONNX Runtime looks such weights up in the working folder when it is given bytes, so a file could read others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# of each kind of message the fields that lead to tensors, by number, and the kind that is in them
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # fields of a tensor
_DEPTH = 64  # of graphs in graphs


def refuse_outside_weights(content: bytes, path: Path) -> None:
    """Raises ValueError where an ONNX file keeps a tensor outside of itself, or is none; the message names `path`."""
    try:
        name = _outside(memoryview(content), "model", 0)
    except (ValueError, IndexError) as e:
        raise ValueError(f"{path}: no ONNX file that can be read ({e})") from None
    if name is not None:
        raise ValueError(
            f"{path}: refused, because it keeps weights (`{name}`) in another file, which it could choose at will; save"
            " it as one file: onnx.save(onnx.load(file), new_file)"
        )


def _outside(message: memoryview, kind: str, depth: int) -> str | None:
    """Name of the first tensor whose values are elsewhere."""
    if depth > _DEPTH:
        raise ValueError("graphs are nested too deeply")
    outside, name = False, ""
    for number, value in _fields(message):
        if kind == "tensor":
            outside |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
            if number == _NAME and isinstance(value, memoryview):
                name = bytes(value[:100]).decode("utf-8", "replace")
        elif number in _MESSAGES[kind] and isinstance(value, memoryview):
            found = _outside(value, _MESSAGES[kind][number], depth + 1)
            if found is not None:
                return found
    return name if outside else None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Number and value of each field; None for numbers of a fixed width."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag >> 32:
            raise ValueError("a field number that is too large")
        value, wire = None, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of the unknown kind {wire}")
        if at > len(message):
            raise ValueError("it is cut short")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        byte = message[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number that does not end")
