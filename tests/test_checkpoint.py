"""Checkpoints: ours as plain data, YOLOv5's read without running them."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath

import cv2
import numpy as np
import pytest
import torch
from old_yolov5 import save_release
from torch import nn

from models.yolo import Model
from utils.weights.checkpoint import (
    UnsafeCheckpointError,
    latest_run,
    load_checkpoint,
    save_checkpoint,
    strip_checkpoint,
)
from utils.weights.reader import read_pickled
from utils.weights.yolov5 import state_dict_of

TINY = {
    "nc": 2,
    "cls_nc": 3,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[[1, 2], 1, "Detect", ["nc", "anchors"]], [[1, 2], 1, "ImageHead", ["cls_nc", 16]]],
}


def tiny(seed: int = 0, **keys) -> Model:
    torch.manual_seed(seed)
    model = Model(TINY, **keys)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
    model.names, model.cls_names = {0: "AR", 1: "MR"}, {i: n for i, n in enumerate("xyz")} if model.cls_nc else {}
    model.hyp = {"box": 0.05}
    model.__dict__["stride"] = model.stride.clone()  # an attribute in YOLOv5's pickles
    return model


def content_of(model: Model, **keys) -> dict:
    return {
        "epoch": 3,
        "best_fitness": 0.5,
        "model": model.record(),
        "ema": None,
        "train_state": None,
        "opt": {"imgsz": 320},
        "hyp": {"lr0": 0.01},
        "date": "2026-01-02T03:04:05",
    } | keys


def equal_states(a, b) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k].to(a[k].dtype)) for k in a)


# YOLOv5's files -------------------------------------------------------------------------------------------------------


def test_reference_checkpoint(theirs, shared):
    want = json.loads((theirs / "checkpoint_expected.json").read_text())
    file = theirs / want["file"]
    with pytest.raises(pickle.UnpicklingError):  # plain safe loading refuses it, so it is read by names
        torch.load(file, weights_only=True)
    raw = read_pickled(file)
    states = state_dict_of(raw["model"])
    assert len(states) == want["state_dict_num_keys"]
    assert {str(v.dtype) for v in states.values()} == set(want["state_dict_dtypes"])
    for key, probe in want["state_dict_probe"].items():
        assert list(states[key].shape) == probe["shape"]
        assert states[key].double().sum().item() == pytest.approx(probe["sum_f64"], rel=1e-9)
        assert states[key].double().abs().sum().item() == pytest.approx(probe["abs_sum_f64"], rel=1e-9)

    checkpoint = load_checkpoint(file)
    assert (checkpoint.format, checkpoint.epoch, checkpoint.best_fitness) == ("yolov5", -1, None)
    assert checkpoint.train_state is None and checkpoint.cls_names == {}
    attributes = want["model_attrs"]
    assert checkpoint.names == {int(k): v for k, v in attributes["names"].items()}
    assert checkpoint.stride == attributes["stride"] and checkpoint.model_yaml == attributes["yaml"]
    assert checkpoint.opt == want["opt"] and checkpoint.hyp == want["opt"]["hyp"]  # gains not scaled to the run
    assert checkpoint.anchors[0] == [[10, 13], [16, 30], [33, 23]]
    assert all(v.dtype in (torch.float32, torch.int64) for v in checkpoint.state_dict.values())

    model = Model.from_checkpoint(checkpoint)
    assert model.save == attributes["save"] and model.names == checkpoint.names and model.nc == 4
    assert list(model.state_dict()) == list(states)
    assert sum(p.numel() for p in model.fuse().parameters()) == want["loaded"]["parameters_after_fuse"]
    check_decoded_boxes(model.eval(), want["detect"]["images"][0], theirs, shared)


def check_decoded_boxes(model: Model, want: dict, theirs: Path, shared: Path) -> None:
    """It sees in a picture what the reference saw."""
    decoded = np.load(theirs / "checkpoint_expected.npz")["image0/decoded_before_nms"]
    image = cv2.imread(str(next((shared / "heart").rglob(want["file"]))))
    _, height, width = want["input_chw"]
    ratio = min(320 / max(image.shape[:2]), 1)
    image = cv2.resize(image, (round(image.shape[1] * ratio), round(image.shape[0] * ratio)))
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    below, right = height - image.shape[0] - top, width - image.shape[1] - left
    image = cv2.copyMakeBorder(image, top, below, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    x = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())[None].float() / 255
    with torch.no_grad():
        got = model(x)[0].numpy()
    boxes, confidences = (np.abs(got[..., part] - decoded[..., part]).max() for part in (slice(4), slice(4, None)))
    print(f"largest difference of {got.shape[1]} boxes: {boxes:.1e} px, of their confidences: {confidences:.1e}")
    np.testing.assert_allclose(got[..., 4:], decoded[..., 4:], atol=2e-3)
    np.testing.assert_allclose(got[..., :4], decoded[..., :4], atol=0.05, rtol=1e-4)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_module_of_either_container(tmp_path, zipped):
    """Our classes bear the names that YOLOv5 v5.0 pickled (`models.yolo.Model`, `models.common.*`)."""
    model, average = tiny(0, cls_nc=0), tiny(1, cls_nc=0)
    with torch.no_grad():  # leftovers of v5.0 and of a profiled model, which belong to no network of today
        average.detect._buffers["anchor_grid"] = torch.ones(2, 1, 2, 1, 1, 2)
        average.model[0].register_buffer("total_ops", torch.zeros(1))
    average.names = ["AR", "MR"]
    file = tmp_path / "last.pt"
    fitness = np.array([0.25])
    content = {
        "epoch": 7,
        "best_fitness": fitness,
        "model": model.half(),
        "ema": average,
        "updates": 9,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        "opt": {"project": PurePosixPath("runs/train"), "data": PureWindowsPath("C:\\data\\x.yaml"), "seen": {1, 2}},
        "score": np.float64(0.5),
    }
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(file) == zipped
    checkpoint = load_checkpoint(file)
    assert (checkpoint.format, checkpoint.epoch, checkpoint.best_fitness) == ("yolov5", 7, 0.25)
    assert checkpoint.opt == {"project": "runs/train", "data": "C:\\data\\x.yaml", "seen": {1, 2}}
    assert checkpoint.names == {0: "AR", 1: "MR"} and checkpoint.hyp == {"box": 0.05}
    assert read_pickled(file)["score"] == 0.5
    restored = Model.from_checkpoint(checkpoint)  # the average comes first
    fresh = tiny(1, cls_nc=0)
    assert equal_states(restored.state_dict(), fresh.state_dict())
    assert equal_states(checkpoint.model_state_dict, model.state_dict())
    assert all(v.dtype != torch.float16 for v in checkpoint.model_state_dict.values())


def test_old_forms_of_average_and_activation(tmp_path):
    model = tiny(0, cls_nc=0)
    for m in model.modules():
        if hasattr(m, "act"):
            m.act = nn.LeakyReLU(0.1)
    torch.save({"epoch": -1, "model": None, "ema": (model, 12)}, tmp_path / "old.pt")
    checkpoint = load_checkpoint(tmp_path / "old.pt")
    assert checkpoint.model_yaml["activation"] == "nn.LeakyReLU(0.1)"
    restored, x = Model.from_checkpoint(checkpoint).eval(), torch.rand(1, 3, 32, 32)
    assert torch.equal(restored(x)[0], model.eval()(x)[0])


def test_fused_checkpoint(tmp_path):
    model = tiny(0, cls_nc=0).fuse().eval()
    torch.save({"epoch": -1, "model": model}, tmp_path / "fused.pt")
    restored, x = Model.from_checkpoint(load_checkpoint(tmp_path / "fused.pt")).eval(), torch.rand(1, 3, 32, 32)
    assert torch.equal(restored(x)[0], model(x)[0])


def test_loaded_tensors_are_independent(tmp_path):
    model = tiny(0, cls_nc=0)
    torch.save({"epoch": -1, "model": model, "ema": model}, tmp_path / "x.pt")
    state = load_checkpoint(tmp_path / "x.pt").state_dict
    state["model.0.conv.weight"].zero_()  # bytes of the file would not allow this
    assert state["model.0.bn.weight"].abs().sum() > 0


# Malicious files ------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def as_global(module: str, name: str, *args: str) -> bytes:
    """Protocol-2 pickle that calls `module.name(*args)`, written by hand: the name need not exist."""
    strings = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in args)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + strings + b"tR."


def as_stack_global(module: str, name: str, *args: str) -> bytes:
    """The same by protocol 4, where names may hold dots."""
    text = [b"\x8c" + bytes([len(a.encode())]) + a.encode() for a in (module, name, *args)]
    return b"\x80\x04" + text[0] + text[1] + b"\x93(" + b"".join(text[2:]) + b"tR."


def write_zip(file: Path, data: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name}", content)
    return file


def write_stream(file: Path, data: bytes) -> Path:
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    file.write_bytes(b"".join(head) + data + pickle.dumps([], 2))
    return file


TOUCH = "import pathlib; pathlib.Path({!r}).touch()"
ATTACKS = [
    ("posix", "system"),
    ("nt", "system"),
    ("os", "system"),
    ("os", "popen"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("operator", "attrgetter"),
    ("importlib", "import_module"),
    ("runpy", "_run_code"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("numpy", "load"),
    ("numpy.f2py", "compile"),
    ("models.common", "os.system"),
    ("models.common", "torch"),
    ("models.yolo", "Model.forward"),
    ("models.yolo", "sys.modules"),
    ("models", "yolo.Model"),
    ("torch", "nn.modules.container.Sequential"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("ultralytics.nn.tasks", "DetectionModel"),
]


@pytest.mark.parametrize(("module", "name"), ATTACKS)
@pytest.mark.parametrize("write", [write_zip, write_stream])
@pytest.mark.parametrize("encode", [as_global, as_stack_global])
def test_other_names_are_refused(tmp_path, monkeypatch, module, name, write, encode):
    target = tmp_path / "made"
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    file = write(tmp_path / "bad.pt", encode(module, name, TOUCH.format(str(target))))
    with pytest.raises(UnsafeCheckpointError) as error:
        load_checkpoint(file)
    assert f"`{module}.{name}`" in str(error.value) and str(file) in str(error.value)
    assert not ran and not target.exists()


def test_attack_inside_a_whole_checkpoint(tmp_path):
    target = tmp_path / "made"
    model = tiny(0, cls_nc=0)
    for function, *args in ((os.system, f"touch {target}"), (eval, TOUCH.format(str(target))), (exec, "1")):
        for where in ("opt", "model"):
            content = {"epoch": 1, "model": model, "opt": {}}
            if where == "opt":
                content["opt"] = {"data": Call(function, *args)}
            else:
                content["model"].evil = Call(function, *args)
            torch.save(content, tmp_path / "bad.pt")
            with pytest.raises(UnsafeCheckpointError, match=f"`(posix|nt|builtins|__builtin__).{function.__name__}`"):
                load_checkpoint(tmp_path / "bad.pt")
            assert not target.exists()
            model.__dict__.pop("evil", None)


def test_known_names_do_no_harm_with_odd_arguments(tmp_path):
    """Allowed functions called with what they are not made for: an error, never a crash or a side effect."""
    target = tmp_path / "made"
    odd = [
        as_global("torch._utils", "_rebuild_tensor_v2", "os", "system"),
        as_global("torch._utils", "_rebuild_parameter", "x"),
        as_global("numpy.core.multiarray", "_reconstruct", "x"),
        as_global("numpy.core.multiarray", "scalar", "O", "x"),
        as_global("_codecs", "encode", "x", "zip"),
        as_global("_codecs", "encode", f"{target}", "os.system"),
        as_global("collections", "OrderedDict", "abc"),
        as_global("builtins", "set", "a", "b"),
        as_global("torch", "HalfStorage", "x"),
        as_global("pathlib", "PosixPath", str(target)),
        as_global("models.common", "Conv", "x"),
        as_global("models.common", "Conv"),
        # state set on a function, on a builtin type, on a stub class, and with slots
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x09\x00\x00\x00_functionK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02cmodels.common\nConv\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # a persistent id that is no storage
        b"\x80\x02(X\x07\x00\x00\x00storageNNNNtQ.",
        b"\x80\x02\x82\x01.",  # a code of the extension registry
        b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".",
    ]
    for data in odd:
        for write in (write_zip, write_stream):
            file = write(tmp_path / "odd.pt", data)
            with pytest.raises(ValueError, match="odd.pt"):
                load_checkpoint(file)
    assert not target.exists()
    tiny()  # the real classes are as they were
    assert torch.load(io.BytesIO(_saved(torch.ones(2)))).sum() == 2


def _saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_tensors_cannot_reach_beyond_their_bytes(tmp_path):
    class Storage:
        pass

    def write(offset, size, stride, numel=4, data=bytes(16)) -> Path:
        class Pickler(pickle._Pickler):  # the Python one: the name of the storage type is not checked against torch
            def persistent_id(self, obj):
                return self.pid if isinstance(obj, Storage) else None

        buffer = io.BytesIO()
        pickler = Pickler(buffer, 2)
        pickler.pid = ("storage", torch.FloatStorage, "0", "cpu", numel)
        arguments = (Storage(), offset, size, stride, False, OrderedDict())
        pickler.dump({"epoch": 1, "model": Call(torch._utils._rebuild_tensor_v2, *arguments)})
        return write_zip(tmp_path / "t.pt", buffer.getvalue(), **{"0": data})

    assert read_pickled(write(0, (2, 2), (2, 1)))["model"].tolist() == [[0, 0], [0, 0]]
    for bad in [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (4, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]:
        with pytest.raises(ValueError, match="t.pt"):
            read_pickled(write(*bad))
    with pytest.raises(ValueError, match="cut short"):
        read_pickled(write(0, (4,), (1,), data=bytes(12)))
    with pytest.raises(ValueError, match="t.pt"):
        read_pickled(write(0, (4,), (1,), numel=-1))


def test_what_is_no_checkpoint_is_called_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_checkpoint(tmp_path / "none.pt")
    whole = _saved({"epoch": 1, "model": tiny(0, cls_nc=0)})
    files = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html>Not found</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "cut": whole[: len(whole) // 2],
        "number": _saved(3),
        "weights": _saved({"model.0.conv.weight": torch.ones(1)}),
        "newer": _saved({"format": "yolov5-joint", "version": 99}),
        "hollow": _saved({"format": "yolov5-joint", "version": 1}),
        "no model": _saved({"epoch": 1, "model": None, "x": nn.Identity()}),
        "layer alone": _saved({"epoch": 1, "model": nn.Conv2d(1, 1, 1)}),
    }
    for name, content in files.items():
        file = tmp_path / f"{name}.pt"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_checkpoint(file)
    file = tmp_path / "of tomorrow.pt"
    save_checkpoint(file, content_of(tiny()) | {"version": 2})
    with pytest.raises(ValueError, match=r"written by a newer version \(format 2, known 1\); update"):
        load_checkpoint(file)
    script = tmp_path / "script.pt"
    write_zip(script, b"")
    with zipfile.ZipFile(script, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        load_checkpoint(script)


# Ours -----------------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    model, average = tiny(0), tiny(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    raw, logits = model(torch.rand(2, 3, 32, 32))
    (sum(m.square().mean() for m in raw) + logits.square().mean()).backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "rng": {"python": (3, (1, 2**63, None), None), "torch": torch.get_rng_state()},
        "scheduler": OrderedDict(last_epoch=3),
    }
    ema = {"state_dict": average.state_dict(), "updates": 12}
    file = tmp_path / "weights" / "last.pt"
    save_checkpoint(file, content_of(model, train_state=state, ema=ema))
    assert torch.load(file, weights_only=True)["format"] == "yolov5-joint"
    allowed = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2"}
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    named = {a.replace(" ", ".") for op, a, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    assert named <= allowed | {f"torch.{kind}Storage" for kind in ("Float", "Long", "Byte")}

    checkpoint = load_checkpoint(file)
    assert (checkpoint.format, checkpoint.epoch, checkpoint.best_fitness) == ("yolov5-joint", 3, 0.5)
    assert checkpoint.names == {0: "AR", 1: "MR"} and checkpoint.cls_names == {0: "x", 1: "y", 2: "z"}
    assert checkpoint.opt == {"imgsz": 320} and checkpoint.hyp == {"lr0": 0.01}
    assert checkpoint.stride == model.stride.tolist() and checkpoint.date.startswith("2026")
    np.testing.assert_allclose(checkpoint.anchors, np.reshape(TINY["anchors"], (2, 2, 2)), rtol=1e-6)
    assert equal_states(Model.from_checkpoint(checkpoint).state_dict(), average.state_dict())
    trained = Model.from_checkpoint(checkpoint, averaged=False)
    assert equal_states(trained.state_dict(), model.state_dict())
    assert trained.cls_nc == 3 and trained.cls_names == model.cls_names

    restored = checkpoint.train_state
    assert restored["rng"]["python"] == state["rng"]["python"] and restored["ema"]["updates"] == 12
    assert equal_states(restored["model"], model.state_dict())
    again = torch.optim.SGD(trained.parameters(), lr=0.5)
    again.load_state_dict(restored["optimizer"])
    buffers = [s["momentum_buffer"] for s in again.state_dict()["state"].values()]
    assert torch.equal(buffers[0], optimizer.state_dict()["state"][0]["momentum_buffer"])


def same_values(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        kept = (a.dtype, a.shape, a.stride(), a.requires_grad) == (b.dtype, b.shape, b.stride(), b.requires_grad)
        return kept and type(a) is type(b) is torch.Tensor and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_values(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_values, a, b))
    return type(a) is type(b) and a == b


def test_others_read_of_our_files_what_we_read(tmp_path, monkeypatch):
    """PyTorch's safe loader and ours give the same values; ours does not ask PyTorch's."""
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    state = {str(kind): torch.arange(6).to(kind).reshape(2, 3) for kind in kinds}
    state |= {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "turned": torch.rand(4, 5).T}
    state["channels_last"] = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state |= {"rng": (3, (1, 2**63, None), None), "nested": [{"a": (1.5, "x")}, True], 7: -1, "nan": [float("inf")]}
    model = tiny()
    ema = {"state_dict": tiny(1).half().state_dict(), "updates": 12}
    file = tmp_path / "last.pt"
    save_checkpoint(file, content_of(model, train_state=state, ema=ema))
    theirs = torch.load(file, weights_only=True)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was asked"))
    ours = load_checkpoint(file)
    assert same_values(
        ours.train_state, theirs["train_state"] | {"ema": theirs["ema"], "model": theirs["model"]["state_dict"]}
    )
    assert same_values(ours.opt, theirs["opt"]) and same_values(ours.model_yaml, theirs["model"]["yaml"])
    assert {type(v) for v in ours.state_dict.values()} == {torch.Tensor}
    assert not any(v.requires_grad for v in ours.model_state_dict.values())


def test_values_are_made_plain_or_refused_by_key(tmp_path):
    base = torch.arange(1000.0)
    plain = {
        "path": Path("runs") / "exp",
        "number": np.float32(0.5),
        "view": base[:2],
        "nested": {"deep": [1, (2, None)]},
    }
    save_checkpoint(tmp_path / "a.pt", content_of(tiny(), opt=plain))
    opt = load_checkpoint(tmp_path / "a.pt").opt
    assert opt["path"] == str(Path("runs/exp")) and type(opt["number"]) is float
    assert opt["nested"] == {"deep": [1, (2, None)]}
    assert opt["view"].untyped_storage().nbytes() == 8
    for bad in (nn.Identity(), np.zeros(2), {1, 2}, object(), print, torch.float32, b"x", float):
        with pytest.raises(TypeError, match=r"checkpoint\[opt.deep.0\]"):
            save_checkpoint(tmp_path / "a.pt", content_of(tiny(), opt={"deep": [bad]}))
    with pytest.raises(TypeError, match="key of type tuple"):
        save_checkpoint(tmp_path / "a.pt", content_of(tiny(), opt={(1, 2): 3}))


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "last.pt"
    save_checkpoint(file, content_of(tiny()))
    before = file.read_bytes()

    def full(content, stream):
        stream.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(file, content_of(tiny(1)))
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def test_file_has_usual_permissions(tmp_path):
    save_checkpoint(tmp_path / "last.pt", content_of(tiny()))
    (tmp_path / "other").touch()
    assert (tmp_path / "last.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_strip(tmp_path):
    model, average = tiny(0), tiny(1)
    file = tmp_path / "best.pt"
    ema = {"state_dict": average.state_dict(), "updates": 12}
    save_checkpoint(file, content_of(model, ema=ema, train_state={"optimizer": {"x": torch.ones(100_000)}}))
    full = file.stat().st_size
    strip_checkpoint(file, tmp_path / "exact.pt", half=False)
    exact = load_checkpoint(tmp_path / "exact.pt")
    assert equal_states(exact.state_dict, average.state_dict()) and exact.train_state is None
    strip_checkpoint(file)
    checkpoint = load_checkpoint(file)
    assert file.stat().st_size < full / 5 and checkpoint.names == {0: "AR", 1: "MR"} and checkpoint.epoch == 3
    kept = torch.load(file, weights_only=True)["model"]["state_dict"]
    assert kept["model.0.conv.weight"].dtype == torch.float16
    for key in ("model.0.bn.running_var", "model.0.bn.weight", "model.3.anchors", "model.3.m.0.bias"):
        assert kept[key].dtype == torch.float32 and torch.equal(kept[key], average.state_dict()[key])
    for key, value in Model.from_checkpoint(checkpoint).state_dict().items():
        assert torch.allclose(value, average.state_dict()[key], atol=1e-3)


def test_strip_converts_a_yolov5_file(tmp_path, monkeypatch):
    save_release(tmp_path / "theirs.pt", "v7.0", monkeypatch)
    strip_checkpoint(tmp_path / "theirs.pt", tmp_path / "ours.pt")
    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("ours.pt", "theirs.pt"))
    assert ours.format == "yolov5-joint" and ours.names == theirs.names and ours.hyp == theirs.hyp
    assert equal_states(ours.state_dict, theirs.state_dict)  # float16 to begin with


def test_latest_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        latest_run(tmp_path)
    for age, name in enumerate(("exp2", "exp", "exp3")):
        file = tmp_path / name / "weights" / "last.pt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "exp/weights/last_state_dict.pt").touch()  # an export's, the newest of all
    assert latest_run(tmp_path).parent.parent.name == "exp2"
    assert latest_run(tmp_path / "exp", tmp_path / "exp3").parent.parent.name == "exp"
