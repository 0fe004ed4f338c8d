"""Joint label files: object rows, then at most one image-level one-hot row.

    0 0.45 0.37 0.12 0.15                   class x y w h: normalised centre and size
    2 0.10 0.10 0.40 0.10 0.40 0.50         class x1 y1 … xn yn: polygon, n >= 3, its bounding box is used

    0 1 0                                   image row: `cls_nc` numbers, exactly one of them 1

A one-hot row read as a box or a polygon has zero area, which no object row may have: so content decides, for any
`cls_nc`. A bad row is left out alone and named; the rest of the file stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.system.files import read_text

SLACK = 0.01  # a coordinate this far outside the picture is drawing noise and is clipped; further is an error
MAX_CLASS = 2**24  # above this float32 cannot hold every whole number

_LINE_END = re.compile(r"\r\n|\r|\n")  # not str.splitlines: editors count no form feeds as lines
_NUMBERS = re.compile(r"[0-9.eE+\- \t\r\n]*")  # what a file of boxes holds
_LIST_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_COORDINATES = ("x", "y", "width", "height")
_NO_POLYGON = np.zeros((0, 2), np.float32)


@dataclass(frozen=True)
class Problem:
    """What was left out of a data set, or is unknown in it, and why. `line` counts from 1; None: the whole file."""

    file: str
    line: int | None
    reason: str
    kind: str

    @property
    def class_outside(self) -> int | None:
        """The class number of a row that was left out because `nc` is not above it."""
        found = re.match(r"class (-?\d+) is not in ", self.reason) if self.kind == "bad row" else None
        return int(found[1]) if found else None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.reason}"


@dataclass
class ParsedLabel:
    """Content of one label file.

    Attributes:
        objects: float32 [n, 5], class and normalised x, y, w, h; every box has an area.
        segments: n arrays float32 [k, 2] of normalised vertices; [0, 2] for box rows.
        image_class: index of the 1 in the image row, -1 where unknown.
        problems: rows left out, and what is missing.
        unread: number of object rows left out because they cannot be read.
    """

    objects: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    segments: list[np.ndarray] = field(default_factory=list)
    image_class: int = -1
    problems: list[Problem] = field(default_factory=list)
    unread: int = 0


class _BadRow(ValueError):
    """The reason why a row is left out."""


def parse_label(text: str, nc: int | None, cls_nc: int, file: str = "") -> ParsedLabel:
    """Parse the text of one label file. Never raises: what cannot be used is left out and named in `.problems`.

    Args:
        text: content of the file; a byte-order mark, any line ends, empty lines and lines of spaces are fine.
        nc: number of object classes; None accepts any class number.
        cls_nc: number of image classes; 0 for plain detection data, in which a trailing one-hot row is ignored.
        file: name used in the problems.

    The image row must be the last row once bad rows are left out. Of two image rows that disagree neither is believed.
    """
    return _parse_boxes(text, nc, cls_nc) or _parse_rows(text, nc, cls_nc, file)


def _parse_boxes(text: str, nc: int | None, cls_nc: int) -> ParsedLabel | None:
    """What `_parse_rows` makes of an ordinary file, boxes without fault and the image row, three times as fast; None of
    any other file."""
    if not _NUMBERS.fullmatch(text):
        return None
    rows = [fields for line in text.splitlines() if (fields := line.split())]
    image_class = -1
    if cls_nc:
        image_row = rows.pop() if rows else []
        if len(image_row) != cls_nc or image_row.count("0") != cls_nc - 1 or "1" not in image_row:
            return None
        image_class = image_row.index("1")
    if not rows:
        return ParsedLabel(image_class=image_class)
    try:
        table = np.array(rows, np.float64)
    except ValueError:  # no numbers, or rows of several lengths
        return None
    if table.shape[1] != 5 or np.signbit(table).any() or not (table[:, 1:] <= 1 + SLACK).all():
        return None
    classes, boxes = table[:, 0], table.astype(np.float32)
    np.minimum(boxes[:, 1:], 1, out=boxes[:, 1:])
    fits = (classes < (MAX_CLASS if nc is None else nc)).all() and (classes == np.floor(classes)).all()
    if not fits or not (boxes[:, 3] * boxes[:, 4] > 0).all() or len(set(map(bytes, boxes))) < len(boxes):
        return None
    return ParsedLabel(boxes, [_NO_POLYGON] * len(boxes), image_class)


def _parse_rows(text: str, nc: int | None, cls_nc: int, file: str) -> ParsedLabel:
    problems: list[Problem] = []
    objects: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    first_seen: dict[bytes, int] = {}
    image_rows: list[tuple[int, int]] = []  # line, class
    last_line = last_object_line = 0
    image_row_named = False
    unread = 0

    for line, row in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), start=1):
        if not row.strip():
            continue
        last_line, image_row = line, False
        try:
            values, is_list = _numbers(row)
            hot = _one_hot(values)
            if hot >= 0:
                image_row = image_row_named = True
                if cls_nc and len(values) != cls_nc:
                    raise _BadRow(f"image row of {len(values)} numbers where cls_nc is {cls_nc}{_no_area_note(values)}")
                image_rows.append((line, hot))
                continue
            try:
                if is_list:
                    raise _BadRow("object rows are written with spaces, without commas and brackets")
                box, segment = _object(values, nc)
            except _BadRow as reason:
                if _meant_as_image_row(values, is_list, cls_nc):
                    image_row = image_row_named = True
                    message = f"image row must hold {cls_nc} numbers, exactly one of them 1 and the rest 0, got "
                    raise _BadRow(message + _short(row)) from reason
                raise
        except _BadRow as reason:
            problems.append(Problem(file, line, str(reason), "bad row"))
            unread += not image_row
            continue

        last_object_line = line
        key = box.tobytes()
        if key in first_seen:
            problems.append(Problem(file, line, f"same object as line {first_seen[key]}", "duplicate row"))
            continue
        first_seen[key] = line
        objects.append(box)
        segments.append(segment)

    image_class = -1
    if image_rows:
        image_class, found = _choose_image_row(image_rows, last_object_line, cls_nc, file)
        problems += found
    elif cls_nc and not image_row_named:
        reason = f"no image row (one of {cls_nc} numbers with a single 1, as the last row): image class unknown"
        problems.append(Problem(file, last_line or None, reason, "no image row"))
    problems.sort(key=lambda p: p.line or 0)
    table = np.stack(objects) if objects else np.zeros((0, 5), np.float32)
    return ParsedLabel(table, segments, image_class, problems, unread)


def read_label(path: str | Path, nc: int | None, cls_nc: int) -> ParsedLabel:
    """Parse a label file (see `read_text`; a byte that is no text spoils only its row). OSError: it cannot be read."""
    return parse_label(read_text(path, errors="replace"), nc, cls_nc, str(path))


def format_label(
    objects: np.ndarray | Sequence,
    image_class: int,
    cls_nc: int,
    conf: Sequence[float] | np.ndarray | None = None,
    image_probs: Sequence[float] | np.ndarray | None = None,
) -> str:
    """Text of a label file: object rows, an empty line, the image row; `parse_label` reads the same values back.

    Args:
        objects: [n, 5] class, x, y, w, h, normalised. Boxes without area are left out: no label row can hold them.
        image_class: index of the image class, -1 for no image row.
        cls_nc: number of image classes, 0 for plain detection data (no image row).
        conf: n confidences, written as a sixth column as YOLOv5 does. Such a file is no longer a label file. Without
            them a repeated row is left out, which the parser would refuse: clipped, two boxes can become one.
        image_probs: `cls_nc` probabilities written in place of the one-hot row. The same holds.

    Raises:
        ValueError: a coordinate is no fraction of the picture, or the image class is not below `cls_nc`.
    """
    table = np.asarray(objects, dtype=np.float64).reshape(-1, 5)
    coordinates = table[:, 1:]
    # Rounding may leave a hair over the border; more than that are pixels or a bug.
    if not np.all((coordinates >= -1e-3) & (coordinates <= 1 + 1e-3)):
        raise ValueError("coordinates must be fractions of the picture (0..1)")
    if np.any(table[:, 0] < 0) or np.any(table[:, 0] != np.floor(table[:, 0])):
        raise ValueError("classes must be whole numbers from 0 on")
    if image_class >= cls_nc > 0:
        raise ValueError(f"image class {image_class} is not below cls_nc {cls_nc}")
    boxes = coordinates.clip(0, 1).astype(np.float32)
    rows = []
    for i in range(len(table)):
        if boxes[i, 2] * boxes[i, 3] <= 0:
            continue
        fields = [str(int(table[i, 0])), *map(_shortest, boxes[i])]
        if conf is not None:
            fields.append(f"{float(conf[i]):g}")
        rows.append(" ".join(fields))
    if conf is None:
        rows = list(dict.fromkeys(rows))
    if cls_nc and image_probs is not None:
        image_row = " ".join(f"{float(p):g}" for p in image_probs)
    elif cls_nc and image_class >= 0:
        image_row = " ".join("1" if i == image_class else "0" for i in range(cls_nc))
    else:
        image_row = ""
    if image_row:
        rows += ["", image_row] if rows else [image_row]
    return "".join(row + "\n" for row in rows)


def _numbers(row: str) -> tuple[list[float], bool]:
    """Values of a row, and whether it is written as a list (`[0, 1, 0]` or `0,1,0`)."""
    body = row.strip()
    is_list = body[0] == "[" or body[-1] == "]" or "," in body
    if is_list:
        if (body[0] == "[") != (body[-1] == "]"):
            raise _BadRow(f"a bracket without its partner in {_short(body)}")
        body = body[1:-1].strip() if body[0] == "[" else body
        fields = _LIST_SEPARATOR.split(body)
    else:
        fields = body.split()
    values = []
    for text in fields:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # float() also takes nan, 1_0 and the digits of other scripts
        if not math.isfinite(value) or "_" in text or not text.isascii():
            hint = ": rows are written with spaces" if ";" in text else ""
            raise _BadRow(f"{_short(text)} is not a number{hint}")
        values.append(value)
    return values, is_list


def _one_hot(values: list[float]) -> int:
    """Index of the only 1 among zeros, -1 if the row is not one-hot."""
    hot = [i for i, value in enumerate(values) if value != 0]
    return hot[0] if len(hot) == 1 and values[hot[0]] == 1 else -1


def _has_object_length(n: int) -> bool:
    return n == 5 or (n >= 7 and n % 2 == 1)


def _meant_as_image_row(values: list[float], is_list: bool, cls_nc: int) -> bool:
    """Whether a row that is no object was probably an image row; only decides which reason is given."""
    if not cls_nc:
        return False
    binary = all(value in (0, 1) for value in values)
    if len(values) == cls_nc:
        return binary or not _has_object_length(len(values))
    return is_list and binary


def _no_area_note(values: list[float]) -> str:
    return ", and read as an object it has no area" if _has_object_length(len(values)) else ""


def _object(values: list[float], nc: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A box or polygon row -> (float32 [5] class, x, y, w, h; float32 [k, 2] vertices, k = 0 for a box row)."""
    n = len(values)
    if not _has_object_length(n):
        hint = " (a confidence does not belong in a label)" if n == 6 else ""
        raise _BadRow(
            f"{n} number{'s' * (n != 1)}{hint}: an object row has 5 (class x y w h) "
            "or an odd number from 7 on (class x1 y1 x2 y2 x3 y3 …)"
        )
    cls = values[0]
    if cls != math.floor(cls):
        raise _BadRow(f"class {cls:g} is not a whole number")
    if not 0 <= cls < (MAX_CLASS if nc is None else nc):
        raise _BadRow(f"class {int(cls)} is not in 0..{(MAX_CLASS if nc is None else nc) - 1} (nc is {nc})")
    if n == 5:
        box = _read_box(values[1:])
        segment = np.zeros((0, 2), np.float32)
    else:
        segment = _read_polygon(values[1:])
        low, high = segment.min(0), segment.max(0)
        box = np.concatenate([(low + high) / 2, high - low])
    if box[2] * box[3] <= 0:
        raise _BadRow(f"object without area (width {box[2]:g}, height {box[3]:g})")
    return np.concatenate([np.float32([cls]), box + np.float32(0)]), segment  # + 0 turns -0.0 into 0.0


def _read_box(values: list[float]) -> np.ndarray:
    return _inside(values, _COORDINATES)


def _read_polygon(values: list[float]) -> np.ndarray:
    return _inside(values, [f"{'xy'[i % 2]}{i // 2 + 1}" for i in range(len(values))]).reshape(-1, 2)


def _inside(values: list[float], names: Sequence[str]) -> np.ndarray:
    """Fractions of the picture, float32, clipped to it."""
    for name, value in zip(names, values, strict=True):
        if not -SLACK <= value <= 1 + SLACK:
            raise _BadRow(f"{name} {value:.10g} is outside 0..1 (values are fractions of the picture, not pixels)")
    return np.array(values, np.float32).clip(0, 1)


def _choose_image_row(
    rows: list[tuple[int, int]], last_object_line: int, cls_nc: int, file: str
) -> tuple[int, list[Problem]]:
    """The image class told by the one-hot rows (line, class), and the rows that are not believed."""
    lines = ", ".join(str(line) for line, _ in rows)
    if len({cls for _, cls in rows}) > 1:
        reason = f"image rows disagree (lines {lines}): image class unknown"
        return -1, [Problem(file, line, reason, "bad row") for line, _ in rows]
    line, image_class = rows[-1]
    problems = [Problem(file, n, f"image row stands again in line {line}", "duplicate row") for n, _ in rows[:-1]]
    if line < last_object_line:
        reason = f"image row must be the last row, but line {last_object_line} is an object: image class unknown"
        return -1, [*problems, Problem(file, line, reason, "bad row")]
    if not cls_nc:
        reason = "image row ignored: the data yaml has no cls_nc"
        return -1, [*problems, Problem(file, line, reason, "image row ignored")]
    return image_class, problems


def _short(text: str, length: int = 40) -> str:
    text = text.strip()
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def _shortest(value: np.float32) -> str:
    """Fewest digits that read back as the same float32."""
    return np.format_float_positional(value, unique=True, trim="-")
