"""Pictures and labels that processes of their own check: what threads find, and none is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.dataset import pairs, pictures, scan
from utils.dataset.index import ARRAYS, DatasetIndex
from utils.dataset.scan import scan_dataset
from utils.system.paths import ROOT

SCAN = """
import sys
sys.path.insert(0, {root!r})
from utils.dataset import pairs, scan
scan.MANY, start = 1, pairs._start
def started():
    process = start()
    print("started", process.pid, flush=True)
    return process
pairs._start = started
index = scan.scan_dataset({images!r}, 2, 3, cache=False, workers=2, verbose=False)
print(len(index), "torch" in sys.modules)
"""


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """More pictures than one process takes at a time, with each kind of fault."""
    monkeypatch.setattr(pictures, "_told", set())
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(200):
        name = f"é{i:03d}"
        cv2.imwrite(str(folder / f"{name}.jpg"), np.full((16, 20 + i % 3, 3), i, np.uint8))
        box = f"{i % 2} 0.5 0.5 0.2 0.{1 + i % 9}\n"
        text = ["0 0.1 0.1 0.4 0.1 0.4 0.5\n0 1 0", f"{box}0 0 1", f"9 0.5 0.5 1 1\n{box}{box}1 0 0", "0 1 0"][i % 4]
        (tmp_path / "labels" / f"{name}.txt").write_text(text)
    (folder / "é020.jpg").write_bytes(b"no picture")
    (folder / "é150.jpg").write_bytes((folder / "é151.jpg").read_bytes()[:-40])
    (tmp_path / "labels" / "é030.txt").unlink()
    for i in (100, 199):
        Image.new("RGBA", (20, 16), (1, 2, 3, 4)).save(folder / f"é{i:03d}.png")
    return folder


def run(images: Path, monkeypatch, processes: bool) -> DatasetIndex:
    monkeypatch.setattr(scan, "MANY", 1 if processes else 10**9)
    pictures._told.clear()
    return scan_dataset(str(images), 2, 3, cache=False, workers=2)


def same(a: DatasetIndex, b: DatasetIndex) -> bool:
    arrays = [(getattr(a, name), getattr(b, name)) for name in ("im_files", "label_files", *ARRAYS)]
    return a.problems == b.problems and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in arrays)


@pytest.mark.slow
def test_processes_find_and_tell_what_threads_do(images, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(pairs, "_start", lambda start=pairs._start: started.append(start()) or started[-1])
    here = run(images, monkeypatch, processes=False)
    told = capsys.readouterr().out
    assert not started and told.count("NOTE: transparency") == told.count("NOTE") == 1 and len(here.problems) > 50
    assert same(run(images, monkeypatch, processes=True), here)
    again = capsys.readouterr().out
    assert again.count("NOTE: transparency") == again.count("NOTE") == 1 and len(started) == 2
    assert [line for line in again.splitlines() if "NOTE" not in line] == [
        line for line in told.splitlines() if "NOTE" not in line
    ]
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["raise SystemExit", "import os; os.write(1, b'.')", "print('This is no answer')"])
def test_what_a_process_does_not_answer_is_done_here(images, monkeypatch, first):
    here = run(images, monkeypatch, processes=False)
    monkeypatch.setattr(pairs, "PROGRAM", f"{first}; {pairs.PROGRAM}")
    assert same(run(images, monkeypatch, processes=True), here)


@pytest.mark.parametrize("program", ["", sys.executable.replace("python", "editor"), "/nowhere/python3"])
def test_without_an_interpreter_threads_do_it(images, monkeypatch, program):
    asked = []
    here = run(images, monkeypatch, processes=False)
    monkeypatch.setattr(sys, "executable", program)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, start=subprocess.Popen, **k: asked.append(a) or start(*a, **k))
    assert same(run(images, monkeypatch, processes=True), here) and len(asked) == (program == "/nowhere/python3")


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(images):
    program = images.parent / "script.py"
    program.write_text(SCAN.format(root=str(ROOT), images=str(images)), encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["started", "started"] and lines[3:] == ["200 False"]
    assert lines[2].startswith("NOTE: transparency")
    assert not done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
def test_ctrl_c_ends_the_processes_too(images):
    slow = "import os, time; os.write(2, b'ready\\n'); time.sleep(1)"
    text = SCAN.replace("pairs._start = started", f'pairs._start, pairs.PROGRAM = started, r"{slow};" + pairs.PROGRAM')
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # not so under `nohup … &`
    command = [sys.executable, "-c", heeded + text.format(root=str(ROOT), images=str(images))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        numbers = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        assert [process.stderr.readline() for _ in numbers] == ["ready\n"] * 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, errors = process.communicate(timeout=60)
    assert "False" not in out and errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
