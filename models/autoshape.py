"""A detector for Python users: any kind of picture in, results with the methods that YOLOv5's users know out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from models.experimental import DetectMultiBackend
from models.export.readers import fixed_size, tell_nms
from models.load import device_of, input_dtype, largest_stride, name_classes
from models.predictor import Predictor
from utils.boxes import make_divisible, xyxy2xywh
from utils.dataset.pictures import from_array, from_pil, read_picture
from utils.results.detections import draw, file_name, safe_name, summary
from utils.results.drawing import save_one_box, write_image
from utils.system.devices import amp_dtype, autocast, memory_format
from utils.system.paths import UniqueStems, increment_path
from utils.system.voice import say

Picture = str | Path | Image.Image | np.ndarray


class AutoShape(nn.Module):
    """Wraps a network so that it takes pictures of any kind and size, alone or in lists.

    Args:
        model: From `load_model`, any network in evaluation mode, or a `DetectMultiBackend`.
        verbose: Without effect, for YOLOv5's scripts.

    Attributes:
        model: What was given: of a hub model a `DetectMultiBackend`, whose `.model` is the network.
        network: The network.
        conf: Confidence threshold.
        iou: IoU threshold of non-max suppression.
        agnostic: Boxes of different classes suppress each other, too.
        multi_label: A box may have several classes.
        classes: Class numbers to keep, or None for all.
        max_det: Most detections per picture.
        amp: Half precision where the device has it.
        names, cls_names, nc, cls_nc, stride, yaml, hyp: Those of the network.
    """

    def __init__(self, model: nn.Module, verbose: bool = True):
        super().__init__()
        self.model = model.eval()
        model = self.network
        model.to(memory_format=memory_format(device_of(model), None))
        name_classes(model)
        if not isinstance(self.model, DetectMultiBackend):  # which has told
            tell_nms(model)
        self.names, self.cls_names, self.nc, self.cls_nc = model.names, model.cls_names, model.nc, model.cls_nc
        self.yaml, self.hyp = getattr(model, "yaml", None), getattr(model, "hyp", None)
        self.stride = largest_stride(model)
        self.conf, self.iou, self.agnostic, self.multi_label = 0.25, 0.45, False, False
        self.classes: list[int] | None = None
        self.max_det = 1000
        self.amp = False

    @property
    def network(self) -> nn.Module:
        return self.model.model if isinstance(self.model, DetectMultiBackend) else self.model

    def train(self, mode: bool = True) -> AutoShape:
        """Stays in evaluation mode: there is nothing to train here."""
        return super().train(False)

    @torch.inference_mode()
    def forward(
        self,
        ims: Picture | Sequence[Picture] | Tensor,
        size: int | tuple[int, int] = 640,
        augment: bool = False,
        profile: bool = False,
    ) -> Detections | Tensor:
        """Detect on pictures.

        Args:
            ims: File names, http(s) addresses, PIL pictures, arrays, or a list of these. Arrays are RGB [H,W,3] (turn
                OpenCV's around: `im[..., ::-1]`), [3,H,W] or [H,W], of any type of number, with values of 0..255. A
                float tensor [B,3,H,W] in 0..1 gives the decoded boxes [B,n,5+nc] instead of results.
            size: Longest side of the network input in pixels; rounded up to the stride. An exported file of one size
                keeps to its own.
            augment: Test-time augmentation.
            profile: Without effect, for YOLOv5's scripts: the times are measured in any case.

        Raises:
            ValueError: Something in the list is no picture, or the list is empty.
            FileNotFoundError: A file is not there.
        """
        network = self.network
        device, dtype = device_of(network), input_dtype(network)
        if isinstance(ims, Tensor):
            with autocast(device, self.amp):
                return network(ims.to(device, dtype), augment=augment).boxes
        if _is_list(ims) and not ims:
            raise ValueError("no picture: the list is empty")
        amp = amp_dtype(device) if self.amp else None
        predictor = Predictor(
            network, device, amp, memory_format(device, amp), augment, conf_thres=self.conf, iou_thres=self.iou,
            classes=self.classes, agnostic=self.agnostic, multi_label=self.multi_label, max_det=self.max_det,
        )  # fmt: skip
        with predictor.clock("preprocess"):
            ims = ims if _is_list(ims) else [ims]
            pictures, files = zip(*(_read(im, i) for i, im in enumerate(ims)), strict=True)
        longest = size if isinstance(size, int) else max(size)
        scaled = [[int(side * longest / max(im.shape[:2])) for side in im.shape[:2]] for im in pictures]
        shape = fixed_size(network) or [make_divisible(side, self.stride) for side in np.array(scaled).max(0)]
        found, probs = predictor(pictures, shape)
        return Detections(
            list(pictures), found, list(files), predictor.milliseconds(), self.names, predictor.shape, self.cls_names,
            probs,
        )  # fmt: skip


class Detections:
    """Results for a list of pictures.

    Attributes:
        ims: The pictures, RGB uint8 [H,W,3].
        pred, xyxy: Per picture float [n,6]: x1,y1,x2,y2 in pixels, confidence, class; best first.
        xywh, xyxyn, xywhn: The same as centre and size, and in fractions of the picture.
        files: Names of the pictures (`image0.jpg` for those without).
        names, cls_names: Object and image classes.
        image_probs: [B,cls_nc] image-level probabilities; None where the network has no image branch.
        image_class: Per picture the name of its image class; None where the network has no image branch.
        t: Milliseconds per picture of preparation, inference and suppression.
        s: Shape of the network input.
    """

    def __init__(
        self,
        ims: list[np.ndarray],
        pred: list[Tensor],
        files: list[str],
        times: Sequence = (0.0, 0.0, 0.0),
        names: dict[int, str] | None = None,
        shape: Sequence[int] | None = None,
        cls_names: dict[int, str] | None = None,
        image_probs: Tensor | None = None,
    ):
        self.ims, self.pred, self.files, self.names, self.cls_names = ims, pred, files, names or {}, cls_names or {}
        self.n = len(pred)
        # YOLOv5's stopwatches hold the seconds of all pictures
        self.t = tuple(1e3 * x.t / max(self.n, 1) if hasattr(x, "t") else x for x in times)
        self.image_probs, self.s = image_probs, tuple(shape or ())
        self.image_class = None if image_probs is None else [self.cls_names[int(i)] for i in image_probs.argmax(1)]
        sizes = [
            torch.tensor([*im.shape[1::-1], *im.shape[1::-1], 1, 1], device=p.device)
            for im, p in zip(ims, pred, strict=True)
        ]
        self.xyxy = pred
        self.xywh = [xyxy2xywh(p) for p in pred]
        self.xyxyn = [p / g for p, g in zip(self.xyxy, sizes, strict=True)]
        self.xywhn = [p / g for p, g in zip(self.xywh, sizes, strict=True)]

    @property
    def imgs(self) -> list[np.ndarray]:
        """The pictures, by the name that they had until YOLOv5 v6.1."""
        return self.ims

    @property
    def times(self) -> tuple[float, ...]:
        """The same as `t`; YOLOv5 has its stopwatches here."""
        return self.t

    def __len__(self) -> int:
        return self.n

    def __str__(self) -> str:
        rows = []
        for i, im in enumerate(self.ims):
            answer = summary(*self._arrays(i), self.names, self.cls_names)
            rows.append(f"image {i + 1}/{self.n}: {im.shape[0]}x{im.shape[1]} {answer}")
        speed = "{:.1f}ms pre-process, {:.1f}ms inference, {:.1f}ms NMS".format(*self.t)
        return "\n".join([*rows, f"Speed: {speed} per image at shape {self.s}"])

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.n} pictures\n{self}"

    def print(self) -> None:
        """Print both answers for each picture."""
        print(self)

    def show(self, labels: bool = True) -> None:
        """Open each picture with its answers in the system's viewer."""
        for im in self._drawn(labels):
            Image.fromarray(im).show()

    def save(self, labels: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False) -> Path:
        """Write each picture with its answers into a folder (numbered if it is there); returns the folder."""
        folder = increment_path(save_dir, exist_ok=exist_ok, mkdir=True)
        for im, file in zip(self._drawn(labels), self._names(folder), strict=True):
            write_image(folder / file, im[..., ::-1])
        say(f"Saved {self.n} image{'s' * (self.n > 1)} to {folder}")
        return folder

    def crop(self, save: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False) -> list[dict]:
        """Cut out each box; dicts with `box`, `conf`, `cls`, `label`, `im` (BGR), written below `crops/`."""
        folder = increment_path(save_dir, exist_ok=exist_ok, mkdir=True) if save else Path(save_dir)
        crops, classes, files = [], UniqueStems(), UniqueStems()
        for im, pred, file in zip(self.ims, self.pred, map(Path, self._names(folder if save else None)), strict=True):
            for number, (*box, conf, cls) in enumerate(pred):
                name = self.names[int(cls)]
                within = Path(classes(str(int(cls)), safe_name(name)))
                own = files(f"{number} {within / file}", str(within / file.stem))  # a.jpg's second is not a2.jpg
                target = folder / "crops" / f"{own}{file.suffix}"
                cut = save_one_box(box, im[..., ::-1], file=target, BGR=True, save=save)
                crops.append({"box": box, "conf": conf, "cls": cls, "label": f"{name} {conf:.2f}", "im": cut})
        if save:
            say(f"Saved results to {folder}")
        return crops

    def _names(self, folder: Path | None) -> list[str]:
        """A file name for the results of each picture; pictures of one name are told apart in `names.csv`."""
        stems = UniqueStems()
        names = [f"{stems(f'picture {i} ({f})', Path(f).stem)}{Path(f).suffix}" for i, f in enumerate(self.files)]
        if folder:
            stems.save(folder, alone=False)  # others may be there, of the call before
        return names

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """The pictures with their answers drawn, RGB; they also take the place of `.ims`."""
        self.ims = self._drawn(labels)
        return self.ims

    def pandas(self) -> Detections:
        """A copy whose `xyxy`, `xyxyn`, `xywh` and `xywhn` are lists of tables."""
        import pandas as pd  # takes half a second, and few want tables

        new = copy(self)
        corners, centre = ["xmin", "ymin", "xmax", "ymax"], ["xcenter", "ycenter", "width", "height"]
        for key, columns in (("xyxy", corners), ("xyxyn", corners), ("xywh", centre), ("xywhn", centre)):
            rows = [[[*r[:5], int(r[5]), self.names[int(r[5])]] for r in p.tolist()] for p in getattr(self, key)]
            setattr(new, key, [pd.DataFrame(r, columns=[*columns, "confidence", "class", "name"]) for r in rows])
        return new

    def tolist(self) -> list[Detections]:
        """One result for each picture."""
        return [
            Detections(
                [self.ims[i]],
                [self.pred[i]],
                [self.files[i]],
                self.t,
                self.names,
                self.s,
                self.cls_names,
                None if self.image_probs is None else self.image_probs[i : i + 1],
            )
            for i in range(self.n)
        ]

    def _arrays(self, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        probs = None if self.image_probs is None else self.image_probs[i].cpu().numpy()
        return self.pred[i].float().cpu().numpy(), probs

    def _drawn(self, labels: bool) -> list[np.ndarray]:
        drawn = []
        for i, im in enumerate(self.ims):
            bgr = draw(im[..., ::-1], *self._arrays(i), self.names, self.cls_names, None, hide_labels=not labels)
            drawn.append(np.ascontiguousarray(bgr[..., ::-1]))
        return drawn


AutoShape.__module__ = Detections.__module__ = "models.common"  # where YOLOv5 has them, and tools look for them


def _is_list(ims) -> bool:
    return isinstance(ims, (list, tuple))


def _read(im: Picture, i: int) -> tuple[np.ndarray, str]:
    """A picture of any kind → RGB uint8 [H,W,3], and a file name for its results."""
    name, file = f"picture {i}", f"image{i}.jpg"
    if isinstance(im, (str, Path)):
        bgr, file = read_picture(im), file_name(str(im))
    elif isinstance(im, Image.Image):
        bgr, file = from_pil(im, name), getattr(im, "filename", "") or file
    else:
        bgr = from_array(im, name)
    return np.ascontiguousarray(bgr[..., ::-1]), Path(file).with_suffix(".jpg").name
