"""Loader: reference shapes and pixels, batches that depend on the seed alone."""

from __future__ import annotations

import dataclasses
import json
import pickle
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coloured_pictures import HYP, NO_AUGMENTATION, VIEWS, scan, write_folder

from utils.dataloaders import JointDataset, create_dataloader, rect_batches
from utils.dataset import store
from utils.dataset.scan import DatasetIndex, scan_dataset


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    index = scan(write_folder(tmp_path_factory.mktemp("pictures")))
    assert index.image_class.tolist() == VIEWS and len(index.objects) == 12 and len(index.points) == 24
    return index


@pytest.fixture(scope="module")
def heart_valid(shared) -> DatasetIndex:
    return scan_dataset(str(shared / "heart" / "valid" / "images"), 4, 3, cache=False, verbose=False)


def all_batches(loader) -> list:
    return list(loader)


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        all(torch.equal(p, q) for p, q in zip(x[:3], y[:3], strict=True)) and x[3:] == y[3:]
        for x, y in zip(a, b, strict=True)
    )


# --- validation against the reference -----------------------------------------------------------------------------


def check_rect_batches(shapes_wh: np.ndarray, configs: list[dict]) -> None:
    for c in configs:
        order, batches = rect_batches(shapes_wh, c["imgsz"], c["batch"], c["stride"], c["pad"])
        assert batches.tolist() == c["batch_shapes_hw"]
        # Sorted; pictures of one aspect ratio come in an order of their own.
        aspect = shapes_wh[order, 1] / shapes_wh[order, 0]
        assert (np.diff(aspect) >= 0).all()
        if "image_shapes_wh_in_order" in c:
            assert shapes_wh[order].tolist() == c["image_shapes_wh_in_order"]


def test_rect_shapes_reference(golden):
    facts = json.loads((golden / "rect_shapes.json").read_text())
    check_rect_batches(np.array(facts["input_shapes_wh"]), facts["configs"])


def test_validation_of_real_pictures_reference(theirs, heart_valid):
    facts = json.loads((theirs / "val_loader.json").read_text())
    pixels = np.load(theirs / "val_loader.npz")
    check_rect_batches(heart_valid.shapes, facts["configs"])
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
    facts = json.loads((golden / "rect_shapes.json").read_text())
    for item in facts["items_320_batch16_pad0.5"]:
        w, h = item["input_wh"]
        new_h, new_w = store.fit_shape(h, w, 320)
        (h0, w0), (gains, _) = item["shapes_field"]
        assert [new_h / h0, new_w / w0] == gains


def test_rect_batches_are_uniform_and_complete(index):
    loader, dataset = create_dataloader(index, 64, 5, rect=True, pad=0.5, cls_nc=3, workers=0)
    batches = all_batches(loader)
    assert [tuple(b[0].shape[2:]) for b in batches] == [tuple(s) for s in dataset.batch_shapes.tolist()]
    assert sorted(p for b in batches for p in b[3]) == sorted(index.im_files)
    assert all(side % 32 == 0 for b in batches for side in b[0].shape[2:])


# --- the same pictures whatever the machine -----------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.fixture
def spawning():
    """Workers start as on macOS and Windows."""
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_spawned_workers_read_the_same(index, spawning):
    """As on macOS and Windows: all is pickled, and the memory cache is mapped."""
    options = {"hyp": HYP, "augment": True, "shuffle": True, "cls_nc": 3, "cache": "ram", "weighted": True}
    here = all_batches(create_dataloader(index, 64, 6, workers=0, **options)[0])
    loader, dataset = create_dataloader(index, 64, 6, workers=1, **options)
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
    loader, _ = create_dataloader(
        index, 64, 4, hyp=HYP | {"image_mix": "same_class"}, augment=True, cls_nc=0, workers=0
    )
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


def test_a_picture_lost_or_damaged_during_the_run_is_named(tmp_path):
    root = write_folder(tmp_path / "set")
    index = scan(root)
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
