"""Train a YOLOv5 detection model, or a joint model that also answers for the whole picture.

python train_joint.py --data heart.yaml --cfg yolov5s_cls.yaml --gradnorm-alpha 1.5     # joint, from scratch
python train_joint.py --data heart.yaml --cfg yolov5s_cls.yaml --weights yolov5s.pt     # joint, from a detection model
python train_joint.py --data coco128.yaml --cfg yolov5s.yaml                            # plain detection
torchrun --nproc_per_node 2 train_joint.py --data heart.yaml --device 0,1 --sync-bn     # two GPUs
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from utils.balancing.options import add_balancer_arguments
from utils.system.arguments import MEASURED, check_ranges, filled_in, parse_words
from utils.training.options import Options, follow_old_flags, todays_names, training_parser


def parse_opt(args: list[str] | bool | None = None, known: bool = False) -> argparse.Namespace:
    parser = training_parser(__doc__)
    add_balancer_arguments(parser)
    return parse_words(parser, args, known, todays_names, MEASURED)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


from torch import nn

import val_joint
from models.run import Run, build_engine, build_loaders, load_resumed, start, take_folder
from models.training import epoch_record, more_scalars, table_columns, trace_columns, train_epoch
from models.yolo import Model
from utils.autoanchor import autoanchor
from utils.dataset.config import load_hyp
from utils.dataset.samplers import image_weights
from utils.dataset.scan import DatasetIndex
from utils.loss import ComputeJointLoss, scale_gains
from utils.results.balance import plot_task_weights
from utils.results.curves import plot_results
from utils.results.label_figures import plot_labels
from utils.system.command_line import one_sentence
from utils.system.devices import broadcast_object, data_parallel, device_ids, leave_world
from utils.system.paths import ROOT, find_file, pasted
from utils.system.process import launch_per_gpu
from utils.system.voice import say
from utils.system.yamls import save_yaml
from utils.training.engine import Engine, NonFiniteLoss
from utils.training.evolve import evolve
from utils.training.fit import EarlyStopping, Evaluation, fit
from utils.training.records import RunLogger
from utils.weights.checkpoint import Checkpoint, copy_checkpoint, save_epoch, strip_checkpoint

# The run --------------------------------------------------------------------------------------------------------------


def train(opt: Options, hyp: dict, resumed: Checkpoint | None = None) -> dict:
    """Run one training from start (or from `resumed`) to end; returns the metrics of the best checkpoint."""
    run, model, transferred = start(opt, hyp, resumed)
    main, data = run.world.is_main, run.data
    loader, val_loader = build_loaders(run, model)
    train_index = loader.dataset.index
    if not resumed and not opt.noautoanchor:
        autoanchor(train_index, model, run.imgsz, hyp["anchor_t"], opt.seed, verbose=main)
    model.hyp = scale_gains(hyp, model, run.imgsz, opt.label_smoothing)
    model = model.to(run.device, memory_format=run.layout)
    if opt.sync_bn and run.world.distributed and run.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    engine = build_engine(run, model, len(loader), transferred)
    criterion, stopper = ComputeJointLoss(model), EarlyStopping(opt.patience)
    first_epoch, maps = 0, None  # mAP by class, which --image-weights draws by
    if resumed:
        first_epoch, maps = resumed.epoch + 1, resumed.train_state.get("maps")
        if first_epoch:  # the uncut run had them started by now
            loader.start()
            if not opt.noval:
                val_loader.start()
        engine.load_state_dict(resumed.train_state)
        stopper.load_state_dict(resumed.train_state["stopper"])
    net = model
    if run.world.distributed:
        net = data_parallel(model, run.device)
    logger = open_records(run, criterion, model, train_index, first_epoch if resumed else None) if main else None
    say(*summary(run, engine, loader, first_epoch))
    whole_from = opt.epochs - min(opt.close_mosaic, opt.epochs // 2)

    def epoch_of(epoch: int, stop) -> dict:
        if opt.image_weights and (weighted := broadcast_object(maps, run.world)) is not None:
            loader.set_weights(image_weights(train_index, data.nc, weighted))
        loader.set_epoch(epoch, mosaic=epoch < whole_from)
        return train_epoch(run, engine, net, loader, criterion, epoch, stop)

    def evaluate(epoch: int) -> Evaluation | None:
        nonlocal maps
        if opt.noval and epoch < opt.epochs - 1:
            return None
        results = validate(run, engine, val_loader, criterion)
        if not main:
            return None
        maps = results["detection"]["maps"]
        return results["fitness"], results

    def record(epoch: int, trained: dict, measured: Evaluation | None) -> None:
        results = measured[1] if measured else None
        logger.epoch(epoch_record(run, engine, criterion, epoch, trained, results))

    def save(epoch: int, names: Sequence[str]) -> None:
        write_checkpoints(run, engine, epoch, names, stopper, maps)

    began = time.perf_counter()
    try:
        keeping = {"every_epoch": not opt.nosave, "period": opt.save_period}
        trained = fit(engine, opt.epochs, epoch_of, evaluate, record, save, stopper, first_epoch, **keeping)
    except (KeyboardInterrupt, NonFiniteLoss):
        say(f"Continue from its start with: python train_joint.py --resume {pasted(run.weights_dir / 'last.pt')}")
        raise
    leave_world(run.world)
    say(f"\n{trained} epochs in {(time.perf_counter() - began) / 3600:.3f} h")
    return finish(run, logger) if main else {}


def open_records(run: Run, criterion: ComputeJointLoss, model: Model, index: DatasetIndex, resumed: int | None):
    """The run's logger, with what is known before the first epoch written."""
    save_yaml(run.save_dir / "opt.yaml", run.settings())
    save_yaml(run.save_dir / "hyp.yaml", run.hyp)
    logger = RunLogger(run.save_dir, table_columns(criterion), more_scalars(criterion), trace_columns(criterion.tasks))
    if resumed is not None:
        logger.resume(resumed)
    elif not run.opt.noplots:
        plot_labels(index, run.data.names, run.data.cls_names, run.save_dir)
        logger.graph(model, 2 * model.multiple)
    return logger


def summary(run: Run, engine: Engine, loader, first_epoch: int) -> list[str]:
    """Lines that say what is trained, and how."""
    opt, balancer, schedule = run.opt, engine.balancer, engine.schedule
    every, pictures = max(round(schedule.full_accumulate), 1), len(loader.dataset.index)
    return [
        f"Training epochs {first_epoch} to {opt.epochs - 1}: {pictures} pictures at {run.imgsz} px, batch "
        f"{run.batch_size}, {type(engine.optimizer).__name__} with a step every {every} batches, warm-up "
        f"{schedule.warmup_batches}, {loader.num_workers} data workers",
        f"Tasks balanced by {balancer}" if balancer.num_tasks > 1 else "One task: detection",
    ]


def validate(run: Run, engine: Engine, loader, criterion: ComputeJointLoss) -> dict:
    """Both tasks on the validation pictures, of which each process takes its share, with the averaged weights.

    Returns:
        See `val_joint.run`; {} on all processes but the first.
    """
    opt = run.opt
    engine.ema.share(run.world)
    return val_joint.run(
        run.data, model=engine.ema.model, dataloader=loader, imgsz=run.imgsz, device=run.device, plots=False,
        save_dir=run.save_dir, single_cls=opt.single_cls, criterion=criterion, fitness_weight=opt.fitness_weight,
        amp=opt.amp, world=run.world,
    )  # fmt: skip


def write_checkpoints(run: Run, engine: Engine, epoch: int, names: Sequence[str], stopper: EarlyStopping, maps) -> None:
    """The state after `epoch` under each name, see `save_epoch`."""
    state = engine.state_dict()
    record = {
        "epoch": epoch, "best_fitness": float(stopper.best_fitness), "model": engine.model.record(),
        "ema": state.pop("ema"), "train_state": state | {"stopper": stopper.state_dict(), "maps": maps},
        "opt": run.settings(), "hyp": dict(run.hyp), "date": datetime.now().isoformat(),
    }  # fmt: skip
    save_epoch(run.weights_dir, names, record)


def finish(run: Run, logger: RunLogger) -> dict:
    """Strip the checkpoints, validate the best one with plots, draw the run's curves.

    `last.pt` is stripped at the end: until then it says that the run has still to be finished.
    """
    opt, last, best = run.opt, run.weights_dir / "last.pt", run.weights_dir / "best.pt"
    if not best.exists():  # no epoch had a fitness above 0, or --nosave passed over the best one
        copy_checkpoint(last, best)
    stripped(best)
    say(f"\nValidating {best} in float32")
    results = val_joint.run(
        run.data, weights=best, batch_size=run.batch_size // run.world.size * 2, imgsz=run.imgsz, device=run.device,
        save_dir=run.save_dir, workers=opt.workers, single_cls=opt.single_cls,
        plots=not opt.noplots, verbose=True, fitness_weight=opt.fitness_weight,
    )  # fmt: skip
    if not opt.noplots:
        plot_results(run.save_dir / "results.csv")
        if any(len(record["task_weights"]) > 1 for record in logger.history):
            trace = logger.trace.file if logger.trace.file.exists() else None
            plot_task_weights(logger.history, run.save_dir / "task_weights.png", trace)
        for picture in sorted(run.save_dir.glob("*.png")) + sorted(run.save_dir.glob("*.jpg")):
            logger.image(picture.stem, picture)
    logger.close()
    stripped(last)
    say(f"Results saved to {run.save_dir}")
    return results


def stripped(file: Path) -> None:
    strip_checkpoint(file)
    say(f"Stripped {file}, {file.stat().st_size / 1e6:.1f} MB")


# Command line ---------------------------------------------------------------------------------------------------------


def evolve_run(opt: Options, hyp: dict) -> dict:
    """Evolve the hyperparameters; each candidate is a training of its own, without plots."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--evolve runs on one device; start one evolution per GPU with --device N")
    folders = [Path(opt.evolve_population), ROOT / opt.evolve_population]
    population_folder = next((f for f in folders if f.is_dir()), None)
    if population_folder is None:
        raise FileNotFoundError(f"--evolve_population {opt.evolve_population}: there is no such folder")
    folder = take_folder(opt)

    def train_candidate(candidate: dict, save_dir: Path) -> dict | None:
        try:
            return train(opt.but(save_dir=save_dir, noplots=True, noval=True, nosave=True), candidate)
        except NonFiniteLoss as error:
            say(f"This candidate diverged: {error}")
            return None

    population = [load_hyp(f) for f in sorted(population_folder.glob("*.yaml")) if f.name != Path(opt.hyp).name]
    history = Path(opt.resume_evolve) if opt.resume_evolve else None
    return evolve(train_candidate, folder, opt.evolve, hyp, population, history, opt.seed)


def main(opt: argparse.Namespace, relaunch: bool = False) -> dict:
    """Train as the options say.

    Args:
        relaunch: Several devices may start this command line anew, in a process for each.

    Raises:
        ValueError: Several devices, and this is neither a command line nor one of its processes.
    """
    check_ranges(vars(opt), MEASURED)
    opt, checkpoint = follow_old_flags(Options(**vars(opt))), None
    if opt.resume:
        checkpoint, opt = load_resumed(opt, vars(parse_opt([])))
    ids = device_ids(opt.device)
    if len(ids) > 1 and "LOCAL_RANK" not in os.environ:
        if not relaunch:
            raise ValueError(f"--device {opt.device}: each GPU needs a process, so start train_joint.py from a console")
        launch_per_gpu(len(ids))
    if checkpoint:
        return train(opt, checkpoint.hyp, checkpoint)
    if opt.evolve and Path(opt.project) == ROOT / "runs/train":
        opt = opt.but(project=ROOT / "runs/evolve")
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
    return main(filled_in(parse_opt([]), options, "train_joint", MEASURED))


def command_line() -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("train_joint.py", NonFiniteLoss):
        main(parse_opt(), relaunch=True)


if __name__ == "__main__":
    command_line()
