"""A module's parameters as views of one flat vector."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.parameters import FlatParameters


def small_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def flat(model: torch.nn.Module, dtype: torch.dtype = torch.float64) -> FlatParameters:
    return FlatParameters(model, dtype, torch.device("cpu"))


def test_the_vector_holds_every_trainable_number_once() -> None:
    model = small_model()
    model[0].bias.requires_grad = False
    parameters = flat(model)
    assert parameters.size == 3 * 4 + 4 * 2 + 2
    assert parameters.names == ["0.weight", "2.weight", "2.bias"]


def test_tied_tensors_are_counted_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert flat(model).size == 9 + 3 + 3


def test_binding_makes_the_module_compute_with_the_vector_without_a_copy() -> None:
    model = small_model()
    parameters = flat(model)
    w = torch.arange(parameters.size, dtype=torch.float64)
    parameters.bind(w)
    assert torch.equal(model[0].weight.detach().reshape(-1), w[:12])
    w[0] = -7
    assert model[0].weight[0, 0] == -7


def test_slices_cut_the_vector_like_the_tensors() -> None:
    parameters = flat(small_model())
    w = parameters.copy()
    for part, tensor in zip(parameters.slices(), parameters.tensors, strict=True):
        assert torch.equal(w[part], tensor.detach().reshape(-1))


def test_a_copy_does_not_follow_the_module() -> None:
    model = small_model()
    parameters = flat(model)
    before = parameters.copy()
    with torch.no_grad():
        model[0].weight.zero_()
    assert not torch.equal(before, parameters.copy())


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(UsageError, match="no trainable parameter"):
        flat(torch.nn.ReLU())


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_that_has_seen_no_sample_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(2))
    with pytest.raises(UsageError, match=r"the parameter 0\.weight of the model Sequential has no shape yet"):
        flat(model)
    model(torch.ones(1, 3))
    assert flat(model).size == 8


def test_half_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="float32 or float64"):
        flat(small_model(), torch.float16)


@pytest.mark.parametrize("vector", [torch.zeros(3), torch.zeros(26), torch.zeros(52, dtype=torch.float64)[::2]])
def test_a_vector_that_does_not_fit_is_refused(vector: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous vector of 26"):
        flat(small_model()).bind(vector)
