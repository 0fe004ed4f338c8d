"""Whether this machine can open windows."""

from __future__ import annotations

import os
import platform

import cv2

from utils.system import voice


def can_show(warn: bool = False) -> bool:
    """Whether windows can be opened here; without a display OpenCV would end the program."""
    displays = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if platform.system() == "Linux" and not displays:
        reason = "there is no display"
    elif any("GUI:" in line and "NONE" in line for line in cv2.getBuildInformation().splitlines()):
        reason = "this OpenCV is built without windows"
    else:
        return True
    if warn:
        voice.warn(f"no windows are opened: {reason}; results are written to files")
    return False
