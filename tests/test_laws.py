"""Laws: fits recover the truth they are given, and intervals cover it as often as they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from umup import laws
from umup.laws import Interval, Optimum, drift, fit_optimum, mean_interval

GRID = np.arange(-4, 5) / 2


def sweep(grid, n_seeds, vertex, k=0.03, level=1.5, spread=0.0, noise=0.0, rng=None):
    """Runs of one parabola: (log2_lr, loss, seed)."""
    rng = rng or np.random.default_rng(0)
    x, seed = (a.ravel() for a in np.meshgrid(grid, np.arange(n_seeds)))
    offset = spread * rng.normal(size=n_seeds)
    return x, level + offset[seed] + k * (x - vertex) ** 2 + noise * rng.normal(size=x.size), seed


def test_exact_parabola_is_recovered_exactly():
    fit = fit_optimum(*sweep(GRID, 2, vertex=0.3, k=0.03, level=1.5))
    assert (fit.x, fit.loss, fit.curvature) == pytest.approx((0.3, 1.5, 0.03), abs=1e-9)
    assert (fit.x_lo, fit.x_hi) == pytest.approx((0.3, 0.3), abs=1e-6)
    # the best rate is 0.5; -1.5 to 2 in half octaves lie within 2 octaves of it, by two seeds
    assert (fit.n_points, fit.n_seeds, fit.n_diverged, fit.edge, fit.reason) == (
        16,
        2,
        0,
        False,
        "",
    )


def bent(t, k, a):
    """A curve with its minimum, 0, at t = 0, curvature k there, and 3q/k = a: steeper above."""
    return 2 * k / a**2 * (np.exp(a * t) - a * t - 1)


def test_a_bent_curve_is_recovered_where_a_parabola_is_a_tenth_of_an_octave_off():
    x, _, seed = sweep(GRID, 2, 0.0)
    y = 1.5 + bent(x - 0.3, k=0.03, a=0.6)
    fit = fit_optimum(x, y, seed)
    assert (fit.x, fit.loss, fit.curvature) == pytest.approx((0.3, 1.5, 0.03), abs=0.01)
    near = np.abs(x - 0.5) < 1.3
    slope, k = np.polynomial.polynomial.polyfit(x[near] - 0.5, y[near], 2)[1:]
    assert 0.5 - slope / (2 * k) < 0.25


def test_a_cubic_recovers_a_cubic():
    x, _, seed = sweep(GRID, 3, 0.0)
    t = x - 0.2
    fit = fit_optimum(x, 1.4 + 0.05 * t**2 + 0.01 * t**3, seed)
    assert (fit.x, fit.loss, fit.curvature) == pytest.approx((0.2, 1.4, 0.05), abs=1e-9)


def test_the_losses_by_seed_are_those_at_the_optimum():
    x, y, seed = sweep(GRID, 3, vertex=-0.2)
    offsets = np.array([0.5, -0.2, -0.3])
    fit = fit_optimum(x, y + offsets[seed], seed)
    assert fit.by_seed == pytest.approx(dict(enumerate(1.5 + offsets)))


def test_seed_offsets_do_not_move_the_optimum():
    x, y, seed = sweep(GRID, 3, vertex=-0.2)
    fit = fit_optimum(x, y + np.array([0.5, -0.2, -0.3])[seed], seed)
    assert fit.x == pytest.approx(-0.2) and fit.loss == pytest.approx(1.5)
    # t with 2 degrees of freedom: 4.303 · sd / √3
    half = 4.303 * np.std([0.5, -0.2, -0.3], ddof=1) / math.sqrt(3)
    assert (fit.loss_hi - fit.loss_lo) / 2 == pytest.approx(half, rel=0.25)


def test_a_seed_that_few_rates_have_does_not_choose_among_them():
    """Nine seeds at the best rate and an octave to either side of it, three at the others."""
    x, y, seed = sweep(GRID, 9, vertex=0.1, spread=0.02)
    y = y + 0.02 * (seed > 2)  # six seeds that are worse at whatever rate they run
    keep = (seed < 3) | np.isin(x, [-1.0, 0.0, 1.0])
    whole, uneven = fit_optimum(x, y, seed), fit_optimum(x[keep], y[keep], seed[keep])
    assert y[keep & (x == 0.0)].mean() > y[keep & (x == 0.5)].mean(), "plain means mislead"
    assert (uneven.x, uneven.curvature) == pytest.approx((0.1, 0.03), abs=1e-9)
    assert uneven.by_seed == pytest.approx(whole.by_seed) and uneven.n_seeds == 9
    edge = keep & (x <= 0.0)  # lowest at the largest rate tried
    found = fit_optimum(x[edge], y[edge], seed[edge])
    assert found.edge and found.x == 0.0


def test_the_fit_is_local_and_the_window_widens_on_a_coarse_grid():
    x, y, seed = sweep(np.arange(-4.0, 5), 1, vertex=0.2)
    y[np.abs(x) > 2.5] += 9  # far from the optimum no parabola holds
    fit = fit_optimum(x, y, seed)
    assert fit.n_points == 5  # ±1.25 has three rates; the fourth nearest is a tie: -2 and 2
    assert fit.x == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("vertex", "lo", "hi", "said"),
    [(-2.6, -math.inf, -1.5, "smallest"), (2.6, 1.5, math.inf, "largest")],
)
def test_minimum_at_the_edge_is_unbounded_on_that_side(vertex, lo, hi, said):
    fit = fit_optimum(*sweep(GRID, 2, vertex))
    assert (fit.edge, fit.x, fit.x_lo, fit.x_hi) == (True, np.sign(vertex) * 2, lo, hi)
    assert said in fit.reason and fit.draws.size == 0


def test_divergence_above_the_best_rate_bounds_it():
    x, y, seed = sweep(GRID, 2, vertex=1.0)
    y[x > 0.7] = np.nan
    fit = fit_optimum(x, y, seed)
    assert (fit.edge, fit.x, fit.x_lo, fit.x_hi) == (True, 0.5, 0.0, 1.0)
    assert fit.n_diverged == 6 and "divergence" in fit.reason


def test_a_rate_where_a_seed_diverged_is_never_the_best():
    x, y, seed = sweep(GRID, 3, vertex=0.0)
    y[(x == 0.5) & (seed == 0)] = np.nan
    y[(x == 0.5) & (seed > 0)] = 1.49
    y[x > 1] = 2.5  # a window around 0.5 would end in this cliff
    assert fit_optimum(x, y, seed).n_points == len(x[(np.abs(x) <= 2)]) - 1


@pytest.mark.parametrize(
    ("grid", "k", "said"),
    [([-1, 0, 1], 0.03, "3 learning rates"), ([-2, -1, 0, 1], 0.03, "4 runs of 2 seeds")],
)
def test_too_few_runs_bound_nothing(grid, k, said):
    x, y, seed = sweep(np.array(grid, float), 2, 0.0, k)
    if said.startswith("4"):
        x, y, seed = x[[0, 1, 6, 7]], y[[0, 1, 6, 7]], seed[[0, 1, 6, 7]]
        y[2] -= 0.1
    fit = fit_optimum(x, y, seed)
    assert fit.edge and said in fit.reason and (fit.x_lo, fit.x_hi) == (-math.inf, math.inf)


def test_a_hump_has_no_minimum():
    x = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    y = np.array([1.0, 1.5, 0.9, 1.5, 1.0])
    fit = fit_optimum(x, y, np.zeros(5))
    assert fit.edge and fit.curvature < 0 and (fit.x_lo, fit.x_hi) == (-math.inf, math.inf)


def test_all_diverged_is_a_result():
    fit = fit_optimum([0.0, 1.0], [np.nan, np.nan], [0, 0])
    assert fit.edge and math.isnan(fit.x) and fit.n_diverged == 2 and "diverged" in fit.reason


@pytest.mark.parametrize("kind", ["even", "sparse", "deciding"])
def test_intervals_cover_the_truth_as_often_as_they_say(kind):
    rng = np.random.default_rng(3)
    covered_x, covered_loss, n = 0, 0, 400
    for draw in range(n):
        vertex = rng.uniform(-0.4, 0.4)
        n_seeds = 9 if kind == "deciding" else 3
        x, y, seed = sweep(GRID, n_seeds, vertex, spread=0.004, noise=0.003, rng=rng)
        keep = np.full(x.shape, kind == "even")
        if kind != "even":  # one seed everywhere, three near the optimum, as adaptive sweeps do
            keep = (seed == 0) | (np.abs(x) < 0.6) & (seed < 3)
        if kind == "deciding":  # and nine at three points
            keep |= np.isin(x, [-1.0, 0.0, 1.0])
        x, y, seed = x[keep], y[keep], seed[keep]
        fit = fit_optimum(x, y, seed, n_boot=200, rng_seed=draw)
        covered_x += fit.x_lo <= vertex <= fit.x_hi
        covered_loss += fit.loss_lo <= 1.5 <= fit.loss_hi
    assert 0.91 <= covered_x / n <= 0.985
    assert 0.91 <= covered_loss / n <= 0.995


def test_mean_interval_by_hand():
    # sd of 1, 2, 3 is 1; t(0.975, 2) = 4.302653
    m = mean_interval([1.0, 2.0, 3.0])
    assert (m.value, m.hi - 2, 2 - m.lo) == pytest.approx((2, *[4.302653 / math.sqrt(3)] * 2))
    assert mean_interval([5.0]) == Interval(5.0, -math.inf, math.inf)
    assert math.isnan(mean_interval([]).value)


def known(x, sd=0.05, rng=None):
    draws = x + sd * (rng or np.random.default_rng(1)).normal(size=1000)
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return Optimum(x, lo, hi, 1.5, 1.5, 1.5, 0.03, 15, 3, 0, False, "", draws)


def at_edge(x, lo, hi):
    return Optimum(x, lo, hi, 1.5, 1.5, 1.5, 0.03, 15, 3, 0, True, "edge", np.empty(0))


def test_drift_of_a_straight_line():
    d = drift({w: known(-0.7 * i) for i, w in enumerate((32, 64, 128, 256))})
    assert d.slope.value == pytest.approx(-0.7)
    assert (d.shift.value, d.shift.lo) == pytest.approx((-2.1, 3 * d.slope.lo))
    assert d.largest.value == pytest.approx(2.1) and d.largest.lo < 2.1 < d.largest.hi
    # sd of an unweighted slope over four unit steps is sd / √5; equal draws must not cancel
    assert (d.slope.hi - d.slope.lo) / 2 == pytest.approx(1.96 * 0.05 / math.sqrt(5), rel=0.15)


def test_drift_trusts_a_sharper_optimum_more():
    blurred = {
        32: known(0.0, 0.01),
        64: known(0.0, 0.01),
        128: known(0.0, 0.01),
        256: known(1.0, 1),
    }
    assert abs(drift(blurred).slope.value) < 0.01
    even = {w: known(float(w == 256)) for w in blurred}
    assert drift(even).slope.value == pytest.approx(0.3, abs=0.05)  # 1.5 / 5


def test_drift_with_an_open_end_is_open_on_that_side_only():
    fits = {w: known(-1.0 * i) for i, w in enumerate((32, 64, 128))}
    d = drift(fits | {256: at_edge(-2.5, -math.inf, -2.0)})
    assert d.slope.lo == -math.inf and -0.9 < d.slope.hi < -0.6
    assert d.shift.hi == pytest.approx(3 * d.slope.hi) and d.largest.hi == math.inf
    assert d.lack_of_fit == pytest.approx(0, abs=1e-9)  # an edge says nothing of the fit
    d = drift(fits | {256: at_edge(-2.5, -math.inf, math.inf)})
    assert (d.slope.lo, d.slope.hi) == (-math.inf, math.inf)


def test_optima_off_the_line_widen_the_drift():
    straight = {2**i: known(0.1 * i, 0.05) for i in range(4)}
    off = {2**i: known(0.1 * i + d, 0.05) for i, d in enumerate((0.1, -0.1, -0.1, 0.1))}
    a, b = drift(straight), drift(off)
    assert a.lack_of_fit == pytest.approx(0, abs=1e-9)
    # Weights are the same: χ² = 4 · (0.1/0.05)² of 2 degrees of freedom; t(0.975, 2) = 4.303
    assert b.lack_of_fit == pytest.approx(8, rel=0.1) and b.slope.value == pytest.approx(0.1)
    grown = math.sqrt(b.lack_of_fit) * 4.303 / 1.96
    assert b.slope.hi - 0.1 == pytest.approx(grown * (a.slope.hi - 0.1), rel=1e-3)
    assert 0.1 - b.slope.lo == pytest.approx(grown * (0.1 - a.slope.lo), rel=1e-3)
    assert math.isnan(drift({1: known(0.0), 2: known(1.0)}).lack_of_fit)


def test_drift_needs_two_widths():
    with pytest.raises(ValueError, match="at least 2"):
        drift({32: known(0.0)})


def test_drift_interval_covers_the_truth():
    rng, covered, n = np.random.default_rng(5), 0, 200
    for i in range(n):
        fits = {
            2**w: fit_optimum(
                *sweep(GRID, 3, 0.1 * w - 0.5, spread=0.004, noise=0.003, rng=rng),
                n_boot=200,
                rng_seed=7,
            )
            for w in (4, 5, 6)
        }
        slope = drift(fits, rng_seed=i).slope
        covered += slope.lo <= 0.1 <= slope.hi
    assert 0.90 <= covered / n <= 0.995


def test_percentiles_carry_infinite_draws():
    draws = np.r_[np.full(5, -np.inf), np.linspace(0, 1, 95)]
    assert laws._percentiles(draws) == (-math.inf, pytest.approx(1.0, abs=0.03))


def test_the_price_of_anothers_optimum_by_hand():
    # 0.03 · 0.5²; the draws of both have sd 0.05
    found = laws.price(known(0.5), known(0.0))
    assert found.value == pytest.approx(0.0075) and 0 <= found.lo < found.value < found.hi
    assert found.hi == pytest.approx(0.03 * (0.5 + 1.96 * 0.05 * math.sqrt(2)) ** 2, rel=0.1)
    assert laws.price(known(0.0), known(0.0)).value == 0


def test_a_price_whose_draws_have_no_minimum_is_open():
    draws = np.where(np.arange(400) % 10, known(0.0).draws[:400], np.inf)
    loose = replace(known(0.0), draws=draws)
    found = laws.price(loose, loose)  # ∞ − ∞ among the draws
    assert (found.value, found.lo, found.hi) == (0.0, 0.0, math.inf)


@pytest.mark.parametrize("other", [at_edge(0.0, -math.inf, 1.0), known(2.0)])
def test_no_price_of_what_is_open_or_far_away(other):
    with pytest.raises(ValueError, match=r"bracketed, within 1\.5 octaves"):
        laws.price(other, known(0.0))


def test_the_slope_of_a_bent_curve_is_as_unsure_as_its_bend():
    u = np.arange(5.0)
    straight = laws.mean_slope(u, np.array([2 * u, 2 * u + 1, 2 * u - 1]))
    assert (straight.value, straight.lo, straight.hi, straight.n) == pytest.approx((2, 2, 2, 3))
    bent = laws.mean_slope(u, np.array([u**2] * 3))
    # residuals of u² about its line are 2, −1, −2, −1, 2; s² = 14/3; Σ(u − ū)² = 10; t(3) = 3.182
    half = 3.182 * math.sqrt(14 / 3 / 10)
    assert (bent.value, bent.hi - 4) == pytest.approx((4, half), rel=1e-3)
    seeds = laws.mean_slope(u, np.array([u, 3 * u]))
    assert seeds.hi - seeds.value == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), rel=1e-3)


def test_the_least_distance_of_equal_optima_is_none():
    """Noise makes the range of some draws positive; the lower end allows for it."""
    d = drift({2**i: known(0.0, 0.1, np.random.default_rng(i)) for i in range(5)})
    assert d.largest.lo == 0.0 and d.largest.hi > 0.2
    apart = drift({1: known(0.0), 2: known(1.0), 4: known(0.1)})
    assert apart.largest.lo == pytest.approx(1 - 2.39 * 0.05 * math.sqrt(2), abs=0.03)


def test_the_difference_of_independent_quantities() -> None:
    """Half-widths 3 and 4 to one side make 5; an open end stays open."""
    one, other = laws.Interval(10.0, 7.0, 11.0, 5), laws.Interval(2.0, 1.0, 6.0, 3)
    gap = one.minus(other)
    assert (gap.value, gap.lo, gap.n) == (8.0, 3.0, 3)
    assert gap.hi == pytest.approx(8.0 + math.sqrt(2.0))
    open_ = one.minus(laws.Interval(2.0, -math.inf, 3.0))
    assert open_.hi == math.inf and math.isfinite(open_.lo)
