"""Train temporal detection: which events a clip shows, from when to when.

python train_tad.py --data echo_clips.yaml --cfg adatad_tiny.yaml                              # built-in clips
python train_tad.py --data thumos14.yaml --cfg adatad_s.yaml --weights vit_s.pth --memory 32   # the published recipe
python train_tad.py --resume                                                                   # the last run
torchrun --nproc_per_node 2 train_tad.py --data thumos14.yaml --cfg adatad_s.yaml --weights vit_s.pth --device 0,1
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from tad.choices import MEMORY, THRESHOLDS
from utils.system.arguments import AMP_CHOICES, BY_ITSELF, check_ranges, parse_words
from utils.system.paths import ROOT, increment_path


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="echo_clips.yaml", help="data yaml")
    add("--cfg", default="adatad_tiny.yaml", help="model yaml with its recipe: adatad_{tiny,s,b,l,h,g}.yaml, or yours")
    add("--weights", default="", help="VideoMAE weights for the backbone, or a checkpoint to start from")
    add("--memory", choices=MEMORY, default="auto", help="GiB of the device: sets batch, workers, prefetch, threads")
    add("--batch-size", type=int, default=0, help="windows a step over all devices; 0: by --memory, or the yaml's")
    add("--workers", type=int, default=-1, help="data-loading processes per device; -1: by --memory")
    add("--prefetch", type=int, default=0, help="batches that each of them holds ready; 0: by --memory")
    add("--threads", type=int, default=0, help="threads that decode one video; 0: by --memory")
    add("--cache", nargs="?", const="ram", choices=["ram", "disk"], help="keep decoded frames in memory or on disk")
    add("--epochs", type=int, default=0, help="epochs to train; 0: the yaml's")
    add("--protocol", choices=list(THRESHOLDS), default="thumos", help="thresholds of tIoU for the mAP")
    add(
        "--checkpointing", choices=["auto", "on", "off"], default="auto", help="compute activations again (less memory)"
    )
    add("--amp", choices=AMP_CHOICES, default="auto", help="auto: float16 on CUDA, bfloat16 on processors that have it")
    add("--device", default="", help="cpu, 0, 0,1, mps; empty is the best there is")
    add(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        help="continue the latest run of --project, or the given last.pt",
    )
    add("--patience", type=int, default=0, help="stop after this many epochs without a better mAP; 0 never")
    add("--save-period", type=int, default=0, help="also keep a checkpoint every N epochs")
    add("--strict", action="store_true", help="stop if any video or event had to be left out")
    add("--noplots", action="store_true", help="draw no pictures")
    add("--project", default=str(ROOT / "runs/tad"), help="folder of the runs")
    add("--name", default="exp", help="folder of this run")
    add("--exist-ok", action="store_true", help="write into an existing run folder")
    add("--seed", type=int, default=0)
    return parse_words(parser, args, ranges=BY_ITSELF)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


from tad.config import TadConfig, config_from, load_config
from tad.data import load_data
from tad.memory import Loading, loading
from tad.training import Run, train
from tad.weights import read_tensors
from utils.system.command_line import one_sentence
from utils.system.devices import (
    amp_dtype,
    broadcast_object,
    describe_device,
    device_ids,
    init_world,
    main_first,
    select_device,
    use_machine,
)
from utils.system.process import launch_per_gpu
from utils.system.voice import say
from utils.system.yamls import save_yaml
from utils.training.engine import NonFiniteLoss, seed_everything
from utils.training.options import Options
from utils.weights.checkpoint import Checkpoint, latest_run, load_checkpoint


def numbers(opt: Options, config: TadConfig, device, world_size: int) -> Loading:
    """Batch, workers and threads of the run: those given, else those of --memory.

    Raises:
        ValueError: The batch does not divide among the processes.
    """
    preset = loading(opt.memory, device)
    batch = preset.batch or config.batch
    if config.dim > 384:  # the presets are those of ViT-S; of larger networks the yaml's batch is what fits
        batch = min(batch, config.batch)
    chosen = dataclasses.replace(
        preset,
        batch=opt.batch_size or batch,
        workers=preset.workers if opt.workers < 0 else opt.workers,
        val_workers=preset.val_workers if opt.workers < 0 else min(opt.workers, preset.val_workers),
        prefetch=opt.prefetch or preset.prefetch,
        threads=opt.threads or preset.threads,
        val_threads=opt.threads or preset.val_threads,
    )
    if chosen.batch < 1 or chosen.batch % world_size:
        raise ValueError(f"a batch of {chosen.batch} is no multiple of the {world_size} process(es): give --batch-size")
    return chosen


def load_resumed(opt: Options) -> tuple[Checkpoint, Options]:
    """Checkpoint and options of the run to continue: the run's own options, but for device and data."""
    file = Path(opt.resume) if isinstance(opt.resume, str) else latest_run(Path(opt.project))
    checkpoint = load_checkpoint(file)
    if checkpoint.train_state is None or "tad" not in checkpoint.model_yaml:
        raise ValueError(f"{file}: holds no training of train_tad.py that could go on; start with --weights {file}")
    defaults = vars(parse_opt([]))
    kept = {"device": opt.device or checkpoint.opt.get("device", ""), "resume": str(file)}
    if opt.data != defaults["data"]:
        kept["data"] = opt.data  # the videos have moved
    own = {"resume", "device", "data", "project"}
    ignored = [k for k, v in vars(opt).items() if k not in own and k in defaults and v != defaults[k]]
    if ignored:
        say(f"--resume continues with the run's own options; not used: {', '.join('--' + k for k in ignored)}")
    folder = file.resolve().parent
    kept["save_dir"] = str(folder.parent if folder.name == "weights" else folder)
    return checkpoint, Options(**defaults | checkpoint.opt | kept)


def main(opt: argparse.Namespace, relaunch: bool = False) -> dict:
    """Train as the options say; returns the figures of the best checkpoint.

    Args:
        relaunch: Several devices may start this command line anew, in a process for each.
    """
    check_ranges(vars(opt), BY_ITSELF)
    opt, checkpoint = Options(**vars(opt)), None
    if opt.resume:
        checkpoint, opt = load_resumed(opt)
    ids = device_ids(opt.device)
    if len(ids) > 1 and "LOCAL_RANK" not in os.environ:
        if not relaunch:
            raise ValueError(f"--device {opt.device}: each GPU needs a process, so start train_tad.py from a console")
        launch_per_gpu(len(ids))
    device = select_device(opt.device)
    world = init_world(device)
    use_machine(world.size)
    seed_everything(opt.seed)
    say(f"Temporal detection on {describe_device(device)}")
    with main_first(world):
        data = load_data(opt.data)
    if checkpoint:
        config = config_from(checkpoint.model_yaml["tad"], str(checkpoint.file))
        data.check_classes(checkpoint.names, checkpoint.file)
    else:
        config = load_config(opt.cfg)
        if opt.epochs:
            config = dataclasses.replace(
                config, epochs=opt.epochs, schedule_epochs=round(config.schedule_epochs * opt.epochs / config.epochs)
            )
    if opt.weights and not checkpoint:
        read_tensors(opt.weights)  # refused, if it has to be, before the run has a folder
    folder = getattr(opt, "save_dir", None)
    if folder is None and world.is_main:
        folder = str(increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True))
    folder = Path(broadcast_object(folder, world))
    opt = opt.but(data=str(data.file), save_dir=str(folder))
    run = Run(
        opt, config, data, numbers(opt, config, device, world.size), folder, device, amp_dtype(device, opt.amp), world
    )
    if world.is_main:
        save_yaml(folder / "opt.yaml", vars(opt))
        save_yaml(folder / "model.yaml", dataclasses.asdict(config))
    return train(run, checkpoint)


def command_line() -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("train_tad.py", NonFiniteLoss):
        main(parse_opt(), relaunch=True)


if __name__ == "__main__":
    command_line()
