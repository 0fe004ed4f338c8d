"""The scan of a data set: pictures a second, seconds of the second start, memory of what is kept.

Makes folders of small pictures with labels, by hard links of a few distinct pictures where the disk has them, and scans
each in a process of its own: once without a cache, then as a second start, which finds it. Times are the processor's
seconds by default, so that other programs disturb them little; `--wall` takes the clock's, on a machine that does
nothing else. Two sizes show whether time grows with the number alone.

    python benchmarks/scan.py
    python benchmarks/scan.py --pictures 20000 118000 --wall
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COCO = 118_000  # pictures of its training set
OBJECTS = 7  # of a picture, about as there


def make_set(folder: Path, pictures: int, distinct: int = 16, side: int = 64) -> None:
    """Pictures in `images`, label files of their own in `labels`."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for k in range(distinct):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{k}.jpg"), cv2.resize(coarse, (side + 2 * k, side), interpolation=cv2.INTER_CUBIC))
    link = os.link
    for i in range(pictures):
        source, target = folder / f"{i % distinct}.jpg", folder / "images" / f"{i:012d}.jpg"
        try:
            link(source, target)
        except OSError:  # no such links here, or too many of one file
            link = shutil.copyfile
            link(source, target)
        boxes = np.column_stack(
            [rng.integers(0, 80, OBJECTS), rng.uniform(0.3, 0.7, (OBJECTS, 2)), rng.uniform(0.05, 0.6, (OBJECTS, 2))]
        )
        text = "".join(f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in boxes)
        (folder / "labels" / f"{i:012d}.txt").write_text(
            f"{text}\n{' '.join('1' if k == i % 3 else '0' for k in range(3))}\n"
        )


def scan(folder: Path) -> dict:
    """One scan in this process: seconds of the processor and of the clock, bytes that the index takes, its sizes."""
    sys.path.insert(0, str(ROOT))
    from utils.dataset.index import ARRAYS
    from utils.dataset.scan import scan_dataset

    wall, cpu = time.perf_counter(), sum(os.times()[:4])  # with the processes that the scan starts
    index = scan_dataset(str(folder / "images"), 80, 3, verbose=False)
    seconds = {"cpu": sum(os.times()[:4]) - cpu, "wall": time.perf_counter() - wall}
    held = sum(getattr(index, name).nbytes for name in (*ARRAYS, "im_files", "label_files"))
    return seconds | {"pictures": len(index), "objects": len(index.objects), "bytes": held}


def run(folder: Path) -> dict:
    command = [sys.executable, str(Path(__file__).resolve()), "--scan", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[5000, 20000], help="sizes of the sets")
    parser.add_argument("--wall", action="store_true", help="time by the clock")
    parser.add_argument("--folder", type=Path, help="where the sets are made for the time; default: the system's")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    opt = parser.parse_args()
    if opt.scan:
        print(json.dumps(scan(opt.scan)))
        return
    sys.path.insert(0, str(ROOT))
    from utils.system.machine import core_count

    clock, cores = "wall" if opt.wall else "cpu", core_count()
    print(f"{cores} cores; seconds of {'the clock' if opt.wall else 'the processor'}")
    for pictures in opt.pictures:
        with tempfile.TemporaryDirectory(dir=opt.folder) as temporary:
            make_set(Path(temporary), pictures)
            first, second = run(Path(temporary)), run(Path(temporary))
        assert first["pictures"] == second["pictures"] == pictures
        for_coco = COCO / pictures
        print(
            f"{pictures} pictures: first scan {first[clock]:.2f} s, {pictures / first[clock]:.0f} pictures/s, "
            f"{first[clock] * for_coco:.1f} s for {COCO}; second start {second[clock]:.2f} s, "
            f"{second[clock] * for_coco:.2f} s for {COCO}; {first['bytes'] / first['objects']:.0f} bytes an object"
        )


if __name__ == "__main__":
    main()
