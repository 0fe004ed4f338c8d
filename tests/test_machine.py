"""Cores and memory that containers leave: control groups of both versions, as files in a folder."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from coloured_pictures import scan, write_folder

from utils.dataloaders import create_dataloader
from utils.system import machine
from utils.system.devices import cpu_gains_from_bfloat16, use_machine
from utils.system.machine import available_memory, core_count, keep_freed_memory
from utils.system.paths import ROOT

GIB = 2**30
FREE = {"proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n"}
V2 = {"proc/self/cgroup": "0::/job/step\n"}
V1 = {"proc/self/cgroup": "9:memory:/job/step\n3:cpu,cpuacct:/job/step\n1:name=systemd:/\n0::/\n"}


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes files of a system with 16 cores and 32 GiB of free memory, and makes it this one."""
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def write(*parts: dict[str, str]) -> None:
        for name, text in {k: v for part in (FREE, *parts) for k, v in part.items()}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def cgroup(folder: str, **files: object) -> dict[str, str]:
    return {f"sys/fs/cgroup/{folder}/{name.replace('__', '.')}": f"{value}\n" for name, value in files.items()}


@pytest.mark.parametrize(
    ("parts", "cores"),
    [
        ([], 16),
        ([V2, cgroup("job/step", cpu__max="max 100000")], 16),
        ([V2, cgroup("job/step", cpu__max="max 100000"), cgroup("job", cpu__max="350000 100000")], 4),
        ([V2, cgroup("", cpu__max="200000 100000")], 2),  # a container that sees its own group at the top
        ([{"proc/self/cgroup": "0::/../../job\n"}, cgroup("", cpu__max="20000 100000")], 1),
        ([V1, cgroup("cpu,cpuacct/job/step", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)], 16),
        ([V1, cgroup("cpu,cpuacct/job", cpu__cfs_quota_us=300000, cpu__cfs_period_us=100000)], 3),
        ([V1, cgroup("cpu", cpu__cfs_quota_us=50000, cpu__cfs_period_us=25000)], 2),
        ([V2, cgroup("job/step", cpu__max="3200000 100000")], 16),
        ([V2, cgroup("job/step", cpu__max="nonsense")], 16),
        ([{"proc/self/cgroup": "nonsense\n"}], 16),
    ],
)
def test_cores(system, parts, cores):
    system(*parts)
    assert core_count() == cores


def test_cores_that_the_process_is_bound_to_count_too(system, monkeypatch):
    system(V2, cgroup("", cpu__max="400000 100000"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert core_count() == 2


@pytest.mark.parametrize(
    ("parts", "gib"),
    [
        ([], 32),
        ([V2, cgroup("job/step", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0")], 32),
        (
            [
                V2,
                cgroup("job/step", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0"),
                cgroup(
                    "job", memory__max=8 * GIB, memory__current=3 * GIB, memory__stat=f"anon 5\ninactive_file {GIB}"
                ),
            ],
            6,
        ),
        ([V2, cgroup("job", memory__max=GIB, memory__current=2 * GIB, memory__stat="inactive_file 0")], 0),
        (
            [
                V1,
                cgroup(
                    "memory/job/step",
                    memory__limit_in_bytes=4 * GIB,
                    memory__usage_in_bytes=3 * GIB,
                    memory__stat=f"inactive_file 7\ntotal_inactive_file {2 * GIB}",
                ),
                cgroup("memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GIB, memory__stat=""),
            ],
            3,
        ),
    ],
)
def test_memory(system, parts, gib):
    system(*parts)
    assert available_memory() == gib * GIB


def test_what_is_here_is_known():
    assert 1 <= core_count() <= os.cpu_count()
    free = available_memory()
    assert free is None or free > 2**20


def test_threads_workers_and_the_memory_cache_keep_to_the_limits(system, monkeypatch, capsys, tmp_path_factory):
    index = scan(write_folder(tmp_path_factory.mktemp("pictures")))
    limits = {
        "cpu__max": "200000 100000",
        "memory__max": GIB,
        "memory__current": GIB,
        "memory__stat": "inactive_file 9",
    }
    system(V2, cgroup("job", **limits))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        assert use_machine() == 2 == torch.get_num_threads()
        assert use_machine(world_size=2) == 1
    finally:
        torch.set_num_threads(before)
    loader, dataset = create_dataloader(index, 64, 2, workers=8, cache="ram", prefix="val")
    assert loader.num_workers == 2 and dataset.store.block is None
    assert "val: not cached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "limit", "gains"),
    [
        ("avx2 avx512_bf16", None, True),
        ("avx2 amx_bf16", "ALL", True),
        ("avx2 avx512f", None, False),
        ("avx2 avx512_bf16", "AVX512_CORE_BF16", True),
        ("avx2 avx512_bf16", "AVX2", False),
        ("avx2 avx512_bf16", "avx512_core_vnni", False),
    ],
)
def test_bfloat16_is_taken_where_the_processor_has_it_and_onednn_may_use_it(system, monkeypatch, flags, limit, gains):
    system({"proc/cpuinfo": f"flags : {flags}\n"})
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    try:
        cpu_gains_from_bfloat16.cache_clear()
        assert cpu_gains_from_bfloat16() is gains
    finally:
        cpu_gains_from_bfloat16.cache_clear()


REUSE = """
import ctypes, resource, sys, torch
from utils.system.machine import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: all pages are of one size
assert sys.argv[1] == "False" or keep_freed_memory()
def pages(mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(mib << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages(30), pages(25))  # less, since a small thing may have taken a piece
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's malloc")
def test_what_was_freed_is_there_for_what_comes_next():
    found, own = {}, ("MALLOC_", "GLIBC_TUNABLES", "THP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    for kept in (False, True):
        command = [sys.executable, "-c", REUSE, str(kept)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found[kept] = [int(pages) for pages in done.stdout.split()]
    whole = found[False][0]
    assert found[False][1] > 0.8 * whole and found[True][0] > 0.9 * whole and found[True][1] < 0.1 * whole


@pytest.mark.parametrize(("name", "value"), [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")])
def test_an_allocator_that_the_environment_sets_up_is_left_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("ctypes.CDLL", lambda *_: pytest.fail("asked the C library"))
    assert not keep_freed_memory()
