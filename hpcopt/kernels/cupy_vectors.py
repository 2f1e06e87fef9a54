"""Work on long vectors in CUDA kernels of our own: products, conjugate gradients, and the sweeps of NLCG.

Sums are in float64, one part a block of threads and then the parts in their order: the same in every run. Nothing here
waits for the device but ``ConjugateSteps``, once in ``EVERY`` iterations. Shapes: n numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product as all_pairs

import torch

from hpcopt.kernels.graphs import Capture, Repeated
from hpcopt.kernels.launch import Argument, Launcher, check_arguments
from hpcopt.kernels.sweeps import Pair, Parts, TorchSweeps

THREADS = 256
MOST_BLOCKS = 1024
"""Enough to fill any device of today; longer vectors take more rounds."""

TILE = 4
"""Rows of either side in one launch of ``inner``."""

EVERY = 8
"""Iterations of conjugate gradients between looks at whether they have ended; fewer products are for nothing."""

RUNNING, CONVERGED, NOT_FINITE = 0, 1, 3


class CupyVectors(TorchSweeps):
    """Products, conjugate gradients and sweeps (``hpcopt.kernels.sweeps.Sweeps``) for tensors on one CUDA device.

    Args:
        launch: starts the kernels.
        capture: records an iteration of conjugate gradients, for all but the first few; None to start its kernels
            one by one.
    """

    def __init__(self, launch: Launcher, capture: Capture | None = None) -> None:
        self.launch, self.capture = launch, capture

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X Y^T of rows (k, n) and (l, n): (k, l), float64, on the device."""
        check_arguments(x.dtype, x.device, x, y)
        (k, n), l = x.shape, len(y)  # noqa: E741
        found = torch.zeros(k, l, dtype=torch.float64, device=x.device)
        for i, j in all_pairs(range(0, k, TILE), range(0, l, TILE)):
            rows, columns = x[i : i + TILE], y[j : j + TILE]
            given = (len(rows), len(columns), n)
            sums = self._summed("inner", TILE * TILE, n, rows, columns, after=given).view(TILE, TILE)
            found[i : i + TILE, j : j + TILE] = sums[: len(rows), : len(columns)]
        return found

    def conjugate_steps(self, gradient: torch.Tensor, tolerance: float) -> ConjugateSteps:
        """Conjugate gradients with this right-hand side and everything on the device."""
        return ConjugateSteps(self.launch, gradient, tolerance, self.capture)

    def measure(self, g: torch.Tensor, previous: torch.Tensor, d: torch.Tensor, z: torch.Tensor) -> Parts:
        """As ``Sweeps.measure``, in one launch."""
        check_arguments(g.dtype, g.device, g, previous, d, z)
        return [list(self._summed("nlcg_measure", 6, len(g), g, previous, d, z, after=(len(g),)))]

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
        """As ``Sweeps.precondition``, in one launch."""
        check_arguments(g.dtype, g.device, g, previous, h, d, *([] if kept is None else [kept]))
        learns = (1, *pair) if pair is not None else (0, 0.0, 0.0, 0.0, 0.0)
        given = (*learns, float(epsilon), len(g))
        return [list(self._summed("nlcg_precondition", 6, len(g), g, previous, h, d, kept, after=given))]

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
        """As ``Sweeps.move``, in one launch."""
        check_arguments(z.dtype, z.device, z, d, w, *([] if mean is None else [mean]))
        numbers = map(float, (beta, undo, rate, leaves))
        self.launch("nlcg_move", z.dtype, blocks_for(len(z)), THREADS, z, d, w, mean, *numbers, len(z))

    def _summed(
        self, name: str, sums: int, n: int, first: torch.Tensor, *others: Argument, after: tuple[Argument, ...]
    ) -> torch.Tensor:
        """The sums (k,) of a kernel that leaves parts; they stand between its vectors and its numbers."""
        blocks = blocks_for(n)
        parts = torch.empty(blocks, sums, dtype=torch.float64, device=first.device)
        total = torch.zeros(sums, dtype=torch.float64, device=first.device)
        self.launch(name, first.dtype, blocks, THREADS, first, *others, parts, *after)
        if blocks:
            self.launch("add_parts", first.dtype, sums, 32, parts, total, blocks, sums)
        return total


class ConjugateSteps:
    """The recurrence of ``hpcopt.linalg.conjugate_gradient`` with its scalars on the device.

    It differs in one thing: where the predicted square of the next residual is mostly rounding, the next iteration
    finds the square itself, which costs one more product.

    Args:
        launch: starts the kernels.
        gradient: g (n,), left as it is.
        tolerance: the end is where |r| <= tolerance |g|.
        capture: records an iteration once ``EVERY`` of them were made; None for never.
    """

    def __init__(
        self, launch: Launcher, gradient: torch.Tensor, tolerance: float, capture: Capture | None = None
    ) -> None:
        self._launch, self._tolerance, self._made = launch, tolerance, 0
        self._capture = capture
        self._iteration: Repeated | None = None
        self._rows = gradient.new_zeros(3, len(gradient))
        torch.neg(gradient, out=self._rows[0])
        self.residual = self.preconditioned = self._rows[0]
        self._v, self.direction = torch.zeros_like(gradient), torch.zeros_like(gradient)
        blocks = max(blocks_for(len(gradient)), 1)
        self._steps = torch.zeros(8, dtype=torch.float64, device=gradient.device)
        self._parts = torch.zeros(blocks, 6, dtype=torch.float64, device=gradient.device)
        self._rounding = 100.0 * torch.finfo(gradient.dtype).eps

    def advance(self, product: Callable[[torch.Tensor], torch.Tensor], damping: float) -> bool:
        """One iteration; whether another one makes sense, which is looked at every few iterations.

        Args:
            product: v (n,) -> G v; the one of the first call, made without a look at the device's numbers.
            damping: lambda, that of the first call.
        """
        if self._iteration is None:
            self._iteration = Repeated(lambda: self.move(product(self.residual), damping), self._capture, EVERY)
        self._iteration()
        self._made += 1
        return self._made % EVERY != 0 or self._state() == RUNNING

    def move(self, product: torch.Tensor, damping: float) -> None:
        """What one iteration does on the device; nothing once they have ended."""
        real, n = self._rows.dtype, self._rows.shape[1]
        check_arguments(real, self._rows.device, product)
        blocks = blocks_for(n)
        given = (self._rows, product, float(damping), self._parts, self._steps, n)
        self._launch("cg_products", real, blocks, THREADS, *given)
        self._launch(
            "cg_decide", real, 1, 32, self._parts, self._steps, len(self._parts), self._tolerance, self._rounding
        )
        self._launch("cg_move", real, blocks, THREADS, self._rows, self._v, self.direction, self._steps, n)

    def end(self) -> tuple[int, bool, bool]:
        """Iterations that counted, whether they converged, and whether all numbers were finite; the last call."""
        self._iteration = None  # what is recorded holds memory of the device
        iterations, state = self._steps[5:7].tolist()
        return int(iterations), state == CONVERGED, state != NOT_FINITE

    def _state(self) -> float:
        return float(self._steps[6])


def blocks_for(n: int) -> int:
    """Blocks of threads for n numbers; 0 for none."""
    return min(-(-n // THREADS), MOST_BLOCKS)
