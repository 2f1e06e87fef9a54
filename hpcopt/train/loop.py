"""The one loop. A solver proposes; when to evaluate, when to stop and what is the best point is decided here.

Every decision is taken from numbers that have been reduced over the ranks, so all ranks take the same one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from hpcopt.comm.ledger import LedgerTotals
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Vector, Work
from hpcopt.solvers.solver import Solver, State, StepReport, StopReason
from hpcopt.train.agreement import check_agreement
from hpcopt.train.evaluation import Metrics
from hpcopt.train.sampler import Sampler


@dataclass(frozen=True)
class Criteria:
    """When the run ends, after ``iterations`` or else after ``epochs``, and how many epochs lie between evaluations."""

    iterations: int | None = None
    epochs: float = math.inf
    evaluate_every: float = 1.0
    train_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    give_up_after: int = 20
    check_agreement: bool = False


class Listener(Protocol):
    """Something on rank 0 that is told what happened: the record, the progress display, a user's callback."""

    def iteration(self, **columns: Any) -> None:
        """One step is done; the columns are those of the table ``iterations`` in the record.

        ``local_iterations`` has one number a rank; it is empty where the ranks did not iterate on their own.
        """
        ...

    def evaluation(self, **columns: Any) -> None:
        """Training and test set were evaluated; the columns are those of the table ``evaluations``."""
        ...

    def rank_times(self, iteration: int, step: Sequence[float], waited: Sequence[float]) -> None:
        """Seconds each rank spent in steps, and of these waiting for others, since the last call."""
        ...


@dataclass
class Result:
    """What a run came to. ``parameters`` is the last iterate, or the best one when the run diverged."""

    stop: StopReason
    parameters: Vector
    best_parameters: Vector
    initial: Metrics
    final: Metrics
    best: Metrics
    best_epoch: float
    iterations: int
    epochs: float
    seconds: float
    accepted: int = 0
    rejected: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingLoop:
    """Runs a solver on an objective until a criterion is met. *Collective*.

    Args:
        objective: the problem.
        solver: the method.
        sampler: the batches; the loop begins with the first one.
        evaluate: figures of a point on the whole sets.
        criteria: when to stop.
        listeners: told of everything; empty on all ranks but 0.
    """

    def __init__(
        self,
        objective: DataParallelObjective,
        solver: Solver,
        sampler: Sampler,
        evaluate: Callable[[Vector], Metrics],
        criteria: Criteria,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.objective, self.solver, self.criteria = objective, solver, criteria
        self._batches, self._evaluate = sampler.begin(), evaluate
        self._listeners = listeners
        self._done, self._seconds, self._not_finite, self._batch_total = 0, 0.0, 0, 0
        self._accepted = self._rejected = 0
        self._step_seconds = self._step_waited = 0.0
        self._history: list[dict[str, float]] = []
        self._best = Metrics()
        self._best_epoch = 0.0

    def run(self) -> Result:
        """Train to the end. *Collective*."""
        self._started = time.perf_counter()
        self._ledger_before = self.objective.comm.ledger.totals()
        self._work_before = replace(self.objective.work)
        self.objective.flags_seen = 0.0
        state = self.solver.init(self.objective)
        report = StepReport(loss=math.nan)
        self._initial = self._look(state, report)
        self._keep_best(self._initial, state)
        self._batches.learn(self._initial.train_loss)
        stop, metrics = self._reached(self._initial), self._initial
        while stop is StopReason.RUNNING:
            state, report = self._step(state)
            stop = self._after_step(report)
            if stop is not StopReason.RUNNING or self._is_time_to_look():
                metrics = self._look(state, report)
                self._keep_best(metrics, state)
                self._batches.learn(metrics.train_loss)
                reached = self._reached(metrics)
                stop = reached if reached is not StopReason.RUNNING else stop
        return self._result(stop, state, metrics)

    def _step(self, state: State) -> tuple[State, StepReport]:
        """One timed iteration; rank 0's clock travels with the step's own reductions."""
        objective, limit = self.objective, self.criteria.seconds
        out_of_time = limit is not None and time.perf_counter() - self._started >= limit
        objective.flag = 1.0 if out_of_time and objective.comm.rank == 0 else 0.0
        waited, started = self._spent().seconds_waited, time.perf_counter()
        batch = self._batches.next()
        state, report = self.solver.step(objective, state, batch)
        elapsed = time.perf_counter() - started
        self._seconds += elapsed
        self._step_seconds += elapsed
        self._step_waited += self._spent().seconds_waited - waited
        self._done, self._batch_total = self._done + 1, batch.total
        if self.criteria.check_agreement:
            check_agreement(objective.comm, state["parameters"], self._done)
        return state, report

    def _after_step(self, report: StepReport) -> StopReason:
        self._accepted += report.accepted
        self._rejected += not report.accepted
        # A trial within an accepted step may have met such a number and been cut back.
        self._not_finite = 0 if report.finite or report.accepted else self._not_finite + 1
        self._tell_iteration(report)
        if self._not_finite >= self.criteria.give_up_after:
            return StopReason.NOT_FINITE
        if report.stop is not StopReason.RUNNING:
            return report.stop
        if self.objective.flags_seen > 0:
            return StopReason.SECONDS_SPENT
        return StopReason.EPOCHS_DONE if self._is_at_the_end() else StopReason.RUNNING

    def _is_at_the_end(self) -> bool:
        criteria, batches = self.criteria, self._batches
        if criteria.iterations is not None:
            return self._done >= criteria.iterations
        return batches.done >= batches.count(criteria.epochs)

    def _is_time_to_look(self) -> bool:
        batches = self._batches
        return batches.wants_loss or batches.done % batches.count(self.criteria.evaluate_every) == 0

    def _reached(self, metrics: Metrics) -> StopReason:
        criteria = self.criteria
        if criteria.train_loss is not None and metrics.train_loss <= criteria.train_loss:
            return StopReason.TRAIN_LOSS_REACHED
        if criteria.test_accuracy is not None and metrics.test_accuracy >= criteria.test_accuracy:
            return StopReason.TEST_ACCURACY_REACHED
        return StopReason.RUNNING

    def _look(self, state: State, report: StepReport) -> Metrics:
        """Evaluate the whole sets and tell the listeners. *Collective*."""
        metrics = self._evaluate(_point(state))
        comm = self.objective.comm
        times = comm.gather_objects((self._step_seconds, self._step_waited))
        self._step_seconds = self._step_waited = 0.0
        if comm.rank == 0 and times is not None:
            row = self._evaluation_row(metrics, report)
            self._history.append(row)
            for listener in self._listeners:
                listener.evaluation(**row)
                listener.rank_times(self._done, [t[0] for t in times], [t[1] for t in times])
        return metrics

    def _tell_iteration(self, report: StepReport) -> None:
        if not self._listeners:
            return
        columns = {k: v for k, v in asdict(report).items() if k not in ("finite", "stop")}
        work, totals = self._work(), self._spent()
        columns |= {
            "iteration": self._done,
            "epoch": self._batches.epochs,
            "seconds": self._seconds,
            "batch": self._batch_total,
            "accepted": int(report.accepted),
            "values": work.values,
            "gradients": work.gradients,
            "curvature_products": work.curvature_products,
            "calls": totals.calls,
            "bytes": totals.bytes,
            "seconds_waited": totals.seconds_waited,
        }
        for listener in self._listeners:
            listener.iteration(**columns)

    def _evaluation_row(self, metrics: Metrics, report: StepReport) -> dict[str, float]:
        return {
            "iteration": self._done,
            "epoch": self._batches.epochs,
            "seconds": self._seconds,
            "wall_seconds": time.perf_counter() - self._started,
            **asdict(metrics),
            "gradient_norm": report.gradient_norm,
            "radius": report.radius,
            "gradient_equivalents": self._work().gradient_equivalents,
            "bytes": self._spent().bytes,
            "accepted": self._accepted,
            "rejected": self._rejected,
        }

    def _spent(self) -> LedgerTotals:
        """Communication of this rank since the start of the run; the communicator may be older."""
        now, before = self.objective.comm.ledger.totals(), self._ledger_before
        return LedgerTotals(*(a - b for a, b in zip(now, before, strict=True)))  # type: ignore[arg-type]

    def _work(self) -> Work:
        """Evaluations since the start of the run; the objective may be older."""
        now, before = self.objective.work, self._work_before
        values, gradients = now.values - before.values, now.gradients - before.gradients
        return Work(values, gradients, now.curvature_products - before.curvature_products, now.curvature_cost)

    def _keep_best(self, metrics: Metrics, state: State) -> None:
        if self._done == 0 or metrics.score() > self._best.score():
            self._best, self._best_epoch = metrics, self._batches.epochs
            self._best_parameters = _point(state).clone()
            self._best_buffers = self.objective.copy_buffers()

    def _result(self, stop: StopReason, state: State, metrics: Metrics) -> Result:
        diverged = stop is StopReason.NOT_FINITE
        final = self._best_parameters.clone() if diverged else _point(state)
        if diverged:
            self.objective.restore_buffers(self._best_buffers)
        self.objective.shard.parameters.bind(final)
        return Result(
            stop=stop,
            parameters=final,
            best_parameters=self._best_parameters,
            initial=self._initial,
            final=metrics,
            best=self._best,
            best_epoch=self._best_epoch,
            iterations=self._done,
            epochs=self._batches.epochs,
            seconds=self._seconds,
            accepted=self._accepted,
            rejected=self._rejected,
            history=self._history,
        )


def _point(state: State) -> Vector:
    """What is evaluated and delivered: a mean of iterates where the method keeps one, else w."""
    point = state.get("average", state["parameters"])
    assert not isinstance(point, (float, int))
    return point
