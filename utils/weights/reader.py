"""Reads files of `torch.save`, ours and others', without running anything that they contain.

A pickle is a program: it names functions and calls them. Here every name outside a short list is refused, and those on
the list stand for inert objects: modules become `Stub`s that keep what they were given, tensors are views on the bytes
of the file, paths become text. Both containers of `torch.save` are read: the zip archive, and the plain stream of
pickles from before PyTorch 1.6.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

ZIP_MAGIC = b"PK\x03\x04"  # first bytes of the zip container
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the stream format
LEGACY_PROTOCOL = 1001
MAX_SHARING = 16  # times that tensors may have what is stored; far beyond any network

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

# Classes that become Stubs: layers, by where they live. A Stub does nothing, so no list of them is needed.
STUBS = re.compile(
    r"(models\.(yolo|common|experimental|heads)|torch\.nn\.modules\.\w+)\.[A-Z]\w*|argparse\.Namespace"
    r"|numpy\.(dtype|ndarray)",
    re.ASCII,
)
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
    """A tensor that a pickle cannot change; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a tensor with a state of its own")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ValueError("a tensor that is changed after it was made")

    add = __setstate__  # what a pickle calls to fill a set


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


def read_pickled(path: str | Path) -> dict[str, Any]:
    """The dict that `torch.save` wrote; modules are `Stub`s, tensors are on the CPU.

    Raises:
        UnsafeCheckpointError: It names a class or function that is not on the list; the message says which.
        ValueError: It is no such file, or damaged.
    """
    path = Path(path)
    try:
        content = _read_zip(path) if begins_as_zip(path) else _read_stream(path)
    except UnsafeCheckpointError as e:
        raise UnsafeCheckpointError(f"{path}: {e}") from None
    except Exception as e:  # a broken pickle may raise anything
        raise ValueError(f"{path}: no checkpoint that can be read, or a damaged one ({type(e).__name__}: {e})") from e
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, which is no checkpoint")
    return content


def begins_as_zip(path: Path) -> bool:
    """Whether a file is a zip archive from its first byte on, which is what PyTorch goes by.

    Python's zipfile also takes an archive behind other data, and a file could be one thing here and another there.
    """
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def refuse_expanded(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where tensors have more elements than are stored: a copy of them could fill any memory."""
    stored, total = {}, 0
    for name, tensor in tensors.items():
        storage, elements = tensor.untyped_storage(), math.prod(tensor.shape)  # `numel()` and `nbytes` can overflow
        stored[storage.data_ptr()] = storage.nbytes()
        total += elements * tensor.itemsize
        if elements * tensor.itemsize > storage.nbytes():
            kept = storage.nbytes() // tensor.itemsize
            raise ValueError(f"`{name}` has {elements} elements, of which the file stores {kept}")
    if total > MAX_SHARING * sum(stored.values()):
        raise ValueError(f"its {len(tensors)} tensors have more than {MAX_SHARING} times the elements that it stores")


def array_of(stub: Stub) -> np.ndarray:
    """The array that a `numpy.ndarray` of the file stands for."""
    _, shape, dtype, fortran, data = stub.state[""]
    return np.frombuffer(data, _numpy_dtype(dtype)).reshape(shape, order="F" if fortran else "C")


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


FUNCTIONS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,  # a parameter that somebody set attributes on
    "torch.Size": lambda size=(): tuple(size),
    "torch.device": lambda *args: ":".join(map(str, args)),
    "_codecs.encode": _encode,
    "collections.defaultdict": lambda *_: {},  # filled by what follows in the pickle
}
for _package in ("numpy.core.multiarray", "numpy._core.multiarray"):
    FUNCTIONS |= {f"{_package}.scalar": _numpy_scalar, f"{_package}._reconstruct": _numpy_reconstruct}
for _module in ("pathlib", "pathlib._local"):  # the second one is Python 3.13's
    for _name in ("Path", "PosixPath", "PurePosixPath"):
        FUNCTIONS[f"{_module}.{_name}"] = lambda *parts: str(PurePosixPath(*parts))
    for _name in ("WindowsPath", "PureWindowsPath"):
        FUNCTIONS[f"{_module}.{_name}"] = lambda *parts: str(PureWindowsPath(*parts))

KNOWN: dict[str, Any] = {"collections.OrderedDict": OrderedDict}  # nothing in it can be changed by a pickle
KNOWN |= {f"{module}.{t.__name__}": t for module in ("builtins", "__builtin__") for t in (dict, set, frozenset)}
KNOWN |= {f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in DTYPES.items()}
KNOWN |= {str(dtype): str(dtype) for dtype in DTYPES.values()}
KNOWN |= {name: _Function(function) for name, function in FUNCTIONS.items()}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows the names above and nothing else."""

    def __init__(self, file: Any, load_storage: Callable[[tuple], Any] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage
        self._stubs: dict[str, type[Stub]] = {}  # of this file: whatever a pickle does to them ends with it

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        stranger = next((text for start, text in KNOWN_STRANGERS.items() if full.startswith(start)), None)
        # the last dot must be the one between module and name, or `a` + `b.c` would pass for `a.b` + `c`
        if not stranger and "." not in name:
            if full in KNOWN:
                return KNOWN[full]
            if STUBS.fullmatch(full):
                return self._stubs.setdefault(full, type(name, (Stub,), {"__slots__": (), "origin": full}))
        raise UnsafeCheckpointError(
            f"refused, because it names `{full}`: "
            + (stranger or "a YOLOv5 detection checkpoint needs no such thing, and loading it could run code")
            + ". Nothing was executed"
        )

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
            if view is not None:  # of PyTorch before 0.4; strides would count from its base
                raise ValueError("a view of a storage")
            return storages[key]

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
