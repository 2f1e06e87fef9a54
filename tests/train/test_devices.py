"""A rank's device and what is said of it, with pretended GPUs; several ranks in tests/mpi/test_job.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hpcopt.analysis.machine import devices
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.kernels.choice import kernels_on
from hpcopt.train.devices import choose_device, device_facts, gpu_facts
from tests.support.gpus import pretend


def test_a_rank_takes_its_gpu_and_makes_it_the_current_one(comm: Communicator, monkeypatch) -> None:
    chosen = pretend(monkeypatch, ["GPU-a", "GPU-b"])
    assert choose_device("auto", comm) == torch.device("cuda", 0)
    assert chosen == [0]


def test_convolutions_keep_all_digits_of_float32(comm: Communicator, monkeypatch) -> None:
    pretend(monkeypatch, ["GPU-a"])
    choose_device("cuda", comm)
    assert not torch.backends.cudnn.allow_tf32


def test_without_a_gpu_auto_is_the_processor_and_cuda_is_refused(comm: Communicator, monkeypatch) -> None:
    pretend(monkeypatch, [])
    assert choose_device("auto", comm).type == "cpu"
    with pytest.raises(UsageError, match="torch sees no GPU"):
        choose_device("cuda", comm)


def test_the_record_says_which_gpu_and_which_kernels(monkeypatch) -> None:
    assert device_facts(torch.device("cpu"), torch.float32) == {
        "device": "cpu",
        "kernels": kernels_on(torch.device("cpu"), torch.float32).reason,
    }
    pretend(monkeypatch, ["GPU-a", "GPU-b"])
    monkeypatch.setattr("hpcopt.train.devices.kernels_on", lambda *_: SimpleNamespace(reason="CuPy"))
    expected = {"name": "Pretended GPU", "uuid": "GPU-b", "memory": 1 << 34}
    assert device_facts(torch.device("cuda", 1), torch.float32) == {
        "device": "cuda:1",
        "kernels": "CuPy",
        "gpu": expected,
    }


def test_the_machine_names_all_gpus(monkeypatch) -> None:
    pretend(monkeypatch, ["GPU-a", "GPU-b"])
    assert devices()["uuids"] == ["GPU-a", "GPU-b"]
    assert devices()["names"] == ["Pretended GPU"] * 2


def test_a_torch_that_does_not_know_uuids_is_not_stopped(comm: Communicator, monkeypatch) -> None:
    pretend(monkeypatch, ["GPU-a"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="Old", total_memory=1))
    assert gpu_facts(0)["uuid"] == ""
    assert choose_device("auto", comm).type == "cuda"
