"""embedding_lr: rules in two units, and optima and differences planted in synthetic records."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from synthetic import EMPTY, marks, played, rows_of
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, folders, study
from umup.lab.absent import NotMeasured
from umup.lab.curves import Text
from umup.lab.records import Results
from umup.rules import Parametrization

HERE = Path(__file__).parents[2] / "experiments" / "embedding_lr"
CODE = folders.code(HERE)
figures, tables, words = CODE.figures, CODE.results, CODE.words
DESIGN = CODE.design.DESIGN.from_dict(study.parameters(HERE, "cpu"))
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))

UMUP_EMB, MUP_EMB = 0.2, 4.2  # log₂ of the best η̂_emb at width 32
UMUP_SLOPE = 0.1  # its octaves per doubling of width under u-μP's rule; under μP, −½ more
ETA_SLOPE = 0.05  # octaves per doubling of every best η
GAPS = {"mup": 0.02, "sp_emb_lr": 0.005}  # nats above u-μP, of the level of the scheme alone
CURVE_EMB, CURVE_ETA = 0.02, 0.04  # nats per octave²


def rate(run: RunConfig) -> float:
    """log₂ η̂_emb in the unit of u-μP's or μP's own rule: ½ log₂ width, or of its ratio, aside."""
    x = math.log2(run.hps.eta_emb)
    if run.scheme == "umup_const_emb":
        return x + 0.5 * math.log2(run.model.d_model)
    return x - 0.5 * math.log2(run.model.d_model / 32) * (run.scheme == "mup_sqrt_emb")


def planted(run: RunConfig) -> float:
    """Parabolas in log₂ η̂_emb and log₂ η; SP's embedding is at its best."""
    u = math.log2(run.model.d_model / 32)
    family = "umup" if run.scheme.startswith("umup") else run.scheme.replace("_sqrt_emb", "")
    best = {
        "umup": UMUP_EMB + UMUP_SLOPE * u,
        "mup": MUP_EMB + (UMUP_SLOPE - 0.5) * u,
        "sp_emb_lr": 0.0,
    }
    eta = math.log2(run.hps.eta) - DESIGN.middle(run.scheme) - ETA_SLOPE * u
    loss = 2.0 - 0.1 * u + GAPS.get(family, 0.0) + 0.01 * run.seed
    return loss + CURVE_EMB * (rate(run) - best[family]) ** 2 + CURVE_ETA * eta**2


def seen(run: RunConfig) -> dict[str, float]:
    """The held-out loss lies half a nat above the training loss."""
    return {"final_loss": planted(run), "val_loss": planted(run) + 0.5}


@pytest.fixture(scope="module")
def runs() -> list[RunConfig]:
    return played(DESIGN, TEXT, planted)


@pytest.fixture(scope="module")
def results(runs: list[RunConfig]) -> Results:
    return Results(rows_of(runs, seen), EMPTY.points)


@pytest.fixture(scope="module")
def rare() -> Results:
    """The profile of the large vocabulary, with the same losses."""
    design = CODE.design.DESIGN.from_dict(study.parameters(HERE, "bpe"))
    text = cast(Dataset, SimpleNamespace(digest="b", vocab_size=4096))
    return Results(rows_of(played(design, text, planted), seen), EMPTY.points)


# --- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "width", "octaves"),
    [
        ("umup", 128, 0.0),
        ("mup", 128, 0.0),
        ("umup_const_emb", 64, 3.0),  # √64
        ("umup_const_emb", 256, 4.0),
        ("mup_sqrt_emb", 32, 0.0),
        ("mup_sqrt_emb", 128, -1.0),  # 1/√4
    ],
)
def test_the_offset_of_a_rule_is_the_ratio_of_the_two_factors(rule, width, octaves) -> None:
    assert tables.offset(rule, width, 32) == pytest.approx(octaves, abs=1e-12)


def test_runs_that_check_the_units_have_one_learning_rate() -> None:
    pairs = list(DESIGN.fixed(Text.of(TEXT)))
    assert [run.scheme for run in pairs] == ["umup_const_emb", "umup", "mup_sqrt_emb", "mup"]
    factors = [
        float(
            Parametrization(run.scheme, run.model, run.hps.to_dict(), 1)
            .weight("input", 256, run.model.d_model)
            .adam_lr
        )
        for run in pairs
    ]
    assert factors[0] == pytest.approx(factors[1], rel=1e-12) == pytest.approx(1 / 8)
    assert factors[2] == pytest.approx(factors[3], rel=1e-12) == pytest.approx(8.0)
    assert {run.model.d_model for run in pairs} == {64}


# --- the design -----------------------------------------------------------------------------------


def at(runs: list[RunConfig], scheme: str, width: int, **log2: float) -> list[RunConfig]:
    return [
        run
        for run in runs
        if (run.scheme, run.model.d_model) == (scheme, width)
        and all(math.log2(getattr(run.hps, name)) == pytest.approx(x) for name, x in log2.items())
    ]


def test_the_arm_that_is_tuned_waits_for_its_curve_and_carries_its_best(runs) -> None:
    first = DESIGN.runs(TEXT)
    carried = {
        round(math.log2(r.hps.eta_emb), 6)
        for r in runs
        if r.scheme == "mup" and r.hps.eta != 2.0**-6.5
    }
    assert carried == {0.0, 4.0}  # the default, and the octave nearest to 4.2
    before = {r.hps.eta_emb for r in first if r.scheme == "mup" and r.hps.eta != 2.0**-6.5}
    assert before == {1.0}
    for width in DESIGN.widths:
        assert {r.hps.eta for r in at(runs, "mup", width, eta_emb=4.0)} > {2.0**-7.5, 2.0**-5.5}


def test_nothing_is_carried_before_the_search_over_it_is_done(runs) -> None:
    text = Text.of(TEXT)
    first = [run for run in DESIGN.runs(TEXT) if run.scheme == "mup"]  # the grid in octaves
    for done, tuned in (([], None), (first, None), (runs, 4.0)):
        assert DESIGN.tuned(text, {run.key(): planted(run) for run in done}) == tuned


def test_six_seeds_meet_at_the_best_rate_of_every_arm_and_width(runs) -> None:
    for scheme, emb in (("umup", 0.0), ("mup", 0.0), ("mup", 4.0), ("sp_emb_lr", 0.0)):
        for width in DESIGN.widths:
            best = DESIGN.middle(scheme)  # 0.15 octaves off the planted one at most
            seeds = {r.seed for r in at(runs, scheme, width, eta_emb=emb, eta=best)}
            assert seeds == set(range(6)), (scheme, emb, width)
            aside = {r.seed for r in at(runs, scheme, width, eta_emb=emb, eta=best + 0.5)}
            assert aside == {0}


def test_the_constant_rule_is_u_mup_at_the_narrowest_width_and_runs_at_the_largest(runs) -> None:
    constant = [r for r in runs if r.scheme == "umup_const_emb" and r.model.d_model != 64]
    assert {r.model.d_model for r in constant} == {256}
    assert {math.log2(r.hps.eta_emb) for r in constant} == {-2.5}  # 1/√32
    assert {r.seed for r in constant} == set(range(6))


def test_curves_over_the_embedding_rate_have_three_seeds_within_an_octave(runs) -> None:
    for width in DESIGN.widths:
        found: dict[float, set[int]] = {}
        for run in at(runs, "mup", width, eta=-6.5):
            found.setdefault(math.log2(run.hps.eta_emb), set()).add(run.seed)
        best = round(MUP_EMB + (UMUP_SLOPE - 0.5) * math.log2(width / 32))
        assert all(found[best + i] >= {0, 1, 2} for i in (-1, 0, 1)), width
        assert {float(x) for x in range(1, 6)} <= set(found)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"widths": []}, "widths"),
        ({"widths": [64, 32]}, "widths"),
        ({"widths": [32, 65]}, "d_head"),
        ({"emb_mup": [1]}, "emb_mup"),
        ({"emb_umup": [2, -2]}, "emb_umup"),
        ({"log2_lr_mup": -6.4}, "log2_lr_mup"),
        ({"arms": ["umup", "mup_tuned"]}, "arms"),
        ({"arms": ["sp"]}, "arms"),
    ],
)
def test_bad_parameters_are_named(changes, field) -> None:
    with pytest.raises(ConfigError, match=f"^{field}"):
        CODE.design.DESIGN.from_dict(study.parameters(HERE, "cpu") | changes)


# --- what comes back ------------------------------------------------------------------------------


def test_planted_shifts_come_back_in_every_unit(results) -> None:
    want = {"umup": 0.3, "umup_const_emb": -1.2, "mup": -1.2, "mup_sqrt_emb": 0.3}
    for rule, shift in want.items():
        assert tables.emb_shift(results, rule, 8).value == pytest.approx(shift, abs=0.02), rule
    one, other = (tables.emb_shift(results, rule, 8) for rule in ("umup", "umup_const_emb"))
    ends = [(one.lo, other.lo), (one.hi, other.hi)]
    assert all(a - b == pytest.approx(1.5, abs=1e-9) for a, b in ends)
    assert tables.emb_optima(results.runs, "mup_sqrt_emb")[256].x == pytest.approx(4.5, abs=0.02)


def test_planted_drifts_of_the_learning_rate_come_back(results) -> None:
    for arm in ("umup", "mup", "mup_tuned", "sp_emb_lr"):
        assert tables.eta_drift(results, arm, 8).value == pytest.approx(ETA_SLOPE, abs=1e-3), arm
    with pytest.raises(NotMeasured, match="span 1×, the claim needs 8×"):
        tables.eta_drift(results, "umup_const_emb", 8)


def test_planted_differences_come_back(results) -> None:
    def emb(x: float, best: float) -> float:
        return CURVE_EMB * (x - best) ** 2

    # Of one seed's losses, whatever the seed: 0.01 nats a seed cancel.
    narrow = 0.02 + emb(4.0, 4.2) - emb(0.0, 0.2)
    found = tables.difference(results, "mup_tuned", "umup", 32)
    assert found.value == pytest.approx(narrow, abs=1e-6)
    assert found.hi - found.lo < 1e-6
    wide = 0.02 + emb(4.0, 4.2 - 1.2) - emb(0.0, 0.5)
    assert tables.difference(results, "mup_tuned", "umup", factor=8).value == pytest.approx(wide)
    default = 0.02 + emb(0.0, 4.2 - 1.2) - emb(0.0, 0.5)
    assert tables.difference(results, "mup", "umup").value == pytest.approx(default)
    constant = emb(1.5, 0.5) - emb(0.0, 0.5)  # carried from width 32: √8 above the rule's
    assert tables.difference(results, "umup_const_emb", "umup").value == pytest.approx(constant)
    table = tables.differences(results.runs, "sp_emb_lr", "mup")
    assert list(table["d_model"]) == [32, 64, 128, 256] and set(table["n"]) == {6}


def test_losses_are_held_out(results) -> None:
    changed = results.runs.assign(val_loss=results.runs["val_loss"] * 2)
    doubled = tables.difference(Results(changed, EMPTY.points), "mup", "umup")
    assert doubled.value == pytest.approx(2 * tables.difference(results, "mup", "umup").value)
    # The search saw the training loss, and what it carried does not change with the other.
    assert tables.tuned(changed) == tables.tuned(results.runs) == 4.0


def test_the_check_of_units_sees_a_difference(results) -> None:
    assert tables.same_rate(results).value < 1e-9
    off = results.runs.copy()
    off.loc[off["scheme"] == "mup_sqrt_emb", "val_loss"] += 0.25
    assert tables.same_rate(Results(off, EMPTY.points)).value == pytest.approx(0.25)


def test_a_curve_that_does_not_bracket_its_optimum_is_no_best_loss(results) -> None:
    low = results.runs[(results.runs["scheme"] != "sp_emb_lr") | (results.runs["lr"] <= 2.0**-6.4)]
    with pytest.raises(NotMeasured, match=r"kept at width 256: lowest at the largest"):
        tables.difference(Results(low, EMPTY.points), "sp_emb_lr", "mup")


def test_the_large_vocabulary_has_two_widths_and_the_arms_that_its_claims_name(rare) -> None:
    runs = rare.runs
    assert set(runs["vocab_size"]) == {4096} and set(runs["d_model"]) == {64, 128}
    assert set(tables.arms(rare)) == {"umup", "mup", "mup_tuned"}
    for arm, against in (("mup", "umup"), ("mup_tuned", "umup")):
        assert set(tables.differences(runs, arm, against)["n"]) == {6}
    said = words.numbers(rare, factor=2)
    assert said["largest"] == "128" and said["tuned"] == "4"
    assert float(said["shift_umup"].split()[0]) == pytest.approx(UMUP_SLOPE, abs=0.02)
    assert "not measured" in words.numbers(rare)["shift_umup"]  # over 8×


def test_claims_on_the_large_vocabulary_are_judged_by_its_records(results, rare) -> None:
    found = claims.evaluate(HERE, results, "cpu", {"bpe": rare})
    verdicts = {v.id: v.verdict for v in found if v.profile == "bpe"}
    assert verdicts == {
        "bpe-umup-vs-tuned-mup": "fails",
        "bpe-umup-vs-tuned-mup-narrow": "fails",
        "bpe-default-costs": "holds",
        "bpe-rule-transfers": "holds",
        "bpe-constant-rule-drifts": "holds",
        "bpe-mup-emb-transfers": "holds",
        "bpe-mup-sqrt-emb-transfers": "holds",
    }
    alone = {v.verdict for v in claims.evaluate(HERE, results, "cpu") if v.profile == "bpe"}
    assert alone == {"not measured"}


def test_every_claim_is_judged_on_all_and_none_without_the_widths(results) -> None:
    found = claims.evaluate(HERE, results, "cpu")
    verdicts = {v.id: v.verdict for v in found if v.profile == "cpu"}
    assert verdicts == {
        "umup-vs-tuned-mup": "fails",
        "umup-vs-tuned-mup-narrow": "fails",
        "rule-transfers": "holds",
        "constant-rule-drifts": "holds",
        "mup-emb-transfers": "fails",
        "mup-sqrt-emb-transfers": "holds",
        "constant-rule-costs": "holds",
        "sp-emb-still": "holds",
        "sp-emb-gap": "holds",
        "same-rate": "exact",
    }
    few = Results(results.runs[results.runs["d_model"] == 64], results.points)
    found = {v.id: v.verdict for v in claims.evaluate(HERE, few, "cpu")}
    assert {name for name, verdict in found.items() if verdict != "not measured"} == {"same-rate"}


# --- words and figures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "said"), [(0.0, "Yes, it is more"), (-0.03, "No, it is no more")]
)
def test_the_answer_says_whether_the_embedding_explains_the_advantage(results, level, said) -> None:
    # Tuned μP lies 0.02 and 0.035 above u-μP; lower all of μP, and less than 0.01 is left.
    shifted = results.runs.copy()
    shifted.loc[shifted["scheme"] == "mup", "val_loss"] += level
    answer = words.answer(Results(shifted, EMPTY.points))
    assert answer.startswith(f"{said}: ")
    assert (
        "at width 32: 2^4" in answer and "at width 32 by" in answer and "at width 256 by" in answer
    )


def test_an_answer_that_differs_between_widths_is_given_at_each(results) -> None:
    shifted = results.runs.copy()
    wide = (shifted["scheme"] == "mup") & (shifted["d_model"] == shifted["d_model"].max())
    shifted.loc[wide, "val_loss"] -= 0.05
    answer = words.answer(Results(shifted, EMPTY.points))
    assert answer.startswith("It is more at width 32 and no more at width 256: ")


def test_an_answer_is_undecided_where_an_interval_crosses_the_bound(results) -> None:
    noisy = results.runs.copy()
    sign = np.where(noisy["seed"] % 2, 1.0, -1.0) * (noisy["scheme"] == "mup")
    noisy["val_loss"] += 0.05 * sign
    assert words.answer(Results(noisy, EMPTY.points)).startswith("Undecided: ")


def test_tables_have_a_row_for_every_rule_arm_and_pair(results) -> None:
    assert words.emb_table(results).count("\n") == 1 + 4 * 4
    assert words.eta_table(results).count("\n") == 1 + 4 * 4 + 1  # the constant rule at one width
    assert words.pairs_table(results).count("\n") == 1 + 3 * 4 + 1


def test_takeaways_follow_the_verdicts(results) -> None:
    verdicts = claims.evaluate(HERE, results, "cpu")
    lines = words.takeaways(verdicts).splitlines()
    assert sum(line.startswith("- ") for line in lines) == len(words.TAKEAWAYS)
    link = "[mup-emb-transfers](claims.yaml)"
    assert f"- {words.TAKEAWAYS['mup-emb-transfers']['fails']} {link}" in lines
    open_ = words.takeaways([replace(v, verdict="inconclusive") for v in verdicts])
    assert open_.count("\n- Open (inconclusive): ") == open_.count("\n- ")
    assert set(words.TAKEAWAYS) <= {v.id for v in verdicts}


def starred(ax: Axes) -> list[float]:
    """Places of the fitted optima."""
    return [float(np.ravel(line.get_xdata())[0]) for line in ax.lines if line.get_marker() == "*"]


def test_figures_show_every_rule_arm_and_width(results) -> None:
    panels = figures.emb_curves(results).axes
    assert [ax.get_title() for ax in panels] == list(tables.RULE_TITLES.values())
    for ax, rule in zip(panels, tables.RULES, strict=True):
        stars = np.sort(starred(ax))
        best = sorted(o.x for o in tables.emb_optima(results.runs, rule).values())
        np.testing.assert_allclose(stars, best, atol=1e-9)
    (ax,) = figures.emb_optima(results).axes
    assert len(marks(ax)) == 4 * 4
    (ax,) = figures.differences(results).axes
    assert len(marks(ax)) == 3 * 4 + 1
    left, middle, right = figures.eta_curves(results).axes
    assert [len(starred(ax)) for ax in (left, middle, right)] == [2, 3, 4]


DRAW = ("emb_curves", "emb_optima", "eta_curves", "differences")


@pytest.mark.parametrize("name", DRAW)
def test_poor_data_still_draw(results, name) -> None:
    runs = results.runs
    lost = runs.assign(status="diverged", final_loss=math.nan, val_loss=math.nan)
    for poor in (
        EMPTY.runs,
        runs.iloc[:1],
        runs[runs["seed"] == 0],
        runs[runs["d_model"] == 64],
        lost,
    ):
        figure = getattr(figures, name)(Results(poor, EMPTY.points))
        assert any(ax.has_data() or ax.texts for ax in figure.axes)


def test_without_records_the_page_says_so() -> None:
    for say in (words.answer, words.what_ran, words.emb_table, words.eta_table, words.pairs_table):
        assert "not measured" in say(EMPTY).lower()
    assert set(words.numbers(EMPTY).values()) == {"not measured"}
    assert isinstance(EMPTY.runs, pd.DataFrame)
