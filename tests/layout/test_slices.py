import math
from itertools import pairwise

import numpy as np
import pytest

from hpcopt.layout.slices import row_slices, rows_within

SHAPES = [
    [(7, 5), (7,), (3, 7), (3,)],
    [(1, 5), (1,), (3, 1), (3,)],
    [(4, 3, 2, 2), (4,), (1, 1), (0, 2), (1, 1, 6)],
    [(2,)],
]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_slices_follow_each_other_and_are_as_long_as_rows_allow(shapes, parts):
    slices, n = row_slices(shapes, parts), sum(map(math.prod, shapes))
    assert slices[0].start == 0
    assert slices[-1].stop == n
    assert all(a.stop == b.start for a, b in pairwise(slices))
    row = max(math.prod(shape[1:]) for shape in shapes)
    assert all(abs(part.start - number * n // parts) <= row / 2 for number, part in enumerate(slices))


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_rows_of_all_slices_make_up_the_tensors(shapes, parts):
    vector, found = np.arange(sum(map(math.prod, shapes))), [np.full(shape, -1) for shape in shapes]
    for part in row_slices(shapes, parts):
        own, held = vector[part.slice], 0
        for tensor, rows in zip(found, rows_within(shapes, part), strict=True):
            data = own[rows.place].reshape(rows.shape)
            tensor[tuple(slice(a, a + b) for a, b in zip(rows.start, rows.shape, strict=True))] = data
            held += data.size
        assert held == part.count
    assert np.array_equal(np.concatenate([tensor.ravel() for tensor in found]), vector)
