"""schedules: forks that are exact, and optima, gaps and savings planted in synthetic records."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from synthetic import EMPTY, drawn, marks, points_of, rows_of
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims
from umup.lab.claims import NotMeasured
from umup.lab.curves import Text
from umup.lab.design import Point
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.study import parameters

study = code("schedules").design
figures = code("schedules").figures
words = code("schedules").words
tables = code("schedules").results
Line = code("schedules").results.Line
measures = code("schedules").measures

HERE = Path(__file__).parents[2] / "experiments" / "schedules"
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
DESIGN = study.Schedules(
    width=32,
    n_layers=2,
    d_head=16,
    seq_len=64,
    warmup_steps=50,
    budgets=(250, 500, 1000, 2000, 4000),
    main=1000,
    compare=("mup",),
    shares=(0.05, 0.1, 0.3),
    share_budgets=(1000, 4000),
    lr_umup=(-2.0, 1.0),
    lr_mup=(-7.5, -5.0),
    spacing=0.5,
    seeds=3,
    fork_budgets=(1000,),
)

# Planted: what a schedule adds to cosine's loss, and to its best log2 η; both by doubling of steps.
ABOVE = {"cosine": 0.0, "linear": -0.004, "two_step": 0.015, "wsd": 0.006, "wsd_sqrt": 0.003}
MOVED = {"cosine": 0.0, "linear": 0.0, "two_step": -0.1, "wsd": -0.4, "wsd_sqrt": -0.4}
SLOPE, CURVATURE = -0.2, 0.03


def planted(scheme: str, kind: str, steps: int, share: float, log2_lr: float, seed: int) -> float:
    """A parabola in log₂ η; seeds shift it, and a decay of s adds 0.002/s to that of ⅕."""
    u = math.log2(steps / 1000)
    middle = -0.2 if scheme == "umup" else -6.2
    x = log2_lr - (middle + MOVED[kind] + SLOPE * u)
    short = 0.002 * (1 / share - 5) if share else 0.0
    noise = 1e-4 * math.sin(97 * log2_lr + 10 * seed + len(kind) + u)
    return 2.0 - 0.2 * u + ABOVE[kind] + short + CURVATURE * x**2 + 0.01 * seed + noise


def seen(run: RunConfig) -> dict[str, Any]:
    steps, kind = run.optim.steps, run.optim.schedule
    loss = planted(run.scheme, kind, steps, 0.0, math.log2(run.hps.eta), run.seed)
    at = np.unique(np.linspace(1, steps, 100).round().astype(int))
    return {
        "final_loss": 9.0,
        "val_loss": loss,
        "curve_steps": at,
        "curve_loss": 2.5 + loss * at**-0.3,
    }


def planted_point(point: Point) -> dict[str, Any]:
    spec = point.spec
    if point.what == "fork":
        return {"losses": 0.0, "weights": 0.0}
    rungs = [
        {
            "schedule": kind,
            "steps": steps,
            "decay_steps": decay,
            "loss": [
                planted(spec["scheme"], kind, steps, decay / steps, spec["log2_lr"], seed)
                for seed in range(spec["seeds"])
            ],
            "curve_steps": [steps - decay + 1, steps],
            "curve_loss": [3.0, 2.0],
        }
        for kind, steps, decay in spec["rungs"]
    ]
    return {
        "rungs": rungs,
        "trained": 9150,
        "curve_steps": [1, 100, 3800],
        "curve_loss": [5.0, 3.5, 2.5],
    }


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(rows_of(DESIGN.runs(TEXT), seen), points_of(DESIGN.points(), planted_point))


# The design


def test_runs_are_cosine_at_every_budget_and_the_others_at_the_main_one() -> None:
    runs = DESIGN.runs(TEXT)
    assert len(runs) == len({run.key() for run in runs}) == 7 * 3 * 7 + 3 * 3 * 6
    at = {(run.scheme, run.optim.schedule, run.optim.steps) for run in runs}
    assert {steps for scheme, kind, steps in at if (scheme, kind) == ("umup", "cosine")} == {
        250,
        500,
        1000,
        2000,
        4000,
    }
    assert {(scheme, kind) for scheme, kind, steps in at if steps == 1000} == {
        (scheme, kind) for scheme in ("umup", "mup") for kind in ("cosine", "linear", "two_step")
    }
    assert {run.optim.warmup_steps for run in runs} == {50}


def test_every_decay_of_wsd_is_forked_from_the_plateau_of_its_rate() -> None:
    points = DESIGN.points()
    assert [point.what for point in points] == ["fork"] * 2 + ["ladder"] * (7 + 6)
    assert len({point.key() for point in points}) == len(points)
    rungs = DESIGN.rungs("umup")
    assert len(rungs) == len(set(rungs)) == 5 + 5 + 6
    assert ("wsd", 4000, 800) in rungs
    assert ("wsd_sqrt", 250, 50) in rungs
    assert ("wsd", 4000, 200) in rungs
    assert DESIGN.rungs("mup") == [("wsd", 1000, 200), ("wsd_sqrt", 1000, 200)]
    spec = points[0].spec
    assert (spec["schedule"], spec["steps"], spec["decay_steps"]) == ("wsd", 1000, 200)


def test_schedules_that_are_not_asked_for_are_left_out() -> None:
    few = replace(DESIGN, schedules=("cosine", "wsd_sqrt"), compare=())
    assert {run.optim.schedule for run in few.runs(TEXT)} == {"cosine"}
    assert {kind for kind, *_ in few.rungs("umup")} == {"wsd_sqrt"}
    assert [point.spec["schedule"] for point in few.points() if point.what == "fork"] == [
        "wsd_sqrt"
    ]
    alone = replace(DESIGN, schedules=("linear",), compare=())
    assert {run.optim.steps for run in alone.runs(TEXT)} == {1000}
    assert alone.points() == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"main": 999}, "main"),
        ({"share_budgets": (999,)}, "share_budgets"),
        ({"budgets": ()}, "budgets"),
        ({"schedules": ()}, "schedules"),
        ({"schedules": ("wds",)}, "schedules"),
        ({"lr_umup": (1.0, -2.0)}, "lr_umup"),
        ({"lr_mup": (1.0,)}, "lr_mup"),
        ({"share": 0.9}, "decay_steps"),  # 225 of 250 steps, of which 50 warm up
        ({"warmup_steps": 251}, "warmup_steps"),
        ({"d_head": 24}, "d_head"),
        ({"compare": ("umup",)}, "compare"),
    ],
)
def test_bad_parameters_are_errors_that_name_the_field(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(DESIGN, **changes)
    assert error.value.field == field


# What is measured


TINY = study.Schedules(
    width=16,
    d_head=8,
    seq_len=8,
    batch_size=4,
    warmup_steps=3,
    eval_batches=2,
    budgets=(10, 20),
    main=20,
    share_budgets=(),
    base_width=8,
)


def test_the_ladder_is_what_training_from_scratch_gives() -> None:
    """A rung against its run through `train.programs` alone, then the check of forking."""
    import jax.numpy as jnp

    from umup import data, train

    rungs = [["wsd", 20, 4], ["wsd_sqrt", 16, 4]]
    got = measures.ladder(scheme="umup", log2_lr=0.5, seeds=1, rungs=rungs, shape=TINY.shape)
    assert got["trained"] == 16 + 4 + 4
    assert got["curve_steps"] == list(range(1, 17))
    assert [(r["schedule"], r["steps"]) for r in got["rungs"]] == [("wsd_sqrt", 16), ("wsd", 20)]
    text = data.load("sotu", "bytes", seq_len=8)
    whole, plateau = (
        TINY.trained("umup", 0.5, 0, TINY.schedule("wsd", steps, decay), Text.of(text))
        for steps, decay in ((20, 4), (17, 1))
    )
    known, lanes = train.programs(plateau), train.lanes_of([whole])  # compiled for the ladder
    states, losses = train.programs(whole).chunk(
        jnp.asarray(text.train), lanes, known.init(lanes), 20
    )
    rung = got["rungs"][1]
    assert rung["loss"] == np.asarray(known.evaluate(jnp.asarray(text.val), states)).tolist()
    assert rung["curve_steps"] == [17, 18, 19, 20]
    assert rung["curve_loss"] == pytest.approx(np.asarray(losses)[0, 16:])
    assert got["curve_loss"] == pytest.approx(np.asarray(losses)[0, :16])
    check = measures.fork(schedule="wsd", steps=8, decay_steps=4, seeds=1, shape=TINY.shape)
    assert check == {"losses": 0.0, "weights": 0.0}


def test_curves_are_thinned_to_means() -> None:
    got = measures._thin(np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]]), 10, 2)
    assert got == {"curve_steps": [12, 14], "curve_loss": [2.5, 4.5]}
    assert measures._thin(np.array([[np.nan, 1.0]]), 0, 2)["curve_loss"] == [None, 1.0]


# Tables and quantities


def test_losses_are_held_out_and_hold_runs_and_forks(results: Results) -> None:
    table = tables.losses(results)
    assert len(table) == 201 + 7 * 3 * 16 + 6 * 3 * 2
    assert table["loss"].max() < 9.0  # final_loss is not read
    lines = tables.lines(table)
    assert lines[0] == ("umup", "cosine", 250, 0.0)
    assert ("umup", "wsd", 4000, 0.05) in lines
    assert len(lines) == 7 + 16 + 3 + 2


def test_a_seed_that_diverged_has_no_loss(results: Results) -> None:
    status = results.runs["status"].where(results.runs["lr"] < 2.0, "diverged")
    table = tables.losses(Results(results.runs.assign(status=status), results.points))
    rows = tables.by_lr(tables.at(table, Line.of("cosine", 1000)))
    assert rows.set_index("log2_lr")["n_diverged"].to_dict()[1.0] == 3
    assert tables.optimum(table, Line.of("cosine", 1000)).n_diverged == 3
    points = results.points.assign(
        result=[r.replace('"loss": [', '"loss": [null, ') for r in results.points["result"]]
    )
    first = tables.losses(Results(results.runs, points)).query("schedule == 'wsd' and seed == 0")
    assert first["loss"].isna().all()


@pytest.mark.parametrize("scheme", ["umup", "mup"])
@pytest.mark.parametrize(("kind", "above"), list(ABOVE.items())[1:])
def test_planted_gaps_are_recovered(results: Results, scheme: str, kind: str, above: float) -> None:
    got = tables.gap(results, kind, "cosine", 1000, scheme)
    assert got.value == pytest.approx(above, abs=2e-4)
    assert got.lo <= above + 1e-4
    assert above - 1e-4 <= got.hi
    assert got.hi - got.lo < 1e-3  # the seeds' own shifts cancel in pairs


def test_planted_shares_are_recovered(results: Results) -> None:
    # 0.002·(1/s − 5) at 5 %, 10 %, 30 %
    for share, above in ((0.05, 0.03), (0.1, 0.01), (0.3, -0.01 / 3)):
        for steps in (1000, 4000):
            got = tables.gap(results, "wsd", "wsd", steps, share=share)
            assert got.value == pytest.approx(above, abs=2e-4)


def test_planted_optima_and_their_motion_are_recovered(results: Results) -> None:
    gap = tables.optimum_gap(results, "wsd", "cosine", 1000)
    assert gap.value == pytest.approx(-0.4, abs=0.02)
    assert gap.lo < -0.4 < gap.hi
    for kind in ("cosine", "wsd"):
        slope = tables.horizon_slope(results, kind, factor=16)
        assert slope.value == pytest.approx(SLOPE, abs=0.02)
        assert slope.lo < slope.value < slope.hi


def test_an_optimum_at_an_edge_leaves_its_side_open(results: Results) -> None:
    runs = results.runs[results.runs["lr"] >= 1.0]
    got = tables.optimum_gap(Results(runs, results.points), "wsd", "cosine", 1000)
    assert got.hi == math.inf or got.lo == -math.inf


def test_the_rate_of_a_short_run_costs_what_the_parabola_says(results: Results) -> None:
    # Best at 250: −0.2 + 0.4 = 0.2, nearest on the grid 0; at 4000 the best is −0.6.
    got = tables.short_rate_cost(results, "cosine", factor=16)
    assert got.value == pytest.approx(CURVATURE * 0.6**2, abs=5e-4)


def test_one_rate_serves_all_budgets(results: Results) -> None:
    # WSD's optima run from −0.2 to −1.0 about −0.6: the grid's −0.5 is nearest.
    rate, rungs = tables.one_rate(tables.losses(results))
    assert rate == -0.5
    assert sorted(rungs) == [250, 500, 1000, 2000, 4000]
    own = tables.ladder_gap(results, "wsd", factor=16)
    assert own.value == pytest.approx(CURVATURE * 0.5**2, abs=5e-4)  # at 4000, where −1.0 is best
    cosine = tables.ladder_gap(results, "cosine")
    assert cosine.value == pytest.approx(ABOVE["wsd"] + CURVATURE * 0.5**2, abs=5e-4)


def test_what_a_ladder_saves_is_arithmetic(results: Results) -> None:
    # Plateau 3200 and decays 50 + 100 + 200 + 400 + 800, against 7750 steps from scratch.
    got = tables.saved(results, factor=16)
    assert got.value == pytest.approx(100 * (1 - (3200 + 1550) / 7750))
    assert got.lo == got.hi == got.value


def test_the_worst_fork_counts(results: Results) -> None:
    assert tables.fork_difference(results).hi == 0.0
    points = results.points.copy()
    points.loc[1, "result"] = json.dumps({"losses": 0.0, "weights": 1e-7})
    assert tables.fork_difference(Results(results.runs, points)).lo == 1e-7


def test_losses_by_seed_do_not_hang_on_one_lucky_run(results: Results) -> None:
    table = tables.losses(results)
    line = Line.of("cosine", 1000)
    lucky = (table["log2_lr"] == 0.0) & (table["seed"] == 1) & (table["steps"] == 1000)
    lucky &= (table["schedule"] == "cosine") & (table["scheme"] == "umup")
    assert lucky.sum() == 1
    before = tables.best(table, line)
    after = tables.best(table.assign(loss=table["loss"] - 0.03 * lucky), line)
    assert before.tolist() == pytest.approx([2.0, 2.01, 2.02], abs=3e-4)
    assert 0.001 < before[1] - after[1] < 0.015  # of 0.03, spread over the runs near the optimum


@pytest.mark.parametrize(
    ("quantity", "args"),
    [
        ("gap", {"schedule": "wsd", "against": "cosine", "steps": 1000}),
        ("optimum_gap", {"schedule": "wsd", "against": "cosine", "steps": 1000}),
        ("horizon_slope", {"schedule": "wsd", "factor": 16}),
        ("short_rate_cost", {"schedule": "cosine", "factor": 16}),
        ("ladder_gap", {"against": "cosine"}),
        ("saved", {}),
        ("fork_difference", {}),
    ],
)
def test_nothing_on_record_is_not_measured(quantity: str, args: dict) -> None:
    with pytest.raises(NotMeasured):
        tables.QUANTITIES[quantity](EMPTY, **args)


def test_a_claim_over_more_budgets_than_measured_is_not_measured(results: Results) -> None:
    for call in (
        lambda: tables.horizon_slope(results, "cosine", factor=32),
        lambda: tables.ladder_gap(results, "cosine", factor=32),
        lambda: tables.saved(results, factor=32),
        lambda: tables.short_rate_cost(results, "wsd", factor=32),
    ):
        with pytest.raises(NotMeasured, match=r"budgets span .*, the claim needs 32×"):
            call()


# The study as a whole


def test_profiles_are_designs_and_claims_have_their_runs(results: Results) -> None:
    for profile in ("smoke", "cpu", "h100"):
        given = parameters(HERE, profile)
        design = study.Schedules.from_dict(given)
        assert design.profile == profile
    verdicts = {v.id: v for v in claims.evaluate(HERE, results, "cpu")}
    missing = {v.id for v in verdicts.values() if v.verdict == "not measured"}
    assert not missing
    assert verdicts["wsd-close-to-cosine"].verdict == "holds"  # 0.006 of 0.01
    assert verdicts["two-step-close-to-cosine"].verdict == "fails"  # 0.015
    assert verdicts["eta-still-over-budgets-wsd"].verdict == "fails"  # −0.2
    assert verdicts["fork-is-unforked"].verdict == "exact"
    assert verdicts["root-beats-linear-decay"].verdict == "holds"  # −0.003


def test_figures_draw_every_line_and_say_when_there_is_nothing(results: Results) -> None:
    by_lr = figures.by_lr(results, 1000)
    assert [len(ax.containers) for ax in by_lr.axes] == [5, 5]  # a star with its interval each
    left, right = figures.ladder(results).axes
    assert len(left.lines) == 5 + 1 + 5
    labels = right.get_legend_handles_labels()[1]
    assert labels == ["linear decay, own η", "linear decay, one η", "1 − √x decay, one η"]
    (ax,) = figures.shares(results).axes
    assert [len(cast(Any, c).lines[0].get_xdata()) for c in ax.containers] == [4, 4]
    (ax,) = figures.horizons(results).axes
    assert len(ax.containers) == 3 * 5
    for figure in (
        figures.ladder(EMPTY),
        figures.by_lr(EMPTY, 1000),
        figures.shares(EMPTY),
        figures.horizons(EMPTY),
    ):
        assert figure.axes[0].texts


def test_words_name_the_numbers(results: Results) -> None:
    texts = words.texts(results, 1000)
    assert texts["gap_wsd"].startswith("0.006 [")
    assert texts["saved"] == "39"
    assert texts["one_rate"] == "−0.5"
    assert texts["budgets"] == "250 to 4000"
    assert texts["share_5"].startswith("0.033 [")
    assert "saves 39 % of the steps" in words.answer(results, 1000)
    assert "13 plateaus of 3 seeds" in words.what_ran(results)
    table = words.schedules_table(results, 1000)
    assert len(table.splitlines()) == 2 + 5 + 5
    assert len(words.ladder_table(results).splitlines()) == 2 + 5


def test_words_without_records(results: Results) -> None:
    assert words.texts(EMPTY, 1000)["gap_wsd"] == "not measured"
    assert words.what_ran(EMPTY).startswith("0 plateaus of 0 seeds, 0 decays forked from them")
    for text in (words.schedules_table(EMPTY, 1000), words.ladder_table(EMPTY)):
        assert text == "Not measured: no runs and no plateaus are on record."
    forks = Results(EMPTY.runs, results.points)  # cosine is still to come
    assert "not measured" in words.answer(forks, 1000)
    assert drawn(figures.ladder(forks).axes[0]).keys() == {"plateau", "its decays"}
    assert "not measured" in words.ladder_table(forks)


def test_lines_stars_gaps_and_optima_are_those_of_the_tables(results: Results) -> None:
    table = tables.losses(results)
    for ax, scheme in zip(figures.by_lr(results, 1000).axes, ("umup", "mup"), strict=True):
        lines = [Line.of(kind, 1000, scheme) for kind in tables.SCHEDULES]
        for line in lines:
            wanted = tables.by_lr(tables.at(table, line))[["log2_lr", "mean"]]
            np.testing.assert_allclose(drawn(ax)[tables.TITLES[line.schedule]], wanted)
        stars = [(o.x, o.loss) for o in (tables.optimum(table, line) for line in lines)]
        np.testing.assert_allclose(marks(ax), stars)
    _, right = figures.ladder(results).axes
    own = [tables.gap(results, "wsd", "cosine", n).value for n in DESIGN.budgets]
    ladder = [
        g.value
        for kind in ("wsd", "wsd_sqrt")
        for g in tables.ladder_gaps(results, "cosine", kind).values()
    ]
    np.testing.assert_allclose(marks(right)[:, 1], [*own, *ladder])
    (ax,) = figures.shares(results).axes
    for steps in (1000, 4000):
        gaps = [
            tables.gap(results, "wsd", "wsd", steps, share=s, against_share=0.3).value
            for s in (0.05, 0.1, 0.2, 0.3)
        ]
        np.testing.assert_allclose(drawn(ax)[f"{steps} steps"][:, 1], gaps)
    (ax,) = figures.horizons(results).axes
    kinds = ("cosine", "wsd", "wsd_sqrt")
    found = [o.x for kind in kinds for _, o in sorted(tables.horizon_optima(results, kind).items())]
    np.testing.assert_allclose(marks(ax)[:, 1], found)
