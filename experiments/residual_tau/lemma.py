"""Lemma C.1 and the exact recursion of contributions: float64 NumPy, no model.

A plain pre-norm network R_l = r_l f_l(R_{l−1}) + R_{l−1} and its unit-scaled twin
R̂_l = a_l f_l(R̂_{l−1}) + b_l R̂_{l−1} with a_l² = τ_l/(τ_l+1), b_l² = 1/(τ_l+1) obey
R̂_l = R_l/√(Σ_{i≤l} r_i²) for any f that sees only its input's direction, if
τ_l = r_l²/Σ_{i<l} r_i² (u-μP paper, Lemma C.1; the book's Theory, section 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from umup.rules import residual_taus

CONVENTIONS = ("derived", "library", "printed")
OWN_ALPHA = {"derived": 1.0, "library": math.sqrt(2.0)}
"""α_residual of the depth-μP network that a convention equals, over its own α_residual."""

Branch = Callable[[NDArray], NDArray]


class Shares(NamedTuple):
    """Parts of the output's variance when every branch has unit scale; they sum to 1.

    ``branches`` has the L = 2N branches' own parts, attention first.
    """

    embedding: float
    attention: float
    ffn: float
    branches: NDArray


def shares(taus: Sequence[float]) -> Shares:
    """The exact recursion: each branch enters with a_l² and is then damped by every later b²."""
    tau = np.asarray(taus, float)
    later = np.concatenate([np.cumprod((1.0 / (1.0 + tau))[::-1])[::-1], [1.0]])
    branches = tau / (1.0 + tau) * later[1:]
    return Shares(
        float(later[0]), float(branches[0::2].sum()), float(branches[1::2].sum()), branches
    )


def plain_multipliers(n_layers: int, alpha: float, ratio: float) -> NDArray:
    """r_1 … r_L of the plain depth-μP network, α̂/√L with r_0 = 1, attention first."""
    ffn = alpha * math.sqrt(2.0 / (ratio**2 + 1.0))
    return np.tile([ratio * ffn, ffn], n_layers) / math.sqrt(2 * n_layers)


def branch_functions(rng: np.random.Generator, n: int, width: int) -> list[Branch]:
    """Random two-layer branches of random kind and gain that see only their input's direction."""
    kinds = (np.tanh, np.sin, np.square, lambda z: np.maximum(z, 0.0))

    def branch() -> Branch:
        first, last = rng.normal(size=(2, width, width)) / math.sqrt(width)
        kind, gain = kinds[rng.integers(len(kinds))], 2.0 ** rng.uniform(-1.0, 1.0)
        return lambda h: gain * kind(h / _rms(h, axis=-1) @ first) @ last

    return [branch() for _ in range(n)]


def plain_stream(x: NDArray, r: NDArray, branches: Sequence[Branch]) -> list[NDArray]:
    """R_l/√(Σ_{i≤l} r_i²) for l = 1 … L."""
    out, power = [], 1.0
    for r_l, f in zip(r, branches, strict=True):
        x, power = r_l * f(x) + x, power + r_l**2
        out.append(x / math.sqrt(power))
    return out


def unit_stream(x: NDArray, taus: Sequence[float], branches: Sequence[Branch]) -> list[NDArray]:
    """R̂_l for l = 1 … L."""
    out = []
    for tau, f in zip(taus, branches, strict=True):
        x = math.sqrt(tau / (tau + 1.0)) * f(x) + math.sqrt(1.0 / (tau + 1.0)) * x
        out.append(x)
    return out


def _rms(x: NDArray, axis: int | None = None) -> NDArray:
    return np.sqrt(np.mean(np.square(x), axis=axis, keepdims=axis is not None))


def _largest(ours: list[NDArray], theirs: list[NDArray]) -> float:
    """Largest difference of any coordinate of any layer, over that layer's RMS."""
    return max(float(np.abs(a - b).max() / _rms(b)) for a, b in zip(ours, theirs, strict=True))


def _distance(ours: list[NDArray], theirs: list[NDArray]) -> float:
    """RMS difference of the outputs, each brought to RMS 1: 0 to 2."""
    a, b = ours[-1], theirs[-1]
    return float(_rms(a / _rms(a) - b / _rms(b)))


def nearest(
    x: NDArray, taus: Sequence[float], branches: Sequence[Branch], alpha: float, ratio: float
) -> tuple[float, float, float]:
    """The depth-μP network whose output is nearest: (its α_residual, its ratio, the distance).

    A simplex search over the logarithms of both from the given setting: the distance is an upper
    bound of the smallest.
    """
    ours = unit_stream(x, taus, branches)

    def distance(logs: NDArray) -> float:
        r = plain_multipliers(len(taus) // 2, *np.exp2(logs))
        return _distance(ours, plain_stream(x, r, branches))

    found = minimize(
        distance,
        np.log2([alpha, ratio]),
        method="Nelder-Mead",
        options={"maxfev": 60, "initial_simplex": np.log2([alpha, ratio]) + _SIMPLEX},
    )
    return float(2.0 ** found.x[0]), float(2.0 ** found.x[1]), float(found.fun)


_SIMPLEX = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def lemma(
    convention: str,
    n_layers: int,
    alphas: Sequence[float],
    ratios: Sequence[float],
    seeds: int,
    width: int = 32,
    rows: int = 8,
) -> dict:
    """Error of Lemma C.1 for random networks: unit-scaled with τ, against plain depth-μP.

    Args:
        convention: of τ. n_layers: N. alphas, ratios: settings, all pairs. seeds: networks each.
        width: coordinates of the stream. rows: inputs.

    Returns:
        Lists over settings and seeds: ``alpha``, ``ratio``, ``seed``; ``error``, the largest
        difference of any coordinate of any layer over the layer's RMS, against the network of the
        same α_residual; ``distance``, RMS of the difference of the outputs at RMS 1 (0 to 2);
        ``own_error`` and ``own_distance``, the same against the depth-μP network that it equals
        (``printed``: the nearest found), at ``own_alpha`` and ``own_ratio``.
    """
    out: dict[str, list[float]] = {name: [] for name in _LEMMA}
    for alpha in alphas:
        for ratio in ratios:
            for seed in range(seeds):
                # Branches and inputs depend on depth and seed alone: conventions share them.
                rng = np.random.default_rng([n_layers, seed])
                x = rng.normal(size=(rows, width))
                branches = branch_functions(rng, 2 * n_layers, width)
                taus = residual_taus(n_layers, alpha, ratio, convention)
                ours = unit_stream(x, taus, branches)
                plain = plain_stream(x, plain_multipliers(n_layers, alpha, ratio), branches)
                if convention in OWN_ALPHA:
                    own_alpha, own_ratio = alpha * OWN_ALPHA[convention], ratio
                else:
                    own_alpha, own_ratio, _ = nearest(x, taus, branches, alpha, ratio)
                own = plain_stream(x, plain_multipliers(n_layers, own_alpha, own_ratio), branches)
                row = (
                    alpha,
                    ratio,
                    seed,
                    _largest(ours, plain),
                    _distance(ours, plain),
                    _largest(ours, own),
                    _distance(ours, own),
                    own_alpha,
                    own_ratio,
                )
                for name, value in zip(_LEMMA, row, strict=True):
                    out[name].append(value)
    return out


_LEMMA = (
    "alpha",
    "ratio",
    "seed",
    "error",
    "distance",
    "own_error",
    "own_distance",
    "own_alpha",
    "own_ratio",
)
