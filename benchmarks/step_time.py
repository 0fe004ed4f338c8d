"""Where the time of a training step goes: the parts of a step of the joint network on real pictures, in one process.

    python benchmarks/step_time.py --data ../shared/heart/heart.yaml

Prints milliseconds and the share of each part, for float32 in PyTorch's default layout and for what `train_joint.py`
chooses on this device. The loader runs as in a training (workers beside), so "wait for data" is what it fails to hide.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.yolo import Model
from utils.balancing import build_balancer
from utils.dataloaders import create_dataloader
from utils.dataset.config import load_data_config, load_hyp
from utils.dataset.scan import scan_dataset
from utils.loss import ComputeJointLoss, scale_gains
from utils.system.devices import amp_dtype, autocast, memory_format, select_device, synchronize, to_input, use_machine
from utils.training.average import ModelEMA
from utils.training.optim import build_optimizer

PARTS = ("wait for data", "to the device", "forward", "loss", "backward", "optimiser", "average")


def time_steps(args: argparse.Namespace, amp: str, layout_name: str) -> dict[str, float]:
    """Seconds of each part over `args.steps` steps, after five steps of warm-up."""
    device = select_device(args.device)
    data, hyp = load_data_config(args.data), load_hyp("hyp.scratch-low.yaml")
    dtype = amp_dtype(device, amp)
    layout = memory_format(device, dtype, layout_name)
    model = Model(args.cfg, nc=data.nc, cls_nc=data.cls_nc or None).to(device, memory_format=layout).train()
    model.hyp = scale_gains(hyp, model, args.imgsz, 0.0)
    index = scan_dataset(data.train, data.nc, data.cls_nc, verbose=False)
    loader, _ = create_dataloader(
        index, args.imgsz, args.batch_size, hyp=hyp, augment=True, shuffle=True, cls_nc=model.cls_nc, cache=args.cache
    )
    optimizer = build_optimizer(model.parameter_groups(), args.optimizer)
    tasks = 2 if model.cls_nc else 1
    balancer = build_balancer("gradnorm", tasks, model.shared_parameters())
    criterion, ema = ComputeJointLoss(model), ModelEMA(model)
    spent: dict[str, float] = defaultdict(float)
    clock = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal clock
        synchronize(device)
        now = time.perf_counter()
        spent[part] += now - clock
        clock = now

    batches = iter(loader)
    for step in range(args.steps + 5):
        if step == 5:
            spent.clear()
            clock = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        images, targets, image_targets, _, _ = batch
        lap("wait for data")
        images = to_input(images, device, layout)
        lap("to the device")
        with autocast(device, dtype is not None, dtype):
            predictions = model(images)
        lap("forward")
        losses = criterion(predictions, targets.to(device), image_targets.to(device))
        lap("loss")
        balancer.backward(list(losses.tasks.values()), len(images), None, list(losses.present.values()))
        lap("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        balancer.step()
        optimizer.zero_grad()
        lap("optimiser")
        ema.update()
        lap("average")
    return dict(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="heart.yaml")
    parser.add_argument("--cfg", default="yolov5n_cls.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--optimizer", default="Muon")
    parser.add_argument("--cache", default=None, choices=["ram", "disk"])
    parser.add_argument("--device", default="")
    args = parser.parse_args()
    use_machine()
    columns = {"float32": ("off", "contiguous"), "as shipped": ("auto", "auto")}
    spent = {name: time_steps(args, *choice) for name, choice in columns.items()}
    print(f"{args.cfg}, {args.imgsz} px, batch {args.batch_size}, {args.optimizer}, {torch.get_num_threads()} threads")
    print(f"{'part':>16}" + "".join(f"{name:>24}" for name in columns))
    for part in (*PARTS, "whole step"):
        cells = []
        for seconds in spent.values():
            total = sum(seconds.values())
            value = total if part == "whole step" else seconds[part]
            cells.append(f"{value / args.steps * 1e3:12.1f} ms {value / total:7.1%}")
        print(f"{part:>16}" + "".join(f"{cell:>24}" for cell in cells))
    whole = [sum(seconds.values()) for seconds in spent.values()]
    print(f"float32 / as shipped: {whole[0] / whole[1]:.2f}")


if __name__ == "__main__":
    main()
