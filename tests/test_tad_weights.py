"""Weights of others: public AdaTAD checkpoints there and back, VideoMAE in its three public forms, strictly."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from tad_golden import clip, mask, small_model

from tad.backbone import Backbone
from tad.load import start_from
from tad.model import TadModel
from tad.weights import (
    SPARE,
    backbone_names,
    fill,
    from_public,
    is_public,
    load_backbone,
    load_public,
    read_tensors,
    state_of,
    to_public,
)


@pytest.fixture
def public(tmp_path):
    """A file as the public implementation writes them, and the network that it holds."""
    model = small_model()
    state = to_public(model.state_dict())
    state["module.rpn_head.loss_normalizer"] = torch.tensor(37)  # there a whole number in averaged weights
    file = tmp_path / "epoch_59.pth"
    torch.save({"epoch": 59, "state_dict": {k: torch.zeros_like(v) for k, v in state.items()},
                "state_dict_ema": state}, file)  # fmt: skip
    return file, model, state


@pytest.mark.slow
def test_a_public_checkpoint_is_read_whole(public):
    file, model, state = public
    other = small_model()
    for p in other.parameters():
        p.data.zero_()
    report = load_public(other, file)
    assert report.taken == len(state) == len(other.state_dict())
    for name, value in model.state_dict().items():
        if "loss_normalizer" not in name:
            assert torch.equal(other.state_dict()[name], value), name
    assert other.detector.head.loss_normalizer.item() == 37 and other.detector.head.loss_normalizer.is_floating_point()
    start_from(other, file)
    assert other.detector.head.loss_normalizer.item() == 100  # a training begins with it
    assert is_public(state) and not is_public(model.state_dict())


@pytest.mark.slow
def test_a_public_checkpoint_of_other_classes_begins_a_training(public, capsys):
    file, model, _ = public
    other = TadModel(model.config, ["a", "b", "c", "d", "e"])
    before = other.detector.head.cls_head.weight.clone()
    start_from(other, file)
    assert (
        torch.equal(other.detector.head.cls_head.weight, before) and "not used: class layer" in capsys.readouterr().out
    )
    assert torch.equal(other.detector.head.reg_head.weight, model.detector.head.reg_head.weight)
    with pytest.raises(ValueError, match="of another shape"):
        load_public(other, file)  # to detect with it takes them all


def test_and_written_so_that_it_is_read_again(public):
    _, model, state = public
    ours = to_public(model.state_dict())
    assert ours.keys() == state.keys()
    back = from_public(ours)
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["renamed", "missing", "shape", "extra"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(public, tmp_path, kind):
    _, model, state = public
    state, key = dict(state), "module.rpn_head.cls_head.weight"
    if kind == "renamed":
        state["module.rpn_head.cls_hat.weight"] = state.pop(key)
    elif kind == "missing":
        del state[key]
    elif kind == "extra":
        state["module.more"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(20, 16, 3)
    file = tmp_path / "wrong.pth"
    torch.save({"state_dict": state}, file)
    other = small_model()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match="wrong.pth does not fit this network") as error:
        load_public(other, file)
    wanted = {
        "renamed": ("1 missing: detector.head.cls_head.weight", "1 unexpected: detector.head.cls_hat.weight"),
        "missing": ("1 missing",),
        "extra": ("1 unexpected: more",),
        "shape": ("1 of another shape: detector.head.cls_head.weight (20, 16, 3) for (3, 16, 3)",),
    }[kind]
    assert all(text in str(error.value) for text in wanted)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def original_form(state):
    """VideoMAE's own names; the position table is not stored."""
    out = {}
    for name, value in state.items():
        for ours, theirs in (("patch_embed.projection", "patch_embed.proj"), ("mlp.layers.0.0", "mlp.fc1"),
                             ("mlp.layers.1", "mlp.fc2")):  # fmt: skip
            name = name.replace(ours, theirs)
        if name != "pos_embed":
            out[name] = value
    return {"module": out | {"head.weight": torch.zeros(400, 32), "head.bias": torch.zeros(400)}}


def mmaction_form(state):
    out = {f"backbone.{name}": value for name, value in state.items()}
    return {"meta": {}, "state_dict": out | {"cls_head.fc_cls.weight": torch.zeros(400, 32)}}


def hugging_face_form(state, since_5: bool = False):
    out = {"classifier.weight": torch.zeros(400, 32)}
    table = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.layers.0.0": "intermediate.dense", "mlp.layers.1": "output.dense",
    }  # fmt: skip
    for name, value in state.items():
        if name == "pos_embed":
            continue
        if not name.startswith("blocks."):
            name = name.replace("patch_embed.projection", "videomae.embeddings.patch_embeddings.projection")
            out[name] = value
            continue
        _, block, rest = name.split(".", 2)
        prefix = f"videomae.encoder.layer.{block}."
        if rest == "attn.qkv.weight":
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{prefix}attention.attention.{part}.weight"] = rows
        elif rest in ("attn.q_bias", "attn.v_bias"):
            bias = {"q": "query", "v": "value"}[rest[5]] + ".bias" if since_5 else rest[5:]
            out[f"{prefix}attention.attention.{bias}"] = value
        else:
            layer, kind = rest.rsplit(".", 1)
            out[f"{prefix}{table[layer]}.{kind}"] = value
    if since_5:
        out["videomae.encoder.layer.0.attention.attention.key.bias"] = torch.randn(32)  # changes nothing
    return out


FORMS = {
    "VideoMAE": original_form, "mmaction": mmaction_form, "Hugging Face": hugging_face_form,
    "Hugging Face 5": lambda state: hugging_face_form(state, True),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_backbone_in_each_public_form(tmp_path, form):
    source = small_model().backbone
    plain = {k: v for k, v in source.state_dict().items() if "adapter" not in k}
    file = tmp_path / "vit.pth"
    torch.save(FORMS[form](plain), file)
    model = small_model()
    for name, p in model.backbone.named_parameters():
        if "adapter" not in name:
            p.data.normal_()
    report = load_backbone(model.backbone, file)
    assert report.form == form.removesuffix(" 5") and report.spare
    frames, real = clip(1, 48, 32, 32, 0), mask([48], 48)
    with torch.no_grad():
        for ours, wanted in zip(model(frames, real), small_model()(frames, real), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_a_backbone_with_a_fault_is_refused(tmp_path, form):
    source = small_model().backbone
    plain = {k: v for k, v in source.state_dict().items() if "adapter" not in k}
    content = FORMS[form](plain)
    inner = content.get("module") or content.get("state_dict") or content
    key = next(k for k in inner if "norm1.weight" in k or "layernorm_before.weight" in k)
    inner[key + "x"] = inner.pop(key)
    file = tmp_path / "vit.pth"
    torch.save(content, file)
    with pytest.raises(ValueError, match="vit.pth does not fit this network .*missing: blocks.0.norm1.weight"):
        load_backbone(source, file)
    torch.save({"state_dict": {"a": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match="vit.pth: no VideoMAE backbone in one of the forms mmaction"):
        load_backbone(source, file)


def test_safetensors(tmp_path):
    source = small_model().backbone
    state = hugging_face_form({k: v for k, v in source.state_dict().items() if "adapter" not in k})
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, value in state.items():
        raw = value.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    found = read_tensors(file)
    assert all(torch.equal(found[k], v) for k, v in state.items())
    assert load_backbone(small_model().backbone, file).form == "Hugging Face"
    for cut in (4, 20, len(text) + 30):
        file.write_bytes((struct.pack("<Q", len(text)) + text + body)[:cut])
        with pytest.raises(ValueError, match="model.safetensors: no safetensors file"):
            read_tensors(file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="are not there"):
        read_tensors(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth"):
        read_tensors(tmp_path / "text.pth")


def test_a_file_with_code_in_it_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="bomb.pth"):
        state_of(read_tensors(tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_hugging_face_computes_the_same():
    """At the native size, with 6 heads and our epsilon, a random VideoMAE gives our tokens (where it is installed)."""
    transformers = pytest.importorskip("transformers", reason="only an oracle here: pip install transformers")
    config = transformers.VideoMAEConfig(
        image_size=48, patch_size=16, num_frames=16, tubelet_size=2, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=128, layer_norm_eps=1e-6, qkv_bias=True, use_mean_pooling=True,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.VideoMAEModel(config).eval()
    for name, p in theirs.named_parameters():
        p.data.normal_(1 if "layernorm" in name and name.endswith("weight") else 0, 0.2)
        if name.endswith("key.bias"):
            p.data.zero_()
    backbone = Backbone(32, 2, 2, 128, 16, 3, 0, freeze=False).eval()
    state, form = backbone_names(theirs.state_dict())
    fill(backbone, state, Path("hf"), re.compile("pos_embed|fc_norm"), SPARE)
    assert form == "Hugging Face"
    frames = torch.rand(2, 3, 16, 48, 48) * 255
    with torch.no_grad():
        x, places = backbone.tokens(frames)
        for block in backbone.blocks:
            x = block(x, 2, places)
        pixels = ((frames - backbone.mean) / backbone.std).transpose(1, 2)
        wanted = theirs(pixels).last_hidden_state
    assert torch.allclose(x, wanted, atol=1e-5)
