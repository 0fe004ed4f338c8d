"""TRAINING_SUMMARY.md: what a run was, in one page that can be handed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tad.config import TadConfig
from utils.system.files import whole_file


def trend(values: Sequence[float]) -> str:
    """First, last, smallest, mean and spread of a curve, in words."""
    v = np.array([x for x in values if x is not None and np.isfinite(x)], float)
    if not len(v):
        return "not measured"
    return f"{v[0]:.4f} to {v[-1]:.4f} (smallest {v.min():.4f}, mean {v.mean():.4f}, spread {v.std():.4f})"


def training_summary(
    history: Sequence[Mapping], config: TadConfig, facts: Mapping[str, object], best: Mapping, files: Sequence[Path]
) -> str:
    """The page as markdown.

    Args:
        history: Records of the epochs.
        facts: Name → value of what the run was made with (data, device, batch, …).
        best: Figures of the best checkpoint, as `metrics_of` gives them.
        files: Checkpoints whose size is told.
    """
    lines = ["# Training summary", "", "## Run", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += [f"| {f.name} | {f.stat().st_size / 2**20:.1f} MiB |" for f in files if f.is_file()]
    lines += ["", "## Result of best.pt", "", "| class | events | " + " | ".join(f"AP@{t}" for t in best["map"]) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(best["map"]))
    for label, row in best["classes"].items():
        lines.append(f"| {label} | {row['truths']} | " + " | ".join(f"{v:.4f}" for v in row["ap"].values()) + " |")
    lines.append("| mAP | | " + " | ".join(f"{v:.4f}" for v in best["map"].values()) + " |")
    lines += ["", f"Average mAP {best['average_map']:.4f}."]
    kinds = ", ".join(f"{kind} {count}" for kind, count in best["errors"].items())
    lines.append(f"The best predictions, as many as there are events, at tIoU {best['errors_at']:g}: {kinds}.")
    measured = [r for r in history if r.get("metrics")]
    lines += ["", "## Course", ""]
    for key, name in (("total", "Loss"), ("cls", "Class loss"), ("reg", "Segment loss")):
        lines.append(f"* {name}: {trend([r['train'][key] for r in history])}")
    if measured:
        top = max(measured, key=lambda r: r["metrics"]["map"])
        lines.append(f"* Average mAP: {trend([r['metrics']['map'] for r in measured])}; best in epoch {top['epoch']}")
    seconds = [r["seconds"] for r in history]
    if seconds:
        lines.append(f"* {len(history)} epochs, {np.mean(seconds):.1f} s each, {sum(seconds) / 60:.1f} min in all")
        lines.append(f"* Peak memory {max(r['peak_memory_gb'] for r in history):.2f} GiB")
    lines += ["", "| epoch | loss | class | segment | average mAP | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for r in history:
        value = f"{r['metrics']['map']:.4f}" if r.get("metrics") else ""
        losses = " | ".join(f"{r['train'][k]:.4f}" for k in ("total", "cls", "reg"))
        lines.append(f"| {r['epoch']} | {losses} | {value} | {r['seconds']:.1f} |")
    lines += ["", "## Settings", "", "| key | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in dataclasses.asdict(config).items()]
    return "\n".join(lines) + "\n"


def write_summary(file: Path, text: str) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
