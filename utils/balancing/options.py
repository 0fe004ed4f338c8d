"""The balancers by name: the table of them all, their command-line options, and how one is built."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.balancing.base import Balancer, trained
from utils.balancing.fixed import Fixed
from utils.balancing.gradnorm import GradNorm
from utils.balancing.torchjd import TORCHJD_BALANCERS, build_torchjd_balancer
from utils.system.voice import say, warn

# What --task-priorities is where it is not given, det image: detection first, since equal gradients cost the detector
# a quarter of its mAP (docs/comparison.md). (1, 1) is the published method.
DEFAULT_PRIORITIES = (1.8, 0.2)


class Entry(NamedTuple):
    """A balancer as `build_balancer` and the command line know it."""

    about: str  # line in --help, with the paper
    build: Callable[..., Balancer]  # (num_tasks, shared, params, **options)
    needs_shared: bool = False  # pointless where the tasks share no layer
    options: Mapping[str, float | int | str | tuple] = {}  # what --balancer-option may set, and the defaults
    flags: Mapping[str, str] = {}  # flag of its own -> argument
    preset: Mapping[str, Any] = {}  # arguments where their flag is not given, if they differ from the class's default


BALANCERS: dict[str, Entry] = {
    "gradnorm": Entry(
        "weights that equalise the tasks' gradients and training rates (Chen et al., ICML 2018)",
        lambda num_tasks, shared, params, **options: GradNorm(num_tasks, shared=shared, **options),
        GradNorm.needs_shared,
        {"init_steps": 10, "smoothing": 30.0, "floor": 1e-6},
        {
            "gradnorm_alpha": "alpha",
            "gradnorm_lr": "lr",
            "gradnorm_freeze": "freeze_after",
            "task_priorities": "priorities",
        },
        {"priorities": DEFAULT_PRIORITIES},
    ),
    "fixed": Entry(
        "sum with the weights of --task-weights (a tuned one is strong: Kurin et al., NeurIPS 2022)",
        lambda num_tasks, shared, params, **options: Fixed(num_tasks, shared, **options),
    ),
} | {
    name: Entry(e.about, partial(build_torchjd_balancer, name), e.balancer.needs_shared, e.defaults)
    for name, e in TORCHJD_BALANCERS.items()
}
FLAGS = [flag for entry in BALANCERS.values() for flag in entry.flags]


def build_balancer(
    name: str,
    num_tasks: int,
    shared: Iterable[Tensor] = (),
    params: Iterable[Tensor] | None = None,
    **options: Any,
) -> Balancer:
    """The balancer called `name` (a key of `BALANCERS`).

    Args:
        name: see `BALANCERS`.
        num_tasks: T; with one task every balancer is the plain loss.
        shared: W, where task gradients are measured.
        params: all trainable parameters of the network, which gradient aggregators need.
        options: keyword arguments of the balancer.

    Raises:
        ValueError: No such balancer, an option that it does not have or a value that makes no sense; a balancer of
            gradients where the tasks share no layer that trains; a package that is not installed.
    """
    if name not in BALANCERS:
        raise ValueError(f"there is no balancer '{name}'; choose one of: {', '.join(BALANCERS)}")
    shared = trained(shared)
    if num_tasks == 1:
        return Fixed(1, shared)
    if BALANCERS[name].needs_shared and not shared:
        raise ValueError(
            f"--balancer {name} needs layers that both tasks share and that are not frozen; this model has none, so "
            "nothing is there to balance: use --balancer fixed"
        )
    try:
        return BALANCERS[name].build(num_tasks, shared, params, **options)
    except TypeError as error:
        raise ValueError(f"--balancer {name} cannot take these options: {error}") from error


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


def build_balancer_from_args(
    args: argparse.Namespace,
    num_tasks: int,
    shared: Iterable[Tensor] = (),
    params: Iterable[Tensor] | None = None,
) -> Balancer:
    """The balancer that the options of `add_balancer_arguments` ask for; `shared` in the order of the layers.

    Raises:
        ValueError: see `build_balancer`.
    """
    shared = trained(shared)
    shared = shared[-1:] if args.gradnorm_layers == "last" else shared
    name = args.balancer or ("gradnorm" if shared else "fixed")
    if num_tasks == 1:
        return build_balancer(name, 1, shared)
    if not shared:
        summed = "" if args.balancer else "; their losses are added up (--balancer fixed)"
        say(f"The tasks share no layer that trains, so neither gradient can disturb the other{summed}")
    for flag in ("task_weights", "task_priorities"):
        if (given := getattr(args, flag)) is not None and len(given) != num_tasks:
            raise ValueError(f"{_dashed(flag)} needs {num_tasks} numbers, got {len(given)}")
    options: dict = {"interval": args.gradnorm_interval} | dict(BALANCERS[name].preset)
    if args.task_weights is not None:
        options["task_weights"] = args.task_weights
    options |= dict(_parse_option(name, text) for text in args.balancer_option)
    for flag in FLAGS:
        if (value := getattr(args, flag)) is None:
            continue
        if flag in BALANCERS[name].flags:
            options[BALANCERS[name].flags[flag]] = value
        else:
            warn(f"{_dashed(flag)} has no effect on --balancer {name}")
    return build_balancer(name, num_tasks, shared, params, **options)


def _dashed(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


def _parse_option(name: str, text: str) -> tuple[str, Any]:
    """Key and value of `--balancer-option key=value`, of the type of its default; numbers per task are `1,2`.

    Raises:
        ValueError: no such option, or no such value.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--balancer-option takes KEY=VALUE, not '{text}'")
    allowed, flags = BALANCERS[name].options, BALANCERS[name].flags
    if key not in allowed:
        own = [f"use {_dashed(flag)}" for flag, argument in flags.items() if argument == key]
        hint = own[0] if own else f"its options: {', '.join(allowed) or 'none'}"
        raise ValueError(f"--balancer {name} has no option {key} of --balancer-option; {hint}")
    default = allowed[key]
    try:
        if isinstance(default, tuple):
            return key, torch.tensor([float(x) for x in value.split(",")])
        return key, type(default)(value)
    except ValueError as error:
        what = {tuple: "numbers with commas between them", int: "a whole number"}.get(type(default), "a number")
        raise ValueError(f"--balancer-option {text}: {name} takes {what} here") from error
