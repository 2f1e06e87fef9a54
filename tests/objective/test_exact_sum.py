"""Scalars that ride in a float32 buffer keep their float64 value, whatever the number of ranks."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.objective import exact_sum

numbers = st.floats(-1e11, 1e11)


@given(numbers)
def test_a_value_survives_the_cut_into_float32_digits(value: float) -> None:
    digits = np.array(exact_sum.split(value), dtype=np.float32)
    assert abs(exact_sum.join_all(digits.tolist())[0] - value) <= 2.0**-80


@given(st.lists(numbers, min_size=1, max_size=64), st.randoms())
def test_the_sum_over_ranks_is_exact_and_does_not_depend_on_their_order(values: list[float], random) -> None:  # type: ignore[no-untyped-def]
    def reduced(order: list[float]) -> float:
        total = np.zeros(exact_sum.DIGITS, dtype=np.float32)
        for value in order:
            total += np.array(exact_sum.split(value), dtype=np.float32)
        return exact_sum.join_all(total.tolist())[0]

    shuffled = values.copy()
    random.shuffle(shuffled)
    assert reduced(values) == reduced(shuffled)
    assert math.isclose(reduced(values), math.fsum(values), rel_tol=1e-15, abs_tol=len(values) * 2.0**-79)


def test_4096_ranks_with_full_digits_lose_nothing() -> None:
    value = 2.0**112 - 2.0**60
    total = np.zeros(exact_sum.DIGITS, dtype=np.float32)
    for _ in range(4096):
        total += np.array(exact_sum.split(value), dtype=np.float32)
    assert exact_sum.join_all(total.tolist())[0] == 4096 * value


def test_a_float32_sum_would_not_have_kept_it() -> None:
    values = [0.1, 1e-9]
    assert exact_sum.join_all(np.sum([exact_sum.split(v) for v in values], axis=0).tolist())[0] == math.fsum(values)
    assert float(np.float32(0.1) + np.float32(1e-9)) != math.fsum(values)


def test_what_is_not_finite_or_too_large_becomes_nan_and_never_a_number() -> None:
    for value in (math.nan, math.inf, -math.inf, 2.0**112, -(2.0**120)):
        assert math.isnan(exact_sum.join_all(exact_sum.split(value))[0])


def test_several_scalars_keep_their_places() -> None:
    values = [1.5, -2.25, 2.0**-70]
    assert exact_sum.join_all(exact_sum.split_all(values)) == values
