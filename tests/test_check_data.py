"""The data check: planted faults are found, and what it counts on the real set is what another count gives."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import seen_on_a_phone
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import check_data
from utils.dataset.checks import KINDS, NearSets, near_pairs
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml, save_yaml

PATIENT, CLIP = r"^(p\d+)_", r"^(p\d+_c\d+)_"


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, file: Path):
        super().__init__()
        self.loads, self.tags, self.text = [], [], ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def make_set(folder: Path, faults: bool) -> Path:
    """Five patients' pictures, of noise so that no two are alike; with faults, one of each kind."""
    rng = np.random.default_rng(0)

    def add(split: str, name: str, box: str = "0 0.5 0.5 0.3 0.3", view: str = "1 0", im: np.ndarray | None = None):
        coarse = rng.integers(0, 255, (8, 8, 3), np.uint8) if im is None else im
        im = cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_NEAREST) if im is None else im
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / split / "images" / f"{name}.png"), im)
        (folder / split / "labels" / f"{name}.txt").write_text(f"{box}\n\n{view}\n" if view else f"{box}\n")
        return im

    for p in range(3):
        for f in range(3):
            add("train", f"p{p}_c1_f{f}", view="0 1" if p else "1 0")
    for p in (3, 4):
        add("val", f"p{p}_c1_f0", "1 0.5 0.5 0.3 0.3")
    if faults:
        leaked = add("train", "p3_c1_f7")  # p3 and its clip are in val
        add("val", "p3_c1_f8", im=leaked)  # the same pixels
        brighter = leaked.copy()
        brighter[:4, :4] = 0
        add("val", "p9_c1_f0", im=brighter)  # nearly the same, of another patient
        add("train", "p5_c1_f0", view="1 0")
        add("train", "p5_c1_f1", view="0 1")  # the clip's views disagree
        add("train", "p6_c1_f0", view="")
        add("train", "p6_c1_f1", box="0 0.5 0.5 0.01 0.9")  # 6 x 576 px at 640
        add("train", "p6_c1_f2<b>")
        (folder / "train" / "images" / "p6_c1_f2<b>.png").write_bytes(b"no picture")
        (folder / "train" / "images" / "p6_c1_f3.heic").write_bytes(b"of another kind")
        (folder / "train" / "labels" / "p6_c1_f4.txt").write_text("0 0.5 0.5 0.3 0.3\n")
        add("train", "p7_c1_f0", im=add("train", "p7_c1_f1"))
    content = {"path": str(folder), "train": "train/images", "val": "val/images", "names": ["a", "b"], "cls_nc": 2}
    save_yaml(folder / "set.yaml", content | {"group": PATIENT})
    return folder / "set.yaml"


def run(data: Path, out: Path, *more: str) -> tuple[int, dict]:
    code = check_data.main(check_data.parse_opt(["--data", str(data), "--out", str(out), *more]))
    return code, json.loads((out / "report.json").read_text())


def test_a_sound_set_passes(tmp_path):
    code, report = run(make_set(tmp_path / "set", faults=False), tmp_path / "out", "--clip-regex", CLIP)
    assert code == 0 and not report["serious"] and report["findings"] == []
    assert report["counts"]["groups"] == report["counts"]["clips"] == 5
    assert report["classes"]["train"]["a"] == {"image_class0": 3, "image_class1": 6, "unknown": 0}
    assert report["classes"]["val"]["b"] == {"image_class0": 2, "image_class1": 0, "unknown": 0}


def test_every_planted_fault_is_found_once(tmp_path, capsys):
    code, report = run(make_set(tmp_path / "set", faults=True), tmp_path / "out", "--clip-regex", CLIP)
    assert code == 1 and report["serious"]
    found = defaultdict(list)
    for f in report["findings"]:
        found[f["kind"]].append(f["name"])
    assert found["unreadable"] == [str(tmp_path / "set/train/images/p6_c1_f2<b>.png")]
    assert [Path(name).name for name in found["row"]] == ["p6_c1_f0.txt:1"]
    assert sorted(Path(name).name for name in found["stray"]) == ["p6_c1_f3.heic", "p6_c1_f4.txt"]
    assert [f["note"].count("no image row") for f in report["findings"] if f["kind"] == "row"] == [1]
    assert found["group leak"] == ["p3"] and found["clip leak"] == ["p3_c1"]
    assert found["same picture, splits"] == ["p3_c1_f7.png"] and found["same picture"] == ["p7_c1_f0.png"]
    assert found["clip classes"] == ["p5_c1"]
    assert found["box size"] == ["p6_c1_f1.png"]
    assert found["near, splits"] == ["p3_c1_f7.png"]
    assert found["near, groups"] == ["p3 and p9"]  # one set: p9's picture is near two of p3's
    assert found["near"] == ["p3_c1_f8.png"]  # and p9's, in val
    assert report["groups"]["p3"] == {"train": 1, "val": 2} and report["groups"]["p0"] == {"train": 3, "val": 0}
    assert report["counts"]["groups in train"] == 7 and report["counts"]["groups in val"] == 3
    assert report["counts"]["groups of pixel-identical pictures"] == 2
    printed = capsys.readouterr().out
    assert all(about.title in printed for about in KINDS.values())
    with open(tmp_path / "out" / "findings.csv", newline="") as f:
        assert len(list(csv.reader(f))) == len(report["findings"]) + 1


def test_the_page_stands_alone_and_escapes_names(tmp_path):
    run(make_set(tmp_path / "set", faults=True), tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert page.loads and all(link.startswith("data:") for link in page.loads)
    assert "p6_c1_f2<b>.png" in page.text  # as text, not as a tag
    assert "img" in page.tags and "script" not in page.tags


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    run(make_set(tmp_path / "set", faults=True), tmp_path / "out")
    pictures, missing, wider = seen_on_a_phone(tmp_path / "out" / "report.html", tmp_path / "browser")
    assert pictures == Page(tmp_path / "out" / "report.html").tags.count("img") > 0
    assert (missing, wider) == (0, 0)


def test_exit_codes_of_the_command(tmp_path, monkeypatch):
    def call(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "check_data.py"), run_name="__main__")
        return end.value.code

    assert call("--data", make_set(tmp_path / "set", faults=True), "--out", tmp_path / "out") == 1
    assert call("--data", tmp_path / "nothing.yaml") == 2


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_near_pairs_are_exact(seed, bits, rows):
    hashes = np.random.default_rng(seed).random((9, 24)) < 0.5
    want = [(i, j, int((hashes[i] != hashes[j]).sum())) for i in range(9) for j in range(i + 1, 9)]
    found = np.concatenate(list(near_pairs(hashes, bits, rows)))
    assert sorted(map(tuple, found.tolist())) == [pair for pair in want if pair[2] <= bits]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_near_sets_are_those_of_a_walk_from_picture_to_picture(seed, parts):
    pairs = np.random.default_rng(seed).integers(0, 14, (9, 3))
    sets = NearSets(14)
    for part in np.array_split(pairs, parts):
        sets.add(part)
    want, todo = [], set(pairs[:, :2].ravel().tolist())
    while todo:
        walk, reached = [todo.pop()], set()
        while walk:
            reached.add(at := walk.pop())
            walk += [int(a + b - at) for a, b in pairs[:, :2] if at in (a, b) and int(a + b - at) not in reached]
        want.append((sorted(reached), min(bits for a, _, bits in pairs.tolist() if a in reached)))
        todo -= reached
    assert sorted((chosen.tolist(), bits) for chosen, bits in sets.found()) == sorted(want)


def test_a_thousand_like_frames_are_one_set():
    hashes = np.tile(np.random.default_rng(0).random(256) < 0.5, (1000, 1))
    hashes[-1] ^= True
    sets = NearSets(1000)
    for pairs in near_pairs(hashes, rows=64):
        sets.add(pairs)
    ((chosen, bits),) = sets.found()
    assert chosen.tolist() == list(range(999)) and bits == 0


def test_pictures_of_one_colour_are_not_near_each_other(tmp_path):
    data = make_set(tmp_path / "set", faults=False)
    for p, colour in ((0, 10), (1, 200), (2, 90)):
        cv2.imwrite(str(tmp_path / f"set/train/images/p{p}_c1_f0.png"), np.full((96, 96, 3), colour, np.uint8))
    assert run(data, tmp_path / "out")[1]["findings"] == []


def test_a_pattern_that_finds_nothing_is_no_pass(tmp_path):
    data = make_set(tmp_path / "set", faults=False)
    with pytest.raises(ValueError, match=r"'\^zzz' finds nothing in the name of any picture, such as .*p0_c1_f0"):
        run(data, tmp_path / "out", "--group-regex", "^zzz")
    code, report = run(data, tmp_path / "out", "--clip-regex", r"^(p[0-3]_c\d+)_")
    assert code == 1
    (finding,) = report["findings"]
    assert (finding["kind"], finding["note"]) == ("no group", "1 pictures without a clip")


def test_a_class_may_be_called_what_the_table_says_itself(tmp_path):
    data = make_set(tmp_path / "set", faults=True)
    save_yaml(data, load_yaml(data) | {"names": ["no object", "b"], "cls_names": ["unknown", "v"]})
    _, report = run(data, tmp_path / "out")
    cells = report["classes"]["train"]["no object (0)"]
    assert cells == {"unknown (0)": 8, "v": 7, "unknown (-1)": 1} and "no object (-1)" in report["classes"]["train"]


def test_list_files_count_from_the_root_of_the_data(tmp_path):
    data = make_set(tmp_path / "set", faults=False)
    (tmp_path / "set" / "lists").mkdir()
    lines = "".join(f"train/images/p{p}_c1_f0.png\n" for p in range(3))
    (tmp_path / "set" / "lists" / "some.txt").write_text(lines)
    save_yaml(data, load_yaml(data) | {"train": "lists/some.txt"})
    assert run(data, tmp_path / "out")[1]["counts"]["pictures in train"] == 3


@pytest.mark.slow
def test_the_real_set_against_another_count(shared, tmp_path):
    """Names by string cuts, pixels by Pillow, views from the last line of the label files."""
    files = sorted((shared / "heart").glob("*/images/*.jpg"))
    patients, clips, views, same = defaultdict(set), defaultdict(set), defaultdict(set), defaultdict(list)
    for file in files:
        patient, clip, _ = file.stem.split("_")
        split = file.parts[-3]
        patients[patient].add(split)
        clips[patient + clip].add(split)
        last = file.parents[1].joinpath("labels", f"{file.stem}.txt").read_text().split("\n")[-1]
        if re.fullmatch(r"\[?[01][, ]+[01][, ]+[01]\]?", last.strip()):
            views[patient + clip].add(last)
        with Image.open(file) as im:
            same[im.size, im.convert("RGB").tobytes()].append(split)
    same = [splits for splits in same.values() if len(splits) > 1]

    _, report = run(
        shared / "heart" / "heart.yaml", tmp_path, "--group-regex", PATIENT, "--clip-regex", CLIP, "--imgsz", "320"
    )
    counts = report["counts"]
    assert counts["pictures in train"] + counts["pictures in val"] == len(files) == 1225
    assert counts["groups"] == len(patients) == 54
    assert counts["clips"] == len(clips) == 142
    assert counts["group leak"] == sum(len(s) > 1 for s in patients.values()) == 33
    assert counts["clip leak"] == sum(len(s) > 1 for s in clips.values()) == 77
    assert counts["clip classes"] == sum(len(v) > 1 for v in views.values()) == 32
    assert counts["groups of pixel-identical pictures"] == len(same) == 30
    assert counts["same picture, splits"] == sum(len(set(s)) > 1 for s in same) == 6
    assert counts["row"] == 2  # two published labels have no image row
    assert counts["near, groups"] == 0
