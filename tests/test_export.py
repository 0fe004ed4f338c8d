"""`export.py`: what each format answers and says of itself, and what is refused."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from exported_weights import (
    FORMATS,
    NMS,
    NMS_FLAGS,
    largest_difference,
    lively_weights,
    made,
    save_lively_weights,
    without_bfloat16,
)
from tiny_weights import NAMES, VIEWS

import export
from models.answer import Answer
from models.export import formats
from models.export.check import check_export
from models.export.metadata import Metadata
from models.export.network import ExportNetwork, smooth_pictures
from models.export.readers import read_onnx, read_openvino
from models.export.torchscript import write_torchscript
from models.load import load_model
from models.yolo import Model
from utils.augmentations import letterbox
from utils.system.packages import need, openvino_core
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml

onnx = pytest.importorskip("onnx", reason="the export formats need requirements-export.txt")
pytest.importorskip("onnxruntime", reason="the export formats need requirements-export.txt")
pytest.importorskip("onnxslim", reason="the export formats need requirements-export.txt")
need_openvino = pytest.mark.skipif(
    not any((Path(p) / "openvino").is_dir() for p in sys.path), reason="needs openvino of requirements-export.txt"
)
EACH = [f if f != "openvino" else pytest.param(f, marks=need_openvino) for f in FORMATS]
FILES = {
    "torchscript": "w.torchscript",
    "onnx": "w.onnx",
    "openvino": "w_openvino_model",
    "state_dict": "w_state_dict.pt",
    "yolov5": "w_yolov5.pt",
}
SIZE = (64, 96)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    without_bfloat16(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def weights(folder) -> Path:
    return Path(shutil.copy(lively_weights(), folder / "w.pt"))


def run(weights: Path, *include: str, **options) -> list[Path]:
    return export.run(**{"weights": weights, "imgsz": SIZE, "include": include} | options)


def pictures(batch: int, *size: int) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_fixed_size(weights, name):
    file = made(name, batch_size=2)
    assert file.name == FILES[name]
    model, ours = load_model(file), load_model(weights)
    assert model.imgsz == SIZE and model.batch == (None if name == "torchscript" else 2) and model.nms is None
    assert (model.names, model.cls_names, model.nc, model.cls_nc) == (NAMES, VIEWS, 3, 2)
    assert int(model.stride.max()) == 32
    for batch in (1, 2, 5):
        images = pictures(batch, *SIZE)
        answer, expected = model(images), ours(images)
        assert answer.boxes.shape == (batch, 378, 8) and answer.probs.shape == (batch, 2)
        assert largest_difference(answer, expected) < 1e-4
    assert expected.probs.std(0).min() > 1e-4 and expected.boxes.std(1).min() > 1e-3  # not one answer for all
    with pytest.raises(ValueError, match="takes pictures of 64x96, not 64x64"):
        model(pictures(1, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_any_size(weights, name):
    model, ours = load_model(made(name, dynamic=True)), load_model(weights)
    assert model.imgsz is None and model.batch is None
    for shape in ((1, 64, 64), (3, 128, 96)):
        assert largest_difference(model(pictures(*shape)), ours(pictures(*shape))) < 1e-4


@pytest.mark.parametrize(
    ("name", "dynamic", "agnostic"),
    [
        ("onnx", False, True),
        ("onnx", True, False),
        pytest.param("openvino", True, False, marks=[need_openvino, pytest.mark.slow]),
    ],
)
def test_suppression_inside(name, dynamic, agnostic):
    plain = load_model(made(name, dynamic=True) if dynamic else made(name, batch_size=2))
    nms = NMS | {"agnostic": agnostic}
    options = {"dynamic": True} if dynamic else {}
    options |= {"agnostic_nms": True} if agnostic else {}
    model = load_model(made(name, **options, **dict(NMS_FLAGS)))
    assert model.nms == nms and (model.nc, model.cls_nc) == (3, 2)
    counts = set()
    for images in [pictures(2, *SIZE)] + ([pictures(1, 32, 32)] if dynamic else []):
        answer, unsuppressed = model(images), plain(images)
        assert answer.boxes.shape == (len(images), min(20, unsuppressed.boxes.shape[1]), 6)
        fewer = answer.detections(**nms | {"conf_thres": 0.3, "classes": [0, 2], "max_det": 3})
        expected = unsuppressed.detections(**nms)
        for got, rows, few, theirs in zip(answer.detections(**nms), answer.boxes, fewer, expected, strict=True):
            assert len(got) and largest_difference(Answer(got), Answer(theirs)) < 1e-4
            assert not rows[len(got) :].any()
            counts.add(len(theirs))
            assert (few[:, 4] > 0.3).all() and (few[:, 5] != 1).all() and len(few) <= 3
        assert torch.allclose(answer.probs, unsuppressed.probs, atol=1e-4)
    assert max(counts) > 3


@pytest.mark.slow
def test_simplified_and_oldest_and_newest_opset(weights):
    images, expected = pictures(1, *SIZE), load_model(weights)(pictures(1, *SIZE))
    sizes = {}
    for key, options in {"12": {"opset": 12}, "20": {"opset": 20, "simplify": True}}.items():
        file = made("onnx", **options)
        model = onnx.load(file)
        sizes[key] = len(model.graph.node)
        assert model.opset_import[0].version == options.get("opset", 17)
        assert largest_difference(load_model(file)(images), expected) < 1e-4
        assert load_model(file).names == NAMES  # simplifying keeps what the file says of itself
    assert sizes["20"] < sizes["12"]


def test_shapes_and_names_in_the_onnx_file():
    def shape(value) -> list:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    graph = onnx.load(made("onnx", batch_size=2)).graph
    found = {v.name: shape(v) for v in (*graph.input, *graph.output)}
    assert found == {"images": [2, 3, 64, 96], "output0": [2, 378, 8], "image_probs": [2, 2]}
    graph = onnx.load(made("onnx", dynamic=True, **dict(NMS_FLAGS))).graph
    found = {v.name: shape(v) for v in (*graph.input, *graph.output)}
    assert found["images"] == ["batch", 3, "height", "width"] and found["image_probs"] == ["batch", 2]
    assert found["output0"] == ["batch", "detections", 6]


def test_torchscript_of_a_detector_answers_with_a_tuple(tmp_path):
    """As YOLOv5's does: programs take it apart."""
    model = Model(load_yaml(ROOT / "models/yolov5n.yaml") | {"width_multiple": 0.1}, nc=3).eval()
    network = ExportNetwork(model, SIZE)
    write_torchscript(network, tmp_path / "w.torchscript")
    answer = torch.jit.load(str(tmp_path / "w.torchscript"))(network.example)
    assert isinstance(answer, tuple) and len(answer) == 1
    torch.testing.assert_close(answer[0], network(network.example))


@need_openvino
def test_every_format_says_what_it_is():
    files = {name: made(name, batch_size=2) for name in FORMATS}
    props = {p.key: p.value for p in onnx.load(files["onnx"]).metadata_props}
    assert props["stride"] == "32" and ast.literal_eval(props["names"]) == NAMES and props["task"] == "joint"
    assert ast.literal_eval(props["cls_names"]) == VIEWS
    extra = {"config.txt": ""}
    torch.jit.load(str(files["torchscript"]), _extra_files=extra)
    config = json.loads(extra["config.txt"])
    assert config["shape"] == [2, 3, *SIZE] and config["names"]["1"] == "MR" and config["stride"] == 32
    content = yaml.safe_load((files["openvino"] / "metadata.yaml").read_text(encoding="utf-8"))
    assert content["names"] == NAMES and content["cls_names"] == VIEWS and content["imgsz"] == list(SIZE)
    assert sorted(p.name for p in files["openvino"].iterdir()) == ["metadata.yaml", "w.bin", "w.xml"]


def test_metadata_survive_each_form():
    metadata = Metadata({0: "it's", 1: 'a "b"\n', 2: "ü"}, {0: "x"}, 64, 1, (64, 128), 2, True, False, dict(NMS))
    file = Path("f")
    assert Metadata.from_texts(metadata.texts(), file) == metadata
    assert Metadata.from_json(metadata.to_json(), file) == metadata
    assert Metadata.from_values(yaml.safe_load(yaml.safe_dump(metadata.values())), file) == metadata
    assert Metadata.from_json("", file) == Metadata({}, {})
    theirs = Metadata.from_json('{"shape": [1, 3, 320, 256], "stride": 64, "names": ["a", "b"]}', file)  # YOLOv5's
    assert (theirs.names, theirs.stride, theirs.imgsz, theirs.cls_names) == ({0: "a", 1: "b"}, 64, (320, 256), {})


def test_metadata_are_not_evaluated(tmp_path):
    code = f"open({str(tmp_path / 'was_run')!r}, 'w')"
    for texts in ({"names": f"{{0: {code}}}"}, {"stride": code}, {"names": "(" * 10000}):
        with pytest.raises(ValueError, match="file.onnx.*metadata"):
            Metadata.from_texts(texts, Path("file.onnx"))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.slow
def test_the_way_back(weights, folder):
    """The state dict fits a plain model of YOLOv5's shape, strictly, and gives the joint model's boxes."""
    (file,) = run(weights, "state_dict")
    state = torch.load(file, weights_only=True)
    plain = Model(load_yaml(ROOT / "models/yolov5n.yaml") | {"width_multiple": 0.1}, nc=3).eval()
    assert list(state) == list(plain.state_dict()) and "model.24.anchors" in state
    plain.load_state_dict(state, strict=True)
    with torch.inference_mode():
        boxes = load_model(weights, fuse=False)(pictures(2, *SIZE))[0][0]
        assert torch.equal(plain(pictures(2, *SIZE))[0], boxes)
    fused = load_model(weights)
    save = {"format": "yolov5-joint", "version": 1, "epoch": 0, "best_fitness": 0.0, "model": fused.record()}
    torch.save(save | {"ema": None}, folder / "fused.pt")
    with pytest.raises(ValueError, match="batch norms are folded"):
        run(folder / "fused.pt", "state_dict")


@pytest.mark.slow
@pytest.mark.parametrize(("cfg", "name"), [("yolov5s_dual.yaml", "onnx"), ("hub/yolov5n6.yaml", "onnx")])
def test_other_models(tmp_path, cfg, name):
    torch.manual_seed(0)
    small = {"width_multiple": 0.1, "depth_multiple": 0.33}
    model = Model(load_yaml(ROOT / "models" / cfg) | small, nc=2, cls_nc=3 if "dual" in cfg else None)
    weights = save_lively_weights(tmp_path / "w.pt", model=model)
    images = pictures(1, 128, 128)
    (file,) = run(weights, name, imgsz=[128])
    assert largest_difference(load_model(file)(images), load_model(weights)(images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights/yolov5n_wild.pt"])
def test_checkpoints_of_yolov5(shared, tmp_path, name):
    weights = tmp_path / Path(name).name
    weights.write_bytes((shared / name).read_bytes())
    file, state = run(weights, "onnx", "state_dict", imgsz=(128, 160))
    images = pictures(1, 128, 160)
    assert largest_difference(load_model(file)(images), load_model(weights)(images)) < 1e-4
    assert "model.24.m.2.bias" in torch.load(state, weights_only=True)


@pytest.mark.slow
@need_openvino
def test_float16_weights_for_openvino(weights):
    (file,) = run(weights, "openvino", half=True)
    half = (file / "w.bin").stat().st_size
    assert half < 0.6 * (made("openvino", batch_size=2) / "w.bin").stat().st_size


@need_openvino
def test_openvino_takes_bfloat16_where_the_processor_has_it(weights, monkeypatch, capsys):
    need("openvino", "the test")
    file, images = made("openvino", batch_size=2), pictures(2, *SIZE)
    expected = load_model(weights)(images)
    monkeypatch.undo()
    answer, exact = load_model(file)(images), read_openvino(file, torch.device("cpu"), exact=True)(images)
    assert largest_difference(exact, expected) < 1e-4
    has = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (capsys.readouterr().out.count("in bf16") == 1) == has
    assert (1e-4 if has else 0) <= largest_difference(answer, expected) < (5e-2 if has else 1e-4)


@pytest.fixture(scope="module")
def pictures_on_disk(folder) -> dict:
    """A data yaml's content with three smooth training pictures of several sizes, and a damaged one, in a list whose
    lines count from the data's root."""
    (folder / "images").mkdir()
    for k, (height, width) in enumerate([(64, 96), (90, 70), (40, 80)]):
        im = smooth_pictures(1, 3, (height, width), seed=k)[0].permute(1, 2, 0).mul(255).byte().numpy()
        cv2.imwrite(str(folder / "images" / f"{k}.png"), im)
    (folder / "images" / "3.png").write_bytes(b"damaged")
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("".join(f"images/{k}.png\n" for k in range(4)))
    return {"path": str(folder), "train": "splits/train.txt", "val": "images", "names": list(NAMES.values())}


@pytest.mark.slow
def test_the_cells_of_a_dynamic_trace_go_where_its_pictures_are():
    """It is made on one device, which stands in its ranges, and may be used on another."""
    graph = str(torch.jit.load(made("torchscript", dynamic=True)).inlined_graph)
    assert graph.count("aten::meshgrid") == graph.count("aten::type_as") == 3  # once a level


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", pytest.param("openvino", marks=need_openvino)])
def test_int8(weights, pictures_on_disk, name, capsys):
    if name == "openvino":
        pytest.importorskip("nncf", reason="int8 of OpenVINO needs nncf of requirements-export.txt")
    (file,) = run(weights, name, int8=True, data=pictures_on_disk, batch_size=2)
    assert file.name == FILES[name].replace("w", "w_int8", 1)
    assert "measures on 3 training pictures" in (out := capsys.readouterr().out) and "largest difference" in out
    size = sum(f.stat().st_size for f in ([file] if file.is_file() else file.glob("*.bin")))
    plain = made(name, batch_size=2)
    assert size < 0.5 * sum(f.stat().st_size for f in ([plain] if plain.is_file() else plain.glob("*.bin")))
    model, ours = load_model(file), load_model(weights)
    assert (model.imgsz, model.batch, model.names, model.cls_names) == (SIZE, 2, NAMES, VIEWS)
    im = letterbox(cv2.imread(str(Path(pictures_on_disk["path"]) / "images" / "1.png")), SIZE, auto=False)[0]
    images = torch.from_numpy(im[..., ::-1].transpose(2, 0, 1).copy())[None].float() / 255
    answer, expected = model(images), ours(images)
    assert 1e-4 < (answer.probs - expected.probs).abs().max() < 0.1
    assert 1e-4 < (answer.boxes[..., 4:] - expected.boxes[..., 4:]).abs().max() < 0.2


def test_int8_may_move_a_box_far_but_not_all_of_them():
    decoded = torch.zeros(2, 100, 7)
    decoded[:, :10, :6] = torch.tensor([100.0, 100.0, 40.0, 40.0, 0.9, 0.9])
    moved, blind, shifted = (decoded.clone() for _ in range(3))
    moved[0, 0, 4] = 0.3  # one of twenty
    blind[..., 4:] = 0
    shifted[:, :10, :2] += 200
    network = SimpleNamespace(metadata=SimpleNamespace(imgsz=(320, 320)), example=torch.zeros(2, 3, 320, 320))
    pictures = [np.zeros((2, 3, 320, 320), np.float32)]

    class Network(SimpleNamespace):
        def __call__(self, images):
            return self.answer

    def check(answer):
        exported = Network(answer=SimpleNamespace(boxes=answer, probs=None))
        return check_export(
            Network(**vars(network), answer=decoded), exported, Path("w_int8.onnx"), calibration=pictures
        )

    assert check(moved).scores == pytest.approx(0.54)
    for broken in (blind, shifted, decoded[:, :50]):
        with pytest.raises(ValueError, match=r"w_int8\.onnx answers otherwise.*mean"):
            check(broken)


@pytest.mark.slow
def test_int8_that_is_broken_is_not_kept(weights, pictures_on_disk, folder, monkeypatch):
    monkeypatch.setattr("models.export.check.INT8_TOLERANCE", 1e-5)
    target = folder / "w_int8.onnx"
    before = target.read_bytes() if target.is_file() else None
    with pytest.raises(ValueError, match=r"w_int8\.onnx answers otherwise .*allowed are 1e-05"):
        run(weights, "onnx", int8=True, data=pictures_on_disk)
    assert (target.read_bytes() if target.is_file() else None) == before


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--include engine", "engine is not written here: .*trtexec --onnx=best.onnx"),
        ("--include onnx coreml", "coremltools.convert"),
        ("--include saved_model", "onnx2tf"),
        ("--include pb", "onnx2tf"),
        ("--include tflite", "onnx2tf"),
        ("--include edgetpu", "edgetpu_compiler"),
        ("--include tfjs", "tensorflowjs_converter"),
        ("--include paddle", "x2paddle"),
        ("--include nonsense", "the formats are torchscript, onnx, openvino, state_dict, yolov5"),
        ("--int8 --include torchscript", "--int8 is for onnx and openvino files"),
        ("--int8 --half --include openvino", "--int8 and --half do not go together"),
        ("--int8 --nms --include onnx", "--int8 and --nms do not go together"),
        ("--int8 --include onnx --data no.yaml", "no.yaml"),
        ("--half", "--half for torchscript needs a GPU"),
        ("--half --include onnx openvino", "--half for onnx needs a GPU"),
        ("--half --dynamic --include openvino", "--half and --dynamic do not go together"),
        ("--nms", "--nms puts non-max suppression into onnx and openvino"),
        ("--nms --include onnx --iou-thres 45", "--iou-thres 45.0: must lie between 0 and 1"),
        ("--nms --include onnx --topk-all 0", "--topk-all 0"),
        ("--nms --include onnx --opset 12", "--nms needs --opset 13"),
        ("--opset 99 --include onnx", "--opset 99: 12 to 20"),
        ("--img 1 2 3", "--imgsz 1 2 3"),
        ("--batch-size 0", "--batch-size 0"),
        ("--device 77", "--device 77"),
    ],
)
def test_refusals(weights, folder, line, message):
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(SystemExit, match=f"export.py: .*{message}"):
        export.main(export.parse_opt(["--weights", str(weights), *line.split()]))
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_flags_without_effect_are_told(weights, capsys):
    run(
        weights, "state_dict", keras=True, workspace=8, inplace=True, simplify=True, optimize=True, iou_thres=0.5,
        imgsz=[60],
    )  # fmt: skip
    out = capsys.readouterr().out
    for flag in ("--keras", "--workspace", "--inplace", "--simplify", "--optimize", "--conf-thres, --iou-thres"):
        assert f"{flag}" in out and "change" in out
    assert "rounded up to 64x64" in out


@pytest.mark.slow
def test_optimize_works_or_says_why_not(weights, folder):
    images = pictures(1, *SIZE)
    try:
        (file,) = run(weights, "torchscript", optimize=True)
    except ValueError as e:  # most packages of PyTorch are built without
        assert "--optimize: this PyTorch cannot do it" in str(e) and "XNNPACK" in str(e)
        assert not (folder / "w.torchscript").exists()
    else:
        assert largest_difference(load_model(file)(images), load_model(weights)(images)) < 1e-3


class RunsACommand:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def test_weights_that_would_run_a_command_are_refused(tmp_path):
    torch.save({"model": RunsACommand(tmp_path / "was_run")}, tmp_path / "bad.pt")
    for include in formats.FORMATS:
        with pytest.raises(SystemExit, match=r"export\.py: .*bad\.pt.*system"):
            export.main(export.parse_opt(["--weights", str(tmp_path / "bad.pt"), "--include", include]))
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pt"]


@pytest.mark.parametrize(
    ("missing", "include", "options"),
    [
        ("onnx", "onnx", {}),
        ("onnxruntime", "onnx", {}),
        ("openvino", "openvino", {}),
        ("onnxslim", "onnx", {"simplify": 1}),
        ("nncf", "openvino", {"int8": True}),
    ],
)
def test_missing_package(weights, monkeypatch, missing, include, options):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=f"needs the package {missing}: pip install {missing} "):
        run(weights, include, **options)


@need_openvino
def test_openvino_comes_without_its_telemetry():
    need("openvino", "the test")
    assert sys.modules["openvino_telemetry"] is None


def test_exported_files_are_not_exported_again(weights):
    file = made("onnx", dynamic=True)
    with pytest.raises(ValueError, match=r"only PyTorch weights \(.pt\)"):
        run(file, "torchscript")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx"])
def test_a_file_that_answers_otherwise_is_not_kept(weights, folder, name, monkeypatch):
    target = Path(shutil.copy(made(name, dynamic=True), folder / FILES[name]))
    before = {p: p.read_bytes() for p in ([target] if target.is_file() else target.iterdir())}
    network = formats.ExportNetwork

    class Wrong(network):
        def forward(self, images):
            boxes, probs = super().forward(images)
            return (
                (boxes * 1.001, probs) if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() else (boxes, probs)
            )

    monkeypatch.setattr(formats, "ExportNetwork", Wrong)
    with pytest.raises(ValueError, match=f"{FILES[name]} answers otherwise.*1.0e-03.*allowed are 1e-04"):
        run(weights, name)
    assert {p: p.read_bytes() for p in ([target] if target.is_file() else target.iterdir())} == before
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_folder_is_replaced_whole(tmp_path):
    from utils.system.files import whole_folder

    target = tmp_path / "x_openvino_model"
    target.mkdir()
    (target / "old.xml").write_text("old"), (target / "a.xml").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(target) as folder:
        (folder / "a.xml").write_text("half")
        raise RuntimeError
    assert (target / "a.xml").read_text() == "old"
    with whole_folder(target) as folder:
        (folder / "a.xml").write_text("new")
    assert (target / "a.xml").read_text() == "new" and (target / "old.xml").read_text() == "old"  # a user's own stay
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.slow
def test_files_of_yolov5(weights, tmp_path):
    """ONNX as YOLOv5 writes it: one output, `stride` and `names` alone."""
    model = onnx.load(made("onnx", batch_size=2))
    del model.graph.output[1:]
    for keep in (["stride", "names"], []):
        props = {p.key: p.value for p in model.metadata_props}
        del model.metadata_props[:]
        for key in keep:
            model.metadata_props.add(key=key, value=props[key])
        onnx.save(model, tmp_path / "theirs.onnx")
        theirs = read_onnx(tmp_path / "theirs.onnx", torch.device("cpu"))
        assert theirs.names == (NAMES if keep else {}) and (theirs.nc, theirs.cls_nc) == (3, 0)
        answer = theirs(pictures(1, *SIZE))
        assert answer.probs is None
        assert largest_difference(answer, Answer(load_model(weights)(pictures(1, *SIZE)).boxes)) < 1e-4


def test_flags_are_yolov5s(golden):
    opt = vars(export.parse_opt([]))
    theirs = {o["dest"]: o for o in json.loads((golden / "flags.json").read_text())["export"]}
    assert set(opt) == set(theirs)
    for dest, o in theirs.items():
        ours = Path(opt[dest]).relative_to(ROOT).as_posix() if o["default_is_path_relative_to_repo_root"] else opt[dest]
        assert ours == o["default"], dest
    line = "--weights a.pt b.pt --img 320 --batch 2 --conf 0.1 --include onnx"
    opt = export.parse_opt(line.split())
    assert (opt.weights, opt.imgsz, opt.batch_size, opt.conf_thres) == (["a.pt", "b.pt"], [320], 2, 0.1)
