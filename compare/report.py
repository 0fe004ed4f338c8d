"""The report of a comparison: report.md, report.html (one file, with its pictures) and results.csv."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from compare import figures
from compare.disagreements import find_disagreements
from compare.figures import png, spread_text
from compare.results import (
    DETECTION_REFERENCE,
    IMAGE_REFERENCE,
    METRICS,
    Run,
    best_strategy,
    by_strategy,
    delta_m,
    difference_on_draws,
    epoch_count,
    paired_difference,
    spread,
    write_csv,
)
from utils.dataset.config import DataConfig, load_data_config
from utils.dataset.index import DatasetIndex
from utils.dataset.scan import scan_dataset
from utils.dataset.split import FEW_GROUPS, find_groups, leaking_groups
from utils.results.figures import save
from utils.system import pages

MOST_PICTURES = 12
EXPLANATION = (
    "Every strategy trained for the same number of epochs, from the same seeds, on the same pictures in one order. "
    "The network of the last epoch is validated, not the best one, which is chosen on these very pictures. "
    "Cells are the mean over the runs ± the standard deviation between seeds (of one fold, pooled over the folds). "
    "**Bold**: leads every other strategy by more than the standard deviation of the difference, over runs of one seed "
    "and fold."
)


def write_report(
    runs: Sequence[Run],
    failed: Mapping[str, str],
    folder: Path,
    command: Sequence[str],
    group: str | None = None,
    planned: int | None = None,
) -> None:
    """Write the report of the finished runs.

    Args:
        failed: why other runs failed, by their name.
        command: the words of the command line, repeated in the report.
        group: pattern of the groups, to tell of those that stand on both sides; else that of the data yaml.
        planned: how many runs there are to be.
    """
    groups = by_strategy(runs)
    data = _data(runs[0], group)
    write_csv(runs, folder / "results.csv")
    summary = [_summary(runs, planned or len(runs)), *_leak_lines(runs, group), *_draw_lines(runs)]
    tables = [
        ("Results", *results_table(groups)),
        ("Differences to one task alone", *differences_table(groups)),
        ("What other groups would change", *groups_table(groups)),
    ]
    tables = [table for table in tables if table[2]]
    pictures = {
        "pareto": figures.pareto_picture(groups),
        "curves": figures.training_curves(groups),
        "balance": figures.balance_curves(groups),
        "confusion_detection": figures.confusion_matrices(groups, "det", list(data.names.values())),
        "confusion_image": figures.confusion_matrices(groups, "image", list(data.cls_names.values())),
    }
    pictures = {name: fig for name, fig in pictures.items() if fig is not None}
    failures = [f"{name}: {reason}" for name, reason in failed.items()]
    _write_markdown(folder, tables, pictures, failures, command, summary)
    drawn = _disagreements(runs)
    captions = {
        "pareto": "Detection against accuracy: small dots are runs, large ones means",
        "curves": "Training curves, means over the runs",
        "balance": "Task weights, gradient norms and their cosine, where they are measured",
        "confusion_detection": "Confusion matrices of the boxes, all runs added up",
        "confusion_image": "Confusion matrices of the image classes, all runs added up",
    }
    body = [f"<p>{_html(EXPLANATION)}</p>", *(f"<p class='dim'>{escape(line)}</p>" for line in summary)]
    body += [f"<p class='bad'>Failed: {escape(text)}</p>" for text in failures]
    for title, header, rows, note in tables:
        body += [f"<h2>{escape(title)}</h2>", f"<p>{_html(note)}</p>" if note else "", _html(pages.table(header, rows))]
    body.append("<h2>Pictures</h2>")
    body += [pages.figure(png(fig), captions[name], "png") for name, fig in pictures.items()]
    if drawn:
        body.append(f"<h2>Where the strategies disagree ({escape(_first(runs))})</h2>")
        body += [pages.figure(jpeg, caption, width=300) for jpeg, caption in drawn]
    body.append(f"<h2>Command</h2><p><code>{escape(shlex.join(command))}</code></p>")
    page = pages.page("What joining the tasks costs", *body)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def results_table(groups: Mapping[str, list[Run]]) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and a note: every metric of every strategy."""
    best = {key: best_strategy(groups, key) for key in METRICS}
    header = ["strategy", "runs", *(m.heading for m in METRICS.values()), "Δm / %"]
    rows = []
    for name, runs in groups.items():
        cells = [spread_text(spread(runs, key), m.digits) for key, m in METRICS.items()]
        cells = [f"**{cell}**" if best[key] == name else cell for key, cell in zip(METRICS, cells, strict=True)]
        change = delta_m(groups, name)
        rows.append([name, str(len(runs)), *cells, "–" if change is None else f"{change:+.1f}"])
    note = (
        f"Δm: mean of the relative changes of mAP50-95 against {DETECTION_REFERENCE} and of accuracy against "
        f"{IMAGE_REFERENCE}. Losses are unweighted, from the last epoch."
    )
    return header, rows, note


def differences_table(groups: Mapping[str, list[Run]]) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and a note: differences to the single-task references over runs of one seed and fold."""
    keys = [key for key, metric in METRICS.items() if metric.task]
    header = ["strategy", "pairs", *(METRICS[k].heading for k in keys)]
    rows = []
    for name, runs in groups.items():
        cells, pairs = [], 0
        for key in keys:
            found = paired_difference(runs, _reference(groups, name, key), key)
            if found is None:
                cells.append("–")
                continue
            mean, half, n = found
            pairs = max(pairs, n)
            digits = METRICS[key].digits
            text = f"{mean:+.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")
            cells.append(f"**{text}**" if abs(mean) > half else text)
        if pairs:
            rows.append([name, str(pairs), *cells])
    note = (
        f"Boxes against {DETECTION_REFERENCE}, image classes against {IMAGE_REFERENCE}, each run with the reference of "
        "its own seed and fold. ±: half the 95 % interval, Student's t over the folds (with one, over the seeds: it "
        "then speaks of these validation pictures alone); none where there is one of each. **Bold**: the interval "
        "leaves out 0."
    )
    return header, rows, note


def groups_table(groups: Mapping[str, list[Run]]) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and a note: the intervals of the differences over draws of groups, where they were drawn."""
    keys = [key for key in METRICS if any(key in (run.draws or {}) for runs in groups.values() for run in runs)]
    rows = []
    for name, runs in groups.items():
        cells = []
        for key in keys:
            ends = difference_on_draws(runs, _reference(groups, name, key), key)
            digits = METRICS[key].digits
            text = "–" if ends is None else f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"
            cells.append(f"**{text}**" if ends is not None and ends[0] * ends[1] > 0 else text)
        if set(cells) - {"–"}:
            rows.append([name, *cells])
    note = (
        "95 % intervals of the differences above over draws of the groups that were validated on, each with all its "
        "pictures, the same for both networks; seeds and folds are averaged. They hold for these networks: what "
        "another training would change is not in them. Where the groups were trained on, too, they say nothing of new "
        "ones. A class in too few groups leaves a mean over it without one. **Bold**: the interval leaves out 0."
    )
    return ["strategy", *(METRICS[k].title for k in keys)], rows, note


def _reference(groups: Mapping[str, list[Run]], name: str, key: str) -> list[Run]:
    """The runs that this figure of a strategy is set against; none for those themselves."""
    reference = DETECTION_REFERENCE if METRICS[key].task == "det" else IMAGE_REFERENCE
    return [] if name == reference else groups.get(reference, [])


def _summary(runs: Sequence[Run], planned: int) -> str:
    seeds, folds = ({getattr(r.job, key) for r in runs} for key in ("seed", "fold"))
    epochs = epoch_count(runs)
    count = f"{len(runs)} of {planned}" if planned > len(runs) else len(runs)
    return f"{count} runs of {epochs} epochs; seeds {_list(seeds)}; data {_list(folds)}"


def _list(values) -> str:
    return ", ".join(map(str, sorted(values)))


def _first(runs: Sequence[Run]) -> str:
    return f"seed {runs[0].job.seed}, {runs[0].job.fold}"


def _data(run: Run, group: str | None = None) -> DataConfig:
    """The data that a run was validated on, with its classes as the run knew them."""
    data = load_data_config(run.job.options[run.job.options.index("--data") + 1])
    if run.job.trained_with.get("single_cls"):
        data = data.with_one_class()
    return replace(data, group=group or data.group)


def _scan(run: Run, data: DataConfig, split: str) -> DatasetIndex:
    single = bool(run.job.trained_with.get("single_cls"))
    return scan_dataset(
        getattr(data, split), data.nc, data.cls_nc, single_cls=single, root=data.path, prefix=split, verbose=False
    )


def _leak_lines(runs: Sequence[Run], group: str | None) -> list[str]:
    """How many groups are both trained on and validated on, where a pattern finds them: a line for every fold that has
    such, or one for all."""
    lines, count = [], 0
    for run in {r.job.fold: r for r in runs}.values():
        data = _data(run, group)
        if data.group:
            train, val = (_scan(run, data, split).im_files for split in ("train", "val"))
            count = len(set(find_groups([*train, *val], data.group)) - {""})
            if not count:
                return [f"{data.group!r} finds no group in the pictures' names"]
            if leaks := len(leaking_groups(train, val, data.group)):
                lines.append(
                    f"{run.job.fold}: {leaks} of {count} groups are both trained on and validated on, so these figures "
                    "are too good; --folds keeps groups apart"
                )
    return lines or ([f"None of {count} groups is both trained on and validated on"] if count else [])


def _draw_lines(runs: Sequence[Run]) -> list[str]:
    """Why there is less of the intervals over groups than the pattern promises."""
    if not runs[0].job.group:
        return []
    if missing := sum(run.draws is None for run in runs):
        return [
            f"{missing} of {len(runs)} runs were validated without drawing these groups, so they are in no interval "
            "over groups; those whose finished.json is deleted are validated anew by the same command"
        ]
    if not any(run.draws for run in runs):
        return [f"No interval over groups: a class stands in fewer than {FEW_GROUPS} of those that are validated on"]
    return []


def _disagreements(runs: Sequence[Run]) -> list[tuple[bytes, str]]:
    """Pictures of the first fold and seed on which the strategies disagree."""
    job = runs[0].job
    same = [r for r in runs if (r.job.fold, r.job.seed) == (job.fold, job.seed)]
    if len(same) < 2:
        return []
    data = _data(runs[0])
    return find_disagreements(same, _scan(runs[0], data, "val"), data, MOST_PICTURES)


def _html(text: str) -> str:
    """`**bold**` of text that is html else."""
    parts = text.split("**")
    return "".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts))


def _write_markdown(folder: Path, tables, pictures, failures, command, summary: Sequence[str]) -> None:
    lines = ["# What joining the tasks costs", "", EXPLANATION, ""]
    lines += [text for line in summary for text in (line, "")]
    lines += [f"* **Failed**: {text}" for text in failures] + [""] * bool(failures)
    for title, header, rows, note in tables:
        lines += [f"## {title}", "", note, "", _markdown_row(header), _markdown_row(["---"] * len(header))]
        lines += [*map(_markdown_row, rows), ""]
    for name, fig in pictures.items():
        save(fig, folder / f"{name}.png")
        lines += [f"![{name}]({name}.png)", ""]
    lines += ["## Command", "", f"    {shlex.join(command)}", ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
