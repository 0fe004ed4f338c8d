"""The report of a data check as one web page, with the pictures."""

from __future__ import annotations

import contextlib
from html import escape

import cv2
import numpy as np

from utils.dataset.checks import KINDS, Finding, Report
from utils.dataset.files import is_picture_name
from utils.dataset.pictures import read_picture
from utils.system.pages import figure, page, table

MOST_GROUPS = 200
MOST_FINDINGS, MOST_PICTURES = 20, 4  # shown of a kind, and of a finding; findings.csv has all
THUMBNAIL = 160  # pixels


def report_page(report: Report, title: str, boxes: dict[str, np.ndarray]) -> str:
    """One self-contained page. `boxes`: object rows [k, 5] of a picture, by its file, drawn on the small pictures."""
    verdict = "fails the check" if report.serious else "passes the check"
    parts = [
        f'<p class="{"bad" if report.serious else "good"}">This data set {verdict}.</p>',
        table(("", "count"), [(n, c) for n, c in report.counts.items() if n not in KINDS]),
        table(
            ("finding", "count", "fails the check if found"),
            [(k.title, report.counts[name], "yes" if k.serious else "no") for name, k in KINDS.items()],
        ),
    ]
    for split, rows in report.classes.items():
        views = list(next(iter(rows.values())))
        parts.append(f"<h2>{escape(split)}: pictures by object and image class</h2>")
        parts.append(table(("", *views), [(name, *cells.values()) for name, cells in rows.items()]))
    if report.groups:
        splits = list(next(iter(report.groups.values())))
        rows = [(name, *(count or "" for count in counts.values())) for name, counts in report.groups.items()]
        parts += ["<h2>Groups: pictures by split</h2>", table(("", *splits), rows[:MOST_GROUPS])]
        if len(rows) > MOST_GROUPS:
            parts.append(f'<p class="dim">… and {len(rows) - MOST_GROUPS} more in report.json</p>')
    for kind, about in KINDS.items():
        found = report.of(kind)
        if found:
            parts.append(f"<h2>{escape(about.title)} ({len(found)})</h2>")
            parts += [_card(f, boxes) for f in found[:MOST_FINDINGS]]
        if len(found) > MOST_FINDINGS:
            parts.append(f'<p class="dim">… and {len(found) - MOST_FINDINGS} more in findings.csv</p>')
    return page(title, *parts)


def _card(finding: Finding, boxes: dict[str, np.ndarray]) -> str:
    where = f" ({', '.join(finding.splits)})"
    text = f"<b>{escape(finding.name)}</b>{escape(where)}: {escape(finding.note)}"
    shown = _spread([f for f in finding.files if is_picture_name(f)])
    pictures = [figure(small, file, width=THUMBNAIL) for file in shown if (small := _thumbnail(file, boxes.get(file)))]
    more = len(finding.files) - len(pictures)
    rest = f' <span class="dim">+ {more} more</span>' if pictures and more else ""
    return f'<div class="card">{text}<br>{"".join(pictures)}{rest}</div>'


def _spread(files: list[str]) -> list[str]:
    """A few of the files, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_PICTURES)).round().astype(int))
    return [files[i] for i in chosen]


def _thumbnail(file: str, rows: np.ndarray | None) -> bytes | None:
    """Small JPEG of a picture with its boxes; None where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        im = read_picture(file)
        gain = THUMBNAIL * 1.5 / max(im.shape[:2])  # for sharp screens
        im = cv2.resize(im, None, fx=gain, fy=gain, interpolation=cv2.INTER_AREA if gain < 1 else cv2.INTER_LINEAR)
        height, width = im.shape[:2]
        for _, x, y, w, h in [] if rows is None else rows:
            low, high = (x - w / 2, y - h / 2), (x + w / 2, y + h / 2)
            corners = [(int(a * width), int(b * height)) for a, b in (low, high)]
            cv2.rectangle(im, *corners, (80, 220, 80), 2)
        return cv2.imencode(".jpg", im, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()
    return None
