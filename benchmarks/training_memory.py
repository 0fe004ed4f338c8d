"""Memory of a training over its epochs: of the process and its data workers, early and late in one run.

    python benchmarks/training_memory.py --data heart.yaml --epochs 30 --imgsz 128

Takes a tenth of the training pictures, so that thirty epochs are short. Memory comes and goes within an epoch, so the
middles of the second and the last epoch are compared (the first one still fills buffers).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from train_speed import detection_copy

ROOT = Path(__file__).resolve().parents[1]


def tree_megabytes(pid: int) -> float:
    """Resident memory of a process and all below it, MB; 0 once it has ended."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss / 1e6
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="heart.yaml")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the training pictures")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    opt = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="training_memory_") as folder:
        yaml, count = detection_copy(opt.data, Path(folder) / "set", opt.fraction)
        command = [sys.executable, str(ROOT / "train_joint.py"), "--data", str(yaml), "--cfg", "yolov5n.yaml"]
        command += ["--epochs", str(opt.epochs), "--imgsz", str(opt.imgsz), "--workers", str(opt.workers)]
        command += ["--project", folder, "--name", "run", "--device", "cpu"]
        table, sizes = Path(folder) / "run" / "results.csv", defaultdict(list)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                done = len(table.read_text(encoding="utf-8").splitlines()) - 1 if table.exists() else 0
                sizes[done + 1].append(tree_megabytes(process.pid))
                time.sleep(0.05)
        if process.returncode:
            sys.exit(f"the training failed: {' '.join(command)}")
    second, last = (statistics.median(sizes[epoch]) for epoch in (2, opt.epochs))
    print(
        f"{count} pictures, {opt.imgsz} px, {opt.workers} workers: {second:.0f} MB in epoch 2, {last:.0f} MB in epoch "
        f"{opt.epochs} (ratio {last / second:.2f}), peak {max(map(max, sizes.values())):.0f} MB"
    )


if __name__ == "__main__":
    main()
