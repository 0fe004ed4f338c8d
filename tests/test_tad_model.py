"""The network of temporal detection beside the figures of the reference: structure, forward passes, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tad_golden import arrays, clip, figures, fill, mask, small_config, small_model, unit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tad.actionformer import AffineDropPath
from tad.backbone import Backbone, DropPath, drop_path
from tad.config import TadConfig, config_from, load_config
from tad.model import TadModel
from tad.segments import decode, points
from tad.weights import from_public, to_public

NAMES = [f"class{i}" for i in range(20)]


def close(ours: torch.Tensor, wanted: np.ndarray, atol: float) -> None:
    assert tuple(ours.shape) == wanted.shape
    assert np.abs(ours.detach().float().numpy() - wanted).max() <= atol


@pytest.fixture(scope="module")
def small() -> TadModel:
    return small_model()


@pytest.fixture(scope="module")
def meta() -> TadModel:
    with torch.device("meta"):
        return TadModel(TadConfig(), NAMES)


# Structure ------------------------------------------------------------------------------------------------------------


def count(module: torch.nn.Module, containing: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if containing in name)


def test_parameter_counts_are_the_published_ones(meta):
    counts = figures("model")["counts"]
    backbone, detector = meta.backbone, meta.detector
    ours = {
        "total": count(meta),
        "backbone_without_adapters": count(backbone) - count(backbone, "adapter"),
        "patch_embed": count(backbone.patch_embed),
        "one_adapter": count(backbone.blocks[0].adapter),
        "adapters": count(backbone, "adapter"),
        "fc_norm": count(backbone.fc_norm),
        "projection": count(detector.projection),
        "projection_embed": count(detector.projection.embed),
        "projection_one_transformer_block": count(detector.projection.stem[0]),
        "neck": count(detector.neck),
        "head": count(detector.head),
        "detector": count(detector),
        "in_optimizer": sum(p.numel() for group in meta.parameter_groups() for p in group["params"]),
        "state_dict_entries": len(meta.state_dict()),
        "state_dict_numbers": sum(v.numel() for v in meta.state_dict().values()),
        "tensors_with_adapter_in_name": sum("adapter" in name for name, _ in meta.named_parameters()),
        "tensors_of_detector": len(list(detector.parameters())),
    }
    assert ours == {key: counts[key] for key in ours}
    assert ours["total"] == 49_582_504 and ours["in_optimizer"] == 27_702_568


def test_every_tensor_has_its_public_name_and_shape(meta):
    entries = {e["name"]: tuple(e["shape"]) for e in figures("model")["entries"]}
    ours = {name.removeprefix("module."): tuple(v.shape) for name, v in to_public(meta.state_dict()).items()}
    assert ours == entries


def test_optimiser_groups(meta):
    names = {id(p): name for name, p in to_public(dict(meta.named_parameters())).items()}
    groups = meta.parameter_groups()
    wanted = figures("model")["optimizer"]
    assert len(groups) == len(wanted) == 3
    for group, reference in zip(groups, wanted, strict=True):
        assert {names[id(p)].removeprefix("module.") for p in group["params"]} == set(reference["order"])
        assert (group["lr"], group["weight_decay"]) == (reference["lr"], reference["weight_decay"])
        assert sum(p.numel() for p in group["params"]) == reference["numbers"]
    trained = {id(p) for group in groups for p in group["params"]}
    frozen = [p for p in meta.parameters() if id(p) not in trained]
    assert len(trained) == 108 + 71 + 158 and not any(p.requires_grad for p in frozen)


@pytest.mark.slow
def test_sizes_of_the_other_models():
    for name, millions in {"b": 117.5, "l": 345.8, "h": 689.3, "g": 1084.6}.items():
        with torch.device("meta"):
            model = TadModel(load_config(f"adatad_{name}.yaml"), NAMES)
        assert count(model) / 1e6 == pytest.approx(millions, abs=0.06), name


def test_drop_path_rates(meta):
    rates = [block.drop_path.rate for block in meta.backbone.blocks]
    assert rates == pytest.approx(figures("model")["drop_path_rate_per_block"], abs=1e-8)


@pytest.mark.slow
def test_multiply_accumulates_of_a_window(meta):
    """1173.947 G of matrix and convolution products; the depthwise adapters' three shifted products are not counted."""
    frames, real = torch.empty(1, 3, 768, 160, 160, device="meta"), torch.ones(1, 768, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        meta(frames, real)
    shifted = 12 * 38_400 * 96 * 3
    assert (counter.get_total_flops() / 2 + shifted) / 1e9 == pytest.approx(1173.947, abs=0.01)


def test_first_values_of_a_new_network():
    constants = figures("model")["init_constants"]
    torch.manual_seed(0)
    state = TadModel(small_config(), NAMES).state_dict()
    public = {name.removeprefix("module."): value for name, value in to_public(state).items()}
    for name, wanted in constants.items():
        name = name.replace("scale.5", "scale.3")
        assert public[name].min().item() == pytest.approx(wanted["min"]), name
        assert public[name].max().item() == pytest.approx(wanted["max"]), name
    logits, _, _ = TadModel(small_config(), NAMES).eval()(clip(1, 48, 32, 32, 0), mask([48], 48))
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)


def test_spread_of_new_adapters():
    torch.manual_seed(0)
    adapter = Backbone(depth=1).blocks[0].adapter
    spread = figures("model")["init_spread"]
    for name in ("dwconv", "conv", "down_proj"):
        wanted = spread[f"backbone.model.backbone.blocks.0.adapter.{name}.weight"]["std"]
        assert getattr(adapter, name).weight.std().item() == pytest.approx(wanted, rel=0.15)


def test_position_table():
    table = Backbone(depth=0).pos_embed
    wanted = figures("model")["position_table"]
    assert list(table.shape) == wanted["shape"]
    for place, value in wanted["at"].items():
        p, j = map(int, place.split(","))
        assert table[0, p, j].item() == pytest.approx(value, abs=1e-7)
    assert table.double().sum().item() == pytest.approx(wanted["stats"]["sum"], rel=1e-6)
    flat = table.flatten()[wanted["stats"]["sample_index"]]
    assert np.allclose(flat, wanted["stats"]["sample"], atol=1e-7)


# Forward passes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["interp", "native", "rect", "up"])
def test_forward_of_the_small_model(small, case):
    info = next(c for c in figures("forward_small")["cases"] if c["name"] == case)
    z = arrays("forward_small")
    frames = clip(2, 48, info["height"], info["width"], info["clip_seed"])
    real = mask(info["valid_lengths"], 48)
    assert np.array_equal(real.numpy(), z[f"{case}/mask"])
    seen = {}
    backbone, projection, head = small.backbone, small.detector.projection, small.detector.head

    def watch(module, name, pick=lambda out: out):
        return module.register_forward_hook(lambda m, a, out: seen.__setitem__(name, pick(out)))

    hooks = [watch(backbone, "backbone_out")]
    for i, block in enumerate(backbone.blocks):
        hooks += [watch(block, f"block{i}.out"), watch(block.norm1, f"block{i}.norm1")]
        hooks += [watch(block.attn, f"block{i}.attn"), watch(block.mlp, f"block{i}.mlp")]
        hooks += [watch(block.adapter.up_proj, f"block{i}.adapter.up_out")]
    for kind in ("embed", "stem", "branch"):
        for i, part in enumerate(getattr(projection, kind)):
            first = (lambda out: out) if kind == "embed" else (lambda out: out[0])
            hooks.append(watch(part, f"proj.{kind}{i}" + ("" if kind == "embed" else ".out"), first))
            if kind != "embed":
                hooks.append(watch(part.attn, f"proj.{kind}{i}.attn", first))
    for i, norm in enumerate(small.detector.neck.fpn_norms):
        hooks.append(watch(norm, f"neck.level{i}"))
    raw = {"cls_raw": [], "reg_raw": []}
    hooks.append(head.cls_head.register_forward_hook(lambda m, a, out: raw["cls_raw"].append(out)))
    hooks.append(head.reg_head.register_forward_hook(lambda m, a, out: raw["reg_raw"].append(out)))
    with torch.no_grad():
        tokens, _ = backbone.tokens(frames)
        logits, offsets, valid = small(frames, real)
    for hook in hooks:
        hook.remove()
    seen |= {f"head.{kind}{i}": out for kind, outs in raw.items() for i, out in enumerate(outs)}
    seen["patch_plus_pos"] = tokens
    compared = 0
    for name, ours in seen.items():
        if f"{case}/{name}" in z:
            close(ours, z[f"{case}/{name}"], 1e-5)
            compared += 1
    assert compared >= (35 if case == "interp" else 6)
    masks = [z[f"{case}/proj.mask{i}"] for i in range(4)]
    assert np.array_equal(valid.numpy(), np.concatenate(masks, 1))
    close(offsets, np.concatenate([z[f"{case}/head.offset{i}"] for i in range(4)], 2).transpose(0, 2, 1), 1e-5)
    segments = decode(offsets, points(48, 4))
    for b in range(2):
        close(segments[b][valid[b]], z[f"{case}/proposals.{b}"], 5e-5)
        close(logits[b][valid[b]].sigmoid(), z[f"{case}/scores.{b}"], 1e-5)


@pytest.mark.parametrize("case", ["det_short40", "det_exact48", "det_long52", "det_long56"])
def test_detector_alone(small, case):
    z = arrays("forward_small")
    info = next(c for c in figures("forward_small")["detector_cases"] if c["name"] == case)
    features, real = torch.from_numpy(z[f"{case}/features"]), torch.from_numpy(z[f"{case}/mask"])
    with torch.no_grad():
        logits, offsets, valid = small.detector(features, real)
    length = small.detector.padded_length(info["length"])
    assert length == info["padded_length"]
    segments = decode(offsets, points(length, 4))
    for b in range(2):
        close(segments[b][valid[b]], z[f"{case}/proposals.{b}"], 5e-5)
        close(logits[b][valid[b]].sigmoid(), z[f"{case}/scores.{b}"], 1e-5)


def test_norms_by_inputs_of_tiny_variance(small):
    """An epsilon that is wrong by a factor of ten is seen here and hardly anywhere else."""
    z = arrays("forward_small")
    block, transformer = small.backbone.blocks[0], small.detector.projection.stem[0]
    tokens, channels = torch.from_numpy(z["eps/tokens_in"]), torch.from_numpy(z["eps/channels_in"])
    norms = {
        "vit_norm1": block.norm1, "vit_norm2": block.norm2, "block_ln1": transformer.ln1, "block_ln2": transformer.ln2,
        "block_query_norm": transformer.attn.query_norm, "conv_unit_norm": small.detector.projection.embed[1].norm,
        "neck_norm0": small.detector.neck.fpn_norms[0], "head_cls_norm0": small.detector.head.cls_convs[0].norm,
    }  # fmt: skip
    for name, norm in norms.items():
        close(norm(tokens if name.startswith("vit") else channels), z[f"eps/{name}"], 1e-5)


def test_drop_path():
    z = arrays("forward_small")
    x, draws = (torch.from_numpy(z[f"droppath/{name}"]) for name in ("x", "uniform"))
    close(drop_path(x, 0.1, draws), z["droppath/plain_p0.1"], 1e-5)
    scaled = x * torch.from_numpy(z["droppath/affine_scale"]).view(1, -1, 1)
    close(drop_path(scaled, 0.1, draws), z["droppath/affine_p0.1"], 2e-5)
    for module in (DropPath(0.5), AffineDropPath(2, 0.5)):
        torch.manual_seed(0)
        rows = module.train()(torch.ones(64, 2, 3)).flatten(1)
        assert {len(set(row.tolist())) for row in rows} == {1} and 0 < (rows == 0).all(1).sum() < 64
        assert torch.equal(module.eval()(x), x if isinstance(module, DropPath) else x * module.scale)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["width_full_frames_64", "full_768"])
def test_full_width(case):
    """The true model filled by the rule."""
    info, z = figures("full_checksum")[case], arrays("full_outputs")
    t = info["frames"]
    model = TadModel(TadConfig(frames=t), NAMES).eval()
    put = fill(model, [e["name"] for e in figures("model")["entries"]])
    total = sum(v.double().sum().item() for v in put.values())
    assert total == pytest.approx(info["sum_of_all_filled_weights"], abs=1e-3)
    frames = clip(1, t, 160, 160, info["clip_seed"])
    assert frames[0, 0, 0, 0, :8].tolist() == info["first_pixels_channel0_frame0_row0"]
    assert frames.double().sum().item() == info["input"]["sum"]
    with torch.no_grad():
        features = model.backbone(frames)
        logits, offsets, valid = model.detector(features, mask([info["valid_samples"]], t))
    close(features[0, ::4, ::8], z[f"{case}/backbone_out_every4th_channel_every8th_time"], 2e-3)
    close(decode(offsets, points(t, 6))[0][valid[0]], z[f"{case}/proposals"], 5e-3)
    close(logits[0][valid[0]].sigmoid(), z[f"{case}/scores"], 1e-4)
    stats = info["outputs"]["backbone_out"]
    assert features.double().abs().sum().item() == pytest.approx(stats["abs_sum"], rel=1e-5)


# Properties -----------------------------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing():
    torch.manual_seed(0)
    with_adapters = Backbone(32, 2, 2, 128, 16, 3, 8).eval()
    without = Backbone(32, 2, 2, 128, 16, 3, 0).eval()
    without.load_state_dict({k: v for k, v in with_adapters.state_dict().items() if "adapter" not in k})
    frames = clip(1, 32, 32, 32, 0)
    with torch.no_grad():
        assert torch.equal(with_adapters(frames), without(frames))


def test_what_a_frame_reaches(small):
    """Without adapters its chunk, with them its neighbours too, never another video."""
    frames = clip(2, 48, 32, 32, 0)
    other = frames.clone()
    other[0, :, 20] = 255 - other[0, :, 20]

    def changed(backbone):
        with torch.no_grad():
            return (backbone(frames) - backbone(other)).abs().amax(1) > 1e-6

    bare = Backbone(32, 2, 2, 128, 16, 3, 0).eval()
    moved = changed(bare)
    assert moved[0, 18:30].all() and not moved[0, :15].any() and not moved[0, 33:].any() and not moved[1].any()
    moved = changed(small.backbone)
    assert moved[0, 12:16].any() and moved[0, 32:36].any() and not moved[1].any()


def test_the_temporal_convolution_stays_in_its_place(small):
    adapter = small.backbone.blocks[0].adapter
    x = torch.randn(3, 8 * 4, 32)
    other = x.clone()
    other[1, 2 * 4 + 3] += 1  # time 10, place 3
    with torch.no_grad():
        moved = (adapter(x, 1, 4) - adapter(other, 1, 4)).abs().amax(-1).view(24, 4) > 1e-7
    assert moved.nonzero().tolist() == [[9, 3], [10, 3], [11, 3]]


def test_interpolation_to_the_native_grid_is_none(small):
    assert torch.equal(small.backbone.positions(3, 3), small.backbone.pos_embed)
    assert small.backbone.positions(2, 5).shape == (1, 80, 32)


def test_a_batch_is_its_samples(small):
    frames, real = clip(2, 48, 32, 32, 5), mask([48, 30], 48)
    with torch.no_grad():
        both = small(frames, real)
        for b in range(2):
            alone = small(frames[b : b + 1], real[b : b + 1])
            for x, y in zip(both, alone, strict=True):
                assert torch.allclose(x[b : b + 1].float(), y.float(), atol=1e-5)


def test_what_lies_under_padding_changes_nothing(small):
    features, real = torch.randn(1, 32, 48), mask([30], 48)
    other = features.clone()
    other[:, :, 33:] = 50  # beyond what the first convolutions see from the last real frame
    with torch.no_grad():
        a, b = small.detector(features, real), small.detector(other, real)
    for x, y in zip(a[:2], b[:2], strict=True):
        assert torch.allclose(x[a[2]], y[a[2]], atol=1e-5)
    assert torch.equal(a[2], torch.cat([real[:, :: 2**level] for level in range(4)], 1))


def test_keys_need_no_bias(small):
    attention = small.backbone.blocks[0].attn
    x = torch.randn(2, 10, 32)
    qkv = torch.nn.functional.linear(x, attention.qkv.weight).view(2, 10, 3, 2, 16).permute(2, 0, 3, 1, 4)
    q, k, v = qkv
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    moved = torch.nn.functional.scaled_dot_product_attention(q, k + torch.randn(16), v)
    assert torch.allclose(plain, moved, atol=1e-5)
    model = small_model(freeze=False)
    model(clip(1, 48, 32, 32, 0), mask([48], 48))[0].sum().backward()
    for name in ("q_bias", "v_bias"):
        assert getattr(model.backbone.blocks[0].attn, name).grad.abs().sum() > 0


# Configurations -------------------------------------------------------------------------------------------------------


def test_the_yaml_of_the_small_vit_is_the_published_recipe():
    assert load_config("adatad_s.yaml") == TadConfig()


@pytest.mark.parametrize(
    "text", ["schedule_epochs: 0", "warmup_epochs: 0.5", "warmup_epochs: 2", "freeze: false\nbackbone_lr: 1e-5"]
)
def test_values_that_a_yaml_may_have(tmp_path, text):
    (tmp_path / "model.yaml").write_text(text)
    key, value = text.splitlines()[-1].split(": ")
    assert getattr(load_config(tmp_path / "model.yaml"), key) == float(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frames: 100", "multiple of 16"),
        ("frmes: 768", "unknown key frmes"),
        ("dim: many", "dim must be like 384, not 'many'"),
        ("- 1", "expected lines"),
        ("freeze: 1", "freeze must be like True"),
        ("optimizer: sgd", "optimizer must be like adamw, not 'sgd'"),
        ("overlap: 1.0", "overlap"),
        ("heads: 5", "dim: 384 must be a multiple of heads: 5"),
        ("detector_heads: 3", "channels: 512 must be a multiple of detector_heads: 3"),
        ("imgsz: 4", "imgsz: 4 must be at least patch: 16"),
        ("blocks: [2, 1.5, 3]", "blocks: [2, 1.5, 3] must be whole numbers"),
        ("blocks: [0, 0, 0]", "blocks: [0, 0, 0] must be whole numbers, the first of them at least 1"),
        ("crop: [1.0, 0.9]", "crop: [1.0, 0.9] must be the smaller share"),
        ("crop_area: 3.0", "crop_area: 3.0 must be between 1e-06 and 1"),
        ("adapter: -1", "adapter: -1 must be between 0 and 1e"),
        ("sigma: 0.0", "sigma: 0.0 must be between 1e-06 and 1e"),
        ("ema: 2.0", "ema: 2.0 must be between 0 and 0.999999"),
        ("lr: .nan", "lr: nan must be between 0 and 1000"),
        ("freeze: false", "freeze: false with backbone_lr: 0 would train no backbone"),
        ("a: [", "model.yaml:"),
    ],
)
def test_a_wrong_yaml_is_told(tmp_path, text, says):
    file = tmp_path / "model.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="(?s)" + says.replace("[", r"\[")) as error:
        load_config(file)
    assert str(file) in str(error.value)


def test_names_of_weights_go_there_and_back(small):
    state = small.state_dict()
    back = from_public(to_public(state))
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_configurations_survive_as_plain_values(small):
    assert config_from(small.record()["yaml"]["tad"], "checkpoint") == small.config
    assert unit((3,), 0).min() >= -1
