"""What a user can set is written down: every key of a job file stands in the section where one looks for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

import pytest

from hpcopt.cluster.options import SlurmOptions
from hpcopt.config import CheckpointOptions, DebugOptions, LossOptions, RunOptions, StopOptions
from hpcopt.data.files import SUFFIXES
from hpcopt.data.options import DataOptions
from hpcopt.models.registry import MODELS
from hpcopt.models.registry import option_names as model_keys
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.registry import SOLVERS
from hpcopt.solvers.registry import option_names as solver_keys
from hpcopt.train.run.record import EVALUATION_COLUMNS, ITERATION_COLUMNS, RANK_COLUMNS, Column
from tests.support.pages import prose

TABLES = {
    "run": (RunOptions, StopOptions),
    "data": (DataOptions,),
    "loss": (LossOptions,),
    "parallel": (ParallelOptions,),
    "checkpoint": (CheckpointOptions,),
    "debug": (DebugOptions,),
    "slurm": (SlurmOptions,),
}


def section(page: str, word: str) -> str:
    """The part of a page below the heading with `word` in it."""
    parts = re.split(r"^## ", prose(page), flags=re.MULTILINE)
    (found,) = [part for part in parts if f"`{word}`" in part.split("\n")[0]]
    return found


def lacking(text: str, keys: list[str]) -> list[str]:
    """The keys that do not stand in `code` in the text."""
    code = " ".join(re.findall(r"`([^`]+)`", text))
    return [key for key in keys if not re.search(rf"\b{key}\b", code)]


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_a_table_is_described(table: str) -> None:
    keys = [field.name for options in TABLES[table] for field in fields(options)]
    assert lacking(section("jobs.md", f"[{table}]"), keys) == []


@pytest.mark.parametrize("model", MODELS)
def test_every_key_of_a_model_is_described(model: str) -> None:
    (row,) = [line for line in section("jobs.md", "[model]").splitlines() if line.startswith(f"| `{model}` |")]
    assert lacking(row, model_keys(model)) == []


@pytest.mark.parametrize("method", SOLVERS)
def test_every_key_of_a_method_is_described(method: str) -> None:
    assert lacking(section("methods.md", method), solver_keys(method)) == []


def test_every_ending_of_a_data_file_is_named() -> None:
    code = " ".join(re.findall(r"`([^`]+)`", section("jobs.md", "[data]"))).split()
    assert [suffix for suffix in SUFFIXES if suffix not in code] == []


def test_every_key_in_a_table_of_keys_is_one() -> None:
    known = {field.name for tables in TABLES.values() for options in tables for field in fields(options)}
    known |= {f"{table}.{field.name}" for table in TABLES for options in TABLES[table] for field in fields(options)}
    known |= {key for method in SOLVERS for key in solver_keys(method)} | {"name"}
    for page in ("jobs.md", "methods.md"):
        tables = re.findall(r"^\| key \|.*\n((?:\|.*\n)*)", prose(page), re.MULTILINE)
        named = [
            key for table in tables for row in table.splitlines() for key in re.findall("`(.*?)`", row.split("|")[1])
        ]
        assert len(tables) > 5
        assert sorted(set(named) - known) == []


@pytest.mark.parametrize("columns", [ITERATION_COLUMNS, EVALUATION_COLUMNS, RANK_COLUMNS])
def test_every_column_of_the_record_is_named(columns: Sequence[Column]) -> None:
    rows = [row for row in prose("record.md").splitlines() if row.startswith("| `/")]
    told = [" ".join(re.findall("`(.*?)`", row.split("|", 2)[2])).split() for row in rows]
    assert sorted(column.name for column in columns) in [sorted(set(names) - {"local_iterations"}) for names in told]
