"""Frames of a video by their number, exactly, without decoding more of it than needed.

Frame i is the i-th in order of presentation. All packets are listed once (which decodes nothing), so the time of every
frame is known: also with B-frames, whose order in the file is another, and with a frame rate that varies. A frame is
then decoded from the key frame before it and recognised by its time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from utils.system.machine import core_count
from utils.system.packages import need
from utils.system.voice import warn

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts")
NEAREST = 8  # key frames that are tried in place of a window without a whole frame
UNEVEN = 1.5  # frames that one may be away from an even rate before the rate counts as varying


def bare_name(path: str) -> str:
    """A video's name in a path of any system: without folders and without a video's suffix."""
    name = PurePosixPath(path.replace("\\", "/")).name
    return PurePosixPath(name).stem if name.lower().endswith(SUFFIXES) else name


class VideoFile:
    """An open video.

    Args:
        path: The file.
        threads: Threads that decode; 0: as many as there are cores.

    Attributes:
        frames: Number of frames that the file holds.
        declared: Number that its header promises, 0 where it does not say.
        width, height: Of a picture.
        times: Seconds from the first frame to each [frames].
        duration: Seconds from the first frame to the end of the last.
        rate: Frames a second as its header has it.
        time_base: Seconds of a unit of the frames' times.

    Raises:
        FileNotFoundError, ValueError: It is not there, no video, or holds no frame.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path, self.threads = Path(path), threads
        self._open()
        facts = self.path.stat()
        index = _index(str(self.path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        self.declared = self._stream.frames or 0
        self.width, self.height = self._stream.codec_context.width, self._stream.codec_context.height
        self._pts, self._keys = index
        self.frames = len(self._pts)
        if not self.frames or not self.width:
            self.close()
            raise ValueError(f"{self.path}: holds no video frame that can be read")
        self.time_base = self._stream.time_base or Fraction(1, 1000)
        self.times = (self._pts - self._pts[0]) * float(self.time_base)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        last = float(np.median(np.diff(self.times))) if self.frames > 1 else 1 / float(self.rate)
        self.duration = float(self.times[-1]) + last
        self._from_start_helps = True
        self._decoder: Iterator | None = None
        self._next = np.iinfo(np.int64).max  # time of the frame that the decoder gives next, at least

    @property
    def fps(self) -> float:
        return self.frames / self.duration

    @property
    def even(self) -> bool:
        """Whether the frame rate is constant, to within a frame and a half."""
        return bool(np.abs(self.times * self.fps - np.arange(self.frames)).max() <= UNEVEN)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._decoder = None
        self._container.close()

    def read(
        self, numbers: Sequence[int], change: Callable[[np.ndarray], np.ndarray] = lambda picture: picture
    ) -> np.ndarray:
        """Frames by number, in that order and as often as they are named: uint8 RGB [N, H, W, 3].

        For one that cannot be decoded the last of these before it stands in, or the next, where there is none, or the
        nearest key frame that can be decoded, where none of these can; a warning says so once.

        Args:
            change: Done to each picture as it comes, so that a clip is never in memory at its full size.

        Raises:
            ValueError: No frame can be decoded, or there is none of such a number; the message names it.
        """
        wanted = sorted(set(map(int, numbers)))
        found = {n: change(picture) for n in wanted if (picture := self._frame(n)) is not None}
        if lost := [n for n in wanted if n not in found]:
            if not found:
                found = self._nearest_key_frame(lost[0], change)
            if not found:
                raise ValueError(
                    f"{self.path}: frame {lost[0]} of {self.frames} cannot be decoded; is the file damaged?"
                )
            _tell_damage(str(self.path))
            good = np.array(sorted(found))
            found |= {n: found[int(good[max(np.searchsorted(good, n) - 1, 0)])] for n in lost}
        return np.stack([found[int(number)] for number in numbers])

    def in_order(self) -> Iterator[tuple[int, VideoFrame]]:
        """Number and frame of all that can be decoded, from the first on; the reader starts anew after it."""
        self._restart()
        decoder, self._decoder = self._decoder, None
        return ((self._number_of(frame.pts), frame) for frame in decoder if frame.pts is not None)

    def _number_of(self, pts: int) -> int:
        return int(np.searchsorted(self._pts, pts))

    def _nearest_key_frame(self, number: int, change: Callable[[np.ndarray], np.ndarray]) -> dict[int, np.ndarray]:
        """The key frame that can be decoded nearest to a number, by its own; nothing where none of the nearest can."""
        keys = [self._number_of(pts) for pts in self._keys.tolist()]
        for key in sorted(keys, key=lambda key: abs(key - number))[:NEAREST]:
            if (picture := self._frame(key)) is not None:
                return {key: change(picture)}
        return {}

    def _open(self) -> None:
        av = need("av", "Reading videos")
        if not self.path.is_file():
            raise FileNotFoundError(f"video {self.path} is not there")
        try:
            self._container = av.open(str(self.path), metadata_errors="ignore")
        except (av.FFmpegError, OSError, ValueError) as e:
            raise ValueError(f"{self.path}: no video that can be read, or a damaged one ({_reason(e)})") from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self.path}: holds no video")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise ValueError(f"{self.path}: its video is of a kind that nothing here decodes")
        # AVI holds no times of presentation, so where those of coding are others, frames are counted from the first.
        self._counted = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        self._stream.codec_context.thread_count = self.threads or core_count()  # FFmpeg knows no quotas
        self._stream.thread_type = "AUTO" if self.threads != 1 else "SLICE"

    def _frame(self, number: int) -> np.ndarray | None:
        """A picture; None where it cannot be decoded."""
        if not 0 <= number < self.frames:
            raise ValueError(f"{self.path}: has no frame {number}, only {self.frames}")
        wanted = int(self._pts[number])
        key = int(self._keys[np.searchsorted(self._keys, wanted, side="right") - 1])
        if self._decoder is None or wanted < self._next or (key > self._next and not self._counted):
            self._seek(key)
        frame = self._until(wanted)
        if frame is None and self._from_start_helps:  # a container may seek past what it was asked for
            self._restart()
            frame = self._until(wanted)
            self._from_start_helps = frame is not None
        return None if frame is None else frame.to_ndarray(format="rgb24")

    def _seek(self, pts: int) -> None:
        av = need("av", "Reading videos")
        if self._counted:
            self._restart()
            return
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError):
            self._restart()
            return
        self._decoder, self._next = self._from_here(), np.iinfo(np.int64).min

    def _restart(self) -> None:
        self.close()
        self._open()
        self._decoder, self._next = self._from_here(), np.iinfo(np.int64).min

    def _from_here(self) -> Iterator[VideoFrame]:
        """The whole frames from where the container stands, each with its time."""
        frames = whole_frames(self._container, self._stream)
        if not self._counted:
            yield from frames
            return
        for frame, pts in zip(frames, self._pts.tolist(), strict=False):  # one that is damaged moves those after it
            frame.pts = pts
            yield frame

    def _until(self, wanted: int) -> VideoFrame | None:
        """Decode up to the frame of that time; None where the decoder is past it, or at the file's end."""
        for frame in self._decoder or ():
            if frame.pts is None:
                continue
            self._next = frame.pts + 1
            if frame.pts == wanted:
                return frame
            if frame.pts > wanted:
                return None
        self._decoder = None
        return None


def whole_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames from where the container stands that are not damaged.

    Packet by packet: the container's own generator of frames ends with the first damaged one.
    """
    av = need("av", "Reading videos")
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        with contextlib.suppress(av.FFmpegError):
            yield from packet.decode()


@functools.lru_cache(maxsize=4096)
def _index(path: str, *_changed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times of all frames in order of presentation, and of the key frames, in units of the stream."""
    av = need("av", "Reading videos")
    times, keys = [], []
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                if packet.pts is None or packet.is_discard or not packet.size:
                    continue  # the end, or frames that the file's edit list leaves out
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except av.FFmpegError:
            pass  # cut short: what came before it can be read
    times = sorted(set(times))
    return np.array(times, np.int64), np.array(sorted({*times[:1], *keys}), np.int64)


@functools.cache
def _tell_damage(path: str) -> None:
    warn(f"{path}: damaged; for frames that cannot be decoded those before them stand in, or the nearest others")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())
