"""One picture to look at, and the frames of a video file or camera, one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

DEFAULT_FPS = 30.0
PATIENCE = 100  # tries to read on in a video after a damaged frame


@dataclass
class Frame:
    """One picture to look at.

    Attributes:
        image: BGR uint8 [H,W,3].
        path: File name or address it came from; results of one path belong together.
        mode: `"image"`, `"video"` (a file) or `"stream"` (live: address, camera, screen).
        title: How the console names it: `image 1/6 a.jpg`, `video 2/6 (7/40) b.mp4`, `0: rtsp://…`.
        number: Which frame of its video or stream this is, from 1, those that a stride leaves out counted; 0 for
            pictures.
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


def open_video(path: str) -> cv2.VideoCapture | None:
    """The capture of a video file; None for a name that is no text, with which OpenCV ends the program."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return None
    return cv2.VideoCapture(path)


class Video:
    """Frames of a capture, one by one, past damaged ones where more are promised.

    Attributes:
        expected: Frames that it says it has; 0 where it does not know, as with cameras.
        number: Frames read so far, those between the strides too.
        fps: Frames a second of those that are taken.
    """

    def __init__(self, capture: cv2.VideoCapture, stride: int):
        self.capture, self.stride = capture, stride
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.expected = int(count) if math.isfinite(count) and 0 < count < 1e9 else 0
        self.fps = _fps(capture) / stride
        self.number = self._damaged = 0

    def read(self) -> np.ndarray | None:
        """The `stride`-th frame from here, BGR; the frames between are not decoded. None at the end."""
        while True:
            for _ in range(self.stride):
                if not self._grab():
                    return None
            ok, image = self.capture.retrieve()
            if ok:
                return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
            if not self.expected:
                return None
            self._damaged += 1

    def _grab(self) -> bool:
        for tries in range(PATIENCE):
            if self.capture.grab():
                self.number += 1
                self._damaged += tries > 0
                return True
            if self.number + tries >= self.expected:
                break
        return False

    def fault(self) -> str | None:
        """At the end, what is missing of a video file."""
        if self.number == 0:
            return "not readable as a video"
        missing = self.expected - self.number
        if self._damaged or missing > max(1, self.expected // 50):  # containers without an index only estimate them
            return f"breaks off or is damaged: {self.number} of about {self.expected} frames could be read"
        return None


def _fps(capture: cv2.VideoCapture) -> float:
    """Frames a second; containers and cameras that do not know it say 0, NaN or something absurd."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
