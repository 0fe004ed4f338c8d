"""Networks from yaml: figures and outputs of the reference, the image-level branch, bad rows."""

from __future__ import annotations

import copy
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import common
from models.common import Conv
from models.heads import CBAM
from models.parser import LAYERS, load_model_yaml, parse_activation, parse_model
from models.yolo import Model
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml
from utils.weights.checkpoint import load_checkpoint, save_checkpoint

P5 = [f"yolov5{size}" for size in "nsmlx"]
P6 = [f"yolov5{size}6" for size in "nsmlx"]
JOINT = [f"yolov5{size}_cls" for size in "nsmlx"]


# a small network of strides 4 and 8 whose Detect is layer 5
TINY = {
    "nc": 2,
    "cls_nc": 3,
    "anchors": [[8, 8, 16, 16], [32, 32, 64, 64]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [[4, 2], 1, "Detect", ["nc", "anchors"]],
    ],
}
BRANCH = [[4, 2], 1, "ImageHead", ["cls_nc", 16]]
TINY_JOINT = TINY | {"head": TINY["head"] + [BRANCH]}


def fill(model: Model) -> Model:
    """Weights that depend on the keys alone, as in the reference numbers (recipe R1)."""
    in_detect = f"model.{model.detect.i}."
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        u = np.random.RandomState(zlib.crc32(key.encode())).random_sample(int(np.prod(shape)))
        if key.endswith("anchors"):
            continue
        if key.endswith("num_batches_tracked"):
            u = np.zeros(1)
        elif key.endswith("running_mean"):
            u = (u - 0.5) * 0.2
        elif len(shape) == 4:
            u = (2 * u - 1) * (0.4 if key.startswith(in_detect) else 1.5) * np.sqrt(3 / np.prod(shape[1:]))
        elif key.endswith("bias"):
            u = (u - 0.5) * (2 if key.startswith(in_detect) else 1)
        else:
            u = 0.8 + 0.4 * u
        value.copy_(torch.from_numpy(u.astype(np.float32).reshape(shape)))
    return model


def random_input(seed: int, shape) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).random_sample(shape).astype(np.float32))


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict:
    return json.loads((golden / "models.json").read_text())


@pytest.fixture(scope="module")
def n_cls() -> Model:
    torch.manual_seed(0)
    return Model("yolov5n_cls.yaml", nc=4, cls_nc=3)


# Figures of the reference ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_size_has_the_reference_layers(expected):
    assert {m["name"] for m in expected["models"]} >= {*P5, *P6}
    for want in expected["models"]:
        content, name = load_model_yaml(f"{want['name']}.yaml")
        content["nc"] = want["nc"]
        with torch.device("meta"):
            layers, save = parse_model(content, name)
        got = [{"i": m.i, "from": m.f, "type": m.type.removeprefix("nn."), "params": m.np} for m in layers]
        assert got == want["per_layer"], name
        assert sum(m.np for m in layers) == want["parameters"]
        assert save == want["save_indices"]
        assert sum(1 for _ in nn.Sequential(*layers).modules()) + 1 == want["layers_count_all_modules"]


def test_yolov5s_with_four_classes_has_the_known_figures():
    figures = Model("yolov5s.yaml", nc=4).summary()
    assert (figures["layers"], figures["parameters"], figures["gradients"]) == (214, 7_030_417, 7_030_417)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "nc"), [("yolov5n", 80), ("yolov5s", 4), ("yolov5n6", 80)])
def test_model_matches_the_reference(expected, name, nc):
    want = next(m for m in expected["models"] if (m["name"], m["nc"]) == (name, nc))
    keys = expected["state_dicts"][f"{name}_nc{nc}"]
    model = Model(f"{name}.yaml", nc=nc)
    listing = [[k, list(v.shape), str(v.dtype)[6:]] for k, v in model.state_dict().items()]
    assert listing == keys["state_dict"]
    if "named_parameters" in keys:
        names = [k if isinstance(k, str) else k[0] for k in keys["named_parameters"]]
        assert [k for k, _ in model.named_parameters()] == names
    assert model.stride.tolist() == want["stride"]
    assert torch.allclose(model.detect.anchors, torch.tensor(want["anchors_in_grid_units"]))
    bn = model.model[0].bn
    assert (bn.eps, bn.momentum, bn.num_batches_tracked.item()) == (want["bn_eps"], want["bn_momentum"], 0)

    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert [list(m.shape) for m in model.train()(x)] == want["train_output_shapes_1x3x256x256"]
        decoded, raw = model.eval()(x)
        assert list(decoded.shape) == want["eval_output_decoded_shape_1x3x256x256"]
        assert [list(m.shape) for m in raw] == want["eval_output_raw_shapes_1x3x256x256"]
        model.detect.export = True
        assert [list(m.shape) for m in model(x)] == want["export_mode_output_shapes_1x3x256x256"]
    model.detect.export = False
    assert model.summary()["gflops"] == pytest.approx(want["gflops_640_unrounded_unfused"], rel=1e-6)

    figures, fused = model.fuse().summary(), want["fused"]
    assert figures["layers"] == fused["layers_count_all_modules"]
    assert (figures["parameters"], figures["gradients"]) == (fused["parameters"], fused["gradients"])
    assert figures["gflops"] == pytest.approx(fused.get("gflops_640_unrounded", fused["gflops_640_printed"]), abs=0.05)
    if "state_dict" in fused:
        assert [[k, list(v.shape), "float32"] for k, v in model.state_dict().items()] == fused["state_dict"]


def test_initial_biases_match_the_reference(expected):
    for want in expected["detect_bias_init"]:
        torch.manual_seed(0)
        detect = Model(TINY, nc=want["nc"]).detect
        before = [conv.bias.clone().view(detect.na, -1) for conv in detect.m]
        detect.stride = torch.tensor([8.0, 32.0])
        detect.initialize_biases()
        for level, stride in enumerate(("8", "32")):
            added = detect.m[level].bias.view(detect.na, -1) - before[level]
            assert torch.allclose(added[:, :4], torch.zeros(1))
            assert torch.allclose(added[:, 4], torch.tensor(want["obj_bias_add_by_stride"][stride]), atol=1e-5)
            assert torch.allclose(added[:, 5:], torch.tensor(want["class_bias_add"]), atol=1e-5)


CASES = [
    ("forward_yolov5n", "yolov5n", 80, 1e-3, 2e-2),
    ("forward_rect_yolov5n_nc4", "yolov5n", 4, 1e-3, 2e-2),
    ("forward_yolov5n6", "yolov5n6", 80, 1e-3, 2e-2),
    ("forward_small_yolov5s", "yolov5s", 4, 1e-3, 2e-2),
    ("forward_small_yolov5m", "yolov5m", 2, 1e-2, 0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "nc", "raw_atol", "decoded_atol"), CASES)
def test_outputs_match_the_reference(golden, case, name, nc, raw_atol, decoded_atol):
    facts = json.loads((golden / "forward.json").read_text())[case]
    want = np.load(golden / f"{case}.npz")
    model = fill(Model(f"{name}.yaml", nc=nc)).eval()
    x = random_input(facts["input_seed"], facts["input_shape"])
    assert x.double().sum().item() == pytest.approx(facts["input_sum_f64"], rel=1e-6)

    every = 1 if "small" in case else 7  # rows of decoded outputs that are kept

    def close(got: Tensor, key: str, atol: float) -> None:
        got = got[:, ::every] if key.startswith("decoded") else got
        np.testing.assert_allclose(got.detach().numpy(), want[key], atol=atol, rtol=1e-3, err_msg=key)

    with torch.no_grad():
        decoded, raw = model(x)
        close(decoded, "decoded", decoded_atol)
        for i, level in enumerate(raw):
            close(level, f"raw_{i}", raw_atol)
        if "decoded_tta" in want:
            close(model(x[:1], augment=True)[0], "decoded_tta", decoded_atol)
        if "train_raw_0" in want:
            trained = copy.deepcopy(model).train()
            for i, level in enumerate(trained(x)):
                close(level, f"train_raw_{i}", raw_atol)
            for key in (k for k in want if k.startswith("after_train_fwd:")):
                close(trained.state_dict()[key.split(":")[1]], key, 1e-5)
        close(model.fuse()(x)[0], "decoded", decoded_atol)


# The image-level branch -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_branch_adds_one_to_three_percent():
    for name in JOINT:
        content, file = load_model_yaml(f"{name}.yaml")
        content["nc"] = 4
        with torch.device("meta"):
            layers, _ = parse_model(content, file)
        assert [m.type for m in layers[24:]] == ["Detect", "ImageHead"]
        share = layers[25].np / sum(m.np for m in layers[:25])
        assert 0.01 < share < 0.03, name


@pytest.mark.parametrize("name", [*P5, *JOINT, "yolov5s_dual", *(f"hub/{n}" for n in P6)])
def test_yaml_files_share_their_rows(name):
    """The sizes differ in their multiples alone, and a joint yaml in its branch."""
    content = load_yaml(ROOT / "models" / f"{name}.yaml")
    base = load_yaml(ROOT / "models" / ("hub/yolov5s6.yaml" if name.startswith("hub") else "yolov5s.yaml"))
    assert content["backbone"] == base["backbone"]
    assert content["head"][: len(base["head"])] == base["head"]
    assert len(content["head"]) - len(base["head"]) == ("_" in name)


def test_joint_outputs(n_cls):
    x = torch.rand(2, 3, 64, 96)
    raw, logits = copy.deepcopy(n_cls).train()(x)
    assert [tuple(m.shape) for m in raw] == [(2, 3, 8, 12, 9), (2, 3, 4, 6, 9), (2, 3, 2, 3, 9)]
    assert logits.shape == (2, 3)
    (decoded, raw), logits = n_cls.eval()(x)
    assert decoded.shape == (2, 3 * (96 + 24 + 6), 9)
    assert len(raw) == 3 and logits.shape == (2, 3) and logits.dtype == torch.float32
    (boxes, nothing), tta = n_cls(x, augment=True)
    assert nothing is None and boxes.shape[2] == 9
    assert torch.allclose(tta.exp().sum(1), torch.ones(2), atol=1e-5)


def test_branch_leaves_detection_as_it_is(n_cls):
    plain = Model("yolov5n.yaml", nc=4).eval()
    taken, left_out, new = plain.transfer(n_cls.state_dict())
    assert len(taken) == 349 and not new
    assert left_out and all(k.startswith("model.25.") for k in left_out)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(x)[0], n_cls.eval()(x)[0][0])


def test_transfer_lists_what_was_taken(n_cls):
    other = Model("yolov5n.yaml", nc=7)
    with torch.no_grad():
        other.detect.anchors += 1
        for p in other.parameters():
            p.fill_(0.5)
    model = Model("yolov5n_cls.yaml", nc=4, cls_nc=3)
    anchors = model.detect.anchors.clone()
    taken, left_out, new = model.transfer(other.state_dict() | {"model.24.anchor_grid": torch.zeros(1)}, ("anchors",))
    assert left_out == ["model.24.anchors", *(f"model.24.m.{i}.{w}" for i in range(3) for w in ("weight", "bias"))]
    assert len(taken) == 342
    assert set(left_out) < set(new) and {k.split(".")[1] for k in new} == {"24", "25"}
    assert torch.equal(model.detect.anchors, anchors)
    assert all((model.state_dict()[k] == 0.5).all() for k in taken if k.endswith("conv.weight"))


def test_shared_parameters_are_the_last_convolutions_of_the_levels(n_cls):
    want = [n_cls.model[i].cv3.conv.weight for i in (17, 20, 23)]
    got = n_cls.shared_parameters()
    assert len(got) == 3 and all(a is b for a, b in zip(got, want, strict=True))
    twin = copy.deepcopy(n_cls)
    assert twin.shared_parameters()[0] is twin.model[17].cv3.conv.weight
    twin.model[17].requires_grad_(False)
    assert len(twin.shared_parameters()) == 2
    raw, logits = twin.train()(torch.rand(2, 3, 64, 64))
    for loss in (sum(m.square().mean() for m in raw), logits.square().mean()):
        grads = torch.autograd.grad(loss, twin.shared_parameters(), retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[[1, 2], 1, "ImageHead", ["cls_nc", 16]]], ["model.1.conv.weight", "model.2.conv.weight"]),
        ([[[4], 1, "ImageHead", ["cls_nc", 16]]], ["model.1.conv.weight", "model.2.conv.weight"]),  # a Concat of both
        ([[2, 1, "Conv", [8, 1]], [[-1], 1, "ImageHead", ["cls_nc", 16]]], ["model.2.conv.weight"]),
        ([["image", 1, "ImageClassifier", ["cls_nc", 32]]], []),
        ([], []),
    ],
)
def test_branch_moves_by_its_from(rows, shared):
    content = copy.deepcopy(TINY)
    content["head"] += rows
    model = Model(content)
    assert model._shared == shared
    out = model.eval()(torch.rand(2, 3, 32, 40))
    assert (out[1].shape == (2, 3)) if rows else len(out[1]) == 2


def test_dual_network_shares_nothing():
    model = Model("yolov5s_dual.yaml", nc=4, cls_nc=3)
    assert model.detect.i == 24 and model.shared_parameters() == []
    _, logits = model.train()(torch.rand(2, 3, 64, 64))
    logits.square().sum().backward()
    assert all(p.grad is None for m in model.model[:25] for p in m.parameters())
    assert all(p.grad is not None for p in model.image_head.parameters())


def test_class_counts_override_the_yaml():
    model = Model(TINY_JOINT, nc=5, cls_nc=4)
    assert (model.nc, model.cls_nc, len(model.names), len(model.cls_names)) == (5, 4, 5, 4)
    assert model.yaml["nc"] == 5 and TINY_JOINT["nc"] == 2
    plain = Model(TINY_JOINT, cls_nc=0)
    assert plain.image_head is None and plain.cls_nc == 0 and isinstance(plain(torch.rand(1, 3, 32, 32)), list)
    assert Model(plain.yaml).cls_nc == 0
    assert Model(TINY, cls_nc=4).cls_nc == 0


def test_anchors_override_the_yaml():
    model = Model(TINY, anchors=[[8, 16], [24, 40]])
    assert model.detect.anchors.tolist() == [[[2, 4]], [[3, 5]]]  # strides 4 and 8
    model = Model(TINY, anchors=3)
    assert model.detect.na == 3 and (model.detect.anchors > 0).all()
    reversed_levels = Model(TINY, anchors=[[32, 32], [8, 8]])
    assert (reversed_levels.detect.anchors[0] < reversed_levels.detect.anchors[1]).all()


# How it behaves in use ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_autocast_stays_close(n_cls, channels_last):
    model = fill(copy.deepcopy(n_cls))
    x = random_input(0, (2, 3, 64, 64))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    (want, _), want_logits = model.eval()(x)
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        (decoded, raw), logits = model(x)
        assert decoded.dtype == torch.float32 and raw[0].dtype == torch.bfloat16 and logits.dtype == torch.float32
        train_raw, train_logits = model.train()(x)
    assert (decoded - want).abs()[..., 4:].max() < 0.2
    assert (logits - want_logits).abs().max() < 0.2
    (sum(m.float().square().mean() for m in train_raw) + train_logits.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_decoding_is_float32_where_the_maps_are_not():
    detect = Model("yolov5n.yaml", nc=1).detect
    maps = [torch.randn(1, 3, 40, 40, 6) for _ in range(3)]
    half = [m.half() for m in maps]
    exact = detect.decode([m.float() for m in half])
    assert torch.equal(detect.half().decode(half), exact)  # anchors of the yaml and strides are exact in float16


def test_grid_follows_size_and_mode(n_cls):
    model = copy.deepcopy(n_cls).eval()
    with torch.inference_mode():
        model(torch.rand(1, 3, 64, 64))
    x = torch.rand(1, 3, 64, 96)
    assert model(x)[0][0].shape[1] == 3 * (96 + 24 + 6)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    model(x)[0][0].sum().backward()  # a grid made under inference mode would not allow this
    assert x.grad is not None
    anchors_before = model(x)[0][0][..., 2:4].detach()
    model.detect.anchors *= 2  # as autoanchor does: nothing stale may be left
    assert torch.allclose(model(x)[0][0][..., 2:4], 2 * anchors_before)


def test_copies_are_independent_and_state_is_the_reference_one(n_cls):
    model = copy.deepcopy(n_cls).eval()
    model(torch.rand(1, 3, 64, 64))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model[0].conv.weight.zero_()
    assert model.model[0].conv.weight.abs().sum() > 0
    assert not [k for k in model.state_dict() if "stride" in k or "grid" in k or "_shared" in k]
    rebuilt = Model(model.yaml)
    rebuilt.load_state_dict(model.state_dict())


def test_construction_leaves_no_trace(n_cls):
    assert all(not m._forward_hooks for m in n_cls.modules())
    assert all(m.running_mean.abs().sum() == 0 for m in n_cls.modules() if isinstance(m, nn.BatchNorm2d))
    assert Model(TINY).training
    assert all(p.grad is None for p in n_cls.parameters())


def test_class_frequency_sets_the_class_biases():
    model = Model(TINY)
    before = model.detect.m[0].bias.clone().view(2, -1)
    model.detect.initialize_biases(torch.tensor([1.0, 3.0]))
    added = model.detect.m[0].bias.view(2, -1) - before
    assert torch.allclose(added[:, 5:].exp(), torch.tensor([0.25, 0.75]), atol=1e-5)


def test_info_says_what_the_branch_adds(n_cls):
    text = n_cls.info(verbose=True)
    assert "Model summary: 220 layers, 1812580 parameters, 1812580 gradients, 4.2 GFLOPs" in text
    assert "Image branch (ImageHead, 3 classes): 43251 of these parameters, 2.44 % more" in text
    assert "SPPF" in text and "[17, 20, 23]" in text
    assert "214 layers, 1769329 parameters" in Model("yolov5n.yaml", nc=4).info()


def test_yolov5s_order_of_arguments():
    """`DetectionModel(cfg, ch, nc, anchors)` and `info(verbose, img_size)`."""
    model = Model(TINY, 3, 5, [[8, 16], [24, 40]])
    assert model.nc == 5 and (model.detect.anchors * model.detect.stride.view(-1, 1, 1)).tolist() == [
        [[8, 16]],
        [[24, 40]],
    ]
    assert "Model summary" in model.info(verbose=False, img_size=64)


def test_a_shared_activation_with_a_weight_stays_shared(tmp_path):
    model = Model(TINY | {"activation": "nn.PReLU()"})
    record = {"epoch": 0, "model": model.record(), "ema": None, "opt": {}, "hyp": {}}
    save_checkpoint(tmp_path / "a.pt", record)
    again = Model.from_checkpoint(load_checkpoint(tmp_path / "a.pt"))
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert isinstance(Model(TINY | {"activation": None}).model[0].act, nn.SiLU)  # as YOLOv5 reads an empty key


def test_info_without_thop(monkeypatch):
    monkeypatch.setitem(sys.modules, "thop", None)
    model = Model(TINY)
    assert model.summary()["gflops"] is None
    assert "GFLOPs" not in model.info()


def test_augmented_training_is_refused():
    with pytest.raises(RuntimeError, match="evaluation mode"):
        Model(TINY)(torch.rand(1, 3, 32, 32), augment=True)


# Layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"Detect", "ImageHead", "ImageClassifier", "Concat"}))
def test_every_layer_runs_and_fuses(name):
    args = {"Contract": [2], "Expand": [2]}.get(name, [16])
    backbone = [[-1, 1, "Conv", [16, 3, 2]], [-1, 2, name, args], [-1, 1, "Conv", [8, 3, 2]]]
    content = {"nc": 1, "anchors": 1, "backbone": backbone, "head": [[[2], 1, "Detect", ["nc", "anchors"]]]}
    model = Model(content).eval()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.uniform_(-0.2, 0.2)
                m.running_var.uniform_(0.5, 2)
        x = torch.rand(1, 3, 32, 32)
        want = model(x)[1][0]
        assert torch.allclose(model.fuse()(x)[1][0], want, atol=1e-4)
        assert not any(isinstance(m, Conv) and m.bn is not None for m in model.modules())


def test_layers_do_what_they_are_known_for():
    x = torch.rand(1, 4, 8, 8)
    focus = common.Focus(4, 8).eval()
    seen = []
    focus.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    focus(x)
    assert torch.equal(seen[0][:, 4:8], x[..., 1::2, ::2])
    assert torch.equal(seen[0][:, 8:12], x[..., ::2, 1::2])
    assert torch.equal(common.Expand(2)(common.Contract(2)(x)), x)
    spp, sppf = common.SPP(4, 8).eval(), common.SPPF(4, 8).eval()
    sppf.load_state_dict(spp.state_dict())
    assert torch.allclose(spp(x), sppf(x))
    assert [common.autopad(k, d=d) for k, d in ((1, 1), (3, 1), (6, 1), (3, 2), ((1, 3), 1))] == [0, 1, 3, 2, [0, 1]]
    assert CBAM(32)(torch.rand(2, 32, 5, 7)).shape == (2, 32, 5, 7)


def test_activation_of_the_yaml_is_that_models_alone():
    model = Model(TINY | {"activation": "nn.LeakyReLU(0.1)"})
    assert {type(m.act) for m in model.modules() if isinstance(m, Conv)} == {nn.LeakyReLU}
    assert isinstance(Model(TINY).model[0].act, nn.SiLU)
    assert parse_activation("torch.nn.LeakyReLU(negative_slope=0.2)").negative_slope == 0.2


# Bad yamls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([-1, 1, "Cnov", [8]], "did you mean `Conv`"),
        ([-1, 1, "os.system", ["true"]], "unknown module `os.system`"),
        ([-1, 1, "nn.functional", [8]], "torch.nn has no layer `functional`"),
        ([-1, 1, "nn.Module.__init__", []], "torch.nn has no layer"),
        ([-1, 1, "nn._reduction", []], "torch.nn has no layer"),
        ([-1, 1, ["Conv"], [8]], "unknown module"),
        ([-1, 1, "Conv", []], "index"),
        ([-1, 1, "Conv", ["width"]], "width"),
        ([-1, 1, "Conv", [8, 3, 2, None, 1, 1, "nn.ReLU(open('x'))"]], "not understood"),
        ([-1, 0, "Conv", [8]], "whole number from 1"),
        ([-1, 1, "Conv"], r"\[from, number, module"),
        ("Conv", r"\[from, number, module"),
        ([3, 1, "Conv", [8]], "from 3 is no earlier layer"),
        ([-9, 1, "Conv", [8]], "from -9 is no earlier layer"),
        (["img", 1, "Conv", [8]], "from 'img' is no earlier layer"),
        ([[0, 1], 1, "Conv", [8]], "reads one layer"),
        ([1, 1, "Concat", [1]], "reads a list of layers"),
        ([[1], 1, "ImageHead", ["cls_nc"]], "below Detect"),
        ([[1, 2], 1, "Detect", ["nc", [[8, 8]]]], "2 levels need as many anchor rows"),
        ([[1, 2], 1, "Detect", ["nc", [[8, 8, 1], [8, 8, 1]]]], "w, h pairs"),
        ([[1, 2], 1, "Detect", ["ncc", "anchors"]], "nc is 'ncc'"),
    ],
)
def test_bad_row_is_named(tmp_path, row, reason):
    content = copy.deepcopy(TINY)
    content["head"].insert(0, row)
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=reason) as error:
        Model(file)
    assert "mine.yaml, head row 1 (layer 3)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head": None}, "`head:` must be a list"),
        ({"backbone": {}}, "`backbone:` must be a list"),
        ({"head": TINY["head"][:2]}, "0 Detect rows"),
        ({"head": [*TINY["head"], TINY["head"][2]]}, "2 Detect rows"),
        ({"head": [*TINY["head"], BRANCH, BRANCH]}, "2 image branches"),
        ({"head": [*TINY["head"], BRANCH], "cls_nc": None}, "set `cls_nc:`"),
        ({"head": [*TINY["head"], [-1, 1, "Conv", [8]]]}, "gives an answer, not a map"),
        ({"head": [[[0, 1], 1, "Concat", [1]], [[3, 2], 1, "Detect", ["nc", "anchors"]]]}, "do not fit together"),
        ({"nc": 0}, "nc is 0"),
        ({"activation": "__import__('os')"}, "not understood"),
    ],
)
def test_bad_yaml_is_explained(change, reason):
    with pytest.raises(ValueError, match=reason):
        Model(copy.deepcopy(TINY | change))


def test_yaml_content_is_not_evaluated(tmp_path):
    target = tmp_path / "made"
    attack = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for row in ([-1, 1, attack, [8]], [-1, 1, "Conv", [attack]], [-1, 1, "nn.Upsample", [None, 2, attack]]):
        content = copy.deepcopy(TINY)
        content["head"].insert(0, row)
        with pytest.raises(ValueError):
            Model(content)
    with pytest.raises(ValueError):
        Model(TINY | {"activation": f"nn.ReLU({attack})"})
    assert not target.exists()


def test_missing_yaml():
    with pytest.raises(FileNotFoundError, match="yolov5z.yaml"):
        Model("yolov5z.yaml")


def test_gradients_of_joined_maps_reach_the_activations_in_whole_rows():
    """The joined halves of a C3 have 8 channels each: as slices their gradients would be read one by one."""
    torch.manual_seed(0)
    block = common.C3(16, 16, 1).double()
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    gradients = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        copied, seen = copy.deepcopy(block), []
        for conv in (copied.cv2, copied.m[0].cv2):
            conv.act = nn.SiLU()
            conv.act.register_full_backward_pre_hook(lambda _, grads, seen=seen: seen.append(grads[0]))
        copied.to(memory_format=layout)(x.contiguous(memory_format=layout)).square().sum().backward()
        gradients[layout] = [p.grad for p in copied.parameters()]
        assert len(seen) == 2
    assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in seen)
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_may_be_asked_for_in_batches_and_a_layer_be_scripted():
    block = common.C3(16, 16, 1).to(memory_format=torch.channels_last)
    y = block(torch.randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last))
    p, rows = list(block.parameters()), torch.stack((torch.ones_like(y), y.detach()))
    together = torch.autograd.grad(y, p, rows, is_grads_batched=True, retain_graph=True)
    for i, row in enumerate(rows):
        for both, one in zip(together, torch.autograd.grad(y, p, row, retain_graph=True), strict=True):
            torch.testing.assert_close(both[i], one, rtol=1e-4, atol=1e-4)
    assert "conv" in torch.jit.script(Conv(4, 8)).code
