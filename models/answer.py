"""What a network answers in evaluation mode, one network or several, and the detections among its boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.boxes import non_max_suppression


class Answer(tuple):
    """Boxes, and the image-level answer of a network that has one.

    It unpacks as YOLOv5's output does: `(boxes, maps)`, with an image-level branch `((boxes, maps), logits)`.

    Args:
        boxes: Decoded boxes float32 [B,n,5+nc] in pixels of the input; where the network suppresses inside itself rows
            [B,k,6] (x1, y1, x2, y2, score, class), zero after the last detection.
        maps: Raw maps, a list of [B,na,H/s,W/s,5+nc]; None where the boxes are not those of one pass.
        logits: Of the image classes, float32 [B,cls_nc]; None without them.
        suppressed: Suppression is done.
    """

    boxes: Tensor
    maps: list[Tensor] | None
    logits: Tensor | None
    suppressed: bool

    def __new__(
        cls, boxes: Tensor, maps: list[Tensor] | None = None, logits: Tensor | None = None, suppressed: bool = False
    ) -> Answer:
        answer = super().__new__(cls, (boxes, maps) if logits is None else ((boxes, maps), logits))
        answer.boxes, answer.maps, answer.logits, answer.suppressed = boxes, maps, logits, suppressed
        return answer

    def __getnewargs__(self) -> tuple:  # copies and pickles are made from these
        return self.boxes, self.maps, self.logits, self.suppressed

    @classmethod
    def together(cls, answers: Sequence[Answer]) -> Answer:
        """Several answers on the same pictures as one: the boxes side by side (suppression then chooses among them),
        the mean of the image-level probabilities of those that have them. The logits are its logarithm."""
        probs = [a.probs for a in answers if a.logits is not None]
        logits = torch.stack(probs).mean(0).log() if probs else None
        return cls(torch.cat([a.boxes for a in answers], 1), None, logits)

    @property
    def probs(self) -> Tensor | None:
        """Image-level probabilities [B,cls_nc], or None."""
        return None if self.logits is None else self.logits.softmax(1)

    @property
    def raw(self) -> list[Tensor] | tuple[list[Tensor], Tensor]:
        """What the network gives in training, for the loss: the maps, with a branch `(maps, logits)`."""
        return self.maps if self.logits is None else (self.maps, self.logits)

    def detections(self, **nms) -> list[Tensor]:
        """Detections of each picture, [k,6] best first.

        Args:
            nms: See `utils.boxes.non_max_suppression`. Where suppression is done, only conf_thres, classes and max_det
                have an effect, and leave out what they must.
        """
        if not self.suppressed:
            return non_max_suppression(self.boxes, **nms)
        if len(nms.get("labels", ())):
            raise ValueError("--save-hybrid needs the boxes before non-max suppression: use a file without it inside")
        wanted = nms.get("classes")
        found = []
        for rows in self.boxes:
            keep = rows[:, 4] > nms["conf_thres"]
            if wanted is not None:
                keep &= torch.isin(rows[:, 5], torch.as_tensor(wanted).to(rows))
            found.append(rows[keep][: nms["max_det"]])
        return found
