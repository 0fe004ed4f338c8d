"""Batches of joint-labelled pictures: images, boxes and image targets."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from utils.augmentations import (
    augment_hsv,
    clip_labels,
    copy_paste,
    letterbox,
    mix_image_classes,
    mixup,
    mosaic4,
    owner_areas,
    random_perspective,
    visible_areas,
)
from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.dataset.config import HYP_CHOICES
from utils.dataset.pictures import IMG_FORMATS  # noqa: F401 - YOLOv5 has this and the loaders here
from utils.dataset.samplers import EpochBatchSampler, Key, image_weights
from utils.dataset.scan import DatasetIndex
from utils.dataset.store import ImageStore
from utils.results.loaders import VID_FORMATS, LoadImages, LoadScreenshots, LoadStreams, LoadWebcam  # noqa: F401
from utils.system.machine import core_count
from utils.system.process import fitting_workers, processes_here

# image uint8 [3, h, w] RGB, targets [n, 6], image target [cls_nc], path, shapes
Item = tuple[torch.Tensor, torch.Tensor, torch.Tensor, str, tuple | None]


class JointDataset(Dataset):
    """Pictures with their targets, by key `(epoch, i)`.

    All randomness of an item comes from `numpy.random.default_rng([seed, epoch, i, repeat])`, so it is the same
    whatever the workers, the order and the cache. An item is the picture (uint8 [3, h, w] RGB, a view of an
    [h, w, 3] array), targets [n, 6] (0, class, x, y, w, h normalised), the image target [cls_nc], the path, and
    ((h0, w0), ((gain_h, gain_w), (pad_w, pad_h))), which is None for a mosaic.

    Image targets stay true. With hyp["image_mix"] "area" the target of a mosaic or mixup is each image class's share of
    the visible area (of a mixup: times its share of the blend), among the pictures whose class is known; zeros if none
    is. With "same_class" the partners are drawn among pictures of the same image class, so it stays one-hot; the
    partners of a picture of unknown class are unknown ones (any, where there are fewer than four), as is the target.
    A quad of different classes has the mean of its four targets in both cases.

    Args:
        index: the scanned split. Rectangular batches sort it by aspect ratio: see `.index` for the order in use.
        imgsz: longer side (pixels) that pictures are brought to; a multiple of `stride`.
        hyp: augmentation strengths (YOLOv5's names) and `image_mix`; needed if `augment` is on.
        augment: training pictures; off: letterboxed alone, never enlarged.
        rect: each batch of `batch_size` has the smallest shape that holds its pictures (no mosaic then).
        pad: added to rectangular shapes, in strides.
        cls_nc: image classes; 0 for plain detection data, None for those that the labels were read with.
        cache: None, "ram" or "disk"; the pictures are the same.
        weighted: partners of a mosaic are drawn by the weights set with `set_weights` too.
        quad: `__getitems__` joins four pictures to one of twice the size, or enlarges one of four.
        share: see `ImageStore`.
    """

    def __init__(
        self,
        index: DatasetIndex,
        imgsz: int = 640,
        hyp: Mapping[str, float | str] | None = None,
        *,
        augment: bool = False,
        rect: bool = False,
        batch_size: int = 16,
        stride: int = 32,
        pad: float = 0.0,
        cls_nc: int | None = None,
        cache: str | None = None,
        seed: int = 0,
        weighted: bool = False,
        quad: bool = False,
        prefix: str = "",
        share: bool = False,
    ):
        if not len(index):
            raise ValueError(f"{prefix or 'data set'}: there are no pictures")
        if augment and hyp is None:
            raise ValueError("augment needs hyp, the augmentation strengths")
        if quad and rect:
            raise ValueError("quad joins pictures of one shape: it cannot be combined with rectangular batches")
        cls_nc = index.cls_nc if cls_nc is None else cls_nc
        highest = int(index.image_class.max())
        if cls_nc and highest >= cls_nc:
            raise ValueError(f"{prefix}: image class {highest} in the labels, but cls_nc is {cls_nc}")
        self.hyp = dict(hyp or {})
        self.image_mix = str(self.hyp.get("image_mix", "area"))
        if self.image_mix not in HYP_CHOICES["image_mix"]:
            raise ValueError(f"image_mix is {self.image_mix!r}: it can be one of {', '.join(HYP_CHOICES['image_mix'])}")
        self.imgsz, self.augment, self.rect, self.quad = imgsz, augment, rect, quad
        self.batch_size, self.stride, self.cls_nc, self.seed = batch_size, stride, cls_nc, seed
        self.batch_shapes: np.ndarray | None = None  # int [batches, 2] height, width
        if rect:
            order, self.batch_shapes = rect_batches(index.shapes, imgsz, batch_size, stride, pad)
            index = index.subset(order)
        self.index = index
        self.store = ImageStore(
            index.im_files, index.shapes, imgsz, fast=augment, cache=cache, prefix=prefix, share=share
        )
        # In shared memory, so that workers that live on see the weights of the next epoch.
        self.weights = _shared(torch.ones(len(index), dtype=torch.float64)) if weighted else None
        self.pools: dict[int, np.ndarray] | None = None
        if augment and cls_nc and self.image_mix == "same_class":
            everything = np.arange(len(index))
            self.pools = {int(c): np.flatnonzero(index.image_class == c) for c in np.unique(index.image_class)}
            if len(self.pools.get(-1, everything)) < 4:
                self.pools[-1] = everything
        self._canvas: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_canvas": None}

    def set_weights(self, weights: np.ndarray) -> None:
        """Weights [n] for mosaic partners, seen by running workers; not while an epoch is being read."""
        if self.weights is None:
            raise ValueError("the data set was made without weighted=True")
        self.weights.copy_(torch.as_tensor(np.asarray(weights, np.float64)))

    def __getitem__(self, key: tuple[int, int] | tuple[int, int, bool] | Key | int) -> Item:
        epoch, i, *rest = key if isinstance(key, tuple) else (0, key)
        mosaic = rest[0] if rest else True
        rng = np.random.default_rng([self.seed, epoch, i, rest[1] if len(rest) > 1 else 0])
        hyp, path = self.hyp, str(self.index.im_files[i])
        shapes = None
        if self.augment and mosaic and not self.rect and rng.random() < hyp["mosaic"]:
            im, labels, classes, areas = self._mosaic(i, rng)
            if rng.random() < hyp["mixup"]:
                im2, labels2, classes2, areas2 = self._mosaic(int(self._partners(i, 1, rng)[0]), rng)
                ratio = rng.beta(32.0, 32.0)
                im, labels = mixup(im, labels, im2, labels2, ratio)
                classes = np.concatenate((classes, classes2))
                areas = np.concatenate((areas * ratio, areas2 * (1 - ratio)))
            if self.pools is not None:  # partners of the same class: nothing to weigh
                classes, areas = self.index.image_class[[i]], [1.0]
        else:
            im, labels, shapes = self._single(i, rng)
            classes, areas = self.index.image_class[[i]], [1.0]
        height, width = im.shape[:2]
        targets = np.zeros((len(labels), 6), np.float32)
        targets[:, 1] = labels[:, 0]
        targets[:, 2:] = xyxy2xywhn(labels[:, 1:], w=width, h=height, clip=True, eps=1e-3)
        if self.augment:
            im = augment_hsv(im, hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"], rng)
            up, left = rng.random(2) < (hyp["flipud"], hyp["fliplr"])
            if up:
                im = cv2.flip(im, 0)
                targets[:, 3] = 1 - targets[:, 3]
            if left:
                im = cv2.flip(im, 1)
                targets[:, 2] = 1 - targets[:, 2]
        image_target = mix_image_classes(classes, areas, self.cls_nc)
        im = torch.from_numpy(cv2.cvtColor(im, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        return im, torch.from_numpy(targets), torch.from_numpy(image_target), path, shapes

    def __getitems__(self, keys: Sequence[Key]) -> list[Item]:
        items = [self[key] for key in keys]
        if not self.quad:
            return items
        groups = range(0, len(items), 4)
        return [self._join_four(items[g : g + 4], keys[g]) for g in groups]

    def _objects(self, i: int, width: float, height: float, x: float, y: float) -> tuple[np.ndarray, list[np.ndarray]]:
        """Labels [n, 5] (class, xyxy pixels) and polygons of picture i, resized and moved."""
        objects = self.index.labels(i).astype(np.float64)
        objects[:, 1:] = xywhn2xyxy(objects[:, 1:], width, height, x, y)
        return objects, [s * (width, height) + (x, y) for s in self.index.segments(i)]

    def _single(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple]:
        """Letterboxed picture (warped if training), labels, shapes."""
        im = self.store.get(i)
        height, width = im.shape[:2]
        shape = self.imgsz if self.batch_shapes is None else tuple(self.batch_shapes[i // self.batch_size].tolist())
        im, ratio, pad = letterbox(im, shape, auto=False, scaleup=self.augment)
        width0, height0 = self.index.shapes[i].tolist()
        shapes = ((height0, width0), ((ratio[1] * height / height0, ratio[0] * width / width0), pad))
        # Odd paddings: validation counts half a pixel as YOLOv5 does, training takes where the pixels lie.
        x, y = (round(p - 0.1) for p in pad) if self.augment else pad
        labels, segments = self._objects(i, ratio[0] * width, ratio[1] * height, x, y)
        if self.augment:
            im, labels, _ = random_perspective(im, labels, segments, rng=rng, **self._warp())
        return im, labels, shapes

    def _warp(self) -> dict[str, float]:
        return {k: float(self.hyp[k]) for k in ("degrees", "translate", "scale", "shear", "perspective")}

    def _mosaic(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Mosaic of picture i and three partners: picture, labels, and image class and visible area of each."""
        size = self.imgsz
        side = 2 * size
        tiles = np.concatenate(([i], self._partners(i, 3, rng)))
        tiles = rng.permutation(tiles)
        yc, xc = (int(v) for v in rng.uniform(size // 2, side - size // 2, 2))
        images = [self.store.get(int(t)) for t in tiles]
        if self._canvas is None:
            self._canvas = np.empty((side, side, 3), np.uint8)
        canvas, covered, origins = mosaic4(images, (yc, xc), size, self._canvas)
        objects, segments = [], []
        for tile, im, (x, y) in zip(tiles, images, origins, strict=True):
            tile_objects, tile_segments = self._objects(int(tile), im.shape[1], im.shape[0], x, y)
            objects.append(tile_objects)
            segments += tile_segments
        labels, segments = clip_labels(np.concatenate(objects), segments, side, side)
        owner = None
        p = float(self.hyp["copy_paste"])
        if p > 0 and any(len(s) for s in segments):
            if self.cls_nc and self.pools is None:  # pasted objects carry pixels from one picture into another's part
                owner = np.full((side, side), 255, np.uint8)
                for n, (x1, y1, x2, y2) in enumerate(covered):
                    owner[y1:y2, x1:x2] = n
            canvas, labels, segments = copy_paste(canvas, labels, segments, p, rng, owner)
        im, labels, matrix = random_perspective(
            canvas, labels, segments, rng=rng, **self._warp(), border=(-size // 2, -size // 2)
        )
        out_wh = (im.shape[1], im.shape[0])
        areas = visible_areas(covered, matrix, out_wh) if owner is None else owner_areas(owner, 4, matrix, out_wh)
        return im, labels, self.index.image_class[tiles], areas

    def _partners(self, i: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Pictures to combine picture i with, drawn with replacement."""
        pool = None if self.pools is None else self.pools[int(self.index.image_class[i])]
        size = len(self) if pool is None else len(pool)
        if self.weights is None:
            chosen = rng.integers(size, size=count)
        else:
            weights = self.weights.numpy() if pool is None else self.weights.numpy()[pool]
            total = np.cumsum(weights)
            if total[-1] > 0:
                chosen = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=size - 1)
            else:
                chosen = rng.integers(size, size=count)
        return chosen if pool is None else pool[chosen]

    def _join_four(self, items: list[Item], key: Key) -> Item:
        """One item of twice the size: the four side by side, or (each second time, or of fewer) the first enlarged."""
        epoch, i, _, repeat = key
        rng = np.random.default_rng([self.seed, epoch, i, repeat, 1])
        im, targets, image_target, path, _ = items[0]
        if len(items) < 4 or rng.random() < 0.5:
            big = F.interpolate(im[None].float(), scale_factor=2.0, mode="bilinear", align_corners=False)[0]
            return big.round_().to(torch.uint8), targets, image_target, path, None
        rows = [torch.cat((items[r][0], items[r + 1][0]), dim=2) for r in (0, 2)]
        moved = []
        for n, item in enumerate(items):
            part = item[1].clone()
            part[:, 2] += n % 2
            part[:, 3] += n // 2
            part[:, 2:] /= 2
            moved.append(part)
        mixed = torch.stack([item[2] for item in items]).sum(0)  # equal areas; unknown ones add nothing
        return torch.cat(rows, dim=1), torch.cat(moved), mixed / mixed.sum().clamp(min=1), path, None


def _shared(values: torch.Tensor) -> torch.Tensor:
    with contextlib.suppress(RuntimeError, OSError):  # no shared memory: then there are no workers either
        return values.share_memory_()
    return values


def rect_batches(
    shapes_wh: np.ndarray, imgsz: int, batch_size: int, stride: int, pad: float
) -> tuple[np.ndarray, np.ndarray]:
    """Order of the pictures by aspect ratio (height / width), and height and width int [batches, 2] of each batch.

    A batch's shape holds its widest or tallest picture at `imgsz`, plus `pad` strides, rounded up to the stride.
    """
    aspect = shapes_wh[:, 1] / shapes_wh[:, 0]
    order = np.argsort(aspect, kind="stable")
    aspect = aspect[order]
    starts = np.arange(0, len(aspect), batch_size)
    low, high = np.minimum.reduceat(aspect, starts), np.maximum.reduceat(aspect, starts)
    sides = np.ones((len(starts), 2))
    sides[high < 1, 0] = high[high < 1]
    sides[low > 1, 1] = 1 / low[low > 1]
    return order, np.ceil(sides * imgsz / stride + pad).astype(int) * stride


def collate(items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str], list]:
    """Batch of items: images uint8 [B, 3, H, W] (channels last in memory), targets [N, 6] with the image's number in
    column 0, image targets [B, cls_nc], paths, shapes."""
    images, targets, image_targets, paths, shapes = zip(*items, strict=True)
    numbers = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(t) for t in targets]))
    joined = torch.cat(targets)
    joined[:, 0] = numbers
    # Pictures come as views of [h, w, 3] arrays, so this is one plain copy and the layout that convolutions like.
    batch = torch.stack([im.permute(1, 2, 0) for im in images]).permute(0, 3, 1, 2)
    return batch, joined, torch.stack(image_targets), list(paths), list(shapes)


class JointLoader(DataLoader):
    """DataLoader whose batches depend on the seed and the epoch that was set, and on nothing else."""

    def start(self) -> None:
        """Starts the workers, which takes a draw of training's generator, the only one in the loader's life: a resumed
        run has it behind it, and calls this before it puts back the generator's state. Without workers each pass takes
        one."""
        if self.num_workers:
            iter(self)

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Sets the epoch that the next pass reads, and whether it may use mosaics (and mixup, which comes with them).

        Without a call the next pass repeats the last one.
        """
        self.batch_sampler.set_epoch(epoch, mosaic)

    def set_weights(self, weights: np.ndarray | None) -> None:
        """Draws pictures, and mosaic partners, by these weights [n] from the next pass on (see `image_weights`)."""
        self.batch_sampler.set_weights(weights)
        if self.dataset.weights is not None:
            self.dataset.set_weights(np.ones(len(self.dataset)) if weights is None else weights)


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)  # 0, not 1: OpenCV would wait for its threads, which a fork does not copy
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's; workers end with it


def create_dataloader(
    index: DatasetIndex,
    imgsz: int,
    batch_size: int,
    *,
    hyp: Mapping[str, float | str] | None = None,
    stride: int = 32,
    augment: bool = False,
    rect: bool = False,
    pad: float = 0.0,
    cache: str | None = None,
    cls_nc: int | None = None,
    workers: int = 8,
    rank: int = -1,
    world_size: int = 1,
    shuffle: bool = False,
    seed: int = 0,
    quad: bool = False,
    weighted: bool = False,
    nc: int | None = None,
    once: bool = False,
    prefix: str = "",
) -> tuple[JointLoader, JointDataset]:
    """Loader and data set of a split. Training: augment, shuffle. Validation: rect, pad 0.5.

    Args:
        batch_size: of this process.
        workers: processes at most; no more than this process's share of the cores. 0: in the main process.
        rank, world_size: which share of the pictures to read under distributed training.
        once: share out the batches that one process would read, each to one process, for validation; otherwise each
            process makes as many batches, of pictures of which some come up twice.
        weighted: `--image-weights`; the weights are those of class frequency until `set_weights` is called.
        nc: object classes, for the first weights.

    See `JointDataset` for the others. A batch is what `collate` returns.
    """
    batch_size = min(batch_size, len(index)) if len(index) else batch_size
    sharing = processes_here(world_size)
    workers = max(min(workers, core_count() // sharing, -(-len(index) // batch_size)), min(workers, 1))
    workers = fitting_workers(workers, batch_size * 3 * imgsz**2, sharing, prefix)
    method = torch.multiprocessing.get_start_method(allow_none=True) or _default_start_method()
    dataset = JointDataset(
        index, imgsz, hyp, augment=augment, rect=rect, batch_size=batch_size, stride=stride, pad=pad, cls_nc=cls_nc,
        cache=cache, seed=seed, weighted=weighted, quad=quad, prefix=prefix, share=workers > 0 and method != "fork",
    )  # fmt: skip
    sampler = EpochBatchSampler(
        len(dataset), batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size,
        whole_batches=rect or once, once=once,
    )  # fmt: skip
    loader = JointLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate, worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0,
    )  # fmt: skip
    if weighted:
        loader.set_weights(image_weights(index, nc or int(index.objects[:, 0].max(initial=0)) + 1))
    return loader, dataset


def _default_start_method() -> str:
    return torch.multiprocessing.get_all_start_methods()[0]
