"""What YOLOv5's checkpoints hold: weights, model yaml, names and options out of a pickled network that is only read."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.weights.reader import Stub, array_of, refuse_expanded

MAX_MODULES, MAX_VALUES = 20_000, 1_000_000  # far beyond any network and its options


def facts_of_yolov5(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `Checkpoint` from the content of a file of YOLOv5 v5.0 or later.

    Raises:
        ValueError: There is no network in it, or one that is not what it looks like.
    """
    model = content.get("model")
    ema = content.get("ema")
    ema = ema[0] if isinstance(ema, (tuple, list)) and ema else ema  # early releases kept (average, updates)
    best = ema if isinstance(ema, Stub) else model
    if not isinstance(best, Stub) or not isinstance(best.state.get("yaml"), dict):
        bare = any(isinstance(v, Tensor) for v in content.values())
        raise ValueError(f"holds {'bare weights without a model yaml' if bare else 'no YOLOv5 detection model'}")
    try:
        averaged = _independent(state_dict_of(best))
        weights = averaged if best is model or not isinstance(model, Stub) else _independent(state_dict_of(model))
        model_yaml = _with_activations(copy.deepcopy(plain(best.state["yaml"])), best)
        names = plain(best.state.get("names") or list(map(str, range(model_yaml["nc"]))))
        names = names if isinstance(names, dict) else dict(enumerate(names))
        opt = plain(content.get("opt")) or {}
        hyp = opt.get("hyp") if isinstance(opt.get("hyp"), dict) else plain(best.state.get("hyp"))
        fitness = plain(content.get("best_fitness"))
        fitness = fitness[0] if isinstance(fitness, list) and fitness else fitness
        stride = [float(s) for s in plain(best.state["stride"])]
        date = content.get("date")
        return {
            "epoch": int(content.get("epoch", -1)),
            "best_fitness": None if fitness is None else float(fitness),
            "model_yaml": model_yaml,
            "state_dict": averaged,
            "model_state_dict": weights,
            "names": {int(k): str(v) for k, v in names.items()},
            "cls_names": {},
            "stride": stride,
            "anchors": pixel_anchors(averaged, stride),
            "opt": opt,
            "hyp": hyp or {},
            "date": date if isinstance(date, str) else None,
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError, MemoryError) as e:
        raise ValueError(f"not the YOLOv5 checkpoint that it looks like ({type(e).__name__}: {e})") from e


def pixel_anchors(state: Mapping[str, Tensor], stride: list[float]) -> list[list[list[float]]]:
    """Anchors of a state dict in pixels, per level a list of (w, h); [] where there are none."""
    anchors = next((v for k, v in state.items() if k.endswith(".anchors")), None)
    if anchors is None or len(anchors) != len(stride):
        return []
    return (anchors.float() * torch.tensor(stride).view(-1, 1, 1)).tolist()


def modules_of(module: Any) -> Iterator[tuple[str, Stub]]:
    """Path and stub of a module and of all below it, in PyTorch's order; one in several places under each path.

    Raises:
        ValueError: Something there is no module, or they are more than any network has: a few that hold each other
            several times over have paths without end.
    """
    left, count = [("", module, 0)], 0
    while left:
        path, m, depth = left.pop()
        count += 1
        if not isinstance(m, Stub) or depth > 32:
            raise ValueError(f"`{path or 'model'}` is no module")
        if count > MAX_MODULES:
            raise ValueError(f"more than {MAX_MODULES} modules")
        yield path, m
        children = [(n, c) for n, c in (m.state.get("_modules") or {}).items() if c is not None]
        left += [(f"{path}.{name}" if path else name, child, depth + 1) for name, child in reversed(children)]


def state_dict_of(module: Any) -> dict[str, Tensor]:
    """State dict of a stubbed module: parameters and persistent buffers under YOLOv5's names, in PyTorch's order.

    Raises:
        ValueError: It is no module, or a tensor is larger than what the file stores of it.
    """
    out: dict[str, Tensor] = {}
    for path, m in modules_of(module):
        transient = m.state.get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            for name, value in (m.state.get(group) or {}).items():
                if isinstance(value, Tensor) and name not in transient:
                    out[f"{path}.{name}" if path else name] = value
    refuse_expanded(out)
    return out


def plain(value: Any) -> Any:
    """Plain Python values of what the file holds: numpy numbers become numbers, paths and anything unknown text.

    Raises:
        ValueError: They are nested too deeply, or more than any options.
    """
    count = 0

    def convert(value: Any, depth: int) -> Any:
        nonlocal count
        count += value.numel() if isinstance(value, Tensor) else 1
        if depth > 16 or count > MAX_VALUES:
            raise ValueError("values are nested too deeply" if depth > 16 else f"more than {MAX_VALUES} values")
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        if isinstance(value, dict):
            return {convert(k, depth + 1): convert(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (set, frozenset)):
            return {convert(v, depth + 1) for v in value}
        if isinstance(value, (list, tuple)):
            return type(value)(convert(v, depth + 1) for v in value)
        if isinstance(value, (np.ndarray, np.generic, Tensor)):
            return value.tolist()
        if isinstance(value, Stub) and value.origin == "argparse.Namespace":
            return convert(value.state, depth + 1)
        if isinstance(value, Stub) and value.origin == "numpy.ndarray":
            return array_of(value).tolist()
        return f"<{value.origin}>" if isinstance(value, Stub) else str(value)

    return convert(value, 0)


def _independent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float().clone() if v.is_floating_point() else v.clone() for k, v in state.items()}


def _with_activations(model_yaml: dict[str, Any], model: Stub) -> dict[str, Any]:
    """A model yaml with keys for the activations that the layers would not have by themselves.

    `activation` is that of the plain convolutions where it is not YOLOv5's usual SiLU; the yaml's own stays where it is
    of the same kind, since it has the arguments (nn.ELU(0.5)). `activations` maps the paths of layers with another one
    to theirs (v5.0 has a LeakyReLU inside of BottleneckCSP, for example).
    """
    found: dict[str, tuple[bool, str]] = {}

    for path, m in modules_of(model):
        act = (m.state.get("_modules") or {}).get("act")
        if isinstance(act, Stub) and not act.origin.endswith(".Identity"):
            slope = act.state.get("negative_slope")
            text = f"nn.{type(act).__name__}({'' if slope is None else float(slope)})"
            found[path] = m.origin in ("models.common.Conv", "models.common.DWConv"), text
    of_convs = Counter(text for is_conv, text in found.values() if is_conv).most_common(1)
    usual = of_convs[0][0] if of_convs else "nn.SiLU()"
    others = {path: text for path, (is_conv, text) in found.items() if text != (usual if is_conv else "nn.SiLU()")}
    keys = {"activation": usual if usual != "nn.SiLU()" else None, "activations": others}
    if str(model_yaml.get("activation")).removeprefix("torch.").partition("(")[0] == usual.partition("(")[0]:
        keys["activation"] = None
    return model_yaml | {key: value for key, value in keys.items() if value}
