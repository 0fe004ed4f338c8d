"""The speed benchmark's own parts: the detection-only copy, the ratios, its advice."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.dataset.config import load_data_config
from utils.system.yamls import save_yaml

FILE = Path(__file__).resolve().parents[1] / "benchmarks/train_speed.py"


def module_of(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return module_of(FILE)


def test_detection_copy_keeps_pictures_and_boxes_and_drops_the_image_row(bench, tmp_path):
    for split in ("train", "valid"):
        for kind in ("images", "labels"):
            (tmp_path / "joint" / split / kind).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(str(tmp_path / f"joint/{split}/images/p{i}.png"), np.full((40, 60, 3), i, np.uint8))
            rows = "1 0.2 0.2 0.6 0.2 0.6 0.4 0.2 0.4\n\n0 1 0" if i else "0 1 0"
            (tmp_path / f"joint/{split}/labels/p{i}.txt").write_text(rows)
    classes = {"nc": 2, "names": ["a", "b"], "cls_nc": 3, "cls_names": ["x", "y", "z"]}
    save_yaml(tmp_path / "joint/d.yaml", {"path": ".", "train": "train/images", "val": "valid/images", **classes})
    yaml, count = bench.detection_copy(str(tmp_path / "joint/d.yaml"), tmp_path / "copy", fraction=0.5, valid=3)
    data = load_data_config(yaml)
    assert (count, data.nc, data.cls_nc) == (2, 2, 0)
    assert data.names == {0: "a", 1: "b"}
    assert len(list((tmp_path / "copy/valid/images").iterdir())) == 3
    texts = {f.name: f.read_text().split() for f in (tmp_path / "copy/train/labels").iterdir()}
    assert texts == {"000000_p0.txt": [], "000001_p2.txt": ["1", "0.400000", "0.300000", "0.400000", "0.200000"]}
    picture = cv2.imread(str(tmp_path / "copy/train/images/000001_p2.png"))
    assert (picture == 2).all()


def test_ratios_are_taken_within_a_round(bench):
    """A machine that halves its speed between the rounds does not change them."""
    speeds = {"ours": [30.0, 15.0], "ours-float32": [15.0, 7.5], "peer": [10.0, 5.0]}
    results = {name: [{"images_per_s": v} for v in values] for name, values in speeds.items()}
    assert bench.ratios(results) == {
        "ours, as shipped / ours, plain float32": 2.0,
        "ours, as shipped / peer, as it ships": 3.0,
    }


def test_without_the_peer_it_says_what_to_do(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")  # an interpreter that lacks it
    fake.chmod(0o755)
    command = [sys.executable, str(FILE), "--only", "peer", "--peer-python", str(fake)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install ultralytics" in done.stderr
    assert "--only ours" in done.stderr


def test_the_gpu_benchmark_without_one_says_so_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    module_of(FILE.with_name("gpu.py")).main()
    assert capsys.readouterr().out == "PyTorch sees no CUDA device here, so there is nothing to measure.\n"


@pytest.mark.slow
def test_the_gpu_benchmarks_step_on_a_processor(monkeypatch, capsys):
    gpu = module_of(FILE.with_name("gpu.py"))
    steps = {"float32": gpu.STEPS["float32"], "broken": (None, False, "no such mode")}
    monkeypatch.setattr(gpu, "STEPS", steps)
    opt = argparse.Namespace(cfg="yolov5n.yaml", imgsz=32, batch_size=2, steps=1)
    gpu.network_steps(torch.device("cpu"), opt)
    out = capsys.readouterr().out
    assert "images/s" in out and "broken" in out and "Error" in out
