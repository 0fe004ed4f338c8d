"""`--batch-size -1`: the batch from the memory that steps of small batches were seen to take."""

from __future__ import annotations

import pytest
import torch

import train_joint
from utils.autobatch import DEFAULT, MOST, auto_batch_size, fit_batch_size
from utils.system.devices import World

GIB = 2**30


def card(free: float, start: float, each: float):
    """Measures a device where a step takes `start` + `each` a picture, GiB, and `free` are there."""
    tried = []

    def measure(batch: int) -> float:
        tried.append(batch)
        need = (start + each * batch) * GIB
        if need > free * GIB:
            raise torch.OutOfMemoryError("out of memory")
        return need

    return measure, tried


@pytest.mark.parametrize(
    ("free", "start", "each", "batch"),
    [
        (80.5, 1, 0.5, 126),  # 0.8 x 80.5 = 1 + 0.5 x 126.8
        (10.1, 0.5, 0.3, 25),
        (4, 0.5, 0.3, 8),  # 16 do not fit; the line says 9, but between 8 and 16 nothing was seen to fit
        (2, 0.5, 0.3, 3),
        (1.2, 0.5, 0.3, 1),
        (80, 0.1, 0.001, MOST),
    ],
)
def test_batch_takes_most_of_the_free_memory(free, start, each, batch):
    measure, tried = card(free, start, each)
    chosen = fit_batch_size(measure, free * GIB)
    assert chosen == batch
    measure(chosen)  # fits
    assert tried[0] == 1 and max(tried[:-1]) <= 16


def test_one_picture_alone_or_none():
    measure, _ = card(1, 0.5, 0.4)
    assert fit_batch_size(measure, GIB) == 1
    measure, _ = card(1, 0.5, 0.6)
    with pytest.raises(ValueError, match="not even one picture fits.*--imgsz"):
        fit_batch_size(measure, GIB)


def test_a_measurement_that_says_nothing():
    assert fit_batch_size(lambda batch: GIB, 80 * GIB) == DEFAULT


def test_other_devices_get_the_default():
    said = []
    assert auto_batch_size(torch.nn.Identity(), 640, torch.device("cpu"), say=said.append) == DEFAULT == 16
    assert "CUDA" in said[0] and "CPU" in said[0]


def test_command_line_knows_it(monkeypatch):
    assert train_joint.parse_opt(["--batch-size", "-1"]).batch_size == -1
    monkeypatch.setattr("models.run.init_world", lambda device: World(0, 2))
    opt = train_joint.parse_opt(["--batch-size", "-1", "--device", "cpu"])
    with pytest.raises(ValueError, match="give a number with several"):
        train_joint.train(opt, {})
    opt.batch_size = 0
    with pytest.raises(ValueError, match="positive multiple"):
        train_joint.train(opt, {})
