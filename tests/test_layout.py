"""Imports go down only: scripts → compare, tad, models → upper utils → lower utils → utils.weights → utils.system."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A module belongs to the longest name here that it begins with; a higher number may import a lower one, and its own.
LAYERS = {
    "utils.system": 0,
    "data": 1,
    "utils.weights": 1,
    "utils.boxes": 2,
    "utils.polygons": 2,
    "utils.augmentations": 3,
    "utils.loss": 3,
    "utils.metrics": 3,
    "utils.balancing": 4,
    "utils.dataset": 4,
    "utils.training": 4,
    "utils.results": 5,
    "utils": 6,  # dataloaders, autoanchor … and the aliases of YOLOv5's names
    "models": 7,
    "compare": 8,
    "tad": 8,
    "": 9,  # the scripts
}
# What makes these two shareable: they know no boxes, no pictures and not each other.
ALONE = {
    "utils.balancing": ("utils.balancing", "utils.system"),
    "utils.training": ("utils.training", "utils.system"),
}
FILES = sorted(
    f for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0] in ("compare", "models", "tad", "utils", "data")
)
SCRIPTS = sorted(ROOT.glob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OURS = {module_of(f) for f in FILES + SCRIPTS}


def room(module: str) -> str:
    names = [name for name in LAYERS if name and (module == name or module.startswith(name + "."))]
    return max(names, key=len, default="")


def imports(source: str) -> list[tuple[int, str]]:
    """Lines and modules of this project that a source imports, by name or by a string given to import_module."""
    found: list[tuple[int, str]] = []
    tree = ast.parse(source)
    by_string = "import_module" in source or "__import__" in source
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in OURS else node.module) for name in inner]
        elif by_string and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [(node.lineno, name) for name in re.findall(r"^\w+(?:[._]\w+)+$", node.value) if name in OURS]
    return [(line, name) for line, name in found if name in OURS]


def breaches(module: str, source: str) -> list[str]:
    own = room(module)
    out = []
    for line, name in imports(source):
        other = room(name)
        alone = own in ALONE and other not in ALONE[own]
        if alone or (other != own and LAYERS[other] >= LAYERS[own]):
            out.append(f"line {line}: {module} may not import {name}")
    return out


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file):
    assert not breaches(module_of(file), file.read_text(encoding="utf-8"))


def test_only_scripts_import_scripts():
    scripts = {f.stem for f in SCRIPTS}
    known = {"train": "train_joint", "val": "val_joint", "train_joint": "val_joint"}  # YOLOv5's names; the last epoch
    for file in SCRIPTS:
        others = {name for _, name in imports(file.read_text(encoding="utf-8")) if name in scripts}
        assert others <= {known.get(file.stem)}, file.name


@pytest.mark.parametrize(
    ("module", "source", "line"),
    [
        ("utils.boxes", "import numpy\nfrom models.yolo import Model", 2),
        ("utils.system.paths", "def f():\n    from utils import boxes", 2),
        ("models.yolo", "import importlib\nimportlib.import_module('train_joint')", 2),
        ("utils.training.fit", "from utils.balancing.base import Balancer", 1),
        ("models.yolo", "from tad.backbone import ViT" if "tad.backbone" in OURS else "import detect", 1),
    ],
)
def test_a_breach_is_named_with_its_line(module, source, line):
    (message,) = breaches(module, source)
    assert message.startswith(f"line {line}: {module}")
