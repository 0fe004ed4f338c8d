"""ONNX: the traced network as a graph, with non-max suppression inside on request."""

from __future__ import annotations

import inspect
import io

import torch

from models.export.metadata import Metadata
from models.export.network import ExportNetwork, tracing
from models.export.onnx_nms import add_nms
from utils.system.packages import need

OPSETS = range(12, 21)  # what PyTorch's tracing exporter writes, from the first with the operators that are needed
INPUT, BOXES, PROBS = "images", "output0", "image_probs"


def traced(
    network: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    names: list[str],
    outputs: list[str],
    opset: int,
    axes: dict[str, dict[int, str]] | None = None,
):
    """What a network does with `inputs` as an `onnx.ModelProto`.

    Args:
        names, outputs: Of the graph's inputs and outputs.
        opset: Version of the operators.
        axes: Those of other sizes than here, by input or output: number → name.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        ValueError: An opset that cannot be written.
    """
    onnx = need("onnx", "the format onnx")
    if opset not in OPSETS:
        raise ValueError(f"--opset {opset}: {OPSETS[0]} to {OPSETS[-1]} can be written")
    # The exporter that torch.export feeds writes opset 18 at least and takes fifty times longer.
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    buffer = io.BytesIO()
    with tracing(), torch.no_grad():
        torch.onnx.export(
            network, inputs, buffer, input_names=names, output_names=outputs, opset_version=opset,
            do_constant_folding=True, dynamic_axes=axes, **older,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def describe(model, texts: dict[str, str]) -> None:
    """Put into a model what it says of itself, in place of what it said."""
    del model.metadata_props[:]
    for key, text in texts.items():
        model.metadata_props.add(key=key, value=text)


def make_onnx(network: ExportNetwork, opset: int = 17):
    """The network as an `onnx.ModelProto`.

    Input `images` [B,3,H,W]; outputs `output0` [B,n,5+nc] and, with an image branch, `image_probs` [B,cls_nc].

    Raises:
        ModuleNotFoundError, ValueError: As `traced`.
    """
    outputs = [BOXES, PROBS] if network.metadata.cls_names else [BOXES]
    axes = None
    if network.metadata.dynamic:
        axes = {INPUT: {0: "batch", 2: "height", 3: "width"}, BOXES: {0: "batch", 1: "anchors"}, PROBS: {0: "batch"}}
        axes = {name: axes[name] for name in (INPUT, *outputs)}
    model = traced(network, (network.example,), [INPUT], outputs, opset, axes)
    for value in model.graph.output:
        if value.name == BOXES:  # tracing does not always find out how wide the rows are
            value.type.tensor_type.shape.dim[2].dim_value = network.model.nc + 5
    need("onnx", "the format onnx").checker.check_model(model)
    return model


def finish_onnx(model, metadata: Metadata, simplify: bool = False):
    """A copy of the model, with suppression inside where `metadata.nms` asks for it (`models.export.onnx_nms.add_nms`),
    and with what it says of itself.

    Args:
        simplify: Fold constants and drop what has no effect, by onnxslim.

    Raises:
        ModuleNotFoundError: onnxslim is not installed.
    """
    onnx = need("onnx", "the format onnx")
    new = onnx.ModelProto()
    new.CopyFrom(add_nms(model, BOXES, **metadata.nms) if metadata.nms else model)
    if simplify:
        new = need("onnxslim", "--simplify").slim(new)
    onnx.checker.check_model(new)
    describe(new, metadata.texts())
    return new
