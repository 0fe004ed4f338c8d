"""What a validation leaves behind: tables, curves, confusion matrices, drawn batches, label files and json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.boxes import xyxy2xywhn
from utils.dataset.config import DataConfig
from utils.dataset.scan import DatasetIndex
from utils.metrics import CURVE_POINTS, DetectionMetrics, ImageMetrics
from utils.results import coco
from utils.results.batches import plot_images
from utils.results.curves import plot_confusion_matrix, plot_metric_curve, plot_pr_curve
from utils.results.detections import label_text
from utils.system.paths import UniqueStems
from utils.system.plain import plain
from utils.system.voice import say, warn

PLOTTED_BATCHES = 3
DETAILS = "details"  # folder of the other json files where predictions are written as json

# --- tables -------------------------------------------------------------------------------------------------------


def _row(name: str, counts: Sequence[int], values: Sequence[float | None]) -> str:
    """A name, counts and metrics ("-" where undefined) in the table's columns."""
    cells = [str(c) for c in counts] + ["-" if v is None else f"{v:.3g}" for v in values]
    return f"{name[:22]:>22}" + "".join(f"{cell:>11}" for cell in cells)


def _header(name: str, *columns: str) -> str:
    return f"{name:>22}" + "".join(f"{column:>11}" for column in columns)


HEADER = _header("Class", "Images", "Instances", "P", "R", "F1", "mAP50", "mAP50-95")
IMAGE_HEADER = _header("Image class", "Images", "P", "R", "F1", "AUROC")


def detection_table(results: dict, per_class: bool) -> str:
    """`HEADER`, the means, then each class."""
    keys = ("precision", "recall", "f1", "map50", "map50_95")
    detection, counts = results["detection"], results["counts"]
    rows = [HEADER, _row("all", (counts["images"], counts["objects"]), [detection[k] for k in keys])]
    if per_class:
        for name, c in detection["per_class"].items():
            rows.append(_row(name, (c["images"], c["objects"]), [c[k] for k in keys]))
    return "\n".join(rows)


def image_table(results: dict, per_class: bool = True) -> str:
    """One line that sums the image task up, below `IMAGE_HEADER`, means and classes if wanted. '' without that task."""
    image = results["image"]
    if image is None:
        return ""
    if not image["known"]:
        return f"Image task: none of {image['unknown']} pictures has an image label, so it cannot be measured"
    rows = []
    if per_class:
        keys = ("precision", "recall", "f1", "auroc")
        occurring = [c for c in image["per_class"].values() if c["support"]]
        means = [float(np.mean([c[k] for c in occurring])) for k in keys[:2]]
        rows = [IMAGE_HEADER, _row("all", (image["known"],), [*means, image["macro_f1"], image["auroc"]])]
        rows += [_row(name, (c["support"],), [c[k] for k in keys]) for name, c in image["per_class"].items()]
    rows.append(
        f"Image task: accuracy {image['accuracy']:.3f}, balanced accuracy {image['balanced_accuracy']:.3f}, macro F1 "
        f"{image['macro_f1']:.3f}, ECE {image['ece']:.3f} on {image['known']} pictures; {image['unknown']} without "
        "image label left out"
    )
    return "\n".join(rows)


def speed_line(speed_ms: dict[str, float], shape: Sequence[int]) -> str:
    loss = f"{speed_ms['loss']:.1f}ms loss, " if speed_ms["loss"] else ""
    return (
        f"Speed: {speed_ms['preprocess']:.1f}ms pre-process, {speed_ms['inference']:.1f}ms inference, {loss}"
        f"{speed_ms['nms']:.1f}ms NMS, {speed_ms['metrics']:.1f}ms metrics per image at shape {tuple(shape)}"
    )


# --- files --------------------------------------------------------------------------------------------------------


def write_json(file: str | Path, content: dict | list) -> None:
    """Writes strict json: a number that is not finite becomes null."""
    text = json.dumps(plain(content, finite=True), indent=1, ensure_ascii=False)
    Path(file).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def draw_results(detection: DetectionMetrics, image: ImageMetrics | None, save_dir: Path) -> None:
    """Curves (P, R, F1, PR) and confusion matrices of both tasks, from computed metrics."""
    result, names = detection.result, detection.names
    classes = result.classes.tolist()
    plot_pr_curve(CURVE_POINTS, result.pr_curve, result.ap, save_dir / "PR_curve.png", names, classes)
    for letter, curve, label in (
        ("F1", result.f1_curve, "F1"),
        ("P", result.p_curve, "Precision"),
        ("R", result.r_curve, "Recall"),
    ):
        file = save_dir / f"{letter}_curve.png"
        plot_metric_curve(CURVE_POINTS, curve, file, names, ylabel=label, classes=classes, threshold=result.threshold)
    title = f"Objects: confidence > {detection.confusion.conf}, IoU > {detection.confusion.iou_thres}"
    plot_confusion_matrix(detection.confusion.matrix, names, title, save_dir / "confusion_matrix.png")
    if image is not None and image.known:
        title = f"Image task: {image.known} pictures"
        plot_confusion_matrix(image.matrix, image.names, title, save_dir / "image_confusion_matrix.png")


def draw_batch(batch: int, images, targets, image_targets, found, probs, paths, names, cls_names, save_dir) -> None:
    """Labels and predictions (boxes [n,6] in pixels of the input) of a batch as val_batchN_{labels,pred}.jpg.

    `cls_names` are the image classes of the data and of the network: one of them may have none.
    """
    height, width = images.shape[2:]
    rows = []
    for i, boxes in enumerate(found):
        centres = xyxy2xywhn(boxes[:, :4], width, height)
        rows.append(torch.cat((torch.full((len(boxes), 1), i), boxes[:, 5:6], centres, boxes[:, 4:5]), 1))
    file = str(save_dir / f"val_batch{batch}_%s.jpg")
    plot_images(images, targets, image_targets, paths, file % "labels", names, cls_names[0])
    plot_images(images, torch.cat(rows), probs, paths, file % "pred", names, cls_names[1])


def write_labels(pictures: Sequence, folder: Path, with_conf: bool, image_row: bool = True) -> int:
    """Writes a label file for each picture (see `models.validation.Picture`) and returns their number. Where a file has
    another name than its picture, names.csv beside the folder says whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    stems = UniqueStems()
    for p in pictures:
        probs = p.probs if image_row else None
        text = label_text(p.with_known, probs, p.size, 0 if probs is None else len(probs), with_conf)
        (folder / f"{stems(p.path)}.txt").write_text(text, encoding="utf-8")
    stems.save(folder.parent)
    return len(pictures)


def write_coco(
    detections: dict[str, np.ndarray],
    index: DatasetIndex,
    data: DataConfig,
    names: dict[int, str],
    file: Path,
    max_det: int,
) -> dict[str, float]:
    """Writes predictions in COCO's format and, in a folder beside them, the ground truth; pycocotools compares them.

    Args:
        detections: picture path to [n,6] in pixels of the picture.
        index: the pictures' labels.
        data: where they are from; COCO's own set gets its category numbers, and its annotation file of the split where
            that is there and has these pictures.
        names: object classes.
        file: of the predictions.
        max_det: most detections per picture.

    Returns:
        See `utils.results.coco.evaluate`; {}, with a line, where pycocotools is not installed or cannot compare them.
    """
    is_coco = coco.is_coco(data.path, names)
    categories = coco.COCO_CATEGORIES if is_coco else list(names)
    ids = coco.image_ids(index.im_files)
    predictions = []
    for path, image_id in zip(index.im_files, ids, strict=True):
        predictions += coco.predictions_of(detections[str(path)], image_id, categories)
    write_json(file, predictions)
    say(f"{len(predictions)} predictions saved to {file}")
    official = coco.annotation_file(data.path, index.im_files) if is_coco else None
    try:
        checked = _compare(official, predictions, ids, max_det) if official else None
        if checked is None:
            truth = coco.ground_truth(index, names, ids, categories)
            name = file.name.replace("predictions", "ground_truth")
            (file.parent / DETAILS).mkdir(exist_ok=True)
            write_json(file.parent / DETAILS / name, truth)
            checked = coco.evaluate(truth, predictions, ids, max_det)
    except Exception as e:  # a long validation is not lost over its check
        warn(f"{e if isinstance(e, ModuleNotFoundError) else f'no check by pycocotools ({e!r})'}")
        return {}
    say(
        f"pycocotools: mAP50 {checked['map50']:.4f}, mAP50-95 {checked['map50_95']:.4f} (at its own limit of 100 "
        f"detections a picture: {checked['map50_at_100']:.4f}, {checked['map50_95_at_100']:.4f})"
    )
    return checked


def _compare(official: Path, predictions: list[dict], ids: Sequence[int | str], max_det: int) -> dict | None:
    """The check against an annotation file; None, with a line, where that does not fit the pictures."""
    try:
        return coco.evaluate(official, predictions, ids, max_det)
    except ValueError as e:
        warn(f"{e}; the labels are used instead")
        return None
