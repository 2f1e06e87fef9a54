"""Messages of an iteration of each method in closed form, from those of the objective's functions.

They are of an iteration in the middle of a run: the memory of pairs has something in it, there is a previous direction,
the step is accepted, and what recurs every few iterations counts with its share. Letters as in the methods' modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from hpcopt.costs.messages import Message, Messages, Replicated, Spread, scaled
from hpcopt.costs.network import Grid
from hpcopt.errors import UsageError
from hpcopt.linalg.tsqr import packed_size
from hpcopt.solvers.conjugate.controlled import PAIR_PERIOD
from hpcopt.solvers.preconditioners import gauss_newton_diagonal


class Factors(NamedTuple):
    """Kronecker factors of a model.

    Attributes:
        numbers: of the factors, with their counts.
        inverses: numbers of the inverses, each with whether it succeeded.
        orders: (a, o) of each layer.
        refresh: operations of a refresh over those of a gradient, on the same samples.
    """

    numbers: int
    inverses: int
    orders: tuple[tuple[int, int], ...]
    refresh: float


class Design(NamedTuple):
    """The last layer that slimTrain solves for.

    Attributes:
        widths: columns of each block.
        outputs: t.
        weights: numbers of W.
        positions: rows of a sample.
        operations: of the normal equations of so many samples.
    """

    widths: tuple[int, ...]
    outputs: int
    weights: int
    positions: int
    operations: Callable[[float], float]


@dataclass(frozen=True)
class Case:
    """What the formulas need besides the method's options.

    Attributes:
        whole: the batch is the training set, and the model draws nothing.
        batch: samples of a batch over all ranks.
        per_epoch: iterations of an epoch.
        trials: points that a line search tries; products of conjugate gradients.
        matrices: parameter tensors with two dimensions or more.
        factors: Kronecker's; None where there are none.
        design: of slimTrain.
        columns: ranks that share their samples while each varies variables of its own.
        factor_sweeps: sweeps that make the factors of a Jacobian, where they are kept.
    """

    whole: bool
    batch: int
    per_epoch: int = 1
    trials: float = 1.0
    matrices: int = 0
    factors: Factors | None = None
    design: Design | None = None
    columns: int = 1
    factor_sweeps: int = 0


def start(spread: Spread, case: Case) -> Messages:
    """Loss and gradient at the start of a step: known on a whole set, where the last trial had them."""
    return [] if case.whole else [*spread.gradient(), *spread.inner(1)]


def first_order(solver: Any, spread: Spread, case: Case) -> Messages:
    """SGD and Adam: one gradient and its square; LARS also the norms of every layer and of its gradient."""
    layers = spread.agree(2 * case.matrices) if hasattr(solver, "trust") and case.matrices else []
    return [*spread.gradient(), *spread.inner(1), *layers]


def lbfgs(solver: Any, spread: Spread, case: Case) -> Messages:
    """Products with 2 (m + 1) rows, the coefficients, slope and length, the trials, and those of the new pair."""
    rows = 2 * (solver.memory + 1)
    direction = [*spread.inner(rows), *spread.agree(rows + 1), *spread.dot(), *spread.dot(), *spread.agree(2)]
    trial = [*spread.gradient(), *spread.inner(2)]
    return [*start(spread, case), *direction, *scaled(trial, case.trials), *spread.inner(2 * rows)]


def trust_region(solver: Any, spread: Spread, case: Case) -> Messages:
    """A trial."""
    return [*start(spread, case), *trial(solver.model, solver.memory, spread, spread.gradient())]


def trial(model: str, memory: int, spread: Spread, gradient: Messages) -> Messages:
    """A trial of a trust-region method: its step, the gradient where it ends, and the new pair."""
    measured = [*spread.dot(), *spread.dot(), *spread.agree(2)]
    if model == "adam":
        return [*measured, *gradient, *spread.inner(1)]
    rows = 2 * (0 if model == "first_order" else memory) + 2
    products = [] if model == "first_order" else spread.inner(rows)
    return [
        *(*products, *spread.agree(rows + 2), *measured, *gradient, *spread.inner(1)),
        *pair(model, memory, spread),
    ]


def pair(model: str, memory: int, spread: Spread) -> Messages:
    """The products of a new pair with all rows, and whether it is kept."""
    return [] if model in ("first_order", "adam") else [*spread.inner(4 * (memory + 1)), *spread.agree(1)]


def apts(solver: Any, spread: Spread, case: Case) -> Messages:
    """2 + mu reductions of n numbers on a whole set, 3 + mu on a mini-batch, and scalars."""
    blocks = _replicated(solver, spread)
    found: Messages = []
    if not case.whole:
        found += [*blocks.own_gradients(), *blocks.inner(1)]
        found += blocks.value() if solver.radius_control == "next_batch" else []
    after = blocks.own_gradients() if case.whole else blocks.gradient()
    found += [*blocks.combine(1, 2), *blocks.inner(1), *after, *blocks.inner(1)]
    found += pair(solver.global_solver, solver.global_memory, blocks)
    found += scaled(trial(solver.global_solver, solver.global_memory, blocks, after), solver.global_iterations)
    return [*found, *blocks.dot(), *blocks.dot(), *blocks.agree(2)]


def nlcg(solver: Any, spread: Spread, case: Case) -> Messages:
    """As the step rule has it."""
    rule = {"plane": _plane, "control": _controlled}.get(solver.step_rule, _searched)
    return [*_prepared(solver.preconditioner, solver, spread, case), *rule(solver, spread, case)]


def _plane(solver: Any, spread: Spread, case: Case) -> Messages:
    pairs = solver.preconditioner == "diagonal_bfgs"
    found = start(spread, case)
    if not case.whole and solver.damping_control == "next_batch":
        found += spread.value()
    if max(solver.subset_least, round(solver.subset * case.batch)) < case.batch:
        found += spread.subset()
    found += [*spread.inner(6), *spread.linearize(), *spread.curvatures(2)]
    tried = [*spread.gradient(), *spread.inner(1)] if case.whole or pairs else spread.value()
    # Trials after the first one are values.
    again = scaled([*spread.agree(4), *spread.value()], case.trials - 1)
    return [*found, *spread.agree(4), *tried, *again, *(spread.inner(7) if pairs else [])]


def _searched(solver: Any, spread: Spread, case: Case) -> Messages:
    """A pack, the value at the guess, and a gradient and a pack for every trial."""
    pack = spread.inner(8 if solver.beta == "hz" else 7)
    tried = scaled([*spread.gradient(), *spread.inner(2)], case.trials)
    observed = spread.inner(7) if solver.preconditioner == "diagonal_bfgs" else []
    return [*start(spread, case), *pack, *spread.value(), *tried, *observed]


def _controlled(solver: Any, spread: Spread, case: Case) -> Messages:
    """One gradient; the released form two packs, others one."""
    hz, released = solver.beta == "hz", solver.preconditioner == "released_diagonal_bfgs"
    packs = [*spread.inner(5), *spread.inner(3)] if released else spread.inner(6 + hz)
    layers = spread.agree(2 * case.matrices) if solver.layer_trust and case.matrices else []
    found = [*spread.gradient(), *layers, *packs]
    if solver.preconditioner == "diagonal_bfgs":
        found += scaled([*spread.gradient(), *spread.inner(7)], 1 / PAIR_PERIOD)
    return found


def _prepared(name: str, solver: Any, spread: Spread, case: Case) -> Messages:
    """What a preconditioner needs before it is used, in the mean of its period."""
    if name == "gauss_newton_diagonal":
        chosen = spread.subset() if case.batch > gauss_newton_diagonal.SAMPLES else []
        probe = [*chosen, *spread.linearize(), *spread.product(), *spread.inner(3)]
        return scaled(probe, 1 / gauss_newton_diagonal.PERIOD)
    if name != "kronecker":
        return []
    assert case.factors is not None
    refresh = [*spread.subset(), *_replicated(solver, spread).factors(*case.factors[:2])]
    return scaled(refresh, 1 / getattr(solver, "factor_every", 5))


def newton(solver: Any, spread: Spread, case: Case) -> Messages:
    """A product for each iteration of conjugate gradients, the combination with the previous direction, a trial."""
    found = [*start(spread, case), *spread.subset(), *spread.linearize()]
    preconditioned = has_factors(solver, spread, case)
    if preconditioned:
        found += _prepared("kronecker", solver, spread, case)
    if solver.direction == "block":
        found += _grid(solver, spread).block_end()
    else:
        packs = [*spread.inner(2), *spread.inner(1)] if preconditioned else spread.inner(9)
        found += scaled([*spread.product(), *packs], case.trials)
    count = 2 if solver.combine else 1
    found += [*spread.inner(count), *spread.curvatures(count), *spread.agree(count), *spread.inner(1)]
    return [*found, *([*spread.gradient(), *spread.inner(1)] if case.whole else spread.value())]


def has_factors(solver: Any, spread: Spread, case: Case) -> bool:
    """Whether Newton's P is built from Kronecker factors."""
    auto = solver.preconditioner == "auto" and solver.direction == "full" and isinstance(spread, Replicated)
    return case.factors is not None and (auto or solver.preconditioner == "kronecker")


def slimtrain(solver: Any, spread: Spread, case: Case) -> Messages:
    """What makes a batch's features known, the last layer from rank 0, a gradient; a refit at the end of an epoch."""
    assert case.design is not None
    design, replicated = case.design, _replicated(solver, spread)
    packed = sum(packed_size(width, design.outputs) for width in design.widths)
    found = [*replicated.gradient(), *replicated.inner(1)]
    if solver.theta_solver == "lars" and case.matrices:
        found += replicated.agree(2 * case.matrices)
    if spread.ranks == 1:
        return found
    summed = [replicated.reduced("last layer", packed)]
    rows = case.batch * design.positions
    gathers = solver.form == "gather" or (
        solver.form == "auto" and rows * (max(design.widths) + design.outputs) < packed
    )
    if gathers:
        numbers = rows * sum(width + design.outputs for width in design.widths)
        counts = replicated.reduced("last layer", len(design.widths) * spread.ranks)
        found += [counts, Message("allgather", "last layer", 8 * numbers, spread.ranks)]
    else:
        found += summed
    found.append(Message("broadcast", "last layer", 8 * (design.weights + 4), spread.ranks))
    if solver.deliver == "refit" and not case.whole:
        told = Message("broadcast", "last layer", 8 * (design.weights + 1), spread.ranks)
        found += scaled([*summed, told], 1 / case.per_epoch)
    return found


METHODS: dict[str, Callable[[Any, Spread, Case], Messages]] = {
    "adam": first_order,
    "apts": apts,
    "lars": first_order,
    "lbfgs": lbfgs,
    "newton": newton,
    "nlcg": nlcg,
    "sgd": first_order,
    "slimtrain": slimtrain,
    "trust_region": trust_region,
}
"""Name in the job file -> the messages of an iteration."""


def messages_of(name: str, solver: Any, spread: Spread, case: Case) -> Messages:
    """The messages of an iteration of the method ``name`` with the options of ``solver``."""
    return METHODS[name](solver, spread, case)


def _replicated(solver: Any, spread: Spread) -> Replicated:
    """Raises UsageError where ranks do not hold layers whole."""
    if not isinstance(spread, Replicated):
        raise UsageError(
            f"{type(solver).__name__} needs variables that every rank holds whole. Use another layout, state or method."
        )
    return spread


def _grid(solver: Any, spread: Spread) -> Grid:
    """Raises UsageError where the network is not cut over a grid."""
    if not isinstance(spread, Grid):
        raise UsageError(f'direction = "{solver.direction}" needs a network that is cut over the ranks.')
    return spread
