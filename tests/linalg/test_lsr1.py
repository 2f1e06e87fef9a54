"""The compact L-SR1 matrix against the dense recursion, and its spectrum from inner products alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.linalg.compact import CompactModel, decompose
from hpcopt.linalg.lsr1 import lsr1_accepts, lsr1_model
from hpcopt.linalg.pairs import PairMemory


def inner(x, y):
    return x.double() @ y.double().T


def memory_of(pairs, room=10):
    memory = PairMemory.empty(pairs[0][0], room)
    for s, y in pairs:
        memory.offer(s, y, inner)
        memory.keep()
    return memory


def random_pairs(count, size, seed, hessian=None):
    generator = torch.Generator().manual_seed(seed)
    if hessian is None:
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        hessian = root + root.T
    steps = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return [(s, hessian @ s) for s in steps]


def dense_sr1(pairs, gamma):
    matrix = gamma * torch.eye(len(pairs[0][0]), dtype=torch.float64)
    for s, y in pairs:
        residual = y - matrix @ s
        matrix = matrix + torch.outer(residual, residual) / (residual @ s)
    return matrix


def dense(model, memory):
    psi = memory.rows.double().T @ model.columns
    return model.gamma * torch.eye(len(psi), dtype=torch.float64) + psi @ model.middle @ psi.T


@given(seed=st.integers(0, 10**6), count=st.integers(0, 6), gamma=st.floats(1e-3, 1e3))
@settings(max_examples=25)
def test_compact_form_equals_the_dense_recursion(seed, count, gamma):
    pairs = random_pairs(count, 9, seed)
    memory = memory_of(pairs) if pairs else PairMemory.empty(torch.zeros(9, dtype=torch.float64), 10)
    model = lsr1_model(memory, gamma)
    expected = dense_sr1(pairs, gamma) if pairs else gamma * torch.eye(9, dtype=torch.float64)
    size = float(torch.linalg.matrix_norm(expected))
    torch.testing.assert_close(dense(model, memory), expected, rtol=1e-6, atol=1e-6 * size)


def test_the_secant_condition_holds_for_all_pairs_of_a_quadratic():
    pairs = random_pairs(5, 8, 3)
    memory = memory_of(pairs)
    matrix = dense(lsr1_model(memory, 0.5), memory)
    for s, y in pairs:
        torch.testing.assert_close(matrix @ s, y, rtol=1e-8, atol=1e-8)


def test_product_in_coefficients_equals_the_dense_product():
    memory = memory_of(random_pairs(4, 8, 1))
    model = lsr1_model(memory, 0.3)
    coefficients = torch.linspace(-1, 1, len(memory.rows), dtype=torch.float64)
    found = memory.combine(model.product(coefficients, memory.gram))
    torch.testing.assert_close(found, dense(model, memory) @ memory.combine(coefficients))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
@settings(max_examples=25)
def test_spectrum_equals_the_dense_eigenvalues(seed, count):
    memory = memory_of(random_pairs(count, 9, seed))
    model = lsr1_model(memory, 0.7)
    spectrum = decompose(model, memory.gram, 1e-13)
    basis = memory.rows.T @ spectrum.basis
    matrix = dense(model, memory)
    size = float(torch.linalg.matrix_norm(matrix))
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix @ basis, basis * spectrum.values, rtol=0, atol=1e-5 * size)
    values = torch.cat([spectrum.values, torch.full((9 - basis.shape[1],), 0.7, dtype=torch.float64)]).sort().values
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-5 * size)


def test_dependent_columns_are_left_out_of_the_basis():
    (pair,) = random_pairs(1, 6, 0)
    memory = memory_of([pair, (2 * pair[0], 2 * pair[1])])
    columns = torch.zeros(len(memory.gram), 2, dtype=torch.float64)
    columns[1, 0] = columns[3, 1] = 1.0
    spectrum = decompose(CompactModel(1.0, columns, torch.eye(2, dtype=torch.float64)), memory.gram, 1e-12)
    assert spectrum.basis.shape[1] == 1
    assert float(spectrum.values[0]) == pytest.approx(1 + 5 * float(pair[1] @ pair[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_pair_that_gamma_explains_is_left_out_wherever_it_stands(place, dtype):
    pairs = random_pairs(3, 6, 5)
    pairs[place] = (pairs[place][0], 0.4 * pairs[place][0])
    memory = memory_of([(s.to(dtype), y.to(dtype)) for s, y in pairs])
    model = lsr1_model(memory, 0.4)
    others = [pair for index, pair in enumerate(pairs) if index != place]
    assert model.columns.shape[1] == 2
    torch.testing.assert_close(dense(model, memory), dense_sr1(others, 0.4), rtol=1e-4, atol=1e-4)


def test_a_singular_middle_matrix_costs_the_oldest_pairs_not_the_model():
    pairs = random_pairs(2, 6, 5)
    memory = memory_of([pairs[1], *pairs])  # the same pair twice
    model = lsr1_model(memory, 0.4)
    assert model.columns.shape[1] == 2
    torch.testing.assert_close(dense(model, memory), dense_sr1(pairs, 0.4), rtol=1e-8, atol=1e-8)


def test_a_pair_with_infinite_update_gives_the_model_without_it():
    pair = (torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.4, 1.0], dtype=torch.float64))
    memory = memory_of([pair])
    assert torch.equal(dense(lsr1_model(memory, 0.4), memory), 0.4 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("s", "y", "accepted"),
    [
        ([1.0, 0.0], [3.0, 0.0], True),
        ([1.0, 0.0], [-3.0, 1.0], True),
        ([1.0, 0.0], [2.0, 0.0], False),  # y = B s: nothing new
        ([1.0, 0.0], [2.0, 5.0], False),  # s orthogonal to y - B s: the update would be infinite
        ([1.0, 0.0], [2.0 + 1e-9, 5.0], False),
    ],
)
def test_pairs_with_an_unsafe_denominator_are_refused(s, y, accepted):
    memory = PairMemory.empty(torch.zeros(2, dtype=torch.float64), 2)
    model = lsr1_model(memory, 2.0)
    memory.offer(torch.tensor(s, dtype=torch.float64), torch.tensor(y, dtype=torch.float64), inner)
    assert lsr1_accepts(memory, model) is accepted
