"""Networks from files: our own checkpoints, public AdaTAD checkpoints, VideoMAE backbones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tad.config import TadConfig, config_from
from tad.model import TadModel
from tad.weights import CLASS_LAYER, NOTHING, fill, is_public, load_backbone, load_public, read_tensors, state_of
from utils.system.voice import say
from utils.weights.checkpoint import FORMAT, Checkpoint, load_checkpoint


def is_own(content: dict) -> bool:
    """Whether a file's content is a checkpoint that this project wrote."""
    return content.get("format") == FORMAT


def model_of(checkpoint: Checkpoint, averaged: bool = True) -> TadModel:
    """The network in a checkpoint of `train_tad.py`.

    Args:
        averaged: With the averaged weights, otherwise those as trained.

    Raises:
        ValueError: It holds another network.
    """
    values = checkpoint.model_yaml.get("tad") if isinstance(checkpoint.model_yaml, dict) else None
    if values is None:
        raise ValueError(f"{checkpoint.file}: holds a picture detector, which detect.py and val_joint.py run")
    model = TadModel(config_from(values, str(checkpoint.file)), checkpoint.names)
    state = checkpoint.state_dict if averaged else checkpoint.model_state_dict
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ValueError(f"{checkpoint.file}: its weights do not fit its own network ({e})") from None
    return model


def load_model(file: str | Path, config: TadConfig | None = None, names: Sequence[str] | None = None) -> TadModel:
    """A trained network in evaluation mode: from our checkpoint, or from a public one of that structure.

    Args:
        config, names: Structure and classes, which public checkpoints do not hold.

    Raises:
        FileNotFoundError, ValueError: One sentence that names the file.
    """
    content = read_tensors(file)
    if is_own(content):
        return model_of(load_checkpoint(file)).eval()
    if not is_public(state_of(content)):
        raise ValueError(f"{file}: neither a checkpoint of train_tad.py nor a public AdaTAD one")
    if config is None or names is None:
        raise ValueError(f"{file}: a public checkpoint does not say its structure and classes: give --cfg and --data")
    model = TadModel(config, list(names))
    say(load_public(model, file))
    return model.eval()


def start_from(model: TadModel, file: str | Path) -> None:
    """Fill a new network from weights of any kind that is known, strictly, and say what came from where.

    A network of other classes gives all but the class layer, a public one where their number is another.

    Raises:
        FileNotFoundError, ValueError: The file, or what does not fit.
    """
    content = read_tensors(file)
    if is_own(content):
        checkpoint = load_checkpoint(file)
        other = model_of(checkpoint)
        if other.config.dim != model.config.dim or other.config.channels != model.config.channels:
            raise ValueError(f"{file}: holds a network of another size than --cfg")
        state = other.state_dict()
        if other.names != model.names:
            kept = model.state_dict()
            layer = CLASS_LAYER
            state = {k: kept[k] if k.startswith(layer) else v for k, v in state.items()}
            say(f"{file}: its classes are {', '.join(other.names.values())}, so the class layer starts anew")
        state["detector.head.loss_normalizer"] = torch.tensor(100.0)
        fill(model, state, Path(file), NOTHING, NOTHING)
        say(f"{file}: {len(state)} tensors (train_tad.py)")
    elif is_public(state_of(content)):
        say(load_public(model, file, other_classes=True))
        model.detector.head.loss_normalizer.fill_(100.0)  # averaged weights hold an average of it, which says nothing
    else:
        say(load_backbone(model.backbone, file))
