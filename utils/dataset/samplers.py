"""Which pictures make which batch: shuffling, weighting and sharding that depend on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from utils.dataset.scan import DatasetIndex

# What a loader asks the data set for: epoch, picture, whether mosaics are on, how often it came up before in the epoch.
Key = tuple[int, int, bool, int]

_SHUFFLE = 0x5EED  # keeps the draws for the order apart from those for the pictures


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of keys for one process.

    Every process draws the same order and takes its share: the batches number k of all processes together are batch k
    of a single process with the whole batch size. Where the pictures do not divide, some come up twice.

    Args:
        count: pictures of the data set.
        batch_size: of this process.
        whole_batches: pictures stay in the batches of their numbers (rectangular shapes); whole batches are shuffled
            and shared out.
        rank, world_size: this process and how many there are; -1 and 1 without distribution.
        once: with whole_batches: no batch comes up twice, so some processes may have one fewer than others.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = -1,
        world_size: int = 1,
        whole_batches: bool = False,
        once: bool = False,
    ):
        if count < 1 or batch_size < 1:
            raise ValueError(f"cannot make batches of {batch_size} from {count} pictures")
        if not max(rank, 0) < max(world_size, 1):
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.rank, self.world_size = max(rank, 0), max(world_size, 1)
        self.whole_batches, self.once = whole_batches, once
        self.epoch, self.mosaic = 0, True
        self.weights: np.ndarray | None = None

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Chooses the order of the next pass, and whether its pictures may be mosaics."""
        self.epoch, self.mosaic = int(epoch), bool(mosaic)

    def set_weights(self, weights: np.ndarray | None) -> None:
        """Draws pictures with replacement in proportion to `weights` [count] from now on; None: each picture once."""
        if weights is not None:
            weights = np.asarray(weights, np.float64)
            if weights.shape != (self.count,) or not np.isfinite(weights).all() or (weights < 0).any():
                raise ValueError(f"picture weights must be {self.count} finite numbers, none negative")
            if self.whole_batches:
                raise ValueError("picture weights cannot be combined with rectangular batches")
            weights = weights / weights.sum() if weights.sum() > 0 else np.full(self.count, 1 / self.count)
        self.weights = weights

    def __len__(self) -> int:
        if self.whole_batches:
            return len(range(self.rank if self.once else 0, -(-self.count // self.batch_size), self.world_size))
        return -(-self.count // self.world_size // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng([self.seed, self.epoch, _SHUFFLE])
        if self.whole_batches:
            batches = [
                np.arange(a, min(a + self.batch_size, self.count)) for a in range(0, self.count, self.batch_size)
            ]
            order = rng.permutation(len(batches)) if self.shuffle else np.arange(len(batches))
            if not self.once:
                order = np.resize(order, len(self) * self.world_size)
            mine = [batches[b] for b in order[self.rank :: self.world_size]]
            repeats = [
                np.full(len(b), n) for b, n in zip(mine, _repeats(order)[self.rank :: self.world_size], strict=True)
            ]
        else:
            if self.weights is not None:
                order = rng.choice(self.count, self.count, p=self.weights)
            else:
                order = rng.permutation(self.count) if self.shuffle else np.arange(self.count)
            per_process = -(-self.count // self.world_size)
            order = np.resize(order, per_process * self.world_size)
            shares = order[self.rank :: self.world_size], _repeats(order)[self.rank :: self.world_size]
            cuts = range(self.batch_size, per_process, self.batch_size)
            mine, repeats = (np.split(share, cuts) for share in shares)
        for pictures, times in list(zip(mine, repeats, strict=True))[: len(self)]:
            yield [(self.epoch, int(i), self.mosaic, int(n)) for i, n in zip(pictures, times, strict=True)]


def _repeats(order: np.ndarray) -> np.ndarray:
    """How often each entry came up earlier in the order."""
    by_value = np.argsort(order, kind="stable")
    sorted_order = order[by_value]
    first = np.searchsorted(sorted_order, sorted_order)
    out = np.empty(len(order), np.int64)
    out[by_value] = np.arange(len(order)) - first
    return out


def image_weights(index: DatasetIndex, nc: int, maps: np.ndarray | None = None) -> np.ndarray:
    """Sampling weights [n] of `--image-weights`: pictures with rare and with badly found classes come up more often.

    A picture weighs the sum over its objects of f_c (1 - mAP_c)^2, f_c the inverse class frequency (of mean 1 over the
    classes) and mAP_c the last validation's, 0 at first. Backgrounds weigh 0.

    Args:
        maps: [nc] mAP of each class.
    """
    classes = index.objects[:, 0].astype(int)
    frequency = np.bincount(classes, minlength=nc)[:nc].astype(np.float64)
    rarity = 1 / np.maximum(frequency, 1)
    weights = rarity / rarity.mean() * (1 - (0 if maps is None else np.asarray(maps, np.float64))) ** 2 / nc
    picture = np.repeat(np.arange(len(index)), np.diff(index.object_offsets))
    return np.bincount(picture, weights[classes], minlength=len(index))
