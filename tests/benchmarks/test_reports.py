"""Every measurement says how it was made, and every script how it is started."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks._report import environment_lines, write_report
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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_script_says_how_it_is_started(path: Path) -> None:
    assert f"python {path.relative_to(ROOT)}" in str(ast.get_docstring(ast.parse(path.read_text())))


def test_a_new_report_names_the_version_and_the_commit(tmp_path: Path) -> None:
    write_report(tmp_path / "a.md", "A", "python benchmarks/sgd/step.py", ["| figure |"])
    text = (tmp_path / "a.md").read_text()
    assert HEAD.match(text) is not None
    assert text.endswith("\n| figure |\n")
    (packages,) = (line for line in environment_lines() if line.startswith("- packages: "))
    assert re.match(r"- packages: hpcopt \d+\.\d+\.\d+( \([0-9a-f]{7,}(-dirty)?\))?, torch ", packages)
