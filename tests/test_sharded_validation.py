"""Two processes that share a validation find what one finds: every number, file and picture, to the last bit."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_weights import save_weights
from two_processes import command, run_as_two

import val_joint
from models.yolo import Model
from utils.dataloaders import create_dataloader
from utils.dataset.config import load_data_config, load_hyp
from utils.dataset.scan import scan_dataset
from utils.loss import ComputeJointLoss, scale_gains
from utils.metrics import DetectionMetrics, ImageMetrics
from utils.system.devices import init_world, leave_world
from utils.system.paths import ROOT
from utils.training.average import ModelEMA
from utils.weights.checkpoint import load_checkpoint

# Nine pictures of several shapes in batches of two: five batches, one not full, of which one process gets three.
SIZES = [(96, 64), (64, 96), (80, 80), (120, 64), (64, 120), (96, 96), (72, 64), (64, 72), (100, 90)]
BATCH = 2


def write_set(folder: Path) -> Path:
    """Noise with a rectangle or two, some without an image row; two pictures share a name. Returns the data yaml."""
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        part = folder / "images" / ("b" if i == 4 else "a")
        labels = folder / "labels" / part.name
        part.mkdir(parents=True, exist_ok=True), labels.mkdir(parents=True, exist_ok=True)
        im = cv2.resize(rng.integers(0, 255, (6, 6, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        name = "2" if i == 4 else str(i)
        cv2.imwrite(str(part / f"{name}.png"), im)
        rows = [
            f"{rng.integers(3)} " + " ".join(f"{v:.4f}" for v in (*rng.uniform(0.3, 0.7, 2), *rng.uniform(0.2, 0.6, 2)))
            for _ in range(rng.integers(3))
        ]
        rows += [] if i % 4 == 3 else ["", "1 0" if i % 2 else "0 1"]
        (labels / f"{name}.txt").write_text("\n".join(rows))
    data = {"path": str(folder), "train": "images/a", "val": ["images/a", "images/b"]}
    data |= {"names": ["cat", "MR", "dog"], "cls_names": ["PSAX", "PLAX"]}
    (folder / "data.yaml").write_text(json.dumps(data))  # json is yaml
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w.pt")


def as_in_training(data: Path, weights: Path, folder: Path) -> dict:
    """A validation as a training makes one, which this process shares with the others of its world."""
    world = init_world(torch.device("cpu"))
    model = Model.from_checkpoint(load_checkpoint(weights))
    model.hyp = scale_gains(load_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml"), model, 96, 0.0)
    average = ModelEMA(model)
    if not world.is_main:  # what a process's own pictures do to its batch norms
        for module in average.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean += 1
    average.share(world)
    cfg = load_data_config(data)
    loader = val_joint.make_loader(cfg, "val", 96, BATCH, 32, workers=0, world=world)
    results = val_joint.run(
        cfg, model=average.model, dataloader=loader, imgsz=96, device="cpu", save_dir=folder, world=world,
        criterion=ComputeJointLoss(model), save_txt=True, save_conf=True, save_json=True,
    )  # fmt: skip
    assert bool(results) == world.is_main
    leave_world(world)
    return results


def assert_same_files(one: Path, two: Path) -> None:
    """Metrics but for the times, and all other files as they are."""
    files = {f.relative_to(one) for f in one.rglob("*") if f.is_file()}
    assert files == {f.relative_to(two) for f in two.rglob("*") if f.is_file()}
    (metrics,) = (f for f in files if f.name == "metrics.json")
    for name in files - {metrics}:
        assert filecmp.cmp(one / name, two / name, shallow=False), name
    ours, theirs = (json.loads((folder / metrics).read_text()) for folder in (one, two))
    assert ours.pop("speed_ms").keys() == theirs.pop("speed_ms").keys()
    assert ours == theirs


@pytest.mark.slow
def test_two_processes_validate_as_one_does(data, weights, tmp_path, second):
    pytest.importorskip("pycocotools")
    results = as_in_training(data, weights, tmp_path / "one")
    assert results["counts"]["images"] == len(SIZES) and results["image"]["unknown"] == 2
    assert all(value > 0 for value in results["losses"].values()) and results["detection"]["map50"] > 0
    assert run_as_two(second, as_in_training, data, weights, tmp_path / "two")[0]
    assert_same_files(tmp_path / "one", tmp_path / "two")
    names = {f.name for f in (tmp_path / "two" / "labels").iterdir()}
    assert len(names) == len(SIZES)  # two pictures of one name have a file each
    for name in ("val_batch0_pred.jpg", "val_batch1_labels.jpg", "val_batch2_pred.jpg", "PR_curve.png"):
        assert (tmp_path / "two" / name).is_file()


@pytest.mark.slow
def test_two_processes_share_the_command_line(data, weights, tmp_path, second, capsys):
    args = ["--data", str(data), "--weights", str(weights), "--img", "96", "--batch-size", str(BATCH), "--workers", "0"]
    args += ["--device", "cpu", "--project", str(tmp_path), "--save-txt", "--save-hybrid", "--name"]
    val_joint.main(val_joint.parse_opt([*args, "one"]))
    assert capsys.readouterr().out.count("mAP50-95") == 1
    args += ["two"]
    _, other = run_as_two(second, command, "val_joint", args)
    assert capsys.readouterr().out.count("mAP50-95") == 1 and not other  # one voice
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_dir()) == ["one", "two"]
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("rect", [True, False])
def test_shares_count_every_batch_once(data, processes, rect):
    cfg = load_data_config(data)
    index = scan_dataset(cfg.val, cfg.nc, cfg.cls_nc, root=cfg.path, verbose=False)

    def batches(rank: int, world_size: int) -> list[list[str]]:
        options = {"rect": rect, "workers": 0, "once": True, "rank": rank, "world_size": world_size}
        loader, _ = create_dataloader(index, 96, BATCH, **options)
        shares = [paths for _, _, _, paths, _ in loader]
        assert len(shares) == len(loader)
        return shares

    whole = batches(0, 1)
    assert len(whole) == 5 and len({path for paths in whole for path in paths}) == len(SIZES)
    for rank in range(processes):
        assert batches(rank, processes) == whole[rank::processes]


def test_metrics_merge_in_the_order_of_the_batches():
    rng = np.random.default_rng(0)
    whole, parts = DetectionMetrics({0: "a", 1: "b"}), [DetectionMetrics({0: "a", 1: "b"}) for _ in range(3)]
    images, shares = ImageMetrics({0: "x", 1: "y"}), [ImageMetrics({0: "x", 1: "y"}) for _ in range(3)]
    for number in range(8):
        for _ in range(2):
            boxes = torch.tensor(rng.uniform(0, 50, (3, 4)), dtype=torch.float32)
            boxes[:, 2:] += boxes[:, :2]
            conf = torch.tensor([[0.9, 0.0], [0.9, 1.0], [0.5, 0.0]])  # equal scores: their order counts
            labels = torch.cat((torch.tensor([[0.0], [1.0]]), boxes[:2] + 1), 1)
            for metrics in (whole, parts[number % 3]):
                metrics.update(torch.cat((boxes, conf), 1), labels, number)
        probs = torch.tensor(rng.dirichlet((1, 1), 3), dtype=torch.float32)
        target = torch.tensor([[1.0, 0], [0, 1], [0, 0]])
        for metrics in (images, shares[number % 3]):
            metrics.update(probs, target, number)
    for other in (2, 0):
        parts[1].merge(parts[other])
        shares[1].merge(shares[other])
    assert parts[1].compute() == whole.compute() and shares[1].compute() == images.compute()
    for ours, theirs in zip(parts[1].stats(), whole.stats(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
