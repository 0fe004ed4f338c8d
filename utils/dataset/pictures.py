"""The one reader of pictures: a file, its bytes, a Pillow picture or an array become BGR uint8 [H,W,3], all alike.

OpenCV decodes what it reads as Pillow does; a TIFF with transparency or colours other than RGB, and what OpenCV does
not know, Pillow decodes. Files, bytes and Pillow pictures are turned upright as their EXIF tag says, 16 bits become
the upper 8, transparency is left out, and numbers that are no 0..255 are refused instead of clipped. What a
conversion loses is said once. Pillow opens the formats named here alone: others would start programs (EPS:
Ghostscript), whatever the suffix.
"""

from __future__ import annotations

import functools
import http.client
import io
import math
import os
import re
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.system.downloads import address_of, open_address
from utils.system.voice import say

IMG_FORMATS = ("bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp", "pfm")  # suffixes
MIN_SIDE = 10  # pixels, in a data set
MAX_PIXELS = 2**30  # OpenCV's own limit; Pillow's is a sixth of it

SET_CONTENT = ("BMP", "JPEG", "MPO", "PNG", "TIFF", "WEBP", "PPM")  # in a data set; Pillow calls a .pfm PPM
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

_EXIF_ORIENTATION = 274
_JPEG = b"\xff\xd8\xff"

TRANSPARENCY = "transparency is left out"
_told: set[str] = set()
_opening = threading.Lock()


def is_picture_name(name: str) -> bool:
    """Whether the suffix is one of a data set's pictures."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() in IMG_FORMATS and stem != "" and stem[-1] not in ("/", os.sep)


def read_picture(path: str | Path, divisor: int = 1, scanned: bool = False) -> np.ndarray:
    """A picture file, or what an http(s) address gives; see `decode_picture`.

    Raises:
        OSError: It cannot be opened.
        ValueError: It holds no whole picture; the message names it.
    """
    if address := address_of(path):
        try:
            with open_address(address) as answer:
                data = answer.read()
        except http.client.HTTPException as e:
            raise ValueError(f"{path}: {type(e).__name__}: {e}") from None
    else:
        data = Path(path).read_bytes()  # unlike imread, takes any path on Windows
    return decode_picture(data, str(path), divisor, scanned)


def decode_picture(data: bytes, name: str = "picture", divisor: int = 1, scanned: bool = False) -> np.ndarray:
    """Encoded bytes → BGR uint8 [H,W,3].

    Args:
        name: Begins the messages.
        divisor: 2, 4 or 8: decode a JPEG at this fraction of its size, which is faster and smooths as it shrinks.
            Other formats gain nothing from it and come at full size.
        scanned: `check_picture` has seen it: whether it is whole, and what it loses, is not asked again.

    Raises:
        ValueError: They are no picture, one that is cut off, or one with values that are no 0..255.
    """
    if not data:
        raise ValueError(f"{name}: the file is empty")
    is_jpeg = data.startswith(_JPEG)
    header = None if is_jpeg else _header(data)
    if header is not None and not scanned:
        _tell_losses(header, name)
    if header is not None and _is_pillows(header):
        return from_pil(_loaded(header, name), name)
    is_float = data[:2] in (b"Pf", b"PF")
    color = REDUCED.get(divisor, cv2.IMREAD_COLOR) if is_jpeg else cv2.IMREAD_COLOR
    image = _opencv(data, cv2.IMREAD_UNCHANGED if is_float else color)
    if image is None:
        header = header or _header(data)
        if header is None:
            raise ValueError(f"{name}: not readable as a picture")
        return from_pil(_loaded(header, name), name)
    # OpenCV fills the missing part of a picture with grey; where the end mark is missing, ask Pillow if data is, too
    if not scanned and _has_no_end(data) and (picture := _header(data)):
        _loaded(picture, name)
    return _bytes(_three_channels(image), name) if is_float else image


def from_pil(picture: Image.Image, name: str = "picture") -> np.ndarray:
    """A Pillow picture → BGR uint8 [H,W,3].

    Raises:
        ValueError: It cannot be decoded, or its values (modes I and F) are no 0..255.
    """
    _tell_losses(picture, name)
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format in ("PNG", "PPM")):
            values = np.asarray(upright)
            grey = (values >> 8).astype(np.uint8)  # as OpenCV does
        elif upright.mode in ("I", "F"):
            grey = _bytes(np.asarray(upright), name)
        else:
            return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[..., ::-1])
    except Exception as e:  # decoders raise many types on broken data
        raise ValueError(str(e) if str(e).startswith(name) else f"{name}: cannot be decoded ({one_line(e)})") from None
    return _three_channels(grey)


def from_array(array: np.ndarray, name: str = "picture") -> np.ndarray:
    """RGB [H,W,3], [3,H,W], [H,W] or RGBA of any type of number with values of 0..255 → BGR uint8 [H,W,3].

    Values that say of themselves that they mean something else are refused: YOLOv5 takes them for nearly black, or
    lets them overflow.

    Raises:
        ValueError: It is no such array.
    """
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[0] < 5:  # [3,H,W]
        array = array.transpose(1, 2, 0)
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    fits = grey or (array.ndim == 3 and array.shape[2] >= 3)
    if not fits or not array.size or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name}: expected RGB [H,W,3] of 0..255, got {array.dtype} {list(array.shape)}")
    if not grey and array.shape[2] == 4 and array[..., 3].min() < array[..., 3].max():
        tell_once(TRANSPARENCY, name)
    if grey:
        return _three_channels(_bytes(array.reshape(array.shape[:2]), name))
    return np.ascontiguousarray(_bytes(array[..., 2::-1], name))


def check_picture(path: str | Path) -> tuple[int, int]:
    """Check that a picture of a data set can be decoded to its end; the file is only read.

    Returns:
        Width and height in pixels after the EXIF rotation.

    Raises:
        ValueError: Why it cannot be used.
        OSError: It cannot be read.
    """
    if not is_picture_name(str(path)):
        raise ValueError(f"not a picture format that is supported ({', '.join(IMG_FORMATS)})")
    with open(path, "rb", buffering=0) as stream:
        data = stream.read()
    if not data:
        raise ValueError("the file is empty")
    if data[:2] in (b"Pf", b"PF"):  # Pillow knows the grey ones alone
        image = decode_picture(data, str(path))
        width, height = image.shape[1::-1]
    else:
        width, height = _check_encoded(data, str(path))
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width}x{height} pixels: a side is below {MIN_SIDE}")
    return width, height


def one_line(error: Exception) -> str:
    """Text of an error without line ends and addresses in memory, which would differ from run to run."""
    text = re.sub(r" ?<_io\.BytesIO[^>]*>", " this file", " ".join(str(error).split()))
    return text or type(error).__name__


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height of a whole JPEG of three colours or grey that holds no EXIF tags and no second picture, and that
    OpenCV decodes; None of any other. Pillow needs five times as long to open one."""
    at = 2
    while data.startswith(b"\xff", at) and len(data) > at + 10 and data.endswith(b"\xff\xd9"):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xE1, 0xE2) or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            return None
        if marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame
            bits, height, width, colours = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or colours not in (1, 3) or width * height > MAX_PIXELS:
                return None
            small = _opencv(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
            fits = small is not None and small.shape == (math.ceil(height / 8), math.ceil(width / 8))
            return (width, height) if fits else None
        at += 2 + length
    return None


def _check_encoded(data: bytes, name: str) -> tuple[int, int]:
    if data.startswith(_JPEG) and (size := _plain_jpeg(data)):
        return size
    try:
        picture = _open(data)
        width, height = picture.size
        if picture.format not in SET_CONTENT:
            raise ValueError(f"content is {picture.format}, which is not supported")
        pillows = _is_pillows(picture)
        whole = picture.format in ("JPEG", "MPO") and data.endswith(b"\xff\xd9")
        if not whole:
            picture.load()  # decodes all of it, which finds missing data
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except Exception as error:  # decoders raise many types on broken data
        text = one_line(error)
        raise ValueError(text if text.startswith("content is") else f"cannot be decoded ({text})") from None
    # Training decodes with OpenCV, so it has the last word; at an eighth of the size unless a rotation has to be seen.
    if not pillows and not turned and _opencv(data, cv2.IMREAD_REDUCED_GRAYSCALE_8) is not None:
        if not data.startswith(_JPEG):
            _tell_losses(picture, name)
        return width, height
    image = decode_picture(data, name)
    return image.shape[1], image.shape[0]


@functools.cache
def _known() -> list[str]:
    """Names under which Pillow opens the formats; MPO is opened as JPEG."""
    Image.init()
    return [name for name in (*SET_CONTENT, "GIF", "AVIF", "JPEG2000") if name in Image.OPEN]


def _open(data: bytes) -> Image.Image:
    with _opening:  # Pillow's limit of pixels is one for the process: it is put back at once
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(io.BytesIO(data), formats=_known())
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} pixels are more than {MAX_PIXELS}")
    return picture


def _header(data: bytes) -> Image.Image | None:
    """The picture, not decoded yet; None where Pillow does not know it."""
    try:
        return _open(data)
    except Exception:  # decoders raise many types on broken data
        return None


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    try:
        picture.load()
    except Exception as e:
        raise ValueError(f"{name}: cut off or damaged ({one_line(e)})") from None
    return picture


def _opencv(data: bytes, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None


def _has_no_end(data: bytes) -> bool:
    if data.startswith(_JPEG):
        return not data.endswith(b"\xff\xd9")
    return data[:4] == b"\x89PNG" and b"IEND" not in data[-64:]


def _three_channels(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)


def _bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Values of 0..255 as uint8, fractions rounded."""
    if values.dtype == np.uint8:
        return values
    if np.iscomplexobj(values) or not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        hint = " (of 16 bits: divide by 256)" if values.dtype == np.uint16 else ""
        raise ValueError(f"{name}: values of a {values.dtype} array must lie in 0..255{hint}")
    if values.max() <= 1 and (values % 1).any():
        raise ValueError(f"{name}: values of a {values.dtype} array are read as 0..255, these lie in 0..1: x 255")
    return values.round().astype(np.uint8)


def _tell_losses(picture: Image.Image, name: str) -> None:
    """Says what becomes of a picture that holds more than 8 bits of 3 colours."""
    if picture.mode.startswith("I;16") or any(";16" in str(tile.args) for tile in getattr(picture, "tile", ())):
        tell_once("16 bits are read as 8, the upper ones", name)
    if TRANSPARENCY not in _told and _is_transparent(picture):
        tell_once(TRANSPARENCY, name)
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        tell_once("of several pictures in one file the first is read", name)


def _is_pillows(header: Image.Image) -> bool:
    """A TIFF that OpenCV reads otherwise: it multiplies transparency in, rounds 16 bits, and mistakes LAB for RGB."""
    plain = header.mode in ("1", "L", "P", "RGB", "I;16", "I;16B")
    return header.format == "TIFF" and not (plain and ("RGB;16" not in str(header.tile)))


def _is_transparent(picture: Image.Image) -> bool:
    if picture.mode not in ("LA", "PA", "RGBA") and "transparency" not in picture.info:
        return False
    try:
        return picture.convert("RGBA").getchannel("A").getextrema()[0] < 255
    except Exception:  # a damaged one is told by its decoding
        return False


def tell_once(what: str, name: str) -> None:
    """What becomes of a picture, in a line for the first of its kind."""
    if what not in _told:
        _told.add(what)
        say(f"NOTE: {what} (here: {name})")
