"""Running statistics are those of the point that is evaluated and delivered, also where that is a mean of iterates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import CheckpointOptions
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.train.keeper import CheckpointKeeper
from hpcopt.train.run.requests import Requests
from tests.support.problems import samples, sharded
from tests.support.resuming import Case, Started


def in_slices(comm: Communicator, **options: Any) -> ShardedStateObjective:
    return ShardedStateObjective(sharded(comm, **options), 3)


AVERAGING = [
    Case("nlcg", batch=10, batch_norm=True, dropout=0.2),
    Case("nlcg", {"step_rule": "hager_zhang", "preconditioner": "diagonal_bfgs"}, batch=10, batch_norm=True),
    Case("nlcg", {"preconditioner": "identity"}, batch=10, batch_norm=True, objective=in_slices),  # type: ignore[arg-type]
    Case("apts", {"average": 0.5}, batch=10, batch_norm=True),
    Case("slimtrain", batch=10, batch_norm=True),
]


def statistics(objective: DataParallelObjective | ShardedStateObjective, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the first layer of the problem's network makes of all samples at w: mean and variance."""
    objective.model.bind(w)
    network = getattr(objective, "whole", objective).shard.module
    seen = network[:2](samples()[0]).detach()
    return seen.mean(0), seen.var(0)


@pytest.mark.parametrize("case", AVERAGING, ids=str)
def test_the_delivered_model_has_those_of_the_delivered_point(comm: Communicator, case: Case) -> None:
    start = Started(comm, case, None)
    result = start.run()
    norm = getattr(start.objective, "whole", start.objective).shard.module[2]
    for found, expected in zip(
        (norm.running_mean, norm.running_var), statistics(start.objective, result.parameters), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


class Contents:
    """A store that keeps what the model has."""

    def save(self, step: int, contents: dict[str, Any], *_: Any, **__: Any) -> None:
        self.model = {name: value.clone() for name, value in contents.items() if name.startswith("model/")}


def test_a_checkpoint_between_evaluations_has_those_of_its_point_and_the_run_keeps_its_own(
    comm: Communicator, tmp_path: Path
) -> None:
    case = Case(
        "nlcg", {"average": 1.0}, batch=10, batch_norm=True, iterations=3
    )  # the last evaluation was after the second
    Started(comm, case, tmp_path, asks_at=3).run()
    start, store = Started(comm, case, tmp_path), Contents()
    snapshot, norm = start.snapshot, start.objective.shard.module[2]
    assert snapshot is not None
    assert not torch.equal(snapshot.point, snapshot.state["parameters"])  # type: ignore[arg-type]
    norm.running_mean.fill_(7.0)
    snapshot.standing.best_iteration = 0
    keeper = CheckpointKeeper(
        start.objective,
        start.solver,
        start.sampler,
        store,
        CheckpointOptions(),
        Requests(),  # type: ignore[arg-type]
    )
    keeper.save(snapshot)
    saved = next(value for name, value in store.model.items() if name.endswith("running_mean"))
    torch.testing.assert_close(saved, statistics(start.objective, snapshot.point)[0], rtol=1e-12, atol=1e-14)
    assert bool((norm.running_mean == 7.0).all())
