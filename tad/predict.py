"""Events of videos from the windows that cover them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tad.config import TadConfig
from tad.data import WindowSet
from tad.segments import best_candidates, gaussian, points, round_events, suppress_video, to_seconds
from tad.transforms import ClipTransform
from tad.video import VideoFile
from tad.windows import Window, frame_numbers, sampled, sliding_windows
from utils.results.timelines import Event
from utils.system.devices import World, autocast


class Candidates:
    """Candidates of the windows seen so far, by video; `events` merges and suppresses them.

    Args:
        config: Thresholds and the frame stride.
        names: Class number → name.
    """

    def __init__(self, config: TadConfig, names: dict[int, str]) -> None:
        self.config, self.names = config, names
        self.at = points(config.frames, config.levels)
        self.parts: dict[str, list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]] = {}

    def add(
        self, video: str, answer: Sequence[Tensor], first_frame: int, fps: float, duration: float, order: int = 0
    ) -> None:
        """Take in one window's logits, offsets and valid points.

        Args:
            first_frame: The video's frame that the window begins with.
            order: Number of the window, by which those of several processes are put in order again.
        """
        c = self.config
        logits, offsets, valid = (x.cpu() for x in answer)
        segments, scores, classes = best_candidates(logits, offsets, valid, self.at, c.pre_score, c.pre_top)
        segments = to_seconds(segments, fps, duration, c.frame_stride, first_frame)
        self.parts.setdefault(video, []).append((order, *round_events(segments, scores), classes.numpy()))

    def gather(self, world: World) -> None:
        """Bring the candidates of all processes together, before anything is suppressed."""
        if not world.distributed:
            return
        shares: list = [None] * world.size
        dist.all_gather_object(shares, self.parts)
        self.parts = {}
        for share in shares:
            for video, parts in share.items():
                self.parts.setdefault(video, []).extend(parts)

    def events(self, video: str) -> list[Event]:
        """The video's events, best first."""
        parts = sorted(self.parts.get(video, ()), key=lambda part: part[0])
        if not parts:
            return []
        _, segments, scores, classes = (np.concatenate([np.atleast_1d(x) for x in p]) for p in zip(*parts, strict=True))
        c = self.config
        kept = suppress_video(segments, scores, classes, gaussian(c.sigma), c.min_score, c.max_events)
        segments, scores = round_events(*kept[:2])
        return [
            Event(*segment, self.names[cls], score)
            for segment, score, cls in zip(segments.tolist(), scores.tolist(), kept[2].tolist(), strict=True)
        ]


@torch.no_grad()
def predict_set(
    model: nn.Module,
    loader,
    config: TadConfig,
    names: dict[int, str],
    device: torch.device,
    amp: torch.dtype | None,
    world: World,
    watch: Callable[[], None] = lambda: None,
) -> dict[str, list[Event]]:
    """Events of every video of a validation loader; every process gets them all.

    Args:
        watch: Called after every batch.
    """
    dataset: WindowSet = loader.dataset
    found = Candidates(config, names)
    model.eval()
    for batch in loader:
        with autocast(device, amp is not None, amp):
            answers = model(batch.frames.to(device, non_blocking=True), batch.mask.to(device))
        for b, item in enumerate(batch.items):
            i, window = dataset.windows[item]
            record = dataset.records[i]
            fps = dataset.frames[i] / record.duration
            one = [x[b] for x in answers]
            found.add(record.name, one, window.start * config.frame_stride, fps, record.duration, item)
        watch()
    found.gather(world)
    return {record.name: found.events(record.name) for record in dataset.records}


class VideoWindows:
    """The windows of one video, one after another; memory does not grow with the video's length.

    What the next window shows again is kept, so every frame is decoded once.
    """

    def __init__(self, file: str | Path, config: TadConfig, threads: int = 0) -> None:
        self.video, self.config = VideoFile(file, threads), config
        self.transform = ClipTransform(config, self.video.width, self.video.height)
        samples = sampled(self.video.frames, config.frame_stride)
        # the last window is listed twice where the video's length suits; here once is enough
        self.windows = list(dict.fromkeys(sliding_windows(samples, config.frames, config.overlap)))
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[tuple[Window, Tensor, Tensor]]:
        """Windows with their frames uint8 [1, 3, T, side, side] and mask [1, T]."""
        with self.video:
            for window in self.windows:
                numbers, valid = frame_numbers(window, self.config.frames, self.video.frames, self.config.frame_stride)
                self._kept = {n: f for n, f in self._kept.items() if n >= numbers[0]}
                new = [n for n in dict.fromkeys(numbers.tolist()) if n not in self._kept]
                if new:
                    self._kept |= zip(new, self.video.read(new, self.transform.frame), strict=True)
                frames = np.stack([self._kept[n] for n in numbers.tolist()])
                mask = torch.arange(self.config.frames)[None] < valid
                yield window, torch.from_numpy(frames).permute(3, 0, 1, 2)[None], mask


@torch.no_grad()
def predict_video(
    model: nn.Module,
    file: str | Path,
    device: torch.device,
    amp: torch.dtype | None,
    threads: int = 0,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Event], VideoFile]:
    """Events of one video file, best first, and the file's facts.

    Args:
        watch: Told after every window how many are done.

    Raises:
        FileNotFoundError, ValueError: The file.
    """
    windows = VideoWindows(file, model.config, threads)
    video, found = windows.video, Candidates(model.config, model.names)
    for done, (window, frames, mask) in enumerate(windows, 1):
        with autocast(device, amp is not None, amp):
            answer = model(frames.to(device), mask.to(device))
        one = [x[0] for x in answer]
        found.add("", one, window.start * model.config.frame_stride, video.fps, video.duration, done)
        watch(done, len(windows))
    return found.events(""), video
