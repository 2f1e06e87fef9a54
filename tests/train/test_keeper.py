"""When a run is saved, what that may cost, and that a save that fails ends no run."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpcopt.checkpoint.folder import BEST, FOLDER, pointed, published_steps
from hpcopt.comm.communicator import Communicator
from hpcopt.config import CheckpointOptions
from hpcopt.errors import CheckpointError, UsageError
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.solver import StopReason
from hpcopt.train import keeper as module
from hpcopt.train.keeper import FIRST_SECONDS, CheckpointKeeper
from hpcopt.train.minimize import minimize
from hpcopt.train.protocol import LEAVE, SAVE, Result
from hpcopt.train.run.halt import HALT, write_halt
from hpcopt.train.run.output import ENDS
from hpcopt.train.run.requests import Requests
from tests.support.problems import sharded
from tests.support.resuming import AsksOnce, Case, Started


class FakeStore:
    """Takes ``cost`` seconds of ``clock`` for a save, and fails at the numbers in ``fails``."""

    def __init__(self, clock: SimpleNamespace | None = None, cost: float = 0.0, fails: set[int] | None = None) -> None:
        self.clock, self.cost, self.fails = clock, cost, fails or set()
        self.steps: list[int] = []

    def save(self, step: int, *_: Any, **__: Any) -> None:
        self.steps.append(step)
        if self.clock is not None:
            self.clock.now += self.cost
        if len(self.steps) in self.fails:
            raise CheckpointError("The checkpoint could not be written: no space.", collective=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def start(comm: Communicator, tmp_path: Path) -> Started:
    """A run to be saved as often as a test likes."""
    Started(comm, Case("sgd", iterations=2), tmp_path / "a").run()
    return Started(comm, Case("sgd"), tmp_path / "a")


def keeper_of(start: Started, store: FakeStore, **options: Any) -> CheckpointKeeper:
    return CheckpointKeeper(
        start.objective,
        start.solver,
        start.sampler,
        store,  # type: ignore[arg-type]
        CheckpointOptions(**options),
        Requests(),
    )


def simulate(start: Started, keeper: CheckpointKeeper, clock: SimpleNamespace, seconds: float) -> list[float]:
    """Iterations of a second each; when it was saved."""
    begin, saved = clock.now, []
    while clock.now - begin < seconds:
        clock.now += 1.0
        if keeper.asks() >= SAVE:
            saved.append(clock.now - begin)
            keeper.save(start.snapshot)  # type: ignore[arg-type]
    return saved


@pytest.mark.parametrize("cost", [0.01, 0.5, 7.0])
def test_saving_by_default_takes_at_most_two_percent_of_the_time(
    start: Started, clock: SimpleNamespace, cost: float
) -> None:
    store = FakeStore(clock, cost)
    keeper = keeper_of(start, store)
    saved = simulate(start, keeper, clock, 3000.0)
    assert saved[0] == FIRST_SECONDS
    assert len(saved) >= 2
    assert keeper.seconds == pytest.approx(cost * len(saved))
    # The first one, of unknown cost, may be too early.
    assert (keeper.seconds - cost) / 3000.0 <= 0.02


def test_a_save_that_becomes_slower_is_made_less_often(start: Started, clock: SimpleNamespace) -> None:
    store = FakeStore(clock, 0.1)
    keeper = keeper_of(start, store)
    often = len(simulate(start, keeper, clock, 600.0))
    store.cost = 5.0
    assert len(simulate(start, keeper, clock, 600.0)) < often / 10


def test_it_is_saved_every_so_many_seconds(start: Started, clock: SimpleNamespace) -> None:
    keeper = keeper_of(start, FakeStore(), every_seconds=10.0)
    assert simulate(start, keeper, clock, 35.0) == [10.0, 20.0, 30.0]


def test_only_the_clock_of_rank_0_counts(start: Started, clock: SimpleNamespace) -> None:
    objective = SimpleNamespace(comm=SimpleNamespace(rank=1), model=start.objective.model)
    options = CheckpointOptions(every_seconds=1.0)
    keeper = CheckpointKeeper(objective, start.solver, start.sampler, FakeStore(), options, Requests())  # type: ignore[arg-type]
    clock.now += 5.0
    assert keeper.asks() == 0.0


def test_any_rank_may_be_asked_to_leave(start: Started) -> None:
    objective = SimpleNamespace(comm=SimpleNamespace(rank=1), model=start.objective.model)
    keeper = CheckpointKeeper(objective, start.solver, start.sampler, FakeStore(), CheckpointOptions(), AsksOnce(2))  # type: ignore[arg-type]
    assert [keeper.asks() for _ in range(3)] == [0.0, LEAVE, 0.0]


def test_every_so_many_epochs_the_last_two_the_best_and_every_kth_are_there(comm: Communicator, tmp_path: Path) -> None:
    """With a rate at which the loss soon rises, the best point is an early one."""
    options = CheckpointOptions(every_epochs=0.5, keep_every=8)
    minimize(sharded(comm), SGD(learning_rate=0.1), iterations=21, batch=10, run_dir=tmp_path, checkpoint=options)
    steps = published_steps(tmp_path / FOLDER)
    assert {8, 16, 20, 21} <= set(steps) <= {8, 16, 20, 21, pointed(tmp_path / FOLDER, BEST)}


def run_with(comm: Communicator, path: Path, store: FakeStore | None, asks_at: int = 0) -> Result:
    start = Started(comm, Case("trust_region", {}, 10, iterations=9), None)
    if store is not None:
        options = CheckpointOptions(every_epochs=0.5)
        requests = AsksOnce(asks_at)
        start.keeper = CheckpointKeeper(start.objective, start.solver, start.sampler, store, options, requests)  # type: ignore[arg-type]
    return start.run()


def test_a_save_that_fails_is_said_once_and_changes_nothing(
    comm: Communicator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said again when it fails after one that succeeded."""
    store = FakeStore(fails={1, 2, 4})
    result = run_with(comm, tmp_path, store)
    assert store.steps == [2, 4, 6, 8, 9]
    assert (result.saved, result.not_saved) == (2, 3)
    assert caplog.text.count("no space. The run goes on") == 2
    assert torch.equal(result.parameters, run_with(comm, tmp_path, None).parameters)


def test_a_run_that_cannot_be_saved_when_it_is_to_stop_says_so_by_its_exit_status(
    comm: Communicator, tmp_path: Path
) -> None:
    result = run_with(comm, tmp_path, FakeStore(fails={1, 2, 3}), asks_at=3)
    assert (result.stop, result.iterations) == (StopReason.NOT_SAVED, 3)
    assert ENDS[result.stop] == ("failed", 74)


class SignalledStore(FakeStore):
    """Gets a signal while it saves."""

    def save(self, step: int, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        super().save(step)


def test_a_signal_during_a_save_ends_the_run_at_the_end_of_the_next_iteration(comm: Communicator) -> None:
    start, store = Started(comm, Case("sgd", {}, 10, iterations=9), None), SignalledStore()
    with closing(Requests().listen()) as requests:
        options = CheckpointOptions(every_epochs=0.5)
        start.keeper = CheckpointKeeper(start.objective, start.solver, start.sampler, store, options, requests)  # type: ignore[arg-type]
        result = start.run()
    assert store.steps == [2, 3]
    assert (result.stop, result.iterations) == (StopReason.SAVED, 3)


def run_to_be_stopped(comm: Communicator, path: Path, store: FakeStore, after_checkpoint: bool) -> Result:
    start = Started(comm, Case("sgd", {}, 10, iterations=9), None)
    with closing(Requests()) as requests:
        requests.watch(path, None)
        write_halt(path, after_checkpoint)
        options = CheckpointOptions(every_epochs=1.0)
        start.keeper = CheckpointKeeper(start.objective, start.solver, start.sampler, store, options, requests)  # type: ignore[arg-type]
        return start.run()


def test_a_run_that_is_to_end_ends_at_once_and_is_not_requeued(comm: Communicator, tmp_path: Path) -> None:
    result = run_to_be_stopped(comm, tmp_path, FakeStore(), after_checkpoint=False)
    assert (result.stop, result.iterations) == (StopReason.STOPPED, 1)
    assert ENDS[result.stop] == ("saved", 5)
    assert not (tmp_path / HALT).exists()


def test_a_run_that_is_to_end_after_a_checkpoint_ends_after_one_that_succeeded(
    comm: Communicator, tmp_path: Path
) -> None:
    store = FakeStore(fails={1})
    result = run_to_be_stopped(comm, tmp_path, store, after_checkpoint=True)
    assert (result.stop, store.steps) == (StopReason.STOPPED, [4, 8])


def test_a_run_that_is_to_end_and_cannot_be_saved_says_so(comm: Communicator, tmp_path: Path) -> None:
    result = run_to_be_stopped(comm, tmp_path, FakeStore(fails={1}), after_checkpoint=False)
    assert result.stop is StopReason.NOT_SAVED


def test_a_run_that_ends_has_not_failed_because_its_end_could_not_be_saved(comm: Communicator, tmp_path: Path) -> None:
    assert run_with(comm, tmp_path, FakeStore(fails=set(range(9)))).stop is StopReason.EPOCHS_DONE


class Remembers(torch.nn.Linear):
    """A layer with state that is no tensor."""

    def get_extra_state(self) -> dict[str, str]:
        return {"last": "word"}


def test_what_cannot_be_saved_is_refused_before_the_first_step(comm: Communicator, tmp_path: Path) -> None:
    objective = sharded(comm, model=Remembers(5, 3))
    with pytest.raises(UsageError, match="cannot hold 'model/_extra_state' of type dict"):
        minimize(objective, SGD(), epochs=1, run_dir=tmp_path / "a")
