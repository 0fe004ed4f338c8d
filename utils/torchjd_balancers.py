"""The balancers of the library torchjd (https://torchjd.org): scalarizers of losses, aggregators of task gradients."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.task_gradients import Balancer
from utils.torchjd_adapters import Aggregated, Scalarized

LR = 0.025  # of the weights that a scalarizer learns; as FAMO's and GradNorm's papers have it


class Entry(NamedTuple):
    """A balancer of torchjd."""

    kind: str  # "scalarization" or "aggregation", the module of torchjd that it comes from
    cls: str  # its class there
    about: str  # line in --help, with the paper
    defaults: dict[str, float] = {}  # the class's options that --balancer-option may set
    # Aggregators that average the tasks are scaled by T, so that without conflict all give the sum of the gradients
    # and the learning rate keeps its meaning.
    averages: bool = False


TORCHJD_BALANCERS: dict[str, Entry] = {
    "uw": Entry("scalarization", "UW", "learned uncertainty of each task (Kendall et al., CVPR 2018)", {"lr": LR}),
    "imtl_l": Entry("scalarization", "IMTLL", "learned scale of each loss (Liu et al., ICLR 2021)", {"lr": LR}),
    "dwa": Entry(
        "scalarization", "DWA", "weights by each epoch's rate of descent (Liu et al., CVPR 2019)", {"temperature": 2.0}
    ),
    "famo": Entry(
        "scalarization", "FAMO", "equal relative descent from loss values alone (Liu et al., NeurIPS 2023)", {"lr": LR}
    ),
    "geometric": Entry(
        "scalarization", "GeometricMean", "their geometric mean (Chennupati et al., CVPR Workshops 2019)"
    ),
    "stch": Entry("scalarization", "STCH", "smooth maximum of the losses (Lin et al., ICML 2024)", {"mu": 0.1}),
    "random": Entry("scalarization", "Random", "new random weights for each batch (Lin et al., TMLR 2022)"),
    "upgrad": Entry(
        "aggregation", "UPGrad", "each gradient projected onto the dual cone (Quinton and Rey, 2024)", averages=True
    ),
    "pcgrad": Entry("aggregation", "PCGrad", "conflicting parts projected away (Yu et al., NeurIPS 2020)"),
    "mgda": Entry(
        "aggregation",
        "MGDA",
        "shortest convex combination (Desideri 2012; Sener and Koltun, NeurIPS 2018)",
        averages=True,
    ),
    "cagrad": Entry(
        "aggregation",
        "CAGrad",
        "best worst task near the mean gradient (Liu et al., NeurIPS 2021)",
        {"c": 0.4},
        averages=True,
    ),
    "nash_mtl": Entry("aggregation", "NashMTL", "Nash bargaining between the tasks (Navon et al., ICML 2022)"),
    "imtl_g": Entry(
        "aggregation", "IMTLG", "equal projections onto all gradients (Liu et al., ICLR 2021)", averages=True
    ),
    "aligned_mtl": Entry(
        "aggregation", "AlignedMTL", "orthogonal components of equal size (Senushkin et al., CVPR 2023)", averages=True
    ),
    "fairgrad": Entry("aggregation", "FairGrad", "alpha-fair shares (Ban and Ji, ICML 2024)", {"alpha": 1.0}),
    "graddrop": Entry("aggregation", "GradDrop", "one sign drawn for each coordinate (Chen et al., NeurIPS 2020)"),
    "gradvac": Entry(
        "aggregation", "GradVac", "cosines raised to their running mean (Wang et al., ICLR 2021)", {"beta": 0.5}
    ),
    "config": Entry("aggregation", "ConFIG", "positive projection onto all gradients (Liu et al., ICLR 2025)"),
    "dualproj": Entry(
        "aggregation",
        "DualProj",
        "mean gradient projected onto the dual cone (Lopez-Paz and Ranzato, NeurIPS 2017)",
        averages=True,
    ),
    "excess_mtl": Entry(
        "aggregation",
        "ExcessMTL",
        "weights by excess risk (He et al., ICML 2024)",
        {"robust_step_size": 1.0},
        averages=True,
    ),
}


def options_of(name: str) -> dict[str, float]:
    """The options of a balancer and their defaults."""
    return TORCHJD_BALANCERS[name].defaults


def build_torchjd_balancer(
    name: str,
    num_tasks: int,
    shared: Iterable[Tensor] = (),
    params: Iterable[Tensor] | None = None,
    interval: int = 10,
    task_weights: Sequence[float] | None = None,
    **options: float,
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
    settings: dict[str, Any] = {**allowed, **options}
    lr = settings.get("lr", LR)
    if name in ("uw", "imtl_l"):
        settings = {"shape": num_tasks}
    elif name == "famo":
        settings["shape"] = num_tasks
    elif name == "nash_mtl":
        # The bound on the update's norm is off: it is meant for unscaled losses, and the optimiser clips.
        settings |= {"n_tasks": num_tasks, "max_norm": 0.0}
    try:
        if name in ("upgrad", "dualproj"):
            settings["projector"] = _dual_cone_projector()
        module = cls(**settings)
    except ImportError as error:
        extra = name.replace("_", "-")  # the error of torchjd 0.18 names one that pip does not find
        raise ValueError(f'--balancer {name} needs a solver: pip install "torchjd[{extra}]"') from error
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
