"""The loop: when it evaluates, when it stops, what it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.data.batches import BatchGrowth
from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.apts import APTS
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.solver import State, StepReport, StopReason
from hpcopt.train import loop as module
from hpcopt.train.evaluation import Evaluator, Metrics
from hpcopt.train.loop import TrainingLoop
from hpcopt.train.minimize import plan_batches
from hpcopt.train.protocol import Criteria, Listener, Result
from hpcopt.train.sampler import Sampler
from hpcopt.train.tolerated import Tolerated
from tests.support.listeners import Ear
from tests.support.problems import sharded


class Seldom(Tolerated):
    """Passes on what it is told, and is told of few iterations."""

    seldom = True


@dataclass(frozen=True)
class CutsBack:
    """A solver that met NaN in a trial and accepted a shorter step."""

    def init(self, objective: Objective) -> State:
        return {"parameters": objective.initial_vector()}

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        return state, StepReport(loss=1.0, accepted=True, finite=False)


@dataclass(frozen=True)
class Script:
    """A solver that walks through given points; NaN stands for a step that met a number that is not finite."""

    points: tuple[float, ...]
    stop_at: int | None = None

    def init(self, objective: Objective) -> State:
        return {"parameters": objective.initial_vector().fill_(9.0), "step": 0}

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        number = int(state["step"])  # type: ignore[arg-type]
        state["step"] = number + 1
        w: torch.Tensor = state["parameters"]  # type: ignore[assignment]
        objective.value(w, batch)
        point = self.points[number % len(self.points)]
        if math.isnan(point):
            return state, StepReport(loss=point, accepted=False, finite=False)
        w.fill_(point)
        stop = StopReason.GRADIENT_SMALL if number + 1 == self.stop_at else StopReason.RUNNING
        return state, StepReport(loss=point, stop=stop)


def loop(
    comm: Communicator, solver: Any, criteria: Criteria, ear: Listener | None = None, batch: int | str = "full"
) -> TrainingLoop:
    objective = sharded(comm)
    sampler = Sampler(plan_batches(objective, batch, 0.0, 0), torch.device("cpu"))

    def figures(w: torch.Tensor) -> Metrics:
        """The first parameter is the training loss, so that a script decides what is best."""
        return Metrics(train_loss=float(w[0]))

    evaluate = figures if isinstance(solver, Script) else Evaluator(objective, None)
    return TrainingLoop(objective, solver, sampler, evaluate, criteria, [ear] if ear else [])


def run(comm: Communicator, points: Sequence[float], **criteria: Any) -> Result:
    options = replace(Criteria(iterations=len(points)), **criteria)
    return loop(comm, Script(tuple(points)), options).run()


def test_it_runs_the_iterations_and_says_so(comm: Communicator) -> None:
    ear = Ear()
    result = loop(comm, SGD(learning_rate=0.1), Criteria(iterations=7, evaluate_every=0.75), ear, batch=10).run()
    assert result.stop is StopReason.EPOCHS_DONE
    assert [row["iteration"] for row in ear.iterations] == list(range(1, 8))
    assert [row["iteration"] for row in ear.evaluations] == [0, 3, 6, 7]
    assert ear.iterations[-1]["epoch"] == pytest.approx(7 / 4)
    assert [t[0] for t in ear.times] == [0, 3, 6, 7]
    assert result.final.train_loss < result.initial.train_loss
    assert math.isnan(result.final.test_loss)


@pytest.mark.parametrize(("seconds", "told"), [(math.inf, [1]), (0.0, [1, 2, 3])])
def test_who_wants_to_hear_of_few_iterations_is_told_of_few(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, seconds: float, told: list[int]
) -> None:
    monkeypatch.setattr(module, "SECONDS_FOR_ALL", seconds)
    ear = Ear()
    training = loop(comm, SGD(learning_rate=0.1), Criteria(iterations=3), Tolerated(Seldom(ear)))
    training.run()
    assert [row["iteration"] for row in ear.iterations] == told
    assert [row["iteration"] for row in ear.evaluations] == [0, 1, 2, 3]


def test_work_and_communication_only_grow(comm: Communicator) -> None:
    ear = Ear()
    loop(comm, SGD(learning_rate=0.1), Criteria(iterations=5), ear, batch=10).run()
    for column in ("gradients", "calls", "bytes", "seconds", "seconds_waited", "epoch"):
        values = [row[column] for row in ear.iterations]
        assert values == sorted(values)
        assert values[-1] > 0
    assert ear.iterations[3]["gradients"] == pytest.approx(1.0)


def test_the_time_of_waiting_for_others_is_known_with_barriers_only(comm: Communicator) -> None:
    for barriers in (False, True):
        comm.barriers, ear = barriers, Ear()
        loop(comm, APTS(), Criteria(iterations=2), ear).run()
        _, step, waited, others = ear.times[-1]
        if barriers:
            assert 0 < others[0] < waited[0] < step[0]
        else:
            assert math.isnan(others[0])


def test_the_result_tells_what_looking_and_telling_took(comm: Communicator) -> None:
    result = loop(comm, SGD(learning_rate=0.1), Criteria(iterations=3), Ear()).run()
    assert min(result.seconds_evaluating, result.seconds_recording) > 0
    assert result.seconds_evaluating + result.seconds_recording + result.seconds < result.seconds_here


def test_the_best_point_is_kept_and_the_last_one_returned(comm: Communicator) -> None:
    result = run(comm, [3.0, 1.0, 2.0])
    assert (result.final.train_loss, result.best.train_loss, result.best_epoch) == (2.0, 1.0, 2.0)
    assert float(result.parameters[0]) == 2.0
    assert float(result.best_parameters[0]) == 1.0


def test_it_stops_at_the_training_loss_asked_for(comm: Communicator) -> None:
    result = run(comm, [3.0, 1.0, 0.5, 0.1], train_loss=0.7)
    assert (result.stop, result.iterations) == (StopReason.TRAIN_LOSS_REACHED, 3)


def test_it_stops_when_the_solver_says_so(comm: Communicator) -> None:
    result = loop(comm, Script((3.0,), stop_at=2), Criteria(iterations=9)).run()
    assert (result.stop, result.iterations) == (StopReason.GRADIENT_SMALL, 2)


def test_it_stops_when_the_time_is_spent(comm: Communicator) -> None:
    result = run(comm, [1.0] * 9, seconds=1e-9)
    assert (result.stop, result.iterations) == (StopReason.SECONDS_SPENT, 1)


def test_numbers_that_are_not_finite_end_the_run_at_the_best_point(comm: Communicator) -> None:
    result = run(comm, [3.0, 1.0, 2.0, *[math.nan] * 5], give_up_after=3)
    assert (result.stop, result.iterations, result.rejected) == (StopReason.NOT_FINITE, 6, 3)
    assert float(result.parameters[0]) == 1.0


def test_an_accepted_step_is_no_divergence_even_if_a_trial_in_it_was_not_finite(comm: Communicator) -> None:
    result = loop(comm, CutsBack(), Criteria(iterations=6, give_up_after=3)).run()
    assert result.stop is StopReason.EPOCHS_DONE


def test_a_stop_by_time_does_not_reach_the_next_run_of_the_same_objective(comm: Communicator) -> None:
    training = loop(comm, Script((1.0,)), Criteria(iterations=4, seconds=1e-9))
    assert training.run().stop is StopReason.SECONDS_SPENT
    training.criteria = Criteria(iterations=4)
    assert training.run().stop is StopReason.EPOCHS_DONE


def test_a_finite_step_in_between_starts_the_count_anew(comm: Communicator) -> None:
    result = run(comm, [3.0, math.nan, math.nan, 1.0, math.nan, math.nan, 2.0], give_up_after=3)
    assert result.stop is StopReason.EPOCHS_DONE


def test_the_module_holds_the_result_afterwards(comm: Communicator) -> None:
    training = loop(comm, Script((3.0, 2.0)), Criteria(iterations=2))
    training.run()
    assert all(bool((p == 2.0).all()) for p in training.objective.shard.module.parameters())


class TestEvaluation:
    """Whole sets, against plain torch."""

    def test_losses_and_accuracies_are_means_over_all_samples(self, comm: Communicator) -> None:
        objective = sharded(comm)
        inputs, targets = objective.shard.inputs, objective.shard.targets
        metrics = Evaluator(objective, (inputs[:9], targets[:9]))(objective.initial_vector())
        outputs = objective.shard.module(inputs).detach()
        right = outputs.argmax(1) == targets
        loss = torch.nn.functional.cross_entropy
        assert metrics.train_loss == pytest.approx(float(loss(outputs, targets)))
        assert metrics.test_loss == pytest.approx(float(loss(outputs[:9], targets[:9])))
        assert metrics.train_accuracy == pytest.approx(float(right.double().mean()))
        assert metrics.test_accuracy == pytest.approx(float(right[:9].double().mean()))
        assert math.isnan(metrics.test_explained_variance)

    def test_explained_variance_is_one_minus_error_over_variance(self, comm: Communicator) -> None:
        objective = sharded(comm, "squared")
        inputs, targets = objective.shard.inputs, objective.shard.targets
        metrics = Evaluator(objective, (inputs, targets))(objective.initial_vector())
        error = (objective.shard.module(inputs).detach() - targets).square().sum()
        variance = (targets - targets.mean(0)).square().sum()
        assert metrics.test_explained_variance == pytest.approx(float(1 - error / variance))
        assert math.isnan(metrics.test_accuracy)
        assert metrics.score() == (-math.inf, -metrics.test_loss)

    def test_the_model_trains_on_in_training_mode(self, comm: Communicator) -> None:
        objective = sharded(comm)
        Evaluator(objective, None)(objective.initial_vector())
        assert objective.shard.module.training


class TestGrowth:
    """Batches that grow between epochs: 37 samples in 4 batches, then 2, then 1. The loss is 9 before training."""

    def grown(self, comm: Communicator, points: Sequence[float], **criteria: Any) -> tuple[Result, Ear]:
        ear, objective = Ear(), sharded(comm)
        plan = plan_batches(objective, 10, 0.0, 0)
        sampler = Sampler(plan, torch.device("cpu"), BatchGrowth(2.0, every=1))

        def figures(w: torch.Tensor) -> Metrics:
            return Metrics(train_loss=float(w[0]))

        solver = Script(tuple(points))
        return TrainingLoop(objective, solver, sampler, figures, Criteria(**criteria), [ear]).run(), ear

    def test_the_record_has_the_samples_of_each_batch_and_the_epochs_done(self, comm: Communicator) -> None:
        result, ear = self.grown(comm, [8, 8, 8, 9, 7, 7, 7, 7, 6], epochs=5)
        sizes = [row["batch"] for row in ear.iterations]
        assert [sum(sizes[:4]), sum(sizes[4:6]), sum(sizes[6:8]), *sizes[8:]] == [37] * 5
        epochs = [0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5]
        assert [row["epoch"] for row in ear.iterations] == epochs
        assert [row["iteration"] for row in ear.iterations] == list(range(1, 11))
        assert (result.iterations, result.epochs) == (10, 5.0)
        assert ear.iterations[-1]["values"] == pytest.approx(5.0)

    def test_a_run_of_some_iterations_has_that_many(self, comm: Communicator) -> None:
        result, _ = self.grown(comm, [9.0], iterations=7)
        assert (result.iterations, result.epochs) == (7, 3.0)

    def test_evaluations_stay_at_the_epochs_asked_for_and_come_with_every_look(self, comm: Communicator) -> None:
        _, ear = self.grown(comm, [9.0], epochs=4, evaluate_every=0.5)
        assert [row["epoch"] for row in ear.evaluations] == [0, 0.5, 1, 1.5, 2, 3, 4]
        _, ear = self.grown(comm, [9.0], epochs=4, evaluate_every=50)
        assert [row["epoch"] for row in ear.evaluations] == [0, 1, 2, 4]

    def test_a_second_loop_with_the_sampler_begins_with_the_first_size(self, comm: Communicator) -> None:
        objective = sharded(comm)
        sampler = Sampler(plan_batches(objective, 10, 0.0, 0), torch.device("cpu"), BatchGrowth(2.0, every=1))
        evaluate = Evaluator(objective, None)
        solver, iterations = SGD(learning_rate=1e-9), []
        for _ in range(2):
            result = TrainingLoop(objective, solver, sampler, evaluate, Criteria(epochs=3)).run()
            iterations.append(result.iterations)
        assert iterations == [4 + 2 + 1] * 2


def test_a_second_run_with_the_same_objective_counts_from_zero(comm: Communicator) -> None:
    training = loop(comm, SGD(learning_rate=0.1), Criteria(iterations=3))
    first = training.run()
    ear = Ear()
    sampler = Sampler(plan_batches(training.objective, "full", 0.0, 0), torch.device("cpu"))
    TrainingLoop(training.objective, training.solver, sampler, training._evaluate, training.criteria, [ear]).run()
    assert ear.iterations[-1]["gradients"] == 3
    assert ear.evaluations[0]["bytes"] <= ear.evaluations[-1]["bytes"] / 3
    assert len(first.history) == len(ear.evaluations)
