"""A network made ready for tracing, and the pictures to trace and check it with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.export.metadata import Metadata
from models.load import largest_stride
from models.yolo import Model


class ExportNetwork(nn.Module):
    """What an exported file computes: pictures [B,3,H,W], RGB, 0..1 → both answers.

    Args:
        model: A fused network in evaluation mode; a copy of it is taken.
        imgsz, batch: Height and width, and pictures a call, of `example`.
        dynamic: The graph serves pictures of any size and number; otherwise the cells of `imgsz` are constants in it.
        half: float16 weights and input; the answers stay float32.

    Attributes:
        metadata: What the file says of itself.
        example: Input to trace with, [batch,3,H,W].
    """

    def __init__(
        self, model: Model, imgsz: tuple[int, int], batch: int = 1, dynamic: bool = False, half: bool = False
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.model.detect.dynamic = dynamic
        if half:
            self.model.half()
        stride, channels = largest_stride(model), model.yaml["ch"]
        cls_names = dict(model.cls_names) if model.cls_nc else {}
        self.metadata = Metadata(dict(model.names), cls_names, stride, channels, imgsz, batch, dynamic, half)
        self.example = random_pictures(batch, channels, imgsz).to(next(self.model.parameters()))
        with torch.inference_mode():
            self.forward(self.example)  # fills the cells of a fixed size
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """→ decoded boxes [B,n,5+nc], float32; with an image branch also its probabilities [B,cls_nc], float32."""
        answer = self.model(images)
        return answer.boxes if answer.logits is None else (answer.boxes, answer.probs)


def random_pictures(batch: int, channels: int, imgsz: tuple[int, int], seed: int = 0) -> Tensor:
    """Noise in 0..1, [batch,channels,H,W]: every weight of the network has its say."""
    return torch.rand(batch, channels, *imgsz, generator=torch.Generator().manual_seed(seed))


def smooth_pictures(batch: int, channels: int, imgsz: tuple[int, int], seed: int = 0) -> Tensor:
    """Soft coloured patches in 0..1, [batch,channels,H,W]: like a photograph, most of it changes slowly."""
    coarse = torch.rand(batch, channels, 6, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=imgsz, mode="bicubic", align_corners=False).clamp(0, 1)


@contextmanager
def tracing() -> Iterator[None]:
    """Without PyTorch's remarks on tracing: what they warn of is intended, or shows when the file is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Constant folding")  # of what is then computed at run time
        yield
