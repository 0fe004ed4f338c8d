"""Text files as people save them, and files and folders that appear under their name only when they are whole."""

from __future__ import annotations

import codecs
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | Path, errors: str = "strict") -> str:
    """Content of a text file: UTF-8 with or without its mark, or UTF-16 or UTF-32 with theirs.

    Args:
        errors: What becomes of bytes that are no text, as in `bytes.decode`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is in another encoding; the message names the file and what to do.
    """
    with open(path, "rb", buffering=0) as stream:
        data = stream.read()
    if data.isascii():  # and so without a mark
        return data.decode("ascii")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding, errors=errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not a UTF-8 text file ({error.reason}): save it as UTF-8") from None


def writable(folder: str | Path) -> bool:
    """Whether a folder is there and may be written to."""
    try:
        # The mode bits too: root may write anywhere, but a folder marked read-only is meant to stay as it is.
        return bool(os.stat(folder).st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


def user_cache() -> Path | None:
    """This project's folder among the user's caches; None for a user without a home folder (`docker --user`)."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "yolov5-joint"
    except RuntimeError:
        return None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` at the end, removed where the block fails.

    Others may write the same file meanwhile, in another container under the same process number too.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what `whole_file` left in a folder when its process was killed. The folder must be this process's own."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. What else lies in a folder of that name, and is not written anew, moves over."""
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.is_dir():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.is_dir():
                os.replace(old, path)
            raise
        if old.is_dir():
            written = {f.name for f in path.iterdir()}
            for file in old.iterdir():
                if file.name not in written:
                    shutil.move(file, path / file.name)
    finally:
        for folder in (temporary, old):
            if folder.is_dir():
                shutil.rmtree(folder)
