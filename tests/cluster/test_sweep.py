"""Sweeps: every combination once, each with a run directory that says what it is."""

from __future__ import annotations

import pytest

from hpcopt.cluster.sweep import Task, make_tasks
from hpcopt.errors import UsageError


def test_every_combination_is_a_task_and_the_last_key_changes_fastest() -> None:
    tasks = make_tasks(["run.seed=1,2", "solver.learning_rate=0.1, 0.01"], "runs/a")
    assert [task.settings for task in tasks] == [
        (f"run.seed={seed}", f"solver.learning_rate={rate}") for seed in (1, 2) for rate in ("0.1", "0.01")
    ]
    assert tasks[1].directory == "runs/a-seed=1-learning_rate=0.01"


def test_no_sweep_is_no_array() -> None:
    assert make_tasks([], "runs/a") == []


def test_commas_in_brackets_and_quotes_do_not_separate() -> None:
    tasks = make_tasks(['model.widths=[4, 5],[6],"a,b"'], "r")
    assert [task.settings for task in tasks] == [
        ("model.widths=[4, 5]",),
        ("model.widths=[6]",),
        ('model.widths="a,b"',),
    ]
    assert [task.directory for task in tasks] == ["r-widths=4_5", "r-widths=6", "r-widths=a_b"]


def test_directories_are_never_the_same() -> None:
    same_end = make_tasks(["solver.name=sgd,adam", "model.name=mlp"], "r")
    assert [task.directory for task in same_end] == [
        "r-solver.name=sgd-model.name=mlp",
        "r-solver.name=adam-model.name=mlp",
    ]
    assert make_tasks(["data.source=a/b,a:b"], "r") == [
        Task(("data.source=a/b",), "r-1-source=a_b"),
        Task(("data.source=a:b",), "r-2-source=a_b"),
    ]


@pytest.mark.parametrize(
    ("sweeps", "says"),
    [
        (["run.seed"], "does not say which key"),
        (["seed=1,2"], r"does not say which key.*table\.key=value1,value2"),
        (["1-10"], "does not say which key"),
        (["run.seed="], "has an empty value"),
        (["run.seed=1,,2"], "has an empty value"),
        (["run.seed=1,1"], "has the value 1 twice"),
        (["run.seed=1", "run.seed=2"], r"has the key run\.seed twice"),
        (["slurm.nodes=1,2"], "ask the batch system for the same"),
    ],
)
def test_a_sweep_that_is_none_is_refused(sweeps: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_tasks(sweeps, "r")
