"""Work of an iteration of each method, and the seconds that it takes a rank at measured rates.

An evaluation of b samples takes a layer with b rows, u inputs and v outputs one matrix product of 2 b u v operations
forward and two backward (one in the first layer), and memory traffic of what it reads and writes: once forward, twice
backward. What a method does with vectors of n numbers is memory traffic too. Letters as in the methods' modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcopt.costs.layers import Layer
from hpcopt.costs.machine import Rates
from hpcopt.costs.methods import Case

ITEMSIZES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Evaluations:
    """Of one iteration, in passes over its batch; what is on a part of the batch counts by that part.

    Attributes:
        values: forward passes.
        gradients: forward and backward passes.
        products: with the Gauss-Newton matrix.
        calls: evaluations, each of which has every layer's fixed cost.
        sweeps: numbers read or written for each number of w, besides those of evaluations.
        squares: passes over the features of slimTrain for its normal equations.
        eigen: decompositions of their matrix.
        inverses: of all Kronecker factors.
        applied: products with all these inverses.
    """

    values: float = 0.0
    gradients: float = 0.0
    products: float = 0.0
    calls: float = 0.0
    sweeps: float = 0.0
    squares: float = 0.0
    eigen: float = 0.0
    inverses: float = 0.0
    applied: float = 0.0

    def __add__(self, other: Evaluations) -> Evaluations:
        """Both."""
        return Evaluations(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def times(self, factor: float) -> Evaluations:
        """So often."""
        return Evaluations(*(factor * each for each in vars(self).values()))


GRADIENT = Evaluations(gradients=1.0, calls=1.0, sweeps=3.0)
"""With its copy into the vector, and its square."""

VALUE = Evaluations(values=1.0, calls=0.5)


def _start(case: Case) -> Evaluations:
    return Evaluations() if case.whole else GRADIENT


def _first_order(solver: Any, case: Case) -> Evaluations:
    moved = {"SGD": 3.0 + 3.0 * bool(getattr(solver, "momentum", 0.0)), "LARS": 11.0}
    return GRADIENT + Evaluations(sweeps=moved.get(type(solver).__name__, 15.0))


def _pairs(memory: int) -> Evaluations:
    """Products with 2 (m + 1) rows for the gradient and for the new pair, and the combination of the rows."""
    return Evaluations(sweeps=6.0 * (memory + 1) + 12.0)


def _lbfgs(solver: Any, case: Case) -> Evaluations:
    return _start(case) + _pairs(solver.memory) + (GRADIENT + Evaluations(sweeps=5.0)).times(case.trials)


def _trial(model: str, memory: int) -> Evaluations:
    own = Evaluations(sweeps=14.0) if model in ("first_order", "adam") else _pairs(memory)
    return GRADIENT + own


def _trust_region(solver: Any, case: Case) -> Evaluations:
    return _start(case) + _trial(solver.model, solver.memory)


def _apts(solver: Any, case: Case) -> Evaluations:
    looked = VALUE if not case.whole and solver.radius_control == "next_batch" else Evaluations()
    local = _trial(solver.local_solver, solver.local_memory).times(solver.local_iterations * case.columns)
    after = GRADIENT + Evaluations(sweeps=3.0 * solver.global_memory + 20.0)
    passes = _trial(solver.global_solver, solver.global_memory).times(solver.global_iterations)
    return _start(case) + looked + local + after + passes


def part_of(solver: Any, batch: int) -> float:
    """The part of a batch on which curvature is taken."""
    size = max(solver.subset_least, round(solver.subset * batch))
    return 1.0 if size >= batch else 1 / math.ceil(batch / size)


def _curvatures(count: int, part: float, sweeps: int) -> Evaluations:
    """The linearisation, and half a product for each direction."""
    return Evaluations(values=part * (1 + sweeps), products=part * count / 2, calls=2.0, sweeps=2.0 * count)


def _factors(solver: Any, case: Case) -> Evaluations:
    """A refresh with its inverses in some iterations, and z = P g in all."""
    if case.factors is None:
        return Evaluations()
    part = min(1.0, getattr(solver, "factor_samples", 2000) / case.batch)
    refresh = Evaluations(gradients=case.factors.refresh * part, calls=2.0, inverses=1.0)
    return refresh.times(1 / getattr(solver, "factor_every", 5)) + Evaluations(applied=1.0, sweeps=8.0)


def _nlcg(solver: Any, case: Case) -> Evaluations:
    prepared = _factors(solver, case) if solver.preconditioner == "kronecker" else Evaluations(sweeps=10.0)
    if solver.step_rule == "control":
        return prepared + GRADIENT + Evaluations(sweeps=16.0)
    if solver.step_rule != "plane":
        return _start(case) + prepared + VALUE + GRADIENT.times(case.trials) + Evaluations(sweeps=20.0)
    looked = VALUE if not case.whole and solver.damping_control == "next_batch" else Evaluations()
    pairs = case.whole or solver.preconditioner == "diagonal_bfgs"
    tried = (GRADIENT if pairs else VALUE) + VALUE.times(case.trials - 1)
    plane = _curvatures(2, part_of(solver, case.batch), case.factor_sweeps) + Evaluations(sweeps=20.0)
    return _start(case) + prepared + looked + plane + tried


def _newton(solver: Any, case: Case) -> Evaluations:
    part = part_of(solver, case.batch)
    factors = (
        _factors(solver, case) if solver.direction == "full" and solver.preconditioner != "none" else Evaluations()
    )
    iteration = Evaluations(products=part, calls=2.0, sweeps=18.0)
    # What is kept for products takes half of one.
    made = Evaluations() if case.factor_sweeps else Evaluations(products=part / 2)
    found = _start(case) + factors + made + iteration.times(case.trials)
    plane = _curvatures(2 if solver.combine else 1, part, case.factor_sweeps)
    return found + plane + (GRADIENT if case.whole else VALUE)


def _slimtrain(solver: Any, case: Case) -> Evaluations:
    inner = {"adam": 15.0, "lars": 11.0}.get(solver.theta_solver, 6.0)
    refit = (
        Evaluations()
        if case.whole or solver.deliver != "refit"
        else Evaluations(values=1.0, squares=1.0, eigen=1 / case.per_epoch)
    )
    # The refit is on the whole set, once in as many iterations as that has batches.
    return GRADIENT + Evaluations(squares=1.0, eigen=1.0, sweeps=inner) + refit


METHODS: dict[str, Callable[[Any, Case], Evaluations]] = {
    "adam": _first_order,
    "apts": _apts,
    "lars": _first_order,
    "lbfgs": _lbfgs,
    "newton": _newton,
    "nlcg": _nlcg,
    "sgd": _first_order,
    "slimtrain": _slimtrain,
    "trust_region": _trust_region,
}
"""Name in the job file -> the evaluations of an iteration."""


def evaluations_of(name: str, solver: Any, case: Case) -> Evaluations:
    """The evaluations of an iteration of the method ``name``."""
    return METHODS[name](solver, case)


@dataclass(frozen=True)
class Worker:
    """What one rank computes.

    Attributes:
        layers: of the model, or of the rank's blocks of it.
        samples: of a batch on this rank.
        numbers: of the method's vectors on this rank.
        precision: "float32" or "float64".
        product_cost: of a Gauss-Newton product, in gradients.
        ranks: that share the inverses of Kronecker factors.
        fetched: numbers of a sample that are copied for every pass over a mini-batch.
        outputs: of a sample.
        kept: bytes of the factors of a Jacobian, which a product reads twice.
    """

    layers: Sequence[Layer]
    samples: float
    numbers: float
    precision: str
    product_cost: float = 4 / 3
    ranks: int = 1
    fetched: int = 0
    outputs: int = 0
    kept: float = 0.0

    def seconds(self, work: Evaluations, case: Case, rates: Rates) -> float:
        """Of the evaluations of an iteration."""
        forward, backward = self._pass(rates, backward=False), self._pass(rates, backward=True)
        gradient, itemsize = forward + backward, ITEMSIZES[self.precision]
        passes = work.values * forward + (work.gradients + work.products * self.product_cost) * gradient
        passes += (work.gradients + work.values / 2) * self.outputs * self.samples * rates.loss
        passes += work.products * 2 * rates.memory(self.kept) if self.kept else 0.0
        if not case.whole:
            # A set of twice as many samples, of which every other one is taken.
            passes += (work.values + work.gradients) * rates.copies(2.0 * self.fetched * self.samples * itemsize)
        fixed = work.calls * len(self.layers) * rates.module
        vectors = rates.memory(3 * self.numbers * itemsize) * work.sweeps / 3
        solved = self._layer_solves(work, case, rates)
        return rates.slower * (passes + fixed + vectors + solved)

    def _pass(self, rates: Rates, *, backward: bool) -> float:
        """Seconds of all layers' products and memory traffic, forward or backward."""
        total, first = 0.0, True
        for layer in self.layers:
            products = 1 if not backward or first else 2
            if layer.rows:
                first = False
                total += products * self._product(layer, rates)
            traffic = (layer.read + layer.written) * self.samples * ITEMSIZES[self.precision]
            total += 0.0 if layer.rows else (2 if backward else 1) * rates.memory(traffic)
        return total

    def _product(self, layer: Layer, rates: Rates) -> float:
        """A matrix product takes what its operations or its memory traffic takes, whichever is longer."""
        rows, itemsize = layer.rows * self.samples, ITEMSIZES[self.precision]
        count = rows * (layer.inputs + layer.outputs) + layer.inputs * layer.outputs
        by_operations = rates.products[self.precision](2.0 * rows * layer.inputs * layer.outputs)
        return max(by_operations, rates.memory(count * itemsize))

    def _layer_solves(self, work: Evaluations, case: Case, rates: Rates) -> float:
        """What slimTrain does with its last layer, and Kronecker factors with every layer."""
        total = 0.0
        if case.design is not None:
            total += work.squares * rates.products["float64"](case.design.operations(self.samples))
            total += work.eigen * sum(rates.solves["eigen"](float(width**3)) for width in case.design.widths)
        if case.factors is not None:
            products, inverse = rates.products[self.precision], rates.solves["inverse"]
            each = [inverse(float(a**3)) + inverse(float(o**3)) for a, o in case.factors.orders]
            # Every layer is one rank's.
            total += work.inverses * max(max(each), sum(each) / self.ranks)
            total += work.applied * sum(products(2.0 * a * o * (a + o)) for a, o in case.factors.orders)
        return total
