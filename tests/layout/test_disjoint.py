"""Every layer on ranks of its own: blocks cover it once, and the default split has the smallest largest block."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.errors import UsageError
from hpcopt.layout.disjoint import DisjointLayout, disjoint_split, ranks_of
from hpcopt.layout.network import Node


@st.composite
def layouts(draw):
    split = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 5)))]
    return DisjointLayout([draw(st.integers(groups, 9)) for groups in split], split)


@given(layouts())
def test_every_block_of_every_layer_is_on_one_rank_and_the_layers_follow_each_other(layout):
    nodes = [node for rank in range(layout.ranks) for node in layout.nodes(rank)]
    assert nodes == [
        Node(m, a, b)
        for m in range(1, layout.layers + 1)
        for a in range(layout.split[m - 1])
        for b in range(layout.split[m])
    ]


@given(layouts())
def test_the_parts_of_all_ranks_cover_every_array_once(layout):
    covered = {}
    for rank in range(layout.ranks):
        end = 0
        for part in layout.parts(rank):
            array = covered.setdefault(part.name, np.zeros(part.shape, dtype=int))
            array[tuple(slice(s, s + c) for s, c in zip(part.start, part.count, strict=True))] += 1
            assert part.place == slice(end, end + int(np.prod(part.count)))
            end = part.place.stop
        assert end == layout.size(rank)
    assert all((array == 1).all() for array in covered.values())
    assert sum(array.size for array in covered.values()) == layout.parameters


@given(layouts())
def test_features_are_with_the_first_layer_and_outputs_with_the_last(layout):
    for rank in range(layout.ranks):
        (held,) = layout.blocks(rank)
        assert layout.features(rank) == (held.inputs if held.number == 1 else (0, 0))
        assert layout.outputs(rank) == (held.outputs if held.number == layout.layers else (0, 0))
        assert [block.number for block in layout.all_blocks(rank)] == list(range(1, layout.layers + 1))
        assert [block for block in layout.all_blocks(rank) if block.outputs.count] == [held]


def test_the_example_of_the_publication_has_its_blocks():
    layout = DisjointLayout([150, 200, 30], [3, 2, 3])
    assert layout.ranks == 12
    assert [held.inputs.count * held.outputs.count for held in layout.blocks(0)] == [50 * 100]


def test_a_rank_that_is_none_has_no_block():
    with pytest.raises(ValueError, match="rank 3 is not one of the 3 ranks"):
        DisjointLayout([3, 2, 1], [2, 1, 1]).nodes(3)


@pytest.mark.parametrize(
    ("sizes", "split", "text"),
    [
        ([4, 3, 2], [2, 1], "it must hold a number of groups.*3 in all"),
        ([4, 3, 2], [2, 0, 1], "at least 1"),
        ([4, 3, 2], [1, 4, 1], "the 3 neurons of layer 1 in 4 groups.*entry 1 be at most 3"),
        ([4, 3, 2], [5, 1, 1], "the 4 features in 5 groups"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(sizes, split, text):
    with pytest.raises(UsageError, match=text):
        DisjointLayout(sizes, split)


def largest(sizes, split):
    return max(-(-sizes[m] // split[m]) * -(-sizes[m + 1] // split[m + 1]) for m in range(len(sizes) - 1))


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 7))
def test_the_default_split_has_the_smallest_largest_block_and_exists_whenever_one_does(sizes, ranks):
    every = product(*(range(1, min(size, ranks) + 1) for size in sizes))
    fitting = [split for split in every if ranks_of(split) == ranks]
    if not fitting:
        with pytest.raises(UsageError):
            disjoint_split(sizes, ranks)
        return
    found = disjoint_split(sizes, ranks)
    assert found in fitting
    assert largest(sizes, found) == min(largest(sizes, split) for split in fitting)


@given(st.integers(1, 4), st.integers(0, 30))
def test_as_many_ranks_as_layers_suffice(layers, more):
    split = disjoint_split([40] * (layers + 1), layers + more)
    assert sum(before * after for before, after in pairwise(split)) == layers + more


def test_fewer_ranks_than_layers_and_too_many_for_the_network_are_refused():
    with pytest.raises(UsageError, match=r"each of the 3 layers .* but there are only 2. Start at least 3 ranks"):
        disjoint_split([9, 9, 9, 9], 2)
    with pytest.raises(UsageError, match="on 5 ranks: no numbers of groups"):
        disjoint_split([2, 2], 5)
