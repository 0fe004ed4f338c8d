"""Where files are: the project's root, configuration files by name, numbered run folders."""

from __future__ import annotations

import csv
import glob
import os
import shlex
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from utils.system.downloads import address_of, fetch_address
from utils.system.voice import say

ROOT = Path(__file__).resolve().parents[2]
CONFIG_FOLDERS = (ROOT / "data", ROOT / "data" / "hyps", ROOT / "models")
CONFIG_SUFFIXES = (".yaml", ".yml")


def find_file(name: str | Path, folders: Iterable[str | Path] = ()) -> Path:
    """Find an existing file: as given, in `folders`, in the project root, then by name in its data and model folders.

    The http(s) address of a yaml is fetched to the working folder, unless a file of its name is there.

    Raises:
        FileNotFoundError: nothing found (the message lists what was tried), or the name is not unique.
        ValueError: an address whose last part is no yaml.
    """
    if address := address_of(name):
        return fetch_address(address, CONFIG_SUFFIXES).resolve()
    path = Path(os.path.expanduser(name))  # Path's own raises where there is no home folder
    if not str(name) or str(name) == ".":
        raise FileNotFoundError("no file name given")
    candidates = [path]
    if not path.is_absolute():
        candidates += [Path(folder) / path for folder in folders]
        candidates += [ROOT / path, *(folder / path for folder in CONFIG_FOLDERS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()

    if not path.is_absolute():
        patterns = [str(ROOT / folder / "**" / glob.escape(str(path))) for folder in ("data", "models")]
        matches = sorted(
            {Path(m).resolve() for p in patterns for m in glob.glob(p, recursive=True) if os.path.isfile(m)}
        )
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise FileNotFoundError(f"'{name}' is not unique, give a path: {', '.join(map(str, matches))}")
        candidates += [Path(p) for p in patterns]
    tried = "\n  ".join(str(c.absolute()) for c in dict.fromkeys(candidates))
    raise FileNotFoundError(f"'{name}' not found. Tried:\n  {tried}")


def pasted(path: str | Path) -> str:
    """A path as the console of this system takes it."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


class UniqueStems:
    """Stems for the results of inputs, one-to-one: equal stems of different paths get `_2`, `_3` and so on.

    Two names are equal where some file system takes them for one: in other case, in another Unicode form. The frames
    of a video have names too, its stem with `_1`, `_2`, …, and none of them is another input's: beside a video others
    of its stem get `-2`, `-3` and so on.

    Args:
        reserved: names that are no input's, such as folders beside the results.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._stems: dict[str, str] = {}  # by path
        self._used = set(map(_same_file, reserved))
        self._videos: set[str] = set()
        self._renamed = False
        self._last: Counter[str] = Counter()  # numbers given to each wanted stem

    def __call__(self, path: str | Path, stem: str | None = None, frames: bool = False) -> str:
        """The stem for `path`, always the same; built on `stem` where given.

        Args:
            frames: the results of its frames have a number after the stem.
        """
        path = str(path)
        if path not in self._stems:
            wanted = name = stem or Path(path).stem
            while not self._free(_same_file(name), frames):
                self._last[wanted] += 1
                mark = "-" if _same_file(wanted) in self._videos else "_"
                name = f"{wanted}{mark}{self._last[wanted] + 1}"
                self._renamed = True
            self._stems[path] = name
            self._used.add(_same_file(name))
            if frames:
                self._videos.add(_same_file(name))
        return self._stems[path]

    def _free(self, name: str, frames: bool) -> bool:
        if name in self._used or (frames and any(_is_frame(other, name) for other in self._used)):
            return False
        return not any(_is_frame(name, video) for video in self._videos)

    def save(self, folder: Path, alone: bool = True) -> None:
        """Where an input is not found by its results' name, write `names.csv`, which has both, and say so.

        Args:
            alone: these are all results in the folder, so one of an earlier run goes.
        """
        file = folder / "names.csv"
        if alone:
            file.unlink(missing_ok=True)
        if self._renamed:
            with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as f:
                csv.writer(f).writerows([("name", "path"), *((name, path) for path, name in self._stems.items())])
            say(f"Some inputs have the same name: {file} says which result is whose")


def stems_of(folder: Path) -> dict[str, str]:
    """The stem of each input by its path, as `UniqueStems.save` wrote them; empty where all have their own."""
    file = folder / "names.csv"
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as f:
        return {row["path"]: row["name"] for row in csv.DictReader(f)}


def _same_file(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_frame(name: str, video: str) -> bool:
    head, _, number = name.rpartition("_")
    return head == video and number.isdecimal()


def increment_path(path: str | Path, exist_ok: bool = False, sep: str = "", mkdir: bool = False) -> Path:
    """`runs/exp` if it is free, else the first free of `runs/exp2`, `runs/exp3`, … (the number goes before a suffix).

    With `mkdir` the folder is made, and of two processes that ask at the same time each gets its own.
    """
    path = Path(path)
    base, suffix = (path, "") if path.is_dir() or not path.suffix else (path.with_suffix(""), path.suffix)
    number = 1
    while True:
        candidate = path if number == 1 else Path(f"{base}{sep}{number}{suffix}")
        if exist_ok or not candidate.exists():
            if not mkdir:
                return candidate
            try:
                candidate.mkdir(parents=True, exist_ok=exist_ok)
                return candidate
            except FileExistsError:  # another process was faster, or a file has this name
                if exist_ok:
                    raise
        number += 1
