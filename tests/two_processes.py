"""Two processes that work as one: a second is started, this one is the first, which has imported everything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch.distributed as dist

Result = TypeVar("Result")


def run_as_two(script: str, args: list[str], run: Callable[[], Result]) -> tuple[Result, str]:
    """`run()` here as rank 0 beside `python script args` as rank 1, as torchrun would start them; what it said, too."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    second = subprocess.Popen(
        [sys.executable, script, *args],
        env=os.environ | shared | {"RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                patch.setenv(name, value)
            result = run()
        said, errors = second.communicate(timeout=60)
    finally:
        second.kill()
        if dist.is_initialized():  # after an error: the tests that follow are one process
            dist.destroy_process_group()
    assert second.returncode == 0, errors[-3000:]
    return result, said
