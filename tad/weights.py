"""Weights of others: AdaTAD checkpoints both ways, VideoMAE backbones in their three public forms.

Nothing in a file is executed, and nothing is loaded by halves: a tensor that is missing, one that no place is known
for, or one of another shape is an error that names it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.weights.checkpoint import refuse_exported
from utils.weights.reader import begins_as_zip, read_pickled

# our prefix -> that of public AdaTAD checkpoints, which also put `module.` before every name
PREFIXES = {
    "backbone.": "backbone.model.backbone.",
    "detector.projection.": "projection.",
    "detector.neck.": "neck.",
    "detector.head.": "rpn_head.",
}
CLASS_LAYER = "detector.head.cls_head."
FORMS = ("mmaction", "VideoMAE", "Hugging Face")
# what backbones may hold beside the backbone: classifiers, and a norm that only pretrained models use
SPARE = re.compile(r"(cls_head|head|classifier|norm|layernorm|mask_token|decoder|encoder_to_decoder)(\.|$)")
NOTHING = re.compile("(?!)")  # the pattern of no name
HF_LAYER = {
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.layers.0.0.",
    "output.dense.": "mlp.layers.1.",
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
    "attention.attention.query.bias": "attn.q_bias",  # since transformers 5
    "attention.attention.value.bias": "attn.v_bias",
}
SAFETENSORS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}


@dataclass
class Report:
    """What a file gave: number of tensors taken, names of those that have no place here by design."""

    file: Path
    form: str
    taken: int = 0
    spare: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rest = f"; not used: {', '.join(sorted({n.split('.')[0] for n in self.spare}))}" if self.spare else ""
        return f"{self.file}: {self.taken} tensors ({self.form}){rest}"


# Names ----------------------------------------------------------------------------------------------------------------


def public_name(name: str) -> str:
    """Our name of a tensor as public AdaTAD checkpoints call it, without `module.`."""
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise KeyError(name)


def own_name(name: str) -> str:
    """The opposite of `public_name`; a name that is none comes back with a mark that no tensor of ours has."""
    for ours, theirs in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return f"?{name}"


def to_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under public names, `module.` included: what the public implementation loads strictly."""
    return {f"module.{public_name(name)}": value for name, value in state.items()}


def from_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict under our names, with or without `module.`."""
    return {own_name(name.removeprefix("module.")): value for name, value in state.items()}


def backbone_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A VideoMAE state dict under the names of `Backbone`, and which public form it had.

    Raises:
        ValueError: It is none of them.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if any("embeddings.patch_embeddings" in name for name in state):
        return _from_hugging_face(state), FORMS[2]
    if any(name.startswith("backbone.patch_embed.projection.") for name in state):
        return {name.removeprefix("backbone."): value for name, value in state.items()}, FORMS[0]
    state = {name.removeprefix("encoder."): value for name, value in state.items()}
    if any(name.startswith("patch_embed.proj.") for name in state):
        table = (("patch_embed.proj.", "patch_embed.projection."), ("mlp.fc1.", "mlp.layers.0.0."),
                 ("mlp.fc2.", "mlp.layers.1."))  # fmt: skip
        out = {}
        for name, value in state.items():
            for theirs, ours in table:
                name = name.replace(theirs, ours)
            out[name] = value
        return out, FORMS[1]
    raise ValueError(f"no VideoMAE backbone in one of the forms {', '.join(FORMS)}")


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        name = name.removeprefix("videomae.")
        name = name.replace("embeddings.patch_embeddings.projection.", "patch_embed.projection.")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if layer:
            block, rest = f"blocks.{layer[1]}.", layer[2]
            part = re.fullmatch(r"attention\.attention\.(query|key|value)\.weight", rest)
            if part:
                joined.setdefault(block, {})[part[1]] = value
                continue
            if rest == "attention.attention.key.bias":
                continue  # adds the same to every score of a query, so attention does not see it
            theirs = next((t for t in HF_LAYER if rest.startswith(t)), None)
            name = block + (rest if theirs is None else HF_LAYER[theirs] + rest[len(theirs) :])
        out[name] = value
    for block, parts in joined.items():
        if len(parts) == 3:
            out[f"{block}attn.qkv.weight"] = torch.cat([parts[p] for p in ("query", "key", "value")])
        else:
            out |= {f"{block}attn.{p}.weight": value for p, value in parts.items()}
    return out


# Files ----------------------------------------------------------------------------------------------------------------


def read_tensors(file: str | Path) -> dict:
    """What a .pth, .pt, .bin or .safetensors file holds, on the CPU; nothing in it is executed.

    Raises:
        FileNotFoundError, ValueError: One sentence that names the file.
    """
    file = Path(file)
    refuse_exported(file)
    if not file.is_file():
        raise FileNotFoundError(f"weights {file} are not there")
    if file.suffix == ".safetensors" or not begins_as_zip(file) and _is_safetensors(file):
        return _read_safetensors(file)
    return read_pickled(file)


def state_of(content: Mapping) -> dict[str, Tensor]:
    """The weights in a checkpoint's content: the average where there is one, whatever it is wrapped in."""
    for key in ("state_dict_ema", "state_dict", "module", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    return {str(k): v.detach().clone() for k, v in content.items() if isinstance(v, Tensor)}


def load_public(model: nn.Module, file: str | Path, other_classes: bool = False) -> Report:
    """Fill the whole network from a public AdaTAD checkpoint, every tensor of it.

    Args:
        other_classes: A class layer of another number of classes stays as it is.

    Raises:
        FileNotFoundError, ValueError: The file, or what does not fit.
    """
    file = Path(file)
    state, own = from_public(state_of(read_tensors(file))), model.state_dict()
    layer = [name for name in state if name.startswith(CLASS_LAYER)]
    if not other_classes or all(name in own and state[name].shape == own[name].shape for name in layer):
        fill(model, state, file, NOTHING, NOTHING)
        return Report(file, "AdaTAD", len(state))
    fill(model, {n: v for n, v in state.items() if n not in layer}, file, re.compile(re.escape(CLASS_LAYER)), NOTHING)
    return Report(file, "AdaTAD", len(state) - len(layer), ["class layer"])


def load_backbone(backbone: nn.Module, file: str | Path) -> Report:
    """Fill the ViT from a VideoMAE file: every weight of it; adapters stay as they are.

    Raises:
        FileNotFoundError, ValueError: The file, or what does not fit.
    """
    file = Path(file)
    try:
        state, form = backbone_names(state_of(read_tensors(file)))
    except ValueError as e:
        raise e if str(file) in str(e) else ValueError(f"{file}: {e}") from None
    may_lack = re.compile(r"pos_embed$|fc_norm\.|.*\.adapter\.")
    spare = fill(backbone, state, file, may_lack, SPARE)
    return Report(file, form, len(state) - len(spare), spare)


def is_public(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a whole public AdaTAD network."""
    return any(name.removeprefix("module.").startswith("rpn_head.") for name in state)


def fill(
    module: nn.Module, state: Mapping[str, Tensor], file: Path, may_lack: re.Pattern, spare: re.Pattern
) -> list[str]:
    """Copy a state dict into a module, strictly; returns the names that `spare` allowed to be without a place.

    Raises:
        ValueError: A tensor is missing, one too many or of another shape; nothing was changed then.
    """
    own = module.state_dict()
    missing = [n for n in own if n not in state and not may_lack.match(n)]
    left = [n for n in state if n not in own]
    unexpected = [n for n in left if not spare.match(n)]
    shapes = [
        f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    faults = {"missing": missing, "unexpected": [n.removeprefix("?") for n in unexpected], "of another shape": shapes}
    if any(faults.values()):
        what = "; ".join(f"{len(v)} {k}: {_some(v)}" for k, v in faults.items() if v)
        raise ValueError(f"{file} does not fit this network ({what}); nothing was loaded")
    with torch.no_grad():
        for name, value in own.items():
            if name in state:
                value.copy_(state[name])
    return left


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as f:
        return f.read(9)[8:] == b"{"


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    """The safetensors format: 8 bytes of length, a json header, then the numbers."""
    data = np.memmap(file, np.uint8, "r")
    try:
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        if length > len(data) - 8:
            raise ValueError("the header is cut short")
        header = json.loads(data[8 : 8 + length].tobytes())
        body, out = data[8 + length :], {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = body[begin:end].tobytes()
            if entry["dtype"] == "BF16":
                flat = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16) if raw else torch.empty(0)
            else:
                flat = torch.from_numpy(np.frombuffer(raw, SAFETENSORS[entry["dtype"]]).copy())
            out[name] = flat.reshape(entry["shape"])
        return out
    except (KeyError, TypeError, ValueError, RuntimeError, struct.error) as e:
        raise ValueError(f"{file}: no safetensors file, or a damaged one ({e})") from None
