"""The network that a training's options ask for: from a yaml, from weights, with frozen layers."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path

from models.load import find_weights
from models.yolo import Model
from utils.dataset.config import DataConfig
from utils.system.paths import ROOT, find_file
from utils.weights.checkpoint import Checkpoint, load_checkpoint


def build_model(
    opt: Namespace,
    data: DataConfig,
    hyp: Mapping,
    resumed: Checkpoint | None = None,
    say: Callable[[str], None] = print,
    report: Callable[[], Path] | None = None,
) -> tuple[Model, list[str]]:
    """The network from `opt.cfg`, from the structure of `opt.weights`, or from the checkpoint of a run to resume.

    Names come from the data, layers of `opt.freeze` are frozen, and `say` is told what was transferred.

    Args:
        report: Names a file for the whole lists of what was transferred, left out or is new; asked when they are
            known, so that weights that are refused leave no folder behind.

    Returns:
        The network, and the names of the tensors that were taken from `opt.weights`.

    Raises:
        FileNotFoundError: No such yaml or weights.
        ValueError: The model has an image branch and the data no image classes, the yaml cannot be built, or every
            layer is frozen.
    """
    taken: list[str] = []
    checkpoint = resumed or (load_checkpoint(find_weights(opt.weights)) if opt.weights else None)
    if resumed:
        model = Model.from_checkpoint(checkpoint, averaged=False)
    else:
        cfg = opt.cfg or (None if checkpoint else f"yolov5s{'_cls' if data.cls_nc else ''}.yaml")
        cfg = find_file(cfg, (ROOT / "models", ROOT / "models/hub")) if cfg else deepcopy(checkpoint.model_yaml)
        anchors = round(hyp.get("anchors") or 0) or None  # per level; the yaml's where the hyps have none
        model = Model(cfg, nc=data.nc, cls_nc=data.cls_nc or None, anchors=anchors)
        if checkpoint:
            chosen = ("anchors",) if opt.cfg or anchors else ()  # the user's own are not replaced by the checkpoint's
            taken = transfer(model, checkpoint, chosen, say, report)
    if model.cls_nc and not data.cls_nc:
        raise ValueError(
            f"{data.source}: the model {opt.cfg or opt.weights} has an image branch, but the data name no image "
            "classes; add `cls_nc:` and `cls_names:` to the data yaml, or train a plain model such as yolov5s.yaml"
        )
    if data.cls_nc and not model.cls_nc:
        say(f"Note: {data.source} has image labels, but the model has no image branch (use a *_cls.yaml): unused")
    if opt.image_gradient is not None:
        if not hasattr(model.image_head, "gradient"):
            raise ValueError("--image-gradient: the model has no image branch that reads the detector's maps")
        if not 0 <= opt.image_gradient < math.inf:
            raise ValueError(f"--image-gradient {opt.image_gradient}: a number from 0 on is needed")
        model.image_head.gradient = opt.image_gradient
    model.names, model.cls_names = data.names, data.cls_names if model.cls_nc else {}
    freeze = opt.freeze if len(opt.freeze) > 1 else range(opt.freeze[0])
    for name, p in model.named_parameters():
        if any(name.startswith(f"model.{i}.") for i in freeze):
            p.requires_grad = False
    if frozen := sum(not p.requires_grad for p in model.parameters()):
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f"--freeze {' '.join(map(str, opt.freeze))}: freezes every layer, so nothing would be trained"
            )
        say(f"Frozen: {frozen} tensors of layers {list(freeze)}")
    return model, taken


def transfer(
    model: Model,
    checkpoint: Checkpoint,
    exclude: Iterable[str] = (),
    say: Callable[[str], None] = print,
    report: Callable[[], Path] | None = None,
) -> list[str]:
    """Takes over the weights that fit, and tells which did, which were left out and which are new.

    Returns:
        Names of the tensors taken.
    """
    own = {k: list(v.shape) for k, v in model.state_dict().items()}
    theirs = {k: list(v.shape) for k, v in checkpoint.state_dict.items()}
    taken, left_out, new = model.transfer(checkpoint.state_dict, exclude=tuple(exclude))
    say(f"Transferred from {checkpoint.file}: {len(taken)} tensors taken, {len(left_out)} left out, {len(new)} new")
    everything = own | theirs
    say(f"  taken: {layers(taken, everything)}" if taken else "  WARNING: nothing fits: this trains from scratch")
    for what, names in (("left out", left_out), ("new", new)):
        if names:
            say(f"  {what}: {layers(names, everything)}: {shorten(names)}")
    if report:

        def why(k: str) -> str:
            if k not in own:
                return "not in this model"
            return f"here {own[k]}" if own[k] != theirs[k] else "the model's own are kept"

        lines = [f"taken     {k} {theirs[k]}" for k in taken]
        lines += [f"left out  {k} {theirs[k]}: {why(k)}" for k in left_out]
        lines += [f"new       {k} {own[k]}" for k in new]
        file = report()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([f"from {checkpoint.file}", *lines, ""]), encoding="utf-8")
        say(f"  whole lists: {file}")
    return taken


def layers(names: Iterable[str], everything: Iterable[str]) -> str:
    """The layers that tensors belong to, such as `layers 0 to 23, 25`; `everything` tells which layers have any."""
    numbers, existing = _layer_numbers(names), _layer_numbers(everything)
    runs: list[list[int]] = []
    for n in numbers:
        if runs and not any(runs[-1][1] < k < n for k in existing):
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in runs)
    return f"layer{'s' * (len(numbers) > 1)} {text}"


def _layer_numbers(names: Iterable[str]) -> list[int]:
    return sorted({int(part[1]) for name in names if len(part := name.split(".")) > 2 and part[1].isdigit()})


def shorten(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
