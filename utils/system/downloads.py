"""Files fetched by http: YOLOv5's official weights, asked for by name, and what a user gives the address of."""

from __future__ import annotations

import http.client
import re
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from utils.system.files import whole_file
from utils.system.voice import say

RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
DETECTION = re.compile(r"yolov5[nsmlx]6?\.pt")  # what the release has for this project
OTHER_TASKS = re.compile(r"yolov5[nsmlx]6?-(cls|seg)\.pt")
ADDRESS = re.compile(r"(https?):/{1,2}([^/].*)", re.IGNORECASE)  # a path object swallows one of the slashes
USER_AGENT = "Mozilla/5.0 (compatible; YOLOv5-Joint)"  # some servers refuse the one that Python gives by itself
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 18  # bytes

_told: set[str] = set()  # addresses that the user has had a line about


def is_official(name: str) -> bool:
    """Whether a file name is that of official weights which can be fetched.

    Raises:
        ValueError: It is that of an official model for another task.
    """
    if other := OTHER_TASKS.fullmatch(name):
        task = {"cls": "classification", "seg": "segmentation"}[other[1]]
        raise ValueError(
            f"weights {name}: this is YOLOv5's {task} model, and only its detection models are used here, such as "
            f"{name.replace(f'-{other[1]}', '')}"
        )
    return DETECTION.fullmatch(name) is not None


def fetch_official(target: str | Path) -> Path:
    """Fetches the official weights called as the last part of `target` to that place, with a progress bar.

    The file has a temporary name until it is whole.

    Raises:
        FileNotFoundError: It could not be fetched; one sentence says why and where to put it by hand.
    """
    target = Path(target)
    url = f"{RELEASE}/{target.name}"
    if not target.parent.is_dir():
        raise FileNotFoundError(f"weights {target} are not here, and neither is the folder {target.parent.absolute()}")
    say(f"{target} is not here: fetching {url} to {target.absolute()}")
    _fetch(url, target, f"weights {target} are not here, and ", _refuse_no_zip)
    return target


def address_of(name: str | Path) -> str | None:
    """The http(s) address that a name is, None for any other name."""
    found = ADDRESS.fullmatch(name.as_posix() if isinstance(name, PurePath) else str(name))
    return f"{found[1].lower()}://{found[2]}" if found else None


def fetch_address(address: str, suffixes: Collection[str]) -> Path:
    """Fetches a file to the working folder, under the name that it has in its address, unless it is there already.

    A line says what comes from where, or that the file which is there is used; a bar shows the progress. The file has
    a temporary name until it is whole.

    Args:
        address: From `address_of`.
        suffixes: What its name may end in.

    Raises:
        FileNotFoundError: It could not be fetched; one sentence says why and where to put it by hand.
        ValueError: The address names no file of a kind that is wanted here.
    """
    shown = _public(address)
    target = Path(Path(unquote(urlsplit(address).path)).name)
    if target.suffix.lower() not in suffixes:
        raise ValueError(f"{shown}: its last part is no file that can be used here, only {', '.join(suffixes)} can")
    if target.exists():
        if address not in _told:
            say(f"{target} is in this folder already: used instead of fetching {shown}")
    else:
        say(f"Fetching {shown} to {target.absolute()}")
        _fetch(address, target, "", _refuse_page)
    _told.add(address)
    return target


def open_address(address: str) -> http.client.HTTPResponse:
    """The answer of an http(s) address.

    Raises:
        OSError, http.client.HTTPException: There is none.
    """
    return urllib.request.urlopen(urllib.request.Request(address, headers={"User-Agent": USER_AGENT}), timeout=TIMEOUT)


def _fetch(address: str, target: Path, before: str, check: Callable[[Path], None]) -> None:
    """Saves an answer that passes `check` as `target`; `before` begins the sentence of the error."""
    try:
        with open_address(address) as answer, whole_file(target) as temporary:
            _save(answer, temporary, target.name)
            check(temporary)
    except (OSError, http.client.HTTPException, ValueError) as e:
        reason = getattr(e, "reason", None) or e
        raise FileNotFoundError(
            f"{before}{_public(address)} could not be fetched ({reason}): download it by other means and put it at "
            f"{target.absolute()}"
        ) from None


def public_name(address: str) -> str:
    """The address without user name and password, which belong neither on a console nor into a file name."""
    return re.sub(r"(?<=://)[^/]*@", "", address)


def _public(address: str) -> str:
    """The same without what follows a `?`, where keys stand."""
    return public_name(address).split("?")[0]


def _save(answer: http.client.HTTPResponse, file: Path, name: str) -> None:
    size = int(answer.headers.get("Content-Length") or 0)
    from tqdm import tqdm  # the scripts begin with this module, and hardly ever fetch anything

    often = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file needs no animation
    with (
        file.open("wb") as out,
        tqdm(total=size or None, desc=name, unit="B", unit_scale=True, mininterval=often) as bar,
    ):
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            bar.update(len(chunk))
        got = out.tell()
    if size and got != size:
        raise OSError(f"the answer ended after {got} of {size} bytes")


def _refuse_no_zip(file: Path) -> None:
    if not zipfile.is_zipfile(file):
        raise OSError("the answer is no weight file")


def _refuse_page(file: Path) -> None:
    with file.open("rb") as f:
        start = f.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise OSError("the answer is empty")
    if start.startswith((b"<!doctype html", b"<html")):
        raise OSError("the answer is a web page; of a file on GitHub take the address of its raw form")
