"""Figures of the runs of a comparison: collected, averaged, and set against the single-task references."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from compare.runs import DRAW_COUNT, Job
from utils.results.intervals import DRAWS_FILE, Interval, middle_95, read_draws

DETECTION_REFERENCE, IMAGE_REFERENCE = "det-only", "cls-only"


@dataclass(frozen=True)
class Metric:
    """A column of the report: its title, digits, whether more is better (+1, -1; 0: neither), and its task."""

    title: str
    digits: int
    better: int
    task: str = ""

    @property
    def heading(self) -> str:
        return f"{self.title} (less is better)" if self.better < 0 else self.title


METRICS = {
    "map50": Metric("mAP50", 3, 1, "det"),
    "map50_95": Metric("mAP50-95", 3, 1, "det"),
    "precision": Metric("P", 3, 1, "det"),
    "recall": Metric("R", 3, 1, "det"),
    "f1": Metric("F1", 3, 1, "det"),
    "accuracy": Metric("accuracy", 3, 1, "image"),
    "balanced_accuracy": Metric("balanced accuracy", 3, 1, "image"),
    "macro_f1": Metric("macro F1", 3, 1, "image"),
    "ece": Metric("ECE", 3, -1, "image"),
    "loss_det": Metric("val loss, detection", 4, -1, "det"),
    "loss_image": Metric("val loss, image", 4, -1, "image"),
    "parameters": Metric("parameters / M", 2, 0),
    "gflops": Metric("GFLOPs", 2, 0),
    "memory": Metric("peak memory / GB", 2, 0),
    "epoch_seconds": Metric("s an epoch", 1, 0),
    "latency": Metric("ms a picture, in batches", 1, 0),
}


@dataclass(eq=False)
class Run:
    """A finished run: where it stands, its figures (None: not of this network), its epochs and confusion matrices, and
    figures on draws of the groups that it was validated on (see `group_intervals`; None where none were drawn)."""

    job: Job
    figures: dict[str, float | None]
    epochs: list[dict]
    confusion: dict[str, np.ndarray]
    draws: dict[str, np.ndarray] | None = None

    @property
    def strategy(self) -> str:
        return self.job.strategy.name


def read_run(job: Job) -> Run:
    """The figures of a finished run.

    Metrics are those of the last network in float32, losses those of the last epoch, unweighted. A task that was
    switched off (a 0 in --task-weights; aggregators reach a weight of 0 with the task on) has none.
    """

    def read(name: str) -> dict:
        return json.loads((job.folder / name).read_text(encoding="utf-8"))

    results, size = read("val/metrics.json"), read("finished.json")
    epochs = read("training_history.json")["epochs"]
    detection, image, losses = results["detection"], results["image"] or {}, epochs[-1]["val"] or {}
    weights = job.trained_with.get("task_weights") or ()
    figures = {key: detection[key] for key in ("map50", "map50_95", "precision", "recall", "f1")}
    figures |= {key: image.get(key) for key in ("accuracy", "balanced_accuracy", "macro_f1", "ece")}
    figures |= {
        "loss_det": losses.get("det"),
        "loss_image": losses.get("image") if image else None,
        "parameters": size["parameters"] / 1e6,
        "gflops": size["gflops"],
        "memory": epochs[-1]["peak_memory_gb"],
        "epoch_seconds": float(np.mean([e["seconds"] for e in epochs])),
        "latency": sum(results["speed_ms"][k] for k in ("preprocess", "inference", "nms")),
    }
    off = {task for task, weight in zip(("det", "image"), weights, strict=False) if weight == 0}
    figures = {k: None if METRICS[k].task in off else v for k, v in figures.items()}
    confusion = {"det": detection.get("confusion_matrix"), "image": image.get("confusion_matrix")}
    confusion = {k: np.array(v) for k, v in confusion.items() if v is not None and k not in off}
    return Run(job, figures, epochs, confusion, _draws(job, results.get("intervals")))


def _draws(job: Job, intervals: dict | None) -> dict[str, np.ndarray] | None:
    """Those of the comparison's own number and pattern: only they are the same for all runs."""
    if not intervals or (intervals["draws"], intervals.get("pattern")) != (DRAW_COUNT, job.group):
        return None
    file = job.folder / "val" / DRAWS_FILE
    return read_draws(file) if file.exists() else {}


def epoch_count(runs: Iterable[Run]) -> int:
    """Epochs of the longest run; a history may lack its first ones."""
    return max(epoch["epoch"] + 1 for run in runs for epoch in run.epochs)


def by_strategy(runs: Iterable[Run]) -> dict[str, list[Run]]:
    out: dict[str, list[Run]] = {}
    for run in runs:
        out.setdefault(run.strategy, []).append(run)
    return out


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; NaN for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def column(runs: Iterable[Run], key: str) -> list[float]:
    """The figures that are there."""
    return [float(r.figures[key]) for r in runs if r.figures[key] is not None]


def spread(runs: Iterable[Run], key: str) -> tuple[float, float] | None:
    """Mean over the runs, and the standard deviation between seeds of one fold, pooled over the folds; None without a
    figure. What tells one fold's patients from another's is not in it. NaN where no fold has two seeds."""
    folds: dict[str, list[float]] = {}
    for r in runs:
        if r.figures[key] is not None:
            folds.setdefault(r.job.fold, []).append(float(r.figures[key]))
    if not folds:
        return None
    values = np.concatenate(list(folds.values()))
    centred = np.concatenate([np.array(v) - np.mean(v) for v in folds.values()])
    free = len(values) - len(folds)
    return float(values.mean()), math.sqrt(float((centred**2).sum()) / free) if free else math.nan


def best_strategy(groups: dict[str, list[Run]], key: str) -> str | None:
    """The strategy that leads every other one by more than the standard deviation of the difference, over runs of one
    seed and fold; None where there is no such one, as where a rival has fewer than two such pairs."""
    better = METRICS[key].better
    found = {name: runs for name, runs in groups.items() if column(runs, key)}

    def leads(name: str, rival: str) -> bool:
        lead = [better * (ours - theirs) for _, ours, theirs in matched(found[name], found[rival], key)]
        return len(lead) > 1 and bool(np.mean(lead) > np.std(lead, ddof=1))

    if not better or len(found) < 2:
        return None
    return next((name for name in found if all(leads(name, rival) for rival in found if rival != name)), None)


def matched(runs: Iterable[Run], reference: Iterable[Run], key: str) -> list[tuple[str, float, float]]:
    """Fold, figure and the reference's figure, of the runs whose seed and fold the reference has too."""
    of_reference = {(r.job.seed, r.job.fold): r.figures[key] for r in reference}
    found = [(r.job.fold, r.figures[key], of_reference.get((r.job.seed, r.job.fold))) for r in runs]
    return [row for row in found if None not in row]


def paired_difference(runs: Sequence[Run], reference: Sequence[Run], key: str) -> tuple[float, float, int] | None:
    """Mean difference to the reference over runs of one seed and fold, half its 95 % interval, and the number of pairs;
    None without a pair.

    The interval is Student's t over the folds, whose seeds are averaged first: seeds of one fold share the pictures
    that they are judged by, so they are no sample of other pictures. With one fold it is over the seeds, and speaks of
    these pictures alone. NaN where there is a single one.
    """
    by_fold: dict[str, list[float]] = {}
    for fold, ours, theirs in matched(runs, reference, key):
        by_fold.setdefault(fold, []).append(ours - theirs)
    if not by_fold:
        return None
    units = [float(np.mean(ds)) for ds in by_fold.values()] if len(by_fold) > 1 else next(iter(by_fold.values()))
    mean, sd = mean_sd(units)
    half = float(stats.t.ppf(0.975, len(units) - 1)) * sd / math.sqrt(len(units)) if len(units) > 1 else math.nan
    return mean, half, sum(map(len, by_fold.values()))


def difference_on_draws(runs: Sequence[Run], reference: Sequence[Run], key: str) -> Interval | None:
    """95 % interval of the mean of `paired_difference` over draws of the groups that were validated on: a draw has the
    same groups for both runs of a pair, and for all seeds of a fold. None unless every pair of runs has draws.

    It says what other groups (patients …) would change, not what another training would: the networks are these.
    """
    of_reference = {(r.job.seed, r.job.fold): r for r in reference}
    by_fold: dict[str, list[np.ndarray]] = {}
    for ours in runs:
        theirs = of_reference.get((ours.job.seed, ours.job.fold))
        if theirs is None or ours.figures[key] is None or theirs.figures[key] is None:
            continue
        if key not in (ours.draws or {}) or key not in (theirs.draws or {}):
            return None
        by_fold.setdefault(ours.job.fold, []).append(ours.draws[key] - theirs.draws[key])
    if not by_fold:
        return None
    rng = np.random.default_rng(0)  # folds have other groups, so that no draw of one belongs to one of another
    return middle_95(np.mean([rng.permutation(np.mean(ds, 0)) for ds in by_fold.values()], 0))


def delta_m(groups: dict[str, list[Run]], name: str) -> float | None:
    """Mean relative change against the single-task references, percent: mAP50-95 against detection alone, accuracy
    against the image task alone (delta_m of Maninis et al., CVPR 2019, equation 3), each over runs of one seed and
    fold. None where one is missing."""
    changes = []
    for key, reference in (("map50_95", DETECTION_REFERENCE), ("accuracy", IMAGE_REFERENCE)):
        rows = matched(groups.get(name, []), groups.get(reference, []), key)
        if not rows or not (alone := np.mean([theirs for _, _, theirs in rows])):
            return None
        changes.append(np.mean([ours for _, ours, _ in rows]) / alone - 1)
    return 100 * float(np.mean(changes))


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one beats in one coordinate without losing in the other, by the first one."""
    front = [
        a
        for a, p in points.items()
        if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for b, q in points.items() if b != a)
    ]
    return sorted(front, key=lambda name: points[name])


def write_csv(runs: Iterable[Run], file: Path) -> None:
    """A row a run."""
    with open(file, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(("strategy", "fold", "seed", *METRICS))
        for r in runs:
            row = ["" if r.figures[k] is None else f"{r.figures[k]:.6g}" for k in METRICS]
            writer.writerow((r.strategy, r.job.fold, r.job.seed, *row))
