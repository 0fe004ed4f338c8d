"""What `detect.py --source` may name: pictures, folders, globs, list files, videos, streams, webcams and the screen.

Every source is an iterable of lists of `Frame` (one frame for files and the screen; for streams one of each that has a
new one) and a context manager that frees cameras and threads. What cannot be read is left out and named in `.problems`.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import cv2
import numpy as np

from utils.dataset.files import find_glob, has_wildcard, read_list
from utils.dataset.pictures import IMG_FORMATS, read_picture
from utils.system.files import read_text

IMAGE_SUFFIXES = frozenset(IMG_FORMATS)
VIDEO_SUFFIXES = frozenset(["asf", "avi", "gif", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ts", "wmv"])
URL_SCHEMES = frozenset(["http", "https", "rtmp", "rtsp", "rtsps", "tcp", "udp"])
DEFAULT_FPS = 30.0


@dataclass
class Frame:
    """One picture to look at.

    Attributes:
        image: BGR uint8 [H,W,3].
        path: File name or address it came from; results of one path belong together.
        mode: `"image"`, `"video"` (a file) or `"stream"` (live: address, camera, screen).
        title: How the console names it: `image 1/6 a.jpg`, `video 2/6 (7/40) b.mp4`, `0: rtsp://…`.
        number: Count of frames taken from this video or stream, from 1; 0 for pictures.
        fps: Frames a second at which a video of these frames plays at true speed; None for pictures.
        seconds: For live sources, time since the first frame; None elsewhere.
        stream: Which of several streams it came from, from 0.
    """

    image: np.ndarray
    path: str
    mode: str
    title: str
    number: int = 0
    fps: float | None = None
    seconds: float | None = None
    stream: int = 0


def open_source(source: str | Path, vid_stride: int = 1) -> FileSource | StreamSource | ScreenSource:
    """The source that a `--source` text names.

    Args:
        source: Picture, video, folder, glob, list file (`.txt`, one of these a line), address of a picture, video or
            stream, list of streams (`.streams`, or a list file of nothing else), webcam id (`0`), or `screen [number]
            [left top width height]`.
        vid_stride: Use every n-th frame of videos and streams.

    Raises:
        FileNotFoundError: Nothing is there, or nothing of a known type.
        ConnectionError: No stream of the list could be opened.
        ModuleNotFoundError: The screen is asked for and the package `mss` is not installed.
        ValueError: Malformed text.
    """
    text = str(source).strip()
    if not text:
        raise ValueError("--source is empty: name a picture, a folder, a video, a stream or a webcam id")
    if vid_stride < 1:
        raise ValueError(f"--vid-stride {vid_stride}: must be 1 or more")
    if text.lower().split()[0] == "screen" and not Path(text).exists():
        return ScreenSource(text)
    if text.isnumeric() and not Path(text).exists():
        return StreamSource([text], vid_stride)
    if text.lower().endswith(".streams"):
        if not Path(text).is_file():
            raise FileNotFoundError(f"--source {text}: there is no such list of streams")
        return StreamSource(lines_of(text), vid_stride)
    if _is_url(text) and _kind(text) is None:
        return StreamSource([text], vid_stride)
    if (
        text.lower().endswith(".txt")
        and Path(text).is_file()
        and all(map(_is_stream, lines := lines_of(text)))
        and lines
    ):
        print(f"{text}: every line of it is a stream, so it is read as a list of streams")
        return StreamSource(lines, vid_stride)
    return FileSource(text, vid_stride)


class FileSource:
    """Pictures first, then videos, each in order of their names.

    Attributes:
        images, videos: Paths (or addresses) found.
        capture: Of the video that is being read, or was last.
        problems: What was left out and why, one line each; complete once iterated.
    """

    live = False
    capture: cv2.VideoCapture | None = None

    def __init__(self, source: str, vid_stride: int = 1):
        self.problems: list[str] = []
        self.vid_stride = vid_stride
        files = self._find(source)
        self.images = [f for f in files if _kind(f) == "image"]
        self.videos = [f for f in files if _kind(f) == "video"]
        if not self.images and not self.videos:
            reasons = "".join(f"\n  {p}" for p in self.problems)
            deeper = ""
            if Path(source).is_dir() and any(_kind(str(p)) for p in Path(source).glob("*/**/*.*")):
                deeper = f" Its subfolders have some: use --source '{source.rstrip('/')}/**/*.*'."
            raise FileNotFoundError(
                f"--source {source}: no picture or video in it.{deeper} Suffixes of pictures: "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}; of videos: {', '.join(sorted(VIDEO_SUFFIXES))}.{reasons}"
            )

    def __len__(self) -> int:
        return len(self.images) + len(self.videos)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *exc) -> None:
        pass

    def __iter__(self) -> Iterator[list[Frame]]:
        total = len(self)
        for i, path in enumerate(self.images, 1):
            try:
                image = read_picture(path)
            except (OSError, ValueError) as e:
                self._problem(str(e) if str(path) in str(e) else f"{path}: {e}")
                continue
            yield [Frame(image, path, "image", f"image {i}/{total} {path}")]
        for i, path in enumerate(self.videos, len(self.images) + 1):
            yield from self._video(path, f"video {i}/{total}")

    def _video(self, path: str, title: str) -> Iterator[list[Frame]]:
        capture = self.capture = cv2.VideoCapture(path)
        number = 0
        try:
            total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) // self.vid_stride  # 0 or less: not known
            fps = _fps(capture) / self.vid_stride
            while capture.isOpened():
                ok, image = _next_frame(capture, self.vid_stride)
                if not ok:
                    break
                number += 1
                count = f"({number}/{total})" if total >= number else f"({number})"
                yield [Frame(image, path, "video", f"{title} {count} {path}", number, fps)]
        finally:
            capture.release()
        if number == 0:
            self._problem(f"{path}: not readable as a video")

    def _find(self, source: str) -> list[str]:
        path = Path(source)
        if _is_url(source):
            return [source]
        if path.is_dir():
            return sorted(str(p) for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if path.is_file() and path.suffix.lower() == ".txt":
            return self._find_listed(path)
        if path.is_file():
            return [source]
        if has_wildcard(source):
            return [f for f in find_glob(source) if Path(f).is_file()]
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise FileNotFoundError(f"--source {source}: there is no such file or folder{place}")

    def _find_listed(self, list_file: Path) -> list[str]:
        """What the entries of a list file name, see `read_list`."""
        files: list[str] = []
        for number, entry, path in read_list(list_file):
            if _is_url(entry):
                if _kind(entry) is None:
                    entry = _public_name(entry)
                    self._problem(f"{list_file}:{number}: {entry} is a stream; streams need a list of their own")
                else:
                    files.append(entry)
                continue
            try:
                files += self._find(path)
            except FileNotFoundError:
                self._problem(f"{list_file}:{number}: there is no {entry}")
        return files

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        print(f"WARNING: {text}; left out", file=sys.stderr)


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
                self._streams.append(_Stream(len(self._streams), address, capture))
            else:
                capture.release()
                self.problems.append(_cannot_open(address))
        if not self._streams:
            raise ConnectionError("\n".join(self.problems))
        for problem in self.problems:
            print(f"WARNING: {problem}", file=sys.stderr)
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

    def _all_done(self) -> bool:
        return all(s.done for s in self._streams)

    def _read(self, stream: _Stream) -> None:
        failures, start = 0, None
        try:
            while not self._stop.is_set():
                ok, image = _next_frame(stream.capture, self.vid_stride)
                if ok:
                    failures = 0
                    start = start or time.monotonic()
                    self._publish(stream, image, time.monotonic() - start)
                elif not stream.live:
                    return  # a file's end
                elif failures == self.retries:
                    self._problem(f"stream {stream.name}: reconnecting failed {failures} times, it ends here")
                    return
                else:
                    failures += 1
                    print(
                        f"WARNING: stream {stream.name} gives no frames, check the connection; "
                        f"reconnecting ({failures} of {self.retries})",
                        file=sys.stderr,
                    )
                    self._stop.wait(min(self.pause * 2 ** (failures - 1), 10 * self.pause))
                    stream.capture.open(_capture_argument(stream.address))
        finally:
            stream.capture.release()
            with self._news:
                stream.done = True
                self._news.notify_all()

    def _publish(self, stream: _Stream, image: np.ndarray, seconds: float) -> None:
        with self._news:
            if not stream.live:  # a file loses no frame: wait until the last one was taken
                self._news.wait_for(lambda: stream.frame is None or self._stop.is_set())
            stream.number += 1
            title = f"{stream.index}: {stream.name} ({stream.number})"
            fps = stream.fps / self.vid_stride
            seconds = seconds if stream.live else None
            stream.frame = Frame(image, stream.name, "stream", title, stream.number, fps, seconds, stream.index)
            self._news.notify_all()

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        print(f"WARNING: {text}", file=sys.stderr)


class _Stream:
    def __init__(self, index: int, address: str, capture: cv2.VideoCapture):
        self.index, self.address, self.capture = index, address, capture
        self.name = _public_name(address)
        self.live = _is_url(address) or address.isnumeric()
        self.fps = _fps(capture)
        self.frame: Frame | None = None
        self.number = 0
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

    def __iter__(self) -> Iterator[list[Frame]]:
        start, number = time.monotonic(), 0
        while True:
            image = np.ascontiguousarray(np.asarray(self._grabber.grab(self.area))[:, :, :3])  # BGRA → BGR
            number += 1
            title = f"screen {self.number} ({number})"
            yield [Frame(image, f"screen{self.number}", "stream", title, number, DEFAULT_FPS, time.monotonic() - start)]


def _next_frame(capture: cv2.VideoCapture, stride: int) -> tuple[bool, np.ndarray | None]:
    """The `stride`-th frame from here; the frames between are not decoded."""
    for _ in range(stride):
        if not capture.grab():
            return False, None
    ok, image = capture.retrieve()
    if ok and image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return ok, image


def _fps(capture: cv2.VideoCapture) -> float:
    """Frames a second; containers and cameras that do not know it say 0, NaN or something absurd."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS


def _is_url(text: str) -> bool:
    return "://" in text and urlparse(text).scheme.lower() in URL_SCHEMES


def _is_stream(text: str) -> bool:
    """Whether a line names a stream or a webcam, and can be nothing else."""
    return (_is_url(text) and _kind(text) is None) or (text.isnumeric() and not Path(text).exists())


def _kind(path: str) -> str | None:
    """`"image"`, `"video"` or None by the suffix; an address's query does not count."""
    suffix = Path(urlparse(path).path if _is_url(path) else path).suffix.lower().lstrip(".")
    if _is_url(path) and urlparse(path).scheme.lower() not in ("http", "https"):
        return None  # rtsp://camera/live.mp4 is a stream
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def lines_of(path: str | Path) -> list[str]:
    """Lines of a list of streams, without empty ones and comments."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _capture_argument(address: str) -> int | str:
    return int(address) if address.isnumeric() else address


def _cannot_open(address: str) -> str:
    if address.isnumeric():
        return f"webcam {address} cannot be opened: is one connected, free, and allowed for this program?"
    if re.search(r"(^|\.)(youtube\.com|youtu\.be)$", urlparse(address).hostname or ""):
        return f"{address} is a web page, not a stream: pass the stream's own address (for example from yt-dlp -g)"
    return f"stream {_public_name(address)} cannot be opened: check the address and the network"


def _public_name(address: str) -> str:
    """The address without user name and password, which belong neither on a console nor into a file name."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)
