"""What a person sees while a run is going."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hpcopt.solvers.solver import StopReason
from hpcopt.train.evaluation import Metrics
from hpcopt.train.progress import Harmless, PlainProgress, TerminalProgress, last_lines
from hpcopt.train.protocol import Result


def evaluation(iteration: int) -> dict[str, Any]:
    figures = {"train_loss": 0.5, "test_loss": math.nan, "test_accuracy": 0.9, "test_explained_variance": math.nan}
    return {"iteration": iteration, "epoch": iteration / 2, "seconds": 0.1, **figures}


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_first_and_the_last_evaluation_are_printed_once(console: Console) -> None:
    progress = PlainProgress(console, 4)
    for iteration in (0, 2, 4):
        progress.evaluation(**evaluation(iteration))
    progress.close()
    progress.close()
    assert [line.split()[1] for line in lines(console)] == ["0/4", "4/4"]


def test_a_run_whose_iterations_are_not_known_is_shown_in_epochs(console: Console) -> None:
    progress = PlainProgress(console, 2.5, "epoch")
    progress.evaluation(**evaluation(0))
    assert lines(console)[0].split()[:4] == ["iteration", "0", "epoch", "0.00/2.5"]
    bar = TerminalProgress(console, 2.5, "epoch")
    bar.iteration(**evaluation(3))
    bar.close()
    assert "2/2.5" in lines(console)[-1]


def test_the_bar_is_where_the_last_evaluation_was(console: Console) -> None:
    """Of the iterations it is told now and then only."""
    bar = TerminalProgress(console, 4)
    bar.iteration(**evaluation(2))
    bar.evaluation(**evaluation(4))
    bar.close()
    assert "4/4" in lines(console)[-1]


def test_an_evaluation_that_is_printed_already_is_not_printed_at_the_end(console: Console) -> None:
    progress = PlainProgress(console, 4)
    progress.evaluation(**evaluation(0))
    progress.close()
    assert len(lines(console)) == 1


@pytest.mark.parametrize("kind", [PlainProgress, TerminalProgress])
def test_a_display_that_fails_is_switched_off_and_the_run_goes_on(
    console: Console, kind: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError("the pipe is closed")

    progress = Harmless()
    progress.start(lambda: kind(console, 4))
    monkeypatch.setattr(kind, "evaluation", broken)
    with caplog.at_level(logging.WARNING):
        progress.evaluation(**evaluation(0))
        progress.evaluation(**evaluation(2))
        progress.iteration(**evaluation(3))
        progress.rank_times(3, [0.1], [0.0], [0.0])
        progress.close()
    assert [record.getMessage() for record in caplog.records] == [
        "The display of the run failed and is off: BrokenPipeError: the pipe is closed."
    ]
    assert not progress.attempt(broken)


def test_a_display_that_cannot_start_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    progress = Harmless()
    progress.start(lambda: 1 // 0)
    progress.iteration(iteration=1)
    progress.close()
    assert len(caplog.records) == 1


def result(stop: StopReason = StopReason.EPOCHS_DONE, **fields: Any) -> Result:
    point, none = torch.zeros(1), Metrics()
    return Result(stop, point, point, none, none, none, 0.0, 7, 7.0, 1.0, **fields)


RUN = Path("runs/a")
COST = {"seconds_here": 200.0, "seconds_saving": 1.0}


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (result(), []),
        (result(saved=1, **COST), ["checkpoints: saved 1 checkpoint in runs/a/checkpoints, 0.5% of the time"]),
        (
            result(saved=3, not_saved=2, **COST),
            [
                "checkpoints: saved 3 checkpoints in runs/a/checkpoints, 0.5% of the time; 2 could not be saved, see "
                "runs/a/log"
            ],
        ),
        (result(resumed_from=7), ["There was nothing left to do: the run had come to its end before."]),
        (result(resumed_from=3), []),
        (
            result(StopReason.SAVED, saved=1, **COST),
            [
                "checkpoints: saved 1 checkpoint in runs/a/checkpoints, 0.5% of the time",
                "It is saved after iteration 7; the same command goes on from there.",
            ],
        ),
        (result(StopReason.STOPPED), ["It is saved after iteration 7; the same command goes on from there."]),
    ],
)
def test_under_the_table_stand_the_checkpoints_their_cost_and_how_to_go_on(end: Result, says: list[str]) -> None:
    assert last_lines(end, RUN) == ["run directory: runs/a", *says]
