"""Picture files: which there are, and which label belongs to each."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from utils.dataset.pictures import is_picture_name
from utils.system.files import read_text

LOGGER = logging.getLogger(__name__)


def image_to_label_path(path: str | Path) -> str:
    """Label file of a picture: its last folder `images` becomes `labels`, its suffix .txt."""
    head, tail = os.path.split(os.path.normpath(str(path)))
    parts = head.split(os.sep)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return os.path.join(os.sep.join(parts), os.path.splitext(tail)[0] + ".txt")


def list_images(sources: str | Path | Iterable[str | Path], root: str | Path | None = None) -> list[str]:
    """Sorted paths of the pictures in folders (with their subfolders), list files (.txt), globs and single files.

    What a list names (see `read_list`) is kept even where it is not there or no picture, so that the scan can say so.

    Args:
        root: the data's root folder, `path:` of its yaml.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: a list file is no text.
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    files: list[str] = []
    for source in map(str, sources):
        if os.path.isdir(source):
            files += _walk(source)
        elif os.path.isfile(source) and source.lower().endswith(".txt"):
            files += [path for _, _, path in read_list(source, root)]
        elif os.path.isfile(source):
            files.append(source)
        elif has_wildcard(source):
            files += [f for f in find_glob(source) if is_picture_name(f)]
        else:
            raise FileNotFoundError(
                f"no pictures at {source}: neither a folder, a list file (.txt), a glob nor a picture"
            )
    return sorted(os.path.normpath(f) for f in files)


def read_list(source: str | Path, root: str | Path | None = None) -> list[tuple[int, str, str]]:
    """Line number, text and path of the entries of a list file; empty lines and comments (#) are passed over.

    A relative line counts from the list's folder, else from the data's root folder, else from the working folder; then
    the same without a leading `data/`, which CVAT writes before all, and with `/` for `\\`. What is nowhere has its
    place in the list's folder.

    Raises:
        ValueError: it is no text; names the file.
    """
    bases = [os.path.dirname(os.path.abspath(source)), *([str(root)] if root else []), ""]
    entries = []
    for number, text in enumerate(read_text(source).splitlines(), 1):
        text = text.strip()
        if text and not (text.startswith("#") and not os.path.exists(os.path.join(bases[0], text))):
            entries.append((number, text, text if "://" in text else _locate(text, bases)))
    return entries


def _locate(entry: str, bases: list[str]) -> str:
    """The first place where an entry (a path or a glob) is, else that below the first base."""
    entry = os.path.expanduser(entry)
    plain = entry.replace("\\", "/")
    spellings = dict.fromkeys((entry, plain, plain.removeprefix("./").removeprefix("data/")))
    places = [os.path.join(base, spelling) for spelling in spellings for base in bases]
    return next((p for p in places if os.path.exists(p) or (has_wildcard(p) and find_glob(p))), places[0])


def has_wildcard(path: str) -> bool:
    """Whether a path is a pattern; what exists is none, whatever its name."""
    return any(c in path for c in "*?[") and not os.path.exists(path)


def split_glob(pattern: str) -> tuple[str, str]:
    """The part of a pattern that exists, and the rest: brackets in a folder's name are no pattern."""
    parts = Path(pattern).parts
    head = ""
    for i, part in enumerate(parts):
        if not os.path.exists(os.path.join(head, part)):
            return head, os.path.join(*parts[i:])
        head = os.path.join(head, part)
    return head, ""


def find_glob(pattern: str) -> list[str]:
    """Sorted matches of a pattern, whose existing part is taken as it stands."""
    head, rest = split_glob(pattern)
    return sorted(glob.glob(os.path.join(glob.escape(head), rest) if rest else glob.escape(head), recursive=True))


def pair_with_labels(sources: Iterable[str | Path], root: str | Path | None = None) -> tuple[list[str], list[str]]:
    """Pictures of the sources (see `list_images`) and the label file of each.

    A picture that is named more than once is there once, as in YOLOv5.

    Git writes a symbolic link as a text file with the target's path where links are not supported (Windows, some
    archives). Such a file in place of a picture folder is followed, in the lines of a list file too; the labels are
    still those beside it.
    """
    pairs = []
    for source in map(str, sources):
        target = _written_link(source)
        found = list_images(target or source, root)
        at = [os.path.join(source, os.path.relpath(f, target)) for f in found] if target else found
        if not target and source.lower().endswith(".txt"):
            folders = {folder: _written_link(folder) for folder in {os.path.dirname(f) for f in at}}
            found = [os.path.join(folders[os.path.dirname(f)] or os.path.dirname(f), os.path.basename(f)) for f in at]
        pairs += zip(found, map(image_to_label_path, at), strict=True)
    once = sorted(set(pairs))
    if len(once) < len(pairs):
        LOGGER.warning("%d pictures are named more than once; each counts once", len(pairs) - len(once))
    return [f for f, _ in once], [label for _, label in once]


def _written_link(source: str) -> str | None:
    """Folder that a text file in place of a symbolic link names; None where the source is something else."""
    if os.path.splitext(source)[1] or not os.path.isfile(source) or os.path.getsize(source) > 4096:
        return None
    text = Path(source).read_bytes().decode("utf-8", errors="replace").strip()
    target = os.path.normpath(os.path.join(os.path.dirname(source), text))
    return target if text and "\0" not in text and os.path.isdir(target) else None


def _walk(folder: str) -> list[str]:
    """Pictures below a folder. Links are followed, but no folder is entered twice; hidden files are passed over."""
    found, seen, stack = [], set(), [folder]
    while stack:
        current = stack.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append(entry.path)
                elif is_picture_name(entry.name):
                    found.append(entry.path)
    return found
