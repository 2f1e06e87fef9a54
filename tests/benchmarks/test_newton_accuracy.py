"""The benchmark of accuracies compares at equal time, with options that are the same on every set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.apts.against import DEFAULTS, RATES, Entry
from benchmarks.newton import accuracy
from benchmarks.newton.accuracy import SETS, Match, summary, train


def told(final: float, seconds: float = 20.0, status: str = "finished") -> dict[str, Any]:
    """A run whose accuracy rises evenly from 0."""
    history = [{"seconds": 0.0, "test_accuracy": 0.0}, {"seconds": seconds, "test_accuracy": final}]
    return {
        "seconds": seconds,
        "status": status,
        "epochs": 2.0,
        "history": history,
        "final": {"test_accuracy": final, "train_loss": 0.1},
        "best": {"test_accuracy": final},
    }


def match(newton: float, *adam: float) -> Match:
    """Newton in 10 seconds, and Adam in 20 at the first rates."""
    entries = [Entry("adam", rate, told(final)) for rate, final in zip(RATES["adam"], adam, strict=False)]
    return Match("usps", Entry("newton", None, told(newton, 10.0)), entries)


def arguments(**changes: Any) -> argparse.Namespace:
    given = {"seed": 0, "set": [], "newton": [], "ranks": 2, "runs": Path("runs"), "iterations": 100, "batch": 256}
    return argparse.Namespace(**(given | {"root": Path()} | changes))


def test_adam_is_judged_after_the_seconds_of_newton_at_its_best_rate() -> None:
    found = match(0.5, 0.6, 0.8, 0.7)
    assert found.best.rate == RATES["adam"][1]
    assert found.gap == pytest.approx(0.5 - 0.8 / 2)


def test_a_rate_that_diverged_is_not_the_best() -> None:
    diverged = Entry("adam", 1.0, told(0.9, 5.0, "diverged"))
    found = match(0.5, 0.6)
    assert Match("usps", found.newton, [*found.adam, diverged]).best is found.adam[0]


@pytest.mark.parametrize(("better", "words"), [(4, "met."), (3, "NOT met.")])
def test_the_aim_counts_sets_on_which_newton_is_at_least_as_good(better: int, words: str) -> None:
    matches = [match(0.5 if number < better else 0.3, 0.6, 0.6, 0.8) for number in range(len(SETS))]
    assert summary(matches)[-1].endswith(f"on {better} of 6 sets (aim: 4 of 6): {words}")


def test_only_the_source_differs_between_sets_and_newton_has_no_option_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: dict[str, list[str]] = {}

    def trained(job: Path, ranks: int, parent: Path, name: str, root: str, settings: list[str]) -> dict[str, Any]:
        runs[name] = settings
        return told(0.5, 10.0 if "newton" in name else 4.0)

    monkeypatch.setattr(accuracy, "trained", trained)
    for data in ("letter", "usps"):
        train(data, arguments())
    newton = set(runs["usps-newton"])
    assert newton - set(runs["letter-newton"]) == {'data.source="usps"'}
    assert not any(setting.startswith("solver.") for setting in newton)
    for rate in RATES["adam"]:
        adam = set(runs[f"usps-adam-{rate:g}"])
        assert newton - adam == {"run.epochs=100"}
        assert f"run.epochs={accuracy.LEAD * 10.0 * 2.0 / 4.0:.4g}" in adam
    assert DEFAULTS["adam"] in RATES["adam"]
