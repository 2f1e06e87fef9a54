"""Which rows of a file train and which test: pure arithmetic, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcopt.data.options import DataOptions
from hpcopt.data.reader import Source
from hpcopt.errors import UsageError
from hpcopt.random import permutation, uniform_keys


@dataclass(frozen=True, eq=False)
class Split:
    """Rows in the order in which they are dealt out to the ranks.

    Attributes:
        train: rows of the source's training reader.
        test: rows of the same reader that are set aside; None when the test set has a reader of its own, or is none.
    """

    train: np.ndarray
    test: np.ndarray | None


def split_rows(source: Source, options: DataOptions, seed: int) -> Split:
    """Set the test set aside, then shuffle and limit the rest, as the options say.

    A test set that is set aside by default is the same for every seed; one that the user asks for as a fraction is
    drawn from the run's seed.

    Raises:
        UsageError: nothing is left to train, or to test.
    """
    total = source.train.rows
    own_seed = seed if source.split_seed is None else source.split_seed
    rows = permutation(own_seed, "sample order", 0, total) if source.ordered else np.arange(total)
    train, test = rows, None
    if options.test is None and source.test is None and source.test_size is not None:
        train, test = set_aside(rows, source.test_size, own_seed, options.source)
        train = train[: source.train_size]
    elif isinstance(options.test, int | float) and options.test is not False:
        train, test = set_aside(rows, options.test, seed, options.source)
    if options.shuffle:
        train = train[permutation(seed, "shuffle", 0, len(train))]
    return Split(train[: options.limit], test)


def set_aside(rows: np.ndarray, test: float | int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows: the last ``test`` rows, or the fraction ``test`` of them drawn by keys.

    The draw depends on the seed and the number of rows only; both parts keep the order of the rows.

    Raises:
        UsageError: one of them would be empty.
    """
    total = len(rows)
    count = test if isinstance(test, int) else round(test * total)
    if not 0 < count < total:
        raise UsageError(
            f"data.test is {test}, which sets {count} of the {total} samples of {name!r} aside; at least"
            " one must be left to train and one to test. Use a smaller number, or a fraction such as 0.2."
        )
    if isinstance(test, int):
        return rows[:-count], rows[-count:]
    chosen = np.zeros(total, bool)
    chosen[np.argpartition(uniform_keys(seed, "test set", 0, np.arange(total)), count - 1)[:count]] = True
    return rows[~chosen], rows[chosen]
