"""A job in the queue, with programs in the place of Slurm's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hpcopt.cluster import queue
from hpcopt.cluster.queue import Follower, accounts, shown, submit
from hpcopt.errors import HpcoptError, UsageError
from tests.support.programs import install

PENDING = "JobId=7 JobName=a JobState=PENDING Reason=Resources Restarts=0 ExitCode=0:0 NodeList="
RUNNING = "JobId=7 JobName=a JobState=RUNNING Reason=None Restarts={} ExitCode=0:0 NodeList=n[1-2]"
ENDED = "JobId=7 JobName=a JobState={} Reason=None Restarts=1 ExitCode={} NodeList=n[1-2]"
COMPLETED = ENDED.format("COMPLETED", "0:0")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``slurm(name, text)`` puts a program on an otherwise empty PATH; ``text`` is bash."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return partial(install, tmp_path)


def answers(monkeypatch: pytest.MonkeyPatch, scontrol: list[str], sacct: str = "") -> None:
    """Answers of scontrol one after the other, and the one of sacct."""
    left = iter(scontrol)
    monkeypatch.setattr(queue, "ask", lambda *words: next(left) if words[0] == "scontrol" else sacct)


def follow(lines: list[str]) -> int:
    return Follower("7", lines.append, lambda seconds: None).wait()


def test_sbatch_gives_the_number(tmp_path: Path, slurm: Callable[[str, str], None]) -> None:
    slurm("sbatch", 'echo "Welcome to the cluster."; [ "$1 $2" = "--parsable a b.sbatch" ] && echo "17;north"')
    assert submit(Path("a b.sbatch")) == "17"


def test_without_sbatch_one_is_told_what_to_do(slurm: Callable[[str, str], None]) -> None:
    with pytest.raises(UsageError, match=r"No such file.*on a login node of the cluster, sbatch runs/a\.sbatch"):
        submit(Path("runs/a.sbatch"))


def test_what_sbatch_says_when_it_refuses_is_handed_on(slurm: Callable[[str, str], None]) -> None:
    slurm("sbatch", 'echo "sbatch: error: invalid partition specified: fst" >&2; exit 1')
    with pytest.raises(UsageError, match=r"refused the job: invalid partition specified: fst\. Change.*slurm\.skip"):
        submit(Path("a"))


def test_an_sbatch_that_was_asked_not_to_submit_is_no_job(slurm: Callable[[str, str], None]) -> None:
    slurm("sbatch", 'echo "sbatch: Job 8 to start at noon" >&2')
    with pytest.raises(UsageError, match=r"submitted nothing and said: sbatch: Job 8 to start at noon\. .*--test-only"):
        submit(Path("a"))


def test_a_job_is_followed_through_its_requeue(monkeypatch: pytest.MonkeyPatch) -> None:
    again = PENDING.replace("Restarts=0", "Restarts=1").replace("Resources", "BeginTime")
    looks = [PENDING, RUNNING.format(0), RUNNING.format(0), again, RUNNING.format(1), COMPLETED]
    answers(monkeypatch, looks)
    lines: list[str] = []
    assert follow(lines) == 0
    assert lines == [
        "job 7: PENDING (Resources)",
        "job 7: RUNNING on n[1-2]",
        "job 7: PENDING (BeginTime), requeued once",
        "job 7: RUNNING on n[1-2], requeued once",
        "job 7: COMPLETED, requeued once",
    ]


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "75:0", 75),
        ("FAILED", "3:0", 3),
        ("CANCELLED", "0:15", 143),
        ("TIMEOUT", "0:0", 1),
        ("NODE_FAIL", "0:0", 1),
        ("OUT_OF_MEMORY", "0:125", 253),
    ],
)
def test_the_exit_status_is_the_jobs(monkeypatch: pytest.MonkeyPatch, state: str, code: str, status: int) -> None:
    answers(monkeypatch, [ENDED.format(state, code)] * 2)
    assert follow([]) == status


def test_what_looks_failed_for_a_moment_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [ENDED.format("NODE_FAIL", "0:0"), RUNNING.format(1), COMPLETED])
    assert follow([]) == 0


def test_of_an_array_the_worst_status_counts_also_of_tasks_long_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = "JobId=7 ArrayJobId=7 ArrayTaskId=1-3 JobName=a JobState=PENDING Reason=Priority Restarts=0 ExitCode=0:0"
    first, second, third = (waiting.replace("1-3", str(n)).replace("JobId=7 A", f"JobId={6 + n} A") for n in (1, 2, 3))
    done = [task.replace("PENDING", "COMPLETED") for task in (first, second, third)]
    failed = second.replace("PENDING", "FAILED").replace("0:0", "3:0")
    running = third.replace("PENDING", "RUNNING")
    lines: list[str] = []
    answers(monkeypatch, [waiting, "\n".join([done[0], failed, running]), running, done[2], done[2]])
    assert follow(lines) == 3
    assert lines == [
        "job 7: PENDING (Priority)",
        "job 7: 1 COMPLETED, 1 FAILED, 1 RUNNING",
        "job 7: 2 COMPLETED, 1 FAILED",
    ]


def test_the_accounts_know_what_scontrol_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [RUNNING.format(0), "", ""], "7|FAILED|4:0\n")
    assert follow([]) == 4


def test_slurm_may_be_silent_for_a_while_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [RUNNING.format(0), *[""] * 40, COMPLETED])
    assert follow([]) == 0
    answers(monkeypatch, [""] * 99)
    with pytest.raises(HpcoptError, match=r"nothing of job 7.*squeue -j 7"):
        follow([])


def test_a_slurm_that_fails_has_said_nothing(
    slurm: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST_FAILURES", 1)
    slurm("scontrol", f'echo x >> {tmp_path}/asked; echo "{COMPLETED}"; exit 1')
    with pytest.raises(HpcoptError, match="nothing of job 7"):
        follow([])
    assert (tmp_path / "asked").read_text() == "x\nx\n"


def test_names_of_jobs_cannot_pass_for_their_state() -> None:
    (look,) = shown("JobId=7 JobName=xJobState=COMPLETED JobState=RUNNING Restarts=2 ExitCode=0:0").values()
    assert (look.state, look.restarts) == ("RUNNING", 2)


def test_accounts_are_read() -> None:
    found = accounts("7_1|CANCELLED by 1000|0:15\n7_2|RUNNING|0:0\n\n")
    assert [(task, look.state, look.status) for task, look in found.items()] == [
        ("7_1", "CANCELLED", 143),
        ("7_2", "RUNNING", 0),
    ]
