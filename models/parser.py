"""Model yaml -> layers. Names are looked up in tables and arguments read as literals: nothing is evaluated."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models import common
from models.heads import Detect, ImageClassifier, ImageHead
from utils.boxes import make_divisible
from utils.system.paths import ROOT, find_file
from utils.system.yamls import load_yaml

PREVIOUS, IMAGE = -1, "image"  # sources of a row besides layer numbers

# layers whose first two arguments are the channels in and out; the yaml gives those out, before scaling by the width
CHANNEL_LAYERS = (
    common.Conv, common.DWConv, common.DWConvTranspose2d, common.Focus, common.CrossConv, common.MixConv2d,
    common.Bottleneck, common.BottleneckCSP, common.C3, common.C3x, common.C3TR, common.C3SPP, common.C3Ghost,
    common.SPP, common.SPPF, common.GhostConv, common.GhostBottleneck, nn.Conv2d, nn.ConvTranspose2d,
)  # fmt: skip
REPEATING_LAYERS = (common.BottleneckCSP, common.C3, common.C3x, common.C3TR, common.C3Ghost)  # third argument: repeats
BRANCHES = (ImageHead, ImageClassifier)
LAYERS = {
    layer.__name__: layer
    for layer in (*CHANNEL_LAYERS, common.Concat, common.Contract, common.Expand, Detect, *BRANCHES)
    if not layer.__module__.startswith("torch.")
}
# rows of YOLOv5's other models, which are no part of this project
OTHER_TASKS = {
    "Segment": "the head of YOLOv5's segmentation models",
    "Proto": "a part of YOLOv5's segmentation models",
    "Classify": "the head of YOLOv5's classification models",
}


class RowError(ValueError):
    """A row of a model yaml that cannot be built."""


def load_model_yaml(cfg: str | Path | Mapping) -> tuple[dict, str]:
    """Content of a model yaml, checked for its keys, and the name to use in messages.

    Args:
        cfg: A path, a name such as `yolov5s.yaml` (looked up in `models/` and `models/hub/`), or the content.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is missing or of the wrong type.
    """
    if isinstance(cfg, Mapping):
        content, name = copy.deepcopy(dict(cfg)), str(cfg.get("yaml_file", "model yaml"))
    else:
        path = find_file(cfg, (ROOT / "models", ROOT / "models" / "hub"))
        content, name = load_yaml(path), path.name
    if not isinstance(content, dict):
        raise ValueError(f"{name}: a model yaml has the keys nc, anchors, backbone, head; this is no such mapping")
    for key in ("backbone", "head"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise ValueError(f"{name}: `{key}:` must be a list of rows [from, number, module, args]")
    return content, name


def parse_activation(text: str) -> nn.Module:
    """Module from text such as `nn.SiLU()` or `nn.LeakyReLU(0.1, inplace=True)`.

    Raises:
        ValueError: It is no call of a torch.nn layer with literal arguments.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        name = call.func
        if not (isinstance(name, ast.Attribute) and ast.unparse(name.value) in ("nn", "torch.nn")):
            raise ValueError
        args = [ast.literal_eval(a) for a in call.args]
        return _torch_layer(name.attr)(*args, **{k.arg: ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, AttributeError, TypeError, ValueError) as e:
        raise ValueError(f"`{text}` is not understood; write a torch.nn layer such as nn.ReLU()") from e


def _torch_layer(name: str) -> type[nn.Module]:
    layer = None if name.startswith("_") else getattr(nn, name, None)
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"torch.nn has no layer `{name}`")
    return layer


def _layer_class(name: Any) -> type[nn.Module]:
    if isinstance(name, str) and name.startswith("nn."):
        return _torch_layer(name[3:])
    if isinstance(name, str) and name in LAYERS:
        return LAYERS[name]
    if isinstance(name, str) and name in OTHER_TASKS:
        raise ValueError(f"`{name}` is {OTHER_TASKS[name]}; here are detection models, with ImageHead joint ones")
    close = difflib.get_close_matches(str(name), LAYERS, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(LAYERS)} and nn.* of torch"
    raise ValueError(f"unknown module `{name}`; {hint}")


def _argument(value: Any, constants: Mapping[str, Any]) -> Any:
    """A yaml argument with names such as `nc` filled in; text that is no literal stays text."""
    if isinstance(value, list):
        return [_argument(v, constants) for v in value]
    if not isinstance(value, str):
        return value
    if value in constants:
        return constants[value]
    if value.startswith(("nn.", "torch.nn.")):
        return parse_activation(value)
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def parse_model(content: Mapping, file: str = "model yaml") -> tuple[list[nn.Module], list[int]]:
    """Builds the layers of a model yaml.

    A row is `[from, number, module, args]`. `from` is a layer number, a negative one counted from the row, `image` for
    the input picture, or a list of these. A `number` above 1 is multiplied by `depth_multiple`, channels by
    `width_multiple` (then raised to a multiple of 8).

    Args:
        content: Keys backbone, head, nc, anchors; depth_multiple, width_multiple, cls_nc, ch, activation, activations
            (of single layers: {path: layer}) where needed.
        file: Name for messages.

    Returns:
        The layers, each with its number `.i`, the yaml's from `.f`, `.sources` (layer numbers, PREVIOUS or IMAGE),
        `.type` and its parameter count `.np`; and the sorted numbers of the layers whose output a later row names.

    Raises:
        ValueError: A row cannot be built; the message names file, row and layer.
    """
    rows = [
        (f"{file}, {part} row {k + 1}", row) for part in ("backbone", "head") for k, row in enumerate(content[part])
    ]
    rows = _without_branch(rows) if content.get("cls_nc") == 0 else rows
    builder = _Builder(content)
    for i, (place, row) in enumerate(rows):
        try:
            builder.add(row)
        except (ValueError, TypeError, IndexError, RuntimeError) as e:
            raise RowError(f"{place} (layer {i}) {row}: {e}") from e
    found = [sum(isinstance(m, kind) for m in builder.layers) for kind in (Detect, BRANCHES)]
    if found[0] != 1 or found[1] > 1:
        raise RowError(f"{file}: {found[0]} Detect rows and {found[1]} image branches; 1 and at most 1 are possible")
    if content.get("activation"):
        _replace_activation(builder.layers, parse_activation(content["activation"]))
    for path, text in (content.get("activations") or {}).items():
        _replace_one_activation(builder.layers, path, parse_activation(text))
    return builder.layers, sorted(builder.named)


def _without_branch(rows: list) -> list:
    """Rows without the image branch and what serves it alone, which is all that stands below Detect."""
    detect = next((i for i, (_, row) in enumerate(rows) if row[2:3] == ["Detect"]), len(rows))
    return rows[: detect + 1]


def _replace_activation(layers: list[nn.Module], act: nn.Module) -> None:
    for layer in layers:
        for m in layer.modules():
            if isinstance(m, common.Conv) and m.act is common.Conv.default_act:
                m.act = act


def _replace_one_activation(layers: list[nn.Module], path: str, act: nn.Module) -> None:
    """Sets the activation of the layer at `path`, such as `model.2.m.0`."""
    try:
        layer = nn.Sequential(*layers).get_submodule(str(path).removeprefix("model."))
        if not isinstance(layer.act, nn.Module):
            raise AttributeError
    except AttributeError:
        raise RowError(f"activations: there is no layer with an activation at `{path}`") from None
    layer.act = act


class _Builder:
    """Adds row after row and knows the channels of each layer's output (None: no map)."""

    def __init__(self, content: Mapping) -> None:
        self.depth, self.width = float(content.get("depth_multiple", 1)), float(content.get("width_multiple", 1))
        self.multiple = int(content.get("channel_multiple") or 8)
        self.image_channels = int(content.get("ch", 3))
        self.constants = {k: content.get(k) for k in ("nc", "cls_nc", "anchors")}
        anchors = content.get("anchors")
        na = anchors if isinstance(anchors, int) else len(anchors[0]) // 2 if anchors else 0
        self.detect_width = na * (int(content.get("nc") or 0) + 5)
        self.layers: list[nn.Module] = []
        self.channels: list[int | None] = []
        self.named: set[int] = set()

    def add(self, row: Any) -> None:
        if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
            raise ValueError("a row is [from, number, module, [arguments]]")
        source, number, name, args = row
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"number is {number!r}, but must be a whole number from 1")
        kind = _layer_class(name)
        args = [_argument(a, self.constants) for a in args]
        repeats = max(round(number * self.depth), 1) if number > 1 else number
        is_list = isinstance(source, list)
        sources = [self._source(s) for s in (source if is_list else [source])]
        inputs = [self._channels_of(s) for s in sources]

        if kind in (Detect, ImageHead, common.Concat) and not is_list:
            raise ValueError(f"{name} reads a list of layers, such as [[17, 20, 23], 1, {name}, …]")
        if kind not in (Detect, ImageHead, common.Concat) and is_list:
            raise ValueError(f"{name} reads one layer, not a list")
        if kind in CHANNEL_LAYERS:
            out = self._scaled(int(args[0]))
            args = [inputs[0], out, *args[1:]]
            if kind in REPEATING_LAYERS:
                args.insert(2, repeats)
                repeats = 1
        elif kind is common.Concat:
            out = sum(inputs)
        elif kind is common.Contract:
            out = inputs[0] * (args[0] if args else 2) ** (2 * repeats)
        elif kind is common.Expand:
            out = inputs[0] // (args[0] if args else 2) ** (2 * repeats)
        elif kind is Detect:
            out, args = None, self._detect_args(args, inputs)
        elif kind in BRANCHES:
            out, args = None, self._branch_args(kind, args, inputs)
        else:
            out = inputs[0]
            args = [out] if kind is nn.BatchNorm2d else args

        layer = kind(*args) if repeats == 1 else nn.Sequential(*(kind(*args) for _ in range(repeats)))
        layer.i, layer.f, layer.sources, layer.type = len(self.layers), source, sources, name
        layer.args = [a if isinstance(a, (int, float, str, list, bool, type(None))) else str(a) for a in args]
        layer.np = sum(p.numel() for p in layer.parameters())
        self.layers.append(layer)
        self.channels.append(out)
        self.named.update(s for s in sources if s not in (PREVIOUS, IMAGE))

    def _source(self, source: Any) -> int | str:
        i = len(self.layers)
        if source in (IMAGE, PREVIOUS):
            return source
        if not isinstance(source, int) or isinstance(source, bool) or not -i <= source < i:
            raise ValueError(f"from {source!r} is no earlier layer (0 to {i - 1}, or -{i} to -1, or `image`)")
        return source % i

    def _channels_of(self, source: int | str) -> int:
        if source == IMAGE or (source == PREVIOUS and not self.layers):
            return self.image_channels
        channels = self.channels[source]
        if channels is None:
            raise ValueError(f"from {source}: layer {source % len(self.layers)} gives an answer, not a map to read")
        return channels

    def _scaled(self, channels: int) -> int:
        # YOLOv5 leaves a layer that is as wide as Detect's output unscaled, and its checkpoints have that width
        if channels == self.detect_width:
            return channels
        return make_divisible(channels * self.width, self.multiple)

    def _detect_args(self, args: list, inputs: list[int]) -> list:
        nc, anchors = args
        if not isinstance(nc, int) or nc < 1:
            raise ValueError(f"nc is {nc!r}, but must be a whole number from 1")
        if isinstance(anchors, int):
            if anchors < 1:
                raise ValueError(f"anchors is {anchors}, but must be at least 1 per level")
            return [nc, anchors, inputs]
        lengths = [len(level) for level in anchors]
        if len(lengths) != len(inputs) or len(set(lengths)) != 1 or lengths[0] % 2:
            raise ValueError(
                f"{len(inputs)} levels need as many anchor rows of w, h pairs, all of one length: {anchors}"
            )
        return [nc, anchors, inputs]

    def _branch_args(self, kind: type, args: list, inputs: list[int]) -> list:
        if not any(isinstance(m, Detect) for m in self.layers):
            raise ValueError("put the image branch below Detect, whose layer number the checkpoints know")
        if not args or not isinstance(args[0], int) or args[0] < 2:
            raise ValueError("the image branch needs the number of image classes, 2 at least: set `cls_nc:`")
        if kind is ImageClassifier:
            return [inputs[0], *args]
        cls_nc, hidden, *rest = args if len(args) > 1 else (*args, 192)
        return [inputs, cls_nc, make_divisible(hidden * self.width, self.multiple), *rest]
