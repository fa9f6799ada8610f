r"""Laws fitted to runs: the optimal learning rate of a sweep, and how it moves with width.

Near its minimum the loss is a parabola in :math:`x = \log_2 \eta`, shifted a little by the seed:

.. math:: y_{ij} = c + s_j + k (x_i - x^*)^2 + e_{ij}, \qquad \textstyle\sum_j s_j = 0.

Seeds shift whole curves, so fitting :math:`s_j` makes :math:`x^*` far sharper than the raw spread
between runs suggests. Intervals are 95 %.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd

MIN_LRS = 4  # a parabola and one degree of freedom to judge it by
LEVEL = 0.95
TAIL = (1 + LEVEL) / 2


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; an infinite end means the data do not bound it."""

    value: float
    lo: float
    hi: float

    @classmethod
    def exact(cls, value: float) -> Interval:
        """What is known without an error, or measured once."""
        return cls(float(value), float(value), float(value))

    @classmethod
    def of(cls, row: Mapping[Any, Any] | pd.Series, name: str) -> Interval:
        """The columns NAME, NAME_lo and NAME_hi of a row."""
        return cls(row[name], row[f"{name}_lo"], row[f"{name}_hi"])

    def columns(self, name: str) -> dict[str, float]:
        """The same, the other way: NAME, NAME_lo and NAME_hi → value, lo and hi."""
        return {name: self.value, f"{name}_lo": self.lo, f"{name}_hi": self.hi}

    def scaled(self, factor: float) -> Interval:
        """The interval of `factor` (above 0) times the quantity."""
        return Interval(self.value * factor, self.lo * factor, self.hi * factor)


@dataclass(frozen=True)
class Optimum:
    """Where a sweep's loss is lowest.

    Attributes:
        x: log2 of the optimal learning rate; x_lo, x_hi its interval.
        loss: nats per token at x; loss_lo, loss_hi its interval for the mean over seeds.
        curvature: k, nats per token per octave².
        n_points: runs in the fit. n_seeds: their seeds. n_diverged: runs left out as diverged.
        edge: the sweep does not bracket the minimum; x is then the best measured learning rate
            and the interval is infinite on the open side. reason: why, else empty.
        draws: bootstrap draws of x, shape (n_boot,); empty at an edge.
    """

    x: float
    x_lo: float
    x_hi: float
    loss: float
    loss_lo: float
    loss_hi: float
    curvature: float
    n_points: int
    n_seeds: int
    n_diverged: int
    edge: bool
    reason: str
    draws: NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Drift:
    """How an optimum moves with width.

    Attributes:
        slope: octaves of learning rate per doubling of width.
        shift: slope · log2(largest width / smallest width), octaves.
        largest: the largest shift between any two widths, octaves. Noise alone makes it positive:
            read it beside `shift`, as a check that the motion is a straight line.
    """

    slope: Interval
    shift: Interval
    largest: Interval


@functools.cache  # a quantile takes SciPy longer than all else of an interval
def student(dof: int) -> float:
    """The quantile of Student's t that bounds the central 95 %, for ``dof`` degrees of freedom."""
    return float(stats.t.ppf(TAIL, dof))


def mean_interval(values: ArrayLike) -> Interval:
    """Mean of independent values, with Student's t interval (infinite for a single value)."""
    y = np.asarray(values, float)
    if y.size < 2:
        return Interval(float(y.mean()) if y.size else math.nan, -math.inf, math.inf)
    half = student(y.size - 1) * y.std(ddof=1) / math.sqrt(y.size)
    return Interval(float(y.mean()), float(y.mean() - half), float(y.mean() + half))


class _Runs(NamedTuple):
    """Runs that ended: log2 η, loss and seed, each of shape (n,); where any diverged, (m,)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    seed: NDArray
    unstable: NDArray[np.float64]

    def within(self, which: NDArray[np.bool_]) -> _Runs:
        """Those of the runs."""
        return self._replace(x=self.x[which], y=self.y[which], seed=self.seed[which])


class _Open(Exception):
    """The runs do not bracket an optimum: why, and between what bounds it may be."""

    def __init__(
        self,
        reason: str,
        runs: _Runs,
        best: float = math.nan,
        lo: float = -math.inf,
        hi: float = math.inf,
        curvature: float = math.nan,
    ) -> None:
        super().__init__(reason)
        self.reason, self.runs, self.curvature = reason, runs, curvature
        self.x = Interval(best, lo, hi)


def fit_optimum(
    log2_lr: ArrayLike,
    loss: ArrayLike,
    seed: ArrayLike,
    *,
    window: float = 1.25,
    n_boot: int = 1000,
    rng_seed: int = 0,
) -> Optimum:
    """Fit the optimal learning rate of one sweep.

    The parabola is fitted by least squares to the runs within `window` octaves of the learning
    rate with the lowest seed-mean loss (widened to the nearest learning rates, ties included,
    until there are four). Diverged runs (NaN loss) are counted and left out, and a learning rate
    at which any run diverged is never taken for the best.

    Intervals come from a residual bootstrap: the fitted curve plus residuals drawn with
    replacement and inflated by √(n / (n − parameters)) and by the ratio of the Student and normal
    quantiles, refitted; without that ratio five learning rates and three seeds cover 92 % and a
    sparse design 82 %. Resampling whole seeds is no alternative: three seeds have 10 distinct
    resamples, and even the range from their lowest to their highest covers the mean only 75 % of
    the time. Seed offsets do not move x; for the loss they enter as a Student t with
    n_seeds − 1 degrees of freedom (one seed: not at all, so its loss interval is a lower bound).

    Args:
        log2_lr: shape (n,). loss: nats per token, shape (n,), NaN where diverged. seed: shape (n,).
        window: half-width in octaves. n_boot: bootstrap draws. rng_seed: of the bootstrap.

    Returns:
        The optimum; with `edge` true where the runs do not bracket one.
    """
    x, y = np.asarray(log2_lr, float), np.asarray(loss, float)
    ok = np.isfinite(y)
    runs = _Runs(x[ok], y[ok], np.asarray(seed)[ok], np.unique(x[~ok]))
    n_diverged = int((~ok).sum())
    try:
        best, below, above = _bracket(runs)
        near = _near(runs, best, window)
        parabola = _Parabola(near, best, below, above)
    except _Open as edge:
        level = mean_interval(edge.runs.y[edge.runs.x == edge.x.value])
        return Optimum(
            *(edge.x.value, edge.x.lo, edge.x.hi, level.value, level.lo, level.hi),
            curvature=edge.curvature,
            n_points=len(edge.runs.y),
            n_seeds=len(np.unique(edge.runs.seed)),
            n_diverged=n_diverged,
            edge=True,
            reason=edge.reason,
            draws=np.empty(0),
        )
    draws, levels = parabola.bootstrap(n_boot, rng_seed)
    return Optimum(
        *(parabola.x, *_percentiles(draws), parabola.loss, *_percentiles(levels)),
        curvature=parabola.k,
        n_points=len(near.y),
        n_seeds=parabola.n_seeds,
        n_diverged=n_diverged,
        edge=False,
        reason="",
        draws=draws,
    )


def _bracket(runs: _Runs) -> tuple[float, float, float]:
    """The best learning rate, and the nearest that were tried below and above it.

    These bounds hold for any curve with a single minimum.

    Raises:
        _Open: there are too few learning rates, or the best is at an end.
    """
    grid = np.unique(runs.x)
    if not grid.size:
        raise _Open("every run diverged", runs)
    steady = np.setdiff1d(grid, runs.unstable)
    steady = steady if steady.size else grid
    best = float(min(steady, key=lambda lr: runs.y[runs.x == lr].mean()))
    if grid.size < MIN_LRS:
        raise _Open(f"{grid.size} learning rates, a fit needs {MIN_LRS}", runs, best)
    below = float(max(grid[grid < best], default=-math.inf))
    tried = np.union1d(grid, runs.unstable)
    above = float(min(tried[tried > best], default=math.inf))
    if best == grid[0]:
        raise _Open("lowest at the smallest learning rate", runs, best, hi=above)
    if best == steady[-1]:
        reason = "lowest at the largest learning rate" + " before divergence" * (above < math.inf)
        raise _Open(reason, runs, best, below, above)
    return best, below, above


def _near(runs: _Runs, best: float, window: float) -> _Runs:
    """The runs within ``window`` octaves of the best, or at its ``MIN_LRS`` nearest neighbours."""
    distance = np.abs(np.unique(runs.x) - best)
    reach = max(window, np.sort(distance)[MIN_LRS - 1]) + 1e-9
    return runs.within(np.abs(runs.x - best) <= reach)


class _Parabola:
    """The least-squares parabola around the best learning rate, with an offset per seed.

    Raises:
        _Open: there are too few runs for it, or it has no minimum among them.
    """

    def __init__(self, runs: _Runs, best: float, below: float, above: float) -> None:
        x, self.y = runs.x, runs.y
        seeds, j = np.unique(runs.seed, return_inverse=True)
        self.best, self.n_seeds = best, len(seeds)
        if len(x) <= self.n_seeds + 2:
            raise _Open(f"{len(x)} runs of {self.n_seeds} seeds near the best", runs, best)
        # Offsets per seed, slope b and curvature k around the best learning rate.
        self.design = np.column_stack([np.eye(self.n_seeds)[j], x - best, (x - best) ** 2])
        self.solve = np.linalg.pinv(self.design)
        self.coefficients = self.solve @ self.y
        self.offsets = self.coefficients[: self.n_seeds]
        b, k = self.coefficients[-2], self.coefficients[-1]
        if k <= 0:
            reason = "no minimum: curvature not above 0"
            raise _Open(reason, runs, best, curvature=float(k))
        vertex = -b / (2 * k)
        if not x.min() <= best + vertex <= x.max():
            lo, hi = (-math.inf, above) if vertex < 0 else (below, math.inf)
            raise _Open("fitted minimum outside the window", runs, best, lo, hi, float(k))
        self.k = float(k)
        self.x = float(best + vertex)
        self.loss = float(self.offsets.mean() - b**2 / (4 * k))

    def bootstrap(self, n_boot: int, rng_seed: int) -> tuple[NDArray, NDArray]:
        """Draws of the optimum and of the loss there, each of shape (n_boot,)."""
        rng, n, n_seeds = np.random.default_rng(rng_seed), len(self.y), self.n_seeds
        dof = n - n_seeds - 2
        inflation = math.sqrt(n / dof) * student(dof) / stats.norm.ppf(TAIL)
        fitted = self.design @ self.coefficients
        residual = (self.y - fitted) * inflation
        fits = (fitted + residual[rng.integers(n, size=(n_boot, n))]) @ self.solve.T
        b, k = fits[:, -2], fits[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            # Without a minimum the draw's loss falls without end to one side.
            draws = self.best + np.where(k > 0, -b / (2 * k), np.where(b > 0, -np.inf, np.inf))
            drop = np.where(k > 0, b**2 / (4 * k), 0.0)
        levels = fits[:, :n_seeds].mean(1) - drop
        if n_seeds > 1:
            spread = self.offsets.std(ddof=1)
            levels += rng.standard_t(n_seeds - 1, n_boot) * spread / math.sqrt(n_seeds)
        return draws, levels


def drift(optima: Mapping[int, Optimum], *, rng_seed: int = 0) -> Drift:
    """Slope of the optimum over log2 width for one scheme, by weighted least squares.

    Weights are the inverse bootstrap variances. Every joint draw of the optima gives a slope, and
    percentiles of these the interval. An optimum at an edge enters with both ends of its interval,
    so that a sweep that missed a minimum widens the result and never sharpens it.

    Args:
        optima: width → optimum; at least two widths.

    Raises:
        ValueError: fewer than two widths.
    """
    if len(optima) < 2:
        raise ValueError(f"optima: received {len(optima)} widths; allowed: at least 2")
    fits = [optima[width] for width in sorted(optima)]
    u = np.log2(sorted(optima))
    x = np.array([f.x for f in fits])
    n_boot = max((len(f.draws) for f in fits), default=0) or 1
    rng = np.random.default_rng(rng_seed)
    # Shuffled: equal bootstrap seeds at several widths must not correlate their draws.
    lo, hi = np.empty((2, len(fits), n_boot))
    for i, f in enumerate(fits):
        lo[i], hi[i] = (f.x_lo, f.x_hi) if f.edge else (rng.choice(f.draws, n_boot),) * 2
    known = [_spread(f.draws) for f in fits if not f.edge]
    spread = np.array([max(known, default=1.0) if f.edge else _spread(f.draws) for f in fits])
    weight = spread**-2.0
    centred = u - np.average(u, weights=weight)
    c = weight * centred / (weight * centred**2).sum()
    with np.errstate(invalid="ignore"):  # ∞ − ∞, an open end, is NaN and read as such below
        low = _dot(np.where(c > 0, 1, 0) * c, lo) + _dot(np.where(c < 0, 1, 0) * c, hi)
        high = _dot(np.where(c > 0, 1, 0) * c, hi) + _dot(np.where(c < 0, 1, 0) * c, lo)
    slope = Interval(float(c @ x), _percentiles(low)[0], _percentiles(high)[1])
    with np.errstate(invalid="ignore"):
        widest = np.nan_to_num(hi.max(0) - lo.min(0), nan=np.inf, posinf=np.inf)
        narrowest = np.maximum(lo.max(0) - hi.min(0), 0.0)
    largest = Interval(float(np.ptp(x)), _percentiles(narrowest)[0], _percentiles(widest)[1])
    return Drift(slope, slope.scaled(float(u[-1] - u[0])), largest)


def _dot(c: NDArray, draws: NDArray) -> NDArray:
    """Σ c_i draws_i with 0 · ∞ = 0."""
    used = c != 0
    with np.errstate(invalid="ignore"):
        return c[used] @ draws[used] if used.any() else np.zeros(draws.shape[1])


def _spread(draws: NDArray) -> float:
    """Half the central 68 % of the draws, octaves: a standard deviation that shrugs off tails."""
    q16, q84 = np.quantile(draws, [0.16, 0.84], method="nearest")
    return float(np.clip((q84 - q16) / 2, 0.01, 100.0))


def _percentiles(draws: NDArray) -> tuple[float, float]:
    """Ends of the central 95 %, outward to a draw, so that infinite draws do no arithmetic."""
    draws = np.asarray(draws, float)
    lo = np.quantile(np.nan_to_num(draws, nan=-np.inf, neginf=-np.inf), 1 - TAIL, method="lower")
    hi = np.quantile(np.nan_to_num(draws, nan=np.inf, posinf=np.inf), TAIL, method="higher")
    return float(lo), float(hi)
