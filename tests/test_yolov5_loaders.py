"""YOLOv5's loaders of pictures, videos and streams, as trackers and servers walk through them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import utils.dataloaders
import utils.datasets
from utils.augmentations import letterbox
from utils.dataloaders import IMG_FORMATS, VID_FORMATS, LoadImages, LoadScreenshots, LoadStreams, LoadWebcam


def video(file: Path, frames: int = 5, size: tuple[int, int] = (64, 48), level: int = 0) -> Path:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 12, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), level + 20 * i, np.uint8))
    writer.release()
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (100, 200, 3)), ("b.png", (60, 60, 3))):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, shape, np.uint8))
    video(tmp_path / "c.avi")
    (tmp_path / "notes.md").write_text("no picture")
    return tmp_path


def test_pictures_then_videos(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    dataset = LoadImages(folder.name, img_size=[128, 128], stride=32, auto=True, vid_stride=1)
    assert len(dataset) == dataset.nf == 3 and dataset.mode == "image" and dataset.video_flag == [False, False, True]
    seen = []
    for path, im, im0s, vid_cap, s in dataset:
        assert im.dtype == np.uint8 and im.flags.c_contiguous and path in dataset.files and Path(path).is_absolute()
        expected = letterbox(im0s, 128, stride=32, auto=True)[0]
        assert np.array_equal(im, expected[..., ::-1].transpose(2, 0, 1))
        seen.append((Path(path).name, im.shape[1:], dataset.mode, dataset.count, dataset.frame))
        if dataset.mode == "video":
            assert vid_cap.get(cv2.CAP_PROP_FRAME_WIDTH) == 64 and vid_cap is dataset.cap and dataset.frames == 5
        else:
            assert vid_cap is None and np.array_equal(im0s, cv2.imread(path))
        assert s.startswith(f"{dataset.mode} {len(seen) if dataset.mode == 'image' else 3}/3 ") and s.endswith(": ")
    assert seen[:2] == [("a.png", (64, 128), "image", 1, 0), ("b.png", (128, 128), "image", 2, 0)]
    assert seen[2:] == [("c.avi", (96, 128), "video", 2, n) for n in range(1, 6)]
    assert len(list(dataset)) == 7, "a second pass begins anew"


def test_other_ways_to_name_pictures(folder):
    a, b = str(folder / "a.png"), str(folder / "b.png")
    assert [i[0] for i in LoadImages([b, a])] == [i[0] for i in LoadImages(str(folder / "*.png"))] == [a, b]
    (folder / "list.txt").write_text(f"{b}\n")
    assert [i[0] for i in LoadImages(folder / "list.txt", 64, 32, False)] == [b]
    assert next(iter(LoadImages(a, 64, auto=False)))[1].shape == (3, 64, 64)
    assert next(iter(LoadImages(a, transforms=lambda im0: im0.mean())))[1] == pytest.approx(cv2.imread(a).mean())
    assert len(list(LoadImages(str(folder / "c.avi"), vid_stride=2))) == 2
    with pytest.raises(FileNotFoundError, match="nothing"):
        LoadImages(str(folder / "nothing"))


def test_streams_side_by_side(tmp_path):
    files = video(tmp_path / "a.avi"), video(tmp_path / "b.avi", frames=3, size=(96, 96), level=100)
    (tmp_path / "list.streams").write_text("\n".join(map(str, files)))
    dataset = LoadStreams(str(tmp_path / "list.streams"), img_size=96, stride=32, auto=True, vid_stride=1)
    assert len(dataset) == 2 and dataset.mode == "stream"
    items = list(dataset)
    assert 3 <= len(items) <= 8  # one may have shown all of its frames before the other shows its first
    assert dataset.count == len(items) - 1
    for path, im, im0s, vid_cap, s in items:
        assert path == dataset.sources == [str(f) for f in files] and vid_cap is None and s == ""
        assert im.shape == (2, 3, 96, 96) and [i.shape for i in im0s] == [(48, 64, 3), (96, 96, 3)]
    assert abs(int(items[-1][2][0][0, 0, 0]) - 80) < 5 and abs(int(items[-1][2][1][0, 0, 0]) - 140) < 5
    one = LoadStreams(str(files[0]), img_size=64)
    assert next(iter(one))[1].shape == (1, 3, 64, 64)  # 48 rows, padded to the stride


def test_one_webcam(tmp_path):
    path, im, im0, cap, s = next(iter(LoadWebcam(str(video(tmp_path / "a.avi")), 64, 32)))
    assert path == "webcam.jpg" and im.shape == (3, 64, 64) and im0.shape == (48, 64, 3) and "webcam 0" in s


def test_screenshots(monkeypatch):
    class Grabber:
        monitors = [{"left": 0, "top": 0, "width": 8, "height": 4}] * 2

        def grab(self, area):
            return np.full((area["height"], area["width"], 4), 7, np.uint8)

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "mss", SimpleNamespace(mss=Grabber))
    path, im, im0, cap, s = next(iter(LoadScreenshots("screen 1 0 0 64 32", img_size=64, stride=32, auto=True)))
    assert im.shape == (3, 32, 64) and im0.shape == (32, 64, 3) and cap is None and s.startswith("screen 1")


@pytest.mark.parametrize(("arguments", "length"), [({}, 4), ({"auto": True}, 5), ({"auto": False}, 5)])
def test_utils_datasets_has_items_of_its_time(folder, arguments, length):
    item = next(iter(utils.datasets.LoadImages(str(folder), img_size=64, stride=32, **arguments)))
    assert len(item) == length and item[1].shape[0] == 3
    stream = next(iter(utils.datasets.LoadStreams(str(folder / "c.avi"), img_size=64, stride=32, **arguments)))
    assert len(stream) == length and stream[3] is None
    positional = utils.datasets.LoadImages(str(folder), 64, 32, False)
    assert len(next(positional)) == 5


def test_formats_are_suffixes_without_dot():
    for module in (utils.dataloaders, utils.datasets):
        both = module.IMG_FORMATS + module.VID_FORMATS
        assert {"jpg", "png", "mp4", "avi"} <= set(both) and not any(f.startswith(".") for f in both)
    assert utils.datasets.img_formats == list(IMG_FORMATS) and utils.datasets.vid_formats == list(VID_FORMATS)
    assert utils.datasets.letterbox is letterbox
