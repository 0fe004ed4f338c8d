"""What the scripts share; see docs/yolov5-compatibility.md for the names that are YOLOv5's."""

from __future__ import annotations

from types import ModuleType

from utils.system.voice import say


def notebook_init(verbose: bool = True) -> ModuleType:
    """Say what a notebook runs on; returns `IPython.display`, to show pictures with.

    Nothing is installed, removed or cleared.
    """
    from IPython import display

    from utils.system.devices import describe_device, select_device

    if verbose:
        say(f"Setup complete: {describe_device(select_device())}")
    return display
