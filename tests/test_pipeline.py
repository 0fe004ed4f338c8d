"""Detection in batches and by threads: the same answers in the same order, a bounded stock, errors that surface."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_weights import save_weights

import detect
from models.load import load_model
from models.pipeline import WAIT, batches, find
from models.predictor import Predictor
from utils.augmentations import letterbox, letterboxed_shape
from utils.results.detections import ResultWriter
from utils.results.frames import Frame
from utils.results.sources import open_source
from utils.system.threads import Behind, in_order

SIZES = [(96, 128), (64, 64), (100, 128), (96, 128), (40, 128), (96, 128), (64, 64), (128, 90), (96, 128)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "joint.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of several sizes, some of which are one input shape."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (width, height)))
    return folder


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predictor_of(weights: Path, batch: int = 0) -> Predictor:
    return Predictor(load_model(weights), batch=batch, conf_thres=0.25, iou_thres=0.45, max_det=300)


def same_rows(found: np.ndarray, expected: np.ndarray, pixels: float) -> bool:
    """Whether two sets of detections are the same but for the order of equal scores."""
    apart = np.abs(found[:, None] - expected[None]) / np.array([pixels] * 4 + [1e-4, 0.5])
    return found.shape == expected.shape and (apart.max(2) <= 1).any(0).all() and (apart.max(2) <= 1).any(1).all()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [0, 2, 3])
def test_batches_and_threads_answer_as_one_picture_at_a_time(weights, folder, batch):
    alone = predictor_of(weights)
    pictures = [cv2.imread(str(folder / f"{i}.png")) for i in range(len(SIZES))]
    with threads(1):  # several share the sums otherwise for each size of batch, and the last bit decides between ties
        expected = [alone([im], (128, 128), auto=True, bgr=True) for im in pictures]
        together, probs = predictor_of(weights, batch)(pictures, (128, 128), auto=True, bgr=True)
    for (one, one_probs), many, many_probs in zip(expected, together, probs, strict=True):
        assert same_rows(many.numpy(), one[0].numpy(), 1e-4 * 128)
        torch.testing.assert_close(many_probs, one_probs[0], rtol=1e-4, atol=1e-5)

    predictor, main = predictor_of(weights, batch), threading.current_thread()
    with threads(2), open_source(folder, readers=2) as source:
        found = list(find(predictor, source, (128, 128), lambda *_: threading.current_thread()))
        assert torch.get_num_threads() == 2
    assert [Path(f.frame.path).name for f in found] == [f"{i}.png" for i in range(len(SIZES))]
    assert predictor.seen == len(SIZES) and all(ms >= 0 for ms in predictor.milliseconds())
    assert all(f.drawn is not main for f in found)
    for (one, one_probs), f in zip(expected, found, strict=True):
        assert same_rows(f.detections, one[0].numpy(), 0.5 + 1e-4 * 128)  # whole pixels
        assert f.probs == pytest.approx(one_probs[0].numpy(), abs=1e-4)
        assert f.sides == letterbox(f.frame.image, (128, 128))[0].shape[:2]


def frames_of(shapes: list[tuple[int, int]]) -> list[Frame]:
    return [Frame(np.zeros((*shape, 3), np.uint8), str(i), "image", "") for i, shape in enumerate(shapes)]


def test_frames_of_one_shape_share_a_batch_and_none_waits_long():
    a, b = (32, 64), (64, 32)
    shapes = [b, *[a] * 5, b, *[a] * 30, b]
    made = list(batches(frames_of(shapes), lambda f: f.image.shape[:2], lambda f: 3))
    assert sorted(number for batch in made for number, _ in batch) == list(range(len(shapes)))
    assert all(len({f.image.shape for _, f in batch}) == 1 and len(batch) <= 3 for batch in made)
    newest = 0
    for batch in made:
        newest = max(newest, batch[-1][0])
        assert newest - batch[0][0] <= 3 * WAIT + 3
    assert sum(len(batch) == 3 for batch in made) >= 11


@pytest.mark.parametrize("auto", [True, False])
def test_the_shape_of_an_input_is_known_before_it_is_made(auto):
    for height, width in [*SIZES, (1, 500), (333, 77)]:
        made = letterbox(np.zeros((height, width, 3), np.uint8), (96, 160), auto=auto)[0]
        assert letterboxed_shape((height, width, 3), (96, 160), auto) == made.shape[:2]


def test_a_batch_that_a_gpu_cannot_hold_is_halved(weights, folder, monkeypatch):
    predictor, asked = predictor_of(weights, batch=8), []
    answer = predictor.answer

    def small(images):
        asked.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(images)

    monkeypatch.setattr(predictor, "answer", small)
    pictures = [np.full((64, 64, 3), 9 * i, np.uint8) for i in range(5)]
    found, _ = predictor(pictures, (64, 64))
    assert asked == [5, 2, 2, 1] and len(found) == 5
    monkeypatch.setattr(predictor, "answer", lambda images: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError):
        predictor(pictures, (64, 64))


@pytest.mark.slow
def test_a_long_video_is_never_held_in_memory(weights):
    class Film:
        live, images, videos, read = False, [], ["film"], 0

        def __iter__(self):
            for self.read in range(1, 61):
                yield [Frame(np.zeros((32, 32, 3), np.uint8), "film", "video", "", self.read)]

    film, most = Film(), 0
    with threads(2):
        for number, found in enumerate(find(predictor_of(weights, batch=2), film, (32, 32), lambda *_: None), 1):
            assert found.frame.number == number
            most = max(most, film.read - number)
    assert number == 60 and most <= 2 * WAIT + 10


def test_an_error_of_the_network_or_of_the_drawing_ends_the_run(weights, folder, monkeypatch):
    with open_source(folder, readers=2) as source, pytest.raises(ValueError, match="no pen"):
        list(find(predictor_of(weights), source, (64, 64), lambda *_: (_ for _ in ()).throw(ValueError("no pen"))))
    monkeypatch.setattr(Predictor, "answer", lambda self, images: (_ for _ in ()).throw(RuntimeError("no network")))
    with open_source(folder, readers=2) as source, pytest.raises(RuntimeError, match="no network"):
        list(find(predictor_of(weights), source, (64, 64), lambda *_: None))


@pytest.mark.parametrize("mode", ["picture", "video"])
def test_a_full_disk_ends_in_a_sentence(weights, folder, tmp_path, monkeypatch, mode):
    def full(*_):
        raise OSError(28, "No space left on device", "a.png")

    source = folder
    if mode == "video":
        source = tmp_path / "clip.avi"
        film = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
        for _ in range(3):
            film.write(np.zeros((64, 64, 3), np.uint8))
        film.release()
        monkeypatch.setattr("utils.results.detections._write_frame", full)
    else:
        monkeypatch.setattr("utils.results.detections.write_image", full)
    options = ["--weights", str(weights), "--source", str(source), "--imgsz", "64", "--project", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match=r"detect\.py: a\.png: No space left on device"):
        detect.main(detect.parse_opt(options))


def test_work_ahead_is_in_order_bounded_and_stops_at_an_error():
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.002 * (i % 3))
        if i == 7:
            raise KeyboardInterrupt
        return i

    results = []
    with pytest.raises(KeyboardInterrupt):
        for result in in_order(work, range(1000), threads=3, ahead=4):
            results.append(result)
            assert len(begun) <= len(results) + 5
    assert results == list(range(7)) and len(begun) <= 13


def test_work_behind_is_in_order_and_its_error_comes_later():
    done, behind = [], Behind(1, most=2)
    for i in range(5):
        behind(done.append, i)
    behind.wait()
    assert done == list(range(5))
    behind(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        behind.wait()
    behind.wait()


def test_a_picture_that_cannot_be_written_loses_no_video(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "a.png")

    monkeypatch.setattr("utils.results.detections.write_image", full)
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(OSError, match="No space"), ResultWriter(tmp_path, {0: "a"}, {}) as writer:
        for k in range(1, 4):
            writer.write_picture(Frame(image, "clip.avi", "video", "clip", k, 10.0), image)
        writer.write_picture(Frame(image, "a.png", "image", "a"), image)
    assert cv2.VideoCapture(str(tmp_path / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_all_work_behind_is_over_when_its_error_comes():
    done, behind = [], Behind(1, most=3)
    behind(lambda: 1 / 0)
    behind(time.sleep, 0.2)
    behind(done.append, 1)
    with pytest.raises(ZeroDivisionError):
        behind.wait()
    assert done == [1]
