"""What an exported file says of itself, in the forms that its formats and YOLOv5 have for it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

LITERALS = (
    "names",
    "cls_names",
    "stride",
    "channels",
    "imgsz",
    "batch",
    "dynamic",
    "half",
    "nms",
)  # read as Python literals


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of itself.

    Attributes:
        names, cls_names: Object and image classes by number; {} where unknown or where there are none.
        stride: Sides of the input are multiples of it, pixels.
        channels: Of a picture.
        imgsz: Height and width that the file was exported with; None where it does not say.
        batch: Pictures a call that it was exported with; None where it does not say.
        dynamic: Batch, height and width may differ from these.
        half: The input is float16.
        nms: Thresholds of the non-max suppression inside (conf_thres, iou_thres, max_det, agnostic), or None.
    """

    names: dict[int, str]
    cls_names: dict[int, str]
    stride: int = 32
    channels: int = 3
    imgsz: tuple[int, int] | None = None
    batch: int | None = None
    dynamic: bool = False
    half: bool = False
    nms: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, `stride` and `names` as YOLOv5 has them."""
        task = "joint" if self.cls_names else "detect"
        what = "object detection" + (" and an image-level class" if self.cls_names else "")
        return {
            "description": f"YOLOv5-Joint, {what}",
            "author": "YOLOv5-Joint",
            "date": datetime.now().isoformat(timespec="seconds"),
            "task": task,
            "stride": self.stride,
            "names": dict(self.names),
            "cls_names": dict(self.cls_names),
            "channels": self.channels,
            "imgsz": list(self.imgsz),
            "batch": self.batch,
            "dynamic": self.dynamic,
            "half": self.half,
            "nms": self.nms,
        }

    def texts(self) -> dict[str, str]:
        """For ONNX: each value as text, a number as its digits, a mapping as a Python literal."""
        return {key: str(value) for key, value in self.values().items()}

    def to_json(self) -> str:
        """For TorchScript's `config.txt`."""
        return json.dumps({"shape": [self.batch, self.channels, *self.imgsz]} | self.values())

    @classmethod
    def from_values(cls, values: Any, file: Path) -> Metadata:
        """From plain values, ours or YOLOv5's; what is not there is left open.

        Raises:
            ValueError: A value is not what it should be; the message names `file`.
        """
        try:
            shape = values.get("shape")
            imgsz = values.get("imgsz") or (shape[2:] if shape else None)
            batch = values.get("batch") or (shape[0] if shape else None)
            return cls(
                names=_names(values.get("names")),
                cls_names=_names(values.get("cls_names")),
                stride=int(values.get("stride", 32)),
                channels=int(values.get("channels") or (shape[1] if shape else 3)),
                imgsz=None if imgsz is None else (int(imgsz[0]), int(imgsz[1])),
                batch=None if batch is None else int(batch),
                dynamic=bool(values.get("dynamic")),
                half=bool(values.get("half")),
                nms=_nms(values.get("nms")),
            )
        except (AttributeError, TypeError, ValueError, KeyError, IndexError) as e:
            raise ValueError(f"{file}: its metadata cannot be understood ({type(e).__name__}: {e})") from e

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], file: Path) -> Metadata:
        """From ONNX's texts. They are read as literals; nothing is evaluated."""
        values = {}
        for key in LITERALS:
            if key in texts:
                try:
                    values[key] = ast.literal_eval(texts[key])
                except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
                    raise ValueError(f"{file}: its metadata `{key}` is no plain value ({type(e).__name__})") from None
        return cls.from_values(values, file)

    @classmethod
    def from_json(cls, text: str, file: Path) -> Metadata:
        """From TorchScript's `config.txt`, which may be empty."""
        try:
            values = json.loads(text) if text else {}
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{file}: its config.txt is no JSON ({e})") from e
        return cls.from_values(values, file)


def _names(names: Any) -> dict[int, str]:
    """Names by number, from a mapping (JSON turns its keys into text) or a list."""
    if not names:
        return {}
    items = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(k): str(v) for k, v in items}


def _nms(nms: Any) -> dict[str, Any] | None:
    if not nms:
        return None
    return {
        "conf_thres": float(nms["conf_thres"]),
        "iou_thres": float(nms["iou_thres"]),
        "max_det": int(nms["max_det"]),
        "agnostic": bool(nms["agnostic"]),
    }
