"""For tests of optimisers: closures, samples of unequal number on the ranks, the parameters as one vector."""

from __future__ import annotations

from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from tests.support.problems import samples


def closure_of(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> Any:
    """The closure as torch's documentation of LBFGS has it; it counts its calls."""

    def closure() -> torch.Tensor:
        closure.calls += 1  # type: ignore[attr-defined]
        if optimizer is not None:
            optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    closure.calls = 0  # type: ignore[attr-defined]
    return closure


def values_of(model: torch.nn.Module) -> torch.Tensor:
    """A copy of all parameters, (n,)."""
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def unequal(comm: Communicator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank d holds the d-th part of the samples, in parts that grow as 1, 2, 3, ..."""
    inputs, targets = samples()
    ends = [round(len(inputs) * (d * (d + 1)) / (comm.size * (comm.size + 1))) for d in range(comm.size + 1)]
    mine = slice(ends[comm.rank], ends[comm.rank + 1])
    return inputs[mine], targets[mine]


def same_everywhere(comm: Communicator, vector: torch.Tensor) -> bool:
    """Whether all ranks hold the same bits."""
    return torch.equal(comm.bcast(vector.clone()), vector)
