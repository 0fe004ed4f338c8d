"""The name that `utils.dataloaders` had until YOLOv5 v6.1, with the loaders as they were.

Until v6.0 an item had four values, from v6.1 on five: the last is the line for the console. Programs of v5.0 do not
pass `auto`, which did not exist, and get four; those that pass it get five.
"""

from __future__ import annotations

from typing import Any

from utils.augmentations import letterbox
from utils.dataloaders import IMG_FORMATS, VID_FORMATS
from utils.results import loaders

__all__ = [
    "IMG_FORMATS", "VID_FORMATS", "LoadImages", "LoadStreams", "LoadWebcam", "img_formats", "letterbox", "vid_formats",
]  # fmt: skip

img_formats, vid_formats = list(IMG_FORMATS), list(VID_FORMATS)  # v5.0
AUTO = 3  # its place among the arguments


class LoadImages(loaders.LoadImages):
    """See `utils.results.loaders.LoadImages`; without `auto` items of four."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = 5 if len(args) > AUTO or "auto" in kwargs else 4

    def __next__(self) -> tuple:
        return super().__next__()[: self._length]


class LoadStreams(loaders.LoadStreams):
    """See `utils.results.loaders.LoadStreams`; without `auto` items of four."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = 5 if len(args) > AUTO or "auto" in kwargs else 4

    def __next__(self) -> tuple:
        return super().__next__()[: self._length]


class LoadWebcam(loaders.LoadWebcam):
    """See `utils.results.loaders.LoadWebcam`; items of four."""

    def __next__(self) -> tuple:
        return super().__next__()[:4]
