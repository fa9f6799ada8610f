r"""Laws fitted to runs: the optimal learning rate of a sweep, and how it moves with width.

Near its minimum the loss is a bent parabola in :math:`x = \log_2 \eta`, shifted by the seed:

.. math:: y_{ij} = s_j + b\,t_i + k\,t_i^2 + q\,t_i^3 + e_{ij}, \qquad t_i = x_i - x_\text{best}.

It rises more steeply to the right: in this project's sweeps :math:`3q/k` is 0.2 to 0.9 per octave,
which moves the vertex of a plain parabola by a tenth of an octave, as much as its interval is wide.
Seeds shift whole curves, so fitting :math:`s_j` makes the vertex far sharper than the raw spread
between runs suggests. Intervals are 95 %; the study *How we judge* measures how often they cover.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd

MIN_LRS = 4  # a parabola and one degree of freedom to judge it by
WINDOWS = (1.5, 2.0)  # octaves: half-widths of the two windows that the curve is fitted in
SPARE = 3  # degrees of freedom below which a bend cannot be told from noise
LEVEL = 0.95
TAIL = (1 + LEVEL) / 2
NORMAL = float(stats.norm.ppf(TAIL))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; an infinite end means the data do not bound it.

    Attributes:
        value, lo, hi: the estimate and its interval.
        n: seeds behind it, where they are counted; else 0.
        where: what it was measured on, as "width 256, 2000 steps"; may be empty.
    """

    value: float
    lo: float
    hi: float
    n: int = field(default=0, compare=False)
    where: str = field(default="", compare=False)

    @classmethod
    def exact(cls, value: float) -> Interval:
        """What is known without an error: arithmetic, or a measurement that always repeats."""
        return cls(float(value), float(value), float(value))

    @classmethod
    def once(cls, value: float) -> Interval:
        """What was measured once and would come out a little different again: no interval."""
        return cls(float(value), float(value), float(value), 1)

    @classmethod
    def of(cls, row: Mapping[Any, Any] | pd.Series, name: str) -> Interval:
        """The columns NAME, NAME_lo and NAME_hi of a row."""
        return cls(row[name], row[f"{name}_lo"], row[f"{name}_hi"])

    def columns(self, name: str) -> dict[str, float]:
        """The same, the other way: NAME, NAME_lo and NAME_hi → value, lo and hi."""
        return {name: self.value, f"{name}_lo": self.lo, f"{name}_hi": self.hi}

    def scaled(self, factor: float) -> Interval:
        """The interval of `factor` (above 0) times the quantity."""
        value, lo, hi = (x * factor for x in (self.value, self.lo, self.hi))
        return Interval(value, lo, hi, self.n, self.where)

    def minus(self, other: Interval) -> Interval:
        """This less another quantity whose error is independent: half-widths add in squares."""
        value = self.value - other.value
        down = math.hypot(self.value - self.lo, other.hi - other.value)
        up = math.hypot(self.hi - self.value, other.value - other.lo)
        return Interval(value, value - down, value + up, min(self.n, other.n))

    def plus(self, other: Interval) -> Interval:
        """This and another quantity whose error is independent: half-widths add in squares."""
        return self.minus(Interval(-other.value, -other.hi, -other.lo, other.n))

    def at(self, where: str = "", n: int = 0) -> Interval:
        """The same, with what it was measured on and the seeds behind it, where given."""
        return replace(self, where=where or self.where, n=n or self.n)


@dataclass(frozen=True)
class Optimum:
    """Where a sweep's loss is lowest.

    Attributes:
        x: log2 of the optimal learning rate; x_lo, x_hi its interval.
        loss: nats per token at x; loss_lo, loss_hi its interval for the mean over seeds.
        curvature: half the second derivative at x, nats per token per octave².
        by_seed: seed → its loss at x, nats per token: its own offset, the curve of all.
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
    by_seed: Mapping[Any, float] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Drift:
    """How an optimum moves with width.

    Attributes:
        slope: octaves of learning rate per doubling of width.
        shift: slope · log2(largest width / smallest width), octaves.
        largest: the largest shift between any two widths, octaves, which asks for no straight line.
            Noise alone makes it positive; its lower end allows for that.
        lack_of_fit: χ² of the optima about the line by its degrees of freedom: about 1 where
            noise explains them, larger where the motion is no straight line; NaN below three
            widths that have an optimum.
    """

    slope: Interval
    shift: Interval
    largest: Interval
    lack_of_fit: float


@functools.cache  # a quantile takes SciPy longer than all else of an interval
def student(dof: int) -> float:
    """The quantile of Student's t that bounds the central 95 %, for ``dof`` degrees of freedom."""
    return float(stats.t.ppf(TAIL, dof))


def mean_interval(values: ArrayLike) -> Interval:
    """Mean of independent values, with Student's t interval (infinite for a single value)."""
    y = np.asarray(values, float)
    if y.size < 2:
        return Interval(float(y.mean()) if y.size else math.nan, -math.inf, math.inf, y.size)
    half = student(y.size - 1) * y.std(ddof=1) / math.sqrt(y.size)
    return Interval(float(y.mean()), float(y.mean() - half), float(y.mean() + half), y.size)


def mean_slope(u: ArrayLike, y: ArrayLike) -> Interval:
    """Slope of y over u, the mean over seeds, with the larger of its two errors.

    Of the seeds: Student's t over their slopes. Of the line: Student's t over the scatter of the
    mean curve about it, with n − 2 degrees of freedom, since a bent curve has no one slope.

    Args:
        u: shape (n,), two or more different values. y: shape (seeds, n).
    """
    u, y = np.asarray(u, float), np.asarray(y, float)
    by_seed = mean_interval(np.polyfit(u, y.T, 1)[0])
    if len(u) < 3:
        return by_seed
    mean = y.mean(0)
    scatter = mean - np.polyval(np.polyfit(u, mean, 1), u)
    error = math.sqrt((scatter**2).sum() / (len(u) - 2) / ((u - u.mean()) ** 2).sum())
    half = max(by_seed.hi - by_seed.value, student(len(u) - 2) * error)
    return Interval(by_seed.value, by_seed.value - half, by_seed.value + half, by_seed.n)


class _Runs(NamedTuple):
    """Runs that ended: log2 η, loss and seed, each of shape (n,); where any diverged, (m,)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    seed: NDArray
    unstable: NDArray[np.float64]

    def within(self, which: NDArray[np.bool_]) -> _Runs:
        """Those of the runs."""
        return self._replace(x=self.x[which], y=self.y[which], seed=self.seed[which])

    def spare(self, degree: int) -> int:
        """Degrees of freedom that a polynomial with an offset per seed leaves."""
        return len(self.y) - len(np.unique(self.seed)) - degree


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
    windows: tuple[float, float] = WINDOWS,
    degree: int = 3,
    n_boot: int = 1000,
    rng_seed: int = 0,
) -> Optimum:
    """Fit the optimal learning rate of one sweep.

    The cubic of this module is fitted by least squares to the runs within each of two windows
    around the learning rate with the lowest mean loss (of ``_levels``); the optimum is the mean of
    the two vertices, and the bootstrap draws of both make one interval, so that it widens where the
    answer depends on the window. Where the runs leave less than ``SPARE`` degrees of freedom, a
    parabola is fitted in the first window (widened to the nearest learning rates, ties included,
    until there are four). Diverged runs (NaN loss) are counted and left out, and a learning rate at
    which any run diverged is never taken for the best.

    Draws come from a residual bootstrap: the fitted curve plus residuals drawn with replacement and
    inflated by √(n / (n − parameters)) and by the ratio of the Student and normal quantiles,
    refitted. Resampling whole seeds is no alternative: three seeds have 10 distinct resamples, and
    even the range from their lowest to their highest covers the mean only 75 % of the time. Seed
    offsets do not move x; for the loss they enter as a Student t with n_seeds − 1 degrees of
    freedom (one seed: not at all, so its loss interval is a lower bound).

    Args:
        log2_lr: shape (n,). loss: nats per token, shape (n,), NaN where diverged. seed: shape (n,).
        windows: half-widths in octaves, the narrower first. degree: 3, or 2 for the parabola alone.
        n_boot: bootstrap draws. rng_seed: of the bootstrap.

    Returns:
        The optimum; with `edge` true where the runs do not bracket one.
    """
    x, y = np.asarray(log2_lr, float), np.asarray(loss, float)
    ok = np.isfinite(y)
    runs = _Runs(x[ok], y[ok], np.asarray(seed)[ok], np.unique(x[~ok]))
    n_diverged = int((~ok).sum())
    try:
        curves = _curves(runs, windows, degree)
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
    rng = np.random.default_rng(rng_seed)
    drawn = [curve.bootstrap(n_boot // len(curves), rng) for curve in curves]
    draws, levels = (np.concatenate(part) for part in zip(*drawn, strict=True))
    x_best, lowest = (float(np.mean([getattr(c, of) for c in curves])) for of in ("x", "loss"))
    widest = curves[-1]
    return Optimum(
        *(x_best, *_percentiles(draws), lowest, *_percentiles(levels)),
        curvature=float(np.mean([curve.curvature for curve in curves])),
        n_points=len(widest.y),
        n_seeds=len(widest.seeds),
        n_diverged=n_diverged,
        edge=False,
        reason="",
        draws=draws,
        by_seed=dict(zip(widest.seeds.tolist(), (widest.offsets + lowest - widest.offsets.mean()))),
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
    best = float(min(steady, key=_levels(runs).__getitem__))
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


def _levels(runs: _Runs) -> dict[float, float]:
    """Learning rate → its mean loss, the seeds' own levels taken out by least squares.

    Where every learning rate has the same seeds, these are the plain means but for a constant;
    where one has more than others, a lucky seed does not make it the best.
    """
    lrs, i = np.unique(runs.x, return_inverse=True)
    seeds, j = np.unique(runs.seed, return_inverse=True)
    design = np.hstack([np.eye(len(lrs))[i], np.eye(len(seeds))[j]])
    level = np.linalg.lstsq(design, runs.y, rcond=None)[0][: len(lrs)]
    return dict(zip(lrs.tolist(), level.round(12).tolist(), strict=True))  # ties: the lowest rate


def _near(runs: _Runs, best: float, window: float) -> _Runs:
    """The runs within ``window`` octaves of the best, or at its ``MIN_LRS`` nearest neighbours."""
    distance = np.abs(np.unique(runs.x) - best)
    reach = max(window, np.sort(distance)[MIN_LRS - 1]) + 1e-9
    return runs.within(np.abs(runs.x - best) <= reach)


def _curves(runs: _Runs, windows: tuple[float, float], degree: int) -> list[_Curve]:
    """The cubic of each window that has runs enough for one, else a parabola; the widest last.

    A window whose curve has no minimum says nothing, as long as the other's has one.

    Raises:
        _Open: the runs do not bracket an optimum.
    """
    best, below, above = _bracket(runs)
    near = [_near(runs, best, window) for window in windows]
    enough = [r for r in near if r.spare(3) >= SPARE and len(np.unique(r.x)) > MIN_LRS]
    bent = [(r, 3) for r in enough if degree == 3]
    found, missing = [], None
    for some, power in bent or [(near[0], 2)]:
        try:
            found.append(_Curve(some, best, below, above, power))
        except _Open as edge:
            missing = missing or edge
    if missing and not found:
        raise missing
    return found


class _Curve:
    """The least-squares polynomial around the best learning rate, with an offset per seed.

    Raises:
        _Open: there are too few runs for it, or it has no minimum among them.
    """

    def __init__(self, runs: _Runs, best: float, below: float, above: float, degree: int) -> None:
        t, self.y, self.best = runs.x - best, runs.y, best
        self.seeds, j = np.unique(runs.seed, return_inverse=True)
        self.spare, self.ends = runs.spare(degree), (t.min(), t.max())
        if self.spare <= 0:
            raise _Open(f"{len(t)} runs of {len(self.seeds)} seeds near the best", runs, best)
        powers = [t**power for power in range(1, degree + 1)]
        self.design = np.column_stack([np.eye(len(self.seeds))[j], *powers])
        self.solve = np.linalg.pinv(self.design)
        self.coefficients = self.solve @ self.y
        self.offsets, shape = self._split(self.coefficients)
        slope, k = float(shape[0]), float(shape[1])
        if degree == 2 and k <= 0:
            raise _Open("no minimum: curvature not above 0", runs, best, curvature=k)
        vertex = float(_vertex(shape))
        if not self.ends[0] <= vertex <= self.ends[1]:
            lo, hi = (-math.inf, above) if slope > 0 else (below, math.inf)
            raise _Open("fitted minimum outside the window", runs, best, lo, hi, k)
        self.curvature = float(k + 3 * shape[2] * vertex)
        self.x = float(best + vertex)
        self.loss = float(self.offsets.mean() + _rise(shape, vertex))

    def _split(self, coefficients: NDArray) -> tuple[NDArray, NDArray]:
        """Offsets of the seeds, and slope, k and q (0 of a parabola), of shape (..., 3)."""
        n = len(self.seeds)
        missing = n + 3 - coefficients.shape[-1]
        shape = np.pad(coefficients[..., n:], [(0, 0)] * (coefficients.ndim - 1) + [(0, missing)])
        return coefficients[..., :n], shape

    def bootstrap(self, n_boot: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """Draws of the optimum and of the loss there, each of shape (n_boot,).

        A draw without a minimum is infinite, on the side to which it falls; its loss is that at the
        end of the runs.
        """
        n, n_seeds = len(self.y), len(self.seeds)
        inflation = math.sqrt(n / self.spare) * student(self.spare) / NORMAL
        fitted = self.design @ self.coefficients
        residual = (self.y - fitted) * inflation
        fits = (fitted + residual[rng.integers(n, size=(n_boot, n))]) @ self.solve.T
        offsets, shape = self._split(fits)
        vertex = _vertex(shape)
        levels = offsets.mean(-1) + _rise(shape, np.clip(vertex, *self.ends))
        if n_seeds > 1:
            spread = self.offsets.std(ddof=1)
            levels += rng.standard_t(n_seeds - 1, n_boot) * spread / math.sqrt(n_seeds)
        return self.best + vertex, levels


def _vertex(shape: NDArray) -> NDArray:
    """Where b·t + k·t² + q·t³ has its minimum, (b, k, q) along the last axis; else infinite.

    The root of the derivative at which the curve bends upwards, in the form that is −b/2k at q = 0.
    """
    b, k, q = np.moveaxis(shape, -1, 0)
    below = k * k - 3 * q * b
    divisor = k + np.sqrt(np.maximum(below, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        known = (below > 0) & (divisor > 0)
        return np.where(known, -b / divisor, np.where(b > 0, -np.inf, np.inf))


def _rise(shape: NDArray, t: NDArray | float) -> NDArray:
    """b·t + k·t² + q·t³, (b, k, q) along the last axis."""
    b, k, q = np.moveaxis(shape, -1, 0)
    return t * (b + t * (k + t * q))


def drift(optima: Mapping[int, Optimum], *, rng_seed: int = 0) -> Drift:
    """Slope of the optimum over log2 width for one scheme, by weighted least squares.

    Weights are the inverse bootstrap variances. Every joint draw of the optima gives a slope, and
    percentiles of these the interval. Where the optima lie further from the line than their errors
    allow, χ²/dof > 1, it is stretched about the slope by √(χ²/dof) and by the ratio of the Student
    and normal quantiles: the error of the slope is then what the widths show. An optimum at an
    edge enters with both ends of its interval, so that a sweep that missed a minimum widens the
    result and never sharpens it; it says nothing of the fit.

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
    spreads = [_spread(f.draws) for f in fits if not f.edge]
    spread = np.array([max(spreads, default=1.0) if f.edge else _spread(f.draws) for f in fits])
    weight = spread**-2.0
    centred = u - np.average(u, weights=weight)
    c = weight * centred / (weight * centred**2).sum()
    with np.errstate(invalid="ignore"):  # ∞ − ∞, an open end, is NaN and read as such below
        low = _dot(np.where(c > 0, 1, 0) * c, lo) + _dot(np.where(c < 0, 1, 0) * c, hi)
        high = _dot(np.where(c > 0, 1, 0) * c, hi) + _dot(np.where(c < 0, 1, 0) * c, lo)
    slope = float(c @ x)
    known = np.array([not f.edge for f in fits])
    misfit = _lack_of_fit(u[known], x[known], weight[known])
    dof = int(known.sum()) - 2
    stretch = math.sqrt(misfit) * student(dof) / NORMAL if misfit > 1 else 1.0
    ends = _percentiles(low)[0], _percentiles(high)[1]
    lo_end, hi_end = (slope + stretch * (end - slope) for end in ends)
    found = Interval(slope, lo_end, hi_end, min(f.n_seeds for f in fits))
    with np.errstate(invalid="ignore"):
        widest = np.nan_to_num(hi.max(0) - lo.min(0), nan=np.inf, posinf=np.inf)
    largest = Interval(float(np.ptp(x)), _least_range(lo, hi), _percentiles(widest)[1], found.n)
    return Drift(found, found.scaled(float(u[-1] - u[0])), largest, misfit)


def price(tuned: Optimum, at: Optimum) -> Interval:
    """What the best learning rate of one sweep costs in another, nats per token.

    k·Δx² with the other's curvature: to second order, so for optima within ``WINDOWS`` of each
    other. The interval is of Δx alone.

    Raises:
        ValueError: one of the two is no bracketed optimum, or they are further apart.
    """
    if tuned.edge or at.edge or abs(tuned.x - at.x) > WINDOWS[0]:
        far = f"optima at {tuned.x:.2f} and {at.x:.2f}"
        raise ValueError(f"{far}; allowed: bracketed, within {WINDOWS[0]} octaves")
    rng = np.random.default_rng(0)
    n = min(len(tuned.draws), len(at.draws))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ of draws without a minimum: an open end
        apart = rng.choice(tuned.draws, n) - rng.choice(at.draws, n)
    near, far = sorted(_percentiles(apart), key=abs)
    least = 0.0 if near * far <= 0 else near
    value, lo, hi = (at.curvature * dx**2 for dx in (tuned.x - at.x, least, far))
    return Interval(value, lo, hi, min(tuned.n_seeds, at.n_seeds))


def _least_range(lo: NDArray, hi: NDArray) -> float:
    """What two of some optima are apart at least, 95 % sure.

    Of every pair the lower end of the distance, at a level divided by the number of pairs: noise
    alone makes the range of the draws larger than the truth, so that their own lower end is none.

    Args:
        lo, hi: the ends of every draw, shape (optima, draws).
    """
    pairs = list(itertools.permutations(range(len(lo)), 2))
    level = (1 - TAIL) / (len(pairs) / 2)
    with np.errstate(invalid="ignore"):
        apart = [np.nan_to_num(lo[i] - hi[j], nan=-np.inf, neginf=-np.inf) for i, j in pairs]
    return max(0.0, *(float(np.quantile(d, level, method="lower")) for d in apart))


def _lack_of_fit(u: NDArray, x: NDArray, weight: NDArray) -> float:
    """χ² of x about the weighted line over u, by its degrees of freedom; NaN below three points."""
    if len(u) < 3:
        return math.nan
    line = np.polynomial.Polynomial.fit(u, x, 1, w=np.sqrt(weight))
    return float((weight * (x - line(u)) ** 2).sum() / (len(u) - 2))


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
