"""Learning rates as functions of the epochs done."""

import pytest

from hpcopt.errors import UsageError
from hpcopt.solvers.schedules import ScheduledRate


def rate(position, **options):
    return ScheduledRate(learning_rate=2.0, **options).rate(position)


def test_constant_stays():
    assert rate(0) == rate(1e6) == 2.0


def test_cosine_falls_from_the_rate_over_its_half_to_zero_at_the_end_of_the_run():
    options = {"schedule": "cosine", "horizon_epochs": 10}
    assert [rate(p, **options) for p in (0, 5, 10, 12)] == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert [rate(p, **options) for p in (2.5, 7.5)] == pytest.approx([1 + 0.5**0.5, 1 - 0.5**0.5])


def test_linear_falls_in_a_straight_line_that_begins_after_the_warmup():
    options = {"schedule": "linear", "decay_epochs": 6, "warmup_epochs": 2}
    assert [rate(p, **options) for p in (2, 4, 6)] == pytest.approx([2.0, 1.0, 0.0])


def test_a_run_that_is_all_warmup_ends_at_zero():
    options = {"schedule": "linear", "horizon_epochs": 4, "warmup_epochs": 4}
    assert [rate(p, **options) for p in (2, 4)] == pytest.approx([0.5 * 2.2, 0.0])


def test_quadratic_is_the_square_of_linear():
    assert rate(3, schedule="quadratic", decay_epochs=4) == pytest.approx(2.0 / 16)


def test_auto_is_linear_where_the_length_of_the_run_is_known():
    assert [rate(p, schedule="auto", horizon_epochs=4) for p in (0, 3, 4)] == pytest.approx([2.0, 0.5, 0.0])
    assert rate(3, schedule="auto") == 2.0


def test_warmup_grows_from_a_tenth_and_is_never_zero():
    assert [rate(p, warmup_epochs=4) for p in (0, 2, 4)] == pytest.approx([0.2, 1.1, 2.0])


def test_the_warmup_of_the_root_is_slow_at_first_and_begins_where_it_is_told():
    options = {"warmup_epochs": 25, "warmup": "sqrt", "warmup_start": 0.1}
    assert [rate(p, **options) for p in (0, 24, 25)] == pytest.approx([0.1, 2 - 1.9 * 0.2, 2.0])
    assert rate(0, warmup_epochs=4, warmup="sqrt") == pytest.approx(0.2)
    assert rate(1, warmup_epochs=4, warmup_start=5.0) == 2.0


def test_step_drops_at_half_and_three_quarters_of_the_run():
    options = {"schedule": "step", "horizon_epochs": 100}
    assert [rate(p, **options) for p in (0, 49.9, 50, 75, 99)] == pytest.approx([2.0, 2.0, 0.2, 0.02, 0.02])


def test_step_drops_at_the_given_epochs_or_every_so_many():
    listed = {"schedule": "step", "decay_epochs": [3, 4], "decay_factor": 0.5}
    assert [rate(p, **listed) for p in (2.9, 3, 4)] == pytest.approx([2.0, 1.0, 0.5])
    assert [rate(p, schedule="step", decay_epochs=3, decay_factor=0.5) for p in (2, 3, 7)] == pytest.approx([2, 1, 0.5])


def test_a_schedule_without_an_end_is_refused():
    with pytest.raises(UsageError, match="Give decay_epochs"):
        rate(1, schedule="cosine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0 must be a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast' must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"learning_rate": True}, "learning_rate = True"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warmup": "root"}, "warmup = 'root' must be one of 'linear', 'sqrt'"),
        ({"warmup_start": 0.0}, "warmup_start = 0.0 must be a number above 0"),
        ({"warmup_epochs": -1}, "warmup_epochs = -1 must be a number of at least 0"),
        ({"decay_factor": 2}, "above 0 and at most 1"),
        ({"horizon_epochs": 0}, "horizon_epochs = 0 must be a number above 0"),
        ({"schedule": "step", "decay_epochs": [0, 3]}, "ascending"),
        ({"schedule": "step", "decay_epochs": [4, 3]}, "ascending"),
        ({"schedule": "cosine", "decay_epochs": [4, 5]}, "one number"),
        ({"schedule": "cosine", "decay_epochs": 2, "warmup_epochs": 3}, "above warmup_epochs = 3"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(options, words):
    with pytest.raises(UsageError, match=words):
        ScheduledRate(**options)
