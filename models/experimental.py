"""Loaders under the names that scripts written for YOLOv5 import; `models.load` does their work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.answer import Answer
from models.common import MixConv2d
from models.export.readers import tell_nms
from models.load import device_of, input_dtype, largest_stride, load_model, name_classes
from utils.dataset.config import DataConfig
from utils.downloads import attempt_download

__all__ = ["DetectMultiBackend", "Ensemble", "MixConv2d", "attempt_download", "attempt_load"]


def attempt_load(
    weights: str | Path | Sequence[str | Path],
    device: torch.device | str | None = None,
    inplace: bool = True,
    fuse: bool = True,
    map_location: torch.device | str | None = None,
) -> nn.Module:
    """A network for inference from a weight file, or an ensemble from several.

    Args:
        device: Where to compute; None: the processor.
        inplace: Without effect: nothing here writes in place.
        fuse: Fold batch normalisation into the convolutions.
        map_location: The name that `device` had until v6.1.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a weight file.
    """
    return load_model(weights, device or map_location or "cpu", fuse)


class Ensemble(nn.ModuleList):
    """Networks in evaluation mode that answer together, as loaders that were copied from YOLOv5 fill it by `append`."""

    def forward(self, x: Tensor, augment: bool = False, profile: bool = False, visualize: bool = False) -> Answer:
        """Pictures [B,3,H,W] → (the boxes of all [B,n,5+nc], None); see `Answer.together`."""
        return Answer.together([m(x, augment=augment) for m in self])


class DetectMultiBackend(nn.Module):
    """A network for inference from a weight file of any format, with the attributes that YOLOv5's scripts read.

    Args:
        weights: A weight file, or several for an ensemble.
        device: Where to compute.
        dnn: Run .onnx files by OpenCV.
        data: Data yaml for the names of exported files that have none.
        fp16: float16; on CUDA only.
        fuse: Fold batch normalisation into the convolutions.

    Attributes:
        model: From `load_model`.
        names, stride: Class names by number; pixels that sides of pictures are a multiple of.
        pt, jit, onnx, engine, triton: Whether the (first) file is of that format.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a weight file.
    """

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path] = "yolov5s.pt",
        device: torch.device | str = "cpu",
        dnn: bool = False,
        data: DataConfig | str | Path | None = None,
        fp16: bool = False,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.fp16 = fp16 and self.device.type == "cuda"
        self.model = load_model(weights, self.device, fuse, half=self.fp16, dnn=dnn)
        name_classes(self.model, data)
        tell_nms(self.model)
        self.names, self.stride = self.model.names, largest_stride(self.model)
        name = str(weights if isinstance(weights, (str, Path)) else weights[0]).partition("?")[0]
        self.pt, self.jit, self.onnx = (name.endswith(s) for s in (".pt", ".torchscript", ".onnx"))
        self.engine = self.triton = False  # formats that are not read here

    def forward(
        self, im: Tensor, augment: bool = False, visualize: bool | str | Path = False
    ) -> Tensor | list[Tensor | list[Tensor] | None]:
        """Pictures [B,3,H,W], RGB in 0..1 → a list: decoded boxes [B,n,5+nc], raw maps (None with `augment`, and of an
        ensemble), and of a joint network image-level probabilities [B,cls_nc]. An exported file gives no maps, and the
        boxes alone are no list.

        `visualize` is without effect: see `detect.py --visualize`.
        """
        answer = self.model(im.to(device_of(self.model), input_dtype(self.model)), augment=augment)
        outputs = [answer.boxes, answer.maps] if self.pt else [answer.boxes]
        outputs += [] if answer.probs is None else [answer.probs]
        return outputs if len(outputs) > 1 else outputs[0]

    def from_numpy(self, x: np.ndarray | Tensor) -> Tensor:
        """An array as a tensor on the network's device."""
        return torch.as_tensor(x, device=self.device)

    def warmup(self, imgsz: Sequence[int] = (1, 3, 640, 640)) -> None:
        """A first pass on a GPU, where it takes longer than the others."""
        if self.device.type == "cuda":
            self.forward(torch.zeros(*imgsz, device=self.device, dtype=input_dtype(self.model)))
