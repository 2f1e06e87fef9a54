"""Blocks of a network on a grid of ranks cover every layer once; results lie where the next layer needs them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.errors import UsageError
from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.network import GridLayout, network_grid


@st.composite
def layouts(draw):
    grid = ProcessGrid(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    layers = draw(st.integers(1, 5))
    sizes = [draw(st.integers(grid.columns if m % 2 else grid.rows, 11)) for m in range(layers + 1)]
    return GridLayout(sizes, grid)


@given(layouts())
def test_the_parts_of_all_ranks_cover_every_array_once(layout):
    covered = {}
    for rank in range(layout.grid.size):
        for part in layout.parts(rank):
            array = covered.setdefault(part.name, np.zeros(part.shape, dtype=int))
            array[tuple(slice(s, s + c) for s, c in zip(part.start, part.count, strict=True))] += 1
    assert len(covered) == 2 * layout.layers
    assert all((array == 1).all() for array in covered.values())
    assert sum(array.size for array in covered.values()) == layout.parameters


@given(layouts())
def test_the_flat_vector_of_a_rank_is_its_parts_one_after_the_other(layout):
    for rank in range(layout.grid.size):
        end = 0
        for part in layout.parts(rank):
            assert part.place == slice(end, end + int(np.prod(part.count)))
            end = part.place.stop
        assert end == layout.size(rank)


@given(layouts())
def test_outputs_of_a_layer_are_summed_where_the_next_layer_takes_them_as_inputs(layout):
    for rank in range(layout.grid.size):
        held = layout.blocks(rank)
        assert held[0].inputs == layout.features(rank)
        assert held[-1].outputs == layout.outputs(rank)
        for before, after in pairwise(held):
            assert before.outputs == after.inputs


@given(layouts())
def test_inputs_of_odd_layers_lie_along_rows_and_outputs_along_columns_and_in_even_ones_the_reverse(layout):
    for rank in range(layout.grid.size):
        row, column = layout.grid.coordinates(rank)
        for held in layout.blocks(rank):
            odd = held.number % 2 == 1
            assert held.inputs == layout.parts_of(held.number - 1)[row if odd else column]
            assert held.outputs == layout.parts_of(held.number)[column if odd else row]


@given(layouts())
def test_biases_are_of_the_first_group_of_inputs_and_no_rank_holds_more_than_the_most(layout):
    for rank in range(layout.grid.size):
        for held in layout.blocks(rank):
            assert held.biased == (held.inputs.start == 0)
            assert 1 <= held.outputs.count <= layout.most(held.number)


def test_uneven_blocks_are_those_of_an_example():
    layout = GridLayout([5, 7, 3], ProcessGrid(2, 3))
    parts = layout.parts(layout.grid.rank(1, 2))
    assert [(part.name, part.shape, part.start, part.count) for part in parts] == [
        ("W1", (5, 7), (3, 5), (2, 2)),
        ("W2", (7, 3), (5, 2), (2, 1)),
    ]
    assert [part.name for part in layout.parts(0)] == ["W1", "b1", "W2", "b2"]


@pytest.mark.parametrize(
    ("sizes", "grid", "text"),
    [
        ([8, 2, 4], (1, 4), "2 neurons of layer 1 in 4 groups, one for each of its columns.*fit: .2, 2., .4, 1."),
        ([8, 8, 1], (2, 2), "1 neurons of layer 2 in 2 groups.*these grids fit: .1, 4."),
        ([2, 8, 8], (4, 1), "2 features in 4 groups.*fit: .1, 4., .2, 2."),
        ([3, 3, 3], (2, 8), "No grid of 16 ranks fits.*Start 9 ranks with grid = .3, 3."),
    ],
)
def test_more_groups_than_neurons_are_refused_with_the_grids_that_fit(sizes, grid, text):
    with pytest.raises(UsageError, match=text):
        GridLayout(sizes, ProcessGrid(*grid))


@pytest.mark.parametrize("sizes", [[], [3], [3, 0, 2]])
def test_what_is_no_network_is_refused(sizes):
    with pytest.raises(UsageError, match="is no network"):
        GridLayout(sizes, ProcessGrid(1, 1))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 12))
def test_the_default_grid_fits_whenever_one_does(sizes, ranks):
    try:
        grid = network_grid(sizes, ranks)
    except UsageError:
        for rows in range(1, ranks + 1):
            if ranks % rows == 0:
                with pytest.raises(UsageError):
                    GridLayout(sizes, ProcessGrid(rows, ranks // rows))
    else:
        assert grid.size == ranks
        GridLayout(sizes, grid)
