"""What `detect.py --source` may name: pictures, folders, globs, list files, videos, streams, webcams and the screen.

Every source is an iterable of lists of `Frame` (one frame for files and the screen; for streams one of each that has a
new one) and a context manager that frees cameras and threads. What cannot be read is left out and named in `.problems`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import cv2
import numpy as np

from utils.dataset.files import find_glob, has_wildcard, is_companion, other_kind, other_kinds, read_list
from utils.dataset.labels import Problem
from utils.dataset.pictures import IMG_FORMATS, read_picture
from utils.results.frames import Frame, Video, open_video
from utils.results.streams import ScreenSource, StreamSource, is_url
from utils.system.downloads import public_name
from utils.system.files import read_text
from utils.system.threads import in_order
from utils.system.voice import say, warn

READ_AHEAD = 4  # pictures
IMAGE_SUFFIXES = frozenset(IMG_FORMATS)
VIDEO_SUFFIXES = frozenset(
    ["3g2", "3gp", "asf", "avi", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf"]
    + ["ogv", "ts", "vob", "webm", "wmv"]
)


def open_source(source: str | Path, vid_stride: int = 1, readers: int = 0) -> FileSource | StreamSource | ScreenSource:
    """The source that a `--source` text names.

    Args:
        source: Picture, video, folder, glob, list file (`.txt`, one of these a line), address of a picture, video or
            stream, list of streams (`.streams`, or a list file of nothing else), webcam id (`0`), or `screen [number]
            [left top width height]`.
        vid_stride: Use every n-th frame of videos and streams.
        readers: Threads that decode pictures before they are asked for.

    Raises:
        FileNotFoundError: Nothing is there, or nothing of a known type.
        ConnectionError: No stream of the list could be opened.
        ModuleNotFoundError: The screen is asked for and the package `mss` is not installed.
        ValueError: Malformed text.
    """
    text = str(source).strip()
    if not is_url(text):
        text = os.path.expanduser(text)
    if not text:
        raise ValueError("--source is empty: name a picture, a folder, a video, a stream or a webcam id")
    if vid_stride < 1:
        raise ValueError(f"--vid-stride {vid_stride}: must be 1 or more")
    if text.lower().split()[0] == "screen" and not Path(text).exists():
        return ScreenSource(text)
    if _is_webcam(text):
        return StreamSource([text], vid_stride)
    if text.lower().endswith(".streams"):
        if not Path(text).is_file():
            raise FileNotFoundError(f"--source {text}: there is no such list of streams")
        return StreamSource(lines_of(text), vid_stride)
    if is_url(text) and _kind(text) is None:
        return StreamSource([text], vid_stride)
    if (
        text.lower().endswith(".txt")
        and Path(text).is_file()
        and all(map(_is_stream, lines := lines_of(text)))
        and lines
    ):
        say(f"{text}: every line of it is a stream, so it is read as a list of streams")
        return StreamSource(lines, vid_stride)
    return FileSource(text, vid_stride, readers)


class FileSource:
    """Pictures first, then videos, each in order of their names.

    Attributes:
        images, videos: Paths (or addresses) found.
        capture: Of the video that is being read, or was last.
        problems: What was left out and why, one line each; complete once iterated.
    """

    live = False
    capture: cv2.VideoCapture | None = None

    def __init__(self, source: str, vid_stride: int = 1, readers: int = 0):
        self.problems: list[str] = []
        self.vid_stride, self.readers = vid_stride, readers
        self._passed: list[Problem] = []
        files = self._find(source)
        kinds = {f: _kind(f) or _kind_by_content(f) for f in files}
        self.images = [f for f in files if kinds[f] == "image"]
        self.videos = [f for f in files if kinds[f] == "video"]
        for file in (f for f in files if not kinds[f]):
            self._problem(f"{file}: neither a picture nor a video that can be read")
        if others := other_kinds(self._passed):
            self._problem(others)
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
        if self.readers:
            pictures = in_order(_picture_or_fault, self.images, self.readers, ahead=READ_AHEAD)
        else:
            pictures = map(_picture_or_fault, self.images)
        for i, (path, image) in enumerate(zip(self.images, pictures, strict=True), 1):
            if isinstance(image, Exception):
                self._problem(str(image) if str(path) in str(image) else f"{path}: {image}")
                continue
            yield [Frame(image, path, "image", f"image {i}/{total} {path}")]
        for i, path in enumerate(self.videos, len(self.images) + 1):
            yield from self._video(path, f"video {i}/{total}")

    def _video(self, path: str, title: str) -> Iterator[list[Frame]]:
        self.capture = open_video(path)
        if self.capture is None:
            self._problem(f"{path}: its name is no UTF-8 text, and OpenCV opens no such video: rename it")
            return
        video = Video(self.capture, self.vid_stride)
        try:
            total = video.expected // self.vid_stride
            taken = 0
            while (image := video.read()) is not None:
                taken += 1
                count = f"({taken}/{total})" if total >= taken else f"({taken})"
                yield [Frame(image, path, "video", f"{title} {count} {path}", video.number, video.fps)]
        finally:
            self.capture.release()
        if fault := video.fault():
            self._problem(f"{path}: {fault}")

    def summary(self) -> str:
        """What was in the source, in words: `2 pictures and 1 video`."""
        counts = ((len(self.images), "picture"), (len(self.videos), "video"))
        return " and ".join(f"{n} {kind}{'s' * (n > 1)}" for n, kind in counts if n)

    def _find(self, source: str) -> list[str]:
        path = Path(source)
        if is_url(source):
            return [source]
        if path.is_dir():
            return self._known(sorted(str(p) for p in path.iterdir() if not p.name.startswith(".")))
        if path.is_file() and path.suffix.lower() == ".txt":
            return self._find_listed(path)
        if path.is_file():
            return [source]  # whatever its suffix: its content tells
        if has_wildcard(source):
            return self._known(find_glob(source))
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise FileNotFoundError(f"--source {source}: there is no such file or folder{place}")

    def _known(self, files: list[str]) -> list[str]:
        """Pictures and videos by their suffixes; what else there is but for the companions of pictures is counted."""
        files = [f for f in files if Path(f).is_file()]
        self._passed += [other_kind(f) for f in files if not _kind(f) and not is_companion(f)]
        return [f for f in files if _kind(f)]

    def _find_listed(self, list_file: Path) -> list[str]:
        """What the entries of a list file name, see `read_list`."""
        files: list[str] = []
        for number, entry, path in read_list(list_file):
            if is_url(entry):
                if _kind(entry) is None:
                    entry = public_name(entry)
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
        warn(f"{text}; left out")


def _picture_or_fault(path: str) -> np.ndarray | Exception:
    """The picture, BGR, or why it is none: of the error of one the next ones need not be lost."""
    try:
        return read_picture(path)
    except (OSError, ValueError) as e:
        return e


def _is_stream(text: str) -> bool:
    """Whether a line names a stream or a webcam, and can be nothing else."""
    return (is_url(text) and _kind(text) is None) or _is_webcam(text)


def _is_webcam(text: str) -> bool:
    return bool(re.fullmatch(r"/dev/video\d+", text)) or (text.isnumeric() and not Path(text).exists())


def _kind(path: str) -> str | None:
    """`"image"`, `"video"` or None by the suffix; an address's query does not count."""
    suffix = Path(urlparse(path).path if is_url(path) else path).suffix.lower().lstrip(".")
    if is_url(path) and urlparse(path).scheme.lower() not in ("http", "https"):
        return None  # rtsp://camera/live.mp4 is a stream
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _kind_by_content(path: str) -> str | None:
    """The kind of a file of another suffix that was named by itself: what a decoder reads."""
    with contextlib.suppress(OSError, ValueError):
        read_picture(path)
        return "image"
    capture = open_video(path)
    if capture is None:
        return None
    try:
        return "video" if capture.isOpened() and capture.grab() else None
    finally:
        capture.release()


def lines_of(path: str | Path) -> list[str]:
    """Lines of a list of streams, without empty ones and comments."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]
