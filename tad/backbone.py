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
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from utils.system.devices import autocast

CHUNK, TUBELET = 16, 2  # frames that attend to one another; frames of a token
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB in 0..255
LN_EPS = 1e-6
AT_ONCE = 800  # tokens that go through frozen layers together: few enough for what they become to stay in the cache


def groups(chunks: int, tokens: int, device: torch.device) -> list[slice]:
    """Chunks that go through frozen layers together: a few on a processor, all elsewhere and in exported networks."""
    size = max(1, AT_ONCE // tokens) if device.type == "cpu" and not torch.jit.is_tracing() else chunks
    return [slice(i, i + size) for i in range(0, chunks, size)]


def compute_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in; None where it is off."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def converted(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """A module's parameters in `compute_type`: autocast would convert frozen ones at every call."""
    dtype = compute_type(device)
    return {name: p if dtype is None else p.to(dtype) for name, p in module.named_parameters()}


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

    def draw(self, x: Tensor) -> Tensor | None:
        """New numbers for the rows of `x`, where they are needed."""
        return torch.rand(len(x), device=x.device) if self.training and self.rate else None

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """`uniform`: numbers of `draw`; new ones where it is left out."""
        uniform = self.draw(x) if uniform is None else uniform
        return x if uniform is None else drop_path(x, self.rate, uniform)


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
        if q.dtype is torch.bfloat16 and x.device.type == "cpu" and n * tokens <= max(AT_ONCE, tokens):
            # PyTorch's fused kernel is no faster in bfloat16 than in float32; plain products of a few chunks are
            x = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
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


Draws = tuple[Tensor | None, Tensor | None]  # of drop path for each chunk: its attention, its MLP


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
        if torch.jit.is_tracing() or torch.is_grad_enabled() and (x.requires_grad or not self.frozen()):
            x = x + self.drop_path(self.attn(self.norm1(x)))
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        else:
            x = self.vit(x, self.draws(x))
        return x if self.adapter is None else self.adapter(x, videos, places)

    def frozen(self) -> bool:
        """Whether nothing but the adapter is trained."""
        return not any(p.requires_grad for name, p in self.named_parameters() if not name.startswith("adapter."))

    def draws(self, x: Tensor) -> Draws:
        return self.drop_path.draw(x), self.drop_path.draw(x)

    @torch.no_grad()
    def vit(self, x: Tensor, draws: Draws) -> Tensor:
        """Attention and MLP of x [chunks, tokens, dim], some chunks at a time."""
        attn, mlp = (converted(part, x.device) for part in (self.attn, self.mlp))
        out = torch.empty_like(x)
        for part in groups(*x.shape[:2], x.device):
            first, second = (None if u is None else u[part] for u in draws)
            y = x[part]
            y = y + self.drop_path(functional_call(self.attn, attn, (self.norm1(y),)), first)
            torch.add(y, self.drop_path(functional_call(self.mlp, mlp, (self.norm2(y),)), second), out=out[part])
        return out

    @torch.no_grad()
    def vit_gradient(self, x: Tensor, grad: Tensor, draws: Draws) -> Tensor:
        """Gradient of `vit` with respect to x, from that of its output. What lies between is computed again.

        The MLP's last product is not: for a gradient its inputs and outputs do not matter.
        """
        attn, mlp = (converted(part, x.device) for part in (self.attn, self.mlp.layers[0]))
        last = converted(self.mlp.layers[1], x.device)["weight"]
        out = torch.empty_like(x)
        for part in groups(*x.shape[:2], x.device):
            first, second = (None if u is None else u[part] for u in draws)
            hidden_grad = self.drop_path(grad[part], second).to(last.dtype) @ last
            with torch.enable_grad():
                inner = x[part].detach().requires_grad_()
                y = inner + self.drop_path(functional_call(self.attn, attn, (self.norm1(inner),)), first)
                hidden = functional_call(self.mlp.layers[0], mlp, (self.norm2(y),))
            (out[part],) = torch.autograd.grad([y, hidden], inner, [grad[part], hidden_grad])
        return out


class AdapterThenBlock(torch.autograd.Function):
    """An adapter and the frozen layers of the block after it; of both only the adapter's input is kept.

    Frozen layers need no gradient of their weights, so nothing of them has to be there at once: `Block.vit_gradient`.
    """

    @staticmethod
    def forward(ctx, z: Tensor, adapter: Adapter, block: Block, videos: int, places: int, *weights: Tensor) -> Tensor:
        """`weights` are the adapter's parameters, which so get their gradients."""
        ctx.save_for_backward(z)
        x = adapter(z, videos, places)
        ctx.draws, ctx.dtype = block.draws(x), compute_type(z.device)
        ctx.parts = adapter, block, videos, places, weights
        return block.vit(x, ctx.draws)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (z,), (adapter, block, videos, places, weights) = ctx.saved_tensors, ctx.parts
        with autocast(z.device, ctx.dtype is not None, ctx.dtype):
            with torch.enable_grad():
                z = z.detach().requires_grad_(ctx.needs_input_grad[0])
                x = adapter(z, videos, places)
            grad = block.vit_gradient(x.detach(), grad, ctx.draws)
        wanted = [t for t in (z, *weights) if t.requires_grad]
        grads = dict(zip(map(id, wanted), torch.autograd.grad(x, wanted, grad), strict=True))
        return grads.get(id(z)), None, None, None, None, *(grads.get(id(w)) for w in weights)


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
        patch = self.patch_embed.projection.stride[1]
        rows, columns = h // patch, w // patch
        table = self.positions(rows, columns)
        x = frames.view(b, 3, t // CHUNK, CHUNK, h, w).transpose(1, 2).flatten(0, 1)
        parts = []
        for part in groups(len(x), table.shape[1], x.device):
            tokens = self.patch_embed((x[part].to(self.mean.dtype) - self.mean).div_(self.std))
            parts.append(tokens.flatten(2).transpose(1, 2).contiguous() + table)  # a layout that the stream then keeps
        return torch.cat(parts), rows * columns

    def adapters_apart(self, x: Tensor, videos: int, places: int) -> Tensor:
        """All blocks, where nothing but their adapters is trained: in pieces that begin with an adapter."""
        before = None
        for block in self.blocks:
            if before is None:
                x = block.vit(x, block.draws(x))
            else:
                x = AdapterThenBlock.apply(x, before, block, videos, places, *before.parameters())
            before = block.adapter
        return x if before is None else before(x, videos, places)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B,3,T,H,W], uint8 or 0..255 → features [B, dim, T] in float32 (float64 in a model of that type)."""
        b, t = frames.shape[0], frames.shape[2]
        x, places = self.tokens(frames)
        if (
            self.checkpointing
            and torch.is_grad_enabled()
            and not x.requires_grad
            and all(map(Block.frozen, self.blocks))
        ):
            x = self.adapters_apart(x, b, places)
        else:
            for block in self.blocks:
                if self.checkpointing and x.requires_grad:
                    x = checkpoint(block, x, b, places, use_reentrant=False)
                else:
                    x = block(x, b, places)
        x = x.view(b, t // TUBELET, places, -1).mean(2).transpose(1, 2)
        return F.interpolate(x.to(self.mean.dtype), size=t, mode="linear", align_corners=False)
