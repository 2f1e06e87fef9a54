"""Data from a function of the user, named 'package.module:function' in the job file.

The function is called with those of these arguments that it has as parameters, by name: ``root`` (the data folder as
text, or None), ``seed``, ``rank``, ``size``, ``part`` ("train" or "test"), ``start``, ``count``. It returns arrays
with one sample a row, in one of three ways:

1. The whole set, on every rank; hpcopt keeps the rank's shard::

       def load(root): return inputs, targets
       def load(root): return (inputs, targets), (test_inputs, test_targets)

2. With the parameters ``start`` and ``count``: only the rows start .. start+count-1, so that a rank reads its shard
   only, and the number of rows of the whole set. It is first called with count = 0 to ask for that number. With the
   parameter ``part`` it is also asked for the test set, and may return None if there is none::

       def load(start, count, part): return inputs, targets, total

3. With the parameters ``rank`` and ``size``: this rank's own shard, of any length; the shards of ranks 0, 1, ...
   follow each other in the whole set::

       def load(rank, size): return inputs, targets
       def load(rank, size): return (inputs, targets), (test_inputs, test_targets)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcopt.data.reader import Arrays, Source
from hpcopt.errors import HpcoptError, UsageError, nearest
from hpcopt.importing import find_function

KNOWN = ("root", "seed", "rank", "size", "part", "start", "count")


def open_user(name: str, root: str | None, seed: int, rank: int, size: int) -> Source:
    """The set that a user's function gives.

    Raises:
        UsageError: no such function, it raises, takes other parameters, or returns something else than described.
    """
    function = find_function(name, "data.source")
    given = {"root": root, "seed": seed, "rank": rank, "size": size}
    parameters = _parameters(function, name)
    if {"start", "count"} <= parameters:
        train = _Slices(function, name, given, parameters, "train")
        test = _Slices(function, name, given, parameters, "test") if "part" in parameters else None
        return Source(train, test if test is not None and test.exists else None, facts={"function": name})
    for alone in {"start", "count", "part"} & parameters:
        raise UsageError(
            f"The data function {name!r} has the parameter {alone!r}, which is used only together with"
            " start and count. Give it both, or none of the three."
        )
    result = _call(function, name, {key: value for key, value in given.items() if key in parameters})
    train_arrays, test_arrays = _two_sets(result, name)
    return Source(train_arrays, test_arrays, sharded={"rank", "size"} <= parameters, facts={"function": name})


class _Slices:
    """Rows by calls of a function with ``start`` and ``count``."""

    def __init__(
        self, function: Callable[..., Any], name: str, given: dict[str, Any], parameters: set[str], part: str
    ) -> None:
        self.name = name
        self._function = function
        self._arguments = {key: value for key, value in {**given, "part": part}.items() if key in parameters}
        answer = self._ask(0, 0, part == "test")
        self.exists = answer is not None
        self.rows = answer[1] if answer else 0
        self.shape: tuple[int, ...] = answer[0].shape if answer else ()

    def column(self, feature: int) -> str:
        return f"feature {feature}"

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows from the first to the last one asked for, of which the ones asked for are kept.

        Raises:
            UsageError: the function could not read its data, or returned something else than these rows.
        """
        start, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        answer = self._ask(start, stop - start, False)
        assert answer is not None
        arrays = answer[0]
        if arrays.rows != stop - start:
            raise UsageError(
                f"The data function {self.name!r} was asked for {stop - start} rows from row {start} on,"
                f" but returned {arrays.rows}."
            )
        return arrays.read(rows - start)

    def _ask(self, start: int, count: int, may_be_none: bool) -> tuple[Arrays, int] | None:
        result = _call(self._function, self.name, {**self._arguments, "start": start, "count": count})
        if result is None and may_be_none:
            return None
        if not isinstance(result, tuple) or len(result) != 3 or not isinstance(result[2], int | np.integer):
            raise UsageError(
                f"The data function {self.name!r} takes start and count, so it must return (inputs,"
                f" targets, total) with total the rows of the whole set; it returned {_kind(result)}."
            )
        return _arrays(result[:2], self.name), int(result[2])


def _parameters(function: Callable[..., Any], name: str) -> set[str]:
    """The known parameters of a function; one that is not known must have a default."""
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if parameter.name not in KNOWN and not optional:
            hint = nearest(parameter.name, KNOWN)
            raise UsageError(
                f"The data function {name!r} needs a parameter {parameter.name!r}{hint}"
                f" The parameters it is given are {', '.join(KNOWN)}."
            )
    return {parameter.name for parameter in parameters} & set(KNOWN)


def _call(function: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except HpcoptError:
        raise
    except OSError as error:
        raise UsageError(f"The data function {name!r} could not read its data: {error}.") from error


def _two_sets(result: Any, name: str) -> tuple[Arrays, Arrays | None]:
    if isinstance(result, tuple) and len(result) == 2:
        if all(isinstance(part, tuple) and len(part) == 2 for part in result):
            return _arrays(result[0], name), _arrays(result[1], name)
        return _arrays(result, name), None
    raise UsageError(
        f"The data function {name!r} must return (inputs, targets) or ((inputs, targets), (test_inputs,"
        f" test_targets)); it returned {_kind(result)}."
    )


def _arrays(pair: Any, name: str) -> Arrays:
    inputs, targets = (_numpy(item) for item in pair)
    numbers = inputs.dtype.kind in "biuf" and targets.dtype.kind in "biuf"
    if not numbers or inputs.ndim < 2 or targets.ndim not in (1, 2):
        raise UsageError(
            f"The data function {name!r} returned inputs of type {inputs.dtype} and shape {inputs.shape} and"
            f" targets of type {targets.dtype} and shape {targets.shape}. Inputs must be numbers with one"
            " sample a row and at least two axes, targets numbers with one or two axes."
        )
    if len(inputs) != len(targets):
        raise UsageError(f"The data function {name!r} returned {len(inputs)} inputs, but {len(targets)} targets.")
    return Arrays(name, inputs, targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets)


def _numpy(item: Any) -> np.ndarray:
    """An array of anything array-like; torch tensors on a GPU are copied to the host."""
    if hasattr(item, "detach"):
        item = item.detach().cpu().numpy()
    return np.asarray(item)


def _kind(result: Any) -> str:
    inside = f" of {len(result)}" if isinstance(result, tuple | list) else ""
    return f"a {type(result).__name__}{inside}"
