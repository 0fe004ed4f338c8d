"""Targets of augmented pictures are true to their pixels: the image target, and the boxes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coloured_pictures import COLOURS, HYP, NO_AUGMENTATION, VIEWS, scan, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.dataloaders import JointDataset
from utils.dataset.scan import DatasetIndex, scan_dataset


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    return scan(write_folder(tmp_path_factory.mktemp("pictures")))


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


@pytest.mark.slow
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


@pytest.mark.slow
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
