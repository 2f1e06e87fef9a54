"""w in slices is gathered beside the forward pass: who waits for what, and when. Ranks are made up, there is no MPI.

This is rank 1 of two, to which w comes when it waits for it. Three layers have 25, 24 and 15 numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.layout.slices import row_slices
from hpcopt.objective.losses import make_loss
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Batch
from hpcopt.objective.shard import Shard
from hpcopt.objective.sharded.gathering import Gathering
from hpcopt.objective.stochastic import StochasticState

FEATURES, CLASSES, SAMPLES = 4, 3, 5


class Coming:
    """A part that is there when it is waited for, and not before."""

    def __init__(self, comm: Comm, number: int, buffer: torch.Tensor, truth: torch.Tensor) -> None:
        self._comm, self._number, self._buffer, self._truth = comm, number, buffer, truth

    def wait(self) -> torch.Tensor:
        """Bring the numbers."""
        self._comm.events.append(f"part {self._number}")
        return self._buffer.copy_(self._truth)

    def test(self) -> bool:
        """Never."""
        return False


class Comm:
    """Rank 1 of two, of which the other one has half of w."""

    rank, size = 1, 2

    def __init__(self, w: torch.Tensor) -> None:
        self.w, self.events, self.begun = w, [], 0
        self.parts: list[tuple[int, list[int]]] = []

    def iallgatherv(self, part: torch.Tensor, buffer: torch.Tensor, counts: list[int], label: str) -> Coming:
        """The next part of w."""
        buffer.fill_(torch.nan)
        first, self.begun = self.begun, (self.begun + len(buffer)) % len(self.w)
        number = 0 if first == 0 else len(self.parts)
        self.parts = [*self.parts[:number], (first, counts)]
        end = first + len(buffer)
        assert torch.equal(part, self.w[end - counts[1] : end])
        return Coming(self, number, buffer, self.w[first:end])


class Said(torch.nn.Linear):
    """A layer that tells when it is evaluated."""

    events: list[str]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer's."""
        self.events.append(f"layer {self.out_features}")
        return super().forward(x)


def layers() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(Said(FEATURES, 5), torch.nn.Tanh(), Said(5, 4), torch.nn.Tanh(), Said(4, CLASSES))


class Reads(torch.nn.Module):
    """Reads the parameters of its last layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Said(FEATURES, 5), Said(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two layers."""
        return torch.nn.functional.linear(self.first(x), self.last.weight, self.last.bias)


class Attends(torch.nn.Module):
    """Attention, which reads the parameters of its own last layer, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Said(FEATURES, FEATURES)
        self.attention = torch.nn.MultiheadAttention(FEATURES, 2, batch_first=True)
        self.last = Said(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of a sequence of one."""
        own = self.first(x).unsqueeze(1)
        return self.last(self.attention(own, own, own, need_weights=False)[0].squeeze(1))


class Remembers(torch.nn.Linear):
    """A layer that keeps a mean of its outputs, whatever it is evaluated for."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mean", torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer's."""
        y = super().forward(x)
        self.mean.lerp_(y.detach().mean(0), 0.5)
        return y


def made(model: torch.nn.Module, part_bytes: int = 8 * 24) -> tuple[Gathering, Shard, Comm, torch.Tensor]:
    """The gathering of a model's w, with its samples and its ranks, and this rank's slice."""
    parameters = FlatParameters(model, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    shard = Shard(model, make_loss("cross_entropy"), inputs, targets, parameters, StochasticState(model, 0, 1))
    slices, comm = row_slices(parameters.shapes, 2), Comm(parameters.copy())
    for module in model.modules():
        if isinstance(module, Said):
            module.events = comm.events
    return Gathering(shard, comm, slices, part_bytes), shard, comm, comm.w[slices[1].slice]  # type: ignore[arg-type]


def evaluated(model: torch.nn.Module, **options: Any) -> list[str]:
    """What happens in an evaluation after the first one, which gives the loss that it has with all of w."""
    gathering, shard, comm, w = made(model, **options)
    batch = Batch(None, SAMPLES, SAMPLES)
    expected = shard.loss_sum(comm.w, batch)
    for _ in range(2):
        comm.events.clear()
        with gathering.beside(w) as whole:
            assert shard.loss_sum(whole, batch) == expected
        assert torch.equal(whole, comm.w)
        # By the end every part was waited for, once.
        assert sorted(event for event in comm.events if "part" in event) == [
            f"part {number}" for number in range(len(comm.parts))
        ]
    return comm.events


def test_a_layer_waits_for_its_own_part_just_before_it_is_evaluated() -> None:
    assert evaluated(layers()) == ["part 0", "layer 5", "part 1", "layer 4", "part 2", "layer 3"]


def test_parts_have_at_least_so_many_bytes() -> None:
    assert evaluated(layers(), part_bytes=8 * 26) == ["part 0", "layer 5", "part 1", "layer 4", "layer 3"]


def test_a_model_that_reads_parameters_of_layers_that_it_does_not_call_waits_for_all_parts_first() -> None:
    assert evaluated(Reads(), part_bytes=8) == ["part 0", "part 1", "part 2", "part 3", "layer 5"]


def test_attention_has_its_last_layer_too() -> None:
    parts = [f"part {number}" for number in range(8)]
    assert evaluated(Attends(), part_bytes=8) == [*parts[:2], "layer 4", *parts[2:], "layer 3"]


def test_layers_with_the_same_tensor_both_wait_for_it() -> None:
    model = torch.nn.Sequential(Said(4, 4, bias=False), Said(4, 4, bias=False), Said(4, CLASSES))
    model[1].weight = model[0].weight
    assert evaluated(model, part_bytes=8 * 16) == ["part 0", "layer 4", "layer 4", "part 1", "layer 3"]


def test_what_no_layer_needs_comes_too() -> None:
    model = layers()
    model.register_parameter("spare", torch.nn.Parameter(torch.ones(20)))
    model[0].register_parameter("unused", torch.nn.Parameter(torch.ones(20)))
    model.add_module("never", torch.nn.Linear(9, 9))
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))  # type: ignore[method-assign]
    events = evaluated(model)
    assert events.index("layer 3") < events.index(events[-1])
    assert events[-1].startswith("part")


def test_an_evaluation_that_fails_has_waited_for_all_parts() -> None:
    gathering, shard, comm, w = made(layers())
    for _ in range(2):
        with gathering.beside(w) as whole:
            shard.loss_sum(whole, Batch(None, SAMPLES, SAMPLES))
        comm.events.clear()
    failing = shard.module[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), gathering.beside(w) as whole:
        shard.loss_sum(whole, Batch(None, SAMPLES, SAMPLES))
    assert comm.events == ["part 0", "layer 5", "part 1", "part 2"]
    failing.remove()
    with gathering.beside(w) as whole:
        assert shard.loss_sum(whole, Batch(None, SAMPLES, SAMPLES)) > 0


def test_nothing_of_it_stays_at_the_modules_and_the_rehearsal_leaves_no_trace() -> None:
    middle = torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)
    model = torch.nn.Sequential(Remembers(FEATURES, 5), *middle, Said(5, CLASSES))
    gathering, shard, _, w = made(model, part_bytes=8)
    before = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    with gathering.beside(w):
        pass
    assert all(map(torch.equal, before[0], model.buffers()))
    assert torch.equal(before[1], torch.get_rng_state())
    with gathering.beside(w):
        pass
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert shard.loss_sum(gathering._whole, Batch(None, SAMPLES, SAMPLES)) > 0  # type: ignore[arg-type]


def test_where_the_first_loss_is_not_finite_the_next_one_tells() -> None:
    gathering, shard, comm, w = made(layers())
    inputs, shard.inputs = shard.inputs, shard.inputs * torch.nan
    for expected in (False, False, True):
        comm.events.clear()
        with gathering.beside(w) as whole:
            comm.events.append("begun")
            shard.loss_sum(whole, Batch(None, SAMPLES, SAMPLES))
        assert (comm.events[0] == "begun") is expected
        shard.inputs = inputs
