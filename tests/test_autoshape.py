"""The Python interface: `torch.hub.load`, pictures of any kind in, YOLOv5's results out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_weights import NAMES, save_weights

from models.autoshape import AutoShape, Detections
from models.load import load_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "joint.pt")


@pytest.fixture
def model(weights) -> AutoShape:
    model = AutoShape(load_model(weights))
    model.max_det = 5
    return model


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), (128, 96))


@pytest.mark.slow
def test_every_kind_of_picture_gives_the_same_boxes(model, rgb, tmp_path):
    file = tmp_path / "Bild ü.png"
    file.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    kinds = [str(file), file, Image.fromarray(rgb), Image.open(file), rgb, bgr[..., ::-1], rgb.transpose(2, 0, 1)]
    together = model(kinds, size=128)
    assert len(together) == together.n == len(kinds) and len(together.xyxy[0]) == 5
    assert together.files == ["Bild ü.jpg"] * 2 + ["image2.jpg", "Bild ü.jpg", "image4.jpg", "image5.jpg", "image6.jpg"]
    for kind, boxes in zip(kinds, together.xyxy, strict=True):
        assert torch.allclose(model(kind, size=128).xyxy[0], boxes, atol=1e-3)
        assert torch.equal(boxes, together.xyxy[0])


def test_addresses(model, rgb, tmp_path):
    import http.server
    import threading

    Image.fromarray(rgb).save(tmp_path / "a.png")
    agents = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the name that the base class calls
            agents.append(self.headers["User-Agent"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write((tmp_path / "a.png").read_bytes())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        result = model(f"http://127.0.0.1:{server.server_address[1]}/a.png?x=1", size=128)
        server.shutdown()
    assert result.files == ["a.jpg"] and torch.equal(result.xyxy[0], model(rgb, size=128).xyxy[0])
    assert "YOLOv5-Joint" in agents[0]


def test_grey_transparent_and_turned_pictures(model, rgb):
    rgba = np.concatenate([rgb, rgb[..., :1]], 2)
    assert torch.equal(model(rgba, 128).xyxy[0], model(rgb, 128).xyxy[0])
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    turned = Image.fromarray(rgb)
    turned.getexif().update(exif)
    assert model(turned, 128).ims[0].shape == (128, 96, 3)
    assert model([rgb[..., 0], Image.fromarray(rgb).convert("L")], 128).ims[0].shape == (96, 128, 3)


WRONG = (
    np.zeros((8, 8, 2), np.uint8),
    np.zeros(5, np.uint8),
    np.zeros((0, 8, 3), np.uint8),
    np.zeros((8, 8, 3), bool),
    np.full((8, 8, 3), 256, np.uint16),
    np.full((8, 8, 3), -1.0),
    np.full((8, 8, 3), np.nan),
    np.full((8, 8, 3), 1j),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda a: f"{a.dtype}{a.shape}")
def test_what_is_no_picture_is_refused(model, wrong):
    with pytest.raises(ValueError, match="picture 0.*0..255"):
        model(wrong)


def test_other_types_of_number_are_values_of_0_to_255_as_in_yolov5(model, rgb):
    expected = model(rgb, 128).xyxy[0]
    for array in (rgb.astype(np.float32), rgb.astype(float) + 0.4, rgb.astype(np.int64), rgb.astype(np.uint16)):
        result = model(array, 128)
        assert torch.equal(result.xyxy[0], expected) and result.ims[0].dtype == np.uint8
    assert model(np.zeros((96, 128, 3)), 128).n == 1  # a black frame
    with pytest.raises(ValueError, match="picture 1: values of a float32 array are read as 0..255, these lie in 0..1"):
        model([rgb, (rgb / 255).astype(np.float32)], 128)


@pytest.mark.slow
def test_an_empty_list_is_no_picture(model):
    with pytest.raises(ValueError, match="no picture"):
        model([])


def test_missing_file_is_named(model):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        model("none.jpg")


def test_pictures_of_several_sizes_and_the_network_input(model, rgb):
    tall = np.ascontiguousarray(rgb.transpose(1, 0, 2))
    result = model([rgb, tall], size=100)
    assert result.s == (2, 3, 128, 128) and result.times == result.t and len(result.t) == 3
    for boxes, im in zip(result.xyxy, (rgb, tall), strict=True):
        assert (boxes[:, :4] >= 0).all() and (boxes[:, 2] <= im.shape[1]).all() and (boxes[:, 3] <= im.shape[0]).all()
    assert model(rgb, size=(64, 100)).s == (1, 3, 96, 128)


def test_settings(model, rgb):
    model.conf, model.max_det = 0.9999, 1000
    few = len(model(rgb, 128).xyxy[0])
    model.conf = 0.25
    many = model(rgb, 128).xyxy[0]
    assert few < len(many)
    model.classes = [1]
    assert set(model(rgb, 128).xyxy[0][:, 5].tolist()) == {1.0}
    model.classes, model.max_det = None, 2
    assert len(model(rgb, 128).xyxy[0]) == 2


def test_tables_and_coordinates(model, rgb):
    result = model([rgb, rgb[:50]], size=128)
    tables = result.pandas()
    assert list(tables.xyxy[0].columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert list(tables.xywhn[1].columns) == ["xcenter", "ycenter", "width", "height", "confidence", "class", "name"]
    first = tables.xyxy[0].iloc[0]
    assert first["name"] == NAMES[first["class"]] and isinstance(result.xyxy[0], torch.Tensor)
    x1, y1, x2, y2 = result.xyxy[1][0, :4].tolist()
    assert result.xywhn[1][0, :4].tolist() == pytest.approx(
        [(x1 + x2) / 2 / 128, (y1 + y2) / 2 / 50, (x2 - x1) / 128, (y2 - y1) / 50], abs=1e-5
    )
    assert result.xyxyn[1][0, 4:].tolist() == result.xyxy[1][0, 4:].tolist()
    model.conf = 1.0
    assert list(model(rgb, 128).pandas().xyxy[0].columns)[-1] == "name"


def test_image_level_answer(model, rgb):
    result = model([rgb, rgb], size=128)
    assert result.image_class == ["PLAX", "PLAX"] and result.image_probs.shape == (2, 2)
    assert torch.allclose(result.image_probs.sum(1), torch.ones(2))
    one = result.tolist()[1]
    assert one.n == 1 and one.image_class == ["PLAX"] and torch.equal(one.xyxy[0], result.xyxy[1])
    assert "image PLAX 0." in str(result)


def test_detection_only_results_have_no_image_answer(rgb, tmp_path):
    result = AutoShape(load_model(save_weights(tmp_path / "plain.pt", joint=False)))(rgb, size=128)
    assert result.image_class is None and result.image_probs is None and "view" not in str(result)
    assert result.tolist()[0].image_class is None


def test_print_show_save_crop_render(model, rgb, tmp_path, capsys, monkeypatch):
    before = rgb.copy()
    result = model([rgb, Image.fromarray(rgb)], size=128)
    result.print()
    text = capsys.readouterr().out
    assert text.startswith("image 1/2: 96x128 ") and "per image at shape (2, 3, 96, 128)" in text
    folder = result.save(save_dir=tmp_path / "exp")
    assert sorted(p.name for p in folder.iterdir()) == ["image0.jpg", "image1.jpg"]
    assert result.save(save_dir=tmp_path / "exp").name == "exp2"
    crops = result.crop(save_dir=tmp_path / "cut")
    assert len(crops) == 10 and len(list((tmp_path / "cut" / "crops").rglob("*.jpg"))) == 10
    assert set(crops[0]) == {"box", "conf", "cls", "label", "im"} and crops[0]["im"].shape[2] == 3
    assert len(result.crop(save=False, save_dir=tmp_path / "none")) == 10 and not (tmp_path / "none").exists()
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self: shown.append(self.size))
    result.show()
    assert shown == [(128, 96)] * 2
    assert np.array_equal(rgb, before)
    drawn = result.render()
    assert (drawn[0] != rgb).any() and drawn is result.ims and drawn[0].shape == rgb.shape
    assert np.array_equal(rgb, before)


def test_colours_are_not_swapped(rgb):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    empty = Detections([red], [torch.zeros(0, 6)], ["a.jpg"], (SimpleNamespace(t=0.5), 1, 2), NAMES, (1, 3, 64, 64))
    assert empty.t == (500, 1, 2) and empty.s == (1, 3, 64, 64)  # YOLOv5's order of arguments
    assert np.array_equal(empty.render()[0], red)


def test_tensor_gives_decoded_boxes(model):
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), model.network(images).boxes) and model(images).shape == (2, 252, 8)


def test_training_mode_is_not_entered(model):
    assert not model.train().training and not model.model.training


@pytest.mark.slow
def test_torch_hub(weights, rgb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = torch.hub.load(str(ROOT), "custom", str(weights), source="local", device="cpu", verbose=False)
    model.conf = 0.5
    assert model(rgb).pandas().xyxy[0]["name"].isin(NAMES.values()).all()
    bare = torch.hub.load(str(ROOT), "custom", path=str(weights), source="local", autoshape=False, _verbose=False)
    assert type(bare).__name__ == "DetectMultiBackend" and type(bare.model).__name__ == "DetectionModel"
    threads = torch.get_num_threads()
    unsuffixed = torch.hub.load(str(ROOT), "custom", str(weights.with_suffix("")), source="local", _verbose=False)
    assert unsuffixed.names == model.names and torch.get_num_threads() == threads
    fresh = torch.hub.load(str(ROOT), "yolov5n", source="local", pretrained=False, classes=7, device="cpu")
    assert fresh.nc == 7
    monkeypatch.setattr("utils.system.downloads.RELEASE", "http://127.0.0.1:9")  # offline
    with pytest.raises(FileNotFoundError, match=r"yolov5s\.pt could not be fetched"):
        torch.hub.load(str(ROOT), "yolov5s", source="local")


@pytest.mark.slow
@pytest.mark.parametrize(("device", "name"), [(0, "0"), ("0", "0"), ("cuda", "0"), (None, ""), ("cpu", "cpu")])
def test_device_0_is_the_first_gpu_and_not_the_best_there_is(weights, monkeypatch, device, name):
    import hubconf

    asked = []
    monkeypatch.setattr(hubconf, "select_device", lambda name: asked.append(name) or torch.device("cpu"))
    hubconf.custom(weights, device=device, _verbose=False)
    hubconf.yolov5n(pretrained=False, classes=2, device=device)
    assert asked == [name] * 2


def test_reference_detections(theirs, shared):
    """The same boxes as from `detect.py`, whose letterbox is the same for pictures of one size up to padding."""
    import json

    rows = json.loads((theirs / "checkpoint_expected.json").read_text())["detect"]["images"]
    model = AutoShape(load_model(theirs / "yolov5n_heart_det.pt"))
    model.conf = 0.05
    result = model([shared / "heart" / "valid" / "images" / r["file"] for r in rows], size=320)
    for boxes, row in zip(result.xyxy, rows, strict=True):
        theirs = torch.tensor(row["detections_rounded"])
        assert boxes.shape == theirs.shape and (boxes[:, :4] - theirs[:, :4]).abs().max() <= 1
        assert (boxes[:, 4] - theirs[:, 4]).abs().max() <= 2e-3


def test_pictures_of_one_name_are_saved_beside_one_another(model, rgb, tmp_path):
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        Image.fromarray(rgb).save(tmp_path / folder / "0001.png")
    result = model([str(tmp_path / f / "0001.png") for f in ("p1", "p2")], 128)
    folder = result.save(save_dir=tmp_path / "saved")
    assert sorted(f.name for f in folder.iterdir()) == ["0001.jpg", "0001_2.jpg", "names.csv"]
    crops = result.crop(save_dir=tmp_path / "cut")
    assert len(list((tmp_path / "cut").rglob("*.jpg"))) == len(crops) == 10
