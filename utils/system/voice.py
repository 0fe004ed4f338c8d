"""One voice: what the program says to its user, from the first process of a run alone.

    from utils.system.voice import say, warn

Everything goes through the logger `yolov5` to the standard output, so a caller can turn it down, or hand it elsewhere,
with Python's `logging`. The last error of a command line goes to the standard error instead (`sys.exit`).
"""

from __future__ import annotations

import logging
import os
import sys


class Console(logging.StreamHandler):
    """Prints to what `sys.stdout` is at that moment: notebooks and tests exchange it."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # a console in cp1252, a name that is no text
            encoding = getattr(sys.stdout, "encoding", None) or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def first_process(record: logging.LogRecord) -> bool:
    """Whether this process speaks: the only one, or the one that torchrun numbers 0."""
    return os.environ.get("RANK", "0") in ("", "-1", "0")


LOGGER = logging.getLogger("yolov5")
if not LOGGER.handlers:
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # a program that sets up the root logger would print everything twice
    LOGGER.addHandler(Console())
    LOGGER.addFilter(first_process)


def say(*lines: object) -> None:
    """Tell the user something, a line each."""
    LOGGER.info("%s", "\n".join(map(str, lines)))


def warn(text: object) -> None:
    """Tell the user of something that may be wrong; the work goes on."""
    LOGGER.warning("WARNING: %s", text)
