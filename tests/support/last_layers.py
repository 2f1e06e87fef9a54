"""Steps of slimTrain on any number of ranks, for networks with a dense and with convolutional last layers.

``mpirun -n 7 python -m tests.support.last_layers`` compares the steps of 7 ranks with those of one.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.slimtrain import SlimTrain
from hpcopt.solvers.solver import State
from tests.support.closures import same_everywhere
from tests.support.problems import SAMPLES, samples, small_network

KINDS = ("dense", "convolution", "decoder")
FORMS = ("gram", "tsqr", "gather")


def network(kind: str) -> nn.Module:
    """A network with that last layer, in float64."""
    if kind == "dense":
        return small_network()
    torch.manual_seed(0)
    last = nn.Conv2d(3, 2, 3, padding=1) if kind == "convolution" else nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), last, nn.Flatten()).double()


def data(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples for it."""
    if kind == "dense":
        return samples("squared")
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 1, 3, 4, generator=generator, dtype=torch.float64)
    width = 2 * 12 * (4 if kind == "decoder" else 1)
    return inputs, torch.randn(SAMPLES, width, generator=generator, dtype=torch.float64)


def trained(
    comm: Communicator, form: str, count: int, kind: str = "dense", steps: int = 10, memory: int = 2
) -> tuple[State, list[float]]:
    """Batches of ``count`` samples, dealt out unevenly: the last rank has none, unless it is the only one."""
    owners = max(1, comm.size - 1)
    objective = DataParallelObjective(network(kind), "squared", *data(kind), comm)
    solver = SlimTrain(form=form, memory=memory, lambda_min=1e-4)
    state, dampings = solver.init(objective), []
    for number in range(steps):
        batch = torch.arange(count) + number
        own = batch[comm.rank :: owners] if comm.rank < owners else batch[:0]
        state, report = solver.step(objective, state, Batch(own, len(own), count, (0, number)))
        dampings.append(report.damping)
    return state, dampings


def assert_steps_of_one_rank(
    comm: Communicator, alone: Communicator, form: str, count: int, kind: str, *, checks: bool = True, memory: int = 2
) -> State:
    """Ten steps are the same on all ranks, and those of one rank where this rank ``checks``."""
    ours, dampings = trained(comm, form, count, kind, memory=memory)
    assert same_everywhere(comm, ours["parameters"])  # type: ignore[arg-type]
    if checks:
        theirs, expected = trained(alone, form, count, kind, memory=memory)
        torch.testing.assert_close(ours["parameters"], theirs["parameters"], rtol=1e-11, atol=1e-11)
        assert dampings == pytest.approx(expected, rel=1e-11)
    return ours


if __name__ == "__main__":
    from mpi4py import MPI

    everyone, alone = Communicator(), Communicator(MPI.COMM_SELF)
    for kind, form in [("dense", "gram"), *((kind, form) for kind in KINDS[1:] for form in FORMS)]:
        assert_steps_of_one_rank(everyone, alone, form, 11, kind, checks=everyone.rank == 0)
    print(f"rank {everyone.rank} of {everyone.size}: the same")
