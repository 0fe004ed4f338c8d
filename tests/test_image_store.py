"""Reading pictures from files and caches: exact pixels, and no picture of the user is written to."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from coloured_pictures import scan, write_folder
from PIL import Image

from utils.dataloaders import JointDataset
from utils.dataset.pictures import read_picture
from utils.dataset.scan import DatasetIndex, scan_dataset
from utils.dataset.store import MEMORY_MARGIN, ImageStore


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    return scan(write_folder(tmp_path_factory.mktemp("pictures")))


def test_exif_rotation_at_full_and_reduced_size(tmp_path):
    im = np.zeros((300, 400, 3), np.uint8)
    im[:150] = (200, 60, 30)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees
    Image.fromarray(im).save(tmp_path / "a.jpg", exif=exif)
    for divisor in (1, 2, 4):
        out = read_picture(str(tmp_path / "a.jpg"), divisor)
        assert out.shape == (400 // divisor, 300 // divisor, 3)
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
    index = scan(root)
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
    monkeypatch.setattr("utils.dataset.store.available_memory", lambda: 1000)
    assert JointDataset(index, 64, cache="ram", prefix="train").store.block is None
    assert "train: not cached" in capsys.readouterr().out
    monkeypatch.setattr("utils.dataset.store.available_memory", lambda: 2 * MEMORY_MARGIN * store.cached_bytes)
    assert JointDataset(index, 64, cache="ram", prefix="train").store.block is not None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # each of four processes asks before any has filled its own
    assert JointDataset(index, 64, cache="ram", prefix="train").store.block is None
    assert "in each of 4 processes" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of change")
def test_a_picture_that_was_replaced_with_its_time_is_read_anew(tmp_path):
    """As `cp -p` and archives do it."""
    index = scan(write_folder(tmp_path / "set"))
    cached = JointDataset(index, 64, cls_nc=3, cache="disk").store.get(3).copy()
    file = Path(index.im_files[3])
    times = file.stat()
    time.sleep(0.02)
    cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (JointDataset(index, 64, cls_nc=3, cache="disk").store.get(3) != cached).any()
