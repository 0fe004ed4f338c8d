"""Layers that a model yaml may name. Attribute names are YOLOv5's, so that the keys of its state dicts fit."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# What YOLOv5 has in this module and scripts import from it; both need the layers, so they are looked up when asked for.
ELSEWHERE = {
    "AutoShape": "models.autoshape",
    "DetectMultiBackend": "models.experimental",
    "Detections": "models.autoshape",
}


def __getattr__(name: str) -> type:
    if name not in ELSEWHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(ELSEWHERE[name]), name)


def autopad(k: int | Sequence[int], p: int | Sequence[int] | None = None, d: int = 1) -> int | list[int]:
    """Padding that keeps the size at stride 1 for kernel `k` and dilation `d`; `p`, where given, is taken as it is."""
    if p is not None:
        return p
    if isinstance(k, int):
        return (d * (k - 1) + 1) // 2
    return [autopad(side, None, d) for side in k]


def vector_rows(grad: Tensor) -> Tensor | None:
    """The gradient of a map, copied where the processor's kernels would read it number by number.

    Where maps were joined, the gradient of one of them is a slice of a wider one: in channels_last rows of c channels
    with gaps between. PyTorch computes on such rows in steps of 128 bytes and the rest one by one, so that SiLU's
    gradient of 16 channels takes four times as long as the copy and the gradient of the copy together.
    """
    gaps = grad.dim() == 4 and grad.stride(1) == 1 and grad.stride(3) > grad.shape[1]
    if gaps and grad.shape[1] * grad.element_size() % 128:
        return grad.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # which vmap can do, for batches of gradients
    return None


def speed_up_gradient(x: Tensor) -> None:
    """Have the gradient of a map come in rows that a processor is fast at."""
    if x.requires_grad and x.device.type == "cpu":
        x.register_hook(vector_rows)


class Conv(nn.Module):
    """Convolution, batch norm, activation: [B, c1, H, W] -> [B, c2, H/s, W/s].

    Args:
        k, s, p, g, d: Kernel, stride, padding (None: size kept at stride 1), groups, dilation.
        act: True for `default_act`, a module, or anything else for none.
    """

    default_act = nn.SiLU()  # one object for all layers: it holds no state, and YOLOv5 counts it as one layer

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, d=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p, d), groups=g, dilation=d, bias=False)
        self.bn: nn.BatchNorm2d | None = nn.BatchNorm2d(c2)
        self.act = self.default_act if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.act(x if self.bn is None else self.bn(x))
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling() and self.training:  # they take no hooks
            speed_up_gradient(x)
        return x

    @torch.no_grad()
    def fuse(self) -> None:
        """Folds the batch norm's running statistics into the convolution, for inference."""
        if self.bn is None:
            return
        conv, bn = self.conv, self.bn
        weight, bias = fuse_conv_bn_weights(
            conv.weight, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        self.bn = None


class DWConv(Conv):
    """Depth-wise convolution: as many groups as both channel counts share."""

    def __init__(self, c1, c2, k=1, s=1, d=1, act=True):
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


class DWConvTranspose2d(nn.ConvTranspose2d):
    """Depth-wise transposed convolution: [B, c1, H, W] -> [B, c2, (H - 1) s - 2 p1 + k + p2, …]."""

    def __init__(self, c1, c2, k=1, s=1, p1=0, p2=0):
        super().__init__(c1, c2, k, s, p1, p2, groups=math.gcd(c1, c2))


class Focus(nn.Module):
    """Moves each 2x2 block of pixels into channels, then convolves: [B, c1, H, W] -> [B, c2, H/2, W/2]."""

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):
        super().__init__()
        self.conv = Conv(4 * c1, c2, k, s, p, g, act=act)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(corners, 1))


class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution, added to the input where the shapes agree and `shortcut` is set."""

    def __init__(self, c1, c2, shortcut=True, g=1, e=0.5):
        super().__init__()
        inner = int(c2 * e)
        self.cv1 = Conv(c1, inner, 1, 1)
        self.cv2 = Conv(inner, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class CrossConv(nn.Module):
    """A k x k convolution split into a row and a column."""

    def __init__(self, c1, c2, k=3, s=1, g=1, e=1.0, shortcut=False):
        super().__init__()
        inner = int(c2 * e)
        self.cv1 = Conv(c1, inner, (1, k), (1, s))
        self.cv2 = Conv(inner, c2, (k, 1), (s, 1), g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class MixConv2d(nn.Module):
    """Convolutions with kernels of several sizes side by side, then one norm (MixConv, arXiv 1907.09595).

    Args:
        k: Kernel sizes.
        equal_ch: As many channels for each size, or about as many weights.
    """

    def __init__(self, c1, c2, k=(1, 3), s=1, equal_ch=True):
        super().__init__()
        n = len(k)
        if equal_ch:  # YOLOv5's shares: channel j belongs to kernel floor(n j / (c2 - 1))
            ends = [math.ceil((i + 1) * (c2 - 1) / (n - 1e-6)) for i in range(n)]
        else:
            weights = [side**-2 for side in k]
            ends = [sum(round(c2 * w / sum(weights)) for w in weights[: i + 1]) for i in range(n - 1)] + [c2]
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        self.m = nn.ModuleList(
            nn.Conv2d(c1, c, side, s, side // 2, groups=math.gcd(c1, c), bias=False)
            for side, c in zip(k, sizes, strict=True)
        )
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(torch.cat([conv(x) for conv in self.m], 1)))


MixConv2d.__module__ = "models.experimental"  # where YOLOv5 has it, by which its checkpoints name it


class BottleneckCSP(nn.Module):
    """Cross-stage-partial block with plain convolutions at the split and one norm after the join (CSPNet, 2019)."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__()
        inner = int(c2 * e)
        self.cv1 = Conv(c1, inner, 1, 1)
        self.cv2 = nn.Conv2d(c1, inner, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(inner, inner, 1, 1, bias=False)
        self.cv4 = Conv(2 * inner, c2, 1, 1)
        self.bn = nn.BatchNorm2d(2 * inner)
        self.act = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(inner, inner, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(y)))


class C3(nn.Module):
    """Cross-stage-partial block with three convolutions: half of the channels pass `n` bottlenecks, half pass by."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__()
        inner = int(c2 * e)
        self.cv1 = Conv(c1, inner, 1, 1)
        self.cv2 = Conv(c1, inner, 1, 1)
        self.cv3 = Conv(2 * inner, c2, 1)
        self.m = self.blocks(inner, n, shortcut, g)

    def blocks(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(Bottleneck(c, c, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3x(C3):
    """C3 with cross convolutions."""

    def blocks(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(c, c, 3, 1, g, 1.0, shortcut) for _ in range(n)))


class C3TR(C3):
    """C3 with a transformer block."""

    def blocks(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return TransformerBlock(c, c, 4, n)


class C3SPP(C3):
    """C3 with a spatial pyramid."""

    def __init__(self, c1, c2, k=(5, 9, 13), n=1, shortcut=True, g=1, e=0.5):
        super().__init__(c1, c2, n, shortcut, g, e)
        inner = int(c2 * e)
        self.m = SPP(inner, inner, k)


class C3Ghost(C3):
    """C3 with ghost bottlenecks."""

    def blocks(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(c, c) for _ in range(n)))


class SPP(nn.Module):
    """Spatial pyramid pooling: max pools of several sizes side by side (He et al., 2014, arXiv 1406.4729)."""

    def __init__(self, c1, c2, k=(5, 9, 13)):
        super().__init__()
        inner = c1 // 2
        self.cv1 = Conv(c1, inner, 1, 1)
        self.cv2 = Conv(inner * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(side, stride=1, padding=side // 2) for side in k)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class SPPF(nn.Module):
    """SPP(5, 9, 13) by three 5x5 max pools in a row: the same result with less work."""

    def __init__(self, c1, c2, k=5):
        super().__init__()
        inner = c1 // 2
        self.cv1 = Conv(c1, inner, 1, 1)
        self.cv2 = Conv(4 * inner, c2, 1, 1)
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [self.cv1(x)]
        for _ in range(3):
            pyramid.append(self.m(pyramid[-1]))
        return self.cv2(torch.cat(pyramid, 1))


class GhostConv(nn.Module):
    """Half of the channels by a convolution, half from those by a cheap depth-wise one (GhostNet, CVPR 2020)."""

    def __init__(self, c1, c2, k=1, s=1, g=1, act=True):
        super().__init__()
        inner = c2 // 2
        self.cv1 = Conv(c1, inner, k, s, None, g, act=act)
        self.cv2 = Conv(inner, inner, 5, 1, None, inner, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions and a shortcut, with depth-wise convolutions where it strides."""

    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        inner = c2 // 2
        down = s == 2
        self.conv = nn.Sequential(
            GhostConv(c1, inner, 1, 1),
            DWConv(inner, inner, k, s, act=False) if down else nn.Identity(),
            GhostConv(inner, c2, 1, 1, act=False),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False)) if down else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class TransformerLayer(nn.Module):
    """Self-attention and a linear two-layer block, both residual, without norms: [L, B, c] -> [L, B, c]."""

    def __init__(self, c, num_heads):
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=c, num_heads=num_heads)
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)[0] + x
        return self.fc2(self.fc1(x)) + x


class TransformerBlock(nn.Module):
    """Transformer layers over the pixels of a map, and a linear position term: [B, c1, H, W] -> [B, c2, H, W]."""

    def __init__(self, c1, c2, num_heads, num_layers):
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, num_heads) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = self.conv(x)
        pixels = x.flatten(2).permute(2, 0, 1)  # [H*W, B, c2]
        return self.tr(pixels + self.linear(pixels)).permute(1, 2, 0).reshape(x.shape)


class Concat(nn.Module):
    """Joins a list of maps along dimension `dimension`."""

    def __init__(self, dimension=1):
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Contract(nn.Module):
    """Moves blocks of `gain` x `gain` pixels into channels: [B, c, H, W] -> [B, c gain^2, H/gain, W/gain]."""

    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        s = self.gain
        return x.view(b, c, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4).reshape(b, c * s * s, h // s, w // s)


class Expand(nn.Module):
    """The reverse of `Contract`: [B, c, H, W] -> [B, c / gain^2, H gain, W gain]."""

    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        s = self.gain
        return x.view(b, s, s, c // s**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // s**2, h * s, w * s)
