"""Validation: a network on the videos of a subset, tables and files of what came out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from tad.annotations import results_json
from tad.config import TadConfig
from tad.data import TadData, WindowSet, create_loader
from tad.memory import Loading
from tad.metrics import Scores, clean_truth, error_kinds, evaluate, recall
from tad.plots import plot_errors, plot_map
from tad.predict import predict_set
from tad.video import bare_name
from utils.results.timelines import Event, plot_timelines
from utils.system.devices import World
from utils.system.files import whole_file
from utils.system.voice import say, warn

SHOWN = 24  # videos in the picture of timelines


def truth_of(data: TadData, dataset: WindowSet | None = None) -> dict[str, list[Event]]:
    """True events of the validation videos, or of those that a data set has kept.

    Raises:
        ValueError: There is none, so that nothing can be judged.
    """
    records = dataset.records if dataset else data.records("val")
    truth = {record.name: clean_truth(record.events) for record in records}
    if not any(truth.values()):
        raise ValueError(f"{data.annotations.file}: no video of {data.val} that can be read has an event to find")
    return truth


def of_videos(results: Mapping[str, list[Event]], names: Collection[str], file: str) -> dict[str, list[Event]]:
    """Results of a file by the names of the validation videos, whose paths may stand there too (as of `detect_tad.py`).

    Results of other videos stay, and count as false; a line tells of them.

    Raises:
        ValueError: None is of a validation video, or one video has results twice.
    """
    found: dict[str, list[Event]] = {}
    for key, events in results.items():
        bare = bare_name(key)
        name = bare if key not in names and bare in names else key
        if name in found:
            raise ValueError(f"{file}: has results of the video {name} twice")
        found[name] = events
    if other := [name for name in found if name not in names]:
        some = f"{len(other)} of its {len(found)} videos, such as {other[0]}, are none of the {len(names)} to judge by"
        if len(other) == len(found):
            raise ValueError(f"{file}: {some}, such as {next(iter(names))}")
        warn(f"{file}: {some}: their events count as false")
    return found


def val_loader(data: TadData, config: TadConfig, numbers: Loading, cache: str | None, world: World):
    """Loader of this process's share of the validation windows."""
    dataset = WindowSet(data, config, train=False, cache=cache, threads=numbers.val_threads)
    return create_loader(dataset, numbers.val_batch, numbers.val_workers, numbers.prefetch, world.rank, world.size)


def predict_with_bar(
    model: nn.Module, loader, config: TadConfig, names: dict, device: torch.device, amp, world: World
) -> dict[str, list[Event]]:
    """`predict_set` under a progress bar."""
    with tqdm(total=len(loader), desc="Validating", disable=not world.is_main, mininterval=1) as bar:
        return predict_set(model, loader, config, names, device, amp, world, lambda: bar.update())


def metrics_of(truth: Mapping, predictions: Mapping, thresholds: Sequence[float]) -> dict:
    """All figures as plain values, and the `Scores` under "scores"."""
    scores = evaluate(truth, predictions, thresholds)
    middle = scores.thresholds[len(scores.thresholds) // 2]
    return {
        "average_map": scores.average,
        "map": {f"{t:g}": v for t, v in scores.map.items()},
        "classes": {
            label: {
                "truths": scores.truths[label],
                "ap": {f"{t:g}": float(scores.ap[i, c]) for i, t in enumerate(scores.thresholds)},
            }
            for c, label in enumerate(scores.classes)
        },
        "recall": {f"{k}x": recall(truth, predictions, scores.thresholds, k).tolist() for k in (1, 5)},
        "errors": error_kinds(truth, predictions, middle),
        "errors_at": middle,
        "scores": scores,
    }


def table(metrics: dict) -> str:
    """Rows of the classes, then of all, for the console."""
    scores: Scores = metrics["scores"]
    width = max(len("average mAP"), *map(len, scores.classes))
    head = f"{'Class':<{width}}{'Events':>8}" + "".join(f"{f'AP@{t:g}':>9}" for t in scores.thresholds) + f"{'mean':>9}"
    lines = [head]
    for c, label in enumerate(scores.classes):
        values = [*scores.ap[:, c], scores.ap[:, c].mean()]
        lines.append(f"{label:<{width}}{scores.truths[label]:>8}" + "".join(f"{v:>9.4f}" for v in values))
    values = [*scores.ap.mean(1), scores.average]
    total = sum(scores.truths.values())
    lines.append(f"{'average mAP':<{width}}{total:>8}" + "".join(f"{v:>9.4f}" for v in values))
    kinds = ", ".join(f"{kind} {count}" for kind, count in metrics["errors"].items())
    lines.append(f"The best {total} predictions at tIoU {metrics['errors_at']:g}: {kinds}")
    return "\n".join(lines)


def write_results(metrics: dict, truth: Mapping, predictions: Mapping, save_dir: Path, plots: bool) -> None:
    """`detections.json` (as other evaluators read it), `metrics.json` and the pictures."""
    save_dir.mkdir(parents=True, exist_ok=True)
    plain = {k: v for k, v in metrics.items() if k != "scores"}
    for name, content in (("detections.json", results_json(predictions)), ("metrics.json", plain)):
        with whole_file(save_dir / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1 if name == "metrics.json" else None), encoding="utf-8")
    if plots:
        videos = sorted(truth, key=lambda v: -len(truth[v]))[:SHOWN]
        labels = sorted({e.label for events in truth.values() for e in events})
        plot_timelines({v: truth[v] for v in videos}, predictions, labels, save_dir / "timelines.png")
        plot_map(metrics["scores"], save_dir / "map_over_tiou.png")
        plot_errors(truth, predictions, metrics["errors_at"], save_dir / "false_positives.png")


def report_problems(data: TadData, dataset: WindowSet | None, save_dir: Path, strict: bool = False) -> None:
    """Say what was left out of annotations and videos, and write it to `left_out_*.csv`.

    Args:
        dataset: The split whose videos are read; None where none is.

    Raises:
        ValueError: Something was, and `strict` is set.
    """
    problems = data.annotations.problems + (dataset.problems if dataset else [])
    split = "train" if dataset and dataset.train else "val"
    file = save_dir / f"left_out_{split}.csv"
    file.unlink(missing_ok=True)  # of an earlier run in this folder
    if not problems:
        return
    save_dir.mkdir(parents=True, exist_ok=True)
    file.write_text("problem\n" + "".join('"' + p.replace('"', '""') + '"\n' for p in problems), encoding="utf-8")
    if strict:
        raise ValueError(f"--strict: {len(problems)} problems in {data.annotations.file}, the first: {problems[0]}")
    say(f"{split}: {len(problems)} problems, listed in {file}; the first: {problems[0]}")
