"""Optional packages: imported where they are needed, asked for in one sentence where they are missing."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

TELEMETRY = "openvino_telemetry"  # reports to its maker as soon as OpenVINO or NNCF is imported


def need(package: str, purpose: str) -> ModuleType:
    """The package; nothing is ever installed.

    OpenVINO and NNCF are imported without their telemetry, which would send an event and write an id into the home
    folder.

    Args:
        purpose: What it is needed for, to begin a sentence with.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to get it.
    """
    if package in ("openvino", "nncf"):
        sys.modules.setdefault(TELEMETRY, None)  # its import fails, and they go on with empty stubs
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        if e.name != package:  # it is there, and something that it needs is not
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs the package {package}: pip install {package} (all formats: pip install -r "
            "requirements-export.txt)",
            name=package,
        ) from None


@functools.cache
def openvino_core():
    """OpenVINO's `Core`, one for the whole process; `need` the package before.

    Each Core gives the thread a signal stack and, when it goes, puts back the one it found. Two Cores that do not go in
    the reverse of their order leave a stack that is freed, and the next signal (the end of a child process) is a crash.
    """
    return sys.modules["openvino"].Core()
