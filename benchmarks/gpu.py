"""What a machine with CUDA GPUs has to show, in one go: the speed of training, its parts, several GPUs, and the tests.

    python benchmarks/gpu.py --data ../shared/heart/heart.yaml --peer-python /path/to/peer/bin/python

1. Images a second of an epoch, ours in several precisions and layouts against the peer (`train_speed.py`).
2. Milliseconds of a training step of the network alone on random pictures: precision and layout, `torch.compile`, and
   that with CUDA graphs. The project has no flag for the last two; this says whether one would pay.
3. Where there are several GPUs: the epoch on all of them (torchrun, NCCL), with and without `--sync-bn`.
4. `pytest -m cuda`.

Without a CUDA device it says so, and ends well.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.yolo import Model
from utils.dataset.config import load_hyp
from utils.loss import ComputeJointLoss, scale_gains
from utils.system.devices import autocast, synchronize

ROOT = Path(__file__).resolve().parents[1]
STEPS = {  # precision, channels-last, mode of torch.compile
    "float32": (None, False, None),
    "float32, channels-last": (None, True, None),
    "fp16": (torch.float16, False, None),
    "fp16, channels-last": (torch.float16, True, None),
    "bf16, channels-last": (torch.bfloat16, True, None),
    "fp16, channels-last, torch.compile": (torch.float16, True, "default"),
    "fp16, channels-last, torch.compile with CUDA graphs": (torch.float16, True, "reduce-overhead"),
}


def step_ms(
    device: torch.device, cfg: str, imgsz: int, batch: int, steps: int,
    dtype: torch.dtype | None, channels_last: bool, compiled: str | None,
) -> float:  # fmt: skip
    """Median milliseconds of forward, loss, backward and a step of SGD, after ten of warm-up."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = Model(cfg, nc=4).to(device, memory_format=layout).train()
    model.hyp = scale_gains(load_hyp("hyp.scratch-low.yaml"), model, imgsz, 0.0)
    criterion, optimizer = ComputeJointLoss(model), torch.optim.SGD(model.parameters(), 1e-4)
    network = torch.compile(model, mode=compiled) if compiled else model
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    images = torch.rand(batch, 3, imgsz, imgsz, device=device).contiguous(memory_format=layout)
    targets = torch.rand(4 * batch, 6, device=device) * 0.4 + 0.3
    targets[:, 0], targets[:, 1] = torch.arange(4 * batch, device=device) % batch, 0
    times = []
    for _ in range(steps + 10):
        synchronize(device)
        began = time.perf_counter()
        with autocast(device, dtype is not None, dtype):
            predictions = network(images)
        loss = sum(criterion(predictions, targets, None).tasks.values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        synchronize(device)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[10:])


def network_steps(device: torch.device, opt: argparse.Namespace) -> None:
    print(
        f"\n{opt.cfg}, {opt.imgsz} px, batch {opt.batch_size}: milliseconds of a step of the network alone", flush=True
    )
    for name, choice in STEPS.items():
        try:
            ms = step_ms(device, opt.cfg, opt.imgsz, opt.batch_size, opt.steps, *choice)
        except Exception as error:  # of a compiler that is missing, or of the memory: the others are still of interest
            print(f"  {name:54}{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}", flush=True)
        else:
            print(f"  {name:54}{ms:9.2f}{opt.batch_size / ms * 1e3:10.0f} images/s", flush=True)


def epochs(device: str, batch: int, names: list[str], opt: argparse.Namespace) -> None:
    """`train_speed.py` of these contestants on a device or several."""
    command = [sys.executable, str(ROOT / "benchmarks/train_speed.py"), "--device", device, "--batch-size", str(batch)]
    command += ["--data", opt.data, "--cfg", opt.cfg, "--imgsz", str(opt.imgsz), "--workers", str(opt.workers)]
    command += ["--peer-python", opt.peer_python] if opt.peer_python else []
    print(f"\nDevice {device}", flush=True)
    subprocess.run([*command, "--only", *names], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/heart.yaml", help="data yaml (../shared/heart/heart.yaml)")
    parser.add_argument("--cfg", default="yolov5n.yaml", help="our model yaml")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=64, help="of one GPU")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="timed steps of the network alone")
    parser.add_argument("--peer-python", help="interpreter that has ultralytics; without it the peer is left out")
    opt = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here, so there is nothing to measure.")
        return
    count = torch.cuda.device_count()
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {count} x {torch.cuda.get_device_name(0)}")
    ours = ["ours", "ours-bf16", "ours-contiguous", "ours-float32"]
    epochs("0", opt.batch_size, ours + (["peer"] if opt.peer_python else []), opt)
    network_steps(torch.device("cuda", 0), opt)
    if count > 1:
        epochs(",".join(map(str, range(count))), count * opt.batch_size, ["ours", "ours-sync-bn"], opt)
    print("\npytest -m cuda", flush=True)
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-n", "0"], cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
