"""The profile of steps: what counts as what, that every method's job is one, and a short form of a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.profile import steps
from benchmarks.profile._measure import train, train_by_hand
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job

TORCH = "/site-packages/torch/lib/libtorch_cpu.so"


@pytest.mark.parametrize(
    ("symbol", "library", "kind"),
    [
        ("mkl_blas_avx512_sgemm_kernel", TORCH, "BLAS"),
        ("cblas_sgemv", "/site-packages/numpy.libs/libscipy_openblas64_.so", "BLAS"),
        ("at::native::add_kernel", TORCH, "torch"),
        ("gomp_team_barrier_wait_end", "/usr/lib/libgomp.so.1", "torch"),
        ("opal_progress", "/usr/lib/libopen-pal.so.80", "MPI"),
        ("__pyx_pw_6mpi4py_3MPI_4Comm_Allreduce", "/site-packages/mpi4py/MPI.cpython-311-x86_64-linux-gnu.so", "MPI"),
        ("clear_page_erms", "[kernel.kallsyms]", "system"),
        ("malloc", "/usr/lib/libc.so.6", "system"),
        ("_PyEval_EvalFrameDefault", "/usr/lib/libpython3.11.so.1.0", "Python"),
        ("torch::FunctionSignature::parse", "/site-packages/torch/lib/libtorch_python.so", "Python"),
        ("H5S_create_simple", "/site-packages/h5py.libs/libhdf5.so", "Python"),
    ],
)
def test_a_sample_belongs_to_the_library_it_was_in(symbol: str, library: str, kind: str) -> None:
    assert steps.kind(symbol, library) == kind


def test_samples_are_read_from_what_perf_says() -> None:
    told = [
        " 1234.500001:      7f2aac6b6109 void at::native::dot<float>(long, float*) (/lib/libtorch_cpu.so)",
        " 1234.500501:      7f2aac6b6109 [unknown] ([unknown])",
        "",
    ]
    assert steps.samples(told) == [(1234.500001, "torch"), (1234.500501, "system")]
    assert steps.shares(["BLAS", "BLAS", "Python", "MPI"])["BLAS"] == 0.5


@pytest.mark.parametrize("method", [name for name in steps.METHODS if name != steps.BY_HAND])
@pytest.mark.parametrize("size", steps.SIZES)
def test_every_method_has_a_job_on_both_problems(method: str, size: str, tmp_path: Path) -> None:
    job = parse_job(steps.job(steps.SIZES[size], method, steps.METHODS[method], tmp_path / "data.npz"))
    assert (job.solver.name, job.data.batch) == (method, steps.SIZES[size].batch)


def test_a_window_is_measured_and_the_calls_after_it_are_counted(comm: Communicator, tmp_path: Path) -> None:
    size = steps.SIZES["tiny"]._replace(first=3, steps=5, counted=4)
    steps.write_data(size, tmp_path / "data.npz")
    windows = size.first, size.steps, size.counted
    job = parse_job(steps.job(size, "adam", "", tmp_path / "data.npz"))
    found = train(job, comm, None, windows, tmp_path / "run")
    assert (found["steps"], found["evaluations"], found["messages"]) == (5, pytest.approx(1.0), 1.0)
    assert 0 < found["own_calls"] < found["function_calls"]
    plan = {"data": str(tmp_path / "data.npz"), "widths": [3, 3, 2], "batch": 4}
    by_hand = train_by_hand(plan, comm, None, windows)
    assert by_hand["own_calls"] == 0
    rows = steps.rows({"methods": {"adam": found | {"shares": steps.shares(["Python", "torch"])}}}, None)
    assert rows[0][:4] == ["adam", f"{1e3 * found['cpu']:.3f}", "50.0", "0.0"]
