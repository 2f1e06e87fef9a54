"""Scaling on one rank; the reductions over ranks are tested in tests/mpi/test_data.py."""

from __future__ import annotations

import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.data.standardize import check_augment, choose_kind, fit, no_scaling, round_to_float32
from hpcopt.errors import UsageError

AXES = {"feature": (0,), "channel": (0, 2, 3), "global": (0, 1, 2, 3)}


@pytest.mark.parametrize("kind", ["feature", "channel", "global"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int16])
def test_numbers_that_share_a_mean_get_mean_0_and_deviation_1(comm: Communicator, kind: str, dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 4)).astype(dtype)
    scaling = fit(array, kind, comm)
    out = scaling.apply(array).astype(np.float64)
    np.testing.assert_allclose(out.mean(AXES[kind]), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(AXES[kind]), 1, atol=1e-6)
    want = (array - array.mean(AXES[kind], keepdims=True)) / array.std(AXES[kind], keepdims=True)
    np.testing.assert_allclose(out, want, atol=1e-6)
    assert scaling.apply(array).dtype == np.float32


def test_a_large_mean_does_not_cost_digits(comm: Communicator) -> None:
    """A mean of squares minus the square of the mean would leave nothing here."""
    array = 1e9 + np.random.default_rng(0).normal(size=(1000, 1))
    out = fit(array, "feature", comm).apply(array)
    assert out.std() == pytest.approx(1, abs=1e-6)
    assert out.mean() == pytest.approx(0, abs=1e-6)


def test_constant_features_are_centred_and_not_scaled(comm: Communicator) -> None:
    array = np.column_stack([np.full(7, 0.1), np.arange(7.0), np.full(7, 1e300)])
    scaling = fit(array, "feature", comm)
    assert scaling.constant == 2
    assert not scaling.apply(array)[:, [0, 2]].any()
    later = scaling.apply(array + 1)
    assert later[0, 0] == 1.0


@pytest.mark.parametrize("kind", ["channel", "global"])
def test_constant_images_of_bytes_are_centred(comm: Communicator, kind: str) -> None:
    array = np.full((4, 1, 3, 3), 200, np.uint8)
    scaling = fit(array, kind, comm)
    assert scaling.constant == 1
    assert not scaling.apply(array).any()


def test_chunks_do_not_matter(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(3).normal(size=(100, 7))
    whole = fit(array, "feature", comm)
    monkeypatch.setattr("hpcopt.data.standardize.CHUNK", 30)
    parts = fit(array, "feature", comm)
    np.testing.assert_array_equal(parts.mean, whole.mean)
    np.testing.assert_array_equal(parts.apply(array), whole.apply(array))


def test_without_scaling_bytes_become_0_to_1() -> None:
    array = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(no_scaling(array).apply(array), [[0, 0.2, 1]], rtol=1e-7)
    numbers = np.array([[0.5, -7.0]])
    assert no_scaling(numbers).apply(numbers).tolist() == [[0.5, -7.0]]


def test_the_kind_follows_the_shape() -> None:
    assert choose_kind(True, (5,)) == "feature"
    assert choose_kind(True, (3, 32, 32)) == "channel"
    assert choose_kind(False, (5,)) == "none"
    assert choose_kind("feature", (3, 32, 32)) == "feature"
    for kind in ("channel", "image"):
        with pytest.raises(UsageError, match=f'"{kind}", but the samples are plain rows of features without channels'):
            choose_kind(kind, (5,))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_is_scaled_by_itself(comm: Communicator, dtype: type) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 4)).astype(dtype)
    images[4] = 77
    out = fit(images[:2], "image", comm).apply(images)
    for image, scaled in zip(np.delete(images, 4, 0), np.delete(out, 4, 0), strict=True):
        np.testing.assert_allclose(scaled, (image - image.mean()) / image.astype(float).std(), atol=1e-5)
    assert not out[4].any()
    assert out.dtype == np.float32


def test_only_images_are_augmented() -> None:
    for shape in ((3, 8, 8), (8, 8)):
        check_augment("crop_flip", shape)
    check_augment("none", (5,))
    with pytest.raises(UsageError, match=r"is for images.*shape \(5,\)"):
        check_augment("crop_flip", (5,))


def test_rounding_removes_what_the_order_of_a_sum_changes() -> None:
    numbers = np.array([1 / 3, 1e-30, -123456.789, 0.0])
    noisy = numbers * (1 + 4e-16)
    assert (round_to_float32(noisy) == round_to_float32(numbers)).all()
    np.testing.assert_allclose(round_to_float32(numbers), numbers, rtol=2**-24)
    assert round_to_float32(np.array(1e9 + 1 / 3), np.array(1.0)) == pytest.approx(1e9 + 1 / 3, abs=2**-23)
