"""A run goes on with the job it was begun with; how long and where it runs may change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt.config import Job, parse_job
from hpcopt.errors import UsageError
from hpcopt.train.run.same_job import check_same_job

TEXT = """
[run]
epochs = 3
[data]
source = "digits"
batch = 30
[model]
name = "mlp"
widths = [8]
[solver]
name = "sgd"
learning_rate = 0.1
"""


def job(*settings: str) -> Job:
    return parse_job(TEXT, list(settings))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(job().to_toml())
    return path


@pytest.mark.parametrize(
    "setting",
    [
        "run.name=other",
        "run.epochs=9",
        "run.stop.seconds=5",
        "run.evaluate_every=0.5",
        "run.give_up_after=3",
        "run.device=cpu",
        "data.root=elsewhere",
        "loss.micro_batch=4",
        "parallel.quorum=0.5",
        "checkpoint.every_seconds=9",
        "debug.check_agreement=true",
    ],
)
def test_how_long_and_where_may_change(saved: Path, setting: str) -> None:
    check_same_job(job(setting), saved)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("run.seed=1", r"made with run\.seed = 0, the job now says 1"),
        ("run.precision=float64", r"run\.precision = 'float32', the job now says 'float64'"),
        ("data.batch=31", r"data\.batch = 30, the job now says 31"),
        ("data.limit=100", r"data\.limit = nothing, the job now says 100"),
        ("model.widths=[9]", r"model\.widths = \[8\], the job now says \[9\]"),
        ("model.activation=tanh", r"model\.activation = nothing, the job now says 'tanh'"),
        ("loss.weight_decay=0.1", r"loss\.weight_decay = 0\.0, the job now says 0\.1"),
        ("solver.learning_rate=0.2", r"solver\.learning_rate = 0\.1, the job now says 0\.2"),
        ("solver.name=adam", r"solver\.name = 'sgd', the job now says 'adam'"),
    ],
)
def test_what_is_computed_may_not_change(saved: Path, setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        check_same_job(job(setting), saved)
    for advice in ("give it back its value", "--run-dir", "--fresh"):
        assert advice in str(error.value)


def test_a_key_that_was_not_there_yet_had_its_default(saved: Path) -> None:
    lines = saved.read_text().splitlines(keepends=True)
    saved.write_text("".join(line for line in lines if not line.startswith("decay_norms")))
    check_same_job(job(), saved)
    with pytest.raises(UsageError, match=r"decay_norms = True, the job now says False"):
        check_same_job(job("loss.decay_norms=false"), saved)


def test_a_key_that_is_gone_is_a_difference(saved: Path) -> None:
    saved.write_text(saved.read_text().replace("[solver]", "[solver]\ntemperature = 3"))
    with pytest.raises(UsageError, match=r"solver\.temperature = 3, the job now says nothing"):
        check_same_job(job(), saved)


def test_without_a_job_there_is_nothing_to_compare(tmp_path: Path) -> None:
    check_same_job(job(), tmp_path / "job.toml")


def test_a_job_that_cannot_be_read_is_an_error(saved: Path) -> None:
    saved.write_text("[run\n")
    with pytest.raises(UsageError, match=r"cannot be read: .*Restore that file, or start anew with --fresh"):
        check_same_job(job(), saved)


def test_a_job_with_letters_of_any_language_goes_on_whatever_the_locale_was(tmp_path: Path) -> None:
    code = "import sys, pathlib; from hpcopt.train.run.directory import write_atomically as write\n"
    code += r"write(pathlib.Path(sys.argv[1]), '\u00fc')"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", code, str(tmp_path / "job.toml")]
    subprocess.run(words, cwd=Path(__file__).parents[3], env=os.environ | ascii_only, check=True, timeout=60)
    assert (tmp_path / "job.toml").read_text(encoding="utf-8") == "ü"
