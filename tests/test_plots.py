"""Pictures and diagrams: what is drawn where, and that nothing else (user's picture, pyplot's state) changes."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.results.balance import plot_task_weights
from utils.results.batches import plot_images
from utils.results.curves import (
    plot_confusion_matrix,
    plot_metric_curve,
    plot_pr_curve,
    plot_results,
    read_results,
)
from utils.results.drawing import (
    Annotator,
    class_name,
    colors,
    font,
    image_label_text,
    save_one_box,
    shorten,
    text_color_on,
    write_image,
)
from utils.results.figures import safe_text, smooth
from utils.results.label_figures import plot_labels

ROOT = Path(__file__).resolve().parents[1]
NAMES = {0: "AR", 1: "MR", 2: "PR", 3: "TR"}
VIEWS = {0: "PSAX", 1: "PLAX", 2: "A4C"}


def black(height: int = 200, width: int = 300) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of a picture file, which must decode and must not be blank."""
    im = cv2.imread(str(file))
    assert im is not None and im.std() > 1
    return im.shape[1], im.shape[0]


# Colours and texts ----------------------------------------------------------------------------------------------------


def test_colors_differ_between_80_classes_and_stay_the_same():
    palette = [colors(i) for i in range(80)]
    assert len(set(palette)) == 80 and palette == [colors(i) for i in range(80)]
    nearest = min(sum(abs(a - b) for a, b in zip(palette[i], palette[i + 1], strict=True)) for i in range(79))
    assert nearest > 60  # neighbouring classes are told apart


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_color_has_readable_contrast(color):
    def luminance(bgr):
        blue, green, red = ((c / 255) ** 2.2 for c in bgr)
        return 0.0722 * blue + 0.7152 * green + 0.2126 * red

    lighter, darker = sorted((luminance(color), luminance(text_color_on(color))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG level AA


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([0, 1, 0], "PLAX"),
        ([0.62, 0, 0.38], "PSAX 0.62 / A4C 0.38"),
        ([0, 0, 0], "image ?"),
        ([0.01, 0.98, 0.01], "PLAX 0.98"),
        ([float("nan"), 0, 1], "image ?"),
        ([], "image ?"),
    ],
)
def test_image_label_text(row, text):
    assert image_label_text(torch.tensor(row), VIEWS) == text


def test_image_label_text_names_only_the_largest_shares():
    assert image_label_text([0.04] * 25, {}) == "0 0.04"
    assert image_label_text([0.3, 0.1, 0.4, 0.2], ["a", "b", "c", "d"]) == "c 0.40 / a 0.30 / d 0.20"


def test_class_name_of_an_unknown_class_is_its_number():
    assert class_name(NAMES, 9) == "9" and class_name(["x"], 0) == "x" and class_name([], 3) == "3"


@given(st.text(max_size=60), st.integers(9, 30), st.integers(30, 400))
@settings(max_examples=50, deadline=None)
def test_shortened_text_fits(text, size, width):
    short = shorten(text, size, width)
    assert font(size).getlength(short) <= width or len(short) <= 1
    assert "\n" not in short


def test_shortened_file_name_keeps_its_end():
    assert shorten("patient_" + "x" * 100 + "_frame_017.jpg", 12, 200).endswith("017.jpg")


# Annotator ------------------------------------------------------------------------------------------------------------


def test_annotator_draws_on_a_copy_in_the_given_color():
    im = black()
    annotator = Annotator(im, line_width=2)
    annotator.box(torch.tensor([50.0, 60.0, 150.0, 120.0]), "MR 0.9", (10, 200, 30))
    drawn = annotator.result()
    assert not im.any()
    assert tuple(drawn[120, 100]) == (10, 200, 30)  # lower edge
    assert not drawn[90, 100].any()  # inside
    plate = drawn[40:58, 49:100].reshape(-1, 3)
    assert (plate == (10, 200, 30)).all(1).mean() > 0.4  # the label's plate stands above the box


@pytest.mark.parametrize("box", [(-50, -50, 20, 20), (250, 150, 1e9, 1e9), (0, 0, 300, 200), (290, 0, 299, 5)])
def test_label_stays_inside_the_picture(box):
    annotator = Annotator(black(), line_width=1)
    annotator.box(box, "a rather long label", (0, 0, 255))
    annotator.result()
    for x1, y1, x2, y2 in annotator._plates:
        assert 0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 200


def test_box_that_is_not_finite_is_left_out():
    annotator = Annotator(black())
    annotator.box((float("nan"), 0, 10, 10), "x")
    assert not annotator.result().any()


def test_labels_of_neighbouring_boxes_do_not_overlap():
    annotator = Annotator(black(400, 400))
    annotator.image_label("PLAX 0.98")
    for box in [(100, 100, 200, 200), (104, 102, 204, 202), (108, 104, 210, 206), (0, 5, 60, 60)]:
        annotator.box(box, "MR 0.50", (0, 255, 255))
    annotator.result()
    plates = annotator._plates
    assert len(plates) == 5
    for i, a in enumerate(plates):
        for b in plates[i + 1 :]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize("corner", ["top-left", "bottom-right"])
def test_image_label_reads_on_any_background(ground, corner):
    annotator = Annotator(np.full((200, 300, 3), ground, np.uint8))
    annotator.image_label("PSAX 0.62 / A4C 0.38", corner)
    annotator.box((0, 0, 299, 199), "", (255, 255, 255))  # drawn later, yet not over the tag
    drawn = annotator.result()
    (x1, y1, x2, y2) = annotator._plates[0]
    assert (x1 == 0, x2 == 300) == ((True, False) if "left" in corner else (False, True))
    plate = drawn[y1:y2, x1:x2].astype(int)
    assert np.percentile(plate, 99) - np.percentile(plate, 20) > 130


def test_image_label_fits_a_small_picture():
    annotator = Annotator(black(64, 64))
    annotator.image_label("parasternal short axis 0.62 / apical four chamber 0.38")
    annotator.result()
    assert annotator._plates[0][2] <= 64


@pytest.mark.parametrize(
    "im", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((5, 5, 4), np.uint8)]
)
def test_annotator_refuses_what_is_no_bgr_picture(im):
    with pytest.raises(ValueError, match="BGR"):
        Annotator(im)


def test_annotator_refuses_an_unknown_corner():
    with pytest.raises(ValueError, match="corner"):
        Annotator(black()).image_label("x", "middle")


# Crops ----------------------------------------------------------------------------------------------------------------


def test_save_one_box_size_colors_and_free_names(tmp_path):
    im = np.full((100, 200, 3), (255, 0, 0), np.uint8)  # blue
    crop = save_one_box(torch.tensor([50, 40, 90, 60]), im, tmp_path / "crops" / "a.png", gain=1.0, pad=0, BGR=True)
    assert crop.shape == (20, 40, 3) and crop[0, 0].tolist() == [255, 0, 0]
    rgb = save_one_box([50, 40, 90, 60], im, tmp_path / "crops" / "a.jpg", gain=1.0, pad=0)
    assert rgb[0, 0].tolist() == [0, 0, 255]
    assert sorted(f.name for f in (tmp_path / "crops").iterdir()) == ["a.jpg", "a2.jpg"]
    for name in ("a.jpg", "a2.jpg"):
        blue, green, red = cv2.imread(str(tmp_path / "crops" / name))[10, 20].astype(int)
        assert blue > 240 and green < 15 and red < 15


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (31, 51)), ({"square": True}, (51, 51)), ({"gain": 2.0, "pad": 0}, (40, 80))],
)
def test_save_one_box_gain_pad_square(options, shape):
    crop = save_one_box([80, 90, 120, 110], np.zeros((200, 200, 3), np.uint8), save=False, **options)
    assert crop.shape[:2] == shape  # 40 x 20 px: times 1.02 plus 10, corners cut to whole pixels


def test_save_one_box_outside_writes_nothing(tmp_path):
    crop = save_one_box([500, 500, 510, 510], black(), tmp_path / "a.jpg", pad=0)
    assert crop.size == 0 and not list(tmp_path.iterdir())


def test_write_image_takes_unicode_paths(tmp_path):
    for suffix, magic in ((".jpg", b"\xff\xd8"), (".png", b"\x89PNG")):
        file = tmp_path / "Bildausgabe_ß_心" / f"a{suffix}"
        write_image(file, black())
        assert file.read_bytes().startswith(magic)


# Mosaics --------------------------------------------------------------------------------------------------------------


def test_plot_images_draws_boxes_in_the_right_tile(tmp_path):
    images = torch.full((4, 3, 64, 96), 100, dtype=torch.uint8)
    targets = torch.tensor([[2.0, 1, 0.5, 0.5, 0.5, 0.5]])
    mosaic = plot_images(images, targets, None, None, tmp_path / "m.jpg", NAMES)
    assert size_of(tmp_path / "m.jpg") == (mosaic.shape[1], mosaic.shape[0])
    height, width = mosaic.shape[0] // 2, mosaic.shape[1] // 2
    hits = (mosaic == colors(1)).all(2)
    inside = hits[height:, :width]  # picture 2: second row, first column
    assert inside.sum() > 500 and inside.sum() == hits.sum()


def test_plot_images_leaves_weak_predictions_out_and_survives_none():
    images = np.full((2, 3, 64, 64), 100, np.uint8)
    targets = np.array([[0, 1, 0.5, 0.5, 0.5, 0.5, 0.9], [1, 2, 0.5, 0.5, 0.5, 0.5, 0.1]], np.float32)
    mosaic = plot_images(images, targets, None, ["a.jpg", "b.jpg"], None, NAMES)
    assert (mosaic == colors(1)).all(2).any() and not (mosaic == colors(2)).all(2).any()
    empty = plot_images(images, torch.zeros(0, 6), torch.zeros(2, 0), ["a.jpg", "b.jpg"], None, NAMES)
    assert empty.shape == mosaic.shape


def test_plot_images_caption_has_a_line_for_the_image_label():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    none = plot_images(images, torch.zeros(0, 6), None, ["a.jpg"], None, NAMES)
    known = plot_images(images, torch.zeros(0, 6), torch.tensor([[0.0, 1, 0]]), ["a.jpg"], None, NAMES, VIEWS)
    unknown = plot_images(images, torch.zeros(0, 6), torch.zeros(1, 3), ["a.jpg"], None, NAMES, VIEWS)
    assert known.shape[0] > none.shape[0] and known.shape == unknown.shape and (known != unknown).any()


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (5, 5), (20, 16)])
def test_plot_images_size_and_number_of_tiles(count, shown):
    images = torch.rand(count, 3, 320, 320)  # floats of 0..1, as after the division by 255
    mosaic = plot_images(images, torch.zeros(0, 6), None, None, None, NAMES)
    columns = int(np.ceil(shown**0.5))
    tile = (mosaic.shape[1] - 6) / columns - 6
    assert 320 <= tile <= 640  # small pictures are enlarged
    assert mosaic.shape[0] == 6 + -(-shown // columns) * (round(tile) + 6)
    assert mosaic.std() > 30


def test_plot_images_leaves_the_batch_untouched():
    images = torch.zeros(1, 3, 640, 640, dtype=torch.uint8)
    plot_images(images, torch.tensor([[0, 0, 0.5, 0.5, 0.4, 0.4]]), None, ["a.jpg"], None, NAMES)
    assert not images.any()


# Diagrams -------------------------------------------------------------------------------------------------------------


def record(epoch: int, measured: bool = True) -> dict:
    """An epoch record of a joint run."""
    losses = {"box": 0.1 / (epoch + 1), "obj": 0.02, "cls": 0.03, "image": 1.0 / (epoch + 1)}
    return {
        "epoch": epoch,
        "train": losses | {"det": 0.1},
        "val": losses if measured else None,
        "task_weights": {"det": 1.2, "image": 0.8},
        "grad_norms": {"det": 0.5, "image": 0.01} if measured else None,
        "grad_cosine": 0.1 if measured else None,
        "conflict_share": 0.3 if measured else None,
        "metrics": None,
        "lr": [0.01, 0.01, 0.01],
    }


def golden_csv(golden: Path, folder: Path) -> Path:
    """results.csv as the reference writes it."""
    table = json.loads((golden / "validation.json").read_text())["training_results_csv"]
    lines = [",".join(f"{c:>20}" for c in table["columns"])]
    lines += [",".join(f"{v:20.5g}" for v in row) for row in table["rows"]]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder / "results.csv"


@pytest.mark.slow
def test_plot_results_of_a_yolov5_run(golden, tmp_path):
    data = read_results(golden_csv(golden, tmp_path))
    assert len(data) == 14 and len(data["epoch"]) == 20 and data["metrics/mAP_0.5"].max() > 0.3
    assert size_of(plot_results(tmp_path / "results.csv")) == (2100, 1125)


@pytest.mark.slow
def test_plot_results_of_a_joint_run_with_gaps(tmp_path):
    rows = ["epoch, train/box_loss,train/image_loss, val/image_loss", "0, 0.1, 1,", "1, 0.09, 0.5, 0.7", "2, 0.0"]
    (tmp_path / "results.csv").write_text("\n".join(rows))  # the last row is cut short
    data = read_results(tmp_path / "results.csv")
    assert data["epoch"].tolist() == [0, 1] and np.isnan(data["val/image_loss"][0])
    assert size_of(plot_results(tmp_path / "results.csv", tmp_path / "out" / "r.png"))[1] > 1500


@pytest.mark.parametrize("text", ["", "epoch,a\n", "a,b\n1,2\n", "epoch,a\n0,what\n"])
def test_read_results_names_the_file_that_holds_nothing(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=r"results\.csv"):
        read_results(tmp_path / "results.csv")


@given(st.lists(st.floats(-10, 10) | st.just(float("nan")), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_smooth_is_finite_where_values_are(values):
    y = smooth(values)
    assert len(y) == len(values) and np.isfinite(y[np.isfinite(values)]).all()


def test_smooth_keeps_straight_lines_and_quiets_noise():
    line = np.linspace(5, 1, 50)
    np.testing.assert_allclose(smooth(line), line, atol=1e-9)  # the ends too
    noise = np.random.default_rng(0).normal(size=100)
    assert smooth(noise).std() < 0.5 * noise.std()
    assert np.isnan(smooth([np.nan, np.nan])).all()


@pytest.mark.slow
@pytest.mark.parametrize("records", [[record(e) for e in range(8)], [record(0, False)]])
def test_plot_task_weights(tmp_path, records):
    assert size_of(plot_task_weights(records, tmp_path / "w.png")) == (2250, 1275)


@pytest.mark.parametrize("ratio", [pytest.param("1.1", marks=pytest.mark.slow), ""])
def test_plot_task_weights_with_each_update(tmp_path, ratio):
    header = "epoch,step,loss/det,loss/image,norm/det,norm/image,weight/det,weight/image,ratio/det,ratio/image,cosine"
    rows = [f"{k // 4},{k + 1},0.1,0.5,0.2,{'' if k == 3 else 0.7},1.5,0.5,{ratio},{ratio},0.1" for k in range(9)]
    (tmp_path / "balancer_trace.csv").write_text("\n".join([header, *rows]) + "\n")
    records = [record(e) for e in range(3)]
    assert size_of(plot_task_weights(records, tmp_path / "w.png", tmp_path / "balancer_trace.csv")) == (2250, 1875)


def test_plot_task_weights_needs_a_record(tmp_path):
    with pytest.raises(ValueError, match="no epoch"):
        plot_task_weights([], tmp_path / "w.png")


@pytest.mark.parametrize("n", [1, 4, pytest.param(80, marks=pytest.mark.slow)])
def test_class_curves(tmp_path, n):
    px = np.linspace(0, 1, 100)
    py = np.stack([1 - px ** (k + 1) for k in range(n)])
    names = {i: f"$class_{i}^" for i in range(n)}  # not taken for mathematics
    assert size_of(plot_pr_curve(px, py, py.mean(1), tmp_path / "PR.png", names, counts=[3] * n)) == (1350, 900)
    assert size_of(plot_metric_curve(px, py, tmp_path / "F1.png", names)) == (1350, 900)


def test_class_curves_say_which_class_a_row_is_of(tmp_path):
    px, py = np.linspace(0, 1, 10), np.ones((2, 10))
    with pytest.raises(ValueError, match="classes="):
        plot_pr_curve(px, py, [1, 1], tmp_path / "PR.png", NAMES)
    with pytest.raises(ValueError, match="classes="):
        plot_metric_curve(px, py, tmp_path / "F1.png", NAMES, classes=[1])
    assert plot_pr_curve(px, py, np.ones((2, 10)), tmp_path / "PR.png", NAMES, classes=[1, 3]).exists()


def test_class_curves_without_any_class(tmp_path):
    px, none = np.linspace(0, 1, 10), np.zeros((0, 10))
    assert plot_pr_curve(px, none, np.zeros((0, 10)), tmp_path / "PR.png", NAMES).exists()
    assert plot_metric_curve(px, none, tmp_path / "F1.png", NAMES).exists()


@pytest.mark.parametrize(
    ("n", "background", "normalize"), [(3, 0, True), (4, 1, False), pytest.param(80, 1, True, marks=pytest.mark.slow)]
)
def test_plot_confusion_matrix(tmp_path, n, background, normalize):
    matrix = np.random.default_rng(0).integers(0, 9, (n + background, n + background))
    matrix[:, 0] = 0  # a class that never occurs
    names = {i: f"class {i}" for i in range(n)}
    width, height = size_of(plot_confusion_matrix(matrix, names, "title", tmp_path / "m.png", normalize))
    assert 800 < height < width < 2300


def test_plot_confusion_matrix_refuses_other_shapes(tmp_path):
    with pytest.raises(ValueError, match="4 classes"):
        plot_confusion_matrix(np.zeros((3, 3)), NAMES, "", tmp_path / "m.png")


@pytest.mark.parametrize(
    ("views", "nc", "per_picture"), [(VIEWS, 4, 1), pytest.param(VIEWS, 80, 7, marks=pytest.mark.slow), ({}, 4, 0)]
)
def test_plot_labels(tmp_path, views, nc, per_picture):
    rng, n = np.random.default_rng(0), 30
    boxes = rng.uniform(0.1, 0.6, (n * per_picture, 4))
    objects = np.column_stack([rng.integers(0, nc, len(boxes)), boxes]).astype(np.float32)
    index = SimpleNamespace(
        objects=objects, object_offsets=np.arange(n + 1) * per_picture, image_class=rng.integers(-1, len(views), n)
    )
    file = plot_labels(index, {i: f"c{i}" for i in range(nc)}, views, tmp_path)
    assert file.name == "labels.jpg" and size_of(file) == (2400, 2250 if nc > 20 else 1425)


def test_safe_text():
    assert safe_text("a$b") == r"a\$b" and safe_text("_hidden") == " _hidden" and len(safe_text("x" * 99)) == 24


# The process the functions run in -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_are_the_same_from_two_threads(tmp_path):
    def draw(k: int) -> bytes:
        plot_confusion_matrix(np.eye(3), VIEWS, "image", tmp_path / f"{k}.png")
        return (tmp_path / f"{k}.png").read_bytes()

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(draw, range(4)))) == 1


@pytest.mark.slow
def test_pyplot_is_neither_needed_nor_changed(tmp_path):
    code = (
        "import sys, numpy as np, matplotlib\n"
        "settings = lambda: [dict.__getitem__(matplotlib.rcParams, k) for k in matplotlib.rcParams]\n"
        "before = settings()\n"
        "from utils.results.curves import plot_confusion_matrix\n"
        f"plot_confusion_matrix(np.eye(2), ['a', 'b'], 't', {str(tmp_path / 'm.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and settings() == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
