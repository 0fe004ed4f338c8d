"""Records of a run: columns, gaps, resuming, damaged files, TensorBoard."""

from __future__ import annotations

import builtins
import json
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.training import more_scalars, table_columns, trace_columns, trace_row
from utils.results.curves import plot_results, read_results
from utils.system.plain import plain
from utils.training.records import RunLogger

JOINT_ORDER = [
    "train/image_loss",
    "val/image_loss",
    "metrics/image_accuracy",
    "metrics/image_balanced_accuracy",
    "metrics/image_macro_f1",
    "weights/det",
    "weights/image",
]


def record(epoch: int, **changes) -> dict:
    losses = {"box": 0.1 + epoch, "obj": 0.2, "cls": 0.3, "image": 0.4, "det": 0.6}
    metrics = {"precision": 0.5, "recall": 0.6, "f1": 0.55, "map50": 0.7, "map50_95": 0.3, "fitness": 0.4}
    metrics |= {"image_accuracy": 0.9, "image_balanced_accuracy": 0.8, "image_macro_f1": 0.85}
    return {
        "epoch": epoch,
        "train": losses,
        "val": {k: v * 2 for k, v in losses.items()},
        "task_weights": {"det": 1.25, "image": 0.75},
        "grad_norms": {"det": 0.5, "image": 0.02},
        "grad_cosine": -0.1,
        "conflict_share": 0.6,
        "metrics": metrics,
        "lr": [0.1, 0.01, 0.01],
        "seconds": 12.5,
        "images_per_s": 80.0,
        "peak_memory_gb": 1.5,
    } | changes


def criterion_of(joint: bool) -> SimpleNamespace:
    image = ("image",) if joint else ()
    return SimpleNamespace(parts=("box", "obj", "cls", *image), tasks=("det", *image))


def logger(folder, joint: bool = True, **options) -> RunLogger:
    criterion = criterion_of(joint)
    return RunLogger(folder, table_columns(criterion), more_scalars(criterion), **({"tensorboard": False} | options))


def header(folder) -> list[str]:
    return [c.strip() for c in (folder / "results.csv").read_text().splitlines()[0].split(",")]


def test_columns_are_those_of_yolov5(golden, tmp_path):
    expected = json.loads((golden / "validation.json").read_text())["training_results_csv"]
    logger(tmp_path, joint=False).epoch(record(0))
    assert header(tmp_path) == expected["columns"]
    assert (tmp_path / "results.csv").read_text()[:60] == expected["header_raw_first_60_chars"]


def test_joint_runs_append_their_columns(tmp_path):
    logger(tmp_path).epoch(record(0))
    assert header(tmp_path) == list(table_columns(criterion_of(False))) + JOINT_ORDER


@pytest.mark.slow
def test_values_stand_in_their_columns(tmp_path):
    with logger(tmp_path) as log:
        log.epoch(record(0))
        log.epoch(record(1))
    data = read_results(tmp_path / "results.csv")
    assert data["epoch"].tolist() == [0, 1]
    assert data["train/box_loss"].tolist() == [0.1, 1.1] and data["val/cls_loss"][0] == 0.6
    assert data["metrics/mAP_0.5:0.95"][0] == 0.3 and data["x/lr0"][0] == 0.1 and data["weights/image"][1] == 0.75
    assert json.loads((tmp_path / "training_history.json").read_text()) == {"epochs": [record(0), record(1)]}
    assert log.history == [record(0), record(1)]
    assert plot_results(tmp_path / "results.csv").exists()


def test_what_was_not_measured_is_empty_and_null(tmp_path):
    log = logger(tmp_path)
    log.epoch(record(0, val=None, metrics=None, grad_norms=None, grad_cosine=float("nan"), lr=None))
    log.epoch({"epoch": 1})
    line = (tmp_path / "results.csv").read_text().splitlines()[1].split(",")
    assert line[4] == "" and line[11] == ""
    data = read_results(tmp_path / "results.csv")
    assert np.isnan(data["metrics/recall"]).all() and data["train/box_loss"][0] == 0.1
    text = (tmp_path / "training_history.json").read_text()
    assert "NaN" not in text and json.loads(text)["epochs"][0]["grad_cosine"] is None


def test_pandas_reads_gaps_as_nan(tmp_path):
    import pandas

    log = logger(tmp_path)
    log.epoch(record(0, metrics=None))
    log.epoch(record(1))
    frame = pandas.read_csv(tmp_path / "results.csv")  # as YOLOv5's users do: then they strip the column names
    frame.columns = frame.columns.str.strip()
    assert frame.dtypes["metrics/recall"].kind == "f" and math.isnan(frame["metrics/recall"][0])


def test_plain_takes_tensors_and_arrays():
    value = {
        "a": torch.tensor(1.5),
        "b": np.float32(2.5),
        "c": np.arange(2),
        "d": (torch.ones(2, dtype=torch.bfloat16), True),
        3: float("inf"),
    }
    assert plain(value) == {"a": 1.5, "b": 2.5, "c": [0, 1], "d": [[1.0, 1.0], True], 3: float("inf")}
    assert plain(value, finite=True)[3] is None
    with pytest.raises(TypeError, match="object"):
        plain({"x": object()})


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.slow
@given(json_values)
@settings(max_examples=100, deadline=None)
def test_plain_is_always_valid_json(value):
    json.dumps(plain(value, finite=True), allow_nan=False)


def test_resume_drops_the_epochs_that_are_run_again(tmp_path):
    first = logger(tmp_path)
    for epoch in range(5):
        first.epoch(record(epoch))
    whole = (tmp_path / "results.csv").read_text()
    second = logger(tmp_path)
    second.resume(3)
    second.epoch(record(3))
    assert [r["epoch"] for r in second.history] == [0, 1, 2, 3]
    assert (tmp_path / "results.csv").read_text() == "".join(whole.splitlines(keepends=True)[:5])
    assert len(json.loads((tmp_path / "training_history.json").read_text())["epochs"]) == 4


def test_the_trace_has_a_table_of_its_own_that_resumes(tmp_path):
    columns = trace_columns(("det", "image"))
    row = {"step": 123456, "losses": [0.5, None], "norms": [0.25, None], "weights": [1.5, 0.5], "ratios": [None, None]}
    rows = [trace_row(("det", "image"), row | {"cosines": cosines}) for cosines in ([], [0.125])]

    def log(first: int, epochs: dict[int, list]) -> str:
        one = logger(tmp_path, trace=columns)
        if first:
            one.resume(first)
        for epoch, rows in epochs.items():
            one.epoch(record(epoch, trace=rows))
        assert all("trace" not in entry for entry in one.history)
        return (tmp_path / "balancer_trace.csv").read_text()

    whole = log(0, {0: rows, 1: [], 2: rows})
    data = read_results(tmp_path / "balancer_trace.csv")
    assert data["epoch"].tolist() == [0, 0, 2, 2] and set(data["step"]) == {123456} and set(data["weight/det"]) == {1.5}
    assert np.isnan(data["loss/image"]).all() and np.isnan(data["ratio/det"]).all()
    np.testing.assert_equal(data["cosine"], [np.nan, 0.125] * 2)
    assert log(2, {2: rows}) == whole
    logger(tmp_path, trace=columns).epoch(record(0))  # a new run in the old folder, which measures nothing
    assert not (tmp_path / "balancer_trace.csv").exists()


def test_resume_of_a_cut_csv_and_without_a_history(tmp_path):
    log = logger(tmp_path)
    for epoch in range(3):
        log.epoch(record(epoch))
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text[:-150])  # a crash in the middle of a line
    (tmp_path / "training_history.json").unlink()
    again = logger(tmp_path)
    again.resume(3)
    again.epoch(record(3))
    assert read_results(tmp_path / "results.csv")["epoch"].tolist() == [0, 1, 3]
    assert [r["epoch"] for r in again.history] == [3]


def test_resume_of_a_detection_run_as_a_joint_one(tmp_path):
    logger(tmp_path, joint=False).epoch(record(0))
    log = logger(tmp_path)
    log.resume(1)
    log.epoch(record(1))
    data = read_results(tmp_path / "results.csv")
    assert data["epoch"].tolist() == [0, 1] and np.isnan(data["weights/det"][0]) and data["weights/det"][1] == 1.25


def test_resume_in_an_empty_folder(tmp_path):
    log = logger(tmp_path / "new")
    log.resume(7)
    log.epoch(record(7))
    assert read_results(log.table.file)["epoch"].tolist() == [7]


@pytest.mark.parametrize("text", ["{", "[]", '{"epochs": [{}]}', '{"epochs": 3}'])
def test_resume_names_a_damaged_history(tmp_path, text):
    (tmp_path / "training_history.json").write_text(text)
    with pytest.raises(ValueError, match=r"training_history\.json.*move it away"):
        logger(tmp_path).resume(3)


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path):
    for value in (0.1, 0.2):
        log = logger(tmp_path)
        log.epoch(record(0, seconds=value))
    assert read_results(tmp_path / "results.csv")["epoch"].tolist() == [0]
    assert json.loads(log.history_file.read_text())["epochs"][0]["seconds"] == 0.2


def test_the_same_epoch_again_replaces_it(tmp_path):
    log = logger(tmp_path)
    for epoch in (0, 1, 1):
        log.epoch(record(epoch))
    assert read_results(log.table.file)["epoch"].tolist() == [0, 1] and len(log.history) == 2


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    log = logger(tmp_path)
    log.epoch(record(0))
    with monkeypatch.context() as patch:
        patch.setattr("utils.system.files.os.replace", lambda *_: (_ for _ in ()).throw(PermissionError("in use")))
        log.epoch(record(1))
    assert "results.csv" in capsys.readouterr().out
    assert read_results(log.table.file)["epoch"].tolist() == [0]  # the old file is whole
    log.epoch(record(2))
    assert read_results(log.table.file)["epoch"].tolist() == [0, 1, 2]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["results.csv", "training_history.json"]


def test_missing_tensorboard_is_said_once(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def no_tensorboard(name, *args, **kwargs):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_tensorboard)
    log = logger(tmp_path, tensorboard=True)
    log.epoch(record(0))
    log.epoch(record(1))
    log.image("x", tmp_path / "none.png")
    assert capsys.readouterr().out.count("TensorBoard is not installed") == 1
    assert read_results(log.table.file)["epoch"].tolist() == [0, 1]


class Net(nn.Module):
    """A tiny network whose outputs differ between training and evaluation, as the joint model's do."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return [x] if self.training else (x, [x])


def test_tensorboard_events(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cv2.imwrite(str(tmp_path / "p.png"), np.full((8, 8, 3), (255, 0, 0), np.uint8))  # blue
    net = Net().train()
    with logger(tmp_path, tensorboard=True) as log:
        for epoch in range(2):
            log.epoch(record(epoch, metrics=None if epoch else record(0)["metrics"]))
        log.image("picture", tmp_path / "p.png")
        log.image("missing", tmp_path / "missing.png")
        log.graph(net, 32)
    assert net.training and net.norm.num_batches_tracked == 0  # tracing left the network as it was
    assert "left out" not in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert {"train/box_loss", "grad_norms/det", "interference/cosine", "weights/image"} <= set(tags["scalars"])
    assert "epoch" not in tags["scalars"] and tags["graph"] and tags["images"] == ["picture"]
    assert [(e.step, e.value) for e in events.Scalars("metrics/mAP_0.5")] == [(0, pytest.approx(0.7))]
    pixel = cv2.imdecode(np.frombuffer(events.Images("picture")[0].encoded_image_string, np.uint8), 1)[4, 4]
    assert pixel.tolist() == [255, 0, 0]


def test_a_network_that_cannot_be_traced_is_left_out(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    with logger(tmp_path, tensorboard=True) as log:
        log.graph(nn.Linear(4, 4), 32)
    assert "left out" in capsys.readouterr().out
