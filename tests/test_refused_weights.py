"""A weight file that would run a command is refused, with its global named, by everything that takes weights."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_checkpoint import Call, as_global, as_stack_global, write_stream, write_zip
from test_tad_train import make_set
from test_torchscript_code import MINE, when_it_runs
from tiny_data import draw_set
from tiny_weights import save_weights

import detect
import detect_tad
import export
import export_tad
import hubconf
import train
import train_joint
import train_tad
import val
import val_joint
import val_tad
from benchmarks import formats
from models.experimental import DetectMultiBackend, attempt_load
from models.load import load_model
from utils.system.paths import ROOT
from utils.weights.checkpoint import load_checkpoint, strip_checkpoint


def in_zip(value, file: Path) -> Path:
    torch.save({"epoch": 1, "opt": {"data": value}, "model": None}, file)
    return file


def in_stream(value, file: Path) -> Path:
    torch.save({"model": value}, file, _use_new_zipfile_serialization=False)
    return file


def in_ours(value, file: Path) -> Path:
    """A checkpoint of our own, with the command among its options."""
    save_weights(file, joint=False)
    content = torch.load(file, weights_only=True)
    torch.save(content | {"opt": {"data": value}}, file)
    return file


def in_zip_alone(value, file: Path) -> Path:
    return write_zip(file, pickle.dumps(value, 2))


CONTAINERS = (in_zip, in_stream, in_ours, in_zip_alone)
SHELL = (-1, None, None, None, None, None, True, True)  # the other arguments of Popen; the last one is shell=True
COMMANDS = {
    r"(posix|nt)\.system": lambda target: Call(os.system, f"echo > {target}"),
    r"(subprocess|commands)\.Popen": lambda target: Call(subprocess.Popen, f"echo > {target}", *SHELL),
    r"(__builtin__|builtins)\.eval": lambda target: Call(eval, f"open({str(target)!r}, 'w').close()"),
    r"(__builtin__|builtins)\.exec": lambda target: Call(exec, f"open({str(target)!r}, 'w').close()"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_are_no_duds(tmp_path, name):
    target = tmp_path / "made"
    running = pickle.loads(pickle.dumps(COMMANDS[name](target), 2))  # what a plain torch.load does
    if isinstance(running, subprocess.Popen):
        running.wait(30)
    assert target.exists()


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_in_every_container(tmp_path, name, container):
    target = tmp_path / "made"
    file = container(COMMANDS[name](target), tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=rf"bad\.pt: refused, because it names `{name}`"):
        load_checkpoint(file)
    assert not target.exists()


def test_a_gadget_of_numpy_and_a_name_with_dots(tmp_path):
    """Library functions that evaluate their argument, and a path through a module that is allowed."""
    target = tmp_path / "made"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for data, name in (
        (as_global("numpy.f2py.crackfortran", "param_eval", code), "numpy.f2py.crackfortran.param_eval"),
        (as_global("numpy.testing._private.utils", "runstring", code), "numpy.testing._private.utils.runstring"),
        (as_global("torch.fx.graph_module", "_exec_with_source", code), "torch.fx.graph_module._exec_with_source"),
        (as_stack_global("models.common", "torch.hub.load", code), "models.common.torch.hub.load"),
    ):
        for write in (write_zip, write_stream):
            with pytest.raises(ValueError, match=f"names `{name}`"):
                load_checkpoint(write(tmp_path / "bad.pt", data))
    assert not target.exists()


def _cli(script, *args):
    return lambda file, folder: script.main(
        script.parse_opt([*(str(a(file, folder) if callable(a) else a) for a in args), "--device", "cpu"])
    )


def the_file(file, folder):
    return file


def data(file, folder):
    return folder / "set" / "set.yaml"


def pictures(file, folder):
    return folder / "set" / "images" / "train2017"


def events(file, folder):
    return make_set(folder / "clips", train=1, val=1)


def _official(**options):
    """The hub's functions by size take the file of their name."""

    def call(file, folder):
        file.rename("yolov5s.pt")
        hubconf.yolov5s(device="cpu", **options)

    return call


def benchmark_of_formats(file, folder):
    with mock.patch.object(sys, "argv", ["formats.py", "--weights", str(file), "--data", str(data(file, folder))]):
        formats.main()


ENTRIES = {
    "train_joint --weights": _cli(train_joint, "--weights", the_file, "--data", data, "--project", "runs"),
    "train_joint --weights --cfg": _cli(
        train_joint, "--weights", the_file, "--cfg", "yolov5n.yaml", "--data", data, "--project", "runs"
    ),
    "train_joint --resume": _cli(train_joint, "--resume", the_file),
    "train": _cli(train, "--weights", the_file, "--data", data, "--project", "runs"),
    "val": _cli(val, "--weights", the_file, "--data", data, "--project", "runs"),
    "val_joint": _cli(val_joint, "--weights", the_file, "--data", data, "--project", "runs"),
    "val_joint --task study": _cli(val_joint, "--weights", the_file, "--data", data, "--task", "study"),
    "detect": _cli(detect, "--weights", the_file, "--source", pictures, "--project", "runs"),
    "detect --update": _cli(detect, "--update", "--weights", the_file, "--source", pictures, "--project", "runs"),
    "export": _cli(export, "--weights", the_file),
    "export state_dict": _cli(export, "--weights", the_file, "--include", "state_dict"),
    "train_tad": _cli(train_tad, "--weights", the_file, "--data", events, "--project", "runs"),
    "val_tad": _cli(val_tad, "--weights", the_file, "--data", events, "--project", "runs"),
    "detect_tad": _cli(detect_tad, "--weights", the_file, "--source", "set", "--project", "runs"),
    "export_tad": lambda file, folder: export_tad.main(export_tad.parse_opt(["--weights", str(file)])),
    "benchmarks/formats": benchmark_of_formats,
    "hubconf.custom": lambda file, folder: hubconf.custom(file, device="cpu"),
    "hubconf.yolov5s": _official(),
    "hubconf.yolov5s, other classes": _official(classes=3),
    "torch.hub.load": lambda file, folder: torch.hub.load(str(ROOT), "custom", str(file), source="local"),
    "attempt_load": lambda file, folder: attempt_load(file),
    "DetectMultiBackend": lambda file, folder: DetectMultiBackend(file),
    "load_model of an ensemble": lambda file, folder: load_model([save_weights(folder / "good.pt"), file]),
    "strip_checkpoint": lambda file, folder: strip_checkpoint(file),
}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_in_refuses_and_names_the_global(tmp_path, monkeypatch, entry):
    monkeypatch.chdir(tmp_path)
    draw_set(tmp_path / "set", pictures=1)
    target = tmp_path / "made"
    file = in_zip(COMMANDS[r"(posix|nt)\.system"](target), tmp_path / "bad.pt")
    before = file.read_bytes()
    with pytest.raises((ValueError, SystemExit), match=r"\.pt: refused, because it names `(posix|nt)\.system`"):
        ENTRIES[entry](file, tmp_path)
    assert not target.exists()
    assert (file if file.exists() else Path("yolov5s.pt")).read_bytes() == before
    assert not (tmp_path / "runs").exists()


READ_CHECKPOINTS = ("train", "export", "strip_checkpoint")  # the beginnings of their names


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_in_refuses_torchscript_that_saves(tmp_path, monkeypatch, entry):
    """What runs exported files names the operator; what reads checkpoints takes none of them."""
    monkeypatch.chdir(tmp_path)
    draw_set(tmp_path / "set", pictures=1)
    victim = tmp_path / "victim.txt"
    victim.write_bytes(MINE)
    file = when_it_runs(tmp_path / "bad.torchscript", victim)
    before = file.read_bytes()
    match = rf"{file.name}: refused, because its code .* contains `torch\.save`"
    if entry.startswith("hubconf.yolov5s"):
        match = r"yolov5s\.pt: no checkpoint that can be read.*a TorchScript file"  # under the name of a checkpoint
    elif entry.endswith("_tad"):
        match = rf"{file.name} is an exported file"
    elif entry.startswith(READ_CHECKPOINTS):
        match = rf"{file.name}.* (is an exported file, and a checkpoint is needed here|only PyTorch weights)"
    with pytest.raises((ValueError, SystemExit), match=match):
        ENTRIES[entry](file, tmp_path)
    assert victim.read_bytes() == MINE
    assert (file if file.exists() else Path("yolov5s.pt")).read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_every_script_with_weights_is_in_the_list():
    """A new script that takes --weights, or hands over to one that does, has to be added above."""
    takes = re.compile(r'"--weights"|import .*\b(parse_opt|training_parser)\b')
    files = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")]
    scripts = {f.stem for f in files if takes.search(f.read_text("utf-8"))}
    assert scripts == {
        *("train", "val", "train_joint", "val_joint", "detect", "export", "formats"),
        *("train_tad", "val_tad", "detect_tad", "export_tad"),
    }
    assert {re.split("[ /.]", entry)[-1 if "/" in entry else 0] for entry in ENTRIES} >= scripts
