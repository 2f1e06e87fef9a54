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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

import torch
from torch.func import functional_call, jvp, vmap
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

Pushed: TypeAlias = "tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]"
"""The outputs (b, C) of a piece of the batch, J v (b, C) for each direction, and its targets."""

Outputs = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""The outputs (b, C) on one piece of the batch as a function of the parameters' tensors."""

Still = Callable[[], AbstractContextManager[None]]
"""Within it the masks and statistics of the piece hold."""


class Piece(Protocol):
    """The model linearised on one piece of the batch."""

    def push(self, tangents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs (b, C) and J v, for v in the shapes of the parameters."""
        ...

    def pull(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """J^T u for u of shape (b, C), in the shapes of the parameters."""
        ...


class KeptPiece:
    """A piece whose graphs are kept: two passes a Gauss-Newton product, neither of them through the model itself."""

    def __init__(self, outputs: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
        self._outputs, self._leaves = outputs, leaves
        self._u = torch.zeros_like(outputs, requires_grad=True)
        with torch.enable_grad():
            pulled = torch.autograd.grad(outputs, leaves, self._u, create_graph=True, allow_unused=True)
        self._used = [i for i, gradient in enumerate(pulled) if gradient is not None and gradient.requires_grad]
        self._pulled = [pulled[i] for i in self._used]

    def push(self, tangents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``Piece.push``."""
        wanted = [tangents[i] for i in self._used]
        (product,) = pull(self._pulled, wanted, [self._u], keep_graph=True)
        return self._outputs.detach(), torch.zeros_like(self._outputs) if product is None else product

    def pull(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As ``Piece.pull``."""
        found = pull([self._outputs], [u], self._leaves, keep_graph=True)
        return tuple(
            torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, self._leaves, strict=True)
        )


class RepeatedPiece:
    """A piece whose graphs do not fit: every product goes through the model, forward mode too."""

    def __init__(self, outputs: Outputs, leaves: Sequence[torch.Tensor], still: Still) -> None:
        self._function, self._leaves, self._still = outputs, leaves, still

    def push(self, tangents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``Piece.push``."""
        point = tuple(leaf.detach() for leaf in self._leaves)
        with self._still():  # around the transform, in which buffers cannot be put back
            outputs, product = jvp(lambda *leaves: self._function(leaves), point, tuple(tangents))[:2]
        return outputs, product

    def pull(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As ``Piece.pull``."""
        with torch.enable_grad(), self._still():
            outputs = self._function(self._leaves)
        return torch.autograd.grad(outputs, self._leaves, u, materialize_grads=True)


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
        self._objective, self._batch, self._w, self._graph_bytes = objective, batch, w.detach().clone(), graph_bytes
        self._decay = objective.decay
        self._model = _Model(objective.shard, batch)
        self._leaves = [view.detach().requires_grad_() for view in objective.shard.parameters.views(self._w)]
        self._made: list[tuple[Piece, torch.Tensor]] | None = None

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v for this rank's samples, shape (b, C)."""
        shaped = self._shaped(self._whole(v))
        tangents = [piece.push(shaped)[1] for piece, _ in self._pieces]
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
        tangents = self._shaped(v)
        return self._sum(piece.pull(self._bend(*piece.push(tangents), targets)) for piece, targets in self._pieces)

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

    def _bilinear(self, directions: torch.Tensor, pushed: Iterable[Pushed]) -> torch.Tensor:
        """The sum of T H T^T over pieces of the batch with tangents T."""
        total = torch.zeros(len(directions), len(directions), dtype=torch.float64)
        for outputs, tangents, targets in pushed:
            bent = [self._bend(outputs, each, targets).flatten() for each in tangents]
            left = torch.stack([each.flatten() for each in tangents]).to(torch.float64)
            total += (left @ torch.stack(bent).to(torch.float64).T).cpu()
        return total

    def _by_graphs(self, directions: torch.Tensor) -> Iterator[Pushed]:
        """Outputs, tangents and targets of every piece, from what is kept for products."""
        for piece, targets in self._pieces:
            pushed = [piece.push(self._shaped(direction)) for direction in directions]
            yield pushed[0][0], [tangents for _, tangents in pushed], targets

    def _by_forward_mode(self, directions: torch.Tensor, mode: str) -> Iterator[Pushed]:
        """The same from one forward pass a piece, or one for every direction where the model allows no other."""
        point = tuple(leaf.detach() for leaf in self._leaves)
        for number, (inputs, targets) in enumerate(self._objective.shard.chunks(self._batch)):

            def along(*tangents: torch.Tensor, inputs: torch.Tensor = inputs) -> tuple[torch.Tensor, torch.Tensor]:
                outputs, product = jvp(lambda *leaves: self._model.outputs(leaves, inputs), point, tangents)[:2]
                return outputs, product

            with self._model.still(number), warnings.catch_warnings():
                warnings.filterwarnings("error", "There is a performance drop", UserWarning)
                if mode == "stacked":
                    stacked = zip(*map(self._shaped, directions), strict=True)
                    outputs, tangents = vmap(along, randomness="same")(*map(torch.stack, stacked))
                    yield outputs[0], list(tangents), targets
                    continue
            pushed = []
            for direction in directions:
                with self._model.still(number):
                    pushed.append(along(*self._shaped(direction)))
            yield pushed[0][0], [tangents for _, tangents in pushed], targets

    def _bend(self, outputs: torch.Tensor, tangents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """H t for tangents t (b, C)."""
        return self._objective.shard.loss.hessian_product(outputs, targets, tangents)

    def _shaped(self, v: Vector) -> list[torch.Tensor]:
        return self._objective.shard.parameters.views(v)

    def _sum(self, parts: Iterator[Sequence[torch.Tensor]]) -> Vector:
        """The sum of vectors given in the shapes of the parameters, a new vector (n,)."""
        total: Vector | None = None
        for part in parts:
            flat = torch.cat([each.reshape(-1) for each in part])
            total = flat if total is None else total.add_(flat)
        return torch.zeros_like(self._w) if total is None else total

    @property
    def _pieces(self) -> list[tuple[Piece, torch.Tensor]]:
        """The model linearised on each piece of the batch, with its targets; made when first asked for."""
        if self._made is None:
            self._objective.count_values(self._batch)
            self._objective.count_products(self._batch, 0.5)
            made, left, each = [], self._graph_bytes, 0.0
            for number, (inputs, targets) in enumerate(self._objective.shard.chunks(self._batch)):
                each = each or self._bytes_a_sample(inputs)
                left -= int(each * len(inputs))
                made.append((self._piece(number, inputs, keep=left >= 0), targets))
            self._made = made
        return self._made

    def _piece(self, number: int, inputs: torch.Tensor, keep: bool) -> Piece:
        still, outputs = partial(self._model.still, number), partial(self._model.outputs, inputs=inputs)
        if not keep:
            return RepeatedPiece(outputs, self._leaves, still)
        with torch.enable_grad(), still():
            return KeptPiece(outputs(self._leaves), self._leaves)

    def _bytes_a_sample(self, inputs: torch.Tensor) -> float:
        """Memory of both graphs a sample, estimated from two: what the forward pass saves, twice."""
        saved: dict[int, int] = {}
        known = {self._w.untyped_storage().data_ptr()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            """Count its memory once, and keep it as it is."""
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        few = inputs[:2].clone()
        keep_all = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.enable_grad(), self._model.still(0), keep_all:
            outputs = self._model.outputs(self._leaves, few)
        return max(2.0 * (sum(saved.values()) + outputs.nbytes) / len(few), 1.0)


class _Model:
    """The module as a function of its parameters, held still for one batch.

    Pieces know this and not the linearisation, whose graphs therefore go with the last reference to it.
    """

    def __init__(self, shard: Shard, batch: Batch) -> None:
        self._shard, self._key = shard, batch.key

    def outputs(self, leaves: Sequence[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """The outputs (b, C) on ``inputs``."""
        shard = self._shard
        # Copies, since the module's own may be written to while the graph still needs what they were.
        named = {name: buffer.clone() for name, buffer in shard.module.named_buffers()}
        named |= dict(zip(shard.parameters.names, leaves, strict=True))
        result: torch.Tensor = functional_call(shard.module, named, (inputs,), tie_weights=True)
        return result

    @contextmanager
    def still(self, number: int) -> Iterator[None]:
        """The masks and statistics of a piece; attention in the one form that can be differentiated twice."""
        shard = self._shard
        if not shard.module.training:
            shard.module.train()
        still = shard.stochastic.frozen(self._key, number, shard.parameters.device, may_update=False)
        with still, sdpa_kernel(SDPBackend.MATH):
            yield
