"""Detect objects, and answer the image-level question, on pictures, videos and streams.

    python detect.py --weights runs/train/exp/weights/best.pt --source path/to/anything

Sources: a picture, a folder, a glob, a list file (.txt), a video, a stream (rtsp://, http://), a list of streams
(.streams, or a .txt of nothing else), a webcam id (0) or the screen (screen).
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path

from utils.system.arguments import MEASURED, filled_in, parse_words
from utils.system.paths import ROOT, increment_path

READERS = 2  # threads that decode pictures ahead


def parse_opt(args: list[str] | bool | None = None, known: bool = False) -> argparse.Namespace:
    """The command line; see `parse_words` for the arguments."""
    parser = argparse.ArgumentParser(description="Detect objects and answer the image-level question on any source.")
    parser.add_argument(
        "--weights", nargs="+", type=str, default=ROOT / "yolov5s.pt", help="weight file; several: ensemble"
    )
    parser.add_argument(
        "--source",
        type=str,
        default=ROOT / "data/images",
        help="picture, folder, glob, .txt list, video, URL, .streams list, webcam id or screen",
    )
    parser.add_argument("--data", type=str, default=ROOT / "data/coco128.yaml", help="names for weights without names")
    parser.add_argument(
        "--imgsz", "--img", "--img-size", nargs="+", type=int, default=[640], help="size, or height width"
    )
    parser.add_argument(
        "--batch-size", type=int, default=-1, help="pictures a pass; -1: what suits the device and their size"
    )
    parser.add_argument("--conf-thres", type=float, default=0.25, help="confidence threshold")
    parser.add_argument("--iou-thres", type=float, default=0.45, help="IoU threshold of non-max suppression")
    parser.add_argument("--max-det", type=int, default=1000, help="most detections per picture")
    parser.add_argument("--device", default="", help="cpu, mps, a CUDA id such as 0; empty: the best there is")
    parser.add_argument("--view-img", action="store_true", help="show windows (q ends)")
    parser.add_argument("--save-txt", action="store_true", help="write label files: object rows and the image row")
    parser.add_argument(
        "--save-format",
        type=int,
        default=0,
        help="boxes in --save-txt: 0 centre and size (a label), 1 corners; normalised",
    )
    parser.add_argument("--save-csv", action="store_true", help="write predictions.csv, best first, boxes in pixels")
    parser.add_argument("--save-conf", action="store_true", help="add the confidence to the object rows of --save-txt")
    parser.add_argument(
        "--objects-only", action="store_true", help="--save-txt without the image row, for other readers"
    )
    parser.add_argument("--save-crop", action="store_true", help="write each box as a picture")
    parser.add_argument(
        "--clip-summary", action="store_true", help="write what each video, or folder of frames, says as a whole"
    )
    parser.add_argument("--nosave", action="store_true", help="write no pictures and videos")
    parser.add_argument("--classes", nargs="+", type=int, help="keep these classes only: --classes 0 2 3")
    parser.add_argument(
        "--agnostic-nms", action="store_true", help="boxes of different classes suppress each other, too"
    )
    parser.add_argument("--augment", action="store_true", help="test-time augmentation")
    parser.add_argument("--visualize", action="store_true", help="save the feature maps of each layer, as png and npy")
    parser.add_argument(
        "--update",
        action="store_true",
        help="strip the training state from the weight files afterwards; a file of YOLOv5 stays, ours is put beside it",
    )
    parser.add_argument("--project", default=ROOT / "runs/detect", help="write to project/name")
    parser.add_argument("--name", default="exp", help="write to project/name")
    parser.add_argument("--exist-ok", action="store_true", help="write into an existing project/name")
    parser.add_argument("--line-thickness", default=3, type=int, help="width of the boxes' lines, pixels")
    parser.add_argument("--hide-labels", action="store_true", help="draw no text")
    parser.add_argument("--hide-conf", action="store_true", help="draw no confidences")
    parser.add_argument("--half", action="store_true", help="half precision: float16 on CUDA, bfloat16 on a processor")
    parser.add_argument("--dnn", action="store_true", help="run ONNX weights through OpenCV")
    parser.add_argument("--vid-stride", type=int, default=1, help="use every n-th frame of videos and streams")
    return parse_words(parser, args, known, ranges=MEASURED)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


import cv2
import numpy as np
import torch

from models.export.readers import heed_options, input_size
from models.load import find_weights, load_model, name_classes
from models.pipeline import Draw, Found, find
from models.predictor import Predictor
from utils.results.clips import ClipSummaries
from utils.results.detections import ResultWriter, draw, summary
from utils.results.feature_maps import FeatureMaps
from utils.results.frames import Frame
from utils.results.sources import open_source
from utils.system.command_line import one_sentence
from utils.system.devices import describe_device, half_dtype, memory_format, select_device, use_machine
from utils.system.display import can_show
from utils.system.voice import say, warn
from utils.weights.checkpoint import load_checkpoint, strip_checkpoint


def run(
    weights: str | Path | list[str] = ROOT / "yolov5s.pt",
    source: str | Path = ROOT / "data/images",
    data: str | Path = ROOT / "data/coco128.yaml",
    imgsz: int | tuple[int, int] = (640, 640),
    **options,
) -> Path:
    """Detect on every frame of a source.

    Args:
        options: Those of the command line (`--help`), by their names there with `_` for `-`.

    Returns:
        The folder that the results were written to.

    Raises:
        FileNotFoundError: No weights or nothing to detect on.
        TypeError: An option of an unknown name.
        ValueError: An argument out of range, or no picture of the source could be read.
    """
    given = {"weights": weights, "source": source, "data": data, "imgsz": imgsz}
    opt = filled_in(parse_opt([]), given | options, "detect", MEASURED)
    predictor, imgsz = _load_predictor(opt)
    names, cls_names = predictor.model.names, predictor.model.cls_names
    features, view_img = _feature_maps(predictor.model) if opt.visualize else None, opt.view_img

    looked, began = 0, time.perf_counter()
    with open_source(source, opt.vid_stride, readers=READERS) as frames:
        if view_img or frames.live:
            view_img = can_show(warn=view_img)
        save_dir = increment_path(Path(opt.project) / opt.name, exist_ok=opt.exist_ok, mkdir=True)
        if opt.save_txt:
            (save_dir / "labels").mkdir(exist_ok=True)  # there even where nothing is found
        clips = ClipSummaries(save_dir, names, cls_names, opt.vid_stride, not opt.nosave) if opt.clip_summary else None
        with ResultWriter(save_dir, names, cls_names, save_csv=opt.save_csv) as writer:
            draws = not opt.nosave or view_img
            draw_on = _drawing(opt, names, cls_names) if draws else lambda *_: None
            try:
                with closing(find(predictor, frames, imgsz, draw_on, one_by_one=opt.visualize)) as answers:
                    for found in answers:
                        looked += 1
                        words = summary(found.detections, found.probs, names, cls_names)
                        say(f"{found.frame.title}: {found.sides[0]}x{found.sides[1]} {words}, {found.ms:.1f}ms")
                        _write(found, writer, opt)
                        if clips:
                            clips.add(found.frame, found.detections, found.probs)
                        if features:
                            features.save(0, save_dir / writer.name(found.frame))
                            features.clear()
                        if view_img and _show(found.frame, found.drawn):
                            break
            except KeyboardInterrupt:
                say("stopped by the user; what was written so far is complete")

    if frames.problems:
        say("\n  ".join([f"{len(frames.problems)} not read and left out:", *frames.problems]))
        if not looked:
            raise ValueError(f"--source {source}: nothing in it could be read")
    if clips:
        clips.finish()
    prepare, infer, suppress = predictor.milliseconds()
    rate = looked / (time.perf_counter() - began)
    shape = (1, *predictor.shape[1:])
    say(f"Speed: {prepare:.1f}ms pre-process, {infer:.1f}ms inference, {suppress:.1f}ms NMS per image at shape {shape}")
    if opt.save_txt:
        say(f"{writer.written['label file']} labels saved to {save_dir / 'labels'}")
    if features:
        say(f"Feature maps of each layer saved to a folder for each picture in {save_dir}")
    say(f"{frames.summary()}, {looked} frames looked at; written: {writer.summary()}; {rate:.1f} frames a second")
    say(f"Results saved to {save_dir}")
    if opt.update:
        for file in map(find_weights, _files(weights)):
            say(f"{file}: {_update(file)}")
    return save_dir


def _load_predictor(opt: argparse.Namespace) -> tuple[Predictor, tuple[int, int]]:
    """The network, asked as the options say, and height and width of its input; says what it is."""
    device = select_device(opt.device)
    use_machine()
    model = load_model(opt.weights, device, half=opt.half and device.type == "cuda", dnn=opt.dnn)
    name_classes(model, opt.data)
    if unknown := [c for c in opt.classes or [] if c not in model.names]:
        raise ValueError(f"--classes {' '.join(map(str, unknown))}: the model knows {model.names}")
    imgsz = tuple(input_size(model, _pair(opt.imgsz)))
    say(f"{describe_device(device)}\n{_describe_model(opt.weights, model.names, model.cls_names)}")
    nms = {"conf_thres": opt.conf_thres, "iou_thres": opt.iou_thres}
    nms |= {"max_det": opt.max_det, "agnostic": opt.agnostic_nms}
    dtype = half_dtype(device) if heed_options(model, opt.weights, opt.half, opt.dnn, opt.augment, nms) else None
    layout = memory_format(device, dtype)
    model.to(memory_format=layout)
    predictor = Predictor(model, device, dtype, layout, opt.augment, max(opt.batch_size, 0), classes=opt.classes, **nms)
    predictor.warm_up((1, 3, *imgsz))
    return predictor, imgsz


def _drawing(opt: argparse.Namespace, names: dict[int, str], cls_names: dict[int, str]) -> Draw:
    """What draws the answers on a copy of a frame, as the options say."""
    args = names, cls_names, opt.line_thickness, opt.hide_labels, opt.hide_conf
    return lambda frame, detections, probs: draw(frame.image, detections, probs, *args)


def _write(found: Found, writer: ResultWriter, opt: argparse.Namespace) -> None:
    """All that is asked for of a frame."""
    frame, detections, probs = found.frame, found.detections, found.probs
    if opt.save_txt:
        writer.write_label(frame, detections, None if opt.objects_only else probs, opt.save_conf, opt.save_format)
    if opt.save_csv:
        writer.write_rows(frame, detections, probs)
    if opt.save_crop:
        writer.write_crops(frame, detections)
    if not opt.nosave:
        writer.write_picture(frame, found.drawn)


def _feature_maps(model: torch.nn.Module) -> FeatureMaps | None:
    """What keeps the feature maps of a network or of an ensemble's members; None, with a line, where none shows any."""
    members = [m for m in getattr(model, "models", [model]) if not getattr(m, "exported", False)]
    if not members:
        warn("--visualize needs PyTorch weights (.pt): an exported file shows nothing of its layers")
    return FeatureMaps(members) if members else None


def _update(file: Path) -> str:
    """Strips a weight file of its training state, and says so. What YOLOv5 wrote stays; ours is written beside it."""
    if file.suffix != ".pt":
        return "an exported file has no training state"
    if load_checkpoint(file).format != "yolov5":
        strip_checkpoint(file)
        return "stripped of training state"
    ours = file.with_name(f"{file.stem}_joint.pt")
    if ours.exists():
        return f"YOLOv5 wrote it, so it stays as it is; so does {ours}, which is there already"
    strip_checkpoint(file, ours)
    return f"YOLOv5 wrote it, so it stays as it is; {ours} is the same in our format, without training state"


def _pair(imgsz) -> list[int]:
    """[height, width] from one or two numbers."""
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2):
        raise ValueError(f"--imgsz {' '.join(map(str, sides))}: one size, or height and width")
    return [sides[0], sides[-1]]


def _files(weights) -> list:
    return [weights] if isinstance(weights, (str, Path)) else list(weights)


def _describe_model(weights, names: dict[int, str], cls_names: dict[int, str]) -> str:
    listed = ", ".join(names.values()) if len(names) <= 10 else f"{names[0]}, {names[1]}, …"
    text = f"{' + '.join(map(str, _files(weights)))}: {len(names)} object classes ({listed})"
    return text + (f", {len(cls_names)} image classes ({', '.join(cls_names.values())})" if cls_names else "")


def _show(frame: Frame, drawn: np.ndarray) -> bool:
    """Show a frame in its window; True when the user presses q."""
    cv2.namedWindow(frame.path, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
    cv2.imshow(frame.path, drawn)
    return cv2.waitKey(1) == ord("q")


def main(opt: argparse.Namespace) -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("detect.py"):
        run(**vars(opt))


if __name__ == "__main__":
    main(parse_opt())
