"""Clips for training and validation: which videos, which windows of them, and their frames as tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data import echo_clips
from tad.annotations import Annotations, Record, grid_events, read_annotations
from tad.config import TadConfig
from tad.transforms import ClipTransform, resize, short_side_size
from tad.video import SUFFIXES, VideoFile
from tad.windows import Window, frame_numbers, sampled, sliding_windows, truncate
from utils.system.files import whole_file
from utils.system.machine import available_memory
from utils.system.paths import ROOT, find_file
from utils.system.process import fitting_workers, processes_here
from utils.system.voice import say
from utils.system.yamls import load_yaml

GENERATORS = {"echo_clips": echo_clips.generate}
SPARE_MEMORY = 1 << 30  # bytes that kept frames leave to the training
KEYS = ("path", "annotations", "videos", "train", "val", "names", "download")


@dataclass
class TadData:
    """A data yaml after checking: where annotations and videos are, which subsets, which classes."""

    file: Path
    root: Path
    annotations: Annotations
    videos: Path
    train: str
    val: str
    names: list[str]

    def records(self, split: str) -> list[Record]:
        """Records of `train` or `val`."""
        return self.annotations.subset(getattr(self, split))

    def check_classes(self, names: Mapping[int, str], file: Path | str) -> None:
        """Raises ValueError where the network in `file` has other classes, or another order."""
        if list(names.values()) != self.names:
            raise ValueError(
                f"{file}: knows the classes {', '.join(names.values())}, and {self.file} has {', '.join(self.names)}"
            )

    def video(self, record: Record) -> Path:
        """The file of a record's video; with any usual suffix, `.mp4` where there is none."""
        spellings = (spelled for suffix in SUFFIXES for spelled in (suffix, suffix.upper()))
        files = (self.videos / f"{record.name}{suffix}" for suffix in spellings)
        return next((f for f in files if f.is_file()), self.videos / f"{record.name}.mp4")


def load_data(name: str | Path) -> TadData:
    """Read a data yaml; draws the built-in clips where it asks for them and they are not there.

    Raises:
        FileNotFoundError, ValueError: One sentence that names the file and the key.
    """
    file = find_file(name)
    raw = load_yaml(file)
    if not isinstance(raw, dict) or "annotations" not in raw:
        raise ValueError(f"{file}: no data of temporal detection; it needs the keys {', '.join(KEYS)}")
    if unknown := sorted(set(raw) - set(KEYS)):
        raise ValueError(f"{file}: unknown key {', '.join(map(str, unknown))} (known: {', '.join(KEYS)})")
    for key in ("annotations", "train", "val"):
        if not isinstance(raw.get(key), str):
            raise ValueError(f"{file}: {key}: expected a text, got {raw.get(key)!r}")
    folder = Path(os.path.expanduser(str(raw.get("path") or ".")))  # that of Path raises where there is no such home
    bases = [folder] if folder.is_absolute() else [file.parent / folder, ROOT / folder]
    root = next((b for b in bases if (b / raw["annotations"]).is_file()), bases[0]).resolve()
    if not (root / raw["annotations"]).is_file():
        generate = GENERATORS.get(raw.get("download"))
        if generate is None or (root.exists() and any(root.iterdir())):
            raise FileNotFoundError(f"{root / raw['annotations']} is not there: put it there, or set path: in {file}")
        say(f"NO REAL DATA at {root}: drawing SYNTHETIC CLIPS there, of no medical value. For real ones set path:")
        generate(root)
    annotations = read_annotations(root / raw["annotations"])
    names = raw.get("names")
    if names is None:
        names = annotations.labels()
        if not names:
            raise ValueError(f"{annotations.file}: no event that could be used is in it, and so no class")
    elif not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise ValueError(f"{file}: names: expected a list of different class names, got {names!r}")
    names = [str(n) for n in names]
    annotations.check_labels(names)
    return TadData(file, root, annotations, root / str(raw.get("videos") or "videos"), raw["train"], raw["val"], names)


class Clip(NamedTuple):
    """One window of one video, ready for the network."""

    frames: Tensor  # uint8 [3, size, side, side]
    mask: Tensor  # bool [size]
    segments: Tensor  # float32 [N, 2], in sampled frames from the window's start
    labels: Tensor  # int64 [N]
    item: int  # number in the data set


class Batch(NamedTuple):
    frames: Tensor  # uint8 [B, 3, size, side, side]
    mask: Tensor  # bool [B, size]
    segments: list[Tensor]
    labels: list[Tensor]
    items: list[int]

    @classmethod
    def of(cls, clips: list[Clip]) -> Batch:
        frames, mask, segments, labels, items = zip(*clips, strict=True)
        return cls(torch.stack(frames), torch.stack(mask), list(segments), list(labels), list(items))


class FrameCache:
    """Sampled frames of whole videos, decoded once and kept at the size that the transforms begin with.

    Args:
        kind: `ram`: in memory; `disk`: as .npy files beside the videos; None: nothing is kept.
        stride, short: Every so many frames one is sampled; side of the shorter side.
    """

    def __init__(self, kind: str | None, stride: int, short: int, threads: int) -> None:
        self.kind, self.stride, self.short, self.threads = kind, stride, short, threads
        self._kept: dict[Path, np.ndarray | Path] = {}  # frames, or the file that holds them

    def fill(self, files: list[Path]) -> None:
        """Decode what is not kept yet, before the data workers start, so that they share it, while there is room."""
        files = list(dict.fromkeys(files)) if self.kind else []
        for file in tqdm(files, desc=f"Caching frames ({self.kind})", disable=len(files) < 8, mininterval=1):
            try:
                self._kept[file] = self._sampled(file)
            except _NoRoom as reason:
                say(f"--cache {self.kind}: {len(self._kept)} of {len(files)} videos are kept: {reason}")
                return

    def get(self, file: Path) -> np.ndarray | None:
        """All sampled frames of a video, uint8 [N, h, w, 3]; None where they are not kept."""
        kept = self._kept.get(file)
        return np.load(kept, mmap_mode="r") if isinstance(kept, Path) else kept  # an open map takes a descriptor

    def _sampled(self, file: Path) -> np.ndarray | Path:
        facts = file.stat()
        name = f"{file.stem}_{self.stride}_{self.short}_{facts.st_mtime_ns}_{facts.st_size}.npy"
        target = file.parent / ".frames" / name
        if self.kind == "disk" and target.is_file() and target.stat().st_ctime_ns >= facts.st_ctime_ns:
            return target  # a video that was replaced since has come here later, whatever time it bears
        with VideoFile(file, self.threads) as video:
            size = short_side_size(video.width, video.height, self.short)
            numbers = range(0, video.frames, self.stride)
            need, free = 3 * size[0] * size[1] * len(numbers), available_memory()
            if free is not None and need + SPARE_MEMORY > free:
                raise _NoRoom(f"{file} needs {need / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free")
            frames = video.read(numbers, lambda picture: resize(picture, size))
        if self.kind == "ram":
            return frames
        try:
            target.parent.mkdir(exist_ok=True)
            with whole_file(target) as temporary, temporary.open("wb") as f:
                np.save(f, frames)
        except OSError as error:
            raise _NoRoom(f"{target} cannot be written ({error.strerror})") from None
        return target


class _NoRoom(Exception):
    """Why no more frames are kept."""


class WindowSet(Dataset):
    """Windows of a split: a random one per video in training, all that cover a video in validation.

    Videos that cannot be used are left out and named in `problems`; every draw depends on seed, epoch and item alone.

    Args:
        train: Random windows and pictures that change, of videos with events; otherwise sliding windows.
        cache: `ram`, `disk` or None.
        threads: Threads that decode one video.

    Raises:
        ValueError: Nothing is left.
    """

    def __init__(
        self, data: TadData, config: TadConfig, train: bool, cache: str | None = None, threads: int = 1, seed: int = 0
    ) -> None:
        self.data, self.config, self.train, self.threads, self.seed = data, config, train, threads, seed
        self.epoch = 0
        self.problems: list[str] = []
        self.records: list[Record] = []
        self.frames: list[int] = []  # of each record, as annotated, or as the file has them
        self.in_file: list[int] = []
        for record in data.records("train" if train else "val"):
            self._take(record)
        if not self.records:
            why = self.problems[-1] if self.problems else "no video has an event"
            raise ValueError(f"{data.annotations.file}: no video of {data.train if train else data.val} is left: {why}")
        stride = config.frame_stride
        self.windows: list[tuple[int, Window | None]] = [(i, None) for i in range(len(self.records))]
        if not train:
            self.windows = [
                (i, w)
                for i, n in enumerate(self.frames)
                for w in sliding_windows(sampled(n, stride), config.frames, config.overlap)
            ]
            self.windows = [(i, w) for i, w in self.windows if w.start * stride < self.in_file[i]]
        self.cache = FrameCache(cache, stride, config.short_side if train else config.imgsz, threads)
        self.cache.fill([data.video(r) for r in self.records])

    def _take(self, record: Record) -> None:
        if self.train and not record.events:
            return
        try:
            with VideoFile(self.data.video(record)) as video:
                count, even, seconds, fps = video.frames, video.even, video.duration, video.fps
                video.read([0])  # one that nothing here can decode is left out now, not in the middle of an epoch
        except (FileNotFoundError, ValueError) as e:
            self.problems.append(f"{record.name}: {e}; the video is left out")
            return
        frames = record.frames or count
        if frames != count:
            self.problems.append(f"{record.name}: {frames} frames in the annotations, {count} in the file; both used")
        if abs(record.duration - seconds) > max(2 / fps, seconds / 50):
            self.problems.append(
                f"{record.name}: {record.duration:g} s in the annotations, {seconds:g} s in the file; events are "
                "placed by the former"
            )
        if not even:
            self.problems.append(f"{record.name}: its frame rate varies, so events are placed by the mean rate")
        self.records.append(record)
        self.frames.append(frames)
        self.in_file.append(count)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> Clip:
        i, window = self.windows[item]
        record, config, stride = self.records[i], self.config, self.config.frame_stride
        segments, labels = grid_events(record, self.frames[i], stride, self.data.names)
        rng = None
        if window is None:
            rng = np.random.default_rng([self.seed, self.epoch, item])
            window, segments, labels = truncate(
                segments, labels, sampled(self.in_file[i], stride), config.frames, config.keep, config.crop,
                lambda low, high: int(rng.integers(low, high + 1)),
            )  # fmt: skip
        numbers, valid = frame_numbers(window, config.frames, self.in_file[i], stride)
        frames = self._frames(self.data.video(record), numbers, rng)
        return Clip(
            torch.from_numpy(frames).permute(3, 0, 1, 2),
            torch.arange(config.frames) < valid,
            torch.from_numpy(segments),
            torch.from_numpy(labels),
            item,
        )

    def _frames(self, file: Path, numbers: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        if (kept := self.cache.get(file)) is not None:
            transform = ClipTransform(self.config, kept.shape[2], kept.shape[1], rng)
            frames = np.stack([transform.frame(kept[n // self.config.frame_stride]) for n in numbers])
        else:
            with VideoFile(file, self.threads) as video:
                transform = ClipTransform(self.config, video.width, video.height, rng)
                frames = video.read(numbers, transform.frame)
        return transform.clip(frames)


class ShareSampler(Sampler[int]):
    """One process's share of the items: shuffled by seed and epoch in training, in order and complete otherwise."""

    def __init__(self, dataset: WindowSet, rank: int, size: int, batch: int) -> None:
        self.dataset, self.rank, self.size, self.batch = dataset, rank, size, batch

    def __len__(self) -> int:
        n = len(self.dataset)
        if self.dataset.train:  # whole batches, and as many on every process
            return n // (self.size * self.batch) * self.batch
        return len(range(self.rank, n, self.size))

    def __iter__(self) -> Iterator[int]:
        n = len(self.dataset)
        if not self.dataset.train:
            return iter(range(self.rank, n, self.size))
        order = np.random.default_rng([self.dataset.seed, self.dataset.epoch, n]).permutation(n)
        return iter(order[self.rank :: self.size][: len(self)].tolist())


def create_loader(dataset: WindowSet, batch: int, workers: int, prefetch: int, rank: int = 0, size: int = 1):
    """Loader of one process; an epoch begins with `dataset.epoch = n`.

    Raises:
        ValueError: There are fewer training videos than a batch takes.
    """
    sampler = ShareSampler(dataset, rank, size, batch)
    if dataset.train and not len(sampler):
        raise ValueError(
            f"{len(dataset)} training videos are fewer than a batch of {batch} on each of {size}: lower --batch-size"
        )
    window = 3 * dataset.config.frames * dataset.config.imgsz**2  # bytes
    workers = fitting_workers(
        workers, batch * window, processes_here(size), "train" if dataset.train else "val", prefetch
    )
    return DataLoader(
        dataset,
        batch,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=Batch.of,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own, so that training's draws do not depend on the loader
    )
