"""What a training step costs with each balancer, against the plain fixed sum.

    python benchmarks/balancer_overhead.py --cfg yolov5n_cls.yaml yolov5s_cls.yaml

One model trains on one random batch; the balancers take turns, one optimiser step each, so that a drift of the machine
meets all of them alike. A step is forward pass, loss, backward pass and optimiser step, in the precision and memory
layout that training uses. `plain sum` adds the losses up and does nothing else. GradNorm and `fixed` measure the task
gradients, for the weights or for the record, at every step; the last column is what that comes to at the default
interval. `gradnorm, last layer` measures at the last shared layer, the default, the two at every level. The others
are shown without measuring for the record: their cost is their own, at every step. Reported is the least of the
rounds, which other work on the machine disturbs least.

On a machine that does other work, `--processor-time` counts the seconds that this process computed, on one thread, in
place of those that went by.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.yolo import Model  # noqa: E402
from utils.balancing import BALANCERS, GradNorm, build_balancer  # noqa: E402
from utils.dataset.config import DEFAULT_HYP  # noqa: E402
from utils.loss import ComputeJointLoss  # noqa: E402
from utils.system.devices import (  # noqa: E402
    amp_dtype,
    autocast,
    describe_device,
    memory_format,
    select_device,
    synchronize,
    use_machine,
)
from utils.training.optim import build_optimizer  # noqa: E402

MEASURED = ("gradnorm", "fixed")  # by these the task gradients are measured
PLAIN, LAST = "plain sum", "gradnorm, last layer"
DEFAULT_INTERVAL = inspect.signature(GradNorm).parameters["interval"].default


def measure(cfg: str, names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step, one entry a round, by balancer."""
    device = select_device(args.device)
    clock = time.process_time if args.processor_time else time.perf_counter
    precision = amp_dtype(device)
    layout = memory_format(device, precision)
    torch.manual_seed(0)
    model = Model(cfg, nc=4, cls_nc=3).to(device, memory_format=layout).train()
    scale = args.imgsz / 640
    model.hyp = DEFAULT_HYP | {"obj": DEFAULT_HYP["obj"] * scale**2, "cls": DEFAULT_HYP["cls"] * 4 / 80}
    optimizer = build_optimizer(model.parameter_groups(), "SGD", lr=1e-4)
    n = args.batch_size
    images = torch.rand(n, 3, args.imgsz, args.imgsz, device=device).to(memory_format=layout)
    boxes = torch.cat((torch.rand(2 * n, 2) * 0.8 + 0.1, torch.rand(2 * n, 2) * 0.3 + 0.05), 1)
    targets = torch.cat((torch.arange(2 * n)[:, None] // 2, torch.randint(0, 4, (2 * n, 1)), boxes), 1).to(device)
    image_targets = nn.functional.one_hot(torch.arange(n) % 3, 3).float()

    shared, params = model.shared_parameters(), list(model.parameters())
    balancers = {PLAIN: build_balancer("fixed", 2, shared, params, interval=0)}
    for name in names:
        try:
            balancers[name] = build_balancer(name, 2, shared, params, interval=int(name in MEASURED))
        except ValueError as error:
            print(f"left out: {error}")
        if name == "gradnorm":
            balancers[LAST] = build_balancer(name, 2, shared[-1:], params, interval=1)
    criterion = ComputeJointLoss(model)
    seconds: dict[str, list[float]] = {name: [] for name in balancers}
    for round_number in range(args.rounds + 1):
        for name, balancer in balancers.items():
            synchronize(device)
            start = clock()
            with autocast(device, precision is not None, precision):
                predictions = model(images)
            losses = criterion(predictions, targets, image_targets)
            balancer.backward(list(losses.tasks.values()), n, present=list(losses.present.values()))
            nn.utils.clip_grad_norm_(params, 10.0)
            optimizer.step()
            balancer.step()
            optimizer.zero_grad()
            synchronize(device)
            if round_number:  # the first one warms up
                seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", nargs="+", default=["yolov5n_cls.yaml", "yolov5s_cls.yaml"])
    parser.add_argument("--balancers", nargs="+", default=list(BALANCERS), choices=list(BALANCERS), metavar="NAME")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="")
    parser.add_argument("--processor-time", action="store_true", help="count processor seconds, on one thread")
    args = parser.parse_args()
    use_machine()
    if args.processor_time:
        torch.set_num_threads(1)
    device = select_device(args.device)
    print(describe_device(device), f"batch {args.batch_size}, {args.imgsz} px, {args.rounds} rounds", sep="\n")
    for cfg in args.cfg:
        seconds = measure(cfg, args.balancers, args)
        base = min(seconds[PLAIN])
        print(f"\n{cfg}\n{'balancer':22} {'ms a step':>10} {'overhead':>9} {f'at interval {DEFAULT_INTERVAL}':>15}")
        for name, times in seconds.items():
            extra = min(times) / base - 1
            sparse = f"{extra / DEFAULT_INTERVAL:15.1%}" if name in (*MEASURED, LAST) else ""
            print(f"{name:22} {min(times) * 1000:10.1f} {extra:9.1%} {sparse}")


if __name__ == "__main__":
    main()
