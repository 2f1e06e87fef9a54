import json
import os
from pathlib import Path
from typing import Any

import pytest

from hpcopt.analysis import doctor
from hpcopt.analysis.doctor import examine
from hpcopt.analysis.machine import file_system, launch_variables
from hpcopt.analysis.machine_verdicts import judge_disk, judge_hdf5, judge_sweeps, judge_variables, judge_versions
from hpcopt.analysis.verdicts import (
    LITTLE_TIME,
    Finding,
    judge_communication,
    judge_devices,
    judge_job,
    judge_mpi,
    judge_ranks,
    judge_threads,
)
from hpcopt.cluster.allocation import Allocation
from hpcopt.comm.mpi_library import vendor
from hpcopt.train.run.directory import plain

OPEN_MPI = {"error": "", "library": "Open MPI v5.0.11, package: x", "size": 1, "launcher": "none", "launch_error": ""}
OPEN_MPIRUN = {"path": "/opt/bin/mpirun", "version": "mpirun (Open MPI) 5.0.11"}
HYDRA = {"path": "/usr/bin/mpirun", "version": "HYDRA build details: Version: 4.3"}
DISK = {"path": "/data", "file_system": "ext4", "free": 1 << 40, "rate": 5e8, "error": None, "not_seen_by": []}


def rank(**changes: Any) -> dict[str, Any]:
    return {
        "host": "node1",
        "local_rank": 0,
        "pid": 1,
        "cores": [0, 1, 2, 3],
        "cores_of_host": 4,
        "cpu": "Some CPU",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0+cpu", "numpy": "2.4.6", "mpi4py": "4.1.2", "h5py": "3.16.0", "scipy": None},
        "devices": {"error": None, "names": [], "built_for": None},
        "sweeps": "compiled",
        "variables": {},
        **changes,
    }


def gpus(*uuids: str) -> dict[str, Any]:
    return {"error": None, "names": ["H200"] * len(uuids), "uuids": list(uuids), "built_for": "CUDA 12.8"}


A, B = "GPU-aaaaaaaa-1", "GPU-bbbbbbbb-2"


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


@pytest.mark.parametrize(
    ("library", "launchers", "levels"),
    [
        ("Open MPI v5", [OPEN_MPIRUN], ["green"]),
        ("Open MPI v5", [HYDRA], ["red"]),
        ("Open MPI v5", [OPEN_MPIRUN, HYDRA], ["green", "yellow"]),
        ("MPICH Version: 4.3", [HYDRA], ["green"]),
        ("MPICH Version: 4.3", [OPEN_MPIRUN], ["red"]),
        ("Intel(R) MPI Library 2021", [HYDRA], ["green"]),
        ("Some MPI", [OPEN_MPIRUN], ["yellow"]),
        ("Open MPI v5", [], ["yellow"]),
    ],
)
def test_the_launcher_must_be_of_the_family_of_the_library(
    library: str, launchers: list[dict[str, str]], levels: list[str]
) -> None:
    mpi, *rest = judge_mpi({**OPEN_MPI, "library": library}, launchers)
    assert mpi.level == "green"
    assert [finding.level for finding in rest] == levels
    assert all(finding.advice for finding in rest if finding.level != "green")


def test_ranks_that_found_each_other_need_no_other_launcher() -> None:
    _, found = judge_mpi({**OPEN_MPI, "size": 2, "launcher": "srun"}, [HYDRA])
    assert found.level == "yellow"


def test_without_an_mpi_library_the_advice_is_how_to_get_one() -> None:
    assert only(judge_mpi({**OPEN_MPI, "error": "install one"}, [])) == Finding(
        "MPI", "red", "no MPI library", "install one"
    )


def test_ranks_and_hosts_are_counted() -> None:
    found = only(judge_ranks(OPEN_MPI, [rank(), rank(), rank(host="node2"), rank(host="node2")]))
    assert (found.level, found.text) == ("green", "4 ranks on 2 hosts (node1, node2), started without a launcher")
    assert only(judge_ranks(OPEN_MPI, [rank(), rank(), rank(host="node2")])).level == "yellow"
    assert only(judge_ranks({**OPEN_MPI, "launch_error": "2 worlds"}, [rank()])).level == "red"


@pytest.mark.parametrize(
    ("ranks", "level", "words"),
    [
        ([rank()] * 2, "green", "2 threads a rank"),
        ([rank(cores=[0, 1]), rank(cores=[2, 3])], "green", "2 threads a rank"),
        ([rank()] * 5, "yellow", "5 on 4 cores"),
        ([rank(cores=[0]), rank(cores=[1])], "yellow", "1 thread a rank"),
        ([rank(variables={"OMP_NUM_THREADS": "4"})] * 2, "yellow", "OMP_NUM_THREADS=4"),
        ([rank(variables={"OMP_NUM_THREADS": "2"})] * 2, "green", "OMP_NUM_THREADS=2"),
        ([rank(variables={"OMP_NUM_THREADS": number}) for number in ("2", "16")], "yellow", "OMP_NUM_THREADS=16"),
        ([rank(), *[rank(host="node2")] * 4], "green", "1 thread a rank (4 on 4 cores of node2)"),
    ],
)
def test_threads_follow_from_cores_and_ranks(ranks: list[dict[str, Any]], level: str, words: str) -> None:
    found = only(judge_threads(ranks))
    assert found.level == level
    assert words in found.text


@pytest.mark.parametrize(
    ("ranks", "level", "words"),
    [
        ([rank()], "green", "CPU (Some CPU)"),
        ([rank(devices=gpus(A, B)), rank(devices=gpus(A, B), local_rank=1)], "green", "2 x H200"),
        ([rank(devices=gpus(A, B)), rank(devices=gpus(A, B), local_rank=1)], "green", "rank 0: aaaaaaaa, rank 1: bb"),
        ([rank(devices=gpus(A)), rank(devices=gpus(B), local_rank=1)], "green", "rank 0: aaaaaaaa, rank 1: bb"),
        ([rank(devices=gpus(A)), rank(devices=gpus(A), host="node2")], "green", "2 x H200"),
        ([rank(devices=gpus(A)), rank(devices=gpus(A), local_rank=1)], "yellow", "1 x H200"),
        ([rank(devices=gpus(A, B), local_rank=number) for number in range(3)], "yellow", "rank 2: aaaaaaaa"),
        ([rank(devices=gpus("", "")), rank(devices=gpus("", ""), local_rank=1)], "green", "rank 0: 0, rank 1: 1"),
        ([rank(devices=gpus(A)), rank(host="node2")], "yellow", "rank 0: aaaaaaaa, rank 1: CPU"),
        ([rank(devices={"error": "ImportError: x", "names": [], "built_for": None})], "red", "ImportError: x"),
        ([rank(devices=gpus() | {"built_for": "CUDA"}, variables={"CUDA_VISIBLE_DEVICES": ""})], "yellow", "hidden"),
    ],
)
def test_devices_are_shared_out(ranks: list[dict[str, Any]], level: str, words: str) -> None:
    found = only(judge_devices(ranks))
    assert found.level == level
    assert words in found.text
    assert bool(found.advice) == (level != "green")


@pytest.mark.parametrize(
    ("ranks", "changes", "levels", "words"),
    [
        (4, {}, ["green", "green"], "7 of Slurm, 2 nodes, 4 ranks started"),
        (1, {}, ["yellow", "green"], "start with srun or mpirun"),
        (1, {"nodes": 1}, ["yellow", "green"], "1 node, 1 rank started"),
        (1, {"nodes": 1, "tasks": 1}, ["green", "green"], "1 node, 1 rank"),
        (4, {"nodes": 3}, ["yellow", "green"], "Not all of the job is used"),
        (4, {}, ["green", "green"], "1:00:00 left until the job ends"),
        (4, {}, ["green", "green"], "set checkpoint.limit_seconds to less, such as 3240"),
        (4, {"seconds_left": LITTLE_TIME / 2}, ["green", "yellow"], "Little time"),
        (4, {"seconds_left": None}, ["green", "yellow"], "ask squeue"),
        (4, {"seconds_left": None, "limited": False}, ["green", "green"], "no time limit"),
    ],
)
def test_the_job_is_to_be_used_whole_and_has_an_end(
    ranks: int, changes: dict[str, Any], levels: list[str], words: str
) -> None:
    around = Allocation(**{"job": "7", "nodes": 2, "tasks": 4, "limited": True, "seconds_left": 3600.0, **changes})
    found = judge_job(around, [rank(host=f"node{number % 2}") for number in range(ranks)])
    assert [finding.level for finding in found] == levels
    assert words in " ".join(finding.text + finding.advice for finding in found)


def test_nodes_of_slurm_may_share_a_host() -> None:
    around = Allocation("7", 2, 2, False, None)
    ranks = [rank(variables={"SLURMD_NODENAME": f"n{number}"}) for number in range(2)]
    assert judge_job(around, ranks)[0].level == "green"


def test_outside_of_a_job_nothing_is_said_of_one() -> None:
    assert judge_job(None, [rank()]) == []


def test_sweeps_that_were_not_compiled_are_said_with_what_to_do() -> None:
    assert only(judge_sweeps([rank(), rank()])).level == "green"
    found = only(judge_sweeps([rank(), rank(host="node2", sweeps="there was no compiler")]))
    assert found.level == "yellow"
    assert "there was no compiler (node2)" in found.advice
    assert judge_sweeps([rank(sweeps="")]) == []  # torch is what is missing then


def test_slow_communication_is_noticed() -> None:
    assert judge_communication({}, {}) == []
    assert only(judge_communication({8: 2e-6, 1 << 22: 1e-3}, {})).level == "green"
    assert only(judge_communication({8: 5e-3, 1 << 22: 1e-1}, {})).level == "yellow"


def test_copies_from_devices_are_measured_beside_the_memory_of_the_host() -> None:
    staged = {"gpu_aware": False, "reason": "it crashed", "staged": {8: 2e-5, 1 << 22: 4e-3}, "direct": {}}
    host, device = judge_communication({8: 2e-6, 1 << 22: 1e-3}, staged)
    assert host.text == "allreduce of 8 B in 2 us, of 4 MiB in 1.0 ms (4.19 GB/s)"
    assert device.text.startswith("through the host, allreduce of 8 B in 20 us, of 4 MiB in 4.0 ms (1.05 GB/s); MPI")
    assert device.text.endswith("it crashed")


@pytest.mark.parametrize(("seconds", "advice"), [(1e-3, "true is faster"), (8e-3, "Leave")])
def test_device_memory_is_given_to_mpi_where_that_is_faster(seconds: float, advice: str) -> None:
    times = {"gpu_aware": True, "reason": "", "staged": {8: 2e-5, 1 << 22: 4e-3}, "direct": {8: 1e-5, 1 << 22: seconds}}
    assert advice in only(judge_communication({}, times)).advice


def test_a_record_that_cannot_be_read_while_it_is_written_is_red() -> None:
    facts = {"error": None, "version": "2.0.0", "parallel": False, "swmr": ""}
    assert only(judge_hdf5(facts)).level == "green"
    assert "HDF5_USE_FILE_LOCKING" in only(judge_hdf5({**facts, "swmr": "unable to lock file"})).advice
    assert only(judge_hdf5({**facts, "error": "ImportError: x"})).level == "red"


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "green"),
        ({"error": "Permission denied", "rate": None}, "red"),
        ({"free": 1000}, "yellow"),
        ({"rate": 1e6}, "yellow"),
        ({"file_system": "tmpfs"}, "yellow"),
        ({"not_seen_by": ["node2"]}, "red"),
    ],
)
def test_the_disk_needs_space_speed_and_permission(changes: dict[str, Any], level: str) -> None:
    assert only(judge_disk({**DISK, **changes})).level == level


def test_versions_must_be_there_new_enough_and_the_same_everywhere() -> None:
    def with_package(name: str, version: str | None) -> dict[str, Any]:
        return rank(packages={**rank()["packages"], name: version})

    assert only(judge_versions([rank(), rank()])).level == "green"
    assert "too old" in only(judge_versions([with_package("mpi4py", "3.1.6")])).advice
    assert "not installed" in only(judge_versions([with_package("h5py", None)])).advice
    assert "node2" in only(judge_versions([rank(), {**with_package("torch", "2.9.0"), "host": "node2"}])).advice


def test_only_variables_of_launchers_and_threads_are_shown() -> None:
    environ = {"SLURM_JOB_ID": "7", "PMI_RANK": "0", "SECRET_TOKEN": "x", "OMPI_COMM_WORLD_SIZE": "2", "PATH": "y"}
    seen = launch_variables(environ)
    assert seen == {"OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "0", "SLURM_JOB_ID": "7"}
    assert "SLURM_JOB_ID=7" in only(judge_variables([rank(variables=seen)])).text


def test_vendors_are_recognised_by_what_they_print() -> None:
    assert vendor("mpirun (Open MPI) 4.1.4") == "Open MPI"
    assert vendor("HYDRA build details:") == "MPICH"
    assert vendor("Intel(R) MPI Library for Linux* OS, Version 2021.9") == "Intel MPI"
    assert vendor("something else") == ""


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="this system does not list its mounts")
def test_the_file_system_is_that_of_the_innermost_mount() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/"))


def test_this_process_alone_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)  # the tests may run in a job
    report = examine(tmp_path / "runs")
    assert report is not None
    topics = [finding.topic for finding in report.findings]
    assert [topic for topic in topics if topic != "mpirun"] == [
        "MPI", "ranks", "threads", "devices", "sweeps", "HDF5", "disk", "versions", "variables",
    ]  # fmt: skip
    by_topic = {finding.topic: finding for finding in report.findings}
    assert by_topic["HDF5"].level == "green"
    assert by_topic["versions"].level == "green"
    assert report.facts["disk"]["rate"] > 0
    assert report.facts["ranks"][0]["pid"] == os.getpid()
    json.dumps(plain(report.facts), allow_nan=False)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_mpi_is_examined_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcopt.comm import mpi_library
    from hpcopt.errors import UsageError

    def missing() -> None:
        raise UsageError("no MPI library could be loaded")

    monkeypatch.setattr(mpi_library, "load_mpi", missing)
    report = doctor.examine(tmp_path)
    assert report is not None
    assert not report.healthy
    assert (report.findings[0].level, report.findings[0].advice) == ("red", "no MPI library could be loaded")
