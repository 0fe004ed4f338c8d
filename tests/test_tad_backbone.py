"""The ViT with adapters: gradients of what is computed again, bfloat16, and the start from scratch."""

from __future__ import annotations

import pytest
import torch
from tad_golden import clip, mask, small_model

from tad.backbone import Backbone


def gradients(recompute: bool, frames: torch.Tensor, real: torch.Tensor, **changes) -> dict[str, torch.Tensor]:
    """Of a small model in float64 in training, with drop path."""
    model = small_model(**changes).double().train()
    model.backbone.checkpointing = recompute
    torch.manual_seed(3)
    torch.nn.init.normal_(model.backbone.blocks[-1].adapter.up_proj.weight)  # the figures' network has two blocks
    logits, offsets, _ = model(frames, real)
    (logits.square().mean() + offsets.mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"draw": torch.rand(1)}


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("at_once", [1600, 64, 1])
def test_recomputed_activations_give_the_same_gradients(freeze, at_once, monkeypatch):
    monkeypatch.setattr("tad.backbone.AT_ONCE", at_once)  # all six chunks of 32 tokens together, two, one
    frames, real = clip(2, 48, 32, 32, 1), mask([48, 40], 48)
    changes = {"freeze": freeze, "depth": 3, "backbone_drop": 0.5}
    plain, recomputed = (gradients(recompute, frames, real, **changes) for recompute in (False, True))
    assert plain.keys() == recomputed.keys()
    assert any(".adapter." in name for name in plain) and any("attn.qkv" in name for name in plain) != freeze
    assert all(grad.any() for name, grad in plain.items() if ".adapter." in name)  # they reach every one
    for name, grad in plain.items():
        assert (grad - recomputed[name]).abs().max() <= 1e-10 * grad.abs().max(), name


def test_bfloat16_is_near_float32():
    small = small_model()
    frames, real = clip(1, 48, 32, 32, 0), mask([48], 48)
    with torch.no_grad():
        plain = small(frames, real)[0].sigmoid()
        with torch.autocast("cpu", torch.bfloat16):
            half = small(frames, real)[0].float().sigmoid()
    assert (plain - half).abs().max() < 0.05


def test_a_network_from_scratch_starts_at_the_scale_of_its_data():
    torch.manual_seed(0)
    backbone = Backbone(32, 2, 2, 128, 16, 3, 8, freeze=False)
    frames = clip(2, 48, 48, 48, 0)
    with torch.no_grad():
        backbone.start(frames)
        tokens, _ = backbone.tokens(frames)
        patches = tokens - backbone.positions(3, 3)
    assert tokens.mean((0, 1)).abs().max() < 1e-4
    assert patches.std((0, 1)).mean().item() == pytest.approx(1, abs=1e-4)
