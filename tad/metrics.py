"""How well predicted events agree with the true ones: mAP over temporal IoU, recall, and what went wrong.

The THUMOS protocol in its public implementations. Ties of scores keep the order of the predictions, and ties of tIoU
that of the truth; numpy's unstable sort makes them arbitrary elsewhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tad.choices import THRESHOLDS
from tad.segments import iou
from utils.results.timelines import Event

SAME_EVENT = 1e-3  # seconds
ERRORS = ("true positive", "duplicate", "wrong label", "localisation", "confusion", "background")
NEAR = 0.1  # tIoU under which a prediction has nothing to do with an event

Events = Mapping[str, Sequence[Event]]  # by video


@dataclass
class Scores:
    """Result of an evaluation.

    Attributes:
        thresholds: tIoU from which a prediction is right.
        classes: Labels in order of first appearance in the truth.
        ap: Average precision [thresholds, classes].
        truths: True events per class.
        predictions: Number of predictions.
    """

    thresholds: tuple[float, ...]
    classes: list[str]
    ap: np.ndarray
    truths: dict[str, int]
    predictions: int

    @property
    def map(self) -> dict[float, float]:
        """mAP at each threshold."""
        return dict(zip(self.thresholds, self.ap.mean(1).tolist(), strict=True))

    @property
    def average(self) -> float:
        """Mean of mAP over the thresholds."""
        return float(self.ap.mean())


def clean_truth(events: Sequence[Event]) -> list[Event]:
    """Without events that last no time, and without doubles (same label, both ends within a millisecond)."""
    kept: list[Event] = []
    for e in events:
        double = any(
            e.label == k.label and abs(e.start - k.start) <= SAME_EVENT and abs(e.end - k.end) <= SAME_EVENT
            for k in kept
        )
        if e.end > e.start and not double:
            kept.append(e)
    return kept


def evaluate(truth: Events, predictions: Events, thresholds: Sequence[float] = THRESHOLDS["thumos"]) -> Scores:
    """Average precision per class and threshold.

    Predictions in videos without truth are wrong ones of their class; predictions of labels that the truth does not
    have are left out of account.

    Raises:
        ValueError: There is no true event.
    """
    truth = {video: clean_truth(events) for video, events in truth.items()}
    classes = list(dict.fromkeys(e.label for events in truth.values() for e in events))
    if not classes:
        raise ValueError("there is no true event to compare with: is the subset the right one?")
    by_class: dict[str, list[tuple[str, Event]]] = defaultdict(list)
    for video, events in predictions.items():
        for e in events:
            by_class[e.label].append((video, e))
    ap = [average_precision(truth, by_class[label], label, thresholds) for label in classes]
    counts = Counter(e.label for events in truth.values() for e in events)
    return Scores(tuple(thresholds), classes, np.stack(ap, 1), dict(counts), sum(map(len, predictions.values())))


def average_precision(
    truth: Events, predictions: Sequence[tuple[str, Event]], label: str, thresholds: Sequence[float]
) -> np.ndarray:
    """Average precision [thresholds] of one class; predictions are pairs of video and event."""
    segments = {
        video: np.array([(e.start, e.end) for e in events if e.label == label]).reshape(-1, 2)
        for video, events in truth.items()
    }
    total = sum(map(len, segments.values()))
    limits = np.asarray(thresholds)
    order = np.argsort([-e.score for _, e in predictions], kind="stable")
    right = np.zeros((len(limits), len(order)), bool)
    free = {video: np.ones((len(limits), len(s)), bool) for video, s in segments.items()}
    for place, i in enumerate(order):
        video, e = predictions[i]
        if not len(segments.get(video, ())):
            continue
        overlaps = iou([(e.start, e.end)], segments[video])[0]
        best_first = np.argsort(-overlaps, kind="stable")
        # at each threshold the best overlap that is not taken yet, be it the second best of all
        open_ = free[video][:, best_first] & (overlaps[best_first] >= limits[:, None])
        for t in np.flatnonzero(open_.any(1)):
            free[video][t, best_first[open_[t].argmax()]] = False
            right[t, place] = True
    return np.array([area(np.cumsum(row), np.cumsum(~row), total) for row in right])


def area(right: np.ndarray, wrong: np.ndarray, total: int) -> float:
    """Area under the precision-recall curve made monotone (VOC 2011), from counts so far; 0 without predictions."""
    if not len(right):
        return 0.0
    precision = np.concatenate([[0.0], right / (right + wrong), [0.0]])
    recall = np.concatenate([[0.0], right / total, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


def recall(truth: Events, predictions: Events, thresholds: Sequence[float], times: int) -> np.ndarray:
    """Share of true events found, mean over classes [thresholds].

    Per class and video the best `times` as many predictions as there are true events are looked at.
    """
    truth = {video: clean_truth(events) for video, events in truth.items()}
    found: dict[str, np.ndarray] = {}
    totals: Counter[str] = Counter()
    for video, events in truth.items():
        for label in dict.fromkeys(e.label for e in events):
            wanted = [(e.start, e.end) for e in events if e.label == label]
            best = sorted((p for p in predictions.get(video, ()) if p.label == label), key=lambda p: -p.score)
            best = best[: times * len(wanted)]
            overlaps = iou([(p.start, p.end) for p in best], wanted) if best else np.zeros((1, len(wanted)))
            hits = (overlaps.max(0) >= np.asarray(thresholds)[:, None]).sum(1)
            found[label] = found.get(label, 0) + hits
            totals[label] += len(wanted)
    return np.mean([found[label] / totals[label] for label in totals], 0)


def error_kinds(truth: Events, predictions: Events, threshold: float = 0.5, per_event: int = 1) -> dict[str, int]:
    """What the best predictions are, by the kinds of Alwassel et al., Diagnosing Error in TAD (ECCV 2018).

    Looked at are the best `per_event` × as many predictions as there are true events. `duplicate` finds an event that
    is found already, `wrong label` one of another class, `localisation` overlaps too little (tIoU from 0.1),
    `confusion` does both, `background` overlaps nothing.
    """
    truth = {video: clean_truth(events) for video, events in truth.items()}
    limit = per_event * sum(map(len, truth.values()))
    best = sorted(((v, e) for v, events in predictions.items() for e in events), key=lambda p: -p[1].score)[:limit]
    taken: set[tuple[str, int]] = set()
    kinds = dict.fromkeys(ERRORS, 0)
    for video, e in best:
        events = truth.get(video, [])
        overlaps = iou([(e.start, e.end)], [(k.start, k.end) for k in events])[0] if events else np.zeros(0)
        same = np.array([k.label == e.label for k in events], bool)
        hits = [i for i in np.argsort(-overlaps, kind="stable") if same[i] and overlaps[i] >= threshold]
        free = [i for i in hits if (video, int(i)) not in taken]
        if free:
            taken.add((video, int(free[0])))
            kind = "true positive"
        elif hits:
            kind = "duplicate"
        elif overlaps[~same].max(initial=0) >= threshold:
            kind = "wrong label"
        elif overlaps[same].max(initial=0) >= NEAR:
            kind = "localisation"
        else:
            kind = "confusion" if overlaps.max(initial=0) >= NEAR else "background"
        kinds[kind] += 1
    return kinds
