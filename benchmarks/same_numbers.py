"""Do two versions of the project compute the same numbers, bit for bit?

    python benchmarks/same_numbers.py --tree ../before --out before.json       # in any checkout
    python benchmarks/same_numbers.py --out after.json --against before.json   # exit code 1 where something differs

Trains the demo set for two epochs (float32, seed 0, one thread) and, with `--checkpoint` and `--data`, validates a
trained network. Compared are a checksum of every tensor of best.pt, results.csv and metrics.json. New columns and keys
are no difference, and seconds are left out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TRAINING = "train_joint.py --data heart.yaml --epochs 2 --img 128 --amp off --workers 0 --seed 0 --device cpu --noplots"
MEASURED = ("speed_ms", "seconds")  # differ from run to run


def run(tree: Path, command: str, folder: Path) -> None:
    words = [sys.executable, *command.split(), "--project", str(folder.parent), "--name", folder.name]
    done = subprocess.run(words, cwd=tree, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed in {tree}:\n{done.stderr[-2000:]}")


def flat(value: object, name: str = "") -> dict[str, object]:
    """Leaves of nested dicts and lists by their path."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, x in value.items() if key not in MEASURED for k, v in flat(x, f"{name}/{key}").items()}


def numbers(folder: Path) -> dict[str, object]:
    """What a run left behind: metrics, table, weights."""
    found = flat(json.loads((folder / "metrics.json").read_text()), "metrics.json")
    if (table := folder / "results.csv").is_file():
        with table.open(newline="") as f:
            rows = [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(f)]
        found |= flat(rows, "results.csv")
    if (weights := folder / "weights/best.pt").is_file():
        state = torch.load(weights, weights_only=True)["model"]["state_dict"]
        for name, tensor in state.items():
            found[f"best.pt/{name}"] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
    return found


def main(opt: argparse.Namespace) -> None:
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {cfg: f"{TRAINING} --cfg {cfg}.yaml {opt.options}" for cfg in opt.cfg}
        if opt.checkpoint:
            weights, data = Path(opt.checkpoint).resolve(), Path(opt.data).resolve()
            jobs["val"] = f"val_joint.py --weights {weights} --data {data} --img 320 --device cpu --workers 0"
        for name, command in jobs.items():
            run(Path(opt.tree), command, Path(scratch) / name)
            found |= {f"{name}: {key}": value for key, value in numbers(Path(scratch) / name).items()}
    print(f"{len(found)} numbers")
    if opt.out:
        Path(opt.out).write_text(json.dumps(found, indent=1))
    if opt.against:
        before = json.loads(Path(opt.against).read_text())
        changed = [key for key, value in before.items() if found.get(key, "missing") != value]
        for key in changed[:20]:
            print(f"{key}: {before[key]} before, {found.get(key, 'missing')} now")
        print(
            f"{len(before) - len(changed)} of {len(before)} numbers are equal, {len(found.keys() - before.keys())} new"
        )
        sys.exit(bool(changed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", default=ROOT, help="checkout to run")
    parser.add_argument("--cfg", nargs="+", default=["yolov5n_cls", "yolov5n"], help="models to train")
    parser.add_argument("--options", default="", help="further options of the training")
    parser.add_argument("--checkpoint", help="trained network to validate")
    parser.add_argument("--data", help="data yaml to validate it on")
    parser.add_argument("--out", help="write the numbers here")
    parser.add_argument("--against", help="numbers of another version, as --out wrote them")
    main(parser.parse_args())
