"""Validation from pictures to metrics.json: with a network that sees everything, with real ones, and on real data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tiny_weights import save_cfg
from torch import nn

import detect
import val
import val_joint
from models.answer import Answer
from utils.dataset.labels import parse_label
from utils.dataset.scan import scan_dataset
from utils.results import coco
from utils.results.validation import image_table, write_coco
from utils.system.paths import stems_of

BACKGROUNDS = (20, 60)  # grey level of the picture: its image class
OBJECTS = (255, 180)  # grey level of a rectangle: its class


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))


class Oracle(nn.Module):
    """Reads the answers off the pictures' grey levels, in the output format of a joint network.

    Args:
        joint: with image-level logits.
        wrong: rectangles of class 1 are called class 0.
    """

    def __init__(self, joint: bool = True, wrong: bool = False):
        super().__init__()
        self.names, self.nc = {0: "bright", 1: "grey"}, 2
        self.cls_names, self.cls_nc = ({0: "dark", 1: "light"}, 2) if joint else ({}, 0)
        self.stride, self.wrong = torch.tensor([32.0]), wrong
        self.seen = []  # input shapes

    def forward(self, x, augment=False):
        self.seen.append(tuple(x.shape))
        decoded, logits = torch.zeros(len(x), 4, 7), torch.zeros(len(x), 2)
        for b, im in enumerate((x[:, 0] * 255).round().int().numpy()):
            for cls, level in enumerate(OBJECTS):
                ys, xs = np.nonzero(np.abs(im - level) < 20)
                if len(xs):
                    x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
                    decoded[b, cls] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.9, 0, 0])
                    decoded[b, cls, 5 + (0 if self.wrong else cls)] = 0.9
            levels = [int((np.abs(im - level) < 8).sum()) for level in BACKGROUNDS]
            logits[b, int(np.argmax(levels))] = 4.0
        maps = [torch.zeros(len(x), 1, 1, 1, 7)]
        return Answer(decoded, maps, logits if self.cls_nc else None)


def write_picture(folder: Path, name: str, size, background: int, objects: dict[int, tuple], label: str | None) -> None:
    """A grey picture with rectangles {class: (x1, y1, x2, y2)} in pixels; label: the image row, None for none."""
    width, height = size
    im = np.full((height, width, 3), BACKGROUNDS[background], np.uint8)
    rows = []
    for cls, (x1, y1, x2, y2) in objects.items():
        im[y1:y2, x1:x2] = OBJECTS[cls]
        values = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        rows.append(f"{cls} " + " ".join(f"{v:.6f}" for v in values))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    assert cv2.imwrite(str(folder / "images" / f"{name}.png"), im)
    rows += ["", label] if label else []
    (folder / "labels" / f"{name}.txt").write_text("\n".join(rows))


@pytest.fixture
def data(tmp_path) -> dict:
    """Five pictures of three sizes: one without image row, one background; the image row of `d` is wrong."""
    folder = tmp_path / "set" / "val"
    write_picture(folder, "a", (160, 120), 0, {0: (20, 30, 70, 80)}, "1 0")
    write_picture(folder, "b", (120, 160), 1, {1: (10, 20, 60, 140)}, "0 1")
    write_picture(folder, "c", (160, 120), 1, {0: (5, 5, 60, 60), 1: (90, 50, 150, 110)}, None)
    write_picture(folder, "d", (300, 200), 0, {1: (100, 40, 260, 180)}, "0 1")
    write_picture(folder, "e", (160, 120), 0, {}, "1 0")
    return {
        "path": str(tmp_path / "set"), "train": "val/images", "val": "val/images",
        "names": ["bright", "grey"], "cls_names": ["dark", "light"],
    }  # fmt: skip


def run(data, model=None, **options) -> dict:
    if model is not None:  # as a training does: with batches of its own
        from utils.dataset.config import load_data_config

        loader_options = {k: options.pop(k) for k in ("workers",) if k in options} or {"workers": 0}
        cfg = load_data_config(data)
        single = options.get("single_cls", False)
        loader = val_joint.make_loader(cfg, "val", 160, 4, 32, single_cls=single, **loader_options)
        options = {"model": model, "dataloader": loader, "imgsz": 160} | options
    return val_joint.run(data, device="cpu", **options)


# --- the whole way with a known answer ----------------------------------------------------------------------------


def test_perfect_boxes_survive_letterbox_and_scaling(data, tmp_path, capsys):
    oracle = Oracle()
    results = run(data, oracle, save_dir=tmp_path, plots=False, verbose=True)
    detection = results["detection"]
    assert detection["map50"] > 0.99 and detection["map50_95"] > 0.85  # scaling blurs edges by a pixel
    assert detection["precision"] == pytest.approx(1) and detection["recall"] == pytest.approx(1)
    assert detection["per_class"]["bright"]["images"] == 2 and detection["per_class"]["grey"]["objects"] == 3
    assert results["counts"] == {"images": 5, "objects": 5, "images_without_image_label": 1}
    image = results["image"]
    assert (image["known"], image["unknown"], image["accuracy"]) == (4, 1, 0.75)  # the label of d is wrong
    assert image["confusion_matrix"] == [[2, 1], [0, 1]]
    assert results["fitness"] == pytest.approx(
        (0.1 * detection["map50"] + 0.9 * detection["map50_95"] + image["accuracy"]) / 2
    )
    assert len({shape[2:] for shape in oracle.seen}) > 1  # batches of like shape
    assert json.loads((tmp_path / "metrics.json").read_text()) == results
    out = capsys.readouterr().out
    for word in ("mAP50-95", "all", "Image class", "accuracy 0.750", "balanced accuracy", "ECE"):
        assert word in out


def test_missed_class_and_detection_only_network(data, tmp_path):
    results = run(data, Oracle(joint=False, wrong=True), save_dir=tmp_path, plots=False)
    assert results["image"] is None
    assert results["detection"]["per_class"]["grey"]["map50"] == 0
    assert results["counts"]["images_without_image_label"] == 1  # the data says so, whatever the network does
    assert results["fitness"] == pytest.approx(
        0.1 * results["detection"]["map50"] + 0.9 * results["detection"]["map50_95"]
    )


def test_plain_data_and_joint_network(data, tmp_path):
    plain = {k: v for k, v in data.items() if k != "cls_names"}
    results = run(plain, Oracle(), save_dir=tmp_path, plots=False)
    assert results["image"] is None and results["detection"]["map50"] > 0.99
    assert results["counts"]["images_without_image_label"] == 0


def test_single_class(data, tmp_path):
    results = run(data, Oracle(wrong=True), save_dir=tmp_path, plots=False, single_cls=True)
    assert list(results["detection"]["per_class"]) == ["item"]
    assert results["detection"]["map50"] > 0.99


def test_training_mode_comes_back_and_losses_are_means_per_picture(data, tmp_path):
    calls = []

    def criterion(predictions, targets, image_targets):
        maps, logits = predictions
        calls.append(len(logits))
        assert targets.shape[1] == 6 and image_targets.shape == logits.shape
        value = torch.tensor(float(len(calls)))
        return SimpleNamespace(parts={"box": value, "obj": value * 2, "cls": value * 0, "image": value})

    oracle = Oracle().train()
    results = run(data, oracle, save_dir=tmp_path, plots=False, criterion=criterion)
    assert oracle.training
    mean = sum(n * (i + 1) for i, n in enumerate(calls)) / 5
    losses = results["losses"]
    assert losses["box"] == pytest.approx(mean) and losses["obj"] == pytest.approx(2 * mean)
    assert losses["det"] == pytest.approx(3 * mean)
    assert 1 <= losses["image"] <= len(calls)  # the four known pictures alone


def test_save_txt_is_valid_labels(data, tmp_path):
    run(data, Oracle(), save_dir=tmp_path, plots=False, save_txt=True)
    files = sorted((tmp_path / "labels").glob("*.txt"))
    assert [f.stem for f in files] == list("abcde")
    for file in files:
        truth = parse_label((Path(data["path"]) / "val" / "labels" / file.name).read_text(), 2, 2)
        mine = parse_label(file.read_text(), 2, 2, str(file))
        assert not mine.problems and mine.image_class in (0, 1)
        np.testing.assert_array_equal(np.sort(mine.objects[:, 0]), np.sort(truth.objects[:, 0]))
        order = np.argsort(mine.objects[:, 0])
        np.testing.assert_allclose(mine.objects[order, 1:], truth.objects[:, 1:], atol=0.02)


class Stray(Oracle):
    def forward(self, x, augment=False):
        answer = super().forward(x)
        height, width = x.shape[2:]
        answer.boxes[:, 3] = torch.tensor([width / 2, height / 2, 6.0, 6.0, 0.9, 0.0, 0.9])  # one that is no known one
        return answer


def test_save_conf_and_hybrid_leave_the_metrics_alone(data, tmp_path):
    plain = run(data, Oracle(wrong=True), save_dir=tmp_path, plots=False)
    hybrid = run(data, Oracle(wrong=True), save_dir=tmp_path, plots=False, save_hybrid=True, save_conf=True)
    assert hybrid["detection"] == plain["detection"]  # known boxes are not scored as if they had been found
    rows = (tmp_path / "labels" / "b.txt").read_text().splitlines()
    classes = {row.split()[0]: float(row.split()[5]) for row in rows if len(row.split()) == 6}
    assert classes["1"] == 1.0  # the known box
    assert classes["0"] == pytest.approx(0.81, abs=1e-3)  # the found one
    run(data, Stray(), save_dir=tmp_path / "one", plots=False, save_hybrid=True, single_cls=True, save_conf=True)
    rows = [row for file in (tmp_path / "one/labels").glob("*.txt") for row in file.read_text().splitlines()]
    assert {row.split()[0] for row in rows if len(row.split()) == 6} == {"0"}  # known and found ones


def test_save_json_agrees_with_pycocotools(data, tmp_path):
    pytest.importorskip("pycocotools")
    results = run(data, Oracle(), save_dir=tmp_path, plots=False, save_json=True)
    assert results["pycocotools"]["map50"] == pytest.approx(1.0)
    entries = json.loads((tmp_path / "model_predictions.json").read_text())
    assert len(entries) == 5 and set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    truth = json.loads((tmp_path / "details" / "model_ground_truth.json").read_text())
    assert len(truth["annotations"]) == 5 and len(truth["images"]) == 5
    assert json.loads((tmp_path / "details" / "metrics.json").read_text())["pycocotools"] == results["pycocotools"]
    assert [f.name for f in tmp_path.glob("*.json")] == ["model_predictions.json"]  # tools take the one that is there
    run(data, Oracle(), save_dir=tmp_path, plots=False)  # into the same folder, as with --exist-ok
    assert (tmp_path / "metrics.json").exists() and not (tmp_path / "details" / "metrics.json").exists()
    run(data, Oracle(), save_dir=tmp_path, plots=False, save_json=True)
    assert [f.name for f in tmp_path.glob("*.json")] == ["model_predictions.json"]


def test_label_files_without_the_image_row(data, tmp_path):
    rows = {}
    for with_row in (True, False):
        run(data, Oracle(), save_dir=tmp_path / str(with_row), plots=False, save_txt=True, objects_only=not with_row)
        files = sorted((tmp_path / str(with_row) / "labels").glob("*.txt"))
        rows[with_row] = [f.read_text().splitlines() for f in files]
    assert len(rows[False]) == len(rows[True]) > 3 and any(rows[False])
    for with_row, without in zip(rows[True], rows[False], strict=True):
        assert with_row[: len(without)] == without and sum(map(int, with_row[-1].split())) == 1
        assert all(len(row.split()) == 5 for row in without)  # every row unpacks, and none is empty


def test_label_files_of_pictures_with_one_name(data, tmp_path, capsys):
    write_picture(tmp_path / "set" / "more", "a", (160, 120), 1, {}, "0 1")
    run(data | {"val": ["val/images", "more/images"]}, Oracle(), save_dir=tmp_path / "v", plots=False, save_txt=True)
    stems = stems_of(tmp_path / "v")
    assert f"{tmp_path / 'v' / 'names.csv'} says which result is whose" in capsys.readouterr().out
    one, other = (str(tmp_path / "set" / folder / "images" / "a.png") for folder in ("val", "more"))
    assert {stems[one], stems[other]} == {"a", "a_2"} and len(stems) == 6
    assert len((tmp_path / "v" / "labels" / f"{stems[one]}.txt").read_text().split()) == 5 + 2
    assert (tmp_path / "v" / "labels" / f"{stems[other]}.txt").read_text().split() == ["0", "1"]
    run(data, Oracle(), save_dir=tmp_path / "w", plots=False, save_txt=True)
    assert stems_of(tmp_path / "w") == {}


def test_val_run_by_yolov5s_call(data, tmp_path):
    """Positional arguments, and the tuple that its callers unpack."""
    options = {"model": Oracle(), "workers": 0, "plots": False}
    (p, r, map50, map50_95, *losses), maps, t = val.run(
        data, None, 2, 64, 0.01, 0.5, 100, "val", "cpu", save_dir=tmp_path / "a", **options
    )
    results = val_joint.run(
        data, batch_size=2, imgsz=64, conf_thres=0.01, iou_thres=0.5, max_det=100, device="cpu",
        save_dir=tmp_path / "b", **options,
    )  # fmt: skip
    detection = results["detection"]
    assert (p, r, map50) == (detection["precision"], detection["recall"], detection["map50"])
    assert map50_95 == detection["map50_95"] == pytest.approx(maps.mean()) and losses == [0, 0, 0]
    assert isinstance(maps, np.ndarray) and maps.tolist() == detection["maps"] and len(t) == 3 and min(t) >= 0


@pytest.mark.slow
def test_plots(data, tmp_path):
    run(data, Oracle(), save_dir=tmp_path)
    expected = ["F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"]
    expected += ["image_confusion_matrix.png", "val_batch0_labels.jpg", "val_batch0_pred.jpg"]
    for name in expected:
        assert cv2.imread(str(tmp_path / name)) is not None, name


@pytest.mark.slow
def test_backgrounds_only_and_no_image_labels(tmp_path):
    folder = tmp_path / "set" / "val"
    for name in "ab":
        write_picture(folder, name, (160, 120), 0, {}, None)
    data = {"path": str(tmp_path / "set"), "val": "val/images", "train": "val/images"}
    data |= {"names": ["bright", "grey"], "cls_names": ["dark", "light"]}
    results = run(data, Oracle(), save_dir=tmp_path)
    assert results["detection"]["map50"] == 0 and results["counts"]["objects"] == 0
    assert results["image"]["accuracy"] is None and results["counts"]["images_without_image_label"] == 2
    assert results["fitness"] == 0.0
    assert "none of 2 pictures" in image_table(results)


@pytest.mark.slow
def test_no_picture_at_all(data, tmp_path):
    results = val_joint.run(data, model=Oracle(), dataloader=[], device="cpu", save_dir=tmp_path)
    assert results["counts"]["images"] == 0 and results["detection"]["map50"] == 0
    json.loads((tmp_path / "metrics.json").read_text())


# --- errors and the command line ----------------------------------------------------------------------------------


def test_other_classes_are_an_error(data, tmp_path):
    with pytest.raises(ValueError, match="3 object classes"):
        run({**data, "names": ["a", "b", "c"]}, Oracle(), save_dir=tmp_path)
    with pytest.raises(ValueError, match="3 image classes"):
        run({**data, "cls_names": ["a", "b", "c"]}, Oracle(), save_dir=tmp_path)


def test_errors_are_one_sentence(data, tmp_path):
    opt = val_joint.parse_opt(["--weights", str(tmp_path / "none.pt"), "--data", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit, match="none.yaml"):
        val_joint.main(opt)
    empty = tmp_path / "empty" / "images"
    empty.mkdir(parents=True)
    with pytest.raises(ValueError, match="no pictures"):
        run({**data, "val": str(empty)}, Oracle(), save_dir=tmp_path)


def test_an_option_of_an_unknown_name_is_an_error(data, tmp_path):
    with pytest.raises(TypeError, match="val_joint.run.. knows no confidence; see val_joint.py --help"):
        val_joint.run(data, "none.pt", confidence=0.1)
    with pytest.raises(TypeError, match="detect.run.. knows no conf; see detect.py --help"):
        detect.run("none.pt", conf=0.1)


def test_strict(data, tmp_path):
    label = Path(data["path"]) / "val" / "labels" / "a.txt"
    label.write_text(label.read_text() + "\n7 7 7\n")
    from utils.dataset.config import load_data_config

    cfg = load_data_config(data)
    with pytest.raises(ValueError, match="a.txt"):
        val_joint.make_loader(cfg, "val", 160, 4, 32, workers=0, strict=True)


def test_flags_are_yolov5s(golden):
    flags = json.loads((golden / "flags.json").read_text())["val"]
    defaults = vars(val_joint.parse_opt([]))
    for flag in flags:
        assert flag["dest"] in defaults, flag["flags"]
        if flag["default_is_path_relative_to_repo_root"]:
            value = defaults[flag["dest"]]
            value = value[0] if isinstance(value, list) else value
            assert str(value).endswith(flag["default"])
        elif flag["dest"] != "weights":
            assert defaults[flag["dest"]] == flag["default"], flag["flags"]
    args = ["--data", "x/coco.yaml", "--weights", "a.pt", "b.pt", "--img", "320", "--batch", "8", "--conf", "0.1"]
    opt = val_joint.parse_opt(args)
    assert (opt.imgsz, opt.batch_size, opt.conf_thres, opt.weights) == (320, 8, 0.1, ["a.pt", "b.pt"])
    assert opt.save_json  # as for YOLOv5 when the data is coco.yaml


# --- real networks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained tiny network for two object and two image classes."""
    from models.yolo import Model
    from utils.weights.checkpoint import save_checkpoint

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    file, model = folder / "joint.pt", Model(save_cfg(folder / "tiny_cls.yaml"), nc=2, cls_nc=2)
    record = {
        "format": "yolov5-joint", "version": 1, "epoch": -1, "best_fitness": 0.0, "ema": None, "train_state": None,
        "opt": {}, "hyp": {}, "date": "2026-01-01",
        "model": {
            "yaml": model.yaml, "names": {0: "bright", 1: "grey"}, "cls_names": {0: "dark", 1: "light"},
            "nc": 2, "cls_nc": 2, "stride": [8.0, 16.0, 32.0], "state_dict": model.state_dict(),
        },
    }  # fmt: skip
    save_checkpoint(file, record)
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("no_curves")
def test_command_line_with_a_real_network(data, checkpoint, tmp_path, monkeypatch, capsys):
    yaml = tmp_path / "data.yaml"
    yaml.write_text(json.dumps(data))  # json is yaml
    common = ["--data", str(yaml), "--device", "cpu", "--workers", "0", "--project", str(tmp_path / "runs")]
    common += ["--batch-size", "4", "--imgsz", "96"]
    val_joint.main(val_joint.parse_opt([*common, "--weights", str(checkpoint), "--half", "--augment", "--verbose"]))
    results = json.loads((tmp_path / "runs" / "exp" / "metrics.json").read_text())
    assert results["image"]["known"] == 4 and results["settings"]["dtype"] == "bfloat16"
    two = [str(checkpoint)] * 2
    val_joint.main(val_joint.parse_opt([*common, "--weights", *two, "--task", "train", "--name", "ensemble"]))
    assert (tmp_path / "runs" / "ensemble" / "metrics.json").is_file()
    capsys.readouterr()
    val_joint.main(val_joint.parse_opt([*common, "--weights", str(checkpoint), "--task", "speed", "--dnn"]))
    out = capsys.readouterr().out
    assert "ms inference" in out and "--dnn" in out
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(val_joint, "STUDY_SIZES", range(64, 97, 32))
    (tmp_path / "other").mkdir()
    two[1] = shutil.copy(checkpoint, tmp_path / "other")  # of the same name
    val_joint.main(val_joint.parse_opt([*common, "--weights", *two, "--task", "study"]))
    for table in ("study_data_joint.csv", "study_data_joint_2.csv"):
        with open(tmp_path / table, newline="") as f:
            assert [row["imgsz"] for row in csv.DictReader(f)] == ["64", "96"]


@pytest.mark.slow
def test_reference_network_on_real_pictures(theirs, shared, tmp_path):
    """The reference's checkpoint on 183 pictures: its metrics, its confusion matrix, and what pycocotools says."""
    weights = theirs / "yolov5n_heart_det.pt"
    data = {"path": str(shared / "heart"), "val": "valid/images", "train": "train/images", "cls_nc": 3}
    data |= {"names": ["AR", "MR", "PR", "TR"], "cls_names": ["PSAX", "PLAX", "A4C"]}
    results = val_joint.run(
        data, weights, imgsz=320, device="cpu", workers=0, plots=False, save_dir=tmp_path, save_json=True
    )
    expected = json.loads((theirs / "checkpoint_expected.json").read_text())["val"][0]
    assert expected["tag"] == "rect32"
    detection = results["detection"]
    assert detection["recall"] == pytest.approx(expected["R"], abs=2e-3)
    assert detection["map50"] == pytest.approx(expected["mAP50"], abs=2e-3)
    assert detection["map50_95"] == pytest.approx(expected["mAP50_95"], abs=2e-3)
    for ours, theirs in zip(detection["per_class"].values(), expected["per_class"], strict=True):
        assert ours["map50_95"] == pytest.approx(theirs["AP50_95"], abs=2e-3)
        # No PR box is above the threshold: the reference calls that a precision of 1, which makes its mean 0.637.
        assert ours["precision"] == pytest.approx(0.0 if theirs["R"] == 0 else theirs["P"], abs=2e-3)
    means = [0.0 if c["R"] == 0 else c["P"] for c in expected["per_class"]]
    assert detection["precision"] == pytest.approx(np.mean(means), abs=2e-3)
    matrix, theirs = np.array(detection["confusion_matrix"]), np.array(expected["confusion_matrix_conf0.25_iou0.45"])
    np.testing.assert_allclose(matrix[:, :-1], theirs[:, :-1], atol=1)  # the reference forgets false positives
    assert (matrix[:-1, -1] >= theirs[:-1, -1] - 1).all() and matrix[:-1, -1].sum() > theirs[:-1, -1].sum() + 20
    assert results["image"] is None and results["counts"]["images_without_image_label"] == 0
    assert len(json.loads((tmp_path / "yolov5n_heart_det_predictions.json").read_text())) == pytest.approx(
        expected["n_predictions_total"], abs=20
    )
    if results["pycocotools"]:  # {} where it is not installed
        assert results["pycocotools"]["map50"] == pytest.approx(detection["map50"], abs=2e-3)
        assert results["pycocotools"]["map50_95"] == pytest.approx(detection["map50_95"], abs=2e-3)


def test_coco_identifiers():
    assert coco.image_ids(["a/000012.jpg", "a/7.jpg"]) == [12, 7]
    assert coco.image_ids(["a/x1.jpg", "a/7.jpg", "a/²5.jpg"]) == ["x1", 7, "²5"]  # decided for each, as in YOLOv5
    assert coco.image_ids(["a/x.jpg", "b/x.jpg", "b/y.jpg"]) == ["a/x.jpg", "b/x.jpg", "y"]
    assert coco.image_ids(["a/7.jpg", "a/07.jpg"]) == ["a/7.jpg", "a/07.jpg"]
    assert len(coco.COCO_CATEGORIES) == 80 and coco.COCO_CATEGORIES[-1] == 90


def test_json_of_pictures_with_numbers_and_names(data, tmp_path):
    pytest.importorskip("pycocotools")
    folder = Path(data["path"]) / "val"
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        (folder / kind / f"b.{suffix}").rename(folder / kind / f"0042.{suffix}")
    results = run(data, Oracle(), save_dir=tmp_path, plots=False, save_json=True)
    assert results["pycocotools"]["map50"] == pytest.approx(1.0)
    assert {e["image_id"] for e in json.loads((tmp_path / "model_predictions.json").read_text())} == {"a", 42, "c", "d"}


def coco_set(tmp_path, split: str, annotated: dict | str | None, annotations_of: str = "val2017"):
    """A picture of class 79 in a folder called coco, as a scanned set, its configuration and a perfect prediction."""
    folder = tmp_path / "coco"
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / split / "000000000007.jpg"), np.zeros((40, 50, 3), np.uint8))
    (folder / "labels" / split / "000000000007.txt").write_text("79 0.5 0.5 0.4 0.5\n")
    if annotated is not None:
        (folder / "annotations").mkdir()
        text = annotated if isinstance(annotated, str) else json.dumps(annotated)
        (folder / "annotations" / f"instances_{annotations_of}.json").write_text(text)
    index = scan_dataset([str(folder / "images" / split)], 80, 0, verbose=False)
    found = {str(f): np.array([[15, 10, 35, 30, 0.9, 79]], np.float32) for f in index.im_files}
    return found, index, SimpleNamespace(path=folder), {i: str(i) for i in range(80)}


def annotations(image_id: int, bbox: list[float]) -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 50, "height": 40} for i in (3, image_id)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 90, "bbox": bbox, "area": 400, "iscrowd": 0}
            for i in (3, image_id)
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(1, 91)],
    }


HALF = [15, 10, 20, 10]  # of the box in the label: an IoU of 0.5, so that the annotations' answer is another one


@pytest.mark.parametrize(
    ("split", "annotated", "of", "map50_95", "said"),
    [
        ("val2017", annotations(7, HALF), "val2017", 0.1, ""),
        ("val2017", None, "", 1.0, ""),
        ("test2017", annotations(7, HALF), "val2017", 1.0, ""),  # those of another split
        ("train2017", annotations(7, HALF), "train2017", 0.1, ""),
        ("val2017", annotations(8, HALF), "val2017", 1.0, "lacks 1 of 1 pictures, such as 7; the labels are used"),
        ("val2017", "[]", "val2017", 1.0, "no annotation file that can be read"),
        ("val2017", "{", "val2017", 1.0, "no annotation file that can be read"),
    ],
)
def test_cocos_annotations_are_used_for_their_own_split(tmp_path, capsys, split, annotated, of, map50_95, said):
    pytest.importorskip("pycocotools")
    found, index, data, names = coco_set(tmp_path, split, annotated, of)
    checked = write_coco(found, index, data, names, tmp_path / "x_predictions.json", 300)
    out = capsys.readouterr().out
    assert checked["map50_95"] == pytest.approx(map50_95, abs=1e-3)
    assert said in out if said else "WARNING" not in out
    (entry,) = json.loads((tmp_path / "x_predictions.json").read_text())
    assert (entry["image_id"], entry["category_id"]) == (7, 90)  # COCO's own numbers, annotations or not
    assert (tmp_path / "details" / "x_ground_truth.json").exists() == (map50_95 == 1)


def test_the_run_is_not_lost_over_its_check(tmp_path, capsys, monkeypatch):
    found, index, data, names = coco_set(tmp_path, "val2017", None)

    def fail(*args):
        raise AssertionError("Results do not correspond to current coco set")

    monkeypatch.setattr(coco, "evaluate", fail)
    assert write_coco(found, index, data, names, tmp_path / "x_predictions.json", 300) == {}
    assert "WARNING: no check by pycocotools (AssertionError" in capsys.readouterr().out
    assert (tmp_path / "x_predictions.json").exists()


def test_coco128_keeps_the_models_class_numbers(tmp_path):
    names = dict.fromkeys(range(80), "x")
    assert coco.is_coco(tmp_path / "coco", names) and not coco.is_coco(tmp_path / "coco128", names)
    assert not coco.is_coco(tmp_path / "coco", {0: "item"})
    (tmp_path / "mscoco" / "annotations").mkdir(parents=True)
    assert coco.is_coco(tmp_path / "mscoco", names)


def test_coco_limits_detections(data):
    pytest.importorskip("pycocotools")
    index = scan_dataset([str(Path(data["path"]) / "val" / "images")], 2, 2, verbose=False)
    ids = coco.image_ids(index.im_files)
    truth = coco.ground_truth(index, {0: "bright", 1: "grey"}, ids, [0, 1])
    good = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.1}
        for a in truth["annotations"]
    ]
    noise = [{**good[0], "bbox": [0, 0, 2, 2], "score": 0.5 + i / 1000} for i in range(150)]
    out = coco.evaluate(truth, good + noise, ids, max_det=300)
    assert out["map50"] > out["map50_at_100"]  # the true box is number 151 of its picture
    assert coco.evaluate(truth, [], ids)["map50"] == 0
