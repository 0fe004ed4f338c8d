"""What a detection run leaves behind: drawn pictures and videos, label files, a table, crops."""

from __future__ import annotations

import csv
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlparse

import cv2
import numpy as np

from utils.boxes import xyxy2xywhn
from utils.dataset.labels import format_label
from utils.results.drawing import Annotator, colors, save_one_box, write_image
from utils.results.fonts import class_name
from utils.results.frames import Frame
from utils.system.paths import UniqueStems
from utils.system.threads import Behind

PICTURE_WRITERS = 2  # threads
WRITABLE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def draw(
    image: np.ndarray,
    detections: np.ndarray,
    probs: np.ndarray | None,
    names: dict[int, str],
    cls_names: dict[int, str],
    line_thickness: int | None = 3,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> np.ndarray:
    """A copy of a picture with its boxes and, in a corner, the image-level answer.

    Args:
        image: BGR uint8 [H,W,3].
        detections: [n,6] x1,y1,x2,y2 in pixels, confidence, class.
        probs: [cls_nc] image-level probabilities, or None.
        names, cls_names: Object and image classes.
        line_thickness: Pixels; None grows with the picture.
        hide_labels: Boxes only.
        hide_conf: Names without confidences.
    """
    annotator = Annotator(image, line_width=line_thickness)
    for *xyxy, conf, cls in reversed(detections.tolist()):  # the best one comes to lie on top
        label = "" if hide_labels else class_name(names, int(cls)) + ("" if hide_conf else f" {conf:.2f}")
        annotator.box(xyxy, label, colors(int(cls)))
    if probs is not None and not hide_labels:
        best = int(probs.argmax())
        annotator.image_label(class_name(cls_names, best) + ("" if hide_conf else f" {probs[best]:.2f}"))
    return annotator.result()


def summary(detections: np.ndarray, probs: np.ndarray | None, names: dict[int, str], cls_names: dict[int, str]) -> str:
    """Both answers in words: `2 persons, 1 bus, image PLAX 0.98`; arguments as in `draw`."""
    counts = Counter(detections[:, 5].astype(int).tolist())
    # abbreviations such as MR take no plural s
    parts = [f"{n} {names[c]}{'s' * (n > 1 and not names[c].isupper())}" for c, n in sorted(counts.items())]
    parts = parts or ["(no detections)"]
    if probs is not None:
        parts.append(f"image {cls_names[int(probs.argmax())]} {probs.max():.2f}")
    return ", ".join(parts)


def label_text(
    detections: np.ndarray,
    probs: np.ndarray | None,
    shape: tuple[int, int],
    cls_nc: int,
    with_conf: bool = False,
    save_format: int = 0,
) -> str:
    """Detections as a label file: object rows best first, an empty line, the one-hot image row.

    Confidences, if asked for, end the object rows as in YOLOv5; format 1 gives normalised corners in place of centre
    and size. Object rows of either kind are no training labels any more; the image row always is one.

    Args:
        detections: [n,6] x1,y1,x2,y2 in pixels, confidence, class; boxes without an area are left out, as are
            repeated ones where no confidence tells them apart.
        probs: [cls_nc] image-level probabilities, or None: no image row.
        shape: Height and width of the picture.
        cls_nc: Number of image classes.
    """
    height, width = shape
    detections = detections[(detections[:, 2:4] > detections[:, :2]).all(1)]
    conf = detections[:, 4] if with_conf else None
    image_class = int(probs.argmax()) if probs is not None else -1
    objects = np.concatenate([detections[:, 5:6], xyxy2xywhn(detections[:, :4], w=width, h=height)], 1)
    if save_format == 0:
        return format_label(objects, image_class, cls_nc, conf=conf)
    corners = detections[:, :4] / np.array([width, height, width, height])
    columns = [detections[:, 5:6], corners] + ([conf[:, None]] if with_conf else [])
    rows = "".join(" ".join(f"{v:g}" for v in row) + "\n" for row in np.concatenate(columns, 1))
    image_row = format_label(objects[:0], image_class, cls_nc).strip()
    return rows + (f"\n{image_row}\n" if image_row else "")


class ResultWriter:
    """Writes results into the folder of a run; a source path has one name there, whatever is written of it.

    Args:
        save_dir: Folder of the run.
        names: Object classes.
        cls_names: Image classes; empty for a model without the image branch.
        save_csv: Open `predictions.csv`; rows are appended to one that is there.

    Raises:
        ValueError: A file of that name would be a source picture, or a table with other columns is there.
        OSError: Something cannot be written.
    """

    def __init__(self, save_dir: Path, names: dict[int, str], cls_names: dict[int, str], save_csv: bool = False):
        self.save_dir, self.names, self.cls_names = save_dir, names, cls_names
        self.written: Counter[str] = Counter()  # files by their kind
        self._stems = UniqueStems(("labels", "crops", "clips"))
        self._folders, self._crops = UniqueStems(), UniqueStems()
        self._videos: dict[str, tuple[cv2.VideoWriter, tuple[int, int]]] = {}
        self._video_frames: Counter[str] = Counter()
        self._table = self._open_table() if save_csv else None
        # encoding takes longer than drawing: pictures are written side by side, the frames of videos one after another
        self._pictures, self._frames = Behind(PICTURE_WRITERS, 2 * PICTURE_WRITERS), Behind(1, 2 * PICTURE_WRITERS)

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *exc) -> None:
        with ExitStack() as last_to_first:  # each of them whatever fails before
            last_to_first.callback(self._crops.save, self.save_dir / "crops")
            last_to_first.callback(self._stems.save, self.save_dir)
            if self._table:
                last_to_first.callback(self._table.close)
            last_to_first.callback(self._close_videos)
            self._pictures.wait()

    def write_label(
        self, frame: Frame, detections: np.ndarray, probs: np.ndarray | None, with_conf: bool, save_format: int
    ) -> None:
        """`labels/<name>.txt`, see `label_text`; no file where there is nothing to say."""
        text = label_text(detections, probs, frame.image.shape[:2], len(self.cls_names), with_conf, save_format)
        file = self.save_dir / "labels" / f"{self.name(frame)}.txt"
        if not text:
            file.unlink(missing_ok=True)  # of an earlier run in this folder (--exist-ok)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
            self.written["label file"] += 1

    def write_rows(self, frame: Frame, detections: np.ndarray, probs: np.ndarray | None) -> None:
        """Rows of `predictions.csv`, best first; a picture with an image-level answer and no box has one row.

        The last columns are the frame's number, the name that its other results have, and where it is from.
        """
        answer = [] if probs is None else [self.cls_names[int(probs.argmax())], f"{probs.max():.4f}"]
        source = [frame.number or "", self.name(frame), frame.path]
        image_name = file_name(frame.path)
        rows = [
            [image_name, self.names[int(cls)], f"{conf:.4f}", *(f"{v:g}" for v in xyxy), *answer, *source]
            for *xyxy, conf, cls in detections.tolist()
        ]
        if not rows and answer:
            rows = [[image_name, "", "", "", "", "", "", *answer, *source]]
        csv.writer(self._table).writerows(rows)
        self._table.flush()

    def write_crops(self, frame: Frame, detections: np.ndarray) -> None:
        """`crops/<class>/<name>.jpg`, then `<name>_2.jpg` and so on where there are several."""
        counts: Counter[int] = Counter()
        for *xyxy, _, cls in detections.tolist():
            crop = save_one_box(xyxy, frame.image, BGR=True, save=False)
            if crop.size:
                counts[int(cls)] += 1
                number, name = counts[int(cls)], self.name(frame)
                folder = self._folders(str(int(cls)), safe_name(self.names[int(cls)]))
                wanted = f"{folder}/{name}" + (f"_{number}" if number > 1 else "")
                file = self.save_dir / "crops" / f"{self._crops(f'{folder}/{name}, number {number}', wanted)}.jpg"
                write_image(file, crop)
                self.written["crop"] += 1

    def write_picture(self, frame: Frame, drawn: np.ndarray) -> None:
        """A picture under its own name, or the next frame of a video (.mp4) that plays at the source's speed.

        It is encoded and written by a thread, and there when the writer is left; `drawn` is not to be altered.
        """
        if frame.mode != "image":
            self._write_video_frame(frame, drawn)
            return
        suffix = Path(file_name(frame.path)).suffix
        file = self.save_dir / (self._stem(frame) + (suffix if suffix.lower() in WRITABLE_SUFFIXES else ".jpg"))
        _refuse_overwriting(file, frame.path)
        self._pictures(write_image, file, drawn)
        self.written["picture"] += 1

    def _write_video_frame(self, frame: Frame, drawn: np.ndarray) -> None:
        height, width = drawn.shape[:2]
        if frame.path not in self._videos:
            if frame.mode == "video":
                self._close_videos()  # video files come one after another
            file = self.save_dir / f"{self._stem(frame)}.mp4"
            _refuse_overwriting(file, frame.path)
            fps = frame.fps if frame.fps <= 65 else round(frame.fps)  # MPEG-4 counts no finer than in 65535ths
            video = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
            if not video.isOpened():
                raise OSError(f"{file}: OpenCV cannot write this video (codec mp4v, {width}x{height}); try --nosave")
            self._videos[frame.path] = video, (width, height)
            self.written["video"] += 1
        video, size = self._videos[frame.path]
        if (width, height) != size:
            drawn = cv2.resize(drawn, size)  # a stream that came back with another size
        copies = 1
        if frame.seconds is not None:  # live: repeat or skip frames so that the video keeps the clock's time
            due = int(frame.seconds * frame.fps) + 1 - self._video_frames[frame.path]
            copies = min(max(due, 0), int(10 * frame.fps))
        for _ in range(copies):
            self._frames(_write_frame, video, drawn)
        self._video_frames[frame.path] += copies

    def _close_videos(self) -> None:
        try:
            self._frames.wait()
        finally:
            for video, _ in self._videos.values():
                video.release()
            self._videos.clear()

    def _open_table(self):
        image_columns = ["image_class", "image_prob"] if self.cls_names else []
        header = [
            "Image Name",
            "Prediction",
            "Confidence",
            "x1",
            "y1",
            "x2",
            "y2",
            *image_columns,
            "frame",
            "name",
            "path",
        ]
        file = self.save_dir / "predictions.csv"
        is_new = not file.exists() or file.stat().st_size == 0
        if not is_new:
            with file.open(encoding="utf-8", newline="") as f:
                if next(csv.reader(f)) != header:
                    raise ValueError(f"{file} is there with other columns: choose another --name, or move it away")
        table = file.open("a", encoding="utf-8", newline="", errors="backslashreplace")
        if is_new:
            csv.writer(table).writerow(header)
        return table

    def name(self, frame: Frame) -> str:
        """Name without suffix for what is written of a frame; one of a video or stream has its number in it."""
        return self._stem(frame) + (f"_{frame.number}" if frame.mode != "image" else "")

    def _stem(self, frame: Frame) -> str:
        """Name without suffix for the results of a path; another path of the same name gets a number."""
        return self._stems(frame.path, file_stem(frame.path), frames=frame.mode != "image")

    def summary(self) -> str:
        """What was written, in words: `5 label files, 3 pictures`."""
        return ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in self.written.items()) or "nothing"


def _write_frame(video: cv2.VideoWriter, drawn: np.ndarray) -> None:
    video.write(drawn)


def file_name(path: str) -> str:
    """Last part of a path; for the address of a stream a name made of all of it."""
    if "://" not in path:
        return Path(path).name
    last = Path(urlparse(path).path).name
    return last if "." in last else safe_name(path.split("://", 1)[1])


def file_stem(path: str) -> str:
    """The same without suffix; the dots in the address of a stream begin none."""
    name = file_name(path)
    is_file = "://" not in path or "." in Path(urlparse(path).path).name
    return Path(name).stem if is_file else name


def safe_name(name: str) -> str:
    """A name without the characters that file systems refuse or read as folders."""
    return "".join(c if c.isalnum() or c in " ._-" else "_" for c in name).strip(" .") or "_"


def _refuse_overwriting(file: Path, source: str) -> None:
    if file.exists() and Path(source).exists() and file.samefile(source):
        raise ValueError(f"{file} is the source itself, which is never written to: choose another --project or --name")
