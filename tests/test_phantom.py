"""The phantom set: deterministic, well labelled, boxes tight around the jets, views not readable from mean colour."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.phantom import generate, label_text
from data.phantom_anatomy import ANATOMY, DIASTOLE, NAMES, SYSTOLE, VIEWS
from data.phantom_echo import Clip, Machine
from utils.dataset.labels import parse_label

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"train_patients": 6, "valid_patients": 3, "clips": 3, "frames": 2}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "heart"
    generate(root, seed=0, **SMALL)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def labels(root: Path):
    """(picture file, parsed label) of the whole set."""
    for file in sorted(root.glob("*/images/*.jpg")):
        label = file.parents[1] / "labels" / f"{file.stem}.txt"
        yield file, parse_label(label.read_text(encoding="utf-8"), len(NAMES), len(VIEWS), str(label))


def clip(view: str, seed: int, quantile: float = 0.1) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip(rng, view, Machine.draw(rng), scale=1.0, wobble=0.005, quantile=quantile)


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_whatever_the_workers(phantom, tmp_path):
    generate(tmp_path / "again", seed=0, workers=1, **SMALL)
    assert contents(tmp_path / "again") == contents(phantom)


@pytest.mark.slow
def test_another_seed_gives_other_pictures(phantom, tmp_path):
    generate(tmp_path / "other", seed=1, train_patients=1, valid_patients=1, clips=1, frames=1)
    name = next(name for name in contents(tmp_path / "other") if name.endswith(".jpg"))
    assert (tmp_path / "other" / name).read_bytes() != (phantom / name).read_bytes()


def test_a_patient_does_not_change_with_the_size_of_the_set(phantom, tmp_path):
    generate(tmp_path / "one", seed=0, train_patients=1, valid_patients=1, clips=3, frames=2)
    one, many = contents(tmp_path / "one"), contents(phantom)
    mine = [name for name in one if name.startswith("train/images/p001")]
    assert len(mine) == 6
    assert all(one[name] == many[name] for name in mine)


def test_layout_and_counts(phantom):
    for split, patients in (("train", 6), ("valid", 3)):
        images = {f.stem for f in (phantom / split / "images").glob("*.jpg")}
        assert len(images) == patients * 3 * 2
        assert images == {f.stem for f in (phantom / split / "labels").glob("*.txt")}
    assert "SYNTHETIC" in (phantom / "README.txt").read_text(encoding="utf-8")
    assert not list(phantom.parent.glob("heart.part*"))


def test_no_patient_is_in_both_splits(phantom):
    train, valid = ({f.name[:4] for f in (phantom / s / "images").iterdir()} for s in ("train", "valid"))
    assert len(train) == 6
    assert len(valid) == 3
    assert not train & valid


def test_labels_parse_without_a_problem_and_clips_keep_their_view(phantom):
    views: dict[str, set[int]] = {}
    for file, label in labels(phantom):
        assert not label.problems, label.problems
        assert label.image_class in range(len(VIEWS))
        views.setdefault(file.name[:7], set()).add(label.image_class)
        if len(label.objects):
            x, y, w, h = label.objects[:, 1:].T
            assert (x - w / 2 > -1e-6).all() and (x + w / 2 < 1 + 1e-6).all()
            assert (y - h / 2 > -1e-6).all() and (y + h / 2 < 1 + 1e-6).all()
    assert all(len(seen) == 1 for seen in views.values())
    assert sorted(next(iter(seen)) for seen in views.values()) == [0] * 9 + [1] * 9 + [2] * 9


def test_all_classes_and_empty_pictures_and_both_kinds_of_rows_occur(phantom):
    found = list(labels(phantom))
    assert {int(c) for _, label in found for c in label.objects[:, 0]} == set(range(len(NAMES)))
    assert any(len(label.objects) == 0 for _, label in found)
    assert {len(s) > 0 for _, label in found for s in label.segments} == {True, False}


def test_jets_stand_only_in_views_that_show_their_valve(phantom):
    allowed = {view: {jet.name for jet in ANATOMY[view].jets} for view in VIEWS}
    assert allowed == {"PSAX": {"PR", "TR", "AR"}, "PLAX": {"AR", "MR"}, "A4C": {"MR", "TR"}}
    for _, label in labels(phantom):
        assert {NAMES[int(c)] for c in label.objects[:, 0]} <= allowed[VIEWS[label.image_class]]


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_the_box_is_tight_around_what_the_jet_paints(view):
    """The same frame drawn without its jet differs inside the box alone, and up to each of the box's sides."""
    drawn = 0
    for seed, quantile in ((1, 0.1), (2, 0.1), (3, 0.1), (1, 0.8), (2, 0.8), (3, 0.8)):
        with_jet, without = clip(view, seed, quantile), clip(view, seed, quantile)
        image, boxes = with_jet.frame(with_jet.phase, 0.9)
        without.jets = ()
        bare, none = without.frame(with_jet.phase, 0.9)
        assert not none
        if len(boxes) != 1:  # no jet, too small a one, or two
            continue
        x1, y1, x2, y2 = boxes[0][1].astype(int)
        ys, xs = np.nonzero((image != bare).any(2))
        # a jet pixel may by chance have the colour that was there: one pixel of play
        assert abs(xs.min() - x1) <= 1 and abs(xs.max() + 1 - x2) <= 1
        assert abs(ys.min() - y1) <= 1 and abs(ys.max() + 1 - y2) <= 1
        drawn += 1
    assert drawn >= 3


def test_no_jet_in_the_other_phase():
    for view in VIEWS:
        one = clip(view, 5)
        assert one.frame(1 - one.phase, 1.0)[1] == []


def test_regurgitation_flows_while_the_valve_is_closed():
    phases = {jet.name: jet.phase for view in VIEWS for jet in ANATOMY[view].jets}
    assert phases == {"AR": DIASTOLE, "PR": DIASTOLE, "MR": SYSTOLE, "TR": SYSTOLE}


@pytest.mark.slow
def test_jets_are_mosaic_and_normal_flow_is_not():
    """Turbulence shows as hue that changes from pixel to pixel; smooth aliasing does not."""

    def roughness(image: np.ndarray, mask: np.ndarray) -> float:
        hue = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[..., 0].astype(int)
        step = np.abs(np.diff(hue, axis=1))
        return float(np.minimum(step, 180 - step)[mask[:, 1:]].mean())

    jets, rest = [], []
    for view in VIEWS:
        for seed in range(4):
            one = clip(view, seed)
            image, boxes = one.frame(one.phase, 1.0)
            colour = np.ptp(image.astype(int), axis=2) > 60
            inside = np.zeros_like(colour)
            for _, (x1, y1, x2, y2) in boxes:
                inside[int(y1) : int(y2), int(x1) : int(x2)] = True
            if boxes and (colour & ~inside).sum() > 200:
                jets.append(roughness(image, colour & inside))
                rest.append(roughness(image, colour & ~inside))
    assert len(jets) >= 6
    assert np.mean(jets) > 1.5 * np.mean(rest)


@pytest.mark.slow
def test_the_view_cannot_be_read_from_mean_colour(tmp_path):
    """Logistic regression on mean colour and its spread, trained and tested on disjoint patients, stays near chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generate(tmp_path / "set", seed=0, train_patients=20, valid_patients=8, frames=1)
    features: dict[str, list] = {"train": [], "valid": []}
    views: dict[str, list] = {"train": [], "valid": []}
    for file, label in labels(tmp_path / "set"):
        pixels = cv2.imread(str(file)).reshape(-1, 3)
        split = file.parents[1].name
        features[split].append(np.concatenate([pixels.mean(0), pixels.std(0)]))
        views[split].append(label.image_class)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features["train"], views["train"])
    assert model.score(features["valid"], views["valid"]) < 0.6  # chance is 0.33


def test_labels_do_not_favour_one_class(phantom):
    """Always the most frequent class is a poor answer in each task."""
    classes = [int(c) for _, label in labels(phantom) for c in label.objects[:, 0]]
    assert np.bincount(classes).max() < 0.5 * len(classes)


@settings(max_examples=40, deadline=None)
@given(
    cls=st.integers(0, 3),
    view=st.integers(0, 2),
    size=st.tuples(st.integers(200, 500), st.integers(200, 500)),
    polygon=st.booleans(),
    sides=st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(5, 100), st.integers(5, 100)),
)
def test_label_text_comes_back_through_the_parser(cls, view, size, polygon, sides):
    x, y, w, h = sides
    label = parse_label(label_text([(cls, np.array([x, y, x + w, y + h], float))], view, size, polygon), 4, 3)
    assert not label.problems
    assert label.image_class == view
    expected = [cls, (x + w / 2) / size[1], (y + h / 2) / size[0], w / size[1], h / size[0]]
    np.testing.assert_allclose(label.objects, [expected], atol=2e-6)
    assert (len(label.segments[0]) == 4) == polygon


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "scan.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="no phantom set"):
        generate(tmp_path / "real", **SMALL)
    assert contents(tmp_path) == {"real/scan.jpg": b"mine"}


def test_an_earlier_phantom_set_is_replaced(tmp_path):
    counts = {"train_patients": 1, "valid_patients": 1, "clips": 1}
    generate(tmp_path / "set", frames=2, **counts)
    generate(tmp_path / "set", frames=1, **counts)
    assert len(list((tmp_path / "set").glob("*/images/*"))) == 2


def test_a_broken_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(OSError, match="could not encode"):
        generate(tmp_path / "set", train_patients=1, valid_patients=1, clips=1, frames=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train_patients", "valid_patients", "clips", "frames"])
def test_counts_must_be_positive(tmp_path, name):
    with pytest.raises(ValueError, match="at least 1"):
        generate(tmp_path / "set", **{name: 0})


@pytest.mark.slow
def test_command_line_says_that_it_is_synthetic_and_needs_no_torch(tmp_path):
    block = "import sys; sys.modules['torch'] = None; import runpy; sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", block + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    command += [str(ROOT / "data/phantom.py"), "--out", str(tmp_path / "set"), "--seed", "2"]
    command += ["--train-patients", "1", "--valid-patients", "1", "--clips", "1", "--frames", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    assert len(list((tmp_path / "set").glob("*/images/*.jpg"))) == 2
