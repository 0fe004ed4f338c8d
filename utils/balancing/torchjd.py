"""The balancers of the library torchjd (https://torchjd.org): scalarizers of losses, aggregators of task gradients."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.balancing import torchjd_adapters
from utils.balancing.base import Balancer
from utils.balancing.torchjd_adapters import Aggregated, Scalarized
from utils.balancing.torchjd_table import TORCHJD_BALANCERS


def balancer_class(name: str) -> type[Scalarized] | type[Aggregated]:
    """What makes a balancer of torchjd's class of that name."""
    return getattr(torchjd_adapters, TORCHJD_BALANCERS[name].balancer)


def build_torchjd_balancer(
    name: str,
    num_tasks: int,
    shared: Iterable[Tensor] = (),
    params: Iterable[Tensor] | None = None,
    interval: int = 10,
    task_weights: Sequence[float] | None = None,
    **options: Any,
) -> Balancer:
    """The balancer `name` of `TORCHJD_BALANCERS`; see `utils.balancing.build_balancer`.

    Raises:
        ValueError: unknown option; torchjd or one of its extras is missing; an aggregator without parameters.
    """
    entry = TORCHJD_BALANCERS[name]
    balancer = balancer_class(name)
    try:
        cls = getattr(importlib.import_module(f"torchjd.{balancer.module}"), entry.cls)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--balancer {name} needs torchjd 0.18 or newer: pip install torchjd ({error})") from error
    if unknown := set(options) - set(entry.defaults):
        has = ", ".join(entry.defaults) or "none"
        raise ValueError(f"--balancer {name} has no option {', '.join(sorted(unknown))}; its options: {has}")
    for key, value in options.items():
        if isinstance(entry.defaults[key], tuple) and len(value) != num_tasks:
            raise ValueError(f"--balancer-option {key}: {name} takes {num_tasks} numbers, one for each task")
        if key in entry.limits and not entry.limits[key][0](value):
            raise ValueError(f"--balancer {name}: {key} must be {entry.limits[key][1]}, not {value}")
    settings: dict[str, Any] = {k: v for k, v in entry.defaults.items() if not isinstance(v, tuple)} | options
    own = {key: settings.pop(key) for key in entry.own}
    if entry.size:
        settings[entry.size] = num_tasks
    try:
        if entry.cone:
            settings["projector"] = _dual_cone_projector()
        module = cls(**settings)
    except ImportError as error:
        package = f'"torchjd[{name.replace("_", "-")}]"'  # the error of torchjd 0.18 names one that pip does not find
        raise ValueError(
            f"--balancer {name} needs a solver: pip install {'scipy' if entry.cone else package}"
        ) from error
    except (ValueError, AssertionError) as error:
        raise ValueError(f"--balancer {name}: {error}") from error
    if issubclass(balancer, Aggregated):
        if params is None:
            raise ValueError(f"--balancer {name} combines gradients and needs the parameters of the network: `params`")
        own |= {"params": params, "factor": float(num_tasks) if entry.averages else 1.0}
    return balancer(name, module, num_tasks, shared, interval, task_weights, **own)


def _dual_cone_projector():
    """Projection onto the dual cone by non-negative least squares; torchjd's own needs two packages more.

    min v'Gv subject to v >= u, with v = u + x and G = R'R, is min |Rx + Ru|^2 subject to x >= 0.
    """
    from scipy.optimize import nnls
    from torchjd.linalg import DualConeProjector

    class NnlsProjector(DualConeProjector):
        def __call__(self, U: Tensor, G: Tensor) -> Tensor:
            matrix = G.detach().cpu().double()
            eye = torch.eye(len(matrix), dtype=torch.float64)
            # A unit trace and a small ridge, as torchjd does, so that parallel gradients can be factored.
            root = torch.linalg.cholesky(matrix / matrix.trace().clamp_min(1e-300) + 1e-4 * eye, upper=True)
            rows = U.detach().cpu().double().reshape(-1, len(matrix))
            out = [u + torch.from_numpy(nnls(root.numpy(), -(root @ u).numpy())[0]) for u in rows]
            return torch.stack(out).reshape(U.shape).to(G)

    return NnlsProjector()
