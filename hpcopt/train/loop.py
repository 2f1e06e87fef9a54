"""The one loop. A solver proposes; when to evaluate, when to stop and what is the best point is decided here.

Every decision is taken from numbers that have been reduced over the ranks, so all ranks take the same one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from hpcopt.comm.ledger import LedgerTotals
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Vector, Work
from hpcopt.solvers.solver import Solver, State, StepReport, StopReason
from hpcopt.train.agreement import check_agreement
from hpcopt.train.evaluation import Metrics
from hpcopt.train.sampler import BatchSequence, Sampler
from hpcopt.train.snapshot import Snapshot
from hpcopt.train.standing import Standing

OUT_OF_TIME, SAVE, LEAVE = 1.0, 2.0**16, 2.0**32
"""Requests that ranks add up in the reductions of an iteration, far enough apart to be told from their sum."""


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
    saved: int = 0
    seconds_saving: float = 0.0


class Keeper(Protocol):
    """Saves the run, and says when it wants to. The ranks agree on that in the reductions of an iteration."""

    saved: int
    seconds: float

    def asks(self) -> float:
        """What this rank wants after the coming iteration: 0, ``SAVE``, ``LEAVE`` or their sum."""
        ...

    def is_due(self, batches: BatchSequence) -> bool:
        """Whether to save here in any case, the same on all ranks."""
        ...

    def save(self, snapshot: Snapshot) -> bool:
        """Save; False when that failed, which never ends the run. *Collective*."""
        ...


class TrainingLoop:
    """Runs a solver on an objective until a criterion is met. *Collective*.

    Args:
        objective: the problem.
        solver: the method.
        sampler: the batches; the loop begins with the first one.
        evaluate: figures of a point on the whole sets.
        criteria: when to stop.
        listeners: told of everything; empty on all ranks but 0.
        keeper: saves the run; None for a run that is not saved.
    """

    def __init__(
        self,
        objective: DataParallelObjective,
        solver: Solver,
        sampler: Sampler,
        evaluate: Callable[[Vector], Metrics],
        criteria: Criteria,
        listeners: Sequence[Listener] = (),
        keeper: Keeper | None = None,
    ) -> None:
        self.objective, self.solver, self.criteria = objective, solver, criteria
        self._batches, self._evaluate = sampler.begin(), evaluate
        self._listeners, self._keeper = listeners, keeper
        self._standing = Standing()
        self._step_seconds = self._step_waited = 0.0
        self._history: list[dict[str, float]] = []

    def run(self, snapshot: Snapshot | None = None) -> Result:
        """Train to the end, from the start or from where ``snapshot`` was taken. *Collective*."""
        self._started = time.perf_counter()
        state = self._begin() if snapshot is None else self._go_on(snapshot)
        stop = self._reached(self._standing.latest)
        if snapshot is not None and stop is StopReason.RUNNING and self._is_at_the_end():
            stop = StopReason.EPOCHS_DONE
        while stop is StopReason.RUNNING:
            state, report = self._step(state)
            stop = self._after_step(report)
            if stop is not StopReason.RUNNING or self._is_time_to_look():
                self._look(state, report)
                reached = self._reached(self._standing.latest)
                stop = reached if reached is not StopReason.RUNNING else stop
            stop = self._keep(state, stop)
        return self._result(stop, state)

    def _begin(self) -> State:
        state = self.solver.init(self.objective)
        self._count_from(self._standing)
        self._look(state, StepReport(loss=math.nan))
        self._standing.initial = self._standing.latest
        return state

    def _go_on(self, snapshot: Snapshot) -> State:
        self._standing, self._history = snapshot.standing, snapshot.history
        self._best_parameters, self._best_buffers = snapshot.best_parameters, snapshot.best_buffers
        self._batches.restore(snapshot.batches)
        self._count_from(self._standing)
        return snapshot.state

    def _count_from(self, standing: Standing) -> None:
        """Communication and work are counted on from what they were; objective and communicator may be older."""
        totals, work, before = self.objective.comm.ledger.totals(), self.objective.work, standing.work
        self._ledger_before = LedgerTotals(
            totals.calls - standing.calls,
            totals.bytes - standing.bytes_moved,
            totals.seconds_waited - standing.seconds_waited,
        )
        values, gradients = work.values - before.values, work.gradients - before.gradients
        self._work_before = Work(values, gradients, work.curvature_products - before.curvature_products)
        self._started -= standing.wall_seconds

    def _step(self, state: State) -> tuple[State, StepReport]:
        """One timed iteration; what ranks ask for travels with the step's own reductions."""
        objective, standing = self.objective, self._standing
        objective.flag, objective.flags_seen = self._asks(), 0.0
        waited, started = self._spent().seconds_waited, time.perf_counter()
        batch = self._batches.next()
        state, report = self.solver.step(objective, state, batch)
        elapsed = time.perf_counter() - started
        standing.seconds += elapsed
        self._step_seconds += elapsed
        self._step_waited += self._spent().seconds_waited - waited
        standing.iterations, standing.batch = standing.iterations + 1, batch.total
        if self.criteria.check_agreement:
            check_agreement(objective.comm, state["parameters"], standing.iterations)
        return state, report

    def _asks(self) -> float:
        """What this rank asks for in the coming iteration; only rank 0's clock counts."""
        limit = self.criteria.seconds
        out_of_time = limit is not None and time.perf_counter() - self._started >= limit
        asked = OUT_OF_TIME if out_of_time and self.objective.comm.rank == 0 else 0.0
        return asked + (self._keeper.asks() if self._keeper is not None else 0.0)

    def _after_step(self, report: StepReport) -> StopReason:
        standing = self._standing
        standing.accepted += report.accepted
        standing.rejected += not report.accepted
        # A trial within an accepted step may have met such a number and been cut back.
        standing.not_finite = 0 if report.finite or report.accepted else standing.not_finite + 1
        self._tell_iteration(report)
        if standing.not_finite >= self.criteria.give_up_after:
            return StopReason.NOT_FINITE
        if report.stop is not StopReason.RUNNING:
            return report.stop
        if self.objective.flags_seen % SAVE > 0:
            return StopReason.SECONDS_SPENT
        return StopReason.EPOCHS_DONE if self._is_at_the_end() else StopReason.RUNNING

    def _keep(self, state: State, stop: StopReason) -> StopReason:
        """Save where that is due; leave where that was asked for. *Collective*."""
        keeper, seen = self._keeper, self.objective.flags_seen
        if keeper is None:
            return stop
        ended, leave = stop is not StopReason.RUNNING, seen >= LEAVE
        if not (ended or leave or seen % LEAVE >= SAVE or keeper.is_due(self._batches)):
            return stop
        totals = self.objective.comm.ledger.totals()
        saved = keeper.save(self._snapshot(state, diverged=stop is StopReason.NOT_FINITE))
        spent = [after - before for after, before in zip(self.objective.comm.ledger.totals(), totals, strict=True)]
        self._ledger_before = LedgerTotals(*(a + b for a, b in zip(self._ledger_before, spent, strict=True)))  # type: ignore[arg-type]
        if ended or not leave:
            return stop
        return StopReason.SAVED if saved else StopReason.NOT_SAVED

    def _snapshot(self, state: State, diverged: bool) -> Snapshot:
        """The run as it stands, with what it delivers: the best point when it diverged."""
        standing, spent = self._standing, self._spent()
        standing.calls, standing.bytes_moved, standing.seconds_waited = spent
        standing.work = self._work()
        standing.wall_seconds = time.perf_counter() - self._started
        point = self._best_parameters if diverged else _point(state)
        return Snapshot(
            state,
            point,
            standing,
            self._batches.state(),
            self._best_parameters,
            self._best_buffers,
            self._history,
        )

    def _is_at_the_end(self) -> bool:
        criteria, batches = self.criteria, self._batches
        if criteria.iterations is not None:
            return self._standing.iterations >= criteria.iterations
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

    def _look(self, state: State, report: StepReport) -> None:
        """Evaluate the whole sets, keep the best point, and tell the listeners. *Collective*."""
        metrics = self._standing.latest = self._evaluate(_point(state))
        comm, done = self.objective.comm, self._standing.iterations
        times = comm.gather_objects((self._step_seconds, self._step_waited))
        self._step_seconds = self._step_waited = 0.0
        row = self._evaluation_row(metrics, report)
        self._history.append(row)
        if times is not None:
            for listener in self._listeners:
                listener.evaluation(**row)
                listener.rank_times(done, [t[0] for t in times], [t[1] for t in times])
        self._keep_best(metrics, state)
        self._batches.learn(metrics.train_loss)

    def _tell_iteration(self, report: StepReport) -> None:
        if not self._listeners:
            return
        columns = {k: v for k, v in asdict(report).items() if k not in ("finite", "stop")}
        work, totals, standing = self._work(), self._spent(), self._standing
        columns |= {
            "iteration": standing.iterations,
            "epoch": self._batches.epochs,
            "seconds": standing.seconds,
            "batch": standing.batch,
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
        standing = self._standing
        return {
            "iteration": standing.iterations,
            "epoch": self._batches.epochs,
            "seconds": standing.seconds,
            "wall_seconds": time.perf_counter() - self._started,
            **asdict(metrics),
            "gradient_norm": report.gradient_norm,
            "radius": report.radius,
            "gradient_equivalents": self._work().gradient_equivalents,
            "bytes": self._spent().bytes,
            "accepted": standing.accepted,
            "rejected": standing.rejected,
        }

    def _spent(self) -> LedgerTotals:
        """Communication of this rank since the first start of the run."""
        now, before = self.objective.comm.ledger.totals(), self._ledger_before
        return LedgerTotals(*(a - b for a, b in zip(now, before, strict=True)))  # type: ignore[arg-type]

    def _work(self) -> Work:
        """Evaluations since the first start of the run."""
        now, before = self.objective.work, self._work_before
        values, gradients = now.values - before.values, now.gradients - before.gradients
        return Work(values, gradients, now.curvature_products - before.curvature_products, now.curvature_cost)

    def _keep_best(self, metrics: Metrics, state: State) -> None:
        standing = self._standing
        if standing.iterations == 0 or metrics.score() > standing.best.score():
            standing.best, standing.best_epoch = metrics, self._batches.epochs
            standing.best_iteration = standing.iterations
            self._best_parameters = _point(state).clone()
            self._best_buffers = self.objective.copy_buffers()

    def _result(self, stop: StopReason, state: State) -> Result:
        diverged, standing = stop is StopReason.NOT_FINITE, self._standing
        final = self._best_parameters.clone() if diverged else _point(state)
        if diverged:
            self.objective.restore_buffers(self._best_buffers)
        self.objective.shard.parameters.bind(final)
        return Result(
            stop=stop,
            parameters=final,
            best_parameters=self._best_parameters,
            initial=standing.initial,
            final=standing.latest,
            best=standing.best,
            best_epoch=standing.best_epoch,
            iterations=standing.iterations,
            epochs=self._batches.epochs,
            seconds=standing.seconds,
            accepted=standing.accepted,
            rejected=standing.rejected,
            history=self._history,
            saved=self._keeper.saved if self._keeper else 0,
            seconds_saving=self._keeper.seconds if self._keeper else 0.0,
        )


def _point(state: State) -> Vector:
    """What is evaluated and delivered: a mean of iterates where the method keeps one, else w."""
    point = state.get("average", state["parameters"])
    assert not isinstance(point, (float, int))
    return point
