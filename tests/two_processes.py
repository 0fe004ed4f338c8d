"""Two processes that work as one, as torchrun starts them: the test's own is the first."""

from __future__ import annotations

import contextlib
import importlib
import io
import socket
from collections.abc import Callable
from multiprocessing.pool import Pool
from typing import Any, TypeVar

import pytest
import torch.distributed as dist

Result = TypeVar("Result")


def run_as_two(second: Pool, work: Callable[..., Result], *args: Any) -> tuple[Result, str]:
    """`work(*args)` as rank 0 here and as rank 1 in the fixture `second`: what it returned here, and said there."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1]), "WORLD_SIZE": "2"}
    other = second.apply_async(as_rank, (1, meeting, work, args))
    return as_rank(0, meeting, work, args), other.get(timeout=120)


def as_rank(rank: int, meeting: dict[str, str], work: Callable, args: tuple) -> Any:
    """What `work` returns as rank 0; as rank 1, in a process of its own, what it says."""
    said = io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
            for name, value in (meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}).items():
                patch.setenv(name, value)
            if rank:
                stack.enter_context(contextlib.redirect_stdout(said))
            result = work(*args)
    except SystemExit as error:
        raise RuntimeError(f"rank {rank}: {error}") from error
    finally:
        if dist.is_initialized():  # after an error: the tests that follow are one process
            dist.destroy_process_group()
    return said.getvalue() if rank else result


def command(script: str, args: list[str]) -> Any:
    """A command line in this process."""
    module = importlib.import_module(script)
    return module.main(module.parse_opt(args))
