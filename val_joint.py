"""Validate a network: detection and image-level metrics, tables, curves, confusion matrices and metrics.json.

    python val_joint.py --data heart.yaml --weights runs/train/exp/weights/best.pt
    torchrun --nproc_per_node 2 val_joint.py --data heart.yaml --weights …      # two GPUs, the same numbers

Plain YOLOv5 weights and plain YOLOv5 data work too; the image-level part is then left out. Several weight files are
validated as one ensemble. `--task speed` times each of them, `--task study` validates each at many picture sizes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from utils.system.arguments import check_ranges, filled_in, parse_words
from utils.system.paths import ROOT, UniqueStems, increment_path

TASKS = ("train", "val", "test", "speed", "study")
STUDY_SIZES = range(256, 1536 + 1, 128)


def parse_opt(args: list[str] | bool | None = None, known: bool = False) -> argparse.Namespace:
    """The command line; see `parse_words` for the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default=ROOT / "data/coco128.yaml", help="data yaml")
    add("--weights", nargs="+", default=[ROOT / "yolov5s.pt"], help="weight file; several: ensemble")
    add("--batch-size", type=int, default=32, help="pictures a step")
    add("--imgsz", "--img", "--img-size", type=int, default=640, help="longest side of the network input, pixels")
    add("--conf-thres", type=float, default=0.001, help="confidence threshold")
    add("--iou-thres", type=float, default=0.6, help="IoU threshold of non-max suppression")
    add("--max-det", type=int, default=300, help="most detections per picture")
    add("--task", choices=TASKS, default="val", help="the split; speed: time each weight file; study: at many sizes")
    add("--device", default="", help="cpu, mps, a CUDA id such as 0; empty: the best there is")
    add("--workers", type=int, default=8, help="processes that read pictures, at most")
    add("--single-cls", action="store_true", help="treat all object classes as one")
    add("--augment", action="store_true", help="test-time augmentation")
    add("--verbose", action="store_true", help="a row for every class, however many")
    add("--save-txt", action="store_true", help="write predictions as label files: object rows and the image row")
    add("--save-hybrid", action="store_true", help="--save-txt with the known boxes merged in (metrics: without them)")
    add("--save-conf", action="store_true", help="add the confidence to the object rows of --save-txt")
    add("--objects-only", action="store_true", help="--save-txt without the image row, for other readers")
    add("--save-json", action="store_true", help="write predictions in COCO's format and check them with pycocotools")
    add("--project", default=ROOT / "runs/val", help="write to project/name")
    add("--name", default="exp", help="write to project/name")
    add("--exist-ok", action="store_true", help="write into an existing project/name")
    add("--half", action="store_true", help="half precision: float16 on a GPU, bfloat16 on a processor")
    add("--dnn", action="store_true", help="run ONNX weights through OpenCV")
    add("--strict", action="store_true", help="stop where a picture or label has a fault instead of leaving it out")
    add("--bootstrap", type=int, default=0, metavar="N", help="95 %% intervals by N draws of groups, such as 1000")
    add("--group-regex", help="finds the group (patient …) in a file name, see check_data.py; or `group:` in the data")
    add("--fitness-weight", type=float, default=0.5, help="share of the image accuracy in the fitness, 0..1")
    opt = parse_words(parser, args, known)
    opt.save_json |= Path(opt.data).name == "coco.yaml"
    return opt


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


import torch
from torch import nn
from tqdm import tqdm

from models.export.readers import fixed_size, heed_options, input_size
from models.load import largest_stride, load_model, name_classes
from models.predictor import Predictor
from models.validation import Evaluator, make_loader
from utils.boxes import check_img_size
from utils.dataset.config import DataConfig, load_data_config, pattern
from utils.dataset.scan import DatasetIndex
from utils.dataset.split import need_groups
from utils.results.intervals import DRAWS_FILE, interval_lines, write_draws
from utils.results.validation import (
    DETAILS,
    PLOTTED_BATCHES,
    detection_table,
    draw_batch,
    draw_results,
    image_table,
    speed_line,
    write_coco,
    write_json,
    write_labels,
)
from utils.system.command_line import one_sentence
from utils.system.devices import (
    World,
    amp_dtype,
    describe_device,
    half_dtype,
    init_world,
    leave_world,
    memory_format,
    select_device,
    use_machine,
)
from utils.system.voice import say, warn


def run(
    data: DataConfig | str | Path | dict,
    weights: str | Path | list[str] | None = None,
    *,
    model: nn.Module | None = None,
    dataloader=None,
    save_dir: Path | None = None,
    criterion=None,
    plots: bool = True,
    amp: str = "off",
    world: World | None = None,
    **options,
) -> dict:
    """Validate on a split of a data set.

    Args:
        data: Data yaml, its content, or what `load_data_config` made of it.
        weights: Weight file, or several for an ensemble; not needed with `model`.
        model: A network to validate as it is, as a training does each epoch.
        dataloader: Batches to validate on (this process's share); made from `data` and `task` where left out.
        save_dir: Where to write; a new folder `project/name` where left out.
        criterion: Joint loss; gives the validation losses.
        amp: Precision when `half` is not set: `off` is float32, see `utils.system.devices.amp_dtype`.
        world: The processes that share the batches, each of which calls this.
        options: Those of the command line (`--help`), by their names there with `_` for `-`.

    Returns:
        The content of metrics.json: `detection` (means and `per_class`), `image` (None without that task), `counts`,
        `losses` (None without `criterion`), `speed_ms`, `fitness` and more. {} on all processes but the first.

    Raises:
        FileNotFoundError: No weights or no data.
        TypeError: An option of an unknown name.
        ValueError: The network and the data have different classes, or an argument is out of range.
    """
    opt, world, in_training = filled_in(parse_opt([]), options, "val_joint"), world or World(), model is not None
    data = data if isinstance(data, DataConfig) else load_data_config(data)
    device = opt.device if isinstance(opt.device, torch.device) else select_device(opt.device, opt.batch_size)
    predictor = ask(model, weights, data, device, opt, amp, world)
    model = predictor.model
    rows, imgsz = input_size(model, (opt.imgsz, opt.imgsz))
    if rows != imgsz:
        raise ValueError(f"{weights} takes pictures of {rows}x{imgsz} alone; validation needs a square, or --dynamic")
    was_training = model.training
    model.eval()
    evaluator = Evaluator(
        predictor, data, opt.single_cls, criterion,
        keep=opt.save_txt or opt.save_hybrid or opt.save_json or opt.bootstrap > 0,
        known=opt.save_hybrid, drawn=PLOTTED_BATCHES if plots else 0, world=world,
    )  # fmt: skip
    if save_dir is None and world.is_main:
        save_dir = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True)
    if dataloader is None:
        kinds = {"single_cls": opt.single_cls, "workers": opt.workers, "strict": opt.strict, "world": world}
        kinds["square"] = fixed_size(model) is not None
        dataloader = make_loader(data, opt.task, imgsz, opt.batch_size, largest_stride(model), **kinds)
        predictor.warm_up((opt.batch_size, 3, imgsz, imgsz))
    regex, groups = groups_of(opt, data, dataloader.dataset.index) if opt.bootstrap else ("", {})
    bar = {"desc": f"{'Validating':>22}", "unit": "batch", "leave": False, "disable": not world.is_main}
    for batch in tqdm(dataloader, **bar):
        evaluator.update(batch)
    model.train(was_training)
    if not evaluator.gather():
        return {}
    settings = {
        key: getattr(opt, key) for key in ("conf_thres", "iou_thres", "max_det", "task", "augment", "single_cls")
    }
    settings |= {"imgsz": imgsz, "dtype": str(predictor.dtype or torch.float32).removeprefix("torch.")}
    results = evaluator.compute(opt.fitness_weight) | {"settings": settings}
    tell(evaluator, results, opt, in_training)
    draws: dict = {}
    if opt.bootstrap:
        results["intervals"], draws = evaluator.intervals(dataloader.dataset.index, groups, opt.bootstrap)
        results["intervals"]["pattern"] = regex
        say(*interval_lines(results["intervals"], results))
    write(evaluator, results, opt, Path(save_dir), plots, weights, dataloader)
    drawn = Path(save_dir) / DRAWS_FILE
    drawn.unlink(missing_ok=True)  # of another validation into this folder
    if draws:
        write_draws(draws, drawn)
    if not in_training:
        say(f"Results saved to {save_dir}")
    return results


def ask(model, weights, data: DataConfig, device, opt: argparse.Namespace, amp: str, world: World) -> Predictor:
    """The network, asked as the options say; without one that of the weight files, with a line on where it computes."""
    nms = {"conf_thres": opt.conf_thres, "iou_thres": opt.iou_thres, "max_det": opt.max_det, "agnostic": opt.single_cls}
    half, loaded = opt.half, model is None
    if loaded:
        use_machine(world.size)
        model = load_model(weights, device, dnn=opt.dnn)
        name_classes(model, data)
        half = heed_options(model, weights, half, opt.dnn, opt.augment, nms)
    dtype = half_dtype(device) if half else amp_dtype(device, amp)
    layout = memory_format(device, dtype)
    if loaded:
        model.to(memory_format=layout)
        say(f"{describe_device(device)}, {str(dtype or torch.float32).removeprefix('torch.')}")
        if opt.conf_thres > 0.001 and opt.task != "speed":
            warn(f"--conf-thres {opt.conf_thres} cuts the curves off, which falsifies mAP; measure it at 0.001")
    return Predictor(model, device, dtype, layout, opt.augment, multi_label=True, **nms)


def groups_of(opt: argparse.Namespace, data: DataConfig, index: DatasetIndex) -> tuple[str, dict[str, str]]:
    """The pattern, and the group of each picture by its file; asked for before the network is, so that a wrong pattern
    costs no validation."""
    regex = pattern(opt.group_regex, "--group-regex") or data.group
    if regex is None:
        raise ValueError("--bootstrap draws groups: --group-regex (or `group:` in the data yaml) must say which")
    return regex, dict(zip(map(str, index.im_files), need_groups(index.im_files, regex), strict=True))


def tell(evaluator: Evaluator, results: dict, opt: argparse.Namespace, in_training: bool) -> None:
    """The tables; a training's own are short."""
    names, cls_names, imgsz = evaluator.names, evaluator.cls_names, results["settings"]["imgsz"]
    say(detection_table(results, per_class=len(names) > 1 and (opt.verbose or (len(names) < 50 and not in_training))))
    if cls_names:
        say(image_table(results, per_class=opt.verbose or (len(cls_names) < 50 and not in_training)))
    elif evaluator.data.cls_nc and not in_training:
        say("Image task: not measured, the network has no image-level branch")
    if not in_training:
        say(speed_line(results["speed_ms"], (opt.batch_size, 3, imgsz, imgsz)))


def write(evaluator: Evaluator, results: dict, opt: argparse.Namespace, save_dir: Path, plots, weights, loader) -> None:
    """metrics.json, and what else is asked for: pictures, label files, predictions in COCO's format.

    Tools that ask for `--save-json` take the one json in the folder, so the others go to a folder in it.
    """
    collected, data, names = evaluator.collected, evaluator.data, evaluator.names
    save_dir.mkdir(parents=True, exist_ok=True)
    if plots:
        draw_results(collected.detection, collected.image, save_dir)
        for number, batch in collected.drawings:
            draw_batch(number, *batch, names, (data.cls_names, dict(evaluator.predictor.model.cls_names)), save_dir)
    details, other = (save_dir / DETAILS, save_dir) if opt.save_json else (save_dir, save_dir / DETAILS)
    details.mkdir(exist_ok=True)
    (other / "metrics.json").unlink(missing_ok=True)  # of an earlier validation in this folder (--exist-ok)
    write_json(details / "metrics.json", results)
    pictures = [picture for _, picture in collected.pictures]
    if opt.save_json:
        stem = Path(weights[0] if isinstance(weights, list) else weights or "model").stem
        file, found = save_dir / f"{stem}_predictions.json", {p.path: p.detections for p in pictures}
        results["pycocotools"] = write_coco(found, loader.dataset.index, data, names, file, opt.max_det)
        write_json(details / "metrics.json", results)
    if opt.save_txt or opt.save_hybrid:
        count = write_labels(pictures, save_dir / "labels", opt.save_conf, not opt.objects_only)
        say(f"{count} label files saved to {save_dir / 'labels'}")


def study(opt: argparse.Namespace, world: World) -> None:
    """Validates each weight file at many picture sizes and writes a table: both tasks, milliseconds a picture."""
    arguments = {**vars(opt), "task": "val", "plots": False, "save_json": False, "world": world}
    stems = UniqueStems()
    for weights in opt.weights:
        rows = []
        for imgsz in study_sizes(weights, opt):
            say(f"\n{weights} at {imgsz} px")
            results = run(**{**arguments, "weights": weights, "imgsz": imgsz})
            if not world.is_main:
                continue
            row = {"imgsz": results["settings"]["imgsz"]}
            row |= {k: results["detection"][k] for k in ("precision", "recall", "map50", "map50_95")}
            row["image_accuracy"] = (results["image"] or {}).get("accuracy")
            rows.append(row | {f"{k}_ms": results["speed_ms"][k] for k in ("preprocess", "inference", "nms")})
        if not rows:
            continue
        file = Path(f"study_{Path(opt.data).stem}_{stems(weights)}.csv")
        with file.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        say(f"Table saved to {file}")


def study_sizes(weights: str, opt: argparse.Namespace) -> list[int]:
    """Sizes that a study validates at, each once: an exported file may take one alone, a stride may round them up."""
    model = load_model(weights, select_device(opt.device), dnn=opt.dnn)
    if fixed := fixed_size(model):
        say(
            f"{weights} takes pictures of {fixed[0]}x{fixed[1]} alone: its table has one row (export it with --dynamic)"
        )
        return [fixed[1]]
    return list(dict.fromkeys(check_img_size(imgsz, largest_stride(model)) for imgsz in STUDY_SIZES))


def main(opt: argparse.Namespace) -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("val_joint.py"):
        check_ranges(vars(opt))
        device = select_device(opt.device)
        world = init_world(device)
        if opt.task == "study":
            study(opt, world)
        elif opt.task == "speed":
            speed = {"conf_thres": 0.25, "iou_thres": 0.45, "save_json": False, "plots": False, "world": world}
            for weights in opt.weights:
                run(**{**vars(opt), **speed, "weights": weights, "half": opt.half or device.type == "cuda"})
        else:
            run(**vars(opt), world=world)
        leave_world(world)


if __name__ == "__main__":
    main(parse_opt())
