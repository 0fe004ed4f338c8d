"""The process itself: signals, and one process per GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


@contextlib.contextmanager
def sigterm_as_interrupt():
    """A polite kill (a cluster's time limit) leaves the same usable checkpoint as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def interrupt(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):  # the data workers were told to end too; that is no error now
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def launch_per_gpu(count: int) -> None:
    """Several devices named without `torchrun`: become torchrun, with one process a GPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *sys.argv]
    print("Starting one process per GPU:", " ".join(command), flush=True)
    if os.name == "posix":
        os.execv(sys.executable, command)  # in this process, so that signals reach it
    sys.exit(subprocess.call(command))
