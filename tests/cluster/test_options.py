"""The [slurm] table: which values are refused, and how a time limit is read."""

from __future__ import annotations

import datetime

import pytest

from hpcopt.cluster.options import SlurmOptions
from hpcopt.config import parse_job
from hpcopt.errors import UsageError

DATA = '[data]\nsource = "digits"\n'


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (None, None),
        (90, 90 * 60),
        ("90", 90 * 60),
        ("10:30", 11 * 60),
        ("01:00:00", 3600),
        (datetime.time(1, 30), 5400),
        ("2-12", 60 * 3600),
        ("1-00:30", 24 * 3600 + 1800),
        ("1-02:03:04", 24 * 3600 + 2 * 3600 + 4 * 60),
        ("unlimited", None),
    ],
)
def test_a_time_limit_is_read_as_slurm_does(time: str | int | datetime.time | None, seconds: int | None) -> None:
    options = SlurmOptions(time=time)
    assert options.limit == seconds
    assert options.time_text == (None if time is None else str(time))


@pytest.mark.parametrize("time", ["1 hour", "1:2:3:4", "-5", "", 0, "00:00", -3, True, "1-"])
def test_what_is_no_time_is_refused(time: str | int) -> None:
    with pytest.raises(UsageError, match=r"slurm\.time = .*HH:MM:SS"):
        SlurmOptions(time=time)


def test_the_run_is_told_to_save_two_minutes_before_the_end_or_a_quarter_of_a_short_time() -> None:
    assert SlurmOptions().signal_seconds == 120
    assert SlurmOptions(time="01:00:00").signal_seconds == 120
    assert SlurmOptions(time="00:02:00").signal_seconds == 30
    assert SlurmOptions(time="00:02:00", save_before=100).signal_seconds == 100
    with pytest.raises(UsageError, match=r"save_before = 120 .* before it has begun"):
        SlurmOptions(time="00:02:00", save_before=120)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"nodes": 0}, r"slurm\.nodes = 0 .* at least 1"),
        ({"max_requeues": -1}, r"slurm\.max_requeues = -1 .* at least 0"),
        ({"account": "a\n#SBATCH --nodes=99"}, r"slurm\.account = .* on one line"),
        ({"partition": " "}, r"slurm\.partition = ' ' .* not be empty"),
        ({"extra": ["mem=8G"]}, r"slurm\.extra = 'mem=8G' is not an option of sbatch"),
        ({"extra": ["--mem=8G\nrm"]}, r"slurm\.extra = .* on one line"),
        ({"skip": ["--"]}, r"slurm\.skip = '--' is not an option"),
        ({"launcher": "--mpi=pmix"}, r"slurm\.launcher = '--mpi=pmix' must be \"auto\" or a command"),
        ({"launcher": "srun 'a"}, r"slurm\.launcher = .* is not a command: No closing quotation"),
        ({"launcher": "srun mpirun"}, r"a launcher by a launcher"),
    ],
)
def test_what_breaks_its_rule_is_refused_by_name(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SlurmOptions(**values)  # type: ignore[arg-type]


def test_the_table_is_one_of_the_job_file() -> None:
    job = parse_job(DATA + '[slurm]\nnodes = 2\nntasks_per_node = 4\ntime = 01:00:00\nextra = ["--mem=8G"]\n')
    assert (job.slurm.ranks, job.slurm.limit, job.slurm.extra) == (8, 3600, ["--mem=8G"])
    assert parse_job(job.to_toml()) == job
    with pytest.raises(UsageError, match=r"slurm\.node is not a key of .slurm.; did you mean 'nodes'"):
        parse_job(DATA + "[slurm]\nnode = 2\n")
    with pytest.raises(UsageError, match=r"slurm\.nodes = '2' is not allowed"):
        parse_job(DATA + '[slurm]\nnodes = "2"\n')
