"""List files, globs and text: read alike by training and by detection."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.dataset.config import ensure_data, load_data_config, load_yaml
from utils.dataset.files import find_glob, list_images, pair_with_labels, read_list
from utils.dataset.labels import format_label, parse_label, read_label
from utils.results.detections import label_text
from utils.results.sources import open_source
from utils.system.files import read_text


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode(file.suffix, np.full((40, 60, 3), 90, np.uint8))[1].tobytes())
    return file


def test_a_list_means_the_same_pictures_to_training_and_to_detection(tmp_path, monkeypatch):
    for folder in ("lists", "cwd"):  # the list's folder comes first
        picture(tmp_path / folder / "both.png")
    picture(tmp_path / "cwd" / "here.png")
    picture(tmp_path / "lists" / "obj_train_data" / "#1.png")
    picture(tmp_path / "lists" / "windows" / "w.png")
    text = "both.png\n# a comment\nhere.png\ndata/obj_train_data/#1.png\n\nwindows\\w.png\n"
    (tmp_path / "lists" / "all.txt").write_text(text)
    monkeypatch.chdir(tmp_path / "cwd")
    with open_source(tmp_path / "lists" / "all.txt") as source:
        detected = sorted(os.path.abspath(f) for f in source.images)
        assert not source.problems
    trained = sorted(os.path.abspath(f) for f in list_images(tmp_path / "lists" / "all.txt"))
    expected = ["cwd/here.png", "lists/both.png", "lists/obj_train_data/#1.png", "lists/windows/w.png"]
    assert trained == detected == [str(tmp_path / f) for f in expected]


def test_lines_of_a_list_count_from_the_datas_root_too(tmp_path, monkeypatch):
    file = picture(tmp_path / "set" / "images" / "a.png")
    (tmp_path / "set" / "splits").mkdir()
    listing = tmp_path / "set" / "splits" / "train.txt"
    listing.write_text("images/a.png\nimages/none.png\n")
    monkeypatch.chdir("/")
    places = [path for _, _, path in read_list(listing, tmp_path / "set")]
    assert places == [str(file), str(tmp_path / "set" / "splits" / "images" / "none.png")]
    assert pair_with_labels([listing], tmp_path / "set")[1][0] == str(tmp_path / "set" / "labels" / "a.txt")


def test_brackets_in_a_folders_name_are_no_pattern(tmp_path):
    file = picture(tmp_path / "set [v1]" / "images" / "a [2].png")
    pattern = str(tmp_path / "set [v1]" / "images" / "*.png")
    assert find_glob(pattern) == list_images(pattern) == open_source(pattern).images == [str(file)]
    assert list_images(str(file)) == [str(file)]
    config = {"path": str(tmp_path / "set [v1]"), "train": "images/*.png", "val": "none/*.png", "names": ["a"]}
    data = load_data_config(config)
    ensure_data(data, ("train",))
    with pytest.raises(FileNotFoundError, match="no data"):
        ensure_data(data, ("val",))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_mark_is_read(encoding, tmp_path):
    (tmp_path / "list.txt").write_bytes("é.png\r\n".encode(encoding))
    (tmp_path / "set.yaml").write_bytes("names: [é]\n".encode(encoding))
    (tmp_path / "a.txt").write_bytes("0 0.5 0.5 0.2 0.2\r\n\r\n0 1\r\n".encode(encoding))
    picture(tmp_path / "é.png")
    assert list_images(tmp_path / "list.txt") == open_source(tmp_path / "list.txt").images == [str(tmp_path / "é.png")]
    assert load_yaml(tmp_path / "set.yaml") == {"names": ["é"]}
    label = read_label(tmp_path / "a.txt", 1, 2)
    assert len(label.objects) == 1 and label.image_class == 1 and not label.problems


@pytest.mark.parametrize("read", [list_images, open_source, load_yaml, read_text])
def test_text_in_another_encoding_names_file_line_and_cure(read, tmp_path):
    file = tmp_path / "café.txt"
    file.write_bytes("a.png\ncafé.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"café\.txt:2: not a UTF-8 text file.*save it as UTF-8"):
        read(file)


def test_no_written_label_holds_a_row_twice():
    twice = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.5, 0.2, 0.2], [0, 0.5, 0.5, 0.2, 0.2 + 1e-12]])
    text = format_label(twice, 1, 2)
    assert len(parse_label(text, 2, 2).objects) == 2 and not parse_label(text, 2, 2).problems
    # over the border by different lengths: the same box once it is clipped
    boxes = np.array([[-5, 10, 50, 60, 0.9, 0], [-9, 10, 50, 60, 0.8, 0]], np.float32)
    text = label_text(boxes.clip(0, 100), None, (100, 100), 0)
    assert text.count("\n") == 1 and not parse_label(text, 1, 0).problems
    assert label_text(boxes.clip(0, 100), None, (100, 100), 0, with_conf=True).count("\n") == 2


def test_names_that_are_no_text_pass_through_every_file(tmp_path, capsys):
    """On Linux a name is bytes: one in Latin-1 is escaped in what is written, and stops nothing."""
    from utils.dataset.labels import Problem
    from utils.dataset.scan import report_problems, scan_dataset
    from utils.results.validation import write_json
    from utils.system.voice import say
    from utils.system.yamls import save_yaml

    name = os.fsdecode(b"caf\xe9")
    try:
        picture(tmp_path / "images" / f"{name}.png")
    except OSError:
        pytest.skip("this file system has names of text alone")
    (tmp_path / "images" / f"{name}.avi").write_bytes(b"no video, and OpenCV must not see its name")
    index = scan_dataset(str(tmp_path / "images"), 1, verbose=False)
    assert index.im_files[0].endswith(f"{name}.png")
    save_yaml(tmp_path / "a.yaml", {"path": name})
    write_json(tmp_path / "a.json", {"path": name})
    assert load_yaml(tmp_path / "a.json") is not None and b"udce9" in (tmp_path / "a.json").read_bytes()
    report_problems([Problem(name, None, "x", "y")], file=tmp_path / "a.csv")
    assert b"\\udce9" in (tmp_path / "a.csv").read_bytes()
    with open_source(tmp_path / "images") as source:
        frames = [f for batch in source for f in batch]
    assert [f.mode for f in frames] == ["image"] and "rename it" in source.problems[0]
    say(name)
    capsys.readouterr()
