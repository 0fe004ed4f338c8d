"""Compare ways to join the tasks with each task alone, under one budget.

    python compare_joint.py --data heart.yaml --strategies gradnorm fixed:1,0.1 detach dual det-only cls-only \\
        --seeds 3 --epochs 20 --folds 3 --group-regex '^(p\\d+)_' --img 320 --cache ram

A strategy is `joint` (the defaults), `detach` (the image branch sends no gradient back), `dual` (two backbones),
`det-only`, `cls-only`, `gradnorm-equal` (GradNorm as published; `gradnorm` is the default), a balancer with or without
task weights (`uw`, `fixed:1,0.01`), or NAME='OPTIONS' with any options of train_joint.py for the joint network. Options
that are not listed below go to every training.

The same command again goes on: finished runs are kept, a cut one is resumed, failed ones are tried again. What a run
read (pictures, labels, classes, the files that options name) must be as it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from utils.system.arguments import check_ranges, tell_ranges
from utils.system.paths import ROOT

STRATEGIES = (
    "joint", "gradnorm-equal", "fixed:1,1", "fixed:1,0.1", "fixed:1,0.01", "uw", "upgrad", "detach", "dual", "det-only",
    "cls-only",
)  # fmt: skip


def parse_opt(args: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it goes to every training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", required=True, help="data yaml")
    add("--strategies", nargs="+", default=list(STRATEGIES), metavar="STRATEGY", help="see above")
    add("--model", default="yolov5n", help="the networks are MODEL.yaml, MODEL_cls.yaml and MODEL_dual.yaml")
    add("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    add("--epochs", type=int, default=20)
    add("--folds", type=int, metavar="K", help="on K group-disjoint folds of train and val in place of these splits")
    add(
        "--group-regex",
        help="finds the group (patient …) in a file name; or `group:` in the data. For folds, intervals",
    )
    add("--out", help="folder of runs and report; runs/compare/NAME of the data yaml where left out")
    add("--device", default="", help="cpu, or GPUs such as 0,1: one run each; empty: the best one")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="run on a Ray cluster (pip install ray)")
    tell_ranges(parser)
    return parser.parse_known_args(args)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


import torch

from compare.report import write_report
from compare.results import read_run
from compare.runs import Job, parse_strategy, plan, run_all, run_on_ray
from utils.dataset.config import DataConfig, ensure_data, load_data_config, pattern
from utils.dataset.scan import scan_dataset
from utils.dataset.split import divide, is_fold_of, need_groups
from utils.system.command_line import one_sentence
from utils.system.voice import say, warn


def data_yamls(data: DataConfig, opt: argparse.Namespace, out: Path) -> dict[str, Path]:
    """Data yamls by the name that the report gives them: the data's own, or folds, which are made once.

    Raises:
        ValueError: folds without groups, or other folds, or of other pictures, than those in `out`.
    """
    if not opt.folds:
        return {"published": Path(data.yaml_file)}
    names = [f"fold{k}" for k in range(opt.folds)]
    folder = out / "folds"
    if not folder.exists():
        say(*divide(data, [1 / opt.folds] * opt.folds, names, 0, folder)[1])
    files = {name: folder / f"{name}.yaml" for name in names}
    there = sorted(folder.glob("fold*.yaml"))
    if there != sorted(files.values()) or not is_fold_of(load_data_config(there[0]), data):
        raise ValueError(
            f"{folder} holds other folds, or folds of other pictures or classes, than asked for: choose another --out"
        )
    return files


def contents(yamls: dict[str, Path], single_cls: bool) -> dict[str, str]:
    """Hash of the classes, pictures and labels of each data yaml: runs on others are not compared."""
    out = {}
    for name, file in yamls.items():
        data = load_data_config(file)
        found = hashlib.sha256(repr((data.names, data.cls_names)).encode())
        for split in (data.train, data.val):
            index = scan_dataset(split, data.nc, data.cls_nc, single_cls=single_cls, root=data.path, verbose=False)
            found.update(index.digest(data.path).encode())
        out[name] = found.hexdigest()[:16]
    return out


def usable_pattern(yamls: Iterable[Path], group: str | None) -> str:
    """The pattern where it finds a group in every picture that is validated on, else '', with a line on why."""
    if not group:
        return ""
    for file in yamls:
        data = load_data_config(file)
        try:
            found = scan_dataset(data.val, data.nc, data.cls_nc, root=data.path, prefix="val", verbose=False)
            need_groups(found.im_files, group)
        except (OSError, ValueError) as error:
            warn(f"no intervals over groups: {error}")
            return ""
    return group


def main(opt: argparse.Namespace, budget: list[str]) -> int:
    """Run the command line; returns the exit code, 1 where a run failed."""
    check_ranges(vars(opt))
    data = load_data_config(opt.data)
    ensure_data(data)
    data = dataclasses.replace(data, group=pattern(opt.group_regex, "--group-regex") or data.group)
    strategies = [parse_strategy(text) for text in opt.strategies]
    own = {s.name for s in strategies if any(word.partition("=")[0] == "--cfg" for word in s.options)}
    if joint := [s.name for s in strategies if s.ending and s.name not in own and not data.cls_nc]:
        raise ValueError(f"{data.source}: has no image classes (cls_nc), which {', '.join(joint)} would learn")
    out = Path(opt.out or ROOT / "runs/compare" / Path(opt.data).stem).absolute()
    out.mkdir(parents=True, exist_ok=True)
    yamls = data_yamls(data, opt, out)
    group = usable_pattern(yamls.values(), data.group)
    read = contents(yamls, "--single-cls" in budget)
    jobs = plan(strategies, range(opt.seeds), yamls, opt.model, budget, opt.epochs, out, group, read)
    failed: dict[str, str] = {}
    try:
        if opt.ray:
            run_on_ray(jobs, opt.ray, int(opt.device != "cpu" and torch.cuda.is_available()), failed)
        else:
            run_all(jobs, devices(opt.device), failed)
    finally:  # what is finished may be read, where this is stopped too
        finish(jobs, failed, out, data.group)
    return int(bool(failed))


def devices(text: str) -> list[str]:
    """Devices that get a run each: GPUs of a list, else the one that is named ('' lets each run choose)."""
    numbers = text.strip().removeprefix("cuda:").split(",")
    return numbers if all(number.strip().isdigit() for number in numbers) else [text]


def finish(jobs: list[Job], failed: dict[str, str], out: Path, group: str | None) -> None:
    """Write the report of what is finished; `failed` gets the runs whose figures cannot be read, too."""
    runs = []
    for job in jobs:
        try:
            runs += [read_run(job)] if job.finished else []
        except (OSError, ValueError, LookupError, TypeError) as error:  # of this run's files alone
            failed[job.name] = f"its figures cannot be read ({error}); without {job.folder} it is run anew"
    if runs:
        write_report(runs, failed, out, ["python", "compare_joint.py", *sys.argv[1:]], group, len(jobs))
        say(f"Written: {out / 'report.html'}, report.md, results.csv")
    for name, reason in failed.items():
        warn(f"failed: {name}: {reason}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # the logs of the runs are read while they grow
    with one_sentence("compare_joint.py"):
        sys.exit(main(*parse_opt()))
