"""The sweeps over long vectors that a step makes beside its gradient: many products, those of NLCG, and that of Adam.

Each reads and writes its vectors once: on the processor in pieces that stay in its cache. Shapes: n numbers; a sum
comes as parts, k tensors of no dimension for every piece, which ``totals`` of ``hpcopt.solvers.products`` adds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch

PIECE = 1 << 16
"""Numbers of a piece for each thread: five vectors of float32 take 1.3 MB of its cache."""

PIECE_ON_DEVICE = 1 << 22
"""Numbers of a piece on an accelerator, which would wait for shorter ones."""

Parts: TypeAlias = Sequence[Sequence[torch.Tensor]]


class Pair(NamedTuple):
    """How a diagonal h learns from a pair of vectors.

        h <- |h - per_bend (h s)^2 + per_change y^2 + shift|       with s = scale d

    Attributes:
        scale, per_bend, per_change, shift: as above.
    """

    scale: float
    per_bend: float
    per_change: float
    shift: float


class Moments(NamedTuple):
    """The constants of a step of Adam.

    Attributes:
        betas: decay of the first and second moment.
        corrections: what they are divided by, 1 - beta^t.
        epsilon: added to the root of the second moment.
        rate: the learning rate.
        shrink: what w is multiplied by before.
    """

    betas: tuple[float, float]
    corrections: tuple[float, float]
    epsilon: float
    rate: float
    shrink: float


class Sweeps(Protocol):
    """What a step needs; all vectors are (n,), of one precision and on one device."""

    def products(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Parts:
        """Parts of x^T y for every pair of vectors."""
        ...

    def measure(self, g: torch.Tensor, previous: torch.Tensor, d: torch.Tensor, z: torch.Tensor) -> Parts:
        """Parts of g^T g, g^T d, d^T y with y = g - previous, d^T d, g^T z and z^T y."""
        ...

    def precondition(
        self,
        g: torch.Tensor,
        previous: torch.Tensor,
        h: torch.Tensor,
        d: torch.Tensor,
        kept: torch.Tensor | None,
        pair: Pair | None,
        epsilon: float,
    ) -> Parts:
        """Let h learn, put g to ``previous`` and z = g / (h + epsilon) in the place of g, all in place.

        Where ``kept`` is there, the z of the last step, z takes its place and g stays.

        Returns:
            Parts of g^T z; of g^T (z - kept) and y^T (y / (h + epsilon)), zeros without ``kept``; and of d^T diag(h) d,
            d^T diag(h) z and z^T diag(h) z.
        """
        ...

    def move(
        self,
        z: torch.Tensor,
        d: torch.Tensor,
        w: torch.Tensor,
        mean: torch.Tensor | None,
        *,
        beta: float,
        undo: float,
        rate: float,
        leaves: float,
    ) -> None:
        """In place w -= undo d, d = beta d - z, w += rate d, and ``mean`` goes by ``leaves`` of the way to w."""
        ...

    def adam(self, g: torch.Tensor, first: torch.Tensor, second: torch.Tensor, w: torch.Tensor, by: Moments) -> None:
        """Both moments and w in place (``hpcopt.solvers.adam``); g is used up."""
        ...


class TorchSweeps:
    """``Sweeps`` on any device."""

    def products(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Parts:
        """A vector that is in several pairs is read once, a piece at a time."""
        vectors = list({id(vector): vector for pair in pairs for vector in pair}.values())
        order = {id(vector): number for number, vector in enumerate(vectors)}
        places = [(order[id(x)], order[id(y)]) for x, y in pairs]
        return [[torch.dot(cut[x], cut[y]) for x, y in places] for cut in pieces(*vectors)]

    def measure(self, g: torch.Tensor, previous: torch.Tensor, d: torch.Tensor, z: torch.Tensor) -> Parts:
        """Six products for one reading of four vectors."""
        parts = []
        for own, before, along, step in pieces(g, previous, d, z):
            y = own - before
            pairs = (own, own), (own, along), (along, y), (along, along), (own, step), (step, y)
            parts.append([torch.dot(*pair) for pair in pairs])
        return parts

    def precondition(
        self,
        g: torch.Tensor,
        previous: torch.Tensor,
        h: torch.Tensor,
        d: torch.Tensor,
        kept: torch.Tensor | None,
        pair: Pair | None,
        epsilon: float,
    ) -> Parts:
        """Four or five vectors read and three or four written, once."""
        parts, zero = [], g.new_zeros(())
        vectors = [g, previous, h, d] + ([] if kept is None else [kept])
        for own, before, metric, along, *old in pieces(*vectors):
            y = own - before
            if pair is not None:
                learn(metric, along, y, pair)
            before.copy_(own)
            whole, of_z = metric + epsilon, [zero, zero]
            if old:
                of_z = [-torch.dot(own, old[0]), torch.dot(y, y / whole)]
            z = torch.div(own, whole, out=old[0] if old else own)
            gz, bent = torch.dot(before, z), metric * z
            of_z[0] = of_z[0] + gz if old else zero
            parts.append([gz, *of_z, torch.dot(along, metric * along), torch.dot(along, bent), torch.dot(z, bent)])
        return parts

    def move(
        self,
        z: torch.Tensor,
        d: torch.Tensor,
        w: torch.Tensor,
        mean: torch.Tensor | None,
        *,
        beta: float,
        undo: float,
        rate: float,
        leaves: float,
    ) -> None:
        """Three or four vectors read and two or three written, once."""
        for each, along, point, *average in pieces(*[z, d, w] + ([] if mean is None else [mean])):
            if undo:
                point.add_(along, alpha=-undo)
            point.add_(along.mul_(beta).sub_(each), alpha=rate)
            for one in average:
                one.lerp_(point, leaves)

    def adam(self, g: torch.Tensor, first: torch.Tensor, second: torch.Tensor, w: torch.Tensor, by: Moments) -> None:
        """The gradient's memory becomes the denominator's, piece by piece."""
        (beta, beta_second), (bias, bias_second) = by.betas, by.corrections
        for own, mean, square, point in pieces(g, first, second, w):
            mean.lerp_(own, 1 - beta)
            square.mul_(beta_second).addcmul_(own, own, value=1 - beta_second)
            root = torch.sqrt(square, out=own).div_(math.sqrt(bias_second)).add_(by.epsilon)
            if by.shrink != 1:
                point.mul_(by.shrink)
            point.addcdiv_(mean, root, value=-by.rate / bias)


def learn(h: torch.Tensor, d: torch.Tensor, y: torch.Tensor, pair: Pair) -> None:
    """Update a piece of h in place."""
    bent = h * d
    h.addcmul_(bent, bent, value=-pair.scale * pair.scale * pair.per_bend).addcmul_(y, y, value=pair.per_change)
    h.add_(pair.shift).abs_()


def pieces(*vectors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The vectors, cut at the same places."""
    length = PIECE_ON_DEVICE if vectors[0].is_cuda else PIECE * torch.get_num_threads()
    return zip(*(vector.split(length) for vector in vectors), strict=True)
