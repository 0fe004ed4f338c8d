"""YOLOv5's official weights, fetched from its public release when they are asked for by name and not there."""

from __future__ import annotations

import http.client
import re
import sys
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from utils.whole_files import whole_file

RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
DETECTION = re.compile(r"yolov5[nsmlx]6?\.pt")  # what the release has for this project
OTHER_TASKS = re.compile(r"yolov5[nsmlx]6?-(cls|seg)\.pt")
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 18  # bytes


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
    print(f"{target} is not here: fetching {url} to {target.absolute()}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, whole_file(target) as temporary:
            _save(answer, temporary, target.name)
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", None) or e
        raise FileNotFoundError(
            f"weights {target} are not here, and {url} could not be fetched ({reason}): download it by other means and "
            f"put it at {target.absolute()}"
        ) from None
    return target


def _save(answer: http.client.HTTPResponse, file: Path, name: str) -> None:
    size = int(answer.headers.get("Content-Length") or 0)
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
    if not zipfile.is_zipfile(file):
        raise OSError("the answer is no weight file")
