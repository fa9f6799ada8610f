"""The study of our own intervals: drawn sweeps, and shares of planted points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthetic import EMPTY, points_of
from umup.errors import ConfigError
from umup.lab import claims
from umup.lab.absent import NotMeasured
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.search import LRSearch
from umup.lab.study import parameters

this = code("judging")
HERE = Path(__file__).resolve().parents[2] / "experiments" / "judging"
CPU = this.design.Judging.from_dict(parameters(HERE, "cpu"))


def planted(point) -> dict:
    """100 families of which 95 % of the sweeps are covered, and 60 % by a parabola."""
    good = 95 if point.spec["degree"] == 3 else 60
    sweeps = point.spec["widths"]
    by_family = [float(i < good) for i in range(100)]
    result = {}
    for name in this.results.JUDGED:
        each = sweeps if name in ("optimum", "loss") else 1
        result |= {name: [each * x for x in by_family], f"{name}_width": [0.5] * 100}
    return result | {"error": [-0.1, -0.2] * 50}


RESULTS = Results(EMPTY.runs, points_of(CPU.points(), planted))


@pytest.mark.parametrize("bend", [0.01, 0.5, 1.4])
def test_curves_have_their_minimum_curvature_and_bend_where_they_say(bend):
    t = np.linspace(-0.1, 0.1, 41)
    _, slope, k, q = np.polynomial.polynomial.polyfit(t, this.measures.curve(t, 0.04, bend), 3)
    assert (slope, k, 3 * q / k) == pytest.approx((0, 0.04, bend), abs=1e-3)
    assert this.measures.curve(np.array([-3.0, 3.0]), 0.04, bend).min() > 0.04


def test_a_drawn_sweep_is_what_the_line_search_asks_for():
    search = LRSearch(-4.0, 4.0, 0.5, 1.0, 3)
    rng = np.random.default_rng(0)
    sweep = this.measures.sweep(rng, search, x=0.3, k=0.04, bend=0.5, noise=0.0, spread=0.02)
    counts = {x: sum(r.log2_lr == x for r in sweep.runs) for x in (-4.0, -0.5, 0.5, 1.0, 4.0)}
    assert counts == {-4.0: 1, -0.5: 3, 0.5: 3, 1.0: 3, 4.0: 1}
    fit = sweep.fit(0, 3, 1.25)
    assert fit.x == pytest.approx(0.3, abs=0.02)
    assert np.ptp(list(fit.by_seed.values())) == pytest.approx(
        np.ptp([r.loss for r in sweep.runs if r.log2_lr == 0.5])
    )


def test_intervals_cover_as_often_as_they_say_and_a_parabolas_do_not():
    """Bent curves, seed offsets, uneven seeds, misaligned grids: few families, so wide bounds."""
    usual = this.measures.coverage(**this.design.SETTINGS["usual"], draws=60)
    assert 0.88 <= np.mean(usual["optimum"]) / 4 <= 0.995
    assert 0.88 <= np.mean(usual["loss"]) / 4 <= 1.0
    assert np.mean(usual["slope"]) >= 0.88 and np.mean(usual["largest"]) >= 0.88
    assert abs(np.mean(usual["error"])) < 0.03
    parabola = this.measures.coverage(**this.design.SETTINGS["parabola"], draws=30)
    assert np.mean(parabola["optimum"]) / 4 < 0.8 and np.mean(parabola["error"]) < -0.04


def test_departures_are_judged_by_the_line_that_they_depart_from():
    spec = this.design.SETTINGS["departing"]
    found = this.measures.coverage(**spec, draws=30)
    assert np.mean(found["slope"]) > 0.75
    assert np.median(found["slope_width"]) > 2 * np.median(
        this.measures.coverage(**(spec | {"departure": 0.0}), draws=30)["slope_width"]
    )


def test_shares_and_verdicts_of_planted_points():
    found = this.results.coverage(RESULTS, "usual", "optimum")
    # sd of 95 ones in 100 is 0.219; t(0.975, 99) = 1.984
    assert found.value == pytest.approx(95) and found.hi - 95 == pytest.approx(4.346, abs=0.01)
    assert this.results.error(RESULTS, "usual").value == pytest.approx(-0.15)
    said = {v.id: v.verdict for v in claims.evaluate("judging", RESULTS, "cpu")}
    assert said["parabola-misses"] == "holds" and said["slope-covered"] == "inconclusive"
    assert "not measured" not in said.values()


def test_what_is_not_on_record_is_said():
    one = Results(EMPTY.runs, points_of(CPU.points()[:1], planted))
    with pytest.raises(NotMeasured, match="bent sweeps"):
        this.results.coverage(one, "bent", "optimum")
    assert "parabola" not in this.words.answer(one, 1)
    assert this.words.answer(EMPTY, 1).startswith("Not measured")


def test_words_and_figure_show_every_setting():
    table = this.words.coverage_table(RESULTS, 1)
    assert all(f"| {name} |" in table for name in this.design.SETTINGS)
    assert this.words.texts(RESULTS, 1)["parabola_optimum"].startswith("60.0")
    figure = this.figures.coverage(RESULTS)
    first = figure.axes[0]
    assert [t.get_text() for t in first.get_yticklabels()] == list(this.design.SETTINGS)
    points = [bar.lines[0].get_xydata()[0] for bar in first.containers]
    assert points[0] == pytest.approx((95, 0)) and len(points) == 7
    (arrow,) = [line for line in first.lines if line.get_marker() == "<"]
    assert arrow.get_xydata()[0] == pytest.approx((71, 7))  # the parabola's 60 %


def test_a_setting_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="usual"):
        this.design.Judging(settings=("unusual",))
