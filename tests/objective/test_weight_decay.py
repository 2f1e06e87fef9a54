"""Weight decay is of all variables, or leaves those of normalisations free, in every quantity of an objective alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.objective.weight_decay import WeightDecay, without_normalisations
from hpcopt.train.job import PreparedJob
from tests.support.problems import CLASSES, FEATURES, sharded

DECAY = 0.5
COUNT = 7 * FEATURES + 7
"""Variables before the normalisation, which has 14."""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, CLASSES)]
    return nn.Sequential(*layers).double()


def differences(comm: Communicator, **options: Any) -> dict[str, Any]:
    """What weight decay adds to every quantity at a point where no variable is 0."""
    found = []
    for decay in (DECAY, 0.0):
        objective = sharded(comm, model=network(), weight_decay=decay, **options)
        batch, w = objective.full_batch, objective.initial_vector() + 0.25
        linear, cut = objective.linearize(w, batch), ShardedStateObjective(objective)
        loss, gradient = objective.value_and_gradient(w, batch)
        found.append(
            {
                "value": objective.value(w, batch),
                "loss": loss,
                "gradient": gradient.clone(),
                "product": linear.gauss_newton(w),
                "curvatures": linear.curvatures(torch.stack([w, w * w])),
                "in parts": objective.value_and_gradients(w, batch)[2:],
                "local": objective.local.value_and_gradient(w, batch),
                "local value": objective.local.value(w, batch),
                "in slices": cut.value_and_gradient(w, batch),
                "product in slices": cut.linearize(w, batch).gauss_newton(w),
            }
        )
    pairs = {key: zip(_flat(with_decay), _flat(found[1][key]), strict=True) for key, with_decay in found[0].items()}
    return {"w": w} | {key: [a - b for a, b in each] for key, each in pairs.items()}


def _flat(quantity: Any) -> list[torch.Tensor]:
    return [
        torch.as_tensor(each, dtype=torch.float64)
        for each in (quantity if isinstance(quantity, tuple) else (quantity,))
    ]


@pytest.mark.parametrize("decay_norms", [True, False])
def test_every_quantity_has_the_decay_of_the_same_variables(comm: Communicator, decay_norms: bool) -> None:
    found = differences(comm, decay_norms=decay_norms)
    w = found.pop("w")
    v = w.clone()
    if not decay_norms:
        v[COUNT : COUNT + 14] = 0
    value, gradient = 0.5 * DECAY * v @ v, DECAY * v
    both = [value, gradient]
    expected = {
        "value": [value],
        "loss": [value],
        "gradient": [gradient],
        "product": [gradient],
        "curvatures": [DECAY * torch.tensor([[v @ v, v @ (v * v)], [v @ (v * v), (v * v) @ (v * v)]])],
        "in parts": both,
        "local": both,
        "local value": [value],
        "in slices": both,
        "product in slices": [gradient],
    }
    for key, differences_of in found.items():
        for ours, theirs in zip(differences_of, expected[key], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2]), nn.RMSNorm(4)],
    ids=lambda norm: type(norm).__name__,
)
def test_torch_s_normalisations_are_known_and_nothing_else(norm: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.PReLU(4), nn.Linear(2, 2))
    parameters = FlatParameters(module, torch.float32, torch.device("cpu"))
    decays = without_normalisations(module, parameters)
    free = [name for name, part in zip(parameters.names, parameters.views(decays), strict=True) if not part.any()]
    assert free == [f"1.{name}" for name, _ in norm.named_parameters()]
    assert float(decays.sum()) == parameters.size - sum(each.numel() for each in norm.parameters())


def test_a_part_of_the_variables_keeps_which_of_them_decay() -> None:
    decay, ones = WeightDecay(2.0, torch.tensor([1.0, 0.0, 1.0])), torch.ones(2)
    assert decay.part(lambda vector: vector[1:]).add_gradient(torch.zeros(2), ones).tolist() == [0.0, 2.0]
    assert WeightDecay(2.0).part(lambda vector: vector[1:]).add_gradient(torch.zeros(2), ones).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("decay_norms", [True, False])
def test_a_job_says_whether_normalisations_decay(comm: Communicator, decay_norms: bool) -> None:
    job = f"""
    data = {{ source = "digits", limit = 20 }}
    model = {{ name = "cnn", channels = [2], hidden = 0, batch_norm = true }}
    loss = {{ weight_decay = 0.5, decay_norms = {str(decay_norms).lower()} }}
    """
    objective = PreparedJob(parse_job(job, ["run.device=cpu"]), comm).objective
    shard = objective.shard  # type: ignore[attr-defined]
    norm = next(name for name, module in shard.module.named_modules() if isinstance(module, nn.BatchNorm2d))
    place = shard.parameters.slices()[shard.parameters.names.index(f"{norm}.weight")]
    w = objective.initial_vector()
    added = objective.decay.add_gradient(torch.zeros_like(w), w)  # type: ignore[attr-defined]
    assert added[place].tolist() == [0.5 * decay_norms] * 2
    assert bool(added[: place.start].any())
