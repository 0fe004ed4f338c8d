"""Checkpoints made to be something else than they look like, or to fill the memory of whoever loads them."""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from old_yolov5 import save_release
from test_checkpoint import content_of, equal_states, tiny, write_zip
from tiny_data import draw_set
from tiny_weights import save_weights
from torch import Tensor, nn

import train_joint
from utils.weights.checkpoint import load_checkpoint, save_checkpoint, strip_checkpoint
from utils.weights.reader import read_pickled

# Files that are two things -------------------------------------------------------------------------------------------


def tar_archive() -> bytes:
    """The container of PyTorch's first releases, which later ones read without safety up to 2.5."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info, data = tarfile.TarInfo(name), pickle.dumps(0, 2)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_zip_archive_behind_other_data(tmp_path, monkeypatch):
    """Python's zipfile finds the archive, PyTorch goes by the first bytes."""
    ours = save_weights(tmp_path / "w.pt", joint=False)
    assert load_checkpoint(ours).format == "yolov5-joint"
    yolov5 = tmp_path / "y.pt"
    torch.save({"model": tiny(cls_nc=0), "epoch": 1}, yolov5)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was asked"))
    for file in (ours, yolov5):
        for front in (tar_archive(), b"MZ", b"\x80\x02"):
            both = tmp_path / "both.pt"
            both.write_bytes(front + file.read_bytes())
            assert zipfile.is_zipfile(both)
            with pytest.raises(ValueError, match=r"both\.pt: no checkpoint that can be read"):
                load_checkpoint(both)


@pytest.mark.parametrize("name", ["constants.pkl", "CONSTANTS.PKL"])
def test_torchscript_under_the_name_of_a_checkpoint(tmp_path, monkeypatch, name):
    file = tmp_path / "best.torchscript.pt"
    data = pickle.dumps({"format": "yolov5-joint"}, 2)
    write_zip(file, data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"archive/{name}", b"")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was asked"))
    with pytest.raises(ValueError, match=r"best\.torchscript\.pt: ") as error:
        load_checkpoint(file)
    if name.islower():
        assert "a TorchScript file: named best.torchscript it runs, for training give the .pt" in str(error.value)


def test_a_file_of_our_format_holds_nothing_but_tensors_and_plain_values(tmp_path):
    """A class that a YOLOv5 checkpoint may hold, in a file that says it is ours."""
    content = {"format": "yolov5-joint", "version": 1} | content_of(tiny())
    for value, name in ((nn.SiLU(), "torch.nn.modules.activation.SiLU"), ({1, 2}, "set")):
        torch.save(content | {"opt": {"extra": value}}, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=rf"w\.pt: a damaged .* checkpoint .*`opt\.extra` is a {name}\)"):
            load_checkpoint(tmp_path / "w.pt")


# Exported files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.onnx", "w.torchscript", "w.XML", "w_openvino_model", "w.engine"])
def test_exported_files_are_called_so(tmp_path, name):
    file = tmp_path / name
    if "." in name:
        file.write_bytes(bytes(100))
    else:
        file.mkdir()
        (file / "w.xml").write_text("<net/>")
    draw_set(tmp_path / "set", pictures=1)
    options = ["--data", str(tmp_path / "set" / "set.yaml"), "--project", str(tmp_path / "runs"), "--device", "cpu"]
    wanted = rf"{name} is an exported file, and a checkpoint is needed here: give the .pt it was made from"
    for call in (
        lambda: load_checkpoint(file),
        lambda: strip_checkpoint(file),
        lambda: train_joint.main(train_joint.parse_opt([*options, "--weights", str(file)])),
    ):
        with pytest.raises((ValueError, SystemExit), match=wanted):
            call()
    assert not list(tmp_path.glob("runs/*"))


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        load_checkpoint(tmp_path)


# Files that grow ------------------------------------------------------------------------------------------------------


def save_module(file: Path, **parts: nn.Module | nn.Parameter) -> Path:
    """A checkpoint as YOLOv5 pickles it, with more in its first layer."""
    model = tiny(cls_nc=0)
    for name, part in parts.items():
        setattr(model.model[0], name, part)
    torch.save({"model": model, "epoch": -1}, file)
    return file


def test_tensors_of_more_elements_than_are_stored(tmp_path):
    file = save_module(tmp_path / "w.pt", big=nn.Parameter(torch.zeros(1).expand(2**20, 2**20)))
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"w\.pt: .*`model\.0\.big` has 1099511627776 elements, .* stores 1\)"):
        load_checkpoint(file)


def test_tensors_that_share_what_is_stored(tmp_path):
    """Each could be stored so, all of them together could not; a few that share are as before."""
    data = torch.zeros(100_000)
    parts = {f"p{i}": nn.Parameter(data[: len(data) - i]) for i in range(40)}
    with pytest.raises(ValueError, match=r"w\.pt: .* tensors have more than 16 times the elements that it stores"):
        load_checkpoint(save_module(tmp_path / "w.pt", **parts))
    conv = nn.Conv2d(3, 8, 3)
    state = load_checkpoint(save_module(tmp_path / "w.pt", a=conv, b=conv)).state_dict
    assert torch.equal(state["model.0.a.weight"], state["model.0.b.weight"])
    assert torch.equal(state["model.0.b.weight"], conv.weight)


def test_sizes_that_overflow(tmp_path):
    """2**31 x 2**31 float32 elements are 2**64 bytes, which is 0 in 64 bits."""
    file = save_module(tmp_path / "w.pt", big=nn.Parameter(torch.zeros(1).expand(2**31, 2**31)))
    with pytest.raises(ValueError, match=r"w\.pt: .*`model\.0\.big` has 4611686018427387904 elements, .* stores 1\)"):
        load_checkpoint(file)


def test_ours_with_tensors_of_more_elements_than_are_stored(tmp_path):
    content = {"format": "yolov5-joint", "version": 1} | content_of(tiny())
    content["model"]["state_dict"] = {"big": torch.zeros(1, dtype=torch.float16).expand(2**20, 2**20)}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"w\.pt: .*`model\.state_dict\.big` has 1099511627776 elements, of which the file stores 1"
    ):
        load_checkpoint(tmp_path / "w.pt")


def test_ours_with_values_that_hold_each_other_many_times(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.weights.checkpoint.MAX_VALUES", 10_000)
    nested: list = [1]
    for _ in range(12):
        nested = [nested] * 10
    endless: list = []
    endless.append(endless)
    for value, words in ((nested, "more than 10000 values"), (endless, "nested too deeply")):
        content = {"format": "yolov5-joint", "version": 1} | content_of(tiny()) | {"train_state": {"x": value}}
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=rf"w\.pt: .*{words}"):
            load_checkpoint(tmp_path / "w.pt")


def test_ours_with_expanded_tensors_in_the_training_state(tmp_path):
    content = {"format": "yolov5-joint", "version": 1} | content_of(tiny())
    content["train_state"] = {"optimizer": {"buffer": torch.zeros(1).expand(2**20, 2**20)}}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: .*`train_state\.optimizer\.buffer` has 1099511627776 elements"):
        load_checkpoint(tmp_path / "w.pt")


def test_views_outside_the_state_dict_stay(tmp_path):
    """YOLOv5's Detect keeps grids that are expanded, and they may be in the file; nobody copies them."""
    model = tiny(cls_nc=0)
    model.detect.__dict__["grid"] = [torch.zeros(1, 1, 4, 4, 2).expand(1, 3, 4, 4, 2)]
    torch.save({"model": model, "epoch": -1}, tmp_path / "w.pt")
    assert equal_states(load_checkpoint(tmp_path / "w.pt").state_dict, model.state_dict())


def test_modules_that_hold_each_other_many_times(tmp_path):
    nested = nn.Sequential()
    for _ in range(28):
        nested = nn.Sequential(nested, nested)
    file = save_module(tmp_path / "w.pt", nested=nested)
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"w\.pt: .*more than 20000 modules"):
        load_checkpoint(file)


@pytest.mark.slow
def test_options_that_hold_each_other_many_times(tmp_path):
    nested: list = [1]
    for _ in range(12):
        nested = [nested] * 10
    torch.save({"model": tiny(cls_nc=0), "epoch": -1, "opt": {"x": nested}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: .*more than 1000000 values"):
        load_checkpoint(tmp_path / "w.pt")
    wide = {"x": torch.zeros(1).expand(2**20, 2**20)}
    torch.save({"model": tiny(cls_nc=0), "epoch": -1, "opt": wide}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: .*more than 1000000 values"):
        load_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), MemoryError()])
def test_lack_of_memory_ends_in_a_sentence(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    torch.save({"model": tiny(cls_nc=0), "epoch": -1}, tmp_path / "y.pt")
    save_checkpoint(tmp_path / "o.pt", content_of(tiny()))
    monkeypatch.setattr(Tensor, "float", fail)
    for name in ("y.pt", "o.pt"):
        with pytest.raises(ValueError, match=rf"{name}: .*{type(error).__name__}"):
            load_checkpoint(tmp_path / name)


class Storage:
    """Pickles as a reference to the storage `0` of one element count."""


class Moved:
    """Pickles as a tensor that gets another place in the storage afterwards, beyond its end."""

    def __init__(self, elements: int, state=None) -> None:
        self.elements, self.state = elements, state

    def __reduce__(self):
        made = torch._utils._rebuild_tensor_v2, (Storage(), 0, (self.elements,), (1,), False, OrderedDict())
        return (*made, self.state) if self.state else made


@pytest.mark.parametrize("elements", [0, 4])
def test_a_tensor_has_no_state_of_its_own(tmp_path, elements):
    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(obj, Storage) else None

    def write(value) -> Path:
        out = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Pickler(out, 2).dump({"model": value})
        return write_zip(tmp_path / "w.pt", out.getvalue(), **{"0": bytes(4 * elements)})

    assert isinstance(read_pickled(write(Moved(elements)))["model"], Tensor)
    with pytest.raises(ValueError, match=r"w\.pt: .*a tensor with a state of its own"):
        read_pickled(write(Moved(elements, (Moved(elements), 0, (1_000_000,), (1,)))))


@pytest.mark.parametrize("opcodes", [b"K\x00K\x01s", b"(K\x00K\x01u", b"(K\x01\x90", b"K\x01a", b"(K\x01e"])
def test_a_pickle_cannot_change_a_tensor(tmp_path, opcodes):
    """SETITEM, SETITEMS, ADDITEMS, APPEND and APPENDS on a tensor: what they make of it could take any memory."""
    file = tmp_path / "w.pt"
    torch.save({"model": torch.zeros(4)}, file)
    with zipfile.ZipFile(file) as archive:
        made, _ = archive.read("w/data.pkl").rsplit(b"R", 1)  # up to the call that makes the tensor
    assert read_pickled(write_zip(file, made + b"Rs.", **{"0": bytes(16)}))["model"].tolist() == [0, 0, 0, 0]
    with pytest.raises(
        ValueError, match=r"w\.pt: .*(a tensor that is changed|a tensor with a state|has no attribute 'app)"
    ):
        read_pickled(write_zip(file, made + b"R" + opcodes + b"s.", **{"0": bytes(16)}))


def test_loaded_tensors_are_plain_ones(tmp_path, monkeypatch):
    save_release(tmp_path / "theirs.pt", "v7.0", monkeypatch)
    state = load_checkpoint(tmp_path / "theirs.pt").state_dict
    assert {type(t) for t in state.values()} == {Tensor}
