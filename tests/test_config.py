"""Data and hyperparameter yamls, and how files are found."""

from __future__ import annotations

import json
import os
import sys
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from utils.dataset import config
from utils.dataset.config import DEFAULT_HYP, ensure_data, load_data_config, load_hyp
from utils.system import paths
from utils.system.paths import ROOT, find_file, increment_path
from utils.system.yamls import load_yaml, save_yaml

HYPS = sorted((ROOT / "data" / "hyps").glob("*.yaml"))


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


# --- paths -----------------------------------------------------------------------------------------------------------


def test_increment_path(tmp_path):
    assert increment_path(tmp_path / "exp") == tmp_path / "exp"
    assert [increment_path(tmp_path / "exp", mkdir=True).name for _ in range(3)] == ["exp", "exp2", "exp3"]
    assert increment_path(tmp_path / "exp", exist_ok=True, mkdir=True) == tmp_path / "exp"
    assert increment_path(tmp_path / "exp", sep="-").name == "exp-2"
    (tmp_path / "a.txt").write_text("")
    assert increment_path(tmp_path / "a.txt").name == "a2.txt"
    (tmp_path / "v1.5").mkdir()
    assert increment_path(tmp_path / "v1.5").name == "v1.52"


def test_increment_path_gives_each_its_own(tmp_path):
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(increment_path(tmp_path / "exp", mkdir=True))) for _ in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(got)) == 8


def test_find_file(tmp_path, monkeypatch):
    assert find_file("heart.yaml") == ROOT / "data" / "heart.yaml"
    assert find_file("data/heart.yaml") == ROOT / "data" / "heart.yaml"
    assert find_file("hyp.echo.yaml") == ROOT / "data" / "hyps" / "hyp.echo.yaml"
    own = write(tmp_path / "heart.yaml", "")
    assert find_file("heart.yaml", folders=[tmp_path]) == own
    monkeypatch.chdir(tmp_path)
    assert find_file("heart.yaml") == own
    with pytest.raises(FileNotFoundError, match=r"'nothing\.yaml' not found[\s\S]*models"):
        find_file("nothing.yaml")
    with pytest.raises(FileNotFoundError):
        find_file("")


def test_find_file_by_name_must_be_unique(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "CONFIG_FOLDERS", ())
    one = write(tmp_path / "models" / "old" / "net.yaml", "")
    assert find_file("net.yaml") == one
    write(tmp_path / "data" / "net.yaml", "")
    with pytest.raises(FileNotFoundError, match="not unique"):
        find_file("net.yaml")


# --- yaml ------------------------------------------------------------------------------------------------------------


def test_yaml_round_trip(tmp_path):
    data = {"path": Path("a") / "b", "lr": np.float32(0.5), "n": np.int64(3), "list": (1, None, True), "word": "é: #"}
    save_yaml(tmp_path / "a.yaml", data)
    assert load_yaml(tmp_path / "a.yaml") == {
        "path": os.path.join("a", "b"),
        "lr": 0.5,
        "n": 3,
        "list": [1, None, True],
        "word": "é: #",
    }
    with pytest.raises(TypeError, match="object"):
        save_yaml(tmp_path / "a.yaml", {"x": object()})


def test_yaml_errors_name_file_and_line(tmp_path):
    with pytest.raises(ValueError, match=r"a\.yaml:2"):
        load_yaml(write(tmp_path / "a.yaml", "a: 1\nb: ]\n"))
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ValueError, match=r"b\.yaml.*UTF-8"):
        load_yaml(tmp_path / "b.yaml")
    # never code: a yaml that asks for a Python call is refused
    with pytest.raises(ValueError, match=r"c\.yaml:1"):
        load_yaml(write(tmp_path / "c.yaml", "a: !!python/object/apply:os.mkdir [x]"))
    assert load_yaml(write(tmp_path / "d.yaml", "\ufeffa: 1")) == {"a": 1}


# --- data yaml -------------------------------------------------------------------------------------------------------


def test_shipped_data_yamls():
    heart = load_data_config("heart.yaml")
    assert heart.yaml_file == ROOT / "data" / "heart.yaml" and heart.download == "phantom"
    assert (heart.nc, list(heart.names.values())) == (4, ["AR", "MR", "PR", "TR"])
    assert (heart.cls_nc, heart.cls_names) == (3, {0: "PSAX", 1: "PLAX", 2: "A4C"})
    assert heart.path.parts[-2:] == ("datasets", "heart")
    assert heart.train == [str(heart.path / "train" / "images")] and heart.test == []
    assert load_data_config("coco.yaml").nc == 80 and load_data_config("VOC.yaml").names[14] == "person"
    coco = load_data_config("coco128.yaml")
    assert (coco.nc, coco.names[0], coco.names[79], coco.cls_nc, coco.cls_names) == (80, "person", "toothbrush", 0, {})
    assert len(set(coco.names.values())) == 80
    assert coco.train == coco.val


def test_relative_path_counts_from_the_yaml_then_from_the_root(tmp_path, monkeypatch):
    # fault 6: YOLOv5 resolves against the code alone
    root = tmp_path / "code"
    monkeypatch.setattr(config, "ROOT", root)
    file = write(tmp_path / "my" / "data.yaml", "path: ../sets/x\ntrain: images\nval: [images, extra]\nnames: [a]\n")
    near, far = tmp_path / "sets" / "x", tmp_path / "code" / ".." / "sets2"
    assert load_data_config(file).path == near  # none is there: the yaml's folder is kept
    write(tmp_path / "my" / "data.yaml", file.read_text().replace("../sets/x", "sets2"))
    (root / "sets2" / "images").mkdir(parents=True)
    cfg = load_data_config(file)
    assert cfg.path == root / "sets2" and cfg.val == [str(root / "sets2" / "images"), str(root / "sets2" / "extra")]
    (tmp_path / "my" / "sets2").mkdir()
    assert load_data_config(file).path == root / "sets2"  # an empty folder does not hide the data
    (tmp_path / "my" / "sets2" / "images").mkdir()
    assert load_data_config(file).path == tmp_path / "my" / "sets2"
    assert not far.exists()


def test_without_path_entries_count_from_the_yaml(tmp_path):
    (tmp_path / "set" / "train" / "images").mkdir(parents=True)
    file = write(tmp_path / "set" / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [a]\n")
    cfg = load_data_config(file)
    # as sets on the web write it: the folder is beside the yaml
    assert cfg.train == [str(tmp_path / "set" / "train" / "images")]
    assert cfg.path == tmp_path / "set"
    absolute = load_data_config({"train": str(tmp_path / "a.txt"), "names": ["a"]})
    assert absolute.train == [str(tmp_path / "a.txt")] and absolute.yaml_file is None and absolute.val == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: a\nnc: 3\nnames: [a, b]", "nc is 3, but names has 2 names"),  # fault 6
        ("train: a\nnames: [a]\ncls_nc: 2\ncls_names: [x]", "cls_nc is 2, but cls_names has 1 names"),
        ("train: a", "names: missing"),
        ("train: a\nnames: []", "at least one object class"),
        ("train: a\nnames: {0: a, 2: b}", "class numbers must be 0..1"),
        ("train: a\nnames: {x: a}", "class number 'x'"),
        ("train: a\nnames: [yes, no]", "put it in quotes"),
        ("train: a\nnames: a", "expected a list"),
        ("train: a\nnc: two\nnames: [a]", "nc: expected a whole number"),
        ("train: a\nnc: -1", "nc: expected a whole number"),
        ("train: {a: 1}\nnames: [a]", "train: expected a path"),
        ("train: a\npath: 3\nnames: [a]", "path: expected a folder"),
        ("train: a\nnames: [a]\ndownload: [x]", "download: expected"),
        ("- a\n- b", "expected keys"),
        ("", "expected keys"),
    ],
)
def test_bad_data_yaml_names_file_and_key(text, message, tmp_path):
    with pytest.raises(ValueError) as error:
        load_data_config(write(tmp_path / "bad.yaml", text))
    assert message in str(error.value) and "bad.yaml" in str(error.value)


def test_names_and_counts_complete_each_other(tmp_path):
    cfg = load_data_config({"train": "a", "names": {"1": "b", 0: 7}, "cls_names": ["x", "y"], "extra": 1})
    assert cfg.names == {0: "7", 1: "b"} and (cfg.nc, cfg.cls_nc) == (2, 2)
    cfg = load_data_config({"train": "a", "nc": 2, "cls_nc": 2})
    assert cfg.names == {0: "class0", 1: "class1"} and cfg.cls_names == {0: "image_class0", 1: "image_class1"}


# --- data that is not there ------------------------------------------------------------------------------------------


def data_yaml(tmp_path: Path, download: str) -> config.DataConfig:
    text = yaml.safe_dump(
        {"path": "set", "train": "train/images", "val": "val/images", "names": ["a"], "download": download}
    )
    return load_data_config(write(tmp_path / "d.yaml", text))


def test_absent_data_is_an_error_that_says_what_to_do(tmp_path):
    cfg = data_yaml(tmp_path, "")
    with pytest.raises(FileNotFoundError) as error:
        ensure_data(cfg)
    message = str(error.value)
    assert all(part in message for part in ("d.yaml", f"train: {cfg.train[0]}", f"val: {cfg.val[0]}", "set `path:`"))
    with pytest.raises(FileNotFoundError, match=r"Fetch https://example\.org/x\.zip"):
        ensure_data(data_yaml(tmp_path, "https://example.org/x.zip"))
    with pytest.raises(ValueError, match="test: missing"):
        ensure_data(cfg, splits=["test"])


def test_download_is_never_executed(tmp_path):
    # fault 7: YOLOv5 runs what stands under this key
    mark = tmp_path / "executed"
    for code in (f"import os\nos.mkdir({str(mark)!r})", f"bash -c 'mkdir {mark}'", "os:mkdir", "https://x\nimport os"):
        with pytest.raises(FileNotFoundError, match="never executed"):
            ensure_data(data_yaml(tmp_path, code))
    assert not mark.exists() and not (tmp_path / "set").exists()


@pytest.fixture
def generator(monkeypatch):
    """A stand-in for the shipped generator."""
    module = types.ModuleType("stand_in_generator")
    monkeypatch.setitem(sys.modules, "stand_in_generator", module)
    monkeypatch.setattr(config, "GENERATORS", {"phantom": "stand_in_generator:generate"})
    calls = []

    def generate(root):
        calls.append(root)
        for split in ("train", "val"):
            (root / split / "images").mkdir(parents=True)

    module.generate = generate
    return module, calls


def test_generator_fills_an_empty_place_once_and_loudly(tmp_path, generator, capsys):
    cfg = data_yaml(tmp_path, "phantom")
    cfg.path.mkdir()
    ensure_data(cfg)
    output = capsys.readouterr().out
    assert "SYNTHETIC PHANTOM" in output and str(cfg.path) in output and "`path:`" in output
    assert Path(cfg.train[0]).is_dir() and set(os.listdir(tmp_path)) == {
        "d.yaml",
        "set",
    }
    ensure_data(cfg)
    assert len(generator[1]) == 1 and not capsys.readouterr().out


def test_generator_never_adds_to_a_users_folder(tmp_path, generator):
    cfg = data_yaml(tmp_path, "phantom")
    write(cfg.path / "train" / "images" / "mine.jpg", "")
    with pytest.raises(FileNotFoundError, match="exists but lacks these"):
        ensure_data(cfg)
    assert not generator[1]


def test_interrupted_generator_leaves_nothing(tmp_path, generator):
    def generate(root):
        (root / "train" / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    generator[0].generate = generate
    cfg = data_yaml(tmp_path, "phantom")
    with pytest.raises(KeyboardInterrupt):
        ensure_data(cfg)
    assert os.listdir(tmp_path) == ["d.yaml"]


# --- hyperparameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", HYPS, ids=lambda f: f.name)
def test_shipped_hyps_are_complete(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hyp = load_hyp(file.name)
    raw = load_yaml(file)
    assert set(raw) - {"anchors"} == set(DEFAULT_HYP) and hyp == {**DEFAULT_HYP, **raw}


def test_hyps_are_the_references(golden):
    reference = json.loads((golden / "hyps.json").read_text())["files"]
    for name, values in reference.items():
        ours = load_hyp(name)
        assert {key: ours[key] for key in values} == pytest.approx(values), name
        assert set(ours) - set(values) == {"image_mix", "image_label_smoothing"}, name
    assert {f.name for f in HYPS} == {*reference, "hyp.echo.yaml"}
    low = reference["hyp.scratch-low.yaml"]
    assert {key: DEFAULT_HYP[key] for key in low} == low


def test_echo_hyps_leave_a_view_what_it_is():
    echo, low = load_hyp("hyp.echo.yaml"), load_hyp("hyp.scratch-low.yaml")
    assert all(echo[key] == 0 for key in ("fliplr", "flipud", "shear", "perspective", "mixup", "copy_paste"))
    assert all(echo[key] < low[key] for key in ("hsv_h", "hsv_s", "hsv_v", "scale"))
    comments = (ROOT / "data" / "hyps" / "hyp.echo.yaml").read_text().splitlines()
    assert all("#" in line for line in comments if ":" in line)


def test_incomplete_and_unknown_hyps(capsys):
    assert "lr_0" not in load_hyp({**DEFAULT_HYP, "lr_0": 1})
    assert "unknown keys are ignored: lr_0" in capsys.readouterr().out
    assert load_hyp({k: v for k, v in DEFAULT_HYP.items() if k != "lr0"})["lr0"] == 0.01
    assert "defaults are used for lr0" in capsys.readouterr().out
    hyp = load_hyp({k: v for k, v in DEFAULT_HYP.items() if not k.startswith("image_")} | {"label_smoothing": 0.1})
    assert capsys.readouterr().out == ""  # YOLOv5's files lack our keys, and runs save the smoothing
    assert hyp["image_mix"] in ("area", "same_class") and hyp["label_smoothing"] == 0.1
    assert load_hyp({**DEFAULT_HYP, "lr0": "1e-3"})["lr0"] == 1e-3  # yaml reads 1e-3 as text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr0", "fast"),
        ("lr0", None),
        ("lr0", True),
        ("lr0", [1]),
        ("lr0", float("nan")),
        ("lr0", -0.1),
        ("mosaic", 1.5),
        ("momentum", 1.0),
        ("image_mix", "sum"),
        ("image_mix", []),
        ("image_label_smoothing", 1),
    ],
)
def test_bad_hyp_names_file_and_key(key, value, tmp_path):
    save_yaml(tmp_path / "bad.yaml", {**DEFAULT_HYP, key: value})
    with pytest.raises(ValueError, match=rf"bad\.yaml: {key}: "):
        load_hyp(tmp_path / "bad.yaml")


def test_hyp_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"bad\.yaml: expected hyperparameters"):
        load_hyp(write(tmp_path / "bad.yaml", "just text"))


def test_two_first_starts_make_one_demo_set(tmp_path, monkeypatch):
    import data.phantom

    config = {"path": str(tmp_path / "demo"), "train": "train/images", "val": "valid/images", "nc": 1}
    cfg = load_data_config(config | {"download": "phantom"})

    def generate(folder):
        for split in ("train", "valid"):
            (folder / split / "images").mkdir(parents=True)
        other = tmp_path / "demo" / "train" / "images"  # another run is faster
        other.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / "valid" / "images").mkdir(parents=True, exist_ok=True)
        (other / "its.png").touch()

    monkeypatch.setattr(data.phantom, "generate", generate)
    ensure_data(cfg)
    assert (tmp_path / "demo" / "train" / "images" / "its.png").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["demo"]  # nothing is left beside it
