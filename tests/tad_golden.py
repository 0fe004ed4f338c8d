"""The rules by which weights and inputs of the reference figures in tests/golden/tad are made, and their files."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import torch

from tad.config import TadConfig, config_from
from tad.model import TadModel
from tad.weights import from_public

FOLDER = Path(__file__).resolve().parent / "golden" / "tad"
SMALL = {
    "frames": 48, "imgsz": 48, "dim": 32, "depth": 2, "heads": 2, "mlp": 128, "grid": 3, "adapter": 8, "channels": 16,
    "blocks": [2, 2, 3],
}  # fmt: skip


@functools.cache
def figures(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@functools.cache
def arrays(name: str) -> np.lib.npyio.NpzFile:
    return np.load(FOLDER / f"{name}.npz")


def mix(i: np.ndarray, k: int) -> np.ndarray:
    h = np.asarray(i, np.uint32) * np.uint32(2654435761) + np.uint32((k * 2246822519 + 374761393) % 2**32)
    h ^= h >> np.uint32(15)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489917)
    return h ^ (h >> np.uint32(16))


def unit(shape: tuple[int, ...], k: int) -> np.ndarray:
    """float64 in [-1, 1)."""
    return (mix(np.arange(math.prod(shape), dtype=np.uint32), k) / 2**31 - 1).reshape(shape)


def filled(name: str, shape: tuple[int, ...], k: int) -> np.ndarray | None:
    """Tensor number k of a public state dict; None for the buffers, which stay."""
    last = name.rsplit(".", 1)[-1]
    if last in ("pos_embed", "loss_normalizer"):
        return None
    u = unit(shape, k)
    if last == "weight" and len(shape) > 1:
        u = u * math.sqrt(3 / math.prod(shape[1:]))
    elif last == "weight":
        u = 1 + 0.2 * u
    elif last.endswith("bias"):
        u = 0.2 * u
    else:
        u = 0.5 + 0.2 * u
    return np.asarray(u, np.float32)


def fill(model: TadModel, order: list[str]) -> dict[str, torch.Tensor]:
    """Fill a model by the rule; `order` are the public names. Returns what was put in, under public names."""
    state = model.state_dict()
    put = {}
    for k, name in enumerate(order):
        (own,) = from_public({name: None})
        values = filled(name, tuple(state[own].shape), k)
        if values is not None:
            put[name] = torch.from_numpy(values)
            state[own].copy_(put[name])
    return put


def small_config(**changes) -> TadConfig:
    return config_from(SMALL | changes, "test")


def small_model(**changes) -> TadModel:
    """The reduced model of the figures, filled."""
    torch.manual_seed(0)
    model = TadModel(small_config(**changes), ["a", "b", "c"]).eval()
    fill(model, figures("forward_small")["state_dict_order"])
    return model


def clip(b: int, t: int, h: int, w: int, seed: int) -> torch.Tensor:
    """uint8 [b, 3, t, h, w]."""
    B, C, T, Y, X = np.meshgrid(*map(np.arange, (b, 3, t, h, w)), indexing="ij", sparse=True)
    coarse = mix((((B * 3 + C) * 4096 + T // 12) * 64 + Y // 8) * 64 + X // 8, 7000 + seed) % np.uint32(160)
    return torch.from_numpy((coarse + (3 * X + 5 * Y + 2 * T + 17 * C) % 96).astype(np.uint8))


def mask(lengths: list[int], size: int) -> torch.Tensor:
    return torch.arange(size)[None] < torch.tensor(lengths)[:, None]
