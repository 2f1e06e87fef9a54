"""One data-parallel SGD step on every rank: hpcopt, torch DDP over gloo, and a loop written by hand with mpi4py.

    mpirun -n 2 python benchmarks/sgd/step.py [--output benchmarks/results/sgd-step.md]

All three train the same network on the same batches in the same processes, in turn, block by block, so that a noisy
machine disturbs them alike; the figure is the median over blocks of the mean step time of the slowest rank.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._gloo import start_gloo
from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import choose_threads
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.sgd import SGD

RATE = 0.01


def network(widths: list[int]) -> torch.nn.Sequential:
    """A multilayer perceptron, the same on every call."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for a, b in pairwise(widths):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def batches(samples: int, batch: int) -> Callable[[], torch.Tensor]:
    """Positions of a new batch at each call."""
    generator = torch.Generator().manual_seed(1)

    def draw() -> torch.Tensor:
        return torch.randint(samples, (batch,), generator=generator).sort().values

    return draw


def hpcopt_step(inputs: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> Callable[[], object]:
    """Solver and objective as ``hpcopt run`` uses them, gradient norm and finite check included."""
    comm = Communicator()
    objective = DataParallelObjective(network(args.widths), "cross_entropy", inputs, targets, comm)
    solver, draw = SGD(learning_rate=RATE), batches(len(inputs), args.batch)
    state = solver.init(objective)

    def step() -> object:
        return solver.step(objective, state, Batch(draw(), args.batch, args.batch * comm.size))

    return step


def ddp_step(inputs: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> Callable[[], object]:
    """The data parallelism of torch, over gloo."""
    start_gloo()
    model = torch.nn.parallel.DistributedDataParallel(network(args.widths))
    optimizer, draw = torch.optim.SGD(model.parameters(), lr=RATE), batches(len(inputs), args.batch)

    def step() -> object:
        chosen = draw()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def hand_step(inputs: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> Callable[[], object]:
    """What one writes with mpi4py: gradients into one buffer, one Allreduce, one update a tensor."""
    world, model = MPI.COMM_WORLD, network(args.widths)
    parameters, draw = list(model.parameters()), batches(len(inputs), args.batch)
    flat = torch.empty(sum(p.numel() for p in parameters))

    def step() -> object:
        chosen = draw()
        loss = torch.nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
        gradients = torch.autograd.grad(loss, parameters)
        torch.cat([g.reshape(-1) for g in gradients], out=flat)
        world.Allreduce(MPI.IN_PLACE, flat.numpy())
        flat.div_(world.size)
        with torch.no_grad():
            for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.sub_(g.view(p.shape), alpha=RATE)
        return loss.item()

    return step


def measure(steps: dict[str, Callable[[], object]], blocks: int, length: int) -> dict[str, list[float]]:
    """Mean seconds a step of the slowest rank, for each block and variant, the variants in turn."""
    world = MPI.COMM_WORLD
    times: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(blocks + 1):
        for name, step in steps.items():
            world.Barrier()
            start = time.perf_counter()
            for _ in range(length):
                step()
            elapsed = world.allreduce(time.perf_counter() - start, MPI.MAX)
            if block:  # the first warms up
                times[name].append(elapsed / length)
    return times


def main() -> None:
    """Measure and report on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[784, 512, 512, 10])
    parser.add_argument("--batch", type=int, default=256, help="samples a rank")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--length", type=int, default=20, help="steps a block")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    threads = choose_threads(Communicator())
    generator = torch.Generator().manual_seed(MPI.COMM_WORLD.rank)
    inputs = torch.randn(8192, args.widths[0], generator=generator)
    targets = torch.randint(args.widths[-1], (8192,), generator=generator)
    makers = {"hpcopt": hpcopt_step, "torch DDP, gloo": ddp_step, "by hand, mpi4py": hand_step}
    times = measure({name: make(inputs, targets, args) for name, make in makers.items()}, args.blocks, args.length)
    torch.distributed.destroy_process_group()
    if MPI.COMM_WORLD.rank == 0:
        report(times, args, threads.threads)


def report(times: dict[str, list[float]], args: argparse.Namespace, threads: int) -> None:
    """Print the table and keep it where asked."""
    ours = times["hpcopt"]
    network_name = "-".join(map(str, args.widths))
    lines = [
        f"Network {network_name}, {args.batch} samples a rank, {MPI.COMM_WORLD.size} ranks of {threads} thread(s), "
        f"float32; {args.blocks} blocks of {args.length} steps each.",
        "",
    ]
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(ours, seconds, strict=True))
        figures = [statistics.median(seconds), min(seconds), max(seconds)]
        rows.append([name, *(f"{1e3 * s:.2f}" for s in figures), f"{ratio:.3f}"])
    lines += table(["variant", "median ms a step", "min", "max", "hpcopt / this, median over blocks"], rows)
    print("\n".join(lines))
    if args.output:
        command = f"mpirun -n {MPI.COMM_WORLD.size} python benchmarks/sgd/step.py{spelled(args)}"
        write_report(args.output, "One data-parallel SGD step", command, lines)


if __name__ == "__main__":
    main()
