"""The VideoMAE ViT with temporal-informative adapters: clips of 16 frames in, one feature per pair of frames out.

Tong et al., VideoMAE (NeurIPS 2022), for the ViT; Liu et al., End-to-End Temporal Action Detection with 1B Parameters
Across 1000 Frames (CVPR 2024), section 3.3, for the adapters. A window is cut into chunks of 16 frames; attention sees
one chunk, the adapters see the whole window at each place of the picture. Names of parameters are those of the public
checkpoints behind their prefix (`tad/weights.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK, TUBELET = 16, 2  # frames that attend to one another; frames of a token
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB in 0..255
LN_EPS = 1e-6


def sinusoid_table(positions: int, dim: int) -> Tensor:
    """VideoMAE's fixed table [1, positions, dim]: sin on even, cos on odd columns of p / 10000^(2⌊j/2⌋/dim)."""
    p = torch.arange(positions, dtype=torch.float64)[:, None]
    j = torch.arange(dim, dtype=torch.float64)[None]
    angle = p / 10000 ** (2 * torch.floor(j / 2) / dim)
    return torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()[None]


def drop_path(x: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """Drop whole rows of the batch (Huang et al. 2016): kept where `uniform` [N] ≥ rate, and divided by 1 − rate."""
    keep = torch.floor(1 - rate + uniform).to(x.dtype)
    return x * (keep / (1 - rate)).view(-1, *[1] * (x.dim() - 1))


class DropPath(nn.Module):
    """`drop_path` in training, nothing otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return drop_path(x, self.rate, torch.rand(len(x), device=x.device))


class Attention(nn.Module):
    """Self-attention whose queries and values have a bias and whose keys have none (it would change nothing)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Adapter(nn.Module):
    """Temporal-informative adapter: a bottleneck with a temporal convolution over the whole window.

    The up-projection starts at zero, so a new adapter changes nothing. The two convolutions only hold their weights
    (in the public shapes): the depthwise one is three shifted products and the pointwise one a matrix product, both in
    the layout that the tokens have already.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))
        self.dwconv = nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv = nn.Conv1d(hidden, hidden, 1)
        self.down_proj = nn.Linear(dim, hidden)
        self.up_proj = nn.Linear(hidden, dim)
        for layer, taps in ((self.dwconv, 3), (self.conv, hidden)):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / taps))
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.down_proj.weight, std=0.02)
        for p in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(p)

    def forward(self, x: Tensor, videos: int, places: int) -> Tensor:
        """x: [chunks, tokens, dim], tokens time-major with `places` of them per time step; chunks video-major."""
        u = F.gelu(self.down_proj(x))
        w = self.dwconv.weight[:, 0].to(u.dtype)
        padded = F.pad(u.view(videos, -1, places, u.shape[-1]), (0, 0, 0, 0, 1, 1))
        v = (
            padded[:, :-2] * w[:, 0]
            + padded[:, 1:-1] * w[:, 1]
            + padded[:, 2:] * w[:, 2]
            + self.dwconv.bias.to(u.dtype)
        )
        v = F.linear(v, self.conv.weight[..., 0], self.conv.bias)
        return torch.addcmul(x, self.up_proj(u + v.view_as(u)).to(x.dtype), self.gamma.to(x.dtype))


class Block(nn.Module):
    """Attention, MLP, adapter; each with its own residual."""

    def __init__(self, dim: int, heads: int, hidden: int, adapter: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LN_EPS)
        self.attn = Attention(dim, heads)
        self.drop_path = DropPath(drop)
        self.norm2 = nn.LayerNorm(dim, eps=LN_EPS)
        self.mlp = Mlp(dim, hidden)
        self.adapter = Adapter(dim, adapter) if adapter else None

    def forward(self, x: Tensor, videos: int, places: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x if self.adapter is None else self.adapter(x, videos, places)


class PatchEmbed(nn.Module):
    """One token per 2 frames × `patch`² pixels."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv3d(3, dim, (TUBELET, patch, patch), stride=(TUBELET, patch, patch))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


class Backbone(nn.Module):
    """Window of frames → one feature per frame.

    Args:
        dim, depth, heads, mlp: The ViT's width, number of blocks, attention heads and hidden units.
        patch: Side of a token in pixels.
        grid: Tokens a side that the position table was made for; other sizes interpolate it.
        adapter: Hidden units of the adapters; 0: none.
        drop: Drop-path rate of the last block; it rises linearly from 0 in the first.
        freeze: Train the adapters alone.

    Attributes:
        checkpointing: Forget the activations of a block and compute them again when its gradient is due.
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp: int = 1536,
        patch: int = 16,
        grid: int = 14,
        adapter: int = 96,
        drop: float = 0.1,
        freeze: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.checkpointing = grid, False
        self.register_buffer("pos_embed", sinusoid_table(CHUNK // TUBELET * grid * grid, dim))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp, adapter, drop * i / max(depth - 1, 1)) for i in range(depth))
        self.fc_norm = nn.LayerNorm(dim, eps=LN_EPS)  # not used: public checkpoints hold it, so it is kept for them
        self.fc_norm.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1, 1), persistent=False)
        if freeze:
            for name, p in self.named_parameters():
                p.requires_grad_("adapter" in name)

    @torch.no_grad()
    def start(self, frames: Tensor) -> None:
        """Scale a new ViT to its data: tokens of spread 1 and mean 0, and layers that keep their spread.

        Features are the mean over a picture's tokens. In a new network that mean is nearly the same at all times, and
        what changes in a few tokens is lost in it; training from scratch then takes long to begin (Mishkin and Matas,
        All you need is a good init, 2016, for starting values that data settle).

        Args:
            frames: Some windows of the data, as for `forward`.
        """
        embed = self.patch_embed.projection
        embed.bias.zero_()
        table = self.positions(frames.shape[3] // embed.stride[1], frames.shape[4] // embed.stride[2])
        patches = self.tokens(frames)[0] - table
        spread = patches.std((0, 1)).mean()
        embed.weight.div_(spread)
        embed.bias.copy_(-patches.mean((0, 1)) / spread - table.mean((0, 1)))
        for block in self.blocks:
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.layers[0][0], block.mlp.layers[1]):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def positions(self, height: int, width: int) -> Tensor:
        """The table for a grid of tokens [1, 8·height·width, dim]: bicubic in space, untouched in time."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        table = self.pos_embed.float().view(CHUNK // TUBELET, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1).reshape(1, CHUNK // TUBELET * height * width, -1)

    def tokens(self, frames: Tensor) -> tuple[Tensor, int]:
        """Frames [B,3,T,H,W] in 0..255 → tokens of all chunks [B·T/16, 8·places, dim], and `places`."""
        b, _, t, h, w = frames.shape
        if t % CHUNK:
            raise ValueError(f"a window of {t} frames: it must be a multiple of {CHUNK}")
        x = frames.float() if frames.dtype != torch.float32 else frames.clone()
        x = x.sub_(self.mean).div_(self.std).view(b, 3, t // CHUNK, CHUNK, h, w).transpose(1, 2).flatten(0, 1)
        x = self.patch_embed(x)  # [chunks, dim, 8, rows, columns]
        # contiguous: the residual stream keeps the layout that it begins with
        return x.flatten(2).transpose(1, 2).contiguous() + self.positions(*x.shape[3:]), x.shape[3] * x.shape[4]

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B,3,T,H,W], uint8 or 0..255 → features [B, dim, T] in float32."""
        b, t = frames.shape[0], frames.shape[2]
        x, places = self.tokens(frames)
        for block in self.blocks:
            if self.checkpointing and x.requires_grad:
                x = checkpoint(block, x, b, places, use_reentrant=False)
            else:
                x = block(x, b, places)
        x = x.view(b, t // TUBELET, places, -1).mean(2).transpose(1, 2)
        return F.interpolate(x.float(), size=t, mode="linear", align_corners=False)
