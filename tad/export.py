"""The temporal detector as an ONNX file: frames of a window → what the head says of every point in time."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from models.export.check import TOLERANCE, Difference, compare
from models.export.onnx import describe, traced
from tad.backbone import MEAN
from tad.model import TadModel
from utils.system.files import whole_file
from utils.system.packages import need

INPUTS, OUTPUTS = ["frames", "mask"], ["logits", "offsets", "valid"]
LARGEST = 2**31  # bytes of an ONNX file in one piece


class Exported(nn.Module):
    """A copy of a network whose position table is already that of its pictures' size.

    `forward` is that of `TadModel`, without autocast, for one window of `config.frames` frames.
    """

    def __init__(self, model: TadModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
        backbone, side = self.model.backbone, model.config.imgsz // model.config.patch
        backbone.pos_embed, backbone.grid = backbone.positions(side, side), side
        self.eval()  # the exporter puts a network back into the mode that it found it in

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model(frames, mask)

    def example(self, valid: int, seed: int) -> tuple[Tensor, Tensor]:
        """Noise around the mean colour, uint8 [1,3,T,H,W], and a mask of which the first `valid` frames are real."""
        c, generator = self.model.config, torch.Generator().manual_seed(seed)
        noise = 50 * torch.randn(1, 3, c.frames, c.imgsz, c.imgsz, generator=generator)
        frames = (noise + torch.tensor(MEAN).view(3, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
        return frames, torch.arange(c.frames)[None] < valid


def texts(model: TadModel) -> dict[str, str]:
    """What the file says of itself; `config` is JSON, `names` and `stride` are Python literals as in other exports."""
    c = model.config
    return {
        "description": "YOLOv5-Joint, events in clips",
        "task": "temporal detection",
        "names": str(model.names),
        "stride": str([2**level for level in range(c.levels)]),
        "points": str([c.frames // 2**level for level in range(c.levels)]),
        "frames": str(c.frames),
        "frame_stride": str(c.frame_stride),
        "imgsz": str([c.imgsz, c.imgsz]),
        "config": json.dumps(dataclasses.asdict(c)),
    }


def difference(network: Exported, session) -> float:
    """Largest scaled difference (see `compare`) of a file's answers from the network's, for a full and a padded window.

    Answers at points that are not real mean nothing, and are not compared.
    """
    total, frames = Difference(), network.model.config.frames
    for seed, valid in enumerate((frames, max(1, frames * 2 // 3))):
        inputs = network.example(valid, seed)
        with torch.inference_mode():
            ours = network(*inputs)
        theirs = session.run(OUTPUTS, {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)})
        theirs = [torch.from_numpy(x) for x in theirs]
        real = ours[2]
        if not torch.equal(theirs[2], real):
            return float("inf")
        for a, b in zip(theirs[:2], ours[:2], strict=True):
            compare(total, "scores", a[real], b[real])
    return total.scaled


def export_onnx(model: TadModel, file: Path, opset: int = 17) -> float:
    """Write a network to `file`, compare it with PyTorch, and return the largest difference (see `difference`).

    Inputs `frames` uint8 [1,3,T,H,W] and `mask` bool [1,T]; outputs those of `TadModel.forward`, the points of all
    levels one after another (`points` of each, says the metadata).

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is not installed.
        ValueError: An opset that cannot be written, or a file that answers otherwise; then nothing is written.
    """
    if (size := 4 * sum(p.numel() for p in model.parameters())) >= LARGEST:
        raise ValueError(f"{file}: the network has {size / 1e9:.2g} GB of weights, and a file holds 2 GiB")
    onnx, runtime = (need(package, "the format onnx") for package in ("onnx", "onnxruntime"))
    network = Exported(model)
    graph = traced(network, network.example(model.config.frames, 0), INPUTS, OUTPUTS, opset)
    describe(graph, texts(model))
    onnx.checker.check_model(graph)
    with whole_file(file) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        session = runtime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        apart = difference(network, session)
        if not apart <= TOLERANCE:
            raise ValueError(
                f"{file} answers otherwise than the network it was made from: largest difference {apart:.1e} "
                f"(relative above 1), allowed are {TOLERANCE:.0e}; nothing was written"
            )
    return apart
