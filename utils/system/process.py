"""The process itself: signals, and one process per GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from utils.system.voice import say, warn


class SafeStop:
    """Ctrl-C or a polite kill (a cluster's time limit) ends the work at its next safe point.

    An exception raised wherever the signal happens to arrive can be lost (in a destructor, say) or leave something half
    done. So in this context the first signal is only noted, `check` raises it between two batches, and a second one
    raises at once. Outside the main thread, which alone may handle signals, everything stays as it is.

        with SafeStop() as stop:
            for batch in loader:
                train(batch)
                stop.check()

    Raises:
        KeyboardInterrupt: By `check` after a signal, by a second signal, or in place of the error of a data worker
            that the same signal ended.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> SafeStop:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self.asked and isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise KeyboardInterrupt from error

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGTERM and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the data workers were told to end too: no error now
        # not print(): the signal may have come in the middle of one
        os.write(2, b"\nStopping after this batch or validation; once more stops at once\n")

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal asked to stop."""
        if self.asked:
            raise KeyboardInterrupt


def launch_per_gpu(count: int) -> None:
    """Several devices named without `torchrun`: become torchrun, with one process a GPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *sys.argv]
    say(f"Starting one process per GPU: {' '.join(command)}")
    if os.name == "posix":
        os.execv(sys.executable, command)  # in this process, so that signals reach it
    sys.exit(subprocess.call(command))


def shared_memory() -> int | None:
    """Bytes free in /dev/shm, through which processes hand tensors on; 0 where it is missing, None elsewhere."""
    if sys.platform != "linux":
        return None
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def processes_here(otherwise: int = 1) -> int:
    """Processes of this training on this machine, as torchrun says; `otherwise` where it did not start it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", max(otherwise, 1)))


def fitting_workers(workers: int, batch_bytes: int, sharing: int = 1, prefix: str = "", ready: int = 2) -> int:
    """As many of the workers as shared memory holds the batches of; in a container it is often missing, or 64 MB.

    Args:
        batch_bytes: size of a batch; two are on their way beside those that the workers hold.
        sharing: processes that share the memory.
        ready: batches that each worker holds ready.
    """
    free = shared_memory()
    if free is None or not workers:
        return workers
    fitting = max(0, min(workers, (free // sharing // batch_bytes - 2) // ready))
    if fitting < workers:
        warn(
            f"{prefix}: {fitting} data workers instead of {workers}: /dev/shm has {free / 1e6:.0f} MB free, too little "
            "for the batches of more (docker: --shm-size=8g, or --ipc=host)"
        )
    return fitting
