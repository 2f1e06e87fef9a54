"""Where a run stands, from what its record holds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcopt.analysis.history import open_run
from hpcopt.analysis.status import SILENT_SECONDS, slowest_rank, standing
from hpcopt.cli.main import main
from hpcopt.train.run.directory import METRICS, STATUS
from hpcopt.train.run.halt import write_halt
from hpcopt.train.run.lock import FILE_NAME, RunLock
from hpcopt.train.run.record import RANK_COLUMNS
from hpcopt.train.run.record_reader import empty_table
from hpcopt.train.watchdog import SILENCE, note_path
from tests.support.runs import set_status, write_live, write_run, write_start


def live(path: Path, **options: Any) -> Path:
    """A run that is going on, in this process: an iteration in 0.1 s, and 0.12 s of everything."""
    return write_live(path, **{"planned": {"iterations": 100, "epochs": None, "seconds": None}, **options})


def found(path: Path) -> dict[str, Any]:
    facts = standing(open_run(path))
    json.dumps(facts, allow_nan=False)
    return facts


def test_a_run_that_is_going_on_has_a_rate_and_an_end_to_come(tmp_path: Path) -> None:
    facts = found(live(tmp_path / "a", epochs=10, per_epoch=4))
    assert (facts["status"], facts["alive"], facts["silent"]) == ("running", True, False)
    assert (facts["iterations"], facts["epochs"]) == (40, 10.0)
    assert facts["rate"] == pytest.approx(10.0)
    assert facts["remaining_seconds"] == pytest.approx(60 * 0.12)
    assert facts["evaluation"]["iteration"] == 40
    assert facts["process"]["pid"] == os.getpid()
    assert facts["checkpoint"] is None


@pytest.mark.parametrize(
    ("planned", "seconds"),
    [
        ({"iterations": None, "epochs": 12.0, "seconds": None}, 8 * 0.12),
        ({"iterations": None, "epochs": 12.0, "seconds": 5.0}, 5.0 - 40 * 0.12),
        ({"iterations": 30, "epochs": None, "seconds": None}, 0.0),
        ({"iterations": None, "epochs": None, "seconds": None}, None),
        (None, None),
    ],
)
def test_the_first_of_the_planned_ends_counts(tmp_path: Path, planned: Any, seconds: float | None) -> None:
    facts = found(live(tmp_path / "a", epochs=10, per_epoch=4, planned=planned))
    assert facts["remaining_seconds"] == (None if seconds is None else pytest.approx(seconds))
    assert (facts["estimated_end"] is None) == (seconds is None)


def test_an_end_that_no_calendar_has_is_none(tmp_path: Path) -> None:
    path = live(tmp_path / "a", planned={"iterations": 10**13, "epochs": None, "seconds": None})
    facts = found(path)
    assert (facts["remaining_seconds"] > 1e11, facts["estimated_end"]) == (True, None)
    assert main(["status", str(path)]) == 0


def test_a_run_that_has_just_started_has_neither_rate_nor_loss(tmp_path: Path) -> None:
    path = write_start(tmp_path / "a")
    RunLock.acquire(path / FILE_NAME)
    facts = found(path)
    assert (facts["status"], facts["iterations"]) == ("running", 0)
    assert (facts["rate"], facts["remaining_seconds"], facts["loss"]) == (None, None, None)


def test_a_run_that_has_ended_has_no_end_to_come(tmp_path: Path) -> None:
    facts = found(write_run(tmp_path / "a", planned={"iterations": 100, "epochs": None, "seconds": None}))
    assert (facts["status"], facts["alive"], facts["silent"]) == ("finished", False, False)
    assert facts["estimated_end"] is None


def test_a_run_that_was_killed_reads_as_failed(tmp_path: Path) -> None:
    facts = found(write_run(tmp_path / "a", status="running"))
    assert (facts["status"], facts["alive"]) == ("failed", False)
    assert "killed" in facts["stop_reason"]


def test_a_run_that_writes_nothing_any_more_is_silent(tmp_path: Path) -> None:
    path = live(tmp_path / "a")
    note_path(path, 0).write_text("step 41".ljust(127) + "\n")
    before = time.time() - SILENT_SECONDS - 5
    for name in (STATUS, METRICS, FILE_NAME):
        os.utime(path / name, (before, before))
    facts = found(path)
    assert (facts["silent"], facts["doing"], facts["silence"]) == (True, "step 41", None)
    assert SILENT_SECONDS < facts["last_sign_seconds"] < SILENT_SECONDS + 60
    (path / "log" / SILENCE).touch()
    assert "Rank 1 left no note" in found(path)["silence"]


def test_a_method_whose_iterations_are_long_is_not_silent_in_one(tmp_path: Path) -> None:
    path = live(tmp_path / "a")
    run = open_run(path)
    run.iterations["seconds"] *= 1000.0
    before = time.time() - 2 * SILENT_SECONDS
    for name in (STATUS, METRICS, FILE_NAME):
        os.utime(path / name, (before, before))
    assert not standing(run)["silent"]


def test_from_another_host_nobody_sees_the_process(tmp_path: Path) -> None:
    path = live(tmp_path / "a")
    set_status(path, host="elsewhere")
    assert found(path)["alive"] is None


def test_that_it_was_asked_to_end_is_seen(tmp_path: Path) -> None:
    path = live(tmp_path / "a")
    assert found(path)["stopping"] is None
    halt = write_halt(path, after_checkpoint=True)
    assert found(path)["stopping"] == {"ends": True, "after_checkpoint": True, "by": halt.by, "when": halt.when}


def table(step: Any, waited: Any) -> np.recarray:
    made = empty_table(RANK_COLUMNS, len(step), width=len(step[0]))
    made["seconds_step"], made["seconds_waited"] = step, waited
    return made


def test_the_slowest_rank_is_the_one_that_computes_longest_lately() -> None:
    early, late = [[4.0, 4.0, 4.0]], [[4.0, 4.0, 4.0]] * 5
    found = slowest_rank(table(early + late, [[0.0, 30.0, 30.0], *[[2.0, 0.4, 3.0]] * 5]))
    assert found == {"rank": 1, "waits": pytest.approx(0.1), "others_wait": pytest.approx(0.625)}


def test_one_rank_is_not_the_slowest() -> None:
    assert slowest_rank(table([[4.0]], [[0.0]])) is None
    assert slowest_rank(table([[0.0, 0.0]], [[0.0, 0.0]])) is None
