"""Do the anchors fit the labels? Recall of the anchors, and better ones by k-means and evolution where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from utils.system.voice import say

if TYPE_CHECKING:
    from utils.dataset.scan import DatasetIndex

GOOD_RECALL = 0.98  # anchors that reach this stay as they are
MIN_LABEL_PX = 2.0  # smaller labels say nothing about anchors
MAX_LABELS = 50_000  # a sample of this size is enough to fit 9 or 12 anchors


def label_sizes(index: DatasetIndex, imgsz: int, seed: int | None = None) -> np.ndarray:
    """Width and height of every label in pixels when the longer side of its picture is `imgsz`, float32 [N, 2].

    With a seed every picture is scaled by a random 0.9..1.1, as augmentation will do.
    """
    shapes = index.shapes.astype(np.float64)
    shapes = imgsz * shapes / shapes.max(1, keepdims=True)
    if seed is not None:
        shapes = shapes * np.random.RandomState(seed).uniform(0.9, 1.1, size=(len(shapes), 1))
    per_label = np.repeat(shapes, np.diff(index.object_offsets), axis=0)
    return (index.objects[:, 3:5] * per_label).astype(np.float32)


def _closeness(wh: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Worse of the two side ratios (0..1, 1 is equal) of labels [N, 2] and anchors [n, 2], [N, n]."""
    ratio = wh[:, None] / anchors[None]
    return np.minimum(ratio, 1 / ratio).min(2)


def anchor_recall(wh: np.ndarray, anchors: np.ndarray, thr: float) -> tuple[float, float]:
    """Best possible recall, and anchors above the threshold per label.

    Args:
        wh: label sizes [N, 2] in pixels.
        anchors: [n, 2] in pixels (or [levels, n, 2]).
        thr: largest ratio between a side and its anchor's side at which they still match (`anchor_t`).

    Returns:
        Share of the labels that any anchor matches; mean number of matching anchors. (0, 0) without labels.
    """
    if not len(wh):
        return 0.0, 0.0
    matches = _closeness(np.asarray(wh, np.float32), np.asarray(anchors, np.float32).reshape(-1, 2)) > 1 / thr
    return float(matches.any(1).mean()), float(matches.sum(1).mean())


def check_anchors(
    index: DatasetIndex, anchors: np.ndarray, imgsz: int, thr: float = 4.0, seed: int = 0
) -> tuple[float, float]:
    """`anchor_recall` of the labels of a data set under a random scale of 0.9..1.1; anchors in pixels."""
    return anchor_recall(label_sizes(index, imgsz, seed), anchors, thr)


def _fitness(log_wh: np.ndarray, anchors: np.ndarray, thr: float) -> float:
    """Mean closeness of each label's best anchor, 0 where it does not match; label sizes as logarithms.

    A ratio is a difference of logarithms, which makes the thousand evaluations of a search several times faster.
    """
    log_anchors = np.log(anchors)
    gap = np.abs(log_wh[:, :1] - log_anchors[:, 0])
    np.maximum(gap, np.abs(log_wh[:, 1:] - log_anchors[:, 1]), out=gap)
    best = np.exp(-gap.min(1))
    return float((best * (best > 1 / thr)).mean())


def kmean_anchors(
    wh: np.ndarray, n: int = 9, imgsz: int = 640, thr: float = 4.0, gen: int = 1000, seed: int = 0
) -> np.ndarray:
    """Anchors for these labels: k-means on their sizes, then `gen` random mutations of which the better ones stay.

    Args:
        wh: label sizes [N, 2] in pixels at `imgsz`.
        n: number of anchors.
        imgsz: network input size, bounds the anchors.
        thr: see `anchor_recall`.
        gen: number of mutations; 0 for plain k-means.
        seed: of k-means and mutations.

    Returns:
        float32 [n, 2] in pixels, sorted by area.

    Raises:
        ValueError: no label is at least MIN_LABEL_PX wide or high.
    """
    rng = np.random.default_rng(seed)
    wh = np.asarray(wh, np.float32).reshape(-1, 2)
    wh = wh[(wh >= MIN_LABEL_PX).any(1)]
    if not len(wh):
        raise ValueError(f"no label reaches {MIN_LABEL_PX:g} px at image size {imgsz}: no anchors can be fitted")
    wh = np.maximum(wh, 1e-3)  # a side of no length has no ratio
    if len(wh) > MAX_LABELS:
        wh = wh[rng.choice(len(wh), MAX_LABELS, replace=False)]

    spread = wh.std(0)
    spread = np.where(spread > 0, spread, 1)
    if len(np.unique(wh, axis=0)) >= n:
        from sklearn.cluster import KMeans  # a slow import that few runs need

        anchors = KMeans(n, n_init=5, random_state=seed).fit(wh / spread).cluster_centers_ * spread
    else:  # fewer different labels than anchors: spread them around the labels there are
        anchors = wh[rng.integers(len(wh), size=n)] * rng.uniform(0.7, 1.4, size=(n, 2))
    anchors = anchors.clip(MIN_LABEL_PX, imgsz).astype(np.float32)

    log_wh = np.log(wh)
    best = _fitness(log_wh, anchors, thr)
    for _ in range(gen):
        change = np.where(rng.random((n, 2)) < 0.9, 1 + rng.random() * 0.1 * rng.standard_normal((n, 2)), 1)
        candidate = (anchors * change.clip(0.3, 3)).clip(MIN_LABEL_PX, imgsz).astype(np.float32)
        fitness = _fitness(log_wh, candidate, thr)
        if fitness > best:
            best, anchors = fitness, candidate
    return anchors[np.argsort(anchors.prod(1))]


def check_anchor_order(detect: Any) -> None:
    """Reverse the anchors of a Detect layer, in pixels, in place where their areas do not grow with its strides."""
    areas = detect.anchors.prod(-1).mean(-1)  # [levels]
    if (areas[-1] - areas[0]) * (detect.stride[-1] - detect.stride[0]) < 0:
        detect.anchors[:] = detect.anchors.flip(0)


def autoanchor(
    index: DatasetIndex, model: Any, imgsz: int, thr: float = 4.0, seed: int = 0, verbose: bool = True
) -> bool:
    """Check a model's anchors against the labels; replace them in place where their recall is low and others do better.

    Args:
        index: the training split.
        model: has `.detect` with `.anchors` [levels, n, 2] in grid units and `.stride` [levels].

    Returns:
        Whether the anchors were replaced.
    """
    detect = model.detect
    stride = detect.stride.to(detect.anchors).view(-1, 1, 1)
    anchors = (detect.anchors * stride).detach().cpu().numpy()
    wh = label_sizes(index, imgsz, seed)

    def tell(text: str) -> None:
        if verbose:
            say(f"AutoAnchor: {text}")

    if not len(wh):
        tell("no labels, anchors stay as they are")
        return False
    recall, above = anchor_recall(wh, anchors, thr)
    fit = f"{above:.2f} anchors/target, {recall:.3f} Best Possible Recall (BPR). "
    if recall > GOOD_RECALL:
        tell(fit + "Current anchors are a good fit to the data set")
        return False
    tell(fit + "Anchors are a poor fit to the data set, looking for better ones...")
    try:
        found = kmean_anchors(label_sizes(index, imgsz), anchors[..., 0].size, imgsz, thr, seed=seed)
    except ValueError as error:
        tell(f"{error}; anchors stay as they are")
        return False
    new_recall, new_above = anchor_recall(wh, found, thr)
    if new_recall <= recall:
        tell(f"the best found reach a recall of {new_recall:.3f}; anchors stay as they are")
        return False
    detect.anchors[:] = detect.anchors.new_tensor(found).view_as(detect.anchors)
    check_anchor_order(detect)
    detect.anchors /= stride
    tell(
        f"anchors replaced: {new_above:.2f} anchors/target, {new_recall:.3f} BPR (write them to the model yaml to keep)"
    )
    return True
