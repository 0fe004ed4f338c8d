"""Reading pictures at the network's size: from their files, from memory (cache "ram") or from .npy files ("disk")."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from utils.dataset.pictures import REDUCED, read_picture
from utils.system.files import user_cache, whole_file, writable
from utils.system.machine import available_memory, core_count
from utils.system.process import processes_here
from utils.system.voice import say

MEMORY_MARGIN = 1.5  # a cache is made only if this multiple of its size is free


def fit_shape(height: int, width: int, imgsz: int) -> tuple[int, int]:
    """Height and width with the longer side `imgsz`; fractions of a pixel are rounded up."""
    gain = imgsz / max(height, width)
    if gain == 1:
        return height, width
    return min(math.ceil(height * gain), imgsz), min(math.ceil(width * gain), imgsz)


def load_resized(path: str, shape_wh: np.ndarray, imgsz: int, fast: bool) -> np.ndarray:
    """Picture with its longer side at `imgsz`, BGR uint8.

    Args:
        shape_wh: its width and height when it was scanned.
        fast: for training: bilinear resizing, and large JPEGs are decoded at a fraction of their size. Otherwise
            shrinking takes the area average, as YOLOv5 validates.

    Raises:
        FileNotFoundError, ValueError: unreadable, or of another size than scanned; names the file.
    """
    width, height = int(shape_wh[0]), int(shape_wh[1])
    divisor = max((d for d in REDUCED if max(width, height) >= d * imgsz), default=1) if fast else 1
    try:
        im = read_picture(path, divisor, scanned=True)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot read the picture {path} ({error.strerror}): was it moved or deleted since the run began?"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error}: it is damaged or was changed since the run began") from None
    reduced = math.ceil(height / divisor), math.ceil(width / divisor)
    if im.shape[:2] not in (reduced, (height, width)):
        raise ValueError(
            f"the picture {path} is not {width}x{height} px any more, as when it was scanned: start the run again"
        )
    new_height, new_width = fit_shape(height, width, imgsz)
    if im.shape[:2] != (new_height, new_width):
        shrink = max(height, width) > imgsz
        interpolation = cv2.INTER_AREA if shrink and not fast else cv2.INTER_LINEAR
        im = cv2.resize(im, (new_width, new_height), interpolation=interpolation)
    return im


class _NoCache(Exception):
    """Why there is no cache on disk: pictures are then read from their files."""


class ImageStore:
    """Pictures of a data set at `imgsz`, by number. What `get` returns must not be written to.

    The pixels are the same with and without a cache. In memory all pictures share one block, which forked workers see
    without a copy and other workers through shared memory.

    Args:
        files: paths. shapes: int [n, 2] width and height as scanned.
        fast: see `load_resized`.
        cache: None, "ram" or "disk". A cache that does not fit is left out with a message.
        share: put the block where processes that are not forked can map it.
    """

    def __init__(
        self,
        files: np.ndarray,
        shapes: np.ndarray,
        imgsz: int,
        *,
        fast: bool,
        cache: str | None = None,
        prefix: str = "",
        share: bool = False,
    ):
        if cache not in (None, "ram", "disk"):
            raise ValueError(f"cache is {cache!r}: it can be None, 'ram' or 'disk'")
        self.files, self.shapes, self.imgsz, self.fast = files, shapes, imgsz, fast
        self.hw = np.array([fit_shape(int(h), int(w), imgsz) for w, h in shapes], np.int64).reshape(-1, 2)
        self.offsets = np.concatenate([[0], np.cumsum(self.hw.prod(1) * 3)])
        self.block: torch.Tensor | None = None
        self.disk = False
        if cache == "ram":
            self._fill_memory(prefix, share)
        elif cache == "disk":
            self._fill_disk(prefix)

    @property
    def cached_bytes(self) -> int:
        """Size of all pictures at `imgsz`."""
        return int(self.offsets[-1])

    def get(self, i: int) -> np.ndarray:
        """Picture i, BGR uint8 with its longer side at `imgsz`. Raises as `load_resized`."""
        if self.block is not None:
            view = self.block[self.offsets[i] : self.offsets[i + 1]].numpy().reshape(*self.hw[i], 3)
            view.flags.writeable = False
            return view
        if self.disk:
            with contextlib.suppress(OSError, ValueError, EOFError):  # gone or damaged: the picture itself is there
                im = np.load(self._disk_file(i), allow_pickle=False)
                if im.shape == (*self.hw[i], 3) and im.dtype == np.uint8:
                    return im
        return self._load(i)

    def _load(self, i: int) -> np.ndarray:
        return load_resized(str(self.files[i]), self.shapes[i], self.imgsz, self.fast)

    def _fill_memory(self, prefix: str, share: bool) -> None:
        need, free = self.cached_bytes, available_memory()
        sharing = processes_here()  # each has a copy of its own
        if free is not None and need * sharing * MEMORY_MARGIN > free:
            each = f" in each of {sharing} processes" * (sharing > 1)
            say(f"{prefix}: not cached: needs {need / 1e9:.1f} GB of memory{each}, {free / 1e9:.1f} GB are free")
            return
        block = torch.empty(need, dtype=torch.uint8)
        if share:
            block.share_memory_()
        flat = block.numpy()

        def fill(i: int) -> None:
            flat[self.offsets[i] : self.offsets[i + 1]] = self._load(i).ravel()

        self._for_all(fill, f"{prefix}: caching {need / 1e9:.2f} GB in memory")
        self.block = block

    def _fill_disk(self, prefix: str) -> None:
        try:
            missing = [i for i in range(len(self.files)) if not self._disk_file_is_fresh(i)]
            need = int(sum(self.hw[i].prod() * 3 + 128 for i in missing))
            folder = Path(self._disk_file(missing[0])).parent if missing else Path()
            while not folder.exists():
                folder = folder.parent
            free = shutil.disk_usage(folder).free
            if need * MEMORY_MARGIN > free:
                raise _NoCache(f"needs {need / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
            text = f"{prefix}: caching {need / 1e9:.2f} GB on disk"
            self._for_all(lambda k: self._write_disk_file(missing[k]), text, len(missing))
            self.disk = True
        except _NoCache as reason:
            say(f"{prefix}: not cached: {reason}")

    def _write_disk_file(self, i: int) -> None:
        im, place = self._load(i), self._disk_file(i)
        try:
            picture = os.stat(str(self.files[i]))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with whole_file(Path(place)) as temporary:
                with temporary.open("wb") as stream:
                    np.save(stream, im, allow_pickle=False)
                os.utime(temporary, ns=(picture.st_atime_ns, picture.st_mtime_ns))  # tells later if the picture changed
        except OSError as error:
            raise _NoCache(f"{place} cannot be written ({error.strerror})") from None

    def _for_all(self, work: Callable[[int], None], text: str, count: int | None = None) -> None:
        count = len(self.files) if count is None else count
        with ThreadPoolExecutor(min(8, core_count())) as pool:
            for _ in tqdm(pool.map(work, range(count)), total=count, desc=text, unit="pic", disable=not count):
                pass

    def _disk_file(self, i: int) -> str:
        """Beside the picture where its folder may be written to, else in the user's cache folder."""
        folder, name = os.path.split(os.path.abspath(str(self.files[i])))
        if not writable(folder):
            user = user_cache()
            if user is None:
                raise _NoCache(f"{folder} may not be written to, and there is no home folder; XDG_CACHE_HOME names one")
            folder = os.path.join(user, hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:16])
        return os.path.join(folder, f"{name}.{self.imgsz}{'fast' if self.fast else ''}.npy")

    def _disk_file_is_fresh(self, i: int) -> bool:
        """Copied later than the picture came here, which `cp -p` does not hide, and of the picture's own time."""
        with contextlib.suppress(OSError):
            copy, picture = os.stat(self._disk_file(i)), os.stat(str(self.files[i]))
            return copy.st_mtime_ns == picture.st_mtime_ns and copy.st_ctime_ns >= picture.st_ctime_ns
        return False
