"""Write a network in formats for deployment.

python export.py --weights runs/train/exp/weights/best.pt --include torchscript onnx openvino
"""

from __future__ import annotations

import argparse

from utils.paths import ROOT


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    """The command line; `args` defaults to the program's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=str, default=ROOT / "data/coco128.yaml", help="data yaml; no format needs it")
    add("--weights", nargs="+", type=str, default=ROOT / "yolov5s.pt", help="weight file; several: one after the other")
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=[640, 640], help="size, or height width")
    add("--batch-size", type=int, default=1, help="pictures a call")
    add("--device", default="cpu", help="cpu, or a CUDA id such as 0")
    add("--half", action="store_true", help="float16: on a GPU; for OpenVINO the weights alone, anywhere")
    add("--inplace", action="store_true", help="without effect: Detect never writes in place")
    add("--keras", action="store_true", help="of YOLOv5's TensorFlow formats: without effect")
    add("--optimize", action="store_true", help="TorchScript: optimise for mobile")
    add("--int8", action="store_true", help="not supported")
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
    add("--include", nargs="+", default=["torchscript"], help="formats: torchscript onnx openvino state_dict")
    return parser.parse_args(args)


if __name__ == "__main__":
    parse_opt()
