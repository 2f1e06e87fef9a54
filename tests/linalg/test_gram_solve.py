"""The direct solve of a block against the dense system in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpcopt.linalg import gram_solve
from hpcopt.linalg.gram_solve import LayerFactors, gram_matrix, output_factors, solve_by_gram

SHAPES = {
    "one layer": (6, 3, [(4, 5)]),
    "uneven layers": (7, 3, [(5, 9), (10, 2), (3, 1)]),
    "one output": (11, 1, [(3, 4), (5, 2)]),
    "one instance": (1, 4, [(3, 2)]),
    "more rows than variables": (40, 5, [(2, 3), (4, 1)]),
}
LOSSES = ["squared", "cross_entropy"]
cases = pytest.mark.parametrize("case", SHAPES)
losses = pytest.mark.parametrize("loss", LOSSES)


def block(samples, outputs, shapes, seed=0):
    """Random factors with a column of ones in the first layer's inputs, and a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = [LayerFactors(draw(samples, u), draw(samples, outputs, v)) for u, v in shapes]
    layers[0].inputs[:, -1] = 1.0
    return layers, [draw(u, v) for u, v in shapes], draw(samples, outputs).mul(3).softmax(dim=1)


def dense_jacobian(layers):
    """J (N K, n_p), variables in the order of the layers' flattened matrices."""
    columns = [torch.einsum("it,icj->ictj", layer.inputs, layer.factors) for layer in layers]
    rows = columns[0].shape[0] * columns[0].shape[1]
    return torch.cat([column.reshape(rows, -1) for column in columns], dim=1).double().numpy()


def dense_matrix(jacobian, samples, probabilities):
    """1/N J^T B J."""
    outputs = len(jacobian) // samples
    total = np.zeros((jacobian.shape[1],) * 2)
    for i in range(samples):
        own = jacobian[i * outputs : (i + 1) * outputs]
        p = (
            None
            if probabilities is None
            else probabilities[i].double().numpy() / float(probabilities[i].double().sum())
        )
        total += own.T @ (np.eye(outputs) if p is None else np.diag(p) - np.outer(p, p)) @ own
    return total / samples


def flat(matrices):
    return torch.cat([matrix.reshape(-1) for matrix in matrices]).double().numpy()


@cases
@losses
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_the_solution_is_that_of_the_dense_system(case, loss, damping):
    samples, outputs, shapes = SHAPES[case]
    layers, gradient, p = block(samples, outputs, shapes)
    p = p if loss == "cross_entropy" else None
    jacobian = dense_jacobian(layers)
    matrix = dense_matrix(jacobian, samples, p) + damping * np.eye(jacobian.shape[1])
    expected = np.linalg.solve(matrix, -flat(gradient))
    found = solve_by_gram(layers, gradient, damping, p)
    np.testing.assert_allclose(flat(found.direction), expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    assert found.residual < 1e-10
    assert found.damping == damping
    assert [part.shape for part in found.direction] == [torch.Size(shape) for shape in shapes]


@cases
@losses
def test_the_gram_matrix_is_that_of_the_dense_jacobian_in_any_parts(case, loss, monkeypatch):
    samples, outputs, shapes = SHAPES[case]
    layers, _, p = block(samples, outputs, shapes)
    jacobian = dense_jacobian(layers).reshape(samples, outputs, -1)
    if loss == "cross_entropy":
        q = p.numpy()
        roots = [np.diag(np.sqrt(row)) - np.outer(row, np.sqrt(row)) for row in q]
        for row, root in zip(q, roots, strict=True):
            np.testing.assert_allclose(root @ root.T, np.diag(row) - np.outer(row, row), atol=1e-15)
        jacobian = np.stack([root.T @ own for root, own in zip(roots, jacobian, strict=True)])
    rows = jacobian.reshape(samples * outputs, -1)
    expected = np.tril(rows @ rows.T)
    for part in (1, 3 * samples * outputs**2, 10**6):
        monkeypatch.setattr(gram_solve, "PART", part)
        found = gram_matrix(layers, p if loss == "cross_entropy" else None, torch.float64)
        np.testing.assert_allclose(np.tril(found.numpy()), expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_a_linear_output_layer_is_a_part_of_the_identity():
    samples, outputs = 5, 4
    layers, gradient, p = block(samples, outputs, [(3, 2)])
    last = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 3, generator=last, dtype=torch.float64)
    view = output_factors(outputs, 1, 2, inputs)
    assert view.untyped_storage().nbytes() <= 8 * outputs**2, "it is not stored for every instance"
    gradient.append(torch.randn(3, 2, generator=last, dtype=torch.float64))
    stacked = [*layers, LayerFactors(inputs, view)]
    jacobian = dense_jacobian(stacked)
    own = jacobian[:, 6:].reshape(samples, outputs, 3, 2)
    assert not own[:, [0, 3]].any(), "outputs of other ranks do not depend on this rank's last layer"
    np.testing.assert_array_equal(own[:, 2, :, 1], inputs)
    matrix = dense_matrix(jacobian, samples, p) + 0.1 * np.eye(jacobian.shape[1])
    found = solve_by_gram(stacked, gradient, 0.1, p)
    np.testing.assert_allclose(matrix @ flat(found.direction), -flat(gradient), atol=1e-10)


def test_probabilities_of_0_and_1_are_no_special_case():
    layers, gradient, _ = block(4, 3, [(3, 2)])
    sure = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    found = solve_by_gram(layers, gradient, 0.5, sure)
    np.testing.assert_allclose(flat(found.direction), -flat(gradient) / 0.5, rtol=1e-12)


def test_without_a_gradient_there_is_no_direction():
    layers, gradient, _ = block(4, 3, [(3, 2)])
    found = solve_by_gram(layers, [torch.zeros_like(part) for part in gradient], 0.5)
    assert not flat(found.direction).any()
    assert found.residual == 0.0


def test_the_factors_and_the_gradient_are_left_as_they_are():
    layers, gradient, p = block(4, 3, [(3, 2)])
    before = [t.clone() for t in (layers[0].inputs, layers[0].factors, gradient[0], p)]
    solve_by_gram(layers, gradient, 0.5, p)
    for kept, now in zip(before, (layers[0].inputs, layers[0].factors, gradient[0], p), strict=True):
        assert torch.equal(kept, now)


def in_float32(layers, gradient):
    return [layer.to(torch.float32) for layer in layers], [part.float() for part in gradient]


def test_what_float32_cannot_solve_float64_does(monkeypatch):
    samples, outputs, shapes = SHAPES["uneven layers"]
    layers, gradient = in_float32(*block(samples, outputs, shapes)[:2])
    tried, made = [], gram_solve.gram_matrix
    monkeypatch.setattr(gram_solve, "gram_matrix", lambda *given: tried.append(given[-1]) or made(*given))
    assert solve_by_gram(layers, gradient, 1.0).damping == 1.0
    assert tried == [torch.float32]
    found = solve_by_gram(layers, gradient, 1e-7)
    assert tried[1:] == [torch.float32, torch.float64]
    assert found.damping == 1e-7
    assert found.residual < 1e-3
    assert all(part.dtype == torch.float32 for part in found.direction)


def test_what_float64_cannot_solve_is_damped_more():
    samples, outputs, shapes = SHAPES["more rows than variables"]
    layers, gradient, _ = block(samples, outputs, shapes)
    found = solve_by_gram(layers, gradient, 1e-20)
    assert found.damping > 1e-20
    assert found.residual < 1e-3
    assert flat(gradient) @ flat(found.direction) < 0


@pytest.mark.parametrize("where", ["inputs", "factors", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_give_no_solution(where, value):
    layers, gradient, _ = block(4, 3, [(3, 2)])
    {"inputs": layers[0].inputs, "factors": layers[0].factors, "gradient": gradient[0]}[where].view(-1)[1] = value
    assert solve_by_gram(layers, gradient, 1.0) is None
