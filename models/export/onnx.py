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


def make_onnx(network: ExportNetwork, opset: int = 17):
    """The network as an `onnx.ModelProto`.

    Input `images` [B,3,H,W]; outputs `output0` [B,n,5+nc] and, with an image branch, `image_probs` [B,cls_nc].

    Args:
        opset: Version of the operators.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        ValueError: An opset that cannot be written.
    """
    onnx = need("onnx", "the format onnx")
    if opset not in OPSETS:
        raise ValueError(f"--opset {opset}: {OPSETS[0]} to {OPSETS[-1]} can be written")
    outputs = [BOXES, PROBS] if network.metadata.cls_names else [BOXES]
    axes = None
    if network.metadata.dynamic:
        axes = {INPUT: {0: "batch", 2: "height", 3: "width"}, BOXES: {0: "batch", 1: "anchors"}, PROBS: {0: "batch"}}
        axes = {name: axes[name] for name in (INPUT, *outputs)}
    # The exporter that torch.export feeds writes opset 18 at least and takes fifty times longer.
    older = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    buffer = io.BytesIO()
    with tracing(), torch.no_grad():
        torch.onnx.export(
            network, (network.example,), buffer, input_names=[INPUT], output_names=outputs, opset_version=opset,
            do_constant_folding=True, dynamic_axes=axes, **older,
        )  # fmt: skip
    model = onnx.load_from_string(buffer.getvalue())
    for value in model.graph.output:
        if value.name == BOXES:  # tracing does not always find out how wide the rows are
            value.type.tensor_type.shape.dim[2].dim_value = network.model.nc + 5
    onnx.checker.check_model(model)
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
    del new.metadata_props[:]
    for key, text in metadata.texts().items():
        new.metadata_props.add(key=key, value=text)
    return new
