"""Training of temporal detection: what an epoch is, what is recorded and saved; the loop is `utils.training.fit`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from tad.choices import THRESHOLDS
from tad.config import TadConfig
from tad.data import TadData, WindowSet, create_loader
from tad.load import model_of, start_from
from tad.loss import window_losses
from tad.memory import Loading
from tad.model import TadModel
from tad.optim import build_optimizer
from tad.plots import plot_training
from tad.schedule import WarmupCosine
from tad.segments import points
from tad.summary import training_summary, write_summary
from tad.validation import metrics_of, predict_with_bar, report_problems, table, truth_of, val_loader, write_results
from utils.balancing.fixed import Fixed
from utils.system.devices import (
    World,
    all_reduce_mean,
    data_parallel,
    describe_device,
    gather_objects,
    leave_world,
    peak_memory_gb,
)
from utils.system.paths import pasted
from utils.system.process import SafeStop
from utils.system.voice import say
from utils.training.average import ModelEMA
from utils.training.engine import Engine, NonFiniteLoss
from utils.training.fit import EarlyStopping, Evaluation, fit
from utils.training.options import Options
from utils.training.records import RunLogger
from utils.weights.checkpoint import Checkpoint, copy_checkpoint, load_checkpoint, save_epoch, strip_checkpoint

LOSSES = ("total", "cls", "reg")
CHECKPOINTED = 384  # width from which activations are computed again rather than kept
STARTERS = 8  # windows that a network from scratch takes its first scale from
AT_ONCE = 1e-9  # of the average's ramp: none, its decay is constant as published


@dataclass(frozen=True)
class Run:
    """What the parts of one training share."""

    opt: Options
    config: TadConfig
    data: TadData
    loading: Loading
    save_dir: Path
    device: torch.device
    amp: torch.dtype | None
    world: World

    @property
    def weights_dir(self) -> Path:
        return self.save_dir / "weights"

    @property
    def thresholds(self) -> tuple[float, ...]:
        return THRESHOLDS[self.opt.protocol]


def columns(run: Run) -> dict[str, tuple]:
    """Columns of results.csv and where an epoch's record has their values."""
    maps = {f"metrics/mAP_{t:g}": ("metrics", f"map_{t:g}") for t in run.thresholds}
    losses = {f"train/{name}_loss": ("train", name) for name in LOSSES}
    rates = {f"x/lr{i}": ("lr", i) for i in range(3)}
    rest = {"seconds": ("seconds",), "peak_memory_gb": ("peak_memory_gb",)}
    return {"epoch": ("epoch",)} | losses | {"metrics/mAP": ("metrics", "map")} | maps | rates | rest


def build_engine(run: Run, model: TadModel, batches: int) -> Engine:
    """The optimiser of the configuration, the published schedule, clipping and average."""
    c = run.config
    schedule = WarmupCosine(batches, c.warmup_epochs, c.schedule_epochs, c.epochs)
    return Engine(
        model,
        build_optimizer(model),
        schedule,
        Fixed(1),
        run.device,
        ModelEMA(model, c.ema, AT_ONCE),  # on every process, since every one validates its share
        run.amp,
        max_norm=c.clip,
        world=run.world,
    )


def train_epoch(run: Run, engine: Engine, net: nn.Module, loader, epoch: int, stop: SafeStop) -> dict:
    """Train one epoch; returns mean losses by name, learning rates, seconds and clips per second."""
    dataset: WindowSet = loader.dataset
    dataset.epoch = epoch
    at = points(run.config.frames, run.config.levels).to(run.device)
    normaliser = engine.model.detector.head.loss_normalizer
    means = torch.zeros(len(LOSSES), device=run.device)
    net.train()
    often = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file needs no animation
    bar = tqdm(loader, disable=not run.world.is_main, bar_format="{l_bar}{bar:10}{r_bar}", mininterval=often)
    began, batches, seen = time.perf_counter(), len(loader), 0
    for i, batch in enumerate(bar):
        engine.begin(i + batches * epoch)
        with engine.autocast():
            answer = net(batch.frames.to(run.device, non_blocking=True), batch.mask.to(run.device))
        segments, labels = ([x.to(run.device) for x in part] for part in (batch.segments, batch.labels))
        losses = window_losses(answer, at, segments, labels, normaliser)
        total = losses.cls + losses.reg
        names = ", ".join(dataset.records[dataset.windows[item][0]].name for item in batch.items[:8])
        # gradients of several processes are averaged, as published: the loss is that of one process's batch
        engine.end([total], 1, last=i == batches - 1, where=f"epoch {epoch} batch {i} with videos {names}")
        now = torch.stack([total.detach(), losses.cls.detach(), losses.reg.detach()]).float()
        means += (all_reduce_mean(now, run.world) - means) / (i + 1)
        seen += len(batch.items) * run.world.size
        if run.world.is_main:
            shown = " ".join(f"{name} {value:.4f}" for name, value in zip(LOSSES, means.tolist(), strict=True))
            row = f"{epoch}/{run.config.epochs - 1} {peak_memory_gb(run.device):.3g}G {shown}"
            bar.set_description(row, refresh=i == batches - 1)
        stop.check()
    seconds = time.perf_counter() - began
    return {
        "losses": dict(zip(LOSSES, means.tolist(), strict=True)),
        "lr": [group["lr"] for group in engine.optimizer.param_groups],
        "seconds": seconds,
        "clips_per_s": seen / seconds,
    }


def is_measured(config: TadConfig, epoch: int) -> bool:
    """Whether this epoch is followed by a validation."""
    if epoch == config.epochs - 1:
        return True
    return epoch >= config.eval_from and (epoch + 1) % config.eval_every == 0


def write_checkpoints(
    run: Run, engine: Engine, epoch: int, names: Sequence[str], stopper: EarlyStopping, normalizers: list[float]
) -> None:
    """The state after `epoch` under each name, see `save_epoch`.

    Args:
        normalizers: The running number of positives of every process; [] at the start, where all have the same.
    """
    state = engine.state_dict() | {"stopper": stopper.state_dict(), "loss_normalizers": normalizers}
    opt = vars(run.opt) | {"save_dir": str(run.save_dir), "batch_size": run.loading.batch}  # on other devices, too
    record = {
        "epoch": epoch, "best_fitness": float(stopper.best_fitness), "model": engine.model.record(),
        "ema": state.pop("ema"), "train_state": state, "opt": opt, "hyp": {}, "date": datetime.now().isoformat(),
    }  # fmt: skip
    save_epoch(run.weights_dir, names, record)


def prepare(run: Run, resumed: Checkpoint | None) -> tuple[TadModel, object, object, dict]:
    """Network, both loaders and the truth of the validation videos; what was left out is reported."""
    c, opt, numbers, world = run.config, run.opt, run.loading, run.world
    if resumed:
        model = model_of(resumed, averaged=False)
    else:
        model = TadModel(c, run.data.names)
        if opt.weights:
            start_from(model, opt.weights)
        elif c.freeze:
            say("WARNING: no --weights: the frozen backbone keeps random weights and learns nothing; give VideoMAE's")
    model.backbone.checkpointing = opt.checkpointing == "on" or (opt.checkpointing == "auto" and c.dim >= CHECKPOINTED)
    dataset = WindowSet(run.data, c, train=True, cache=opt.cache, threads=numbers.threads, seed=opt.seed)
    if without := sum(not record.events for record in run.data.records("train")):
        say(f"{without} training video(s) without an event: nothing can be learnt from them, they are left out")
    loader = create_loader(
        dataset, numbers.batch // world.size, numbers.workers, numbers.prefetch, world.rank, world.size
    )
    watched = val_loader(run.data, c, numbers, opt.cache, world)
    if world.is_main:
        for part in (dataset, watched.dataset):
            report_problems(run.data, part, run.save_dir, opt.strict)
    if not c.freeze and not opt.weights and not resumed:
        some = [dataset[i].frames for i in range(min(len(dataset), STARTERS))]
        model.backbone.start(torch.stack(some))
    return model.to(run.device), loader, watched, truth_of(run.data, watched.dataset)


def train(run: Run, resumed: Checkpoint | None = None) -> dict:
    """Train from start, or from `resumed`, to end; returns the figures of the best checkpoint.

    Raises:
        KeyboardInterrupt, NonFiniteLoss: As `fit`.
        FileNotFoundError, ValueError: What the user can solve.
    """
    c, world, main = run.config, run.world, run.world.is_main
    model, loader, watched, truth = prepare(run, resumed)
    engine, stopper = build_engine(run, model, len(loader)), EarlyStopping(run.opt.patience)
    first_epoch, normalizers = 0, []
    normalizer = model.detector.head.loss_normalizer  # each process counts the positives of its own batches
    if resumed:
        first_epoch = resumed.epoch + 1
        engine.load_state_dict(resumed.train_state)
        stopper.load_state_dict(resumed.train_state["stopper"])
        normalizers = resumed.train_state.get("loss_normalizers", [])
    net = model
    if world.distributed:
        net = data_parallel(model, run.device, share_buffers=False)
        if len(normalizers) == world.size:  # now: the wrapper gave all what the first has
            normalizer.fill_(normalizers[world.rank])
    logger = None
    if main:
        logger = RunLogger(run.save_dir, columns(run))
        if resumed:
            logger.resume(first_epoch)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {trained:,} of them trained",
        f"Training epochs {first_epoch} to {c.epochs - 1}: {len(loader.dataset)} videos, {len(watched.dataset)} "
        f"validation windows, batch {run.loading.batch}, {loader.num_workers} data workers with {run.loading.threads} "
        f"decoding thread(s), precision {run.amp or torch.float32}",
        f"Results go to {run.save_dir}",
    )

    def epoch_of(epoch: int, stop: SafeStop) -> dict:
        nonlocal normalizers
        trained = train_epoch(run, engine, net, loader, epoch, stop)
        normalizers = gather_objects(normalizer.item(), world)
        return trained

    def evaluate(epoch: int) -> Evaluation | None:
        if not is_measured(c, epoch):
            return None
        events = predict_with_bar(engine.ema.model, watched, c, model.names, run.device, run.amp, world)
        metrics = metrics_of(truth, events, run.thresholds)
        say(
            f"Average mAP {metrics['average_map']:.4f}, "
            + ", ".join(f"@{t} {v:.4f}" for t, v in metrics["map"].items())
        )
        return metrics["average_map"], metrics

    def record(epoch: int, trained: dict, measured: Evaluation | None) -> None:
        maps = None
        if measured:
            maps = {"map": measured[0]} | {f"map_{t}": v for t, v in measured[1]["map"].items()}
        logger.epoch(
            {
                "epoch": epoch, "train": trained["losses"], "metrics": maps, "lr": trained["lr"],
                "seconds": trained["seconds"], "clips_per_s": trained["clips_per_s"],
                "peak_memory_gb": peak_memory_gb(run.device),
            }
        )  # fmt: skip

    began = time.perf_counter()
    try:
        count = fit(
            engine, c.epochs, epoch_of, evaluate, record,
            lambda epoch, names: write_checkpoints(run, engine, epoch, names, stopper, normalizers), stopper,
            first_epoch, period=run.opt.save_period,
        )  # fmt: skip
    except (KeyboardInterrupt, NonFiniteLoss):
        say(f"Continue from its start with: python train_tad.py --resume {pasted(run.weights_dir / 'last.pt')}")
        raise
    say(f"\n{count} epochs in {(time.perf_counter() - began) / 60:.2f} min")
    return finish(run, logger, len(loader.dataset.records), watched, truth)


def finish(run: Run, logger: RunLogger | None, learnt: int, watched, truth: dict) -> dict:
    """Validate the best checkpoint, write its results, the curves and the summary; strip the checkpoints.

    `last.pt` is stripped at the end: until then it says that the run has still to be finished.

    Args:
        learnt: Number of videos that were trained on.
        watched, truth: Loader of the validation windows, and the true events of their videos.
    """
    last, best = run.weights_dir / "last.pt", run.weights_dir / "best.pt"
    if run.world.is_main and not best.exists():  # no epoch had an mAP above 0
        copy_checkpoint(last, best)
    if run.world.distributed:
        torch.distributed.barrier()
    model = model_of(load_checkpoint(best)).to(run.device)
    events = predict_with_bar(model, watched, run.config, model.names, run.device, run.amp, run.world)
    metrics = metrics_of(truth, events, run.thresholds)
    leave_world(run.world)
    if not run.world.is_main:
        return metrics
    strip_checkpoint(best, half=False)
    say(f"\n{best}", table(metrics))
    write_results(metrics, truth, events, run.save_dir, not run.opt.noplots)
    if not run.opt.noplots:
        plot_training(logger.history, run.save_dir / "training_curves.png")
        for picture in sorted(run.save_dir.glob("*.png")):
            logger.image(picture.stem, picture)
    logger.close()
    strip_checkpoint(last, half=False)
    facts = {
        "data": run.data.file, "training / validation videos": f"{learnt} / {len(truth)}",
        "classes": ", ".join(run.data.names), "model": run.opt.cfg, "weights": run.opt.weights or "from scratch",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}", "device": describe_device(run.device),
        "precision": run.amp or torch.float32, "processes": run.world.size, "seed": run.opt.seed,
        **{name.replace("_", " "): value for name, value in dataclasses.asdict(run.loading).items()},
    }  # fmt: skip
    text = training_summary(logger.history, run.config, facts, metrics, [best, last])
    write_summary(run.save_dir / "TRAINING_SUMMARY.md", text)
    say(f"Results saved to {run.save_dir}")
    return metrics
