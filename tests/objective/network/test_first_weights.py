"""First weights have the distribution that their rule names (test_network: they do not depend on the grid)."""

import tracemalloc

import numpy as np
import pytest
import torch

from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.network import GridLayout
from hpcopt.objective.network import first_weights
from hpcopt.objective.network.first_weights import initial_blocks

SIZES = (400, 300, 200, 12)
WHOLE = GridLayout(SIZES, ProcessGrid(1, 1))


def arrays(init, seed=3, layout=WHOLE):
    vector = initial_blocks(layout, 0, init, seed, torch.zeros(1, dtype=torch.float64))
    return {part.name: vector[part.place].view(part.count).numpy() for part in layout.parts(0)}


@pytest.mark.parametrize("init", ["he", "xavier", "sparse"])
def test_biases_begin_at_0_and_seeds_and_layers_differ(init):
    one, other = arrays(init, seed=3), arrays(init, seed=4)
    assert all((one[f"b{m}"] == 0).all() for m in (1, 2, 3))
    assert not np.array_equal(one["W1"], other["W1"])
    assert not np.array_equal(one["W1"][:200, :200], one["W2"][:200, :200])


def test_he_is_normal_with_a_variance_of_2_over_the_inputs_and_1_in_the_last_layer():
    given = arrays("he")
    for m, gain in ((1, 2), (2, 2), (3, 1)):
        scaled = given[f"W{m}"] / np.sqrt(gain / SIZES[m - 1])
        error = 5 / np.sqrt(scaled.size)
        assert abs(scaled.mean()) < error
        assert abs((scaled**2).mean() - 1) < 2 * error
        assert abs((scaled**4).mean() - 3) < 10 * error


def test_xavier_is_uniform():
    weights = arrays("xavier")["W1"] / np.sqrt(6 / 700)
    assert -1 <= weights.min() < -0.99
    assert 0.99 < weights.max() < 1
    assert abs((weights**2).mean() - 1 / 3) < 0.01


def test_sparse_has_15_standard_normal_weights_a_unit_anywhere_among_its_inputs():
    given = arrays("sparse")
    for m in (1, 2, 3):
        assert ((given[f"W{m}"] != 0).sum(axis=0) == 15).all()
    weights = given["W1"]
    drawn = weights[weights != 0]
    assert abs(drawn.mean()) < 0.08
    assert abs((drawn**2).mean() - 1) < 0.11
    # Every input is as likely as any other: 300 units choose 15 of 400, so 11.25 each with a variance of 10.8.
    often = (weights != 0).sum(axis=1)
    assert abs(((often - 11.25) ** 2).mean() - 10.8) < 4


def test_sparse_takes_all_inputs_where_there_are_fewer():
    given = arrays("sparse", layout=GridLayout((6, 4, 3), ProcessGrid(1, 1)))
    assert (given["W1"] != 0).all()
    assert (given["W2"] != 0).all()


@pytest.mark.parametrize("init", ["he", "xavier"])
def test_blocks_drawn_some_rows_at_a_time_are_the_same(init, monkeypatch):
    at_once = arrays(init)
    monkeypatch.setattr(first_weights, "_NUMBERS", 1000)
    assert all(np.array_equal(array, at_once[name]) for name, array in arrays(init).items())


def test_precision_is_that_of_the_data():
    vector = initial_blocks(WHOLE, 0, "he", 3, torch.zeros(1, dtype=torch.float32))
    assert vector.dtype == torch.float32


@pytest.mark.parametrize("init", ["he", "xavier", "sparse"])
def test_drawing_takes_little_memory_beside_the_block(init):
    """A rank with room for its block and not much more can draw it."""
    layout = GridLayout((2000, 2000, 10), ProcessGrid(1, 1))
    tracemalloc.start()
    initial_blocks(layout, 0, init, 3, torch.zeros(1, dtype=torch.float32))
    made = tracemalloc.get_traced_memory()[1]  # of NumPy; the block itself is torch's
    tracemalloc.stop()
    assert made < 4 * layout.parameters
