"""Augmentations: reference numbers, and labels that stay true to the pixels."""

from __future__ import annotations

import json
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import augmentations as aug
from utils.boxes import xywhn2xyxy
from utils.polygons import warped_polygon_boxes

PERSPECTIVES = [
    "identity",
    "rotate10",
    "scale1.4_shift",
    "scale0.55",
    "shear",
    "combined",
    "perspective",
    "combined_segments",
    "crop_border",
    "scale1.4_segments_out_of_view",
]


@pytest.fixture(scope="module")
def reference(golden):
    return json.loads((golden / "augment.json").read_text()), np.load(golden / "augment.npz")


def random_matrix(seed: int, size: tuple[int, int], out: tuple[int, int], affine: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return aug.perspective_matrix(
        size,
        out,
        perspective=(0, 0) if affine else rng.uniform(-1, 1, 2) * 0.6 / max(size),
        angle=rng.uniform(-40, 40),
        scale=rng.uniform(0.4, 1.6),
        shear=rng.uniform(-15, 15, 2),
        translate=rng.uniform(0.2, 0.8, 2),
    )


# --- against the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERSPECTIVES)
def test_warp_reference(reference, name):
    facts, arrays = reference
    case = next(c for c in facts["perspective"] if c["name"] == name)
    p, im = case["params"], arrays["persp/in"]
    height, width = case["out_shape"][:2]
    matrix = aug.perspective_matrix(
        (im.shape[1], im.shape[0]),
        (width, height),
        perspective=(p["perspective_x"], p["perspective_y"]),
        angle=p["angle_deg"],
        scale=p["scale"],
        shear=(p["shear_x_deg"], p["shear_y_deg"]),
        translate=(p["translate_x_frac"], p["translate_y_frac"]),
    )
    pixels = aug.warp_image(im, matrix, (width, height))
    assert np.abs(pixels.astype(int) - arrays[f"persp/{name}/out"]).max() <= 1
    segments = [arrays[f"persp/{name}/segment_{i}"] for i in range(case["n_segments"])]
    labels = aug.warp_labels(arrays[f"persp/{name}/targets_in_cls_xyxy"], segments, matrix, p["scale"], (width, height))
    expected = arrays[f"persp/{name}/targets_out"]
    assert labels.shape == expected.shape
    # The reference samples a polygon at 1000 points and takes those inside, so its boxes end short of the border.
    np.testing.assert_allclose(labels, expected, atol=0.2 if segments else 1e-6)
    if segments:
        assert (labels[:, 1:3] <= expected[:, 1:3] + 1e-9).all() and (labels[:, 3:] >= expected[:, 3:] - 1e-9).all()


def test_hsv_reference(reference):
    facts, arrays = reference
    for case in facts["hsv"]:
        im, expected = arrays[f"hsv/{case['seed']}/in"], arrays[f"hsv/{case['seed']}/out"]
        if case["changed"]:
            np.testing.assert_array_equal(aug.shift_hsv(im, case["multipliers_used"]), expected)
        else:
            np.testing.assert_array_equal(aug.augment_hsv(im, 0, 0, 0, np.random.default_rng(0)), expected)


def test_mixup_reference(reference):
    facts, arrays = reference
    first, second = np.zeros((1, 5)), np.ones((2, 5))
    im, labels = aug.mixup(arrays["mixup/a"], first, arrays["mixup/b"], second, facts["mixup"]["ratio_of_first"])
    np.testing.assert_array_equal(im, arrays["mixup/out"])
    np.testing.assert_array_equal(labels, arrays["mixup/labels_out"])


def test_copy_paste_reference(reference):
    facts, arrays = reference
    for case in facts["copy_paste"]:
        p, im = case["p"], arrays[f"copy_paste/p{case['p']}/in"]
        segments = [np.array(s) for s in case["segments_in"]]
        out, labels, pasted = aug.copy_paste(im, np.array(case["labels_in"]), segments, p, np.random.default_rng(0))
        np.testing.assert_array_equal(out, arrays[f"copy_paste/p{p}/out"])
        assert sorted(labels.tolist()) == sorted(arrays[f"copy_paste/p{p}/labels_out"].tolist())
        assert len(pasted) == case["n_out"]


def test_mosaic_reference(reference):
    facts, arrays = reference
    inputs = facts["mosaic_inputs"]
    images = [arrays[f"mosaic/image_{i}"] for i in range(4)]
    size = inputs["img_size"]
    for case in facts["mosaic"]:
        canvas, covered, origins = aug.mosaic4(images, (case["centre_y"], case["centre_x"]), size)
        labels = []
        for text, im, (x, y) in zip(inputs["labels_text"], images, origins, strict=True):
            rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 5)
            rows[:, 1:] = xywhn2xyxy(rows[:, 1:], im.shape[1], im.shape[0], x, y)
            labels.append(rows)
        labels, _ = aug.clip_labels(np.concatenate(labels), [], 2 * size, 2 * size)
        matrix = aug.perspective_matrix((2 * size, 2 * size), (size, size))
        np.testing.assert_array_equal(
            aug.warp_image(canvas, matrix, (size, size)), arrays[f"mosaic/{case['name']}/out"]
        )
        labels = aug.warp_labels(labels, [], matrix, 1.0, (size, size))
        np.testing.assert_allclose(labels, arrays[f"mosaic/{case['name']}/labels_cls_xyxy"], atol=1e-5)
        assert (canvas[0, 0] == aug.FILL).all() or covered[0, :2].tolist() == [0, 0]


def test_letterbox_reference(golden):
    facts, arrays = json.loads((golden / "boxes.json").read_text()), np.load(golden / "boxes.npz")
    for case in facts["letterbox"]:
        h, w = case["in_hw"]
        y, x = np.mgrid[:h, :w]
        checks = ((x // 4 + y // 4) % 2) * 200 + 20
        im = np.stack((x * 255 // (w - 1), y * 255 // (h - 1), checks), axis=2).astype(np.uint8)
        options = {k: case[k] for k in ("auto", "scaleFill", "scaleup", "stride")}
        out, ratio, pad = aug.letterbox(im, case["new_shape"], **options)
        assert (list(out.shape), list(ratio), list(pad)) == (case["out_shape"], case["ratio_wh"], case["pad_wh_float"])
        if case.get("pixels_stored"):
            assert np.abs(out.astype(int) - arrays[f"letterbox/out_{case['i']}"]).max() <= 1
        elif cv2.__version__.startswith("5.0"):
            assert zlib.crc32(out.tobytes()) == case["crc32_of_bytes"]


def test_box_candidates_reference(golden):
    facts, arrays = json.loads((golden / "boxes.json").read_text()), np.load(golden / "boxes.npz")
    before, after = arrays["box_candidates/before_4xn"], arrays["box_candidates/after_4xn"]
    for case in facts["box_candidates"]:
        keep = aug.box_candidates(before, after, case["wh_thr"], case["ar_thr"], case["area_thr"])
        np.testing.assert_array_equal(keep, arrays[f"box_candidates/keep_{case['j']}"])


# --- properties ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (2, 5000)])
def test_letterbox_keeps_a_pixel_of_thin_pictures(shape):
    out, _, _ = aug.letterbox(np.zeros((*shape, 3), np.uint8), 64, auto=False)
    assert out.shape == (64, 64, 3) and (out == 0).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([96, 200]), affine=st.booleans())
def test_visible_areas_are_those_of_the_pixels(seed, size, affine):
    rng = np.random.default_rng(seed)
    images = [np.full((*rng.integers(size // 2, size + 1, 2), 3), 10 + i, np.uint8) for i in range(4)]
    centre = tuple(rng.integers(size // 2, size + size // 2, 2).tolist())
    canvas, covered, _ = aug.mosaic4(images, centre, size)
    matrix = random_matrix(seed, (2 * size, 2 * size), (size, size), affine)
    shown = aug.warp_image(canvas, matrix, (size, size), flags=cv2.INTER_NEAREST)[..., 0]
    counted = np.array([(shown == 10 + i).sum() for i in range(4)])
    # A border is known to half a pixel: one percent of the picture, and a pixel along the sides.
    np.testing.assert_allclose(
        aug.visible_areas(covered, matrix, (size, size)), counted, atol=0.01 * size**2 + size / 2, rtol=0.01
    )
    owner = np.full(canvas.shape[:2], 255, np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(covered):
        owner[y1:y2, x1:x2] = i
    np.testing.assert_array_equal(aug.owner_areas(owner, 4, matrix, (size, size)), counted)


def test_visible_areas_of_scaling_and_moving_equal_the_general_way():
    rectangles = np.array([[0, 0, 50, 60], [50, 0, 200, 60], [-10, 60, 50, 200], [300, 300, 400, 400]])
    plain = aug.perspective_matrix((200, 200), (100, 100), scale=0.7, translate=(0.4, 0.55))
    turned = plain + np.array([[0, 1e-9, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        aug.visible_areas(rectangles, plain, (100, 100)), aug.visible_areas(rectangles, turned, (100, 100)), atol=1e-5
    )


def test_visible_areas_cut_what_lies_behind_the_camera():
    # 1 + 0.005 (x - 200) is negative left of x = 0, and no share may come from there.
    matrix = aug.perspective_matrix((400, 400), (200, 200), perspective=(0.01, 0))
    areas = aug.visible_areas(np.array([[0, 0, 90, 400], [0, 0, 400, 400]]), matrix, (200, 200))
    assert areas[0] == 0 and 0 < areas[1] <= 200 * 200
    assert np.isfinite(aug.warp_labels(np.array([[0, 0, 0, 400, 400]]), [], matrix, 1.0, (200, 200))).all()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    classes=st.lists(st.integers(-1, 3), min_size=1, max_size=8),
    areas=st.lists(st.floats(0, 1e5), min_size=8, max_size=8),
)
def test_image_targets_sum_to_one_or_are_unknown(classes, areas):
    areas = areas[: len(classes)]
    target = aug.mix_image_classes(classes, areas, 4)
    known = {c: sum(a for k, a in zip(classes, areas, strict=True) if k == c) for c in set(classes) - {-1}}
    total = sum(known.values())
    assert target.dtype == np.float32 and (target >= 0).all()
    if total > 1e-3:
        assert target.sum() == pytest.approx(1, abs=1e-6)
        for c in range(4):
            assert target[c] == pytest.approx(known.get(c, 0) / total, abs=1e-6)
    else:
        assert not target.any()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), corners=st.integers(3, 9), affine=st.booleans())
def test_polygon_boxes_bound_the_visible_part(seed, corners, affine):
    """Against many points of the border: star-shaped polygons, most of them concave, partly out of the frame."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(15, 180, corners)
    polygon = rng.uniform(0, 300, 2) + radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    matrix = random_matrix(seed, (300, 300), (160, 120), affine)
    box = warped_polygon_boxes([polygon], matrix, 160, 120)[0]
    along = np.linspace(0, 1, 3000)[:, None]
    border = np.concatenate([a + along * (b - a) for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True)])
    points = np.concatenate((border, np.ones((len(border), 1))), axis=1) @ matrix.T
    if (points[:, 2] < 0.2).any():  # partly behind the camera: a cut that sampling does not see
        assert np.isfinite(box).all()
        return
    points = points[:, :2] / points[:, 2:]
    frame = np.array([[0, 0], [160, 0], [160, 120], [0, 120]])
    outline = points[::50].astype(np.float32)
    held = [corner for corner in frame if cv2.pointPolygonTest(outline, corner.astype(float).tolist(), False) > 0]
    seen = np.array([*points[((points >= 0) & (points <= (160, 120))).all(1)], *held]).reshape(-1, 2)
    if len(seen):
        np.testing.assert_allclose(box, [*seen.min(0), *seen.max(0)], atol=0.5)
    else:
        assert (box[2:] - box[:2]).min() < 0.5


def test_polygon_around_the_whole_frame_is_kept():
    # No vertex is in view: YOLOv5 drops the object, though all that can be seen is this object.
    polygon = np.array([[-50, -50], [250, -50], [250, 250], [-50, 250]], float)
    labels = aug.warp_labels(np.array([[3, 0, 0, 200, 200]]), [polygon], np.eye(3), 1.0, (200, 100))
    np.testing.assert_allclose(labels, [[3, 0, 0, 200, 100]])


def test_polygons_and_boxes_may_stand_together():
    labels = np.array([[0, 40, 40, 60, 60], [1, 35, 35, 65, 65.0]])
    diamond = np.array([[50, 35], [65, 50], [50, 65], [35, 50.0]])
    matrix = aug.perspective_matrix((100, 100), (100, 100), angle=45)
    out = aug.warp_labels(labels, [np.zeros((0, 2)), diamond], matrix, 1.0, (100, 100))
    assert out[0, 3] - out[0, 1] == pytest.approx(20 * 2**0.5)  # the box around a turned box
    assert out[1, 3] - out[1, 1] == pytest.approx(30 / 2**0.5)  # the box of a turned diamond


def test_clip_labels_cuts_polygons_exactly():
    triangle = np.array([[-10, 0], [10, 0], [10, 20.0]])
    outside = triangle - 100
    labels, segments = aug.clip_labels(
        np.array([[0, -10, 0, 10, 20], [1, -110, -100, -90, -80.0]]), [triangle, outside], 50, 50
    )
    np.testing.assert_allclose(labels, [[0, 0, 0, 10, 20], [1, 0, 0, 0, 0]])
    assert segments[0][:, 0].min() == 0 and [0, 10] in segments[0].tolist()  # cut where the edge crosses
    assert len(aug.warp_labels(labels, segments, np.eye(3), 1.0, (50, 50))) == 1


def test_copy_paste_keeps_track_of_whose_pixels_are_shown():
    im = np.zeros((40, 80, 3), np.uint8)
    im[:, 40:] = 200
    owner = np.zeros((40, 80), np.uint8)
    owner[:, 40:] = 1
    square = np.array([[5, 5], [25, 5], [25, 25], [5, 25.0]])
    original = im.copy()
    out, labels, segments = aug.copy_paste(
        im, np.array([[2, 5, 5, 25, 25.0]]), [square], 1.0, np.random.default_rng(0), owner
    )
    np.testing.assert_array_equal(labels[1], [2, 55, 5, 75, 25])
    assert (out[10, 60] == 0).all() and owner[10, 60] == 0 and owner[10, 50] == 1
    np.testing.assert_array_equal(segments[1].max(0), [75, 25])
    np.testing.assert_array_equal(im, original)


def test_random_perspective_depends_on_the_generator_alone_and_changes_no_input():
    im = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    targets = np.array([[1, 10, 10, 60, 50.0]])
    before = im.copy(), targets.copy()
    results = [
        aug.random_perspective(im, targets, rng=np.random.default_rng(s), scale=0.5, perspective=5e-4)
        for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert (results[0][0] != results[2][0]).any()
    np.testing.assert_array_equal(im, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_shrinking_alone_drops_no_box():
    """A box is judged by what the border leaves of it."""
    shrink = np.diag([0.2, 0.2, 1])
    assert len(aug.warp_labels(np.array([[0, 10, 10, 50, 50]]), [], shrink, 0.2, (100, 100))) == 1


def test_a_polygon_stays_from_one_hundredth_of_its_area_on():
    square = np.array([[0.0, 0], [100, 0], [100, 100], [0, 100]])
    move, row = np.array([[1.0, 0, 95], [0, 1, 0], [0, 0, 1]]), np.array([[0, 0, 0, 100, 100]])
    kept = [len(aug.warp_labels(row, shapes, move, 1, (100, 100))) for shapes in ([square], [square[:0]])]
    assert kept == [1, 0]
