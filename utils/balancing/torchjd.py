"""The balancers of the library torchjd (https://torchjd.org): scalarizers of losses, aggregators of task gradients."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.balancing.base import Balancer
from utils.balancing.torchjd_adapters import Aggregated, Scalarized

LR = 0.025  # of the weights that a scalarizer learns; as FAMO's and GradNorm's papers have it


VECTOR = ()  # an option that is one number per task, and is left out unless it is given


class Entry(NamedTuple):
    """A balancer of torchjd."""

    kind: str  # "scalarization" or "aggregation", the module of torchjd that it comes from
    cls: str  # its class there
    about: str  # line in --help, with the paper
    # The class's options that --balancer-option may set; a value has the type of its default, VECTOR is T numbers.
    defaults: dict[str, float | int | str | tuple] = {}
    # Aggregators whose result is a weighted mean of the gradients are scaled by T, to the size of a sum.
    averages: bool = False


TORCHJD_BALANCERS: dict[str, Entry] = {
    "uw": Entry("scalarization", "UW", "learned uncertainty of each task (Kendall et al., CVPR 2018)", {"lr": LR}),
    "imtl_l": Entry("scalarization", "IMTLL", "learned scale of each loss (Liu et al., ICLR 2021)", {"lr": LR}),
    "dwa": Entry(
        "scalarization", "DWA", "weights by each epoch's rate of descent (Liu et al., CVPR 2019)", {"temperature": 2.0}
    ),
    "famo": Entry(
        "scalarization",
        "FAMO",
        "equal relative descent from loss values alone (Liu et al., NeurIPS 2023)",
        {"lr": LR, "weight_decay": 0.001, "min_losses": VECTOR},
    ),
    "geometric": Entry(
        "scalarization", "GeometricMean", "their geometric mean (Chennupati et al., CVPR Workshops 2019)"
    ),
    "stch": Entry(
        "scalarization",
        "STCH",
        "smooth maximum of the losses (Lin et al., ICML 2024)",
        {"mu": 0.1, "weights": VECTOR, "reference": VECTOR},
    ),
    "random": Entry("scalarization", "Random", "new random weights for each batch (Lin et al., TMLR 2022)"),
    "upgrad": Entry(
        "aggregation",
        "UPGrad",
        "each gradient projected onto the dual cone (Quinton and Rey, 2024)",
        {"pref_vector": VECTOR},
        averages=True,
    ),
    "pcgrad": Entry("aggregation", "PCGrad", "conflicting parts projected away (Yu et al., NeurIPS 2020)"),
    "mgda": Entry(
        "aggregation",
        "MGDA",
        "shortest convex combination (Desideri 2012; Sener and Koltun, NeurIPS 2018)",
        {"epsilon": 0.001, "max_iters": 100},
        averages=True,
    ),
    "cagrad": Entry(
        "aggregation",
        "CAGrad",
        "best worst task near the mean gradient (Liu et al., NeurIPS 2021)",
        {"c": 0.4, "norm_eps": 0.0001},
        averages=True,
    ),
    # The bound on the update's norm is off by default: it is meant for unscaled losses, and the optimiser clips.
    "nash_mtl": Entry(
        "aggregation",
        "NashMTL",
        "Nash bargaining between the tasks (Navon et al., ICML 2022)",
        {"max_norm": 0.0, "update_weights_every": 1, "optim_niter": 20},
    ),
    "imtl_g": Entry(
        "aggregation", "IMTLG", "equal projections onto all gradients (Liu et al., ICLR 2021)", averages=True
    ),
    "aligned_mtl": Entry(
        "aggregation",
        "AlignedMTL",
        "orthogonal components of equal size (Senushkin et al., CVPR 2023)",
        {"scale_mode": "min", "pref_vector": VECTOR},
        averages=True,
    ),
    "fairgrad": Entry("aggregation", "FairGrad", "alpha-fair shares (Ban and Ji, ICML 2024)", {"alpha": 1.0}),
    "graddrop": Entry(
        "aggregation",
        "GradDrop",
        "one sign drawn for each coordinate (Chen et al., NeurIPS 2020)",
        {"leak": VECTOR},
    ),
    "gradvac": Entry(
        "aggregation",
        "GradVac",
        "cosines raised to their running mean (Wang et al., ICLR 2021)",
        {"beta": 0.5, "eps": 1e-8},
    ),
    "config": Entry(
        "aggregation",
        "ConFIG",
        "positive projection onto all gradients (Liu et al., ICLR 2025)",
        {"pref_vector": VECTOR},
    ),
    "dualproj": Entry(
        "aggregation",
        "DualProj",
        "mean gradient projected onto the dual cone (Lopez-Paz and Ranzato, NeurIPS 2017)",
        {"pref_vector": VECTOR},
        averages=True,
    ),
    "excess_mtl": Entry(
        "aggregation",
        "ExcessMTL",
        "weights by excess risk (He et al., ICML 2024)",
        {"robust_step_size": 1.0, "n_warmup_steps": 0},
        averages=True,
    ),
}


def options_of(name: str) -> dict[str, float | int | str | tuple]:
    """The options of a balancer and their defaults."""
    return TORCHJD_BALANCERS[name].defaults


def parse_option(name: str, key: str, text: str, default: float | int | str | tuple) -> Any:
    """The value of `--balancer-option key=text`, of the type of its default; a VECTOR is `1,2`.

    Raises:
        ValueError: `text` is no such value.
    """
    try:
        if isinstance(default, tuple):
            return torch.tensor([float(x) for x in text.split(",")])
        return type(default)(text)
    except ValueError as error:
        what = {tuple: "numbers with commas between them", int: "a whole number"}.get(type(default), "a number")
        raise ValueError(f"--balancer-option {key}={text}: {name} takes {what} here") from error


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
    try:
        cls = getattr(importlib.import_module(f"torchjd.{entry.kind}"), entry.cls)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--balancer {name} needs torchjd 0.18 or newer: pip install torchjd ({error})") from error
    allowed = options_of(name)
    if unknown := set(options) - set(allowed):
        has = ", ".join(allowed) or "none"
        raise ValueError(f"--balancer {name} has no option {', '.join(sorted(unknown))}; its options: {has}")
    settings: dict[str, Any] = {k: v for k, v in allowed.items() if not isinstance(v, tuple)} | options
    for key, value in options.items():
        if isinstance(allowed[key], tuple) and len(value) != num_tasks:
            raise ValueError(f"--balancer-option {key}: {name} takes {num_tasks} numbers, one for each task")
    if settings.get("scale_mode", "min") not in ("min", "median", "rmse"):  # torchjd finds out at the first step
        raise ValueError(f"--balancer {name}: scale_mode is min, median or rmse, not {settings['scale_mode']}")
    if name == "fairgrad" and not settings["alpha"] > 0:
        raise ValueError(f"--balancer {name}: alpha must be positive, not {settings['alpha']}")
    lr = settings.get("lr", LR)
    if name in ("uw", "imtl_l"):
        settings = {"shape": num_tasks}
    elif name == "famo":
        settings["shape"] = num_tasks
    elif name == "nash_mtl":
        settings["n_tasks"] = num_tasks
    try:
        if name in ("upgrad", "dualproj"):
            settings["projector"] = _dual_cone_projector()
        module = cls(**settings)
    except ImportError as error:
        package = f'"torchjd[{name.replace("_", "-")}]"'  # the error of torchjd 0.18 names one that pip does not find
        package = "scipy" if name in ("upgrad", "dualproj") else package
        raise ValueError(f"--balancer {name} needs a solver: pip install {package}") from error
    except (ValueError, AssertionError) as error:
        raise ValueError(f"--balancer {name}: {error}") from error
    if entry.kind == "scalarization":
        return Scalarized(name, module, num_tasks, shared, interval, task_weights, lr)
    if params is None:
        raise ValueError(f"--balancer {name} combines gradients and needs the parameters of the network: give `params`")
    factor = float(num_tasks) if entry.averages else 1.0
    return Aggregated(name, module, num_tasks, shared, params, interval, task_weights, factor)


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
