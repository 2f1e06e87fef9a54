"""What counts as a number and as a whole number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpcopt.checks import is_number, is_whole


@pytest.mark.parametrize("value", [True, "1", None, [1], math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_refused_as_one(value: object) -> None:
    assert not is_number(value)
    assert not is_whole(value)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int64(3)])
def test_numbers_of_numpy_are_numbers(value: object) -> None:
    assert is_number(value)


def test_the_ends_of_a_range_belong_to_it_unless_it_is_open() -> None:
    assert is_number(0, 0, 1)
    assert is_number(1, 0, 1)
    assert not is_number(0, 0, 1, open_low=True)
    assert not is_number(1, 0, 1, open_high=True)
    assert not is_number(-1e-9, 0, 1)
    assert not is_number(1.001, 0, 1)


def test_an_integer_beyond_every_float_is_no_number() -> None:
    assert not is_number(10**400)


def test_whole_numbers_have_a_least() -> None:
    assert is_whole(-5)
    assert is_whole(np.int32(2), 2)
    assert not is_whole(1, 2)
    assert not is_whole(2.0, 2)
