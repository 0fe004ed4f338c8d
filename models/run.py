"""A training run before its first epoch: device, data, folder, network, loaders, optimiser; what a resumed one has."""

from __future__ import annotations

import argparse
import functools
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from models.build import build_model
from models.load import find_weights
from models.yolo import Model
from utils.autobatch import auto_batch_size
from utils.balancing import build_balancer_from_args
from utils.boxes import check_img_size
from utils.dataloaders import create_dataloader
from utils.dataset.config import DataConfig, ensure_data, load_data_config, pattern
from utils.dataset.scan import DatasetIndex, problem_table, refuse_set, report_problems, scan_dataset, shared_pictures
from utils.dataset.split import find_groups, leaking_groups
from utils.system.devices import (
    World,
    amp_dtype,
    broadcast_object,
    describe_device,
    init_world,
    main_first,
    memory_format,
    select_device,
    use_machine,
)
from utils.system.files import remove_unfinished
from utils.system.paths import ROOT, increment_path
from utils.system.voice import say, warn
from utils.training.average import ModelEMA, ema_constants
from utils.training.engine import Engine, seed_everything
from utils.training.optim import build_optimizer, choose_optimizer
from utils.training.options import Options
from utils.training.schedule import Schedule, scaled_weight_decay
from utils.weights.checkpoint import Checkpoint, latest_run, load_checkpoint


@dataclass(frozen=True)
class Run:
    """A training's options, and beside them what they came to: on this machine, with these data, for this network."""

    opt: Options
    hyp: dict
    data: DataConfig
    save_dir: Path
    device: torch.device
    world: World
    precision: torch.dtype | None  # None is float32
    layout: torch.memory_format
    imgsz: int
    batch_size: int  # pictures a step over all devices
    rect: bool

    @property
    def weights_dir(self) -> Path:
        return self.save_dir / "weights"

    def settings(self) -> dict:
        """The options with what they came to, for opt.yaml and the checkpoints: a resumed run needs no more."""
        resolved = {"data": str(self.data.yaml_file or self.opt.data), "save_dir": str(self.save_dir)}
        return vars(self.opt) | resolved | {"imgsz": self.imgsz, "batch_size": self.batch_size, "rect": self.rect}


def start(opt: Options, hyp: dict, resumed: Checkpoint | None) -> tuple[Run, Model, list[str]]:
    """Device, data, folder and network: all that the rest of a run is built from.

    Returns:
        The run, its model on the CPU, and the names of the tensors that were taken from other weights.

    Raises:
        ValueError: A batch size that does not fit the devices; data that do not fit the network.
    """
    device = select_device(opt.device, opt.batch_size)
    world = init_world(device)
    if opt.batch_size == -1 and world.size > 1:
        raise ValueError("--batch-size -1 measures one device; give a number with several")
    if opt.batch_size != -1 and (opt.batch_size < 1 or opt.batch_size % world.size):
        raise ValueError(f"--batch-size {opt.batch_size} must be a positive multiple of the {world.size} process(es)")
    use_machine(world.size)
    seed_everything(opt.seed, opt.deterministic)
    say(f"YOLOv5-Joint on {describe_device(device)}")
    with main_first(world):
        data = load_data(opt, resumed)
        if opt.weights and not resumed:
            find_weights(opt.weights)  # fetches official ones, once
    rect = opt.rect and not opt.image_weights and not opt.quad
    if opt.rect and not rect:
        by = "--image-weights draws" if opt.image_weights else "--quad joins"
        say(f"--rect: off, since {by} pictures of all shapes")
    folder = functools.cache(lambda: take_folder(opt))  # not before weights and structure are known to be good
    report = (lambda: folder() / "transfer.txt") if world.is_main else None
    model, transferred = build_model(opt, data, hyp, resumed, say, report)
    save_dir = Path(broadcast_object(str(folder()) if world.is_main else "", world))
    stride = model.multiple
    imgsz = check_img_size(opt.imgsz, stride, floor=2 * stride)
    if imgsz != opt.imgsz:
        say(f"--imgsz {opt.imgsz}: {imgsz} is used, a multiple of the stride {stride}, twice it at least")
    precision = amp_dtype(device, opt.amp)
    batch_size = opt.batch_size
    if batch_size == -1:
        largest = int(imgsz * (1.5 if opt.multi_scale else 1)) // stride * stride
        batch_size = auto_batch_size(model, largest, device, precision, say)
    layout = memory_format(device, precision, opt.memory_format)
    run = Run(opt, hyp, data, save_dir, device, world, precision, layout, imgsz, batch_size, rect)
    say(model.info(img_size=imgsz), f"Results go to {save_dir}; precision {precision or torch.float32}, {layout}")
    return run, model, transferred


def run_name(opt: Options | argparse.Namespace) -> str:
    """What --name asks for; `cfg`, YOLOv5's word, is the name of the network."""
    return Path(opt.cfg).stem or "exp" if opt.name == "cfg" else opt.name


def take_folder(opt: Options) -> Path:
    """The run's own folder, made at once, so that no other run can take it; that of a resumed run as it is."""
    if (known := getattr(opt, "save_dir", None)) is not None:
        folder = Path(known)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        name = run_name(opt)
        folder = increment_path(Path(opt.project) / name, exist_ok=opt.exist_ok, mkdir=True)
    (folder / "weights").mkdir(exist_ok=True)
    remove_unfinished(folder / "weights")
    return folder


def load_data(opt: Options, checkpoint: Checkpoint | None) -> DataConfig:
    """The data of a run, made or checked where they have to be.

    Raises:
        ValueError: The data of a run to resume have other classes than it began with.
    """
    data = load_data_config(opt.data)
    if checkpoint:
        begun, today = (checkpoint.names, checkpoint.cls_names), (data.names, data.cls_names)
        single = opt.single_cls and len(begun[0]) == 1
        if (begun[1] and begun[1] != today[1]) or (begun[0] != today[0] and not single):
            raise ValueError(
                f"{data.source}: the run to resume began with the classes {begun[0]} {begun[1] or ''}, the data have "
                f"{today[0]} {today[1] or ''} now: put those back, or start a new run with --weights {checkpoint.file}"
            )
    ensure_data(data)
    data = replace(data, group=pattern(opt.group_regex, "--group-regex") or data.group)
    return data.with_one_class() if opt.single_cls else data


def scan_split(run: Run, split: str) -> DatasetIndex:
    """Check a split's pictures and labels, and report what has to be left out."""
    index = scan_dataset(
        getattr(run.data, split), run.data.nc, run.data.cls_nc, single_cls=run.opt.single_cls, root=run.data.path,
        prefix=split, verbose=run.world.is_main,
    )  # fmt: skip
    report_problems(index.problems, run.opt.strict, run.save_dir / f"left_out_{split}.csv", verbose=run.world.is_main)
    refuse_set(index, split, unlabelled=split == "train")
    return index


def warn_of_leaks(train: DatasetIndex, val: DatasetIndex, group: str) -> None:
    """Tell of groups that are trained on and validated on, and of a pattern that finds none."""
    if not (find_groups(train.im_files, group) != "").any():
        warn(f"the group {group!r} is found in no training picture's name, such as {train.im_files[0]}")
    if leaks := leaking_groups(train.im_files, val.im_files, group):
        some = ", ".join(leaks[:3]) + " …" * (len(leaks) > 3)
        warn(
            f"{len(leaks)} groups ({some}) are in train and in val, so the metrics flatter the model; "
            "check_data.py --folds or --split keeps them apart"
        )


def build_loaders(run: Run, model: Model) -> tuple:
    """This process's batches to train on and to validate on."""
    opt, world = run.opt, run.world
    with main_first(world):
        train_index, val_index = scan_split(run, "train"), scan_split(run, "val")
    counts = [index.counts for index in (train_index, val_index)]
    if broadcast_object(counts, world) != counts:  # they would wait for one another in the middle of an epoch
        left_out = problem_table(train_index.problems + val_index.problems)
        raise ValueError(f"process {world.rank} can read other pictures than the first one; it leaves out:\n{left_out}")
    if same := shared_pictures(train_index, val_index):
        warn(f"{same} validation pictures are also training pictures, so the metrics flatter the model")
    if run.data.group:
        warn_of_leaks(train_index, val_index, run.data.group)
    batch_size, stride = run.batch_size // world.size, model.multiple
    loader, _ = create_dataloader(
        train_index, run.imgsz, batch_size, hyp=run.hyp, stride=stride, augment=True, rect=run.rect, cache=opt.cache,
        cls_nc=run.data.cls_nc, workers=opt.workers, rank=world.rank, world_size=world.size, shuffle=not run.rect,
        seed=opt.seed, quad=opt.quad, weighted=opt.image_weights, nc=run.data.nc, prefix="train",
    )  # fmt: skip
    val_loader, _ = create_dataloader(
        val_index, run.imgsz, batch_size * 2, hyp=run.hyp, stride=stride, augment=False, rect=True, pad=0.5,
        cache=None if opt.noval else opt.cache, cls_nc=model.cls_nc, workers=opt.workers, rank=world.rank,
        world_size=world.size, once=True, prefix="val",
    )  # fmt: skip
    return loader, val_loader


def build_engine(run: Run, model: Model, batches: int, transferred: Sequence[str]) -> Engine:
    """Optimiser, schedule and balancer of a run around its model, which is on its device."""
    opt, hyp = run.opt, run.hyp
    name, nbs = choose_optimizer(opt.optimizer, opt.nbs, opt.epochs * batches, run.batch_size)
    known = set(transferred)
    # In fine-tuning the image branch has to catch up with the detector: its small task weight scales the gradient of
    # its last layer, and plain SGD would learn just as slowly. From scratch both start together (docs/training.md).
    tuning = bool(opt.weights)  # a resumed run's too: there nothing is transferred now
    optimizer = build_optimizer(
        model.parameter_groups(), name, hyp["lr0"], hyp["momentum"],
        scaled_weight_decay(hyp["weight_decay"], run.batch_size, nbs),
        [p for key, p in model.named_parameters() if key in known],
        ("matrix", "logits") if tuning else ("matrix",),
    )  # fmt: skip
    longest_warmup = 0.25
    if name == "Muon":  # its steps are long from the start on
        longest_warmup = 0.02
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.momentum = 0.1  # the weight average smooths the statistics; at 0.03 they lag behind the weights
    schedule = Schedule(hyp, opt.epochs, batches, run.batch_size, opt.cos_lr, nbs, longest_warmup=longest_warmup)
    tasks = 2 if model.cls_nc else 1
    balancer = build_balancer_from_args(opt, tasks, model.shared_parameters(), list(model.parameters()))
    # What only a task that is switched off reaches stays as it is, its batch statistics too.
    tasks_on = [part for part, w in zip(model.task_parameters(), balancer.weights.tolist(), strict=True) if w]
    trained = {id(p) for part in tasks_on for p in part}
    for p in model.parameters():
        p.requires_grad_(p.requires_grad and id(p) in trained)
    return Engine(
        model, optimizer, schedule, balancer, run.device, ModelEMA(model, *ema_constants(schedule.steps)),
        run.precision, world=run.world, parts=model.independent_parts(),
    )  # fmt: skip


def load_resumed(opt: Options, defaults: dict) -> tuple[Checkpoint | None, Options]:
    """Checkpoint and options of the run to continue: the run's own options, but for the device and where the data are.

    With `--resume auto` the checkpoint is None where no unfinished run is there.
    """
    if opt.resume == "auto":  # the first process looks: others may come when it has begun to write
        world = init_world(select_device(opt.device))
        file = find_resumed(opt) if world.is_main else None
        file = broadcast_object(str(file) if file else "", world)
    else:  # whose device is not known before
        file = str(find_resumed(opt))
    if not file:
        return None, opt.but(resume=False)
    checkpoint = load_checkpoint(file)
    if checkpoint.train_state is None:
        raise ValueError(
            f"{file}: holds no training state (the run is finished, or YOLOv5 wrote it); start with --weights {file}"
        )
    own = {"resume", "device", "local_rank", "data"}
    ignored = [k for k, v in vars(opt).items() if k not in own and k in defaults and v != defaults[k]]
    if ignored and opt.resume != "auto":
        say(f"--resume continues with the run's own options; not used: {', '.join('--' + k for k in ignored)}")
    kept = {"device": opt.device or checkpoint.opt.get("device", ""), "resume": file}
    if opt.data != defaults["data"]:
        kept["data"] = opt.data  # the pictures have moved
    folder = Path(file).resolve().parent
    kept["save_dir"] = folder.parent if folder.name == "weights" else folder
    return checkpoint, Options(**defaults | checkpoint.opt | kept)


def find_resumed(opt: Options) -> Path | None:
    """The `last.pt` that --resume means."""
    if opt.resume == "auto":
        name = run_name(opt)
        first = Path(opt.project) / name
        files = first.parent.glob(f"{glob.escape(first.name)}*/weights/last.pt")
        files = [f for f in files if re.fullmatch(r"\d*", f.parent.parent.name.removeprefix(first.name))]
        for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
            found = load_checkpoint(file)
            theirs = run_name(argparse.Namespace(**vars(opt) | found.opt))
            if found.train_state is not None and theirs == name:  # seed10 is a run of its own, or the tenth of seed1
                return file
        return None
    if not isinstance(opt.resume, str):
        return latest_run(".", ROOT / "runs")
    if Path(opt.resume).is_dir():
        raise ValueError(f"--resume {opt.resume}: is a folder; the file is {Path(opt.resume) / 'weights/last.pt'}")
    return Path(opt.resume)
