"""ActionFormer's detector: features of a window → class logits and distances to both ends at every point in time.

Zhang, Wu and Li, ActionFormer: Localizing Moments of Actions with Transformers (ECCV 2022), with attention over the
whole window at every level. Features are [B, C, T]; masks are bool [B, T], True where a frame is real. Level l has
T / 2^l points at times i·2^l.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tad.backbone import drop_path

CONV_EPS, BLOCK_EPS = 1e-6, 1e-5  # of the norms after convolutions and in the neck; in transformer blocks
FIRST_SCORE = 0.01  # of every class at every point of a new network (Lin et al. 2017, section 4.1)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, T]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class MaskedConv(nn.Module):
    """Convolution, mask, norm, ReLU, mask; with a norm the convolution has no bias."""

    def __init__(self, inner: int, outer: int, stride: int = 1, groups: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(inner, outer, 3, stride, padding=1, groups=groups, bias=False)
        self.norm = ChannelNorm(outer, eps=CONV_EPS) if norm else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask` is that of the input; the output's is every `stride`-th of it."""
        mask = mask[:, None, :: self.stride].to(x.dtype)
        x = self.conv(x) * mask
        return x if self.norm is None else F.relu(self.norm(x)) * mask


class MaskedAttention(nn.Module):
    """Attention among the valid points of a level; strided depthwise convolutions make queries, keys and values."""

    def __init__(self, dim: int, heads: int, stride: int) -> None:
        super().__init__()
        self.heads, self.stride = heads, stride
        for name in ("query", "key", "value"):
            setattr(self, f"{name}_conv", MaskedConv(dim, dim, stride, groups=dim, norm=False))
            setattr(self, f"{name}_norm", ChannelNorm(dim, eps=BLOCK_EPS))
        for name in ("query", "key", "value", "proj"):
            setattr(self, name, nn.Conv1d(dim, dim, 1))
            nn.init.zeros_(getattr(self, name).bias)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output [B, C, T/stride] and its mask."""
        q, k, v = (
            getattr(self, name)(getattr(self, f"{name}_norm")(getattr(self, f"{name}_conv")(x, mask)))
            for name in ("query", "key", "value")
        )
        mask = mask[:, :: self.stride]
        v = v * mask[:, None].to(v.dtype)
        b, c, t = q.shape
        q, k, v = (a.view(b, self.heads, c // self.heads, t).transpose(2, 3) for a in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = self.proj(x.transpose(2, 3).reshape(b, c, t))
        return x * mask[:, None].to(x.dtype), mask


class AffineDropPath(nn.Module):
    """A learned scale per channel, small at first, then drop path over the samples of the batch."""

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, dim, 1), 1e-4))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        if not self.training or self.rate == 0:
            return x
        return drop_path(x, self.rate, torch.rand(len(x), device=x.device))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int, stride: int, drop: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = ChannelNorm(dim, eps=BLOCK_EPS), ChannelNorm(dim, eps=BLOCK_EPS)
        self.attn = MaskedAttention(dim, heads, stride)
        # the third layer is a dropout of rate 0 in public checkpoints, which is why the second convolution is number 3
        self.mlp = nn.Sequential(nn.Conv1d(dim, 4 * dim, 1), nn.GELU(), nn.Identity(), nn.Conv1d(4 * dim, dim, 1))
        for i in (0, 3):
            nn.init.zeros_(self.mlp[i].bias)
        self.drop_path_attn, self.drop_path_mlp = AffineDropPath(dim, drop), AffineDropPath(dim, drop)
        self.stride = stride

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        attended, mask = self.attn(self.ln1(x), mask)
        skip = x if self.stride == 1 else F.max_pool1d(x, 3, self.stride, 1)  # of the input before the norm
        m = mask[:, None].to(x.dtype)
        x = skip * m + self.drop_path_attn(attended)
        return x + self.drop_path_mlp(self.mlp(self.ln2(x)) * m), mask


class Projection(nn.Module):
    """Features → one map per level: convolutions, blocks at full length, then blocks that halve it."""

    def __init__(self, inner: int, dim: int, heads: int, blocks: tuple[int, int, int], drop: float) -> None:
        super().__init__()
        convs, stem, branch = blocks
        self.embed = nn.ModuleList(MaskedConv(inner if i == 0 else dim, dim) for i in range(convs))
        self.stem = nn.ModuleList(TransformerBlock(dim, heads, 1, drop) for _ in range(stem))
        self.branch = nn.ModuleList(TransformerBlock(dim, heads, 2, drop) for _ in range(branch))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        for conv in self.embed:
            x = conv(x, mask)
        for block in self.stem:
            x, mask = block(x, mask)
        maps, masks = [x], [mask]
        for block in self.branch:
            x, mask = block(x, mask)
            maps.append(x)
            masks.append(mask)
        return maps, masks


class Neck(nn.Module):
    """A norm per level; the levels do not mix."""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.fpn_norms = nn.ModuleList(ChannelNorm(dim, eps=CONV_EPS) for _ in range(levels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [norm(x) for norm, x in zip(self.fpn_norms, maps, strict=True)]


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Head(nn.Module):
    """Two towers that all levels share: class logits, and distances to both ends in units of the level's stride."""

    def __init__(self, dim: int, classes: int, levels: int, convs: int = 2) -> None:
        super().__init__()
        self.register_buffer("loss_normalizer", torch.tensor(100.0))  # running number of positives, see tad/loss.py
        self.cls_convs = nn.ModuleList(MaskedConv(dim, dim) for _ in range(convs))
        self.reg_convs = nn.ModuleList(MaskedConv(dim, dim) for _ in range(convs))
        self.cls_head = nn.Conv1d(dim, classes, 3, padding=1)
        self.reg_head = nn.Conv1d(dim, 2, 3, padding=1)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        nn.init.constant_(self.cls_head.bias, -math.log((1 - FIRST_SCORE) / FIRST_SCORE))

    def forward(self, maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [B, points, classes] and distances ≥ 0 [B, points, 2] of all levels, one after another."""
        logits, offsets = [], []
        for x, mask, scale in zip(maps, masks, self.scale, strict=True):
            c = r = x
            for conv in self.cls_convs:
                c = conv(c, mask)
            for conv in self.reg_convs:
                r = conv(r, mask)
            logits.append(self.cls_head(c).transpose(1, 2))
            offsets.append(F.relu(scale(self.reg_head(r))).transpose(1, 2))
        return torch.cat(logits, 1), torch.cat(offsets, 1)


class Detector(nn.Module):
    """Projection, neck and head.

    Args:
        inner: Channels of the features.
        classes: Classes of events.
        dim, heads: Width and attention heads.
        blocks: Convolutions, blocks at full length, blocks that halve it (one level each).
        drop: Drop-path rate.
        length: Shorter features are padded to this many frames.
    """

    def __init__(
        self,
        inner: int,
        classes: int,
        dim: int = 512,
        heads: int = 4,
        blocks: tuple[int, int, int] = (2, 2, 5),
        drop: float = 0.1,
        length: int = 768,
    ) -> None:
        super().__init__()
        self.levels, self.length = blocks[2] + 1, length
        self.projection = Projection(inner, dim, heads, tuple(blocks), drop)
        self.neck = Neck(dim, self.levels)
        self.head = Head(dim, classes, self.levels)

    def padded_length(self, frames: int) -> int:
        """`length`, or for longer features the next multiple of the largest stride."""
        stride = 2 ** (self.levels - 1)
        return self.length if frames <= self.length else -(-frames // stride) * stride

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, C, T] and mask [B, T] → logits [B,P,classes], offsets [B,P,2], and which points are real [B,P].

        A sample without any real frame gives NaN: attention has nothing to attend to.
        """
        pad = self.padded_length(features.shape[2]) - features.shape[2]
        if pad:
            features, mask = F.pad(features, (0, pad)), F.pad(mask, (0, pad))
        maps, masks = self.projection(features, mask)
        logits, offsets = self.head(self.neck(maps), masks)
        return logits, offsets, torch.cat(masks, 1)
