"""YOLOv5 from a yaml, with the image-level branch where the yaml has one."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.answer import Answer
from models.common import Conv
from models.gflops import count_gflops
from models.heads import CBAM, Detect, ImageClassifier, ImageHead
from models.parser import BRANCHES, IMAGE, PREVIOUS, load_model_yaml, parse_model
from utils.boxes import input_multiple
from utils.weights.checkpoint import Checkpoint

__all__ = ["Detect", "DetectionModel", "ImageClassifier", "ImageHead", "Model"]

LEFTOVERS = (".anchor_grid", ".total_ops", ".total_params")  # buffers of old or profiled models that nothing needs
PROBE_SIZES = (128, 1024)  # sides of the picture that finds out the strides; the second one for strides above 64
# test-time augmentation: scale and whether to mirror
TTA = ((1.0, False), (0.83, True), (0.67, False))
TTA_PADDING = 0.447  # about the mean of ImageNet's pictures


class DetectionModel(nn.Module):
    """A detection model, with an image-level branch where the yaml has one.

    Args:
        cfg: Model yaml (a path, or a name such as `yolov5s_cls.yaml`), or its content.
        ch: Channels of the picture; None: the yaml's, else 3.
        nc: Number of object classes; None: the yaml's.
        anchors: Anchors in place of the yaml's: per level a flat list w, h, w, h, … in pixels, or a number per level.
        cls_nc: Number of image classes; None: the yaml's; 0: leave the branch out.

    Attributes:
        names, cls_names: Class names by number.
        nc, cls_nc: Numbers of object and image classes; cls_nc is 0 without a branch.
        detect, image_head: The Detect layer; the branch or None.
        stride: [nl] pixels per cell of each level.
        yaml: The yaml with the arguments above filled in; `Model(model.yaml)` builds the same network.
        save: Numbers of the layers whose output a later row names.
        hyp: Hyper-parameters, set by whoever trains the model.

    Raises:
        FileNotFoundError: No yaml of that name.
        ValueError: A row cannot be built; the message names file and row.
    """

    def __init__(
        self,
        cfg: str | Path | Mapping = "yolov5s.yaml",
        ch: int | None = None,
        nc: int | None = None,
        anchors: Sequence[Sequence[float]] | int | None = None,
        cls_nc: int | None = None,
    ) -> None:
        super().__init__()
        self.yaml, self.yaml_file = load_model_yaml(cfg)
        given = {"ch": ch, "nc": nc, "cls_nc": cls_nc, "anchors": anchors}
        self.yaml.update({k: copy.deepcopy(v) for k, v in given.items() if v is not None})
        self.yaml.setdefault("ch", 3)
        layers, self.save = parse_model(self.yaml, self.yaml_file)
        self.model = nn.Sequential(*layers)
        self._detect = next(m.i for m in layers if isinstance(m, Detect))
        self._image_head = next((m.i for m in layers if isinstance(m, BRANCHES)), None)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps, m.momentum = 1e-3, 0.03  # YOLOv5's; its weights were trained with these
        strides, last_conv = self._probe(PROBE_SIZES[0])
        if max(strides) > PROBE_SIZES[0] / 2:
            strides, last_conv = self._probe(PROBE_SIZES[1])
        self.detect.set_strides(torch.tensor(strides))
        self.detect.initialize_biases()
        self._shared = self._shared_convs(last_conv)
        self.names = {i: str(i) for i in range(self.nc)}
        self.cls_names = {i: str(i) for i in range(self.cls_nc)}
        self.hyp: dict | None = None

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, averaged: bool = True) -> Model:
        """The model that a checkpoint holds, in float32 on the CPU.

        Args:
            averaged: Take the weights' moving average where the checkpoint has one; False: the weights as trained,
                which a run goes on from.

        Raises:
            ValueError: The weights do not fit the checkpoint's own model yaml.
        """
        model = cls(checkpoint.model_yaml)
        state = checkpoint.state_dict if averaged else checkpoint.model_state_dict
        state = {k: v for k, v in state.items() if not k.endswith(LEFTOVERS)}
        if not any(".bn." in k for k in state):
            model.fuse()
        try:
            model.load_state_dict(state)
        except RuntimeError as e:
            raise ValueError(f"{checkpoint.file}: the weights do not fit the checkpoint's own model yaml: {e}") from e
        model.names, model.cls_names = dict(checkpoint.names), dict(checkpoint.cls_names)
        model.hyp = dict(checkpoint.hyp)
        for m in model.modules():
            if isinstance(m, Conv) and not any(True for _ in m.act.parameters()):  # those of a PReLU are shared
                m.act = copy.deepcopy(m.act)  # a hook on one layer's activation is called for that layer alone
        return model

    @property
    def detect(self) -> Detect:
        return self.model[self._detect]

    @property
    def image_head(self) -> ImageHead | ImageClassifier | None:
        return None if self._image_head is None else self.model[self._image_head]

    @property
    def nc(self) -> int:
        return self.detect.nc

    @nc.setter
    def nc(self, nc: int) -> None:
        """YOLOv5's training scripts set what the network has."""
        if nc != self.nc:
            raise ValueError(f"the network answers for {self.nc} classes, not {nc}: build it with nc={nc}")

    @property
    def cls_nc(self) -> int:
        return 0 if self._image_head is None else self.image_head.cls_nc

    @property
    def stride(self) -> Tensor:
        return self.detect.stride

    @property
    def multiple(self) -> int:
        """What the sides of pictures must be a multiple of, in pixels."""
        return input_multiple(self.stride)

    def forward(self, x: Tensor, augment: bool = False, profile: bool = False, visualize: bool | str | Path = False):
        """Runs pictures [B, ch, H, W], RGB, 0..1, H and W multiples of the largest stride.

        Returns:
            Training: raw maps, a list of [B, na, H/s, W/s, 5 + nc]; with a branch a pair of these and the logits
            [B, cls_nc], float32. Evaluation: an `Answer`; with `augment` that of three scaled or mirrored versions
            together. Evaluation with `detect.export`, which YOLOv5's exporters set: tensors alone.
            `profile` and `visualize` are YOLOv5's, without effect.
        """
        return self._forward_augmented(x) if augment else self._forward(x)

    def _forward(self, x: Tensor):
        outputs: dict[int | str, Tensor] = {IMAGE: x}
        detections = logits = None
        for m in self.model:
            inputs = [x if s == PREVIOUS else outputs[s] for s in m.sources]
            x = m(inputs if isinstance(m.f, list) else inputs[0])
            if m.i in self.save:
                outputs[m.i] = x
            if m.i == self._detect:
                detections = x
            elif m.i == self._image_head:
                logits = x
        if not self.training and not self.detect.export:
            return Answer(*detections, logits)
        if logits is None:
            return detections
        return (detections, logits) if self.training else (*detections, logits)

    def _forward_augmented(self, image: Tensor) -> Answer:
        if self.training:
            raise RuntimeError("test-time augmentation works in evaluation mode only: call model.eval()")
        width, multiple = image.shape[-1], self.multiple
        answers = []
        for k, (scale, mirror) in enumerate(TTA):
            x = scale_image(image.flip(3) if mirror else image, scale, multiple)
            answer = self._forward(x)
            boxes, rows = answer.boxes, [m[0, ..., 0].numel() for m in answer.maps]
            if k == 0:  # the largest objects are better seen at the smaller scales,
                boxes = boxes[:, : sum(rows[:-1])]
            elif k == len(TTA) - 1:  # and the smallest ones at the larger scales
                boxes = boxes[:, rows[0] :]
            boxes[..., :4] /= scale
            if mirror:
                boxes[..., 0] = width - boxes[..., 0]
            answers.append(Answer(boxes, None, answer.logits))
        return Answer.together(answers)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The last weights that both tasks share: of each map that the branch reads, the convolution that makes it.

        Balancers measure the tasks' gradients there. Frozen weights are left out; without a branch, or with one that
        has a backbone of its own or sends no gradient back, there are none.
        """
        if self.detached:
            return []
        parameters = (self.get_parameter(name) for name in self._shared)
        return [p for p in parameters if p.requires_grad]

    @property
    def detached(self) -> bool:
        """Whether the image branch reads the detector's maps without sending a gradient back."""
        return getattr(self.image_head, "gradient", 1) == 0

    def task_parameters(self) -> list[list[nn.Parameter]]:
        """Parameters that the loss of each task reaches: the boxes', and with a branch the image's."""
        heads = [i for i in (self._detect, self._image_head) if i is not None]
        layers = [{i} if i == self._image_head and self.detached else self._ancestors(i) | {i} for i in heads]
        return [[p for m in self.model if m.i in chosen for p in m.parameters()] for chosen in layers]

    def independent_parts(self) -> list[list[nn.Parameter]]:
        """The parameters of each task where no loss reaches those of the other, else all of them as one part."""
        tasks = self.task_parameters()
        apart = len({id(p) for part in tasks for p in part}) == sum(map(len, tasks))
        return tasks if apart else [list(self.parameters())]

    def fuse(self) -> Model:
        """Folds every batch norm that follows a convolution into it, for inference. In place."""
        for m in self.modules():
            if isinstance(m, Conv):
                m.fuse()
        return self

    def transfer(
        self, state_dict: Mapping[str, Tensor], exclude: Collection[str] = ()
    ) -> tuple[list[str], list[str], list[str]]:
        """Takes over the tensors whose name and shape fit.

        Args:
            state_dict: Weights of another model.
            exclude: Leave out keys that contain one of these, such as `anchors`.

        Returns:
            Keys taken; keys of `state_dict` left out; keys of this model that keep their initial values.
        """
        own = self.state_dict()
        taken = {
            k: v
            for k, v in state_dict.items()
            if k in own and v.shape == own[k].shape and not any(part in k for part in exclude)
        }
        self.load_state_dict(taken, strict=False)
        left_out = [k for k in state_dict if k not in taken and not k.endswith(LEFTOVERS)]
        return list(taken), left_out, [k for k in own if k not in taken]

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of the model: plain values and its tensors."""
        return {
            "yaml": copy.deepcopy(self.yaml),
            "names": dict(self.names),
            "cls_names": dict(self.cls_names),
            "nc": self.nc,
            "cls_nc": self.cls_nc,
            "stride": self.stride.tolist(),
            "state_dict": self.state_dict(),
        }

    def summary(self, imgsz: int | Sequence[int] = 640) -> dict[str, Any]:
        """Figures of the network.

        Returns:
            layers (all modules, containers too: YOLOv5 v7.0's count), parameters, gradients (trainable parameters),
            branch_parameters, gflops (2 x multiply-adds at `imgsz`; None where `thop` is not installed).
        """
        parameters = list(self.parameters())
        return {
            "layers": sum(1 for _ in self.modules()),
            "parameters": sum(p.numel() for p in parameters),
            "gradients": sum(p.numel() for p in parameters if p.requires_grad),
            "branch_parameters": sum(p.numel() for p in self.model[self._detect + 1 :].parameters()),
            "gflops": count_gflops(self, imgsz),
        }

    def info(self, verbose: bool = False, img_size: int | Sequence[int] = 640) -> str:
        """The summary as text: a line, one on what the branch adds, and with `verbose` a table of the layers."""
        figures = self.summary(img_size)
        lines = []
        if verbose:
            lines.append(f"{'':>3}{'from':>18}{'params':>11}  {'module':<18} arguments")
            lines += [f"{m.i:>3}{m.f!s:>18}{m.np:>11}  {m.type:<18} {m.args}" for m in self.model]
        gflops = "" if figures["gflops"] is None else f", {figures['gflops']:.1f} GFLOPs"
        lines.append(
            f"Model summary: {figures['layers']} layers, {figures['parameters']} parameters, "
            f"{figures['gradients']} gradients{gflops}"
        )
        if self.image_head is not None:
            added = figures["branch_parameters"]
            lines.append(
                f"Image branch ({self.image_head.type}, {self.cls_nc} classes): {added} of these parameters, "
                f"{100 * added / (figures['parameters'] - added):.2f} % more than detection alone"
            )
        return "\n".join(lines)

    def parameter_groups(self) -> list[dict]:
        """The parameters by their role in training, for `utils.training.optim.build_optimizer`.

        Returns:
            `params`, `role` and whether they `decay`, for the roles `bias`, `matrix` (weights whose layer a norm
            follows, so that of a step only the direction counts), `norm`, `answer` (weights whose size shows in what
            the network says: Detect's convolutions, the gates of attention) and `logits` (those of the image branch).
        """
        layers = list(self.modules())
        answers = {id(p) for head in layers if isinstance(head, (Detect, CBAM)) for p in head.parameters()}
        logits = {id(head.logits.weight) for head in layers if isinstance(head, ImageHead)}
        norms = tuple(v for k, v in nn.__dict__.items() if "Norm" in k and isinstance(v, type))
        groups: dict[str, list[nn.Parameter]] = {role: [] for role in ("bias", "matrix", "norm", "answer", "logits")}
        for m in layers:
            for name, p in m.named_parameters(recurse=False):
                if name == "bias":
                    role = "bias"
                elif name == "weight" and isinstance(m, norms):
                    role = "norm"
                elif id(p) in logits:
                    role = "logits"
                else:
                    role = "answer" if id(p) in answers or p.ndim < 2 else "matrix"
                groups[role].append(p)
        still = ("bias", "norm")
        return [{"params": ps, "role": role, "decay": role not in still} for role, ps in groups.items() if ps]

    @torch.no_grad()
    def _probe(self, side: int) -> tuple[list[float], dict[int, str]]:
        """Strides of Detect's maps, by a picture of that side, and the convolution that runs last in each layer."""
        last_conv: dict[int, str] = {}
        maps: list[Tensor] = []
        hooks = [
            m.register_forward_hook(lambda *_, name=name: last_conv.__setitem__(int(name.split(".")[1]), name))
            for name, m in self.named_modules()
            if isinstance(m, nn.Conv2d)
        ]
        hooks.append(self.detect.register_forward_hook(lambda _, __, out: maps.extend(out[1])))
        training = self.training
        try:
            self.eval()(torch.zeros(1, self.yaml["ch"], side, side))
        except RuntimeError as e:
            raise ValueError(f"{self.yaml_file}: the layers do not fit together: {e}") from e
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()
        return [side / m.shape[2] for m in maps], last_conv

    def _reads(self, i: int) -> list[int]:
        """Layers that layer i reads."""
        return [i - 1 if s == PREVIOUS else s for s in self.model[i].sources if s != IMAGE and (i or s != PREVIOUS)]

    def _ancestors(self, i: int) -> set[int]:
        """Layers that layer i depends on."""
        found, todo = set(), self._reads(i)
        while todo:
            j = todo.pop()
            if j not in found:
                found.add(j)
                todo += self._reads(j)
        return found

    def _shared_convs(self, last_conv: Mapping[int, str]) -> list[str]:
        """Names of `shared_parameters`: back from the branch to the first convolutions that Detect depends on too."""
        if self._image_head is None:
            return []
        of_detect = self._ancestors(self._detect)
        shared, seen, todo = set(), set(), self._reads(self._image_head)
        while todo:
            i = todo.pop()
            if i in seen:
                continue
            seen.add(i)
            if i in of_detect and i in last_conv:
                shared.add(i)
            else:
                todo += self._reads(i)
        return [f"{last_conv[i]}.weight" for i in sorted(shared)]


Model = DetectionModel  # its name until YOLOv5 v6.1
Detect.__module__ = __name__  # where YOLOv5 has it, by which its checkpoints name it


def scale_image(image: Tensor, scale: float, multiple: int) -> Tensor:
    """Resizes pictures [B, C, H, W] by `scale` and pads them at the right and bottom to the `multiple` above."""
    if scale == 1.0:
        return image
    h, w = (int(side * scale) for side in image.shape[2:])
    padded = (-(-side * scale // multiple) * multiple for side in image.shape[2:])
    image = F.interpolate(image, size=(h, w), mode="bilinear", align_corners=False)
    new_h, new_w = (int(side) for side in padded)
    return F.pad(image, (0, new_w - w, 0, new_h - h), value=TTA_PADDING)
