"""Command lines, parsed as callers of YOLOv5's `parse_opt` expect it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Range(NamedTuple):
    """What a number on a command line may be, ends included; `special` may be besides."""

    low: float
    high: float
    special: float | None = None

    def holds(self, value: object) -> bool:
        """Whether a value is a number in the range; nan is in none."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (self.low <= value <= self.high or value == self.special)

    def __str__(self) -> str:
        ends = f"{self.low:g} or more" if self.high >= _HUGE else f"between {self.low:g} and {self.high:g}"
        return ends if self.special is None else f"{self.special:g}, or {ends}"


AMP_CHOICES = ("auto", "off", "bf16", "fp16")  # of --amp
_HUGE = 1e5  # from here on an upper end only keeps other programs from failing
_COUNT, _SHARE = Range(1, 1e7), Range(0, 1)
# By the option's name; a script that takes something else says so to `parse_words`.
RANGES: Mapping[str, Range] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "imgsz": Range(1, 16384),
    "workers": Range(0, 1e5),
    "prefetch": Range(0, 1e5),
    "threads": Range(0, 1000),
    "max_det": _COUNT,
    "conf_thres": _SHARE,
    "iou_thres": _SHARE,
    "fitness_weight": _SHARE,
    "label_smoothing": Range(0, math.nextafter(1, 0)),
    "patience": Range(0, 1e7),
    "save_period": Range(-1, 1e7),
    "bootstrap": Range(0, 1e7),
    "close_mosaic": Range(0, 1e7),
    "nbs": Range(0, 1e7),
    "seed": Range(0, 2**32 - 1),
    "evolve": _COUNT,
    "freeze": Range(0, 1e5),
    "classes": Range(0, 2**24),
    "vid_stride": _COUNT,
    "line_thickness": Range(0, 1000),
    "save_format": Range(0, 1),
    "topk_all": _COUNT,
    "topk_per_class": Range(0, 1e7),
    "workspace": Range(0, 1e7),
    "seeds": Range(1, 1e5),
    "val_share": _SHARE,
    "folds": Range(2, 1000),
    "task_weights": Range(0, 1e6),
    "task_priorities": Range(1e-6, 1e6),
    "gradnorm_alpha": Range(0, 1000),
    "gradnorm_lr": Range(0, 1e6),
    "gradnorm_freeze": Range(-1, 1e7),
    "gradnorm_interval": _COUNT,
}
BY_ITSELF = {"batch_size": Range(0, 1e7), "workers": Range(-1, 1e5), "epochs": Range(0, 1e7)}  # 0 or -1: not given
MEASURED = {"batch_size": Range(1, 1e7, special=-1)}  # -1: what the device holds


def check_ranges(values: Mapping[str, object], ranges: Mapping[str, Range] = {}) -> None:
    """Refuse numbers out of their range, before anything is read or written.

    Args:
        values: Options by their names; those without a range, and None, are passed over.
        ranges: Those of a script that differ from `RANGES`.

    Raises:
        ValueError: Names the option, its value and the range.
    """
    ranges = {**RANGES, **ranges}
    for name, value in values.items():
        allowed = ranges.get(name)
        if allowed is None or value is None:
            continue
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if not allowed.holds(v):
                raise ValueError(
                    f"--{name.replace('_', '-')} {v}: must {'lie' if str(allowed)[0] == 'b' else 'be'} {allowed}"
                )


def tell_ranges(parser: argparse.ArgumentParser, ranges: Mapping[str, Range] = {}) -> None:
    """Let --help tell the range of each number; `ranges` as in `check_ranges`."""
    for action in parser._actions:  # argparse has no other way to its options
        allowed = {**RANGES, **ranges}.get(action.dest)
        if allowed and action.help != argparse.SUPPRESS:
            action.help = f"{action.help + '; ' if action.help else ''}{allowed}"


def parse_words(
    parser: argparse.ArgumentParser,
    args: list[str] | bool | None,
    known: bool = False,
    translate: Callable[[list[str]], list[str]] = list,
    ranges: Mapping[str, Range] = {},
) -> argparse.Namespace:
    """The options of a command line.

    Args:
        args: Its words; None: the program's own. True stands for `known`, which is YOLOv5's only argument here.
        known: Pass over flags that the parser does not know, such as those of a program that calls this one.
        translate: Rewrites the words before they are parsed.
        ranges: See `check_ranges`, which the caller asks; --help tells the range of each number.
    """
    tell_ranges(parser, ranges)
    if isinstance(args, bool):
        args, known = None, args
    words = translate(sys.argv[1:] if args is None else args)
    return parser.parse_known_args(words)[0] if known else parser.parse_args(words)


def filled_in(
    defaults: argparse.Namespace, options: dict, script: str, ranges: Mapping[str, Range] = {}
) -> argparse.Namespace:
    """The options of a call from Python, with a command line's defaults for those that are left out.

    Args:
        script: Named in the error.
        ranges: See `check_ranges`.

    Raises:
        TypeError: An option of an unknown name.
        ValueError: A number out of its range.
    """
    if unknown := set(options) - set(vars(defaults)):
        raise TypeError(f"{script}.run() knows no {', '.join(sorted(unknown))}; see {script}.py --help")
    check_ranges(options, ranges)
    return argparse.Namespace(**vars(defaults) | options)
