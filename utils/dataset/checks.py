"""What is wrong with a data set beyond single rows: leaks between splits, doubles, views that disagree, odd boxes."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from utils.dataset.config import DataConfig
from utils.dataset.files import OTHER_KIND
from utils.dataset.index import NO_ACCESS
from utils.dataset.pictures import read_picture
from utils.dataset.scan import DatasetIndex
from utils.dataset.split import find_groups
from utils.metrics import unique_keys
from utils.system.machine import core_count

HASH_SIDE = 16  # bits of a row and of a column; the usual 8 cannot tell the fans of two ultrasound clips apart
NEAR_BITS = 20  # of 256; on 1,225 frames of 54 patients, none of two patients is this close (the first is above 30)
SMALLEST_BOX = 2.0  # pixels; below this even auto-anchor passes a label over


@dataclass(frozen=True)
class Kind:
    """A sort of finding: what the reader is told, and whether it fails a check."""

    title: str
    serious: bool


KINDS = {
    "unreadable": Kind("Files that cannot be used", True),
    "stray": Kind("Files of another kind among the pictures, and labels that belong to no picture", True),
    "row": Kind("Label rows that are left out or missing", True),
    "no group": Kind("Pictures in whose name the pattern of the groups or of the clips finds nothing", True),
    "group leak": Kind("Groups in more than one split", True),
    "clip leak": Kind("Clips in more than one split", True),
    "same picture, splits": Kind("Pictures that stand pixel for pixel in more than one split", True),
    "clip classes": Kind("Clips whose frames disagree about the image class", True),
    "same picture": Kind("Pictures that stand more than once in one split, pixel for pixel", False),
    "near, splits": Kind("Sets of near duplicates across splits", False),
    "near, groups": Kind("Sets of near duplicates in different groups: one patient under two names?", False),
    "near": Kind("Sets of near duplicates in one split", False),
    "box size": Kind("Boxes of a size that the network cannot answer", False),
    "note": Kind("Pictures without a label file, image rows without cls_nc", False),
}
_ROOM_OF_PROBLEM = {
    "missing image": "unreadable",
    "corrupt image": "unreadable",
    "unreadable label": "unreadable",
    "unreadable folder": "unreadable",
    NO_ACCESS: "unreadable",
    OTHER_KIND: "stray",
    "label without picture": "stray",
    "missing label": "note",
    "image row ignored": "note",
}  # all others: "row"


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        kind: one of KINDS.
        name: of the group, the clip, or the file (with its line).
        splits, files: where it was found.
        note: what exactly.
    """

    kind: str
    name: str
    splits: tuple[str, ...]
    files: tuple[str, ...]
    note: str = ""


@dataclass
class Report:
    """All findings, counts for a first look, and pictures by object and image class and by group."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # split, object class, image class
    groups: dict[str, dict[str, int]] = field(default_factory=dict)  # group, split: pictures

    def of(self, kind: str) -> list[Finding]:
        return [f for f in self.findings if f.kind == kind]

    @property
    def serious(self) -> bool:
        return any(KINDS[f.kind].serious for f in self.findings)


@dataclass
class _Pictures:
    """The pictures of all splits in one row, with what the checks compare."""

    files: list[str]
    split: np.ndarray
    image_class: np.ndarray
    keys: dict[str, np.ndarray]  # "group" and "clip" where there is a pattern: str [n], '' where it finds nothing

    def where(self, chosen: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Splits and files of the pictures `chosen`."""
        return tuple(sorted(set(self.split[chosen].tolist()))), tuple(self.files[i] for i in chosen)


def check(
    indexes: Mapping[str, DatasetIndex],
    data: DataConfig,
    clip_regex: str | None = None,
    anchors: np.ndarray | None = None,
    imgsz: int = 640,
    anchor_t: float = 4.0,
) -> Report:
    """Check the splits of a data set.

    Args:
        indexes: the scan of every split, by its name.
        data: its class names, and `group`, the pattern of the groups.
        clip_regex: pattern of the clips, of which each should be in one split and of one image class.
        anchors: [n, 2] in pixels at `imgsz`; None leaves the box sizes unchecked.
        anchor_t: the hyperparameter: a box needs an anchor whose sides differ by a smaller factor.

    Raises:
        ValueError: a pattern finds nothing in any picture's name.
    """
    files = [str(f) for index in indexes.values() for f in index.im_files]
    patterns = {word: regex for word, regex in (("group", data.group), ("clip", clip_regex)) if regex}
    table = _Pictures(
        files,
        np.repeat(list(indexes), [len(index) for index in indexes.values()]),
        np.concatenate([index.image_class for index in indexes.values()]),
        {word: find_groups(files, regex) for word, regex in patterns.items()},
    )
    for word, keys in table.keys.items():
        if not (keys != "").any():
            raise ValueError(f"{patterns[word]!r} finds nothing in the name of any picture, such as {files[0]}")
    pixels, hashes = fingerprints(files)
    report = Report()
    report.findings += [f for split, index in indexes.items() for f in _problems(split, index)]
    report.findings += _without_key(table)
    report.findings += _leaks(table)
    report.findings += _same_pictures(table, pixels)
    report.findings += _near_pictures(table, pixels, hashes)
    report.findings += _clip_classes(table, data)
    if anchors is not None:
        report.findings += [f for s, index in indexes.items() for f in _box_sizes(s, index, anchors, imgsz, anchor_t)]
    kinds = Counter(f.kind for f in report.findings)
    report.counts = {f"pictures in {split}": len(index) for split, index in indexes.items()}
    for word, keys in table.keys.items():
        report.counts |= {f"{word}s": len(set(keys) - {""}), f"pictures without {word}": int((keys == "").sum())}
        report.counts |= {f"{word}s in {s}": len(set(keys[table.split == s]) - {""}) for s in indexes}
    report.counts["groups of pixel-identical pictures"] = kinds["same picture"] + kinds["same picture, splits"]
    report.counts |= {kind: kinds[kind] for kind in KINDS}
    report.classes = {split: _class_table(index, data) for split, index in indexes.items()}
    for name, chosen in sorted(_members(table.keys.get("group", ())).items()):
        counts = Counter(table.split[chosen].tolist())
        report.groups[name] = {split: counts[split] for split in indexes}
    return report


def fingerprints(files: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
    """Digest of the decoded pixels of every picture, and its difference hash, bool [n, HASH_SIDE²].

    The hash is dHash: is a pixel of the picture, shrunk to 17 x 16 grey ones, brighter than its left neighbour? It is
    ten lines, so no library (ImageHash, which brings scipy's and PyWavelets' transforms) is needed for it.
    """

    def one(file: str) -> tuple[bytes, np.ndarray]:
        im = read_picture(file)
        grey = cv2.resize(
            cv2.cvtColor(im, cv2.COLOR_BGR2GRAY), (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA
        )
        digest = hashlib.sha256(repr(im.shape).encode() + im.tobytes()).digest()
        return digest, (grey[:, 1:] > grey[:, :-1]).ravel()

    with ThreadPoolExecutor(min(8, core_count())) as pool:
        found = list(tqdm(pool.map(one, files), total=len(files), desc="comparing", unit="pic", mininterval=1))
    return [digest for digest, _ in found], np.array([bits for _, bits in found], bool).reshape(len(files), -1)


def near_pairs(hashes: np.ndarray, bits: int = NEAR_BITS, rows: int = 1024) -> Iterator[np.ndarray]:
    """Pairs of hashes [n, b] that differ in at most `bits` bits, int [k, 3]: i < j and in how many. Exact; a part for
    every `rows` of i."""
    signs = hashes.astype(np.float32) * 2 - 1
    for start in range(0, len(signs), rows):
        apart = (hashes.shape[1] - signs[start : start + rows] @ signs[start:].T) / 2
        pairs = np.argwhere(np.triu(apart <= bits, 1))
        yield np.column_stack((pairs + start, apart[tuple(pairs.T)].astype(np.int64)))


class NearSets:
    """Sets of pictures that near pairs connect, built part by part: a thousand like frames are half a million pairs."""

    def __init__(self, count: int):
        self._label = np.arange(count)
        self._least = np.full(count, np.iinfo(np.int64).max)

    def add(self, pairs: np.ndarray) -> None:
        """Connect pairs [k, 3], see `near_pairs`."""
        np.minimum.at(self._least, pairs[:, :2].ravel(), np.repeat(pairs[:, 2], 2))
        ends = self._label[pairs[:, :2]]
        links = coo_array((np.ones(len(ends)), tuple(ends.T)), shape=(len(self._label),) * 2)
        self._label = connected_components(links, directed=False)[1][self._label]

    def found(self) -> list[tuple[np.ndarray, int]]:
        """The pictures of each set and the fewest bits in which two of them differ, the nearest first."""
        near = np.flatnonzero(self._least < np.iinfo(np.int64).max)
        sets = [near[chosen] for chosen in _members(self._label[near]).values()]
        return sorted(((chosen, int(self._least[chosen].min())) for chosen in sets), key=lambda found: found[1])


def _problems(split: str, index: DatasetIndex) -> Iterable[Finding]:
    for p in index.problems:
        place = p.file if p.line is None else f"{p.file}:{p.line}"
        yield Finding(_ROOM_OF_PROBLEM.get(p.kind, "row"), place, (split,), (p.file,), p.reason)


def _members(keys: Iterable) -> dict:
    out = defaultdict(list)
    for i, key in enumerate(keys.tolist() if isinstance(keys, np.ndarray) else keys):
        out[key].append(i)
    return {key: np.array(chosen) for key, chosen in out.items() if key != ""}


def _without_key(table: _Pictures) -> Iterable[Finding]:
    for word, keys in table.keys.items():
        if (chosen := np.flatnonzero(keys == "")).size:
            splits, files = table.where(chosen)
            yield Finding("no group", Path(files[0]).name, splits, files, f"{len(files)} pictures without a {word}")


def _leaks(table: _Pictures) -> Iterable[Finding]:
    for word, keys in table.keys.items():
        for name, chosen in sorted(_members(keys).items()):
            splits, files = table.where(chosen)
            if len(splits) > 1:
                counts = Counter(table.split[chosen].tolist())
                note = ", ".join(f"{counts[s]} in {s}" for s in splits)
                yield Finding(f"{word} leak", name, splits, files, note)


def _same_pictures(table: _Pictures, pixels: list[bytes]) -> Iterable[Finding]:
    for chosen in _members(pixels).values():
        if len(chosen) > 1:
            splits, files = table.where(chosen)
            views = len(set(table.image_class[chosen].tolist())) > 1
            note = f"{len(files)} files" + ", with different image classes" * views
            yield Finding("same picture" + ", splits" * (len(splits) > 1), Path(files[0]).name, splits, files, note)


def _near_pictures(table: _Pictures, pixels: list[bytes], hashes: np.ndarray) -> Iterable[Finding]:
    split, pixel = (np.unique(column, return_inverse=True)[1] for column in (table.split, np.array(pixels)))
    groups = table.keys.get("group", np.full(len(split), ""))
    group = np.where(groups == "", -1, np.unique(groups, return_inverse=True)[1])
    lit = hashes.any(1)  # one that nowhere brightens to the right, as of a single colour, has nothing to compare
    sets = {kind: NearSets(len(split)) for kind in ("near, splits", "near, groups", "near")}
    for pairs in near_pairs(hashes):
        i, j = pairs[:, 0], pairs[:, 1]
        wanted = (pixel[i] != pixel[j]) & lit[i] & lit[j]
        sets["near, splits"].add(pairs[wanted & (split[i] != split[j])])
        sets["near, groups"].add(pairs[wanted & (group[i] != group[j]) & (group[i] >= 0) & (group[j] >= 0)])
        sets["near"].add(pairs[wanted & (split[i] == split[j])])
    for kind, found in sets.items():
        for chosen, bits in found.found():
            splits, files = table.where(chosen)
            name = Path(files[0]).name
            if kind == "near, groups":
                name = " and ".join(sorted(set(groups[chosen])))
            note = f"{len(files)} files; the nearest two differ in {bits} of {hashes.shape[1]} bits"
            yield Finding(kind, name, splits, files, note)


def _clip_classes(table: _Pictures, data: DataConfig) -> Iterable[Finding]:
    for name, chosen in sorted(_members(table.keys.get("clip", ())).items()):
        counts = Counter(c for c in table.image_class[chosen].tolist() if c >= 0)
        if len(counts) > 1:
            note = ", ".join(f"{n} {data.cls_names[c]}" for c, n in counts.most_common())
            yield Finding("clip classes", name, *table.where(chosen), note)


def _box_sizes(split: str, index: DatasetIndex, anchors: np.ndarray, imgsz: int, anchor_t: float) -> Iterable[Finding]:
    sizes = np.repeat(index.shapes * (imgsz / index.shapes.max(1, keepdims=True)), np.diff(index.object_offsets), 0)
    sizes = index.objects[:, 3:5] * sizes
    factor = sizes[:, None] / anchors[None]
    least = np.maximum(factor, 1 / factor).max(2).min(1)  # of the anchor that fits best
    picture = np.repeat(np.arange(len(index)), np.diff(index.object_offsets))
    for i in np.flatnonzero((least >= anchor_t) | (sizes.min(1) < SMALLEST_BOX)):
        file = str(index.im_files[picture[i]])
        size = f"{sizes[i, 0]:.1f} x {sizes[i, 1]:.1f} px at {imgsz}"
        tiny = sizes[i].min() < SMALLEST_BOX
        reason = f"a side below {SMALLEST_BOX:g}" if tiny else f"{least[i]:.1f} times the best anchor"
        yield Finding("box size", Path(file).name, (split,), (file,), f"{size}: {reason}")


def _class_table(index: DatasetIndex, data: DataConfig) -> dict[str, dict[str, int]]:
    """Pictures with an object of each class (or with none) by image class."""
    picture = np.repeat(np.arange(len(index)), np.diff(index.object_offsets))
    names = unique_keys({**data.names, -1: "no object"})
    has = {name: np.unique(picture[index.objects[:, 0] == c]) for c, name in names.items()}
    has[names[-1]] = np.flatnonzero(np.diff(index.object_offsets) == 0)
    views = unique_keys({**data.cls_names, -1: "unknown"}) if data.cls_nc else {-1: "pictures"}
    return {
        name: {view: int((index.image_class[chosen] == c).sum()) for c, view in views.items()}
        for name, chosen in has.items()
    }


# What is written ------------------------------------------------------------------------------------------------------


def report_lines(report: Report, limit: int = 5) -> list[str]:
    """The report as text: counts, classes, and up to `limit` findings of each kind."""
    lines = [f"{count:7d}  {name}" for name, count in report.counts.items() if name not in KINDS]
    for split, rows in report.classes.items():
        views = list(next(iter(rows.values())))
        lines.append(f"{split:16}" + "".join(f"{view:>12}" for view in views))
        lines += [f"  {name:14}" + "".join(f"{cells[view]:12d}" for view in views) for name, cells in rows.items()]
    for kind, about in KINDS.items():
        found = report.of(kind)
        lines.append(f"{len(found):7d}  {about.title}{'  [fails the check]' if found and about.serious else ''}")
        lines += [f"           {f.name} ({', '.join(f.splits)}): {f.note}" for f in found[:limit]]
        lines += [f"           … and {len(found) - limit} more"] if len(found) > limit else []
    return lines


def write_report(report: Report, folder: Path, html: Callable[[Report], str]) -> None:
    """Write findings.csv, report.json and report.html, the page that `html` makes."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "findings.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as f:
        writer = csv.writer(f)
        writer.writerow(("kind", "fails", "name", "splits", "files", "note"))
        for x in report.findings:
            row = (x.kind, int(KINDS[x.kind].serious), x.name, " ".join(x.splits), "\n".join(x.files), x.note)
            writer.writerow(row)
    text = json.dumps(asdict(report) | {"serious": report.serious}, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    (folder / "report.html").write_text(html(report), encoding="utf-8", errors="backslashreplace")
