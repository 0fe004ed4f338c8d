"""The evaluation of events: the figures of the reference, cases by hand, and a plain program as oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tad_golden import figures

from tad.metrics import ERRORS, area, clean_truth, error_kinds, evaluate, recall
from utils.results.timelines import Event

CASES = figures("eval")["cases"]
BY_NAME = {c["name"]: c for c in CASES}


def events_of(case: dict) -> tuple[dict, dict]:
    data = BY_NAME[case["same_data_as"]] if case.get("same_data_as") else case
    blocked = set(case["blocked"] or ())
    truth = {
        video: [Event(*map(float, a["segment"]), a["label"]) for a in record["annotations"]]
        for video, record in data["ground_truth"]["database"].items()
        if record["subset"] == case["subset"] and video not in blocked
    }
    predictions = {
        video: [Event(*map(float, p["segment"]), p["label"], p["score"]) for p in rows]
        for video, rows in data["predictions"]["results"].items()
    }
    return truth, {v: p for v, p in predictions.items() if v not in blocked}


@pytest.mark.parametrize("case", [c for c in CASES if c["name"] != "wrong_subset"], ids=lambda c: c["name"])
def test_average_precision(case):
    truth, predictions = events_of(case)
    scores = evaluate(truth, predictions, case["tiou_thresholds"])
    assert scores.classes == case["classes_by_index"]
    assert np.allclose(scores.ap, case["ap_per_threshold_and_class"], atol=1e-9)
    wanted = case["result"]
    assert scores.average == pytest.approx(wanted["average_mAP"], abs=1e-9)
    for threshold, value in scores.map.items():
        assert value == pytest.approx(wanted[f"mAP@{threshold}"], abs=1e-9)
    assert sum(scores.truths.values()) == case["n_ground_truth"]
    for times in case["top_k"] or ():
        found = recall(truth, predictions, case["tiou_thresholds"], times)
        wanted_recall = [wanted[f"recall@{t}@{times}"] for t in case["tiou_thresholds"]]
        assert found.tolist() == pytest.approx(wanted_recall, abs=1e-9)


def test_no_truth_is_an_error():
    with pytest.raises(ValueError, match="no true event"):
        evaluate(*events_of(BY_NAME["wrong_subset"]))


def test_area():
    for piece in figures("eval")["pieces"]["envelope"]:
        precision, found = np.array(piece["precision"]), np.array(piece["recall"])
        total = 4
        right = found * total
        assert area(right, right / precision - right, total) == pytest.approx(piece["ap"])
    assert area(np.zeros(0), np.zeros(0), 3) == 0


def test_truth_is_cleaned():
    rows = [Event(0, 10, "x"), Event(0.0005, 10.0009, "x"), Event(0, 10, "y"), Event(5, 5, "x"), Event(7, 6, "x")]
    assert clean_truth(rows) == [rows[0], rows[2]]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("uv"), st.integers(0, 20), st.integers(1, 12), st.sampled_from("ab"), st.integers(1, 500)
    ),
    max_size=12,
)


def by_video(rows, scored: bool) -> dict:
    out = {"u": [], "v": []}
    for i, (video, start, length, label, score) in enumerate(rows):
        out[video].append(Event(start, start + length, label, (score + i / 100) / 510 if scored else 1.0))
    return out


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(EVENTS.filter(bool), EVENTS)
def test_average_precision_is_that_of_a_plain_program(truth_rows, predicted_rows):
    truth, predictions = by_video(truth_rows, False), by_video(predicted_rows, True)
    scores = evaluate(truth, predictions)
    for c, label in enumerate(scores.classes):
        wanted = [(v, e) for v, events in truth.items() for e in clean_truth(events) if e.label == label]
        ranked = sorted(
            ((v, e) for v, events in predictions.items() for e in events if e.label == label), key=lambda p: -p[1].score
        )
        for t, threshold in enumerate(scores.thresholds):
            taken, hits = set(), []
            for video, e in ranked:
                best = None
                for i, (other, g) in enumerate(wanted):
                    inter = max(0, min(e.end, g.end) - max(e.start, g.start))
                    overlap = inter / (e.end - e.start + g.end - g.start - inter)
                    open_ = other == video and i not in taken and overlap >= threshold
                    if open_ and (best is None or overlap > best[0]):
                        best = overlap, i
                hits.append(best is not None)
                if best:
                    taken.add(best[1])
            precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
            ap = sum(max(precisions[i:]) for i, hit in enumerate(hits) if hit) / len(wanted)
            assert scores.ap[t, c] == pytest.approx(ap, abs=1e-9)


def test_kinds_of_errors():
    truth = {"v": [Event(0, 10, "a"), Event(20, 30, "b"), Event(40, 50, "a"), Event(60, 70, "a"), Event(80, 90, "b"),
                   Event(100, 101, "a")]}  # fmt: skip
    predictions = {
        "v": [
            Event(0, 10, "a", 0.9),  # right
            Event(0, 9, "a", 0.8),  # found already
            Event(20, 30, "a", 0.7),  # another class
            Event(46, 56, "a", 0.6),  # overlaps too little
            Event(86, 96, "a", 0.5),  # both
            Event(200, 210, "a", 0.4),  # nothing there
            Event(60, 70, "a", 0.1),  # not among the best six
        ]
    }
    kinds = error_kinds(truth, predictions)
    assert tuple(kinds) == ERRORS and kinds == dict.fromkeys(ERRORS, 1)
