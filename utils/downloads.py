"""YOLOv5's name for fetching weights; `utils.system.downloads` does the work."""

from __future__ import annotations

from pathlib import Path

from utils.system.downloads import address_of, fetch_address, fetch_official, is_official

WEIGHTS = (".pt", ".torchscript", ".onnx")


def attempt_download(
    file: str | Path, repo: str = "ultralytics/yolov5", release: str = "v7.0", **kwargs: object
) -> str:
    """The path of a weight file; an official one that is not there, or the file of an http(s) address, is fetched.

    A line says so. A name that is neither comes back as it is. `repo`, `release` and other arguments are without
    effect: official weights are those of YOLOv5's release v7.0.
    """
    if address := address_of(file):
        return str(fetch_address(address, WEIGHTS))
    path = Path(str(file).strip().replace("'", ""))
    if not path.exists() and is_official(path.name):
        return str(fetch_official(path))
    return str(path)
