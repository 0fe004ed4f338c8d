"""ActivityNet-style annotations: which events a video shows, read with care.

    {"database": {"video_1": {"subset": "training", "duration": 12.5, "frame": 375,
                              "annotations": [{"segment": [1.2, 3.4], "label": "AR"}]}}}

`frame`, the number of frames, may be missing: then the video file is asked.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.results.timelines import Event
from utils.system.files import read_text

AMBIGUOUS = "Ambiguous"  # THUMOS marks events so that nobody could name; they are no class


@dataclass(frozen=True)
class Record:
    """What the annotations say of one video."""

    name: str
    subset: str
    duration: float
    frames: int | None
    events: tuple[Event, ...]


@dataclass
class Annotations:
    """All records of a file, and what had to be left out of it."""

    file: Path
    records: dict[str, Record]
    problems: list[str] = field(default_factory=list)

    def subset(self, name: str) -> list[Record]:
        """The records of a subset.

        Raises:
            ValueError: There are none; the message lists the subsets that there are.
        """
        found = [record for record in self.records.values() if record.subset == name]
        if not found:
            counts = Counter(record.subset for record in self.records.values())
            there = ", ".join(f"{subset} ({count} videos)" for subset, count in counts.items()) or "no video at all"
            raise ValueError(f"{self.file}: no video of the subset '{name}'; the file has {there}")
        return found

    def labels(self) -> list[str]:
        """All labels of the file, sorted: the class order where none is given."""
        return sorted({event.label for record in self.records.values() for event in record.events})

    def check_labels(self, names: Collection[str]) -> None:
        """Raises ValueError where an event has a label that is no class."""
        for record in self.records.values():
            for event in record.events:
                if event.label not in names:
                    raise ValueError(
                        f"{self.file}: video {record.name} has the label '{event.label}', which is none of the classes "
                        f"{', '.join(names)}"
                    )


def read_json(file: Path, what: str) -> dict:
    """The object of a json file.

    Raises:
        ValueError: It is none, the message names line and column; or a name stands twice, so that one would be lost.
    """

    def once(pairs: list[tuple[str, object]]) -> dict:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{file}: '{name}' stands twice in one object; rename or remove one")
            found[name] = value
        return found

    try:
        content = json.loads(read_text(file), object_pairs_hook=once)
    except json.JSONDecodeError as e:
        raise ValueError(f"{file}: no json ({e.msg} in line {e.lineno}, column {e.colno})") from None
    except RecursionError:
        raise ValueError(f"{file}: no json that can be read, it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: {what} are an object {{…}}, this is a {type(content).__name__}")
    return content


def read_annotations(file: str | Path) -> Annotations:
    """Read and check a file; what cannot be used is left out and named in `problems`.

    Raises:
        FileNotFoundError, ValueError: It is no such file at all.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"annotations {file} are not there")
    database = read_json(file, "annotations").get("database")
    if not isinstance(database, dict):
        raise ValueError(f"{file}: no 'database' in it; expected {{'database': {{video: {{…}}}}}}")
    annotations = Annotations(file, {})
    for name, entry in database.items():
        record = _record(name, entry, annotations.problems)
        if record:
            annotations.records[name] = record
    return annotations


def _record(name: str, entry: object, problems: list[str]) -> Record | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("subset"), str):
        problems.append(f"{name}: no subset; the video is left out")
        return None
    duration, frames = _number(entry.get("duration")), entry.get("frame")
    if duration is None or duration <= 0:
        problems.append(f"{name}: duration {entry.get('duration')!r}; the video is left out")
        return None
    if frames is not None and (isinstance(frames, bool) or _number(frames) is None or frames < 1):
        problems.append(f"{name}: frame {frames!r} is no number of frames; the video is left out")
        return None
    rows = entry.get("annotations", [])
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        problems.append(f"{name}: 'annotations' is no list; the video is left out")
        return None
    events = tuple(filter(None, (_event(name, i, row, duration, problems) for i, row in enumerate(rows, 1))))
    return Record(name, entry["subset"], duration, None if frames is None else int(frames), events)


def _event(name: str, number: int, row: object, duration: float, problems: list[str]) -> Event | None:
    where = f"{name}, event {number}"
    segment = row.get("segment") if isinstance(row, Mapping) else None
    if not isinstance(segment, Sequence) or isinstance(segment, str) or len(segment) != 2:
        problems.append(f"{where}: no segment [start, end]; left out")
        return None
    start, end = map(_number, segment)
    label = row.get("label")
    if start is None or end is None or not isinstance(label, str) or not label:
        problems.append(f"{where}: segment {list(segment)!r} with label {label!r}; left out")
    elif end <= start:
        problems.append(f"{where}: ends at {end:g} s, not after its start {start:g} s; left out")
    elif end <= 0:
        problems.append(f"{where}: ends at {end:g} s, before the video; left out")
    elif start >= duration:
        problems.append(f"{where}: begins at {start:g} s, after the video's end {duration:g} s; left out")
    elif label != AMBIGUOUS:
        if start < 0:
            problems.append(f"{where}: begins at {start:g} s, before the video; taken from 0")
        if end > 1.02 * duration:  # by less where frames are rounded to seconds
            problems.append(f"{where}: ends at {end:g} s, after the video's end {duration:g} s; taken as it is")
        return Event(max(start, 0.0), end, label)
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def grid_events(record: Record, frames: int, frame_stride: int, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Events in sampled frames, float32 [N, 2], and their classes [N]; exact doubles once.

    Both ends are whole frames of the video, rounded down, before they are divided by the stride.
    """
    index = {name: i for i, name in enumerate(names)}
    rows: dict[tuple[int, int, int], None] = {}
    for event in record.events:
        ends = (int(t / record.duration * frames) for t in (event.start, event.end))
        rows[(*ends, index[event.label])] = None
    table = np.array(list(rows), np.float32).reshape(-1, 3)
    return table[:, :2] / frame_stride, table[:, 2].astype(int)


# Results --------------------------------------------------------------------------------------------------------------


def results_json(predictions: Mapping[str, Sequence[Event]]) -> dict:
    """Predictions as other evaluators read them."""
    return {
        "results": {
            video: [{"segment": [e.start, e.end], "label": e.label, "score": e.score} for e in events]
            for video, events in predictions.items()
        }
    }


def read_results(file: str | Path) -> dict[str, list[Event]]:
    """The opposite of `results_json`.

    Raises:
        FileNotFoundError, ValueError: It is no such file; one sentence.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"results {file} are not there")
    results = read_json(file, "results").get("results")
    if not isinstance(results, dict):
        raise ValueError(f"{file}: no 'results' in it; expected {{'results': {{video: [{{…}}]}}}}")
    found = {}
    for video, rows in results.items():
        try:
            found[video] = []
            for row in rows:
                start, end = map(float, row["segment"])
                found[video].append(Event(start, end, str(row["label"]), float(row["score"])))
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{file}: {video} has a row without segment, label and score ({e})") from None
    return found
