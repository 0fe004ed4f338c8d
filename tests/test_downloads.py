"""Official weights by name, files by address: fetched whole or not at all, from a server of the test's own."""

from __future__ import annotations

import argparse
import http.server
import os
import pickle
import threading
from pathlib import Path, PureWindowsPath

import pytest
from test_checkpoint import Call, write_zip
from tiny_weights import save_weights

import detect
import hubconf
import val_joint
from models.build import build_model
from models.load import find_weights, load_model
from models.yolo import Model
from utils.dataset.config import DataConfig, load_data_config, load_hyp
from utils.system import downloads
from utils.system.paths import ROOT, find_file


class Release(http.server.BaseHTTPRequestHandler):
    """Answers `/NAME` by what `answers` has for it: bytes, and the length that it claims."""

    answers: dict[str, tuple[bytes, int]] = {}
    asked: list[str] = []

    def do_GET(self):  # noqa: N802 - the name that the base class calls
        self.asked.append(self.path)
        if self.path not in self.answers:
            self.send_error(404)
            return
        data, length = self.answers[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release with whole, cut and wrong files; the working folder is empty."""
    data = save_weights(tmp_path / "source.pt", joint=False).read_bytes()
    page = b"<html>not here</html>"
    files = {"yolov5n": (data, len(data)), "yolov5s": (data[:-999], len(data)), "yolov5m": (page, len(page))}
    answers = {f"/{k}.pt": v for k, v in files.items()} | {"/best.pt?key=secret": (data, len(data))}
    for name, text in {"empty.pt": b"", "page.yaml": b"\n<!DOCTYPE html><p>a login"}.items():
        answers[f"/{name}"] = text, len(text)
    for file in (ROOT / "data/coco128.yaml", ROOT / "data/hyps/hyp.no-augmentation.yaml", ROOT / "models/yolov5n.yaml"):
        answers[f"/a%20folder/{file.name}"] = file.read_bytes(), file.stat().st_size
    handler = type("Handler", (Release,), {"answers": answers, "asked": []})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(downloads, "RELEASE", f"http://127.0.0.1:{server.server_address[1]}")
        yield handler
        server.shutdown()


def test_weights_asked_for_by_name_are_fetched_once(release, tmp_path, capsys):
    file = find_weights("yolov5n.pt")
    said = capsys.readouterr()
    assert file.read_bytes() == (tmp_path / "source.pt").read_bytes()
    assert file.absolute() == tmp_path / "work" / "yolov5n.pt" and [p.name for p in Path().iterdir()] == ["yolov5n.pt"]
    assert f"fetching {downloads.RELEASE}/yolov5n.pt to {file.absolute()}" in said.out
    assert "yolov5n.pt: 100%" in said.err  # the bar
    assert load_model("yolov5n.pt").nc == 3 and release.asked == ["/yolov5n.pt"]  # the second time it is there
    assert hubconf.yolov5n(device="cpu", _verbose=False).nc == 3 and release.asked == ["/yolov5n.pt"]


def test_every_way_in_fetches(release, tmp_path):
    opt = argparse.Namespace(weights="yolov5n.pt", cfg="", freeze=[0], image_gradient=None)
    data = DataConfig(None, tmp_path, [], [], [], 3, {i: str(i) for i in range(3)})
    assert build_model(opt, data, {}, say=lambda _: None)[0].nc == 3
    model = hubconf.yolov5n(pretrained=True, classes=5, device="cpu")  # a download, then other classes
    assert model.nc == 5 and release.asked == ["/yolov5n.pt"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("yolov5s.pt", r"ended after \d+ of \d+ bytes"),  # a connection that breaks off
        ("yolov5m.pt", "no weight file"),  # a login page, say
        ("yolov5x6.pt", "404|Not Found"),
    ],
)
def test_a_file_that_is_not_whole_leaves_nothing(release, name, reason, tmp_path):
    with pytest.raises(FileNotFoundError, match=reason) as error:
        find_weights(name)
    assert list(Path().iterdir()) == []
    text = str(error.value)
    assert f"{downloads.RELEASE}/{name}" in text and text.endswith(f"put it at {tmp_path / 'work' / name}")


def test_offline_is_one_sentence(release, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "RELEASE", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(FileNotFoundError, match=r"yolov5l\.pt could not be fetched \(.*\): download it by other means"):
        find_weights("yolov5l.pt")
    assert list(Path().iterdir()) == []


def test_other_names_are_not_asked_for(release, tmp_path):
    for name in ("mine.pt", "yolov5z.pt", "yolov8n.pt", "best.pt"):
        with pytest.raises(FileNotFoundError, match="pass the path"):
            find_weights(name)
    with pytest.raises(FileNotFoundError, match="neither is the folder"):
        find_weights(tmp_path / "nowhere" / "yolov5s.pt")
    for name, task in (("yolov5s-seg.pt", "segmentation"), ("yolov5x-cls.pt", "classification")):
        with pytest.raises(ValueError, match=f"YOLOv5's {task} model.*such as yolov5[sx].pt"):
            find_weights(name)
    assert release.asked == []


def test_names_are_those_of_the_release():
    official = [f"yolov5{size}{six}.pt" for size in "nsmlx" for six in ("", "6")]
    assert all(map(downloads.is_official, official))
    assert downloads.RELEASE == "https://github.com/ultralytics/yolov5/releases/download/v7.0"
    yamls = {f.stem for f in (ROOT / "models").rglob("*.yaml")}
    assert {Path(name).stem for name in official} <= yamls


# By address -----------------------------------------------------------------------------------------------------------


def test_weights_by_address_are_fetched_once(release, capsys, tmp_path):
    address = f"{downloads.RELEASE}/best.pt?key=secret"
    assert load_model(address).nc == 3
    said = capsys.readouterr()
    target = tmp_path / "work" / "best.pt"
    assert said.out.count("\n") == 1 and f"Fetching {downloads.RELEASE}/best.pt to {target}\n" in said.out
    assert "best.pt: 100%" in said.err and "secret" not in said.out + said.err
    assert target.read_bytes() == (tmp_path / "source.pt").read_bytes()
    assert load_model([Path(address), address]).nc == 3  # a path object swallows one of the slashes
    assert hubconf.custom(address, device="cpu", _verbose=False).nc == 3
    assert release.asked == ["/best.pt?key=secret"] and [p.name for p in Path().iterdir()] == ["best.pt"]


def test_what_is_an_address():
    for name in (
        "https://host/x.pt",
        "https:/host/x.pt",
        Path("https://host/x.pt"),
        PureWindowsPath("https://host/x.pt"),
    ):
        assert downloads.address_of(name) == "https://host/x.pt", name
    for name in ("x.pt", "/http/x.pt", "ftp://host/x.pt", "C:/x.pt", "http:x.pt", Path("runs/exp")):
        assert downloads.address_of(name) is None, name


def test_a_file_that_is_there_is_used_in_place_of_the_address(release, capsys):
    save_weights(Path("yolov5s.pt"))
    address = f"{downloads.RELEASE}/yolov5s.pt"
    assert find_weights(address) == find_weights(address) == Path("yolov5s.pt") and release.asked == []
    said = capsys.readouterr().out
    assert said == f"yolov5s.pt is in this folder already: used instead of fetching {address}\n"


def test_yamls_by_address(release, tmp_path):
    folder = f"{downloads.RELEASE}/a%20folder"
    data = load_data_config(f"{folder}/coco128.yaml")
    assert data.nc == 80 and data.yaml_file == tmp_path / "work" / "coco128.yaml"
    assert load_hyp(f"{folder}/hyp.no-augmentation.yaml")["mosaic"] == 0
    assert Model(f"{folder}/yolov5n.yaml", nc=2).nc == 2
    opt = argparse.Namespace(weights="", cfg=f"{folder}/yolov5n.yaml", freeze=[0], image_gradient=None)
    assert build_model(opt, data, {}, say=lambda _: None)[0].nc == 80
    assert len(release.asked) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("yolov5s.pt", r"ended after \d+ of \d+ bytes"),
        ("yolov5m.pt", "web page"),
        ("page.yaml", "web page"),
        ("empty.pt", "empty"),
        ("none.yml", "404|Not Found"),
    ],
)
def test_an_answer_that_is_no_file_leaves_nothing(release, name, reason, tmp_path):
    find = find_weights if name.endswith(".pt") else find_file
    with pytest.raises(FileNotFoundError, match=reason) as error:
        find(f"{downloads.RELEASE}/{name}")
    assert list(Path().iterdir()) == []
    assert str(error.value).startswith(f"{downloads.RELEASE}/{name} could not be fetched (")
    assert str(error.value).endswith(f"put it at {tmp_path / 'work' / name}")


def test_addresses_of_no_file(release):
    for name in ("", "folder/", "best.exe", "x.pt/..", "a.yaml"):
        with pytest.raises(ValueError, match="no file that can be used here, only .pt, .torchscript, .onnx can"):
            find_weights(f"{downloads.RELEASE}/{name}")
    with pytest.raises(ValueError, match="only .yaml, .yml can"):
        find_file(f"{downloads.RELEASE}/yolov5n.pt")
    assert release.asked == [] and list(Path().iterdir()) == []


def test_offline_is_one_sentence_in_the_scripts(release):
    weights, data = "http://127.0.0.1:9/best.pt", "http://127.0.0.1:9/data.yaml"  # nothing listens there
    for script, args in ((detect, ["--weights", weights]), (val_joint, ["--data", data, "--weights", weights])):
        with pytest.raises(SystemExit) as end:
            script.main(script.parse_opt([*args, "--device", "cpu"]))
        wanted = data if "--data" in args else weights
        assert f"{wanted} could not be fetched (" in str(end.value) and "\n" not in str(end.value)


def test_weights_by_address_go_through_the_safe_reader(release, tmp_path):
    bad = write_zip(tmp_path / "bad.pt", pickle.dumps(Call(os.system, f"echo > {tmp_path / 'made'}"), 2)).read_bytes()
    release.answers["/bad.pt"] = bad, len(bad)
    with pytest.raises(ValueError, match=r"bad\.pt: refused, because it names `(posix|nt)\.system`"):
        load_model(f"{downloads.RELEASE}/bad.pt")
    assert not (tmp_path / "made").exists() and Path("bad.pt").exists()
