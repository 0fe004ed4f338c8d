"""One picture by every door: the scan, training, detection, the hub model by name, as a Pillow picture, as an array."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_weights import save_weights

from models.autoshape import AutoShape
from models.load import load_model
from utils.dataset import pictures
from utils.dataset.pictures import check_picture, decode_picture, from_array, from_pil
from utils.dataset.scan import scan_dataset
from utils.dataset.store import ImageStore
from utils.results.sources import open_source


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> AutoShape:
    return AutoShape(load_model(save_weights(tmp_path_factory.mktemp("weights") / "joint.pt")))


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(pictures, "_told", set())


def smooth(channels: int = 3, high: int = 255) -> np.ndarray:
    """[40,60,channels] of all values 0..high, without hard edges, which JPEG would blur."""
    noise = np.random.default_rng(0).random((40, 60, channels), np.float32)
    wide = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, high, cv2.NORM_MINMAX)
    return wide.reshape(40, 60, channels).round()


def of_mode(mode: str) -> Image.Image:
    grey = smooth(1)[..., 0]
    if mode == "I;16":
        return Image.fromarray(smooth(1, 65535)[..., 0].astype(np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(grey.astype({"I": np.int32, "F": np.float32}[mode]))
    picture = Image.fromarray(smooth().astype(np.uint8))
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(255 - grey.astype(np.uint8)))
        return picture
    return picture.quantize(64) if mode == "P" else picture.convert(mode)


def doors(file: Path, hub: AutoShape) -> dict[str, np.ndarray]:
    """BGR pictures by the name of their door."""
    index = scan_dataset(str(file), 1, cache=False, verbose=False)
    assert not index.problems
    with open_source(file) as source:
        frames = [frame for batch in source for frame in batch]
    rgb = {"hub": str(file), "hub, Pillow": Image.open(file)}
    found = {name: im[..., ::-1] for name, im in zip(rgb, hub(list(rgb.values()), 64).ims, strict=True)}
    for fast in (False, True):
        size = int(index.shapes.max())
        found[f"store {fast}"] = ImageStore(index.im_files, index.shapes, size, fast=fast).get(0)
    return found | {"detection": frames[0].image, "bytes": decode_picture(file.read_bytes())}


KINDS = [
    *itertools.product(("1", "L", "P", "RGB", "RGBA", "LA", "I;16"), ("png", "tif")),
    *itertools.product(("L", "RGB"), ("jpg", "JPEG", "jpe.jpg", "bmp", "webp", "mpo", "TIFF")),
    *itertools.product(("I", "F", "CMYK", "YCbCr", "LAB"), ("tif",)),
    ("CMYK", "jpg"), ("RGBA", "webp"), ("P", "bmp"), ("F", "pfm"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "suffix"), KINDS)
def test_all_doors_give_one_picture(mode, suffix, hub, tmp_path):
    file = tmp_path / f"a.{suffix}"
    if mode == "LAB":
        Image.frombytes("LAB", (60, 40), smooth().astype(np.uint8).tobytes()).save(file)
    elif suffix == "pfm":
        cv2.imwrite(str(file), np.asarray(of_mode("F")))
    else:
        of_mode(mode).save(file, **({"lossless": True} if suffix == "webp" else {}))
    found = doors(file, hub)
    for name, im in found.items():
        assert im.dtype == np.uint8 and im.shape == (40, 60, 3), name
        # decoders round the colours of CMYK differently
        assert np.abs(im.astype(int) - found["hub"]).max() <= (1 if mode == "CMYK" else 0), name
    if mode in ("I", "F", "I;16"):
        assert np.abs(found["hub"][..., 0].astype(int) - smooth(1)[..., 0]).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "mpo"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_doors_turn_a_picture_upright(suffix, orientation, hub, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    of_mode("RGB").save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found = doors(tmp_path / f"a.{suffix}", hub)
    assert found["hub"].shape[:2] == ((40, 60) if orientation < 5 else (60, 40))
    assert all(np.array_equal(im, found["hub"]) for im in found.values())
    assert check_picture(tmp_path / f"a.{suffix}") == found["hub"].shape[1::-1]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_every_door(suffix, channels, hub, tmp_path):
    values = smooth(channels, 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)
    for name, im in doors(tmp_path / f"a.{suffix}", hub).items():
        assert np.array_equal(im, np.broadcast_to(values >> 8, im.shape)), name


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((40, 60), 300, np.int32), "0..255"),
        (np.full((40, 60), -1, np.int32), "0..255"),
        (smooth(1)[..., 0].astype(np.float32) / 255, "0..1"),
        (np.full((40, 60), np.nan, np.float32), "0..255"),
    ],
)
def test_values_that_are_no_0_to_255_are_refused_by_every_door(values, reason, hub, tmp_path):
    picture = Image.fromarray(values)
    picture.save(tmp_path / "a.tif")
    for door in (
        lambda: check_picture(tmp_path / "a.tif"),
        lambda: decode_picture((tmp_path / "a.tif").read_bytes()),
        lambda: hub(str(tmp_path / "a.tif")),
        lambda: hub(picture),
        lambda: hub(Image.open(tmp_path / "a.tif")),
        lambda: hub(values),
        lambda: from_pil(picture),
        lambda: from_array(values),
    ):
        with pytest.raises(ValueError, match=reason):
            door()


def test_what_a_conversion_loses_is_said_once(tmp_path, capsys):
    of_mode("I;16").save(tmp_path / "deep.png")
    of_mode("RGBA").save(tmp_path / "clear.png")
    opaque = Image.fromarray(smooth().astype(np.uint8)).convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    opaque.save(tmp_path / "pages.tif", save_all=True, append_images=[opaque])
    decode_picture((tmp_path / "opaque.png").read_bytes(), "opaque")
    assert capsys.readouterr().out == ""
    for _ in range(2):
        for file in sorted(tmp_path.iterdir()):
            check_picture(file)
            from_pil(Image.open(file))
            decode_picture(file.read_bytes(), str(file))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and all(line.startswith("NOTE: ") for line in said)
    assert all(any(word in line for line in said) for word in ("16 bits", "transparency", "several pictures"))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_door_starts_a_program_for_a_picture(hub, tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail(f"{a} was started"))
    evil = tmp_path / "evil.jpg"
    evil.write_bytes(EPS)
    for door in (check_picture, lambda f: decode_picture(f.read_bytes()), lambda f: hub(str(f))):
        with pytest.raises(ValueError, match="decoded|readable"):
            door(evil)


def test_a_large_picture_is_read_by_every_door(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 2,400 pixels would be "a bomb" to Pillow
    of_mode("RGB").save(tmp_path / "a.png")
    assert check_picture(tmp_path / "a.png") == (60, 40)
    assert decode_picture((tmp_path / "a.png").read_bytes()).shape == (40, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2000)
    with pytest.raises(ValueError, match="60x40 pixels are more than 2000"):
        check_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True, "comment": b"a\xff\xc0b"}),
        ("RGB", {"subsampling": 0, "optimize": True, "restart_marker_blocks": 2}),
        ("RGB", {"icc_profile": b"x" * 200}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_jpegs_are_checked_by_what_is_in_them(mode, options, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (45, 61, 4), np.uint8)
    shown = {"L": values[..., 0], "RGB": values[..., :3], "CMYK": values}[mode]
    file = tmp_path / "a.jpg"
    Image.fromarray(np.ascontiguousarray(shown), mode).save(file, **options)
    assert check_picture(file) == (61, 45)
    data = file.read_bytes()
    for damaged in (data[: len(data) // 3] + b"\xff\xd9", data[:60], data[:2] + b"\xff\xd9", b"\xff\xd8\xff" * 40):
        file.write_bytes(damaged)
        try:
            width, height = check_picture(file)
        except ValueError:
            continue
        assert decode_picture(damaged).shape == (height, width, 3)  # what passes can be trained on
    frame = next(i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2") and data[i + 4] == 8)
    file.write_bytes(data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :])  # says it has 65535 x 65535 pixels
    with pytest.raises(ValueError):
        check_picture(file)
