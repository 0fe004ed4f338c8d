"""Programs that use a YOLOv5 clone as a library, one of each kind, by the calls that public ones make."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_weights import NAMES, save_weights
from torch import nn

import export
from utils.system.paths import ROOT


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("clients") / "best.pt", joint=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("video") / "street.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 12, (96, 64))
    for frame in np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8):
        writer.write(frame)
    writer.release()
    return file


def hub(weights: Path, **options) -> nn.Module:
    return torch.hub.load(
        str(ROOT), "custom", path=str(weights), source="local", _verbose=False, device="cpu", **options
    )


# Trackers -------------------------------------------------------------------------------------------------------------


def test_tracker_of_v7(weights, video, tmp_path):
    from models.common import DetectMultiBackend
    from utils.dataloaders import VID_FORMATS, LoadImages
    from utils.general import (
        Profile,
        check_img_size,
        check_imshow,
        check_requirements,
        colorstr,
        increment_path,
        non_max_suppression,
        print_args,
        scale_boxes,
        strip_optimizer,
        xyxy2xywh,
    )
    from utils.plots import Annotator, colors, save_one_box
    from utils.torch_utils import select_device, smart_inference_mode

    @smart_inference_mode()
    def run(source: str) -> list[tuple]:
        device = select_device("cpu")
        save_dir = increment_path(tmp_path / "exp", exist_ok=False, mkdir=True)
        model = DetectMultiBackend(weights, device=device, dnn=False, data=None, fp16=False)
        stride, names, pt = model.stride, model.names, model.pt
        imgsz = check_img_size([96, 96], s=stride)
        dataset = LoadImages(source, img_size=imgsz, stride=stride, auto=pt, vid_stride=1)
        model.warmup(imgsz=(1 if pt else 1, 3, *imgsz))
        dt, rows = (Profile(), Profile(), Profile()), []
        for path, im, im0s, vid_cap, s in dataset:
            with dt[0]:
                im = torch.from_numpy(im).to(device).float() / 255.0
                im = im[None] if len(im.shape) == 3 else im
            with dt[1]:
                pred = model(im, augment=False, visualize=False)
            with dt[2]:
                pred = non_max_suppression(pred, 0.3, 0.5, None, False, max_det=5)
            for det in pred:
                im0 = im0s.copy()
                annotator = Annotator(im0, line_width=2, pil=not ascii, example=str(names))
                det[:, :4] = scale_boxes(im.shape[2:], det[:, :4], im0.shape).round()
                tracks = xyxy2xywh(det[:, 0:4])
                for number, (*xyxy, conf, cls) in enumerate(det):
                    annotator.box_label(xyxy, f"{number} {names[int(cls)]} {conf:.2f}", color=colors(int(cls), True))
                    save_one_box(xyxy, im0s, file=save_dir / "crops" / f"{number}.jpg", BGR=True)
                assert (annotator.result() != im0s).any() and annotator.result() is im0
                rows.append((Path(path).name, len(tracks), vid_cap.get(cv2.CAP_PROP_FPS), s))
        assert all(p.t > 0 for p in dt)
        return rows

    check_requirements(exclude=("tensorboard", "thop"))
    print_args({"source": str(video)})
    rows = run(str(video))
    assert [r[:3] for r in rows] == [("street.avi", 5, 12.0)] * 3 and rows[0][3].startswith("video 1/1 (1/3)")
    assert len(list((tmp_path / "exp" / "crops").glob("*.jpg"))) == 15 and video.suffix[1:] in VID_FORMATS
    assert isinstance(check_imshow(), bool) and "green" not in colorstr("green", "x") and callable(strip_optimizer)


def test_tracker_of_v5(weights, video):
    from models.experimental import attempt_load
    from utils.datasets import LoadImages, letterbox
    from utils.general import apply_classifier, check_img_size, non_max_suppression, scale_coords, set_logging
    from utils.plots import plot_one_box
    from utils.torch_utils import load_classifier, select_device, time_synchronized

    set_logging()
    device = select_device("cpu")
    model = attempt_load(weights, map_location=device)
    stride = int(model.stride.max())
    imgsz = check_img_size(96, s=stride)
    names = model.module.names if hasattr(model, "module") else model.names
    drawn = 0
    for path, img, im0s, vid_cap in LoadImages(str(video), img_size=imgsz, stride=stride):
        img = torch.from_numpy(img).to(device).float()
        img /= 255.0
        t1 = time_synchronized()
        pred = model(img.unsqueeze(0), augment=False)[0]
        pred = non_max_suppression(pred, 0.3, 0.5, classes=[0, 1], agnostic=True)
        assert time_synchronized() >= t1 and Path(path) == video and vid_cap is not None
        for det in pred:
            det[:, :4] = scale_coords(img.shape[1:], det[:, :4], im0s.shape).round()
            before = im0s.copy()
            for *xyxy, conf, cls in reversed(det):
                plot_one_box(xyxy, im0s, label=f"{names[int(cls)]} {conf:.2f}", color=[0, 255, 0], line_thickness=3)
                drawn += 1
            assert (im0s != before).any()
    assert drawn > 3 and letterbox(im0s, 64, stride=stride)[0].shape == (64, 64, 3)
    assert callable(apply_classifier) and callable(load_classifier)


# Servers --------------------------------------------------------------------------------------------------------------


def test_server(weights):
    model = hub(weights)
    model.conf, model.iou, model.max_det, model.classes = 0.3, 0.5, 4, None
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8))
    results = model([picture, picture], size=96)
    rows = json.loads(results.pandas().xyxy[0].to_json(orient="records"))
    assert len(rows) == 4 and set(rows[0]) == {"xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"}
    assert rows[0]["name"] == model.names[rows[0]["class"]] and results.xywhn[0].shape == (4, 6)
    results.render()
    assert len(results.ims) == 2 and (results.ims[0] != np.asarray(picture)).any()
    Image.fromarray(results.ims[0])
    assert results.pred[0].cpu().numpy().shape == (4, 6)  # supervision
    assert type(model).__module__ == "models.common" and list(model.names.values()) == list(NAMES.values())  # SAHI


# Explanations and attacks ---------------------------------------------------------------------------------------------


def test_eigencam_on_a_hub_model(weights):
    model = hub(weights)
    model.eval(), model.cpu()
    target = model.model.model.model[-2]
    caught = []
    target.register_forward_hook(lambda m, inputs, output: caught.append(output.cpu().detach()))
    outputs = model(torch.rand(1, 3, 64, 96))
    categories = np.argmax(outputs.cpu().data.numpy(), axis=-1)
    assert isinstance(outputs, torch.Tensor) and outputs.shape == (1, 378, 8) and categories.shape == (1, 378)
    assert type(target).__name__ == "C3" and caught[0].shape[2:] == (2, 3)


def test_gradcam_by_hooks_on_an_activation(weights):
    from models.experimental import attempt_load
    from utils.datasets import letterbox
    from utils.general import xywh2xyxy
    from utils.metrics import box_iou

    model = attempt_load(weights, device="cpu")
    model.requires_grad_(True)
    gradients, activations = {}, {}
    layer = model.model._modules["23"]._modules["cv3"]._modules["act"]
    layer.register_full_backward_hook(lambda m, i, o: gradients.__setitem__("value", o[0]))
    layer.register_forward_hook(lambda m, i, o: activations.__setitem__("value", o))
    im = letterbox(np.full((64, 96, 3), 120, np.uint8), new_shape=(64, 64))[0]
    prediction = model(torch.from_numpy(im.transpose(2, 0, 1)[None].copy()).float() / 255, augment=False)[0]
    prediction[0, -1, 5:].max().backward()
    weight = gradients["value"].mean((2, 3), keepdim=True)
    saliency = (weight * activations["value"]).sum(1)
    assert saliency.shape[1:] == activations["value"].shape[2:] and gradients["value"].abs().sum() > 0
    boxes = xywh2xyxy(prediction[0, :2, :4])
    assert torch.allclose(box_iou(boxes, boxes).diagonal(), torch.ones(2), atol=1e-4)


def test_attack_on_what_is_inside_the_wrapper(weights):
    model = hub(weights, autoshape=False)
    assert model.model.hyp == {} and model.model.nc == 3 and model.names == NAMES
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()), "to train on, so nothing is fused"
    im = torch.rand(1, 3, 64, 64, requires_grad=True)
    out, train_out = model(im)
    assert out.shape == (1, 252, 8) and [m.shape for m in train_out] == [(1, 3, s, s, 8) for s in (8, 4, 2)]
    train_out[0][..., 4].sum().backward()
    assert im.grad.abs().sum() > 0


# Converters that read the .pt -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pickled(weights) -> Path:
    return export.run(weights=weights, imgsz=64, include=["yolov5"])[0]


@pytest.mark.slow
def test_converters(weights, pickled):
    """Raw `torch.load`, in the folder of this project as in YOLOv5's."""
    content = torch.load(pickled, map_location="cpu", weights_only=False)
    model = (content.get("ema") or content["model"]).float()
    grid = model.model[-1].anchors * model.model[-1].stride[..., None, None]  # gen_wts
    assert grid[0].flatten().tolist() == [10, 13, 16, 30, 33, 23] and len(model.model[-1].anchor_grid) == 3
    model.eval()
    keys = list(model.state_dict())  # mmyolo
    assert keys[0] == "model.0.conv.weight" and "model.24.anchors" in keys and keys[-1] == "model.24.m.2.bias"
    assert (model.nc, model.names, model.yaml["nc"]) == (3, NAMES, 3)  # Roboflow
    image = torch.rand(1, 3, 64, 64)
    before = model(image)[0]
    fused = model.fuse().eval()  # MegaDetector
    assert torch.allclose(fused(image)[0], before, rtol=1e-4, atol=1e-3)


def test_loader_that_was_copied_from_yolov5(pickled):
    from models.experimental import Ensemble, attempt_download
    from models.yolo import Detect, Model
    from utils.activations import Hardswish, SiLU

    model = Ensemble()
    for w in [str(pickled), str(pickled)]:
        assert attempt_download(w) == w
        ckpt = torch.load(w, map_location="cpu", weights_only=False)
        model.append(ckpt["ema" if ckpt.get("ema") else "model"].float().fuse().eval())
    for m in model.modules():
        if type(m) in (nn.SiLU, Detect, Model):
            m.inplace = True
        if isinstance(m, nn.SiLU) or type(getattr(m, "act", None)) is nn.SiLU:
            m.act = SiLU()
    image = torch.rand(1, 3, 64, 64)
    boxes, nothing = model(image, augment=False)
    assert boxes.shape == (1, 504, 8) and nothing is None and len(model) == 2
    assert torch.allclose(model[-1](image)[0], boxes[:, :252]) and issubclass(Hardswish, nn.Module)
    assert model[-1].nc == len(model[-1].names)


# Notebooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_notebook(weights, tmp_path, monkeypatch):
    import detect
    from utils.downloads import attempt_download
    from utils.plots import plot_results

    monkeypatch.chdir(tmp_path)
    assert attempt_download(str(weights)) == str(weights)
    cv2.imwrite("a.jpg", np.random.default_rng(2).integers(0, 256, (64, 96, 3), np.uint8))
    folder = detect.run(weights=str(weights), source="a.jpg", imgsz=(96, 96), conf_thres=0.3, project="runs", name="x")
    assert cv2.imread(str(folder / "a.jpg")).shape == (64, 96, 3)
    Path("results.csv").write_text("epoch, train/box_loss\n0, 0.5\n1, 0.4\n")
    plot_results("results.csv")
    assert Path("results.png").stat().st_size > 1000
