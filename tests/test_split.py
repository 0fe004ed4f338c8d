"""Divisions of a data set that keep groups together, and their list files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import make_data

import check_data
import train_joint
from utils.dataset.config import load_data_config
from utils.dataset.scan import DatasetIndex, scan_dataset
from utils.dataset.split import box_classes, find_groups, grouped_parts, leaking_groups, need_groups
from utils.system.yamls import load_yaml, save_yaml

PATIENT = r"^(p\d+)_"


def fake_index(boxes: list[list[int]], views: list[int]) -> DatasetIndex:
    """Index of pictures with these object and image classes; the files do not exist."""
    offsets = np.cumsum([0] + [len(b) for b in boxes])
    objects = np.full((offsets[-1], 5), 0.5, np.float32)
    objects[:, 0] = [c for b in boxes for c in b]
    files = np.array([f"images/{i}.png" for i in range(len(boxes))])
    none = np.zeros((0, 2), np.float32), np.zeros(offsets[-1] + 1, np.int64)
    return DatasetIndex(
        files, files, np.full((len(boxes), 2), 64, np.int32), objects, offsets, *none, np.array(views), [], 2
    )


def command_line(*args: object) -> None:
    check_data.main(check_data.parse_opt([str(a) for a in args]))


def test_groups_of_names_and_of_paths():
    files = ["/data/site7/images/p01_c02_f3.jpg", "/data/site8/images/p11_c02_f3.jpg", "/data/site8/images/other.jpg"]
    assert find_groups(files, PATIENT).tolist() == ["p01", "p11", ""]
    assert find_groups(files, r"p\d+_c\d+").tolist() == ["p01_c02", "p11_c02", ""]  # no parenthesis: all of it
    assert find_groups(files, r"/(site\d)/").tolist() == ["site7", "site8", "site8"]
    with pytest.raises(ValueError, match=r"1 of 3 pictures have no group.*other\.jpg"):
        need_groups(files, PATIENT)


def test_a_picture_counts_for_its_rarest_class():
    assert box_classes(fake_index([[0, 0, 1], [0], [], [2, 1]], [0] * 4)).tolist() == [1, 0, -1, 2]


pictures = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2), st.integers(-1, 1)), min_size=12, max_size=60)


@pytest.mark.slow
@given(pictures, st.sampled_from([(0.5, 0.5), (0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.3)]), st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_no_group_is_parted_and_no_part_is_empty(drawn, shares, seed):
    groups = np.array([f"p{g}" for g, _, _ in drawn])
    index = fake_index([[box] for _, box, _ in drawn], [view for _, _, view in drawn])
    if len(set(groups)) < len(shares):
        with pytest.raises(ValueError, match="groups cannot fill"):
            grouped_parts(index, groups, shares, seed)
        return
    try:
        parts = grouped_parts(index, groups, shares, seed)
    except ValueError as error:  # scikit-learn left a part empty every time
        assert "unlike sizes" in str(error) and len(set(groups)) < 2 * len(shares)
        return
    assert sorted(set(parts)) == list(range(len(shares)))
    assert all(len(set(parts[groups == g])) == 1 for g in groups)
    assert (parts == grouped_parts(index, groups, shares, seed)).all()


def test_as_many_groups_as_parts_fill_them_whatever_the_shares():
    groups = np.repeat(["p0", "p1", "p2"], 4)
    parts = grouped_parts(fake_index([[0]] * 12, [0] * 12), groups, (0.8, 0.1, 0.1))
    assert sorted(set(parts)) == [0, 1, 2] and all(len(set(parts[groups == g])) == 1 for g in groups)


@pytest.mark.slow
def test_parts_look_like_the_whole():
    """60 groups of one box class and one view each, five pictures a group: every part has its share of all."""
    rng = np.random.default_rng(0)
    order = rng.permutation(60)
    groups = np.repeat([f"p{i}" for i in order], 5)
    index = fake_index([[int(i) % 3] for i in np.repeat(order, 5)], (np.repeat(order, 5) // 3 % 2).tolist())
    parts = grouped_parts(index, groups, (0.6, 0.2, 0.2))
    for values in (np.zeros(300), index.objects[:, 0], index.image_class):
        for value in np.unique(values):
            of_class = parts[values == value]
            assert [np.mean(of_class == p) for p in range(3)] == pytest.approx([0.6, 0.2, 0.2], abs=0.06)
    assert (grouped_parts(index, groups, (0.6, 0.2, 0.2), seed=1) != parts).any()


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.4), (1.2, -0.2)])
def test_shares_must_be_shares(shares):
    index = fake_index([[0]] * 4, [0] * 4)
    with pytest.raises(ValueError, match="sum of 1"):
        grouped_parts(index, np.array(list("abcd")), shares)


def linked_set(folder: Path, make_picture) -> Path:
    """A set of eight patients whose picture folder is a link written as text."""
    for i in range(16):
        make_picture(folder / "elsewhere" / "images" / f"p{i // 2:02}_c01_f{i}.png")
        label = folder / "set" / "train" / "labels" / f"p{i // 2:02}_c01_f{i}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"{i // 2 % 2} 0.5 0.5 0.2 0.2\n\n{'1 0' if i % 4 < 2 else '0 1'}\n")
    (folder / "set" / "train" / "images").write_text("../../elsewhere/images")
    content = {"path": ".", "train": "train/images", "val": "train/images", "group": PATIENT}
    save_yaml(folder / "set" / "set.yaml", content | {"names": ["a", "b"], "cls_nc": 2, "extra": "kept"})
    return folder / "set" / "set.yaml"


@pytest.fixture
def make_picture():
    import cv2

    def write(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))

    return write


def test_list_files_keep_the_labels_of_a_written_link(tmp_path, make_picture, capsys):
    data = linked_set(tmp_path, make_picture)
    command_line("--data", data, "--folds", 2, "--out", tmp_path / "out")
    whole = load_data_config(data)
    index = scan_dataset(whole.train, 2, 2, cache=False, verbose=False)
    want = dict(zip(index.im_files, zip(index.label_files, index.image_class, strict=True), strict=True))
    assert len(want) == 16 and set(index.image_class) == {0, 1}
    seen = []
    for k in range(2):
        assert load_yaml(tmp_path / "out" / f"fold{k}.yaml")["extra"] == "kept"
        fold = load_data_config(tmp_path / "out" / f"fold{k}.yaml")
        assert fold.group == PATIENT
        sides = [scan_dataset(side, 2, 2, cache=False, verbose=False) for side in (fold.train, fold.val)]
        for side in sides:
            for file, label, view in zip(side.im_files, side.label_files, side.image_class, strict=True):
                assert Path(label).samefile(want[file][0]) and view == want[file][1]
        patients = [set(find_groups(side.im_files, PATIENT)) for side in sides]
        assert not patients[0] & patients[1] and len(patients[0] | patients[1]) == 8
        seen += list(sides[1].im_files)
    assert sorted(seen) == sorted(want)  # every picture is validated once
    assert "fewer than 5 groups in fold0, fold1: no interval there" in capsys.readouterr().out


def test_folds_take_labels_that_are_spelled_otherwise(tmp_path, make_picture):
    """As Windows (.TXT) and macOS (é in two characters) write them."""
    for p in range(4):
        for name in ("a", "\u00e9"):
            make_picture(tmp_path / "images" / f"p{p}_{name}.png")
            spelled = f"p{p}_a.TXT" if name == "a" else f"p{p}_e\u0301.txt"
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / spelled).write_text(f"{p % 2} 0.5 0.5 0.3 0.3\n")
    save_yaml(
        tmp_path / "d.yaml", {"path": ".", "train": "images", "val": "images", "names": ["x", "y"], "group": "p\\d"}
    )
    command_line("--data", tmp_path / "d.yaml", "--folds", 2, "--out", tmp_path / "out")
    fold = load_data_config(tmp_path / "out" / "fold0.yaml")
    sides = [scan_dataset(side, 2, 0, cache=False, verbose=False) for side in (fold.train, fold.val)]
    assert [len(side.objects) for side in sides] == [4, 4]


@pytest.mark.slow
def test_split_of_the_real_set(shared, tmp_path):
    yaml = shared / "heart_by_clip" / "heart_by_clip.yaml"
    command_line("--data", yaml, "--split", "0.8,0.1,0.1", "--group-regex", PATIENT, "--out", tmp_path)
    files = {s: (tmp_path / f"split_{s}.txt").read_text().split() for s in ("train", "val", "test")}
    names = [{re.match(PATIENT, Path(f).name).group(1) for f in files[s]} for s in files]
    assert len(set().union(*names)) == sum(map(len, names)) == 54
    assert sum(map(len, files.values())) == 1225
    assert [len(f) / 1225 for f in files.values()] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--split", "0.8"], "two or three shares"),
        (["--split", "a,b"], "two or three shares"),
        (["--folds", 1], "between 2 and"),
        (["--folds", 9], "8 groups cannot fill 9 parts"),
        (["--folds", 2, "--group-regex", "("], "no regular expression"),
        (["--folds", 2, "--group-regex", "^q"], "finds nothing in"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, make_picture, args, message):
    data = linked_set(tmp_path, make_picture)
    with pytest.raises(ValueError, match=message):
        command_line("--data", data, "--out", tmp_path / "out", *args)
    assert not (tmp_path / "out").exists()


def test_unusual_names_are_listed(tmp_path, make_picture):
    data = linked_set(tmp_path, make_picture)
    name = "p09_c01_f1\N{NARROW NO-BREAK SPACE}PM\N{IDEOGRAPHIC SPACE}.png"
    make_picture(tmp_path / "elsewhere" / "images" / name)
    command_line("--data", data, "--out", tmp_path / "out", "--folds", 2)
    fold = load_data_config(tmp_path / "out" / "fold0.yaml")
    files = [f for side in (fold.train, fold.val) for f in scan_dataset(side, 2, 2, verbose=False).im_files]
    assert len(files) == 17 and name in {Path(f).name for f in files}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["p09_c01_f\n99.png", "p09_c01_f\udcff.png"])
def test_a_name_that_no_list_can_hold_is_told(tmp_path, make_picture, name):
    data = linked_set(tmp_path, make_picture)
    make_picture(tmp_path / "elsewhere" / "images" / "other.png")
    try:
        (tmp_path / "elsewhere" / "images" / "other.png").rename(tmp_path / "elsewhere" / "images" / name)
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match="a list file cannot name .*png': rename it"):
        command_line("--data", data, "--out", tmp_path / "out", "--folds", 2)
    assert not (tmp_path / "out").exists()


def test_a_group_in_the_yaml_must_be_an_expression():
    content = {"train": "a", "names": ["x"], "group": "(p"}
    with pytest.raises(ValueError, match=r"group: '\(p' is no regular expression"):
        load_data_config(content)
    assert load_data_config(content | {"group": None}).group is None


@pytest.mark.slow
def test_training_warns_where_groups_leak(tmp_path, capsys):
    yaml = make_data(tmp_path / "set", pictures=4)  # 0.png to 3.png on both sides
    save_yaml(yaml, load_yaml(yaml) | {"group": r"^(\d+)\."})
    options = {"cfg": "yolov5n.yaml", "epochs": 1, "imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu"}
    train_joint.run(data=str(yaml), project=str(tmp_path), noplots=True, **options)
    assert "WARNING: 4 groups (0, 1, 2 …) are in train and in val" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--group-regex: '[(]' is no regular expression"):
        train_joint.run(data=str(yaml), project=str(tmp_path), group_regex="(", **options)
    train_joint.run(data=str(yaml), project=str(tmp_path), noplots=True, group_regex="^q", **options)
    said = capsys.readouterr().out
    assert "the group '^q' is found in no training picture's name" in said and "are in train and in val" not in said


def test_pictures_without_a_group_are_no_leak():
    assert leaking_groups(["a.jpg", "p1_1.jpg"], ["b.jpg", "p1_2.jpg"], r"^(p\d)_") == ["p1"]
