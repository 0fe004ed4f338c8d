"""Self-contained web pages: one file that opens without a network, with its pictures inside, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; --good: #1a7f37; --bad: #c0392b; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; margin-bottom: 1.2rem; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { position: sticky; top: 0; background: Canvas; }
img { max-width: 100%; height: auto; vertical-align: top; }
figure { display: inline-block; margin: 0 .6rem .6rem 0; max-width: 100%; }
figcaption { font-size: .75rem; color: var(--dim); overflow-wrap: anywhere; }
.card { margin: 1rem 0; overflow-wrap: anywhere; }
"""


def page(title: str, *parts: str) -> str:
    """A whole page; `parts` are html, the title is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table that scrolls sideways where the screen is narrow; cells are text, escaped here."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def figure(picture: bytes, caption: str, kind: str = "jpeg", width: int | None = None) -> str:
    """A picture (the bytes of its file) inside the page, with its caption, which is text."""
    data = base64.b64encode(picture).decode()
    size = f' width="{width}"' if width else ""
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{escape(caption)}"{size}>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
