"""The index of a scanned data set: flat arrays, and a cache of them that is no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import cv2
import numpy as np
import PIL

from utils.dataset.labels import Problem
from utils.system.files import user_cache, whole_file, writable

CACHE_VERSION = 2
NO_ACCESS = "no access"  # kind of a problem that is not the file's own

# ctime also notices a file that was replaced by one of the same size and mtime
_size_and_times = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns")

ARRAYS = ("shapes", "objects", "object_offsets", "points", "point_offsets", "image_class")


@dataclass
class DatasetIndex:
    """Pictures and labels of a split in flat arrays, which workers share without copying.

    Attributes:
        im_files, label_files: str [n]; a label file may be absent (a background).
        shapes: int32 [n, 2] width and height as decoded, after the EXIF rotation.
        objects: float32 [N, 5] class, x, y, w, h, normalised; picture i has rows object_offsets[i]:object_offsets[i+1].
        object_offsets: int64 [n + 1].
        points: float32 [P, 2] normalised polygon vertices; object j has rows point_offsets[j]:point_offsets[j+1].
        point_offsets: int64 [N + 1].
        image_class: int64 [n], -1 where unknown.
        problems: what was left out, and what is unknown.
        cls_nc: number of image classes the labels were read with.
    """

    im_files: np.ndarray
    label_files: np.ndarray
    shapes: np.ndarray
    objects: np.ndarray
    object_offsets: np.ndarray
    points: np.ndarray
    point_offsets: np.ndarray
    image_class: np.ndarray
    problems: list[Problem] = field(default_factory=list)
    cls_nc: int = 0

    def __len__(self) -> int:
        return len(self.im_files)

    def digest(self, root: str | Path) -> str:
        """Hash of the pictures' names below `root` and of all that is labelled, whenever the files were written."""
        names = (os.path.relpath(file, root) for file in map(str, self.im_files))
        found = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
        for name in ARRAYS:
            found.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return found.hexdigest()

    def labels(self, i: int) -> np.ndarray:
        """Copy of the object rows of picture i, float32 [k, 5] class, x, y, w, h."""
        return self.objects[self.object_offsets[i] : self.object_offsets[i + 1]].copy()

    def segments(self, i: int) -> list[np.ndarray]:
        """Copies of the polygons of picture i's objects, float32 [m, 2] each; [0, 2] for a box row."""
        ends = self.point_offsets[self.object_offsets[i] : self.object_offsets[i + 1] + 1]
        return [self.points[a:b].copy() for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def subset(self, indices: Sequence[int] | np.ndarray) -> DatasetIndex:
        """Index of these pictures in this order (repeats allowed) or of a mask. The problems stay those of the scan."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        rows, object_offsets = _gather(self.object_offsets, indices)
        points, point_offsets = _gather(self.point_offsets, rows)
        return DatasetIndex(
            self.im_files[indices],
            self.label_files[indices],
            self.shapes[indices],
            self.objects[rows],
            object_offsets,
            self.points[points],
            point_offsets,
            self.image_class[indices],
            self.problems,
            self.cls_nc,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Pictures, backgrounds (no objects), objects, pictures without image label, pictures and rows left out."""
        kinds = Counter(p.kind for p in self.problems)
        return {
            "images": len(self),
            "backgrounds": int((np.diff(self.object_offsets) == 0).sum()),
            "objects": len(self.objects),
            "images_without_image_label": int((self.image_class < 0).sum()) if self.cls_nc else 0,
            "images_left_out": sum(kinds[k] for k in ("missing image", "corrupt image", "unreadable label", NO_ACCESS)),
            "rows_left_out": kinds["bad row"] + kinds["duplicate row"],
        }

    def summary(self) -> str:
        """The counts in one line."""
        c = self.counts
        unknown = f", {c['images_without_image_label']} without image label" if self.cls_nc else ""
        return (
            f"{c['images']} pictures, {c['backgrounds']} backgrounds, {c['objects']} objects{unknown}; "
            f"left out: {c['images_left_out']} pictures, {c['rows_left_out']} rows"
        )


def _gather(offsets: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the groups `indices` of a ragged array, one group after the other, and their new offsets."""
    lengths = offsets[indices + 1] - offsets[indices]
    new = offsets_of(lengths)
    rows = np.arange(new[-1]) + np.repeat(offsets[indices] - new[:-1], lengths)
    return rows, new


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where the groups of a ragged array begin, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def join(parts: Sequence[DatasetIndex]) -> DatasetIndex:
    """Index of all pictures of one or more others of one data set, one after the other."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def joined_offsets(name: str) -> np.ndarray:
        return offsets_of(np.concatenate([np.diff(getattr(part, name)) for part in parts]))

    return DatasetIndex(
        joined("im_files"),
        joined("label_files"),
        joined("shapes"),
        joined("objects"),
        joined_offsets("object_offsets"),
        joined("points"),
        joined_offsets("point_offsets"),
        joined("image_class"),
        [problem for part in parts for problem in part.problems],
        parts[0].cls_nc,
    )


def fingerprint(files: list[str], label_files: list[str], nc: int, cls_nc: int, single_cls: bool) -> str:
    """Hash of everything the scan depends on: names, sizes and times of all files, and the class counts."""
    numbers: list[int | None] = []
    for name in (*files, *label_files):
        try:
            numbers += _size_and_times(os.stat(name))
        except OSError:
            numbers.append(None)
    start = f"{CACHE_VERSION} {nc} {cls_nc} {single_cls} {cv2.__version__} {PIL.__version__}"
    text = "\0".join((start, *files, *label_files, str(numbers)))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def cache_files(sources: list, label_files: list[str]) -> list[Path]:
    """Places for the cache, the best first: beside the labels folder or list file, else the user's cache folder."""
    first = Path(str(sources[0]))
    if first.is_file() and first.suffix.lower() == ".txt":
        beside = first.absolute().with_suffix("")
    else:
        beside = Path(label_files[0]).absolute().parent
    if len(sources) > 1:  # a split of several folders has a cache of its own
        beside = beside.with_name(f"{beside.name}.{_short_hash(*map(str, sources))}")
    beside = beside.with_name(beside.name + ".cache.npz")
    user = user_cache()
    places = [user / f"{_short_hash(str(beside))}.npz"] if user else []
    return [beside, *places] if writable(beside.parent) else places


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def save_cache(places: list[Path], key: str, index: DatasetIndex, files: list[str]) -> None:
    """Write to the first place that takes it; a scan without a cache is only slower, so failures are passed over."""
    position = {f: i for i, f in enumerate(files)}
    arrays = {name: getattr(index, name) for name in ARRAYS}
    arrays["key"] = np.array(key)
    arrays["kept"] = np.array([position[f] for f in index.im_files], dtype=np.int64)
    arrays["problem_lines"] = np.array([p.line or 0 for p in index.problems], dtype=np.int64)
    for name in ("file", "reason", "kind"):
        # One text in bytes: a numpy text array takes four bytes a character, of the longest entry.
        text = "\n".join(" ".join(getattr(p, name).splitlines()) for p in index.problems)
        arrays[f"problem_{name}s"] = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)
            return


def load_cache(place: Path, key: str, files: list[str], label_files: list[str], cls_nc: int) -> DatasetIndex | None:
    """The cached index, None where there is none for these files, or where it is damaged."""
    try:
        with np.load(place, allow_pickle=False) as data:
            if str(data["key"]) != key:
                return None
            arrays = {name: data[name] for name in ARRAYS}
            kept, lines = data["kept"], data["problem_lines"]
            texts = [
                data[f"problem_{name}s"].tobytes().decode(errors="surrogateescape").split("\n") if len(lines) else []
                for name in ("file", "reason", "kind")
            ]
        problems = [
            Problem(file, int(line) or None, reason, kind)
            for line, file, reason, kind in zip(lines, *texts, strict=True)
        ]
        names = [np.array(paths, dtype=np.str_) for paths in (files, label_files)]
        if len(kept) < len(files):
            names = [paths[kept] for paths in names]
        return DatasetIndex(*names, **arrays, problems=problems, cls_nc=cls_nc)
    except Exception:  # absent, or damaged in one of many ways: the cure is always to scan again
        return None
