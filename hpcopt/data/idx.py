"""MNIST's idx files: four files of the official names, each packed with gzip or not.

Format (http://yann.lecun.com/exdb/mnist): two zero bytes, a type code, the number of axes, each axis as a big-endian
32-bit integer, then the data with the last axis running fastest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.data.files import damaged, find_set, read_bytes
from hpcopt.data.reader import Arrays, Source

TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file, a view of the bytes read.

    Raises:
        UsageError: the file is missing, damaged, cut off, or not an idx file.
    """
    content = read_bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES or len(content) < 4 + 4 * content[3]:
        raise damaged(path, "it does not begin like an idx file")
    axes = tuple(int(n) for n in np.frombuffer(content, ">i4", content[3], 4))
    dtype, offset = TYPES[content[2]], 4 + 4 * len(axes)
    expected = int(np.prod(axes, dtype=np.int64)) * dtype.itemsize
    if min(axes, default=0) < 0 or len(content) - offset != expected:
        raise damaged(path, f"its header promises {expected} bytes of data, but {len(content) - offset} follow")
    return np.frombuffer(content, dtype, offset=offset).reshape(axes)


def read_pair(images: Path, labels: Path) -> Arrays:
    """Images (n, 1, height, width) and labels of one of the two sets."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise damaged(
            images,
            f"its shape is {pixels.shape}, that of {labels.name} {classes.shape}; there must be one"
            " label for each image",
        )
    return Arrays(str(images.parent), pixels[:, np.newaxis], classes)


def find_mnist(root: Path) -> list[Path]:
    """The four files below ``root``, in its sub-folder mnist, or where torchvision puts them."""
    packed = tuple(f"{name}.gz" for name in NAMES)
    return find_set(root, "mnist", [packed, NAMES], extra=["MNIST/raw"])


def open_mnist(root: Path) -> Source:
    """MNIST as its four files, below ``root`` or in its sub-folder mnist.

    A stream packed with gzip must be read to its end to know that it is whole, so each rank unpacks all of it
    (0.3 s) and keeps its shard.
    """
    paths = find_mnist(root)
    return Source(
        read_pair(*paths[:2]),
        read_pair(*paths[2:]),
        "classification",
        10,
        facts={"files": [str(path) for path in paths]},
    )
