"""YOLOv5's names in utils.general, utils.torch_utils and their neighbours: each called as third-party code calls it."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from old_yolov5 import save_release
from tiny_weights import save_weights
from torch import nn

import utils
from utils import activations, boxes, downloads, general, google_utils, torch_utils
from utils.system.paths import ROOT
from utils.weights.checkpoint import load_checkpoint


@pytest.fixture
def said(caplog, monkeypatch):
    """What the logger says."""
    monkeypatch.setattr(general.LOGGER, "propagate", True)
    caplog.set_level(logging.INFO, "yolov5")
    yield caplog
    general.set_logging()


# Boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_coordinates_by_their_old_names(kind):
    coords = np.array([[10.0, 42, 30, 62], [-5, 0, 90, 400]], np.float32)
    expected = boxes.scale_boxes((320, 320), coords.copy(), (120, 160, 3))
    given = kind(coords.copy())
    scaled = general.scale_coords((320, 320), given, (120, 160, 3))
    assert scaled is given and np.array_equal(np.asarray(scaled), expected)
    given = kind(coords.copy())
    assert general.clip_coords(given, (60, 20)) is None
    assert np.asarray(given)[:, [0, 2]].max() <= 20 and np.asarray(given)[:, [1, 3]].max() <= 60


def test_names_that_stand_elsewhere_here():
    for name in ("non_max_suppression", "check_img_size", "scale_boxes", "xyxy2xywh", "xywh2xyxy", "box_iou"):
        assert getattr(general, name) is getattr(boxes, name)
    assert general.check_img_size(imgsz=321, s=32) == 352 and general.check_img_size([320, 321], s=64) == [320, 384]
    assert general.letterbox(np.zeros((60, 80, 3), np.uint8), 64, stride=32, auto=True)[0].shape == (64, 64, 3)
    assert general.np is np and general.Path is Path and general.cv2.__name__ == "cv2" and general.ROOT == ROOT


def test_second_classifier_keeps_the_classes_it_finds_too():
    im0 = np.zeros((100, 200, 3), np.uint8)
    im0[:, :100, 2] = 255  # red: class 0; the right half is black

    class Redness(nn.Module):
        def forward(self, x):
            assert x.shape[1:] == (3, 224, 224) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
            red = x[:, 0].mean((1, 2))
            return torch.stack((red, 1 - red), 1)

    found = torch.tensor([[20.0, 20, 40, 40, 0.9, 0], [160, 20, 180, 40, 0.8, 0], [160, 50, 180, 60, 0.7, 1]])
    kept = general.apply_classifier([found, None], Redness(), torch.zeros(2, 3, 100, 200), [im0, im0])
    assert kept[1] is None and kept[0].tolist() == found[[0, 2]].tolist()
    assert torch.equal(general.apply_classifier([found], Redness(), torch.zeros(1, 3, 100, 200), im0)[0], kept[0])
    network = torch_utils.load_classifier(name="resnet18", n=2)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


# Files ----------------------------------------------------------------------------------------------------------------


def test_check_file_yaml_and_suffix(tmp_path):
    here = tmp_path / "a.txt"
    here.write_text("x")
    assert general.check_file(str(here)) == str(here) and general.check_file("") == ""
    assert general.check_yaml("coco128.yaml") == str(ROOT / "data" / "coco128.yaml")
    assert general.check_suffix(["a.pt", "b.onnx", "folder"], (".pt", ".onnx")) is None
    with pytest.raises(ValueError, match=r"weights: a\.zip: its name must end in \.pt"):
        general.check_suffix("a.zip", ".pt", "weights: ")
    with pytest.raises(ValueError, match=r"must end in \.yaml or \.yml"):
        general.check_yaml(here)
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        general.check_file("nowhere.yaml")


def test_yaml_and_latest_run(tmp_path):
    general.yaml_save(tmp_path / "opt.yaml", {"weights": Path("a.pt"), "lr0": np.float64(0.5)})
    assert general.yaml_load(tmp_path / "opt.yaml") == {"weights": "a.pt", "lr0": 0.5}
    assert general.get_latest_run(tmp_path) == ""
    file = save_weights(tmp_path / "runs" / "exp" / "weights" / "last.pt")
    assert general.get_latest_run(str(tmp_path)) == str(file)


@pytest.mark.slow
def test_strip_optimizer_writes_over_our_files_alone(tmp_path, monkeypatch, said):
    ours = save_weights(tmp_path / "ours.pt")
    size = ours.stat().st_size
    general.strip_optimizer(ours)
    assert ours.stat().st_size < size and load_checkpoint(ours).train_state is None
    theirs = tmp_path / "theirs.pt"
    save_release(theirs, "v7.0", monkeypatch, stripped=False)
    content = theirs.read_bytes()
    general.strip_optimizer(f=theirs)
    assert theirs.read_bytes() == content and "YOLOv5 wrote it, so it stays" in said.text
    general.strip_optimizer(theirs, tmp_path / "new.pt")
    assert theirs.read_bytes() == content and load_checkpoint(tmp_path / "new.pt").format == "yolov5-joint"


def test_attempt_download_fetches_official_names_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(downloads, "fetch_official", lambda path: asked.append(path) or path)
    file = save_weights(tmp_path / "mine.pt")
    assert downloads.attempt_download(file) == str(file) and downloads.attempt_download("other.pt") == "other.pt"
    assert not asked
    assert google_utils.attempt_download("yolov5s.pt", repo="ultralytics/yolov5") == "yolov5s.pt"
    assert asked == [Path("yolov5s.pt")]


# Console and clock ----------------------------------------------------------------------------------------------------


def test_logger_is_heard_and_can_be_quiet(said):
    general.LOGGER.info("hello")
    assert general.set_logging(__name__) is general.LOGGER  # v6.0
    general.set_logging(1)  # v5.0: the rank of a process that keeps quiet
    general.LOGGER.info("unheard")
    general.set_logging(verbose=False)
    general.LOGGER.info("unheard")
    general.set_logging(-1)
    general.LOGGER.warning("again")
    assert [r.getMessage() for r in said.records] == ["hello", "again"]
    assert any(isinstance(h, logging.StreamHandler) for h in logging.getLogger("yolov5").handlers)


def test_colorstr():
    assert general.colorstr("train: ") == "\033[34m\033[1mtrain: \033[0m"
    assert general.colorstr("red", "bold", "a") == "\033[31m\033[1ma\033[0m"
    assert general.colorstr("bright_green", 3) == "\033[92m3\033[0m"


def test_print_args_of_each_release(said):
    def run(weights="a.pt", imgsz=640):
        general.print_args(show_func=True)

    run(imgsz=320)
    general.print_args({"device": "cpu"})
    general.print_args("detect", argparse.Namespace(conf=0.5))  # v6.1
    texts = [r.getMessage() for r in said.records]
    assert "test_yolov5_general: run: " in texts[0] and texts[0].endswith("weights=a.pt, imgsz=320")
    assert texts[1].endswith("device=cpu") and "detect: " in texts[2] and texts[2].endswith("conf=0.5")


def test_profile_counts_seconds():
    watch = general.Profile(device=torch.device("cpu"))
    for _ in range(2):
        with watch as entered:
            time.sleep(0.02)
    assert entered is watch and 0.02 <= watch.dt < watch.t and watch.t >= 0.04
    three = general.Profile(1.0), general.Profile(), general.Profile(device="cpu")
    assert [w.t for w in three] == [1.0, 0.0, 0.0]

    @general.Profile()
    def work():
        return 7

    assert work() == 7


def test_checks_that_scripts_begin_with(monkeypatch):
    assert general.check_requirements(ROOT / "requirements.txt", exclude=("tensorboard", "thop")) is None
    assert general.check_requirements(("no-such-package>=9",)) is None
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert general.check_imshow(warn=True) is (sys.platform != "linux" and general.check_imshow())
    assert general.is_ascii({0: "cat"}) and not general.is_ascii("人")


def test_torch_utils():
    assert torch_utils.select_device("cpu", batch_size=8, newline=False) == torch.device("cpu")
    assert torch_utils.select_device(torch.device("cpu")) == torch.device("cpu")
    assert isinstance(torch_utils.select_device(None, None), torch.device)
    before = torch_utils.time_sync()
    assert 0 <= torch_utils.time_synchronized() - before < 60 and torch_utils.time_sync(torch.device("cpu")) >= before

    @torch_utils.smart_inference_mode()
    def infer(x):
        return x * 2

    assert infer(torch.ones(1, requires_grad=True)).requires_grad is False


def test_activations_are_torchs():
    x = torch.linspace(-8, 8, 101)
    assert torch.allclose(activations.SiLU()(x), nn.SiLU()(x), atol=1e-6)
    assert torch.allclose(activations.Hardswish()(x), nn.Hardswish()(x), atol=1e-6)


def test_notebook_init_gives_ipythons_display(monkeypatch, capsys):
    package, display = ModuleType("IPython"), ModuleType("IPython.display")
    package.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert utils.notebook_init() is display and "Setup complete" in capsys.readouterr().out
    assert utils.notebook_init(verbose=False) is display and not capsys.readouterr().out
