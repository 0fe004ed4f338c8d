"""Picture files: which there are, and which label belongs to each."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from operator import lt
from pathlib import Path

from utils.dataset.labels import Problem
from utils.dataset.pictures import IMG_FORMATS, is_picture_name
from utils.system.files import read_text
from utils.system.voice import warn

COMPANIONS = (".txt", ".npy", ".npz", ".cache", ".csv", ".json", ".xml", ".yaml", ".yml", ".md", ".db", ".ini")
OTHER_KIND = "file of another kind"


def image_to_label_path(path: str | Path) -> str:
    """Label file of a picture: its last folder `images` becomes `labels`, its suffix .txt."""
    head, tail = os.path.split(os.path.normpath(str(path)))
    parts = head.split(os.sep)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return os.path.join(os.sep.join(parts), os.path.splitext(tail)[0] + ".txt")


def is_label_of(picture: str | Path, label: str | Path) -> bool:
    """Whether `pair_with_labels` finds this label file for this picture, which may spell it otherwise (.TXT, é)."""
    wanted, label = Path(image_to_label_path(Path(picture).absolute())), Path(label).absolute()
    return (wanted.parent, _composed(wanted.name)) == (label.parent, _composed(label.name))


def image_to_label_paths(paths: Iterable[str]) -> list[str]:
    """The label files of normalised picture paths; what is asked of a folder is asked once."""
    starts, found = {}, []
    for path in paths:
        head, sep, tail = path.rpartition(os.sep)
        if head not in starts:
            starts[head] = image_to_label_path(f"{head}{sep}x")[: -len("x.txt")]
        found.append(f"{starts[head]}{_stem(tail)}.txt")
    return found


def list_images(
    sources: str | Path | Iterable[str | Path], root: str | Path | None = None, passed: list[Problem] | None = None
) -> list[str]:
    """Sorted paths of the pictures in folders (with their subfolders), list files (.txt), globs and single files.

    What a list names (see `read_list`) is kept even where it is not there or no picture, so that the scan can say so.

    Args:
        root: the data's root folder, `path:` of its yaml.
        passed: takes what was passed over in folders: files of other kinds, and what could not be opened.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: a list file is no text.
    """
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    passed = [] if passed is None else passed
    files: list[str] = []
    for source in map(str, sources):
        if os.path.isdir(source):
            files += _walk(source, passed)
        elif os.path.isfile(source) and source.lower().endswith(".txt"):
            files += [_normal(path) for _, _, path in read_list(source, root)]
        elif os.path.isfile(source):
            files.append(os.path.normpath(source))
        elif has_wildcard(source):
            found = find_glob(source)
            files += [os.path.normpath(f) for f in found if is_picture_name(f)]
            others = (f for f in found if not is_picture_name(f) and not is_companion(f))
            passed += [other_kind(f) for f in others if os.path.isfile(f)]
        else:
            raise FileNotFoundError(
                f"no pictures at {source}: neither a folder, a list file (.txt), a glob nor a picture"
            )
    return sorted(files)


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


def _normal(path: str) -> str:
    """A normalised path to the same file: `..` behind a linked folder is the parent of what the link leads to."""
    normal = os.path.normpath(path)
    if ".." in path and not os.path.exists(normal) and os.path.exists(path):
        head, tail = os.path.split(path)
        return os.path.join(os.path.realpath(head), tail)
    return normal


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


def pair_with_labels(
    sources: Iterable[str | Path], root: str | Path | None = None, passed: list[Problem] | None = None
) -> tuple[list[str], list[str]]:
    """Pictures of the sources (see `list_images`) and the label file of each.

    A picture that is named more than once is there once, as in YOLOv5. A label file whose name is the same in another
    Unicode form (macOS writes é as two characters) or that ends in .TXT belongs to its picture. Label files that
    belong to no picture go to `passed`.

    Git writes a symbolic link as a text file with the target's path where links are not supported (Windows, some
    archives). Such a file in place of a picture folder is followed, in the lines of a list file too; the labels are
    still those beside it.
    """
    passed = [] if passed is None else passed
    files: list[str] = []
    label_files: list[str] = []
    listed = False
    for source in map(str, sources):
        target = _written_link(source)
        found = list_images(target or source, root, passed)
        at = [os.path.normpath(os.path.join(source, os.path.relpath(f, target))) for f in found] if target else found
        if not target and source.lower().endswith(".txt"):
            listed = True
            folders = {folder: _written_link(folder) for folder in {os.path.dirname(f) for f in at}}
            found = [os.path.join(folders[os.path.dirname(f)] or os.path.dirname(f), os.path.basename(f)) for f in at]
        files += found
        label_files += image_to_label_paths(at)
    if not all(map(lt, files, islice(files, 1, None))):
        once = sorted(set(zip(files, label_files, strict=True)))
        if len(once) < len(files):
            warn(f"{len(files) - len(once)} pictures are named more than once; each counts once")
        files, label_files = map(list, zip(*once, strict=True))
    return files, _as_spelled(files, label_files, passed, listed)


def _as_spelled(files: list[str], label_files: list[str], passed: list[Problem], listed: bool) -> list[str]:
    """Label files under the names that their folders have them by; those of no picture go to `passed`.

    Args:
        listed: a list names pictures, so that some may not be there.
    """
    members: dict[str, list[int]] = {}
    for i, label in enumerate(label_files):
        members.setdefault(_folder(label), []).append(i)
    spelled = list(label_files)
    for folder, indices in members.items():
        names = set(_names(folder))
        wanted = {label_files[i].rpartition(os.sep)[2] for i in indices}
        left = {name for name in names - wanted if name.lower().endswith(".txt")}
        in_place = wanted <= names and left <= {"classes.txt"}  # nothing is misspelled and nothing left over
        if in_place and not listed:
            continue
        picture_folders = {_folder(files[i]) for i in indices}
        pictures = {name for pictures in picture_folders for name in _names(pictures)}
        if in_place and {files[i].rpartition(os.sep)[2] for i in indices} <= pictures:
            continue
        texts = left | (wanted & names)
        there: dict[str, list[str]] = {}  # names of label files by their stem in its composed form
        for name in sorted(texts):
            there.setdefault(_composed(name), []).append(name)
        for i in indices:
            label = os.path.basename(label_files[i])
            if label not in texts and (spellings := there.get(_composed(label))):
                spelled[i] = os.path.join(folder, spellings[0])
        if folder not in picture_folders:
            reason = f"no picture of this name in {', '.join(sorted(picture_folders))}"
            unclaimed = there.keys() - set(map(_composed, pictures)) - {"classes"}
            for name in sorted(n for stem in unclaimed for n in there[stem]):
                passed.append(Problem(os.path.join(folder, name), None, reason, "label without picture"))
    return spelled


def _folder(path: str) -> str:
    """`os.path.dirname` of a normalised path."""
    head, sep, _ = path.rpartition(os.sep)
    return head or sep


def _stem(name: str) -> str:
    """A file's name without its suffix; as `os.path.splitext`, for which `.txt` is a name and no suffix."""
    dot = name.rfind(".")
    return name[:dot] if dot > 0 and name[0] != "." else os.path.splitext(name)[0]


def _composed(name: str) -> str:
    """The stem in the form in which an accent and its letter are one character."""
    return unicodedata.normalize("NFC", _stem(name))


def _names(folder: str) -> list[str]:
    try:
        return [n for n in os.listdir(folder or ".") if n[0] != "."]
    except OSError:  # told where its files are opened
        return []


def _written_link(source: str) -> str | None:
    """Folder that a text file in place of a symbolic link names; None where the source is something else."""
    if os.path.splitext(source)[1] or not os.path.isfile(source) or os.path.getsize(source) > 4096:
        return None
    text = Path(source).read_bytes().decode("utf-8", errors="replace").strip()
    target = os.path.normpath(os.path.join(os.path.dirname(source), text))
    return target if text and "\0" not in text and os.path.isdir(target) else None


def _walk(folder: str, passed: list[Problem]) -> list[str]:
    """Normalised paths of the pictures below a folder. Links are followed, but no folder is entered twice, and one that
    is there itself under its own name, beside which its labels are; hidden files are passed over."""
    found, seen, stack, links = [], set(), [folder], []
    while stack or links:
        current = stack.pop() if stack else links.pop()
        try:
            real = os.path.realpath(current)
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(current) as entries:
                entries = list(entries)
        except OSError as error:
            passed.append(Problem(current, None, f"the folder cannot be read ({error.strerror})", "unreadable folder"))
            continue
        start = os.path.normpath(os.path.join(current, "x"))[:-1]
        for entry in entries:
            if entry.name[0] == ".":
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to itself
                passed.append(Problem(entry.path, None, f"cannot be opened ({error.strerror})", "unreadable folder"))
                continue
            if is_folder:
                (links if entry.is_symlink() else stack).append(entry.path)
            elif is_picture_name(entry.name):
                found.append(f"{start}{entry.name}")
            elif not is_companion(entry.name):
                passed.append(other_kind(entry.path))
    return found


def is_companion(name: str) -> bool:
    """Whether a file is of a kind that lies beside pictures: labels, caches, notes."""
    return os.path.splitext(name)[1].lower() in COMPANIONS


def other_kind(file: str) -> Problem:
    """That a file is passed over for its suffix."""
    suffix = os.path.splitext(file)[1] or "none"
    return Problem(file, None, f"suffix {suffix} is not one of {', '.join(IMG_FORMATS)}", OTHER_KIND)


def other_kinds(problems: Iterable[Problem]) -> str:
    """One line that counts the files of other kinds by their suffixes, '' where there are none."""
    counts = Counter(os.path.splitext(p.file)[1].lower() or "no suffix" for p in problems if p.kind == OTHER_KIND)
    listed = ", ".join(f"{suffix} {n}" for suffix, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
    return f"{counts.total()} files of other kinds passed over ({listed})" if counts else ""
