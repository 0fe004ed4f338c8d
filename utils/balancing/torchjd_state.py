"""State of torchjd's modules: it lives in plain attributes, which their own state_dict leaves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ON_PROCESSOR = {"_phi_t"}  # GradVac makes its running means there, on whatever device the gradients are


def copied(x: Tensor | None, device: torch.device | str = "cpu") -> Tensor | None:
    """A detached copy of a tensor on `device`; None stays None."""
    return None if x is None else x.detach().to(device, copy=True)


def _encode(value: Any) -> Any:
    """`value` in tensors, plain numbers and lists; raises TypeError for anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return ["array", torch.from_numpy(value.copy())]
    if isinstance(value, torch.dtype | torch.device):
        return [type(value).__name__, str(value).removeprefix("torch.")]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_encode(v) for v in value]]
    raise TypeError(type(value))


def _decode(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "array":
        return content.numpy().copy()
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "device":
        return device
    return (tuple if kind == "tuple" else list)(_decode(v, device) for v in content)


def module_state(module: nn.Module) -> dict[str, dict]:
    """Parameters, buffers and plain attributes of a module and its parts, as tensors and plain values."""
    ignored = set(vars(nn.Module()))
    state: dict[str, dict] = {}
    for path, part in module.named_modules():
        found = {**vars(part), **part._buffers, **part._parameters}
        state[path] = {}
        for key, value in found.items():
            if key in ignored:
                continue
            try:
                state[path][key] = _encode(value)
            except TypeError:
                continue  # solvers, optimisers and functions are made anew
    return state


def load_module_state(module: nn.Module, state: dict[str, dict], device: torch.device) -> None:
    """Put back what `module_state` took."""
    parts = dict(module.named_modules())
    for path, values in state.items():
        part = parts[path]
        for key, value in values.items():
            if key in part._parameters:
                with torch.no_grad():
                    part._parameters[key].copy_(value)
            elif key in part._buffers:
                part._buffers[key] = _decode(value, torch.device("cpu") if key in ON_PROCESSOR else device)
            else:
                vars(part)[key] = _decode(value, device)
