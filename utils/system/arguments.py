"""Command lines, parsed as callers of YOLOv5's `parse_opt` expect it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def parse_words(
    parser: argparse.ArgumentParser,
    args: list[str] | bool | None,
    known: bool = False,
    translate: Callable[[list[str]], list[str]] = list,
) -> argparse.Namespace:
    """The options of a command line.

    Args:
        args: Its words; None: the program's own. True stands for `known`, which is YOLOv5's only argument here.
        known: Pass over flags that the parser does not know, such as those of a program that calls this one.
        translate: Rewrites the words before they are parsed.
    """
    if isinstance(args, bool):
        args, known = None, args
    words = translate(sys.argv[1:] if args is None else args)
    return parser.parse_known_args(words)[0] if known else parser.parse_args(words)


def filled_in(defaults: argparse.Namespace, options: dict, script: str) -> argparse.Namespace:
    """The options of a call from Python, with a command line's defaults for those that are left out.

    Args:
        script: Named in the error.

    Raises:
        TypeError: An option of an unknown name.
    """
    if unknown := set(options) - set(vars(defaults)):
        raise TypeError(f"{script}.run() knows no {', '.join(sorted(unknown))}; see {script}.py --help")
    return argparse.Namespace(**vars(defaults) | options)
