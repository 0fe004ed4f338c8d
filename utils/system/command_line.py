"""What every command line has in common: it prints any text, and ends in one sentence instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def speak_any_text() -> None:
    """Let the console take every text: what its encoding lacks (Chinese in cp1252, undecodable names) is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def one_sentence(script: str, *own: type[Exception], code: int = 1) -> Iterator[None]:
    """The run of a command line: a problem that the user can solve ends in one sentence, with the path it is about.

        with one_sentence("detect.py"):
            run(**vars(opt))

    Args:
        script: Begins the sentence.
        own: Kinds of error of this script that are the user's to solve, besides OSError, ValueError and
            ModuleNotFoundError.
        code: What the program then ends with; after Ctrl-C it is 130.

    Raises:
        SystemExit: In place of these.
    """
    speak_any_text()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (OSError, ValueError, ModuleNotFoundError, *own) as error:
        if code == 1:
            raise SystemExit(f"{script}: {told(error)}") from None
        print(f"{script}: {told(error)}", file=sys.stderr)
        raise SystemExit(code) from None


def told(error: BaseException) -> str:
    """The text of an error; that of the system with its path first and without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        names = [str(n) for n in (error.filename, error.filename2) if n is not None]
        return f"{' and '.join(names)}: {error.strerror}"
    return str(error) or type(error).__name__
