"""What stands in the tensors of a checkpoint: sizes, spectra of layers, and what differs between two checkpoints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcopt.analysis.checkpoint import Checkpoint
from hpcopt.train.run.directory import plain

BLOCK = 1 << 20
"""Elements looked at in one piece, as float64."""


def checkpoint_summary(checkpoint: Checkpoint, spectra: bool = False) -> dict[str, Any]:
    """Everything ``inspect --json`` prints of a checkpoint, ready for JSON: what is unknown or infinite is None.

    Args:
        checkpoint: the checkpoint; its tensors are read one after the other.
        spectra: also the singular values' extent of each matrix and convolution (see ``spectrum``).

    Raises:
        CheckpointError: it is damaged.
    """
    tensors = []
    for name in checkpoint.tensor_names:
        array = checkpoint.tensor(name)
        row = {"name": name, **describe_tensor(array)}
        tensors.append({**row, "spectrum": spectrum(array)} if spectra else row)
    stored = checkpoint.stored
    summarised: dict[str, Any] = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "which": checkpoint.which,
        "created": stored.created,
        "ranks": stored.ranks,
        "bytes": stored.manifest.bytes,
        "elements": sum(row["elements"] for row in tensors),
        "tensors": tensors,
        "scalars": checkpoint.scalars(),
    }
    return {key: plain(value) for key, value in summarised.items()}


def describe_tensor(array: np.ndarray) -> dict[str, Any]:
    """Shape, type, and figures of the finite elements.

    Returns:
        ``shape``, ``dtype``, ``elements``; ``norm`` (Euclidean), ``mean``, ``min`` and ``max`` of the finite elements
        (the last three None when there are none); ``zeros``, the share of zeros from 0 to 1; ``not_finite``, a count.
    """
    flat = array.reshape(-1)
    norm, total, finite, zeros = 0.0, 0.0, 0, 0
    low, high = math.inf, -math.inf
    for begin in range(0, flat.size, BLOCK):
        block = flat[begin : begin + BLOCK].astype(np.float64)
        known = block[np.isfinite(block)]
        zeros += known.size - int(np.count_nonzero(known))
        finite += known.size
        if known.size:
            norm = math.hypot(norm, float(np.linalg.norm(known)))
            total += float(known.sum())
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "elements": flat.size,
        "norm": norm,
        "mean": total / finite if finite else None,
        "min": low if finite else None,
        "max": high if finite else None,
        "zeros": zeros / flat.size if flat.size else 0.0,
        "not_finite": flat.size - finite,
    }


def spectrum(array: np.ndarray) -> dict[str, float] | None:
    """The extent of a layer's singular values, in float64; None without two dimensions or with elements not finite.

    A convolution (out, in, height, width) counts as the matrix (out, in * height * width).

    Returns:
        ``largest`` and ``smallest`` of the min(rows, columns) singular values; ``condition``, their quotient (infinite
        for a singular matrix); ``effective_rank``, exp of the entropy of the singular values divided by their sum,
        from 1 to min(rows, columns) (Roy and Vetterli, "The effective rank", 2007), 0 for a zero matrix.
    """
    if array.ndim < 2 or array.size == 0:
        return None
    matrix = array.reshape(array.shape[0], -1).astype(np.float64)
    if not np.isfinite(matrix).all():
        return None
    values = np.linalg.svd(matrix, compute_uv=False)
    largest, smallest = float(values[0]), float(values[-1])
    shares = values[values > 0] / values.sum() if largest > 0 else np.empty(0)
    return {
        "largest": largest,
        "smallest": smallest,
        "condition": largest / smallest if smallest > 0 else math.inf,
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())) if shares.size else 0.0,
    }


def difference(checkpoint: Checkpoint, other: Checkpoint) -> dict[str, Any]:
    """What differs between two checkpoints, ready for JSON.

    Returns:
        ``other``, ``other_step``; ``tensors``, one mapping for each tensor that both have in one shape, as from
        ``change``; ``missing``, names only ``other`` has; ``extra``, names only ``checkpoint`` has; ``reshaped``, those
        whose shapes differ, with both shapes; ``scalars``, ``[here, there]`` of each scalar that is not the same, None
        where it does not exist.

    Raises:
        CheckpointError: one of them is damaged.
    """
    ours, theirs = checkpoint.tensor_names, other.tensor_names
    shapes = {name: (checkpoint.describe(name).shape, other.describe(name).shape) for name in ours if name in theirs}
    compared: dict[str, Any] = {
        "other": str(other.path),
        "other_step": other.step,
        "other_which": other.which,
        "tensors": [
            {"name": name, **change(checkpoint.tensor(name), other.tensor(name))}
            for name, (here, there) in shapes.items()
            if here == there
        ],
        "missing": [name for name in theirs if name not in shapes],
        "extra": [name for name in ours if name not in shapes],
        "reshaped": [
            {"name": name, "shape": list(here), "other_shape": list(there)}
            for name, (here, there) in shapes.items()
            if here != there
        ],
        "scalars": _changed_scalars(checkpoint, other),
    }
    return {key: plain(value) for key, value in compared.items()}


def change(array: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """How far ``array`` is from ``reference``, which has the same shape.

    Returns:
        ``relative_change``, the Euclidean norm of the difference over that of the reference (0 when both are 0);
        ``largest_change`` of an element; ``equal_bits``, whether type and every bit agree.
    """
    here, there = array.reshape(-1), reference.reshape(-1)
    apart, size, largest = 0.0, 0.0, 0.0
    for begin in range(0, here.size, BLOCK):
        base = there[begin : begin + BLOCK].astype(np.float64)
        # Infinities in both leave no number, which is what is then shown.
        with np.errstate(invalid="ignore", over="ignore"):
            gap = here[begin : begin + BLOCK].astype(np.float64) - base
            apart, size = math.hypot(apart, float(np.linalg.norm(gap))), math.hypot(size, float(np.linalg.norm(base)))
            largest = float(np.maximum(largest, np.abs(gap).max()))
    return {
        "relative_change": apart / size if size else (0.0 if apart == 0 else math.inf),
        "largest_change": largest,
        "equal_bits": array.dtype == reference.dtype and np.array_equal(here.view(np.uint8), there.view(np.uint8)),
    }


def _changed_scalars(checkpoint: Checkpoint, other: Checkpoint) -> dict[str, list[Any]]:
    here, there = checkpoint.scalars(), other.scalars()
    pairs = {name: [here.get(name), there.get(name)] for name in sorted(here.keys() | there.keys())}
    # By their text: NaN is then the same as NaN, and 1 another thing than 1.0 and True.
    return {name: pair for name, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
