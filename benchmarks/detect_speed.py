"""Detection on a folder and on a video: this project against a peer from PyPI, and its memory over a long video.

Each contestant is a process of its own that reads the source, answers, draws and writes, as its command line does by
default, and the turns alternate (A B C, C B A, ...) so that a drift of the machine shows. Two figures are given: frames
a second from the first frame to the last result, and seconds of the whole process with its start. The networks are each
side's `yolov5n.yaml` with random weights, at the same size and confidence threshold; with random weights neither finds
anything at 0.25, so this is the work on what every frame costs. `--only` also names ours as exported files. The peer,
`ultralytics`, is used through its documented API: `predict(save=True)`, a picture at a time, which is its default, and
once more with `batch=`.

    python benchmarks/detect_speed.py --source ../shared/heart/train/images --peer-python /path/to/peer/bin/python
    python benchmarks/detect_speed.py --memory 10000       # our memory over a video of so many small frames

The peer is not a requirement of the project: `pip install ultralytics` into an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_speed import peer_environment

ROOT = Path(__file__).resolve().parents[1]
CONTESTANTS = {
    "ours": "ours, as shipped",
    "ours-half": "ours, --half",
    "ours-onnx": "ours, ONNX",
    "ours-openvino": "ours, OpenVINO",
    "peer": "peer, as it ships",
    "peer-batch": "peer, batch=8",
}
RESULT = "DETECT_SPEED_RESULT "  # marks the line that a peer process answers with


def detect_peer(job: dict) -> None:
    """Run the peer on a source and print its seconds, without its imports; in the peer's interpreter."""
    import ultralytics

    ultralytics.settings.update({"sync": False})  # in this run's own settings folder; sends nothing anywhere
    model = ultralytics.YOLO("yolov5n.yaml")
    began, frames = time.perf_counter(), 0
    for _ in model.predict(
        job["source"], stream=True, save=True, imgsz=job["imgsz"], conf=0.25, device="cpu", verbose=True,
        batch=job["batch"], project=job["project"], name="run",
    ):  # fmt: skip
        frames += 1
    print(f"\n{RESULT}{json.dumps({'frames': frames, 'seconds': time.perf_counter() - began})}", flush=True)


def our_weights(file: Path) -> Path:
    """`yolov5n.yaml` with random weights."""
    from models.yolo import Model
    from utils.weights.checkpoint import save_checkpoint

    record = {"format": "yolov5-joint", "version": 1, "epoch": 0, "best_fitness": 0.0, "ema": None}
    record |= {"model": Model("yolov5n.yaml").record(), "train_state": None, "opt": {}, "hyp": {}, "date": "2026-01-01"}
    save_checkpoint(file, record)
    return file


def export_ours(weights: Path, names: list[str]) -> None:
    """The exported files of the contestants that need one, for any size, beside the weights."""
    import export

    if formats := [name.removeprefix("ours-") for name in names if name in ("ours-onnx", "ours-openvino")]:
        export.run(weights=weights, include=formats, dynamic=True)


def make_video(file: Path, frames: int, width: int, height: int) -> Path:
    """A video of coloured noise that moves."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    wide = cv2.resize(rng.integers(0, 255, (height // 30 + 1, width // 15 + 2, 3), np.uint8), (2 * width, height))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 30, (width, height))
    for k in range(frames):
        left = 4 * k % width
        writer.write(np.ascontiguousarray(wide[:, left : left + width]))
    writer.release()
    return file


def run(name: str, opt: argparse.Namespace, source: Path, work: Path) -> dict:
    """One contestant on one source; returns frames a second, seconds of the process, and its peak memory in MB."""
    project = Path(tempfile.mkdtemp(prefix=name, dir=work))
    if name.startswith("ours"):
        file = work / {"ours-onnx": "ours.onnx", "ours-openvino": "ours_openvino_model"}.get(name, "ours.pt")
        command = [sys.executable, str(ROOT / "detect.py"), f"--weights={file}", "--source", str(source)]
        command += ["--imgsz", str(opt.imgsz), "--project", str(project), "--device", "cpu"]
        command += ["--half"] if name == "ours-half" else []
    else:
        job = {"source": str(source), "imgsz": opt.imgsz, "project": str(project)}
        job["batch"] = 8 if name == "peer-batch" else 1
        command = [opt.peer_python, str(Path(__file__).resolve()), "--as-peer", json.dumps(job)]
    log = project / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=peer_environment(work), cwd=project
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    text = log.read_text(encoding="utf-8", errors="replace")
    if status:
        sys.exit(f"{CONTESTANTS[name]} failed:\n" + "\n".join(text.splitlines()[-15:]))
    if name.startswith("ours"):
        frames = int(re.search(r"(\d+) frames looked at", text)[1])
        rate = float(re.search(r"([\d.]+) frames a second", text)[1])
    else:
        answer = json.loads(re.search(re.escape(RESULT) + "(.*)", text)[1])
        frames, rate = answer["frames"], answer["frames"] / answer["seconds"]
    cpu = usage.ru_utime + usage.ru_stime
    return {"frames": frames, "rate": rate, "seconds": seconds, "cpu": cpu, "memory": usage.ru_maxrss / 1024}


def tell(results: dict[str, list[dict]]) -> None:
    """A table, and the ratios within each round."""
    print(f"{'':20}{'frames/s':>10}{'whole process, s':>18}{'of the CPU, s':>15}{'peak MB':>9}")
    for name, runs in results.items():
        rate, seconds, cpu, memory = (
            statistics.median(r[k] for r in runs) for k in ("rate", "seconds", "cpu", "memory")
        )
        print(f"{CONTESTANTS[name]:20}{rate:10.1f}{seconds:18.1f}{cpu:15.1f}{memory:9.0f}")
    for name in results:
        for other in (n for n in results if n.startswith("peer") and not name.startswith("peer")):
            pairs = list(zip(results[name], results[other], strict=True))
            rates = [a["rate"] / b["rate"] for a, b in pairs]
            whole = [b["seconds"] / a["seconds"] for a, b in pairs]
            print(
                f"{CONTESTANTS[name]} / {CONTESTANTS[other]}: {statistics.median(rates):.2f} in frames/s "
                f"({min(rates):.2f} to {max(rates):.2f}), whole process {statistics.median(whole):.2f}"
            )


def memory_over_a_video(opt: argparse.Namespace, work: Path) -> None:
    """Our memory in the second and in the last fifth of the time of a long video of small frames, none of them kept.

    It comes and goes with the batches on their way, so a peak grows with the number of looks at it; a middle does not.
    """
    import psutil

    film = make_video(work / "film.mp4", opt.memory, 160, 128)
    command = [sys.executable, str(ROOT / "detect.py"), f"--weights={work / 'ours.pt'}", f"--source={film}"]
    command += ["--imgsz", "64", "--project", str(work), "--device", "cpu"]
    sizes = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                sizes.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            time.sleep(0.1)
    fifth = len(sizes) // 5
    early, late = statistics.median(sizes[fifth : 2 * fifth]), statistics.median(sizes[-fifth:])
    print(
        f"{opt.memory} frames of 160x128: {early:.0f} MB in the second fifth of the time, {late:.0f} MB in the last "
        f"({late / early:.2f}), peak {max(sizes):.0f} MB"
    )


def parse_opt() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="../shared/heart/train/images", help="folder of pictures")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--frames", type=int, default=300, help="of the 1920x1080 video; 0: no video")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, every other one in reversed order")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CONTESTANTS),
        default=["ours", "ours-half", "peer", "peer-batch"],
        help="contestants",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has ultralytics")
    parser.add_argument("--memory", type=int, default=0, help="measure our memory on a video of so many frames instead")
    parser.add_argument("--as-peer", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    opt = parse_opt()
    if opt.as_peer is not None:
        detect_peer(opt.as_peer)
        return
    sys.path.insert(0, str(ROOT))
    names = [name for name in CONTESTANTS if name in opt.only]
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ultralytics') is None)"
    if (
        not opt.memory
        and any(n.startswith("peer") for n in names)
        and subprocess.run([opt.peer_python, "-c", look]).returncode
    ):
        print(f"{opt.peer_python} has no package ultralytics, so the peer is left out: give --peer-python")
        names = [n for n in names if n.startswith("ours")]
    with tempfile.TemporaryDirectory(prefix="detect_speed_") as folder:
        work = Path(folder)
        our_weights(work / "ours.pt")
        if opt.memory:
            memory_over_a_video(opt, work)
            return
        export_ours(work / "ours.pt", names)
        from utils.system.machine import core_count

        cores, sources = core_count(), {"folder": Path(opt.source).resolve()}
        if opt.frames:
            sources["1080p video"] = make_video(work / "video.mp4", opt.frames, 1920, 1080)
        for kind, source in sources.items():
            results: dict[str, list[dict]] = {name: [] for name in names}
            for i in range(opt.repeats):
                for name in names if i % 2 == 0 else reversed(names):
                    results[name].append(run(name, opt, source, work))
            print(f"\n{kind}, {results[names[0]][0]['frames']} frames at {opt.imgsz} px, {cores} cores")
            tell(results)


if __name__ == "__main__":
    main()
