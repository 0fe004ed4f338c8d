"""What this process may use of the machine: cores and memory, less where a container or a scheduler limits them.

Linux keeps such limits in control groups (cgroups), of which a process may be in one inside another: each group on the
way up counts. Version 2 has all limits of a group in one folder, version 1 a folder for each kind.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")  # where `proc` and `sys` are


def core_count() -> int:
    """Cores that this process may use: those it may run on, or the quota of its time that a container has (rounded
    up), whichever is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (group / "cpu.max").is_file():
                quota, period = map(int, (group / "cpu.max").read_text().split())  # ValueError where it says "max"
            else:
                quota, period = (int((group / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
            if quota > 0:  # -1: no limit
                cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def available_memory() -> int | None:
    """Bytes of memory that can be taken without swapping, the limits of containers included; None where unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(_table(SYSTEM / "proc/meminfo")["MemAvailable:"] * 1024)
    for group in _groups("memory"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if (group / "memory.max").is_file():
                names = "memory.max", "memory.current", "inactive_file"
            else:
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            limit, used = (int((group / name).read_text()) for name in names[:2])  # ValueError where it says "max"
            # pages of files that were read count as used, and are given up when memory is needed
            found.append(max(0, limit - used + _table(group / "memory.stat")[names[2]]))
    if not found:
        with contextlib.suppress(ImportError):
            import psutil  # not required; where it is there it knows macOS and Windows

            found.append(psutil.virtual_memory().available)
    return min(found) if found else None


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is allocated next, for the life of the process; returns whether it
    was told so (glibc alone, and not where the environment sets its allocator up).

    A training step allocates and frees hundreds of megabytes of activations. By itself glibc gives the end of its heap
    back to the system whenever much of it is free, and the next step takes it again, page by page, each of which the
    system has to find and to clear.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):  # a C library without mallopt
        mallopt = ctypes.CDLL(None).mallopt
        # 32 MiB is the largest that glibc takes; what is larger still comes from the system and goes back to it
        return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, 2**31 - 1))
    return False


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that limit this process in "cpu" or "memory", from its own up."""
    with contextlib.suppress(OSError, ValueError):
        for line in (SYSTEM / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # a container may see its own group at the top, under the path that the machine has for it, or with ".."
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for name in (controller, controllers) if controllers else ("", "unified"):
                for depth in range(len(parts), -1, -1):
                    yield Path(SYSTEM, "sys/fs/cgroup", name, *parts[:depth])


def _table(file: Path) -> dict[str, int]:
    """First numbers of the lines of a file, by the words before them."""
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
