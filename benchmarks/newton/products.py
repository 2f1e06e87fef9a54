r"""One Gauss-Newton product of a fully connected network: from the factors of its Jacobian, and in other ways.

    OMP_NUM_THREADS=1 python benchmarks/newton/products.py [--output benchmarks/results/newton-products.md]

The others are sweeps through the network, automatic differentiation, the Gauss-Newton operator of curvlinops, and the
matrix products alone that the factors need, Z V and Z^T R of every layer, into memory that is there. All take turns in
one process, one product each in every round and in another order each time, so that a noisy machine disturbs them
alike; first they must agree. A ratio is the median over the rounds of the ratio in one round. About two minutes.

curvlinops is not among the dependencies; without it that row is missing. It goes into a folder of its own, beside the
environment, which keeps its torch:

    pip install --target other --no-deps curvlinops-for-pytorch backpack-for-pytorch einconv einops \
        linear_operator unfoldNd opt_einsum tqdm
    PYTHONPATH=other OMP_NUM_THREADS=1 python benchmarks/newton/products.py
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable
from importlib import metadata, util
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from torch.func import functional_call, jvp, vjp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.losses import CrossEntropy
from hpcopt.objective.network.objective import NetworkObjective

FACTORS, CURVLINOPS, MATRICES = "hpcopt, factors of J", "curvlinops GGNLinearOperator", "matrix products alone"
LIMITS = {CURVLINOPS: 0.5, MATRICES: 1.35}
"""The largest ratios that are wanted."""
QUIET = 0.2
"""A load average above this, without this process, is another process that computes."""

Product = Callable[[], torch.Tensor]
"""G v, flat in the order of the torch model's parameters, or whatever the variant has if ``Problem.flat`` takes it."""


class Problem:
    """A network, its instances, and one direction, for the grid of one rank and as a torch model."""

    def __init__(
        self,
        sizes: list[int],
        samples: int,
        dtype: torch.dtype,
        comm: Communicator,
        device: torch.device | str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sizes, self.comm = sizes, comm
        self.inputs = torch.rand(samples, sizes[0], generator=generator, dtype=dtype).to(device)
        self.labels = torch.randint(sizes[-1], (samples,), generator=generator).to(device)
        self.network = self.objective("explicit")
        self.w = self.network.initial_vector()
        self.v = torch.randn(len(self.w), generator=generator, dtype=dtype).to(device)
        layers: list[torch.nn.Module] = []
        for u, v in pairwise(sizes):
            layers += [torch.nn.Linear(u, v, dtype=dtype, device=device), torch.nn.Tanh()]
        self.model = torch.nn.Sequential(*layers[:-1])
        torch.nn.utils.vector_to_parameters(self.flat(self.w), self.model.parameters())

    def objective(self, jacobian: str) -> NetworkObjective:
        """The loss of the network on one rank."""
        return NetworkObjective(
            self.sizes, "tanh", "cross_entropy", self.inputs, self.labels, self.comm, [1, 1], jacobian=jacobian
        )

    def flat(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector of the network in the order of the torch model's parameters."""
        parts = []
        for layer in self.network.network.views(vector):
            assert layer.biases is not None
            parts += [layer.weights.T.reshape(-1), layer.biases]
        return torch.cat(parts)


def factors(problem: Problem) -> Product:
    """From M and Z of every layer, made beforehand."""
    linearization = problem.network.linearize(problem.w, problem.network.full_batch)
    return lambda: linearization.gauss_newton(problem.v)


def sweeps(problem: Problem) -> Product:
    """A sweep of tangents forward and one backward, with the activations kept."""
    objective = problem.objective("implicit")
    linearization = objective.linearize(problem.w, objective.full_batch)
    return lambda: linearization.gauss_newton(problem.v)


def any_model(problem: Problem) -> Product:
    """What hpcopt does for any torch model: backward twice through graphs that are kept."""
    objective = DataParallelObjective(problem.model, "cross_entropy", problem.inputs, problem.labels, problem.comm)
    linearization = objective.linearize(objective.initial_vector(), objective.full_batch)
    v = problem.flat(problem.v)
    return lambda: linearization.gauss_newton(v)


def forward_and_reverse(problem: Problem) -> Product:
    """Forward and reverse mode of torch, as one writes them."""
    model, loss = problem.model, CrossEntropy()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    pieces = problem.flat(problem.v).split([p.numel() for p in parameters.values()])
    tangents = {name: v.view(p.shape) for (name, p), v in zip(parameters.items(), pieces, strict=True)}

    def outputs(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, values, (problem.inputs,))

    def product() -> torch.Tensor:
        moved = jvp(outputs, (parameters,), (tangents,))[1]
        found, pull_back = vjp(outputs, parameters)
        bent = loss.hessian_product(found, problem.labels, moved) / len(problem.labels)
        return torch.cat([part.reshape(-1) for part in pull_back(bent)[0].values()])

    return product


def curvlinops(problem: Problem) -> Product:
    """The operator of curvlinops; its check that two products agree is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import GGNLinearOperator

        parameters, data = list(problem.model.parameters()), [(problem.inputs, problem.labels)]
        loss = torch.nn.CrossEntropyLoss()
        operator = GGNLinearOperator(problem.model, loss, parameters, data, check_deterministic=False)
    v = problem.flat(problem.v)
    return lambda: operator @ v


def matrices(problem: Problem) -> Product:
    """T = Z V and Z^T R of every layer; the numbers do not matter."""
    samples, shapes = len(problem.inputs), list(pairwise(problem.sizes))
    given = [problem.inputs, *(problem.inputs.new_ones(samples, u) for u, _ in shapes[1:])]
    moves = [problem.inputs.new_ones(u, v) for u, v in shapes]
    units, sums = [problem.inputs.new_ones(samples, v) for _, v in shapes], [torch.empty_like(move) for move in moves]

    def product() -> torch.Tensor:
        for z, move, t, s in zip(given, moves, units, sums, strict=True):
            torch.mm(z, move, out=t)
            torch.mm(z.T, t, out=s)
        return sums[0]

    return product


VARIANTS: dict[str, Callable[[Problem], Product]] = {
    FACTORS: factors,
    "hpcopt, sweeps through the network": sweeps,
    "hpcopt, any torch model": any_model,
    "torch.func jvp + vjp": forward_and_reverse,
    CURVLINOPS: curvlinops,
    MATRICES: matrices,
}
BY_BLOCKS = (FACTORS, "hpcopt, sweeps through the network")


class Made(NamedTuple):
    """One variant at one point: its product, and the seconds that it took to get there."""

    product: Product
    seconds: float


class Times(NamedTuple):
    """Of one product: seconds on the clock, and of the processor, which other programs lengthen less."""

    seconds: float
    processor: float


def make(problem: Problem) -> dict[str, Made]:
    """All variants that can run here."""
    found = {}
    for name, maker in VARIANTS.items():
        if name == CURVLINOPS and util.find_spec("curvlinops") is None:
            continue
        maker(problem)  # warms up
        start = perf_counter()
        product = maker(problem)
        found[name] = Made(product, perf_counter() - start)
    return found


def largest_difference(problem: Problem, made: dict[str, Made]) -> float:
    """The largest relative difference of a product to that of reverse and forward mode, in the 2-norm."""
    expected, worst = made["torch.func jvp + vjp"].product(), 0.0
    for name, one in made.items():
        if name != MATRICES:
            found = problem.flat(one.product()) if name in BY_BLOCKS else one.product()
            worst = max(worst, float((found - expected).norm() / expected.norm()))
    return worst


def measure(made: dict[str, Made], rounds: int, wait: Callable[[], object] = lambda: None) -> dict[str, list[Times]]:
    """The times of one product for each variant, round by round; ``wait`` returns once a device has done its work."""
    times: dict[str, list[Times]] = {name: [] for name in made}
    names = list(made)
    for number in range(rounds + 3):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            wait()
            start = Times(perf_counter(), process_time())
            made[name].product()
            wait()
            if number >= 3:  # the first rounds warm up
                times[name].append(Times(perf_counter() - start.seconds, process_time() - start.processor))
    return times


def ratios(times: dict[str, list[Times]], other: str, which: int = 0) -> list[float]:
    """What the factors took of the time of another variant in each round; ``which`` is the place in ``Times``."""
    return [a[which] / b[which] for a, b in zip(times[FACTORS], times[other], strict=True)]


def pays_from(times: dict[str, list[Times]], made: dict[str, Made], other: str) -> str:
    """Number of products from which the factors with their making cost less than the other variant with its own."""
    gain = median(t.seconds for t in times[other]) - median(t.seconds for t in times[FACTORS])
    if gain <= 0:
        return "never"
    return str(max(1, math.ceil((made[FACTORS].seconds - made[other].seconds) / gain)))


def rows(times: dict[str, list[Times]], made: dict[str, Made]) -> list[list[str]]:
    """One row a variant: milliseconds, ratios with the range of their middle four fifths, and the making."""
    found = []
    for name, own in times.items():
        seconds = [time.seconds for time in own]
        tenths = quantiles(seconds, n=10)
        row = [name, *(f"{1e3 * figure:.1f}" for figure in (median(seconds), tenths[0], tenths[-1]))]
        if name == FACTORS:
            row += ["", ""]
        else:
            spread = quantiles(ratios(times, name), n=10)
            row.append(f"{median(ratios(times, name)):.2f} ({spread[0]:.2f} to {spread[-1]:.2f})")
            row.append(f"{median(ratios(times, name, 1)):.2f}")
        row.append("" if name == MATRICES else f"{1e3 * made[name].seconds:.0f}")
        found.append([*row, "" if name in (FACTORS, MATRICES) else pays_from(times, made, name)])
    return found


def verdicts(times: dict[str, list[Times]]) -> list[str]:
    """One sentence a target."""
    lines = []
    for other, limit in LIMITS.items():
        if other not in times:
            lines.append(f"- {other}: not measured, it is not installed here")
            continue
        ratio = median(ratios(times, other))
        met = "met" if ratio <= limit else "NOT met"
        lines.append(f"- factors / {other}: {ratio:.2f} (target: at most {limit}): {met}")
    return lines


def conditions(before: float, after: float) -> str:
    """Whether the machine had other work; ``before`` is the load average without this process, ``after`` with it."""
    cores = os.cpu_count() or 1
    text = f"Load average on {cores} cores: {before:.1f} at the start, {after:.1f} at the end, this process included."
    if before > QUIET:
        text += (
            " The machine was busy with other work: the ratios are of the same rounds and stand for a busy machine, "
        )
        text += "the milliseconds mean little. To be repeated on a quiet one."
    return text


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 512, 256, 10])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "float64"], default="float32")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table, and write it where ``--output`` says."""
    chosen, before = options(), os.getloadavg()[0]
    torch.set_num_threads(chosen.threads)
    problem = Problem(chosen.sizes, chosen.samples, getattr(torch, chosen.precision), Communicator())
    made = make(problem)
    difference = largest_difference(problem, made)
    times = measure(made, chosen.rounds)
    text = f"Network {'-'.join(map(str, chosen.sizes))}, tanh, cross-entropy, {chosen.samples:,} instances, "
    text += f"{chosen.precision}, {chosen.threads} thread(s), {chosen.rounds} rounds. All products agree to "
    text += f"{difference:.0e}, relative."
    if CURVLINOPS in made:
        text += f" curvlinops {metadata.version('curvlinops-for-pytorch')}."
    head = ["product", "median ms", "10 %", "90 %", "factors / this (10 to 90 %)", "of processor time", "made once, ms"]
    head.append("factors pay from, products")
    lines = [text, "", conditions(before, os.getloadavg()[0]), "", *table(head, rows(times, made)), ""]
    lines += verdicts(times)
    print("\n".join(lines))
    if chosen.output:
        command = f"OMP_NUM_THREADS={chosen.threads} python benchmarks/newton/products.py{spelled(chosen)}"
        if CURVLINOPS in made:
            command = f"PYTHONPATH=other {command}"
        busy = " (provisional: measured on a busy machine)" if before > QUIET else ""
        write_report(chosen.output, f"One Gauss-Newton product{busy}", command, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
