"""stability: losses, logits and drills planted in synthetic records, and the design's plan."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from synthetic import EMPTY, drawn, marks, played, points_of, rows_of
from umup.config import PROBE_STATS, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, folders, plots
from umup.lab.claims import NotMeasured
from umup.lab.design import Point
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.study import missing_runs, parameters

study = code("stability").design
drills = code("stability").drills
figures = code("stability").figures
words = code("stability").words
tables = code("stability").results

HERE = Path(__file__).parents[2] / "experiments" / "stability"
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
DESIGN = study.Stability(steps=64, probe_steps=(64,))
BEST = {"sp": -7, "mup": -6, "umup": 1}
TIMES = {"z_loss": (1.0, 1.02, 1.1), "qk_norm": (1.1, 1.2, 1.3), "clip": (0.9, 1.01, 1.05)}


def price(run: RunConfig) -> float:
    """Nats that QK-norm or the z-loss alone costs."""
    kind = {(True, False): 0.04, (False, True): 0.005}
    return kind.get((run.model.qk_norm, bool(run.model.z_loss)), 0.0)


def planted_loss(run: RunConfig) -> float:
    """0.05 nats per squared octave from the best η, with QK-norm a quarter of that."""
    x = math.log2(run.hps.eta) - BEST[run.scheme]
    return 2.0 + 0.01 * run.seed + price(run) + (0.0125 if run.model.qk_norm else 0.05) * x**2


def logit(run: RunConfig) -> float:
    return 3.9 if run.model.qk_norm else 10.0 * 4.0 ** (math.log2(run.hps.eta) - BEST[run.scheme])


def seen(run: RunConfig) -> dict:
    rest = [0.0] * (len(PROBE_STATS) - 3)
    return {
        "val_loss": planted_loss(run),
        "probe_steps": [64],
        "probe_tensors": ["blocks.0.attn.scores/qk", "blocks.1.attn.scores/qk", "logits/value"],
        "probe_values": np.ravel(
            [
                [1.0, 0.0, 0.5 * logit(run), *rest],
                [1.0, 0.0, logit(run), *rest],
                [2.0 if run.model.z_loss else 4.0, 0.0, 9.0, *rest],
            ]
        ).tolist(),
    }


def planted_point(point: Point) -> dict:
    what, spec = point.what, point.spec
    if what == "step_time":
        return dict(zip(("ratio_lo", "ratio", "ratio_hi"), TIMES[spec["defence"]], strict=True))
    if what == "clipped":
        held = spec["norm"] == "held"
        gap = (0.1 if held else 1e-4) * (spec["scheme"] == "mup_intermediate")
        return {
            "share": 1.0 if held else 0.05,
            "unscaled": 0.5,
            "held": 512.0,
            "losses": [2.0 + gap] * 8,
        }
    lost = {"clean": 0.0, "poison": 0.1, "jump": 1.0, "nan": math.nan}[spec["kind"]]
    healed = spec["recover"]
    return {
        "verdict": "done",
        "val_loss": 2.0
        + 0.1 * spec["seed"]
        + (0.001 if healed and spec["kind"] != "clean" else 0.0 if healed else lost),
        "loss": 2.0,
        "interventions": int(healed and spec["kind"] != "clean"),
        "nonfinite": 0,
        "steps_lost": 50,
        "onset": 200,
        "detected": 203,
        "curve": [3.0, 2.5, 2.0],
    }


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(rows_of(DESIGN.runs(TEXT), seen), points_of(DESIGN.points(), planted_point))


def test_the_design_asks_for_every_arm_at_every_point_once() -> None:
    runs = DESIGN.runs(TEXT)
    # 6 defences of 3 schemes; α of 4 and 16, 1 and 16 beside the defaults; 3 + 2 deep arms
    assert len(runs) == len({run.key() for run in runs}) == (18 + 4 + 5) * 7 * 3
    assert {run.hps.alpha_attn_softmax for run in runs if run.model.qk_norm} == {1.0, 4.0, 16.0}
    assert not [r for r in runs if r.scheme == "umup" and r.model.depth_scaled_init]
    assert {r.model.n_layers for r in runs} == {2, 8}


@pytest.mark.parametrize(
    ("best", "extend", "added"),
    [
        (2.0, 4, []),  # two η lie below it
        (1.0, 4, [-1.0]),
        (0.0, 4, [-1.0, -2.0]),
        (-1.0, 4, [-1.0, -2.0, -3.0]),
        (-9.0, 4, [-1.0, -2.0, -3.0, -4.0]),  # as far as it may
        (-9.0, 0, []),
    ],
)
def test_a_grid_grows_downwards_until_two_eta_lie_below_the_best(
    best: float, extend: int, added: list[float]
) -> None:
    design = replace(DESIGN, schemes=("umup",), extend=extend)

    def loss(run: RunConfig) -> float:  # the clipped arm's best alone is elsewhere
        return 2.0 + 0.05 * (math.log2(run.hps.eta) - (best if run.optim.clip else 3.0)) ** 2

    first = design.runs(TEXT)
    more = [run for run in played(design, TEXT, loss) if run not in set(first)]
    assert [math.log2(run.hps.eta) for run in more] == [x for x in added for _ in range(3)]
    assert [run.seed for run in more] == [0, 1, 2] * len(added)
    assert all(run.optim.clip == design.clip for run in more)
    assert {run.key() for run in DESIGN.runs(TEXT)} >= {run.key() for run in first}


def test_an_arm_grows_once_its_first_grid_is_there_and_its_diverged_runs_count_as_infinite() -> (
    None
):
    design = replace(
        DESIGN, schemes=("umup",), defences=("none",), caps=(), deep_layers=0, extend=4
    )
    rows = rows_of(design.runs(TEXT), lambda run: {"val_loss": math.log2(run.hps.eta)})
    assert {math.log2(r.hps.eta) for r in design.pending(rows, TEXT)} == {-1.0}
    assert design.pending(rows.iloc[1:], TEXT) == design.runs(TEXT)[:1]
    broken = (rows["lr"] < 4.0) & (rows["seed"] == 1)  # η of 1 and 2 at one seed; the best is 4
    assert design.pending(rows.assign(final_loss=rows["final_loss"].mask(broken)), TEXT) == []


def test_the_time_left_is_that_of_the_growth_which_the_records_ask_for() -> None:
    design = replace(DESIGN, schemes=("umup",), extend=4)
    rows = rows_of(design.runs(TEXT), lambda run: {"val_loss": 2.0 + math.log2(run.hps.eta)})
    arms = len(design.arms()) - 1  # one is two: QK-norm at its default α and at that of a cap
    assert len(missing_runs(design, rows, TEXT)) == (arms - 1) * 2 * 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"defences": ("clip",)}, "defences"),
        ({"schemes": ()}, "schemes"),
        ({"deep_layers": 2}, "deep_layers"),
        ({"probe_steps": (65,)}, "probe_steps"),
        ({"drill_width": 24}, "d_head"),
        ({"drill_steps": 100}, "drill_steps"),
        ({"caps": (1.5,)}, "caps"),
    ],
)
def test_bad_parameters_are_errors_that_name_the_field(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(DESIGN, **changes)
    assert error.value.field == field


def test_defences_and_bounds_are_read_off_the_specification(results: Results) -> None:
    table = tables.curves(results.runs)
    grid = 7 * 3  # learning rates and seeds
    arms = {
        "none": 3 + 2 + 3,
        "z_loss": 3,
        "qk_norm": 3 + 2,
        "both": 3,
        "clip": 3,
        "no_warmup": 3,
        "depth_init": 2,
    }
    assert table["defence"].value_counts().to_dict() == {d: n * grid for d, n in arms.items()}
    assert (table[table["defence"] == "depth_init"]["part"] == "deep").all()
    at = table[(table["defence"] == "qk_norm") & (table["scheme"] == "umup")]
    assert set(at["cap"]) == {1.0, 4.0, 16.0}
    assert set(table[table["scheme"] != "umup"]["cap"]) == {4.0}  # √16
    assert set(tables.arm(results, "umup", "qk_norm")["cap"]) == {4.0}
    assert set(tables.arm(results, "umup", "none")["cap"]) == {1.0}


def test_the_largest_stable_lr_is_where_the_curve_crosses(results: Results) -> None:
    # 0.2 nats above the lowest: 2 octaves above the best; at a quarter of the curvature, 4
    np.testing.assert_allclose(tables.stable_lr(tables.arm(results, "umup", "none")), 3.0)
    assert tables.stable_gain(results, "mup", "qk_norm").value == pytest.approx(2.0)
    assert tables.largest(results, "sp", "none").value == pytest.approx(2.0)


def test_a_diverged_run_counts_as_a_uniform_guess(results: Results) -> None:
    high = (results.runs["lr"] >= 8.0) & (results.runs["scheme"] == "umup")
    runs = results.runs.assign(
        status=results.runs["status"].mask(high, "diverged"),
        val_loss=results.runs["val_loss"].mask(high),
    )
    table = tables.arm(Results(runs, results.points), "umup", "none")
    assert table["loss"].max() == pytest.approx(math.log(256))
    # 0.15 of the margin is left at x = 2, and the next point is ln 256
    wanted = 2.0 + 0.15 / (math.log(256) - 2.05 - 0.01 * np.arange(3))
    np.testing.assert_allclose(tables.stable_lr(table), wanted, rtol=1e-6)


def test_prices_and_sensitivities_are_the_planted_ones(results: Results) -> None:
    price = tables.price(results, "umup", "qk_norm")
    assert (price.value, price.hi - price.lo) == pytest.approx((0.04, 0.0), abs=1e-9)
    # 0, 0.05, 0.2, 0.45 nats at 0 to 3 octaves from the best up, linear in between
    assert tables.sensitivity(results, "umup").value == pytest.approx((0.05 + 0.2 + 0.225) / 3)


def test_sensitivity_starts_at_the_fitted_best_eta_wherever_the_grid_lies(results: Results) -> None:
    arm = tables.arm(results, "umup", "none")
    shifted = arm.assign(x=arm["x"] + 0.3)
    at = arm.assign(loss=2.0 + 0.05 * (arm["x"] - 1.3) ** 2)  # the best η between two points
    assert tables.sensitivities(shifted) == pytest.approx(tables.sensitivities(arm))
    assert tables.sensitivities(at) == pytest.approx(tables.sensitivities(arm), abs=0.011)


def test_an_open_best_eta_has_no_sensitivity(results: Results) -> None:
    arm = tables.arm(results, "umup", "none")
    with pytest.raises(NotMeasured, match="best η is open"):
        tables.sensitivities(arm[arm["x"] >= 1.0])
    with pytest.raises(NotMeasured, match="3 octaves above"):
        tables.sensitivities(arm[arm["x"] <= 3.0])


def test_logits_grow_by_the_planted_factor(results: Results) -> None:
    assert tables.growth(results, "mup", "logit_max").value == pytest.approx(8.0)
    assert tables.logit_bound(results).value == pytest.approx(3.9)  # u-μP at α = 1
    assert tables.held_back(results, "umup", "out_rms", "z_loss", 4).value == pytest.approx(-1.0)


def test_points_are_read_as_planted(results: Results) -> None:
    assert tables.twins(results, "unscaled").value == pytest.approx(-4.0, abs=1e-3)
    assert tables.twins(results, "held").value == pytest.approx(-1.0, abs=1e-3)
    assert tables.norm_ratio(results, "umup").value == pytest.approx(10.0)
    assert tables.active(results, "umup", "held").value == 1.0
    timed = tables.step_time(results, "clip")  # of the right row, its ends in their order
    assert (timed.lo, timed.value, timed.hi) == TIMES["clip"]
    assert tables.drilled(results, "jump", False).value == pytest.approx(1.0)
    assert tables.drilled(results, "poison", True).value == pytest.approx(0.001)
    uniform = math.log(256) - 2.1  # the mean clean run
    assert tables.drilled(results, "nan", False).value == pytest.approx(uniform)
    assert tables.false_alarms(results).value == 0.0


def test_an_unfinished_sweep_is_not_measured(results: Results) -> None:
    with pytest.raises(NotMeasured, match="not finished"):
        tables.arm(Results(results.runs.iloc[1:], results.points), "sp", "none")


def test_every_claim_is_judged_from_full_records_and_none_from_empty(results: Results) -> None:
    verdicts = claims.evaluate(HERE, results, "cpu")
    assert not [v.id for v in verdicts if v.verdict == "not measured"]
    said = {v.id: v.verdict for v in verdicts}
    assert said["qk-widens-umup"] == "exact"  # planted without noise
    assert said["drill-jump"] == "exact"
    assert said["qk-price-umup"] == said["no-warmup-sp"] == "fails"
    assert {v.verdict for v in claims.evaluate(HERE, EMPTY, "cpu")} == {"not measured"}


def test_profiles_are_designs() -> None:
    for profile in ("smoke", "cpu", "h100"):
        values = parameters(HERE, profile)
        assert study.Stability.from_dict(values).points()


def test_texts_say_the_planted_numbers(results: Results) -> None:
    assert words.numbers(results)["gain_qk_norm_mup"] == "2.00 [2.00, 2.00]"
    assert "of μP by 2.0," in words.answer(results, 1)
    assert words.defences_table(results).count("\n") == 1 + 18
    assert words.drills_table(results).count("\n") == 1 + 8
    assert "no drills" in words.drills_table(EMPTY)


@pytest.mark.parametrize("name", ["curves", "logits", "gains", "caps", "deep", "clips", "drills"])
def test_figures_draw_with_labels_and_say_when_there_is_nothing(
    results: Results, name: str
) -> None:
    figure = getattr(figures, name)(results)
    figure.draw_without_rendering()
    assert all(ax.get_xlabel() for ax in figure.axes)
    assert not getattr(figures, name)(EMPTY).axes[0].get_xlabel()


def test_poison_is_in_the_windows_of_its_batches_alone() -> None:
    tokens = np.zeros(4 * 50 + 1, np.uint16)
    clean = Dataset("c", "t", 256, tokens, tokens, 1.0, "d", "e")
    bad = drills.poisoned(clean, 3, range(2, 4), batch_size=3, seq_len=4).train
    touched = {i // 4 for i in np.flatnonzero(bad[:-1])}
    hit = sum(np.any(bad[4 * w + 1 : 4 * w + 4]) for w in range(50))
    assert hit == 6  # two batches of three windows
    assert len(touched) <= 12
    assert not tokens.any()


def over_lr(table: pd.DataFrame, name: str = "loss") -> pd.DataFrame:
    """Means over seeds against log₂ η, geometric ones but of losses."""
    values = table[name] if name == "loss" else np.log2(table[name].astype(float))
    mean = values.groupby(table["x"]).mean()
    return pd.DataFrame({"x": mean.index, "y": mean if name == "loss" else 2.0**mean})


def test_curves_of_every_defence_are_drawn(results: Results) -> None:
    axes = figures.curves(results).axes
    assert [ax.get_title() for ax in axes] == ["SP", "μP", "u-μP"]
    for ax, scheme in zip(axes, tables.SCHEMES, strict=True):
        for defence, title in tables.DEFENCES.items():
            table = tables.arm(results, scheme, defence)
            np.testing.assert_allclose(drawn(ax)[title], over_lr(table))
    deep = drawn(figures.deep(results).axes[0])
    for scheme, label in (("sp", "SP"), ("mup", "μP, depth-scaled init")):
        arm = "depth_init" if "," in label else "none"
        table = tables.arm(results, scheme, arm, "deep")
        best = tables.best(tables.arm(results, scheme, "none", "deep"))
        np.testing.assert_allclose(deep[label], over_lr(table.assign(x=table["x"] - best)))
    _, right = figures.caps(results).axes
    for cap in (1.0, 4.0, 16.0):
        table = tables.arm(results, "umup", "qk_norm", cap=cap)
        np.testing.assert_allclose(drawn(right)[f"{cap:g}"], over_lr(table))


def test_logits_are_drawn_from_the_best_learning_rate(results: Results) -> None:
    for ax, name in zip(figures.logits(results).axes, ("logit_max", "out_rms"), strict=True):
        table = tables.arm(results, "mup", "none")
        shifted = table.assign(x=table["x"] - tables.best(table))
        np.testing.assert_allclose(drawn(ax)["μP"], over_lr(shifted, name))


def test_gains_and_prices_are_those_of_the_claims(results: Results) -> None:
    rows = [d for d in tables.DEFENCES if d != "none"]
    panels = (tables.stable_gain, tables.price)
    for ax, quantity in zip(figures.gains(results).axes, panels, strict=True):
        wanted = [quantity(results, s, d).value for s in tables.SCHEMES for d in rows]
        np.testing.assert_allclose(marks(ax)[:, 0], wanted)
        assert [round(y) for y in marks(ax)[:, 1]] == [*range(len(rows))] * 3
        places = dict(zip(((s, d) for s in tables.SCHEMES for d in rows), marks(ax)[:, 1]))
        grey = [line.get_xydata() for line in ax.lines if line.get_color() == plots.SHADE]
        judged = [
            c
            for c in claims.load(folders.folder("stability") / "claims.yaml")
            if c.quantity == quantity.__name__
        ]
        judged = [claim for claim in judged if claim.args.get("part") is None]
        assert len(grey) == len(judged) > 2
        for line, claim in zip(grey, judged, strict=True):
            ends = np.clip([claim.bound_min, claim.bound_max], *ax.get_xlim())
            np.testing.assert_allclose(line[:, 0], ends)
            place = places[claim.args["scheme"], claim.args["defence"]]
            np.testing.assert_allclose(line[:, 1], place)


def test_clips_show_how_far_twins_part_and_how_often_they_are_clipped(results: Results) -> None:
    left, right = figures.clips(results).axes
    for norm, gap in (("unscaled", 1e-4), ("held", 0.1)):
        assert drawn(left)[f"{norm} norm"][:, 1] == pytest.approx([gap] * 8, abs=1e-8)
    assert {round(share, 9) for share in marks(right)[:, 1]} == {0.05, 1.0}


def test_drills_show_the_curves_of_one_seed(results: Results) -> None:
    axes = figures.drills(results).axes
    assert [ax.get_title() for ax in axes] == list(figures.DRILLS.values())
    for ax in axes:
        assert list(drawn(ax)) == ["left alone", "healed", "clean"]
        assert drawn(ax)["healed"][:, 1].tolist() == [3.0, 2.5, 2.0]
