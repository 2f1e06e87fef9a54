"""Normal equations of a transposed convolution by sums over lags, in C: those of its rows, for any kernel."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from hpcopt.kernels.lags import CompiledLags
from hpcopt.objective.separable import design
from hpcopt.objective.separable.lag_products import LagProducts
from tests.objective.separable.test_last_layer import LAYERS, SCALE, made


@pytest.fixture
def lags(library: Path, monkeypatch: pytest.MonkeyPatch) -> CompiledLags:
    """In use, however small the inputs."""
    compiled = CompiledLags(ctypes.CDLL(str(library)))
    monkeypatch.setattr(design, "compiled_lags", lambda: compiled)
    monkeypatch.setattr(LagProducts, "pays", lambda self, samples: True)
    return compiled


@pytest.mark.parametrize("name", [name for name, (layer, _) in LAYERS.items() if "Transpose" in type(layer).__name__])
def test_normal_equations_and_loss_are_those_of_rows(
    name: str, lags: CompiledLags, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, described, weights, seen = made(name)
    targets = torch.randn(layer(seen).detach().flatten(1).shape, dtype=torch.float64)
    given = seen, targets, weights, SCALE
    found, loss = described.normal(*given), described.loss_and_cotangent(*given)
    assert found[0].square > 0
    assert [state.square for state in found[1:]] == [0.0] * (len(found) - 1)  # as rows do not tell it
    monkeypatch.setattr(design, "compiled_lags", lambda: None)
    expected = described.normal(*given)
    assert found[0].square == pytest.approx(sum(state.square for state in expected), rel=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, described.loss_and_cotangent(*given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 5, 16, 20])
@pytest.mark.parametrize("lag", [(0, 0), (0, 2), (1, -1)])
def test_sums_are_over_all_positions_of_a_piece(lags: CompiledLags, channels: int, lag: tuple[int, int]) -> None:
    drawn = torch.randn(3, 13, 11, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down, across = [1, 2, 11], [2, 8, 9]
    found, single = lags.sums(drawn, [lag], down, across)
    places = [(slice(*rows), slice(*columns)) for rows in ((1, 2), (2, 11)) for columns in ((2, 8), (8, 9))]
    far = torch.roll(drawn, (-lag[0], -lag[1]), (1, 2))
    for sums, alone, (rows, columns) in zip(found[0], single, places, strict=True):
        expected = torch.einsum("byxc,byxd->cd", drawn[:, rows, columns], far[:, rows, columns])
        torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone, drawn[:, rows, columns].sum((0, 1, 2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 16])
def test_inputs_are_the_features_with_channels_last_between_zeros(
    lags: CompiledLags, channels: int, dtype: torch.dtype
) -> None:
    features = torch.randn(3, channels, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = lags.inputs(features, (2, 1), (0, 3))
    expected = torch.zeros(3, 8, 7, channels, dtype=torch.float64)
    expected[:, 2:7, 0:4] = features.movedim(1, -1)
    assert torch.equal(found, expected)


def test_inputs_of_single_precision_are_refused(lags: CompiledLags) -> None:
    with pytest.raises(ValueError, match="takes contiguous ones"):
        lags.sums(torch.zeros(1, 3, 3, 2), [(0, 0)], [0, 3], [0, 3])
