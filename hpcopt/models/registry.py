"""The networks by the name they have in a job file. Imports a network's module only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from hpcopt.errors import UsageError, nearest
from hpcopt.models import checks
from hpcopt.models.user import make_user_model
from hpcopt.random import key64

MODELS: dict[str, str] = {
    "antisymmetric_resnet": "hpcopt.models.antisymmetric:AntisymmetricResNet",
    "autoencoder": "hpcopt.models.autoencoder:Autoencoder",
    "cnn": "hpcopt.models.cnn:CNN",
    "mlp": "hpcopt.models.mlp:MLP",
    "resnet32": "hpcopt.models.resnet:ResNet32",
}
"""Name in the job file -> "module:Options"."""


def build(
    name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], outputs: int, seed: int
) -> torch.nn.Module:
    """Make the network ``name`` on the CPU; the same seed gives the same weights on every rank and machine.

    Args:
        name: a key of ``MODELS``, or 'package.module:function' of the user's own.
        options: the other keys of ``[model]``.
        input_shape: shape of one sample.
        outputs: number of outputs C: classes, or width of a target.
        seed: the run's seed; the weights have the stream "init" of it. Torch's own generator is left as found.

    Raises:
        UsageError: the name is not known, an option breaks its rule, or the network does not fit the data.
    """
    given = {key: value for key, value in options.items() if key != "name"}
    with _seeded(key64(seed, "init")):
        if ":" in name:
            return make_user_model(name, given, input_shape, outputs, seed)
        model: torch.nn.Module = make_options(name, options).make(input_shape, outputs)
        return model


def make_options(name: str, options: Mapping[str, Any]) -> Any:
    """The checked options of the network ``name`` of hpcopt. Raises UsageError as ``build``."""
    given = {key: value for key, value in options.items() if key != "name"}
    cls = _options_class(name)
    checks.known_keys(name, list(given), option_names(name))
    return cls(**given)


def option_names(name: str) -> list[str]:
    """The keys that ``[model]`` may have beside ``name`` for the network ``name``.

    Raises:
        UsageError: there is no such network.
    """
    return [field.name for field in fields(_options_class(name))]


def count_parameters(model: torch.nn.Module) -> int:
    """Number of trainable numbers in ``model``, shared ones counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _options_class(name: str) -> Any:
    if name not in MODELS:
        hint = nearest(name, MODELS)
        raise UsageError(
            f"model.name = {name!r} is not a network of hpcopt{hint} Known networks: {', '.join(MODELS)}, or "
            "'package.module:function' for one of your own."
        )
    module, _, attribute = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    """Torch's CPU generator at ``key``, then as it was before."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(key)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
