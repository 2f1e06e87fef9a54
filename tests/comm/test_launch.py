"""The launch guard against the variables each launcher sets, and the arithmetic of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import threadpoolctl
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import (
    affinity,
    check_launch,
    choose_threads,
    detect_launcher,
    expected_ranks,
    threads_per_rank,
)
from hpcopt.errors import UsageError

OPEN_MPI, MPICH = "Open MPI v5.0.11", "MPICH Version: 5.0.2"
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = BATCH_SCRIPT | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}

REFUSED = [
    pytest.param({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2", id="mpirun of Open MPI"),
    pytest.param({"PMI_SIZE": "3", "PMI_RANK": "1"}, "PMI_SIZE=3", id="mpirun of MPICH"),
    pytest.param({"MV2_COMM_WORLD_SIZE": "8"}, "MV2_COMM_WORLD_SIZE=8", id="mpirun of MVAPICH"),
    pytest.param(STEP, "SLURM_STEP_NUM_TASKS=4", id="srun"),
    pytest.param(BATCH_SCRIPT | {"SLURM_STEP_ID": "0"}, "SLURM_NTASKS=4", id="srun without the step's size"),
    pytest.param(BATCH_SCRIPT | {"SLURM_STEPID": "2"}, "SLURM_NTASKS=4", id="srun, the older name"),
    pytest.param(STEP | {"PMI_SIZE": "4"}, "PMI_SIZE=4, SLURM_STEP_NUM_TASKS=4", id="srun --mpi=pmi2"),
]
ALLOWED = [
    pytest.param({}, id="no launcher"),
    pytest.param(BATCH_SCRIPT, id="plain python in a batch script"),
    pytest.param(BATCH_SCRIPT | {"SLURM_STEP_ID": "4294967291"}, id="the batch step"),
    pytest.param(BATCH_SCRIPT | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, id="the shell of salloc"),
    pytest.param(STEP | {"SLURM_STEP_NUM_TASKS": "1"}, id="srun -n 1 in a larger allocation"),
    pytest.param({"OMPI_COMM_WORLD_SIZE": "1"}, id="mpirun -n 1"),
    pytest.param({"PMI_SIZE": "what"}, id="a variable that holds no number"),
    pytest.param(STEP | {"HPCOPT_SEPARATE_RUNS": "1"}, id="separate runs are meant"),
]


@pytest.mark.parametrize(("environ", "seen"), REFUSED)
def test_several_processes_that_are_each_alone_are_refused(environ: dict[str, str], seen: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_launch(1, environ, OPEN_MPI)
    assert f"({seen})" in str(caught.value)
    assert OPEN_MPI in str(caught.value)
    assert " -n " in str(caught.value)


@pytest.mark.parametrize("environ", ALLOWED)
def test_one_process_that_was_started_alone_may_run(environ: dict[str, str]) -> None:
    check_launch(1, environ)


@pytest.mark.parametrize("environ", [case.values[0] for case in REFUSED])
def test_ranks_that_found_each_other_may_run(environ: dict[str, str]) -> None:
    check_launch(2, environ)


@pytest.mark.parametrize(("library", "value"), [(OPEN_MPI, "--mpi=pmix"), (MPICH, "--mpi=pmi2"), ("", "--mpi=pmi2")])
def test_under_srun_the_values_to_try_depend_on_the_library(library: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"Try srun {value} or .*srun --mpi=list.*mpirun"):
        check_launch(1, STEP | {"SLURM_MPI_TYPE": "none"}, library)


def test_the_srun_plugin_in_use_is_named() -> None:
    with pytest.raises(UsageError, match=r"\(srun --mpi=none\)"):
        check_launch(1, STEP | {"SLURM_MPI_TYPE": "none"})


def test_under_a_foreign_mpirun_srun_is_not_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        check_launch(1, {"PMI_SIZE": "2"}, OPEN_MPI)
    assert "srun" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "none"),
        (BATCH_SCRIPT, "none"),
        (STEP, "srun"),
        (STEP | {"PMI_RANK": "0"}, "srun"),
        (STEP | {"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun (Open MPI)"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "mpirun (MPICH)"),
        (STEP | {"HYDI_CONTROL_FD": "9", "PMI_SIZE": "2"}, "mpirun (MPICH)"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "mpirun (MVAPICH)"),
    ],
)
def test_the_launcher_is_recognised(environ: dict[str, str], name: str) -> None:
    assert detect_launcher(environ) == name


def test_only_the_variables_that_are_there_are_reported() -> None:
    assert expected_ranks(STEP | {"PMI_SIZE": "4"}) == {"PMI_SIZE": 4, "SLURM_STEP_NUM_TASKS": 4}


def cores(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


@pytest.mark.parametrize(
    ("masks", "threads"),
    [
        ([cores(0, 1, 2, 3)], [4]),
        ([cores(0, 1, 2, 3)] * 2, [2, 2]),
        ([cores(0, 1, 2, 3)] * 3, [1, 1, 1]),
        ([cores(0, 1)] * 4, [1, 1, 1, 1]),
        ([cores(0, 1), cores(2, 3, 4)], [2, 3]),
        ([cores(0, 1, 2, 3), cores(0, 1), cores(2, 3)], [1, 1, 1]),
        ([cores(0), cores(1), cores(2)], [1, 1, 1]),
    ],
)
def test_cores_are_shared_by_the_ranks_that_may_use_them(masks: list[frozenset[int]], threads: list[int]) -> None:
    assert [threads_per_rank(masks, me) for me in range(len(masks))] == threads


@given(st.lists(st.frozensets(st.integers(0, 15), min_size=1), min_size=1, max_size=8))
def test_the_smallest_share_never_uses_more_threads_than_cores(masks: list[frozenset[int]]) -> None:
    share = min(threads_per_rank(masks, me) for me in range(len(masks)))
    assert share >= 1
    assert share == 1 or share * len(masks) <= len(frozenset().union(*masks))


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.usefixtures("_threads_as_before")
def test_one_rank_alone_gets_all_its_cores() -> None:
    report = choose_threads(Communicator(), {})
    assert report == (len(affinity()), "affinity", len(affinity()), 0, 1)
    assert torch.get_num_threads() == report.threads


@pytest.mark.usefixtures("_threads_as_before")
def test_the_number_the_user_set_is_kept() -> None:
    torch.set_num_threads(1)
    report = choose_threads(Communicator(), {"OMP_NUM_THREADS": "1"})
    assert (report.threads, report.source) == (1, "OMP_NUM_THREADS")
    assert torch.get_num_threads() == 1
    assert blas_threads() == {2}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
@pytest.mark.usefixtures("_threads_as_before")
def test_a_process_bound_to_one_core_computes_with_one_thread() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert choose_threads(Communicator(), {}).threads == 1
        assert torch.get_num_threads() == 1
        assert blas_threads() == {1}
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("_threads_as_before")
def test_a_blas_that_was_given_fewer_threads_keeps_them() -> None:
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        choose_threads(Communicator(), {})
        assert blas_threads() == {1}
