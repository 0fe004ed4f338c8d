"""Which font writes a text: DejaVu Sans, which ships with matplotlib, else one of the system's that has the characters.

The font that `YOLOV5_JOINT_FONT` names comes before the system's. Nothing is downloaded; where no font has the
characters of a class name, "class 1" is written, and one line says so.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from utils.system.voice import warn


def _usual_font() -> Path:
    """The file in matplotlib's folder; matplotlib itself, which takes a while to import, says where a distribution has
    put it elsewhere."""
    file = Path("fonts", "ttf", "DejaVuSans.ttf")
    spec = importlib.util.find_spec("matplotlib")
    beside = Path(spec.origin).with_name("mpl-data") / file if spec and spec.origin else file
    if beside.is_file():
        return beside
    import matplotlib

    return Path(matplotlib.get_data_path()) / file


FONT = _usual_font()
PLAIN = frozenset(map(chr, range(0x20, 0x180))) | {"…"}  # Latin letters, all of which it has
VARIABLE = "YOLOV5_JOINT_FONT"  # a font file of the user's choice
# Words in the names of fonts with many scripts, which are looked at first.
_MANY_SCRIPTS = ("unicode", "cjk", "noto", "wqy", "droid", "msyh", "msgothic", "malgun", "pingfang", "gothic", "arial")

_told: set[str] = set()


def font_for(text: str) -> Path | None:
    """The font file that has every character of a text; None where there is none."""
    others = _characters(text) - PLAIN
    missing = others and others - _glyphs(str(FONT))
    return _find(_characters(text), os.environ.get(VARIABLE, "")) if missing else FONT


def writable_text(text: str) -> str:
    """A text of which every character can be drawn: what no font has becomes a question mark."""
    if font_for(text):
        return text
    return "".join(c if c.isspace() or font_for(c) else "?" for c in text)


def class_name(names: Mapping[int, str] | Sequence[str], i: int) -> str:
    """Name of class `i` for a picture, or its number where `names` does not hold it or no font can write it."""
    table = names if isinstance(names, Mapping) else dict(enumerate(names))
    name = str(table.get(i, i))
    if font_for(name):
        return name
    if name not in _told:
        if not _told:
            warn(
                f"no font here can write {name!r}: pictures say 'class {i}' for it; a font file named by the "
                f"environment variable {VARIABLE} is used where there is one"
            )
        _told.add(name)
    return f"class {i}"


def _characters(text: str) -> frozenset[str]:
    return frozenset(c for c in text if c.isprintable() and not c.isspace())


@lru_cache(maxsize=256)
def _find(characters: frozenset[str], chosen: str) -> Path | None:
    for file in (*([chosen] if chosen else []), *_system_fonts()):
        if characters <= _glyphs(file):
            return Path(file)
    return None


@lru_cache(maxsize=1)
def _system_fonts() -> list[str]:
    """Font files of the system, those of many scripts first, then by their names."""
    from matplotlib import font_manager

    names = font_manager.findSystemFonts()
    return sorted(names, key=lambda n: (not any(w in Path(n).name.lower() for w in _MANY_SCRIPTS), n))


@lru_cache(maxsize=512)
def _glyphs(file: str) -> frozenset[str]:
    """Characters that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except Exception:  # fonts of kinds that FreeType does not know, files that are no fonts
        return frozenset()
