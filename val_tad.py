"""Validate temporal detection: mAP over tIoU, per class, and what went wrong.

python val_tad.py --data echo_clips.yaml --weights runs/tad/exp/weights/best.pt
python val_tad.py --data thumos14.yaml --weights epoch_59.pth --cfg adatad_s.yaml     # a public AdaTAD checkpoint
python val_tad.py --data echo_clips.yaml --detections detections.json                 # results of any program
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from tad.choices import MEMORY, THRESHOLDS
from utils.system.arguments import AMP_CHOICES, BY_ITSELF, check_ranges, parse_words
from utils.system.paths import ROOT, increment_path


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="echo_clips.yaml", help="data yaml")
    add("--weights", default="", help="checkpoint: of train_tad.py, or a public AdaTAD one")
    add("--cfg", default="", help="model yaml, for a public checkpoint")
    add("--detections", default="", help="evaluate this results file instead of a network")
    add("--subset", default="", help="subset of the annotations; empty: the data yaml's val")
    add("--protocol", choices=list(THRESHOLDS), default="thumos", help="thresholds of tIoU")
    add("--memory", choices=MEMORY, default="auto", help="GiB of the device: sets batch, workers and threads")
    add("--batch-size", type=int, default=0, help="windows at a time; 0: by --memory")
    add("--workers", type=int, default=-1, help="data-loading processes; -1: by --memory")
    add("--amp", choices=AMP_CHOICES, default="auto", help="auto: float16 on CUDA, bfloat16 on processors that have it")
    add("--device", default="", help="cpu, 0, mps; empty is the best there is")
    add("--strict", action="store_true", help="stop if any video or event had to be left out")
    add("--noplots", action="store_true", help="draw no pictures")
    add("--project", default=str(ROOT / "runs/tad_val"), help="folder of the results")
    add("--name", default="exp", help="folder of these results")
    add("--exist-ok", action="store_true", help="write into an existing folder")
    return parse_words(parser, args, ranges=BY_ITSELF)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


from tad.annotations import read_results
from tad.config import load_config
from tad.data import load_data
from tad.load import load_model
from tad.memory import loading
from tad.validation import (
    metrics_of,
    of_videos,
    predict_with_bar,
    report_problems,
    table,
    truth_of,
    val_loader,
    write_results,
)
from utils.system.command_line import one_sentence
from utils.system.devices import World, amp_dtype, describe_device, select_device, use_machine
from utils.system.voice import say


def main(opt: argparse.Namespace) -> dict:
    """Validate as the options say; returns the figures."""
    check_ranges(vars(opt), BY_ITSELF)
    data = load_data(opt.data)
    if opt.subset:
        data = dataclasses.replace(data, val=opt.subset)
    if bool(opt.weights) == bool(opt.detections):
        raise ValueError("give --weights of a network, or --detections of a results file")
    if opt.detections:
        truth = truth_of(data)
        events = of_videos(read_results(opt.detections), truth, opt.detections)
        save_dir = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True)
        report_problems(data, None, save_dir, opt.strict)
    else:
        device = select_device(opt.device)
        use_machine()
        say(f"Temporal detection on {describe_device(device)}")
        model = load_model(opt.weights, load_config(opt.cfg) if opt.cfg else None, data.names).to(device)
        data.check_classes(model.names, opt.weights)
        numbers = loading(opt.memory, device)
        numbers = dataclasses.replace(
            numbers,
            val_batch=opt.batch_size or numbers.val_batch,
            val_workers=numbers.val_workers if opt.workers < 0 else opt.workers,
        )
        loader = val_loader(data, model.config, numbers, None, World())
        save_dir = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True)
        report_problems(data, loader.dataset, save_dir, opt.strict)
        truth = truth_of(data, loader.dataset)
        amp = amp_dtype(device, opt.amp)
        events = predict_with_bar(model, loader, model.config, model.names, device, amp, World())
    metrics = metrics_of(truth, events, THRESHOLDS[opt.protocol])
    say(table(metrics))
    write_results(metrics, truth, events, save_dir, not opt.noplots)
    say(f"Results saved to {save_dir}")
    return metrics


def command_line() -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("val_tad.py"):
        main(parse_opt())


if __name__ == "__main__":
    command_line()
