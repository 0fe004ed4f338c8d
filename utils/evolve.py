"""Hyperparameter evolution: train, keep the fittest, mutate, repeat (`train_joint.py --evolve N`)."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utils.config import save_yaml

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


def read_history(file: Path) -> list[tuple[float, dict]]:
    """(fitness, hyperparameters) rows of an evolve.csv."""
    with open(file, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    parents = []
    for row in rows:
        values = {k: as_number(v) for k, v in row.items() if k != "fitness" and not k.startswith("metrics/")}
        parents.append((float(row["fitness"]), values))
    return parents


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
        folder: Receives `evolve.csv` (one row a training), `hyp_evolve.yaml` (the best) and a folder per training.
        hyp: The first candidate.
        population: More first candidates, tried before anything mutates.
        history: An earlier `evolve.csv` to go on from.

    Returns:
        The fittest hyperparameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "evolve.csv"
    parents = read_history(history) if history else []
    if history and history != table:
        shutil.copyfile(history, table)  # so that this evolution can be continued as well
    rng = np.random.default_rng([seed, len(parents)])  # other draws than those that made the parents
    first = [] if parents else [hyp, *population]
    keys = list(hyp)
    for generation in range(generations):
        candidate = first[generation] if generation < len(first) else mutate(parents, rng)
        results = train(candidate, folder / f"generation{generation}")  # None: this one diverged
        fitness = float(results["fitness"]) if results else 0.0
        parents.append((fitness, candidate))
        new = not table.exists()
        with open(table, "a", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(["fitness", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", *keys])
            detection = results["detection"] if results else {"map50": 0.0, "map50_95": 0.0}
            values = [candidate.get(k, hyp[k]) for k in keys]
            writer.writerow([fitness, detection["map50"], detection["map50_95"], *values])
        best_fitness, best = max(parents, key=lambda x: x[0])
        save_yaml(folder / "hyp_evolve.yaml", best)
        print(f"Generation {generation + 1}/{generations}: fitness {fitness:.4f}, best so far {best_fitness:.4f}")
    return best
