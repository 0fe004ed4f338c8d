"""Checks of pictures with their labels, here or in processes that do nothing else.

Threads share one interpreter lock, and with small pictures they wait for it longer than they work. The processes are
started as plain programs, not by `multiprocessing`: they import no PyTorch, inherit no thread and no lock, and never
run the caller's script again, so it needs no `if __name__ == "__main__"`, may be a notebook, or a process that may have
no children by `multiprocessing`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from utils.dataset import pictures
from utils.dataset.index import NO_ACCESS, DatasetIndex, offsets_of
from utils.dataset.labels import ParsedLabel, Problem, read_label
from utils.dataset.pictures import check_picture, one_line, tell_once
from utils.system.paths import ROOT

Check = Callable[[Sequence[str], Sequence[str], int | None, int], DatasetIndex]

PROGRAM = "import sys; sys.path[:] = {path!r}; from utils.dataset.pairs import serve; serve()"
MAY_PASS = {
    errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
MARK = b"\0answers\n"  # ends what else was written to a process's output, such as by an interpreter's start


def check_pairs(files: Sequence[str], label_files: Sequence[str], nc: int | None, cls_nc: int) -> DatasetIndex:
    """The index of these pictures, without those that cannot be used.

    Args:
        nc: number of object classes; None accepts any class number.
        cls_nc: number of image classes.
    """
    results = [_check_pair(*pair, nc, cls_nc) for pair in zip(files, label_files, strict=True)]
    kept = [i for i, (shape, _) in enumerate(results) if shape is not None]
    labels = [results[i][1] for i in kept]
    segments = [s for label in labels for s in label.segments]
    return DatasetIndex(
        np.array([files[i] for i in kept], dtype=np.str_),
        np.array([label_files[i] for i in kept], dtype=np.str_),
        np.array([results[i][0] for i in kept], dtype=np.int32).reshape(-1, 2),
        np.concatenate([np.zeros((0, 5), np.float32), *(label.objects for label in labels)]),
        offsets_of([len(label.objects) for label in labels]),
        np.concatenate([np.zeros((0, 2), np.float32), *segments]),
        offsets_of([len(s) for s in segments]),
        np.array([label.image_class for label in labels], dtype=np.int64),
        [problem for _, label in results for problem in label.problems],
        cls_nc,
    )


def _check_pair(file: str, label_file: str, nc: int | None, cls_nc: int) -> tuple[tuple[int, int] | None, ParsedLabel]:
    """Picture size (None: left out) and label of one picture."""

    def left_out(reason: str, kind: str) -> tuple[None, ParsedLabel]:
        return None, ParsedLabel(problems=[Problem(file, None, reason, kind)])

    try:
        shape = check_picture(file)
    except (ValueError, OSError) as error:
        if not os.path.exists(file):
            return left_out("the picture does not exist", "missing image")
        return left_out(one_line(error), NO_ACCESS if _may_pass(error) else "corrupt image")
    try:
        label = read_label(label_file, nc, cls_nc)
        if label.unread and not len(label.objects):
            # To train it as a background would teach the network that its objects are none.
            reason = f"none of its {label.unread} object rows can be read"
            label.problems.append(Problem(label_file, None, f"{reason}: the picture is left out", "unreadable label"))
            return None, ParsedLabel(problems=label.problems)
        return shape, label
    except FileNotFoundError:
        reason = "no label file: a background, image class unknown"
        return shape, ParsedLabel(problems=[Problem(label_file, None, reason, "missing label")] if cls_nc else [])
    except OSError as error:
        return left_out(
            f"its label cannot be read ({one_line(error)})", NO_ACCESS if _may_pass(error) else "unreadable label"
        )


def _may_pass(error: Exception) -> bool:
    """Whether an error says nothing of the file itself: another user, or the same one later, may read it."""
    return getattr(error, "errno", None) in MAY_PASS


@contextlib.contextmanager
def checkers(processes: int) -> Iterator[Check]:
    """`check_pairs` for threads to call, by so many processes. What none of them can do the calling thread does."""
    started: list[subprocess.Popen] = []
    answering: set[subprocess.Popen] = set()
    idle: SimpleQueue[subprocess.Popen | None] = SimpleQueue()

    def check(*chunk: Any) -> DatasetIndex:
        process = idle.get()
        try:
            if process is not None:
                pickle.dump(chunk, process.stdin)
                process.stdin.flush()
                if process not in answering:
                    if not any(line.endswith(MARK) for line in process.stdout):
                        raise EOFError
                    answering.add(process)
                index, notes = pickle.load(process.stdout)
                for note in notes:
                    tell_once(*note)
                return index
        except Exception:  # it ended
            process = None
        finally:
            idle.put(process)
        return check_pairs(*chunk)

    try:
        with contextlib.suppress(OSError):
            for _ in range(processes):
                started.append(_start())
                idle.put(started[-1])
        yield check if started else check_pairs
    finally:
        for process in started:
            process.kill()  # it holds nothing; an end of its input may not reach it while others hold that open
            with contextlib.suppress(OSError), process:
                pass


def _start() -> subprocess.Popen:
    """A process that serves until its input ends. Ctrl-C does not reach it."""
    if "python" not in Path(sys.executable or "").name.lower():
        raise OSError("a program that Python is built into")
    path = [str(ROOT), *sys.path]
    command = [sys.executable, "-X", f"utf8={sys.flags.utf8_mode}", "-c", PROGRAM.format(path=path)]
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # of Windows
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True, creationflags=flags)


def serve() -> None:
    """Check what comes by the standard input until it ends; what there is to tell goes along with each answer."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else writes shall not be taken for an answer
    answers.write(MARK)
    notes: dict[str, str] = {}
    pictures.tell_once = notes.setdefault
    warnings.simplefilter("ignore")
    with contextlib.suppress(Exception):  # an error shows itself again where the chunk is checked then
        while True:
            index = check_pairs(*pickle.load(requests))
            pickle.dump((index, list(notes.items())), answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    os._exit(0)  # nothing is to be flushed: there may be no reader left
