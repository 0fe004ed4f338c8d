"""The balancers of the library torchjd (https://torchjd.org): scalarizers of losses, aggregators of task gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.balancing.base import Balancer
from utils.balancing.torchjd_adapters import DWA, FAMO, Aggregated, Learned, NashMTL, Scalarized

LR = 0.025  # of the weights that a scalarizer learns; as FAMO's and GradNorm's papers have it
VECTOR = ()  # an option that is one number per task, and is left out unless it is given


class Entry(NamedTuple):
    """A balancer of torchjd."""

    balancer: type[Scalarized] | type[Aggregated]
    cls: str  # torchjd's class
    about: str  # line in --help, with the paper
    # Options that --balancer-option may set; a value has the type of its default, VECTOR is T numbers.
    defaults: dict[str, float | int | str | tuple] = {}
    own: tuple[str, ...] = ()  # those of them that are the balancer's; the others go to torchjd's class
    size: str = ""  # argument of torchjd's class that is the number of tasks
    cone: bool = False  # torchjd's class takes a projection onto the dual cone
    averages: bool = False  # its result is a weighted mean of the gradients, and is scaled by T, to the size of a sum
    # Option -> whether a value will do, and that in words, where torchjd would find out at the first step.
    limits: dict[str, tuple[Callable[[Any], bool], str]] = {}


TORCHJD_BALANCERS: dict[str, Entry] = {
    "uw": Entry(
        Learned, "UW", "learned uncertainty of each task (Kendall et al., CVPR 2018)", {"lr": LR}, ("lr",), "shape"
    ),
    "imtl_l": Entry(
        Learned, "IMTLL", "learned scale of each loss (Liu et al., ICLR 2021)", {"lr": LR}, ("lr",), "shape"
    ),
    "dwa": Entry(DWA, "DWA", "weights by each epoch's rate of descent (Liu et al., CVPR 2019)", {"temperature": 2.0}),
    "famo": Entry(
        FAMO,
        "FAMO",
        "equal relative descent from loss values alone (Liu et al., NeurIPS 2023)",
        {"lr": LR, "weight_decay": 0.001, "min_losses": VECTOR},
        size="shape",
    ),
    "geometric": Entry(Scalarized, "GeometricMean", "their geometric mean (Chennupati et al., CVPR Workshops 2019)"),
    "stch": Entry(
        Scalarized,
        "STCH",
        "smooth maximum of the losses (Lin et al., ICML 2024)",
        {"mu": 0.1, "weights": VECTOR, "reference": VECTOR},
    ),
    "random": Entry(Scalarized, "Random", "new random weights for each batch (Lin et al., TMLR 2022)"),
    "upgrad": Entry(
        Aggregated,
        "UPGrad",
        "each gradient projected onto the dual cone (Quinton and Rey, 2024)",
        {"pref_vector": VECTOR},
        cone=True,
        averages=True,
    ),
    "pcgrad": Entry(Aggregated, "PCGrad", "conflicting parts projected away (Yu et al., NeurIPS 2020)"),
    "mgda": Entry(
        Aggregated,
        "MGDA",
        "shortest convex combination (Desideri 2012; Sener and Koltun, NeurIPS 2018)",
        {"epsilon": 0.001, "max_iters": 100},
        averages=True,
    ),
    "cagrad": Entry(
        Aggregated,
        "CAGrad",
        "best worst task near the mean gradient (Liu et al., NeurIPS 2021)",
        {"c": 0.4, "norm_eps": 0.0001},
        averages=True,
    ),
    # The bound on the update's norm is off by default: it is meant for unscaled losses, and the optimiser clips.
    "nash_mtl": Entry(
        NashMTL,
        "NashMTL",
        "Nash bargaining between the tasks (Navon et al., ICML 2022)",
        {"max_norm": 0.0, "update_weights_every": 1, "optim_niter": 20},
        size="n_tasks",
    ),
    "imtl_g": Entry(Aggregated, "IMTLG", "equal projections onto all gradients (Liu et al., ICLR 2021)", averages=True),
    "aligned_mtl": Entry(
        Aggregated,
        "AlignedMTL",
        "orthogonal components of equal size (Senushkin et al., CVPR 2023)",
        {"scale_mode": "min", "pref_vector": VECTOR},
        averages=True,
        limits={"scale_mode": (lambda v: v in ("min", "median", "rmse"), "min, median or rmse")},
    ),
    "fairgrad": Entry(
        Aggregated,
        "FairGrad",
        "alpha-fair shares (Ban and Ji, ICML 2024)",
        {"alpha": 1.0},
        limits={"alpha": (lambda v: v > 0, "positive")},
    ),
    "graddrop": Entry(
        Aggregated,
        "GradDrop",
        "one sign drawn for each coordinate (Chen et al., NeurIPS 2020)",
        {"leak": VECTOR},
    ),
    "gradvac": Entry(
        Aggregated,
        "GradVac",
        "cosines raised to their running mean (Wang et al., ICLR 2021)",
        {"beta": 0.5, "eps": 1e-8},
    ),
    "config": Entry(
        Aggregated,
        "ConFIG",
        "positive projection onto all gradients (Liu et al., ICLR 2025)",
        {"pref_vector": VECTOR},
    ),
    "dualproj": Entry(
        Aggregated,
        "DualProj",
        "mean gradient projected onto the dual cone (Lopez-Paz and Ranzato, NeurIPS 2017)",
        {"pref_vector": VECTOR},
        cone=True,
        averages=True,
    ),
    "excess_mtl": Entry(
        Aggregated,
        "ExcessMTL",
        "weights by excess risk (He et al., ICML 2024)",
        {"robust_step_size": 1.0, "n_warmup_steps": 0},
        averages=True,
    ),
}


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
        cls = getattr(importlib.import_module(f"torchjd.{entry.balancer.module}"), entry.cls)
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
    if issubclass(entry.balancer, Aggregated):
        if params is None:
            raise ValueError(f"--balancer {name} combines gradients and needs the parameters of the network: `params`")
        own |= {"params": params, "factor": float(num_tasks) if entry.averages else 1.0}
    return entry.balancer(name, module, num_tasks, shared, interval, task_weights, **own)


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
