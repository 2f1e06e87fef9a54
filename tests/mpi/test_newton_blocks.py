"""Jobs by Newton whose ranks solve for their own variables: who is stopped early, and that the run can be repeated."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.train.protocol import Result
from tests.support.network_jobs import BLOCKS, prepared

pytestmark = pytest.mark.mpi

SIX = ("run.iterations=6", "run.evaluate_every=6")


def train(comm: Communicator, path: Path | None, *settings: str) -> tuple[Result, torch.Tensor]:
    """The result, and this rank's numbers of w at the end."""
    result = prepared(comm, *SIX, *settings, more=BLOCKS).run(path)
    comm.barrier()
    return result, result.parameters


def counts(path: Path) -> np.ndarray:
    """Iterations of each rank in each step."""
    return open_run(path).local_iterations


@pytest.mark.parametrize("solver", ["cg", "gram", "auto"])
def test_a_run_converges_and_its_record_has_the_iterations_of_every_rank(
    comm: Communicator, shared_path: Path, solver: str
) -> None:
    result, _ = train(comm, shared_path / "run", f"solver.block_solver={solver}")
    assert result.final.train_loss < 0.5 * result.initial.train_loss
    found = counts(shared_path / "run")
    assert found.shape == (6, comm.size)
    steps = open_run(shared_path / "run").iterations
    np.testing.assert_array_equal(steps["inner_iterations"], found.sum(1))
    assert (found == 0).all() if solver == "gram" else (found[0] > 3).all()
    if solver == "cg":
        # A mean product on half of the samples for each iteration, half of one for each direction of the combination.
        halves = np.where(np.arange(6) == 0, 0.5, 1.0)
        products = np.diff(steps["curvature_products"], prepend=0.0)
        np.testing.assert_allclose(products, 0.5 * (found.mean(1) + halves), rtol=1e-9)


@pytest.mark.parametrize("termination", ["asynchronous", "lock_step"])
def test_a_quorum_of_all_ranks_changes_nothing(comm: Communicator, termination: str) -> None:
    _, without = train(comm, None)
    _, quorum = train(comm, None, "parallel.quorum=1.0", f"parallel.termination={termination}")
    assert torch.equal(without, quorum)


@pytest.mark.mpi(min_size=2)
def test_a_slow_rank_is_stopped_early_and_the_run_converges_and_is_repeated(
    comm: Communicator, shared_path: Path
) -> None:
    slow = ["parallel.quorum=0.5", "debug.slow_rank=1", "debug.slow_seconds=0.05"]
    result, w = train(comm, shared_path / "run", *slow)
    found = counts(shared_path / "run")
    assert (found[:, 1] >= 3).all()
    assert found[:, 1].sum() < np.delete(found, 1, axis=1).max(axis=1).sum()
    assert result.final.train_loss < 0.5 * result.initial.train_loss
    _, again = train(comm, shared_path / "again", f"parallel.replay={shared_path / 'run'}")
    assert torch.equal(w, again)
    np.testing.assert_array_equal(counts(shared_path / "again"), found)


@pytest.mark.mpi(min_size=2)
def test_lock_step_ends_every_run_on_the_same_iterations(comm: Communicator, shared_path: Path) -> None:
    settings = ["parallel.quorum=0.25", "parallel.termination=lock_step"]
    _, one = train(comm, shared_path / "one", *settings)
    delays = ["debug.slow_rank=0", "debug.slow_seconds=0.003"]
    _, other = train(comm, shared_path / "other", *settings, *delays)
    assert torch.equal(one, other)
    first = counts(shared_path / "one")
    np.testing.assert_array_equal(first, counts(shared_path / "other"))
    train(comm, shared_path / "free")
    if comm.size > 2:
        assert first.sum() < counts(shared_path / "free").sum()


@pytest.mark.parametrize(
    "settings",
    [[], ["solver.block_solver=auto"], ["parallel.quorum=0.5", "parallel.termination=lock_step"]],
    ids=["cg", "auto", "lock-step"],
)
def test_a_run_in_two_pieces_has_the_bits_of_one(comm: Communicator, shared_path: Path, settings: list[str]) -> None:
    whole, w = train(comm, shared_path / "whole", *settings)
    train(comm, shared_path / "run", *settings, "run.iterations=3")
    pieces, again = train(comm, shared_path / "run", *settings)
    assert pieces.resumed_from == 3
    assert torch.equal(w, again)
    assert repr(pieces.final) == repr(whole.final)  # figures that do not apply are NaN, which equals nothing
    np.testing.assert_array_equal(counts(shared_path / "whole"), counts(shared_path / "run"))


@pytest.mark.parametrize("direction", ["full", "block"])
@pytest.mark.parametrize("jacobian", ["auto", "explicit"])
def test_the_jacobian_of_a_run_is_told(comm: Communicator, shared_path: Path, jacobian: str, direction: str) -> None:
    settings = [f"parallel.jacobian={jacobian}", f"solver.direction={direction}", "solver.block_solver=auto"]
    result, _ = train(comm, shared_path / "run", *settings, "run.iterations=2")
    told = json.loads((shared_path / "run" / "status.json").read_text())["jacobian"]
    assert told in (("explicit", "implicit") if (jacobian, direction) == ("auto", "full") else ("explicit",))
    assert result.final.train_loss < result.initial.train_loss


def test_sweeps_are_told_where_the_factors_of_a_subset_do_not_fit(
    comm: Communicator, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(NetworkObjective, memory_limit=20_000)
    monkeypatch.setattr("hpcopt.train.objectives.NetworkObjective", small)
    result, _ = train(comm, shared_path / "run", *FULL, "parallel.jacobian=auto", "run.iterations=2")
    assert json.loads((shared_path / "run" / "status.json").read_text())["jacobian"] == "implicit"
    assert result.final.train_loss < result.initial.train_loss


FULL = ["solver.direction=full", "solver.block_solver=auto"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["parallel.layout=data"], 'direction = "block" needs variables that are cut over the ranks'),
        (["solver.direction=full"], 'block_solver = .cg. has no effect with direction = "full"'),
        ([*FULL, "parallel.quorum=0.5"], r"parallel.quorum = 0.5 has no effect here.*with these options"),
        ([*FULL, "parallel.replay=runs/a"], "parallel.replay = .runs/a. has no effect here"),
        ([*FULL, "debug.slow_rank=0"], "debug.slow_rank = 0 has no effect here"),
        (["solver.block_solver=gram", "parallel.quorum=0.5"], 'another solver.block_solver than "gram"'),
        (["parallel.jacobian=implicit"], 'direction = "block" needs the factors of the Jacobian'),
        ([*FULL, "parallel.layout=data", "parallel.jacobian=auto"], 'jacobian = "auto" has no effect here'),
        (["parallel.termination=lock_step"], "has no effect without parallel.quorum"),
        (["parallel.quorum=0.5", "parallel.replay=runs/a"], "both given"),
        (["parallel.replay=nowhere"], "cannot be replayed"),
        (["parallel.quorum=0.5", "debug.slow_rank=99"], "slow_rank = 99 is not a rank of this run"),
    ],
)
def test_what_cannot_be_is_refused_in_one_paragraph(comm: Communicator, settings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        prepared(comm, *settings, more=BLOCKS)
    assert "\n" not in str(refused.value)
