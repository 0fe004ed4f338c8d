"""Names that the usual font cannot write: another font, or the number of the class and one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from utils.results import fonts
from utils.results.curves import plot_confusion_matrix
from utils.results.detections import draw
from utils.results.fonts import FONT, class_name, font_for, writable_text

STIX = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf"
NAMES = {0: "cat", 1: "猫"}


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_system_fonts", lambda: [])
    monkeypatch.setattr(fonts, "_told", set())
    monkeypatch.delenv(fonts.VARIABLE, raising=False)
    fonts._find.cache_clear()
    yield
    fonts._find.cache_clear()


@pytest.fixture
def special() -> str:
    """A character that STIX has and DejaVu Sans lacks."""
    own, usual = (set(FT2Font(str(f)).get_charmap()) for f in (STIX, FONT))
    return next(chr(c) for c in sorted(own - usual) if c > 0x2000 and chr(c).isprintable() and not 0xE000 <= c < 0xF900)


def test_the_usual_font_writes_what_it_can():
    assert font_for("PLAX 0.98 é Ω Ж") == FONT and class_name(["a", "b"], 1) == "b" and class_name({0: "a"}, 7) == "7"


def test_the_usual_font_has_the_letters_that_it_is_trusted_with():
    assert {c for c in fonts.PLAIN if c.isprintable() and not c.isspace()} <= fonts._glyphs(str(FONT))


def test_a_class_that_no_font_can_write_is_its_number_and_said_once(capsys):
    for _ in range(2):
        assert class_name(NAMES, 1) == "class 1" and class_name(NAMES, 0) == "cat"
    assert capsys.readouterr().out.count("WARNING: no font here can write") == 1
    assert writable_text("a 猫.png") == "a ?.png"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["system", "named"])
def test_another_font_that_has_the_characters_is_used(where, special, monkeypatch, tmp_path):
    assert font_for(special) is None
    fonts._find.cache_clear()
    if where == "named":
        monkeypatch.setenv(fonts.VARIABLE, str(STIX))
    else:
        (tmp_path / "no.ttf").write_text("no font")
        monkeypatch.setattr(fonts, "_system_fonts", lambda: [str(tmp_path / "no.ttf"), str(STIX)])
    assert font_for(f"a {special}") == STIX and class_name([special], 0) == special
    picture, box = np.zeros((80, 160, 3), np.uint8), np.array([[10, 40, 90, 70, 0.9, 0]], np.float32)
    drawn = [draw(picture, box, None, {0: name}, {}) for name in (special, "class 0")]
    assert not np.array_equal(*drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of glyphs that a font lacks
        plot_confusion_matrix(np.eye(2), {0: special}, "title", tmp_path / "a.png")


def test_diagrams_of_names_that_cannot_be_written(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion_matrix(np.eye(3), NAMES, "title", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
