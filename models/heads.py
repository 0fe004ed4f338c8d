"""The layers that answer: Detect for the boxes, ImageHead or ImageClassifier for the image as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.common import Bottleneck, Conv
from utils.autoanchor import check_anchor_order


class Detect(nn.Module):
    """Detection layer: one 1x1 convolution per level, and the boxes that its maps stand for.

    With s = sigmoid(map), grid cell (i, j) and anchor (w, h) in pixels: centre = (2 s_xy - 0.5 + (j, i)) stride,
    size = (2 s_wh)^2 (w, h), confidences = s.

    Args:
        nc: Number of classes.
        anchors: Per level a flat list w, h, w, h, … in pixels, or the number of anchors per level.
        ch: Channels of the levels.

    Attributes:
        anchors: [nl, na, 2] in grid units (pixels / stride), after `set_strides`.
        stride: [nl] pixels per cell.
        anchor_grid: Per level [1, na, 1, 1, 2] pixels, as converters read it.
        export: Return the decoded boxes alone, as a tuple of one.
        dynamic: Make the cells anew each time, so that a traced graph serves inputs of any size.
    """

    export = dynamic = False
    inplace = True  # YOLOv5's scripts set it; nothing here writes in place

    def __init__(self, nc: int, anchors: Sequence[Sequence[float]] | int, ch: Sequence[int]) -> None:
        super().__init__()
        self.nc, self.no, self.nl = nc, nc + 5, len(ch)
        self.na = anchors if isinstance(anchors, int) else len(anchors[0]) // 2
        pixels = torch.zeros(self.nl, self.na, 2) if isinstance(anchors, int) else torch.tensor(anchors).float()
        self.register_buffer("anchors", pixels.view(self.nl, self.na, 2))
        self.register_buffer("stride", torch.zeros(self.nl), persistent=False)
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)
        self.grid: list[Tensor] = [torch.empty(0)] * self.nl

    @property
    def anchor_grid(self) -> list[Tensor]:
        return list((self.anchors * self.stride.view(-1, 1, 1)).view(self.nl, 1, self.na, 1, 1, 2))

    def maps(self, x: list[Tensor]) -> list[Tensor]:
        """Neck levels [B, c_i, H_i, W_i] -> raw maps [B, na, H_i, W_i, 5 + nc]."""
        out = []
        for level, conv in zip(x, self.m, strict=True):
            y = conv(level)
            b, _, h, w = y.shape
            out.append(y.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous())
        return out

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Raw maps -> float32 [B, sum na H_i W_i, 5 + nc]: x, y, w, h in pixels, objectness, class confidences."""
        out = []
        for i, raw in enumerate(maps):
            b, _, h, w, _ = raw.shape
            y = raw.float().sigmoid()
            xy = (y[..., :2] * 2 + self._cells(i, h, w, y)) * self.stride[i].float()
            anchors = self.anchors[i].float() * self.stride[i].float()
            wh = (y[..., 2:4] * 2) ** 2 * anchors.view(self.na, 1, 1, 2)
            out.append(torch.cat((xy, wh, y[..., 4:]), -1).view(b, -1, self.no))
        return torch.cat(out, 1)

    def forward(self, x: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]] | tuple[Tensor]:
        """Training: raw maps. Evaluation: (decoded, raw maps)."""
        maps = self.maps(x)
        if self.training:
            return maps
        decoded = self.decode(maps)
        return (decoded,) if self.export else (decoded, maps)

    def _cells(self, level: int, h: int, w: int, like: Tensor) -> Tensor:
        """Column and row of each cell minus 0.5, [h, w, 2], where `like` is; kept for the next picture of that size."""
        device = like.device
        if self.dynamic:  # integers until the end: OpenCV's reader of ONNX files knows no other ranges
            row, column = torch.meshgrid(*(torch.arange(side, device=device) for side in (h, w)), indexing="ij")
            # The device stands in a trace as it is here; `like` takes the cells to that of the pictures.
            return (torch.stack((column, row), -1).float() - 0.5).type_as(like)
        grid = self.grid[level]
        if grid.shape[:2] != (h, w) or grid.device != device:
            with torch.inference_mode(False):  # else a grid first made under inference mode cannot serve autograd
                rows = torch.arange(h, device=device, dtype=torch.float32)
                columns = torch.arange(w, device=device, dtype=torch.float32)
                row, column = torch.meshgrid(rows, columns, indexing="ij")
                grid = self.grid[level] = torch.stack((column, row), -1) - 0.5
        return grid

    @torch.no_grad()
    def set_strides(self, stride: Tensor) -> None:
        """Sets the strides and turns the anchors of the yaml, in pixels, into grid units."""
        self.stride = stride.to(self.anchors.device).float()
        if (
            not self.anchors.any()
        ):  # the yaml gives a number only: squares of 2, 3, 4 … cells until autoanchor fits them
            self.anchors += torch.arange(2, self.na + 2).view(1, self.na, 1)
        else:
            check_anchor_order(self)  # in pixels: anchors of like size have areas that fall in grid units
            self.anchors /= self.stride.view(-1, 1, 1)

    @torch.no_grad()
    def initialize_biases(self, class_frequency: Tensor | None = None) -> None:
        """Starts objectness at 8 objects per 640 px picture and classes at 0.6 / nc, so that training starts calm
        (focal loss, section 3.3, arXiv 1708.02002).

        Args:
            class_frequency: [nc] labels per class, where known: its shares replace 0.6 / nc.
        """
        for conv, stride in zip(self.m, self.stride.tolist(), strict=True):
            bias = conv.bias.view(self.na, self.no)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            if class_frequency is None:
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))
            else:
                bias[:, 5:] += torch.log(class_frequency / class_frequency.sum()).to(bias)


class ImageHead(nn.Module):
    """Image-level branch: pooled maps -> logits.

    Each map is pooled to its channel means and maxima, and each of these vectors is normalised (means and maxima
    differ tenfold in size). Two linear layers follow. The hidden one is normalised too, which keeps its step size in
    bounds: the optimiser sees the loss times the batch size.

    Args:
        channels: Channels of the maps that the branch reads.
        cls_nc: Number of image classes.
        hidden: Width of the hidden layer.
        dropout: Share of hidden units left out in training.
        gradient: Factor of the gradient that the branch sends back into the maps. At 0 it reads them and leaves the
            detector as it would be alone.

    Raises:
        ValueError: The factor is negative or no number.
    """

    def __init__(
        self, channels: Sequence[int], cls_nc: int, hidden: int = 64, dropout: float = 0.2, gradient: float = 1.0
    ):
        super().__init__()
        if not 0 <= gradient < math.inf:
            raise ValueError(f"the factor of the image branch's gradient is {gradient}, but must be a number from 0 on")
        self.gradient = gradient
        self.cls_nc, self.channels = cls_nc, list(channels)
        self.hidden = nn.Linear(2 * sum(channels), hidden, bias=False)  # the norm that follows has one
        self.norm = nn.LayerNorm(hidden)
        self.act = nn.SiLU()
        self.drop = nn.Dropout(dropout)
        self.logits = nn.Linear(hidden, cls_nc)

    def forward(self, x: list[Tensor] | Tensor) -> Tensor:
        """Maps [B, c_i, H_i, W_i] of any size -> logits [B, cls_nc], float32."""
        maps = [x] if isinstance(x, Tensor) else x
        if self.training and self.gradient != 1:
            maps = [m.detach() + self.gradient * (m - m.detach()) if self.gradient else m.detach() for m in maps]
        pooled = [v for m in maps for v in (m.mean((2, 3)), m.amax((2, 3)))]
        widths = [c for c in self.channels for _ in range(2)]  # fixed numbers, which a traced graph needs
        pooled = torch.cat([F.layer_norm(v.float(), (c,)) for v, c in zip(pooled, widths, strict=True)], 1)
        with torch.autocast(pooled.device.type, enabled=False):  # tiny, and its answer is a probability: no rounding
            y = self.hidden(pooled.to(self.hidden.weight.dtype))
            return self.logits(self.drop(self.act(self.norm(y)))).float()


class CBAM(nn.Module):
    """Channel attention, then spatial attention (Woo et al., CBAM, ECCV 2018, sections 3.1 and 3.2).

    M_c = sigmoid(MLP(mean) + MLP(max)) over the channels, M_s = sigmoid(conv7x7([mean; max])) over the pixels.
    """

    def __init__(self, c: int, reduction: int = 16, kernel: int = 7):
        super().__init__()
        inner = max(c // reduction, 4)
        self.mlp = nn.Sequential(nn.Conv2d(c, inner, 1), nn.ReLU(), nn.Conv2d(inner, c, 1))
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        return x * self.spatial(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)).sigmoid()


class ImageClassifier(nn.Module):
    """Image-level classifier with a backbone of its own: picture [B, c1, H, W] -> logits [B, cls_nc].

    Five strided convolutions; from the second on a residual bottleneck and CBAM attention follow each. It ends in the
    same head as the branch on the neck.

    Args:
        c1: Channels of the picture.
        cls_nc: Number of image classes.
        width: Channels of the last stage; each earlier stage has half of the next one's.
        dropout: Share of hidden units left out in training.
    """

    def __init__(self, c1: int, cls_nc: int, width: int = 256, dropout: float = 0.2):
        super().__init__()
        self.cls_nc = cls_nc
        widths = [max(width // 2**i, 8) for i in (4, 3, 2, 1, 0)]
        self.stem = Conv(c1, widths[0], 6, 2, 2)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Conv(c, c_next, 3, 2), Bottleneck(c_next, c_next), CBAM(c_next))
                for c, c_next in zip(widths[:-1], widths[1:], strict=True)
            )
        )
        self.head = ImageHead([widths[-1]], cls_nc, hidden=64, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))
