"""Temporal detection in two processes: their shared validation is that of one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tad_golden import clip, small_model
from tad_set import make_set
from two_processes import command, run_as_two

from utils.system.devices import data_parallel, init_world
from utils.weights import checkpoint
from utils.weights.checkpoint import load_checkpoint


def results(folder: Path) -> tuple[dict, dict]:
    """detections.json and metrics.json of a run."""
    detections, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("detections", "metrics"))
    return detections["results"], metrics


def keep_first_epoch(kept: Path, args: list[str]) -> dict:
    """Train; `last.pt` as it is after the first epoch is copied to `kept`."""
    saved = checkpoint.save_checkpoint

    def save(file: Path, record: dict) -> None:
        saved(file, record)
        if record["epoch"] == 0 and record["train_state"]:  # stripping saves, too
            shutil.copy(file, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", save)
        return command("train_tad", args)


@pytest.mark.slow
def test_two_processes_train_and_validate_as_one(second, tmp_path):
    # 80 sampled frames: three windows for each of three videos, so that one process has five and the other four
    data = make_set(tmp_path / "set", train=4, val=3, frames=160)
    words = ["--data", str(data), "--device", "cpu", "--amp", "off", "--workers", "0", "--noplots"]
    words += ["--project", str(tmp_path)]
    train = ["--cfg", "adatad_tiny.yaml", "--epochs", "2", "--batch-size", "4", "--name", "two", *words]
    kept = tmp_path / "resumed/weights/last.pt"
    kept.parent.mkdir(parents=True)
    trained, said = run_as_two(second, keep_first_epoch, kept, train)
    best = tmp_path / "two/weights/best.pt"
    state = load_checkpoint(best).state_dict
    assert "Results go to" not in said and all(v.isfinite().all() for v in state.values() if torch.is_floating_point(v))

    one = command("val_tad", ["--weights", str(best), "--name", "one", "--batch-size", "1", *words])
    (shared, figures), (alone, wanted) = results(tmp_path / "two"), results(tmp_path / "one")
    assert shared.keys() == alone.keys() == {"v4", "v5", "v6"} and all(len(rows) > 20 for rows in alone.values())
    for video, rows in alone.items():
        assert len(shared[video]) == len(rows)
        for ours, other in zip(shared[video], rows, strict=True):
            assert ours["label"] == other["label"] and ours["score"] == pytest.approx(other["score"], abs=1e-4)
            assert ours["segment"] == pytest.approx(other["segment"], abs=0.011)
    assert figures["map"] == pytest.approx(wanted["map"]) and figures["average_map"] == pytest.approx(
        one["average_map"]
    )
    assert trained["average_map"] == pytest.approx(one["average_map"])

    run_as_two(second, command, "train_tad", ["--resume", str(kept), "--device", "cpu"])
    uncut, resumed = (
        json.loads((tmp_path / name / "training_history.json").read_text())["epochs"][-1] for name in ("two", "resumed")
    )
    assert uncut["epoch"] == resumed["epoch"] == 1 and uncut["train"] == resumed["train"]


def gradients(net: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Of the adapters, for a window of its own."""
    net(clip(1, 48, 32, 32, seed)).square().mean().backward()
    return {name.removeprefix("module."): p.grad for name, p in net.named_parameters() if p.grad is not None}


def shared_gradients() -> dict[str, torch.Tensor]:
    world = init_world(torch.device("cpu"))
    backbone = small_model().backbone
    backbone.checkpointing = True
    found = gradients(data_parallel(backbone, torch.device("cpu"), share_buffers=False), world.rank)
    torch.distributed.destroy_process_group()
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*_buffers")
def test_gradients_of_recomputed_adapters_are_shared(second):
    shared, _ = run_as_two(second, shared_gradients)
    alone = [gradients(small_model().backbone, seed) for seed in (0, 1)]
    assert shared.keys() == alone[0].keys() and len(shared) == 18
    for name, grad in shared.items():
        assert torch.allclose(grad, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6), name
