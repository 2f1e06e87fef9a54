"""The sweeps over long vectors in C, compiled where hpcopt was installed: one pass over memory each.

Torch makes a sweep of a dozen operations on pieces that fit in the cache, and one core does not do them at the rate of
its memory; here the numbers of all of them stay in registers. The library is ``hpcopt/kernels/c``, built by setup.py if
there is a C compiler. It is built then and not at the first use: a job of many ranks may not start as many compilers,
compute nodes often have none, and nothing that can be written to later is loaded into a process.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import torch

from hpcopt.kernels.launch import check_arguments
from hpcopt.kernels.sweeps import Moments, Pair, Parts
from hpcopt.layout.block import blocks

LIBRARY, FOLDER = "hpcopt.kernels._vectors", Path(__file__).with_name("c")

BLOCK = 1024
"""Numbers whose products are summed in the vectors' own precision."""

SHARE = 1 << 18
"""Least numbers of a thread: fewer are done before another thread has begun."""


class CompiledSweeps:
    """``Sweeps`` for contiguous vectors in the processor's memory, on up to ``torch.get_num_threads()`` threads.

    Args:
        library: the compiled functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def products(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Parts:
        """As ``Sweeps.products``: a vector that is in several pairs comes from memory once."""
        return self._run("products", [each for pair in pairs for each in pair], [len(pairs)], sums=len(pairs))

    def measure(self, g: torch.Tensor, previous: torch.Tensor, d: torch.Tensor, z: torch.Tensor) -> Parts:
        """As ``Sweeps.measure``."""
        return self._run("nlcg_measure", [g, previous, d, z], [], sums=6)

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
        """As ``Sweeps.precondition``."""
        learns = [0.0] * 4
        if pair is not None:
            learns = [1.0, pair.scale * pair.scale * pair.per_bend, pair.per_change, pair.shift]
        return self._run("nlcg_precondition", [g, previous, h, d, kept], [*learns, epsilon], sums=6)

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
        """As ``Sweeps.move``."""
        self._run("nlcg_move", [z, d, w, mean], [beta, undo, rate, leaves])

    def adam(self, g: torch.Tensor, first: torch.Tensor, second: torch.Tensor, w: torch.Tensor, by: Moments) -> None:
        """As ``Sweeps.adam``; g stays."""
        (one, two), (bias_one, bias_two) = by.betas, by.corrections
        constants = [one, 1 - one, two, 1 - two, math.sqrt(bias_two), by.epsilon, by.rate / bias_one, by.shrink]
        self._run("adam", [g, first, second, w], constants)

    def _run(
        self, name: str, vectors: Sequence[torch.Tensor | None], constants: Sequence[float], sums: int = 0
    ) -> Parts:
        """Call a function on each thread's share of the vectors; the sums of all blocks, added in their order."""
        first, *others = [each for each in vectors if each is not None]
        check_arguments(first.dtype, torch.device("cpu"), first, *others)
        n = first.numel()
        if any(each.numel() != n for each in others):
            raise ValueError(f"{name} takes vectors of one length, not of {n} and {[len(each) for each in others]}")
        parts = torch.zeros(-(-n // BLOCK), sums, dtype=torch.float64)
        function = getattr(self._library, f"{name}_{str(first.dtype).removeprefix('torch.')}")  # it keeps them
        numbers = (ctypes.c_double * len(constants))(*constants)

        def run(start: int, stop: int) -> None:
            """One thread's share; ctypes lets other threads run meanwhile."""
            skipped = start * first.element_size()
            own = [None if each is None else each.data_ptr() + skipped for each in vectors]
            place = parts.data_ptr() + start // BLOCK * sums * parts.element_size()
            function(
                (ctypes.c_void_p * len(own))(*own), ctypes.c_int64(stop - start), ctypes.c_int64(BLOCK), numbers,
                ctypes.c_void_p(place),
            )  # fmt: skip

        together(run, shares(n, torch.get_num_threads()))
        return [list(parts.sum(0))] if sums else []


def shares(n: int, threads: int) -> list[tuple[int, int]]:
    """Start and stop of each thread's numbers, which are whole blocks; one share at least."""
    workers = min(threads, n // SHARE)
    if workers <= 1:
        return [(0, n)]
    return [(BLOCK * part.start, min(BLOCK * part.stop, n)) for part in blocks(-(-n // BLOCK), workers)]


def together(run: Callable[[int, int], None], parts: Sequence[tuple[int, int]]) -> None:
    """Do all parts, the first one on this thread."""
    others = [_threads().submit(run, *part) for part in parts[1:]]
    run(*parts[0])
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "sweeps")


@cache
def compiled_sweeps() -> CompiledSweeps | str:
    """The compiled sweeps, or in words why there are none."""
    library = compiled_library()
    return library if isinstance(library, str) else CompiledSweeps(library)


def compiled_library() -> ctypes.CDLL | str:
    """The compiled functions, or in words why there are none."""
    found = find_spec(LIBRARY)
    if found is None or found.origin is None:
        return "none were compiled when hpcopt was installed"
    try:
        library = ctypes.CDLL(found.origin)
        made_of = (ctypes.c_char * 64).in_dll(library, "sources").value.decode()
    except (OSError, ValueError) as error:
        return f"the compiled sweeps cannot be loaded: {error}"[:200]
    if made_of != digest(FOLDER):
        return "the compiled sweeps are of other sources than hpcopt's, which has changed since it was installed"
    return library


def digest(folder: Path) -> str:
    """What tells the sources of the library from others."""
    return sha256(b"".join(source.read_bytes() for source in sorted(folder.glob("*.[ch]")))).hexdigest()
