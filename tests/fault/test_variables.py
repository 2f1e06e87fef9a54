"""The layout by variables from the outside: whole runs on the grids of 2 and 4 ranks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcopt.analysis.history import open_run
from tests.fault.conftest import run_words

JOB = """
[run]
epochs = 2
[data]
source = "digits"
batch = 300
test = 0.2
[model]
widths = [24, 16]
[solver]
name = "apts"
[parallel]
layout = "variables"
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


@pytest.mark.parametrize(("ranks", "shards"), [(2, 1), (4, 2)])
def test_a_run_learns_and_says_how_the_variables_were_divided(
    workplace: Path, launch: Callable, ranks: int, shards: int
) -> None:
    done = launch(ranks, run_words(f"parallel.data={shards}", "debug.check_agreement=true"), timeout=120)
    assert done.returncode == 0, done.stderr
    run = open_run(workplace / "out")
    assert (run.facts["layout"], run.facts["grid"]) == ("variables", [shards, ranks // shards])
    assert sum(run.facts["block_sizes"]) == run.facts["parameters"] == 64 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10
    assert run.history["train_loss"][-1] < 0.5 * run.history["train_loss"][0]
    assert run.history["test_accuracy"][-1] > 0.7


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["parallel.data=2"], "parallel.data = 2 does not fit 3 ranks"),
        (["model.widths=[5]"], "form 2 groups, which cannot be divided among 3 ranks"),
        (["solver.name=lbfgs"], 'model.init = "torch" is not possible'),
        (["parallel.layout=data", "parallel.data=3"], 'parallel.data = 3 needs parallel.layout = "variables"'),
    ],
)
def test_what_does_not_fit_ends_all_ranks_with_one_paragraph(
    workplace: Path, launch: Callable, settings: list[str], says: str
) -> None:
    done = launch(3, run_words(*settings), timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("hpcopt: error:") == 1
    assert says in done.stderr
    assert not (workplace / "out").exists()
