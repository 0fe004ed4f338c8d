"""A balancer from its name, or from the options of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from utils.balancing.base import Balancer, trained
from utils.balancing.fixed import Fixed
from utils.balancing.gradnorm import GradNorm
from utils.balancing.options import BALANCERS, FLAGS
from utils.balancing.torchjd import balancer_class, build_torchjd_balancer
from utils.system.voice import say, warn

OWN: dict[str, type[Balancer]] = {"gradnorm": GradNorm, "fixed": Fixed}  # the others are torchjd's


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
    own = OWN.get(name)
    if (own or balancer_class(name)).needs_shared and not shared:
        raise ValueError(
            f"--balancer {name} needs layers that both tasks share and that are not frozen; this model has none, so "
            "nothing is there to balance: use --balancer fixed"
        )
    params = None if params is None else list(params)
    device = next((p.device for p in params or shared), torch.device("cpu"))
    options = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in options.items()}
    try:
        if own:
            return own(num_tasks, shared=shared, **options)
        balancer = build_torchjd_balancer(name, num_tasks, shared, params, **options)
    except TypeError as error:
        raise ValueError(f"--balancer {name} cannot take these options: {error}") from error
    balancer.home = device
    return balancer


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
