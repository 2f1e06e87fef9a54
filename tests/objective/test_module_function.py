"""A module called with other tensors in place of its own: as torch's functional call does it."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from hpcopt.objective.module_function import ModuleFunction
from hpcopt.objective.parameters import FlatParameters
from tests.support.problems import FEATURES, small_network


class Shared(torch.nn.Module):
    """Two layers with one weight and one buffer, and a number that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Linear(FEATURES, FEATURES, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight
        self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64), requires_grad=False)
        shift = torch.zeros(FEATURES, dtype=torch.float64)
        self.first.register_buffer("shift", shift)
        self.second.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.first.shift += 1.0
        return self.second(torch.tanh(self.scale * self.first(x))) + self.second.shift


MODELS = {"normalised": lambda: small_network(batch_norm=True), "shared": Shared}


def function_of(module: torch.nn.Module) -> tuple[ModuleFunction, FlatParameters]:
    parameters = FlatParameters(module, torch.float64, torch.device("cpu"))
    return ModuleFunction(module, parameters), parameters


@pytest.mark.parametrize("model", MODELS)
def test_outputs_and_gradients_are_those_of_torchs_functional_call(model: str) -> None:
    torch.manual_seed(0)
    module = MODELS[model]()
    function, parameters = function_of(module)
    x, w = torch.randn(4, FEATURES, dtype=torch.float64), parameters.copy().mul_(1.1).requires_grad_()
    named = dict(zip(parameters.names, parameters.views(w), strict=True))
    named |= {name: buffer.clone() for name, buffer in module.named_buffers()}
    expected, found = functional_call(module, named, (x,), tie_weights=True), function(w, x)
    assert torch.equal(found, expected)
    assert not torch.equal(found, module(x))
    gradients = [torch.autograd.grad(each.sum(), w)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_module_keeps_its_own_tensors(model: str, fails: bool) -> None:
    module = MODELS[model]()
    function, parameters = function_of(module)
    own = [*module.parameters(), *module.buffers()]
    before = [tensor.clone() for tensor in own]
    if fails:
        module.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            function(parameters.copy() + 1, torch.ones(4, FEATURES, dtype=torch.float64))
    else:
        function(parameters.copy() + 1, torch.ones(4, FEATURES, dtype=torch.float64))
    for tensor, same, kept in zip(own, [*module.parameters(), *module.buffers()], before, strict=True):
        assert tensor is same
        assert torch.equal(tensor, kept)
