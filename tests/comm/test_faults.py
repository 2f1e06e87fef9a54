"""How one process ends; jobs of several are in tests/fault."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from hpcopt.comm import faults
from hpcopt.comm.faults import labelled, mark_collective, paragraph, run_guarded
from hpcopt.comm.together import Report, agreed_error
from hpcopt.errors import HpcoptError, UsageError


@pytest.fixture(autouse=True)
def _without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "initialised_mpi", lambda: None)
    for name in faults.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def raising(error: BaseException) -> Any:
    def main() -> int:
        raise error

    return main


def test_the_status_of_main_is_returned() -> None:
    assert run_guarded(lambda: 75) == 75


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError("x"), 2), (HpcoptError("x"), 1)],
)
def test_an_error_of_ours_is_a_paragraph_and_its_status(capsys: Any, error: HpcoptError, status: int) -> None:
    assert run_guarded(raising(error)) == status
    assert capsys.readouterr().err == "hpcopt: error: x\n"


def test_any_other_exception_is_a_labelled_trace_and_one(capsys: Any) -> None:
    assert run_guarded(raising(KeyError("lost"))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("[rank 0/1 ") for line in lines)
    assert lines[0].endswith("] Traceback (most recent call last):")
    assert lines[-1].endswith("] KeyError: 'lost'")


def test_an_interrupt_is_130_without_a_trace(capsys: Any) -> None:
    assert run_guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "hpcopt: interrupted\n"


def test_system_exit_passes() -> None:
    with pytest.raises(SystemExit, match="75"):
        run_guarded(raising(SystemExit(75)))


def test_a_process_that_is_not_the_first_leaves_a_shared_error_to_the_first(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    error = UsageError("x")
    mark_collective(error, 0)
    assert run_guarded(raising(error)) == 2
    assert capsys.readouterr().err == ""


def test_a_process_that_may_have_failed_alone_speaks_after_a_while(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", naps.append)
    monkeypatch.setenv("PMI_RANK", "1")
    assert run_guarded(raising(UsageError("x"))) == 2
    assert capsys.readouterr().err == "hpcopt: error: x\n"
    assert naps[0] > 0


def test_a_message_is_kept_until_the_first_rank_has_it() -> None:
    """MPI reads a long one from the memory that its request holds."""

    class Request:
        waited = False

        def wait(self) -> None:
            type(self).waited = True

    sent: list[Any] = []

    def isend(message: str, root: int, tag: int) -> Request:
        request = Request()
        sent.append(weakref.ref(request))
        return request

    def improbe(source: int, tag: int, status: Any) -> Any:
        assert sent[0]() is not None
        return SimpleNamespace(recv=lambda: "")

    world = SimpleNamespace(rank=1, size=2, isend=isend, improbe=improbe)
    mpi: Any = SimpleNamespace(COMM_WORLD=world, Status=lambda: SimpleNamespace(Get_source=lambda: 0))
    assert faults._all_failed(mpi, "bad", 1.0)
    assert Request.waited


def test_a_paragraph_is_wrapped_at_words_but_never_inside_paths_or_options() -> None:
    path = "/a-long/path-with/many-parts-" + "x" * 60
    lines = paragraph(f"the file {path} is missing; try --fresh-start now", 40).splitlines()
    assert path in lines
    assert all(len(line) <= 40 for line in lines if line != path)
    assert " ".join(lines) == f"hpcopt: error: the file {path} is missing; try --fresh-start now"


def test_every_line_of_a_trace_has_the_rank() -> None:
    assert labelled("one\n\ntwo\n", 1, 4, "node7") == "[rank 1/4 node7] one\n[rank 1/4 node7] \n[rank 1/4 node7] two\n"


def report(rank: int, kind: str | None, message: str, status: int = 2) -> Report:
    return Report(rank, f"node{rank}", kind, kind or "ValueError", message, "the trace", status)


def test_the_lowest_rank_speaks_and_the_others_are_counted() -> None:
    error = agreed_error([report(1, "UsageError", "bad"), report(2, "UsageError", "worse")], "reading")
    assert type(error) is UsageError
    assert str(error) == "on rank 1 (node1): bad (1 more rank failed too)"


def test_an_unexpected_exception_goes_first_with_its_trace() -> None:
    error = agreed_error([report(0, "UsageError", "bad"), report(3, None, "odd")], "reading")
    assert type(error) is RuntimeError
    assert str(error) == "on rank 3 (node3), reading: ValueError: odd (1 more rank failed too)\nthe trace"
    assert error.failed_rank == 3  # type: ignore[attr-defined]
