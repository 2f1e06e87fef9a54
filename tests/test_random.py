"""Keys depend on seed, stream, counters and index only, and are spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.random import key64, permutation, uniform_keys, uniforms

seeds = st.integers(-(2**70), 2**70)


def test_keys_are_the_same_on_every_machine() -> None:
    """Fixed values: a change of the formula would silently change the data order of resumed runs."""
    assert key64(0, "init") == 6333016605499695207
    assert key64(7, "batches", 3, 1) == 15158298157322096222
    keys = uniform_keys(7, "batches", 3, np.array([0, 1, 10**12]))
    assert keys.tolist() == [14935914877259492363, 10913877621131028925, 4515709557384630643]


@given(seeds, st.lists(st.integers(0, 2**40), min_size=1, max_size=50, unique=True))
def test_key_of_an_index_does_not_depend_on_its_neighbours(seed: int, indices: list[int]) -> None:
    together = uniform_keys(seed, "s", 2, np.array(indices))
    alone = [int(uniform_keys(seed, "s", 2, np.array([i]))[0]) for i in indices]
    assert together.tolist() == alone
    assert len(set(alone)) == len(indices)


def test_shape_is_kept_also_for_a_single_number() -> None:
    assert uniform_keys(1, "s", 0, np.arange(12).reshape(3, 4)).shape == (3, 4)
    assert uniform_keys(1, "s", 0, np.array(5)).shape == ()
    assert uniform_keys(1, "s", 0, np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize(
    "other",
    [key64(2, "a", 3, 4), key64(1, "b", 3, 4), key64(1, "a", 4, 3), key64(1, "a", 3), key64(1, "a", 3, 4, 0)],
    ids=["seed", "stream", "order of counters", "fewer counters", "more counters"],
)
def test_each_argument_matters(other: int) -> None:
    assert key64(1, "a", 3, 4) != other


def test_the_callers_array_is_left_alone() -> None:
    indices = np.arange(5, dtype=np.uint64)
    uniform_keys(0, "s", 0, indices)
    assert indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_uniforms_fill_the_interval_evenly(epoch: int) -> None:
    numbers = uniforms(3, "s", epoch, np.arange(100_000))
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square, 99 degrees of freedom: 1e-4 beyond 161
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers, uniforms(3, "s", epoch + 1, np.arange(100_000)))[0, 1]) < 0.02


@given(seeds, st.integers(0, 200))
def test_permutation_holds_every_number_once(seed: int, count: int) -> None:
    assert sorted(permutation(seed, "s", 0, count)) == list(range(count))
