"""Products: in blocks as a device makes them, all at once, and as the processor does, one by one; of matrices."""

from __future__ import annotations

import pytest
import torch

from hpcopt.objective import vectors


@pytest.mark.parametrize("size", [0, 5, 8, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_blocks_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(vectors, "_BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, size, generator=generator, dtype=dtype)
    y = torch.randn(3, size, generator=generator, dtype=dtype)
    found = vectors._on_device(x, y)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, vectors.inner(x, y), rtol=1e-6, atol=1e-6)


def test_a_product_of_matrices_is_torchs_and_has_no_graph() -> None:
    left, right = (torch.randn(shape, dtype=torch.float64) for shape in ((7, 3), (7, 2)))
    found = vectors.matmul(left.requires_grad_().T, right)
    assert not found.requires_grad
    torch.testing.assert_close(found, (left.T @ right).detach(), rtol=1e-13, atol=1e-14)
