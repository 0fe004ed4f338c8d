"""The network: frames of a window → logits and distances at every point in time."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from tad.actionformer import Detector
from tad.backbone import Backbone
from tad.config import TadConfig


class TadModel(nn.Module):
    """Backbone and detector of a configuration.

    Args:
        config: Structure (and recipe, which travels with it in checkpoints).
        names: Classes of events, in order.

    Attributes:
        names: Class number → name.
    """

    def __init__(self, config: TadConfig, names: list[str] | dict[int, str]) -> None:
        super().__init__()
        c = self.config = config
        self.names = dict(names) if isinstance(names, dict) else dict(enumerate(names))
        self.backbone = Backbone(
            c.dim, c.depth, c.heads, c.mlp, c.patch, c.grid, c.adapter, c.backbone_drop, freeze=c.freeze
        )
        self.detector = Detector(
            c.dim, len(self.names), c.channels, c.detector_heads, c.blocks, c.detector_drop, c.frames
        )

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B,3,T,H,W] (uint8 or 0..255) and their mask [B,T], True where real (padding repeats the last frame).

        Returns:
            Logits [B,P,classes], distances to start and end [B,P,2] in units of each point's stride, and which points
            are real [B,P]; P points of all levels, as `tad.segments.points` lists them.
        """
        return self.detector(self.backbone(frames), mask)

    def parameter_groups(self) -> list[dict]:
        """AdamW's groups: adapters, weights of the detector, its biases, norms and scales (without decay), backbone.

        The last one is there only where the backbone is trained. Each has the base rate `lr`.
        """
        c = self.config
        adapters, backbone, weights, others = [], [], [], []
        for name, p in self.named_parameters():
            if not p.requires_grad:
                continue
            if name.startswith("backbone."):
                (adapters if ".adapter." in name else backbone).append(p)
            else:
                (weights if name.endswith("weight") and p.ndim > 1 else others).append(p)
        groups = [
            {"params": adapters, "lr": c.adapter_lr, "weight_decay": c.weight_decay},
            {"params": weights, "lr": c.lr, "weight_decay": c.weight_decay},
            {"params": others, "lr": c.lr, "weight_decay": 0.0},
            {"params": backbone, "lr": c.backbone_lr, "weight_decay": c.weight_decay},
        ]
        return [group for group in groups if group["params"]]

    def record(self) -> dict:
        """What a checkpoint keeps of the network."""
        return {
            "yaml": {"tad": dataclasses.asdict(self.config)},
            "names": self.names,
            "cls_names": {},
            "nc": len(self.names),
            "cls_nc": 0,
            "stride": [float(2**level) for level in range(self.config.levels)],
            "state_dict": self.state_dict(),
        }
