"""The entry for Python: what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import hpcopt
from hpcopt.checkpoint.folder import published
from hpcopt.checkpoint.names import tensor_path
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.comm.communicator import Communicator
from hpcopt.config import CheckpointOptions
from hpcopt.errors import HpcoptError, UsageError
from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.solver import State, StepReport, StopReason
from hpcopt.train.agreement import check_agreement
from hpcopt.train.minimize import minimize
from tests.support.listeners import Ear
from tests.support.problems import samples, sharded, small_network


def test_it_trains_the_model_and_leaves_a_record(comm: Communicator, tmp_path: Path) -> None:
    objective = sharded(comm)
    test = tuple(part[:9] for part in samples())
    result = minimize(objective, hpcopt.solvers.TrustRegion(), epochs=5, test=test, run_dir=tmp_path / "a")  # type: ignore[arg-type]
    assert result.final.train_loss < result.initial.train_loss
    assert torch.equal(objective.initial_vector(), result.parameters)
    run = hpcopt.open_run(str(tmp_path / "a"))
    assert run.history["train_loss"][-1] == result.final.train_loss
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert (status["status"], status["solver"]) == ("finished", "trust_region")


def test_a_run_that_is_in_the_directory_goes_on_unless_it_is_to_be_moved_aside(
    comm: Communicator, tmp_path: Path
) -> None:
    first = minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a")
    again = minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a")
    assert (again.iterations, again.saved) == (1, 0)
    assert torch.equal(again.parameters, first.parameters)
    assert minimize(sharded(comm), SGD(), epochs=3, run_dir=tmp_path / "a").iterations == 3
    minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a", fresh=True)
    assert len(list(tmp_path.iterdir())) == 2


@dataclass(frozen=True)
class Scripted:
    """A solver that walks to given points; NaN stands for a step that met a number that is not finite."""

    points: tuple[float, ...]

    def init(self, objective: Objective) -> State:
        return {"parameters": objective.initial_vector(), "step": 0}

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        point = self.points[int(state["step"])]  # type: ignore[arg-type]
        state["step"] = int(state["step"]) + 1  # type: ignore[arg-type]
        loss, gradient = objective.value_and_gradient(state["parameters"], batch)  # type: ignore[arg-type]
        if math.isnan(point):
            return state, StepReport(loss=loss, accepted=False, finite=False)
        state["parameters"].sub_(gradient, alpha=point)  # type: ignore[union-attr]
        stop = StopReason.RUNNING if point else StopReason.GRADIENT_SMALL
        return state, StepReport(loss=loss, stop=stop)


ENDS: dict[str, tuple[tuple[float, ...], dict[str, Any], StopReason]] = {
    "its method": ((0.1, 0.1, 0.0, 0.1), {}, StopReason.GRADIENT_SMALL),
    "numbers that are not finite": ((0.1, -9.0, math.nan, math.nan, 0.1), {"give_up_after": 2}, StopReason.NOT_FINITE),
    "its time": ((0.1, 0.1, 0.1), {"seconds": 1e-9}, StopReason.SECONDS_SPENT),
    "its loss": ((0.1, 0.1, 0.1), {"train_loss": 100.0}, StopReason.TRAIN_LOSS_REACHED),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_was_ended_stays_ended(comm: Communicator, tmp_path: Path, end: str) -> None:
    points, options, stop = ENDS[end]
    model = small_network(batch_norm=True)
    first = minimize(sharded(comm, model=model), Scripted(points), run_dir=tmp_path, **options)
    assert first.stop is stop
    other = small_network(seed=1, batch_norm=True)
    again = minimize(sharded(comm, model=other), Scripted(points), run_dir=tmp_path, **options)
    assert (again.stop, again.iterations) == (stop, first.iterations)
    assert torch.equal(again.parameters, first.parameters)
    assert_same_state(other, model)


def assert_same_state(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_run_that_diverged_saves_its_best_point(comm: Communicator, tmp_path: Path) -> None:
    points, options, _ = ENDS["numbers that are not finite"]
    model = small_network(batch_norm=True)
    minimize(sharded(comm, model=model), Scripted(points), run_dir=tmp_path, **options)
    with StoredCheckpoint(published(tmp_path / "checkpoints")[-1]) as stored:
        for name, tensor in model.state_dict().items():
            assert torch.equal(torch.as_tensor(stored.replicated(tensor_path("model", name))), tensor), name


def test_a_run_that_was_not_saved_is_not_overwritten(comm: Communicator, tmp_path: Path) -> None:
    minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a", checkpoint=CheckpointOptions(save=False))
    with pytest.raises(UsageError, match="already holds a run, of which nothing was saved to go on from"):
        minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a")


def test_a_run_that_was_saved_is_not_overwritten_when_it_must_not_go_on(comm: Communicator, tmp_path: Path) -> None:
    minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a")
    options = CheckpointOptions(resume=False)
    with pytest.raises(UsageError, match=r"already holds a run.* checkpoint\.resume"):
        minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a", checkpoint=options)


def test_a_schedule_ends_with_the_run(comm: Communicator) -> None:
    ear = Ear()
    minimize(sharded(comm), SGD(learning_rate=1.0, schedule="linear"), epochs=4, listeners=[ear])
    assert [row["step_size"] for row in ear.iterations] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_schedule_ends_with_the_run_also_when_batches_grow(comm: Communicator) -> None:
    ear = Ear()
    growth = {"batch": 19, "batch_growth": 2.0, "batch_growth_every": 1, "batch_growth_tolerance": 100.0}
    minimize(sharded(comm), SGD(learning_rate=1.0, schedule="linear"), epochs=4, listeners=[ear], **growth)
    assert [row["step_size"] for row in ear.iterations] == pytest.approx([1.0, 0.875, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "iterations": 1}, "both given"),
        ({"test_accuracy": 0.5}, "can never be reached"),
        ({"seconds": -1}, "seconds"),
        ({"batch": 38}, "38"),
        ({"batch": "ful"}, '"full"'),
        ({"batch_growth": 0.5}, "batch_growth"),
        ({"batch_growth_every": 0}, "batch_growth_every"),
        ({"batch_growth_tolerance": -1.0}, "batch_growth_tolerance"),
        ({"evaluate_every": 0}, "evaluate_every"),
    ],
)
def test_options_that_do_not_fit_are_refused(comm: Communicator, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        minimize(sharded(comm), SGD(), **options)


def test_a_test_set_may_be_arrays_of_numpy_as_the_samples_may(comm: Communicator) -> None:
    test = samples()
    ours, theirs = (
        minimize(sharded(comm), SGD(), epochs=1, test=given, test_accuracy=1.0).final
        for given in (test, tuple(part.numpy() for part in test))
    )
    assert repr(ours) == repr(theirs)  # figures that do not apply are NaN, which equals nothing
    assert math.isfinite(ours.test_loss)


def test_a_test_set_of_two_lengths_is_refused(comm: Communicator) -> None:
    inputs, targets = samples()
    with pytest.raises(UsageError, match=r"36 inputs but 37 targets|37 inputs but 36 targets"):
        minimize(sharded(comm), SGD(), test=(inputs, targets[1:]))


def test_public_names_are_listed_and_can_be_imported_and_others_are_refused() -> None:
    assert set(hpcopt.__all__) <= set(dir(hpcopt))
    for name in hpcopt.__all__:
        assert getattr(hpcopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hpcopt.nothing


def test_a_rank_with_other_variables_is_found_out(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    check_agreement(comm, torch.ones(3), 1)
    monkeypatch.setattr(type(comm), "reduce_scalars", lambda *_, **__: [1.0, -2.0])
    with pytest.raises(HpcoptError, match="after iteration 1"):
        check_agreement(comm, torch.ones(3), 1)


def test_a_test_loss_that_is_not_finite_is_never_the_best(comm: Communicator) -> None:
    from hpcopt.train.evaluation import Evaluator

    inputs, targets = samples("squared")
    objective = sharded(comm, "squared")
    bad = inputs.clone()
    bad[0, 0] = math.nan
    metrics = Evaluator(objective, (bad, targets))(objective.initial_vector())
    assert metrics.test_loss == math.inf
    assert metrics.score()[1] == -math.inf


def test_a_run_that_was_saved_goes_on_being_saved(comm: Communicator, tmp_path: Path) -> None:
    minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a")
    with pytest.raises(UsageError, match=r"checkpoint.save = false would let its record"):
        minimize(sharded(comm), SGD(), epochs=2, run_dir=tmp_path / "a", checkpoint=CheckpointOptions(save=False))
    assert minimize(sharded(comm), SGD(), epochs=2, run_dir=tmp_path / "a").epochs == 2


def test_the_first_checkpoint_after_the_best_evaluation_is_kept_as_the_best(comm: Communicator, tmp_path: Path) -> None:
    minimize(
        sharded(comm),
        SGD(learning_rate=0.1),
        iterations=9,
        batch=10,
        evaluate_every=0.5,
        run_dir=tmp_path / "a",
        checkpoint=CheckpointOptions(every_epochs=0.75),
    )
    run = hpcopt.open_run(tmp_path / "a")
    assert [saved.best for saved in run.checkpoints].count(True) == 1


def test_a_run_that_failed_before_it_was_saved_begins_anew(comm: Communicator, tmp_path: Path) -> None:
    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 6:
            raise ArithmeticError("planted")
        return torch.nn.functional.cross_entropy(outputs, targets)

    calls: list[int] = []
    broken = sharded(comm)
    broken.shard.loss.sum = fails  # type: ignore[method-assign]
    with pytest.raises(ArithmeticError):
        minimize(broken, SGD(), epochs=9, run_dir=tmp_path / "a")
    assert minimize(sharded(comm), SGD(), epochs=1, run_dir=tmp_path / "a").epochs == 1
