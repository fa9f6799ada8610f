"""hp_search: three searches of a planted bowl, read back from records; luck that is not counted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from synthetic import EMPTY, played, rows_of
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, hp_search, study
from umup.lab.absent import NotMeasured
from umup.lab.folders import code
from umup.lab.hp_search import Trial
from umup.lab.records import Results

CODE = code("hp_search")
tables, words, figures = CODE.results, CODE.words, CODE.figures
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
GIVEN = study.parameters("hp_search", "cpu") | {
    "hps_umup": ["eta", "alpha_ffn_act", "alpha_residual"],  # not in the scheme's order
    "lo_umup": [-2, -2, -2],
    "hi_umup": [2, 2, 2],
    "hps_mup": ["eta", "sigma_init"],
    "lo_mup": [-8, -2],
    "hi_mup": [-4, 2],
    "n_random": 12,
    "per_round": 4,
    "seeds": 4,
    "wide_seeds": 3,
}
DESIGN = CODE.design.DESIGN.from_dict(GIVEN)
# log2 of the planted optimum in each hyperparameter; η's lies on its line.
BEST = {"eta": 0.5, "alpha_residual": -1.0, "alpha_ffn_act": 1.5, "sigma_init": 1.0}
DEEP = {"umup": 2.0, "mup": 2.1}


def away(run: RunConfig) -> dict[str, float]:
    """Octaves from the planted optimum; μP's η is 6 octaves lower."""
    moved = {n: math.log2(getattr(run.hps, n)) for n in DESIGN.space(run.scheme).names}
    if run.scheme == "mup":
        moved["eta"] += 6.0
    return {name: x - BEST[name] for name, x in moved.items()}


def planted(run: RunConfig) -> float:
    """A bowl; on the wide model the same, half a nat lower."""
    wide = run.model.d_model > DESIGN.width
    return DEEP[run.scheme] + 0.01 * sum(x**2 for x in away(run).values()) - 0.5 * wide


def clashing(run: RunConfig) -> float:
    """u-μP's two other hyperparameters are each better moved, and worse moved together."""
    if run.scheme == "umup" and run.hps.alpha_residual < 1 and run.hps.alpha_ffn_act > 1:
        return planted(run) + 0.2
    return planted(run)


def made(loss: Callable[[RunConfig], float]) -> Results:
    def seen(run: RunConfig) -> dict:
        lost = math.isnan(loss(run))
        held = loss(run) - 0.1 + 0.01 * run.seed
        return {"final_loss": loss(run), "val_loss": held, "status": "diverged" if lost else "ok"}

    return Results(rows_of(played(DESIGN, TEXT, loss), seen), EMPTY.points)


@functools.cache
def bowl() -> Results:
    return made(planted)


def test_the_plan_has_lines_random_points_rounds_and_what_is_carried() -> None:
    runs = bowl().runs
    umup = runs[(runs["scheme"] == "umup") & (runs["d_model"] == 32)]
    first = umup[umup["seed"] == 0]
    assert len(first) == (9 + 8 + 8 + 1) + 12 + 3 * 4
    ends = umup[umup["seed"] == 3]
    # η alone, two lines, the combination, the best of random and of the rounds.
    assert len(ends) == 6 and len(umup) == len(first) + 3 * 6
    wide = runs[(runs["scheme"] == "umup") & (runs["d_model"] == 256)]
    assert len(wide) == 5 + 2 + 3
    assert set(runs["seed"]) == {0, 1, 2, 3}


def test_searches_are_read_back_from_the_records() -> None:
    for scheme in ("umup", "mup"):
        space = DESIGN.space(scheme)
        assert tables.narrow(bowl(), scheme).space == space
        done = tables.searched(bowl(), scheme, "random")
        assert [r.point for r in done] == hp_search.random_points(space, 12)
        assert len(tables.searched(bowl(), scheme, "rounds")) == 12
        found = tables.lines(bowl(), scheme)
        assert space.log2(found.combined) == {
            n: BEST[n] - 6 * (n == "eta" and scheme == "mup") for n in space.names
        }
    assert [tables.spent(bowl(), "umup", end) for end in tables.ENDS] == [9, 25, 26, 12, 12]
    assert tables.stops(bowl(), "umup", "independent") == [9, 17, 25, 26]
    assert tables.stops(bowl(), "umup", "rounds") == [4, 8, 12]
    # One line alone was moved under μP: its best is the combination, and no further run.
    assert [tables.spent(bowl(), "mup", end) for end in tables.ENDS][:3] == [9, 17, 17]
    assert tables.gap(bowl(), "mup", "combined", "line") == tables.Interval.exact(0.0)


def test_gaps_are_those_of_the_planted_bowl() -> None:
    # The best single line leaves the other hyperparameter where it was: 0.01 · 1² of 1² and 1.5².
    gain = tables.gap(bowl(), "umup", "combined", "line")
    assert (gain.value, gain.lo, gain.hi) == pytest.approx((-0.01, -0.01, -0.01))
    start = tables.gap(bowl(), "umup", "eta", "combined")
    assert start.value == pytest.approx(0.01 * (1 + 1.5**2))
    assert tables.wide_gap(bowl(), "umup", 8).value == pytest.approx(-0.01 * (1 + 1.5**2))
    space = DESIGN.space("umup")
    points = hp_search.random_points(space, 12)
    best = min(sum((p - BEST[n]) ** 2 for n, p in space.log2(x).items()) for x in points)
    assert tables.gap(bowl(), "umup", "random", "combined").value == pytest.approx(0.01 * best)


def test_a_combination_that_clashes_is_seen() -> None:
    clash = tables.gap(made(clashing), "umup", "combined", "line")
    assert clash.value == pytest.approx(0.2 - 0.01)


def test_the_luck_of_the_seed_that_chose_is_not_counted() -> None:
    def lucky(run: RunConfig) -> float:
        point = DESIGN.space(run.scheme)
        third = point.log2(hp_search.random_points(point, 3)[2])
        mine = {n: math.log2(getattr(run.hps, n)) for n in point.names}
        return planted(run) - 9.0 * (mine == pytest.approx(third) and run.seed == 0)

    results = made(lucky)
    space = DESIGN.space("umup")
    third = hp_search.random_points(space, 3)[2]
    assert tables.end(results, "umup", "random") == third
    level = 0.01 * sum((x - BEST[n]) ** 2 for n, x in space.log2(third).items())
    assert tables.gap(results, "umup", "random", "combined").value == pytest.approx(level)


def test_what_diverges_is_never_chosen_and_costs_without_end() -> None:
    def fragile(run: RunConfig) -> float:
        at = away(run)
        bad = run.scheme == "umup" and at["alpha_residual"] == at["alpha_ffn_act"] == 0.0
        return math.nan if bad and run.model.d_model == 32 else planted(run)

    results = made(fragile)  # the combination, and nothing else
    assert tables.gap(results, "umup", "combined", "line").lo == math.inf
    assert math.isfinite(tables.gap(results, "umup", "line", "random").value)
    lost = made(lambda run: math.nan)
    with pytest.raises(NotMeasured, match=r"not on record|every η diverged"):
        tables.gap(lost, "umup", "eta", "random")


def test_how_many_runs_are_needed() -> None:
    # Random: of 12 runs, those within the level are k; half the orders have one among the first n
    # where 1 − C(12 − k, n)/C(12, n) is one half or more.
    loss = np.array([r.loss for r in tables.searched(bowl(), "umup", "random")])
    level = DEEP["umup"] + 0.05
    k = int((loss <= level).sum())
    assert 0 < k < 12
    share = [1 - math.comb(12 - k, n) / math.comb(12, n) for n in range(1, 13)]
    exact = 1 + next(i for i, s in enumerate(share) if s > 0.5)
    assert tables.runs_needed(bowl(), "umup", "random", 0.05) == pytest.approx(exact, abs=1)
    assert tables.runs_needed(bowl(), "umup", "random", 1e-6) is None
    # Above the lowest: 0.0325 after η, 0.0225 after α_residual's line, 0.01 after α_ffn_act's.
    needed = functools.partial(tables.runs_needed, bowl(), "umup", "independent")
    assert [needed(within) for within in (0.04, 0.02, 0.001)] == [9, 25, 26]
    middle, lo, hi = tables.random_band(bowl(), "umup")
    assert (lo <= middle).all() and (middle <= hi).all()
    assert lo[-1] == hi[-1] == loss.min()
    assert words.texts(bowl())["needed_independent_umup"] == "17"
    assert words.advice(bowl()).count("runs on the random search, which is the first") == 2

    def steep(run: RunConfig) -> float:  # the defaults are best, and few random points are near
        moved = {name: x + BEST[name] * (name != "eta") for name, x in away(run).items()}
        return 2.0 + sum(x**2 for x in moved.values())

    assert words.advice(made(steep)).count("the line over η is enough; its 9 runs come") == 2


def test_a_part_of_a_search_is_not_measured() -> None:
    runs = bowl().runs

    def some(rows: pd.Series) -> Results:
        return Results(runs[rows].reset_index(drop=True), EMPTY.points)

    with pytest.raises(NotMeasured, match="12 runs of random, not 150"):
        tables.gap(bowl(), "umup", "eta", "random", runs=150)
    with pytest.raises(NotMeasured, match="no line over η on a wider model"):
        tables.wide_gap(some(runs["d_model"] == 32), "umup")
    with pytest.raises(NotMeasured, match="widths span 8×, the claim needs 16×"):
        tables.wide_gap(bowl(), "umup", 16)
    with pytest.raises(NotMeasured, match="no further seeds"):
        tables.gap(some(runs["seed"] == 0), "umup", "eta", "random")
    with pytest.raises(NotMeasured, match="no runs of the random search"):
        first = hp_search.random_points(DESIGN.space("umup"), 1)[0]
        run = DESIGN.trial(DESIGN.space("umup"), Trial(first, 0), CODE.design.Text("d", 256))
        tables.gap(some(runs["key"] != run.key()), "umup", "eta", "random")
    last = tables.searched(bowl(), "umup", "rounds")[-1]
    run = DESIGN.trial(DESIGN.space("umup"), Trial(last.point, 0), CODE.design.Text("d", 256))
    with pytest.raises(NotMeasured, match="three rounds search is not at its end"):
        tables.searched(some(runs["key"] != run.key()), "umup", "rounds")
    with pytest.raises(NotMeasured, match="lines of the independent search"):
        tables.narrow(some(runs["lr"] == 1.0), "umup")


def test_page_of_planted_records() -> None:
    text = words.answer(bowl())
    assert "12 random points" in text and "−0.010 [−0.010, −0.010]" in text
    assert words.ends_table(bowl()).count("\n") == 1 + 2 * 5
    assert words.values_table(bowl()).count("\n") == 1 + 3 + 2
    left, _ = figures.searches(bowl()).axes
    lowest = left.lines[0].get_ydata()
    done = tables.searched(bowl(), "umup", "independent")
    np.testing.assert_allclose(lowest, tables.best_so_far(done)[:25])
    assert left.lines[1].get_xydata().tolist() == [[26, done[-1].loss]]
    assert len(figures.ends(bowl()).axes) == 2
    assert len(figures.lines(bowl()).axes) == 6
    verdicts = {v.id: v.verdict for v in claims.evaluate("hp_search", bowl(), "cpu")}
    assert verdicts["combine-umup"] == "exact" and verdicts["combine-mup"] == "fails"
    assert verdicts["wide-umup"] == "exact"
    assert verdicts["eta-line-umup"] == "not measured"  # of twelve points
    for say in (words.answer, words.advice, words.ends_table, words.values_table):
        said = say(EMPTY)
        assert "not measured" in said.lower() and "None" not in said


def test_bad_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match=r"alpha_residual: received \[1.0, 2.0\].*around the"):
        CODE.design.DESIGN.from_dict(GIVEN | {"lo_umup": [-2, -2, 1]})
    with pytest.raises(ConfigError, match="n_random"):
        CODE.design.DESIGN.from_dict(GIVEN | {"n_random": 0})
