"""The emulation finds what it is there to find: a kernel with a fault in it does not pass."""

from __future__ import annotations

import pytest
import torch

from hpcopt.kernels.launch import source
from tests.support.emulation import COMPILER, Emulation

FAULTS = """
extern "C" __global__ void no_barrier(REAL* numbers) {
    __shared__ REAL first;
    if (threadIdx.x == 40) first = 7;
    numbers[threadIdx.x] = first;
}
extern "C" __global__ void too_far(REAL* numbers) { numbers[threadIdx.x + 1] = 1; }
extern "C" __global__ void reads_too_far(REAL* numbers) { if (!threadIdx.x) numbers[0] = numbers[-1]; }
extern "C" __global__ void some_wait(REAL* numbers) { if (threadIdx.x) __syncthreads(); }
extern "C" __global__ void half_a_warp(REAL* numbers) { if (threadIdx.x < 16) over_warp(numbers[0]); }
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH")
    return Emulation(tmp_path_factory.mktemp("faults"), source() + FAULTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_barrier", "depends on the order"),
        ("too_far", "writes behind"),
        ("some_wait", "waits for ever"),
        ("half_a_warp", "waits for ever"),
    ],
)
def test_a_fault_is_found(faulty: Emulation, name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        faulty(name, torch.float32, 1, 64, torch.ones(64))


def test_what_lies_beside_a_tensor_is_not_a_number(faulty: Emulation) -> None:
    numbers = torch.ones(64)
    faulty("reads_too_far", torch.float32, 1, 64, numbers)
    assert numbers.isnan().tolist() == [True] + [False] * 63
