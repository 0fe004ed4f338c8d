"""What a network answers: YOLOv5's shape, several answers as one, and the detections among the boxes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from models.answer import Answer
from utils.boxes import non_max_suppression

MAPS = [torch.zeros(1, 3, 2, 2, 7)]
LOGITS = torch.tensor([[0.0, 2.0]])


def boxes(*scores: float) -> torch.Tensor:
    """Boxes [1,n,7] apart from one another, class 1, with these scores."""
    rows = [[20.0 + 40 * i, 20.0, 10.0, 10.0, score, 0.0, 1.0] for i, score in enumerate(scores)]
    return torch.tensor([rows])


@pytest.mark.parametrize("twin", [lambda a: a, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_it_unpacks_as_yolov5s_output(twin):
    decoded, maps = twin(Answer(boxes(0.9), MAPS))
    assert torch.equal(decoded, boxes(0.9)) and len(maps) == 1
    joint = twin(Answer(boxes(0.9), MAPS, LOGITS))
    (decoded, maps), logits = joint
    assert torch.equal(decoded, joint.boxes) and maps is joint.maps and logits is joint.logits
    assert torch.equal(joint.probs, LOGITS.softmax(1)) and Answer(decoded).probs is None
    assert joint.raw == (maps, logits) and Answer(decoded, maps).raw is maps


def test_several_answers_as_one():
    other = Answer(boxes(0.5, 0.6), MAPS, -LOGITS)
    both = Answer.together([Answer(boxes(0.9), MAPS), other, Answer(boxes(0.7), MAPS, LOGITS)])
    assert both.maps is None and both.boxes[0, :, 4].tolist() == pytest.approx([0.9, 0.5, 0.6, 0.7])
    assert torch.allclose(both.probs, torch.tensor([[0.5, 0.5]]))  # of the two that have the branch
    assert Answer.together([Answer(boxes(0.9))]).logits is None


def test_detections():
    answer = Answer(boxes(0.3, 0.9, 0.6), MAPS)
    (found,) = answer.detections(conf_thres=0.5, iou_thres=0.5)
    assert torch.equal(found, non_max_suppression(answer.boxes, 0.5, 0.5)[0])
    assert found[:, 4].tolist() == pytest.approx([0.9, 0.6])
    joint = Answer(answer.boxes, MAPS, LOGITS)  # as scripts written for YOLOv5 call it
    assert torch.equal(non_max_suppression(joint, 0.5, 0.5)[0], found)


def test_suppression_inside_leaves_out_what_is_not_wanted():
    rows = torch.tensor([[[0, 0, 9, 9, 0.9, 1], [0, 0, 9, 9, 0.8, 0], [0, 0, 9, 9, 0.2, 1], [0, 0, 0, 0, 0, 0]]])
    answer = Answer(rows, suppressed=True)
    (found,) = answer.detections(conf_thres=0.1, iou_thres=0.0, max_det=9)
    assert torch.equal(found, rows[0, :3])
    (found,) = answer.detections(conf_thres=0.1, classes=[1], max_det=1)
    assert torch.equal(found, rows[0, :1])
    with pytest.raises(ValueError, match="--save-hybrid"):
        answer.detections(conf_thres=0.1, max_det=9, labels=[torch.zeros(1, 5)])
