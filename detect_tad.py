"""Find events in videos: what happens, from when to when.

python detect_tad.py --weights runs/tad/exp/weights/best.pt --source clip.mp4
python detect_tad.py --weights runs/tad/exp/weights/best.pt --source folder --save-vid
find . -name '*.mp4' | python detect_tad.py --weights best.pt --source -                 # a stream of file names
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.system.arguments import AMP_CHOICES, check_ranges, parse_words
from utils.system.paths import ROOT, UniqueStems, increment_path


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", required=True, help="checkpoint: of train_tad.py, or a public AdaTAD one")
    add("--source", required=True, help="a video, a folder, a glob, a .txt list of files, or - for names on the input")
    add("--cfg", default="", help="model yaml, for a public checkpoint")
    add("--data", default="", help="data yaml with the classes, for a public checkpoint")
    add("--conf-thres", type=float, default=0.3, help="least score of events that are shown and written")
    add("--max-det", type=int, default=200, help="most events of a video")
    add("--save-vid", action="store_true", help="write the videos with their events drawn in")
    add("--nosave", action="store_true", help="write tables alone, no pictures")
    add("--threads", type=int, default=0, help="threads that decode; 0: as many as there are cores")
    add("--amp", choices=AMP_CHOICES, default="auto", help="auto: float16 on CUDA, bfloat16 on processors that have it")
    add("--device", default="", help="cpu, 0, mps; empty is the best there is")
    add("--project", default=str(ROOT / "runs/tad_detect"), help="folder of the results")
    add("--name", default="exp", help="folder of these results")
    add("--exist-ok", action="store_true", help="write into an existing folder")
    return parse_words(parser, args)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


import torch
from tqdm import tqdm

from tad.annotations import results_json
from tad.burn import burn
from tad.config import load_config
from tad.data import load_data
from tad.load import load_model
from tad.predict import predict_video
from tad.video import SUFFIXES, VideoFile
from utils.results.timelines import Event, plot_timelines
from utils.system.command_line import one_sentence
from utils.system.devices import amp_dtype, describe_device, select_device, use_machine
from utils.system.files import read_text, whole_file
from utils.system.voice import say, warn


def sources(source: str) -> Iterator[Path]:
    """The files that --source names.

    Raises:
        FileNotFoundError: There are none.
    """
    if source == "-":
        yield from (Path(line.strip()) for line in sys.stdin if line.strip())
        return
    path = Path(os.path.expanduser(source))  # that of Path raises where there is no such home folder
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
    elif path.suffix.lower() == ".txt" and path.is_file():
        files = [Path(line.strip()) for line in read_text(path).splitlines() if line.strip()]
    elif path.exists() or not glob.has_magic(source):
        files = [path]
    else:
        files = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not files:
        raise FileNotFoundError(f"--source {source}: no video there (files ending in {', '.join(SUFFIXES)})")
    yield from files


def describe(file: Path, events: list[Event], video: VideoFile) -> str:
    """A table of one video's events, in their order in time."""
    head = f"{file}: {video.frames} frames, {video.duration:.2f} s, {len(events)} event(s)"
    rows = [f"  {e.start:9.2f} s to {e.end:9.2f} s  {e.score:.3f}  {e.label}" for e in sorted(events)]
    return "\n".join([head, *rows])


class Results:
    """The files of a detection: detections.json and events.csv, whole after every video."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder, {}

    def add(self, video: str, events: list[Event]) -> None:
        self.events[video] = events
        with whole_file(self.folder / "detections.json") as temporary:
            temporary.write_text(json.dumps(results_json(self.events), indent=1), encoding="utf-8")
        with (
            whole_file(self.folder / "events.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as f,
        ):
            writer = csv.writer(f)
            writer.writerow(("video", "start", "end", "label", "score"))
            for name, rows in self.events.items():
                writer.writerows((name, e.start, e.end, e.label, e.score) for e in sorted(rows))


def detect(
    opt: argparse.Namespace, model: torch.nn.Module, device: torch.device, file: Path, results: Results, stem: str
) -> None:
    """Events of one file into the results, and its pictures beside them."""
    labels = list(model.names.values())
    shown = {"mininterval": 1, "leave": False, "disable": None}  # on a terminal alone
    with tqdm(desc=file.name, unit="window", **shown) as bar:

        def watch(done: int, of: int) -> None:
            bar.total = of
            bar.update()

        events, video = predict_video(model, file, device, amp_dtype(device, opt.amp), opt.threads, watch)
    events = [e for e in events if e.score >= opt.conf_thres][: opt.max_det]
    results.add(str(file), events)
    say(describe(file, events, video))
    if not opt.nosave:
        drawn = results.folder / f"{stem}_timeline.png"
        plot_timelines({file.name: None}, {file.name: events}, labels, drawn, opt.conf_thres, duration=video.duration)
    if opt.save_vid:
        with tqdm(desc=f"Writing {stem}.mp4", total=video.frames, unit="frame", **shown) as bar:
            burn(video, events, labels, results.folder / f"{stem}.mp4", lambda: bar.update())


def main(opt: argparse.Namespace) -> dict[str, list[Event]]:
    """Detect as the options say; returns the events by file.

    Raises:
        FileNotFoundError, ValueError: The weights, or no file could be used; one sentence.
    """
    check_ranges(vars(opt))
    device = select_device(opt.device)
    use_machine()
    say(f"Temporal detection on {describe_device(device)}")
    names = load_data(opt.data).names if opt.data else None
    model = load_model(opt.weights, load_config(opt.cfg) if opt.cfg else None, names).to(device)
    files = sources(opt.source)
    folder = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True)
    results, stems, problems = Results(folder), UniqueStems(), []
    for file in files:
        try:
            detect(opt, model, device, file, results, stems(file))
        except (FileNotFoundError, ValueError) as e:
            problems.append(str(e))
            warn(f"{e}; {'its pictures are not drawn' if str(file) in results.events else 'left out'}")
    stems.save(folder)
    if not results.events:
        raise ValueError(problems[0] if problems else f"--source {opt.source}: no video there")
    say(f"Results saved to {folder}" + (f"; {len(problems)} file(s) with problems" if problems else ""))
    return results.events


def command_line() -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("detect_tad.py"):
        main(parse_opt())


if __name__ == "__main__":
    command_line()
