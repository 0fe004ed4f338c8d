"""What fits a device: batch, data workers and decoding threads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from utils.system.machine import core_count


@dataclass(frozen=True)
class Loading:
    """Numbers of one run, per process but for the batch.

    Attributes:
        batch: Windows of a training step over all devices; 0: the model yaml's.
        workers, prefetch, threads: Training's data workers, batches each of them holds ready, threads that decode.
        val_batch, val_workers, val_threads: The same for validation.
    """

    batch: int
    workers: int
    prefetch: int
    threads: int
    val_batch: int
    val_workers: int
    val_threads: int


# GiB of the device -> what users of the ViT-S recipe settled on; 16 is the published batch
PRESETS = {
    16: Loading(2, 2, 2, 4, 1, 0, 4),
    32: Loading(4, 6, 4, 8, 1, 0, 4),
    64: Loading(8, 12, 6, 12, 2, 4, 8),
}


def loading(memory: str, device: torch.device) -> Loading:
    """The preset for a device.

    `auto` takes the largest that a CUDA device holds. Without one the batch stays that of the model yaml, and no more
    workers and threads are started than there are cores.
    """
    if memory != "auto":
        return PRESETS[int(memory)]
    if device.type == "cuda":
        gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        return PRESETS[max((m for m in PRESETS if m <= gib * 1.05), default=16)]
    return Loading(0, max(core_count() - 1, 0), 2, 1, 1, max(core_count() - 1, 0), 1)
