"""A run that is interrupted and started again comes to the same end: to the last bit on as many ranks as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.data.batches import BatchGrowth
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.solvers.registry import SOLVERS
from hpcopt.solvers.solver import StopReason
from hpcopt.train.snapshot import own_contents, replicated_contents
from tests.support.problems import samples
from tests.support.resuming import (
    Case,
    Started,
    assert_same_bits,
    assert_same_contents,
    run_in_pieces,
)

pytestmark = pytest.mark.mpi

FULL: dict[str, list[dict[str, Any]]] = {
    "apts": [{"window": 3}, {"preset": "paper"}],
    "sgd": [{"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "schedule": "cosine"}],
    "adam": [{"learning_rate": 0.01}],
    "lars": [{"learning_rate": 0.5, "momentum": 0.9}],
    "lbfgs": [{"memory": 2}],
    "newton": [{"subset": 0.3, "subset_least": 1}],
    "nlcg": [{"factor_every": 2, "factor_samples": 20}],
    "slimtrain": [{"memory": 2}],
    "trust_region": [{"model": "lsr1", "memory": 2}, {"model": "lbfgs"}, {"model": "first_order"}],
}
MINI = FULL | {
    "apts": [{}, {"local_solver": "adam", "global_solver": "adam"}],
    "trust_region": [{"model": "lsr1"}],
}
CASES = [Case(name, options) for name in sorted(SOLVERS) for options in FULL[name]]
CASES += [Case(name, options, 10, torch.float32) for name in sorted(SOLVERS) for options in MINI[name]]
RANDOM = [{"dropout": 0.5}, {"batch_norm": True}, {"dropout": 0.3, "batch_norm": True}]


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Tests change it."""
    yield
    torch.set_default_dtype(torch.float32)


def pollute(number: int) -> None:
    """What a process may have done before it goes on."""
    torch.manual_seed(number)
    torch.rand(number)
    np.random.rand(number)
    torch.set_default_dtype(torch.float64 if number % 2 else torch.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_method_goes_on_exactly_after_any_of_its_iterations(
    comm: Communicator, shared_path: Path, case: Case
) -> None:
    """Six times in a row, so that every start goes on from what another one went on from."""
    whole = run_in_pieces(comm, case, shared_path / "whole")
    pieces = run_in_pieces(comm, case, shared_path / "pieces", [1] * 6, pollute)
    assert whole.result.iterations == case.iterations
    assert pieces.result.resumed_from == 6
    assert_same_bits(pieces, whole)


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize("solver", ["apts", "trust_region"])
def test_one_interruption_in_mid_epoch_changes_nothing(
    comm: Communicator, shared_path: Path, solver: str, stop: int
) -> None:
    case = Case(solver, {}, 10, iterations=9)
    whole = run_in_pieces(comm, case, shared_path / "whole")
    assert_same_bits(run_in_pieces(comm, case, shared_path / "pieces", [stop], pollute), whole)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("trust_region", {"radius_initial": 300.0}),
        ("apts", {"radius_initial": 300.0, "global_iterations": 0}),
    ],
)
def test_it_goes_on_exactly_after_a_rejected_step(
    comm: Communicator, shared_path: Path, solver: str, options: dict[str, Any]
) -> None:
    case = Case(solver, options, iterations=8)
    whole = run_in_pieces(comm, case, shared_path / "whole")
    rejected = [row["iteration"] for row in whole.iterations if not row["accepted"]]
    first = comm.broadcast_object(rejected[0] if rejected else None)
    assert first is not None, "a step must have been rejected"
    assert_same_bits(run_in_pieces(comm, case, shared_path / "pieces", [first]), whole)


@pytest.mark.parametrize("kind", RANDOM, ids=str)
@pytest.mark.parametrize("solver", ["apts", "adam"])
def test_dropout_and_running_statistics_go_on_exactly(
    comm: Communicator, shared_path: Path, solver: str, kind: dict[str, Any]
) -> None:
    case = Case(solver, {}, 13, **kind)
    whole = run_in_pieces(comm, case, shared_path / "whole")
    assert_same_bits(run_in_pieces(comm, case, shared_path / "pieces", [1, 1, 2], pollute), whole)


def test_batches_that_grow_go_on_growing(comm: Communicator, shared_path: Path) -> None:
    """With a tolerance that no loss meets, so that they grow at every look; a stop lies between two looks."""
    case = Case("sgd", {"learning_rate": 0.1}, 6, iterations=16, growth=BatchGrowth(1.5, 1, 10.0))
    whole = run_in_pieces(comm, case, shared_path / "whole")
    assert len({row["batch"] for row in whole.iterations}) > 2 or comm.rank > 0
    assert_same_bits(run_in_pieces(comm, case, shared_path / "pieces", [6, 3, 5]), whole)


def blocks(comm: Communicator, **options: Any) -> DataParallelObjective:
    """All ranks hold all samples, and each varies a block of the variables."""
    model = options.pop("model")
    return VariableBlockObjective(model, options.pop("loss"), *samples(), comm, shards=1, **options)


def test_blocks_of_the_variables_go_on_exactly(comm: Communicator, shared_path: Path) -> None:
    if comm.size > 2:
        pytest.skip("the network has two modules with variables")
    case = Case("apts", {}, 10, objective=blocks)
    whole = run_in_pieces(comm, case, shared_path / "whole")
    assert_same_bits(run_in_pieces(comm, case, shared_path / "pieces", [2, 1, 1]), whole)


def test_a_run_that_is_at_its_end_stays_there(comm: Communicator, shared_path: Path) -> None:
    case = Case("trust_region")
    first = run_in_pieces(comm, case, shared_path / "a")
    again = Started(comm, case, shared_path / "a")
    result = again.run()
    assert (result.stop, result.iterations, result.saved) == (StopReason.EPOCHS_DONE, case.iterations, 0)
    assert torch.equal(result.parameters, first.result.parameters)
    assert again.ear.iterations == []


def group(comm: Communicator, ranks: int) -> Communicator:
    """The first ``ranks`` ranks on these, a group of the others on the others. *Collective*."""
    return comm.split(int(comm.rank >= ranks))


ELASTIC = [
    Case("sgd", {"learning_rate": 0.1, "momentum": 0.9}, iterations=20),
    Case("adam", {"learning_rate": 0.01}, iterations=20),
    Case("lbfgs", iterations=20),
    Case("trust_region", iterations=20),
    Case("trust_region", {"model": "lbfgs"}, iterations=20),
]


def saved_on_each_number(comm: Communicator, case: Case, path: Path, stop: int) -> dict[int, list[float]]:
    """Save the run after ``stop`` iterations, on 1, 2, ... ranks; returns the losses of whole runs. *Collective*."""
    losses = {}
    for ranks in range(1, comm.size + 1):
        part = group(comm, ranks)
        if comm.rank < ranks:
            Started(part, case, path / str(ranks), stop).run()
            whole = Started(part, case, None)
            whole.run()
            losses[ranks] = [row["loss"] for row in whole.ear.iterations]
        part.free()
        comm.barrier()
    return losses


@pytest.mark.parametrize("case", ELASTIC, ids=str)
def test_a_run_goes_on_with_the_same_curve_on_any_number_of_ranks(
    comm: Communicator, shared_path: Path, case: Case
) -> None:
    """The state is the saved one to the last bit, and losses on the whole set are those of the uninterrupted run."""
    stop = 5
    losses = saved_on_each_number(comm, case, shared_path, stop)
    for before in range(1, comm.size + 1):
        for after in range(1, comm.size + 1):
            part = group(comm, after)
            if comm.rank < after:
                start = Started(part, case, shared_path / str(before))
                assert_is_what_was_saved(start)
                start.keeper = None
                start.run()
                if comm.rank == 0:
                    found = [row["loss"] for row in start.ear.iterations]
                    np.testing.assert_allclose(found, losses[before][stop:], rtol=1e-10)
            part.free()
            comm.barrier()


def assert_is_what_was_saved(start: Started) -> None:
    """Saving at once what was loaded would give the same contents."""
    assert start.snapshot is not None
    assert start.restored is not None
    snapshot = replace(start.snapshot, point=start.snapshot.state["parameters"])  # type: ignore[arg-type]
    start.objective.shard.parameters.bind(snapshot.point)
    now = replicated_contents(start.objective, start.solver, start.sampler, snapshot)
    assert_same_contents({name: _plain(value) for name, value in now.items()}, start.restored.replicated)


def _plain(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def test_what_belongs_to_a_rank_is_left_behind_by_another_number_of_ranks_and_named(
    comm: Communicator, shared_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case("apts", iterations=12)
    saved_on_each_number(comm, case, shared_path, 4)
    for before in range(1, comm.size + 1):
        for after in range(1, comm.size + 1):
            part = group(comm, after)
            caplog.clear()
            if comm.rank < after:
                start = Started(part, case, shared_path / str(before))
                said = "Another number of ranks, or another layout, goes on: what each rank remembered (own_loss"
                assert (said in caplog.text) is (before != after)
                # Loss and gradient of all ranks are there, but not those of this rank's samples.
                assert start.snapshot is not None
                assert start.snapshot.state["known"] is (before == after)
                if before == after:
                    assert own_contents([], start.solver, start.snapshot).keys() > {"solver/local_pairs"}  # type: ignore[arg-type]
                start.keeper = None
                result = start.run()
                assert result.final.train_loss < result.initial.train_loss
            part.free()
            comm.barrier()
