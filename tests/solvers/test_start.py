"""What most steps begin with, in the methods that begin so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.objective.protocol import Batch
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.solver import StopReason
from tests.support.objectives import FunctionObjective

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("apts", {}),
    ("lbfgs", {}),
    ("newton", {"preconditioner": "none"}),
    ("nlcg", {"preconditioner": "identity"}),
    ("nlcg", {"preconditioner": "identity", "step_rule": "strong_wolfe"}),
    ("trust_region", {}),
]


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_mini_batch_without_a_gradient_is_not_the_end_of_a_run(name: str, options: dict[str, Any]) -> None:
    """Another one may have a gradient."""

    def loss(w: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.indices is not None
        return batch.indices[0] * (w - 1).square().sum()

    still, pulling = (Batch(torch.tensor([number]), 1, 1, (0, number)) for number in (0, 1))
    objective, solver = FunctionObjective(loss, torch.zeros(3, dtype=torch.float64)), make_solver(name, options)
    state, report = solver.step(objective, solver.init(objective), still)
    assert (report.accepted, report.finite, report.stop) == (False, True, StopReason.RUNNING)
    assert torch.equal(state["parameters"], objective.start)  # type: ignore[arg-type]
    state, report = solver.step(objective, state, pulling)
    assert report.accepted
