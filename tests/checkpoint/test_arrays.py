from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hpcopt.checkpoint.arrays import check_names, describe, pieces, put, regions, scalar_bytes
from hpcopt.errors import UsageError

SHAPES = [(), (0,), (1,), (7,), (3, 5), (5, 0, 2), (2, 3, 4), (1, 1, 9), (9, 1, 1), (3, 3, 3, 3)]


@pytest.mark.parametrize("limit", [8, 24, 40, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_regions_cover_an_array_once_in_the_order_of_its_memory(shape: tuple[int, ...], limit: int) -> None:
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    found = [array[region] if region else array for region in regions(shape, 8, limit)]
    assert all(0 < part.nbytes <= limit for part in found)
    assert [int(x) for part in found for x in part.ravel()] == list(range(array.size))


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_are_the_bytes_of_the_array(shape: tuple[int, ...]) -> None:
    values = np.asarray(np.random.default_rng(1).standard_normal(shape))
    turned = torch.from_numpy(values).permute(tuple(reversed(range(len(shape)))))
    for array in (values, values.T, torch.from_numpy(values), turned, np.repeat(values, 2)[::2].reshape(shape)):
        assert b"".join(pieces(array, limit=40)) == np.asarray(array).tobytes()


def test_pieces_of_host_memory_are_not_copies() -> None:
    tensor, array = torch.zeros(64, 64), np.zeros((64, 64))
    for block, memory in itertools.chain(
        zip(pieces(tensor, 512), itertools.repeat(tensor.numpy())), zip(pieces(array, 512), itertools.repeat(array))
    ):
        assert np.shares_memory(np.frombuffer(block, np.uint8), memory)
    parameter = torch.nn.Parameter(torch.zeros(4))
    assert next(pieces(parameter)).nbytes == 16


def test_a_block_is_put_into_a_tensor_that_needs_gradients() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    put(parameter, (0, 0), np.array([[1.0, 2.0]], dtype=np.float32), (1, 0))
    assert parameter.tolist() == [[0, 0], [1, 2], [0, 0]]


def test_numbers_of_numpy_are_arrays_and_those_of_python_scalars() -> None:
    assert describe("x", np.float64(1.5)) == (False, "<f8", ())
    assert describe("x", 1.5) == (True, "<f8", ())
    assert describe("x", True) == (True, "|b1", ())
    assert scalar_bytes(True) != scalar_bytes(1)


@pytest.mark.parametrize(
    "value",
    [
        *(None, [1.0], 2**63, "a\0b", "\ud800", np.array(["a"]), np.array([1j]), np.array([None])),
        *(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused_by_name(value: object) -> None:
    with pytest.raises(UsageError, match="solver/x"):
        describe("solver/x", value)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/./b", "../a", "a\0b", "own", "own/a"])
def test_a_name_that_is_no_path_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_names([name], reserved="own")


def test_a_name_cannot_be_the_folder_of_another() -> None:
    check_names(["a/b", "a/c", "ab"])
    with pytest.raises(UsageError, match="'a/b/c' beside 'a/b'"):
        check_names(["a/b", "a/b/c"])
