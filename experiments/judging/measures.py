"""What the study ``judging`` measures: how often intervals cover a truth that is known.

Sweeps are drawn, not trained: curves of loss over η that bend as those on record do, seeds that
shift them, noise, and the runs that the line search of ``umup.lab.search`` asks for. Fits are those
that claims are judged by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umup import laws
from umup.lab.search import LRSearch, Result, next_lrs
from umup.laws import Interval, Optimum

LEVEL = 1.5
"""Loss at every optimum, nats; what is covered does not depend on it."""
DRAWS = 400
"""Bootstrap draws of a fit: a coverage needs fewer than a page."""
Range = tuple[float, float]


class Sweep(NamedTuple):
    """A drawn sweep.

    Attributes:
        runs: what was run. x: log2 η of the truth's minimum. k: curvature there, nats per octave².
        bend: 3q/k, per octave.
    """

    runs: list[Result]
    x: float
    k: float
    bend: float

    def fit(self, rng_seed: int, degree: int, window: float) -> Optimum:
        """``laws.fit_optimum`` of its runs; ``window`` is that of a parabola."""
        x, seed, loss = (np.array(part) for part in zip(*self.runs, strict=True))
        windows = laws.WINDOWS if degree == 3 else (window, window)
        return laws.fit_optimum(
            x, loss, seed, windows=windows, degree=degree, n_boot=DRAWS, rng_seed=rng_seed
        )


def curve(t: NDArray | float, k: float, bend: float) -> NDArray:
    """Loss above the minimum at ``t`` octaves from it: k·t² + (bend·k/3)·t³ + …, one minimum."""
    return 2 * k / bend**2 * (np.exp(bend * np.asarray(t)) - bend * np.asarray(t) - 1)


def sweep(
    rng: np.random.Generator,
    search: LRSearch,
    x: float,
    k: float,
    bend: float,
    noise: float,
    spread: float,
) -> Sweep:
    """The runs that a line search asks for, of a curve with its minimum at ``x``.

    Args:
        noise: standard deviation of a run, nats. spread: of a seed's whole curve, nats.
    """
    offsets = spread * rng.normal(size=search.seeds)
    runs: list[Result] = []
    while todo := next_lrs(search, runs):
        for at, seed in todo:
            loss = LEVEL + offsets[seed] + float(curve(at - x, k, bend)) + noise * rng.normal()
            runs.append(Result(at, seed, loss))
    return Sweep(runs, x, k, bend)


def coverage(
    widths: int,
    seeds: int,
    bend: Range,
    noise: Range,
    spread: float,
    departure: float,
    draws: int,
    degree: int = 3,
    window: float = 1.25,
    per_doubling: float = -0.5,
) -> dict[str, Any]:
    """How often intervals cover, over drawn families of sweeps over width.

    In each family the optimum moves by ``per_doubling`` octaves per doubling and departs from that
    line by a normal deviate at every width; curvature, bend and noise are drawn anew for every
    family, and the first two differ by up to half between its widths. Optima lie anywhere between
    points of the grid.

    Args:
        widths: sweeps in a family. seeds: of every sweep, near its best η.
        bend: range of 3q/k, per octave. noise: range of a run's standard deviation, nats.
        spread: of seeds, nats. departure: of optima from their line, octaves.
        draws: families. degree: of the fit, see ``laws.fit_optimum``; window: a parabola's.
        per_doubling: octaves.

    Returns:
        Name → a number for each family: of ``optimum`` and ``loss`` how many of its sweeps are
        covered, of ``slope`` and ``largest`` whether the family is, of ``gap`` whether the
        difference between its first two sweeps is, each at its best η measured; ``*_width``: the
        (mean) width of the interval; ``error``: mean error of the optimum, octaves. A family whose
        slope is not bounded counts as covered there, with infinite width.
    """
    rng = np.random.default_rng(widths + 1000 * seeds)
    rows = [
        _family(
            rng, number, widths, seeds, bend, noise, spread, departure, degree, window, per_doubling
        )
        for number in range(draws)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _family(
    rng: np.random.Generator,
    number: int,
    widths: int,
    seeds: int,
    bend: Range,
    noise: Range,
    spread: float,
    departure: float,
    degree: int,
    window: float,
    per_doubling: float,
) -> dict[str, float]:
    search = LRSearch(-4.0, 4.0, 0.5, 1.0, seeds)
    first, k, b, sd = (rng.uniform(*of) for of in ((0.5, 1.5), (0.025, 0.06), bend, noise))
    sweeps = [
        sweep(
            rng,
            search,
            first + per_doubling * i + departure * rng.normal(),
            k * rng.uniform(0.8, 1.25),
            b * rng.uniform(0.5, 1.5),
            sd,
            spread,
        )
        for i in range(widths)
    ]
    fits = {2**i: s.fit(number * widths + i, degree, window) for i, s in enumerate(sweeps)}
    drift = laws.drift(fits, rng_seed=number)
    optima = [Interval(o.x, o.x_lo, o.x_hi) for o in fits.values()]
    losses = [Interval(o.loss, o.loss_lo, o.loss_hi) for o in fits.values()]
    truths = [s.x for s in sweeps]
    first_losses, second_losses = (_at_best(s) for s in sweeps[:2])
    gap = laws.mean_interval(np.subtract(first_losses, second_losses))
    return {
        "optimum": sum(_covers(o, x) for o, x in zip(optima, truths, strict=True)),
        "optimum_width": _width(optima),
        "error": float(np.mean([o.value - x for o, x in zip(optima, truths, strict=True)])),
        "loss": sum(_covers(o, LEVEL) for o in losses),
        "loss_width": _width(losses),
        "slope": float(_covers(drift.slope, per_doubling)),
        "slope_width": _width([drift.slope]),
        "largest": float(_covers(drift.largest, float(np.ptp(truths)))),
        "largest_width": _width([drift.largest]),
        "gap": float(_covers(gap, 0.0)),
        "gap_width": _width([gap]),
    }


def _at_best(of: Sweep) -> list[float]:
    """Losses by seed at the best η measured, as ``tables.default_losses`` chooses it."""
    table: dict[float, dict[int, float]] = {}
    for run in of.runs:
        table.setdefault(run.log2_lr, {})[run.seed] = run.loss
    most = max(map(len, table.values()))
    full = [by_seed for by_seed in table.values() if len(by_seed) == most]
    best = min(full, key=lambda by_seed: float(np.mean(list(by_seed.values()))))
    return [best[seed] for seed in sorted(best)]


def _covers(interval: Interval, truth: float) -> bool:
    return interval.lo <= truth <= interval.hi


def _width(intervals: Sequence[Interval]) -> float:
    """Their mean width; infinite ones are given as a large number that JSON can hold."""
    widths = [i.hi - i.lo for i in intervals]
    return float(np.mean([w if math.isfinite(w) else 1e9 for w in widths]))


MEASURES = {"coverage": coverage}
