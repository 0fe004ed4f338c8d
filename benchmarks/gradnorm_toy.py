"""GradNorm's toy problem: regression tasks that are alike but for their scale, learned by one network.

    python benchmarks/gradnorm_toy.py

Chen et al., "GradNorm", ICML 2018, section 4: T tasks f_i(x) = sigma_i tanh((B + E_i) x), B common to all tasks and E_i
its own, entries N(0, 10) and N(0, 3.5); squared loss; a trunk of four layers of 100 ReLU units and one linear layer per
task. The tasks are equally hard, so a fair balance trains them at the same pace. The measure is the paper's: the mean
over the tasks of L_i / L_i(0) on fresh data.

The paper has inputs in R^250 and outputs in R^100; 20 and 10 show the same in seconds (`--inputs 250 --outputs 100
--steps 20000` is the original). Inputs are scaled so that the tanh works around its bend, which the paper leaves open.

Compared: equal weights, uncertainty weighting (Kendall et al., CVPR 2018), GradNorm with the paper's alpha for this
problem and with our default, and the weights 1 / sigma_i^2 that one would choose if one knew the scales (scaled to sum
to T, as GradNorm's are). Each seed draws another problem, network and data; printed are means over the seeds, and the
ratio to equal weights of the same seed with its least and largest value. The plot shows the first seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.balancing import build_balancer  # noqa: E402

WIDTH, DEPTH = 100, 4
SCALES = {2: (1.0, 100.0), 10: (1.0, 2.0, 4.0, 8.0, 12.0, 20.0, 35.0, 50.0, 70.0, 100.0)}
METHODS = {
    "equal": "equal weights",
    "uw": "uncertainty weighting",
    "gradnorm 0.12": "GradNorm, alpha 0.12",
    "gradnorm 1.5": "GradNorm, alpha 1.5",
    "known": "1 / sigma^2",
}


class Tasks:
    """The functions to learn."""

    def __init__(self, scales: tuple[float, ...], inputs: int, outputs: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.scales, self.inputs = scales, inputs
        base = self._normal(outputs, inputs) * 10**0.5
        self.matrices = [base + self._normal(outputs, inputs) * 3.5**0.5 for _ in scales]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def draw(self, n: int) -> tuple[Tensor, list[Tensor]]:
        x = self._normal(n, self.inputs)
        shrink = (13.5 * self.inputs) ** -0.5  # (B + E) x then has variance 1
        return x, [s * torch.tanh(x @ m.T * shrink) for s, m in zip(self.scales, self.matrices, strict=True)]


class Network(nn.Module):
    def __init__(self, tasks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs] + [WIDTH] * DEPTH
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        self.trunk = nn.Sequential(*(m for pair in layers for m in pair))
        self.heads = nn.ModuleList([nn.Linear(WIDTH, outputs) for _ in range(tasks)])

    @property
    def shared(self) -> Tensor:
        return self.trunk[-2].weight

    def losses(self, x: Tensor, targets: list[Tensor]) -> list[Tensor]:
        features = self.trunk(x)
        return [(head(features) - y).square().mean() for head, y in zip(self.heads, targets, strict=True)]


def train(method: str, tasks: int, seed: int, args: argparse.Namespace, every: int = 25) -> dict[str, list]:
    """One run; the curve of the task-normalised test loss and of the weights, every `every` steps."""
    problem = Tasks(SCALES[tasks], args.inputs, args.outputs, seed)
    torch.manual_seed(seed)
    network = Network(tasks, args.inputs, args.outputs)
    name, _, alpha = method.partition(" ")
    options: dict = {"interval": 0}
    if alpha:
        options = {"interval": 1, "alpha": float(alpha)}
    elif name == "known":
        known = [s**-2 for s in SCALES[tasks]]
        options["task_weights"] = [tasks * k / sum(known) for k in known]
    name = {"equal": "fixed", "known": "fixed"}.get(name, name)
    balancer = build_balancer(name, tasks, [network.shared], network.parameters(), **options)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    test = problem.draw(1000)
    with torch.no_grad():
        first = torch.stack(network.losses(*test))
    record: dict[str, list] = {"step": [], "loss": [], "weights": []}
    start = time.perf_counter()
    for step in range(args.steps + 1):
        if step % every == 0:
            with torch.no_grad():
                now = torch.stack(network.losses(*test)) / first
            record["step"].append(step)
            record["loss"].append(now.mean().item())
            record["weights"].append(balancer.weights.tolist())
        balancer.backward(network.losses(*problem.draw(100)))
        optimizer.step()
        balancer.step()
        optimizer.zero_grad()
    record["seconds"] = [time.perf_counter() - start]
    return record


def draw(results: dict[int, dict[str, dict]], file: Path) -> None:
    """Per row a number of tasks: the test loss of each method, and GradNorm's weights."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(results), 2, squeeze=False)
    for row, (tasks, runs) in zip(axes, results.items(), strict=True):
        for method, run in runs.items():
            style = {"color": "0.5", "linestyle": "--"} if method == "known" else {}
            row[0].plot(run["step"], run["loss"], label=METHODS[method], **style)
        row[0].set(title=f"{tasks} tasks: test loss", xlabel="step", ylabel="mean of L / L(0)", yscale="log")
        row[0].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        run = runs["gradnorm 1.5"]
        for i, scale in enumerate(SCALES[tasks]):
            row[1].plot(run["step"], [w[i] for w in run["weights"]], label=f"sigma {scale:g}")
        row[1].set(
            title=f"{tasks} tasks: GradNorm's weights, alpha 1.5", xlabel="step", ylabel="task weight", yscale="log"
        )
        row[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        for ax in row:
            ax.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("gradnorm_toy.png"), help="file of the plot")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the layers are too small for more

    results: dict[int, dict[str, dict]] = {}
    print(f"{'tasks':>5}  {'method':22} {'test loss':>10} {'against equal':>21} {'ms a step':>10}  weights, first seed")
    equal: list[float] = []
    for tasks in SCALES:
        results[tasks] = {}
        for method in METHODS:
            runs = [train(method, tasks, seed, args) for seed in args.seeds]
            results[tasks][method] = runs[0]
            finals = [statistics.mean(run["loss"][-8:]) for run in runs]  # the last steps, as single ones are noisy
            equal = finals if method == "equal" else equal
            ratios = [a / b for a, b in zip(finals, equal, strict=True)]
            against = f"{statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            weights = " ".join(f"{w:.2g}" for w in runs[0]["weights"][-1])
            ms = statistics.mean(run["seconds"][0] for run in runs) / args.steps * 1000
            print(
                f"{tasks:5}  {METHODS[method]:22} {statistics.mean(finals):10.4f} {against:>21} {ms:10.2f}  {weights}"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(results, args.out)
    print(f"Plot: {args.out}")


if __name__ == "__main__":
    main()
