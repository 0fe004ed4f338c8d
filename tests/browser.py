"""A page as headless Chromium shows it on a phone, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROBE = """<script>const root = document.documentElement; onload = () => parent.postMessage([document.images.length,
[...document.images].filter(i => !i.naturalWidth).length, root.scrollWidth - root.clientWidth], "*")
</script></body>"""
# The window itself cannot be narrower than 500 pixels.
PHONE = """<body><script>onmessage = e => document.title = "seen " + e.data</script>
<iframe src="page.html" style="width: 360px; height: 700px"></iframe></body>"""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
)


def seen_on_a_phone(page: Path, folder: Path) -> tuple[int, int, int]:
    """Pictures of a page, those of them that are not shown, and by how many pixels it is wider than the screen.

    A line on the console fails the test; without Chromium it is skipped.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    folder.mkdir()
    (folder / "page.html").write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    (folder / "phone.html").write_text(PHONE, encoding="utf-8")
    command = [browser, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", (folder / "phone.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in seen.stderr, seen.stderr
    found = re.search(r"<title>seen (\d+),(\d+),(-?\d+)</title>", seen.stdout)
    assert found, seen.stdout[-500:] + seen.stderr[-500:]
    pictures, missing, wider = map(int, found.groups())
    return pictures, missing, wider
