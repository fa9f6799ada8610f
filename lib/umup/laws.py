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
from typing import TYPE_CHECKING, Any

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
    x, y, s = (np.asarray(a) for a in (np.asarray(log2_lr, float), np.asarray(loss, float), seed))
    ok = np.isfinite(y)
    n_diverged = int((~ok).sum())
    unstable = np.unique(x[~ok])
    x, y, s = x[ok], y[ok], s[ok]
    grid = np.unique(x)
    steady = np.setdiff1d(grid, unstable) if np.setdiff1d(grid, unstable).size else grid

    def at_edge(reason: str, best: float, lo: float, hi: float, k: float = math.nan) -> Optimum:
        level = mean_interval(y[x == best])
        return Optimum(
            best,
            lo,
            hi,
            level.value,
            level.lo,
            level.hi,
            k,
            len(y),
            len(np.unique(s)),
            n_diverged,
            True,
            reason,
            np.empty(0),
        )

    if not grid.size:
        return at_edge("every run diverged", math.nan, -math.inf, math.inf)
    best = float(min(steady, key=lambda g: y[x == g].mean()))
    if grid.size < MIN_LRS:
        reason = f"{grid.size} learning rates, a fit needs {MIN_LRS}"
        return at_edge(reason, best, -math.inf, math.inf)
    # One-sided bounds hold for any curve with a single minimum.
    below = float(max(grid[grid < best], default=-math.inf))
    tried = np.union1d(grid, unstable)
    above = float(min(tried[tried > best], default=math.inf))
    if best == grid[0]:
        return at_edge("lowest at the smallest learning rate", best, -math.inf, above)
    if best == steady[-1]:
        reason = "lowest at the largest learning rate" + " before divergence" * (above < math.inf)
        return at_edge(reason, best, below, above)

    distance = np.abs(grid - best)
    reach = max(window, np.sort(distance)[MIN_LRS - 1]) + 1e-9
    inside = np.abs(x - best) <= reach
    x, y, s = x[inside], y[inside], s[inside]
    seeds, j = np.unique(s, return_inverse=True)
    n, n_seeds = len(y), len(seeds)
    if n <= n_seeds + 2:
        return at_edge(f"{n} runs of {n_seeds} seeds near the best", best, -math.inf, math.inf)
    # Offsets a_j per seed, slope b and curvature k around the best learning rate.
    design = np.column_stack([np.eye(n_seeds)[j], x - best, (x - best) ** 2])
    solve = np.linalg.pinv(design)
    coefficients = solve @ y
    a, b, k = coefficients[:n_seeds], coefficients[-2], coefficients[-1]
    if k <= 0:
        return at_edge("no minimum: curvature not above 0", best, -math.inf, math.inf, float(k))
    vertex = -b / (2 * k)
    if not x.min() <= best + vertex <= x.max():
        left = vertex < 0
        lo, hi = (-math.inf, above) if left else (below, math.inf)
        return at_edge("fitted minimum outside the window", best, lo, hi, float(k))

    rng = np.random.default_rng(rng_seed)
    dof = n - n_seeds - 2
    inflation = math.sqrt(n / dof) * student(dof) / stats.norm.ppf(TAIL)
    residual = (y - design @ coefficients) * inflation
    y_draws = design @ coefficients + residual[rng.integers(n, size=(n_boot, n))]
    fits = y_draws @ solve.T
    bs, ks = fits[:, -2], fits[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Without a minimum the draw's loss falls without end to one side.
        draws = best + np.where(ks > 0, -bs / (2 * ks), np.where(bs > 0, -np.inf, np.inf))
        drop = np.where(ks > 0, bs**2 / (4 * ks), 0.0)
    levels = fits[:, :n_seeds].mean(1) - drop
    if n_seeds > 1:
        levels += rng.standard_t(n_seeds - 1, n_boot) * a.std(ddof=1) / math.sqrt(n_seeds)
    x_lo, x_hi = _percentiles(draws)
    loss_lo, loss_hi = _percentiles(levels)
    return Optimum(
        float(best + vertex),
        x_lo,
        x_hi,
        float(a.mean() - b**2 / (4 * k)),
        loss_lo,
        loss_hi,
        float(k),
        n,
        n_seeds,
        n_diverged,
        False,
        "",
        draws,
    )


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
