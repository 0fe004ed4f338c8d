"""Exported files as networks: they answer as `Model` does in evaluation mode, whatever computes behind them."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.answer import Answer
from models.export.metadata import Metadata
from utils.boxes import check_img_size, input_multiple
from utils.system.packages import need, openvino_core
from utils.system.voice import say, warn
from utils.system.yamls import load_yaml
from utils.weights.onnx import refuse_outside_weights
from utils.weights.torchscript import read_tensor_code

BOXES, PROBS = "output0", "image_probs"
Compute = Callable[[Tensor], Sequence[Tensor]]


class _OwnOfThread(threading.local):
    """What computes for the thread that calls: `make` gives it for as many threads as PyTorch has in that thread."""

    def __init__(self, make: Callable[[int], Any]) -> None:  # called anew in every thread
        self._make, self._threads, self._made = make, 0, None

    def __call__(self) -> Any:
        if (threads := torch.get_num_threads()) != self._threads:
            self._made, self._threads = self._make(threads), threads
        return self._made


def _shared(make: Callable[[int], Any]) -> Callable[[int], Any]:
    """`make`, called once for each number, whatever thread asks first."""
    made, lock = {}, threading.Lock()

    def get(number: int) -> Any:
        with lock:
            if number not in made:
                made[number] = make(number)
            return made[number]

    return get


class ExportedModel(nn.Module):
    """An exported file in the place of a network.

    Args:
        file: Named in messages.
        compute: Pictures [B,3,H,W] → decoded boxes [B,n,5+nc] (rows [B,k,6] where suppression is inside), and
            image-level probabilities [B,cls_nc] where there are image classes. Any number of threads may call it, each
            on as many cores as PyTorch has in it.
        metadata: What the file says of itself.
        imgsz: Height and width that the file takes; None: any.
        batch: Pictures a call that the file takes; None: any number.
        width: Columns of the boxes, where known before the first call.
        device: Where it computes, and its answers are.

    Attributes:
        names, cls_names, nc, cls_nc, stride: As those of `Model`; names is {} where the file has none.
        nms: Thresholds of the suppression inside, or None.
        dtype: Type of the input.
    """

    exported = True

    def __init__(
        self,
        file: Path,
        compute: Compute,
        metadata: Metadata,
        imgsz: tuple[int, int] | None,
        batch: int | None,
        width: int | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.file, self.compute, self.imgsz, self.batch = file, compute, imgsz, batch
        self.device, self.dtype, self.nms = device, dtype, metadata.nms
        self.stride = torch.tensor([float(metadata.stride)])
        self.cls_names = dict(metadata.cls_names)
        self.cls_nc = len(self.cls_names)
        if width is None:
            sides = imgsz or (2 * metadata.stride, 2 * metadata.stride)
            width = self._answers(torch.zeros(batch or 1, metadata.channels, *sides))[0].shape[2]
        self.nc = len(metadata.names) if self.nms else width - 5
        self.names = dict(metadata.names)
        if self.nc < 1 or (self.names and len(self.names) != self.nc):
            raise ValueError(f"{file}: names {len(self.names)} classes, but its boxes have {width} columns")

    @torch.no_grad()
    def forward(self, images: Tensor, augment: bool = False) -> Answer:
        """Pictures [B,3,H,W], RGB, 0..1 → its answer, without maps.

        The logits are the logarithm of the file's probabilities. Where the file takes a fixed number of pictures they
        are given to it in portions, the last one filled up.

        Raises:
            ValueError: Pictures of a size that the file does not take, or test-time augmentation.
        """
        refuse_augment(self, augment)
        if self.imgsz and tuple(images.shape[2:]) != self.imgsz:
            raise ValueError(f"{self.file} takes pictures of {_size(self.imgsz)}, not {_size(images.shape[2:])}")
        step = self.batch or max(1, len(images))
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            missing = step - len(part)
            filled = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            parts.append([answer[: len(part)] for answer in self._answers(filled)])
        boxes, *probs = (torch.cat(answers) for answers in zip(*parts, strict=True))
        return Answer(boxes, None, probs[0].log() if self.cls_nc else None, suppressed=self.nms is not None)

    def _answers(self, images: Tensor) -> list[Tensor]:
        # a half precision that the caller computes other networks in is none of this one's business
        with torch.autocast(images.device.type, enabled=False):
            answers = self.compute(images.to(self.device, self.dtype).contiguous())
        decoded = answers[0]
        if decoded.dim() != 3 or (self.cls_nc and len(answers) < 2):
            raise ValueError(f"{self.file}: its output {list(decoded.shape)} is not that of a detection network")
        return [a.to(self.device).float() for a in answers[: 2 if self.cls_nc else 1]]


# Readers: (path, device) → ExportedModel ------------------------------------------------------------------------------


def read_torchscript(path: Path, device: torch.device) -> ExportedModel:
    """A TorchScript file. Its code is checked before PyTorch loads it, see `utils.weights.torchscript`.

    Raises:
        UnsafeCheckpointError: Its code does more than computing with tensors.
        ValueError: It is none.
    """
    extra, checked = {"config.txt": ""}, read_tensor_code(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            module = torch.jit.load(checked, map_location=device, _extra_files=extra).eval()
        except Exception as e:  # a damaged file may raise anything
            raise ValueError(f"{path}: no TorchScript file that can be read ({_first_line(e)})") from e
    config = extra["config.txt"]
    config = config.decode() if isinstance(config, bytes) else config
    metadata = Metadata.from_json(config, path)
    dtype = next((p.dtype for p in module.parameters()), torch.float16 if metadata.half else torch.float32)

    def compute(images: Tensor) -> Sequence[Tensor]:
        answer = module(images)
        return [answer] if isinstance(answer, Tensor) else answer

    imgsz = None if metadata.dynamic else metadata.imgsz
    try:
        model = ExportedModel(path, compute, metadata, imgsz, None, None, device, dtype)
    except RuntimeError as e:
        raise ValueError(f"{path}: it does not run on pictures ({_first_line(e)})") from e
    if config and "dynamic" not in json.loads(config) and _takes_any_size(model, metadata):
        model.imgsz = None
    return model


def _takes_any_size(model: ExportedModel, metadata: Metadata) -> bool:
    """Whether a file that does not say so, such as YOLOv5's, finds the right number of boxes in pictures of two sizes.

    A file of one size has the places of its cells as constants, to which the cells of another size cannot be added.
    """
    s, c = metadata.stride, metadata.channels
    try:
        small, large = (
            model._answers(torch.zeros(1, c, *size))[0].shape[1] for size in ((2 * s, 3 * s), (4 * s, 4 * s))
        )
    except (RuntimeError, ValueError):
        return False
    return 16 * small == 6 * large


def read_onnx(path: Path, device: torch.device) -> ExportedModel:
    """An ONNX file, run by ONNX Runtime. It is read as one file.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        ValueError: It cannot be read, or keeps weights in other files.
    """
    runtime = need("onnxruntime", f"running {path.name}")
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    elif device.type != "cpu":
        say(f"{path}: this ONNX Runtime has no support for {device}; it computes on the processor")
    content = path.read_bytes()
    refuse_outside_weights(content, path)

    def open_session(threads: int):
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.load_model_format", "ONNX")  # no other, which would not be checked
        try:
            return runtime.InferenceSession(content, options, providers)
        except OSError:
            raise
        except Exception as e:  # its exceptions share no base class
            raise ValueError(f"{path}: ONNX Runtime cannot read it ({_first_line(e)})") from e

    # a session of one thread computes in whatever thread asks, one of a GPU there: they are for all
    common, on_gpu = _shared(open_session), len(providers) > 1
    own = _OwnOfThread(lambda threads: common(1) if threads == 1 or on_gpu else open_session(threads))
    session = own()
    metadata = Metadata.from_texts(session.get_modelmeta().custom_metadata_map, path)
    source, (first, *others) = session.get_inputs()[0], session.get_outputs()
    wanted = [first.name] + [o.name for o in others if o.name == PROBS and metadata.cls_names]

    def compute(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(a) for a in own().run(wanted, {source.name: images.cpu().numpy()})]

    dtype = torch.float16 if source.type == "tensor(float16)" else torch.float32
    batch, height, width = (s if isinstance(s, int) else None for s in (source.shape[i] for i in (0, 2, 3)))
    imgsz = (height, width) if height and width else None
    columns = first.shape[2] if len(first.shape) == 3 and isinstance(first.shape[2], int) else None
    return ExportedModel(path, compute, metadata, imgsz, batch, columns, device, dtype)


def read_onnx_opencv(path: Path, device: torch.device) -> ExportedModel:
    """An ONNX file, run by OpenCV on the processor.

    Raises:
        ModuleNotFoundError: onnx, which reads what the file says of itself, is not installed.
        ValueError: OpenCV cannot read it, or it keeps weights in other files.
    """
    import cv2

    onnx = need("onnx", f"reading the names in {path.name} for --dnn")
    content = path.read_bytes()
    refuse_outside_weights(content, path)
    try:
        model = onnx.load_from_string(content)
        graph = model.graph
        shape = [d.dim_value or None for d in graph.input[0].type.tensor_type.shape.dim]
        columns = graph.output[0].type.tensor_type.shape.dim[2].dim_value or None
    except Exception as e:  # protobuf's exceptions depend on its version
        raise ValueError(f"{path}: no ONNX file ({type(e).__name__}: {_first_line(e)})") from e
    metadata = Metadata.from_texts({p.key: p.value for p in model.metadata_props}, path)
    if metadata.nms:
        raise ValueError(f"{path}: OpenCV cannot run the non-max suppression inside; leave out --dnn")
    wanted = [o.name for i, o in enumerate(graph.output) if i == 0 or (o.name == PROBS and metadata.cls_names)]

    def open_net(_: int):
        try:
            return cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        except cv2.error as e:
            raise ValueError(f"{path}: OpenCV {cv2.__version__} cannot read it ({_first_line(e)})") from e

    own = _OwnOfThread(open_net)
    own()
    if device.type != "cpu":
        say(f"{path}: --dnn computes on the processor")

    def compute(images: Tensor) -> list[Tensor]:
        net = own()
        try:
            net.setInput(images.cpu().numpy())
            return [torch.from_numpy(np.array(a)) for a in net.forward(wanted)]
        except cv2.error as e:
            raise ValueError(f"{path}: OpenCV {cv2.__version__} cannot run it ({_first_line(e)})") from e

    imgsz = (shape[2], shape[3]) if shape[2] and shape[3] else None
    return ExportedModel(path, compute, metadata, imgsz, shape[0], columns, device)


def read_openvino(path: Path, device: torch.device, exact: bool = False) -> ExportedModel:
    """A folder that OpenVINO runs, or the .xml in it. It computes on the processor.

    Args:
        exact: In float32; otherwise in bfloat16 where the processor has instructions for it.

    Raises:
        ModuleNotFoundError: openvino is not installed.
        FileNotFoundError: No .xml, or no weights beside it.
        ValueError: It cannot be read, or is in another of the formats that OpenVINO knows.
    """
    need("openvino", f"running {path.name}")
    xmls = sorted(path.glob("*.xml")) if path.is_dir() else [path]
    if len(xmls) != 1:
        raise FileNotFoundError(f"{path} holds {len(xmls)} .xml files, not the one of a network: pass the file's path")
    xml = xmls[0]
    if not xml.with_suffix(".bin").is_file():
        raise FileNotFoundError(f"{xml.with_suffix('.bin')}, the weights of {xml.name}, is not there")
    described = next((f for f in (xml.parent / "metadata.yaml", xml.with_suffix(".yaml")) if f.is_file()), None)
    metadata = Metadata.from_values(load_yaml(described) if described else {}, described or xml)
    hints = {"INFERENCE_PRECISION_HINT": "f32" if exact or not openvino_has_bfloat16() else "bf16"}
    cores = torch.get_num_threads()

    def compiled(threads: int):
        """For calls of so many threads: as many of them at once as the cores allow."""
        streams = {"NUM_STREAMS": max(1, cores // threads), "INFERENCE_NUM_THREADS": max(cores, threads)}
        return openvino_core().compile_model(network, "CPU", hints | streams)

    try:
        # whatever its name, OpenVINO would read a file as what it looks like, such as ONNX with weights elsewhere
        if not xml.read_bytes().lstrip().startswith(b"<"):
            raise RuntimeError("it is no XML")
        network = openvino_core().read_model(xml)
        networks = _shared(compiled)
        outputs = networks(cores).outputs
    except RuntimeError as e:
        raise ValueError(f"{path}: OpenVINO cannot read it ({_first_line(e)})") from e
    if hints["INFERENCE_PRECISION_HINT"] == "bf16" or device.type != "cpu":
        say(f"{path}: OpenVINO computes on the processor, in {hints['INFERENCE_PRECISION_HINT']}")
    wanted = [i for i, o in enumerate(outputs) if i == 0 or (PROBS in o.get_names() and metadata.cls_names)]
    own = _OwnOfThread(lambda threads: networks(threads).create_infer_request())

    def compute(images: Tensor) -> list[Tensor]:
        answers = own().infer([images.cpu().numpy()])
        return [torch.from_numpy(np.array(answers[i])) for i in wanted]

    batch, _, height, width = (None if d.is_dynamic else d.get_length() for d in network.input(0).partial_shape)
    imgsz = (height, width) if height and width else None
    first = outputs[0].partial_shape
    columns = None if len(first) != 3 or first[2].is_dynamic else first[2].get_length()
    return ExportedModel(path, compute, metadata, imgsz, batch, columns, device)


def openvino_has_bfloat16() -> bool:
    """Whether OpenVINO gains from bfloat16 on this processor; `need` the package before."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# What the scripts ask of a network, exported or not -------------------------------------------------------------------


def refuse_augment(model: nn.Module, augment: bool) -> None:
    """Raises ValueError where test-time augmentation is asked of an exported file."""
    if augment and getattr(model, "exported", False):
        raise ValueError("--augment works with PyTorch weights (.pt) alone: an exported file has one path through it")


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of an exported file that takes one size alone, None for any other network."""
    return getattr(model, "imgsz", None)


def input_size(model: nn.Module, imgsz: Sequence[int]) -> list[int]:
    """Height and width of the network input: those of a file that takes one size alone, else `imgsz` rounded up to the
    stride."""
    fixed = fixed_size(model)
    stride = input_multiple(model.stride)
    wanted = check_img_size(imgsz, s=stride)
    if not fixed and list(imgsz) != list(wanted):
        say(f"--imgsz {_size(imgsz)}: {_size(wanted)} is used, multiples of the stride {stride}")
    if fixed and list(fixed) != list(wanted):
        say(f"--imgsz {_size(wanted)}: the file takes {_size(fixed)} alone, which is used (export it with --dynamic)")
    return list(fixed or wanted)


def heed_options(
    model: nn.Module, weights: str | Path | Sequence[str | Path], half: bool, dnn: bool, augment: bool, nms: dict
) -> bool:
    """A line for each option that cannot do what is asked; whether half precision is to be computed in.

    Args:
        nms: Thresholds for `Answer.detections`.

    Raises:
        ValueError: Test-time augmentation is asked of an exported file.
    """
    refuse_augment(model, augment)
    files = [weights] if isinstance(weights, str | Path) else weights
    if dnn and not any(str(file).lower().endswith(".onnx") for file in files):
        warn("--dnn runs ONNX files through OpenCV; these weights are none, so the flag changes nothing")
    if inside := getattr(model, "nms", None):
        free = {"conf_thres": nms["conf_thres"] >= inside["conf_thres"], "max_det": nms["max_det"] <= inside["max_det"]}
        flags = {"conf_thres": "--conf-thres", "iou_thres": "--iou-thres"}
        flags |= {"max_det": "--max-det", "agnostic": "--agnostic-nms"}
        asked = {key: flag for key, flag in flags.items() if nms[key] != inside[key] and not free.get(key)}
        other = [f"{flag} {inside[key]} (asked: {nms[key]})" for key, flag in asked.items()]
        if other:
            warn(f"non-max suppression is inside the file, with {', '.join(other)}")
    if half and getattr(model, "exported", False):
        say("--half changes nothing: an exported file computes in a precision of its own")
    return half and not getattr(model, "exported", False)


def tell_nms(model: nn.Module) -> None:
    """A line for Python code that sets thresholds, or suppresses boxes itself, where a file has done so."""
    if inside := getattr(model, "nms", None):
        with_ = ", ".join(f"{key} {value}" for key, value in inside.items())
        warn(f"non-max suppression is inside the file ({with_}): its rows are x1, y1, x2, y2, confidence, class")


def _size(imgsz: Sequence[int]) -> str:
    return "x".join(str(int(s)) for s in imgsz)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
