from __future__ import annotations

import numpy as np
import pytest

from hpcopt.checkpoint.arrays import Description
from hpcopt.checkpoint.plan import CUT_BYTES, shares


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3), (3, 5), (2, 2, 2), (1, 9, 1), (0, 4)])
def test_the_blocks_of_all_ranks_cover_an_array_once(shape: tuple[int, ...]) -> None:
    for ranks in range(1, 12):
        covered = np.zeros(shape, int)
        found = shares(Description(False, "<f8", shape), ranks, cut_bytes=0)
        for share in found:
            covered[tuple(slice(s, s + c) for s, c in zip(share.start, share.count, strict=True))] += 1
        assert (covered == 1).all()
        assert len({share.rank for share in found}) == len(found)
        assert all(0 <= share.rank < ranks for share in found)


def test_an_array_is_cut_evenly_along_its_longest_dimension() -> None:
    found = shares(Description(False, "<f4", (10, 1_000_001)), 4)
    assert [share.count for share in found] == [(10, 250_001), *[(10, 250_000)] * 3]


def test_small_arrays_and_scalars_go_to_rank_0() -> None:
    for small in (Description(False, "|u1", (CUT_BYTES,)), Description(True, "str", ()), Description(False, "<f8", ())):
        assert shares(small, 3) == [(0, (0,) * len(small.shape), small.shape)]
    assert len(shares(Description(False, "|u1", (CUT_BYTES + 1,)), 3)) == 3
