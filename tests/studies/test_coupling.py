"""coupling: a coupling planted in one pair, noise that looks like one, and what cannot be read."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from synthetic import EMPTY, marks, rows_of
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, study
from umup.lab.absent import NotMeasured
from umup.lab.folders import code
from umup.lab.records import Results

CODE = code("coupling")
tables, words, figures = CODE.results, CODE.words, CODE.figures
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
GIVEN = study.parameters("coupling", "cpu") | {
    "hps_umup": ["eta", "alpha_residual", "alpha_ffn_act"],
    "lo_umup": [-2, -2, -2],
    "hi_umup": [2, 2, 2],
    "hps_mup": ["eta", "eta_emb", "sigma_init"],
    "lo_mup": [-8, -2, -2],
    "hi_mup": [-4, 2, 2],
}
DESIGN = CODE.design.DESIGN.from_dict(GIVEN)
RUNS = DESIGN.runs(TEXT)
CURVATURE = 0.01


def planted(run: RunConfig, noise: float = 0.0) -> float:
    """A bowl; under μP the best η̂_emb is σ_init's log2, so that this one pair is coupled."""
    space = DESIGN.space(run.scheme)
    away = [math.log2(getattr(run.hps, name)) for name in space.names]
    away = [x - default for x, default in zip(away, space.default(), strict=True)]
    if run.scheme == "mup":
        away[1:] = [away[1] - away[2]]
    rng = np.random.default_rng([run.seed, int.from_bytes(run.key()[:12].encode())])
    return 2.0 + CURVATURE * sum(x**2 for x in away) + 0.1 * run.seed + noise * rng.normal()


def made(noise: float = 0.0, runs: list[RunConfig] = RUNS) -> Results:
    def seen(run: RunConfig) -> dict:
        return {"final_loss": 9.0, "val_loss": planted(run, noise)}

    return Results(rows_of(runs, seen), EMPTY.points)


def test_planes_share_their_lines_and_every_point_has_all_seeds() -> None:
    assert len(set(RUNS)) == len(RUNS) == 2 * 3 * (1 + 3 * 4 + 3 * 16)
    cpu = CODE.design.DESIGN.from_dict(study.parameters("coupling", "cpu"))
    for scheme in cpu.schemes:
        assert len(CODE.design.points(cpu.space(scheme))) == 1 + 6 * 4 + 15 * 16
        assert all(0.0 in cpu.space(scheme).grid(n) for n in cpu.space(scheme).names if n != "eta")
    assert len(cpu.runs(TEXT)) / len(cpu.schemes) % cpu.lanes == 0  # else a second program


def test_a_wrong_row_costs_what_a_planted_coupling_says() -> None:
    results = made()
    # The wrong optimum is as many octaves from the right one as its row is: the mean square over
    # ordered pairs of different values of −2 … 2 is 5, by rows and by columns.
    costs = tables.pair_costs(results, "mup")
    assert costs["eta_emb", "sigma_init"].value == pytest.approx(5 * CURVATURE)
    for kind in ("crossed", "naive"):
        assert tables.mean_cost(results, "mup", kind).value == pytest.approx(5 * CURVATURE / 3)
        assert tables.mean_cost(results, "umup", kind).value == pytest.approx(0, abs=1e-12)
    gap = tables.difference(results, pairs=3)
    assert gap.value == pytest.approx(5 * CURVATURE / 3) and gap.lo == pytest.approx(gap.hi)
    assert tables.mean_cost(results, "mup", "floor").value == pytest.approx(0, abs=1e-12)
    assert tables.strongest(results, "mup")[0] == ("eta_emb", "sigma_init")


def test_the_metric_by_hand() -> None:
    chosen = np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 6.0]])  # optima 0 and 1
    read = np.array([[10.0, 12.0, 11.0], [23.0, 20.0, 19.0]])
    assert tables.wrong_row(chosen, read) == pytest.approx(((12 - 10) + (23 - 20)) / 2)
    assert tables.right_row(chosen, read) == pytest.approx((0 + (20 - 19)) / 2)


def test_noise_is_a_cost_in_the_same_runs_and_none_in_others() -> None:
    rng, x = np.random.default_rng(0), np.arange(5.0)
    flat = [tables.Grid("a", "b", x, x, rng.normal(size=(3, 5, 5)), 9.0) for _ in range(300)]
    crossed, naive, floor = (
        np.mean([tables.cost(grid, kind, range(3)) for grid in flat]) for kind in tables.KINDS
    )
    # The lowest of five is 1.163 standard deviations below their mean.
    assert (naive, floor) == pytest.approx((1.163, 1.163), rel=0.03)
    assert abs(crossed) < 0.03


def test_the_best_value_follows_the_other() -> None:
    results = made(noise=1e-4)
    slope = tables.slope(results, "mup", "eta_emb", "sigma_init")
    assert slope.value == pytest.approx(1.0, abs=0.02) and slope.lo < slope.value < slope.hi
    turned = tables.slope(results, "mup", "sigma_init", "eta_emb")
    assert turned.value == pytest.approx(1.0, abs=0.02)
    assert tables.slope(results, "umup", "eta", "alpha_residual").value == pytest.approx(
        0, abs=0.02
    )
    x = np.array([-2.0, -1.0, 0.0, 1.0])
    assert tables.vertex(x, (x + 0.3) ** 2) == pytest.approx(-0.3)
    assert tables.vertex(x, x) == -2.0  # at an end there is no neighbour
    assert tables.vertex(x, np.array([np.nan, 1.0, 1.2, 2.0])) == -1.0  # nor where one diverged


def test_a_run_that_diverged_counts_as_a_guess_and_is_never_the_best() -> None:
    results = made()
    runs = results.runs.copy()
    lost = [json.loads(spec)["hps"]["eta"] == 4.0 for spec in runs["spec"]]  # u-μP's highest
    runs.loc[lost, ["status", "val_loss"]] = ["diverged", np.nan]
    some = Results(runs, EMPTY.points)
    eta = {g.b: g for g in tables.grids(some, "umup") if g.a == "eta"}
    assert {np.isnan(g.loss).sum() for g in eta.values()} == {15}
    # Nor has η's highest value an optimum to follow, and four others have.
    at, _ = tables.tracks(some, "umup", "alpha_residual", "eta")
    assert at.tolist() == [-2.0, -1.0, 0.0, 1.0]
    with pytest.raises(NotMeasured, match="fewer than three eta"):
        every = results.runs.assign(status="diverged")
        tables.slope(Results(every, EMPTY.points), "umup", "alpha_residual", "eta")
    # No optimum where η is highest: of its four rows' own optima none is another's.
    assert tables.mean_cost(some, "umup").value == pytest.approx(0, abs=1e-12)
    # A wrong row's optimum that diverges costs what a guess does above the right one.
    loss = np.array([[[1.0, 2.0], [np.nan, 1.5]]] * 2)
    grid = tables.Grid("a", "b", np.arange(2.0), np.arange(2.0), loss, 5.0)
    rows, columns = ((2 - 1) + (5 - 1.5)) / 2, ((5 - 1) + (2 - 1.5)) / 2
    assert tables.cost(grid, "naive", [0]) == pytest.approx((rows + columns) / 2)
    with pytest.raises(NotMeasured, match="fewer than two rows"):
        tables.cost(grid._replace(loss=loss * np.nan), "crossed", [0, 1])


def test_what_is_not_complete_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="the claim needs 15"):
        tables.mean_cost(made(), "mup", pairs=15)
    one = made(runs=[run for run in RUNS if run.seed == 0])
    with pytest.raises(NotMeasured, match="there is one"):
        tables.mean_cost(one, "mup")
    assert tables.mean_cost(one, "mup", "naive").lo == -math.inf  # no interval from one seed
    lines = made(runs=[r for r in RUNS if sum(math.log2(x) != 0 for x in moved(r)) < 2])
    with pytest.raises(NotMeasured, match="no grid is complete"):
        tables.grids(lines, "umup")
    with pytest.raises(NotMeasured, match="grid of eta and alpha_emb"):
        tables.slope(made(), "mup", "eta", "alpha_emb")


def moved(run: RunConfig) -> list[float]:
    space = DESIGN.space(run.scheme)
    return [
        getattr(run.hps, name) / 2**x for name, x in zip(space.names, space.default(), strict=True)
    ]


def test_intervals_are_the_jackknife_s() -> None:
    # For a mean it is Student's interval of the mean.
    values = np.array([1.0, 2.0, 4.0, 4.5])
    m = tables.jackknifed(lambda some: float(values[list(some)].mean()), 4)
    half = 3.182446 * values.std(ddof=1) / 2
    assert (m.value, m.hi) == pytest.approx((values.mean(), values.mean() + half))


def test_page_of_planted_records() -> None:
    results = made(noise=1e-3)
    assert "η̂_emb with σ_init (0.0" in words.answer(results)
    assert words.pairs_table(results).count("\n") == 1 + 3 + 3
    assert "3 of 5 × 5 under μP" in words.what_ran(results)
    heat = figures.grids(results, "mup").axes
    assert len(heat) == 3 + 1  # and the colours
    dots = heat[2].lines[0].get_xydata()  # η̂_emb's best column per row of σ_init, or the reverse
    np.testing.assert_array_equal(dots, [[i, i] for i in range(5)])
    left, _ = figures.costs(results).axes
    costs = tables.pair_costs(results, "mup")
    np.testing.assert_allclose(marks(left)[:, 0], [c.value for c in costs.values()])
    verdicts = claims.evaluate("coupling", results, "cpu")
    measured = {v.id for v in verdicts if v.verdict != "not measured"}
    assert measured == {"emb-follows-init"}  # the others need all pairs, or another one
    text = words.answer(EMPTY)
    assert "not measured" in text and "nan" not in text


def test_bad_parameters_are_named() -> None:
    for changes, said in (
        (
            {"hps_umup": ["eta", "alpha_residual", "sigma_init"]},
            "hps: received 'sigma_init'; allowed: of umup",
        ),
        ({"lo_umup": [0]}, "lo_umup: received .*3 numbers, one per entry of hps_umup"),
        ({"hi_umup": [2, -3, 2]}, "alpha_residual: received .*rising"),
        ({"schemes": []}, "schemes: received"),
        ({"d_head": 12}, "d_head"),
    ):
        with pytest.raises(ConfigError, match=said):
            CODE.design.DESIGN.from_dict(GIVEN | changes)
