"""Activations written out in simpler operators, which exporters of YOLOv5 models put in place of PyTorch's own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SiLU(nn.Module):
    """x sigmoid(x) (Elfwing et al., 2017, arXiv 1702.03118)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Hardswish(nn.Module):
    """x clip(x + 3, 0, 6) / 6 (Howard et al., ICCV 2019, arXiv 1905.02244)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardtanh(x + 3, 0.0, 6.0) / 6.0
