"""The formats that `export.py` writes: each function makes one file, reads it back and compares it with the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from models.export.check import Difference, check_export
from models.export.int8 import Calibration, quantize_onnx
from models.export.network import ExportNetwork
from models.export.onnx import finish_onnx, make_onnx
from models.export.openvino import write_openvino
from models.export.readers import ExportedModel, read_onnx, read_openvino, read_torchscript
from models.export.state_dict import check_state_dict, write_state_dict
from models.export.torchscript import write_torchscript
from models.export.yolov5 import check_yolov5, write_yolov5
from models.yolo import Model
from utils.system.files import whole_file, whole_folder


@dataclass
class Job:
    """One export: the weights, the network as it is read from them, and what the flags ask for."""

    path: Path
    model: Model
    imgsz: tuple[int, int]
    batch: int
    half: bool
    dynamic: bool
    optimize: bool
    simplify: bool
    opset: int
    nms: dict[str, Any] | None
    calibration: Calibration | None = None  # pictures to measure int8 on

    @property
    def stem(self) -> str:
        """What the names of files begin with that may be int8."""
        return f"{self.path.stem}_int8" if self.calibration else self.path.stem

    def network(self, half: bool, device: torch.device | None = None) -> ExportNetwork:
        model = self.model if device is None else copy.deepcopy(self.model).to(device)  # other formats are of this one
        return ExportNetwork(model, self.imgsz, self.batch, self.dynamic, half)


def export_torchscript(job: Job) -> tuple[Path, Difference]:
    """best.torchscript"""
    network, file = job.network(job.half), job.path.with_suffix(".torchscript")
    with whole_file(file) as temporary:
        write_torchscript(network, temporary, job.optimize)
        exported = read_torchscript(temporary, network.example.device)
        return file, check_export(network, exported, file, job.half)


def export_onnx(job: Job) -> tuple[Path, Difference]:
    """best.onnx, best_int8.onnx"""
    network, file = job.network(job.half), job.path.with_name(f"{job.stem}.onnx")
    model, device = make_onnx(network, job.opset), network.example.device
    if job.calibration:
        model = quantize_onnx(model, job.calibration)
    with whole_file(file) as temporary:

        def write(nms: dict | None) -> ExportedModel:
            finished = finish_onnx(model, replace(network.metadata, nms=nms), job.simplify)
            temporary.write_bytes(finished.SerializeToString())
            return read_onnx(temporary, device)

        plain = write(None) if job.nms else None
        return file, check_export(network, write(job.nms), file, job.half, plain, job.calibration)


def export_openvino(job: Job) -> tuple[Path, Difference]:
    """best_openvino_model/, best_int8_openvino_model/"""
    network, folder = job.network(False, torch.device("cpu")), job.path.with_name(f"{job.stem}_openvino_model")
    model, device = make_onnx(network, job.opset), network.example.device

    def write(nms: dict | None, target: Path) -> ExportedModel:
        metadata = replace(network.metadata, nms=nms, half=job.half)
        graph = finish_onnx(model, metadata, job.simplify)
        write_openvino(graph, target, job.path.stem, metadata, job.calibration)
        return read_openvino(target, device, exact=True)

    with whole_folder(folder) as temporary, TemporaryDirectory() as other:
        plain = write(None, Path(other)) if job.nms else None
        return folder, check_export(network, write(job.nms, temporary), folder, job.half, plain, job.calibration)


def export_state_dict(job: Job) -> tuple[Path, Difference]:
    """best_state_dict.pt"""
    file = job.path.with_name(f"{job.path.stem}_state_dict.pt")
    with whole_file(file) as temporary:
        write_state_dict(job.path, temporary)
        return file, check_state_dict(job.path, temporary, job.imgsz)


def export_yolov5(job: Job) -> tuple[Path, Difference]:
    """best_yolov5.pt"""
    file = job.path.with_name(f"{job.path.stem}_yolov5.pt")
    with whole_file(file) as temporary:
        write_yolov5(job.path, temporary)
        return file, check_yolov5(job.path, temporary, job.imgsz)


FORMATS: dict[str, Callable[[Job], tuple[Path, Difference]]] = {
    "torchscript": export_torchscript,
    "onnx": export_onnx,
    "openvino": export_openvino,
    "state_dict": export_state_dict,
    "yolov5": export_yolov5,
}
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}  # to write the format and to check it
