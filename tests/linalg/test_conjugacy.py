"""The update rules of nonlinear conjugate gradients against the linear method on quadratics."""

from __future__ import annotations

import math

import pytest
import torch

from hpcopt.linalg.conjugacy import FLOOR, RULES, Pack, conjugacy


def system(size: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A symmetric positive definite A, b, and the diagonal of a P."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    right = torch.randn(size, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64), right, torch.linspace(0.5, 2, size).double()


def pack_of(g: torch.Tensor, before: torch.Tensor, d: torch.Tensor, p: torch.Tensor) -> Pack:
    y = g - before
    numbers = [g @ (p * g), before @ (p * before), g @ (p * y), d @ y, g @ d, y @ (p * y), d @ d, before @ before]
    return Pack(*map(float, numbers))


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_on_a_quadratic_with_exact_steps_every_rule_is_the_linear_method(rule: str, preconditioned: bool) -> None:
    a, b, diagonal = system()
    p = diagonal if preconditioned else torch.ones_like(b)
    w, textbook = torch.zeros_like(b), torch.zeros_like(b)
    g = a @ w - b
    d = -p * g
    residual, direction = b.clone(), p * b
    for _ in range(len(b)):
        w = w - (g @ d) / (d @ a @ d) * d
        before, g = g, a @ w - b
        d = -p * g + conjugacy(rule, pack_of(g, before, d, p)) * d
        step = (residual @ (p * residual)) / (direction @ a @ direction)
        textbook = textbook + step * direction
        old, residual = residual, residual - step * (a @ direction)
        direction = p * residual + (residual @ (p * residual)) / (old @ (p * old)) * direction
        torch.testing.assert_close(w, textbook, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(a @ w, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_a_denominator_that_is_not_positive_is_a_restart(rule: str) -> None:
    assert conjugacy(rule, Pack(1.0, 0.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0)) == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_is_a_restart(rule: str) -> None:
    assert conjugacy(rule, Pack(*[math.nan] * 8)) == 0.0
    assert conjugacy(rule, Pack(math.inf, 1.0, math.inf, 1.0)) == 0.0


def test_only_hz_is_negative_and_not_below_its_floor() -> None:
    pack = Pack(1.0, 2.0, zy=-3.0, dy=2.0, gd=1.0, yz=1.0, dd=4.0, gg_before=1e-6)
    found = {rule: conjugacy(rule, pack) for rule in RULES}
    assert found == {"fr": 0.5, "pr": 0.0, "hs": 0.0, "dy": 0.5, "hz": pytest.approx(-2.0)}
    pack = Pack(1.0, 2.0, zy=-1e9, dy=2.0, gd=1.0, yz=1.0, dd=4.0, gg_before=1.0)
    assert conjugacy("hz", pack) == pytest.approx(-1 / (2.0 * FLOOR))


def test_beta_is_at_most_the_cap_and_epsilon_is_added_to_its_denominator() -> None:
    pack = Pack(3.0, 2.0)
    assert conjugacy("fr", pack) == 1.5
    assert conjugacy("fr", pack, most=1.0) == 1.0
    assert conjugacy("fr", pack, epsilon=1.0) == 1.0
