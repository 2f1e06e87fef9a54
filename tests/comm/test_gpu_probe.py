"""Whether MPI may have device memory: the job that finds out, here with host memory, and what is made of its end."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

from hpcopt.comm import gpu_probe
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.gpu_probe import SIZES, probe, wrong_results
from hpcopt.comm.request import Request


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("", True, "right results"),
        ("print('allreduce rendezvous'); raise SystemExit(3)", False, "wrong results: allreduce rendezvous"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", False, "status -9 and said nothing"),
        ("raise SystemExit('no CUDA\\n-----')", False, "status 1 and said no CUDA"),
        ("import time; time.sleep(60)", False, "hung for 1 s"),
    ],
)
def test_only_a_job_with_the_right_results_is_trusted(comm: Communicator, code: str, expected: bool, said: str) -> None:
    found, reason = probe(comm, python(code), seconds=1.0 if "sleep" in code else 60.0)
    assert found is expected
    assert said in reason


def test_where_nothing_can_be_started_memory_is_staged(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(comm, ["/there/is/no/mpirun"])[0] is False
    monkeypatch.setattr(gpu_probe, "launchers", lambda: [{"path": "/mpirun", "version": "Some other MPI"}])
    assert probe(comm) == (False, "not asked: no mpirun of this MPI library was found")


def test_the_job_is_no_part_of_the_one_that_asks(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("OMPI_MCA_btl", "self,sm")
    code = "import os; names = {'OMPI_COMM_WORLD_RANK', 'PMIX_RANK', 'PMI_RANK', 'SLURM_STEP_ID'} & set(os.environ)\n"
    assert probe(comm, python(code + "raise SystemExit(1 if names or 'OMPI_MCA_btl' not in os.environ else 0)"))[0]


def test_two_ranks_started_by_mpirun_make_every_call(comm: Communicator) -> None:
    seconds = float(os.environ.get("HPCOPT_TEST_TIMEOUT", "120"))
    assert probe(comm, [*gpu_probe._command(), "--cpu"], seconds) == (
        True,
        "a job with device buffers had the right results",
    )


def test_right_results_are_right(comm: Communicator) -> None:
    assert wrong_results(comm, torch.clone) == []


@pytest.mark.parametrize(
    "call", ["allreduce", "iallreduce", "bcast", "ibcast", "reduce_scatter", "allgatherv", "iallgatherv"]
)
@pytest.mark.parametrize("name", SIZES)
def test_one_wrong_number_in_any_call_is_seen(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    own = getattr(comm, call)

    def spoilt(buffer: torch.Tensor, *given: Any) -> Any:
        """The call, with one wrong number in messages of this length."""
        result = own(buffer, *given)
        if buffer.numel() == SIZES[name]:
            written = result.wait() if isinstance(result, Request) else buffer
            written[-1] += 1
            if isinstance(result, torch.Tensor) and result is not buffer:
                result[-1] += 1
        return result

    monkeypatch.setattr(comm, call, spoilt)
    assert wrong_results(comm, torch.clone) == [f"{call} {name}"]
