"""A last layer solved for cross-entropy by a quadratic bound, against the squared loss on one-hot vectors and Adam.

    python benchmarks/slimtrain/classification.py --root DIR [--sets letter mnist] [--epochs 5] [--seeds 3]

With p the softmax of the outputs, the Hessian of the cross-entropy is at most 1/2 (Boehning 1992, Annals of the
Institute of Statistical Mathematics 44, 197-200). So in a step of slimTrain (hpcopt.linalg.sampled_tikhonov) the
residual may be 2 (p - C) and the weight of a sample 1/2: for a fixed lambda the step then does not increase the
cross-entropy of the batch, with its Tikhonov and its proximal term. At the end of an epoch the last layer is refitted
on all samples: by ridge regression for the squared loss, for the cross-entropy by ``REPEATS`` accelerated steps of the
bound. This method is not part of hpcopt. DIR holds letter.csv.gz and MNIST's four .gz files, or folders with them.
Nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.data.load import load
from hpcopt.data.options import DataOptions
from hpcopt.linalg.sampled_tikhonov import Bounds, SampledGram, best, cross_validation

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
BATCH, MEMORY, REPEATS, RATE, WIDTHS = 64, 5, 30, 1e-3, (128, 64)
BOUNDS = Bounds(1e-7, 1e3, 60, negative=True)
METHODS: dict[str, tuple[str, float | None]] = {
    "Adam, cross-entropy": ("adam", None),
    "squared loss": ("squared", None),
    "squared loss, lambda = 1e-3": ("squared", 1e-3),
    "bound": ("bound", None),
    "bound, lambda = 1e-3": ("bound", 1e-3),
}
"""Name in the table -> how the last layer moves, and lambda of every step; None: by cross-validation."""


class Network:
    """A multilayer perceptron whose last layer W (t, m) is moved by hand, or by Adam with all others."""

    def __init__(self, inputs: int, classes: int, kind: str, fixed: float | None) -> None:
        sizes, layers = [inputs, *WIDTHS], []
        for before, after in pairwise(sizes):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        self.body, last = torch.nn.Sequential(*layers), torch.nn.Linear(sizes[-1], classes)
        self.weights = torch.cat([last.weight, last.bias[:, None]], dim=1).detach().double()
        self.weights.requires_grad_(kind == "adam")
        self.kind, self.fixed, self.damping, self.window = kind, fixed, 1e-10, [torch.zeros(())]
        self.optimizer = torch.optim.Adam([*self.body.parameters(), *[self.weights] * (kind == "adam")], lr=RATE)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Z^T (n, m)."""
        return functional.pad(self.body(inputs).double(), (0, 1), value=1.0)

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """One batch: the last layer, then the others at the new W."""
        features = self.features(inputs)
        if self.kind != "adam":
            self._solve(features.detach(), labels)
        outputs = features @ self.weights.T
        one_hot = functional.one_hot(labels, len(self.weights)).double()
        squared = (outputs - one_hot).square().sum() / (2 * len(labels))
        self.optimizer.zero_grad()
        (squared if self.kind == "squared" else functional.cross_entropy(outputs, labels)).backward()
        self.optimizer.step()

    def _solve(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """W by one step of slimTrain, lambda as ``fixed`` says."""
        residual, weight = self._residual(features, labels, self.weights)
        design, residual = ((weight / len(labels)) ** 0.5 * part for part in (features, residual))
        gram, square = design.T @ design, float(residual.square().sum())
        matrices = (sum(self.window) + gram, gram, residual.T @ design)
        sampled = SampledGram(*(part.numpy() for part in matrices), square, self.weights.numpy())
        trial = self.fixed
        if trial is None:
            trials = BOUNDS.candidates(self.damping)
            trial = best(trials, cross_validation(sampled, trials, self.damping, len(labels)), BOUNDS, self.damping)
        self.damping += trial
        self.weights = torch.from_numpy(sampled.moved(self.weights.numpy(), trial, self.damping))
        self.window = [*self.window, gram][-MEMORY:]

    def _residual(
        self, features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """R^T (n, t) and the weight of a sample."""
        outputs, one_hot = features @ weights.T, functional.one_hot(labels, len(weights))
        return (outputs - one_hot, 1.0) if self.kind == "squared" else (2 * (outputs.softmax(dim=1) - one_hot), 0.5)

    @torch.no_grad()
    def refitted(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """W on all samples; that of Adam is refitted for the cross-entropy, too."""
        features, weights = self.features(inputs) / len(labels) ** 0.5, self.weights.detach()
        scale = len(labels) ** 0.5
        if self.kind == "squared":
            gram, zero = (features.T @ features).numpy(), torch.zeros_like(weights).numpy()
            residual = -functional.one_hot(labels, len(weights)).double() / scale
            cross, square = (residual.T @ features).numpy(), float(residual.square().sum())
            sampled = SampledGram(gram, gram, cross, square, zero)
            trials = Bounds(1e-7, 1e3, 60, negative=False).candidates(0.0)
            trial = best(trials, cross_validation(sampled, trials, 0.0, len(labels)), BOUNDS, 0.0)
            return torch.from_numpy(sampled.moved(zero, trial, trial))
        factor = torch.linalg.cholesky(0.5 * features.T @ features + 1e-7 * torch.eye(features.shape[1]))
        ahead, before, pace = weights, weights, 1.0
        for _ in range(REPEATS):
            residual, weight = self._residual(features * scale, labels, ahead)
            step = torch.cholesky_solve(weight * features.T @ (residual / scale), factor).T
            after, faster = ahead - step, (1 + (1 + 4 * pace * pace) ** 0.5) / 2
            ahead = after + (pace - 1) / faster * (after - before)
            before, pace = after, faster
        return before


def accuracies(data: Data, method: str, seed: int, epochs: int) -> tuple[float, float]:
    """Best test accuracy over the epochs with the last layer of the iterate, and with the refitted one."""
    inputs, labels, test_inputs, test_labels = data
    torch.manual_seed(seed)
    network = Network(inputs.shape[1], int(labels.max()) + 1, *METHODS[method])
    found = []
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            network.step(inputs[chosen], labels[chosen])
        with torch.no_grad():
            features = network.features(test_inputs)
        both = network.weights.detach(), network.refitted(inputs, labels)
        found.append([float(((features @ w.T).argmax(dim=1) == test_labels).double().mean()) for w in both])
    return max(raw for raw, _ in found), max(refit for _, refit in found)


def read(name: str, root: Path) -> Data:
    """Training and test inputs (n, d) and labels (n,) of a set."""
    given = {"letter": {"target": "first", "test": 5000}, "mnist": {}}[name]
    source = str(next(root.rglob("letter.csv.gz"))) if name == "letter" else name
    data = load(DataOptions(source=source, root=str(root), **given), Communicator(), 0)
    assert data.test is not None
    inputs, tests = (torch.from_numpy(part.inputs).flatten(1) for part in (data.train, data.test))
    labels, answers = (torch.from_numpy(part.targets).long() for part in (data.train, data.test))
    return inputs, labels, tests, answers


def main() -> None:
    """Train every method on every set and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["letter", "mnist"], choices=["letter", "mnist"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = [[name] for name in args.methods]
    for name in args.sets:
        data = read(name, args.root)
        for row in rows:
            runs = [accuracies(data, row[0], seed, args.epochs) for seed in range(args.seeds)]
            row += [f"{100 * median(column):.2f}" for column in zip(*runs, strict=True)]
            print(name, row, [[f"{100 * part:.2f}" for part in run] for run in runs], flush=True)
    lines = [
        f"Best test accuracy in percent over {args.epochs} epochs, medians over {args.seeds} seeds: with the last layer"
        " of the iterate, and with the one refitted at the end of an epoch.",
        "",
        *table(["method", *(word for name in args.sets for word in (name, f"{name}, refitted"))], rows),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/slimtrain/classification.py{spelled(args)}"
        write_report(args.output, "A last layer solved for cross-entropy by a bound", command, lines, ranks=1)


if __name__ == "__main__":
    main()
