"""`export_tad.py`: what the ONNX file of a temporal detector answers and says of itself."""

from __future__ import annotations

import ast
import dataclasses
import json

import pytest
import torch
from tad_golden import clip, mask
from tad_set import save_network

import export_tad
from tad.config import load_config
from tad.export import export_onnx
from tad.load import load_model
from tad.model import TadModel


@pytest.mark.slow
def test_an_exported_network_answers_as_pytorch(tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the export formats need requirements-export.txt")
    import onnxruntime

    torch.manual_seed(0)
    config = dataclasses.replace(load_config("adatad_tiny.yaml"), backbone_drop=0.5, detector_drop=0.5)
    model = TadModel(config, ["a", "b"])
    for name, p in model.named_parameters():
        if "up_proj" in name or "scale" in name:  # new, these let an adapter or a block change nearly nothing
            torch.nn.init.normal_(p, std=0.3)
    weights = save_network(model, tmp_path / "best.pt")

    words = ["--weights", str(weights), "--include", "onnx"]
    with pytest.raises(ValueError, match="--opset 13: must lie between 14 and 20"):
        export_tad.main(export_tad.parse_opt([*words, "--opset", "13"]))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="best.onnx answers otherwise.*nothing was"):
        patch.setattr("tad.export.TOLERANCE", 0)
        export_tad.main(export_tad.parse_opt(words))
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]

    file = export_tad.main(export_tad.parse_opt(words))
    assert file == tmp_path / "best.onnx"
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    frames, real = clip(1, 48, 48, 48, 3), mask([31], 48)
    with torch.no_grad():
        logits, offsets, valid = load_model(weights)(frames, real)
    theirs = session.run(["logits", "offsets", "valid"], {"frames": frames.numpy(), "mask": real.numpy()})
    assert torch.equal(torch.from_numpy(theirs[2]), valid) and valid.sum() == 31 + 16 + 8 + 4
    for ours, other in zip((logits, offsets), theirs, strict=False):
        assert torch.allclose(ours[valid], torch.from_numpy(other)[valid], rtol=1e-4, atol=1e-4)
    texts = session.get_modelmeta().custom_metadata_map
    assert ast.literal_eval(texts["names"]) == {0: "a", 1: "b"} and texts["task"] == "temporal detection"
    assert sum(ast.literal_eval(texts["points"])) == logits.shape[1] and json.loads(texts["config"])["dim"] == 64


def test_a_network_too_large_for_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tad.export.LARGEST", 2**20)
    with pytest.raises(ValueError, match="x.onnx: the network has 0.0016 GB of weights, and a file holds 2 GiB"):
        export_onnx(TadModel(load_config("adatad_tiny.yaml"), ["a"]), tmp_path / "x.onnx")
