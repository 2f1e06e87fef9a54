from __future__ import annotations

import pytest

from hpcopt.checkpoint.retention import Retention
from hpcopt.errors import UsageError

STEPS = [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("retention", "steps", "best", "kept"),
    [
        (Retention(), [], None, []),
        (Retention(), [10], None, [10]),
        (Retention(), STEPS, None, [40, 50]),
        (Retention(), [50, 30, 10, 40, 20], None, [40, 50]),
        (Retention(last=3), STEPS, None, [30, 40, 50]),
        (Retention(last=9), STEPS, None, STEPS),
        (Retention(), STEPS, 20, [20, 40, 50]),
        (Retention(), STEPS, 50, [40, 50]),
        (Retention(), STEPS, 25, [40, 50]),
        (Retention(best=False), STEPS, 20, [40, 50]),
        (Retention(every=20), STEPS, None, [20, 40, 50]),
        (Retention(every=10), STEPS, None, STEPS),
        (Retention(every=25), STEPS, None, [30, 40, 50]),
        (Retention(every=1000), STEPS, 10, [10, 40, 50]),
        (Retention(every=30), [29, 31, 59, 61, 200, 300], None, [31, 61, 200, 300]),
    ],
)
def test_the_newest_the_best_and_one_of_every_interval_survive(
    retention: Retention, steps: list[int], best: int | None, kept: list[int]
) -> None:
    assert sorted(retention.survivors(steps, best)) == kept


@pytest.mark.parametrize("interval", [1, 3, 7, 10])
def test_one_in_every_so_many_steps_is_kept_for_ever(interval: int) -> None:
    retention, there = Retention(every=30), set()
    for step in range(interval, 301, interval):
        there = retention.survivors(sorted(there | {step}))
    assert {step // 30 for step in there} >= set(range(1, 10))


@pytest.mark.parametrize("last", [1, 0, -1])
def test_keeping_fewer_than_two_is_refused(last: int) -> None:
    with pytest.raises(UsageError, match="keep 2 or more"):
        Retention(last=last)


def test_an_interval_below_0_is_refused() -> None:
    with pytest.raises(UsageError, match="0 or more"):
        Retention(every=-1)
