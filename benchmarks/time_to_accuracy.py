"""Minutes until a training is as good as it gets: this project, another checkout of it, and a peer from PyPI.

    python benchmarks/time_to_accuracy.py --data heart.yaml --tree ../before --peer-python /path/to/peer/bin/python

Each trains its own network of n size for `--epochs` with its default recipe, in a process of its own, one after the
other. The clock starts with the process; an epoch counts when its validation is written into results.csv. Printed are,
for each, the final mAP50 and mAP50-95, and the minutes until mAP50 reaches `--level`, until mAP50-95 reaches 0.9 of its
own final value, and until it reaches the peer's final one; below, ratios to the first row. Run it on a quiet machine.

The peer, `ultralytics`, is no requirement of the project: `pip install ultralytics` into an environment of its own.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_speed import detection_copy, peer_environment

ROOT = Path(__file__).resolve().parents[1]
PEER = """
import sys, ultralytics
ultralytics.settings.update({"sync": False})
data, epochs, imgsz, batch, seed, project = sys.argv[1:]
ultralytics.YOLO("yolov5n.yaml").train(data=data, epochs=int(epochs), imgsz=int(imgsz), batch=int(batch), device="cpu",
    seed=int(seed), project=project, name="run", pretrained=False, plots=False, workers=2)
"""
Point = tuple[float, float, float]  # minutes, mAP50, mAP50-95


def commands(opt: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Command of each contestant; each writes `folder/NAME/run/results.csv`."""
    words = ["--epochs", opt.epochs, "--img", opt.imgsz, "--batch-size", opt.batch_size, "--seed", opt.seed]
    words += ["--data", opt.data, "--cache", "ram", "--device", "cpu", "--noplots", "--name", "run"]
    made = {
        "joint": ["train_joint.py", "--cfg", "yolov5n_cls.yaml"],
        "detection alone": ["train_joint.py", "--cfg", "yolov5n.yaml"],
    }
    if opt.tree:
        made["joint, other checkout"] = [Path(opt.tree).resolve() / "train_joint.py", "--cfg", "yolov5n_cls.yaml"]
    made = {
        name: [sys.executable, ROOT / script, *more, *words, "--project", folder / name]
        for name, (script, *more) in made.items()
    }
    if opt.peer_python:
        yaml, _ = detection_copy(opt.data, folder / "copy", 1, valid=1_000_000)
        made["peer"] = [opt.peer_python, "-c", PEER, yaml, opt.epochs, opt.imgsz, opt.batch_size, opt.seed]
        made["peer"].append(folder / "peer")
    return {name: list(map(str, command)) for name, command in made.items() if opt.only in ("", name)}


def column(row: dict[str, str], start: str) -> float:
    """The value whose column, without spaces, is `start`, or begins with `start(`."""
    return next(float(v) for k, v in row.items() if k.strip() == start or k.strip().startswith(f"{start}("))


def timed(name: str, command: list[str], folder: Path) -> list[Point]:
    """Run a training; the metrics of each epoch with the minutes at which they were there."""
    points: list[Point] = []
    table = folder / name / "run" / "results.csv"
    log = folder / f"{name}.log"
    began = time.perf_counter()
    with log.open("w") as out:
        env = peer_environment(folder)
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=env)
        while True:
            ended = process.poll() is not None
            rows = list(csv.DictReader(table.read_text().splitlines())) if table.is_file() else []
            for row in rows[len(points) :]:
                if None in row.values():
                    break  # still being written
                ap = [column(row, n) for n in ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")] if name != "peer" else None
                ap = ap or [column(row, n) for n in ("metrics/mAP50", "metrics/mAP50-95")]
                points.append(((time.perf_counter() - began) / 60, *ap))
            if ended:
                break
            time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return points


def first(points: list[Point], which: int, level: float) -> float | None:
    """Minutes until mAP50 (1) or mAP50-95 (2) reaches a level; None: never."""
    return next((p[0] for p in points if p[which] >= level > 0), None)


def main(opt: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {name: timed(name, command, folder) for name, command in commands(opt, folder).items()}
    goal = runs["peer"][-1][2] if "peer" in runs else None
    heads = [f"until mAP50 {opt.level}", "until 0.9 of its end", "until the peer's end", "whole run"]
    print(f"{'':>22}{'mAP50':>8}{'mAP50-95':>10}" + "".join(f"{h:>24}" for h in heads) + "   (minutes)")
    reference = None
    for name, points in runs.items():
        own = [first(points, 1, opt.level), first(points, 2, 0.9 * points[-1][2])]
        own += [first(points, 2, goal) if goal is not None else None, points[-1][0]]
        reference = reference or own
        cells = [
            "never" if v is None else f"{v:.2f}" + (f" ({v / r:.2f} x)" if r and own is not reference else "")
            for v, r in zip(own, reference, strict=True)
        ]
        print(f"{name:>22}{points[-1][1]:>8.3f}{points[-1][2]:>10.3f}" + "".join(f"{c:>24}" for c in cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="heart.yaml", help="data yaml of every contestant")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=float, default=0.5, help="the mAP50 to reach")
    parser.add_argument("--tree", help="another checkout of the project, such as the release before")
    parser.add_argument("--peer-python", help="interpreter of an environment with ultralytics")
    parser.add_argument("--only", default="", help="run this contestant alone")
    opt = parser.parse_args()
    if Path(opt.data).exists():  # else the name of one in data/
        opt.data = str(Path(opt.data).resolve())
    sys.path.insert(0, str(ROOT))
    main(opt)
