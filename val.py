"""`val_joint.py` under YOLOv5's name, for commands, notebooks and programs written for YOLOv5.

python val.py --data coco128.yaml --weights yolov5s.pt --img 640
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("val_joint.py")), run_name="__main__")
else:
    import numpy as np
    import torch

    import val_joint
    from utils.dataset.config import DataConfig
    from val_joint import main, parse_opt

__all__ = ["main", "parse_opt", "run"]


def run(
    data: DataConfig | str | Path | dict,
    weights: str | Path | list[str] | None = None,
    batch_size: int = 32,
    imgsz: int = 640,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    task: str = "val",
    device: str | torch.device = "",
    **options: Any,
) -> tuple[tuple[float, ...], np.ndarray, tuple[float, ...]]:
    """Validate, as YOLOv5's `val.run` is called; `val_joint.run` answers for both tasks.

    Args:
        options: See `val_joint.run`.

    Returns:
        (P, R, mAP50, mAP50-95, box, objectness and class loss), mAP50-95 by class number [nc], and milliseconds a
        picture of preparation, inference and suppression. The losses are 0 where no `criterion` is given.
    """
    results = val_joint.run(
        data, weights, batch_size=batch_size, imgsz=imgsz, conf_thres=conf_thres, iou_thres=iou_thres,
        max_det=max_det, task=task, device=device, **options,
    )  # fmt: skip
    detection, losses, speed = results["detection"], results["losses"] or {}, results["speed_ms"]
    figures = [detection[key] for key in ("precision", "recall", "map50", "map50_95")]
    figures += [losses.get(key, 0.0) for key in ("box", "obj", "cls")]
    return tuple(figures), np.array(detection["maps"]), tuple(speed[key] for key in ("preprocess", "inference", "nms"))
