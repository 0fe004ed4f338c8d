"""Write a network in formats for deployment, each with both answers and what the file has to say of itself.

    python export.py --weights runs/train/exp/weights/best.pt --include torchscript onnx openvino

`yolov5` is the way back: the detection part as a checkpoint that YOLOv5's own scripts load; `state_dict` has the same
weights alone. Every file is compared with the network before it gets its name. `detect.py` and `val_joint.py` run all
of them but the last.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from utils.system.arguments import check_ranges, parse_words
from utils.system.paths import ROOT, pasted


def parse_opt(args: list[str] | bool | None = None, known: bool = False) -> argparse.Namespace:
    """The command line; see `parse_words` for the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        type=str,
        default=ROOT / "data/coco128.yaml",
        help="data yaml, for --int8: it measures on its pictures",
    )
    add("--weights", nargs="+", type=str, default=ROOT / "yolov5s.pt", help="weight file; several: one after the other")
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=[640, 640], help="size, or height width")
    add("--batch-size", type=int, default=1, help="pictures a call")
    add("--device", default="cpu", help="cpu, or a CUDA id such as 0")
    add("--half", action="store_true", help="float16: on a GPU; for OpenVINO the weights alone, anywhere")
    add("--inplace", action="store_true", help="without effect: Detect never writes in place")
    add("--keras", action="store_true", help="of YOLOv5's TensorFlow formats: without effect")
    add("--optimize", action="store_true", help="TorchScript: optimise for mobile")
    add("--int8", action="store_true", help="ONNX, OpenVINO: 8 bits, measured on pictures of --data")
    add("--per-tensor", action="store_true", help="of YOLOv5's TensorFlow formats: without effect")
    add("--dynamic", action="store_true", help="batch, height and width may vary")
    add("--cache", type=str, default="", help="of YOLOv5's TensorRT format: without effect")
    add("--simplify", action="store_true", help="ONNX: simplify the graph")
    add("--mlmodel", action="store_true", help="of YOLOv5's CoreML format: without effect")
    add("--opset", type=int, default=17, help="ONNX: version of the operators")
    add("--verbose", action="store_true", help="print more")
    add("--workspace", type=int, default=4, help="of YOLOv5's TensorRT format: without effect")
    add("--nms", action="store_true", help="ONNX, OpenVINO: put non-max suppression into the file")
    add("--agnostic-nms", action="store_true", help="--nms: boxes of different classes suppress each other, too")
    add("--topk-per-class", type=int, default=100, help="of YOLOv5's TensorFlow formats: without effect")
    add("--topk-all", type=int, default=100, help="--nms: most detections per picture")
    add("--iou-thres", type=float, default=0.45, help="--nms: IoU threshold")
    add("--conf-thres", type=float, default=0.25, help="--nms: confidence threshold")
    add("--include", nargs="+", default=["torchscript"], help="formats: torchscript onnx openvino yolov5 state_dict")
    return parse_words(parser, args, known)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


import torch

from models.export.formats import FORMATS, PACKAGES, Job
from models.export.int8 import calibration_of
from models.load import find_weights, largest_stride, load_model
from utils.boxes import check_img_size
from utils.system.command_line import one_sentence
from utils.system.devices import describe_device, select_device, use_machine
from utils.system.packages import need
from utils.system.voice import say

BY_ONNX = "export with --include onnx, then run"
OTHER_FORMATS = {  # YOLOv5's, and what makes them from ours
    "engine": f"{BY_ONNX} `trtexec --onnx=best.onnx --saveEngine=best.engine` on the machine that shall use it",
    "coreml": "export with --include torchscript, then give the file to `coremltools.convert`",
    "saved_model": f"{BY_ONNX} `onnx2tf -i best.onnx`",
    "pb": f"{BY_ONNX} `onnx2tf -i best.onnx`",
    "tflite": f"{BY_ONNX} `onnx2tf -i best.onnx`",
    "edgetpu": f"{BY_ONNX} `onnx2tf -i best.onnx -oiqt`, and `edgetpu_compiler` on the int8 .tflite file",
    "tfjs": f"{BY_ONNX} `onnx2tf -i best.onnx`, and `tensorflowjs_converter` on the folder that it makes",
    "paddle": f"{BY_ONNX} `x2paddle --framework=onnx --model=best.onnx --save_dir=paddle_model`",
}
NEEDLESS = {  # flags of formats that are not written here, and their defaults
    "inplace": False, "keras": False, "per_tensor": False, "mlmodel": False, "cache": "", "workspace": 4,
    "topk_per_class": 100,
}  # fmt: skip


def run(
    data: str | Path = ROOT / "data/coco128.yaml",
    weights: str | Path = ROOT / "yolov5s.pt",
    imgsz: int | Sequence[int] = (640, 640),
    batch_size: int = 1,
    device: str = "cpu",
    half: bool = False,
    inplace: bool = False,
    keras: bool = False,
    optimize: bool = False,
    int8: bool = False,
    per_tensor: bool = False,
    dynamic: bool = False,
    cache: str = "",
    simplify: bool = False,
    mlmodel: bool = False,
    opset: int = 17,
    verbose: bool = False,
    workspace: int = 4,
    nms: bool = False,
    agnostic_nms: bool = False,
    topk_per_class: int = 100,
    topk_all: int = 100,
    iou_thres: float = 0.45,
    conf_thres: float = 0.25,
    include: Sequence[str] = ("torchscript",),
) -> list[Path]:
    """Export one weight file; the arguments are the command line's (`--help`).

    Returns:
        What was written, beside the weights: best.torchscript, best.onnx, best_openvino_model/, best_state_dict.pt,
        best_yolov5.pt; with `int8` best_int8.onnx, best_int8_openvino_model/.

    Raises:
        FileNotFoundError: No such weights.
        ModuleNotFoundError: A format's package is not installed; the message says how to get it.
        ValueError: Flags that do not go together, weights that cannot be read, or a file that answers otherwise than
            the network.
    """
    given = locals()
    check_ranges(given)
    formats = check_formats(include)
    for flag, default in NEEDLESS.items():
        if given[flag] != default:
            say(f"--{flag.replace('_', '-')} changes nothing: it is for formats that are not written here")
    target = select_device(device)
    thresholds = {"conf_thres": conf_thres, "iou_thres": iou_thres, "max_det": topk_all, "agnostic": agnostic_nms}
    check_flags(formats, target, half, dynamic, int8, optimize, simplify, nms, thresholds, batch_size)
    for name in formats:
        for package in (*PACKAGES.get(name, ()), *(["onnxslim"] if simplify and name in PACKAGES else [])):
            need(package, f"--simplify for {name}" if package == "onnxslim" else f"the format {name}")
    if int8 and "openvino" in formats:
        need("nncf", "--int8 for openvino")
    path = find_weights(weights)
    if path.suffix != ".pt":
        raise ValueError(f"--weights {path}: only PyTorch weights (.pt) can be exported")
    use_machine()
    began = time.perf_counter()
    model = load_model(path, target)
    size = whole_size(imgsz, largest_stride(model))
    say(describe_device(target))
    answers = f"{model.nc} object classes" + (f", {model.cls_nc} image classes" if model.cls_nc else "")
    say(f"{path}: {answers}, input [{batch_size},{model.yaml['ch']},{size[0]},{size[1]}], RGB in 0..1")
    if verbose:
        say(model.info(verbose=True, img_size=size))

    pictures = calibration_of(data, size, batch_size) if int8 else None
    if pictures:
        say(f"--int8: measures on {len(pictures.files)} training pictures of {data}")
    nms_inside = thresholds if nms else None
    job = Job(path, model, size, batch_size, half, dynamic, optimize, simplify, opset, nms_inside, pictures)
    written = []
    for name in formats:
        start = time.perf_counter()
        file, difference = FORMATS[name](job)
        written.append(file)
        megabytes = sum(f.stat().st_size for f in ([file] if file.is_file() else file.iterdir())) / 1e6
        say(f"{name}: {file}, {megabytes:.1f} MB, {time.perf_counter() - start:.1f} s")
        say(f"  largest difference from PyTorch: {difference}")
    say(f"Export complete in {time.perf_counter() - began:.1f} s")
    if runnable := [pasted(file) for file in written if file.suffix != ".pt"]:
        say(f"Detect:    python detect.py --weights {runnable[-1]} --img {' '.join(map(str, size))} --source …")
        say(f"Validate:  python val_joint.py --weights {runnable[-1]} --img {size[0]} --data …")
    return written


def whole_size(imgsz: int | Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width of the network's input, pixels, rounded up to multiples of the stride.

    Raises:
        ValueError: Neither one size nor two.
    """
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"--imgsz {' '.join(map(str, sides))}: one size, or height and width")
    size = tuple(check_img_size([sides[0], sides[-1]], s=stride))
    if size != (sides[0], sides[-1]):
        say(f"--imgsz: rounded up to {size[0]}x{size[1]}, multiples of the stride {stride}")
    return size


def check_formats(include: Sequence[str]) -> list[str]:
    """The formats to write, each once.

    Raises:
        ValueError: One that is not written here; the message says what to do instead.
    """
    wanted = list(dict.fromkeys(str(name).lower() for name in include))
    for name in wanted:
        if name in OTHER_FORMATS:
            raise ValueError(f"--include {name} is not written here: {OTHER_FORMATS[name]}")
        if name not in FORMATS:
            raise ValueError(f"--include {name}: the formats are {', '.join(FORMATS)}")
    return wanted


def check_flags(
    formats: list[str], device: torch.device, half: bool, dynamic: bool, int8: bool, optimize: bool, simplify: bool,
    nms: bool, thresholds: dict, batch_size: int,
) -> None:  # fmt: skip
    """Raises ValueError where flags do not go together; says in a line which change nothing."""
    traced = [name for name in formats if name in ("torchscript", "onnx")]
    if half and traced and device.type != "cuda":
        raise ValueError(
            f"--half for {', '.join(traced)} needs a GPU (--device 0); without one, --include openvino alone stores "
            "its weights in float16"
        )
    if half and dynamic:
        raise ValueError("--half and --dynamic do not go together: leave out one of them")
    graphs = [name for name in formats if name in PACKAGES]
    if int8 and not graphs:
        raise ValueError("--int8 is for onnx and openvino files: --include one of them")
    if int8 and (half or nms):
        raise ValueError(f"--int8 and {'--half' if half else '--nms'} do not go together: leave out one of them")
    if int8 and len(graphs) < len(formats):
        say(f"--int8: {', '.join(name for name in formats if name not in graphs)} is written without it")
    if nms and not graphs:
        raise ValueError("--nms puts non-max suppression into onnx and openvino files: --include one of them")
    if nms and "torchscript" in formats:
        say("--nms: torchscript is written without it, its suppression would need torchvision where it is loaded")
    if optimize and "torchscript" not in formats:
        say("--optimize changes nothing: it is for torchscript")
    if simplify and not graphs:
        say("--simplify changes nothing: it is for onnx and openvino")
    if not nms and thresholds != {"conf_thres": 0.25, "iou_thres": 0.45, "max_det": 100, "agnostic": False}:
        say("--conf-thres, --iou-thres, --topk-all and --agnostic-nms change nothing without --nms")


def main(opt: argparse.Namespace) -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("export.py"):
        for weights in opt.weights if isinstance(opt.weights, list) else [opt.weights]:
            run(**{**vars(opt), "weights": weights})


if __name__ == "__main__":
    main(parse_opt())
