"""YOLOv5's names around PyTorch, with its signatures, for programs that import them from a clone of it."""

from __future__ import annotations

import time

import torch
from torch import nn

from utils.system import devices

__all__ = ["load_classifier", "select_device", "smart_inference_mode", "time_sync", "time_synchronized"]


def select_device(
    device: str | int | torch.device = "", batch_size: int | None = 0, newline: bool = True
) -> torch.device:
    """See `utils.system.devices.select_device`; `newline` is without effect, since nothing is printed."""
    return devices.select_device("" if device is None else str(device), batch_size or 0)


def time_sync(device: torch.device | str | None = None) -> float:
    """Seconds of the clock, read once the device (None: the GPU, if there is one) has done its work."""
    name = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    devices.synchronize(torch.device(name))
    return time.time()


time_synchronized = time_sync  # its name in v5.0


def smart_inference_mode(torch_1_9: bool = True):
    """Decorator for functions that need no gradients; `torch_1_9` is without effect."""
    return torch.inference_mode()


def load_classifier(name: str = "resnet101", n: int = 2) -> nn.Module:
    """A network of torchvision for `n` classes, for `utils.general.apply_classifier`.

    Nothing is fetched: its weights are random until the caller loads some, where YOLOv5 fetches those of ImageNet.
    """
    import torchvision  # takes as long as PyTorch itself

    return torchvision.models.get_model(name, weights=None, num_classes=n)
