"""Predictions and ground truth in COCO's json format, and their check by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.boxes import xywhn2xyxy

# The category numbers of COCO's 80 object classes: 1 to 90 with gaps.
COCO_CATEGORIES = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def image_ids(files: Sequence[str]) -> list[int | str]:
    """Identifier of each picture as YOLOv5 writes it: the file's stem, as a number where it is one. Pictures that would
    share one have their whole path instead."""
    stems = [Path(f).stem for f in files]
    ids = [int(s) if s.isascii() and s.isdigit() else s for s in stems]
    times = Counter(ids)
    return [i if times[i] == 1 else str(f) for i, f in zip(ids, files, strict=True)]


def is_coco(path: Path, names: dict[int, str]) -> bool:
    """Whether data in a folder with these object classes are COCO's own; coco128 is not, as in YOLOv5."""
    name = path.name.lower()
    return len(names) == 80 and (name == "coco" or ("coco" in name and (path / "annotations").is_dir()))


def annotation_file(path: Path, files: Sequence[str]) -> Path | None:
    """COCO's annotations of the split that the pictures are of: their folder's name says which. None without them."""
    splits = {Path(f).parent.name for f in files}
    file = path / "annotations" / f"instances_{splits.pop()}.json" if len(splits) == 1 else None
    return file if file and file.is_file() else None


def predictions_of(detections: np.ndarray, image_id: int | str, categories: Sequence[int]) -> list[dict]:
    """Detections ``[n,6]`` (xyxy pixels of the picture, confidence, class) as COCO result entries."""
    return [
        {
            "image_id": image_id,
            "category_id": int(categories[int(cls)]),
            "bbox": [round(float(v), 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(float(conf), 5),
        }
        for x1, y1, x2, y2, conf, cls in detections.tolist()
    ]


def ground_truth(index, names: dict[int, str], ids: Sequence[int | str], categories: Sequence[int]) -> dict:
    """COCO's annotation dictionary of a scanned data set (`utils.dataset.scan.DatasetIndex`), boxes in pixels."""
    annotations = []
    for i, image_id in enumerate(ids):
        width, height = (int(v) for v in index.shapes[i])
        labels = index.labels(i)
        corners = xywhn2xyxy(labels[:, 1:5].astype(np.float64), width, height)
        for cls, (x1, y1, x2, y2) in zip(labels[:, 0], corners.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                    "image_id": image_id,
                    "category_id": int(categories[int(cls)]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": image_id, "file_name": Path(f).name, "width": int(w), "height": int(h)}
            for image_id, f, (w, h) in zip(ids, index.im_files, index.shapes, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": int(categories[c]), "name": name} for c, name in names.items()],
    }


def evaluate(
    truth: dict | str | Path, predictions: list[dict], ids: Sequence[int | str], max_det: int = 300
) -> dict[str, float]:
    """mAP50 and mAP50-95 by pycocotools, all box sizes, with its own limit of 100 detections a picture and with ours.

    It differs a little from `utils.metrics`, which does as YOLOv5 does. In brackets the effect on mAP50 and mAP50-95 in
    a real run of 183 pictures and 53486 predictions at confidence 0.001 (YOLOv5's rules 0.3354 and 0.1081, here 0.3365
    and 0.1089).

    - The area is the mean of the precision envelope at 101 recalls, without interpolation between its points and
      without trapezoids (+0.0011, +0.0008).
    - A detection whose best label is taken may have the next best, in place of being wrong (under 0.0002).
    - At most 100 detections a picture count (under 0.0001).
    - Beyond the last recall reached the precision is 0. YOLOv5's falls in a line to recall 1, which is little with all
      detections and much where a confidence threshold ends the curve early (0.348 against 0.266 at 0.25).

    Args:
        truth: annotation dictionary, or the path of an annotation file.
        predictions: result entries.
        ids: the pictures that count (an annotation file may hold more), those without a detection too.

    Returns:
        ``map50``, ``map50_95`` (at ``max_det`` detections), ``map50_at_100``, ``map50_95_at_100``.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
        ValueError: an annotation file that cannot be read, or lacks some of the pictures.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the check of --save-json needs pycocotools: pip install pycocotools") from None

    if not predictions:
        return dict.fromkeys(("map50", "map50_95", "map50_at_100", "map50_95_at_100"), 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress line by line
        coco = COCO()
        coco.dataset = truth if isinstance(truth, dict) else _read_annotations(truth, ids)
        # NumPy, which sorts the ids there, would turn the numbers among texts into texts
        numbers = {image_id: n for n, image_id in enumerate(ids, 1)}
        coco.dataset = _numbered(coco.dataset, numbers)
        coco.createIndex()
        predictions = [p | {"image_id": numbers[p["image_id"]]} for p in predictions]
        evaluation = COCOeval(coco, coco.loadRes(predictions), "bbox")
        evaluation.params.imgIds = sorted(numbers.values())
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = sorted({100, max_det})
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # [IoU, recall, class, area, max detections], -1 where undefined
    limits = evaluation.params.maxDets

    def mean(levels: slice, limit: int) -> float:
        values = precision[levels, :, :, 0, limits.index(limit)]
        return float(values[values > -1].mean()) if (values > -1).any() else 0.0

    return {
        "map50": mean(slice(0, 1), max_det),
        "map50_95": mean(slice(None), max_det),
        "map50_at_100": mean(slice(0, 1), 100),
        "map50_95_at_100": mean(slice(None), 100),
    }


def _read_annotations(file: str | Path, ids: Sequence[int | str]) -> dict:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        known = {image["id"] for image in content["images"]}
        for key in ("annotations", "categories"):
            iter(content[key])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{file}: no annotation file that can be read ({type(e).__name__}: {e})") from e
    if missing := [i for i in ids if i not in known]:
        raise ValueError(f"{file}: lacks {len(missing)} of {len(ids)} pictures, such as {missing[0]}")
    return content


def _numbered(truth: dict, numbers: dict[int | str, int]) -> dict:
    """An annotation dictionary of the pictures in `numbers` alone, with these as their ids."""
    images = [im | {"id": numbers[im["id"]]} for im in truth["images"] if im["id"] in numbers]
    annotations = [a | {"image_id": numbers[a["image_id"]]} for a in truth["annotations"] if a["image_id"] in numbers]
    return truth | {"images": images, "annotations": annotations}
