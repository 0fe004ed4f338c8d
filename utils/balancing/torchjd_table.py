"""The table of torchjd's balancers: classes, lines of --help, options. No PyTorch is imported for --help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

LR = 0.025  # of the weights that a scalarizer learns; as FAMO's and GradNorm's papers have it
VECTOR = ()  # an option that is one number per task, and is left out unless it is given


class Entry(NamedTuple):
    """A balancer of torchjd."""

    balancer: str  # class of `torchjd_adapters`
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
        "Learned", "UW", "learned uncertainty of each task (Kendall et al., CVPR 2018)", {"lr": LR}, ("lr",), "shape"
    ),
    "imtl_l": Entry(
        "Learned", "IMTLL", "learned scale of each loss (Liu et al., ICLR 2021)", {"lr": LR}, ("lr",), "shape"
    ),
    "dwa": Entry("DWA", "DWA", "weights by each epoch's rate of descent (Liu et al., CVPR 2019)", {"temperature": 2.0}),
    "famo": Entry(
        "FAMO",
        "FAMO",
        "equal relative descent from loss values alone (Liu et al., NeurIPS 2023)",
        {"lr": LR, "weight_decay": 0.001, "min_losses": VECTOR},
        size="shape",
    ),
    "geometric": Entry("Scalarized", "GeometricMean", "their geometric mean (Chennupati et al., CVPR Workshops 2019)"),
    "stch": Entry(
        "Scalarized",
        "STCH",
        "smooth maximum of the losses (Lin et al., ICML 2024)",
        {"mu": 0.1, "weights": VECTOR, "reference": VECTOR},
    ),
    "random": Entry("Scalarized", "Random", "new random weights for each batch (Lin et al., TMLR 2022)"),
    "upgrad": Entry(
        "Aggregated",
        "UPGrad",
        "each gradient projected onto the dual cone (Quinton and Rey, 2024)",
        {"pref_vector": VECTOR},
        cone=True,
        averages=True,
    ),
    "pcgrad": Entry("Aggregated", "PCGrad", "conflicting parts projected away (Yu et al., NeurIPS 2020)"),
    "mgda": Entry(
        "Aggregated",
        "MGDA",
        "shortest convex combination (Desideri 2012; Sener and Koltun, NeurIPS 2018)",
        {"epsilon": 0.001, "max_iters": 100},
        averages=True,
    ),
    "cagrad": Entry(
        "Aggregated",
        "CAGrad",
        "best worst task near the mean gradient (Liu et al., NeurIPS 2021)",
        {"c": 0.4, "norm_eps": 0.0001},
        averages=True,
    ),
    # The bound on the update's norm is off by default: it is meant for unscaled losses, and the optimiser clips.
    "nash_mtl": Entry(
        "NashMTL",
        "NashMTL",
        "Nash bargaining between the tasks (Navon et al., ICML 2022)",
        {"max_norm": 0.0, "update_weights_every": 1, "optim_niter": 20},
        size="n_tasks",
    ),
    "imtl_g": Entry(
        "Aggregated", "IMTLG", "equal projections onto all gradients (Liu et al., ICLR 2021)", averages=True
    ),
    "aligned_mtl": Entry(
        "Aggregated",
        "AlignedMTL",
        "orthogonal components of equal size (Senushkin et al., CVPR 2023)",
        {"scale_mode": "min", "pref_vector": VECTOR},
        averages=True,
        limits={"scale_mode": (lambda v: v in ("min", "median", "rmse"), "min, median or rmse")},
    ),
    "fairgrad": Entry(
        "Aggregated",
        "FairGrad",
        "alpha-fair shares (Ban and Ji, ICML 2024)",
        {"alpha": 1.0},
        limits={"alpha": (lambda v: v > 0, "positive")},
    ),
    "graddrop": Entry(
        "Aggregated",
        "GradDrop",
        "one sign drawn for each coordinate (Chen et al., NeurIPS 2020)",
        {"leak": VECTOR},
    ),
    "gradvac": Entry(
        "Aggregated",
        "GradVac",
        "cosines raised to their running mean (Wang et al., ICLR 2021)",
        {"beta": 0.5, "eps": 1e-8},
    ),
    "config": Entry(
        "Aggregated",
        "ConFIG",
        "positive projection onto all gradients (Liu et al., ICLR 2025)",
        {"pref_vector": VECTOR},
    ),
    "dualproj": Entry(
        "Aggregated",
        "DualProj",
        "mean gradient projected onto the dual cone (Lopez-Paz and Ranzato, NeurIPS 2017)",
        {"pref_vector": VECTOR},
        cone=True,
        averages=True,
    ),
    "excess_mtl": Entry(
        "Aggregated",
        "ExcessMTL",
        "weights by excess risk (He et al., ICML 2024)",
        {"robust_step_size": 1.0, "n_warmup_steps": 0},
        averages=True,
    ),
}
