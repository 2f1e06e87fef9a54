"""Small data files in the forms that hpcopt reads."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_csv(path: Path, table: np.ndarray, header: str | None = None) -> Path:
    """A table with every digit of its numbers; packed when the name ends in .gz."""
    lines = [header] if header else []
    lines += [",".join(repr(value) for value in row) for row in np.asarray(table).tolist()]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def labelled(rows: int, features: int = 3, classes: int = 3, seed: int = 0) -> np.ndarray:
    """A table whose first column is a label 0 .. classes-1, sorted; the rest are normal numbers of various scales."""
    drawn = np.random.default_rng(seed).normal(size=(rows, features)) * 10.0 ** np.arange(features) + 7
    labels = np.sort(np.arange(rows) % classes)
    return np.column_stack([labels, drawn])


def write_idx(path: Path, array: np.ndarray) -> Path:
    """An idx file of bytes, packed when the name ends in .gz."""
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, train: int = 20, test: int = 10, packed: bool = True) -> dict[str, np.ndarray]:
    """Four files in MNIST's form with images of 4 x 5 pixels; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    content = {}
    for part, count in (("train", train), ("t10k", test)):
        content[f"{part}-images-idx3-ubyte"] = draw.integers(0, 256, (count, 4, 5), np.uint8)
        content[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in content.items():
        write_idx(folder / f"{name}{'.gz' if packed else ''}", array)
    return content


def encode_residual(images: np.ndarray) -> np.ndarray:
    """Images (n, 3, height, width) as differences (3, n, height, width), all modulo 256."""
    channels = images.transpose(1, 0, 2, 3).copy()
    channels[0] -= channels[1]
    channels[2] -= channels[1]
    for axis in (2, 3):
        channels = np.diff(channels, axis=axis, prepend=np.zeros((), np.uint8)).astype(np.uint8)
    return channels


def write_cifar10(folder: Path, each: int = 4, residual: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Six .npz files of CIFAR-10's names with ``each`` images; returns all images and labels in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    images = np.random.default_rng(2).integers(0, 256, (6 * each, 3, 32, 32), np.uint8)
    labels = (np.arange(6 * each) % 10).astype(np.uint8)
    for number, name in enumerate(names):
        rows = slice(number * each, (number + 1) * each)
        pixels = {"residual": encode_residual(images[rows])} if residual else {"images": images[rows]}
        np.savez(folder / f"{name}.npz", labels=labels[rows], **pixels)
    return images, labels
