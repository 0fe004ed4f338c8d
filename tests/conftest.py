"""Fixtures shared by the tests: the reference numbers, and the real data where they are present."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Generator, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Small networks gain nothing from threads, and lose much where tests run beside one another. PyTorch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

from utils.system.machine import core_count  # noqa: E402

SHARED = Path(os.environ.get("YOLOV5_JOINT_SHARED", ROOT.parent / "shared"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes that share the tests; 0, which is this one, where test files are named: a start takes seconds."""
    named = {Path(arg.partition("::")[0]).suffix for arg in config.args}
    return 0 if ".py" in named or core_count() == 1 else min(core_count(), 4)  # a process takes up to 3 GB


def as_text(value: Any) -> Any:
    """The same report with names of files that are no text escaped: pytest-xdist sends UTF-8 alone."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: as_text(part) for key, part in value.items()}
    return type(value)(map(as_text, value)) if isinstance(value, list | tuple) else value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    return as_text((yield))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data sets and the reference's checkpoint, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data folder {SHARED}, which is not here (set YOLOV5_JOINT_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with numbers measured on the reference YOLOv5."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def theirs(shared: Path) -> Path:
    """Folder with the reference's own checkpoint and what it found on real pictures."""
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"needs the reference's checkpoint in {folder}")
    return folder


@pytest.fixture(scope="session")
def second() -> Iterator[Pool]:
    """A process beside the tests' own, for `two_processes`: started once, since its imports take seconds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation draws no curves and matrices, which take most of its time on a few pictures."""
    monkeypatch.setattr("val_joint.draw_results", lambda *_: None)
