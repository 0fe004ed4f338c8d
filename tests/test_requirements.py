"""The locks hold what the requirements files ask for, every file of it by its hash."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from utils.system.paths import ROOT


def wanted(name: str) -> list[Requirement]:
    """Lines of a requirements file and of those that it names."""
    out = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        out += wanted(line[3:]) if line.startswith("-r ") else [Requirement(line)] if line else []
    return out


def locked(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Per package its pins, one for each range of Python or system, and how many files of each are known."""
    out: dict[str, list[tuple[Requirement, int]]] = {}
    for block in re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8")):
        pin, *hashes = block.strip().split(" \\\n    ")
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), block[:200]
        requirement = Requirement(pin)
        out.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return out


@pytest.mark.parametrize(
    ("asked", "lock"), [("requirements.txt", "requirements.lock"), ("requirements-dev.txt", "requirements-dev.lock")]
)
def test_a_lock_holds_what_is_asked_for(asked, lock):
    pins = locked(lock)
    assert len(wanted(asked)) > 10
    for requirement in wanted(asked):
        versions = [
            Version(str(pin.specifier).removeprefix("==")) for pin, _ in pins[canonicalize_name(requirement.name)]
        ]
        assert all(v in requirement.specifier for v in versions), (
            f"{lock} has {versions} for {requirement}: make it anew"
        )
    assert all(n > 0 for known in pins.values() for _, n in known), "a package without hashes"


def test_both_locks_name_the_same_versions():
    run, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    for name, pins in run.items():
        assert {str(p.specifier) for p, _ in pins} <= {str(p.specifier) for p, _ in dev[name]}, name


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_names_no_place_to_fetch_from(lock):
    """Where packages come from is the user's own setting; the hashes hold whatever it is."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text and "index-url" not in text and "find-links" not in text
