"""Networks whose tasks do not meet: two backbones (dual), and a branch that sends no gradient back (detach)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_data import make_data
from tiny_weights import save_cfg

import train_joint
from models.yolo import Model
from utils.loss import ComputeJointLoss
from utils.system.paths import ROOT
from utils.system.yamls import load_yaml
from utils.training.engine import seed_everything
from utils.weights.checkpoint import load_checkpoint

HYP = load_yaml(ROOT / "data/hyps/hyp.scratch-low.yaml")


def losses_of(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses on two noise pictures, with a box and an image class each."""
    torch.manual_seed(0)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.3], [1, 1, 0.4, 0.6, 0.2, 0.5]])
    output = model.train()(torch.rand(2, 3, 64, 64))
    return tuple(ComputeJointLoss(model, HYP)(output, targets, torch.eye(2, model.cls_nc)).tasks.values())


def reached(loss: torch.Tensor, model: Model) -> set[str]:
    """Names of the parameters that get a gradient, be it 0."""
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return {name for (name, _), g in zip(model.named_parameters(), grads, strict=True) if g is not None}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["n", "s", "m"])
def test_no_gradient_of_dual_crosses_over(size):
    model = Model(load_yaml(ROOT / f"models/yolov5{size}_dual.yaml") | {"width_multiple": 0.125}, nc=2, cls_nc=3)
    boxes, image = (reached(loss, model) for loss in losses_of(model))
    branch = {name for name, _ in model.named_parameters() if name.startswith("model.25.")}
    assert image == branch and boxes == {name for name, _ in model.named_parameters()} - branch
    assert model.shared_parameters() == []


@pytest.mark.slow
def test_the_factor_scales_what_the_branch_sends_back_and_nothing_else():
    grads = {}
    for factor in (1.0, 0.25, 0.0):
        torch.manual_seed(0)
        model = Model("yolov5n_cls.yaml", nc=2, cls_nc=3)
        model.image_head.gradient = factor
        image = losses_of(model)[1]
        found = torch.autograd.grad(image, list(model.parameters()), allow_unused=True)
        grads[factor] = dict(zip((name for name, _ in model.named_parameters()), found, strict=True)), image
    (whole, loss), (part, _), (none, detached) = grads[1.0], grads[0.25], grads[0.0]
    assert loss == detached
    for name, g in whole.items():
        if name.startswith("model.25."):
            assert torch.equal(g, part[name]) and torch.equal(g, none[name])
        elif g is not None:
            torch.testing.assert_close(part[name], 0.25 * g, rtol=1e-4, atol=1e-7)
            assert none[name] is None
    assert not model.shared_parameters() and len(model.independent_parts()) == 2
    model.image_head.gradient = 0.25
    assert model.shared_parameters() and len(model.independent_parts()) == 1


def test_a_yaml_may_set_the_factor():
    content = load_yaml(ROOT / "models/yolov5n_cls.yaml")
    content["head"][-1][-1] = ["cls_nc", 192, 0.2, 0.0]
    assert Model(content, nc=2, cls_nc=3).detached
    content["head"][-1][-1] = ["cls_nc", 192, 0.2, -1.0]
    with pytest.raises(ValueError, match=r"gradient is -1\.0"):
        Model(content, nc=2, cls_nc=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), pictures=12)


@pytest.fixture(scope="module")
def cfgs(tmp_path_factory) -> dict[str, Path]:
    """Yamls of tiny networks: the detector alone, joint and dual."""
    folder = tmp_path_factory.mktemp("cfgs")
    return {name: save_cfg(folder / f"{name}.yaml", name) for name in ("yolov5n", "yolov5n_cls", "yolov5n_dual")}


def trained(data: Path, folder: Path, cfg: Path, **options) -> dict[str, torch.Tensor]:
    """Weights and statistics after two short epochs, unrounded (last.pt is kept in half precision)."""
    fixed = {"epochs": 2, "imgsz": 64, "batch_size": 4, "workers": 0, "noplots": True, "device": "cpu", "amp": "off"}
    fixed |= {"cfg": str(cfg), "noval": True}
    train_joint.run(data=str(data), project=str(folder.parent), name=folder.name, save_period=1, **fixed | options)
    return load_checkpoint(folder / "weights" / "epoch1.pt").model_state_dict


def part_of(state: dict[str, torch.Tensor], branch: bool) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k.startswith("model.25.") == branch}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a and a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "amp"), [("Muon", "bf16"), ("SGD", "off")])
def test_the_detector_of_detach_is_the_detector_alone(data, cfgs, tmp_path, optimizer, amp, capsys):
    """Under one seed, bit for bit: draws, mosaic partners, clipping and the optimiser's groups must not mix them."""
    options = {"optimizer": optimizer, "amp": amp, "nbs": 4, "close_mosaic": 1}
    alone = trained(data, tmp_path / "alone", cfgs["yolov5n"], **options)
    detached = trained(data, tmp_path / "detach", cfgs["yolov5n_cls"], image_gradient=0.0, **options)
    assert "The tasks share no layer that trains" in capsys.readouterr().out
    assert_same(part_of(detached, branch=False), alone)
    joint = trained(data, tmp_path / "joint", cfgs["yolov5n_cls"], balancer="fixed", **options)
    assert any(not torch.equal(joint[k], v) for k, v in alone.items())  # the comparison can fail


@pytest.mark.slow
def test_training_one_task_of_dual_leaves_the_other_untouched(data, cfgs, tmp_path):
    def run(name: str, *weights: float) -> dict[str, torch.Tensor]:
        return trained(data, tmp_path / name, cfgs["yolov5n_dual"], balancer="fixed", task_weights=list(weights))

    both, boxes, image = run("both", 1, 1), run("boxes", 1, 0), run("image", 0, 1)
    seed_everything(0)
    new = Model(cfgs["yolov5n_dual"], nc=2, cls_nc=2).state_dict()
    new = {k: v for k, v in new.items() if "anchor" not in k}  # auto-anchor may have fitted them
    # The task that is switched off keeps what it began with, its batch statistics too …
    assert_same({k: v for k, v in part_of(image, branch=False).items() if k in new}, part_of(new, branch=False))
    assert_same(part_of(boxes, branch=True), part_of(new, branch=True))
    # … and the one that trains becomes what it becomes beside the other.
    assert_same(part_of(boxes, branch=False), part_of(both, branch=False))
    assert_same(part_of(image, branch=True), part_of(both, branch=True))
    assert any(not torch.equal(v, both[k]) for k, v in new.items() if k.endswith("running_mean"))  # they can move


@pytest.mark.slow
def test_the_image_task_alone_trains_the_joint_network(data, cfgs, tmp_path):
    state = trained(data, tmp_path / "cls", cfgs["yolov5n_cls"], balancer="fixed", task_weights=[0.0, 1.0])
    seed_everything(0)
    new = Model(cfgs["yolov5n_cls"], nc=2, cls_nc=2).state_dict()
    changed = {k.rsplit(".", 1)[0] for k, v in new.items() if not torch.equal(v, state[k])}
    assert "model.0.conv" in changed and "model.23.cv3.bn" in changed and "model.25.logits" in changed
    assert not any(name.startswith("model.24.m") for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg": "yolov5n.yaml", "image_gradient": 0.5}, "no image branch that reads"),
        ({"cfg": "yolov5n_dual.yaml", "image_gradient": 0.5}, "no image branch that reads"),
        ({"cfg": "yolov5n_cls.yaml", "image_gradient": -0.5}, "a number from 0 on"),
        ({"cfg": "yolov5n_cls.yaml", "image_gradient": 0.0, "balancer": "gradnorm"}, "use --balancer fixed"),
        ({"cfg": "yolov5n_dual.yaml", "balancer": "upgrad"}, "use --balancer fixed"),
    ],
)
def test_what_makes_no_sense_is_refused(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trained(data, tmp_path / "run", **options)
