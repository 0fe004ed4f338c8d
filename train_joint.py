"""Train a YOLOv5 detection model, or a joint model that also answers for the whole picture.

python train_joint.py --data heart.yaml --cfg yolov5s_cls.yaml --gradnorm-alpha 1.5     # joint, from scratch
python train_joint.py --data heart.yaml --cfg yolov5s_cls.yaml --weights yolov5s.pt     # joint, from a detection model
python train_joint.py --data coco128.yaml --cfg yolov5s.yaml                            # plain detection
torchrun --nproc_per_node 2 train_joint.py --data heart.yaml --device 0,1 --sync-bn     # two GPUs
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import val_joint
from models.build import build_model
from models.load import find_weights
from utils.autoanchor import autoanchor
from utils.autobatch import auto_batch_size
from utils.balancing import add_balancer_arguments, build_balancer_from_args
from utils.boxes import check_img_size
from utils.dataloaders import create_dataloader
from utils.dataset.config import DataConfig, ensure_data, load_data_config, load_hyp
from utils.dataset.samplers import image_weights
from utils.dataset.scan import DatasetIndex, refuse_set, report_problems, scan_dataset, shared_pictures
from utils.dataset.split import leaking_groups
from utils.loss import ComputeJointLoss, scale_gains
from utils.metrics import joint_fitness
from utils.results.curves import plot_labels, plot_results, plot_task_weights
from utils.results.drawing import plot_images
from utils.system.arguments import parse_words
from utils.system.devices import (
    World,
    all_reduce_mean,
    amp_dtype,
    broadcast_object,
    describe_device,
    device_ids,
    init_world,
    main_first,
    memory_format,
    peak_memory_gb,
    select_device,
    to_input,
    use_all_cores,
)
from utils.system.paths import ROOT, find_file, increment_path
from utils.system.process import SafeStop, launch_per_gpu
from utils.system.yamls import save_yaml
from utils.training.engine import Engine, NonFiniteLoss, seed_everything
from utils.training.evolve import evolve
from utils.training.optim import (
    EarlyStopping,
    Schedule,
    build_optimizer,
    choose_optimizer,
    scaled_weight_decay,
)
from utils.training.options import follow_old_flags, todays_names, training_parser
from utils.training.records import RunLogger
from utils.weights.checkpoint import copy_checkpoint, latest_run, load_checkpoint, save_checkpoint, strip_checkpoint

LOSSES = ("box", "obj", "cls", "image")
PROGRESS = ("Epoch", "Mem", "box_loss", "obj_loss", "cls_loss", "image_loss", "w_det", "w_image", "Size", "img/s")


@dataclass
class Run:
    """What the steps of one training run share."""

    opt: argparse.Namespace
    hyp: dict
    data: DataConfig
    save_dir: Path
    device: torch.device
    world: World
    layout: torch.memory_format = torch.contiguous_format

    @property
    def weights_dir(self) -> Path:
        return self.save_dir / "weights"

    def say(self, *lines: object) -> None:
        if self.world.is_main:
            print(*lines, sep="\n", flush=True)


# Building blocks ------------------------------------------------------------------------------------------------------


def scan_split(run: Run, split: str) -> DatasetIndex:
    """Check a split's pictures and labels, and report what has to be left out."""
    opt = run.opt
    index = scan_dataset(
        getattr(run.data, split),
        run.data.nc,
        run.data.cls_nc,
        single_cls=opt.single_cls,
        root=run.data.path,
        prefix=split,
        verbose=run.world.is_main,
    )
    report_problems(index.problems, opt.strict, run.save_dir / f"left_out_{split}.csv", verbose=run.world.is_main)
    refuse_set(index, split, unlabelled=split == "train")
    return index


def checkpoint_record(run: Run, engine: Engine, epoch: int, stopper: EarlyStopping, maps: list | None) -> dict:
    state = engine.state_dict()
    return {
        "epoch": epoch,
        "best_fitness": float(stopper.best_fitness),
        "model": engine.model.record(),
        "ema": state.pop("ema"),
        "train_state": state | {"stopper": stopper.state_dict(), "maps": maps},
        "opt": vars(run.opt),
        "hyp": dict(run.hyp),
        "date": datetime.now().isoformat(),
    }


# One epoch ------------------------------------------------------------------------------------------------------------


def train_epoch(
    run: Run, engine: Engine, net: nn.Module, loader, criterion: ComputeJointLoss, epoch: int, stop: SafeStop
) -> dict:
    """Train for one epoch; returns mean losses, seconds and pictures per second."""
    opt, device = run.opt, run.device
    batches, seen = len(loader), 0
    means = torch.zeros(len(LOSSES) + 1, device=device)
    net.train()
    for module in engine.model.modules():  # frozen layers keep their statistics too
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
    if run.world.is_main:
        print(("\n" + "%11s" * len(PROGRESS)) % PROGRESS)
    often = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file needs no animation
    bar = tqdm(
        loader, total=batches, disable=not run.world.is_main, bar_format="{l_bar}{bar:10}{r_bar}", mininterval=often
    )
    start = time.perf_counter()
    for i, (images, targets, image_targets, paths, _) in enumerate(bar):
        n = i + batches * epoch  # batches since the start of the run
        engine.begin(n)
        images = to_input(images, device, run.layout)
        if opt.multi_scale:
            images = resize_batch(images, opt.imgsz, engine.model.multiple, seed=(opt.seed, n))
        with engine.autocast():
            predictions = net(images)
        _, parts = criterion(predictions, targets.to(device), image_targets)
        losses = tuple(4 * loss for loss in parts.tasks) if opt.quad else parts.tasks  # a quarter of the pictures
        where = f"epoch {epoch} batch {i} with pictures {', '.join(Path(p).name for p in paths[:8])}"
        engine.end(losses, len(images) * run.world.size, parts.present, last=i == batches - 1, where=where)

        now = torch.stack([parts.box, parts.obj, parts.cls, parts.image, parts.tasks[0].detach().reshape(())])
        means += (all_reduce_mean(now.float(), run.world) - means) / (i + 1)
        seen += len(images) * run.world.size * (4 if opt.quad else 1)
        if run.world.is_main:
            rate = seen / (time.perf_counter() - start)
            weights = engine.balancer.weights.tolist()
            memory = f"{peak_memory_gb(device):.3g}G"
            shown = (*means[:4].tolist(), weights[0], weights[1] if len(weights) > 1 else 0.0)
            row = (f"{epoch}/{opt.epochs - 1}", memory, *shown, images.shape[-1], rate)
            bar.set_description(("%11s" * 2 + "%11.4g" * 6 + "%11i%11.4g") % row, refresh=i == batches - 1)
            if n < 3 and not opt.noplots:
                file = run.save_dir / f"train_batch{n}.jpg"
                plot_images(images, targets, image_targets, paths, file, run.data.names, run.data.cls_names)
        stop.check()
    seconds = time.perf_counter() - start
    return {
        "losses": dict(zip((*LOSSES, "det"), means.tolist(), strict=True)),
        "seconds": seconds,
        "images_per_s": seen / seconds,
    }


def resize_batch(images: torch.Tensor, imgsz: int, stride: int, seed: tuple[int, int]) -> torch.Tensor:
    """Multi-scale training: the batch at a random size within ±50 % of `imgsz`, a multiple of the stride."""
    size = random.Random(f"{seed}").randrange(int(imgsz * 0.5), int(imgsz * 1.5) + stride) // stride * stride
    factor = size / max(images.shape[2:])
    if factor == 1:
        return images
    shape = [int(np.ceil(x * factor / stride) * stride) for x in images.shape[2:]]
    return nn.functional.interpolate(images, size=shape, mode="bilinear", align_corners=False)


def epoch_record(run: Run, engine: Engine, epoch: int, trained: dict, results: dict | None, fitness: float) -> dict:
    """One entry of training_history.json, also the source of results.csv and TensorBoard."""
    tasks = ("det", "image")
    stats = engine.balancer.stats()
    norms = stats["grad_norms"]
    metrics = None
    if results:
        image = results["image"] or {}
        metrics = {k: results["detection"][k] for k in ("precision", "recall", "f1", "map50", "map50_95")}
        metrics |= {f"image_{k}": image.get(k) for k in ("accuracy", "balanced_accuracy", "macro_f1")}
        metrics["fitness"] = fitness
    return {
        "epoch": epoch,
        "train": trained["losses"],
        "val": results["losses"] if results else None,
        "task_weights": dict(zip(tasks, engine.balancer.weights.tolist(), strict=False)),
        "grad_norms": dict(zip(tasks, norms, strict=False)) if norms else None,
        "grad_cosine": stats["cosine"],
        "conflict_share": stats["conflict_share"],
        "grad_measured": stats["measured"],  # steps that these three are means of
        "grad_skipped": stats["skipped"],
        "metrics": metrics,
        "lr": [group["lr"] for group in engine.optimizer.param_groups],
        "seconds": trained["seconds"],
        "images_per_s": trained["images_per_s"],
        "peak_memory_gb": peak_memory_gb(run.device),
    }


# The run --------------------------------------------------------------------------------------------------------------


def train(opt: argparse.Namespace, hyp: dict, resumed=None) -> dict:
    """Run one training from start (or from `resumed`) to end; returns the metrics of the best checkpoint."""
    device = select_device(opt.device, opt.batch_size)
    world = init_world(device)
    if opt.batch_size == -1 and world.size > 1:
        raise ValueError("--batch-size -1 measures one device; give a number with several")
    if opt.batch_size != -1 and (opt.batch_size < 1 or opt.batch_size % world.size):
        raise ValueError(f"--batch-size {opt.batch_size} must be a positive multiple of the {world.size} process(es)")
    use_all_cores(world.size)
    seed_everything(opt.seed, opt.deterministic)
    data = load_data_config(opt.data)
    opt.data = str(data.yaml_file or opt.data)  # whole, so that the run can be resumed from any folder
    run = Run(opt, hyp, data, Path(opt.save_dir), device, world)
    run.say(f"YOLOv5-Joint on {describe_device(device)}")
    with main_first(world):
        ensure_data(data)
        if opt.weights and not resumed:
            find_weights(opt.weights)  # fetches official ones, once
    if opt.single_cls:
        data.nc, data.names = 1, {0: "item"} if len(data.names) != 1 else data.names

    if opt.rect and opt.image_weights:
        run.say("--rect: off, since --image-weights draws pictures of all shapes")
        opt.rect = False

    # Network
    report = run.save_dir / "transfer.txt" if world.is_main else None
    model, transferred = build_model(opt, data, hyp, resumed, run.say, report)
    stride = model.multiple
    opt.imgsz = check_img_size(opt.imgsz, stride, floor=2 * stride)
    precision = amp_dtype(device, opt.amp)
    run.layout = memory_format(device, precision, opt.memory_format)
    if opt.batch_size == -1:
        largest = int(opt.imgsz * (1.5 if opt.multi_scale else 1)) // stride * stride
        opt.batch_size = auto_batch_size(model, largest, device, precision, run.say)
    run.say(
        model.info(imgsz=opt.imgsz),
        f"Results go to {run.save_dir}; precision {precision or torch.float32}, {run.layout}",
    )

    # Data
    if world.is_main:
        run.weights_dir.mkdir(parents=True, exist_ok=True)
    with main_first(world):
        train_index = scan_split(run, "train")
        val_index = scan_split(run, "val") if world.is_main else None
    if val_index is not None and (same := shared_pictures(train_index, val_index)):
        run.say(f"WARNING: {same} validation pictures are also training pictures, so the metrics flatter the model")
    if val_index is not None and data.group:
        leaks = leaking_groups(train_index.im_files, val_index.im_files, data.group)
        if leaks:
            some = ", ".join(leaks[:3]) + " …" * (len(leaks) > 3)
            run.say(
                f"WARNING: {len(leaks)} groups ({some}) are in train and in val, so the metrics flatter the model; "
                "check_data.py --folds or --split keeps them apart"
            )
    batch_size = opt.batch_size // world.size
    loader, _ = create_dataloader(
        train_index, opt.imgsz, batch_size, hyp=hyp, stride=stride, augment=True, rect=opt.rect, cache=opt.cache,
        cls_nc=model.cls_nc, workers=opt.workers, rank=world.rank, world_size=world.size, shuffle=not opt.rect,
        seed=opt.seed, quad=opt.quad, weighted=opt.image_weights, nc=data.nc, prefix="train",
    )  # fmt: skip
    val_loader = None
    if val_index is not None:
        val_loader, _ = create_dataloader(
            val_index, opt.imgsz, batch_size * 2, hyp=hyp, stride=stride, augment=False, rect=True, pad=0.5,
            cache=None if opt.noval else opt.cache, cls_nc=model.cls_nc, workers=opt.workers, prefix="val",
        )  # fmt: skip
    if not resumed and not opt.noautoanchor:
        autoanchor(train_index, model, opt.imgsz, hyp["anchor_t"], opt.seed, verbose=world.is_main)

    # Optimisation
    model.hyp = scale_gains(hyp, model, opt.imgsz, opt.label_smoothing)
    model = model.to(device, memory_format=run.layout)
    if opt.sync_bn and world.distributed and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    opt.optimizer, opt.nbs = choose_optimizer(opt.optimizer, opt.nbs, opt.epochs * len(loader), opt.batch_size)
    decay = scaled_weight_decay(hyp["weight_decay"], opt.batch_size, opt.nbs)
    tuning = bool(opt.weights)  # a resumed run's too: there `transferred` is empty
    optimizer = build_optimizer(model, opt.optimizer, hyp["lr0"], hyp["momentum"], decay, transferred, tuning)
    schedule = Schedule(hyp, opt.epochs, len(loader), opt.batch_size, opt.cos_lr, opt.nbs)
    tasks = 2 if model.cls_nc else 1
    balancer = build_balancer_from_args(opt, tasks, model.shared_parameters(), list(model.parameters()))
    engine = Engine(model, optimizer, schedule, balancer, device, precision, ema=world.is_main, world=world)
    criterion = ComputeJointLoss(model, balancer, model.hyp)
    stopper = EarlyStopping(opt.patience)
    first_epoch, maps = 0, None
    if resumed:
        first_epoch = resumed.epoch + 1
        if first_epoch >= opt.epochs:
            raise ValueError(f"{resumed.file}: all {opt.epochs} epochs are trained; nothing is left to resume")
        engine.load_state_dict(resumed.train_state)
        stopper.load_state_dict(resumed.train_state["stopper"])
        maps = resumed.train_state.get("maps")
        if opt.image_weights:
            loader.set_weights(image_weights(train_index, data.nc, maps))
    net = model
    if world.distributed:
        ids = [device.index] if device.type == "cuda" else None
        net = nn.parallel.DistributedDataParallel(model, device_ids=ids)

    # Records
    logger = None
    if world.is_main:
        save_yaml(run.save_dir / "opt.yaml", vars(opt))
        save_yaml(run.save_dir / "hyp.yaml", hyp)
        logger = RunLogger(run.save_dir, joint=tasks > 1)
        if resumed:
            logger.resume(first_epoch)
        elif not opt.noplots:
            plot_labels(train_index, data.names, data.cls_names, run.save_dir)
            logger.graph(model, 2 * stride)
    last, best = run.weights_dir / "last.pt", run.weights_dir / "best.pt"
    every = max(round(opt.nbs / opt.batch_size), 1)
    run.say(
        f"Training epochs {first_epoch} to {opt.epochs - 1}: {len(train_index)} pictures at {opt.imgsz} px, batch "
        f"{opt.batch_size}, {opt.optimizer} with a step every {every} batches, warm-up {schedule.warmup_batches}, "
        f"{loader.num_workers} data workers",
        f"Tasks balanced by {balancer}" if tasks > 1 else "One task: detection",
    )
    if tasks > 1 and not balancer.shared:
        run.say("No trained layer is shared by the tasks: no gradient can interfere, and nothing is measured")
    close_mosaic = min(opt.close_mosaic, opt.epochs // 2)

    epoch, results, saved, began = first_epoch, None, resumed is not None, time.perf_counter()
    try:
        with SafeStop() as stop:
            for epoch in range(first_epoch, opt.epochs):
                loader.set_epoch(epoch, mosaic=epoch < opt.epochs - close_mosaic)
                trained = train_epoch(run, engine, net, loader, criterion, epoch, stop)
                early, final = False, epoch == opt.epochs - 1
                if world.is_main:
                    results, fitness = None, 0.0
                    if not opt.noval or final:
                        results = validate(run, engine, val_loader, criterion)
                        fitness = joint_fitness(**fitness_inputs(results), weight=opt.fitness_weight)
                        early, maps = stopper(epoch, fitness), results["detection"]["maps"]
                    logger.epoch(epoch_record(run, engine, epoch, trained, results, fitness))
                engine.balancer.end_epoch()
                if world.is_main and (not opt.nosave or final or early):
                    save_checkpoint(last, checkpoint_record(run, engine, epoch, stopper, maps))
                    saved = True
                    if stopper.best_epoch == epoch and results:
                        copy_checkpoint(last, best)
                    if opt.save_period > 0 and epoch % opt.save_period == 0:
                        copy_checkpoint(last, run.weights_dir / f"epoch{epoch}.pt")
                if opt.image_weights:
                    loader.set_weights(image_weights(train_index, data.nc, broadcast_object(maps, world)))
                if broadcast_object(early, world):
                    run.say(f"Stopped: no better fitness in the last {opt.patience} epochs (--patience)")
                    break
    except (KeyboardInterrupt, NonFiniteLoss) as problem:
        reason = "Interrupted" if isinstance(problem, KeyboardInterrupt) else "Stopped"
        run.say(f"\n{reason} in epoch {epoch}")
        if world.is_main and (saved or emergency_save(run, engine, epoch, stopper, maps, last)):
            run.say(f"Continue from its start with: python train_joint.py --resume {last}")
        raise
    if world.distributed:
        torch.distributed.destroy_process_group()

    if not world.is_main:
        return {}
    hours = (time.perf_counter() - began) / 3600
    run.say(f"\n{epoch - first_epoch + 1} epochs in {hours:.3f} h")
    return finish(run, logger, last, best)


def validate(run: Run, engine: Engine, loader, criterion: ComputeJointLoss) -> dict:
    """Both tasks on the validation pictures, with the averaged weights."""
    opt = run.opt
    return val_joint.run(
        run.data, model=engine.ema.model, dataloader=loader, imgsz=opt.imgsz, device=run.device, plots=False,
        save_dir=run.save_dir, single_cls=opt.single_cls, criterion=criterion, fitness_weight=opt.fitness_weight,
        amp=opt.amp,
    )  # fmt: skip


def fitness_inputs(results: dict) -> dict:
    detection, image = results["detection"], results["image"] or {}
    return {"map50": detection["map50"], "map50_95": detection["map50_95"], "image_accuracy": image.get("accuracy")}


def emergency_save(run: Run, engine: Engine, epoch: int, stopper: EarlyStopping, maps: list | None, last: Path) -> bool:
    """Make a `last.pt` in a run that has written none; returns whether there is something to save."""
    if not engine.finite():
        run.say("The network is no longer finite and no epoch was saved, so nothing is saved now")
        return False
    save_checkpoint(last, checkpoint_record(run, engine, epoch - 1, stopper, maps))
    run.say("No epoch was saved before: last.pt holds the weights of now, which have seen part of this epoch")
    return True


def finish(run: Run, logger: RunLogger, last: Path, best: Path) -> dict:
    """Strip the checkpoints, validate the best one with plots, draw the run's curves."""
    opt = run.opt
    if not best.exists():  # no epoch had a fitness above 0, or --nosave passed over the best one
        copy_checkpoint(last, best)
    for file in (last, best):
        strip_checkpoint(file)
        run.say(f"Stripped {file}, {file.stat().st_size / 1e6:.1f} MB")
    run.say(f"\nValidating {best} in float32")
    results = val_joint.run(
            run.data, weights=best, batch_size=opt.batch_size // run.world.size * 2, imgsz=opt.imgsz, device=opt.device,
            save_dir=run.save_dir, workers=opt.workers, single_cls=opt.single_cls,
            plots=not opt.noplots, verbose=True, fitness_weight=opt.fitness_weight,
        )  # fmt: skip
    if not opt.noplots:
        plot_results(run.save_dir / "results.csv")
        if logger.joint:
            plot_task_weights(logger.history, run.save_dir / "task_weights.png")
        for picture in sorted(run.save_dir.glob("*.png")) + sorted(run.save_dir.glob("*.jpg")):
            logger.image(picture.stem, picture)
    logger.close()
    run.say(f"Results saved to {run.save_dir}")
    return results


# Command line ---------------------------------------------------------------------------------------------------------


def parse_opt(args: list[str] | bool | None = None, known: bool = False) -> argparse.Namespace:
    parser = training_parser(__doc__)
    add_balancer_arguments(parser)
    return parse_words(parser, args, known, todays_names)


def load_resumed(opt: argparse.Namespace):
    """Checkpoint and options of the run to continue: the run's own options, but for the device."""
    file = Path(opt.resume) if isinstance(opt.resume, str) else latest_run(".", ROOT / "runs")
    checkpoint = load_checkpoint(file)
    if checkpoint.train_state is None:
        raise ValueError(
            f"{file}: holds no training state (the run is finished, or YOLOv5 wrote it); start with --weights {file}"
        )
    defaults = vars(parse_opt([]))
    own = {"resume", "device", "local_rank"}
    ignored = [k for k, v in vars(opt).items() if k not in own and k in defaults and v != defaults[k]]
    if ignored:
        print(f"--resume continues with the run's own options; not used: {', '.join('--' + k for k in ignored)}")
    opt = argparse.Namespace(**(defaults | checkpoint.opt | {"device": opt.device or checkpoint.opt.get("device", "")}))
    opt.resume, folder = str(file), file.resolve().parent
    opt.save_dir = folder.parent if folder.name == "weights" else folder
    return checkpoint, opt


def evolve_run(opt: argparse.Namespace, hyp: dict) -> dict:
    """Evolve the hyperparameters; each candidate is a training of its own, without plots."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--evolve runs on one device; start one evolution per GPU with --device N")
    folders = [Path(opt.evolve_population), ROOT / opt.evolve_population]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"--evolve_population {opt.evolve_population}: there is no such folder")

    def train_candidate(candidate: dict, save_dir: Path) -> dict | None:
        own = {"save_dir": save_dir, "noplots": True, "noval": True, "nosave": True}
        try:
            return train(argparse.Namespace(**vars(opt) | own), candidate)
        except NonFiniteLoss as error:
            print(f"This candidate diverged: {error}")
            return None

    population = [load_hyp(f) for f in sorted(folder.glob("*.yaml")) if f.name != Path(opt.hyp).name]
    history = Path(opt.resume_evolve) if opt.resume_evolve else None
    return evolve(train_candidate, Path(opt.save_dir), opt.evolve, hyp, population, history, opt.seed)


def main(opt: argparse.Namespace, relaunch: bool = False) -> dict:
    """Train as the options say.

    Args:
        relaunch: Several devices may start this command line anew, in a process for each.

    Raises:
        ValueError: Several devices, and this is neither a command line nor one of its processes.
    """
    checkpoint = None
    follow_old_flags(opt)
    if opt.resume:
        checkpoint, opt = load_resumed(opt)
    ids = device_ids(opt.device)
    if len(ids) > 1 and "LOCAL_RANK" not in os.environ:
        if not relaunch:
            raise ValueError(f"--device {opt.device}: each GPU needs a process, so start train_joint.py from a console")
        launch_per_gpu(len(ids))
    if checkpoint:
        return train(opt, checkpoint.hyp, checkpoint)
    if opt.evolve and Path(opt.project) == ROOT / "runs/train":
        opt.project = ROOT / "runs/evolve"
    if opt.name == "cfg":  # YOLOv5's word for it
        opt.name = Path(opt.cfg).stem or "exp"
    opt.save_dir = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok)
    hyp = load_hyp(find_file(opt.hyp, (ROOT / "data/hyps",)))
    return evolve_run(opt, hyp) if opt.evolve else train(opt, hyp)


def run(**options) -> dict:
    """Train from Python, as YOLOv5's `train.run(data="coco128.yaml", imgsz=320, weights="yolov5n.pt")` does.

    Args:
        options: Those of the command line, by their names there with `_` for `-`.

    Returns:
        The metrics of the best checkpoint.

    Raises:
        TypeError: An option of an unknown name.
    """
    known = vars(parse_opt([]))
    if unknown := set(options) - set(known):
        raise TypeError(f"train_joint.run() knows no {', '.join(sorted(unknown))}; see train_joint.py --help")
    return main(argparse.Namespace(**known | options))


def command_line() -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    try:
        main(parse_opt(), relaunch=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, FileNotFoundError, NonFiniteLoss) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    command_line()
