"""`detect.py --visualize`: what each layer makes of a picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from exported_weights import lively_weights, made
from tiny_weights import save_weights

import detect
from models.load import load_model
from utils.results.feature_maps import CHANNELS, COLUMNS, GAP, TILE, FeatureMaps, channel_grid


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, name in enumerate(("a.png", "b.png")):
        im = cv2.resize(np.random.default_rng(k).integers(0, 255, (4, 6, 3), np.uint8), (96, 64))
        cv2.imwrite(str(folder / name), im)
    return folder


@pytest.fixture(autouse=True)
def few_channels(monkeypatch, request):
    if request.function is not test_grid:
        monkeypatch.setattr("utils.results.feature_maps.CHANNELS", 1)


def run(weights, source, tmp_path, **options):
    options = {"imgsz": 96, "device": "cpu", "nosave": True, "visualize": True} | options
    return detect.run(weights, source, project=tmp_path / "runs", **options)


@pytest.mark.slow
def test_maps_of_every_layer_and_picture(pictures, tmp_path, capsys):
    file = save_weights(tmp_path / "w.pt")
    out = run(file, pictures, tmp_path)
    assert f"Feature maps of each layer saved to a folder for each picture in {out}" in capsys.readouterr().out
    model = load_model(file)
    layers = [m for m in model.model if m not in (model.detect, model.image_head)]
    names = {f"stage{m.i}_{m.type.removeprefix('nn.')}_features" for m in layers}
    for name in "ab":
        assert {p.stem for p in (out / name).glob("*.png")} == {p.stem for p in (out / name).glob("*.npy")} == names
        rgb = cv2.imread(str(pictures / f"{name}.png"))[..., ::-1].transpose(2, 0, 1)
        with torch.inference_mode():
            first = model.model[0](torch.from_numpy(rgb / np.float32(255))[None])[0].numpy()
        np.testing.assert_allclose(np.load(out / name / "stage0_Conv_features.npy"), first, atol=1e-4)
    assert cv2.imread(str(out / "a" / "stage0_Conv_features.png")) is not None


@pytest.mark.slow
def test_frames_and_ensembles_have_folders_of_their_own(pictures, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for k in range(2):
        writer.write(np.full((64, 96, 3), 90 * k, np.uint8))
    writer.release()
    out = run([lively_weights(), made("torchscript"), lively_weights()], tmp_path / "clip.avi", tmp_path)
    folders = [p.parent.relative_to(out).as_posix() for p in sorted(out.rglob("stage0_Conv_features.npy"))]
    assert folders == ["clip_1/weights1", "clip_1/weights2", "clip_2/weights1", "clip_2/weights2"]
    maps = [np.load(out / f / "stage0_Conv_features.npy") for f in folders]
    assert np.array_equal(maps[0], maps[1]) and not np.allclose(maps[0], maps[2])


@pytest.mark.slow
def test_exported_files_have_no_maps(pictures, tmp_path, capsys):
    out = run(made("torchscript"), pictures / "a.png", tmp_path)
    assert "--visualize needs PyTorch weights (.pt)" in capsys.readouterr().out and not list(out.iterdir())


@pytest.mark.slow
def test_augmented_passes_do_not_replace_the_first(tmp_path):
    model = load_model(save_weights(tmp_path / "w.pt", joint=False))
    features, images = FeatureMaps([model]), torch.rand(2, 3, 64, 64)
    model(images, augment=True)
    features.save(1, tmp_path / "augmented")
    features.clear()
    model(images)
    assert features.save(1, tmp_path / "plain") == 24
    for file in (tmp_path / "plain").glob("*.npy"):
        assert np.array_equal(np.load(file), np.load(tmp_path / "augmented" / file.name)), file.name
    features.clear()
    assert features.save(0, tmp_path / "none") == 0


def test_grid():
    maps = np.zeros((40, 10, 20), np.float32)
    maps[:, :, 10:] = np.arange(1, 41)[:, None, None]
    maps[3] = np.nan
    maps[4] = 7
    grid = channel_grid(maps)
    height, width = TILE // 2, TILE
    assert grid.shape == (GAP + CHANNELS // COLUMNS * (height + GAP), GAP + COLUMNS * (width + GAP), 3)
    left, right = grid[GAP + 5, GAP + 5], grid[GAP + 5, GAP + width - 5]
    assert (left != right).any() and (grid[0] == 255).all()
    last = grid[-GAP - 5, -GAP - 5]
    assert np.array_equal(last, right)  # each channel has its own range
    for k in (3, 4):  # one value alone
        x = GAP + k * (width + GAP)
        assert len(np.unique(grid[GAP : GAP + height, x : x + width].reshape(-1, 3), axis=0)) == 1
    assert channel_grid(maps[:3, :, :10]).shape[1] == GAP + 3 * (TILE + GAP)
