"""Files of named arrays: which array holds what, .npz (also with encoded images) and .mat."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.data.files import damaged, unreadable
from hpcopt.data.reader import Arrays
from hpcopt.data.text import Target, target_columns
from hpcopt.errors import UsageError, nearest

INPUT_NAMES = ("inputs", "input", "x", "images", "image", "data", "features")
TARGET_NAMES = ("targets", "target", "y", "labels", "label", "t")


@dataclass(frozen=True)
class Choice:
    """The arrays of one set within a file.

    Attributes:
        inputs: name of the array of inputs.
        targets: name of the array of targets; None when they are columns of the inputs.
    """

    inputs: str
    targets: str | None


def choose(
    shapes: Mapping[str, tuple[int, ...]], part: str, inputs: str | None, target: Target, name: str
) -> Choice | None:
    """Find the arrays of the training or the test set by their names.

    ``x``, ``x_train``, ``train_x`` and ``train/x`` are all understood, for each of the usual names, in any case.

    Args:
        shapes: shape of every array of the file.
        part: "train" or "test".
        inputs: name that the user gave (for the training set), or None.
        target: name that the user gave (for the training set), or columns, or None.
        name: the file, for messages.

    Returns:
        The choice; None if the file has no test set.

    Raises:
        UsageError: there is no such array, or no array of a usual name.
    """
    wanted_target = target if isinstance(target, str) and target not in ("first", "last") else None
    if part == "train":
        for key, wanted in (("inputs", inputs), ("target", wanted_target)):
            if wanted is not None and wanted not in shapes:
                raise UsageError(
                    f"data.{key} is {wanted!r}, which is no array of {name!r}"
                    f"{nearest(wanted, list(shapes))} It holds {_listing(shapes)}."
                )
    given = inputs or (_common(shapes) if part == "train" else None)
    found = _named(shapes, part, given, INPUT_NAMES)
    if found is None:
        if part == "test":
            return None
        raise UsageError(
            f"The file {name!r} has no array named inputs, x, images, data or features; it holds"
            f" {_listing(shapes)}. Set data.inputs, and data.target, to the names of its arrays."
        )
    as_column = target is not None and wanted_target is None
    targets = None if as_column else _named(shapes, part, wanted_target, TARGET_NAMES)
    if targets is None and (len(shapes[found]) != 2 or not (as_column or len(shapes) == 1)):
        raise UsageError(
            f"The file {name!r} has no array named targets, labels or y to go with {found!r}; it holds"
            f" {_listing(shapes)}. Set data.target to the name of the array of targets."
        )
    return Choice(found, targets)


def _common(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The only array of a file, which needs no particular name."""
    return next(iter(shapes)) if len(shapes) == 1 else None


def _named(shapes: Mapping[str, tuple[int, ...]], part: str, given: str | None, names: tuple[str, ...]) -> str | None:
    """The array of a given name, or of the first usual name; for the test set only names that say test."""
    if given is not None and part == "train":
        return given
    lower = {key.lower(): key for key in shapes}
    for name in names if given is None else (given.lower().replace("train", "test"),):
        plain = (name,) if part == "train" or (given and name != given.lower()) else ()
        for form in (f"{part}/{name}", f"{name}_{part}", f"{part}_{name}", *plain):
            if form in lower:
                return lower[form]
    return None


def _listing(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {'x'.join(map(str, shape)) or 'scalar'}" for key, shape in shapes.items()) or "no arrays"


def check_pair(inputs: tuple[int, ...], targets: tuple[int, ...], choice: Choice, name: str) -> None:
    """Refuse inputs and targets that do not belong together.

    Raises:
        UsageError: there are not as many targets as inputs, or inputs or targets have other axes than they may have.
    """
    if len(inputs) < 2 or not targets or inputs[0] != targets[0] or len(targets) > 2:
        raise UsageError(
            f"In {name!r} the inputs {choice.inputs!r} have shape {inputs} and the targets"
            f" {choice.targets!r} shape {targets}. Both need one sample a row, the inputs at least two axes, and the"
            " targets at most two."
        )


def check_numbers(dtype: np.dtype[Any], array: str, name: str) -> None:
    """Refuse an array of a file that holds text, complex numbers or records.

    Raises:
        UsageError: it does.
    """
    if dtype.kind not in "biuf":
        raise UsageError(
            f"The array {array!r} of {name!r} is of type {dtype}; only real numbers can be used. Code text as numbers,"
            " labels as whole ones."
        )


def as_images(inputs: np.ndarray) -> np.ndarray:
    """Pixels of type uint8 as (n, channels, height, width); other arrays as they are.

    Images without a channel axis get one; channels in the last place (1, 3 or 4 of them) come first.
    """
    if inputs.dtype == np.uint8 and inputs.ndim == 3:
        return inputs[:, np.newaxis]
    if inputs.ndim == 4 and inputs.shape[3] in (1, 3, 4) and inputs.shape[1] not in (1, 3, 4):
        return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
    return inputs


def split_columns(table: np.ndarray, target: Target, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A table (n, columns) as inputs and the target columns, (n,) if there is one.

    Raises:
        UsageError: a target is no column, or nothing is left as input.
    """
    columns = target_columns(target, None, table.shape[1], name)
    features = [column for column in range(table.shape[1]) if column not in columns]
    if not features:
        raise UsageError(f"All columns of the array in {name!r} are targets, so nothing is left as input.")
    return table[:, features], table[:, columns[0]] if len(columns) == 1 else table[:, columns]


def squeeze_targets(targets: np.ndarray) -> np.ndarray:
    """Targets (n, 1) as (n,)."""
    return targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets


def make_arrays(content: Mapping[str, Any], choice: Choice, target: Target, name: str) -> Arrays:
    """The chosen arrays of a file as samples in memory.

    Raises:
        UsageError: they are no numbers, or do not belong together.
    """
    inputs = np.asarray(content[choice.inputs])
    for key in filter(None, (choice.inputs, choice.targets)):
        check_numbers(np.asarray(content[key]).dtype, key, name)
    if choice.targets is None:
        return Arrays(name, *split_columns(inputs, target, name))
    targets = np.asarray(content[choice.targets])
    check_pair(inputs.shape, targets.shape, choice, name)
    return Arrays(name, as_images(inputs), squeeze_targets(targets))


def decode_residual(residual: np.ndarray) -> np.ndarray:
    """Images (n, 3, height, width) from their differences (3, n, height, width), all uint8 modulo 256.

    The differences are red and blue minus green, then along the rows and along the columns.
    """
    channels = np.cumsum(np.cumsum(residual, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    channels[0] += channels[1]
    channels[2] += channels[1]
    return np.asarray(channels.transpose(1, 0, 2, 3))


def load_npz(path: Path, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, all or the named ones that it has; pickled objects are refused.

    Raises:
        UsageError: the file is missing or damaged, or holds Python objects.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if names is None or key in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise (unreadable(path, error) if error.errno else damaged(path, error)) from error


def open_npz(path: Path, inputs: str | None, target: Target) -> tuple[Arrays, Arrays | None]:
    """The training set of a .npz file, and its test set if it has one."""
    content = load_npz(path)
    if "residual" in content and content["residual"].ndim == 4:
        content["images"] = decode_residual(content.pop("residual"))
    return _parts(content, inputs, target, str(path))


def load_mat(path: Path) -> dict[str, np.ndarray]:
    """The numerical arrays of a MATLAB file of version 5 to 7.2.

    Raises:
        UsageError: scipy is not installed, or the file is missing, damaged or of version 7.3.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise UsageError(
            f"Reading {str(path)!r} needs scipy, which is not installed. Run `pip install scipy`."
        ) from error
    try:
        content = loadmat(path)
    except NotImplementedError as error:
        raise UsageError(
            f"{str(path)!r} is a MATLAB file of version 7.3, which stores arrays transposed. Save it with"
            " `save(..., '-v7')`, or as .h5 or .npz with one sample a row."
        ) from error
    except OSError as error:
        raise (unreadable(path, error) if error.errno else damaged(path, error)) from error
    except (MatReadError, ValueError, TypeError, KeyError, EOFError, zlib.error, MemoryError) as error:
        raise damaged(path, error) from error
    return {
        key: value for key, value in content.items() if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    }


def open_mat(path: Path, inputs: str | None, target: Target) -> tuple[Arrays, Arrays | None]:
    """The sets of a .mat file. Arrays whose samples are columns (as in MATLAB codes) are turned."""
    content = load_mat(path)
    choice = choose({key: value.shape for key, value in content.items()}, "train", inputs, target, str(path))
    if choice and choice.targets:
        x, y = content[choice.inputs], content[choice.targets]
        if x.ndim == y.ndim == 2 and x.shape[0] != y.shape[0] and x.shape[1] == y.shape[1]:
            content = {key: value.T for key, value in content.items()}
    return _parts(content, inputs, target, str(path))


def _parts(
    content: Mapping[str, np.ndarray], inputs: str | None, target: Target, name: str
) -> tuple[Arrays, Arrays | None]:
    shapes = {key: value.shape for key, value in content.items()}
    found = [choose(shapes, part, inputs, target, name) for part in ("train", "test")]
    train, test = [make_arrays(content, choice, target, name) if choice else None for choice in found]
    assert train is not None  # choose has raised if there is none
    return train, test
