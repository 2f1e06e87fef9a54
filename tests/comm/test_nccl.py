"""Where NCCL is looked for, and what is asked of it. Sums on several ranks: tests/mpi."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.nccl import LEAST_BYTES, Nccl, load_nccl, sums_are_right
from hpcopt.config import parse_job
from hpcopt.errors import UsageError
from hpcopt.train.job import PreparedJob
from tests.support.nccl import FakeNccl


def given(monkeypatch: pytest.MonkeyPatch, available: bool) -> Any:
    module: Any = ModuleType("cupy.cuda.nccl")
    module.available = available
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", module)
    return module


def test_it_is_cupys_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = given(monkeypatch, True)
    assert load_nccl() is module
    given(monkeypatch, False)
    with pytest.raises(ImportError, match="finds no NCCL library"):
        load_nccl()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError):
        load_nccl()


def test_only_large_contiguous_tensors_of_the_device_are_its_own(comm: Communicator) -> None:
    nccl = Nccl(FakeNccl(comm), comm.mpi, torch.device("cpu"))
    least = LEAST_BYTES // 4
    assert nccl.takes(torch.zeros(least), "sum")
    assert not nccl.takes(torch.zeros(least), "max")
    assert not nccl.takes(torch.zeros(least - 1), "sum")
    assert not nccl.takes(torch.zeros(2 * least, dtype=torch.bfloat16), "sum")
    assert not nccl.takes(torch.zeros(2, least).T, "sum")
    assert not nccl.takes(torch.zeros(least).numpy(), "sum")
    assert not nccl.takes(torch.zeros(least, device="meta"), "sum")


def test_a_trial_finds_wrong_sums(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    nccl = Nccl(FakeNccl(comm), comm.mpi, torch.device("cpu"))
    assert sums_are_right(nccl, 1, 0, torch.device("cpu"))
    monkeypatch.setattr(nccl, "sum", lambda tensor: tensor.mul_(2))
    assert not sums_are_right(nccl, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize("key", ["nccl", "gpu_aware"])
def test_the_key_is_true_false_or_auto(key: str) -> None:
    with pytest.raises(UsageError, match=rf"parallel\.{key} = 'always' is not allowed"):
        parse_job(f'[data]\nsource = "digits"\n[parallel]\n{key} = "always"\n')


def test_a_job_without_gpus_is_refused_where_it_asks_for_nccl(comm: Communicator) -> None:
    text = '[data]\nsource = "digits"\n[run]\ndevice = "cpu"\n[parallel]\nnccl = true\n'
    with pytest.raises(UsageError, match=r"parallel\.nccl = true, but not every one of several ranks has a GPU"):
        PreparedJob(parse_job(text), comm)
