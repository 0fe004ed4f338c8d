"""Reads the checkpoints that YOLOv5 pickles, without running anything that they contain.

A pickle is a program: it names functions and calls them. Here every name outside a short list is refused, and those on
the list stand for inert objects: modules become `Stub`s that keep what they were given, tensors are views on the bytes
of the file, paths become text. Both containers of `torch.save` are read: the zip archive, and the plain stream of
pickles from before PyTorch 1.6.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

ZIP_MAGIC = b"PK\x03\x04"  # first bytes of the zip container
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the stream format
LEGACY_PROTOCOL = 1001
MAX_MODULES, MAX_VALUES, MAX_SHARING = 20_000, 1_000_000, 16  # far beyond any network and its options

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

# classes that become Stubs: every layer that a YOLOv5 detection model of v5.0 or later is made of
STUB_NAMES = {
    "models.yolo": "Model DetectionModel BaseModel Detect",
    "models.common": "Conv DWConv DWConvTranspose2d Focus Bottleneck BottleneckCSP CrossConv MixConv2d C3 C3x C3TR "
    "C3SPP C3Ghost SPP SPPF GhostConv GhostBottleneck TransformerLayer TransformerBlock Contract Expand Concat",
    "models.heads": "Detect ImageHead ImageClassifier CBAM",
    "models.experimental": "CrossConv Sum MixConv2d GhostConv GhostBottleneck",
    "torch.nn.modules.container": "Sequential ModuleList",
    "torch.nn.modules.conv": "Conv2d ConvTranspose2d",
    "torch.nn.modules.batchnorm": "BatchNorm2d SyncBatchNorm",
    "torch.nn.modules.normalization": "LayerNorm GroupNorm",
    "torch.nn.modules.activation": "SiLU ReLU ReLU6 LeakyReLU Hardswish Hardsigmoid Hardtanh Mish GELU ELU CELU SELU "
    "PReLU Softplus Sigmoid Tanh MultiheadAttention",
    "torch.nn.modules.pooling": "MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d",
    "torch.nn.modules.upsampling": "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
    "torch.nn.modules.pixelshuffle": "PixelShuffle PixelUnshuffle",
    "torch.nn.modules.linear": "Linear Identity NonDynamicallyQuantizableLinear",
    "torch.nn.modules.dropout": "Dropout Dropout2d",
    "torch.nn.modules.padding": "ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d",
    "argparse": "Namespace",
    "numpy": "dtype ndarray",
}

# what a refused name belongs to, by its beginning, where that tells the user more than the name does
KNOWN_STRANGERS = {
    "models.yolo.Segment": "a segmentation model of YOLOv5; only its detection models are read",
    "models.common.Proto": "a segmentation model of YOLOv5; only its detection models are read",
    "models.yolo.Classif": "a classification model of YOLOv5; only its detection models are read",
    "models.common.Classify": "a classification model of YOLOv5; only its detection models are read",
    "torchvision.models.": "a classification model of torchvision; only YOLOv5's detection models are read",
    "ultralytics.": "a model of the `ultralytics` package (YOLOv8 and later), whose layers are others",
}


class UnsafeCheckpointError(ValueError):
    """A checkpoint names something that could run code."""


class _Rebuilt(Tensor):
    """A tensor that a pickle cannot set the state of; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a tensor with a state of its own")


class Stub:
    """Stands for an object of the file: what it was made with and its state, without behaviour."""

    __slots__ = ("args", "state")
    origin = ""  # the full name in the file

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        self = object.__new__(cls)
        self.args, self.state = args, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"": state}


class _Function:
    """A function that a pickle may call, and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("a function cannot be changed")


class _Storage:
    """A flat tensor that views are cut from."""

    __slots__ = ("data",)

    def __init__(self, data: Tensor) -> None:
        self.data = data


def read_yolov5(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint that YOLOv5 wrote; modules are `Stub`s, tensors are on the CPU.

    Raises:
        UnsafeCheckpointError: It names a class or function that is not on the list; the message says which.
        ValueError: It is no checkpoint, or damaged.
    """
    path = Path(path)
    try:
        content = _read_zip(path) if begins_as_zip(path) else _read_stream(path)
    except UnsafeCheckpointError as e:
        raise UnsafeCheckpointError(f"{path}: {e}") from None
    except Exception as e:  # a broken pickle may raise anything
        raise ValueError(f"{path}: no checkpoint that can be read, or a damaged one ({type(e).__name__}: {e})") from e
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a YOLOv5 checkpoint")
    return content


def begins_as_zip(path: Path) -> bool:
    """Whether a file is a zip archive from its first byte on, which is what PyTorch goes by.

    Python's zipfile also takes an archive behind other data, and a file could be one thing here and another there.
    """
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


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


def refuse_expanded(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where tensors have more elements than are stored: a copy of them could fill any memory."""
    stored, total = {}, 0
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        total += tensor.nbytes
        if tensor.nbytes > storage.nbytes():
            elements = storage.nbytes() // tensor.itemsize
            raise ValueError(f"`{name}` has {tensor.numel()} elements, of which the file stores {elements}")
    if total > MAX_SHARING * sum(stored.values()):
        raise ValueError(f"its {len(tensors)} tensors have more than {MAX_SHARING} times the elements that it stores")


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
            return _array(value).tolist()
        return f"<{value.origin}>" if isinstance(value, Stub) else str(value)

    return convert(value, 0)


# What a pickle may call --------------------------------------------------------------------------------------------


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if len(size) != len(stride) or min((*size, *stride, offset), default=0) < 0:
        raise ValueError(f"a tensor of size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.data.numel():
        raise ValueError("a tensor reaches beyond its storage")
    return storage.data.as_strided(size, stride, offset).as_subclass(_Rebuilt)


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _numpy_dtype(stub: Any) -> np.dtype:
    code = stub.args[0] if isinstance(stub, Stub) and stub.origin == "numpy.dtype" and stub.args else None
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        raise ValueError(f"a numpy value of type {code!r}")
    return np.dtype(f"<{code}")


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, _numpy_dtype(dtype))[0].item()


def _numpy_reconstruct(kind: Any, *_: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Stub) and kind.origin == "numpy.ndarray"):
        raise ValueError("a numpy object that is no array")
    return kind()


def _array(stub: Stub) -> np.ndarray:
    _, shape, dtype, fortran, data = stub.state[""]
    return np.frombuffer(data, _numpy_dtype(dtype)).reshape(shape, order="F" if fortran else "C")


FUNCTIONS = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,  # a parameter that somebody set attributes on
    "torch.Size": lambda size=(): tuple(size),
    "torch.device": lambda *args: ":".join(map(str, args)),
    "_codecs.encode": _encode,
    "collections.defaultdict": lambda *_: {},  # filled by what follows in the pickle
} | {
    f"numpy.{package}.multiarray.{name}": function
    for package in ("core", "_core")
    for name, function in (("scalar", _numpy_scalar), ("_reconstruct", _numpy_reconstruct))
}
for _kind, _names in ((PurePosixPath, ("Path", "PosixPath")), (PureWindowsPath, ("WindowsPath",))):
    for _name in (_kind.__name__, *_names):
        for _module in ("pathlib", "pathlib._local"):  # the second one is Python 3.13's
            FUNCTIONS[f"{_module}.{_name}"] = lambda *parts, kind=_kind: str(kind(*parts))


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows the names above and nothing else."""

    def __init__(self, file: Any, load_storage: Callable[[tuple], Any] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage
        # made anew for each file: whatever a pickle does to them ends with it
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict, "__builtin__.set": set, "builtins.set": set,
            "__builtin__.frozenset": frozenset, "builtins.frozenset": frozenset,
            "__builtin__.dict": dict, "builtins.dict": dict,
        }  # fmt: skip
        self._known |= {name: _Function(function) for name, function in FUNCTIONS.items()}
        self._known |= {
            f"{module}.{name}": type(name, (Stub,), {"__slots__": (), "origin": f"{module}.{name}"})
            for module, names in STUB_NAMES.items()
            for name in names.split()
        }
        for name, dtype in DTYPES.items():
            self._known[f"torch.{name}"] = self._known[f"torch.cuda.{name}"] = dtype
        self._known |= {f"torch.{str(dtype)[6:]}": str(dtype) for dtype in DTYPES.values()}

    def find_class(self, module: str, name: str) -> Any:
        # the last dot must be the one between module and name, or `a` + `b.c` would pass for `a.b` + `c`
        if "." in name or f"{module}.{name}" not in self._known:
            full = f"{module}.{name}"
            what = next((text for start, text in KNOWN_STRANGERS.items() if full.startswith(start)), None)
            raise UnsafeCheckpointError(
                f"refused, because it names `{full}`: "
                + (what or "a YOLOv5 detection checkpoint needs no such thing, and loading it could run code")
                + ". Nothing was executed"
            )
        return self._known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        if self._load_storage is None or not isinstance(pid, tuple) or not pid:
            raise ValueError("a reference to a storage where there is none")
        return self._load_storage(pid)


# Containers -----------------------------------------------------------------------------------------------------------


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(roots) != 1:
            raise ValueError("a zip archive without data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in names:
            name = path.stem.removesuffix(".torchscript")
            raise ValueError(f"a TorchScript file: named {name}.torchscript it runs, for training give the .pt")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("compressed entries, which torch.save does not write")
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("entries larger than the file")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        storages: dict[str, _Storage] = {}

        def load_storage(pid: tuple) -> _Storage:
            kind, dtype, key, _, numel = pid
            if kind != "storage" or not isinstance(dtype, torch.dtype):
                raise ValueError(f"a reference of kind {kind!r}")
            if key not in storages:
                storages[key] = _Storage(_from_bytes(archive.read(f"{root}data/{key}"), dtype, numel))
            if storages[key].data.dtype != dtype:
                raise ValueError("a storage of two types")
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), load_storage).load()


def _read_stream(path: Path) -> Any:
    """The format before PyTorch 1.6: magic number, protocol, system, object, storage keys (pickles), then the bytes."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != LEGACY_MAGIC or _Unpickler(file).load() != LEGACY_PROTOCOL:
            raise ValueError("neither a zip archive nor a torch.save stream")
        if not _Unpickler(file).load().get("little_endian", True):
            raise ValueError("written on a big-endian machine")
        size = path.stat().st_size
        storages: dict[str, _Storage] = {}
        free = size

        def load_storage(pid: tuple) -> Any:
            nonlocal free
            if pid[0] == "module":  # class, source file, source text: only the class counts
                return pid[1]
            kind, dtype, key, _, numel, view = pid
            if kind != "storage" or not isinstance(dtype, torch.dtype):
                raise ValueError(f"a reference of kind {kind!r}")
            if key not in storages:
                free -= numel * dtype.itemsize
                if numel < 0 or free < 0:
                    raise ValueError("storages larger than the file")
                storages[key] = _Storage(torch.zeros(numel, dtype=dtype))
            if view is None:
                return storages[key]
            _, offset, length = view
            return _Storage(storages[key].data[offset : offset + length])

        content = _Unpickler(file, load_storage).load()
        for key in _Unpickler(file).load():
            data = storages[key].data
            (numel,) = struct.unpack("<q", file.read(8))
            if numel != data.numel():
                raise ValueError("a storage of another length than its tensors say")
            data.copy_(_from_bytes(file.read(numel * data.dtype.itemsize), data.dtype, numel))
        return content


def _from_bytes(data: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    if len(data) != numel * dtype.itemsize:
        raise ValueError("a storage is cut short")
    return torch.frombuffer(bytearray(data), dtype=dtype) if numel else torch.empty(0, dtype=dtype)
