"""Command-line options of `train_joint.py`: YOLOv5's under their names, old ones of its earlier releases, our own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils.system.arguments import AMP_CHOICES
from utils.system.paths import ROOT
from utils.system.voice import say

OPTIMIZERS = ("SGD", "Adam", "AdamW", "Muon")
# YOLOv5's, without effect here
CLOUD = {"bucket": "", "entity": None, "upload_dataset": False, "bbox_interval": -1, "artifact_alias": "latest"}

RENAMED = {"--notest": "--noval", "--cache-images": "--cache", "--save_period": "--save-period"}  # since v5.0


class Options(argparse.Namespace):
    """A parsed command line that nothing changes any more: what its options came to stands beside it, not in it."""

    def __init__(self, **options) -> None:
        vars(self).update(options)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"options are parsed once: {name} cannot become {value!r} now")

    def but(self, **changed) -> Options:
        """These options with others in the place of some."""
        return Options(**vars(self) | changed)


def todays_names(args: Sequence[str]) -> list[str]:
    """A command line with flags that YOLOv5 renamed under their names of today.

    They are no options of the parser, where they would make abbreviations ambiguous.
    """
    words = [word.partition("=") for word in args]
    return [RENAMED.get(name, name) + equals + value for name, equals, value in words]


def training_parser(description: str) -> argparse.ArgumentParser:
    """The parser of all options but the balancers'; `description` opens its --help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", default="", help="start from this checkpoint: ours or any YOLOv5 .pt; empty trains from scratch")
    add("--cfg", default="", help="model yaml; empty: the weights' own structure, or yolov5s(_cls).yaml from scratch")
    add("--data", default="data/coco128.yaml", help="data yaml")
    add("--hyp", default="data/hyps/hyp.scratch-low.yaml", help="hyperparameter yaml")
    add("--epochs", type=int, default=100)
    add("--batch-size", type=int, default=16, help="pictures a step over all devices; -1: what one GPU's memory holds")
    add("--imgsz", "--img", "--img-size", type=int, default=640, help="side of the training pictures in pixels")
    add("--rect", action="store_true", help="rectangular batches: pictures of one aspect ratio together")
    add(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        help="continue the latest run, the given last.pt, or, with the word auto, the latest unfinished run in "
        "--project/--name where there is one (else a new one starts): for jobs that a cluster starts again",
    )
    add("--nosave", action="store_true", help="write checkpoints only after the last epoch")
    add("--noval", action="store_true", help="validate only after the last epoch")
    add("--noautoanchor", action="store_true", help="do not check the anchors against the labels")
    add("--noplots", action="store_true", help="draw no pictures")
    add("--evolve", type=int, nargs="?", const=300, help="evolve the hyperparameters for this many generations")
    add("--evolve_population", default="data/hyps", help="folder of hyperparameter yamls to start evolving from")
    add("--resume_evolve", default=None, help="evolve.csv of an earlier evolution to continue")
    add("--cache", nargs="?", const="ram", choices=["ram", "disk"], help="keep decoded pictures in memory or on disk")
    add("--image-weights", action="store_true", help="draw pictures by how badly their classes are detected")
    add("--device", default="", help="cpu, 0, 0,1, mps; empty is the best there is")
    add("--multi-scale", action="store_true", help="vary the picture size by ±50 %%")
    add("--single-cls", action="store_true", help="treat all object classes as one")
    add(
        "--optimizer",
        choices=("auto", *OPTIMIZERS),
        default="auto",
        help="auto: Muon in runs of fewer than 10,000 batches, else SGD",
    )
    add("--sync-bn", action="store_true", help="synchronised batch norm, with several GPUs")
    add("--workers", type=int, default=8, help="most data-loading processes (per rank)")
    add("--project", default=ROOT / "runs/train", help="folder of the runs")
    add("--name", default="exp", help="folder of this run")
    add("--exist-ok", action="store_true", help="write into an existing run folder")
    add("--quad", action="store_true", help="quad batches: a quarter of the pictures at twice the size")
    add("--cos-lr", action="store_true", help="cosine instead of linear learning-rate schedule")
    add("--label-smoothing", type=float, default=0.0, help="label smoothing of the object classes")
    add("--patience", type=int, default=100, help="stop after this many epochs without a better fitness; 0 never")
    add("--freeze", type=int, nargs="+", default=[0], help="layers to freeze: a number N (0 … N-1) or a list")
    add("--save-period", type=int, default=-1, help="also keep a checkpoint every N epochs")
    add("--seed", type=int, default=0)
    add("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    for name in ("--adam", "--linear-lr"):  # YOLOv5's until v6.0
        add(name, action="store_true", help=argparse.SUPPRESS)
    for name, default in CLOUD.items():
        add(f"--{name}", nargs="?", const=True, default=default, help=argparse.SUPPRESS)
    new = parser.add_argument_group("beyond YOLOv5")
    add = new.add_argument
    add("--strict", action="store_true", help="stop if any picture or label row had to be left out")
    add("--group-regex", help="finds the group (patient …) in a file name, to warn of groups in train and in val")
    add("--fitness-weight", type=float, default=0.5, help="share of the image accuracy in the fitness of a joint model")
    add("--close-mosaic", type=int, default=10, help="train the last N epochs without mosaic")
    add(
        "--image-gradient",
        type=float,
        metavar="F",
        help="factor of the gradient that the image branch sends into the detector; 0: none, which leaves the detector "
        "as it would be alone; between 0 and 1 with a fixed sum, since GradNorm makes up for it (default: the model "
        "yaml's, else 1)",
    )
    add("--nbs", type=int, default=0, help="accumulate gradients to about so many pictures; 0: 64, one batch with Muon")
    add("--amp", choices=AMP_CHOICES, default="auto", help="auto: float16 on CUDA, bfloat16 on processors that have it")
    add("--memory-format", choices=["auto", "channels_last", "contiguous"], default="auto")
    add("--deterministic", action="store_true", help="ask torch for repeatable kernels on GPUs too (slower)")
    return parser


def follow_old_flags(opt: Options) -> Options:
    """The options with what flags of earlier releases of YOLOv5 ask for, and a word on each.

    Raises:
        ValueError: One contradicts a flag that took its place.
    """
    if opt.adam and opt.optimizer not in ("auto", "Adam"):
        raise ValueError(f"--adam contradicts --optimizer {opt.optimizer}: leave one of them out")
    if opt.linear_lr and opt.cos_lr:
        raise ValueError("--linear-lr contradicts --cos-lr: leave one of them out")
    if opt.adam:
        say("--adam: taken as --optimizer Adam, which it is called since YOLOv5 v6.1")
        opt = opt.but(optimizer="Adam")
    if opt.linear_lr:
        say("--linear-lr: without effect, the schedule is linear where --cos-lr is not given")
    if cloud := [f"--{name}" for name, default in CLOUD.items() if getattr(opt, name) != default]:
        say(f"{', '.join(cloud)}: without effect, since nothing is sent to a cloud service")
    return opt
