"""The largest batch that fits into the memory of a CUDA device: `--batch-size -1`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.system.devices import autocast

TRIED = (1, 2, 4, 8, 16)  # batches that are measured; the memory of others lies on a line through these
DEFAULT = 16
SHARE = 0.8  # of the free memory; the rest is for the optimiser, the weight average and the loss
MOST = 1024


def auto_batch_size(
    model: nn.Module,
    imgsz: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """The batch for a training: by the free memory on CUDA, YOLOv5's default of 16 on other devices.

    Args:
        model: On any device; a copy of it is measured.
        imgsz: Side of the largest pictures in pixels.
        dtype: Of autocast; None is float32.

    Raises:
        ValueError: Not even one picture fits.
    """
    if device.type != "cuda":
        say(f"--batch-size -1 goes by the memory of a CUDA device; on {device.type.upper()} the batch is {DEFAULT}")
        return DEFAULT
    twin = copy.deepcopy(model).to(device).train()  # batch statistics and gradients of the model stay as they are
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    batch = fit_batch_size(partial(peak_of_a_step, twin, imgsz, device=device, dtype=dtype), free)
    del twin
    torch.cuda.empty_cache()
    say(f"--batch-size -1: {batch} pictures of {imgsz} px; {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free")
    return batch


def fit_batch_size(measure: Callable[[int], float], free: float) -> int:
    """The batch whose step takes `SHARE` of the free memory.

    Args:
        measure: Batch -> bytes that a step needs at its peak; raises `torch.OutOfMemoryError` where they are not there.
        free: Bytes.

    Raises:
        ValueError: Not even one picture fits.
    """
    sizes, peaks, limit = [], [], MOST
    for size in TRIED:
        try:
            peaks.append(measure(size))
            sizes.append(size)
        except torch.OutOfMemoryError:
            limit = max(sizes, default=0)  # what lies between was not seen to fit
            break
    if limit <= 1:
        if limit < 1:
            raise ValueError("--batch-size -1: not even one picture fits into the device's memory; try a lower --imgsz")
        return 1
    slope, start = np.polyfit(sizes, peaks, 1)
    if slope <= 0:  # a measurement that says nothing
        return min(DEFAULT, limit)
    return int(min(max((SHARE * free - start) / slope, 1), limit))


def peak_of_a_step(
    model: nn.Module, imgsz: int, batch: int, device: torch.device, dtype: torch.dtype | None = None
) -> int:
    """Bytes of a CUDA device that a forward and backward pass takes at its peak, beyond what is taken already."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with autocast(device, dtype is not None, dtype):
            output = model(torch.zeros(batch, 3, imgsz, imgsz, device=device))
        sum(t.float().sum() for t in _tensors(output)).backward()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    finally:
        model.zero_grad(set_to_none=True)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output:
            yield from _tensors(part)
