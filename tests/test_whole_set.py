"""Faults of a whole data set: unreadable is not absent, and pairing is checked from both sides."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.dataset.labels import parse_label
from utils.dataset.scan import check_strict, refuse_set, report_problems, scan_dataset

ROWS = ["0 0.5 0.5 0.2 0.3", "1 0.25 0.25 0.2 0.2\n0 0.75 0.75 0.1 0.1", "1 0.5 0.25 0.3 0.3"]


@pytest.fixture
def data(tmp_path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i, rows in enumerate(ROWS):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.full((40, 60, 3), 40 * i, np.uint8))
        (tmp_path / "labels" / f"{i}.txt").write_text(rows + "\n")
    return tmp_path


def rewrite(data: Path, change) -> None:
    for file in (data / "labels").iterdir():
        file.write_bytes(change(file.read_text()))


def scanned(data: Path, nc: int = 2, cls_nc: int = 0, **options):
    return scan_dataset(str(data / "images"), nc, cls_nc, **{"cache": False, "verbose": False, **options})


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda t: t.replace(" ", ",").encode(), "without commas"),
        (lambda t: t.replace(" ", ";").encode(), "written with spaces"),
        (lambda t: t.replace(".", ",").encode(), "without commas"),
        (lambda t: t.replace("0.", "").encode(), "not pixels"),
        (lambda t: t.replace("\n", " 0.9\n").encode(), "a confidence does not belong"),
        (lambda t: t.replace("0 0.", "box 0.").replace("1 0.", "box 0.").encode(), "'box' is not a number"),
        (lambda t: t.encode("utf-16-le"), "is not a number"),  # without its mark
        (lambda t: b'{"shapes": []}', "number"),
    ],
)
@pytest.mark.parametrize("cls_nc", [0, 3])
def test_a_set_whose_labels_cannot_be_read_is_no_set_of_backgrounds(data, change, advice, cls_nc):
    rewrite(data, change)
    with pytest.raises(ValueError, match=rf"(?s)train: no picture can be used.*{advice}"):
        scanned(data, cls_nc=cls_nc)


def test_a_picture_whose_object_rows_cannot_be_read_is_left_out_alone(data):
    (data / "labels" / "0.txt").write_text("0,0.5,0.5,0.2,0.3\n\n1 0 0\n")
    (data / "labels" / "1.txt").write_text("")  # a background
    index = scanned(data, cls_nc=3)
    assert [Path(f).name for f in index.im_files] == ["1.png", "2.png"]
    assert index.counts["images_left_out"] == 1 and index.counts["rows_left_out"] == 1
    with pytest.raises(ValueError, match="--strict"):
        check_strict(index.problems, True)
    (data / "labels" / "0.txt").write_text("1 0 0 0\n")  # of the image alone, of a wrong length
    assert len(scanned(data, cls_nc=3)) == 3


def test_classes_from_1_stop_the_run(data):
    refuse_set(scanned(data))
    rewrite(data, lambda t: "\n".join(str(int(r[0]) + 1) + r[1:] for r in t.splitlines()).encode())
    index = scanned(data)
    with pytest.raises(ValueError, match=r"train: 2 rows .* below nc.*from 1 to 2.*subtract 1"):
        refuse_set(index)
    with pytest.raises(ValueError, match="from 1 to 2"):
        refuse_set(index, "val", unlabelled=False)
    refuse_set(scanned(data, nc=3))
    refuse_set(scanned(data, single_cls=True))
    (data / "labels" / "0.txt").write_text("-1 0.5 0.5 0.2 0.2")
    with pytest.raises(ValueError, match="from -1 to 2"):
        refuse_set(scanned(data, nc=3))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda d: (d / "labels").rename(d / "Labels"), "rename the folder Labels to labels"),
        (lambda d: (d / "labels").rename(d / "annotations"), "rename the folder annotations to labels"),
        (lambda d: [f.rename(f.with_suffix(".TXT.bak")) for f in (d / "labels").iterdir()], "looked for .*0.txt"),
        (lambda d: [f.rename(f.with_suffix(".xml")) for f in (d / "labels").iterdir()], r"3 \.xml are there"),
        (lambda d: [f.unlink() for f in (d / "labels").iterdir()], "no label files found, looked for .*0.txt"),
        (lambda d: [f.rename(f.with_name(f"x{f.name}")) for f in (d / "labels").iterdir()], "other pictures"),
        (lambda d: [f.write_text("") for f in (d / "labels").iterdir()], "hold no row"),
    ],
)
def test_a_training_without_a_label_stops(data, change, advice, capsys):
    change(data)
    index = scanned(data, verbose=True)
    with pytest.raises(ValueError, match=f"train: no picture has a label.*{advice}"):
        refuse_set(index)
    refuse_set(index, "val", unlabelled=False)  # a network can be run over pictures without labels
    if not any(Path(f).exists() for f in index.label_files):
        assert "WARNING" in capsys.readouterr().out


def test_what_another_case_hides_is_named(data):
    (data / "images").rename(data / "Images")
    index = scan_dataset(str(data / "Images"), 2, 0, cache=False, verbose=False)
    with pytest.raises(ValueError, match="beside a folder `images`: rename the folder Images to images"):
        refuse_set(index)
    (data / "Images").rename(data / "images")
    for file in [*(data / "images").iterdir()]:
        file.rename(file.with_name(f"A{file.name}"))
    for file in [*(data / "labels").iterdir()]:
        file.rename(file.with_name(f"a{file.name}"))
    with pytest.raises(ValueError, match="a0.txt is there, rename the label files as their pictures"):
        refuse_set(scanned(data))


def test_image_labels_alone_are_labels(data):
    rewrite(data, lambda t: b"0 1 0\n")
    refuse_set(scanned(data, cls_nc=3))


def test_pairing_is_checked_from_both_sides(data, capsys):
    images, labels = data / "images", data / "labels"
    (images / "0.png").rename(images / unicodedata.normalize("NFC", "Herzé.png"))
    (labels / "0.txt").rename(labels / unicodedata.normalize("NFD", "Herzé.txt"))
    (labels / "1.txt").rename(labels / "1.TXT")
    (images / "2.png").rename(images / "écran 2.png")
    (labels / "2.txt").rename(labels / "%C3%A9cran_2.txt")
    (labels / "classes.txt").write_text("a\nb\n")  # labelImg's
    index = scanned(data, verbose=True)
    assert len(index) == 3 and len(index.objects) == 3
    assert {p.kind: Path(p.file).name for p in index.problems} == {
        "label without picture": "%C3%A9cran_2.txt",
        "missing label": "écran 2.txt",
    }
    with pytest.raises(ValueError, match="label without picture"):
        check_strict(index.problems, True)
    csv = data / "left_out.csv"
    report_problems(index.problems, file=csv)
    assert "%C3%A9cran_2.txt" in csv.read_text() and "%C3%A9cran_2.txt" in capsys.readouterr().out


def test_a_split_by_list_files_has_no_labels_of_no_picture(data):
    (data / "train.txt").write_text("images/0.png\nimages/1.png\n")
    assert not scan_dataset(str(data / "train.txt"), 2, cache=False, verbose=False).problems


def test_the_cache_keeps_nothing_of_the_pairing_from_us(data):
    scanned(data, cache=True)
    (data / "labels" / "9.txt").write_text(ROWS[0])
    assert [p.kind for p in scanned(data, cache=True).problems] == ["label without picture"]


def test_files_of_other_kinds_are_counted_in_a_line(data, capsys):
    picture = Image.open(data / "images" / "2.png")
    picture.save(data / "images" / "3.jfif", format="JPEG")
    (data / "images" / "2.png").rename(data / "images" / "2.heic")
    (data / "images" / "notes.md").write_text("a companion")
    index = scanned(data, verbose=True)
    assert "train: 2 files of other kinds passed over (.heic 1, .jfif 1)" in capsys.readouterr().out
    assert len(index) == 2 and {p.kind for p in index.problems} == {"file of another kind"}
    with pytest.raises(ValueError, match="file of another kind"):
        check_strict(index.problems, True)
    for i in (0, 1):
        (data / "images" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=r"no pictures in .*2 files of other kinds passed over"):
        scanned(data)


def test_what_cannot_be_opened_is_named_and_passed_over(data, monkeypatch):
    (data / "images" / "loop").symlink_to("loop")
    kinds = [(p.kind, Path(p.file).name) for p in scanned(data).problems]
    assert kinds == [("unreadable folder", "loop")]


def test_boxes_have_the_slack_of_polygons():
    for row in ("0 0.5 0.5 1.0001 0.4", "0 0.25 0.499 0.3 1.0025", "0 1.0000001 0.5 0.2 0.2", "0 -0.01 0.5 0.2 0.3"):
        label = parse_label(row, 1, 0)
        assert not label.problems and label.objects[:, 1:].min() >= 0 and label.objects[:, 1:].max() <= 1
    assert "x 1.0100001 is outside" in str(parse_label("0 1.0100001 0.5 0.2 0.2", 1, 0).problems[0])
