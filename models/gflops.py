"""What one picture costs a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


def count_gflops(model: nn.Module, imgsz: int | Sequence[int] = 640) -> float | None:
    """2 x multiply-adds of one picture in 10^9, as `thop` counts them; None where it is not installed.

    Args:
        model: A `DetectionModel`.
        imgsz: Side of the picture in pixels, or height and width.

    Two small pictures are enough: what maps cost grows with the area, what the linear layers cost does not.
    """
    try:
        from thop import profile
    except ImportError:
        return None
    h, w = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    counted = copy.deepcopy(model).float().cpu().eval()
    channels, side = model.yaml["ch"], model.multiple
    small, large = (
        profile(counted, inputs=(torch.zeros(1, channels, s, s),), verbose=False)[0] for s in (side, 2 * side)
    )
    per_area = (large - small) / (3 * side * side)
    return 2e-9 * (small + per_area * (h * w - side * side))
