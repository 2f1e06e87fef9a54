"""slimTrain on more ranks than the other tests have."""

from __future__ import annotations

from tests.fault.conftest import Launch


def test_ten_steps_on_seven_ranks_are_those_of_one(launch: Launch) -> None:
    """Convolutions in all forms, a dense layer in one; a rank has no sample, others one or two."""
    finished = launch(7, ["-m", "tests.support.last_layers"], timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("of 7: the same") == 7
