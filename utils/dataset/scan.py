"""Scan of a data set: every picture and label is checked once; flat arrays and a cache that is no pickle."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.dataset.files import pair_with_labels
from utils.dataset.labels import ParsedLabel, Problem, read_label
from utils.dataset.pictures import IMG_FORMATS, check_picture, one_line

CACHE_VERSION = 2
# A picture may train detection without these, so they are reported but are no reason to stop a strict run.
NOTES = ("missing label", "image row ignored")

_ARRAYS = ("shapes", "objects", "object_offsets", "points", "point_offsets", "image_class")


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
            "images_left_out": sum(kinds[k] for k in ("missing image", "corrupt image", "unreadable label")),
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
    new = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(new[-1]) + np.repeat(offsets[indices] - new[:-1], lengths)
    return rows, new


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
        workers: threads; None for one per core, at most 8.
        prefix: name of the split in the progress bar and the summary.
        verbose: show them.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: no picture can be used.
    """
    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    files, label_files = pair_with_labels(sources, root)
    if not files:
        raise ValueError(
            f"{prefix}: no pictures in {', '.join(map(str, sources))} (looked for {', '.join(IMG_FORMATS)})"
        )
    key = _fingerprint(files, label_files, nc, cls_nc, single_cls) if cache else ""
    cache_files = _cache_files(sources, label_files) if cache else []

    index = next((found for f in cache_files if (found := _load_cache(f, key, files, label_files, cls_nc))), None)
    from_cache = index is not None
    if index is None:
        index = _scan(files, label_files, None if single_cls else nc, cls_nc, workers, prefix, verbose)
        if single_cls:
            index.objects[:, 0] = 0
        if cache:
            _save_cache(cache_files, key, index, files)
    if verbose:
        print(f"{prefix}: {index.summary()}{' (cached)' if from_cache else ''}", flush=True)
    if not len(index):
        raise ValueError(f"{prefix}: no picture can be used\n{problem_table(index.problems)}")
    if verbose and not any(os.path.exists(f) for f in index.label_files[:1000]) and not len(index.objects):
        print(f"{prefix}: WARNING: no label files found, looked for {index.label_files[0]} and so on", flush=True)
    return index


def _scan(
    files: list[str],
    label_files: list[str],
    nc: int | None,
    cls_nc: int,
    workers: int | None,
    prefix: str,
    verbose: bool,
) -> DatasetIndex:
    def check(pair: tuple[str, str]) -> tuple[tuple[int, int] | None, ParsedLabel]:
        return _scan_one(*pair, nc, cls_nc)

    workers = workers if workers else min(8, os.cpu_count() or 1)
    # Threads: decoding releases the interpreter lock, and nothing has to be pickled or forked.
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
        pairs = zip(files, label_files, strict=True)
        bar = tqdm(
            pool.map(check, pairs), total=len(files), desc=f"{prefix}: scanning", unit="pic", disable=not verbose
        )
        results = list(bar)

    kept = [i for i, (shape, _) in enumerate(results) if shape is not None]
    labels = [results[i][1] for i in kept]
    segments = [s for label in labels for s in label.segments]
    return DatasetIndex(
        np.array([files[i] for i in kept], dtype=np.str_),
        np.array([label_files[i] for i in kept], dtype=np.str_),
        np.array([results[i][0] for i in kept], dtype=np.int32).reshape(-1, 2),
        np.concatenate([np.zeros((0, 5), np.float32), *(label.objects for label in labels)]),
        _offsets([len(label.objects) for label in labels]),
        np.concatenate([np.zeros((0, 2), np.float32), *segments]),
        _offsets([len(s) for s in segments]),
        np.array([label.image_class for label in labels], dtype=np.int64),
        [problem for _, label in results for problem in label.problems],
        cls_nc,
    )


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _scan_one(file: str, label_file: str, nc: int | None, cls_nc: int) -> tuple[tuple[int, int] | None, ParsedLabel]:
    """Picture size (None: left out) and label of one picture."""

    def left_out(reason: str, kind: str) -> tuple[None, ParsedLabel]:
        return None, ParsedLabel(problems=[Problem(file, None, reason, kind)])

    if not os.path.exists(file):
        return left_out("the picture does not exist", "missing image")
    try:
        shape = check_picture(file)
    except (ValueError, OSError) as error:
        return left_out(one_line(error), "corrupt image")
    try:
        return shape, read_label(label_file, nc, cls_nc)
    except FileNotFoundError:
        reason = "no label file: a background, image class unknown"
        return shape, ParsedLabel(problems=[Problem(label_file, None, reason, "missing label")] if cls_nc else [])
    except OSError as error:
        # To train it as a background would teach the network that its objects are none.
        return left_out(f"its label cannot be read ({one_line(error)})", "unreadable label")


def _fingerprint(files: list[str], label_files: list[str], nc: int, cls_nc: int, single_cls: bool) -> str:
    """Hash of everything the scan depends on: names, sizes and times of all files, and the class counts."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {nc} {cls_nc} {single_cls} {cv2.__version__}\n".encode())
    for name in (*files, *label_files):
        try:
            s = os.stat(name)
            # ctime also notices a file that was replaced by one of the same size and mtime
            stamp = f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"
        except OSError:
            stamp = "absent"
        digest.update(f"{name} {stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _cache_files(sources: list, label_files: list[str]) -> list[Path]:
    """Places for the cache, the best first: beside the labels folder or list file, else the user's cache folder."""
    first = Path(str(sources[0]))
    if first.is_file() and first.suffix.lower() == ".txt":
        beside = first.absolute().with_suffix("")
    else:
        beside = Path(label_files[0]).absolute().parent
    if len(sources) > 1:  # a split of several folders has a cache of its own
        beside = beside.with_name(f"{beside.name}.{_short_hash(*map(str, sources))}")
    beside = beside.with_name(beside.name + ".cache.npz")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolov5-joint"
    places = [user / f"{_short_hash(str(beside))}.npz"]
    return [beside, *places] if _writable(beside.parent) else places


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def _writable(folder: Path) -> bool:
    try:
        # The mode bits too: root may write anywhere, but a folder marked read-only is meant to stay as it is.
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


def _save_cache(places: list[Path], key: str, index: DatasetIndex, files: list[str]) -> None:
    """Write to the first place that takes it; a scan without a cache is only slower, so failures are passed over."""
    position = {f: i for i, f in enumerate(files)}
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    arrays["key"] = np.array(key)
    arrays["kept"] = np.array([position[f] for f in index.im_files], dtype=np.int64)
    arrays["problem_lines"] = np.array([p.line or 0 for p in index.problems], dtype=np.int64)
    for name in ("file", "reason", "kind"):
        # One text in bytes: a numpy text array takes four bytes a character, of the longest entry.
        text = "\n".join(" ".join(getattr(p, name).splitlines()) for p in index.problems)
        arrays[f"problem_{name}s"] = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    for place in places:
        temporary = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(suffix=".npz", prefix=".scan-", dir=place.parent)
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **arrays)
            os.chmod(temporary, 0o644)
            os.replace(temporary, place)
            return
        except OSError:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)


def _load_cache(place: Path, key: str, files: list[str], label_files: list[str], cls_nc: int) -> DatasetIndex | None:
    """The cached index, None where there is none for these files, or where it is damaged."""
    try:
        with np.load(place, allow_pickle=False) as data:
            if str(data["key"]) != key:
                return None
            arrays = {name: data[name] for name in _ARRAYS}
            kept, lines = data["kept"], data["problem_lines"]
            texts = [
                data[f"problem_{name}s"].tobytes().decode(errors="surrogateescape").split("\n") if len(lines) else []
                for name in ("file", "reason", "kind")
            ]
        problems = [
            Problem(file, int(line) or None, reason, kind)
            for line, file, reason, kind in zip(lines, *texts, strict=True)
        ]
        im_files = np.array(files, dtype=np.str_)[kept]
        return DatasetIndex(
            im_files, np.array(label_files, dtype=np.str_)[kept], **arrays, problems=problems, cls_nc=cls_nc
        )
    except Exception:  # absent, or damaged in one of many ways: the cure is always to scan again
        return None


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
        print(problem_table(problems), flush=True)
        if file is not None:
            with open(file, "w", newline="", encoding="utf-8") as f:
                writer = csv.writer(f)
                writer.writerow(("kind", "file", "line", "reason"))
                writer.writerows((p.kind, p.file, p.line or "", p.reason) for p in problems)
            print(f"  all of them: {file}", flush=True)
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
