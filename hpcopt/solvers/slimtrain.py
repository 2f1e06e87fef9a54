"""slimTrain: the last linear layer solved for, its regularisation chosen by itself, all other variables by Adam.

    Z <- features(theta);   W <- W - (S + lambda W) (G + Lambda I)^-1;   theta <- theta - Adam's step at the new W

Newman, Chung, Chung and Ruthotto 2022 (SIAM J. Sci. Comput. 44(4), doi 10.1137/21M1452512); letters follow
``hpcopt.linalg.sampled_tikhonov``. G holds the features of the batch and of the r before it as they were then:
recomputed at the present theta they would not brake W, and training diverges at large rates. W has no learning rate.

W follows the last batches and is noisy, and so is theta. What is evaluated is a running mean, with W solved on all
samples at the end of an epoch, and the loss that is left tells how fast theta may move (``hpcopt.solvers.epoch_rate``).
Running statistics of a normalisation are then estimated anew: iterates leave others behind than their mean has.
With that W more memory gained nothing where it was tried (``benchmarks/results/slimtrain-cdr.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from hpcopt.errors import UsageError
from hpcopt.linalg.sampled_tikhonov import Bounds, Sampled, best, cross_validation, discrepancy
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.objective.separable.protocol import Features, Separable, SeparableObjective
from hpcopt.solvers.averaging import empty_average, take_into_average
from hpcopt.solvers.epoch_rate import EpochRate
from hpcopt.solvers.feature_window import KnownBatch, Plan, converted, kept_numbers, loses, make_known, plan
from hpcopt.solvers.registry import solver_class
from hpcopt.solvers.slimtrain_options import SlimTrainOptions
from hpcopt.solvers.solver import Solver, State, StepReport


class Solved(NamedTuple):
    """The outcome of the last layer's step, the same on all ranks.

    Attributes:
        weights: W (t, m).
        damping: Lambda.
        smallest, largest: squares of the window's singular values.
        square: |R|^2 before the step.
    """

    weights: torch.Tensor
    damping: float
    smallest: float
    largest: float
    square: float

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(np.isfinite(self.weights.numpy()).all()) and all(map(math.isfinite, self[1:]))


class GivenLastLayer:
    """The objective as the method of the other variables sees it: the last layer is what it was solved to be."""

    def __init__(self, objective: Objective, features: Features, weights: torch.Tensor) -> None:
        self._objective, self._features, self._weights = objective, features, weights

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """On the features that are there already. *Collective*."""
        return self._features.value_and_gradient(self._weights)

    def __getattr__(self, name: str) -> Any:
        """All else is the objective's."""
        return getattr(self._objective, name)


@dataclass(frozen=True, kw_only=True)
class SlimTrain(SlimTrainOptions):
    """Least squares for the last layer batch by batch, with memory; a first-order method for what comes before it."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        theta_solver.__wrapped__(self, self.theta_solver)  # it checks its own options; no cache could look up a list

    def init(self, objective: Objective) -> State:
        """The state of the other variables' method, the window of features, Lambda, and counts by form.

        Raises:
            UsageError: on all ranks, when the objective's last layer cannot be solved for.
        """
        separable = last_layer_of(objective)
        state = theta_solver(self, self.theta_solver).init(objective)
        if self.deliver == "refit":
            parameters = cast(Vector, state["parameters"])
            state |= empty_average(parameters) | self._epoch_rate.init(parameters)
        return state | {
            "window": torch.zeros(self.memory, kept_numbers(separable.blocks), dtype=torch.float64),
            "triangles": True,
            "smallest": 0.0,
            "largest": math.inf,
            "damping": float(self.lambda_start),
            "solved": 0,
            "by_gram": 0,
            "by_tsqr": 0,
            "by_gather": 0,
        }

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One step. *Collective*: a reduction for the last layer, a broadcast of it, a reduction of a gradient."""
        separable, w = last_layer_of(objective), cast(Vector, state["parameters"])
        weights = separable.weights(w)
        features = separable.features(w, batch, weights)
        known = self._known(separable, state, features)
        solved = self._solve(separable, state, known, weights, (features.count, batch.total))
        loss = 0.5 * solved.square + separable.decay(w)
        if not solved.finite:
            # The reduction that follows is where an objective learns what went wrong on another rank.
            features.value_and_gradient(weights)
            return state, StepReport(math.nan, accepted=False, finite=False, damping=float(state["damping"]))
        view = cast(Objective, GivenLastLayer(objective, features, solved.weights))
        factor = float(state.get("rate_factor", 1.0))
        state, report = theta_solver(self, self.theta_solver, factor).step(view, state, batch)
        report.loss = loss
        if report.accepted:
            separable.put(w, solved.weights)
            self._remember(state, known, solved)
            self._deliver(objective, state, batch)
        report.damping = float(state["damping"])
        return state, report

    def _known(self, separable: Separable, state: State, features: Features) -> KnownBatch:
        """The new batch on all ranks, of the same kind as the window."""
        chosen = self._plan(separable, state, features.count)
        if chosen.triangle != state["triangles"]:
            state["window"] = converted(cast(torch.Tensor, state["window"]), separable.blocks, chosen.triangle)
            state["triangles"] = chosen.triangle
        state[f"by_{chosen.form}"] = int(state[f"by_{chosen.form}"]) + 1
        return make_known(chosen, separable, features)

    def _plan(self, separable: Separable, state: State, rows: int) -> Plan:
        """How ``rows`` N are made known, by what is known of the batch before."""
        least = self.lambda_min if self.selection != "fixed" else float(state["damping"])
        lossy = loses(least, float(state["smallest"]), float(state["largest"]), separable.width)
        return plan(self.form, separable, rows, lossy)

    def _solve(
        self, separable: Separable, state: State, known: KnownBatch, weights: torch.Tensor, counts: tuple[int, int]
    ) -> Solved:
        """The step of the last layer, as rank 0 computes it. *Collective*, one broadcast.

        Args:
            separable: the model.
            state: before the step.
            known: the new batch.
            weights: W (t, m).
            counts: rows and samples of the new batch over all ranks.
        """
        before, free, settled = float(state["damping"]), self._free(separable), None
        # What is not finite is found afterwards, on all ranks alike.
        if self.selection == "gcv" and not (free or self.memory):
            settled = known.compiled_step(weights, self._bounds, before, counts[0])
        if settled is None:
            settled, given = torch.full((weights.numel() + 4,), math.nan, dtype=torch.float64), weights.numpy()
            if known.finite:
                numbers = settled.numpy()
                with np.errstate(all="ignore"):
                    sampled = known.sampled(cast(torch.Tensor, state["window"]), given, free)
                    trial = self._trial(sampled, before, *counts)
                    numbers[:-4] = sampled.moved(given, trial, before + trial).ravel()
                numbers[-4:] = before + trial, *sampled.extremes, known.square
        agreed = separable.settle(settled)
        return Solved(agreed[:-4].view(weights.shape), *agreed[-4:].tolist())

    def _trial(self, sampled: Sampled, before: float, rows: int, samples: int) -> float:
        """The lambda of this step, where their sum was ``before``."""
        if self.selection == "fixed":
            return self.lambda_start
        bounds = self._bounds
        trials = bounds.candidates(before)
        if self.selection == "gcv":
            return best(trials, cross_validation(sampled, trials, before, rows), bounds, before)
        # The residual is a mean over samples of a sum over their rows and outputs.
        expected = self.noise_factor * self.noise * sampled.outputs * rows / samples
        return best(trials, discrepancy(sampled, trials, before, expected), bounds, before)

    def _remember(self, state: State, known: KnownBatch, solved: Solved) -> None:
        """The batch joins the window in the place of the oldest."""
        if self.memory:
            cast(torch.Tensor, state["window"])[int(state["solved"]) % self.memory] = known.kept
        numbers = {"damping": solved.damping, "smallest": solved.smallest, "largest": solved.largest}
        state |= {**numbers, "solved": int(state["solved"]) + 1}

    def _deliver(self, objective: Objective, state: State, batch: Batch) -> None:
        """The point that is evaluated follows the iterates. *Collective* at the end of an epoch, if W is refitted."""
        if self.deliver == "iterate":
            return
        take_into_average(state, batch, self.average)
        point = cast(Vector, state["average"])
        if batch.indices is not None and batch.ends_epoch:
            separable = last_layer_of(objective)
            found, loss = self._refitted(separable, state, point)
            if math.isfinite(loss):
                separable.put(point, found)
            self._epoch_rate.update(state, loss)

    def _refitted(self, separable: Separable, state: State, point: Vector) -> tuple[torch.Tensor, float]:
        """W (t, m) of the ridge regression on all samples and its loss, NaN where not finite. *Collective*."""
        everything = separable.everything(point)
        chosen = self._plan(separable, state, everything.count)._replace(gather=False)
        known = make_known(chosen, separable, everything)
        nothing = np.zeros((separable.outputs, separable.width))
        settled = np.full(nothing.size + 1, math.nan)
        if known.finite:
            before = torch.empty(0, kept_numbers(separable.blocks), dtype=torch.float64)
            sampled = known.sampled(before, nothing, self._free(separable))
            bounds = Bounds(self.lambda_min, self.lambda_max, self.candidates, negative=False)
            trials = bounds.candidates(0.0)
            trial = best(trials, cross_validation(sampled, trials, 0.0, everything.count), bounds, 0.0)
            only = np.array([trial])
            settled[:-1] = sampled.moved(nothing, trial, trial).ravel()
            settled[-1:] = 0.5 * sampled.residuals(only, only)
        found, loss = separable.settle(torch.from_numpy(settled)).split([nothing.size, 1])
        return found.view(nothing.shape), float(loss) if bool(found.isfinite().all()) else math.nan

    def _free(self, separable: Separable) -> int:
        """Columns of W that Lambda does not hold."""
        return int(separable.bias and not self.regularize_bias)

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.lambda_min, self.lambda_max, self.candidates, self.negative)

    @property
    def _epoch_rate(self) -> EpochRate:
        return EpochRate(self.rate_growth, self.rate_tolerance)


@lru_cache(maxsize=8)
def theta_solver(options: SlimTrain, name: str, factor: float = 1.0) -> Solver:
    """The method of all other variables, its options those of the same name, its rate times ``factor``."""
    cls: Any = solver_class(name)
    shared = {field.name for field in fields(cls)} & {field.name for field in fields(options)}
    given = {key: value for key in shared if (value := getattr(options, key)) is not None}
    return cast(Solver, cls(**given | {"learning_rate": options.learning_rate * factor}))


def last_layer_of(objective: object) -> Separable:
    """What is linear in the objective's model. *Collective* when first asked for.

    Raises:
        UsageError: on all ranks, when nothing is that could be solved for.
    """
    if not hasattr(type(objective), "separable"):
        raise UsageError(
            "SlimTrain solves for the last layer of a model that every rank holds whole, which this objective does not "
            'have. Use parallel.layout = "data" and parallel.state = "replicated".',
            collective=True,
        )
    return cast(SeparableObjective, objective).separable
