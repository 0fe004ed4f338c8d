"""YOLOv5's loaders of pictures, videos and streams, over `utils.results.sources`.

Each is its own iterator and yields `(path, im, im0, cap, s)`: the network's input uint8 RGB [3, h, w] (for streams
[n, 3, h, w]), letterboxed; the picture itself, BGR [H, W, 3] (for streams a list); the `cv2.VideoCapture` of a video or
None; the line that a console begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.augmentations import letterbox
from utils.results.frames import Frame
from utils.results.sources import VIDEO_SUFFIXES, FileSource, lines_of
from utils.results.streams import ScreenSource, StreamSource
from utils.system.downloads import address_of

VID_FORMATS = tuple(sorted(VIDEO_SUFFIXES))  # suffixes without their dot

Item = tuple[str | list[str], np.ndarray, np.ndarray | list[np.ndarray], cv2.VideoCapture | None, str]


class _Loader:
    """What the loaders share.

    Args:
        img_size: Longest side of the input, or height and width; pixels.
        stride: What its sides are a multiple of.
        auto: Pad to the next multiple only, instead of to all of `img_size`.
        transforms: Makes the input from a BGR picture in place of letterboxing.
    """

    def __init__(self, img_size: int | Sequence[int], stride: int, auto: bool, transforms: Callable | None) -> None:
        self.img_size, self.stride, self.auto, self.transforms = img_size, stride, auto, transforms
        self.count = 0

    def _input(self, im0: np.ndarray) -> np.ndarray:
        if self.transforms:
            return self.transforms(im0)
        boxed = letterbox(im0, self.img_size, stride=self.stride, auto=self.auto)[0]
        return np.ascontiguousarray(boxed.transpose(2, 0, 1)[::-1])


class LoadImages(_Loader):
    """Pictures, then videos, of a file, a folder, a glob, a list file (.txt) or a list of these.

    Attributes:
        files, nf: Their paths and number.
        mode: `"image"` or `"video"`, of the last item.
        cap, frame, frames: Of the last video: its capture, the number of its frame from 1, how many it has.

    Raises:
        FileNotFoundError: Nothing is there, or nothing of a known type.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        img_size: int | Sequence[int] = 640,
        stride: int = 32,
        auto: bool = True,
        transforms: Callable | None = None,
        vid_stride: int = 1,
    ) -> None:
        super().__init__(img_size, stride, auto, transforms)
        paths = sorted(map(str, path)) if isinstance(path, (list, tuple)) else [str(path)]
        paths = [p if address_of(p) else str(Path(p).resolve()) for p in paths]
        self._source, *others = (FileSource(p, vid_stride) for p in paths)
        self._source.images += [f for other in others for f in other.images]
        self._source.videos += [f for other in others for f in other.videos]
        self.files = self._source.images + self._source.videos
        self.nf, self.video_flag = len(self.files), [f in self._source.videos for f in self.files]
        self.mode, self.cap, self.frame, self.frames, self.vid_stride = "image", None, 0, 0, vid_stride
        self._frames: Iterator[list[Frame]] = iter(self._source)

    def __len__(self) -> int:
        return self.nf

    def __iter__(self) -> LoadImages:
        self.count, self._frames = 0, iter(self._source)
        return self

    def __next__(self) -> Item:
        (frame,) = next(self._frames)
        self.mode, self.frame, self.cap = frame.mode, frame.number, self._source.capture
        self.count = self.files.index(frame.path) + (frame.mode == "image")
        if self.cap is not None:
            self.frames = int(self.cap.get(cv2.CAP_PROP_FRAME_COUNT) / self.vid_stride)
        return frame.path, self._input(frame.image), frame.image, self.cap, f"{frame.title}: "


class LoadStreams(_Loader):
    """Streams and webcams, one or those of a list file, side by side.

    An item has the newest picture of every stream, once each has had one and whenever one has a new one. A stream that
    ended keeps its last picture; when all have ended the loader ends.

    Attributes:
        sources: Their names.

    Raises:
        ConnectionError: No stream could be opened.
    """

    mode = "stream"

    def __init__(
        self,
        sources: str | Path = "file.streams",
        img_size: int | Sequence[int] = 640,
        stride: int = 32,
        auto: bool = True,
        transforms: Callable | None = None,
        vid_stride: int = 1,
    ) -> None:
        super().__init__(img_size, stride, auto, transforms)
        a_list = Path(sources).is_file() and Path(sources).suffix.lower()[1:] not in VIDEO_SUFFIXES
        addresses = lines_of(sources) if a_list else [str(sources)]
        self._source = StreamSource(addresses, vid_stride)
        self.sources, self._asked_auto = self._source.names, auto
        self._newest: dict[int, np.ndarray] = {}
        self._batches = iter(self._source)

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> LoadStreams:
        self.count = -1
        return self

    def __next__(self) -> Item:
        while True:
            try:
                frames = next(self._batches)
            except StopIteration:
                self._source.__exit__()
                raise
            self._newest |= {f.stream: f.image for f in frames}
            if len(self._newest) == len(self):
                break
            if self._source.problems and self._source.ended - self._newest.keys():
                self._source.__exit__()
                raise ConnectionError("\n".join(self._source.problems))  # a batch has a picture of each
        self.count += 1
        im0 = [self._newest[i] for i in range(len(self))]
        self.auto = self._asked_auto and len({im.shape for im in im0}) == 1  # one shape for all, or squares
        return self.sources, np.stack([self._input(im) for im in im0]), im0, None, ""


class LoadWebcam(LoadStreams):
    """One webcam, by its number; items are those of a single picture."""

    def __init__(self, pipe: str = "0", img_size: int | Sequence[int] = 640, stride: int = 32) -> None:
        super().__init__(pipe, img_size, stride)

    def __next__(self) -> Item:
        _, im, im0, cap, _ = super().__next__()
        return "webcam.jpg", im[0], im0[0], cap, f"webcam {self.count}: "


class LoadScreenshots(_Loader):
    """Pictures of the screen: `screen [number] [left top width height]`."""

    mode = "stream"

    def __init__(
        self,
        source: str = "screen",
        img_size: int | Sequence[int] = 640,
        stride: int = 32,
        auto: bool = True,
        transforms: Callable | None = None,
    ) -> None:
        super().__init__(img_size, stride, auto, transforms)
        self._frames = iter(ScreenSource(str(source)))

    def __iter__(self) -> LoadScreenshots:
        return self

    def __next__(self) -> Item:
        (frame,) = next(self._frames)
        self.count = self.frame = frame.number
        return frame.path, self._input(frame.image), frame.image, None, f"{frame.title}: "
