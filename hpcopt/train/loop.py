"""The one loop. A solver proposes; when to evaluate, when to stop and what is the best point is decided here.

Every decision is taken from numbers that have been reduced over the ranks, so all ranks take the same one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from operator import sub

import torch

from hpcopt.comm.ledger import LedgerTotals
from hpcopt.objective.problem import Problem
from hpcopt.objective.protocol import Vector
from hpcopt.solvers.solver import Solver, State, StepReport, StopReason, delivered
from hpcopt.train.agreement import check_agreement
from hpcopt.train.evaluation import Metrics
from hpcopt.train.protocol import LEAVE, OUT_OF_TIME, SAVE, Criteria, Keeper, Listener, Result
from hpcopt.train.sampler import Sampler
from hpcopt.train.snapshot import Snapshot
from hpcopt.train.standing import Standing

SECONDS_FOR_ALL = 0.1
"""Between two iterations that listeners are told of which want to hear of few only."""


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
        begin: told what this rank is about to do, for a watchdog.
    """

    def __init__(
        self,
        objective: Problem,
        solver: Solver,
        sampler: Sampler,
        evaluate: Callable[[Vector], Metrics],
        criteria: Criteria,
        listeners: Sequence[Listener] = (),
        keeper: Keeper | None = None,
        begin: Callable[[str], object] = lambda what: None,
    ) -> None:
        self._tell_watchdog = begin
        self.objective, self.solver, self.criteria = objective, solver, criteria
        self._batches, self._evaluate = sampler.begin(), evaluate
        self._listeners, self._keeper = listeners, keeper
        self._attentive: Sequence[Listener] = [each for each in listeners if not getattr(each, "seldom", False)]
        self._next_for_all = self._next_look = 0.0
        self._standing = Standing()
        self._seconds_evaluating = self._seconds_recording = 0.0
        self._history: list[dict[str, float]] = []
        self._resumed_from: int | None = None

    def run(self, snapshot: Snapshot | None = None) -> Result:
        """Train to the end, from the start or from where ``snapshot`` was taken. *Collective*."""
        self._entered = self._started = time.perf_counter()
        if snapshot is None:
            state = self._begin()
            stop = self._reached(self._standing.latest)
            if stop is not StopReason.RUNNING:
                self._keep(state, stop)
        else:
            state = self._go_on(snapshot)
            stop = self._ended_before()
        while stop is StopReason.RUNNING:
            state, report = self._step(state)
            stop = self._after_step(report)
            if stop is not StopReason.RUNNING or self._batches.done >= self._next_look:
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
        self._next_look = self._batches.next_look(self.criteria.evaluate_every)
        self._count_from(self._standing)
        self._resumed_from = self._standing.iterations
        return snapshot.state

    def _ended_before(self) -> StopReason:
        """Whether a run that goes on was at its end already: by its criteria as they are now, or by its method."""
        criteria, standing = self.criteria, self._standing
        if standing.not_finite >= criteria.give_up_after:
            return StopReason.NOT_FINITE
        if standing.method_stop:
            return StopReason[standing.method_stop]
        reached = self._reached(standing.latest)
        if reached is StopReason.RUNNING and self._is_at_the_end():
            return StopReason.EPOCHS_DONE
        if reached is StopReason.RUNNING and standing.wall_seconds >= (criteria.seconds or math.inf):
            return StopReason.SECONDS_SPENT
        return reached

    def _count_from(self, standing: Standing) -> None:
        """Communication and work are counted on from what they were; the communicator may be older than the run."""
        counted, objective = LedgerTotals(standing.calls, standing.bytes_moved, standing.seconds_waited), self.objective
        self._ledger_before = objective.comm.ledger.since(counted)
        # The sum itself goes on, not a difference to another one, which would be rounded in another way.
        objective.work = replace(standing.work, curvature_cost=objective.work.curvature_cost)
        objective.flags_seen = 0.0
        self._started -= standing.wall_seconds
        self._looked = self._times()

    def _step(self, state: State) -> tuple[State, StepReport]:
        """One timed iteration; what ranks ask for travels with the step's own reductions."""
        objective, standing = self.objective, self._standing
        objective.flag, objective.flags_seen = self._asks(), 0.0
        self._tell_watchdog(f"step {standing.iterations + 1}")
        started = time.perf_counter()
        batch = self._batches.next()
        state, report = self.solver.step(objective, state, batch)
        standing.seconds += time.perf_counter() - started
        standing.iterations, standing.batch = standing.iterations + 1, batch.total
        if self.criteria.check_agreement:
            self._check_agreement(state, report)
        return state, report

    def _check_agreement(self, state: State, report: StepReport) -> None:
        """Prove that the ranks have alike what they must have alike. *Collective*."""
        objective, done = self.objective, self._standing.iterations
        check_agreement(objective.comm, self._shared(state, report), done)
        replicas = getattr(objective, "across", None)
        if replicas is not None:
            with objective.comm.together("comparing the replicas", groups=True):
                check_agreement(replicas, state["parameters"], done)

    def _shared(self, state: State, report: StepReport) -> torch.Tensor:
        """What every rank must have alike after a step: the variables, or what was decided where they are cut up."""
        parameters = state["parameters"]
        assert isinstance(parameters, torch.Tensor)
        if self.objective.model.blocks(parameters) is None:
            return parameters
        numbers = (report.loss, report.loss_after, report.gradient_norm, report.step_norm, float(report.accepted))
        return torch.tensor(numbers, dtype=torch.float64)

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
            standing.method_stop = report.stop.name
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
        self._tell_watchdog(f"save after step {self._standing.iterations}")
        before = self._spent()
        saved = keeper.save(self._snapshot(state, diverged=stop is StopReason.NOT_FINITE))
        told_to_end = keeper.told_to_end(saved)
        self._ledger_before = self.objective.comm.ledger.since(before)
        if ended or not (leave or (saved and told_to_end)):
            return stop
        if not saved:
            return StopReason.NOT_SAVED
        return StopReason.STOPPED if told_to_end else StopReason.SAVED

    def _snapshot(self, state: State, diverged: bool) -> Snapshot:
        """The run as it stands, with what it delivers: the best point when it diverged."""
        standing, spent = self._standing, self._spent()
        standing.calls, standing.bytes_moved, standing.seconds_waited = spent[:3]
        standing.work = replace(self.objective.work)
        standing.wall_seconds = time.perf_counter() - self._started
        point = self._best_parameters if diverged else delivered(state)
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

    def _reached(self, metrics: Metrics) -> StopReason:
        criteria = self.criteria
        if criteria.train_loss is not None and metrics.train_loss <= criteria.train_loss:
            return StopReason.TRAIN_LOSS_REACHED
        if criteria.test_accuracy is not None and metrics.test_accuracy >= criteria.test_accuracy:
            return StopReason.TEST_ACCURACY_REACHED
        return StopReason.RUNNING

    def _look(self, state: State, report: StepReport) -> None:
        """Evaluate the whole sets, keep the best point, and tell the listeners. *Collective*."""
        started, told = time.perf_counter(), self._seconds_recording
        self._tell_watchdog(f"evaluation after step {self._standing.iterations}")
        times_here = tuple(map(sub, self._times(), self._looked))
        if "average" in state:
            self.objective.estimate_statistics(delivered(state))
        metrics = self._standing.latest = self._evaluate(delivered(state))
        done, times = self._standing.iterations, self.objective.comm.gather_objects(times_here)
        row = self._evaluation_row(metrics, report)
        self._history.append(row)
        if times is not None:
            by_rank = list(zip(*times, strict=True))
            self._tell(lambda listener: listener.evaluation(**row))
            self._tell(lambda listener: listener.rank_times(done, *by_rank))
        self._keep_best(metrics, state)
        self._batches.learn(metrics.train_loss)
        self._next_look, self._looked = self._batches.next_look(self.criteria.evaluate_every), self._times()
        self._seconds_evaluating += time.perf_counter() - started - (self._seconds_recording - told)

    def _tell(self, what: Callable[[Listener], object]) -> None:
        started = time.perf_counter()
        for listener in self._listeners:
            what(listener)
        self._seconds_recording += time.perf_counter() - started

    def _tell_iteration(self, report: StepReport) -> None:
        heard, started = self._attentive, time.perf_counter()
        if started >= self._next_for_all:
            heard, self._next_for_all = self._listeners, started + SECONDS_FOR_ALL
        if not heard:
            return
        work, totals, standing = self.objective.work, self._spent(), self._standing
        columns = vars(report) | {
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
        del columns["finite"], columns["stop"]
        for listener in heard:
            listener.iteration(**columns)
        self._seconds_recording += time.perf_counter() - started

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
            "gradient_equivalents": self.objective.work.gradient_equivalents,
            "bytes": self._spent().bytes,
            "accepted": standing.accepted,
            "rejected": standing.rejected,
        }

    def _times(self) -> tuple[float, float, float]:
        """Seconds of this rank in steps, waiting in communication, and for others as far as barriers tell."""
        spent, told = self._spent(), self.objective.comm.barriers
        return self._standing.seconds, spent.seconds_waited, spent.seconds_for_others if told else math.nan

    def _spent(self) -> LedgerTotals:
        """Communication of this rank since the first start of the run."""
        return self.objective.comm.ledger.since(self._ledger_before)

    def _keep_best(self, metrics: Metrics, state: State) -> None:
        standing = self._standing
        if standing.iterations == 0 or metrics.score() > standing.best.score():
            standing.best, standing.best_epoch = metrics, self._batches.epochs
            standing.best_iteration = standing.iterations
            self._best_parameters = delivered(state).clone()
            self._best_buffers = self.objective.model.copy_buffers()

    def _result(self, stop: StopReason, state: State) -> Result:
        diverged, standing = stop is StopReason.NOT_FINITE, self._standing
        final = self._best_parameters.clone() if diverged else delivered(state)
        if diverged:
            self.objective.model.restore_buffers(self._best_buffers)
        self.objective.model.bind(final)
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
            resumed_from=self._resumed_from,
            seconds_here=time.perf_counter() - self._entered,
            saved=self._keeper.saved if self._keeper else 0,
            not_saved=self._keeper.failed if self._keeper else 0,
            seconds_saving=self._keeper.seconds if self._keeper else 0.0,
            seconds_evaluating=self._seconds_evaluating,
            seconds_recording=self._seconds_recording,
        )
