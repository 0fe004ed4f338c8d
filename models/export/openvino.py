"""OpenVINO: a folder with the network (.xml), its weights (.bin) and what it says of itself (metadata.yaml)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from models.export.int8 import Calibration, quantize_openvino
from models.export.metadata import Metadata
from utils.system.packages import need, openvino_core

METADATA_FILE = "metadata.yaml"


def write_openvino(model, folder: Path, stem: str, metadata: Metadata, calibration: Calibration | None = None) -> None:
    """Converts an ONNX model.

    Args:
        model: `onnx.ModelProto`.
        folder: An empty folder.
        stem: Name of the files in it.
        metadata: With `half` the weights are stored in float16; what is computed with them stays float32.
        calibration: Write int8, with ranges measured on these pictures.

    Raises:
        ModuleNotFoundError: openvino, or for int8 nncf, is not installed.
    """
    openvino = need("openvino", "the format openvino")
    if calibration is None:
        converted = openvino_core().read_model(model.SerializeToString())
    else:
        with tempfile.TemporaryDirectory() as other:
            file = Path(other) / "float32.onnx"
            file.write_bytes(model.SerializeToString())
            converted = quantize_openvino(openvino.convert_model(file), calibration)
    openvino.save_model(converted, folder / f"{stem}.xml", compress_to_fp16=metadata.half)
    text = yaml.safe_dump(metadata.values(), sort_keys=False, allow_unicode=True)
    (folder / METADATA_FILE).write_text(text, encoding="utf-8")
