"""What the user gives an objective, in one form, and whether model, loss and samples fit together. Local."""

from __future__ import annotations

import numpy as np
import torch

from hpcopt.checks import is_number, is_whole
from hpcopt.errors import UsageError
from hpcopt.objective.shard import Shard
from hpcopt.objective.stochastic import evaluation


def on(array: torch.Tensor | np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``array`` as a tensor on ``device``, floating point numbers in ``dtype``, integers as int64."""
    tensor = torch.as_tensor(array)
    kind = dtype if tensor.is_floating_point() else torch.int64
    return tensor.to(device=device, dtype=kind).contiguous()


def check_options(weight_decay: float, **counts: int | None) -> None:
    """Refuse what is no coefficient of |w|^2 / 2, and numbers that are given and below 1.

    Raises:
        UsageError: see above.
    """
    if not is_number(weight_decay, 0.0):
        raise UsageError(f"weight_decay = {weight_decay!r} is not allowed; it must be a number of at least 0.")
    for name, count in counts.items():
        if count is not None and not is_whole(count, 1):
            raise UsageError(f"{name} = {count!r} is not allowed; it must be a whole number of at least 1.")


def check_fit(shard: Shard) -> tuple[int, bool]:
    """Number of outputs C and whether the model draws random numbers, from samples of this rank; (0, False) without.

    Raises:
        UsageError: the model does not take the samples or returns no tensor with a row for each of them, or the loss
            does not take outputs or targets.
    """
    if len(shard.inputs) != len(shard.targets):
        raise UsageError(
            f"there are {len(shard.inputs)} inputs but {len(shard.targets)} targets; every sample needs one of each"
        )
    if not len(shard.inputs):
        return 0, False
    try:
        with evaluation(shard.module), torch.enable_grad():
            outputs = shard.module(shard.inputs[:1])
            _check_outputs(shard.module, outputs)
            _check_gradient(shard.module, outputs)
        with torch.no_grad():
            draws = _draws(shard)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"the model {type(shard.module).__name__} does not take a sample of shape {tuple(shard.inputs.shape[1:])}: "
            f"{error}. The first layer must fit the data"
        ) from error
    shard.loss.check(outputs, shard.targets)
    return int(outputs.shape[-1]), draws


def _check_outputs(module: torch.nn.Module, outputs: object) -> None:
    """Refuse what is not a tensor with the one sample's outputs in its only row."""
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else None
    if shape is None or shape[:1] != (1,):
        found = f"a {type(outputs).__name__}" if shape is None else f"a tensor of shape {shape}"
        raise UsageError(
            f"the model {type(module).__name__} returned {found} for one sample, but it must return one tensor whose "
            "first dimension is that of the samples. A model that squeezes its outputs does so with squeeze(-1), which "
            "leaves that dimension."
        )


def _check_gradient(module: torch.nn.Module, outputs: torch.Tensor) -> None:
    """Refuse outputs that torch cannot differentiate: nothing would be trained, and nobody told."""
    if not outputs.requires_grad and any(p.requires_grad for p in module.parameters()):
        raise UsageError(
            f"the outputs of the model {type(module).__name__} have no gradient in its parameters: somewhere in its "
            "forward pass it uses detach, torch.no_grad, item or numpy. Leave that out, so that it can be trained"
        )


def _draws(shard: Shard) -> bool:
    """Whether the model draws random numbers in training, as two samples show."""
    with evaluation(shard.module):
        shard.module.train()
        try:
            return shard.stochastic.drew(lambda: shard.module(shard.inputs[:2]), shard.inputs.device)
        except UsageError:  # batch normalisation refuses a single sample: assume the worse
            return True
