"""TorchScript files: code that does more than computing with tensors is refused before PyTorch loads it."""

from __future__ import annotations

import contextlib
import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from old_yolov5 import Detect, DetectionModel
from torch import Tensor, nn

from models.load import load_model
from models.yolo import Model
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml
from utils.weights.reader import UnsafeCheckpointError
from utils.weights.torchscript import read_tensor_code, refuse_other_code

MINE = b"of the user\n" * 20


@pytest.fixture
def victim(tmp_path) -> Path:
    """A file of the user, named without characters that code would have to escape."""
    file = tmp_path / "victim.txt"
    file.write_bytes(MINE)
    return file


# Attacks --------------------------------------------------------------------------------------------------------------


class Saves(nn.Module):
    """Looks like a network of three classes, and writes over a file when it runs."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, x: Tensor) -> Tensor:
        torch.save("text of the attacker", self.victim)
        return torch.zeros(x.size(0), 10, 8)


class Restored(nn.Module):
    """Does so when it is read."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        torch.save("text of the attacker", state[0])
        self.victim = state[0]
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.size(0), 10, 8)


class Harmless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.size(0), 10, 8)


def scripted(module: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(file))
    return file


def entries_of(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}


def write(file: Path, *entries: tuple[str, bytes]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # two entries of one name
        for name, content in entries:
            archive.writestr(name, content)
    return file


def when_it_runs(file: Path, victim: Path) -> Path:
    return scripted(Saves(str(victim)), file)


def when_it_is_read(file: Path, victim: Path) -> Path:
    return scripted(Restored(str(victim)), file)


def as_a_default(file: Path, victim: Path) -> Path:
    """PyTorch computes the defaults of arguments while it reads the file."""
    code = f'x: Tensor, y: Tensor=torch.from_file("{victim}", True, 500)'.encode()
    entries = entries_of(scripted(Harmless(), file))
    return write(file, *((n, c.replace(b"x: Tensor", code) if "/code/" in n else c) for n, c in entries.items()))


ATTACKS = {when_it_runs: "torch.save", when_it_is_read: "__setstate__", as_a_default: "torch.from_file"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_are_no_duds(tmp_path, victim, attack):
    module = torch.jit.load(str(attack(tmp_path / "bad.torchscript", victim)))
    if attack is when_it_runs:
        module(torch.zeros(1, 3, 64, 64))
    assert victim.read_bytes() != MINE


@pytest.mark.parametrize(("attack", "name"), ATTACKS.items())
def test_attacks_are_refused_and_named(tmp_path, victim, attack, name):
    file = attack(tmp_path / "bad.torchscript", victim)
    victim.write_bytes(MINE)  # making the file may have changed it
    with pytest.raises(UnsafeCheckpointError, match=rf"bad\.torchscript: refused, because its code .*`{name}`"):
        load_model(file)
    assert victim.read_bytes() == MINE


def test_pytorch_sees_the_entries_that_were_looked_at(tmp_path, victim):
    """Of two entries of a name, of names that differ in case, and of code elsewhere."""
    file = tmp_path / "w.torchscript"
    good = entries_of(scripted(Harmless(), file))
    code = next(name for name in good if "/code/" in name)
    module = scripted(Saves(str(victim)), tmp_path / "bad.torchscript")
    bad = next(content for name, content in entries_of(module).items() if "/code/" in name).replace(
        b"Saves", b"Harmless"
    )
    upper = code.replace("/code/", "/CODE/")
    lower = {name: content for name, content in good.items() if name != code}
    for entries in (
        [*good.items(), (code, bad)],
        [(code, bad), *good.items()],
        [(upper, bad), *good.items()],
        [*lower.items(), (upper, bad)],
        [*good.items(), (code.replace("/code/", "/code/__torch__/../"), bad)],
    ):
        with contextlib.suppress(ValueError):
            load_model(write(file, *entries))
        assert victim.read_bytes() == MINE
    with zipfile.ZipFile(read_tensor_code(write(file, *good.items(), ("w/model.json", b"{}"), (upper, bad)))) as copy:
        assert sorted(n.split("/", 1)[1] for n in copy.namelist()) == sorted(
            n.split("/", 1)[1] for n in good if n.split("/", 1)[1] not in (".data/serialization_id",)
        )
    file.write_bytes(b"MZ" + file.read_bytes())
    with pytest.raises(ValueError, match="no TorchScript file that can be read .it does not begin as a zip archive"):
        load_model(file)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ('torch.save(x, "f")', "torch.save"),
        ('torch . \n save(x, "f")', "torch.save"),
        ('torch.\\\n  save(x, "f")', r"character '\\\\'"),
        ('torch. # \n save(x, "f")', "character '#'"),
        ('x.save("f")', "x.save"),
        ('(x).save("f")', "`.save"),
        ('"a".save("f")', "`.save"),
        ('t = torch\n  t.save(x, "f")', "t.save"),
        ('s = x.save\n  s("f")', "x.save"),
        ('f(1.save("f"))', "1.save"),
        ('getattr(torch, "save")(x, "f")', "getattr"),
        ('getattr(torch, "0" "save")(x, "f")', "getattr"),
        ('g = getattr\n  g(x, "save")("f")', "getattr"),
        ('getattr(x.save, "0")', "x.save"),
        ('torch.from_file("f", True, 10)', "torch.from_file"),
        ("torch.set_(x, y)", "torch.set_"),
        ("torch.as_strided(x, [9], [9])", "torch.as_strided"),
        ('ops.image.write_file("f", x)', "ops.image.write_file"),
        ("o = ops\n  o.image.add(x)", "ops"),
        ("ops.quantized.add(x, y)", "ops.quantized.add"),
        ('ops.aten.save(x, "f")', "ops.aten.save"),
        ('__torch__.torch.classes.aoti.AOTIModelRunnerCpu("f")', "torch.classes"),
        ('__torch__.torch.classes.xnnpack.Conv2dOpContext.save("f")', "save"),
        ("x\u00b5 = 1", "character"),
        ("def __setstate__(self, s):", "__setstate__"),
    ],
)
def test_ways_to_other_operators(code, name):
    with pytest.raises(UnsafeCheckpointError, match=f"^refused, because its code .c.py. contains .*{name}"):
        refuse_other_code(f"def forward(self, x: Tensor) -> Tensor:\n  {code}\n", "c.py")


def test_objects_of_libraries(tmp_path):
    entries = entries_of(scripted(Harmless(), tmp_path / "w.torchscript"))
    for name in ("torch.classes.aoti\nAOTIModelRunnerCpu", "torch.distributed.rpc\nrref"):
        bad = {n: c + name.encode() if n.endswith("/data.pkl") else c for n, c in entries.items()}
        with pytest.raises(UnsafeCheckpointError, match=rf"w\.torchscript: .*data\.pkl in it names `{name[:9]}"):
            load_model(write(tmp_path / "w.torchscript", *bad.items()))


@pytest.mark.parametrize("damage", ["cut", "empty", "checkpoint", "compressed", "much code"])
def test_damaged_files_end_in_a_sentence(tmp_path, damage, monkeypatch):
    file = scripted(Harmless(), tmp_path / "w.torchscript")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "empty":
        write(file)
    elif damage == "checkpoint":
        torch.save({"model": 1}, file)
    elif damage == "compressed":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("data.pkl", "constants.pkl"):
                archive.writestr(f"w/{name}", bytes(1 << 20))
    else:
        monkeypatch.setattr("utils.weights.torchscript.CODE_LIMIT", 100)
    with pytest.raises(ValueError, match=r"w\.torchscript: no TorchScript file that can be read \(.+\)"):
        load_model(file)


# Files that must load -------------------------------------------------------------------------------------------------


def traced(module: nn.Module, file: Path, size: tuple[int, int], **config) -> Path:
    """As YOLOv5's export writes it: a trace, and its shape, stride and names."""
    x = torch.zeros(1, 3, *size, dtype=next(module.parameters()).dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module.eval()(x)
        trace = torch.jit.trace(module, x, strict=False, check_trace=False)
        config = {"shape": list(x.shape), "stride": 32} | config
        torch.jit.save(trace, str(file), _extra_files={"config.txt": json.dumps(config)})
    return file


class CachedDetect(Detect):
    """Keeps its grids from call to call, as YOLOv5 does without --dynamic: a trace has them as constants."""

    def forward(self, x):
        rows = []
        for i, conv in enumerate(self.m):
            y = conv(x[i])
            b, _, h, w = y.shape
            y = y.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()
            if self.grid[i].shape[2:4] != y.shape[2:4]:
                gy, gx = torch.meshgrid(torch.arange(h).to(y), torch.arange(w).to(y), indexing="ij")
                self.grid[i] = torch.stack((gx, gy), 2).expand(1, self.na, h, w, 2) - 0.5
            xy, wh, rest = y.sigmoid().split((2, 2, self.nc + 1), 4)
            xy = (xy * 2 + self.grid[i]) * self.stride[i].to(y)
            wh = (wh * 2) ** 2 * self.anchor_grid[i].to(y).view(1, self.na, 1, 1, 2)
            rows.append(torch.cat((xy, wh, rest), 4).view(b, self.na * h * w, self.no))
        return torch.cat(rows, 1)


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [Detect, CachedDetect])
def test_files_of_yolov5(tmp_path, kind, half):
    """They do not say whether they take any size, so this is tried."""
    network = DetectionModel("v6.0")
    network.model[-1].__class__ = kind
    network = network.half() if half else network
    file = traced(network, tmp_path / "w.torchscript", (64, 96), names={0: "cat", 1: "dog"})
    model = load_model(file)
    assert model.names == {0: "cat", 1: "dog"} and model.imgsz == ((64, 96) if kind is CachedDetect else None)
    if half and kind is Detect:
        return  # in float16 this stand-in of Detect mixes types
    for size in ((64, 96), (128, 64)):
        x = torch.rand(2, 3, *size)
        if size == (128, 64) and kind is CachedDetect:
            with pytest.raises(ValueError, match="takes pictures of 64x96, not 128x64"):
                model(x)
            continue
        with torch.no_grad():
            expected = network(x.half() if half else x).float()
        assert torch.allclose(model(x)[0], expected, atol=1e-4)


@pytest.mark.slow
def test_a_size_that_is_in_the_file_is_not_tried(tmp_path):
    file = traced(DetectionModel("v6.0"), tmp_path / "w.torchscript", (64, 96), names=["a", "b"], dynamic=False)
    assert load_model(file).imgsz == (64, 96)


ACTIVATIONS = (
    nn.SiLU(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Mish(),
    nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.CELU(), nn.SELU(), nn.PReLU(), nn.Softplus(), nn.Sigmoid(), nn.Tanh(),
    nn.LogSigmoid(), nn.Softsign(), nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.1, 20), nn.RReLU(), nn.Softmax(1),
    nn.SiLU(inplace=True), nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True), nn.Hardswish(inplace=True),
)  # fmt: skip
LAYERS = (
    nn.Conv2d(3, 8, 3, padding="same"), nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.GroupNorm(2, 8),
    nn.InstanceNorm2d(8), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.5), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1),
    nn.MaxPool2d(2), nn.AvgPool2d(2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Upsample(None, 2, "nearest"),
    nn.UpsamplingBilinear2d(scale_factor=2), nn.Upsample(None, 2, "bicubic"), nn.Dropout(), nn.Dropout2d(),
    nn.Identity(), nn.AdaptiveAvgPool2d(8), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(128, 80),
    nn.LayerNorm(80), nn.Unflatten(1, (10, 8)),
)  # fmt: skip


@pytest.mark.slow
def test_layers_of_torch(tmp_path):
    network = nn.Sequential(*ACTIVATIONS, *LAYERS)
    x = torch.rand(1, 3, 64, 64)
    model = load_model(traced(network, tmp_path / "w.torchscript", (64, 64), names=["a", "b", "c"]))
    with torch.no_grad():
        assert torch.allclose(model(x)[0], network(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hub/yolov5s-ghost", "hub/yolov5s-transformer", "hub/yolov3-spp", "yolov5s_dual"])
def test_layers_of_ours(tmp_path, name):
    joint = name == "yolov5s_dual"
    cfg = load_yaml(ROOT / "models" / f"{name}.yaml") | {"width_multiple": 0.1, "depth_multiple": 0.1}
    network = Model(cfg, nc=3, cls_nc=2 if joint else None).eval()
    network.detect.export = True

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            answers = self.network(x)
            return answers[0] if isinstance(answers, tuple) else answers

    file = traced(Alone(), tmp_path / "w.torchscript", (64, 64), names=["a", "b", "c"], dynamic=False)
    assert load_model(file)(torch.rand(1, 3, 64, 64))[0].shape[2] == 8
