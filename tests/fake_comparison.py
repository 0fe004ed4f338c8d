"""Finished runs of a comparison, without the trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from compare.results import read_run
from compare.runs import DRAW_COUNT, parse_strategy, plan
from utils.results.intervals import DRAWS_FILE, write_draws
from utils.system.yamls import save_yaml

ZERO = dict.fromkeys(("precision", "recall", "f1", "map50", "map50_95"), 0.0)

TABLE = {
    "gradnorm": [(0.20, 0.90), (0.24, 0.92)],
    "detach": [(0.30, 0.80), (0.31, 0.82)],
    "det-only": [(0.30, None), (0.32, None)],
    "cls-only": [(None, 0.90), (None, 0.90)],
}


def fake_runs(
    data: Path,
    folder: Path,
    table: dict[str, list[tuple[float | None, float | None]]],
    folds: tuple = ("published",),
    group: str = "",
) -> list:
    """Finished runs with these (mAP50-95, accuracy), as trainings would leave them: the folds of one seed, then those
    of the next. With a pattern of groups, every draw of them is up to 0.1 above."""
    jobs = plan(
        [parse_strategy(name) for name in table],
        range(-(-max(map(len, table.values())) // len(folds))),
        dict.fromkeys(folds, data),
        "yolov5n",
        [],
        2,
        folder,
        group,
    )
    runs = []
    for job in jobs:
        number = job.seed * len(folds) + folds.index(job.fold)
        if number >= len(table[job.strategy.name]):
            continue
        map50_95, accuracy = table[job.strategy.name][number]
        (job.folder / "val" / "labels").mkdir(parents=True)
        detection = ZERO | {"map50_95": map50_95 or 0.0, "confusion_matrix": [[1, 0, 0], [0, 1, 0], [2, 0, 0]]}
        image = {"accuracy": accuracy, "balanced_accuracy": accuracy, "macro_f1": accuracy, "ece": 0.1}
        image = None if accuracy is None else image | {"confusion_matrix": [[3, 1], [0, 2]]}
        speed = {"preprocess": 1.0, "inference": 2.0, "nms": 3.0}
        metrics = {"detection": detection, "image": image, "speed_ms": speed}
        if group:
            metrics["intervals"] = {"draws": DRAW_COUNT, "pattern": group}
            figures = {"map50_95": map50_95, "accuracy": accuracy}
            draws = {k: v + np.linspace(0, 0.1, DRAW_COUNT) for k, v in figures.items() if v is not None}
            write_draws(draws, job.folder / "val" / DRAWS_FILE)
        (job.folder / "val" / "metrics.json").write_text(json.dumps(metrics))
        weights = {"det": 0.0 if map50_95 is None else 1.0} | ({} if accuracy is None else {"image": 1.0})
        options = job.options[job.options.index("--task-weights") + 1 :] if "--task-weights" in job.options else ()
        save_yaml(job.folder / "opt.yaml", {"task_weights": [float(w) for w in options[:2]] or None})
        norms = {"det": 2.0, "image": 1.0} if len(weights) == 2 else None
        epochs = [
            {
                "epoch": e, "train": {"det": 0.2, "image": 0.6}, "val": {"det": 0.1, "image": 0.5},
                "task_weights": weights, "grad_norms": norms,
                "grad_cosine": 0.1, "metrics": {"map50_95": map50_95, "image_accuracy": accuracy},
                "seconds": 2.0 + e, "peak_memory_gb": 1.0,
            }
            for e in range(2)
        ]  # fmt: skip
        (job.folder / "training_history.json").write_text(json.dumps({"epochs": epochs}))
        (job.folder / "finished.json").write_text('{"parameters": 1800000, "gflops": 4.2}')
        for i in range(12):  # the second strategy answers otherwise from picture 6 on
            view = "1 0" if i < 6 or job.strategy.name == "gradnorm" else "0 1"
            (job.folder / "val" / "labels" / f"{i}.txt").write_text(f"0 0.5 0.5 0.3 0.3 0.9\n\n{view}\n")
        runs.append(read_run(job))
    return runs
