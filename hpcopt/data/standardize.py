"""Mean 0 and standard deviation 1, fitted on the training set over all ranks.

Two passes in float64: the means first, then the variances about them, which loses nothing when a mean is large.
Sums over ranks depend on the number of ranks in their last bits, and a sample's value in float32 could flip with
them; so the fitted numbers are rounded to what float32 can tell apart, after which they are the same for any number
of ranks, and with them the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator

CHUNK = 2**20
"""Numbers converted to float64 at a time, so that a large shard does not need eight bytes for each of its numbers."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Numbers z = (x - mean) / scale, with mean and scale in a shape that broadcasts over one sample.

    Attributes:
        kind: "feature", "channel", "global", "image" (mean and scale of each image are its own), or "none".
        mean: float64; zero where nothing is centred.
        scale: float64; one for features that are constant over the training set, which are centred only.
        constant: how many of them are constant.
    """

    kind: str
    mean: np.ndarray
    scale: np.ndarray
    constant: int = 0

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The scaled numbers, float32, in a new array."""
        out = np.empty(array.shape, np.float32)
        if self.kind == "image":
            for rows in _chunks(array):
                out[rows] = _each_by_itself(array[rows].astype(np.float64))
            return out
        if array.dtype == np.uint8 and self.kind != "feature":
            # 256 numbers a channel are looked up, four times as fast as computing each pixel in float64.
            channels = self.mean.size
            tables = ((np.arange(256.0) - self.mean.reshape(-1, 1)) / self.scale.reshape(-1, 1)).astype(np.float32)
            pairs = [(array, out)] if channels == 1 else [(array[:, c], out[:, c]) for c in range(channels)]
            for table, (pixels, place) in zip(tables, pairs, strict=True):
                for rows in _chunks(pixels):
                    place[rows] = np.take(table, pixels[rows], mode="clip")
            return out
        for rows in _chunks(array):
            out[rows] = (array[rows].astype(np.float64) - self.mean) / self.scale
        return out


def choose_kind(standardize: bool | str, shape: tuple[int, ...]) -> str:
    """The kind of scaling that the key ``standardize`` asks for, for samples of a shape.

    Raises:
        UsageError: channels are asked for, but a sample has one axis only.
    """
    if standardize is False:
        return "none"
    if standardize is True:
        return "channel" if len(shape) > 1 else "feature"
    if standardize in ("channel", "image") and len(shape) < 2:
        raise UsageError(
            f'data.standardize is "{standardize}", but the samples are plain rows of features without channels.'
            ' Use "feature" (each feature by itself) or "global" (one mean for all).'
        )
    return standardize


def check_augment(augment: str, shape: tuple[int, ...]) -> None:
    """Refuse to augment samples that are no images.

    Raises:
        UsageError: see above.
    """
    if augment != "none" and len(shape) not in (2, 3):
        raise UsageError(
            f'data.augment is "{augment}", which is for images, (channels, height, width) or (height, width), but a'
            f" sample of the data has shape {shape}. Remove data.augment for this data."
        )


def no_scaling(array: np.ndarray) -> Scaling:
    """The numbers as they are; pixels of type uint8 as 0..1."""
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return Scaling("none", np.zeros(()), np.array(scale))


def fit(array: np.ndarray, kind: str, comm: Communicator) -> Scaling:
    """Mean and standard deviation over the samples of all ranks (divided by their number). *Collective*.

    Args:
        array: this rank's samples, any numerical type, shape (count, ...); count may be 0.
        kind: "feature", "channel" (the first axis of a sample) or "global"; for "image" nothing is fitted.
        comm: the ranks that hold the set.
    """
    if kind == "none":
        return no_scaling(array)
    if kind == "image":
        return Scaling(kind, np.zeros(()), np.ones(()))
    if array.dtype == np.uint8 and kind != "feature":
        return _fit_pixels(array, kind, comm)
    axes = _summed_axes(kind, array.ndim)
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(array.shape))[1:]
    extremes = np.full((2, *shape), -np.inf)
    total = np.zeros(shape)
    for rows in _chunks(array):
        part = array[rows].astype(np.float64)
        extremes[0] = np.maximum(extremes[0], part.max(axis=axes, keepdims=True)[0])
        extremes[1] = np.maximum(extremes[1], (-part).max(axis=axes, keepdims=True)[0])
        total += part.sum(axis=axes, keepdims=True)[0]
    per_sample = int(np.prod(array.shape[1:])) // max(1, int(np.prod(shape)))
    count = comm.reduce_scalars([float(len(array))], label="standardize")[0] * per_sample
    comm.allreduce(extremes, "max", label="standardize")
    constant = extremes[0] == -extremes[1]
    mean = np.where(constant, extremes[0], comm.allreduce(total, "sum", label="standardize") / count)
    squares = np.zeros(shape)
    for rows in _chunks(array):
        squares += ((array[rows].astype(np.float64) - mean) ** 2).sum(axis=axes, keepdims=True)[0]
    variance = comm.allreduce(squares, "sum", label="standardize") / count
    return _scaling(kind, mean, variance, constant)


def _fit_pixels(array: np.ndarray, kind: str, comm: Communicator) -> Scaling:
    """The same for bytes, from how often each of the 256 values occurs: one pass and one reduction. *Collective*."""
    pixels = [array] if kind == "global" else [array[:, channel] for channel in range(array.shape[1])]
    counts = np.zeros((len(pixels), 256))
    for row, values in zip(counts, pixels, strict=True):
        for rows in _chunks(values):
            row += np.bincount(values[rows].ravel(), minlength=256)
    comm.allreduce(counts, "sum", label="standardize")
    values = np.arange(256.0)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, np.newaxis]) ** 2).sum(axis=1) / total
    shape = (len(pixels), *(1,) * (array.ndim - 2))
    return _scaling(kind, mean.reshape(shape), variance.reshape(shape), (counts.max(axis=1) == total).reshape(shape))


def _scaling(kind: str, mean: np.ndarray, variance: np.ndarray, constant: np.ndarray) -> Scaling:
    """Round the fitted numbers; what does not vary is centred only."""
    deviation = round_to_float32(np.sqrt(variance))
    constant = constant | (deviation == 0.0)
    scale = np.where(constant, 1.0, deviation)
    return Scaling(kind, np.where(constant, mean, round_to_float32(mean, scale)), scale, int(constant.sum()))


def round_to_float32(numbers: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """Round to 24 significant bits, or to the 24 bits below a scale: an error of 6e-8 of a standard deviation."""
    exponent = np.frexp(numbers if scale is None else scale)[1] - 24
    return np.asarray(np.ldexp(np.round(np.ldexp(numbers, -exponent)), exponent))


def _each_by_itself(images: np.ndarray) -> np.ndarray:
    """Images (b, ...) in float64 with mean 0 and standard deviation 1 each; a constant one is centred only."""
    axes = tuple(range(1, images.ndim))
    centred = images - images.mean(axes, keepdims=True)
    deviation = centred.std(axes, keepdims=True)
    return np.asarray(centred / np.where(np.ptp(images, axes, keepdims=True) == 0, 1.0, deviation))


def _summed_axes(kind: str, axes: int) -> tuple[int, ...]:
    """The axes of (count, ...) over which numbers share a mean."""
    return {"feature": (0,), "channel": (0, *range(2, axes)), "global": tuple(range(axes))}[kind]


def _chunks(array: np.ndarray) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, int(np.prod(array.shape[1:]))))
    return (slice(start, start + step) for start in range(0, len(array), step))
