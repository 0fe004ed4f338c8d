"""What a clip says as a whole, from the answers on its frames (`detect.py --clip-summary`)."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from utils.metrics import unique_keys
from utils.results.detections import file_name, file_stem, safe_name
from utils.results.frames import Frame
from utils.results.timelines import Event, plot_timelines
from utils.system.files import whole_file
from utils.system.paths import UniqueStems
from utils.system.voice import say, warn

# A class that is away for so long, or in so many of the frames looked at, is still in its interval.
BRIDGE_SECONDS, BRIDGE_FRAMES = 0.2, 1
LEAST_PROBABILITY = 1e-7  # one frame that is sure of another view does not decide alone


@dataclass
class Interval:
    """A stretch in which a class is seen.

    Attributes:
        start, end: Seconds, of its first frame's begin and its last frame's end; None for pictures.
        first_frame, last_frame: Their numbers, from 1, in the video or among the folder's pictures.
        frames: In how many of those looked at it is seen.
        confidence: The highest.
    """

    start: float | None
    end: float | None
    first_frame: int
    last_frame: int
    frames: int
    confidence: float


class Clip:
    """One clip, which takes in its frames in order and keeps none.

    Args:
        path: Of the video, the stream or the folder of pictures.
        names, cls_names: Object and image classes.
    """

    def __init__(self, path: str, names: dict[int, str], cls_names: dict[int, str]):
        self.path, self.names, self.cls_names = path, unique_keys(names), unique_keys(cls_names)
        self.frames, self.seconds = 0, None
        self.intervals: dict[int, list[Interval]] = defaultdict(list)
        self._looked: dict[int, int] = {}  # by class: how many frames had been looked at when it was seen last
        self._log_probs, self._answers = np.zeros(len(cls_names)), Counter()

    def add(self, times: tuple[float, float] | None, number: int, detections: np.ndarray, probs: np.ndarray | None):
        """Take in the next frame.

        Args:
            times: Its begin and end in seconds, None for pictures.
            number: Of the frame, from 1.
            detections: [n,6] as those of `ResultWriter`.
            probs: [cls_nc] image-level probabilities, or None.
        """
        self.frames += 1
        start, end = times or (None, None)
        self.seconds = end
        if probs is not None:
            self._log_probs += np.log(np.maximum(probs, LEAST_PROBABILITY))
            self._answers[int(probs.argmax())] += 1
        for cls in np.unique(detections[:, 5]).astype(int).tolist():
            confidence = float(detections[detections[:, 5] == cls, 4].max())
            intervals = self.intervals[cls]
            if intervals and self._bridged(intervals[-1], cls, start):
                last = intervals[-1]
                last.end, last.last_frame, last.frames = end, number, last.frames + 1
                last.confidence = max(last.confidence, confidence)
            else:
                intervals.append(Interval(start, end, number, number, 1, confidence))
            self._looked[cls] = self.frames

    def _bridged(self, last: Interval, cls: int, start: float | None) -> bool:
        """Whether a class that is seen again was away too shortly to end its interval."""
        missed = self.frames - self._looked[cls] - 1
        return missed <= BRIDGE_FRAMES or (start is not None and start - last.end <= BRIDGE_SECONDS + 1e-9)

    def view(self) -> dict | None:
        """The image-level answer: the view with the highest mean of log-probabilities. None without such answers.

        Returns:
            Its `name`; `probability`, those means as probabilities that add up to 1; `agreeing`, the share of frames
            whose own answer it is; `log_probabilities`, the mean of every view.
        """
        if not self._answers:
            return None
        mean = self._log_probs / self.frames
        best, shares = int(mean.argmax()), np.exp(mean - mean.max())
        views = list(self.cls_names.values())
        return {
            "name": views[best],
            "probability": round(float(shares[best] / shares.sum()), 4),
            "agreeing": round(self._answers[best] / self.frames, 4),
            "log_probabilities": {name: round(float(m), 4) for name, m in zip(views, mean, strict=True)},
        }

    def record(self) -> dict:
        """All of it, for json; times in milliseconds' precision, null for pictures."""

        def rounded(interval: Interval) -> dict:
            digits = {"start": 3, "end": 3, "confidence": 4}
            values = asdict(interval)
            return {k: round(v, digits[k]) if k in digits and v is not None else v for k, v in values.items()}

        return {
            "clip": self.path,
            "frames": self.frames,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "bridged": {"seconds": BRIDGE_SECONDS, "frames": BRIDGE_FRAMES},
            "view": self.view(),
            "seen": {self.names[c]: [rounded(i) for i in found] for c, found in sorted(self.intervals.items())},
        }

    def describe(self) -> str:
        """The same in words, a line for each interval."""
        length = "" if self.seconds is None else f", {self.seconds:.2f} s"
        lines = [f"{self.path}: {self.frames} frames{length}; {self._view_text()}"]
        for cls, intervals in sorted(self.intervals.items()):
            for i in intervals:
                when = f"frames {i.first_frame} to {i.last_frame}"
                when += "" if i.start is None else f", {i.start:.2f} s to {i.end:.2f} s"
                lines.append(f"  {self.names[cls]}: {when}, seen in {i.frames}, confidence up to {i.confidence:.2f}")
        return "\n".join(lines)

    def _view_text(self) -> str:
        view = self.view()
        if view is None:
            return f"{len(self.intervals)} class{'es' * (len(self.intervals) != 1)} seen"
        return f"view {view['name']} {view['probability']:.2f}, the answer of {view['agreeing']:.0%} of the frames"

    def draw(self, file: Path) -> None:
        """The timeline: a row for each class seen."""
        timed = self.seconds is not None
        seen = {cls: self.names[cls] for cls in sorted(self.intervals)}

        def event(i: Interval, name: str) -> Event:
            times = (i.start, i.end) if timed else (i.first_frame - 1, i.last_frame)
            return Event(*times, name, i.confidence)

        events = {name: [event(i, name) for i in self.intervals[cls]] for cls, name in seen.items()}
        title = f"{Path(self.path).name}: {self._view_text()}"
        length, unit = (self.seconds, "seconds") if timed else (self.frames, "frames")
        plot_timelines(dict.fromkeys(events), events, seen, file, 0, title, length, unit)


class ClipSummaries:
    """The clips of a source, written to `clips/` in a run's folder: a video or a stream is one, and so are the pictures
    of one folder, in the order of their names and without times.

    Args:
        save_dir: Folder of the run.
        names, cls_names: Object and image classes.
        stride: Of the frames of videos that are looked at.
        pictures: Draw timelines too.
    """

    def __init__(
        self, save_dir: Path, names: dict[int, str], cls_names: dict[int, str], stride: int = 1, pictures: bool = True
    ):
        self.folder, self.names, self.cls_names = save_dir / "clips", names, cls_names
        self.stride, self.pictures = stride, pictures
        self._clips: dict[str, Clip] = {}
        self._stems = UniqueStems()
        self._last: dict[str, str | None] = {}  # by folder: the picture before; None: its order was found wrong
        self._video = ""  # that is being read

    def add(self, frame: Frame, detections: np.ndarray, probs: np.ndarray | None) -> None:
        """Take in the answers on a frame; see `Clip.add`."""
        is_picture = frame.mode == "image"
        path = str(Path(frame.path).parent) if is_picture else frame.path
        if frame.mode == "video" and path != self._video:
            self._write(self._video)  # video files come one after another
            self._video = path
        clip = self._clips.setdefault(path, Clip(path, self.names, self.cls_names))
        if is_picture:
            self._heed_order(clip, Path(frame.path).name)
        clip.add(self._times(frame), clip.frames + 1 if is_picture else frame.number, detections, probs)

    def finish(self) -> None:
        """Write what is not written yet."""
        for path in list(self._clips):
            self._write(path)
        if self.folder.is_dir():
            self._stems.save(self.folder)
            say(f"What each clip says as a whole saved to {self.folder}")

    def _times(self, frame: Frame) -> tuple[float, float] | None:
        if frame.fps is None:
            return None
        fps = frame.fps * self.stride  # of the video, not of what is taken of it
        if frame.seconds is not None:
            return frame.seconds, frame.seconds + 1 / fps
        return (frame.number - 1) / fps, frame.number / fps

    def _write(self, path: str) -> None:
        clip = self._clips.pop(path, None)
        if clip is None:
            return
        say(clip.describe())
        name = safe_name(Path(path).absolute().name if clip.seconds is None else file_name(path))
        stem = self._stems(path, name if clip.seconds is None else safe_name(file_stem(path)))
        self.folder.mkdir(exist_ok=True)
        with whole_file(self.folder / f"{stem}.json") as temporary:
            text = json.dumps(clip.record(), indent=1, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are no text
        if self.pictures and clip.intervals:
            clip.draw(self.folder / f"{stem}.png")

    def _heed_order(self, clip: Clip, name: str) -> None:
        """Warn, once a folder, where the order of its names is not that of the numbers in them."""
        if self._last.get(clip.path, "") is None:
            return
        last, self._last[clip.path] = self._last.get(clip.path, ""), name
        if _natural(name) < _natural(last):
            warn(f"{clip.path}: {last} is read before {name}: write numbers with leading zeros, or intervals are wrong")
            self._last[clip.path] = None


def _natural(name: str) -> list:
    """Sorts `9.png` before `10.png`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
