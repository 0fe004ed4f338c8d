"""Hyperparameter evolution: train, keep the fittest, mutate, repeat (`train_joint.py --evolve N`)."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.system.files import whole_file
from utils.system.voice import say
from utils.system.yamls import save_yaml

# name: (how strongly it mutates, lowest, highest); what is not listed stays as it is
SEARCH_SPACE: dict[str, tuple[float, float, float]] = {
    "lr0": (1, 1e-5, 1e-1),
    "lrf": (1, 0.01, 1.0),
    "momentum": (0.3, 0.6, 0.98),
    "weight_decay": (1, 0.0, 0.001),
    "warmup_epochs": (1, 0.0, 5.0),
    "warmup_momentum": (1, 0.0, 0.95),
    "warmup_bias_lr": (1, 0.0, 0.2),
    "box": (1, 0.02, 0.2),
    "cls": (1, 0.2, 4.0),
    "cls_pw": (1, 0.5, 2.0),
    "obj": (1, 0.2, 4.0),
    "obj_pw": (1, 0.5, 2.0),
    "anchor_t": (1, 2.0, 8.0),
    "fl_gamma": (0, 0.0, 2.0),
    "hsv_h": (1, 0.0, 0.1),
    "hsv_s": (1, 0.0, 0.9),
    "hsv_v": (1, 0.0, 0.9),
    "degrees": (1, 0.0, 45.0),
    "translate": (1, 0.0, 0.9),
    "scale": (1, 0.0, 0.9),
    "shear": (1, 0.0, 10.0),
    "perspective": (0, 0.0, 0.001),
    "flipud": (1, 0.0, 1.0),
    "fliplr": (0, 0.0, 1.0),
    "mosaic": (1, 0.0, 1.0),
    "mixup": (1, 0.0, 1.0),
    "copy_paste": (1, 0.0, 1.0),
}


def mutate(
    parents: Sequence[tuple[float, dict]], rng: np.random.Generator, probability: float = 0.8, sigma: float = 0.2
) -> dict:
    """A child of one of the five fittest parents (drawn by fitness), each value scaled by a random factor in 0.3 … 3.

    Args:
        parents: (fitness, hyperparameters) pairs.
        probability: Share of the values that change.
        sigma: Spread of the factors.
    """
    best = sorted(parents, key=lambda x: -x[0])[:5]
    odds = np.array([fitness for fitness, _ in best])
    odds = odds - odds.min() + 1e-6
    child = dict(best[rng.choice(len(best), p=odds / odds.sum())][1])
    names = [k for k in SEARCH_SPACE if isinstance(child.get(k), (int, float))]
    strength = np.array([SEARCH_SPACE[k][0] for k in names])
    factors = np.ones(len(names))
    while (factors == 1).all():  # a child that equals its parent would waste a training
        chosen = rng.random(len(names)) < probability
        factors = (1 + strength * chosen * rng.standard_normal(len(names)) * rng.random() * sigma).clip(0.3, 3.0)
    for k, factor in zip(names, factors, strict=True):
        child[k] = round(float(np.clip(child[k] * factor, *SEARCH_SPACE[k][1:])), 5)
    return child


@dataclass(frozen=True)
class Trial:
    """One training of an evolution, a row of its table."""

    fitness: float
    map50: float
    map50_95: float
    hyp: dict


METRICS = ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")


def read_history(file: Path) -> list[Trial]:
    """Rows of an evolve.csv, YOLOv5's too, which has the metrics but no fitness.

    Raises:
        ValueError: A column that is needed is missing.
    """
    with open(file, newline="", encoding="utf-8") as f:
        rows = [[cell.strip() for cell in row] for row in csv.reader(f)]
    trials = []
    for cells in rows[1:]:
        row = dict(zip(rows[0], cells, strict=False))
        if missing := [k for k in METRICS if k not in row]:
            raise ValueError(f"{file}: not the table of an evolution, it has no column {missing[0]}")
        maps = [float(row[k]) for k in METRICS]
        fitness = float(row.get("fitness", 0.1 * maps[0] + 0.9 * maps[1]))  # YOLOv5's fitness
        hyp = {k: as_number(v) for k, v in row.items() if k != "fitness" and not k.startswith(("metrics/", "val/"))}
        trials.append(Trial(fitness, *maps, hyp))
    return trials


def write_history(file: Path, trials: Sequence[Trial], hyp: dict) -> None:
    """The table, with a column for each key of `hyp`, whose values stand in for what a trial lacks."""
    with whole_file(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["fitness", *METRICS, *hyp])
        for t in trials:
            writer.writerow([t.fitness, t.map50, t.map50_95, *((hyp | t.hyp)[k] for k in hyp)])


def as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def evolve(
    train: Callable[[dict, Path], dict | None],
    folder: Path,
    generations: int,
    hyp: dict,
    population: Sequence[dict] = (),
    history: Path | None = None,
    seed: int = 0,
) -> dict:
    """Run `generations` trainings, each with a mutated child of the fittest so far.

    Args:
        train: `train(hyp, save_dir)` → metrics with `fitness` and `detection`; None where the training diverged.
        folder: Receives `evolve.csv` (one row a training), `hyp_evolve.yaml` (the best) and a folder per training, with
            weights for the fittest of these alone.
        hyp: The first candidate.
        population: More first candidates, tried before anything mutates.
        history: An `evolve.csv` to go on from; None: that of the folder, where there is one, as in YOLOv5.

    Returns:
        The fittest hyperparameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "evolve.csv"
    history = history or (table if table.is_file() else None)
    trials = read_history(history) if history else []
    rng = np.random.default_rng([seed, len(trials)])  # other draws than those that made the parents
    first, made = [] if trials else [hyp, *population], len(trials)
    best = hyp
    for generation in range(generations):
        parents = [(t.fitness, hyp | t.hyp) for t in trials]
        candidate = first[generation] if generation < len(first) else mutate(parents, rng)
        results = train(candidate, folder / f"generation{len(trials)}")  # None: this one diverged
        found = results["detection"] if results else {"map50": 0.0, "map50_95": 0.0}
        fitness = float(results["fitness"]) if results else 0.0
        trials.append(Trial(fitness, found["map50"], found["map50_95"], candidate))
        write_history(table, trials, hyp)  # with the earlier ones, so that this evolution can be continued as well
        fittest = max(trials, key=lambda t: t.fitness)
        best = hyp | fittest.hyp
        kept = max(trials[made:], key=lambda t: t.fitness)
        for number, trial in enumerate(trials[made:], made):  # the weights of hundreds of trainings fill a disk
            if trial is not kept:
                shutil.rmtree(folder / f"generation{number}" / "weights", ignore_errors=True)
        save_yaml(folder / "hyp_evolve.yaml", best)
        say(f"Generation {generation + 1}/{generations}: fitness {fitness:.4f}, best so far {fittest.fitness:.4f}")
    return best
