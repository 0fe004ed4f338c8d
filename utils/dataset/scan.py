"""Scan of a data set: every picture and label is checked once, and what cannot be used is named."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from utils.dataset.files import other_kinds, pair_with_labels
from utils.dataset.index import NO_ACCESS, DatasetIndex, cache_files, fingerprint, join, load_cache, save_cache
from utils.dataset.labels import Problem
from utils.dataset.pairs import checkers
from utils.dataset.pictures import IMG_FORMATS
from utils.system.machine import core_count
from utils.system.voice import say

CHUNK = 64  # pictures that are checked at a time
MANY = 5000  # pictures from which on processes of their own are worth their start
# A picture may train detection without these, so they are reported but are no reason to stop a strict run.
NOTES = ("missing label", "image row ignored")


def scan_dataset(
    sources: str | Path | Iterable[str | Path],
    nc: int,
    cls_nc: int = 0,
    *,
    single_cls: bool = False,
    root: str | Path | None = None,
    cache: bool = True,
    workers: int | None = None,
    prefix: str = "train",
    verbose: bool = True,
) -> DatasetIndex:
    """Check every picture and label of a split. What cannot be used is left out and named in `.problems`.

    Args:
        sources: see `list_images`.
        nc, cls_nc: number of object and image classes.
        single_cls: every object becomes class 0, whatever its number.
        root: the data's root folder, see `read_list`.
        cache: read and write the result; any change of a picture or label file makes it invalid.
        workers: threads, with MANY pictures processes; None for one per core, at most 8.
        prefix: name of the split in the progress bar and the summary.
        verbose: show them.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: no picture can be used.
    """
    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    passed: list[Problem] = []
    files, label_files = pair_with_labels(sources, root, passed)
    others = other_kinds(passed)
    if not files:
        raise ValueError(
            f"{prefix}: no pictures in {', '.join(map(str, sources))} (looked for {', '.join(IMG_FORMATS)}"
            f"{f'; {others}' if others else ''})"
        )
    key = fingerprint(files, label_files, nc, cls_nc, single_cls) if cache else ""
    places = cache_files(sources, label_files) if cache else []

    index = next((found for f in places if (found := load_cache(f, key, files, label_files, cls_nc))), None)
    from_cache = index is not None
    if index is None:
        index = _scan(files, label_files, None if single_cls else nc, cls_nc, workers, prefix, verbose)
        if single_cls:
            index.objects[:, 0] = 0
        if cache and not any(p.kind == NO_ACCESS for p in index.problems):
            save_cache(places, key, index, files)
    index.problems += passed
    labelled = any(map(os.path.exists, label_files))
    if not cls_nc and labelled and any(p.kind == "label without picture" for p in passed):
        reason = "no label file, while other label files belong to no picture"  # else it is an ordinary background
        index.problems += [Problem(f, None, reason, "missing label") for f in label_files if not os.path.exists(f)]
    if verbose:
        say(f"{prefix}: {index.summary()}{' (cached)' if from_cache else ''}")
        if others:
            say(f"{prefix}: {others}")
    if not len(index):
        raise ValueError(f"{prefix}: no picture can be used\n{problem_table(index.problems)}")
    if verbose and not labelled:
        say(f"{prefix}: WARNING: {_no_labels(label_files)}")
    return index


def refuse_set(index: DatasetIndex, prefix: str = "train", unlabelled: bool = True) -> None:
    """Stop where what was left out says that the whole set is meant otherwise than it is read.

    Args:
        prefix: name of the split.
        unlabelled: stop where no picture has an object or an image label, too.

    Raises:
        ValueError: class numbers outside nc, or no label; says what to do.
    """
    outside = [p for p in index.problems if p.class_outside is not None]
    if outside:
        numbers = {p.class_outside for p in outside} | set(index.objects[:, 0].astype(int).tolist())
        first = " The first is 1, and YOLO counts from 0: subtract 1 from each." if min(numbers) == 1 else ""
        raise ValueError(
            f"{prefix}: {len(outside)} rows have class numbers that are not below nc, such as {outside[0]}. The "
            f"numbers run from {min(numbers)} to {max(numbers)}.{first} Correct the labels, or nc and names in the "
            "data yaml"
        )
    if unlabelled and not len(index.objects) and not (index.image_class >= 0).any():
        raise ValueError(
            f"{prefix}: no picture has a label, so there is nothing to learn: {_no_labels(index.label_files)}"
        )


def _no_labels(label_files: Sequence[str]) -> str:
    """Where labels were looked for, and what lies there instead."""
    looked_for = f"no label files found, looked for {label_files[0]} and so on"
    folder = os.path.dirname(label_files[0])
    if elsewhere := _misnamed(label_files[0]):
        return f"{looked_for}: {elsewhere}"
    with contextlib.suppress(OSError):
        suffixes = Counter(Path(n).suffix.lower() for n in os.listdir(folder or "."))
        if others := [f"{n} {s}" for s, n in suffixes.most_common() if s in (".xml", ".json", ".csv")]:
            return f"{looked_for}: {', '.join(others)} are there, convert them to YOLO's .txt"
        if suffixes[".txt"]:
            return f"the label files in {folder} hold no row that can be read, or belong to other pictures"
    return looked_for


def _misnamed(label_file: str) -> str:
    """What to rename, where a file of that name (in any case) lies in the folder or in one beside it; else ''."""
    folder, name = os.path.split(label_file)
    parent, own = os.path.split(folder)
    with contextlib.suppress(OSError):
        for place in sorted(os.listdir(parent or "."), key=lambda place: (place != own, place.lower() != own.lower())):
            at = os.path.join(parent, place)
            found = [n for n in os.listdir(at) if n.lower() == name.lower()] if os.path.isdir(at) else []
            if found and place == own:
                return "" if name in found else f"{found[0]} is there, rename the label files as their pictures"
            if found and own.lower() == "images":  # the picture's own folder: it is not called `images`
                return f"labels are found beside a folder `images`: rename the folder {own} to images"
            if found:
                return f"rename the folder {place} to {own}"
    return ""


def _scan(
    files: list[str],
    label_files: list[str],
    nc: int | None,
    cls_nc: int,
    workers: int | None,
    prefix: str,
    verbose: bool,
) -> DatasetIndex:
    workers = workers if workers else min(8, core_count())
    chunks = [slice(start, start + CHUNK) for start in range(0, len(files), CHUNK)]
    parts = []
    with (
        warnings.catch_warnings(),
        checkers(workers if workers > 1 and len(files) >= MANY else 0) as check,
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(files), desc=f"{prefix}: scanning", unit="pic", disable=not verbose) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
        checked = pool.map(lambda chunk: check(files[chunk], label_files[chunk], nc, cls_nc), chunks)
        for chunk, part in zip(chunks, checked, strict=True):
            parts.append(part)
            bar.update(len(files[chunk]))
    return join(parts)


def problem_table(problems: Sequence[Problem], limit: int = 20) -> str:
    """What was left out or is unknown, and why: counts by kind, then up to `limit` lines `file:line: reason`.

    Kinds take turns, so that a frequent one does not hide the others. '' where there are no problems.
    """
    if not problems:
        return ""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.kind, []).append(problem)
    lines = ["Left out or unknown:"]
    lines += [f"  {len(group):6d}  {kind}" for kind, group in sorted(groups.items(), key=lambda g: -len(g[1]))]
    turns = sorted((turn, n) for n, group in enumerate(groups.values()) for turn in range(len(group)))[:limit]
    shown = [list(groups.values())[n][turn] for turn, n in sorted(turns, key=lambda t: t[::-1])]
    lines += [f"  {problem}" for problem in shown]
    if len(problems) > len(shown):
        lines.append(f"  … and {len(problems) - len(shown)} more")
    return "\n".join(lines)


def report_problems(
    problems: Sequence[Problem], strict: bool = False, file: Path | None = None, verbose: bool = True
) -> None:
    """Print the table of what was left out, write all of it to `file` (csv), and stop a strict run."""
    if problems and verbose:
        say(problem_table(problems))
        if file is not None:
            with open(file, "w", newline="", encoding="utf-8", errors="backslashreplace") as f:
                writer = csv.writer(f)
                writer.writerow(("kind", "file", "line", "reason"))
                writer.writerows((p.kind, p.file, p.line or "", p.reason) for p in problems)
            say(f"  all of them: {file}")
    check_strict(problems, strict)


def check_strict(problems: Sequence[Problem], strict: bool) -> None:
    """With `strict`, ValueError that lists the problems; a missing label file and an unused image row are none."""
    serious = [p for p in problems if p.kind not in NOTES]
    if strict and serious:
        raise ValueError(f"--strict: {len(serious)} problems in the data\n{problem_table(serious, limit=100)}")


def shared_pictures(a: DatasetIndex, b: DatasetIndex) -> int:
    """Number of pictures of `b` whose file is byte for byte one of `a`: leakage, if these are two splits."""
    sizes_a, sizes_b = ([_size(f) for f in index.im_files] for index in (a, b))
    common = (set(sizes_a) & set(sizes_b)) - {-1}
    # Only files of equal size are read, which are few.
    known = {_digest(f) for f, size in zip(a.im_files, sizes_a, strict=True) if size in common}
    return sum(_digest(f) in known for f, size in zip(b.im_files, sizes_b, strict=True) if size in common)


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:
        return -1


def _digest(file: str) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()
