"""Pictures on which the strategies of a comparison give different answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from compare.results import Run
from utils.boxes import bbox_iou
from utils.dataset.config import DataConfig
from utils.dataset.pictures import read_picture
from utils.dataset.scan import DatasetIndex
from utils.results.drawing import colors
from utils.system.paths import stems_of

SURE = 0.25  # confidence from which a box counts as an answer
FOUND = 0.5  # IoU with a labelled box of its class, from which it is right
WIDTH = 320  # pixels of a drawn picture


@dataclass
class Answer:
    """What a run says to a picture: its best box (class, x, y, w, h normalised) and its image class, where it has."""

    box: np.ndarray | None
    image_class: int


def read_answer(file: Path) -> Answer:
    """The answer in a label file of `val_joint.py --save-txt --save-conf`."""
    rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    last = sorted(rows[-1]) if rows else []
    hot = rows.pop() if last and last == ["0"] * (len(last) - 1) + ["1"] else []  # no box is this: a box has sides
    best = np.array(rows[0], float) if rows else None
    return Answer(None if best is None or best[5] < SURE else best[:5], hot.index("1") if hot else -1)


def right_box(box: np.ndarray | None, labels: np.ndarray) -> bool:
    """Whether a box meets a label of its class; no box is right where nothing is labelled."""
    if box is None or not len(labels):
        return box is None and not len(labels)
    same = labels[labels[:, 0] == box[0]]
    if not len(same):
        return False
    pair = (
        torch.tensor(np.broadcast_to(box[1:5], (len(same), 4)).copy()),
        torch.tensor(same[:, 1:5], dtype=torch.double),
    )
    return bool((bbox_iou(*pair) >= FOUND).any())


def find_disagreements(
    runs: Sequence[Run], index: DatasetIndex, data: DataConfig, most: int
) -> list[tuple[bytes, str]]:
    """Drawn pictures (JPEG) and a line on each, those with the most even vote first.

    Args:
        runs: one of each strategy, of one fold and seed; a task that a run does not answer is left out.
        index: the pictures that all validated on.
    """
    found = []
    names = {run: stems_of(run.job.folder / "val") for run in runs}
    for i, path in enumerate(map(str, index.im_files)):
        files = {r: r.job.folder / "val" / "labels" / f"{names[r].get(path, Path(path).stem)}.txt" for r in runs}
        answers = {r: read_answer(file) for r, file in files.items() if file.exists()}
        labels, view = index.labels(i), int(index.image_class[i])
        boxes = [right_box(a.box, labels) for r, a in answers.items() if r.figures["map50"] is not None]
        views = [a.image_class == view for r, a in answers.items() if r.figures["accuracy"] is not None and view >= 0]
        split = sum(min(sum(votes), len(votes) - sum(votes)) for votes in (boxes, views))
        if split:
            found.append((-split, i, answers))
    return [_draw(index, i, answers, data) for _, i, answers in sorted(found, key=lambda f: f[:2])[:most]]


def _draw(index: DatasetIndex, i: int, answers: dict[Run, Answer], data: DataConfig) -> tuple[bytes, str]:
    im = read_picture(str(index.im_files[i]))
    gain = WIDTH / im.shape[1]
    im = cv2.resize(im, (WIDTH, max(round(im.shape[0] * gain), 1)), interpolation=cv2.INTER_AREA)
    for row in index.labels(i):
        _rectangle(im, row, (255, 255, 255), 3)
    texts = []
    for number, (run, a) in enumerate(answers.items()):
        said = []
        if run.figures["map50"] is not None:
            said.append("no box" if a.box is None else data.names[int(a.box[0])])
            if a.box is not None:
                _rectangle(im, a.box, colors(number), 1)
        if run.figures["accuracy"] is not None and a.image_class >= 0:
            said.append(data.cls_names[a.image_class])
        texts.append(f"{run.strategy}: {', '.join(said)}")
    view = int(index.image_class[i])
    truth = [data.names[int(c)] for c in index.labels(i)[:, 0]] + ([data.cls_names[view]] if view >= 0 else [])
    caption = f"{Path(str(index.im_files[i])).name}; true (white): {', '.join(truth) or 'nothing'}; {'; '.join(texts)}"
    return cv2.imencode(".jpg", im, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes(), caption


def _rectangle(im: np.ndarray, row: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    height, width = im.shape[:2]
    x, y, w, h = row[1:5]
    low, high = (
        (int((x - w / 2) * width), int((y - h / 2) * height)),
        (int((x + w / 2) * width), int((y + h / 2) * height)),
    )
    cv2.rectangle(im, low, high, color, thickness)
