"""Every export format beside PyTorch: size, metrics, speed and largest difference of its answers, in one table.

    python benchmarks/formats.py --weights runs/train/exp/weights/best.pt --data heart.yaml --imgsz 320
    python benchmarks/formats.py … --formats onnx openvino openvino-float32 onnx-int8 openvino-int8

`openvino` computes as `detect.py` lets it, in bfloat16 where the processor has it; `openvino-float32` is the same file.
Exports into a temporary folder and validates each file with `val_joint.run` on the same squares, which every file takes
(a validation of a .pt or of a file of `--dynamic` uses less padding, so its metrics are not these). Latency is the
median time of one picture at batch 1 from tensor to answers, without suppression; the formats take turns, so that a
busy moment of the machine hits all alike. The ratio is PyTorch's median by the format's. `--cpu-time` takes seconds of
the processor instead, which other programs disturb less; with one thread they mean the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import export
import val_joint
from models.export import readers
from models.load import largest_stride, load_model
from utils.boxes import check_img_size
from utils.dataset.config import load_data_config
from utils.system.devices import describe_device, select_device, to_input, use_machine
from utils.system.machine import core_count

FORMATS = ("torchscript", "onnx", "openvino", "openvino-float32", "onnx-int8", "openvino-int8")


def export_all(weights: Path, folder: Path, imgsz: int, formats: list[str], data: str) -> dict[str, Path]:
    """A copy of the weights in the folder, and beside it each format for one picture of `imgsz` squared."""
    own = folder / "model.pt"
    shutil.copy(weights, own)
    files = {"PyTorch": own}
    for name in formats:
        kind, _, precision = name.partition("-")
        (files[name],) = export.run(weights=own, imgsz=imgsz, include=[kind], int8=precision == "int8", data=data)
    return files


@contextlib.contextmanager
def precision_of(name: str) -> Iterator[None]:
    """OpenVINO as on a processor without bfloat16, for the format of that name."""
    before = readers.openvino_has_bfloat16
    if name == "openvino-float32":
        readers.openvino_has_bfloat16 = lambda: False
    try:
        yield
    finally:
        readers.openvino_has_bfloat16 = before


def validate(name: str, file: Path, dnn: bool, args: argparse.Namespace, folder: Path) -> dict:
    """Metrics on squares of `args.imgsz`."""
    data = load_data_config(args.data)
    loader = val_joint.make_loader(data, args.task, args.imgsz, args.batch_size, 32, workers=args.workers, square=True)
    with precision_of(name):
        return val_joint.run(
            data, str(file), dataloader=loader, imgsz=args.imgsz, batch_size=args.batch_size, device=args.device,
            dnn=dnn, plots=False, save_dir=folder,
        )  # fmt: skip


def load(name: str, file: Path, dnn: bool, device: torch.device) -> torch.nn.Module:
    with precision_of(name):
        return load_model(file, device, dnn=dnn)


@torch.inference_mode()
def time_all(
    models: dict[str, torch.nn.Module], pictures: torch.Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of each call of each model on one picture; in each round all models take turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for r in range(rounds + 3):
        picture = pictures[r % len(pictures)][None]
        for name, model in models.items():
            start = clock()
            model(picture)
            if r >= 3:  # the first calls set things up
                times[name].append((clock() - start) * 1e3)
    return times


@torch.inference_mode()
def differences(models: dict[str, torch.nn.Module], pictures: torch.Tensor) -> dict[str, str]:
    """Largest differences from PyTorch on real pictures: coordinates in pixels, confidences and probabilities."""
    texts = {}
    for name, model in models.items():
        box = rest = 0.0
        for picture in pictures:
            ours, theirs = (m(picture[None]) for m in (model, models["PyTorch"]))
            box = max(box, float((ours.boxes[..., :4] - theirs.boxes[..., :4]).abs().max()))
            rest = max(rest, float((ours.boxes[..., 4:] - theirs.boxes[..., 4:]).abs().max()))
            if theirs.probs is not None:
                rest = max(rest, float((ours.probs - theirs.probs).abs().max()))
        texts[name] = f"{box:.1e} px, {rest:.1e}"
    return texts


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * w for w in widths) + " |", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", default="heart.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--task", default="val", choices=["train", "val", "test"])
    parser.add_argument("--rounds", type=int, default=100, help="timed pictures of each format")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS[:3]), choices=FORMATS)
    parser.add_argument("--cpu-time", action="store_true", help="time by the processor's seconds of this process")
    parser.add_argument("--verbose", action="store_true", help="show what the export and the validations print")
    args = parser.parse_args()
    device = select_device(args.device)
    use_machine()

    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as quiet:
        if not args.verbose:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))  # progress bars; an error still shows
        folder = Path(temporary)
        torch_model = load_model(args.weights, device)
        args.imgsz = check_img_size(args.imgsz, s=largest_stride(torch_model))
        files = export_all(args.weights, folder, args.imgsz, args.formats, args.data)
        runs = {name: (file, False) for name, file in files.items()}
        if "onnx" in files:
            runs["onnx by OpenCV (--dnn)"] = files["onnx"], True
        results = {name: validate(name, file, dnn, args, folder) for name, (file, dnn) in runs.items()}
        models = {name: load(name, file, dnn, device) for name, (file, dnn) in runs.items()}
        loader = val_joint.make_loader(
            load_data_config(args.data), args.task, args.imgsz, 16, largest_stride(torch_model), workers=0, square=True
        )
        pictures = to_input(next(iter(loader))[0], device)
        apart = differences(models, pictures)
        clock = time.process_time if args.cpu_time else time.perf_counter
        times = time_all(models, pictures, args.rounds, clock)
        megabytes = {
            name: sum(f.stat().st_size for f in ([file] if file.is_file() else file.iterdir())) / 1e6
            for name, (file, _) in runs.items()
        }
    rows = [["format", "MB", "mAP50", "mAP50-95", "accuracy", "ms", "speed", "largest difference"]]
    reference = statistics.median(times["PyTorch"])
    for name, result in results.items():
        median = statistics.median(times[name])
        accuracy = result["image"]["accuracy"] if result["image"] else None
        rows.append([
            name, f"{megabytes[name]:.1f}", f"{result['detection']['map50']:.4f}",
            f"{result['detection']['map50_95']:.4f}", "" if accuracy is None else f"{accuracy:.4f}", f"{median:.1f}",
            f"{reference / median:.2f}", "" if name == "PyTorch" else apart[name],
        ])  # fmt: skip
    pictures_seen = results["PyTorch"]["counts"]["images"]
    print(f"{describe_device(device)}, {core_count()} cores")
    print(
        f"{args.weights.name}, {args.data}: {pictures_seen} pictures, {args.imgsz}x{args.imgsz}, {args.rounds} rounds"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
