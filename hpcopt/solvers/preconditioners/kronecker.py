"""P from Kronecker factors of the Gauss-Newton matrix, layer by layer (K-FAC).

For a layer with weights V (o, a) the block A (x) G of the curvature makes P V = (G + r/pi I)^-1 V (A + pi r I)^-1, with
r^2 the damping (Martens and Grosse 2015, arXiv 1503.05671, whose letters these are; for convolutions see
``hpcopt.objective.curvature.factored_layers``). Variables that belong to no such layer get 1 / (c + r^2) with the
diagonal c of the curvature. Each layer is inverted on one rank. Shapes: n variables, p packed numbers, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from hpcopt.linalg.kronecker import damped_inverses, multiply
from hpcopt.objective.curvature.fisher import KINDS
from hpcopt.objective.curvature.kronecker import KroneckerCurvature, KroneckerObjective, PendingFactors
from hpcopt.objective.curvature.triangles import pack, triangle_size, unpack
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.checks import check_choice, check_count, check_number
from hpcopt.solvers.solver import State

DAMPING_LEAST = 1e-6
"""r^2 is this at least, besides the weight decay."""

BOOST = 10.0
"""Factor of a layer's damping after its inverse failed; divided out again once it succeeds."""


@dataclass(frozen=True, kw_only=True)
class KroneckerFactors:
    """Kronecker factors from part of a batch, averaged over the run."""

    fisher: str = "true"
    """"true": the Gauss-Newton matrix, by targets drawn from the model. "empirical": the data's own targets."""
    factor_samples: int = 2000
    """Of the batch, for the factors; another part each time."""
    factor_every: int = 5
    """Iterations from one refresh to the next; each of the first so many iterations has one."""
    factor_memory: float = 0.9
    """Most weight of the past in the moving average of the factors; the k-th refresh has 1 - 1/k at most."""

    wants_pairs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        check_choice(self, "fisher", KINDS)
        check_count(self, "factor_samples")
        check_count(self, "factor_every")
        check_number(self, "factor_memory", 0.0, 1.0, open_high=True)

    def init(self, objective: Objective, parameters: Vector) -> State:
        """Factors of 0, P = I, the layout of the layers, and counters. *Collective*.

        Raises:
            UsageError: on all ranks, when the objective offers no factors.
        """
        curvature = curvature_of(objective)
        curvature.check(self.fisher)
        layers, others = curvature.layers, curvature.others
        places = [(x.weight.start, -1 if x.bias is None else x.bias.start, x.inputs, x.outputs) for x in layers]
        units = [torch.eye(order).flatten() for layer in layers for order in (layer.inputs, layer.outputs)]
        units.append(torch.ones(sum(each.stop - each.start for each in others)))
        return {
            "factors": parameters.new_zeros(curvature.size),
            "factor_inverses": torch.cat(units).to(parameters),
            "factor_boosts": torch.ones(len(layers), dtype=torch.float64),
            "factor_layers": torch.tensor(places, dtype=torch.int64).view(-1, 4),
            "factor_others": torch.tensor([(x.start, x.stop) for x in others], dtype=torch.int64).view(-1, 2),
            "factor_steps": 0,
            "factor_refreshes": 0,
            "factor_failures": 0,
        }

    def begin(self, objective: Objective, state: State, batch: Batch) -> PendingFactors | None:
        """Start the factors at w where it is their turn. *Collective*."""
        step = int(state["factor_steps"])
        state["factor_steps"] = step + 1
        if step >= self.factor_every and step % self.factor_every:
            return None
        number = step if step < self.factor_every else self.factor_every - 1 + step // self.factor_every
        samples = objective.subset(batch, self.factor_samples, number)
        w: Vector = state["parameters"]  # type: ignore[assignment]
        return curvature_of(objective).begin(w, samples, self.fisher, number)

    def end(self, objective: Objective, state: State, pending: PendingFactors | None, damping: float) -> None:
        """Average the factors with the past ones and invert. *Collective*.

        Where they are not finite, or an inverse fails, what was there before is kept, ``state["factor_failures"]``
        counts it, and the next inverse of the layer is damped more.
        """
        if pending is None:
            return
        new, factors = pending.wait(), state["factors"]
        assert isinstance(factors, torch.Tensor)
        if not objective.agree(float(new.isfinite().all()))[0]:
            state["factor_failures"] = int(state["factor_failures"]) + 1
            return
        state["factor_refreshes"] = int(state["factor_refreshes"]) + 1
        factors.lerp_(new, max(1 - self.factor_memory, 1 / int(state["factor_refreshes"])))
        self._invert(curvature_of(objective), state, max(damping, DAMPING_LEAST))

    def apply(self, state: State, vector: Vector) -> Vector:
        """P r, a new vector (n,): two products of matrices a layer."""
        result, inverses = torch.empty_like(vector), _Squares(state)
        for (weight, bias, a, o), first, second in inverses.layers():
            width = a - (bias >= 0)
            parts = [
                (each[weight : weight + o * width].view(o, width), each[bias : bias + o] if bias >= 0 else None)
                for each in (vector, result)
            ]
            multiply(first, second, *parts[0], parts[1])
        for start, stop, inverse in inverses.others():
            torch.mul(vector[start:stop], inverse, out=result[start:stop])
        return result

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        """Nothing."""

    def restart(self, objective: Objective, state: State) -> None:
        """Nothing: the average forgets by itself."""

    def _invert(self, curvature: KroneckerCurvature, state: State, damping: float) -> None:
        """Inverses of all layers, each computed on one rank. *Collective*, one gathering."""
        squares, layers = _Squares(state), curvature.layers
        boosts: torch.Tensor = state["factor_boosts"]  # type: ignore[assignment]
        others_damping, damping = curvature.other_decay + damping, damping + curvature.weight_decay
        sizes = [triangle_size(layer.inputs) + triangle_size(layer.outputs) for layer in layers]
        *factors, diagonal = state["factors"].split([*sizes, squares.rest])  # type: ignore[union-attr]

        def inverses(i: int) -> Vector:
            """Triangles of both inverses of layer ``i``, and 1; zeros and 0 where an inverse failed."""
            a, o = layers[i].inputs, layers[i].outputs
            first, second = factors[i].split([triangle_size(a), triangle_size(o)])
            found = None
            if bool(first.any()):  # else the layer was never called
                found = damped_inverses(unpack(first, a), unpack(second, o), damping * float(boosts[i]))
            parts = [torch.zeros_like(factors[i])] if found is None else list(map(pack, found))
            return torch.cat([*parts, factors[i].new_full((1,), found is not None)])

        costs = [float(layer.inputs**3 + layer.outputs**3) for layer in layers]
        results = curvature.divide(costs, [size + 1 for size in sizes], inverses)
        for i, ((_, _, a, o), first, second) in enumerate(squares.layers()):
            if float(results[i][-1]):
                new = results[i][:-1].split([triangle_size(a), triangle_size(o)])
                first.copy_(unpack(new[0], a))
                second.copy_(unpack(new[1], o))
                boosts[i] = max(1.0, float(boosts[i]) / BOOST)
            else:
                state["factor_failures"] = int(state["factor_failures"]) + 1
                boosts[i] *= BOOST
        squares.diagonal.copy_(1 / (diagonal + others_damping))


class _Squares:
    """The inverses in a state as matrices, with the layers they belong to; views of the state's tensors."""

    def __init__(self, state: State) -> None:
        self._layers = state["factor_layers"].tolist()  # type: ignore[union-attr]
        self._others = state["factor_others"].tolist()  # type: ignore[union-attr]
        orders = [order for *_, a, o in self._layers for order in (a, o)]
        self.rest = sum(stop - start for start, stop in self._others)
        parts = state["factor_inverses"].split([*(order * order for order in orders), self.rest])  # type: ignore[union-attr]
        self._squares = [part.view(order, order) for part, order in zip(parts, orders, strict=False)]
        self.diagonal = parts[-1]

    def layers(self) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """(weight, bias, a, o) of each layer with both inverses."""
        return list(zip(self._layers, self._squares[::2], self._squares[1::2], strict=True))

    def others(self) -> list[tuple[int, int, torch.Tensor]]:
        """Start and stop of each other tensor with its part of the diagonal."""
        parts = self.diagonal.split([stop - start for start, stop in self._others])
        return [(start, stop, part) for (start, stop), part in zip(self._others, parts, strict=True)]


def curvature_of(objective: Objective) -> KroneckerCurvature:
    """The curvature of an objective in Kronecker factors. *Collective* when first asked for.

    Raises:
        UsageError: on all ranks, when the ranks do not hold the layers of a model whole.
    """
    return cast(KroneckerObjective, objective).kronecker
