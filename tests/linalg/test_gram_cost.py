"""When the direct solve of a block is chosen."""

from __future__ import annotations

import pytest

from hpcopt.linalg.gram_cost import direct_bytes, direct_is_cheaper, direct_operations, product_operations

LAYERS = [(785, 128), (129, 64), (65, 10)]
PLENTY = 1e12


def test_a_product_is_counted_as_its_four_passes():
    n, k = 50, 3
    forward, outputs, back, gradient = 2 * n * 8 * 4, 2 * n * k * 4, 2 * n * k * 4, 2 * n * 8 * 4
    assert product_operations(n, k, [(8, 4)]) == forward + outputs + back + gradient
    assert product_operations(n, k, [(8, 4), (5, 3)]) == sum(
        product_operations(n, k, [layer]) for layer in [(8, 4), (5, 3)]
    )


def test_for_many_instances_the_cholesky_factor_is_all_that_counts():
    rows = 10_000 * 10
    assert direct_operations(10_000, 10, [(2, 2)]) == pytest.approx(rows**3 / 3, rel=1e-3)


def test_for_few_instances_it_is_worth_two_products():
    assert direct_operations(1, 1, LAYERS) == pytest.approx(2 * product_operations(1, 1, LAYERS), rel=0.3)


def test_the_memory_is_that_of_two_square_matrices():
    assert direct_bytes(1000, 10, LAYERS) == pytest.approx(2 * 8 * 10_000**2, rel=0.05)


def test_few_instances_and_many_iterations_are_for_the_direct_solve():
    assert direct_is_cheaper(20, 10, LAYERS, 50, PLENTY)
    assert not direct_is_cheaper(20, 10, LAYERS, 1, PLENTY)
    assert not direct_is_cheaper(2000, 10, LAYERS, 50, PLENTY)


@pytest.mark.parametrize("samples", [5, 20, 100, 500])
def test_the_rule_has_one_threshold_in_each_of_its_numbers(samples):
    decisions = [direct_is_cheaper(samples, 10, LAYERS, 50.0 * factor, PLENTY) for factor in (1, 2, 4, 8)]
    assert decisions == sorted(decisions)
    decisions = [direct_is_cheaper(samples * factor, 10, LAYERS, 50.0, PLENTY) for factor in (1, 2, 4, 8)]
    assert decisions == sorted(decisions, reverse=True)


def test_what_does_not_fit_into_the_memory_is_never_chosen():
    needed = direct_bytes(20, 10, LAYERS)
    assert direct_is_cheaper(20, 10, LAYERS, 1000, needed)
    assert not direct_is_cheaper(20, 10, LAYERS, 1000, needed - 1)
