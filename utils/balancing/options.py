"""The balancers by name: the table of them all, and their command-line options. No PyTorch is imported for --help."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.balancing.torchjd_table import TORCHJD_BALANCERS

# What --task-priorities is where it is not given, det image: detection first, since equal gradients cost the detector
# a quarter of its mAP (docs/comparison.md). (1, 1) is the published method.
DEFAULT_PRIORITIES = (1.8, 0.2)


class Entry(NamedTuple):
    """A balancer as the command line knows it; `utils.balancing.build` makes it."""

    about: str  # line in --help, with the paper
    options: Mapping[str, float | int | str | tuple] = {}  # what --balancer-option may set, and the defaults
    flags: Mapping[str, str] = {}  # flag of its own -> argument
    preset: Mapping[str, Any] = {}  # arguments where their flag is not given, if they differ from the class's default


BALANCERS: dict[str, Entry] = {
    "gradnorm": Entry(
        "weights that equalise the tasks' gradients and training rates (Chen et al., ICML 2018)",
        {"init_steps": 10, "smoothing": 30.0, "floor": 1e-6},
        {
            "gradnorm_alpha": "alpha",
            "gradnorm_lr": "lr",
            "gradnorm_freeze": "freeze_after",
            "task_priorities": "priorities",
        },
        {"priorities": DEFAULT_PRIORITIES},
    ),
    "fixed": Entry("sum with the weights of --task-weights (a tuned one is strong: Kurin et al., NeurIPS 2022)"),
} | {name: Entry(e.about, e.defaults) for name, e in TORCHJD_BALANCERS.items()}
FLAGS = [flag for entry in BALANCERS.values() for flag in entry.flags]


def add_balancer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the balancers to a command line."""
    listing = ";\n".join(f"  {name:12} {entry.about}" for name, entry in BALANCERS.items())
    group = parser.add_argument_group(
        "balancing the tasks", f"--balancer NAME sets how the losses of both tasks are combined:\n{listing}"
    )
    add = group.add_argument
    automatic = "default: gradnorm, or fixed where the tasks share no layer"
    add("--balancer", choices=list(BALANCERS), metavar="NAME", help=automatic)
    weights = "(initial) weights: det image; with fixed a 0 switches a task off"
    add("--task-weights", type=float, nargs="+", metavar="W", help=weights)
    priorities = "how hard a task may pull at the shared layers under gradnorm: det image; 1 1 is the published method"
    default = " ".join(f"{p:g}" for p in DEFAULT_PRIORITIES)
    add("--task-priorities", type=float, nargs="+", metavar="P", help=f"{priorities} (default {default})")
    add("--gradnorm-alpha", type=float, help="how strongly a lagging task gains weight (default 1.5)")
    add("--gradnorm-lr", type=float, help="largest change of a log weight by one update (default 0.2)")
    interval = "optimiser steps between measurements of the task gradients (by other balancers for the record only)"
    add("--gradnorm-interval", type=int, default=10, help=interval)
    layers = "measure task gradients at the last layer that the tasks share, or at that of every neck level"
    add("--gradnorm-layers", choices=("all", "last"), default="last", help=layers)
    more = "further options: " + "; ".join(f"{n} {' '.join(e.options)}" for n, e in BALANCERS.items() if e.options)
    add("--balancer-option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=more)
    add("--gradnorm-freeze", type=int, metavar="EPOCHS", help="keep the weights after so many epochs")
