"""Every measurement says how it was made, and every script how it is started."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest

from benchmarks._report import environment_lines, spelled, write_report
from tests.support.pages import ROOT

REPORTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
SCRIPTS = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if "__main__" in path.read_text()]
HEAD = re.compile(
    r"# .+\n\n```\n(?P<command>(?:.+\n)+)```\n\n- date: .+\n- processor: .+\n- system: .+\n- packages: .+\n"
)


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_report_begins_with_its_command_the_machine_and_the_versions(path: Path) -> None:
    head = HEAD.match(path.read_text())
    assert head is not None
    scripts = re.findall(r"benchmarks/\w+/\w+\.py", head["command"])
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script's own parser makes of a command; the script then ends."""
    parse, found = argparse.ArgumentParser.parse_args, list[argparse.Namespace]()
    script, *words = shlex.split(re.sub(r"^.*?\bpython ", "", command))

    def last(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parse(parser, words))
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", last)
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    assert found, f"{script} does not take {words}"
    return found[0]


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_command_of_a_report_is_one_that_its_script_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = HEAD.match(path.read_text())
    assert head is not None
    options = vars(parsed(head["command"], monkeypatch))
    assert str(options.get("root", "DIR")) == "DIR"
    if options.get("run"):
        parsed(options["run"], monkeypatch)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_script_says_how_it_is_started(path: Path) -> None:
    assert f"python {path.relative_to(ROOT)}" in str(ast.get_docstring(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_script_that_writes_a_report_leaves_none_of_its_options_out_of_the_command(path: Path) -> None:
    text = path.read_text()
    assert ("write_report(" in text) <= ("spelled(" in text)


def test_options_are_spelled_as_they_were_given_and_at_their_defaults() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("--root")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 1.0])
    parser.add_argument("--tune-once", action="store_true")
    parser.add_argument("--line-search", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--runs", default="runs")
    words = ["job.toml", "--root", "/data", "--tune-once", "--set", "data.root=/data", "--set", "model.widths=[8, 4]"]
    told = spelled(parser.parse_args(words), "job")
    assert told == (" --root DIR --seed 0 --rates 0.001 1 --tune-once --set data.root=DIR --set 'model.widths=[8, 4]'")
    again = parser.parse_args(["job.toml", *shlex.split(told)])
    assert spelled(again, "job") == told


def test_a_new_report_names_the_version_and_the_commit(tmp_path: Path) -> None:
    write_report(tmp_path / "a.md", "A", "python benchmarks/sgd/step.py", ["| figure |"])
    text = (tmp_path / "a.md").read_text()
    assert HEAD.match(text) is not None
    assert text.endswith("\n| figure |\n")
    (packages,) = (line for line in environment_lines() if line.startswith("- packages: "))
    assert re.match(r"- packages: hpcopt \d+\.\d+\.\d+( \([0-9a-f]{7,}(-dirty)?\))?, torch ", packages)
