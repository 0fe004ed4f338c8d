"""What each way of balancing the two tasks comes to: the same training with every balancer, over several seeds.

    python benchmarks/balancers.py --data ../shared/heart_by_clip/heart_by_clip.yaml --out runs/balancers

Each run is `train_joint.py` with the command line that the table's row stands for; nothing else differs. A run that is
already complete under `--out` is not repeated, so the series can be stopped and continued, or extended by seeds and
rows. Seeds are the outer loop: whatever has been finished compares all rows alike. `--summary` trains nothing.

Columns: metrics after the last epoch (no epoch is chosen by the validation pictures), mean and largest distance of a
seed from it; the last epoch's weights, scaled to sum to 2; cosine and share of steps in conflict over the run; the
median epoch's seconds, also as a ratio to the first row of the same seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Row -> options of train_joint.py.
ROWS = {
    "fixed 1:1": "--gradnorm-layers all --balancer fixed",
    "fixed 1:0.1": "--gradnorm-layers all --balancer fixed --task-weights 1 0.1",
    "fixed 1:0.03": "--gradnorm-layers all --balancer fixed --task-weights 1 0.03",
    "fixed 1:0.01": "--gradnorm-layers all --balancer fixed --task-weights 1 0.01",
    "GradNorm 0.5": "--gradnorm-layers all --balancer gradnorm --gradnorm-alpha 0.5 --task-priorities 1 1",
    "GradNorm 1.5": "--gradnorm-layers all --balancer gradnorm --gradnorm-alpha 1.5 --task-priorities 1 1",
    "GradNorm 1.5, last layer": "--gradnorm-layers last --balancer gradnorm --gradnorm-alpha 1.5 --task-priorities 1 1",
    "GradNorm 1.5, priorities 1.8 0.2": "--balancer gradnorm --gradnorm-alpha 1.5 --task-priorities 1.8 0.2",
    "UW": "--gradnorm-layers all --balancer uw",
    "UPGrad": "--gradnorm-layers all --balancer upgrad",
}


def folder_of(args: argparse.Namespace, row: str, seed: int) -> Path:
    return args.out / f"{row.replace(' ', '_').replace(':', '-').replace(',', '')}_seed{seed}"


def train(args: argparse.Namespace, row: str, seed: int) -> None:
    """One training as a process of its own; nothing where it is complete already."""
    folder = folder_of(args, row, seed)
    if (folder / "metrics.json").is_file():
        return
    settings = (
        f"--cfg {args.cfg} --img {args.imgsz} --epochs {args.epochs} --batch-size {args.batch_size} --seed {seed}"
    )
    command = [sys.executable, str(ROOT / "train_joint.py"), "--data", args.data, *settings.split()]
    command += [*ROWS[row].split(), "--project", str(folder.parent), "--name", folder.name, "--exist-ok"]
    command += ["--cache", "ram", "--noplots", "--noval", *args.train_options.split()]
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{row}, seed {seed}", flush=True)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            sys.exit(f"{' '.join(command)}\nfailed: see {folder / 'log.txt'}")


def read(folder: Path) -> dict[str, float] | None:
    """Figures of a complete run, None where it is not there."""
    if not (folder / "metrics.json").is_file():
        return None
    best = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "training_history.json").read_text(encoding="utf-8"))["epochs"]
    weights = history[-1]["task_weights"]
    return {
        "mAP50": best["detection"]["map50"],
        "mAP50-95": best["detection"]["map50_95"],
        "accuracy": best["image"]["accuracy"],
        "w_image": 2 * weights["image"] / (weights["det"] + weights["image"]),
        "cosine": mean_of_steps(history, "grad_cosine"),
        "conflict": mean_of_steps(history, "conflict_share"),
        "seconds": statistics.median(r["seconds"] for r in history),
        "epochs": len(history),
    }


def mean_of_steps(history: list[dict], key: str) -> float:
    """Mean over the measured steps of the run, which are not equally many in each epoch."""
    counts = [r["grad_measured"] if r[key] is not None else 0 for r in history]
    total = sum(n * r[key] for n, r in zip(counts, history, strict=True) if n)
    return total / sum(counts) if sum(counts) else float("nan")


def table(args: argparse.Namespace) -> str:
    """The results so far as a Markdown table."""
    head = "balancer, seeds, mAP50, mAP50-95, image accuracy, w det : image, cosine, in conflict, s an epoch, ratio"
    columns = head.split(", ")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    first = {seed: read(folder_of(args, next(iter(ROWS)), seed)) for seed in args.seeds}
    for row in args.rows:
        runs = {seed: run for seed in args.seeds if (run := read(folder_of(args, row, seed)))}
        if not runs:
            continue

        def mean(key: str, runs=runs) -> float:
            return statistics.mean(run[key] for run in runs.values())

        def spread(key: str, runs=runs, mean=mean) -> str:
            off = max(abs(run[key] - mean(key)) for run in runs.values())
            return f"{mean(key):.3f} ± {off:.3f}"

        ratios = [run["seconds"] / first[seed]["seconds"] for seed, run in runs.items() if first[seed]]
        cells = [row, str(len(runs)), spread("mAP50"), spread("mAP50-95"), spread("accuracy")]
        cells += [f"{2 - mean('w_image'):.3g} : {mean('w_image'):.2g}", f"{mean('cosine'):+.3f}"]
        cells += [f"{mean('conflict'):.0%}", f"{mean('seconds'):.1f}"]
        cells += [f"{statistics.mean(ratios):.2f}" if ratios else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="heart.yaml")
    parser.add_argument("--cfg", default="yolov5n_cls.yaml")
    parser.add_argument("--imgsz", "--img", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--train-options", default="", help='more for every run: --train-options="--optimizer SGD"')
    parser.add_argument("--out", type=Path, default=ROOT / "runs/balancers", help="folder of the runs")
    parser.add_argument("--summary", action="store_true", help="train nothing, print the table of what is there")
    args = parser.parse_args()
    if not args.summary:
        for seed in args.seeds:
            for row in args.rows:
                train(args, row, seed)
    print(table(args))


if __name__ == "__main__":
    main()
