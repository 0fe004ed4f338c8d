"""Events of other programs, made into annotations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.echo_clips import write_video
from tad.annotations import grid_events, read_annotations
from tad.convert import Row, assign_subsets, convert, main, parse_opt, rows_of, video_name


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in ("p1_a", "p1_b", "p2_a"):
        write_video(folder / f"{name}.mp4", [np.zeros((32, 32, 3), np.uint8)] * 50)
    return folder


EVENTS = [("p1_a", 0.4, 1.2, "MR"), ("p1_a", 1.4, 1.8, "AR"), ("p2_a", 0.0, 0.4, "MR")]
CSV = "video,start,end,label\np1_a.mp4,0.4,1.2,MR\np1_a,1.4,1.8,AR\nfolder/p2_a.mp4,0,0.4,MR\n"
LABEL_STUDIO = [
    {
        "data": {"video": "/data/upload/1/0123abcd-p1_a.mp4"},
        "annotations": [
            {"result": []},  # an earlier one; the last counts
            {
                "result": [
                    {"value": {"ranges": [{"start": 11, "end": 30}], "timelinelabels": ["MR"]}},
                    {"value": {"start": 1.4, "end": 1.8, "labels": ["AR"]}},
                ]
            },
        ],
    },
    {
        "data": {"video_url": "https://host/p2_a.mp4?x=1"},
        "annotations": [{"result": [{"value": {"start": 0, "end": 0.4, "labels": ["MR"]}}]}],
    },
]
ELAN = """<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/x/{video}.mp4"/></HEADER>
<TIME_ORDER>{slots}</TIME_ORDER><TIER TIER_ID="a">{annotations}</TIER></ANNOTATION_DOCUMENT>"""


def elan(video: str) -> str:
    slots, annotations = "", ""
    for i, (_, start, end, label) in enumerate(e for e in EVENTS if e[0] == video):
        slots += f'<TIME_SLOT TIME_SLOT_ID="s{i}" TIME_VALUE="{round(start * 1000)}"/>'
        slots += f'<TIME_SLOT TIME_SLOT_ID="e{i}" TIME_VALUE="{round(end * 1000)}"/>'
        annotations += (
            f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{i}" TIME_SLOT_REF1="s{i}" TIME_SLOT_REF2="e{i}">'
            f"<ANNOTATION_VALUE>{label}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
        )
    return ELAN.format(video=video, slots=slots, annotations=annotations)


@pytest.mark.parametrize("kind", ["csv", "semicolon", "bare", "label studio", "elan"])
def test_every_form_gives_the_same_events(videos, tmp_path, kind):
    if kind == "elan":
        source = tmp_path / "elan"
        source.mkdir()
        for video in ("p1_a", "p2_a"):
            (source / f"{video}.eaf").write_text(elan(video))
    elif kind == "label studio":
        source = tmp_path / "export.json"
        source.write_text(json.dumps(LABEL_STUDIO))
    else:
        source = tmp_path / "events.csv"
        text = CSV.replace(",", ";") if kind == "semicolon" else CSV
        source.write_text(text.split("\n", 1)[1] if kind == "bare" else text)
    out = tmp_path / "annotations.json"
    words = ["--from", str(source), "--videos", str(videos), "--out", str(out), "--val-share", "0.5"]
    main(parse_opt([*words, "--group", r"p\d"]))
    with pytest.raises(ValueError, match=r"--group: '\(p' is no regular expression"):
        main(parse_opt([*words, "--group", "(p"]))
    annotations = read_annotations(out)
    assert not annotations.problems and list(annotations.records) == ["p1_a", "p1_b", "p2_a"]
    found = [(r.name, *e[:3]) for r in annotations.records.values() for e in r.events]
    assert found == EVENTS
    assert annotations.records["p1_a"].frames == 50 and annotations.records["p1_a"].duration == 2.0
    subsets = {name: record.subset for name, record in annotations.records.items()}
    assert subsets["p1_a"] == subsets["p1_b"] != subsets["p2_a"]


def test_subsets_of_a_table_count(videos, tmp_path):
    source = tmp_path / "events.csv"
    source.write_text("subset,video,label,start,end\ntest,p1_a,MR,0,1\n")
    database = convert(rows_of(source), videos)["database"]
    assert database["p1_a"]["subset"] == "test" and database["p2_a"]["subset"] == "training"


def test_a_subset_holds_for_the_whole_group(videos):
    rows = [Row("p1_b", 0, 1, "MR", "validation"), Row("p1_a", 0, 1, "MR")]
    database = convert(rows, videos, group=r"p\d")["database"]
    subsets = {name: entry["subset"] for name, entry in database.items()}
    assert subsets == {"p1_a": "validation", "p1_b": "validation", "p2_a": "training"}
    for other in ("p1_a", "p1_b"):
        with pytest.raises(ValueError, match="its group p1 is in the subsets validation and training"):
            convert([*rows, Row(other, 1, 2, "MR", "training")], videos, group=r"p\d")


@pytest.mark.parametrize("fps", [24, 30])
def test_frames_of_other_programs_stay_those_frames(tmp_path, fps):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/v.mp4", [np.zeros((32, 32, 3), np.uint8)] * 60, fps)
    spans = [(i, i + 1 + i % 7) for i in range(50)]
    rows = [Row("v", *span, "a", in_frames=True) for span in spans]
    (tmp_path / "a.json").write_text(json.dumps(convert(rows, tmp_path / "videos")))
    record = read_annotations(tmp_path / "a.json").records["v"]
    assert grid_events(record, 60, 1, ["a"])[0].tolist() == [list(span) for span in spans]


def test_a_file_that_is_no_video_stops_only_where_an_event_names_it(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5)
    (tmp_path / "._a.mp4").write_bytes(b"of another system")
    assert list(convert([], tmp_path)["database"]) == ["a"]
    assert "._a.mp4: no video that can be read" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match=r"\._a\.mp4: no video"):
        convert([Row("._a", 0, 1, "MR")], tmp_path)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(ValueError, match="none of its videos can be read"):
        convert([], tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "video,start,end\nv,1,2\n", "its columns must be video, start, end, label"),
        ("a.csv", "video,start,end,label\nv,1,two,x\n", "a.csv:2: expected"),
        ("a.csv", "", "its columns must be"),
        ("a.json", "{}", "a list of tasks"),
        ("a.json", "[{}]", "task 1"),
        ("a.json", "[", "no json"),
        ("a.eaf", "<a", "no ELAN file"),
        ("a.doc", "", "expected one of .csv"),
    ],
)
def test_files_that_are_none_are_told(tmp_path, name, text, says):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        rows_of(file)
    assert str(file) in str(error.value)


def test_a_missing_video_is_told(videos, tmp_path):
    source = tmp_path / "events.csv"
    source.write_text(CSV.replace("p2_a", "p9"))
    with pytest.raises(ValueError, match=r"1 annotated video\(s\) are not there: p9"):
        convert(rows_of(source), videos)
    with pytest.raises(FileNotFoundError, match="is not there"):
        rows_of(tmp_path / "none.csv")


def test_names_of_videos():
    names = {"a.b.mp4": "a.b", "C:\\x\\v.avi": "v", "/data/upload/1/0123abcd-clip%201.mp4": "clip 1", "v": "v"}
    assert {text: video_name(text) for text in names} == names
    there = {"20240131-clip": "20240131-clip", "20240131-clip.mp4": "20240131-clip", "x/Case #3.mp4": "Case #3"}
    assert {text: video_name(text, there.values()) for text in there} == there


def test_two_videos_of_one_name_are_told_and_those_in_folders_are_not_taken(tmp_path):
    """Training finds neither."""
    (tmp_path / "inside").mkdir()
    for file in ("a.mp4", "inside/b.mp4"):
        write_video(tmp_path / file, [np.zeros((32, 32, 3), np.uint8)] * 5)
    assert list(convert([], tmp_path)["database"]) == ["a"]
    (tmp_path / "a.mkv").write_bytes((tmp_path / "a.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"a\.mp4: .*a\.mkv has the same name"):
        convert([], tmp_path)


def test_groups_stay_together():
    names = [f"p{i // 3}_c{i % 3}" for i in range(60)]
    subsets = assign_subsets(names, 0.25, r"p\d+", 1)
    held = {n.split("_")[0] for n in names if subsets[n] == "validation"}
    assert len(held) == 5 and all((subsets[n] == "validation") == (n.split("_")[0] in held) for n in names)
