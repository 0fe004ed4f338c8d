"""Live sources: streams, webcams and the screen."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import cv2
import numpy as np

from utils.results.frames import DEFAULT_FPS, Frame, Video
from utils.system.downloads import public_name
from utils.system.voice import warn

URL_SCHEMES = frozenset(["http", "https", "rtmp", "rtsp", "rtsps", "tcp", "udp"])


class StreamSource:
    """Live streams and webcams, each read in a thread of its own that keeps the newest frame only.

    A stream that stops is opened again after a growing pause; after `retries` failures in a row it ends. Local video
    files may stand in a list of streams, too: they are read frame by frame, beside one another.
    """

    live = True

    def __init__(self, addresses: list[str], vid_stride: int = 1, retries: int = 6, pause: float = 1.0):
        if not addresses:
            raise ValueError("--source: the list of streams is empty")
        self.problems: list[str] = []
        self.vid_stride, self.retries, self.pause = vid_stride, retries, pause
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._streams: list[_Stream] = []
        for address in addresses:
            capture = cv2.VideoCapture(_capture_argument(address))
            if capture.isOpened():
                self._streams.append(_Stream(len(self._streams), address, Video(capture, vid_stride)))
            else:
                capture.release()
                self.problems.append(_cannot_open(address))
        if not self._streams:
            raise ConnectionError("\n".join(self.problems))
        for problem in self.problems:
            warn(f"{problem}")
        self._threads = [threading.Thread(target=self._read, args=(s,), daemon=True) for s in self._streams]
        for thread in self._threads:
            thread.start()

    @property
    def names(self) -> list[str]:
        """Of the streams that could be opened."""
        return [s.name for s in self._streams]

    def __len__(self) -> int:
        return len(self._streams)

    def __enter__(self) -> StreamSource:
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        with self._news:
            self._news.notify_all()
        for thread in self._threads:
            thread.join(timeout=2)

    def __iter__(self) -> Iterator[list[Frame]]:
        while True:
            with self._news:
                # the timeout keeps Ctrl-C working on systems where a wait cannot be interrupted
                self._news.wait_for(lambda: any(s.frame for s in self._streams) or self._all_done(), timeout=1)
                frames = [s.frame for s in self._streams if s.frame]
                for s in self._streams:
                    s.frame = None
                self._news.notify_all()
                if not frames and self._all_done():
                    return
            if frames:
                yield frames

    def summary(self) -> str:
        return f"{len(self)} stream{'s' * (len(self) > 1)}"

    @property
    def ended(self) -> set[int]:
        """Numbers of the streams that give no more frames."""
        return {s.index for s in self._streams if s.done and not s.frame}

    def _all_done(self) -> bool:
        return all(s.done for s in self._streams)

    def _read(self, stream: _Stream) -> None:
        failures, start = 0, None
        try:
            while not self._stop.is_set():
                image = stream.video.read()
                if image is not None:
                    failures = 0
                    start = start or time.monotonic()
                    self._publish(stream, image, time.monotonic() - start)
                elif not stream.live or 0 < stream.video.expected <= stream.video.number:  # or a file at an address
                    if fault := stream.video.fault():
                        self._problem(f"{stream.name}: {fault}")
                    return
                elif failures == self.retries:
                    self._problem(f"stream {stream.name}: reconnecting failed {failures} times, it ends here")
                    return
                else:
                    failures += 1
                    warn(
                        f"stream {stream.name} gives no frames, check the connection; "
                        f"reconnecting ({failures} of {self.retries})"
                    )
                    self._stop.wait(min(self.pause * 2 ** (failures - 1), 10 * self.pause))
                    stream.video.capture.open(_capture_argument(stream.address))
        finally:
            stream.video.capture.release()
            with self._news:
                stream.done = True
                self._news.notify_all()

    def _publish(self, stream: _Stream, image: np.ndarray, seconds: float) -> None:
        with self._news:
            if not stream.live:  # a file loses no frame: wait until the last one was taken
                self._news.wait_for(lambda: stream.frame is None or self._stop.is_set())
            number, fps = stream.video.number, stream.video.fps
            title = f"{stream.index}: {stream.name} ({number})"
            seconds = seconds if stream.live else None
            stream.frame = Frame(image, stream.name, "stream", title, number, fps, seconds, stream.index)
            self._news.notify_all()

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        warn(f"{text}")


class _Stream:
    def __init__(self, index: int, address: str, video: Video):
        self.index, self.address, self.video = index, address, video
        self.name = public_name(address)
        self.live = is_url(address) or isinstance(_capture_argument(address), int)
        self.frame: Frame | None = None
        self.done = False


class ScreenSource:
    """Pictures of a screen, as fast as they come: `screen`, `screen 1`, `screen 0 left top width height` (pixels)."""

    live = True

    def __init__(self, text: str = "screen"):
        try:
            import mss
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--source screen needs the package mss: pip install mss") from None
        try:
            numbers = [int(n) for n in text.split()[1:]]
        except ValueError:
            numbers = [0] * 9
        if len(numbers) not in (0, 1, 4, 5):
            raise ValueError(f"--source '{text}': write screen [NUMBER] [LEFT TOP WIDTH HEIGHT]")
        self.problems: list[str] = []
        self.number = numbers[0] if len(numbers) in (1, 5) else 0
        try:
            self._grabber = mss.mss()
        except Exception as e:  # mss has an error class for each system
            raise OSError(f"--source screen: the screen cannot be read here ({e})") from None
        last = len(self._grabber.monitors) - 1
        if self.number > last:
            raise ValueError(f"--source '{text}': screens are numbered from 0 (all of them) to {last}")
        monitor = self._grabber.monitors[self.number]
        left, top, width, height = numbers[-4:] if len(numbers) >= 4 else (0, 0, monitor["width"], monitor["height"])
        self.area = {"left": monitor["left"] + left, "top": monitor["top"] + top, "width": width, "height": height}

    def __len__(self) -> int:
        return 1

    def __enter__(self) -> ScreenSource:
        return self

    def __exit__(self, *exc) -> None:
        self._grabber.close()

    def summary(self) -> str:
        return "1 screen"

    def __iter__(self) -> Iterator[list[Frame]]:
        start, number = time.monotonic(), 0
        while True:
            image = np.ascontiguousarray(np.asarray(self._grabber.grab(self.area))[:, :, :3])  # BGRA → BGR
            number += 1
            title = f"screen {self.number} ({number})"
            yield [Frame(image, f"screen{self.number}", "stream", title, number, DEFAULT_FPS, time.monotonic() - start)]


def is_url(text: str) -> bool:
    return "://" in text and urlparse(text).scheme.lower() in URL_SCHEMES


def _capture_argument(address: str) -> int | str:
    number = address.removeprefix("/dev/video")
    return int(number) if number.isnumeric() else address


def _cannot_open(address: str) -> str:
    if isinstance(_capture_argument(address), int):
        return f"webcam {address} cannot be opened: is one connected, free, and allowed for this program?"
    if re.search(r"(^|\.)(youtube\.com|youtu\.be)$", urlparse(address).hostname or ""):
        return f"{address} is a web page, not a stream: pass the stream's own address (for example from yt-dlp -g)"
    return f"stream {public_name(address)} cannot be opened: check the address and the network"
