"""Label files: the grammar for every cls_nc, what is left out and why, and the reference's cases."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.dataset.labels import Problem, format_label, parse_label, read_label

BOX = "0 0.5 0.5 0.2 0.3"
POLYGON = "1 0.50 0.50 0.72 0.50 0.72 0.79 0.50 0.79"
EVERY_CLS_NC = range(1, 21)


def one_hot(cls_nc: int, i: int = 0) -> str:
    return " ".join("1" if j == i else "0" for j in range(cls_nc))


def reasons(label) -> str:
    return "\n".join(map(str, label.problems))


# --- image row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls_nc", EVERY_CLS_NC)
@pytest.mark.parametrize("rows", ["", BOX, POLYGON, f"{BOX}\n{POLYGON}"])
def test_image_row_is_told_from_objects_for_every_cls_nc(cls_nc, rows):
    n = len(rows.splitlines())
    for i in range(cls_nc):
        label = parse_label(f"{rows}\n\n{one_hot(cls_nc, i)}", nc=4, cls_nc=cls_nc)
        assert label.image_class == i
        assert len(label.objects) == n and len(label.segments) == n
        assert not label.problems


@pytest.mark.parametrize("cls_nc", EVERY_CLS_NC)
def test_without_image_row_the_objects_stay_and_the_class_is_unknown(cls_nc):
    # With cls_nc 5 and 9 these rows have as many numbers as an image row; content decides.
    label = parse_label(f"{POLYGON}\n{BOX}\n", nc=4, cls_nc=cls_nc, file="a.txt")
    assert label.image_class == -1 and len(label.objects) == 2
    assert [(p.kind, p.line) for p in label.problems] == [("no image row", 2)]


@pytest.mark.parametrize(
    "row", ["[0, 1, 0]", "0,1,0", "0.0 1.0 0.0", "[0 1 0]", "0, 1, 0", "[0. 1. 0.]", " 0\t1  0 ", "0 1e0 -0"]
)
def test_image_row_as_written_by_others(row):
    label = parse_label(f"{BOX}\n{row}", nc=1, cls_nc=3)
    assert (label.image_class, len(label.objects), label.problems) == (1, 1, [])


@pytest.mark.parametrize(
    "row", ["0 0 0", "1 1 0", "0.2 0.7 0.1", "0 2 0", "[1, 1, 0]", "[0, 1, 0", "0,,1", "0 -1 0", "[]"]
)
def test_bad_image_row_is_named_and_only_the_class_is_lost(row):
    label = parse_label(f"{BOX}\n{row}\n", nc=1, cls_nc=3, file="a.txt")
    assert label.image_class == -1 and len(label.objects) == 1
    assert reasons(label).startswith("a.txt:2: ")
    assert label.problems[0].kind == "bad row"


def test_image_row_of_sum_zero_where_it_is_a_single_number():
    label = parse_label("0", nc=1, cls_nc=1)
    assert label.image_class == -1 and "exactly one of them 1" in reasons(label)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 7, 9])
def test_image_row_of_the_wrong_length(length):
    label = parse_label(f"{BOX}\n{one_hot(length)}", nc=1, cls_nc=3)
    assert label.image_class == -1 and len(label.objects) == 1 and len(label.problems) == 1
    assert f"{length} numbers where cls_nc is 3" in reasons(label)


def test_image_row_must_be_last():
    label = parse_label(f"0 1 0\n{BOX}", nc=1, cls_nc=3, file="a.txt")
    assert label.image_class == -1 and len(label.objects) == 1
    assert reasons(label) == "a.txt:1: image row must be the last row, but line 2 is an object: image class unknown"


def test_a_bad_row_after_the_image_row_is_left_out_alone():
    label = parse_label(f"{BOX}\n0 1 0\n# a remark", nc=1, cls_nc=3)
    assert label.image_class == 1 and [p.line for p in label.problems] == [3]


def test_two_image_rows():
    same = parse_label(f"{BOX}\n0 1 0\n0 1 0", nc=1, cls_nc=3)
    assert same.image_class == 1 and [(p.line, p.kind) for p in same.problems] == [(2, "duplicate row")]
    other = parse_label(f"{BOX}\n0 1 0\n0 0 1", nc=1, cls_nc=3)
    assert other.image_class == -1 and [p.line for p in other.problems] == [2, 3]
    assert "disagree (lines 2, 3)" in reasons(other)


@pytest.mark.parametrize("length", EVERY_CLS_NC)
def test_plain_data_ignores_an_image_row(length):
    # fault 1: YOLOv5 makes a phantom box of it or drops the picture
    label = parse_label(f"{POLYGON}\n\n{one_hot(length, length - 1)}", nc=4, cls_nc=0)
    assert len(label.objects) == 1 and label.image_class == -1
    assert [(p.kind, p.line) for p in label.problems] == [("image row ignored", 3)]


# --- object rows -----------------------------------------------------------------------------------------------------


def test_boxes_and_polygons_mixed_in_one_file():
    # fault 2: YOLOv5 reads the box row as two polygon points
    label = parse_label(f"{BOX}\n{POLYGON}\n{one_hot(2, 1)}", nc=2, cls_nc=2)
    np.testing.assert_allclose(label.objects, [[0, 0.5, 0.5, 0.2, 0.3], [1, 0.61, 0.645, 0.22, 0.29]], atol=1e-6)
    assert label.objects.dtype == np.float32
    assert [len(s) for s in label.segments] == [0, 4]
    assert all(s.dtype == np.float32 and s.shape[1] == 2 for s in label.segments)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("4 0.5 0.5 0.2 0.3", "class 4 is not in 0..3 (nc is 4)"),
        ("-1 0.5 0.5 0.2 0.3", "class -1 is not in 0..3"),
        ("1.5 0.5 0.5 0.2 0.3", "class 1.5 is not a whole number"),
        ("1e300 0.5 0.5 0.2 0.3", "is not in 0..3"),
        ("cat 0.5 0.5 0.2 0.3", "'cat' is not a number"),
        ("0 nan 0.5 0.2 0.3", "'nan' is not a number"),
        ("0 0.5 0.5 inf 0.3", "'inf' is not a number"),
        ("0 1e999 0.5 0.2 0.3", "'1e999' is not a number"),
        ("0 0_1 0.5 0.2 0.3", "'0_1' is not a number"),
        ("0 ١ 0.5 0.2 0.3", "is not a number"),
        ("0 100 200 50 60", "not pixels"),
        ("0 -0.02 0.5 0.2 0.3", "x -0.02 is outside 0..1"),
        ("0 0.5 0.5 0.2 1.01000001", "height 1.01000001 is outside 0..1"),
        ("0 0.5 0.5 0.2 0", "object without area"),
        ("0 0.5 0.5 1e-30 1e-30", "object without area"),
        ("0 0.1 0.1 0.4 0.1 0.7 0.1", "object without area"),
        ("0 0.5 0.5 0.2", "4 numbers"),
        ("0 0.5 0.5 0.2 0.3 0.9", "a confidence does not belong in a label"),
        ("0 0.1 0.1 0.4 0.1 0.4 0.5 0.9", "8 numbers"),
        ("0 0.1 0.1 1.02 0.1 0.4 0.5", "x2 1.02 is outside 0..1"),
        ("0 -0.02 0.1 0.5 0.1 0.4 0.5", "x1 -0.02 is outside 0..1"),
        ("0,0.5,0.5,0.2,0.3", "written with spaces"),
    ],
)
@pytest.mark.parametrize("cls_nc", [0, 3, 5, 6, 7, 8])
def test_one_bad_row_is_left_out_alone(row, reason, cls_nc):
    # fault 3: YOLOv5 drops the whole picture
    end = f"\n{one_hot(cls_nc)}" if cls_nc else ""
    label = parse_label(f"{BOX}\n{row}\n{POLYGON}{end}", nc=4, cls_nc=cls_nc, file="labels/a.txt")
    assert label.objects[:, 0].tolist() == [0, 1]
    assert label.image_class == (0 if cls_nc else -1)
    assert [(p.file, p.line, p.kind) for p in label.problems] == [("labels/a.txt", 2, "bad row")]
    length = len(re.split("[ ,]", row))
    if length != cls_nc or length in (5, 7):  # else it is as likely a spoilt image row, and is named as one
        assert reason in reasons(label)


def test_polygon_a_little_outside_is_clipped_not_cut():
    # fault 5: YOLOv5 drops outside points; the box of this triangle would lose its right corner
    label = parse_label("0 0.2 0.2 1.005 0.5 0.2 0.8", nc=1, cls_nc=0)
    np.testing.assert_allclose(label.objects, [[0, 0.6, 0.5, 0.8, 0.6]], atol=1e-6)
    assert label.segments[0].max() == 1 and not label.problems


def test_duplicates_go_and_the_order_stays():
    # fault 3: YOLOv5 sorts the rows of a file with duplicates
    label = parse_label(f"3 0.5 0.5 0.2 0.3\n{BOX}\n3 0.5 0.5 0.2 0.30000001\n2 0.1 0.1 0.1 0.1", nc=4, cls_nc=0)
    assert label.objects[:, 0].tolist() == [3, 0, 2]
    assert [(p.kind, p.line, p.reason) for p in label.problems] == [("duplicate row", 3, "same object as line 1")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_byte_order_mark_and_lines_of_spaces(end):
    text = "\ufeff" + end.join([BOX, "", "   \t", POLYGON, "", "0 1 0", "", "  "])
    label = parse_label(text, nc=4, cls_nc=3)
    assert (len(label.objects), label.image_class, label.problems) == (2, 1, [])


@pytest.mark.parametrize("text", ["", "\n\n", " \n\t", "\ufeff"])
def test_empty_file_is_a_background(text):
    assert parse_label(text, nc=4, cls_nc=0).problems == []
    label = parse_label(text, nc=4, cls_nc=3, file="a.txt")
    assert label.objects.shape == (0, 5) and label.segments == []
    assert [(p.kind, p.line) for p in label.problems] == [("no image row", None)]
    assert str(label.problems[0]).startswith("a.txt: no image row")


def test_nc_none_takes_any_class_number():
    assert parse_label("99 0.5 0.5 0.2 0.3", nc=None, cls_nc=0).objects[0, 0] == 99
    assert "is not in" in reasons(parse_label("1e9 0.5 0.5 0.2 0.3", nc=None, cls_nc=0))


def test_bytes_that_are_no_text_spoil_only_their_row(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"0 0.5 0.5 0.2 0.3\n\xff\xfe\x00 1\n0 1 0")
    label = read_label(file, nc=1, cls_nc=3)
    assert len(label.objects) == 1 and label.image_class == 1
    assert [(p.file, p.line) for p in label.problems] == [(str(file), 2)]


def test_problem_as_text():
    assert str(Problem("a.txt", 3, "why", "bad row")) == "a.txt:3: why"
    assert str(Problem("a.jpg", None, "why", "missing image")) == "a.jpg: why"


# --- properties ------------------------------------------------------------------------------------------------------

unit = st.floats(0, 1, width=32)
boxes = st.tuples(st.integers(0, 9), unit, unit, unit, unit).filter(lambda b: np.float32(b[3]) * np.float32(b[4]) > 0)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(boxes, max_size=6), st.integers(0, 20), st.integers(-1, 19))
def test_format_then_parse_gives_the_same_label(rows, cls_nc, image_class):
    image_class = min(image_class, cls_nc - 1)
    objects = np.array(list(dict.fromkeys(rows)), np.float32).reshape(-1, 5)
    label = parse_label(format_label(objects, image_class, cls_nc), nc=10, cls_nc=cls_nc)
    np.testing.assert_array_equal(label.objects, objects)
    assert label.image_class == image_class
    assert [p.kind for p in label.problems] == (["no image row"] if cls_nc and image_class < 0 else [])


# Rows that look like labels, and are wrong in all kinds of ways.
number = st.one_of(
    st.sampled_from(["0", "1", "2", "0.5", "1.0", "-0", "1.005", "-0.005", "2.5", "nan", "1e9", "x", "1_0"]),
    unit.map(lambda v: f"{v:.7g}"),
)
row = st.builds(
    lambda fields, separator, wrap: wrap.replace("*", separator.join(fields)),
    st.lists(number, max_size=11),
    st.sampled_from([" ", " ", ",", ", ", "\t"]),
    st.sampled_from(["*", "*", "[*]", "[*", " * "]),
)
like_labels = st.builds(
    lambda rows, end: end.join(rows), st.lists(row, max_size=6), st.sampled_from(["\n", "\r\n", "\n\n", "\r"])
)


# What an ordinary file holds, and one value that may be none of it.
ordinary = st.builds(
    lambda rows, odd, place, end: "".join(
        " ".join(fields) + end for fields in [*rows[:place], *([odd] if odd else []), *rows[place:]]
    ),
    st.lists(st.tuples(st.integers(0, 9), unit, unit, unit, unit).map(lambda b: [str(v) for v in b]), max_size=4),
    st.lists(number, max_size=7),
    st.integers(0, 4),
    st.sampled_from(["\n", "\r\n", "\n\n", "\r", " \n"]),
)


@pytest.mark.slow
@settings(max_examples=400)
@given(ordinary, st.integers(0, 9), st.integers(0, 5), st.integers(5, 10) | st.none())
def test_an_ordinary_file_is_read_as_any_other(text, image_class, cls_nc, nc):
    if image_class < cls_nc:
        text += " ".join(str(int(k == image_class)) for k in range(cls_nc))
    found = parse_label(text, nc, cls_nc)
    expected = parse_label("\ufeff" + text, nc, cls_nc)  # with its mark a file is read row by row
    np.testing.assert_array_equal(found.objects, expected.objects)
    assert found.objects.dtype == np.float32 and found.objects.shape == expected.objects.shape
    assert [s.tolist() for s in found.segments] == [s.tolist() for s in expected.segments]
    assert (found.image_class, found.problems) == (expected.image_class, expected.problems)
    assert found.unread == expected.unread


@pytest.mark.slow
@settings(max_examples=400)
@given(st.one_of(st.text(), like_labels), st.integers(0, 5) | st.none(), st.integers(0, 9))
def test_parser_takes_any_text(text, nc, cls_nc):
    label = parse_label(text, nc, cls_nc, file="f")
    objects = label.objects
    assert objects.dtype == np.float32 and objects.shape == (len(label.segments), 5)
    assert np.isfinite(objects).all()
    assert (objects[:, 3] * objects[:, 4] > 0).all(), "a box without area"
    assert ((objects[:, 1:] >= 0) & (objects[:, 1:] <= 1)).all()
    assert (objects[:, 0] == objects[:, 0].round()).all() and (nc is None or (objects[:, 0] < max(nc, 1)).all())
    assert len(np.unique(objects, axis=0)) == len(objects)
    assert -1 <= label.image_class < max(cls_nc, 1)
    lines = re.split(r"\r\n|\r|\n", text)
    named = set()
    for problem in label.problems:
        assert problem.file == "f" and problem.reason and "\n" not in problem.reason
        if problem.line is None:
            assert problem.kind == "no image row" and not text.removeprefix("\ufeff").strip()
        else:
            assert 1 <= problem.line <= len(lines) and lines[problem.line - 1].strip()
            named |= {problem.line} if problem.kind != "no image row" else set()
    # Nothing is dropped in silence: every row is an object, the image row, or named.
    filled = sum(bool(line.strip()) for line in re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")))
    assert len(objects) + (label.image_class >= 0) + len(named) == filled


# --- writing ---------------------------------------------------------------------------------------------------------


def test_format_label_layout():
    objects = np.array([[0, 0.5, 0.25, 0.125, 1 / 3]], np.float32)
    assert format_label(objects, 1, 3) == "0 0.5 0.25 0.125 0.33333334\n\n0 1 0\n"
    assert format_label(np.zeros((0, 5)), 0, 2) == "1 0\n"
    assert format_label(objects, -1, 3) == "0 0.5 0.25 0.125 0.33333334\n"
    assert format_label(np.zeros((0, 5)), -1, 0) == ""


def test_format_label_with_confidences_and_probabilities():
    text = format_label([[2, 0.5, 0.5, 0.5, 0.5]], 1, 2, conf=[0.875], image_probs=[0.25, 0.75])
    assert text == "2 0.5 0.5 0.5 0.5 0.875\n\n0.25 0.75\n"


def test_format_label_writes_no_row_that_is_no_label():
    assert format_label([[0, 0.5, 0.5, 0, 0.5], [1, 0.5, 0.5, 0.5, 1.00001]], -1, 0, conf=[0.1, 0.2]) == (
        "1 0.5 0.5 0.5 1 0.2\n"
    )
    for bad in (
        [[0, 320, 200, 50, 50]],
        [[0, float("nan"), 0.5, 0.5, 0.5]],
        [[0.5, 0.5, 0.5, 0.5, 0.5]],
        [[-1, 0, 0, 1, 1]],
    ):
        with pytest.raises(ValueError):
            format_label(bad, -1, 0)
    with pytest.raises(ValueError, match="cls_nc"):
        format_label(np.zeros((0, 5)), 3, 3)


# --- the reference ---------------------------------------------------------------------------------------------------

# Where we depart from the reference on purpose: case -> (objects kept, kinds of the problems), and why.
DEPARTURES = {
    # A class that is no class number is an error, not an index that is truncated or fails later in training.
    "fractional_class": (0, ["bad row"]),
    "class_above_nc": (0, ["bad row"]),
    # A box without area teaches nothing, and is what makes one-hot rows distinct.
    "zero_size_box": (0, ["bad row"]),
    # Vertices far outside the picture are an error (fault 3).
    "polygon_slightly_out_of_range": (0, ["bad row"]),
    "polygon_negative_vertex_box_ok": (0, ["bad row"]),
    # A hair over the border is drawing noise, in boxes as in polygons.
    "value_1.0001": (1, []),
    "negative_coord": (1, []),
    # One bad row does not cost the rest of the file (fault 3).
    "one_bad_row_among_good": (2, ["bad row"]),
    "mixed_5_and_6_columns": (1, ["bad row"]),
    "mixed_4_and_5_columns": (1, ["bad row"]),
    "polygon_then_6_fields": (1, ["bad row"]),
    "polygon_single_field": (1, ["bad row"]),
    "comment_line": (1, ["bad row"]),
    # Lines of spaces and a byte-order mark mean nothing (fault 3).
    "whitespace_only_line": (2, []),
    "whitespace_only_line_polygon": (2, []),
    "leading_bom": (1, []),
    # Duplicates go, the order stays (fault 3).
    "duplicate_rows": (2, ["duplicate row"]),
    # A box row among polygons is a box (fault 2).
    "polygon_then_box_row": (2, []),
    "box_then_polygon": (2, []),
    # An image row is no object, and costs no picture (fault 1).
    "three_columns_only_one_hot": (0, ["image row ignored"]),
    "polygon_then_onehot3": (1, ["image row ignored"]),
    "polygon_blankline_onehot3": (1, ["image row ignored"]),
    "polygon_onehot3_100": (1, ["image row ignored"]),
    "polygon_onehot3_001": (1, ["image row ignored"]),
    "polygon_onehot4_0100": (1, ["image row ignored"]),
    "polygon_onehot2_01": (1, ["image row ignored"]),
    "polygon_onehot5_01000": (1, ["image row ignored"]),
    "box_then_onehot3": (1, ["image row ignored"]),
    "box_then_onehot5": (1, ["image row ignored"]),
}


def test_reference_cases(golden):
    cases = json.loads((golden / "labels.json").read_text())["label_cases"]
    seen = set()
    for case in cases:
        name, text = case["case"], case["label_text"]
        if text is None:  # no label file: see test_scan
            continue
        label = parse_label(text, nc=80, cls_nc=0)
        if name in DEPARTURES:
            seen.add(name)
            kept, kinds = DEPARTURES[name]
            assert (len(label.objects), [p.kind for p in label.problems]) == (kept, kinds), name
            # A departure that is none does not belong in the list.
            agrees = case["image_kept"] and np.array_equal(label.objects.shape, np.shape(case["labels_cls_xywh"]))
            assert not agrees or not np.allclose(label.objects, case["labels_cls_xywh"], atol=1e-6), name
        elif case["image_kept"]:
            expected = np.array(case["labels_cls_xywh"], np.float32).reshape(-1, 5)
            np.testing.assert_allclose(label.objects, expected, atol=1e-6, err_msg=name)
            if case["segments"]:
                for ours, theirs in zip(label.segments, case["segments"], strict=True):
                    np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=name)
        else:  # nothing usable for either, but we name the row and keep the picture
            assert not len(label.objects) and label.problems, name
    assert seen == set(DEPARTURES)
    assert parse_label("0 0.25 0.25 0.1 0.1\n0 0.25 0.25 0.1 0.1", 1, 0).problems  # duplicates are counted by both
