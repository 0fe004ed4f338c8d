"""The network that a training's options ask for: from a yaml, from weights, with frozen layers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from copy import deepcopy

from models.yolo import Model
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.config import DataConfig
from utils.paths import ROOT, find_file


def build_model(
    opt: Namespace,
    data: DataConfig,
    hyp: Mapping,
    resumed: Checkpoint | None = None,
    say: Callable[[str], None] = print,
) -> Model:
    """The network from `opt.cfg`, from the structure of `opt.weights`, or from the checkpoint of a run to resume.

    Names come from the data, layers of `opt.freeze` are frozen, and `say` is told what was transferred.

    Raises:
        FileNotFoundError: No such yaml or weights.
        ValueError: The model has an image branch and the data no image classes, or the yaml cannot be built.
    """
    checkpoint = resumed or (load_checkpoint(find_file(opt.weights, (ROOT,))) if opt.weights else None)
    if resumed:
        model = Model.from_checkpoint(checkpoint, averaged=False)
    else:
        cfg = opt.cfg or (None if checkpoint else f"yolov5s{'_cls' if data.cls_nc else ''}.yaml")
        cfg = find_file(cfg, (ROOT / "models", ROOT / "models/hub")) if cfg else deepcopy(checkpoint.model_yaml)
        anchors = round(hyp.get("anchors") or 0) or None  # per level; the yaml's where the hyps have none
        model = Model(cfg, nc=data.nc, cls_nc=data.cls_nc or None, anchors=anchors)
        if checkpoint:
            chosen = ("anchors",) if opt.cfg or anchors else ()  # the user's own are not replaced by the checkpoint's
            taken, left_out, new = model.transfer(checkpoint.state_dict, exclude=chosen)
            say(f"Transferred {len(taken)} tensors from {opt.weights}; left out {len(left_out)}, new {len(new)}")
            if left_out:
                say(f"  left out: {shorten(left_out)}")
            if new:
                say(f"  new: {shorten(new)}")
    if model.cls_nc and not data.cls_nc:
        raise ValueError(
            f"{data.source}: the model {opt.cfg or opt.weights} has an image branch, but the data name no image "
            "classes; add `cls_nc:` and `cls_names:` to the data yaml, or train a plain model such as yolov5s.yaml"
        )
    if data.cls_nc and not model.cls_nc:
        say(f"Note: {data.source} has image labels, but the model has no image branch (use a *_cls.yaml): unused")
    model.names, model.cls_names = data.names, data.cls_names if model.cls_nc else {}
    freeze = opt.freeze if len(opt.freeze) > 1 else range(opt.freeze[0])
    for name, p in model.named_parameters():
        if any(name.startswith(f"model.{i}.") for i in freeze):
            p.requires_grad = False
    if frozen := sum(not p.requires_grad for p in model.parameters()):
        say(f"Frozen: {frozen} tensors of layers {list(freeze)}")
    return model


def shorten(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
