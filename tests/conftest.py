"""Fixtures shared by the tests: the reference numbers, and the real data where they are present."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Small networks gain nothing from threads, and lose much where tests run beside one another. PyTorch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SHARED = Path(os.environ.get("YOLOV5_JOINT_SHARED", ROOT.parent / "shared"))


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
