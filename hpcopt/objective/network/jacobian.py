"""Whether a step of Newton costs less by factors of the Jacobian or by sweeps: measured on the network itself.

    explicit where  set-up_e + T product_e <= set-up_i + T product_i

T is the number of products in a step. The factors need K sweeps at first, and each of their products reads N K numbers
for every hidden neuron twice but has one message (Wang et al. 2018, arXiv:1802.00130, whose letters are used). Rates of
operations, bandwidth and messages of the machine are in the measured seconds of both on a few instances.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from hpcopt.objective.network.explicit import ExplicitLinearization
from hpcopt.objective.network.implicit import ImplicitLinearization
from hpcopt.objective.protocol import Batch

if TYPE_CHECKING:
    from hpcopt.objective.network.objective import NetworkObjective

KINDS: dict[str, type[ExplicitLinearization] | type[ImplicitLinearization]] = {
    "explicit": ExplicitLinearization,
    "implicit": ImplicitLinearization,
}
PRODUCTS = 20
"""T: with its default tolerance Newton makes about so many in a step (``hpcopt.solvers.newton``)."""
INSTANCES = 512
"""Most that are measured on; both kinds of cost grow with their number."""
REPEATS = 3
"""Linearisations of a kind, and products with each, that are timed; the fastest count."""


class Cost(NamedTuple):
    """Seconds of making a linearisation and of a product, on the slowest rank."""

    setup: float
    product: float

    def step(self, products: float) -> float:
        """Seconds of so many products and what goes before them."""
        return self.setup + products * self.product


def measure(objective: NetworkObjective, limit: int) -> dict[str, Cost]:
    """Costs of each kind of linearisation, the same on all ranks. *Collective*; not counted as work."""
    count, work = min(objective.samples, INSTANCES), replace(objective.work)
    w = objective.initial_vector()
    batch = Batch(torch.arange(count, device=w.device), count, count)
    setups: dict[str, list[float]] = {name: [] for name in KINDS}
    products: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(REPEATS):
        # In turns, so that whatever else the machine does meets both; the first of a kind also pays for memory.
        for name, kind in KINDS.items():
            start = _now(w)
            linear = kind(objective, w, batch, limit)
            setups[name].append(_now(w) - start)
            for _ in range(REPEATS):
                start = _now(w)
                linear.gauss_newton(w)
                products[name].append(_now(w) - start)
    objective.work = work
    fastest = [min(seconds[name]) for name in KINDS for seconds in (setups, products)]
    slowest = objective.comm.reduce_scalars(fastest, op="max", label="measurement")
    return {name: Cost(*slowest[2 * i : 2 * i + 2]) for i, name in enumerate(KINDS)}


def faster(costs: dict[str, Cost], products: float = PRODUCTS) -> str:
    """The kind with the cheaper step; "explicit" where there is no difference."""
    return min(costs, key=lambda name: (costs[name].step(products), name))


def _now(w: torch.Tensor) -> float:
    """The time once the device of w is done."""
    if w.is_cuda:
        torch.cuda.synchronize(w.device)
    return perf_counter()
