"""int8: convolutions in 8 bits, by the ranges that values have on training pictures (static quantisation).

Detect stays in float, since the decoding of boxes has values of a thousand pixels beside fractions of one, and so does
what follows the last convolutions of the image branch; these layers are too small to gain much.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.augmentations import letterbox
from utils.dataset.config import ensure_data, load_data_config
from utils.dataset.files import list_images
from utils.dataset.pictures import check_picture, read_picture
from utils.system.packages import need

PICTURES = 300  # that ranges are measured on; more change little
ONNX_TYPES = ("Conv", "Sigmoid", "Mul", "Add", "Concat", "MaxPool", "Resize")  # the others keep 8 bits between


@dataclass(frozen=True)
class Calibration:
    """Pictures of a training set as the network's inputs: `len` of them, each float32 [batch,3,H,W], RGB in 0..1.

    They are read whenever they are asked for: three hundred of 640 px would take 1.5 GB.
    """

    files: list[str]
    imgsz: tuple[int, int]
    batch: int

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.files), self.batch):
            chosen = [self.files[(start + i) % len(self.files)] for i in range(self.batch)]
            boxed = [letterbox(read_picture(file), self.imgsz, auto=False)[0] for file in chosen]
            yield np.stack([im[..., ::-1].transpose(2, 0, 1) for im in boxed]).astype(np.float32) / 255


def calibration_of(data: str | Path | dict, imgsz: tuple[int, int], batch: int) -> Calibration:
    """`PICTURES` of a data yaml's training pictures, or all where there are fewer, evenly taken.

    Raises:
        FileNotFoundError: No such yaml or no pictures.
        ValueError: The yaml names none.
    """
    config = load_data_config(data)
    ensure_data(config)
    files = list_images(config.train, config.path)
    files = [file for file in files[:: -(-len(files) // PICTURES) or 1] if _is_whole(file)]
    if not files:
        raise ValueError(f"--int8 measures on training pictures, and {config.source} has none under `train:`")
    return Calibration(files, imgsz, batch)


def _is_whole(picture: str) -> bool:
    """Whether it can be read; training leaves others out too."""
    try:
        check_picture(picture)
    except (ValueError, OSError):
        return False
    return True


def quantize_onnx(model, pictures: Calibration):
    """A copy of an ONNX model with pairs of QuantizeLinear and DequantizeLinear around what is to be in 8 bits.

    Args:
        model: `onnx.ModelProto` with float32 weights.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is not installed.
    """
    onnx = need("onnx", "--int8 for onnx")
    need("onnxruntime", "--int8 for onnx")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.inputs, None)
            return None if images is None else {model.graph.input[0].name: images}

    makers = {name: node for node in model.graph.node for name in node.output}
    kept = _last_layers(
        *(output.name for output in model.graph.output),
        inputs=lambda name: list(makers[name].input) if name in makers else [],
        is_convolution=lambda name: name in makers and makers[name].op_type == "Conv",
    )
    source = onnx.ModelProto()
    source.CopyFrom(model)  # quantising takes its weights out
    source.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # it asks for no more of it
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            source, file, Reader(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(ONNX_TYPES),
            per_channel=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=sorted({makers[name].name for name in kept if name in makers}),
        )  # fmt: skip
        return onnx.load(file)


def quantize_openvino(model, pictures: Calibration):
    """An OpenVINO model with FakeQuantize operations around what is to be in 8 bits.

    Args:
        model: `openvino.Model` with float32 weights, in which SiLU is one operation (`openvino.convert_model` makes it
            one): two would keep it out of the convolutions.

    Raises:
        ModuleNotFoundError: nncf is not installed.
    """
    nncf = need("nncf", "--int8 for openvino")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # else a line for each operation that stays in float32

    kept = _last_layers(
        *(output.get_node() for output in model.outputs),
        inputs=lambda node: [node.input_value(i).get_node() for i in range(node.get_input_size())],
        is_convolution=lambda node: node.get_type_name() in ("Convolution", "GroupConvolution"),
    )
    return nncf.quantize(
        model, nncf.Dataset(pictures), preset=nncf.QuantizationPreset.MIXED, subset_size=len(pictures),
        ignored_scope=nncf.IgnoredScope(names=sorted({node.get_friendly_name() for node in kept})),
    )  # fmt: skip


def _last_layers(
    boxes: Any, *others: Any, inputs: Callable[[Any], list], is_convolution: Callable[[Any], bool]
) -> list:
    """What the boxes are computed by from the last convolutions on, with them, and the other answers without them,
    which may be those of the trunk."""
    found: dict[Any, None] = {}
    for answer in (boxes, *others):
        stack = [answer]
        while stack:
            node = stack.pop()
            if node in found or (is_convolution(node) and answer is not boxes):
                continue
            found[node] = None
            stack += [] if is_convolution(node) else inputs(node)
    return list(found)
