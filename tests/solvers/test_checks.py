"""What is no value of an option is refused by every option of every method, in words."""

from __future__ import annotations

import math

import pytest

from hpcopt.errors import UsageError
from hpcopt.solvers.registry import SOLVERS, make_solver, option_names

OPTIONS = [(method, key) for method in SOLVERS for key in option_names(method)]


@pytest.mark.parametrize("value", [math.nan, math.inf, {}])
@pytest.mark.parametrize(("method", "key"), OPTIONS, ids=lambda word: word)
def test_an_option_that_is_not_finite_or_a_table_is_refused(method: str, key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key):
        make_solver(method, {key: value}, 1.0)
