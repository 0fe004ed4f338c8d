"""One model with its recipe: the yaml files beside this one, checked as they are read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from utils.system.paths import ROOT, find_file
from utils.system.yamls import load_yaml

OPTIMIZERS = ("adamw", "muon")
MANY = 1e9
# key -> least and most, ends included
LIMITS = {
    **dict.fromkeys(
        ("frame_stride", "imgsz", "short_side", "dim", "depth", "heads", "mlp", "patch", "grid", "channels",
         "detector_heads", "batch", "epochs", "eval_every", "pre_top", "max_events"),
        (1, MANY),
    ),
    **dict.fromkeys(("adapter", "warmup_epochs", "schedule_epochs"), (0, MANY)),
    **dict.fromkeys(("lr", "adapter_lr", "backbone_lr", "muon_lr", "weight_decay"), (0, 1e3)),
    **dict.fromkeys(("flip", "keep", "pre_score"), (0, 1)),
    **dict.fromkeys(("clip", "sigma"), (1e-6, MANY)),
    **dict.fromkeys(("backbone_drop", "detector_drop", "ema"), (0, 1 - 1e-6)),
    "crop": (0, MANY),
    "crop_area": (1e-6, 1),
    "blocks": (0, 30),
    "overlap": (0.5, 1 - 1e-6),  # with less the windows of the public evaluation miss the end of some videos
}  # fmt: skip


@dataclass(frozen=True)
class TadConfig:
    """What a yaml of `tad/` says; the defaults are the published THUMOS-14 recipe with VideoMAE ViT-S.

    Attributes:
        frames: Sampled frames of a window.
        frame_stride: Every so many frames of the video one is sampled.
        imgsz, short_side: Side of the pictures that the network sees, and of the shorter side before the training crop.
        dim, depth, heads, mlp, patch, grid: The ViT (see `tad/backbone.py`).
        adapter: Hidden units of the adapters; 0: none.
        backbone_drop: Drop-path rate of the ViT's last block.
        freeze: Train adapters and detector alone.
        channels, detector_heads, blocks, detector_drop: The detector (see `tad/actionformer.py`).
        epochs, schedule_epochs, warmup_epochs: The cosine is laid out for `schedule_epochs`; training ends at `epochs`.
        batch: Windows of an optimiser step, over all devices.
        optimizer: `adamw`, or `muon`: orthogonal steps for matrices, AdamW's for the rest.
        lr, adapter_lr, backbone_lr, weight_decay, clip: AdamW; `backbone_lr` counts where nothing is frozen.
        muon_lr: Rate of the orthogonal steps; `lr` is that of the rest.
        ema: Decay of the weight average.
        eval_from, eval_every: Epochs that are followed by a validation: those from `eval_from` (counted from 0) whose
            number divides, counted from 1, by `eval_every`; the last one always.
        overlap: Share of a window that the next one sees again, in validation and detection.
        keep: Share of an event that must lie inside a training window for the event to count.
        crop: Videos shorter than a window are cut to a share between these.
        flip, randaugment, jitter: Chance of a mirror image; whether two of fifteen operations and whether the colours
            change; crop_area: share of the picture that the training crop takes, at least.
        pre_score, pre_top: Candidates of a window: score above, at most so many.
        sigma, min_score, max_events: Gaussian soft suppression per class, and the events kept of a video.
    """

    frames: int = 768
    frame_stride: int = 4
    imgsz: int = 160
    short_side: int = 182
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int = 1536
    patch: int = 16
    grid: int = 14
    adapter: int = 96
    backbone_drop: float = 0.1
    freeze: bool = True
    channels: int = 512
    detector_heads: int = 4
    blocks: tuple[int, int, int] = (2, 2, 5)
    detector_drop: float = 0.1
    epochs: int = 60
    schedule_epochs: int = 100
    warmup_epochs: float = 5.0
    batch: int = 2
    optimizer: str = "adamw"
    lr: float = 1e-4
    adapter_lr: float = 2e-4
    backbone_lr: float = 0.0
    muon_lr: float = 0.01
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    eval_from: int = 40
    eval_every: int = 2
    overlap: float = 0.5
    keep: float = 0.75
    crop: tuple[float, float] = (0.9, 1.0)
    flip: float = 0.5
    randaugment: bool = True
    jitter: bool = True
    crop_area: float = 0.08
    pre_score: float = 0.001
    pre_top: int = 2000
    sigma: float = 0.7
    min_score: float = 0.0
    max_events: int = 2000

    @property
    def levels(self) -> int:
        return self.blocks[2] + 1


def config_from(values: dict, where: str) -> TadConfig:
    """A configuration from plain values (a yaml, a checkpoint).

    Raises:
        ValueError: An unknown key, or a value of another kind; the message names `where` and the key.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected lines of the form 'key: value'")
    fields = {f.name: f for f in dataclasses.fields(TadConfig)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown key {', '.join(unknown)} (known: {', '.join(fields)})")
    checked = {}
    for key, value in values.items():
        default = fields[key].default
        if isinstance(default, tuple):
            good = isinstance(value, (list, tuple)) and len(value) == len(default)
            good = good and all(_number(v) for v in value)
            value = tuple(value) if good else value
        elif isinstance(default, bool):
            good = isinstance(value, bool)
        elif isinstance(default, str):
            good = value in OPTIMIZERS
        elif isinstance(default, float):
            value = _float(value)
            good = value is not None
        else:
            good = isinstance(value, int) and not isinstance(value, bool)
        if not good:
            raise ValueError(f"{where}: {key} must be like {default}, not {values[key]!r}")
        checked[key] = value
    config = TadConfig(**checked)
    for key, (least, most) in LIMITS.items():
        value = getattr(config, key)
        if not all(least <= v <= most for v in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{where}: {key}: {values[key]} must be between {least:g} and {most:g}")
    if not all(isinstance(n, int) for n in config.blocks) or not config.blocks[0]:
        raise ValueError(f"{where}: blocks: {list(config.blocks)} must be whole numbers, the first of them at least 1")
    largest = 2 ** (config.levels - 1)
    if config.frames < 1 or config.frames % 16 or config.frames % largest:
        raise ValueError(
            f"{where}: frames: {config.frames} must be a multiple of 16 (a chunk) and of {largest} (the stride of the "
            f"last of {config.levels} levels)"
        )
    for width, heads in (("dim", "heads"), ("channels", "detector_heads")):
        if getattr(config, width) % getattr(config, heads):
            raise ValueError(
                f"{where}: {width}: {getattr(config, width)} must be a multiple of {heads}: {getattr(config, heads)}"
            )
    if config.imgsz < config.patch:
        raise ValueError(f"{where}: imgsz: {config.imgsz} must be at least patch: {config.patch}")
    if config.crop[0] > config.crop[1]:
        raise ValueError(f"{where}: crop: {list(config.crop)} must be the smaller share, then the larger one")
    return config


def load_config(name: str | Path) -> TadConfig:
    """The yaml of that name: as given, in `tad/`, or wherever the project keeps yamls.

    Raises:
        FileNotFoundError, ValueError: One sentence that names the file.
    """
    file = find_file(name, (ROOT / "tad",))
    config = config_from(load_yaml(file) or {}, str(file))
    if not config.freeze and config.optimizer == "adamw" and not config.backbone_lr:
        raise ValueError(f"{file}: freeze: false with backbone_lr: 0 would train no backbone: give it a rate")
    return config


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float(value: object) -> float | None:
    """yaml takes 1e-4 for a text; numbers stay numbers."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
