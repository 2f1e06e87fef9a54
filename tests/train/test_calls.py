"""What a step costs besides its mathematics, as a number that no busy machine changes: functions of the package called.

A property that is asked for anew, a row that is copied or a context that is entered costs microseconds in every step,
which is more than the arithmetic of a small problem. Whoever needs a few calls more raises the number.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.profile._measure import Windows, counts_of
from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.adam import Adam
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.solver import Solver
from hpcopt.train.minimize import minimize

MOST = {"sgd": 53, "adam": 68}


@pytest.mark.parametrize(("name", "solver"), [("sgd", SGD(learning_rate=0.1)), ("adam", Adam())])
def test_a_small_step_calls_few_functions(comm: Communicator, tmp_path: Path, name: str, solver: Solver) -> None:
    """With record and checkpoints, on mini-batches: the median of the steps of an epoch."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    inputs, labels = torch.randn(48, 3), torch.randint(2, (48,))
    objective = DataParallelObjective(model, "cross_entropy", inputs, labels, comm)
    windows = Windows(None, first=2, steps=2, counted=8, read=lambda: counts_of(objective))
    with windows.on_batches():
        minimize(objective, solver, iterations=14, evaluate_every=9, batch=4, run_dir=tmp_path)
    assert 0 < windows.found["own_calls"] <= MOST[name]
