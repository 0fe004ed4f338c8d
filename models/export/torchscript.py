"""TorchScript: the traced network, with what it says of itself in `config.txt`, as YOLOv5 has it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.export.network import ExportNetwork, tracing


class Answers(torch.nn.Module):
    """The network's answer as a tuple even where it is a single tensor: programs take YOLOv5's files apart so."""

    def __init__(self, network: ExportNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answer = self.network(images)
        return (answer,) if isinstance(answer, Tensor) else answer


def write_torchscript(network: ExportNetwork, file: Path, optimize: bool = False) -> None:
    """Traces the network into `file`.

    Args:
        optimize: For mobile devices: rewritten for XNNPACK, with the byte code of PyTorch's lite interpreter.

    Raises:
        ValueError: `optimize` for a network that is not on the processor, or by a PyTorch without XNNPACK.
    """
    if optimize and network.example.device.type != "cpu":
        raise ValueError("--optimize rewrites the network for mobile processors: use --device cpu")
    extra = {"config.txt": network.metadata.to_json()}
    with tracing(), torch.no_grad():
        traced = torch.jit.trace(Answers(network), network.example, check_trace=False, strict=False)
        if optimize:
            from torch.utils.mobile_optimizer import optimize_for_mobile

            try:
                optimized = optimize_for_mobile(traced)
            except RuntimeError as e:
                raise ValueError(f"--optimize: this PyTorch cannot do it ({str(e).strip().splitlines()[0]})") from e
            optimized._save_for_lite_interpreter(str(file), _extra_files=extra)
        else:
            torch.jit.save(traced, str(file), _extra_files=extra)
