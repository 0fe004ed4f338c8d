"""Validate a network: detection and image-level metrics, tables, curves, confusion matrices and metrics.json.

    python val_joint.py --data heart.yaml --weights runs/train/exp/weights/best.pt

Plain YOLOv5 weights and plain YOLOv5 data work too; the image-level part is then left out. Several weight files are
validated as one ensemble. `--task speed` times each of them, `--task study` validates each at many picture sizes.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from models.export.readers import (
    fixed_size,
    input_size,
    refuse_augment,
    tell_dnn,
    tell_thresholds,
    usable_half,
)
from models.load import largest_stride, load_model, name_classes
from utils.boxes import check_img_size, scale_boxes, xywh2xyxy
from utils.dataloaders import create_dataloader
from utils.dataset.config import DataConfig, ensure_data, load_data_config
from utils.dataset.scan import refuse_set, report_problems, scan_dataset
from utils.metrics import DetectionMetrics, ImageMetrics, joint_fitness
from utils.results.detections import label_text
from utils.results.validation import (
    PLOTTED_BATCHES,
    detection_table,
    draw_batch,
    draw_results,
    image_table,
    speed_line,
    write_coco,
    write_json,
)
from utils.system.arguments import parse_words
from utils.system.devices import (
    amp_dtype,
    autocast,
    describe_device,
    half_dtype,
    memory_format,
    select_device,
    synchronize,
    to_input,
    use_all_cores,
)
from utils.system.paths import ROOT, UniqueStems, increment_path

TASKS = ("train", "val", "test", "speed", "study")
STUDY_SIZES = range(256, 1536 + 1, 128)


class Stopwatch:
    """Adds up the seconds spent in named stages, with the device's queue emptied at both ends."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        synchronize(self.device)
        began = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - began

    def per_picture(self, pictures: int) -> dict[str, float]:
        """Milliseconds a picture of every stage."""
        stages = ("preprocess", "inference", "loss", "nms", "metrics")
        return {stage: self.seconds[stage] * 1e3 / max(pictures, 1) for stage in stages}


class MeanLosses:
    """Mean validation losses a picture, by name; the image loss counts the pictures with a known image label alone."""

    def __init__(self):
        self.sums, self.pictures = defaultdict(float), defaultdict(int)

    def add(self, parts: dict[str, torch.Tensor], pictures: int, known: int) -> None:
        for name, loss in parts.items():
            count = known if name == "image" else pictures
            self.sums[name] += float(loss) * count if count else 0.0
            self.pictures[name] += count

    def result(self) -> dict[str, float]:
        means = {name: self.sums[name] / max(count, 1) for name, count in self.pictures.items()}
        return means | {"det": sum(mean for name, mean in means.items() if name != "image")}


@torch.no_grad()
def run(
    data: DataConfig | str | Path | dict,
    weights: str | Path | list[str] | None = None,
    *,
    model: nn.Module | None = None,
    dataloader=None,
    batch_size: int = 32,
    imgsz: int = 640,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    task: str = "val",
    device: str | torch.device = "",
    workers: int = 8,
    single_cls: bool = False,
    augment: bool = False,
    verbose: bool = False,
    save_txt: bool = False,
    save_hybrid: bool = False,
    save_conf: bool = False,
    save_json: bool = False,
    project: str | Path = ROOT / "runs/val",
    name: str = "exp",
    exist_ok: bool = False,
    half: bool = False,
    dnn: bool = False,
    plots: bool = True,
    save_dir: Path | None = None,
    criterion=None,
    strict: bool = False,
    fitness_weight: float = 0.5,
    amp: str = "off",
) -> dict:
    """Validate on a split of a data set; most arguments are the command line's (`--help`).

    Args:
        data: Data yaml, its content, or what `load_data_config` made of it.
        weights: Weight file, or several for an ensemble; not needed with `model`.
        model: A network to validate as it is, as a training does each epoch.
        dataloader: Batches to validate on; made from `data` and `task` where left out.
        save_dir: Where to write; a new folder `project/name` where left out.
        criterion: Joint loss; gives the validation losses.
        amp: Precision when `half` is not set: `off` is float32, see `utils.system.devices.amp_dtype`.

    Returns:
        The content of metrics.json: `detection` (means and `per_class`), `image` (None without that task), `counts`,
        `losses` (None without `criterion`), `speed_ms`, `fitness` and more.

    Raises:
        FileNotFoundError: No weights or no data.
        ValueError: The network and the data have different classes, or an argument is out of range.
    """
    data = data if isinstance(data, DataConfig) else load_data_config(data)
    device = device if isinstance(device, torch.device) else select_device(device, batch_size)
    in_training = model is not None
    if not in_training:
        use_all_cores()
        model = load_model(weights, device, dnn=dnn)
        name_classes(model, data)
        half = usable_half(model, half)
    refuse_augment(model, augment)
    dtype = half_dtype(device) if half else amp_dtype(device, amp)
    dtype_name = str(dtype or torch.float32).removeprefix("torch.")
    if not in_training:
        model = model.to(memory_format=memory_format(device, dtype))
        print(f"{describe_device(device)}, {dtype_name}")
        if conf_thres > 0.001 and task != "speed":
            print(f"WARNING: --conf-thres {conf_thres} cuts the curves off, which falsifies mAP; measure it at 0.001")
        tell_dnn(weights, dnn)
        tell_thresholds(model, conf_thres, iou_thres, max_det, single_cls)
    was_training = model.training
    model.eval()
    names, cls_names = classes_of(model, data, single_cls)
    nc = len(names)
    rows, imgsz = input_size(model, (imgsz, imgsz))
    if rows != imgsz:
        raise ValueError(f"{weights} takes pictures of {rows}x{imgsz} alone; validation needs a square, or --dynamic")
    if save_dir is None:
        save_dir = increment_path(Path(project) / name, exist_ok=exist_ok, mkdir=True)
    save_dir, layout = Path(save_dir), memory_format(device, dtype)
    save_dir.mkdir(parents=True, exist_ok=True)
    if dataloader is None:
        square = fixed_size(model) is not None
        kinds = {"single_cls": single_cls, "workers": workers, "strict": strict, "square": square}
        dataloader = make_loader(data, task, imgsz, batch_size, largest_stride(model), **kinds)
        if device.type == "cuda":  # the first call sets up the kernels, which is no part of the speed
            with autocast(device, dtype is not None, dtype):
                model(to_input(torch.zeros(batch_size, 3, imgsz, imgsz, dtype=torch.uint8), device, layout))
    save_txt = save_txt or save_hybrid
    labels_dir = save_dir / "labels"
    if save_txt:
        labels_dir.mkdir(parents=True, exist_ok=True)

    clock, losses = Stopwatch(device), MeanLosses()
    detection = DetectionMetrics(names)
    image = ImageMetrics(cls_names) if cls_names else None
    unlabelled = 0  # pictures without an image label, where the data has such labels
    detections_of: dict[str, np.ndarray] = {}
    stems = UniqueStems()
    nms = {"conf_thres": conf_thres, "iou_thres": iou_thres, "max_det": max_det, "agnostic": single_cls}
    nms["multi_label"] = True

    bar = tqdm(dataloader, desc=f"{'Validating':>22}", unit="batch", leave=False)
    for batch, (images, targets, image_targets, paths, shapes) in enumerate(bar):
        height, width = images.shape[2:]
        with clock("preprocess"):
            inputs = to_input(images, device, layout)
        with clock("inference"), autocast(device, dtype is not None, dtype):
            answer = model(inputs, augment=augment)
        if criterion is not None and answer.maps is not None:
            with clock("loss"):
                parts = criterion(answer.raw, targets.to(device), image_targets).parts
                losses.add(parts, len(images), int((image_targets.sum(1) > 0).sum()))
        with clock("nms"):
            found = [d.cpu() for d in answer.detections(**nms)]
        probs = None if answer.probs is None else answer.probs.cpu()

        targets = targets.cpu().float()
        scale = torch.tensor([width, height, width, height])
        in_input = torch.cat((targets[:, 1:2], xywh2xyxy(targets[:, 2:6]) * scale), 1)  # class, xyxy pixels
        with clock("metrics"):
            in_picture = []
            for i, (size, ratio_pad) in enumerate(shapes):
                labels = in_input[targets[:, 0] == i]
                found[i][:, 5] *= not single_cls
                detections = scale_boxes((height, width), found[i].clone(), size, ratio_pad)
                scale_boxes((height, width), labels[:, 1:], size, ratio_pad)
                detection.update(detections, labels)
                in_picture.append(detections)
            unlabelled += int((image_targets.sum(1) == 0).sum()) if data.cls_nc else 0
            if image is not None:
                image.update(probs, image_targets)

        if save_hybrid:  # known boxes enter the files, but never the metrics
            known = torch.cat((targets[:, 1:2], targets[:, 2:6] * scale), 1).to(device)
            known = [known[targets[:, 0] == i] for i in range(len(images))]
            merged = [d.cpu() for d in answer.detections(labels=known, **nms)]
            written = [scale_boxes((height, width), d, *shape) for d, shape in zip(merged, shapes, strict=True)]
        else:
            written = in_picture
        for i, path in enumerate(paths):
            if save_txt:
                answer = (None, 0) if probs is None else (probs[i].numpy(), probs.shape[1])
                text = label_text(written[i].numpy(), answer[0], shapes[i][0], answer[1], save_conf)
                (labels_dir / f"{stems(path)}.txt").write_text(text, encoding="utf-8")
            if save_json:
                detections_of[str(path)] = in_picture[i].numpy()
        if plots and batch < PLOTTED_BATCHES:
            views = (data.cls_names, dict(model.cls_names))
            draw_batch(batch, images, targets, image_targets, found, probs, paths, names, views, save_dir)

    model.train(was_training)
    detection_results = detection.compute()
    detection_results["maps"] = detection.maps.tolist()  # mAP50-95 by class number
    image_results = image.compute() if image is not None else None
    accuracy = image_results["accuracy"] if image_results else None
    results = {
        "detection": detection_results,
        "image": image_results,
        "counts": {
            "images": detection.images,
            "objects": sum(c["objects"] for c in detection_results["per_class"].values()),
            "images_without_image_label": unlabelled,
        },
        "losses": losses.result() if losses.pictures else None,
        "speed_ms": clock.per_picture(detection.images),
        "fitness": joint_fitness(detection_results["map50"], detection_results["map50_95"], accuracy, fitness_weight),
        "conf_threshold_used": detection.result.threshold,
        "settings": {
            "imgsz": imgsz, "conf_thres": conf_thres, "iou_thres": iou_thres, "max_det": max_det, "task": task,
            "augment": augment, "single_cls": single_cls, "dtype": dtype_name,
        },
    }  # fmt: skip
    print(detection_table(results, per_class=nc > 1 and (verbose or (nc < 50 and not in_training))))
    if image is not None:
        print(image_table(results, per_class=verbose or (len(cls_names) < 50 and not in_training)))
    elif data.cls_nc and not in_training:
        print("Image task: not measured, the network has no image-level branch")
    if not in_training:
        print(speed_line(results["speed_ms"], (batch_size, 3, imgsz, imgsz)))
    if plots:
        draw_results(detection, image, save_dir)
    write_json(save_dir / "metrics.json", results)
    if save_json:
        stem = Path(weights[0] if isinstance(weights, list) else weights or "model").stem
        file = save_dir / f"{stem}_predictions.json"
        results["pycocotools"] = write_coco(detections_of, dataloader.dataset.index, data, names, file, max_det)
        write_json(save_dir / "metrics.json", results)
    if save_txt:
        print(f"{len(list(labels_dir.glob('*.txt')))} label files saved to {labels_dir}")
    if not in_training:
        print(f"Results saved to {save_dir}")
    return results


def classes_of(model: nn.Module, data: DataConfig, single_cls: bool) -> tuple[dict[int, str], dict[int, str]]:
    """Object and image classes to report; {} for the image task where the network or the data lacks it.

    Raises:
        ValueError: The network answers for other classes than the data has.
    """
    if not single_cls and model.nc != data.nc:
        raise ValueError(
            f"{data.source} has {data.nc} object classes ({', '.join(data.names.values())}), the network {model.nc} "
            f"({', '.join(dict(model.names).values())}): validate on the data it was trained for, or use --single-cls"
        )
    if data.cls_nc and model.cls_nc and model.cls_nc != data.cls_nc:
        raise ValueError(
            f"{data.source} has {data.cls_nc} image classes ({', '.join(data.cls_names.values())}), the network "
            f"{model.cls_nc} ({', '.join(dict(model.cls_names).values())})"
        )
    for ours, theirs in ((data.names, model.names), (data.cls_names, model.cls_names)):
        if ours and theirs and not single_cls and ours != dict(theirs):
            print(f"WARNING: {data.source} names the classes {ours}, the network {dict(theirs)}; the data's are used")
    names = {0: "item"} if single_cls and data.nc > 1 else data.names
    return names, data.cls_names if data.cls_nc and model.cls_nc else {}


def make_loader(
    data: DataConfig,
    task: str,
    imgsz: int,
    batch_size: int,
    stride: int,
    *,
    single_cls: bool = False,
    workers: int = 8,
    strict: bool = False,
    square: bool = False,
):
    """Pictures of a split in batches of like shape, without augmentation; `square`, or `speed`, pads all to squares."""
    split = task if task in ("train", "val", "test") else "val"
    ensure_data(data, (split,))
    kinds = {"single_cls": single_cls, "root": data.path, "prefix": split}
    index = scan_dataset(getattr(data, split), data.nc, data.cls_nc, **kinds)
    report_problems(index.problems, strict)
    refuse_set(index, split, unlabelled=False)
    square = square or task == "speed"
    return create_dataloader(
        index, imgsz, batch_size, stride=stride, rect=not square, pad=0.0 if square else 0.5, cls_nc=data.cls_nc,
        workers=workers, prefix=split,
    )[0]  # fmt: skip


def study(opt: argparse.Namespace) -> None:
    """Validates each weight file at many picture sizes and writes a table: both tasks, milliseconds a picture."""
    arguments = {**vars(opt), "task": "val", "plots": False, "save_json": False}
    for weights in opt.weights:
        rows = []
        for imgsz in study_sizes(weights, opt):
            print(f"\n{weights} at {imgsz} px")
            results = run(**{**arguments, "weights": weights, "imgsz": imgsz})
            row = {"imgsz": results["settings"]["imgsz"]}
            row |= {k: results["detection"][k] for k in ("precision", "recall", "map50", "map50_95")}
            row["image_accuracy"] = (results["image"] or {}).get("accuracy")
            rows.append(row | {f"{k}_ms": results["speed_ms"][k] for k in ("preprocess", "inference", "nms")})
        file = Path(f"study_{Path(opt.data).stem}_{Path(weights).stem}.csv")
        with file.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f"Table saved to {file}")


def study_sizes(weights: str, opt: argparse.Namespace) -> list[int]:
    """Sizes that a study validates at, each once: an exported file may take one alone, a stride may round them up."""
    model = load_model(weights, select_device(opt.device), dnn=opt.dnn)
    if fixed := fixed_size(model):
        print(
            f"{weights} takes pictures of {fixed[0]}x{fixed[1]} alone: its table has one row (export it with --dynamic)"
        )
        return [fixed[1]]
    return list(dict.fromkeys(check_img_size(imgsz, largest_stride(model)) for imgsz in STUDY_SIZES))


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
    add("--save-json", action="store_true", help="write predictions in COCO's format and check them with pycocotools")
    add("--project", default=ROOT / "runs/val", help="write to project/name")
    add("--name", default="exp", help="write to project/name")
    add("--exist-ok", action="store_true", help="write into an existing project/name")
    add("--half", action="store_true", help="half precision: float16 on a GPU, bfloat16 on a processor")
    add("--dnn", action="store_true", help="run ONNX weights through OpenCV")
    add("--strict", action="store_true", help="stop where a picture or label has a fault instead of leaving it out")
    add("--fitness-weight", type=float, default=0.5, help="share of the image accuracy in the fitness, 0..1")
    opt = parse_words(parser, args, known)
    opt.save_json |= Path(opt.data).name == "coco.yaml"
    return opt


def main(opt: argparse.Namespace) -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    try:
        if opt.task == "study":
            study(opt)
        elif opt.task == "speed":
            speed = {"conf_thres": 0.25, "iou_thres": 0.45, "save_json": False, "plots": False}
            half = opt.half or select_device(opt.device).type == "cuda"
            for weights in opt.weights:
                run(**{**vars(opt), **speed, "weights": weights, "half": half})
        else:
            run(**vars(opt))
    except (OSError, ValueError, ModuleNotFoundError) as e:
        raise SystemExit(f"val_joint.py: {e}") from None


if __name__ == "__main__":
    main(parse_opt())
