"""On an NVIDIA GPU: `pytest -m cuda`. Elsewhere each test is skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import SIZE, make_data
from tiny_weights import save_cfg, save_weights

import detect
import train_joint
import val_joint
from models.load import load_model
from models.predictor import Predictor
from utils.training.muon import orthogonalize

DEVICE = "0"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that PyTorch can use"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "joint.pt")


@pytest.fixture
def float32() -> Iterator[None]:
    """Convolutions and products in whole float32, not in TF32, whose products have 10 bits."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = False
    yield
    for flag, was in zip(flags, before, strict=True):
        flag.allow_tf32 = was


def train(data: Path, folder: Path, *options: str) -> Path:
    """A training of two epochs on the GPU; returns its folder."""
    folder.mkdir(exist_ok=True)
    cfg = save_cfg(folder / "tiny.yaml")
    given = ["--data", str(data), "--cfg", str(cfg), "--project", str(folder), "--name", "run"]
    given += ["--img", str(SIZE), "--epochs", "2", "--batch-size", "4", "--workers", "0", "--noautoanchor", "--noplots"]
    train_joint.main(train_joint.parse_opt([*given, "--device", DEVICE, *options]))
    return folder / "run"


def losses(folder: Path) -> np.ndarray:
    """Of each epoch of a run, the training losses of both tasks."""
    epochs = json.loads((folder / "training_history.json").read_text())["epochs"]
    return np.array([[epoch["train"][task] for task in ("det", "image")] for epoch in epochs])


def test_the_network_answers_as_on_the_processor(weights, float32):
    images = torch.randint(0, 256, (4, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    here, there = (Predictor(load_model(weights, device)).answer(images)[0] for device in ("cpu", f"cuda:{DEVICE}"))
    torch.testing.assert_close(there.boxes.cpu(), here.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(there.probs.cpu(), here.probs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["off", "fp16", "bf16"])
def test_both_tasks_train_in_each_precision(data, tmp_path, precision):
    folder = train(data, tmp_path, "--amp", precision)
    found = losses(folder)
    assert found.shape == (2, 2) and np.isfinite(found).all()
    results = val_joint.run(data, weights=folder / "weights/last.pt", imgsz=SIZE, device="cpu", project=tmp_path)
    assert 0 <= results["detection"]["map50"] <= 1 and 0 <= results["image"]["accuracy"] <= 1


def test_an_epoch_in_float32_is_that_of_the_processor(data, tmp_path, float32, monkeypatch):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda _, x: x)  # its masks are of each device's own generator
    common = "--amp", "off", "--seed", "3", "--epochs", "1"
    there = losses(train(data, tmp_path / "there", *common))
    here = losses(train(data, tmp_path / "here", *common, "--device", "cpu"))
    np.testing.assert_allclose(there, here, rtol=2e-2)


def test_detection_writes_what_it_writes_on_the_processor(data, weights, tmp_path, float32):
    found = {}
    for device in ("cpu", DEVICE):
        folder = detect.run(
            weights, data.parent / "valid/images", data, SIZE, device=device, save_txt=True, nosave=True,
            project=tmp_path, name=device,
        )  # fmt: skip
        found[device] = {f.name: len(f.read_text().splitlines()) for f in (Path(folder) / "labels").glob("*.txt")}
    assert found[DEVICE] == found["cpu"] and found["cpu"]


def test_orthogonal_steps_in_bfloat16_level_the_singular_values():
    x = torch.randn(3, 48, 200, generator=torch.Generator().manual_seed(0)).to(f"cuda:{DEVICE}")
    values = torch.linalg.svdvals(orthogonalize(x).float())
    assert values.min() > 0.6 and values.max() < 1.3
