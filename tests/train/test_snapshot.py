"""A snapshot holds all that a run needs, and what belongs to another run is refused with clear words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.data.batches import BatchGrowth
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.stochastic import StochasticState
from hpcopt.solvers.registry import SOLVERS
from hpcopt.solvers.sgd import SGD
from hpcopt.train.loop import TrainingLoop
from hpcopt.train.minimize import minimize, plan_batches
from hpcopt.train.sampler import BatchSequence, Sampler
from hpcopt.train.snapshot import COUNTS, Snapshot, replicated_contents
from hpcopt.train.standing import Standing
from tests.support.problems import sharded
from tests.support.resuming import Case, Started

NOT_SAVED = {
    "loop._started": "a clock; the time spent so far is in standing.wall_seconds",
    "loop._entered": "a clock: when this start began",
    "loop._resumed_from": "says that this is not the first start",
    "loop._looked": "clocks: at the last evaluation",
    "loop._next_for_all": "a clock: when listeners are told next that want to hear of few iterations",
    "loop._seconds_evaluating": "a clock of this start",
    "loop._seconds_recording": "a clock of this start",
    "loop._ledger_before": "what the communicator counted before; the run's own counts are in standing",
    "loop._standing.seconds": "a clock, which goes on after it was saved",
    "loop._standing.wall_seconds": "a clock, which goes on after it was saved",
    "loop._standing.seconds_waited": "a clock, which goes on after it was saved",
    "loop._keeper": "when to save next, and what it cost, is of this start",
    "loop._listeners": "outside of the run",
    "loop.objective.flag": "set anew before every iteration",
    "loop.objective.flags_seen": "set anew before every iteration",
    "loop.objective._lent": "memory without contents",
    "loop.objective._spare": "memory without contents",
    "loop.objective.sample_bytes": "what the graph of a sample takes, by its shape, from the first one asked for",
    "loop.objective.shard.function": "the module's own tables of tensors, gathered at the first linearisation",
    "loop.objective.shard.stochastic._last_updated": "a batch's key, which no later batch has",
    "loop.objective.separable.layer._seen": "views of the variables, made at the first sight of them",
    "loop.objective.separable.layer._made": "shapes that follow from those of the inputs",
    "loop._batches._plan._epoch": "says which epoch's order is kept; it is drawn again from the seed",
    "loop._batches._plan._picks": "the order that is kept",
    "loop._batches._plan._last_picks": "the order that is kept",
    "loop._batches._plan._own": "the order that is kept",
    "loop._batches._plan._ends": "the order that is kept",
    "loop._batches._plan._first_cell": "the order that is kept",
}
"""What a run that goes on does not find as it was, and why that changes nothing."""


def walk(thing: Any, path: str, found: dict[str, str], seen: set[int]) -> dict[str, str]:
    """Every value that can be reached from ``thing`` by attributes, keys and positions, as a text for its bits.

    An object of this package is found by the first way that leads to it.
    """
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        found[path] = f"{thing.dtype} {thing.shape} {hashlib.sha256(thing.tobytes()).hexdigest()}"
    elif isinstance(thing, Communicator) or id(thing) in seen:
        pass
    elif isinstance(thing, torch.nn.Module):
        walk({**thing.state_dict(), "training": thing.training}, path, found, seen)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            walk(value, f"{path}.{key}", found, seen)
    elif isinstance(thing, (list, tuple)):
        for index, value in enumerate(thing):
            walk(value, f"{path}.{index}", found, seen)
    elif type(thing).__module__.startswith(("hpcopt.", "tests.")) and hasattr(thing, "__dict__"):
        # Plain records of values may be shared in one run and equal in the other.
        seen |= set() if is_dataclass(thing) else {id(thing)}
        for name, value in vars(thing).items():
            walk(value, f"{path}.{name}", found, seen)
    elif isinstance(thing, (bool, int, float, np.number)):
        found[path] = repr(float(thing))
    elif isinstance(thing, (str, type(None))):
        found[path] = repr(thing)
    return found


def interrupted(comm: Communicator, case: Case, path: Path, at: int) -> tuple[TrainingLoop, Snapshot]:
    """A run that was saved and left after ``at`` iterations."""
    start, taken = Started(comm, case, path, at), []
    loop, keeper = start.loop(), start.keeper
    assert keeper is not None
    save = keeper.save
    keeper.save = lambda snapshot: taken.append(snapshot) or save(snapshot)  # type: ignore[method-assign, func-returns-value]
    loop.run()
    (snapshot,) = taken
    return loop, snapshot


def differences(comm: Communicator, case: Case, path: Path, at: int = 6) -> set[str]:
    """What is not the same in a run that was left and in one that is about to go on from there."""
    loop, snapshot = interrupted(comm, case, path, at)
    again = Started(comm, case, path)
    going_on = again.loop()
    assert again.snapshot is not None
    going_on._entered = going_on._started = 0.0
    state = going_on._go_on(again.snapshot)
    before, after = (walk(*pair, {}, set()) for pair in ((loop, "loop"), (going_on, "loop")))
    before |= walk(snapshot.state, "state", {}, set())
    after |= walk(state, "state", {}, set())
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def unexplained(names: set[str]) -> list[str]:
    return sorted(name for name in names if not any(f"{name}.".startswith(f"{known}.") for known in NOT_SAVED))


RANDOM = {"dropout": 0.3, "batch_norm": True, "growth": BatchGrowth(1.5, 1, 10.0)}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"learning_rate": 0.1, "momentum": 0.9}],
    "apts": [{}, {"preset": "paper"}, {"local_solver": "adam", "global_solver": "adam"}],
    "trust_region": [{"model": "lsr1"}, {"model": "lbfgs"}, {"model": "first_order"}],
}
METHODS = [(name, options) for name in sorted(SOLVERS) for options in OPTIONS.get(name, [{}])]


@pytest.mark.parametrize(("solver", "options"), METHODS)
@pytest.mark.parametrize("batch", ["full", 10])
def test_all_that_a_run_has_become_is_in_its_snapshot(
    comm: Communicator, tmp_path: Path, solver: str, options: dict[str, Any], batch: int | str
) -> None:
    """In mid-epoch, with everything in the model that is random or running; times are all that may differ."""
    names = differences(comm, Case(solver, options, batch, iterations=20, **RANDOM), tmp_path)
    assert unexplained(names) == []


def test_the_list_of_what_is_not_saved_names_nothing_in_vain(comm: Communicator, tmp_path: Path) -> None:
    """An entry that no longer differs anywhere would hide state of the same name later."""
    loop, _ = interrupted(comm, Case("sgd", {}, 10, iterations=20, **RANDOM), tmp_path, 6)
    there = walk(loop, "loop", {}, set())
    for known in NOT_SAVED:
        assert any(f"{name}.".startswith(f"{known}.") for name in there) or hasattr(loop, known.split(".")[1]), known


class Hidden:
    """Something that a component counts and nobody saves."""

    def __init__(self) -> None:
        self.steps = 0


def count_in_solver(monkeypatch: pytest.MonkeyPatch) -> str:
    hidden, step = Hidden(), SGD.step

    def counting(self: SGD, *arguments: Any) -> Any:
        object.__setattr__(self, "hidden", hidden.steps)
        hidden.steps += 1
        return step(self, *arguments)

    monkeypatch.setattr(SGD, "step", counting)
    return "loop.solver.hidden"


def count_in_batches(monkeypatch: pytest.MonkeyPatch) -> str:
    take = BatchSequence.next

    def counting(self: Any) -> Any:
        self._taken = getattr(self, "_taken", 0) + 1
        return take(self)

    monkeypatch.setattr(BatchSequence, "next", counting)
    return "loop._batches._taken"


def count_in_model(monkeypatch: pytest.MonkeyPatch) -> str:
    finite = StochasticState._finite

    def counting(self: Any) -> bool:
        self.updates = getattr(self, "updates", 0) + 1
        return finite(self)

    monkeypatch.setattr(StochasticState, "_finite", counting)
    return "loop.objective.shard.stochastic.updates"


def forget_the_average(monkeypatch: pytest.MonkeyPatch) -> str:
    for module in ("snapshot", "restored"):
        monkeypatch.setattr(f"hpcopt.train.{module}.COUNTS", [name for name in COUNTS if name != "accepted"])
    return "loop._standing.accepted"


@pytest.mark.parametrize("plant", [count_in_solver, count_in_batches, count_in_model, forget_the_average])
def test_state_that_nobody_saves_is_found(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Any
) -> None:
    name = plant(monkeypatch)
    found = unexplained(differences(comm, Case("sgd", {}, 10, iterations=20, **RANDOM), tmp_path))
    assert name in found


def test_every_count_of_where_a_run_stands_is_saved() -> None:
    figures = {"initial", "latest", "best", "work"}
    assert set(COUNTS) | figures == set(vars(Standing()))


def fewer_samples(comm: Communicator, **options: Any) -> DataParallelObjective:
    return sharded(comm, count=30, **options)


SMALLER = Case("trust_region", {"memory": 3})
REFUSED = {
    "another method": (replace(SMALLER, solver="sgd", options={}), "had solver = TrustRegion, this one has SGD"),
    "a longer memory": (replace(SMALLER, options={"memory": 4}), "had solver.memory = 3, this one has 4"),
    "other data": (replace(SMALLER, objective=fewer_samples), "made with 37 training samples, but here are 30"),
    "momentum": (Case("sgd", {"momentum": 0.5}), "had solver = TrustRegion, this one has SGD"),
}


@pytest.mark.parametrize("other", REFUSED)
def test_a_checkpoint_of_something_else_is_refused(comm: Communicator, tmp_path: Path, other: str) -> None:
    interrupted(comm, SMALLER, tmp_path, 2)
    case, says = REFUSED[other]
    with pytest.raises(UsageError, match=says) as error:
        Started(comm, case, tmp_path)
    assert "--fresh" in str(error.value)
    assert error.value.collective


def test_the_best_point_has_all_names_of_a_tensor_that_layers_share(comm: Communicator) -> None:
    layer = torch.nn.Linear(3, 3)
    objective = DataParallelObjective(
        torch.nn.Sequential(layer, torch.nn.ReLU(), layer), "squared", torch.zeros(4, 3), torch.zeros(4, 3), comm
    )
    best = torch.arange(float(objective.size))
    standing, now = Standing(iterations=2, best_iteration=1), objective.initial_vector()
    snapshot = Snapshot({"parameters": now}, now, standing, {}, best, [], [])
    sampler = Sampler(plan_batches(objective, "full", 0.0, 0), torch.device("cpu"))
    contents = replicated_contents(objective, SGD(), sampler, snapshot)
    assert torch.equal(contents["best/0/weight"], best[:9].view(3, 3))
    assert torch.equal(contents["best/2/weight"], contents["best/0/weight"])


@pytest.mark.parametrize(
    ("change", "word"), [({"seed": 7}, "seed"), ({"batch": 10}, "data.batch"), ({"overlap": 0.5}, "data.overlap")]
)
def test_other_batches_are_refused(comm: Communicator, tmp_path: Path, change: dict[str, Any], word: str) -> None:
    options: dict[str, Any] = {"batch": 20, "seed": 0, "run_dir": tmp_path / "a"}
    minimize(sharded(comm), SGD(learning_rate=0.1), epochs=1, **options)
    with pytest.raises(UsageError, match=f"had {word} ="):
        minimize(sharded(comm), SGD(learning_rate=0.1), epochs=2, **(options | change))
    with pytest.raises(UsageError, match=r"had solver.learning_rate = 0.1, this one has 0.9"):
        minimize(sharded(comm), SGD(learning_rate=0.9), epochs=2, **options)
    assert minimize(sharded(comm), SGD(learning_rate=0.1), epochs=2, **options).epochs == 2


def test_a_larger_model_does_not_go_on_as_a_smaller_one(comm: Communicator, tmp_path: Path) -> None:
    def objective(*layers: torch.nn.Module) -> DataParallelObjective:
        return DataParallelObjective(torch.nn.Sequential(*layers), "squared", torch.ones(4, 3), torch.zeros(4, 3), comm)

    linear = torch.nn.Linear
    minimize(objective(linear(3, 3), linear(3, 3)), SGD(), epochs=1, run_dir=tmp_path / "a")
    with pytest.raises(UsageError, match=r"it holds 1\.bias, which this model has not"):
        minimize(objective(linear(3, 3)), SGD(), epochs=2, run_dir=tmp_path / "a")
