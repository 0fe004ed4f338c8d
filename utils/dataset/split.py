"""Splits of a data set that keep groups together: no patient (machine, site, film …) on both sides.

A group is what a regular expression finds in a picture's file name: its first parenthesis, or all that it matches. With
a `/` in it, it is searched in the whole path instead (`/(patient\\d+)/`). Frames of one patient are near copies of each
other, so a split that parts them measures memory.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.dataset.config import DataConfig
from utils.dataset.files import is_label_of, read_list
from utils.dataset.scan import DatasetIndex, scan_dataset
from utils.system.yamls import load_yaml, save_yaml

FEW_GROUPS = 5  # a class in fewer groups than this gets no interval: there is too little to draw from
TRIES = 20  # shuffles of which the best is taken
MOST_PARTS = 20  # a share is kept to a twentieth


def find_groups(files: Sequence[str], regex: str) -> np.ndarray:
    """Group of every picture, str [n]; '' where the expression finds none."""
    search = re.compile(regex).search
    found = [search(Path(f).as_posix() if "/" in regex else Path(f).name) for f in map(str, files)]
    return np.array(["" if m is None else (m.group(1) or "") if m.re.groups else m.group() for m in found], np.str_)


def need_groups(files: Sequence[str], regex: str) -> np.ndarray:
    """Group of every picture, str [n]. ValueError that names the first picture without one."""
    groups = find_groups(files, regex)
    if (groups == "").any():
        first = files[int(np.argmax(groups == ""))]
        raise ValueError(
            f"{(groups == '').sum()} of {len(files)} pictures have no group: {regex!r} finds nothing in {first}"
        )
    return groups


def leaking_groups(a: Sequence[str], b: Sequence[str], regex: str) -> list[str]:
    """Groups that have pictures in both of two lists of files."""
    return sorted((set(find_groups(a, regex).tolist()) & set(find_groups(b, regex).tolist())) - {""})


def box_classes(index: DatasetIndex) -> np.ndarray:
    """One object class a picture, int [n]: the rarest of its objects' classes, -1 for a background."""
    classes = index.objects[:, 0].astype(np.int64)
    frequency = np.bincount(classes, minlength=1)
    out = np.full(len(index), -1)
    for i, (a, b) in enumerate(zip(index.object_offsets[:-1], index.object_offsets[1:], strict=True)):
        if b > a:
            out[i] = min(classes[a:b], key=lambda c: (frequency[c], c))
    return out


def grouped_parts(index: DatasetIndex, groups: np.ndarray, shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """Part of every picture, int [n], such that no group is in two parts and every part looks like the whole.

    scikit-learn's StratifiedGroupKFold on the product object class x image class, for `TRIES` shuffles, of which the
    one is taken whose parts are closest to `shares` of every class and of all pictures.

    Args:
        groups: str [n], see `need_groups`.
        shares: share of the pictures of each part; K equal ones give K folds.

    Raises:
        ValueError: shares that are none, or fewer groups than parts.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # a slow import that few runs need

    shares = np.asarray(shares, np.float64)
    if len(shares) < 2 or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"shares {shares.tolist()}: at least two, all above 0, with a sum of 1, are needed")
    count = len(np.unique(groups))
    if count < len(shares):
        raise ValueError(f"{count} groups cannot fill {len(shares)} parts")
    # Equal folds, of which part p gets pieces[p]: the fewest that come closest to the shares.
    cuts = [np.maximum(np.round(shares * n), 1).astype(int) for n in range(len(shares), min(count, MOST_PARTS) + 1)]
    cuts = [c for c in cuts if c.sum() <= count] or [np.ones(len(shares), int)]  # rounding up may ask for more groups
    pieces = min(cuts, key=lambda c: round(float(np.abs(c / c.sum() - shares).max()), 6))
    part_of_fold = np.repeat(np.arange(len(shares)), pieces)

    boxes = box_classes(index)
    kinds = np.unique(np.stack((boxes, index.image_class), 1), axis=0, return_inverse=True)[1].reshape(-1)
    if np.bincount(kinds).max() < len(part_of_fold):
        kinds = np.zeros_like(kinds)  # so few pictures of each that scikit-learn refuses to share them out
    labels = np.stack([column == value for column in (boxes, index.image_class) for value in np.unique(column)])
    counts = np.concatenate((np.ones((1, len(index))), labels)).astype(np.float64)  # all pictures, then each class
    best, least = None, np.inf
    for attempt in range(TRIES):
        folder = StratifiedGroupKFold(len(part_of_fold), shuffle=True, random_state=seed * TRIES + attempt)
        parts = np.empty(len(index), np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer pictures than folds
            for fold, (_, chosen) in enumerate(folder.split(kinds, kinds, groups)):
                parts[chosen] = part_of_fold[fold]
        got = np.stack([counts[:, parts == p].sum(1) for p in range(len(shares))]) / counts.sum(1)
        cost = float(((got / shares[:, None] - 1) ** 2).mean())
        if cost < least and len(np.unique(parts)) == len(shares):
            best, least = parts, cost
    if best is None:
        raise ValueError(f"{count} groups of such unlike sizes cannot fill {len(shares)} parts of {shares.tolist()}")
    return best


def divide(
    data: DataConfig, shares: list[float], names: list[str], seed: int, folder: Path
) -> tuple[list[Path], list[str]]:
    """Write group-disjoint list files and yamls of the data's pictures.

    Folds are made of train and val, and leave a test split as it is; a new train, val and test of all three.

    Args:
        shares, names: of the parts; names are fold0, fold1 …, or train, val and test.

    Returns:
        The yamls, and lines on how many groups of each class are where.

    Raises:
        ValueError: a picture has no group, or the groups cannot fill the parts.
    """
    if data.group is None:
        raise ValueError("--group-regex (or `group:` in the data yaml) must say what must not be parted")
    folds = names[0].startswith("fold")
    index = scan_dataset(
        [*data.train, *data.val, *([] if folds else data.test)], data.nc, data.cls_nc, root=data.path, prefix="all"
    )
    groups = need_groups(index.im_files, data.group)
    parts = grouped_parts(index, groups, shares, seed)
    table = group_table(index, groups, parts, names, data)
    return write_folds(data, index, parts, names, folder, data.group), table


def group_table(
    index: DatasetIndex, groups: np.ndarray, parts: np.ndarray, names: Sequence[str], data: DataConfig
) -> list[str]:
    """Groups and pictures of every class in every part, as lines of text."""
    rows = [("all pictures", np.ones(len(index), bool))]
    pictures = np.repeat(np.arange(len(index)), np.diff(index.object_offsets))
    for c, name in data.names.items():
        rows.append((name, np.isin(np.arange(len(index)), pictures[index.objects[:, 0] == c])))
    rows += [(name, index.image_class == c) for c, name in data.cls_names.items()]
    width = max(len(name) for name, _ in rows)
    lines = ["groups (pictures)".ljust(width) + "".join(f"{name:>14}" for name in ("all", *names))]
    for name, has in rows:
        cells = [has] + [has & (parts == p) for p in range(len(names))]
        counts = [len(np.unique(groups[c])) for c in cells]
        texts = [f"{n} ({c.sum()})" for n, c in zip(counts, cells, strict=True)]
        judged = [(part, n) for part, n in zip(names, counts[1:], strict=True) if part != "train"]
        few = ", ".join(part for part, n in judged if n < FEW_GROUPS)
        few = f"   fewer than {FEW_GROUPS} groups in {few}: no interval there" if few else ""
        lines.append(name.ljust(max(width, 17)) + "".join(f"{t:>14}" for t in texts) + few)
    return lines


def write_folds(
    data: DataConfig, index: DatasetIndex, parts: np.ndarray, names: Sequence[str], folder: Path, regex: str
) -> list[Path]:
    """Write list files and data yamls; returns the yamls.

    With `names` train, val and test: `split.yaml`, and a list file for each. With other names, folds: fold k's yaml
    validates on part k and trains on the others, and keeps the data's own test split.

    Paths in them are absolute, so that they serve from any folder.
    """
    lines = np.array(listed_paths(index), np.str_)
    folder.mkdir(parents=True, exist_ok=True)
    content = load_yaml(data.yaml_file) if data.yaml_file else {}
    for key in ("train", "val", "test", "download"):
        content.pop(key, None)
    content |= {"path": folder.resolve(), "group": regex}

    def write(stem: str, sides: dict[str, np.ndarray], more: dict) -> Path:
        lists = {}
        for side, chosen in sides.items():
            lists[side] = f"{stem}_{side}.txt"
            (folder / lists[side]).write_text("\n".join(lines[chosen]) + "\n", encoding="utf-8")
        save_yaml(folder / f"{stem}.yaml", content | lists | more)
        return folder / f"{stem}.yaml"

    if list(names) == ["train", "val", "test"][: len(names)]:
        return [write("split", {name: parts == p for p, name in enumerate(names)}, {})]
    more = {"test": data.test} if data.test else {}
    return [write(name, {"train": parts != p, "val": parts == p}, more) for p, name in enumerate(names)]


def is_fold_of(fold: DataConfig, data: DataConfig) -> bool:
    """Whether a fold, read from its yaml, divides the training and validation pictures that these data have now, and
    has their classes."""
    index = scan_dataset([*data.train, *data.val], data.nc, data.cls_nc, root=data.path, verbose=False)
    listed = [text for file in fold.train + fold.val for _, text, _ in read_list(file)]
    same = (fold.group, fold.names, fold.cls_names) == (data.group, data.names, data.cls_names)
    return same and sorted(listed) == sorted(listed_paths(index))


def listed_paths(index: DatasetIndex) -> list[str]:
    """A line of a list file for every picture."""
    return [listed_path(*pair) for pair in zip(index.im_files, index.label_files, strict=True)]


def listed_path(picture: str, label: str) -> str:
    """Line of a list file that leads to this picture and this label.

    They stand apart where the folder of the pictures is a link written as text, see `pair_with_labels`; the line then
    goes through that link. ValueError where no line can.
    """
    line = Path(picture).absolute()
    if not is_label_of(line, label):
        parts = list(Path(label).absolute().parent.parts)
        if "labels" in parts:
            parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
        line = Path(*parts) / line.name
        if not is_label_of(line, label):
            raise ValueError(f"a list file cannot name {picture} with the label {label}: rename the folder of pictures")
    if str(line).splitlines() != [str(line)] or str(line) != os.fsencode(line).decode(errors="replace"):
        raise ValueError(f"a list file cannot name {str(line)!a}: rename it")  # it is lines of UTF-8 text
    return str(line)
