"""What a user can set is written down: every key of a job file stands in the section where one looks for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hpcopt.analysis import machine_verdicts, verdicts
from hpcopt.cluster.options import SlurmOptions
from hpcopt.config import CheckpointOptions, DebugOptions, LossOptions, RunOptions, StopOptions
from hpcopt.data.files import SUFFIXES
from hpcopt.data.options import DataOptions
from hpcopt.models.registry import MODELS, make_options
from hpcopt.models.registry import option_names as model_keys
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.registry import SOLVERS, solver_class
from hpcopt.solvers.registry import option_names as solver_keys
from hpcopt.train.run.record import EVALUATION_COLUMNS, ITERATION_COLUMNS, RANK_COLUMNS, Column
from tests.support.pages import prose

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


def rows(text: str) -> Iterator[tuple[list[str], str]]:
    """The keys and the second column of every row of the tables of keys in a text."""
    for table in re.findall(r"^\| key \|.*\n\|[-| ]+\n((?:\|.*\n)*)", text, re.MULTILINE):
        for row in table.splitlines():
            keys, second, *_ = row.strip("|").split("|")
            yield re.findall("`(.*?)`", keys), second.strip()


def told(text: str, owner: str) -> dict[str, Any]:
    """Defaults by key as the tables of a text have them for ``owner``, a table of the job file or a method.

    Several keys of a row have their defaults in their order; in brackets stands that of a preset, and where methods
    differ, each has its own behind its name.
    """
    found: dict[str, Any] = {}
    for keys, cell in rows(text):
        parts = [part.strip() for part in re.sub(r"\(.*?\)", "", cell).split(";")]
        own = next((part for part in parts if part.startswith(f"`{owner}` ")), parts[0]).removeprefix(f"`{owner}` ")
        values = own.split(",") if len(keys) > 1 else [own]
        found |= {key.removeprefix(f"{owner}."): value(each) for key, each in zip(keys, values, strict=False)}
    return found


def value(text: str) -> Any:
    """What a default is: a fraction, or as in a job file; else the words that stand for it."""
    text = text.strip(" `")
    if re.fullmatch(r"\d+/\d+", text):
        return float(Fraction(text))
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def defaults(*options: type) -> dict[str, Any]:
    """Defaults by key, but for those that stand for what is found out later, which the pages have words for."""
    made: dict[str, Any] = {}
    for field in (field for each in options for field in fields(each)):
        made[field.name] = field.default if field.default_factory is MISSING else field.default_factory()
    listed = {key: list(each) if isinstance(each, tuple) else each for key, each in made.items()}
    return {key: each for key, each in listed.items() if each not in (None, "", [], MISSING) and not is_dataclass(each)}


@pytest.mark.parametrize("table", TABLES)
def test_every_default_of_a_table_is_that_of_the_code(table: str) -> None:
    known, written = defaults(*TABLES[table]), told(section("jobs.md", f"[{table}]"), table)
    assert {key: written.get(key) for key in known} == known


@pytest.mark.parametrize("method", SOLVERS)
def test_every_default_of_a_method_is_that_of_the_code(method: str) -> None:
    known, written = defaults(solver_class(method)), told(section("methods.md", method), method)
    both = known.keys() & written.keys()
    assert len(both) > 3
    assert {key: written[key] for key in both} == {key: known[key] for key in both}


@pytest.mark.parametrize("model", MODELS)
def test_every_default_of_a_model_is_that_of_the_code(model: str) -> None:
    (row,) = [line for line in section("jobs.md", "[model]").splitlines() if line.startswith(f"| `{model}` |")]
    written = tomllib.loads("\n".join(re.findall(r"`(\w+ = .*?)`", row)))
    assert written == defaults(type(make_options(model, {})))


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
        named = [key for keys, _ in rows(prose(page)) for key in keys]
        assert len(named) > 50
        assert sorted(set(named) - known) == []


def test_every_line_of_the_doctor_is_explained() -> None:
    sources = [Path(str(module.__file__)).read_text() for module in (verdicts, machine_verdicts)]
    lines = set(re.findall(r'Finding\(\s*"([^"]+)"', "".join(sources)))
    (table,) = re.findall(r"^\| line \|.*\n((?:\|.*\n)*)", prose("running.md"), re.MULTILINE)
    assert len(lines) > 10
    assert lacking(table, sorted(lines)) == []


@pytest.mark.parametrize("columns", [ITERATION_COLUMNS, EVALUATION_COLUMNS, RANK_COLUMNS])
def test_every_column_of_the_record_is_named(columns: Sequence[Column]) -> None:
    rows = [row for row in prose("record.md").splitlines() if row.startswith("| `/")]
    told = [" ".join(re.findall("`(.*?)`", row.split("|", 2)[2])).split() for row in rows]
    assert sorted(column.name for column in columns) in [sorted(set(names) - {"local_iterations"}) for names in told]
