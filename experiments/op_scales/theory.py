"""Scales of ops that can be derived: theory for the study ``op_scales``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def harmonic(seq_len: int) -> float:
    """H_T = Σ_{t≤T} 1/t.

    Row t of causal attention with flat weights is a mean of t values, of variance 1/t; over T rows
    the output has variance H_T/T. The paper's ln T/T leaves out Euler's constant.
    """
    return float(np.sum(1.0 / np.arange(1, seq_len + 1)))


def derived_scale(seq_len: int, variance: float) -> float:
    """Scale of causal attention's output over logits of the given variance, α²/d_head.

    Row t sums t values with weights e^z/Σe^z, z normal. The ratio of the expectations of Σe^{2z}
    and (Σe^z)² is κ/(κ + t − 1) with κ = e^variance, the chance that two draws from the row agree:
    1 for t = 1, 1/t for κ = 1. It holds while sums are not ruled by their largest term.
    """
    kappa = math.exp(variance)
    return math.sqrt(float(np.mean(kappa / (kappa + np.arange(seq_len)))))


def derived_softmax(size: int, alpha: float) -> float:
    """RMS of a softmax over ``size`` unit logits times α, times the size: one row of the above."""
    kappa = math.exp(alpha**2)
    return math.sqrt(size * kappa / (kappa + size - 1.0))


def qk_gradient(seq_len: int) -> float:
    """RMS of dq and dk in units of α/√d_head, under flat weights and the paper's 1/σ.

    dq_t = (α/d)/σ · Σ_s w_s (g·(v_s − v̄)) k_s; with w = 1/t the sum has variance
    d·(t−1)/t², which over T rows is d·(H_T − Σ 1/t²)/T.
    """
    if seq_len == 1:
        return 0.0
    squares = float(np.sum(1.0 / np.arange(1, seq_len + 1) ** 2.0))
    return math.sqrt((harmonic(seq_len) - squares) / math.log(seq_len))


def correlated(correlation: Any, alone: float, model: float) -> Any:
    """RMS of attention's output over the model when values share a part: ``alone`` is that at 0.

    Weights sum to 1, so the shared part passes whole: σ² = ρ + (1−ρ)·σ₀².
    """
    return np.sqrt(correlation / model**2 + (1.0 - np.asarray(correlation)) * alone**2)


def gated_silu_scales(alpha: float) -> dict[str, float]:
    """RMS of x·g·s(αg) and of its gradient by g, on unit normal inputs, by quadrature.

    The gradient by x has that of the output. Not divided by any model.
    """
    g = np.linspace(-10.0, 10.0, 20_001)
    density = np.exp(-(g**2) / 2.0)
    density /= density.sum()
    s = 0.5 * (1.0 + np.tanh(alpha * g / 2.0))  # the sigmoid without overflow
    slope = s * (1.0 + alpha * g * (1.0 - s))
    forward, gate = (math.sqrt(float(density @ f**2)) for f in (g * s, slope))
    return {"out": forward, "dx": forward, "dgate": gate}
