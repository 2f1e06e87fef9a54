"""Splits: fractions by the seed, the last n, what limit and shuffle do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.data.options import DataOptions
from hpcopt.data.reader import Arrays, Source
from hpcopt.data.split import set_aside, split_rows
from hpcopt.errors import UsageError


def source(rows: int = 100, **keys: object) -> Source:
    return Source(Arrays("s", np.zeros((rows, 1)), np.zeros(rows)), **keys)  # type: ignore[arg-type]


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_a_fraction_parts_the_rows_exactly(total: int, fraction: float, seed: int) -> None:
    count = round(fraction * total)
    if not 0 < count < total:
        with pytest.raises(UsageError, match="at least one must be left"):
            set_aside(np.arange(total), fraction, seed, "s")
        return
    train, test = set_aside(np.arange(total), fraction, seed, "s")
    assert len(test) == count
    assert sorted([*train, *test]) == list(range(total))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


def test_a_fraction_is_drawn_from_the_seed() -> None:
    draws = [set_aside(np.arange(100), 0.3, seed, "s")[1].tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_number_takes_the_last_rows() -> None:
    split = split_rows(source(), DataOptions("s", test=7), seed=0)
    assert split.test is not None
    assert split.test.tolist() == list(range(93, 100))
    assert split.train.tolist() == list(range(93))


def test_limit_keeps_the_first_and_leaves_the_test_set_alone() -> None:
    whole, limited = (split_rows(source(), DataOptions("s", test=0.2, limit=n), seed=4) for n in (None, 10))
    assert limited.train.tolist() == whole.train[:10].tolist()
    assert limited.test is not None
    assert whole.test is not None
    assert limited.test.tolist() == whole.test.tolist()
    assert len(split_rows(source(5), DataOptions("s", limit=10), 0).train) == 5


def test_shuffle_deals_out_the_training_rows_only() -> None:
    split = split_rows(source(), DataOptions("s", test=10, shuffle=True), seed=4)
    assert split.test is not None
    assert split.test.tolist() == list(range(90, 100))
    assert sorted(split.train) == list(range(90)) != split.train.tolist()
    other = split_rows(source(), DataOptions("s", test=10, shuffle=True), seed=5)
    assert other.train.tolist() != split.train.tolist()


def test_the_default_split_is_the_same_for_every_seed() -> None:
    """So runs of several seeds are judged by one test set; a set may ask for a draw for each seed (cdr)."""
    fixed = [split_rows(source(test_size=20, ordered=True), DataOptions("s"), seed) for seed in (1, 2)]
    assert fixed[0].train.tolist() == fixed[1].train.tolist() != list(range(80))
    drawn = [split_rows(source(test_size=20, ordered=True, split_seed=None), DataOptions("s"), s) for s in (1, 2)]
    assert drawn[0].train.tolist() != drawn[1].train.tolist()


def test_train_size_belongs_to_the_default_split() -> None:
    keys = {"test_size": 25, "train_size": 50}
    assert len(split_rows(source(**keys), DataOptions("s"), 0).train) == 50
    assert len(split_rows(source(**keys), DataOptions("s", test=25), 0).train) == 75


def test_the_user_may_do_without_a_test_set() -> None:
    split = split_rows(source(test_size=20), DataOptions("s", test=False), 0)
    assert (len(split.train), split.test) == (100, None)


@pytest.mark.parametrize("test", [5, 6, 0.999, 0.001])
def test_a_part_without_a_row_is_refused(test: float) -> None:
    with pytest.raises(UsageError, match=f"data.test is {test}, which sets"):
        split_rows(source(5), DataOptions("s", test=test), 0)
