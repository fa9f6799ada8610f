"""The plot kit: what is drawn is what was measured; open ends, missing optima and ticks show."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from synthetic import drawn, marks
from umup.lab import figures, plots
from umup.lab.plots import Look
from umup.laws import Interval, Optimum

LOOK = Look(plots.BLUE, "o", "ours")


@pytest.fixture
def ax() -> Axes:
    return figures.subplots(4, 3)[1][0]


def optimum(x: float, *, edge: bool = False, lo: float = -1.0, hi: float = 1.0) -> Optimum:
    draws = np.zeros(0)
    return Optimum(x, x + lo, x + hi, 2.0, 1.9, 2.1, 1.0, 5, 1, 0, edge, "", draws)


def test_a_curve_has_its_band_from_so_many_seeds_on_and_crosses_where_runs_diverged(ax: Axes):
    table = pd.DataFrame(
        {"log2_lr": [0.0, 1.0, 2.0], "mean": [3.0, 2.0, np.nan], "lo": [2.5, 1.5, np.nan]}
        | {"hi": [3.5, 2.5, np.nan], "n": [2, 3, 0], "n_diverged": [0, 0, 3]}
    )
    plots.curve(ax, table, LOOK, top=4.0, band_from=3)
    assert drawn(ax)["ours"].tolist() == [[0, 3], [1, 2]]
    assert ax.lines[1].get_xydata().tolist() == [[2, 4]]
    assert {x for x, _ in ax.collections[0].get_paths()[0].vertices} == {1.0}


def test_an_optimum_that_is_not_bracketed_has_no_star(ax: Axes):
    plots.star(ax, optimum(0.0, edge=True), plots.BLUE)
    assert not ax.lines
    plots.star(ax, optimum(0.5, hi=math.inf), plots.BLUE, open_end=2.0)
    assert marks(ax).tolist() == [[0.5, 2.0]]
    assert ax.collections[0].get_segments()[0].tolist() == [[-0.5, 2.0], [2.5, 2.0]]


def test_a_drift_is_relative_hollow_at_an_edge_and_open_with_an_arrow(ax: Axes):
    found = {8: optimum(1.5, edge=True, lo=-math.inf), 4: optimum(1.0)}
    plots.optima(ax, found, LOOK, base=1.0, open_end=0.25)
    assert marks(ax).tolist() == [[4, 0], [8, 0.5]]
    faces = [c.lines[0].get_markerfacecolor() for c in ax.containers]
    assert faces == [plots.BLUE, "white"]
    (arrow,) = [line for line in ax.lines if line.get_marker() == "v"]
    assert arrow.get_xydata().tolist() == [[8, 0.25]]


def test_a_trend_goes_through_the_mean_of_the_optima_and_says_its_slope(ax: Axes):
    found = {8: optimum(2.5), 2: optimum(1.0), 4: optimum(1.0)}
    look = plots.trend(ax, found, Interval(0.5, 0.25, 1.0), LOOK, base=1.0)
    assert ax.lines[0].get_xydata().tolist() == [[2, 0], [4, 0.5], [8, 1]]
    assert look.title == "ours: 0.50 [0.25, 1.00]"


def test_a_forest_has_its_rows_from_the_top_and_an_arrow_for_what_is_infinite(ax: Axes):
    found = {"b": Interval(0.2, 0.1, 0.4), "a": Interval(math.inf, 0.0, math.inf)}
    plots.forest(ax, {"a": "first", "b": "second"}, [(LOOK, found)])
    assert marks(ax).tolist() == [[0.2, 1]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_ylim() == (1.5, -0.5)
    (arrow,) = [line for line in ax.lines if line.get_marker() == ">"]
    assert arrow.get_xydata().tolist() == [[0.98, 0]]


def test_what_a_claim_allows_reaches_the_edge_where_it_is_open(ax: Axes):
    ax.set(xlim=(-2, 3), ylim=(4.5, -0.5))
    plots.allowed(ax, 1, -math.inf, 0.5, along="x")
    plots.allowed(ax, 2, 0.5, math.inf)
    shown = [line.get_xydata().tolist() for line in ax.lines]
    assert shown == [[[-2, 1], [0.5, 1]], [[2, 0.5], [2, 4.5]]]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 3), (4.5, -0.5))


def test_a_window_shows_the_optima_and_no_more_than_there_is():
    assert plots.window(1.0, [1.0, 1.4, math.nan], 2.0) == pytest.approx((0.92, 1.8))
    assert plots.window(1.0, [1.4], 2.0, most=1.5)[1] == pytest.approx(1.52)
    assert plots.window(1.0, [math.nan], 2.0, least=0.5)[1] == 2.0


def test_logarithmic_axes_have_plain_numbers(ax: Axes):
    values = (4, 2, 1, 0.5, 0.25, 0.0625, 0.3)
    assert [plots.plain(v) for v in values] == ["4", "2", "1", "½", "¼", "1/16", "0.3"]
    plots.log2_axis(ax, [64, 16, 32, 128, 64], "width", room=2, most=2)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["32", "128"]
    assert (ax.get_xscale(), ax.get_xlim(), ax.get_xlabel()) == ("log", (8, 256), "width")


def test_stacked_bars_start_where_the_last_one_ends(ax: Axes):
    plots.stacked(ax.barh, [0, 1], [([1, 2], "red", "a"), ([3, 4], "blue", "b")])
    first, second = ax.containers
    assert [bar.get_x() for bar in second] == [bar.get_width() for bar in first] == [1, 2]


def test_a_legend_names_each_thing_once():
    figure, axes = figures.subplots(4, 3, 2)
    for ax in axes:
        plots.points(ax, [1], ([1.0], [0.5], [1.5]), LOOK)
    plots.legend(figure, axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours"]
