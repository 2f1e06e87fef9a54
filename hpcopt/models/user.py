"""A network of the user's own, made by a function or class named 'package.module:function'."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hpcopt.errors import UsageError
from hpcopt.importing import find_function
from hpcopt.models import checks

GIVEN = ("input_shape", "outputs", "seed")
"""What a function may ask for by the name of a parameter; all its other parameters are keys of ``[model]``."""


def make_user_model(
    name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], outputs: int, seed: int
) -> nn.Module:
    """Call the function ``name`` and check that what it returns can be trained on this data.

    Raises:
        UsageError: module or function cannot be found, an option or the result does not fit.
    """
    function = find_function(name, "model.name")
    given = {"input_shape": input_shape, "outputs": outputs, "seed": seed}
    model = function(**_arguments(name, function, options, given))
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model.name = {name!r} returned {type(model).__name__}, but it must return a torch.nn.Module that maps "
            f"(b, {', '.join(map(str, input_shape))}) to (b, {outputs})."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"the model of model.name = {name!r} has no parameter that requires a gradient to train.")
    _check_output(name, model, input_shape, outputs)
    return model


def _arguments(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What to call ``function`` with: the options, and what it asks for of ``given``."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    refused = [key for key in options if key in GIVEN or not takes_all]
    checks.known_keys(name, refused, [n for n in names if n not in GIVEN])
    for p in named:
        if p.default is p.empty and p.name not in options and p.name not in GIVEN:
            raise UsageError(
                f"model.name = {name!r} needs model.{p.name}, which the job file does not give. Add it to [model]."
            )
    return {key: value for key, value in given.items() if takes_all or key in names} | dict(options)


def _check_output(name: str, model: nn.Module, input_shape: tuple[int, ...], outputs: int) -> None:
    """Send two samples of zeros through the model."""
    first = next(model.parameters())
    was_training = model.training
    try:
        with torch.no_grad():
            result = model.eval()(torch.zeros(2, *input_shape, dtype=first.dtype, device=first.device))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"the model of model.name = {name!r} does not take a batch of two samples of shape {input_shape}: {error}. "
            "Its first layer must fit the data; the function is told input_shape if it has a parameter of that name."
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(result, torch.Tensor) or result.shape != (2, outputs):
        got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise UsageError(
            f"the model of model.name = {name!r} maps two samples to {got}, but this data needs (2, {outputs}). Its "
            "last layer must fit the data; the function is told outputs if it has a parameter of that name."
        )
