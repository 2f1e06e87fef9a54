"""Products with the Jacobian of the outputs and with the Gauss-Newton matrix, by forward and backward mode.

Shapes: n parameters, b samples of this rank in the batch, B of all ranks, C outputs, k directions; J is (b*C, n) on a
rank. The Gauss-Newton matrix is (1/B) sum_i J_i^T H_i J_i + weight_decay I (Schraudolph 2002,
doi:10.1162/08997660260028683).

For products the forward pass is not repeated: its graph is kept, and so is that of u -> J^T u, whose derivative gives
J v (Townsend 2017, "A new trick for calculating Jacobian vector products"). On 784-512-256-10 with 1,024 samples and
one thread a product takes 0.45 of the time it takes by forward mode and a repeated forward pass. Graphs are made for
the first product; those that do not fit in memory are not kept, and their pieces of the batch evaluated anew in every
product. Where only curvatures along a few directions are wanted, one forward pass carries all tangents and no graph.

Work, in gradients, of which the forward pass is a third (a layer with w weights takes 2 w operations a sample forward
and 4 w backward): J v and J^T u 2/3 each, which are the halves of a product; making the graphs one value and half a
product; curvatures one value, and half a product a direction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

import torch
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.shard import Shard, pull

if TYPE_CHECKING:
    from hpcopt.objective.data_parallel import DataParallelObjective

GRAPH_BYTES = 2 * 2**30
"""Most memory of the graphs that one linearisation keeps, as estimated from two samples."""

FORWARD_MODES = ("stacked", "each", "")
"""How curvatures are found: all directions in one forward pass, one pass for each, or by graphs. A model that cannot be
differentiated in the first way is in the second, and so on."""

Pushed: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""The outputs (b, C) of a piece of the batch, and J v for each of k directions, (k, b, C)."""

Outputs = Callable[[Vector], torch.Tensor]
"""The outputs (b, C) on one piece of the batch as a function of w (n,)."""

Still = Callable[[], AbstractContextManager[None]]
"""Within it the masks and statistics of the piece hold."""


class Piece(Protocol):
    """The model linearised on one piece of the batch."""

    def push(self, v: Vector) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs and J v, both (b, C), for v (n,)."""
        ...

    def pull(self, u: torch.Tensor) -> Vector:
        """J^T u, a new vector (n,), for u (b, C)."""
        ...


class KeptPiece:
    """A piece whose graphs are kept: two passes a Gauss-Newton product, neither of them through the model itself."""

    def __init__(self, outputs: torch.Tensor, w: Vector) -> None:
        self._outputs, self._w = outputs, w
        self._u = torch.zeros_like(outputs, requires_grad=True)
        with torch.enable_grad():
            (self._pulled,) = torch.autograd.grad(outputs, w, self._u, create_graph=True)

    def push(self, v: Vector) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``Piece.push``."""
        (product,) = pull([self._pulled], [v], [self._u], keep_graph=True)
        return self._outputs.detach(), torch.zeros_like(self._outputs) if product is None else product

    def pull(self, u: torch.Tensor) -> Vector:
        """As ``Piece.pull``."""
        (product,) = pull([self._outputs], [u], [self._w], keep_graph=True)
        return torch.zeros_like(self._w) if product is None else product


class RepeatedPiece:
    """A piece without graphs: every product goes through the model, forward mode too."""

    def __init__(self, outputs: Outputs, w: Vector, still: Still) -> None:
        self._function, self._w, self._still = outputs, w, still

    def push(self, v: Vector) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``Piece.push``."""
        with self._still():  # around the transform, in which buffers cannot be put back
            return self._along(v)

    def push_stacked(self, directions: torch.Tensor) -> Pushed:
        """The same for all directions (k, n) in one forward pass."""
        with self._still(), warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop", UserWarning)
            outputs, tangents = vmap(self._along, randomness="same")(directions)
        return outputs[0], tangents

    def pull(self, u: torch.Tensor) -> Vector:
        """As ``Piece.pull``."""
        with torch.enable_grad(), self._still():
            outputs = self._function(self._w)
        (product,) = torch.autograd.grad(outputs, self._w, u)
        return product

    def _along(self, v: Vector) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, product = jvp(self._function, (self._w.detach(),), (v,))[:2]
        return outputs, product


class ImplicitLinearization:
    """J, J^T and Gauss-Newton products of any torch model at one point, on one batch. J is never formed.

    Args:
        objective: the model, the loss and the samples.
        w: the point (n,), which is copied.
        batch: the samples.
        graph_bytes: most memory of the graphs that are kept.
    """

    def __init__(
        self, objective: DataParallelObjective, w: Vector, batch: Batch, graph_bytes: int = GRAPH_BYTES
    ) -> None:
        self._objective, self._batch, self._graph_bytes = objective, batch, graph_bytes
        self._w = w.detach().clone().requires_grad_()
        self._decay = objective.decay
        self._model = _Model(objective.shard, batch)
        self._made: list[tuple[Piece, torch.Tensor]] | None = None

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v for this rank's samples, shape (b, C)."""
        whole = self._whole(v)
        tangents = [piece.push(whole)[1] for piece, _ in self._pieces]
        return torch.cat(tangents) if tangents else self._w.new_zeros(0, self._objective.outputs)

    def vjp(self, u: torch.Tensor) -> Vector:
        """J^T u summed over the samples of all ranks, for u of shape (b, C). *Collective*."""
        parts = u.split([len(targets) for _, targets in self._pieces]) if self._pieces else []
        return self._reduced(self._sum(piece.pull(part) for (piece, _), part in zip(self._pieces, parts, strict=True)))

    def gauss_newton(self, v: Vector) -> Vector:
        """(1/B) J^T H J v + weight_decay v, a new vector. *Collective*, one reduction."""
        self._objective.count_products(self._batch)
        product = self._reduced(self._local_product(self._whole(v)).div_(max(self._batch.total, 1)))
        return self._decay.add_gradient(product, v)

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T for directions D (k, n): (k, k), float64, on the CPU. *Collective*, one reduction of scalars.

        Where no product was asked for before, by forward mode, without graphs.
        """
        objective, count = self._objective, len(directions)
        if self._made is None:
            objective.count_values(self._batch)
        objective.count_products(self._batch, count / 2)
        total = self._local_curvatures(directions).div_(max(self._batch.total, 1))
        if objective.weight_decay and objective.comm.rank == 0:
            total += objective.decay.curvatures(directions)
        reduced = objective.comm.reduce_scalars(total.flatten().tolist(), label="curvatures")
        return torch.tensor(reduced, dtype=torch.float64).view(count, count)

    @property
    def block(self) -> NoReturn:
        """Not offered: every rank holds all variables."""
        raise UsageError(
            'direction = "block" needs variables that are cut over the ranks, each of which solves for its own, but '
            'here every rank holds all of them. Use direction = "full", or cut a fully connected network over the '
            'ranks: parallel.layout = "variables" in a job, NetworkObjective in Python.',
            collective=True,
        )

    def _whole(self, v: Vector) -> Vector:
        """All numbers of a vector of which this rank gave what it holds: here all of them."""
        return v

    def _reduced(self, vector: Vector) -> Vector:
        """What this rank holds of the sum of a vector over the ranks: here all of it, in place. *Collective*."""
        return self._objective.reduce(vector)

    def _local_product(self, v: Vector) -> Vector:
        """J^T H J v over this rank's samples."""
        return self._sum(piece.pull(self._bend(*piece.push(v), targets)) for piece, targets in self._pieces)

    def _local_curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D J^T H J D^T over this rank's samples, float64 on the CPU."""
        if self._made is not None:
            return self._bilinear(directions, self._by_graphs(directions))
        objective = self._objective
        while objective.forward_mode:
            try:
                return self._bilinear(directions, self._by_forward_mode(directions, objective.forward_mode))
            except (RuntimeError, UserWarning):
                objective.forward_mode = FORWARD_MODES[FORWARD_MODES.index(objective.forward_mode) + 1]
        return self._bilinear(directions, self._by_graphs(directions))

    def _bilinear(self, directions: torch.Tensor, pushed: Iterable[tuple[Pushed, torch.Tensor]]) -> torch.Tensor:
        """The sum of T H T^T over pieces of the batch with tangents T and targets."""
        total = torch.zeros(len(directions), len(directions), dtype=torch.float64)
        for (outputs, tangents), targets in pushed:
            bent = torch.stack([self._bend(outputs, each, targets) for each in tangents])
            left, right = (each.flatten(1).to(torch.float64) for each in (tangents, bent))
            total += (left @ right.T).cpu()
        return total

    def _by_graphs(self, directions: torch.Tensor) -> Iterator[tuple[Pushed, torch.Tensor]]:
        """What is pushed through every piece, with its targets, from what is kept for products."""
        return ((_push_each(piece, directions), targets) for piece, targets in self._pieces)

    def _by_forward_mode(self, directions: torch.Tensor, mode: str) -> Iterator[tuple[Pushed, torch.Tensor]]:
        """The same from one forward pass a piece, or one for every direction where the model allows no other."""
        for number, (inputs, targets) in enumerate(self._objective.shard.chunks(self._batch)):
            piece = self._repeated(number, inputs)
            yield piece.push_stacked(directions) if mode == "stacked" else _push_each(piece, directions), targets

    def _bend(self, outputs: torch.Tensor, tangents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """H t for tangents t (b, C)."""
        return self._objective.shard.loss.hessian_product(outputs, targets, tangents)

    def _sum(self, parts: Iterator[Vector]) -> Vector:
        """The sum of new vectors (n,), in place of the first."""
        total: Vector | None = None
        for part in parts:
            total = part if total is None else total.add_(part)
        return torch.zeros_like(self._w) if total is None else total

    @property
    def _pieces(self) -> list[tuple[Piece, torch.Tensor]]:
        """The model linearised on each piece of the batch, with its targets; made when first asked for."""
        if self._made is None:
            self._objective.count_values(self._batch)
            self._objective.count_products(self._batch, 0.5)
            made, left = list[tuple[Piece, torch.Tensor]](), self._graph_bytes
            for number, (inputs, targets) in enumerate(self._objective.shard.chunks(self._batch)):
                left -= int(self._bytes_a_sample(inputs) * len(inputs))
                made.append((self._kept(number, inputs) if left >= 0 else self._repeated(number, inputs), targets))
            self._made = made
        return self._made

    def _kept(self, number: int, inputs: torch.Tensor) -> KeptPiece:
        with torch.enable_grad(), self._model.still(number):
            return KeptPiece(self._model.outputs(self._w, inputs), self._w)

    def _repeated(self, number: int, inputs: torch.Tensor) -> RepeatedPiece:
        return RepeatedPiece(partial(self._model.outputs, inputs=inputs), self._w, partial(self._model.still, number))

    def _bytes_a_sample(self, inputs: torch.Tensor) -> float:
        """Memory of both graphs a sample, estimated once from two of its shape."""
        few, known = inputs[:2], self._objective.sample_bytes
        if few.shape not in known:
            # A copy, of which the graph holds no more than these samples.
            known[few.shape] = max(2.0 * self._saved_bytes(few.clone()) / len(few), 1.0)
        return known[few.shape]

    def _saved_bytes(self, inputs: torch.Tensor) -> int:
        """What the forward pass on ``inputs`` saves besides w, and its outputs."""
        saved: dict[int, int] = {}
        known = {self._w.untyped_storage().data_ptr()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            """Count its memory once, and keep it as it is."""
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        keep_all = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.enable_grad(), self._model.still(0), keep_all:
            outputs = self._model.outputs(self._w, inputs)
        return sum(saved.values()) + outputs.nbytes


def _push_each(piece: Piece, directions: torch.Tensor) -> Pushed:
    """The outputs of a piece, and J v for each of the directions (k, n), one after the other."""
    pushed = [piece.push(direction) for direction in directions]
    return pushed[0][0], torch.stack([tangents for _, tangents in pushed])


class _Model:
    """The module as a function of its parameters, held still for one batch.

    Pieces know this and not the linearisation, whose graphs therefore go with the last reference to it.
    """

    def __init__(self, shard: Shard, batch: Batch) -> None:
        self._shard, self._key = shard, batch.key

    def outputs(self, w: Vector, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs (b, C) on ``inputs`` at w (n,)."""
        return self._shard.function(w, inputs)

    @contextmanager
    def still(self, number: int) -> Iterator[None]:
        """The masks and statistics of a piece; attention in the one form that can be differentiated twice."""
        shard = self._shard
        if not shard.module.training:
            shard.module.train()
        still = shard.stochastic.frozen(self._key, number, shard.parameters.device, may_update=False)
        with still, sdpa_kernel(SDPBackend.MATH):
            yield
