"""Events from other programs into annotations: csv tables, Label Studio, ELAN.

python -m tad.convert --from events.csv --videos videos --out annotations.json --val-share 0.2 --group 'p\\d+'

A csv has the columns video, start, end, label (seconds), and may have subset. Label Studio's are its json exports of
video timelines (frames) or of segments in seconds. ELAN's are .eaf files, or a folder of them, one per video.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from tad.video import SUFFIXES, VideoFile, bare_name
from utils.dataset.config import pattern
from utils.system.arguments import check_ranges, parse_words
from utils.system.command_line import one_sentence
from utils.system.files import read_text, whole_file
from utils.system.voice import say, warn

COLUMNS = ("video", "start", "end", "label")


class Row(NamedTuple):
    """One event; start and end count seconds, or frames where `in_frames` is set."""

    video: str
    start: float
    end: float
    label: str
    subset: str = ""
    in_frames: bool = False


def rows_of_csv(file: Path) -> Iterator[Row]:
    """Rows of a table with a header, or of four columns in the usual order; comma, semicolon or tab between them."""
    text = read_text(file)
    first = text.splitlines()[0] if text.strip() else ""
    mark = max(",;\t", key=first.count)
    lines = list(csv.reader(io.StringIO(text), delimiter=mark))
    head = [c.strip().lower() for c in lines[0]] if lines else []
    if not set(COLUMNS) <= set(head):
        if len(head) < 4 or any(c in head for c in COLUMNS):
            raise ValueError(f"{file}: its columns must be {', '.join(COLUMNS)}, not {', '.join(head) or 'nothing'}")
        head, lines = list(COLUMNS), [[], *lines]
    for number, line in enumerate(lines[1:], 2 if lines[0] else 1):
        if not any(c.strip() for c in line):
            continue
        cells = dict(zip(head, (c.strip() for c in line), strict=False))
        try:
            yield Row(
                cells["video"], float(cells["start"]), float(cells["end"]), cells["label"], cells.get("subset", "")
            )
        except (KeyError, ValueError):
            raise ValueError(f"{file}:{number}: expected {', '.join(COLUMNS)}, found {mark.join(line)}") from None


def rows_of_label_studio(file: Path) -> Iterator[Row]:
    """Events of a Label Studio export (json): timelines of videos in frames from 1, other segments in seconds."""
    try:
        tasks = json.loads(read_text(file))
    except json.JSONDecodeError as e:
        raise ValueError(f"{file}: no json ({e.msg} in line {e.lineno})") from None
    if not isinstance(tasks, list):
        raise ValueError(f"{file}: no export of Label Studio, which is a list of tasks")
    for number, task in enumerate(tasks, 1):
        try:
            data = task["data"]
            video = next(v for k, v in data.items() if k.startswith("video") or str(v).lower().endswith(SUFFIXES))
            done = [a for a in task.get("annotations") or task.get("completions") or [] if not a.get("was_cancelled")]
            for result in (r for a in done[-1:] for r in a["result"]):
                value = result["value"]
                labels = value.get("timelinelabels") or value.get("labels") or value.get("videolabels") or []
                spans = value.get("ranges") or ([value] if "start" in value and "end" in value else [])
                for label in labels:
                    for span in spans:
                        framed = "ranges" in value
                        start = float(span["start"]) - framed
                        yield Row(str(video), start, float(span["end"]), str(label), in_frames=framed)
        except (KeyError, TypeError, ValueError, StopIteration, AttributeError) as e:
            raise ValueError(
                f"{file}: task {number} is none of a video with segments ({type(e).__name__} {e})"
            ) from None


def rows_of_elan(file: Path) -> Iterator[Row]:
    """Events of an ELAN file: every annotation of every tier that is aligned in time."""
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except ElementTree.ParseError as e:
        raise ValueError(f"{file}: no ELAN file ({e})") from None
    media = root.find(".//MEDIA_DESCRIPTOR")
    video = media.get("MEDIA_URL", "") if media is not None else ""
    times = {s.get("TIME_SLOT_ID"): s.get("TIME_VALUE") for s in root.iter("TIME_SLOT")}
    for annotation in root.iter("ALIGNABLE_ANNOTATION"):
        start, end = (times.get(annotation.get(f"TIME_SLOT_REF{i}")) for i in (1, 2))
        label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
        if start is None or end is None or not label:
            warn(f"{file}: {annotation.get('ANNOTATION_ID')} has no times or no text; left out")
            continue
        yield Row(video or f"{file.stem}.mp4", int(start) / 1000, int(end) / 1000, label)


def rows_of(source: Path) -> list[Row]:
    """Events of a file by its suffix, or of all ELAN files of a folder.

    Raises:
        FileNotFoundError, ValueError: One sentence that names the file, and the line where there is one.
    """
    if source.is_dir():
        files = sorted(source.rglob("*.eaf"))
        if not files:
            raise FileNotFoundError(f"{source}: no .eaf file in this folder")
        return [row for file in files for row in rows_of_elan(file)]
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not there")
    readers = {".csv": rows_of_csv, ".tsv": rows_of_csv, ".json": rows_of_label_studio, ".eaf": rows_of_elan}
    if source.suffix.lower() not in readers:
        raise ValueError(f"{source}: expected one of {', '.join(readers)}")
    return list(readers[source.suffix.lower()](source))


def video_name(text: str, there: Collection[str] = ()) -> str:
    """The bare name of a video in a path, an address or an upload of Label Studio.

    Args:
        there: Names that exist: one of them is taken as it stands, whatever an address would make of it.
    """
    path = text.replace("\\", "/")
    names = [bare_name(p) for p in (path, unquote(urlsplit(path).path))]
    upload = re.sub(r"^[0-9a-f]{8}-", "", names[-1])  # Label Studio puts eight digits before an uploaded file's name
    return next((name for name in names if name in there), upload)


def assign_subsets(
    names: list[str], share: float, group: str, seed: int, given: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """`training` or `validation` for every video; videos of one group (by a regular expression) stay together.

    Args:
        given: Videos and subsets that they belong to, with the other videos of their group.

    Raises:
        ValueError: Two of these are of one group and different.
    """
    found = {name: (re.search(group, name) if group else None) for name in names}
    groups = {name: (m and m.group(m.re.groups and 1)) or name for name, m in found.items()}
    kinds = sorted(set(groups.values()))
    order = np.random.default_rng(seed).permutation(len(kinds))
    held = {kinds[i] for i in order[: round(share * len(kinds))]}
    subsets = {kind: "validation" if kind in held else "training" for kind in kinds}
    told: dict[str, str] = {}
    for name, subset in given:
        if told.setdefault(groups[name], subset) != subset:
            whose = f"its group {groups[name]}" if group else "it"
            raise ValueError(f"{name}: {whose} is in the subsets {told[groups[name]]} and {subset}")
    return {name: (subsets | told)[groups[name]] for name in names}


def second_of(frame: float, frames: int, duration: float) -> float:
    """The second of a frame, to four digits, from which training, which rounds down, finds that frame again."""
    second = round(frame * duration / frames, 4)
    return second if second / duration * frames >= frame else round(second + 1e-4, 4)


def convert(rows: list[Row], videos: Path, share: float = 0.0, group: str = "", seed: int = 0) -> dict:
    """Annotations of all videos of a folder; those without a row are there too, without events.

    Raises:
        ValueError: A row names a video that is not in the folder, none is there, or two have one name.
    """
    files: dict[str, Path] = {}
    for file in sorted(videos.glob("*")):  # where training looks for them: not in folders inside
        usual = file.suffix.lower() in SUFFIXES and file.suffix in (file.suffix.lower(), file.suffix.upper())
        if usual and files.setdefault(file.stem, file) != file:
            raise ValueError(f"{file}: {files[file.stem]} has the same name; rename one of them")
    if not files:
        raise ValueError(f"{videos}: no video there (files ending in {', '.join(SUFFIXES)}, not in folders inside)")
    named = [(video_name(row.video, files), row) for row in rows]
    if missing := sorted({name for name, _ in named} - set(files)):
        some = ", ".join(missing[:4]) + (" …" if len(missing) > 4 else "")
        raise ValueError(f"{videos}: {len(missing)} annotated video(s) are not there: {some}")
    given = [(name, row.subset) for name, row in named if row.subset]
    subsets = assign_subsets(list(files), share, group, seed, given)
    database = {}
    for name, file in files.items():
        try:
            with VideoFile(file) as video:
                duration, frames = round(video.duration, 4), video.frames
        except ValueError as e:
            if any(other == name for other, _ in named):
                raise
            warn(f"{e}; left out")
            continue
        events = []
        for row in (row for other, row in named if other == name):
            ends = row.start, row.end
            if row.in_frames:
                ends = (second_of(frame, frames, duration) for frame in ends)
            start, end = ends
            events.append({"segment": [round(start, 4), round(min(end, duration), 4)], "label": row.label})
        record = {"subset": subsets[name], "duration": duration, "frame": frames, "annotations": events}
        database[name] = record
    if not database:
        raise ValueError(f"{videos}: none of its videos can be read")
    return {"database": database}


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--from", dest="source", type=Path, required=True, help=".csv, Label Studio's .json, .eaf or a folder of .eaf")
    add("--videos", type=Path, required=True, help="folder of the videos")
    add("--out", type=Path, required=True, help="json to write")
    add("--val-share", type=float, default=0.2, help="share of the groups for validation, where no subset is given")
    add("--group", default="", help="regular expression that finds a video's group (patient, camera) in its name")
    add("--seed", type=int, default=0)
    return parse_words(parser, args)


def main(opt: argparse.Namespace) -> None:
    """Convert as the options say.

    Raises:
        FileNotFoundError, ValueError: One sentence.
    """
    check_ranges(vars(opt))
    group = pattern(opt.group, "--group") or ""
    content = convert(rows_of(opt.source), opt.videos, opt.val_share, group, opt.seed)
    with whole_file(opt.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    events = [a for record in content["database"].values() for a in record["annotations"]]
    labels = sorted({a["label"] for a in events})
    say(f"{opt.out}: {len(content['database'])} videos, {len(events)} events of {', '.join(labels)}")


if __name__ == "__main__":
    with one_sentence("tad.convert"):
        main(parse_opt())
