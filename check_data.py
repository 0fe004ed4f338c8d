"""Divide a data set so that no group (patient, machine, film …) stands on both sides.

    python check_data.py --data heart.yaml --group-regex '^(p\\d+)_' --folds 3 --out folds     # folds/fold0.yaml, …
    python check_data.py --data heart.yaml --group-regex '^(p\\d+)_' --split 0.8,0.1,0.1       # train, val and test

A `group:` in the data yaml serves in place of --group-regex. Nothing of the data itself is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from utils.dataset.config import DataConfig, ensure_data, load_data_config, pattern
from utils.dataset.scan import scan_dataset
from utils.dataset.split import group_table, grouped_parts, need_groups, write_folds
from utils.system.paths import ROOT, increment_path


def divide(data: DataConfig, shares: list[float], names: list[str], seed: int, folder: Path) -> list[Path]:
    """Write group-disjoint list files and yamls of the data's pictures; returns the yamls.

    Folds are made of train and val, and leave a test split as it is; a new train, val and test of all three.

    Raises:
        ValueError: a picture has no group, or the groups cannot fill the parts.
    """
    if data.group is None:
        raise ValueError("--group-regex (or `group:` in the data yaml) must say what must not be parted")
    folds = names[0].startswith("fold")
    index = scan_dataset([*data.train, *data.val, *([] if folds else data.test)], data.nc, data.cls_nc, prefix="all")
    groups = need_groups(index.im_files, data.group)
    parts = grouped_parts(index, groups, shares, seed)
    print(*group_table(index, groups, parts, names, data), sep="\n")
    return write_folds(data, index, parts, names, folder, data.group)


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    """The command line; `args` defaults to the program's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="data yaml")
    add("--group-regex", help="finds the group in a file name: '^(p\\d+)_'; with a / in it, in the whole path")
    add("--folds", type=int, help="write this many group-disjoint folds of train and val")
    add("--split", help="write a new train, val and test with these shares of the pictures: 0.8,0.1,0.1")
    add("--seed", type=int, default=0, help="another division")
    add("--out", help="folder of what is written; runs/check/exp where left out")
    return parser.parse_args(args)


def shares_of(opt: argparse.Namespace) -> tuple[list[float], list[str]]:
    """Shares of the parts and their names, as --folds or --split ask for them."""
    if opt.folds:
        if opt.folds < 2:
            raise ValueError(f"--folds {opt.folds}: at least 2")
        return [1 / opt.folds] * opt.folds, [f"fold{k}" for k in range(opt.folds)]
    try:
        shares = [float(share) for share in opt.split.split(",")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3):
        raise ValueError(f"--split {opt.split}: two or three shares are needed, such as 0.8,0.1,0.1")
    return shares, ["train", "val", "test"][: len(shares)]


def main(opt: argparse.Namespace) -> None:
    """Run the command line."""
    data = load_data_config(opt.data)
    ensure_data(data)
    data = dataclasses.replace(data, group=pattern(opt.group_regex, "--group-regex") or data.group)
    folder = Path(opt.out) if opt.out else increment_path(ROOT / "runs/check/exp")
    if not opt.folds and not opt.split:
        raise ValueError("--folds or --split says what to write")
    shares, names = shares_of(opt)
    for file in divide(data, shares, names, opt.seed, folder):
        print(f"Written: {file}")


if __name__ == "__main__":
    try:
        main(parse_opt())
    except (OSError, ValueError) as error:
        sys.exit(f"check_data.py: {error}")
