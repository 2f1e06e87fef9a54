"""The code released with arXiv 1812.02886 as formulas on whole vectors, one line a formula, for comparison."""

from __future__ import annotations

import torch

from hpcopt.solvers.conjugate.step_control import feedback

EPS = 1e-8


class ReleasedReference:
    """Section by section: layer-wise scaling, diagonal BFGS, beta, control of the step length, update, average.

    Args:
        w: where it starts (n,).
        rule: "fr" or "pr".
        layers: slices that are scaled by ``trust``.
        trust: coefficient of the layer-wise scaling; 0 leaves it out.
        decay: of the average of the weights.
    """

    def __init__(self, w: torch.Tensor, rule: str, layers: list[slice], trust: float, decay: float) -> None:
        self.w, self.rule, self.layers, self.trust, self.decay = w.clone(), rule, layers, trust, decay
        self.h, self.average = torch.ones_like(w), w.clone()
        self.g_old = self.d = self.z_old = torch.zeros_like(w)
        self.rho_old, self.base, self.ema, self.reference, self.k = 0.0, 1.0, 0.0, 0.0, 0
        self.undone = self.gated = 0

    def step(self, loss: float, g: torch.Tensor, rate: float) -> None:
        """One step from the loss and the gradient at w."""
        g = self._scaled(g)
        p = self._preconditioner(g, rate * self.base)
        r = -g
        z = p * r
        rho = float(r @ z)
        numerator = rho if self.rule == "fr" else rho - float(r @ self.z_old)
        beta = min(max(numerator / (self.rho_old + EPS), 0.0), 1.0) if self.k else 0.0
        d_new = z + beta * self.d
        d_prev, self.d, self.z_old, self.rho_old, self.g_old = self.d, d_new, z, rho, g
        u = self._controlled(loss, rate, d_new, d_prev)
        self.w = self.w + rate * self.base * u
        self.k += 1
        decay = min(self.decay, (1 + self.k) / (10 + self.k))
        self.average = decay * self.average + (1 - decay) * self.w

    def _scaled(self, g: torch.Tensor) -> torch.Tensor:
        g = g.clone()
        for part in self.layers if self.trust else []:
            size, slope = self.w[part].norm(), g[part].norm()
            g[part] *= self.trust * size / (slope + 1e-8 + 0.1 * self.trust * size)
        return g

    def _preconditioner(self, g: torch.Tensor, t: float) -> torch.Tensor:
        if self.k == 0:
            return torch.ones_like(g)
        y, s = g - self.g_old, t * self.d
        a, b = float(y @ s), float(s @ (self.h * s))
        if a < EPS or b < EPS:
            self.gated += 1
        else:
            self.h = (self.h - ((self.h * s) ** 2 + EPS) / (b + EPS) + (y**2 + EPS) / (a + EPS)).abs()
        return 1 / (self.h + EPS)

    def _controlled(self, loss: float, rate: float, d_new: torch.Tensor, d_prev: torch.Tensor) -> torch.Tensor:
        if self.k == 0:
            self.ema = self.reference = loss
            return d_new
        self.ema = 0.7 * self.ema + 0.3 * loss
        if self.k % 5:
            return d_new
        q, self.reference = self.ema / self.reference, self.ema
        factor, omega = feedback(q, 1.0, 1.05)
        t_old = rate * self.base
        self.base = min(max(factor * self.base, 1e-4), 1.0)
        t_new = rate * self.base
        if omega == 0 or t_new <= EPS:
            return d_new
        self.undone += 1
        return ((1 - omega) * t_new * d_new - omega * t_old * d_prev) / t_new
