"""Images per second of one training epoch: this project against itself in plain float32 and against a peer from PyPI.

All train detection only, with `yolov5n.yaml` of their own, on the same pictures at the same size and batch, on one
machine, each in a process of its own, in turns (A B C D, D C B A, ...) so that a drift of the machine shows. Timed is
the training part of the second epoch: loading, augmentation, forward, backward, step; no validation, no start-up. The
peer, `ultralytics`, is used through its documented Python API, as it ships and with its threads raised to ours. Its
`yolov5n.yaml` has an anchor-free head, so the two networks are relatives, not twins; both parameter counts are printed.

    python benchmarks/train_speed.py --data ../shared/heart/heart.yaml --peer-python /path/to/peer/bin/python

The peer is not a requirement of the project: `pip install ultralytics` into an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTESTANTS = {
    "ours": "ours, as shipped",
    "ours-float32": "ours, plain float32",
    "ours-bf16": "ours, --amp bf16",
    "ours-contiguous": "ours, not channels-last",
    "ours-sync-bn": "ours, --sync-bn",
    "peer": "peer, as it ships",
    "peer-threads": "peer, our threads",
}
SHIPPED = ("ours", "ours-float32", "peer", "peer-threads")
FLAGS = {
    "ours-float32": ["--amp", "off", "--memory-format", "contiguous"],
    "ours-bf16": ["--amp", "bf16"],
    "ours-contiguous": ["--memory-format", "contiguous"],
    "ours-sync-bn": ["--sync-bn"],
}
RESULT = "TRAIN_SPEED_RESULT "  # marks the line that a peer process answers with


# The peer's side: runs in the peer's interpreter, imports nothing of this project ---------------------------------


def train_peer(job: dict) -> None:
    """Train the peer for two epochs and print the speed of the second."""
    try:
        import torch
        import ultralytics
    except ImportError as error:
        sys.exit(f"{error}. `pip install ultralytics` into an environment of its own and give it by --peer-python.")
    ultralytics.settings.update({"sync": False})  # in this run's own settings folder; sends nothing anywhere
    seen = {}

    def raise_threads(trainer) -> None:
        if job["threads"]:
            torch.set_num_threads(job["threads"])

    def start(trainer) -> None:
        raise_threads(trainer)
        seen["start"] = time.perf_counter()

    def end(trainer) -> None:  # called before validation
        seen["seconds"] = time.perf_counter() - seen["start"]
        seen["epochs"] = seen.get("epochs", 0) + 1
        seen["images"] = len(trainer.train_loader.dataset)
        seen["amp"] = bool(trainer.amp)
        seen["parameters"] = sum(p.numel() for p in trainer.model.parameters())

    model = ultralytics.YOLO("yolov5n.yaml")
    model.add_callback("on_pretrain_routine_end", raise_threads)
    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_train_epoch_end", end)
    model.train(
        data=job["data"], epochs=2, imgsz=job["imgsz"], batch=job["batch_size"], workers=job["workers"],
        device=job["device"], seed=job["seed"], project=job["project"], name="peer", pretrained=False, val=False,
        save=False, plots=False,
        close_mosaic=0,  # else the last ten epochs, so both of these, would go without mosaic
    )  # fmt: skip
    assert seen["epochs"] == 2, seen
    answer = {
        "images_per_s": seen["images"] / seen["seconds"],
        "images": seen["images"],
        "threads": torch.get_num_threads(),
        "precision": "amp" if seen["amp"] else "float32",
        "parameters": seen["parameters"],
        "version": f"ultralytics {ultralytics.__version__}, torch {torch.__version__}",
    }
    print("\n" + RESULT + json.dumps(answer), flush=True)


# Our side ---------------------------------------------------------------------------------------------------------


def detection_copy(source: str, folder: Path, fraction: float, valid: int = 16) -> tuple[Path, int]:
    """A detection-only copy of a data set: linked pictures, box labels. Returns its yaml and the number of pictures.

    The peer's label reader does not know the image-level row, so every contestant reads this copy.
    """
    from utils.dataset.config import ensure_data, load_data_config
    from utils.dataset.files import image_to_label_path, list_images
    from utils.dataset.labels import read_label
    from utils.system.paths import find_file
    from utils.system.yamls import save_yaml

    data = load_data_config(find_file(source, (ROOT / "data",)))
    ensure_data(data)
    pictures = {"train": list_images(data.train), "valid": list_images(data.val)[:valid]}
    count = max(1, round(len(pictures["train"]) * fraction))
    pictures["train"] = pictures["train"][:: max(1, round(1 / fraction))][:count]
    for split, files in pictures.items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i, file in enumerate(files):
            stem = f"{i:06d}_{Path(file).stem}"
            link = folder / split / "images" / f"{stem}{Path(file).suffix}"
            try:
                link.symlink_to(Path(file).resolve())
            except OSError:  # no links here
                shutil.copy(file, link)
            label = Path(image_to_label_path(file))
            objects = read_label(label, data.nc, data.cls_nc).objects if label.is_file() else []
            rows = [f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for c, x, y, w, h in objects]
            (folder / split / "labels" / f"{stem}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
            link.read_bytes()  # from here on in the file cache for all
    yaml = folder / "data.yaml"
    names = [data.names[i] for i in range(data.nc)]
    paths = {"path": str(folder.resolve()), "train": "train/images", "val": "valid/images"}
    save_yaml(yaml, {**paths, "nc": data.nc, "names": names})
    return yaml, len(pictures["train"])


def our_command(name: str, opt: argparse.Namespace, yaml: Path, project: Path) -> list[str]:
    command = [sys.executable, str(ROOT / "train_joint.py"), "--data", str(yaml), "--cfg", opt.cfg, "--epochs", "2"]
    command += ["--imgsz", str(opt.imgsz), "--batch-size", str(opt.batch_size), "--workers", str(opt.workers)]
    command += [
        "--device",
        opt.device,
        "--seed",
        str(opt.seed),
        "--project",
        str(project),
        "--name",
        "run",
        "--exist-ok",
    ]
    command += ["--noval", "--nosave", "--noplots"]
    return command + FLAGS.get(name, [])


def peer_command(name: str, opt: argparse.Namespace, yaml: Path, project: Path) -> list[str]:
    job = {key: getattr(opt, key) for key in ("imgsz", "batch_size", "workers", "seed", "device")}
    job |= {"data": str(yaml), "project": str(project), "threads": our_threads() if name == "peer-threads" else 0}
    return [opt.peer_python, str(Path(__file__).resolve()), "--as-peer", json.dumps(job)]


def peer_environment(work: Path) -> dict[str, str]:
    """In which the peer keeps its settings in a temporary folder, and neither downloads nor installs."""
    folder = work / "peer-config"
    folder.mkdir(exist_ok=True)
    return os.environ | {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


def our_threads() -> int:
    from utils.system.devices import use_machine

    return use_machine()


def run(name: str, opt: argparse.Namespace, yaml: Path, work: Path) -> dict:
    """One contestant in a process of its own; returns images_per_s and what it ran with."""
    project = Path(tempfile.mkdtemp(prefix=name, dir=work))
    ours = name.startswith("ours")
    command = (our_command if ours else peer_command)(name, opt, yaml, project)
    env = peer_environment(work)
    log = project / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=project,
                timeout=opt.timeout, check=True,
            )  # fmt: skip
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            sys.exit(f"{CONTESTANTS[name]} failed ({error.__class__.__name__}):\n{tail}")
    text = log.read_text(encoding="utf-8", errors="replace")
    if ours:
        history = json.loads((project / "run" / "training_history.json").read_text(encoding="utf-8"))
        parameters = re.search(r"(\d[\d,]*) parameters", text)
        return {
            "images_per_s": history["epochs"][-1]["images_per_s"],
            "threads": our_threads(),
            "precision": {"ours-float32": "float32", "ours-bf16": "bfloat16"}.get(name, "as shipped"),
            "parameters": int(parameters[1].replace(",", "")) if parameters else None,
        }
    return json.loads(re.search(re.escape(RESULT) + r"(.*)", text)[1])


def table(results: dict[str, list[dict]]) -> str:
    rounds = max(len(runs) for runs in results.values())
    head = "".join(f"{f'run {i + 1}':>9}" for i in range(rounds))
    lines = [f"{'images/s':<22}{head}{'median':>9}{'threads':>9}{'precision':>12}{'parameters':>12}"]
    for name, runs in results.items():
        speeds = [run["images_per_s"] for run in runs]
        cells = "".join(f"{speed:9.1f}" for speed in speeds)
        last = runs[-1]
        lines.append(
            f"{CONTESTANTS[name]:<22}{cells}{statistics.median(speeds):9.1f}{last['threads']:9d}"
            f"{last['precision']:>12}{last['parameters'] or '-':>12}"
        )
    return "\n".join(lines)


def ratios(results: dict[str, list[dict]]) -> dict[str, float]:
    """Median over the rounds of the ratio within a round, which a slow drift does not reach."""
    pairs = [("ours", name) for name in CONTESTANTS if name != "ours"] + [("ours-float32", "peer-threads")]
    found = {}
    for a, b in pairs:
        if a in results and b in results:
            quotients = [x["images_per_s"] / y["images_per_s"] for x, y in zip(results[a], results[b], strict=True)]
            found[f"{CONTESTANTS[a]} / {CONTESTANTS[b]}"] = statistics.median(quotients)
    return found


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def parse_opt() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/heart.yaml", help="data yaml (../shared/heart/heart.yaml)")
    parser.add_argument("--cfg", default="yolov5n.yaml", help="our model yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=8, help="asked of both; each caps it in its own way")
    parser.add_argument("--repeats", type=int, default=2, help="rounds, every other one in reversed order")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training pictures to use")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(SHIPPED), help="contestants")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has ultralytics")
    parser.add_argument("--device", default="cpu", help="cpu, 0, or 0,1 for a process on each GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a contestant may take")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--as-peer", type=json.loads, help=argparse.SUPPRESS)
    opt = parser.parse_args()
    if opt.as_peer is None and not 0 < opt.fraction <= 1:
        parser.error("--fraction must be in (0, 1]")
    return opt


def main() -> None:
    opt = parse_opt()
    if opt.as_peer is not None:
        train_peer(opt.as_peer)
        return
    sys.path.insert(0, str(ROOT))
    names = [name for name in CONTESTANTS if name in opt.only]
    if any(name.startswith("peer") for name in names):
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ultralytics') is None)"
        if subprocess.run([opt.peer_python, "-c", look]).returncode:
            sys.exit(
                f"{opt.peer_python} has no package ultralytics. Install it into an environment of its own "
                "(python -m venv peer; peer/bin/pip install ultralytics) and pass --peer-python peer/bin/python, "
                "or leave the peer out: --only ours ours-float32"
            )
    with tempfile.TemporaryDirectory(prefix="train_speed_") as folder:
        work = Path(folder)
        yaml, count = detection_copy(opt.data, work / "data", opt.fraction)
        from utils.system.machine import core_count

        machine = f"{processor()}, {core_count()} cores"
        print(f"{machine}; {count} pictures, {opt.imgsz} px, batch {opt.batch_size}, training part of epoch 2 of 2")
        results = {name: [] for name in names}
        for i in range(opt.repeats):
            for name in names if i % 2 == 0 else reversed(names):
                results[name].append(run(name, opt, yaml, work))
                print(
                    f"  round {i + 1}: {CONTESTANTS[name]:<22}{results[name][-1]['images_per_s']:8.1f} images/s",
                    flush=True,
                )
    print("\n" + table(results) + "\n")
    for pair, ratio in ratios(results).items():
        print(f"{pair:<44}{ratio:6.2f}")
    version = next((runs[-1]["version"] for runs in results.values() if "version" in runs[-1]), None)
    if version:
        print(f"\npeer: {version}")
    if opt.json:
        figures = {"machine": machine, "images": count, "peer": version, "runs": results, "ratios": ratios(results)}
        opt.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
