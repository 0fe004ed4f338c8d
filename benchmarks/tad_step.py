"""Seconds and memory of the full-size temporal detector on a processor, beside figures of the public implementation.

    python benchmarks/tad_step.py --what forward --amp off --threads 1
    python benchmarks/tad_step.py --what step --amp bf16 --threads 1

One window of 768 frames at 160 px through `adatad_s.yaml`, or one training step of it (batch 1, activations computed
again, AdamW). Processor seconds stand beside those of the clock, since they depend less on what else the machine does.
The figures of the public implementation (one thread of an AMD EPYC, float32 and bfloat16 autocast) were measured once
and are given for scale; another processor shifts both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that it also runs as a script

from tad.config import load_config  # noqa: E402
from tad.loss import window_losses  # noqa: E402
from tad.model import TadModel  # noqa: E402
from tad.segments import points  # noqa: E402
from utils.system.devices import amp_dtype, autocast, describe_device, peak_memory_gb  # noqa: E402

PUBLIC = {  # (what, amp) -> seconds, GB
    ("forward", "off"): (33.8, 2.47), ("forward", "bf16"): (23.4, 2.46),
    ("step", "off"): (124.0, 3.45), ("step", "bf16"): (72.6, 3.18),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["forward", "step"], default="forward")
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    parser.add_argument("--cfg", default="adatad_s.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpointing", choices=["on", "off"], default="on")
    opt = parser.parse_args()
    torch.set_num_threads(opt.threads)
    torch.manual_seed(0)
    device, config = torch.device("cpu"), load_config(opt.cfg)
    amp = amp_dtype(device, opt.amp)
    model = TadModel(config, [f"class{i}" for i in range(20)])
    model.train(opt.what == "step")
    model.backbone.checkpointing = opt.checkpointing == "on"
    frames = torch.randint(0, 256, (1, 3, config.frames, config.imgsz, config.imgsz), dtype=torch.uint8)
    mask = torch.ones(1, config.frames, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameter_groups())
    wall, cpu = time.perf_counter(), time.process_time()
    if opt.what == "forward":
        with torch.inference_mode(), autocast(device, amp is not None, amp):
            model(frames, mask)
    else:
        with autocast(device, amp is not None, amp):
            answer = model(frames, mask)
        events = [torch.tensor([[100.0, 160.0], [300.0, 420.0]])], [torch.tensor([1, 2])]
        at = points(config.frames, config.levels)
        losses = window_losses(answer, at, *events, model.detector.head.loss_normalizer)
        (losses.cls + losses.reg).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(describe_device(device))
    times = f"{cpu:.1f} s of processor time, {wall:.1f} s of the clock"
    print(f"{opt.what}, {opt.amp}: {times}, {peak_memory_gb(device):.2f} GB")
    seconds, memory = PUBLIC[opt.what, opt.amp]
    print(f"public implementation, one EPYC thread: {seconds} s, {memory} GB")


if __name__ == "__main__":
    main()
