"""Exported files in use: `detect.py`, `val_joint.py`, AutoShape, torch.hub and ensembles run them as a `.pt`."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exported_weights import FORMATS, NMS_FLAGS, largest_difference, lively_weights, made, without_bfloat16
from tiny_weights import NAMES, VIEWS

import detect
import hubconf
import val_joint
from models import pipeline
from models.autoshape import AutoShape
from models.experimental import DetectMultiBackend
from models.load import load_model
from models.pipeline import find
from models.predictor import Predictor
from utils.boxes import xyxy2xywhn
from utils.results.sources import open_source
from utils.system.packages import need
from utils.system.yamls import save_yaml
from utils.weights.onnx import refuse_outside_weights

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="the export formats need requirements-export.txt")
try:
    need("openvino", "the tests")
except ModuleNotFoundError as e:
    pytest.skip(f"the export formats need requirements-export.txt ({e})", allow_module_level=True)
ROOT = Path(__file__).resolve().parents[1]
SIDE = 64


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    without_bfloat16(monkeypatch)


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))


@pytest.fixture(scope="module")
def weights() -> Path:
    return lively_weights()


@pytest.fixture(scope="module")
def files() -> dict[tuple[str, str], Path]:
    """Every format, for one size (`fixed`), for any (`any`), and ONNX with suppression inside (`nms`)."""
    found = {(name, "fixed"): made(name, (SIDE, SIDE)) for name in FORMATS}
    found |= {(name, "any"): made(name, dynamic=True) for name in FORMATS}
    return found | {("onnx", "nms"): made("onnx", dynamic=True, **dict(NMS_FLAGS))}


@pytest.fixture(scope="module")
def data(weights, tmp_path_factory) -> dict:
    """Square pictures whose labels are the network's own best boxes and classes, some left out: metrics between."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir(), (folder / "labels").mkdir()
    rng, model = np.random.default_rng(0), load_model(weights)
    for k in range(6):
        im = cv2.resize(rng.integers(0, 255, (5, 7, 3), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{k}.png"), im)
        rgb = torch.from_numpy(np.ascontiguousarray(im[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
        answer = model(rgb)
        found = answer.detections(conf_thres=0.05, iou_thres=0.3)[0][k % 2 :: 2][:4]
        boxes = xyxy2xywhn(found[:, :4], SIDE, SIDE, clip=True, eps=1e-3)
        rows = [f"{int(c)} " + " ".join(f"{v:.6f}" for v in b) for b, c in zip(boxes, found[:, 5], strict=True)]
        view = int(answer.probs[0].argmax()) if k else 1 - int(answer.probs[0].argmax())
        rows += ["", " ".join(str(int(i == view)) for i in range(2))]
        (folder / "labels" / f"{k}.txt").write_text("\n".join(rows))
    names = {"names": list(NAMES.values()), "cls_names": list(VIEWS.values())}
    return {"path": str(folder), "train": "images", "val": "images"} | names


def validate(data, weights, tmp_path, square: bool, **options) -> dict:
    cfg = val_joint.load_data_config(data)
    loader = val_joint.make_loader(cfg, "val", SIDE, 4, 32, workers=0, square=square)
    options = {"imgsz": SIDE, "batch_size": 4, "device": "cpu", "plots": False, "save_dir": tmp_path / "val"} | options
    (tmp_path / "val").mkdir(exist_ok=True)
    return val_joint.run(cfg, weights, dataloader=loader, **options)


def numbers(results: dict) -> list[float]:
    detection = results["detection"]
    means = [detection[k] for k in ("map50", "map50_95", "precision", "recall")]
    return [*means, *detection["maps"], results["image"]["accuracy"], results["fitness"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "any"])
def test_validation_gives_the_same_metrics(files, weights, data, tmp_path, kind):
    expected = numbers(validate(data, str(weights), tmp_path, square=kind == "fixed"))
    assert 0.1 < expected[0] < 0.99 and expected[-2] == pytest.approx(5 / 6)  # neither nothing nor everything
    for name in FORMATS:
        found = numbers(validate(data, str(files[name, kind]), tmp_path, square=kind == "fixed"))
        assert found == pytest.approx(expected, abs=1e-3), name
    if kind == "fixed":
        found = numbers(validate(data, str(files["onnx", kind]), tmp_path, square=True, dnn=True))
        assert found == pytest.approx(expected, abs=1e-3), "OpenCV"


@pytest.mark.slow
def test_validation_pads_to_the_size_of_a_fixed_file(files, data, tmp_path, capsys):
    options = {"batch_size": 4, "device": "cpu", "plots": False, "workers": 0, "project": tmp_path}
    results = val_joint.run(data, str(files["onnx", "fixed"]), imgsz=100, half=True, **options)
    out = capsys.readouterr().out
    assert "--imgsz 128x128: the file takes 64x64 alone" in out and "--half changes nothing" in out
    assert results["settings"]["imgsz"] == SIDE and results["settings"]["dtype"] == "float32"


def test_validation_with_suppression_inside(files, data, tmp_path, capsys):
    results = validate(data, str(files["onnx", "nms"]), tmp_path, square=True)
    out = capsys.readouterr().out
    assert "--conf-thres 0.2 (asked: 0.001), --iou-thres 0.4 (asked: 0.6), --max-det 20 (asked: 300)" in out
    assert results["image"]["accuracy"] == pytest.approx(5 / 6) and results["detection"]["map50"] > 0
    with pytest.raises(ValueError, match="--save-hybrid needs the boxes before non-max suppression"):
        validate(data, str(files["onnx", "nms"]), tmp_path, square=True, save_hybrid=True)


# detect.py ------------------------------------------------------------------------------------------------------------


def detections(weights, source, tmp_path, **options) -> tuple[list[dict], dict[str, str]]:
    """Rows of predictions.csv, and the label files by name."""
    options = {"imgsz": SIDE, "device": "cpu", "nosave": True, "conf_thres": 0.2, "iou_thres": 0.4} | options
    out = detect.run(weights, source, project=tmp_path / "runs", save_txt=True, save_csv=True, **options)
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    labels = {p.name: p.read_text() for p in sorted((out / "labels").iterdir())}
    return rows, labels


def assert_same(found, expected) -> None:
    """The same boxes and classes up to a pixel of rounding; the label files as text where no pixel differs."""
    rows, theirs = found[0], expected[0]
    assert len(rows) == len(theirs) > 6 and list(found[1]) == list(expected[1])
    for a, b in zip(rows, theirs, strict=True):
        assert (a["Image Name"], a["Prediction"], a["image_class"]) == (
            b["Image Name"],
            b["Prediction"],
            b["image_class"],
        )
        assert all(abs(float(a[k]) - float(b[k])) <= 1 for k in ("x1", "y1", "x2", "y2"))
        assert float(a["Confidence"]) == pytest.approx(float(b["Confidence"]), abs=2e-4)
    if all(a[k] == b[k] for a, b in zip(rows, theirs, strict=True) for k in ("x1", "y1", "x2", "y2")):
        assert found[1] == expected[1]


@pytest.mark.slow
def test_detection_gives_the_same_labels(files, weights, data, tmp_path):
    source = Path(data["path"]) / "images"  # square, so that every file sees the same input
    expected = detections(weights, source, tmp_path)
    for name in FORMATS:
        assert_same(detections(files[name, "fixed"], source, tmp_path), expected)
    assert_same(detections(files["onnx", "fixed"], source, tmp_path, dnn=True), expected)
    assert_same(
        detections(files["onnx", "nms"], source, tmp_path, max_det=20),
        detections(weights, source, tmp_path, max_det=20),
    )


@pytest.mark.slow
def test_threads_at_once_answer_as_one_picture_at_a_time(files, data, monkeypatch):
    monkeypatch.setattr(pipeline, "STREAMS", 3)  # of two cores each
    folder = Path(data["path"]) / "images"
    pictures = [cv2.imread(str(p)) for p in sorted(folder.iterdir())]
    before = torch.get_num_threads()
    runs = {"onnx by OpenCV": load_model(files["onnx", "fixed"], dnn=True)}
    try:
        torch.set_num_threads(6)
        runs |= {name: load_model(files[name, "fixed"]) for name in FORMATS}
        for name, model in runs.items():
            predictor = Predictor(model, batch=1, conf_thres=0.2, iou_thres=0.4)
            expected = [predictor([im], (SIDE, SIDE), auto=True, bgr=True) for im in pictures]
            with open_source(folder, readers=2) as source:
                found = list(find(predictor, source, (SIDE, SIDE), lambda *_: threading.current_thread()))
            assert [Path(f.frame.path).name for f in found] == [f"{i}.png" for i in range(len(pictures))]
            assert all(f.drawn is not threading.current_thread() for f in found)
            for f, ((rows,), probs) in zip(found, expected, strict=True):
                assert f.detections[:, 4:] == pytest.approx(rows[:, 4:].numpy(), abs=1e-4), name
                assert f.detections[:, :4] == pytest.approx(rows[:, :4].numpy(), abs=0.51), name  # whole pixels
                assert f.probs == pytest.approx(probs[0].numpy(), abs=1e-4), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_detection_on_pictures_of_any_shape(files, weights, tmp_path, capsys):
    im = cv2.resize(np.random.default_rng(1).integers(0, 255, (5, 7, 3), np.uint8), (128, 64))
    cv2.imwrite(str(tmp_path / "wide.png"), im)
    options = {"imgsz": 128, "source": tmp_path / "wide.png", "tmp_path": tmp_path, "conf_thres": 0.1}
    expected = detections(weights, **options)
    for name in FORMATS:
        assert_same(detections(files[name, "any"], **options), expected)
    assert capsys.readouterr().out.count("wide.png: 64x128 ") == 4
    detections(files["onnx", "fixed"], **options)
    out = capsys.readouterr().out
    assert "--imgsz 128x128: the file takes 64x64 alone" in out and "wide.png: 64x64 " in out
    detections(files["onnx", "nms"], **options | {"conf_thres": 0.3}, classes=[0], agnostic_nms=True)
    assert "WARNING: non-max suppression is inside the file, with --max-det 20 (asked: 1000), --agnostic-nms False" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_what_exported_files_cannot_do(files, data, tmp_path, capsys):
    source = Path(data["path"]) / "images"
    for script, call in (
        (
            "detect",
            lambda: detect.run(files["onnx", "any"], source, project=tmp_path / "r", device="cpu", augment=True),
        ),
        ("val", lambda: validate(data, str(files["torchscript", "any"]), tmp_path, square=True, augment=True)),
    ):
        with pytest.raises(ValueError, match="--augment works with PyTorch weights"):
            call()
        assert not (tmp_path / "r").exists(), script
    detections(files["torchscript", "fixed"], source, tmp_path, half=True, update=True, dnn=True)
    out = capsys.readouterr().out
    assert "--half changes nothing" in out and "an exported file has no training state" in out
    assert "--dnn runs ONNX files through OpenCV; these weights are none" in out


# Files without names --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nameless(files, tmp_path_factory) -> Path:
    """ONNX as other programs write it: nothing is said of the classes."""
    import onnx

    model = onnx.load(files["onnx", "fixed"])
    del model.metadata_props[:]
    file = tmp_path_factory.mktemp("nameless") / "w.onnx"
    onnx.save(model, file)
    return file


@pytest.mark.slow
def test_names_from_the_data_yaml(nameless, data, tmp_path, capsys):
    source, names = Path(data["path"]) / "images", ["one", "two", "three"]
    save_yaml(tmp_path / "three.yaml", data | {"names": names})
    rows, _ = detections(nameless, source, tmp_path, data=tmp_path / "three.yaml")
    assert {r["Prediction"] for r in rows} <= set(names) and rows
    assert f"their names are taken from {tmp_path / 'three.yaml'}" in capsys.readouterr().out
    rows, _ = detections(nameless, source, tmp_path)  # coco128.yaml
    assert {r["Prediction"] for r in rows} <= {"class0", "class1", "class2"} and rows
    assert "name none of their 3 classes, and " in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        detections(nameless, source, tmp_path, data="none.yaml")
    detections(nameless, source, tmp_path, data=tmp_path / "three.yaml", classes=[2])
    with pytest.raises(ValueError, match="--classes 3: the model knows {0: 'one'"):
        detections(nameless, source, tmp_path, data=tmp_path / "three.yaml", classes=[3])


def test_validation_of_a_file_without_names(nameless, data, tmp_path, capsys):
    results = validate(data, str(nameless), tmp_path, square=True)
    assert list(results["detection"]["per_class"]) == list(NAMES.values())
    out = capsys.readouterr().out
    assert "their names are taken from data configuration" in out and "WARNING" not in out
    with pytest.raises(ValueError, match=r"has 2 object classes \(a, b\), the network 3 \(class0, class1, class2\)"):
        val_joint.run(data | {"names": ["a", "b"]}, str(nameless), device="cpu", save_dir=tmp_path)


@pytest.mark.slow
def test_python_and_ensembles_of_a_file_without_names(nameless, weights, data, capsys):
    picture = cv2.imread(str(Path(data["path"]) / "images" / "0.png"))
    for model in (AutoShape(load_model(nameless)), hubconf.custom(nameless, device="cpu", _verbose=False)):
        assert model.names == {0: "class0", 1: "class1", 2: "class2"}
        assert set(model(picture, SIDE).pandas().xyxy[0]["name"]) <= set(model.names.values())
    assert hubconf.custom(nameless, autoshape=False, device="cpu").names == model.names
    config = val_joint.load_data_config(data | {"names": ["a", "b", "c"]})
    assert DetectMultiBackend(nameless, data=config).names == {0: "a", 1: "b", 2: "c"}
    capsys.readouterr()
    assert load_model([nameless, weights]).names == NAMES
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_has_a_row_for_each_size_that_was_used(nameless, weights, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(val_joint, "STUDY_SIZES", range(64, 161, 16))
    save_yaml(tmp_path / "set.yaml", data)
    flags = ["--data", "set.yaml", "--task", "study", "--device", "cpu", "--workers", "0", "--project", "runs"]
    for file, sizes in ((nameless, ["64"]), (weights, ["64", "96", "128", "160"])):
        val_joint.main(val_joint.parse_opt([*flags, "--weights", str(file)]))
        with (tmp_path / "study_set_w.csv").open(newline="") as f:
            assert [row["imgsz"] for row in csv.DictReader(f)] == sizes
        assert (f"{file} takes pictures of 64x64 alone: its table has one row" in capsys.readouterr().out) == (
            file == nameless
        )
    assert len(list((tmp_path / "runs").iterdir())) == 5  # each size was validated once


# Python ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_autoshape_and_hub(files, weights, data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pictures = [cv2.imread(str(p))[..., ::-1] for p in sorted((Path(data["path"]) / "images").iterdir())[:3]]
    ours = AutoShape(load_model(weights))(pictures, size=SIDE)
    for name, kind in (("onnx", "fixed"), ("openvino", "any"), ("torchscript", "fixed")):
        model = torch.hub.load(
            str(ROOT), "custom", str(files[name, kind]), source="local", device="cpu", _verbose=False
        )
        found = model(pictures, size=320 if kind == "fixed" else SIDE)  # a file of one size keeps to it
        assert found.s == (3, 3, SIDE, SIDE) and found.image_class == ours.image_class
        assert sum(map(len, found.xyxy)) > 6
        for a, b in zip(found.xyxy, ours.xyxy, strict=True):
            assert a.shape == b.shape and torch.allclose(a, b, atol=1e-2)
    images = torch.rand(2, 3, SIDE, SIDE)
    assert model(images).shape == (2, 252, 8) and [t.shape for t in model.model(images)] == [(2, 252, 8), (2, 2)]


@pytest.mark.slow
def test_ensembles(files, weights):
    images = torch.rand(3, 3, SIDE, SIDE)
    mixed = load_model([weights, files["onnx", "fixed"]])(images)
    plain = load_model([weights, weights])(images)
    assert largest_difference(mixed, plain) < 1e-4
    with pytest.raises(ValueError, match="weights 2 have non-max suppression inside; export them without --nms"):
        load_model([weights, files["onnx", "nms"]])
    other = made("onnx", batch_size=2)  # for 64x96
    with pytest.raises(ValueError, match="ensemble: exported files that take pictures of"):
        load_model([files["onnx", "fixed"], other])
    with pytest.raises(ValueError, match="--augment"):
        detect.run([weights, files["onnx", "any"]], "x", device="cpu", augment=True)


# Files that cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.onnx", "a.torchscript", "a.xml", "a_openvino_model/a.xml"])
def test_broken_files_end_in_a_sentence(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"<no>" + bytes(100))
    file.with_suffix(".bin").write_bytes(b"")
    given = file.parent if "/" in name else file
    with pytest.raises(
        SystemExit, match=rf"detect.py: .*{given.name}: .*(cannot read it|no TorchScript file|no ONNX file)"
    ):
        detect.main(detect.parse_opt(["--weights", str(given), "--source", str(tmp_path), "--device", "cpu"]))
    if name == "a.onnx":
        with pytest.raises(ValueError, match="a.onnx: no ONNX file"):
            load_model(file, dnn=True)


@pytest.mark.slow
def test_incomplete_folders(files, tmp_path):
    folder = tmp_path / "w_openvino_model"
    shutil.copytree(files["openvino", "any"], folder)
    assert load_model(folder / "w.xml").names == NAMES
    (folder / "metadata.yaml").rename(folder / "w.yaml")  # beside the .xml, under its name
    assert load_model(folder).cls_names == VIEWS
    (folder / "w.bin").unlink()
    with pytest.raises(FileNotFoundError, match="w.bin, the weights of w.xml, is not there"):
        load_model(folder)
    (folder / "w.xml").unlink()
    with pytest.raises(FileNotFoundError, match="holds 0 .xml files"):
        load_model(folder)


@pytest.mark.parametrize("dnn", [False, True])
def test_onnx_files_with_weights_outside_are_refused(files, tmp_path, monkeypatch, dnn):
    """ONNX Runtime would find them in the working folder."""
    import onnx
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    model = onnx.load(files["onnx", "fixed"])
    onnx.save(model, "w.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    assert Path("data.bin").stat().st_size > 100000
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(Path("w.onnx").read_bytes(), options, ["CPUExecutionProvider"])  # it does
    if not dnn:
        monkeypatch.setitem(sys.modules, "onnx", None)  # not needed to run a file
    with pytest.raises(ValueError, match=r"w\.onnx: refused, because it keeps weights \(`.+`\) in another file"):
        load_model("w.onnx", dnn=dnn)
    if not dnn:
        assert load_model(files["onnx", "fixed"]).names == NAMES


def _in_attribute(onnx, tensor):
    return {"nodes": [onnx.helper.make_node("Constant", [], ["y"], value=tensor)]}


def _in_subgraph(onnx, tensor):
    value = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([], "branch", [], [value], [tensor])
    return {"nodes": [onnx.helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)]}


def _in_sparse(onnx, tensor):
    sparse = onnx.SparseTensorProto()
    sparse.indices.CopyFrom(tensor)
    return {"nodes": [], "sparse_initializer": [sparse]}


def _in_initializer(onnx, tensor):
    return {"nodes": [], "initializer": [tensor]}


@pytest.mark.parametrize("place", [_in_attribute, _in_subgraph, _in_sparse, _in_initializer, "function"])
@pytest.mark.parametrize("field", ["external_data", "data_location"])
def test_weights_outside_are_found_wherever_they_are(place, field):
    import onnx

    tensor = onnx.helper.make_tensor("far", onnx.TensorProto.FLOAT, [1], [1.0])
    in_function = place == "function"
    place = _in_attribute if in_function else place

    def content() -> bytes:
        graph = onnx.helper.make_graph(name="g", inputs=[], outputs=[], **{"nodes": []} | place(onnx, tensor))
        model = onnx.helper.make_model(graph)
        if in_function:
            function = model.functions.add(name="f", domain="d")
            function.node.extend(graph.node)
            del model.graph.node[:]
        return model.SerializeToString()

    refuse_outside_weights(content(), Path("w.onnx"))
    if field == "external_data":
        tensor.external_data.add(key="location", value="/etc/passwd")
    else:
        tensor.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ValueError, match=r"^w\.onnx: refused, because it keeps weights \(`far`\) in another file"):
        refuse_outside_weights(content(), Path("w.onnx"))


@pytest.mark.parametrize(
    "content", [b"\x3b", b"\x3a\x05a", b"\x38" + b"\xff" * 10, b"\xba\x80\x80\x80\x10\x00", b"\x3a"]
)
def test_bytes_that_are_no_onnx(content):
    """A group, a field and a number that are cut short, a number and a field number that are too large."""
    with pytest.raises(ValueError, match=r"^w\.onnx: no ONNX file that can be read \(.+\)"):
        refuse_outside_weights(content, Path("w.onnx"))


def test_an_xml_file_is_one(files, tmp_path):
    """OpenVINO would read an ONNX file of that name, with the weights that it says are elsewhere."""
    shutil.copy(files["onnx", "fixed"], tmp_path / "w.xml")
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"w\.xml: OpenVINO cannot read it \(it is no XML\)"):
        load_model(tmp_path / "w.xml")


def test_names_and_boxes_must_fit(files, tmp_path):
    import onnx

    model = onnx.load(files["onnx", "fixed"])
    for prop in model.metadata_props:
        prop.value = "{0: 'one'}" if prop.key == "names" else prop.value
    onnx.save(model, tmp_path / "w.onnx")
    with pytest.raises(ValueError, match="w.onnx: names 1 classes, but its boxes have 8 columns"):
        load_model(tmp_path / "w.onnx")


CHILD_AFTER_TWO_FILES = """
import faulthandler, signal, subprocess, sys
faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: None)
from models.load import load_model
from models.pipeline import find
from models.predictor import Predictor
models = [load_model(sys.argv[1]) for _ in range(2)]
while models:
    del models[0]
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="this system has no signal at the end of a child process")
def test_two_openvino_files_do_not_end_in_a_crash(files):
    """A Core of its own for each left a freed signal stack behind."""
    command = [sys.executable, "-c", CHILD_AFTER_TWO_FILES, str(files["openvino", "fixed"])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "alive" in done.stdout, done.stderr
