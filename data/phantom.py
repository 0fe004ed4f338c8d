"""A synthetic colour-Doppler echo set: folders and labels as in a real one, made in seconds, deterministic by seed.

It lets a newcomer run the whole project with nothing but the project. It is no medical data: hand-drawn outlines of
three standard views become a sector with fully developed speckle (Rayleigh envelope in beam coordinates,
scan-converted, log-compressed), and colour shows a velocity field that wraps at the Nyquist limit. A regurgitant jet is
a turbulent and so mosaic-coloured stream through a closed valve; its box is tight around the pixels that were painted.

    python data/phantom.py --out DIR --seed 0
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that it also runs as a script

from data.phantom_anatomy import NAMES, VIEWS  # noqa: E402
from data.phantom_echo import Clip, Machine  # noqa: E402
from utils.system.machine import core_count  # noqa: E402

MARK = "SYNTHETIC PHANTOM SET"
README = """{mark}: not real patients.

These pictures were drawn by data/phantom.py (seed {seed}) so that the project can be tried without any data.
They only look like colour-Doppler echocardiography. A model trained on them knows nothing about real hearts, and
figures measured on them say nothing about real data. To use real data, point `path:` of your data yaml to it.

File names: pPPP_cC_fFFF.jpg = patient, clip of that patient, frame of that clip. No patient is in both splits.
Label files: one row per jet (a box `class x y w h`, or a four-corner polygon), an empty line, the one-hot view row.
"""
DATA_YAML = """# {mark}
path: .
train: train/images
val: valid/images

nc: {nc}
names: [{names}]

cls_nc: {cls_nc}
cls_names: [{cls_names}]
"""


def label_text(boxes: list[tuple[int, np.ndarray]], view: int, size: tuple[int, int], polygon: bool) -> str:
    """Joint label of one picture: object rows, an empty line, the one-hot view row.

    Args:
        boxes: (class, [x1, y1, x2, y2] in pixels).
        view: index into VIEWS.
        size: height and width of the picture in pixels.
        polygon: four corners per row instead of centre and size.
    """
    h, w = size
    rows = []
    for cls, (x1, y1, x2, y2) in boxes:
        x1, y1, x2, y2 = x1 / w, y1 / h, x2 / w, y2 / h
        values = (x1, y1, x2, y1, x2, y2, x1, y2) if polygon else ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        rows.append(" ".join([str(cls), *(f"{v:.6f}" for v in values)]))
    one_hot = " ".join(str(int(i == view)) for i in range(len(VIEWS)))
    return "\n".join([*rows, "", one_hot]) + "\n"


def _write_patient(folder: Path, seed: int, patient: int, clips: int, frames: int) -> None:
    """All clips of one patient; every draw depends on seed, patient and clip only."""
    rng = np.random.default_rng([seed, patient])
    machine = Machine.draw(rng)
    scale, wobble = rng.uniform(0.82, 1.08), rng.uniform(0.004, 0.009)
    views = np.concatenate([rng.permutation(len(VIEWS)) for _ in range(-(-clips // len(VIEWS)))])[:clips]
    for number, view in enumerate(views.tolist(), 1):
        rng = np.random.default_rng([seed, patient, number])
        # the golden ratio's multiples fill 0..1 evenly, so that every run of patients shows every valve
        clip = Clip(rng, VIEWS[view], machine, scale, wobble, quantile=(0.618034 * patient + 0.37 * view) % 1)
        for f in range(frames):
            strength = 0.65 + 0.35 * np.sin(np.pi * (f + rng.uniform(0.2, 0.8)) / frames)  # the jet grows and fades
            quiet = rng.random() < 0.2  # a frame of the other phase: the valve is open, no jet
            image, boxes = clip.frame(1 - clip.phase if quiet else clip.phase, strength)
            stem = f"p{patient:03d}_c{number}_f{7 * f + 1:03d}"
            ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
            if not ok:
                raise OSError(f"could not encode {stem}.jpg")
            (folder / "images" / f"{stem}.jpg").write_bytes(data.tobytes())
            text = label_text(boxes, view, machine.size, polygon=patient % 2 == 0)  # both kinds of rows occur
            (folder / "labels" / f"{stem}.txt").write_text(text, encoding="utf-8")


def generate(
    root: str | Path,
    seed: int = 0,
    *,
    train_patients: int = 40,
    valid_patients: int = 10,
    clips: int = 3,
    frames: int = 4,
    workers: int | None = None,
) -> None:
    """Write the phantom set to root/{train,valid}/{images,labels}, with heart.yaml and README.txt beside them.

    The same arguments give the same bytes whatever the number of workers. The set appears under its name only when it
    is complete. An earlier phantom set there is replaced; anything else there is left alone.

    Args:
        root: folder to make.
        seed: seed of every random draw.
        train_patients, valid_patients: patients per split; none is in both.
        clips: clips per patient, the views in turn.
        frames: pictures per clip.
        workers: threads, by default one per core.

    Raises:
        FileExistsError: root holds something that is no phantom set.
        ValueError: a count is not positive.
    """
    root = Path(root)
    if min(train_patients, valid_patients, clips, frames) < 1:
        raise ValueError("patients, clips and frames must be at least 1")
    readme = root / "README.txt"
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and (not readme.is_file() or MARK not in readme.read_text(encoding="utf-8", errors="replace")):
        raise FileExistsError(f"{root} holds other files and no phantom set: choose another folder (nothing written)")
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.with_name(f"{root.name}.part{os.getpid()}")
    try:
        jobs = []
        for split, first, count in (("train", 1, train_patients), ("valid", train_patients + 1, valid_patients)):
            for kind in ("images", "labels"):
                (part / split / kind).mkdir(parents=True)
            jobs += [(part / split, seed, patient, clips, frames) for patient in range(first, first + count)]
        with ThreadPoolExecutor(workers or core_count()) as pool:  # NumPy and OpenCV let go of the interpreter lock
            list(pool.map(lambda job: _write_patient(*job), jobs))
        (part / "README.txt").write_text(README.format(mark=MARK, seed=seed), encoding="utf-8")
        classes = {"nc": len(NAMES), "names": ", ".join(NAMES), "cls_nc": len(VIEWS), "cls_names": ", ".join(VIEWS)}
        (part / "heart.yaml").write_text(DATA_YAML.format(mark=MARK, **classes), encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        part.replace(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def parse_opt() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the synthetic colour-Doppler phantom set")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw")
    parser.add_argument("--train-patients", type=int, default=40, help="patients of the training split")
    parser.add_argument("--valid-patients", type=int, default=10, help="patients of the validation split")
    parser.add_argument("--clips", type=int, default=3, help="clips per patient")
    parser.add_argument("--frames", type=int, default=4, help="pictures per clip")
    return parser.parse_args()


def main() -> None:
    opt = vars(parse_opt())
    root = opt.pop("out")
    generate(root, **opt)
    count = len(list(root.glob("*/images/*.jpg")))
    print(f"{MARK}: {count} pictures in {root}. They are drawn, not measured; see {root / 'README.txt'}")


if __name__ == "__main__":
    main()
