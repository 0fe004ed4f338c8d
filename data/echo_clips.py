"""Short synthetic echo clips with regurgitation in them: mp4 files and their events, made in seconds, by seed.

The phantom of `data/phantom_echo.py` beats: its chambers squeeze in systole, an ECG runs below the picture, and in some
beats a valve leaks. An event is one such leak: AR and PR in diastole, MR and TR in systole. It is no medical data; see
`data/phantom.py` for what the pictures are.

    python data/echo_clips.py --out DIR --seed 0
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that it also runs as a script

from data.phantom_anatomy import ANATOMY, DIASTOLE, NAMES, SYSTOLE  # noqa: E402
from data.phantom_echo import Clip, Machine  # noqa: E402
from utils.system.machine import core_count  # noqa: E402

MARK = "SYNTHETIC PHANTOM CLIPS"
README = """{mark}: not real patients.

These clips were drawn by data/echo_clips.py (seed {seed}) so that temporal detection can be tried without any data.
A model trained on them knows nothing about real hearts. File names: pPPP_cC.mp4 = patient, clip. No patient is in both
subsets. annotations.json has the events in the ActivityNet form.
"""
SIZE = (112, 112)  # height, width in pixels
FPS = 25
# x264's look at later pictures sums floats in an order that depends on memory; without it the bytes are always the same
CODEC = {"crf": "20", "preset": "veryfast", "bf": "2", "x264-params": "mbtree=0:rc-lookahead=0"}
ECG_ROWS = 16  # pixels below the picture
POSE = 0.35  # of how a probe may be turned and shifted
SEVERITY = 2.2  # leaks larger than the picture set's, since the pictures are small
VALVES = (("PLAX", "AR"), ("A4C", "MR"), ("PSAX", "TR"), ("PSAX", "PR"))  # the view in which each valve is examined
STRENGTHS = (0.8, 0.9, 1.0)  # of a jet as it grows and fades
SYSTOLIC_SHARE = (0.34, 0.42)  # of a beat
MIN_EVENT = 4  # frames
COLOURED = 40  # difference of channels from which a pixel shows flow
BODY = 21  # side of the body mark in pixels
PROBE = {"PLAX": (6, 5), "PSAX": (10, 10), "A4C": (15, 15)}  # where the mark shows the probe


@dataclass(frozen=True)
class Beat:
    """One heartbeat in frames from the clip's start: systole begins at `start`, diastole at `middle`."""

    start: float
    middle: float
    end: float
    leaks: bool


def draw_beats(rng: np.random.Generator, frames: int, leak_share: float) -> list[Beat]:
    """Beats that cover a clip; their lengths vary a little."""
    period = rng.uniform(17, 25)  # frames: 60 to 88 beats a minute
    share = rng.uniform(*SYSTOLIC_SHARE)
    beats, start = [], -rng.uniform(0, period)
    while start < frames:
        length = period * rng.uniform(0.94, 1.06)
        beats.append(Beat(start, start + share * length, start + length, bool(rng.random() < leak_share)))
        start += length
    return beats


def squeeze(beats: list[Beat], frame: float) -> float:
    """How contracted the ventricles are, 0 to 1."""
    beat = next(b for b in beats if b.start <= frame < b.end)
    if frame < beat.middle:
        return float(np.sin(np.pi / 2 * (frame - beat.start) / (beat.middle - beat.start)))
    return float(np.cos(np.pi / 2 * min((frame - beat.middle) / (0.6 * (beat.end - beat.middle)), 1.0)))


def ecg(beats: list[Beat], at: np.ndarray) -> np.ndarray:
    """A curve with P wave, QRS complex and T wave at times in frames, about 0 to 1."""
    out = np.zeros_like(at, dtype=float)
    for beat in beats:
        length = beat.end - beat.start
        for centre, width, height in (
            (beat.start - 0.16 * length, 0.03, 0.15), (beat.start - 0.03 * length, 0.008, -0.15),
            (beat.start, 0.010, 1.0), (beat.start + 0.03 * length, 0.010, -0.25), (beat.middle, 0.05, 0.3),
        ):  # fmt: skip
            out += height * np.exp(-(((at - centre) / (width * length)) ** 2))
    return out


def draw_ecg(beats: list[Beat], frame: int, width: int) -> np.ndarray:
    """The last 32 frames of the curve, now at the right: BGR uint8 [ECG_ROWS, width, 3]."""
    strip = np.zeros((ECG_ROWS, width, 3), np.uint8)
    x = np.arange(width)
    y = ECG_ROWS - 4 - ecg(beats, frame - 32 * (1 - x / (width - 1))) * (ECG_ROWS - 6)
    points = np.stack([x, np.clip(np.round(y), 0, ECG_ROWS - 1)], 1).astype(np.int32)
    cv2.polylines(strip, [points], False, (80, 200, 80), 1)
    return strip


def draw_body_mark(image: np.ndarray, view: str) -> None:
    """The sign of a trunk with the probe on it, at the bottom right, by which machines show the view."""
    h, w = image.shape[:2]
    corner = image[h - BODY - 1 : h - 1, w - BODY - 1 : w - 1]
    corner[...] = 0
    cv2.ellipse(corner, (BODY // 2, BODY // 2), (BODY // 2 - 1, BODY // 2), 0, 0, 360, (120, 120, 120), 1)
    cv2.circle(corner, PROBE[view], 3, (60, 220, 250), -1)


def stress_turbulence(image: np.ndarray, box: np.ndarray) -> None:
    """Turn the colours inside a leak's box to green, as a variance map at full scale does."""
    x1, y1, x2, y2 = box.astype(int)
    region = image[y1:y2, x1:x2]
    coloured = np.ptp(region.astype(np.int16), axis=2) > COLOURED
    region[..., 1][coloured] = 235


class EchoClip:
    """One clip: its frames are drawn from a few pictures of either phase, moved by the beat."""

    def __init__(self, rng: np.random.Generator, machine: Machine, view: str, valve: str, frames: int) -> None:
        self.rng, self.frames, self.view = rng, frames, view
        jets = ANATOMY[view].jets
        shares = np.cumsum([0.0, *(jet.share for jet in jets)]) / sum(jet.share for jet in jets)
        at = [jet.name for jet in jets].index(valve)
        quantile = shares[at : at + 2].mean()  # by which the clip aims at this valve
        self.clip = Clip(rng, view, machine, rng.uniform(0.92, 1.06), rng.uniform(0.004, 0.008), quantile, POSE)
        self.clip.jets = (jets[at],)
        self.clip.leaks = {valve: (SEVERITY * rng.uniform(0.85, 1.15), rng.uniform(-0.3, 0.3), rng.uniform(1.4, 2.4))}
        healthy = rng.random() < 0.15
        self.beats = draw_beats(rng, frames, 0.0 if healthy else rng.uniform(0.5, 1.0))
        leaks, self.clip.jets = self.clip.jets, ()
        self.quiet = {phase: [self.clip.frame(phase, 1.0)[0] for _ in range(2)] for phase in (SYSTOLE, DIASTOLE)}
        self.clip.jets = leaks
        self.leaking: dict[int, list[np.ndarray]] = {SYSTOLE: [], DIASTOLE: []}
        self.classes: dict[int, set[str]] = {SYSTOLE: set(), DIASTOLE: set()}
        phase = leaks[0].phase
        for strength in STRENGTHS:
            picture, boxes = self.clip.frame(phase, strength)
            for _, box in boxes:
                stress_turbulence(picture, box)
            if boxes:  # a leak outside of the colour box is neither seen nor an event
                self.leaking[phase].append(picture)
                self.classes[phase] |= {NAMES[c] for c, _ in boxes}

    def interval(self, beat: Beat, phase: int) -> tuple[int, int]:
        """First frame of a leak, and the one after its last."""
        start, end = (beat.start, beat.middle) if phase == SYSTOLE else (beat.middle, beat.end)
        return max(0, math.ceil(start)), min(self.frames, math.ceil(end))

    def events(self) -> list[tuple[int, int, str]]:
        """(first frame, frame after the last, class) of every leak that the clip shows."""
        found = []
        for beat in self.beats:
            for phase in (SYSTOLE, DIASTOLE):
                first, end = self.interval(beat, phase)
                if beat.leaks and self.leaking[phase] and end - first >= MIN_EVENT:
                    found += [(first, end, name) for name in sorted(self.classes[phase])]
        return found

    def picture(self, frame: int) -> np.ndarray:
        """BGR uint8 [112, 112, 3] with the ECG at the bottom."""
        beat = next(b for b in self.beats if b.start <= frame < b.end)
        phase = SYSTOLE if frame < beat.middle else DIASTOLE
        first, end = self.interval(beat, phase)
        if beat.leaks and self.leaking[phase] and end - first >= MIN_EVENT and first <= frame < end:
            strength = np.sin(np.pi * (frame - first + 0.5) / (end - first))
            bank = self.leaking[phase]
            image = bank[min(int(strength * len(bank)), len(bank) - 1)]
        else:
            image = self.quiet[phase][int(self.rng.integers(2))]
        h, w = image.shape[:2]
        zoom = 1 - 0.06 * squeeze(self.beats, frame)
        matrix = np.array([[zoom, 0, (1 - zoom) * w / 2], [0, zoom, (1 - zoom) * h * 0.4]])
        image = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR)
        noise = self.rng.integers(-9, 10, (h, w, 1), dtype=np.int16)
        image = np.clip(image + noise * (image > 8), 0, 255).astype(np.uint8)
        draw_body_mark(image, self.view)
        return np.concatenate([image, draw_ecg(self.beats, frame, w)])


def write_video(file: Path, pictures: list[np.ndarray], fps: int = FPS) -> None:
    """H.264 with B-frames, as scanners and phones write it; the same pictures give the same bytes."""
    with av.open(str(file), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=CODEC)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 25
        for picture in pictures:
            # FFmpeg's own conversion rounds by where a picture lies in memory
            planes = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())


def _write_clip(folder: Path, seed: int, patient: int, number: int, subset: str) -> tuple[str, dict]:
    machine = Machine.draw(np.random.default_rng([seed, patient]))
    machine = dataclasses.replace(machine, size=(SIZE[0] - ECG_ROWS, SIZE[1]), variance_map=True)
    rng = np.random.default_rng([seed, patient, number])
    frames = int(rng.integers(90, 131))
    clip = EchoClip(rng, machine, *VALVES[(patient + number) % len(VALVES)], frames)
    name = f"p{patient:03d}_c{number}"
    write_video(folder / f"{name}.mp4", [clip.picture(i) for i in range(frames)])
    events = [
        {"segment": [round(first / FPS, 4), round(end / FPS, 4)], "label": label} for first, end, label in clip.events()
    ]
    record = {"subset": subset, "duration": frames / FPS, "frame": frames, "annotations": events}
    return name, record


def generate(
    root: str | Path,
    seed: int = 0,
    *,
    train_patients: int = 48,
    valid_patients: int = 16,
    clips: int = 2,
    workers: int | None = None,
) -> None:
    """Write the clips to root/videos, with annotations.json and README.txt beside them.

    The same arguments give the same annotations and pictures, whatever the number of workers. The set appears under its
    name only when it is complete. An earlier one there is replaced; anything else there is left alone.

    Args:
        root: Folder to make.
        seed: Seed of every random draw.
        train_patients, valid_patients: Patients of the subsets; none is in both.
        clips: Clips per patient, each in another view.
        workers: Threads, by default one per core.

    Raises:
        FileExistsError: root holds something else.
        ValueError: A count is not positive.
    """
    root = Path(root)
    if min(train_patients, valid_patients, clips) < 1:
        raise ValueError("patients and clips must be at least 1")
    readme = root / "README.txt"
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if occupied and (not readme.is_file() or MARK not in readme.read_text(encoding="utf-8", errors="replace")):
        raise FileExistsError(f"{root} holds other files and no phantom clips: choose another folder (nothing written)")
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.with_name(f"{root.name}.part{os.getpid()}")
    try:
        (part / "videos").mkdir(parents=True)
        subsets = ["training"] * train_patients + ["validation"] * valid_patients
        jobs = [
            (part / "videos", seed, patient, number, subset)
            for patient, subset in enumerate(subsets, 1)
            for number in range(1, clips + 1)
        ]
        with ThreadPoolExecutor(workers or core_count()) as pool:
            database = dict(pool.map(lambda job: _write_clip(*job), jobs))
        text = json.dumps({"version": MARK, "database": database}, indent=1)
        (part / "annotations.json").write_text(text, encoding="utf-8")
        (part / "README.txt").write_text(README.format(mark=MARK, seed=seed), encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        part.replace(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the synthetic echo clips")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw")
    parser.add_argument("--train-patients", type=int, default=48, help="patients of the subset training")
    parser.add_argument("--valid-patients", type=int, default=16, help="patients of the subset validation")
    parser.add_argument("--clips", type=int, default=2, help="clips per patient")
    opt = vars(parser.parse_args())
    root = opt.pop("out")
    generate(root, **opt)
    count = len(list(root.glob("videos/*.mp4")))
    print(f"{MARK}: {count} clips in {root}. They are drawn, not measured; see {root / 'README.txt'}")


if __name__ == "__main__":
    main()
