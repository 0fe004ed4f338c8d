"""Stand-ins for what YOLOv5's releases pickle: class names, attributes, key order and arithmetic of each version.

They are built from our layers, whose names the tests of the networks compare with the reference; what differed in old
releases (Focus, SPP, Detect's anchor grids, the walk through the layers) is written out here once more.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import nn

import models.common
import models.yolo
from models.yolo import Model

HEAD = [
    [-1, 1, "Conv", [512, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [[-1, 6], 1, "Concat", [1]],
    [-1, 3, "C3", [512, False]],
    [-1, 1, "Conv", [256, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [[-1, 4], 1, "Concat", [1]],
    [-1, 3, "C3", [256, False]],
    [-1, 1, "Conv", [256, 3, 2]],
    [[-1, 14], 1, "Concat", [1]],
    [-1, 3, "C3", [512, False]],
    [-1, 1, "Conv", [512, 3, 2]],
    [[-1, 10], 1, "Concat", [1]],
    [-1, 3, "C3", [1024, False]],
    [[17, 20, 23], 1, "Detect", ["nc", "anchors"]],
]
BACKBONE_V5 = [
    [-1, 1, "Focus", [64, 3]],
    [-1, 1, "Conv", [128, 3, 2]],
    [-1, 3, "C3", [128]],
    [-1, 1, "Conv", [256, 3, 2]],
    [-1, 9, "C3", [256]],
    [-1, 1, "Conv", [512, 3, 2]],
    [-1, 9, "C3", [512]],
    [-1, 1, "Conv", [1024, 3, 2]],
    [-1, 1, "SPP", [1024, [5, 9, 13]]],
    [-1, 3, "C3", [1024, False]],
]
BACKBONE_V6 = [
    [-1, 1, "Conv", [64, 6, 2, 2]],
    *BACKBONE_V5[1:4],
    [-1, 6, "C3", [256]],
    *BACKBONE_V5[5:8],
    [-1, 3, "C3", [1024]],
    [-1, 1, "SPPF", [1024, 5]],
]
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
VERSIONS = ("v5.0", "v6.0", "v6.1", "v6.2", "v7.0", "master")


def yaml_of(version: str, nc: int = 2, depth: float = 0.1, width: float = 0.125) -> dict:
    backbone = BACKBONE_V5 if version == "v5.0" else BACKBONE_V6
    return {
        "nc": nc, "depth_multiple": depth, "width_multiple": width, "anchors": ANCHORS, "backbone": backbone,
        "head": HEAD, "ch": 3,
    }  # fmt: skip


class Focus(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.conv = ours.conv

    def forward(self, x):
        parts = x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]
        return self.conv(torch.cat(parts, 1))


class SPP(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.cv1, self.cv2 = ours.cv1, ours.cv2
        self.m = nn.ModuleList([nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2) for k in (5, 9, 13)])

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat([x] + [pool(x) for pool in self.m], 1))


class Detect(nn.Module):
    def __init__(self, ours, buffer: bool):
        super().__init__()
        self.nc, self.no, self.nl, self.na = ours.nc, ours.no, ours.nl, ours.na
        self.stride, self.grid, self.inplace = ours.stride.clone(), [torch.zeros(1)] * self.nl, True
        self.register_buffer("anchors", ours.anchors.clone())
        pixels = (ours.anchors * ours.stride.view(-1, 1, 1)).view(self.nl, 1, self.na, 1, 1, 2)
        if buffer:  # until v5.0 in the state dict
            self.register_buffer("anchor_grid", pixels)
        else:
            self.anchor_grid = list(pixels)
        self.m = ours.m

    def forward(self, x):
        rows = []
        for i, conv in enumerate(self.m):
            y = conv(x[i])
            b, _, h, w = y.shape
            y = y.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).sigmoid()
            gy, gx = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            xy = (y[..., :2] * 2 - 0.5 + torch.stack((gx, gy), 2)) * self.stride[i]
            wh = (y[..., 2:4] * 2) ** 2 * self.anchor_grid[i].view(1, self.na, 1, 1, 2)
            rows.append(torch.cat((xy, wh, y[..., 4:]), 4).view(b, -1, self.no))
        return torch.cat(rows, 1)


class DetectionModel(nn.Module):
    """What `models.yolo.Model` was until v6.1, and `models.yolo.DetectionModel` is since."""

    def __init__(self, version: str, seed: int = 0, nc: int = 2):
        super().__init__()
        torch.manual_seed(seed)
        ours = Model(yaml_of(version, nc))
        for name, value in ours.state_dict().items():
            if name.endswith("running_mean"):
                value.uniform_(-0.2, 0.2)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.startswith("model.24.") and name.endswith("bias"):
                value.uniform_(-1, 1)
            elif value.dim() == 4:  # signals keep their size through the layers, so that every weight counts
                value.uniform_(-1, 1).mul_(1.5 * (3 / value[0].numel()) ** 0.5)
        layers = []
        for m in ours.model:
            kind = {"Focus": Focus, "SPP": SPP}.get(m.type)
            old = Detect(m, version == "v5.0") if m.type == "Detect" else kind(m) if kind else m
            facts = m.i, m.f, f"models.common.{m.type}", m.np
            for ours_alone in ("sources", "args"):
                m.__dict__.pop(ours_alone, None)
            old.i, old.f, old.type, old.np = facts
            layers.append(old)
        self.yaml, self.save = ours.yaml, ours.save
        self.model = nn.Sequential(*layers)
        names = ["cat", "dog", *map(str, range(2, nc))]
        self.names = names if version < "v6.2" and version != "master" else dict(enumerate(names))
        self.nc, self.hyp, self.stride, self.class_weights = nc, {"box": 0.05}, layers[-1].stride, torch.ones(nc)

    def forward(self, x):
        outputs = []
        for m in self.model:
            if m.f != -1:
                x = outputs[m.f] if isinstance(m.f, int) else [x if j == -1 else outputs[j] for j in m.f]
            x = m(x)
            outputs.append(x if m.i in self.save else None)
        return x


Focus.__module__ = SPP.__module__ = "models.common"
Detect.__module__ = DetectionModel.__module__ = "models.yolo"


def save_release(
    file: Path, version: str, monkeypatch, stripped: bool = True, windows: bool = False, **keys
) -> nn.Module:
    """Writes a checkpoint as that version did; returns the network in it (the average, where there are two)."""
    content = _content(version, stripped, windows) | keys
    name = "Model" if version in ("v5.0", "v6.0", "v6.1") else "DetectionModel"
    DetectionModel.__qualname__ = name
    with monkeypatch.context() as patch:
        for kind in (Focus, SPP):
            patch.setattr(models.common, kind.__name__, kind)
        patch.setattr(models.yolo, "Detect", Detect)
        patch.setattr(models.yolo, name, DetectionModel, raising=False)
        torch.save(content, file)
    network = content["ema"] or content["model"]
    return network.float().eval()


def _content(version: str, stripped: bool, windows: bool) -> dict:
    model = DetectionModel(version, seed=1).half()
    content = {"epoch": -1, "best_fitness": None, "model": model, "ema": None, "updates": None, "optimizer": None}
    if not stripped:
        trained, average = DetectionModel(version, seed=2), model
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        trained(torch.rand(1, 3, 64, 64)).sum().backward()
        optimizer.step()
        for p in trained.parameters():
            p.grad = None
        content |= {"epoch": 3, "best_fitness": np.array([0.25]), "model": trained.half(), "ema": average}
        content |= {"updates": 12, "optimizer": optimizer.state_dict()}
    if version == "v5.0":
        content["training_results"] = "0/2 1G 0.1 0.02 0.03\n"
    if version in ("v5.0", "v6.0", "v6.1"):
        content["wandb_id"] = None
    if version not in ("v5.0", "v6.0"):
        content["date"] = "2022-11-22T12:00:00.000001"
    if version in ("v7.0", "master"):
        path = PureWindowsPath("C:\\yolov5\\data\\hyps") if windows else PurePosixPath("/home/me/yolov5/data/hyps")
        content["opt"] = {"imgsz": 640, "freeze": [0], "evolve_population": path, "hyp": {"lr0": np.float64(0.01)}}
        content["git"] = {"remote": "https://github.com/ultralytics/yolov5", "branch": "master", "commit": "0000000"}
    return content


def rename_globals(file: Path, names: dict[str, str]) -> None:
    """Gives the globals of a pickle (`module name`) the spelling of another Python, NumPy or system."""
    with zipfile.ZipFile(file) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    for key in entries:
        if key.endswith("/data.pkl"):
            for old, new in names.items():
                before, after = ("c{}\n{}\n".format(*n.split()).encode() for n in (old, new))
                assert before in entries[key], f"{old} is not in the pickle"
                entries[key] = entries[key].replace(before, after)
    with zipfile.ZipFile(file, "w") as archive:
        for key, data in entries.items():
            archive.writestr(key, data)
