"""Loader: reference shapes and pixels, batches that depend on the seed alone, image targets true to the pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils import image_store
from utils.dataloaders import JointDataset, create_dataloader, rect_batches
from utils.image_store import ImageStore, read_image
from utils.samplers import EpochBatchSampler, image_weights
from utils.scan import DatasetIndex, scan_dataset

NO_AUGMENTATION = dict.fromkeys(
    (
        "hsv_h",
        "hsv_s",
        "hsv_v",
        "degrees",
        "translate",
        "scale",
        "shear",
        "perspective",
        "flipud",
        "fliplr",
        "mosaic",
        "mixup",
        "copy_paste",
    ),
    0.0,
)
HYP = NO_AUGMENTATION | {
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "translate": 0.1,
    "scale": 0.5,
    "fliplr": 0.5,
    "mosaic": 1.0,
    "mixup": 0.3,
}
COLOURS = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255]], np.uint8)  # BGR, class 0, 1, 2, unknown
VIEWS = [0, 0, 0, 0, 1, 1, 1, 2, 2, -1, -1, 2]  # of the pictures of `folder`


def write_folder(root: Path) -> Path:
    """Twelve pictures of different sizes in the colour of their image class, each with a black object."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i, view in enumerate(VIEWS):
        w, h = rng.integers(40, 180, 2)
        im = np.tile(COLOURS[view], (h, w, 1))
        x1, y1, x2, y2 = int(w * 0.25), int(h * 0.3), int(w * 0.5), int(h * 0.8)
        im[y1:y2, x1:x2] = 0
        box = np.array([x1 + x2, y1 + y2, 2 * (x2 - x1), 2 * (y2 - y1)]) / 2 / [w, h, w, h]
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) / [w, h]
        row = f"{i % 3} " + " ".join(map(str, corners.ravel() if i % 2 else box))
        one_hot = "" if view < 0 else " ".join(str(int(c == view)) for c in range(3))
        cv2.imwrite(str(root / "images" / f"{i:02d}.png"), im)
        (root / "labels" / f"{i:02d}.txt").write_text(f"{row}\n\n{one_hot}")
    return root


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    root = write_folder(tmp_path_factory.mktemp("pictures"))
    index = scan_dataset(str(root / "images"), 3, 3, cache=False, verbose=False)
    assert index.image_class.tolist() == VIEWS and len(index.objects) == 12 and len(index.points) == 24
    return index


@pytest.fixture(scope="module")
def heart_valid(golden) -> DatasetIndex:
    return scan_dataset(str(golden.parent / "heart" / "valid" / "images"), 4, 3, cache=False, verbose=False)


def all_batches(loader) -> list:
    return list(loader)


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        all(torch.equal(p, q) for p, q in zip(x[:3], y[:3], strict=True)) and x[3:] == y[3:]
        for x, y in zip(a, b, strict=True)
    )


# --- validation against the reference -----------------------------------------------------------------------------


def test_rect_shapes_reference(golden, heart_valid):
    facts = json.loads((golden / "val_loader.json").read_text())
    shapes = [(heart_valid.shapes, facts["configs"])]
    shapes.append((np.array(facts["mixed_sizes"]["input_shapes_wh"]), facts["mixed_sizes"]["configs"]))
    for shapes_wh, configs in shapes:
        for c in configs:
            order, batches = rect_batches(shapes_wh, c["imgsz"], c["batch"], c["stride"], c["pad"])
            assert batches.tolist() == c["batch_shapes_hw"]
            # Sorted; pictures of one aspect ratio come in an order of their own.
            aspect = shapes_wh[order, 1] / shapes_wh[order, 0]
            assert (np.diff(aspect) >= 0).all()
            if "image_shapes_wh_in_order" in c:
                assert shapes_wh[order].tolist() == c["image_shapes_wh_in_order"]


def test_validation_items_reference(golden, heart_valid):
    facts = json.loads((golden / "val_loader.json").read_text())
    pixels = np.load(golden / "val_loader.npz")
    rect = JointDataset(heart_valid, 320, rect=True, batch_size=16, pad=0.5, cls_nc=3)
    square = JointDataset(heart_valid, 320, cls_nc=3)
    assert square.index.im_files[0].endswith(facts["square_item0"]["file"])
    cases = [(rect, item, f"item{item['index']}") for item in facts["val_items_320_batch16_pad0.5"]]
    cases.append((square, facts["square_item0"], "square_item0"))
    for dataset, item, name in cases:
        number = next(i for i, f in enumerate(dataset.index.im_files) if f.endswith(item["file"]))
        im, targets, _, path, shapes = dataset[number]
        assert path.endswith(item["file"]) and list(im.shape) == item["tensor_chw_shape"] and im.dtype == torch.uint8
        labels = item.get("labels_out") or item["labels_out_(0,cls,xywh_normalised_to_letterboxed)"]
        np.testing.assert_allclose(targets, labels, atol=1e-5)
        (h0, w0), (gains, pad) = item["shapes_field"]
        assert shapes == ((h0, w0), (tuple(gains), tuple(pad)))
        im = im.contiguous().numpy()
        assert np.abs(im[:, ::8, ::8].astype(int) - pixels[f"{name}/every_8th_pixel_chw"]).max() <= 1
        if cv2.__version__.startswith("5.0"):
            assert zlib.crc32(im.tobytes()) == item["crc32"]


def test_mixed_size_letterbox_reference(golden):
    facts = json.loads((golden / "val_loader.json").read_text())["mixed_sizes"]
    for item in facts["items_320_batch16_pad0.5"]:
        w, h = item["input_wh"]
        new_h, new_w = image_store.fit_shape(h, w, 320)
        (h0, w0), (gains, _) = item["shapes_field"]
        assert [new_h / h0, new_w / w0] == gains


def test_rect_batches_are_uniform_and_complete(index):
    loader, dataset = create_dataloader(index, 64, 5, rect=True, pad=0.5, cls_nc=3, workers=0)
    batches = all_batches(loader)
    assert [tuple(b[0].shape[2:]) for b in batches] == [tuple(s) for s in dataset.batch_shapes.tolist()]
    assert sorted(p for b in batches for p in b[3]) == sorted(index.im_files)
    assert all(side % 32 == 0 for b in batches for side in b[0].shape[2:])


# --- the same pictures whatever the machine -----------------------------------------------------------------------


def test_pictures_do_not_depend_on_workers_cache_or_order(index):
    def read(workers, cache=None, epochs=(3, 4)):
        loader, dataset = create_dataloader(
            index, 64, 4, hyp=HYP, augment=True, shuffle=True, cls_nc=3, workers=0, seed=7, cache=cache
        )
        if workers:  # past the limit set by the machine's cores
            loader = type(loader)(
                dataset,
                batch_sampler=loader.batch_sampler,
                collate_fn=loader.collate_fn,
                num_workers=workers,
                worker_init_fn=loader.worker_init_fn,
                persistent_workers=True,
            )
        passes = []
        for epoch in epochs:
            loader.set_epoch(epoch)
            assert len(loader) == 3
            passes.append(all_batches(loader))
        return passes

    alone = read(0)
    assert same(alone[0], read(1)[0]) and same(alone[1], read(2)[1])
    assert same(alone[1], read(2, epochs=[4])[0])  # whatever came before, as in a resumed run
    assert (
        same(alone[0], read(2, "ram")[0]) and same(alone[0], read(0, "disk")[0]) and same(alone[0], read(2, "disk")[0])
    )
    assert not same(alone[0], alone[1])
    assert sorted(p for b in alone[0] for p in b[3]) == sorted(index.im_files)
    assert [b[3] for b in alone[0]] != [b[3] for b in alone[1]]  # shuffled anew


def test_running_workers_hear_of_the_epoch_and_of_mosaics(index):
    loader, _ = create_dataloader(index, 64, 4, hyp=HYP, augment=True, shuffle=True, cls_nc=3, workers=1)
    assert loader.num_workers == 1 and loader.persistent_workers
    loader.set_epoch(0)
    first = all_batches(loader)
    loader.set_epoch(1, mosaic=False)
    closed = all_batches(loader)
    loader.set_epoch(0)
    again = all_batches(loader)
    assert same(first, again) and not same(first, closed)
    assert all(s is None for b in first for s in b[4]) and all(s is not None for b in closed for s in b[4])
    assert all(sorted(t.unique().tolist()) in ([0, 1], [0]) for b in closed for t in b[2])  # not mixed any more


def test_spawned_workers_read_the_same(index):
    """As on macOS and Windows: all is pickled, and the memory cache is mapped."""
    options = {"hyp": HYP, "augment": True, "shuffle": True, "cls_nc": 3, "cache": "ram", "weighted": True}
    here = all_batches(create_dataloader(index, 64, 6, workers=0, **options)[0])
    loader, dataset = create_dataloader(index, 64, 6, workers=1, context="spawn", **options)
    assert dataset.store.block.is_shared()
    assert same(here, all_batches(loader))
    loader.set_weights(np.eye(12)[8])
    batches = all_batches(loader)
    # Mosaics of one picture alone: the running worker has the new weights for partners as well.
    assert all(p == str(index.im_files[8]) for b in batches for p in b[3])
    assert all((b[2] == torch.tensor([0, 0, 1.0])).all() for b in batches)


def test_dataset_pickles(index):
    dataset = JointDataset(index, 64, HYP, augment=True, cls_nc=3)
    first = dataset[2, 5]
    again = pickle.loads(pickle.dumps(dataset))[2, 5]
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


# --- sampler ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    rect=st.booleans(),
)
def test_shards_cover_the_pictures_in_equal_steps(count, batch, world, shuffle, drop_last, rect):
    options = {"shuffle": shuffle, "seed": 3, "drop_last": drop_last, "whole_batches": rect}
    shards = []
    for rank in range(world):
        sampler = EpochBatchSampler(count, batch, rank=rank, world_size=world, **options)
        sampler.set_epoch(2)
        shards.append(list(sampler))
        assert len(shards[-1]) == len(sampler)
    assert len({tuple(map(len, s)) for s in shards}) == 1 or rect
    keys = [key for shard in shards for b in shard for key in b]
    assert len(set(keys)) == len(keys)  # a picture that comes twice is drawn anew
    if drop_last:
        assert all(len(b) == batch for shard in shards for b in shard)
    else:
        assert {key[1] for key in keys} == set(range(count))
    if not rect and count % (batch * world) == 0:
        whole = EpochBatchSampler(count, batch * world, **options)
        whole.set_epoch(2)
        for step, parts in zip(whole, zip(*shards, strict=True), strict=True):
            assert sorted(step) == sorted(key for part in parts for key in part)


def test_sampler_refuses_nonsense():
    with pytest.raises(ValueError, match="rank 2"):
        EpochBatchSampler(10, 2, shuffle=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="weights must be 10"):
        EpochBatchSampler(10, 2, shuffle=True).set_weights(np.ones(9))


def test_image_weights_favour_rare_and_badly_found_classes(index):
    some = index.subset([0, 3, 6, 9, 1])  # classes 0 0 0 0 1
    rarity = np.array([1 / 4, 1])
    rarity = rarity / rarity.mean()
    np.testing.assert_allclose(image_weights(some, 2), rarity[[0, 0, 0, 0, 1]] / 2)
    np.testing.assert_allclose(
        image_weights(some, 2, np.array([0, 0.5])), rarity[[0, 0, 0, 0, 1]] * [1, 1, 1, 1, 0.25] / 2
    )
    sampler = EpochBatchSampler(5, 2, shuffle=True)
    sampler.set_weights(np.array([0, 0, 0, 1.0, 3]))
    drawn = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn += [key for b in sampler for key in b]
    pictures = [key[1] for key in drawn]
    assert set(pictures) == {3, 4} and abs(np.mean(np.array(pictures) == 4) - 0.75) < 0.05
    assert len(set(drawn)) == len(drawn)  # drawn twice, it is augmented in two ways


# --- image targets and labels are true to the pixels --------------------------------------------------------------


def colour_shares(im: torch.Tensor) -> np.ndarray:
    """Share of pixels (known classes only) of each class colour in a picture [3, h, w] RGB."""
    flat = im.permute(1, 2, 0).reshape(-1, 3).numpy()[:, ::-1].astype(int)
    counts = np.array([(np.abs(flat - c).max(1) < 40).sum() for c in COLOURS[:3].astype(int)])
    return counts / max(counts.sum(), 1)


@pytest.fixture(scope="module")
def plain(index) -> DatasetIndex:
    """The same pictures without their objects: all pixels have the colour of the class."""
    folder = Path(index.im_files[0]).parents[1] / "plain"
    folder.mkdir()
    files = []
    for i, view in enumerate(VIEWS):
        files.append(str(folder / f"{i:02d}.png"))
        cv2.imwrite(files[-1], np.tile(COLOURS[view], (*index.shapes[i][::-1], 1)))
    return dataclasses.replace(index, im_files=np.array(files))


@pytest.mark.parametrize("warp", [{}, {"degrees": 30.0, "shear": 8.0}, {"perspective": 0.001}])
def test_area_targets_are_shares_of_the_visible_pixels(plain, warp):
    hyp = NO_AUGMENTATION | {"mosaic": 1.0, "scale": 0.5, "translate": 0.2, "fliplr": 0.5, "image_mix": "area"} | warp
    dataset = JointDataset(plain, 160, hyp, augment=True, cls_nc=3)
    mixed = 0
    for epoch in range(6):
        for i in range(len(plain)):
            im, _, target, _, _ = dataset[epoch, i]
            shares = colour_shares(im)
            assert target.sum() == pytest.approx(1 if shares.any() else 0, abs=1e-6)
            # Warping blurs the seams, whose pixels count for neither side.
            np.testing.assert_allclose(target, shares, atol=0.03)
            mixed += bool((target > 0.1).sum() > 1)
    assert mixed > 20


def test_mixup_weighs_areas_by_the_blend(plain):
    dataset = JointDataset(plain, 96, NO_AUGMENTATION | {"mosaic": 1.0, "mixup": 1.0}, augment=True, cls_nc=3)
    for i in range(len(plain)):
        im, _, target, _, _ = dataset[0, i]
        # Each class has a colour channel of its own; unknown is white, which adds to all alike, as grey does.
        channels = im.permute(1, 2, 0).reshape(-1, 3).float()
        grey = channels.min(1).values.sum()
        mass = channels.sum(0) - grey
        np.testing.assert_allclose(target, mass / mass.sum() if mass.sum() else mass, atol=0.04)


def test_area_targets_follow_pasted_objects(tmp_path):
    """Half of one picture is an object, which copy-paste carries into the mosaic parts of others."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.tile(COLOURS[i % 3], (64, 64, 1)))
        row = "0 0.2 0.1 0.8 0.1 0.8 0.9 0.2 0.9\n" if i == 0 else ""
        (tmp_path / "labels" / f"{i}.txt").write_text(row + " ".join(str(int(c == i % 3)) for c in range(3)))
    index = scan_dataset(str(tmp_path / "images"), 1, 3, cache=False, verbose=False)
    hyp = NO_AUGMENTATION | {"mosaic": 1.0, "copy_paste": 1.0, "degrees": 10.0}
    dataset = JointDataset(index, 64, hyp, augment=True, cls_nc=3)
    for epoch in range(20):
        im, _, target, _, _ = dataset[epoch, 0]
        np.testing.assert_allclose(target, colour_shares(im), atol=0.03)


def test_same_class_partners_keep_targets_one_hot(plain):
    hyp = HYP | {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "image_mix": "same_class", "mixup": 0.5}
    dataset = JointDataset(plain, 96, hyp, augment=True, cls_nc=3)
    for epoch in range(4):
        for i, view in enumerate(VIEWS):
            im, _, target, _, _ = dataset[epoch, i]
            assert target.tolist() == [float(c == view) for c in range(3)]
            if view >= 0:
                channels = im.reshape(3, -1).float()
                strange = [c for c in range(3) if c != view]
                assert (channels[strange] <= 115).all()  # grey alone, no other class's colour


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mix=st.sampled_from(["area", "same_class"]),
    views=st.lists(st.integers(-1, 2), min_size=12, max_size=12),
    mixup=st.sampled_from([0.0, 1.0]),
)
def test_image_targets_sum_to_one_or_are_unknown(plain, seed, mix, views, mixup):
    some = dataclasses.replace(plain, image_class=np.array(views))
    hyp = HYP | {"image_mix": mix, "mixup": mixup, "degrees": 10.0, "mosaic": 0.7}
    dataset = JointDataset(some, 32, hyp, augment=True, cls_nc=3, seed=seed)
    for i in range(0, 12, 3):
        target = dataset[0, i][2]
        total = float(target.sum())
        assert total == pytest.approx(1, abs=1e-5) or total == 0
        if mix == "same_class":
            assert total == (views[i] >= 0)
        if max(views) < 0:
            assert total == 0


def test_unknown_stays_unknown(plain):
    unknown = dataclasses.replace(plain, image_class=np.full(12, -1))
    for mix in ("area", "same_class"):
        dataset = JointDataset(unknown, 32, HYP | {"image_mix": mix}, augment=True, cls_nc=3)
        assert not any(dataset[0, i][2].any() for i in range(12))
    single = JointDataset(plain, 32, cls_nc=3)
    assert [single[i][2].tolist() for i in (9, 4)] == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_lie_on_the_objects(index, mosaic):
    """Objects are the only black pixels: each box is black, and all black is in boxes but for slivers, which go."""
    hyp = NO_AUGMENTATION | {"mosaic": mosaic, "scale": 0.4, "translate": 0.1, "fliplr": 0.5, "flipud": 0.5}
    dataset = JointDataset(index, 160, hyp, augment=True, cls_nc=3)
    boxes = 0
    for epoch in range(3):
        for i in range(12):
            im, targets, _, _, _ = dataset[epoch, i]
            black = im.amax(0) < 50
            covered = torch.zeros_like(black)
            for _, c, x, y, w, h in (targets * 160).tolist():
                assert 0 <= c <= 2 * 160
                x1, y1, x2, y2 = round(x - w / 2), round(y - h / 2), round(x + w / 2), round(y + h / 2)
                covered[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = True
                inner = black[y1 + 3 : max(y2 - 3, 0), x1 + 3 : max(x2 - 3, 0)]  # enlarged pictures have soft edges
                assert inner.float().mean() > 0.97 if inner.numel() > 20 else True
                boxes += 1
            assert (black & ~covered).sum() < 0.03 * black.numel()
    assert boxes > 30


# --- batches ------------------------------------------------------------------------------------------------------


def test_batch_layout(index):
    loader, _ = create_dataloader(index, 64, 5, hyp=HYP, augment=True, shuffle=True, cls_nc=3, workers=0)
    images, targets, image_targets, paths, shapes = next(iter(loader))
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert targets.shape[1] == 6 and targets.dtype == torch.float32 and (targets[:, 2:] >= 0).all()
    assert targets[:, 0].tolist() == sorted(targets[:, 0].tolist()) and targets[:, 0].max() < 5
    assert image_targets.shape == (5, 3) and image_targets.dtype == torch.float32
    assert len(paths) == len(shapes) == 5


def test_plain_detection_data_has_no_image_targets(index):
    loader, _ = create_dataloader(index, 64, 4, hyp=HYP | {"image_mix": "same_class"}, augment=True, workers=0)
    assert all(b[2].shape == (4, 0) for b in loader)


def test_pictures_without_objects(index):
    empty = dataclasses.replace(
        index,
        objects=np.zeros((0, 5), np.float32),
        object_offsets=np.zeros(13, np.int64),
        points=np.zeros((0, 2), np.float32),
        point_offsets=np.zeros(1, np.int64),
    )
    for options in ({"hyp": HYP, "augment": True, "weighted": True}, {"rect": True}):
        loader, _ = create_dataloader(empty, 64, 4, cls_nc=3, workers=0, **options)
        assert all(b[1].shape == (0, 6) for b in loader)


def test_quad_joins_four_or_enlarges_one(index):
    hyp = NO_AUGMENTATION
    loader, dataset = create_dataloader(index, 64, 12, hyp=hyp, augment=True, cls_nc=3, workers=0, quad=True)
    single = JointDataset(index, 64, hyp, augment=True, cls_nc=3)
    kinds = set()
    for epoch in range(6):
        loader.set_epoch(epoch)
        (images, targets, image_targets, _, _) = next(iter(loader))
        assert images.shape == (3, 3, 128, 128)
        for n in range(3):
            parts = [single[epoch, 4 * n + k] for k in range(4)]
            mine = targets[targets[:, 0] == n][:, 1:]
            if len(mine) == 4:
                kinds.add("joined")
                for k, part in enumerate(parts):
                    y, x = 64 * (k // 2), 64 * (k % 2)
                    assert torch.equal(images[n, :, y : y + 64, x : x + 64], part[0])
                    expected = part[1][0, 1:] / torch.tensor([1, 2, 2, 2, 2])
                    expected[1:3] += torch.tensor([x, y]) / 128
                    torch.testing.assert_close(mine[k], expected)
                known = torch.stack([p[2] for p in parts if p[2].any()])
                torch.testing.assert_close(image_targets[n], known.mean(0))
            else:
                kinds.add("enlarged")
                assert torch.equal(mine, parts[0][1][:, 1:]) and torch.equal(image_targets[n], parts[0][2])
    assert kinds == {"joined", "enlarged"}


def test_bad_settings_are_refused(index):
    with pytest.raises(ValueError, match="cls_nc is 2"):
        JointDataset(index, 64, cls_nc=2)
    with pytest.raises(ValueError, match="image_mix"):
        JointDataset(index, 64, HYP | {"image_mix": "maybe"}, augment=True, cls_nc=3)
    with pytest.raises(ValueError, match="augment needs hyp"):
        JointDataset(index, 64, augment=True)
    with pytest.raises(ValueError, match="no pictures"):
        JointDataset(index.subset([]), 64)
    with pytest.raises(ValueError, match="cache is 'tape'"):
        JointDataset(index, 64, cache="tape")


# --- files --------------------------------------------------------------------------------------------------------


def test_a_picture_lost_or_damaged_during_the_run_is_named(tmp_path):
    root = write_folder(tmp_path / "set")
    index = scan_dataset(str(root / "images"), 3, 3, cache=False, verbose=False)
    loader, _ = create_dataloader(index, 64, 12, cls_nc=3, workers=0)
    victim = Path(index.im_files[5])
    other = cv2.imread(str(index.im_files[6]))
    for content, error in (
        (b"no picture", ValueError),
        (b"", ValueError),
        (cv2.imencode(".png", other)[1].tobytes(), ValueError),  # of another size than scanned
        (None, FileNotFoundError),
    ):
        victim.unlink() if content is None else victim.write_bytes(content)
        with pytest.raises(error, match="05.png"):
            all_batches(loader)


def test_exif_rotation_at_full_and_reduced_size(tmp_path):
    im = np.zeros((300, 400, 3), np.uint8)
    im[:150] = (200, 60, 30)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees
    Image.fromarray(im).save(tmp_path / "a.jpg", exif=exif)
    for divisor in (1, 2, 4):
        out, used = read_image(str(tmp_path / "a.jpg"), divisor)
        assert used == divisor and out.shape == (400 // divisor, 300 // divisor, 3)
        assert out[:, -20:].mean() > 50 > out[:, :20].mean()
    index = scan_dataset(str(tmp_path), 1, 0, cache=False, verbose=False)
    np.testing.assert_array_equal(index.shapes, [[300, 400]])
    for fast in (False, True):
        assert ImageStore(index.im_files, index.shapes, 100, fast=fast).get(0).shape == (100, 75, 3)


def test_large_jpegs_are_decoded_at_a_fraction_in_training_only(tmp_path):
    rng = np.random.default_rng(0)
    im = cv2.GaussianBlur(rng.integers(0, 256, (495, 700, 3), np.uint8), (0, 0), 4)
    cv2.imwrite(str(tmp_path / "a.jpg"), im)
    index = scan_dataset(str(tmp_path), 1, 0, cache=False, verbose=False)
    exact = cv2.resize(cv2.imread(str(tmp_path / "a.jpg")), (320, 227), interpolation=cv2.INTER_AREA)
    stores = {fast: ImageStore(index.im_files, index.shapes, 320, fast=fast).get(0) for fast in (False, True)}
    np.testing.assert_array_equal(stores[False], exact)
    assert stores[True].shape == exact.shape and 0 < np.abs(stores[True].astype(float) - exact).mean() < 3


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_disk_cache_writes_beside_pictures_or_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "set")
    index = scan_dataset(str(root / "images"), 3, 3, cache=False, verbose=False)
    before = digest(root / "images")
    JointDataset(index, 64, cls_nc=3, cache="disk")
    after = digest(root / "images")
    assert before.items() <= after.items() and len(after) == 24 and not (tmp_path / "cache").exists()
    for file in (root / "images").glob("*.npy"):
        file.unlink()
    os.chmod(root / "images", 0o555)
    try:
        store = JointDataset(index, 64, cls_nc=3, cache="disk").store
    finally:
        os.chmod(root / "images", 0o755)
    assert digest(root / "images") == before
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 12
    cached = store.get(3)
    # A changed picture is read anew; a damaged cache file is passed over.
    os.chmod(root / "images", 0o555)
    try:
        im = cv2.imread(str(index.im_files[3]))
        cv2.imwrite(str(index.im_files[3]), 255 - im)
        os.utime(index.im_files[3], (1, 1))
        changed = JointDataset(index, 64, cls_nc=3, cache="disk").store
        assert (changed.get(3) != cached).any()
        Path(changed._disk_file(4)).write_bytes(b"damaged")
        np.testing.assert_array_equal(changed.get(4), ImageStore(index.im_files, index.shapes, 64, fast=False).get(4))
    finally:
        os.chmod(root / "images", 0o755)


def test_memory_cache_needs_room_and_is_read_only(index, monkeypatch, capsys):
    store = JointDataset(index, 64, cache="ram", prefix="train").store
    with pytest.raises(ValueError, match="read-only"):
        store.get(0)[0, 0] = 1
    monkeypatch.setattr(image_store, "available_memory", lambda: 1000)
    assert JointDataset(index, 64, cache="ram", prefix="train").store.block is None
    assert "train: not cached" in capsys.readouterr().out


def test_available_memory_is_known_here():
    free = image_store.available_memory()
    assert free is None or free > 2**20
