"""Check a data set, or divide it so that no group (patient, machine, film …) stands on both sides.

    python check_data.py --data heart.yaml --group-regex '^(p\\d+)_' --clip-regex '^(p\\d+_c\\d+)_'   # a report
    python check_data.py --data heart.yaml --group-regex '^(p\\d+)_' --folds 3 --out folds     # folds/fold0.yaml, …
    python check_data.py --data heart.yaml --group-regex '^(p\\d+)_' --split 0.8,0.1,0.1       # train, val and test

The report is printed and written as report.html (with the pictures), findings.csv and report.json. The exit code is 1
where something was found that fails the check, 2 where no check could be made.

A `group:` in the data yaml serves in place of --group-regex. Nothing of the data itself is changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from utils.system.arguments import check_ranges, parse_words
from utils.system.paths import ROOT, find_file, increment_path


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    """The command line; `args` defaults to the program's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="data yaml")
    add("--group-regex", help="finds the group in a file name: '^(p\\d+)_'; with a / in it, in the whole path")
    add("--clip-regex", help="the same for clips, whose frames should be in one split and of one image class")
    add("--cfg", default="yolov5s.yaml", help="model yaml whose anchors the boxes are compared with")
    add("--hyp", default="hyp.scratch-low.yaml", help="hyperparameter yaml: its anchor_t")
    add("--imgsz", "--img", "--img-size", type=int, default=640, help="longest side of the network input, pixels")
    add("--folds", type=int, metavar="K", help="write this many group-disjoint folds of train and val")
    add(
        "--split",
        metavar="SHARES",
        help="write a new train, val and test with these shares of the pictures: 0.8,0.1,0.1",
    )
    add("--seed", type=int, default=0, help="another division")
    add("--out", help="folder of what is written; runs/check/exp where left out")
    return parse_words(parser, args)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


import numpy as np

from utils.dataset.check_page import report_page
from utils.dataset.checks import Report, check, report_lines, write_report
from utils.dataset.config import SPLITS, DataConfig, ensure_data, load_data_config, load_hyp, pattern
from utils.dataset.scan import scan_dataset
from utils.dataset.split import divide
from utils.system.command_line import one_sentence
from utils.system.voice import say
from utils.system.yamls import load_yaml


def inspect(data: DataConfig, opt: argparse.Namespace, folder: Path) -> Report:
    """Check every split that the data yaml names, print what was found and write it to `folder`."""
    indexes = {
        split: scan_dataset(getattr(data, split), data.nc, data.cls_nc, root=data.path, prefix=split)
        for split in SPLITS
        if getattr(data, split)
    }
    anchors = load_yaml(find_file(opt.cfg)).get("anchors")
    fixed = isinstance(anchors, list)  # else a number of them, which are fitted to the labels
    anchors = np.array(anchors, np.float64).reshape(-1, 2) if fixed else None
    anchor_t = float(load_hyp(find_file(opt.hyp, (ROOT / "data/hyps",)))["anchor_t"])
    report = check(indexes, data, pattern(opt.clip_regex, "--clip-regex"), anchors, opt.imgsz, anchor_t)
    boxes = {str(f): index.labels(i) for index in indexes.values() for i, f in enumerate(index.im_files)}
    say(*report_lines(report))
    write_report(report, folder, lambda r: report_page(r, f"Data check: {Path(opt.data).name}", boxes))
    say(f"Written: {folder / 'report.html'}, findings.csv, report.json")
    return report


def shares_of(opt: argparse.Namespace) -> tuple[list[float], list[str]]:
    """Shares of the parts and their names, as --folds or --split ask for them."""
    if opt.folds:
        return [1 / opt.folds] * opt.folds, [f"fold{k}" for k in range(opt.folds)]
    try:
        shares = [float(share) for share in opt.split.split(",")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3):
        raise ValueError(f"--split {opt.split}: two or three shares are needed, such as 0.8,0.1,0.1")
    return shares, ["train", "val", "test"][: len(shares)]


def main(opt: argparse.Namespace) -> int:
    """Run the command line; returns the exit code."""
    check_ranges(vars(opt))
    data = load_data_config(opt.data)
    ensure_data(data, [split for split in SPLITS if getattr(data, split)])
    data = dataclasses.replace(data, group=pattern(opt.group_regex, "--group-regex") or data.group)
    folder = Path(opt.out) if opt.out else increment_path(ROOT / "runs/check/exp")
    if not opt.folds and not opt.split:
        return int(inspect(data, opt, folder).serious)
    shares, names = shares_of(opt)
    files, table = divide(data, shares, names, opt.seed, folder)
    say(*table, *(f"Written: {file}" for file in files))
    return 0


if __name__ == "__main__":
    with one_sentence("check_data.py", code=2):
        sys.exit(main(parse_opt()))
