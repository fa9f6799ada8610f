"""attention_scale: q·k of known correlation, exponents and optima planted in synthetic records."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from synthetic import EMPTY, drawn, played, points_of, rows_of
from umup import laws
from umup.config import PROBE_STATS, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims
from umup.lab.claims import NotMeasured
from umup.lab.design import Point
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.study import parameters
from umup.lab.tables import levelled

study = code("attention_scale").design
figures = code("attention_scale").figures
words = code("attention_scale").words
tables = code("attention_scale").results
PER_D = code("attention_scale").results.PER_D
PER_ROOT = code("attention_scale").results.PER_ROOT
QUANTITIES = code("attention_scale").results.QUANTITIES
measures = code("attention_scale").measures

HERE = Path(__file__).parents[2] / "experiments" / "attention_scale"
TEXT = cast(Dataset, SimpleNamespace(digest="d", vocab_size=256))
DESIGN = study.AttentionScale(
    width=128,
    d_head=16,
    d_heads=(8, 16, 32, 64, 128),
    eta_d_heads=(8, 128),
    steps=100,
    probe_steps=(0, 10, 100),
    alpha=(-2.0, 5.0),
    schemes=(PER_D, PER_ROOT, "mup"),
)

EXPONENTS = {0: 0.5, 10: 0.6, 100: 0.9}
ALPHA_SLOPE, ETA_SLOPE, ENTROPY_SLOPE = 0.1, 0.05, -0.2  # octaves, octaves, nats a doubling


def planted_loss(run: RunConfig) -> float:
    """A parabola in log₂ α in the unit of 1/d, whatever the scheme, and one in log₂ η."""
    u = math.log2(run.model.d_head / 8)
    x = math.log2(run.hps.alpha_attn_softmax)
    if "sqrt" in run.scheme:
        x += 0.5 * math.log2(run.model.d_head)
    eta = math.log2(run.hps.eta) - ETA_SLOPE * u
    noise = 1e-4 * math.sin(1000 * x + 100 * eta + 10 * u + run.seed)
    alpha = 0.02 * (x - 1.0 - ALPHA_SLOPE * u) ** 2
    return 2.0 + 0.01 * run.seed + alpha + 0.03 * eta**2 + noise


def reports(run: RunConfig) -> dict[str, Any]:
    """Two blocks whose pooled RMS of q·k is d^exponent, with means and multipliers to undo."""
    if not run.probe_steps:
        return {"probe_steps": [], "probe_tensors": [], "probe_values": []}
    d, u = run.model.d_head, math.log2(run.model.d_head)
    multiplier = {PER_D: 1 / d, PER_ROOT: d**-0.5, "mup": 4.0 / d}[run.scheme]  # √16 = 4
    names, values = [], []
    for step in run.probe_steps:
        raw = d ** (EXPONENTS[step] + 0.01 * (run.seed - 1))
        for layer, share in enumerate((0.6, 0.8)):  # 0.36 + 0.64 = 1: pooled, raw·√½
            seen = {
                "qk": (raw * share * multiplier, 0.25 * d * multiplier, 9.0 + layer),
                "cosine": (raw * share / d, -0.2, 1.0),
                "entropy": (9.0, 3.0 + ENTROPY_SLOPE * u + layer, 9.0),
            }
            for what, (rms, mean, largest) in seen.items():
                if step == run.probe_steps[0]:
                    names.append(f"blocks.{layer}.attn.scores/{what}")
                values.append([rms, mean, largest] + [0.0] * (len(PROBE_STATS) - 3))
        if step == run.probe_steps[0]:
            names.append("readout/weight")
        values.append([1.0] * len(PROBE_STATS))
    return {
        "probe_steps": list(run.probe_steps),
        "probe_tensors": names,
        "probe_values": np.ravel(values).tolist(),
    }


def seen(run: RunConfig) -> dict[str, Any]:
    return {"val_loss": planted_loss(run), **reports(run)}


def planted_layer(point: Point) -> dict[str, float]:
    d, rho = point.spec["d_head"], point.spec["correlation"]
    return {
        "self_rms": math.sqrt(rho**2 * d**2 + (1 + rho**2) * d),
        "earlier_rms": d**0.5,
        "logit_rms": 1.0 if point.spec["scheme"] == "sp" else 1.0 + 2.0**-30,
    }


@pytest.fixture(scope="module")
def runs() -> list[RunConfig]:
    return played(DESIGN, TEXT, planted_loss)


@pytest.fixture(scope="module")
def results(runs: list[RunConfig]) -> Results:
    return Results(rows_of(runs, seen), points_of(DESIGN.points(), planted_layer))


# The layer at initialization


def measured(**changes: Any) -> dict[str, float]:
    spec = {
        "scheme": PER_D,
        "d_head": 64,
        "base_d_head": 64,
        "width": 128,
        "seq_len": 16,
        "batch_size": 16,
        "correlation": 0.0,
        "seed": 0,
    }
    return measures.layer(**(spec | changes))


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_q_k_of_one_token_have_the_mean_and_rms_of_their_correlation(rho: float) -> None:
    got, d = measured(correlation=rho), 64
    # mean ρ·d; variance of d products of unit normals of correlation ρ: (1 + ρ²)·d
    assert got["self_mean"] == pytest.approx(rho * d, abs=1.5)
    assert got["self_rms"] == pytest.approx(math.sqrt(rho**2 * d**2 + (1 + rho**2) * d), rel=0.08)


def test_q_and_k_of_different_tokens_are_independent() -> None:
    got = measured()
    assert got["earlier_rms"] == pytest.approx(8.0, rel=0.08)  # √64
    assert got["earlier_cosine"] == pytest.approx(1 / 8, rel=0.08)


def test_equal_q_and_k_have_cosine_one() -> None:
    assert measured(correlation=1.0)["self_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_logits_carry_the_multiplier_of_the_scheme() -> None:
    sp, mup, other = (
        measured(scheme=s, d_head=d)["logit_rms"] for s, d in (("sp", 64), ("mup", 64), ("mup", 16))
    )
    assert sp == pytest.approx(1.0, rel=0.08)  # √d/√d
    assert mup == pytest.approx(sp, rel=1e-6)
    assert other == pytest.approx(2.0, rel=0.08)  # √64/16 · √16


# The design


def test_points_are_every_head_correlation_and_seed_and_the_base_of_sp_and_mup() -> None:
    specs = [point.spec for point in DESIGN.points()]
    assert len(specs) == 2 * 2 * 2 + 2
    assert [s["scheme"] for s in specs[-2:]] == ["sp", "mup"]
    assert {s["d_head"] for s in specs[-2:]} == {16}
    assert len({point.key() for point in DESIGN.points()}) == len(specs)


def test_probed_runs_are_the_defaults_and_count_as_points_of_the_searches() -> None:
    static = DESIGN.runs(TEXT)
    probed = [run for run in static if run.probe_steps]
    assert len(probed) == 5 * 3 * 3
    assert {run.hps.eta for run in probed if run.scheme == "mup"} == {2.0**-6.5}
    alpha = [run for run in static if run.hps.alpha_attn_softmax != 1.0]
    assert len(alpha) == 5 * 7  # octaves −2 … 5 without the default
    assert {run.scheme for run in alpha} == {PER_D}
    eta = [run for run in static if not run.probe_steps and run.hps.alpha_attn_softmax == 1.0]
    assert len(eta) == 2 * 2 * 4  # octaves −2 … 2 without the default, both divisions
    assert len(static) == len(set(static)) == 45 + 35 + 16


def test_heads_differ_and_the_width_stays(runs: list[RunConfig]) -> None:
    assert {run.model.n_heads for run in runs} == {1, 2, 4, 8, 16}
    assert {run.model.d_model for run in runs} == {128}


HEADS = replace(DESIGN, heads=2, heads_d_heads=(8, 16, 32, 64, 128))
BEND = 0.2  # what a fixed number of heads adds to the exponent


@pytest.fixture(scope="module")
def with_heads(runs: list[RunConfig]) -> Results:
    """Beside the runs of one width, those of two heads, whose q·k at the end bends away at d = 64,
    the size that both share."""
    more = [run for run in HEADS.runs(TEXT) if run.model.d_model != HEADS.width]

    def bent(run: RunConfig) -> dict[str, Any]:
        row = seen(run)
        if run.model.d_model == HEADS.width or not run.probe_steps:
            return row
        values = np.reshape(row["probe_values"], (len(run.probe_steps), -1, len(PROBE_STATS)))
        qk = [i for i, name in enumerate(row["probe_tensors"]) if name.endswith("/qk")]
        values[-1, qk, 0] *= (run.model.d_head / 64) ** BEND
        return row | {"probe_values": values.ravel().tolist()}

    return Results(rows_of([*runs, *more], bent), points_of(DESIGN.points(), planted_layer))


def test_a_fixed_number_of_heads_asks_for_widths_and_shares_the_run_of_the_studys_own(
    runs: list[RunConfig],
) -> None:
    static, keys = HEADS.runs(TEXT), {run.key() for run in DESIGN.runs(TEXT)}
    more = [run for run in static if run.key() not in keys]
    assert len(static) == len(keys) + len(more)
    assert len(more) == 4 * 3 * 3  # head sizes but 64, schemes, seeds
    assert {(r.model.d_head, r.model.d_model) for r in more} == {
        (d, 2 * d) for d in (8, 16, 32, 128)
    }
    assert all(run.probe_steps == DESIGN.probe_steps for run in more)
    shared = [run.key() for run in HEADS.fixed(TEXT) if run.model.n_heads == 2]
    assert len(shared) - len(set(shared)) == 3 * 3  # those of 64, asked for by both parts
    assert len(played(HEADS, TEXT, planted_loss)) == len(runs) + len(more)


def test_the_plan_refines_around_the_planted_optimum_and_ends(runs: list[RunConfig]) -> None:
    at = [r for r in runs if r.scheme == PER_D and r.model.d_head == 128 and r.hps.eta == 1.0]
    seeds: dict[float, set[int]] = {}
    for run in at:
        seeds.setdefault(math.log2(run.hps.alpha_attn_softmax), set()).add(run.seed)
    assert {x for x, s in seeds.items() if s == {0, 1, 2}} == {-1.0, 0.0, 1.0, 2.0, 3.0}  # 1 ± 2
    assert len(runs) == len({run.key() for run in runs})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"d_heads": (12,)}, "d_head"),
        ({"layer_d_heads": (7,)}, "d_head"),
        ({"d_heads": ()}, "d_heads"),
        ({"schemes": ("sp",)}, "schemes"),
        ({"probe_steps": (0, 101)}, "probe_steps"),
        ({"alpha": (1.0,)}, "alpha"),
        ({"eta": (2.0, 1.0)}, "eta"),
        ({"correlations": (1.5,)}, "correlations"),
        ({"heads": 0}, "heads"),
        ({"d_heads": (8, 16), "heads_d_heads": (64,)}, "heads_d_heads"),
    ],
)
def test_bad_parameters_are_errors_that_name_the_field(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(DESIGN, **changes)
    assert error.value.field == field


# Tables and quantities


def test_raw_products_are_the_logits_without_their_multiplier(results: Results) -> None:
    table = tables.heads(results.runs)
    assert len(table) == 45 * 3 * 2
    last = table[(table["step"] == 100) & (table["seed"] == 1) & (table["layer"] == 1)]
    for scheme in (PER_D, PER_ROOT, "mup"):
        at = last[last["scheme"] == scheme]
        np.testing.assert_allclose(at["qk"], 0.8 * at["d_head"] ** 0.9, rtol=1e-5)
        np.testing.assert_allclose(at["product"].astype(float), 0.25, rtol=1e-5)


def test_blocks_are_pooled_by_their_squares(results: Results) -> None:
    row = tables.pooled(results.runs).iloc[0]
    assert (row["d_head"], row["seed"], row["step"]) == (8, 0, 0)
    assert row["qk"] == pytest.approx(8**0.49 * math.sqrt(0.5), rel=1e-5)  # √((0.36 + 0.64)/2)
    assert row["cosine_mean"] == pytest.approx(0.2)
    assert row["logit_max"] == 10.0
    assert row["entropy"] == pytest.approx(3.0 + 3 * ENTROPY_SLOPE + 0.5)


@pytest.mark.parametrize(("at", "value"), [("start", 0.5), ("end", 0.9), ("change", 0.4)])
def test_planted_exponents_are_recovered(results: Results, at: str, value: float) -> None:
    got = tables.exponent(results, PER_ROOT, at, factor=16)
    assert got.value == pytest.approx(value, abs=1e-4)
    # Seeds at −0.01, 0, 0.01: t(2) · 0.01/√3; their change is one number.
    half = 4.3027 * 0.01 / math.sqrt(3) if at != "change" else 0.0
    assert got.hi - got.value == pytest.approx(half, abs=1e-4)


def test_the_cosine_has_the_exponent_less_one(results: Results) -> None:
    got = tables.exponent(results, "mup", "end", name="cosine")
    assert got.value == pytest.approx(-0.1, abs=1e-4)


def test_exponents_by_step_follow_the_plan(results: Results) -> None:
    table = tables.exponents(results.runs).set_index(["scheme", "step"])["exponent"]
    np.testing.assert_allclose(table[PER_D], list(EXPONENTS.values()), atol=1e-4)


def test_a_seed_that_lacks_a_head_size_is_left_out(results: Results) -> None:
    gap = (results.runs["seed"] == 2) & (results.runs["d_head"] == 8)
    status = results.runs["status"].mask(gap, "diverged")
    table = tables.exponents(results.runs.assign(status=status))
    assert set(table["n"]) == {2}
    end = table[(table["scheme"] == PER_D) & (table["step"] == 100)]["exponent"]
    assert end.item() == pytest.approx(0.895, abs=1e-4)


def test_runs_of_other_widths_enter_nothing_that_is_of_one_width(
    results: Results, with_heads: Results
) -> None:
    for name, args in ARGS.items():
        if name != "heads_difference":
            assert QUANTITIES[name](with_heads, **args) == QUANTITIES[name](results, **args), name
    for hp in ("alpha", "eta"):
        curves = (tables.curve_runs(r.runs, hp, PER_D) for r in (with_heads, results))
        pd.testing.assert_frame_equal(*curves)


def test_exponents_at_a_fixed_number_of_heads_are_the_planted_ones(with_heads: Results) -> None:
    args = {"at": "end", "smallest": 16, "factor": 8}
    for scheme in (PER_D, PER_ROOT, "mup"):
        fixed = tables.exponent(with_heads, scheme, **args)
        heads = tables.exponent(with_heads, scheme, fixed="heads", **args)
        assert fixed.value == pytest.approx(0.9, abs=1e-4)
        assert heads.value == pytest.approx(0.9 + BEND, abs=1e-4)
        assert heads.where == "head sizes 16 to 128, as many heads at each"
    apart = tables.heads_difference(with_heads, PER_D, 16, 8)
    assert (apart.value, apart.hi, apart.n) == pytest.approx((BEND, BEND, 3), abs=1e-4)
    begin = tables.exponent(with_heads, PER_D, "start", fixed="heads")
    assert begin.value == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(NotMeasured, match="span 8×"):
        tables.exponent(with_heads, PER_D, "end", fixed="heads", smallest=16, factor=16)


def test_the_range_of_a_comparison_begins_where_the_claims_say() -> None:
    listed = claims.load(HERE / "claims.yaml")
    assert {c.args["smallest"] for c in listed if "smallest" in c.args} == {tables.SMALLEST}


def test_local_slopes_are_those_between_neighbours(with_heads: Results) -> None:
    table = tables.probed(with_heads, "mup", "heads")
    slopes = tables.local_slopes(table[table["step"] == 100], "qk")
    np.testing.assert_allclose(list(slopes), [d * math.sqrt(2) for d in (8, 16, 32, 64)])
    np.testing.assert_allclose([s.value for s in slopes.values()], 0.9 + BEND, atol=1e-4)


def test_entropy_slope_is_in_nats_a_doubling(results: Results) -> None:
    assert tables.entropy_slope(results, PER_D).value == pytest.approx(ENTROPY_SLOPE, abs=1e-5)


def test_final_takes_the_largest_head_at_the_end(results: Results) -> None:
    assert tables.final(results, PER_D, "cosine_mean").value == pytest.approx(0.2)
    wanted = np.mean([128 ** (e - 1) for e in (0.89, 0.9, 0.91)]) * math.sqrt(0.5)
    assert tables.final(results, PER_D, "cosine").value == pytest.approx(wanted, rel=1e-4)


def test_layer_exponents_are_the_slopes_of_the_points(results: Results) -> None:
    independent = tables.layer_exponent(results, 0.0, "earlier", factor=4)
    assert independent.value == pytest.approx(0.5, abs=1e-9)
    aligned = tables.layer_exponent(results, 1.0, "self")
    wanted = math.log2(math.sqrt(64**2 + 2 * 64) / math.sqrt(16**2 + 2 * 16)) / 2
    assert aligned.value == pytest.approx(wanted, abs=1e-9)
    assert tables.base_logits(results).value == pytest.approx(2.0**-30 / math.log(2), rel=1e-3)


def test_planted_shifts_are_recovered_in_either_unit(results: Results) -> None:
    per_d = tables.optimum_shift(results, "alpha", PER_D, 16)
    per_root = tables.optimum_shift(results, "alpha", PER_ROOT, 16)
    assert per_d.value == pytest.approx(4 * ALPHA_SLOPE, abs=0.03)
    assert per_root.value == pytest.approx(per_d.value - 2.0, abs=1e-9)
    assert per_root.hi - per_root.lo == pytest.approx(per_d.hi - per_d.lo, abs=1e-9)
    eta = tables.optimum_shift(results, "eta", PER_ROOT, 16)
    assert eta.value == pytest.approx(4 * ETA_SLOPE, abs=0.03)


def test_alpha_optima_in_the_unit_of_the_root_are_divided_by_it(results: Results) -> None:
    per_d, per_root = (tables.optima(results.runs, "alpha", s) for s in (PER_D, PER_ROOT))
    assert per_d[64].x == pytest.approx(1.3, abs=0.03)
    assert per_root[64].x == pytest.approx(per_d[64].x - 3.0)  # √64 = 2³
    assert per_root[64].loss == per_d[64].loss


def test_levelled_curves_do_not_jump_where_a_seed_enters() -> None:
    curve = pd.DataFrame(
        {
            "x": [0.0, 1.0, 1.0, 2.0, 2.0],
            "seed": [0, 0, 1, 0, 1],
            "loss": [3.0, 2.0, 2.5, 1.0, 1.5],
        }
    )
    # seed 0 lies 0.25 below the mean of both, where both are
    np.testing.assert_allclose(levelled(curve, "x")["loss"], [3.25, 2.25, 2.25, 1.25, 1.25])
    alone = curve[curve["seed"] == 0]
    np.testing.assert_allclose(levelled(alone, "x")["loss"], alone["loss"])


@pytest.mark.parametrize(
    ("s", "wanted"),
    [
        ((0.5, 0.25, 0.75), (1.0, 0.5, 1.5)),  # |½ − 2| − |½| = 1; falls as s grows
        ((1.0, 0.9, 1.1), (0.0, -0.2, 0.2)),
        ((-0.5, -math.inf, 0.0), (2.0, 2.0, 2.0)),
        ((2.5, 2.0, math.inf), (-2.0, -2.0, -2.0)),
    ],
)
def test_extra_shift_compares_magnitudes(monkeypatch, s, wanted) -> None:
    monkeypatch.setattr(tables, "optimum_shift", lambda *a: laws.Interval(*s))
    got = tables.extra_shift(EMPTY, 16)
    assert (got.value, got.lo, got.hi) == pytest.approx(wanted)


def test_same_family_compares_equal_numbers(results: Results) -> None:
    assert tables.same_family(results).value == pytest.approx(0.0, abs=1e-12)
    root = results.runs["scheme"] == PER_ROOT
    off = results.runs["val_loss"] + 0.05 * (root & (results.runs["seed"] == 0))
    moved = Results(results.runs.assign(val_loss=off), results.points)
    assert tables.same_family(moved).value == pytest.approx(0.05)


def test_rule_difference_is_paired_at_the_largest_head(results: Results) -> None:
    got = tables.rule_difference(results)
    # optimum 1.4: α = 1 is at 0 and at 3.5 in the unit of 1/d
    assert got.value == pytest.approx(0.02 * (1.4**2 - 2.1**2), abs=5e-4)
    assert got.hi - got.lo < 2e-3  # the seeds' own 0.01 cancels
    small = tables.rule_difference(results, d_head=8)
    assert small.value == pytest.approx(0.02 * (1.0**2 - 0.5**2), abs=5e-4)


ARGS = {
    "exponent": {"scheme": PER_D, "at": "end"},
    "layer_exponent": {"correlation": 0.0, "pairs": "self"},
    "base_logits": {},
    "final": {"scheme": PER_D, "name": "cosine"},
    "entropy_slope": {"scheme": PER_D},
    "optimum_shift": {"hp": "alpha", "scheme": PER_D, "factor": 2},
    "largest_shift": {"hp": "alpha", "scheme": PER_D, "factor": 2},
    "extra_shift": {"factor": 2},
    "same_family": {},
    "rule_difference": {},
    "heads_difference": {"scheme": PER_D},
}


@pytest.mark.parametrize("name", QUANTITIES)
def test_what_is_absent_is_not_measured(name: str) -> None:
    with pytest.raises(NotMeasured):
        QUANTITIES[name](EMPTY, **ARGS[name])


@pytest.mark.parametrize("name", ["exponent", "layer_exponent", "entropy_slope", "optimum_shift"])
def test_too_small_a_span_is_not_measured(results: Results, name: str) -> None:
    with pytest.raises(NotMeasured, match="span"):
        QUANTITIES[name](results, **{**ARGS[name], "factor": 64})


def test_every_claim_is_judged_from_full_records(with_heads: Results) -> None:
    verdicts = claims.evaluate(HERE, with_heads, "cpu")
    missing = {v.id: v.note for v in verdicts if v.verdict == "not measured"}
    # these synthetic layers span 4×
    assert set(missing) == {"layer-independent", "layer-aligned"}
    said = {v.id: v.verdict for v in verdicts}
    assert said["trained-exponent"] == "holds"
    assert said["alpha-moves-per-root"] == "holds"
    assert said["entropy-still-per-d"] == "fails"
    assert said["trained-exponent-heads-root"] == "holds"
    assert said["heads-no-matter"] == "fails"


def test_profiles_are_designs_whose_plan_knows_its_size() -> None:
    for profile in ("smoke", "cpu", "h100"):
        values = parameters(HERE, profile)
        design = study.AttentionScale.from_dict(values)
        assert not [s for s in design.probe_steps if s % design.chunk_steps], "one program serves"
    cpu = parameters(HERE, "cpu")
    assert 150 < len(played(study.AttentionScale.from_dict(cpu), TEXT, planted_loss)) < 280


# Words and figures


def test_texts_say_the_planted_numbers(results: Results) -> None:
    said = words.numbers(results, 1)
    assert said[f"start_{PER_D}"] == "0.5"
    assert said["shift_alpha_root"] == "−1.6"
    assert said["end_mup_sqrt_attention"] == words.ABSENT
    assert "exponent 0.5 at initialization and 0.9 at the end" in words.answer(results, 1)
    assert words.growth_table(results, 1).count("\n") == 4
    assert "| u-μP, 1/√d | 64 |" in words.end_table(results, 1)
    assert words.optima_table(results, 1).count("\n") == 1 + 5 * 2 + 2 * 2
    assert "1 layers" not in words.what_ran(results)


def test_texts_say_what_a_fixed_number_of_heads_changes(
    results: Results, with_heads: Results
) -> None:
    said = words.numbers(with_heads, 1)
    assert (said[f"width_{PER_D}"], said[f"heads_{PER_D}"]) == ("0.9", "1.1")
    assert said["local_heads"] == "1.10, 1.10, 1.10, 1.10"
    assert said["heads_difference"] == "0.2"
    assert "0.9 at fixed width and 1.1 with a fixed" in words.answer(with_heads, 1)
    assert "Over 16× in head size" in words.answer(with_heads, 1)
    assert "2 heads of 8, 16, 32, 64, 128 (width 2 · size)" in words.what_ran(with_heads)
    assert words.readings_table(with_heads, 1).count("\n") == 1 + 3
    assert words.readings_table(results, 1).count(words.ABSENT) == 3 * 2
    assert "· size" not in words.what_ran(results)


FIGURES = {
    "exponents": figures.exponents,
    "readings": figures.readings,
    "correlations": figures.correlations,
    "layer": figures.layer,
    "entropy": figures.entropy,
    "drift": figures.drift,
    "alpha": lambda r: figures.curves(r, "alpha"),
    "eta": lambda r: figures.curves(r, "eta"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_with_labels_and_say_when_there_is_nothing(
    results: Results, name: str
) -> None:
    figure = FIGURES[name](results)
    figure.draw_without_rendering()
    assert all(ax.get_xlabel() for ax in figure.axes)
    assert figure.axes[0].get_ylabel()
    nothing = FIGURES[name](EMPTY)
    assert not nothing.axes[0].get_xlabel()


def test_the_alpha_panels_show_one_curve_in_two_units(results: Results) -> None:
    left, right = figures.curves(results, "alpha").axes
    for d_head, *panels in zip(DESIGN.d_heads, left.containers, right.containers, strict=False):
        bars = [cast(ErrorbarContainer, panel).lines[0] for panel in panels]
        x, y = (np.asarray(line.get_xdata(), float) for line in bars)
        np.testing.assert_allclose(x - y, 0.5 * math.log2(d_head))


def test_diverged_runs_are_crosses_not_losses(results: Results) -> None:
    last = results.runs["lr"] == 4.0
    broken = results.runs.assign(
        status=results.runs["status"].mask(last, "diverged"),
        val_loss=results.runs["val_loss"].mask(last),
    )
    ax = figures.curves(Results(broken, results.points), "eta").axes[0]
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert {float(x) for line in crosses for x in np.asarray(line.get_xdata())} == {2.0}


def means(table: pd.DataFrame, by: str, name: str) -> pd.DataFrame:
    return table.groupby(by)[name].mean().reset_index()


def test_exponents_are_drawn_beside_what_they_are_fitted_to(results: Results) -> None:
    left, right = figures.exponents(results).axes
    table = tables.exponents(results.runs)
    lines = drawn(left)
    assert list(lines) == [tables.TITLES[s] for s in (PER_D, PER_ROOT, "mup")]
    for scheme, group in table.groupby("scheme"):
        np.testing.assert_allclose(
            lines[tables.TITLES[scheme]], group[["step", "exponent"]].astype(float)
        )
    pooled = tables.pooled(results.runs).query("scheme == @PER_D")
    assert list(drawn(right)) == ["step 0", "step 10", "step 100"]
    for label, points in drawn(right).items():
        at = pooled[pooled["step"] == int(label.removeprefix("step "))]
        np.testing.assert_allclose(points, means(at, "d_head", "qk"))


def test_local_exponents_of_either_reading_are_drawn(with_heads: Results) -> None:
    axes = figures.readings(with_heads).axes
    assert [ax.get_title() for ax in axes] == [tables.TITLES[s] for s in (PER_D, PER_ROOT, "mup")]
    for ax in axes:
        width, heads = drawn(ax).values()
        np.testing.assert_allclose(width[:, 1], 0.9, atol=1e-4)
        np.testing.assert_allclose(heads[:, 1], 0.9 + BEND, atol=1e-4)


def test_cosines_and_entropies_are_those_of_the_table(results: Results) -> None:
    pooled = tables.pooled(results.runs)
    own = pooled[pooled["scheme"] == PER_D]
    left, right = figures.correlations(results).axes
    at = own[own["step"] == 100]
    np.testing.assert_allclose(drawn(left)["step 100"], means(at, "d_head", "cosine"))
    for d_head in DESIGN.d_heads:
        at = own[own["d_head"] == d_head]
        np.testing.assert_allclose(drawn(right)[str(d_head)], means(at, "step", "cosine"))
    axes = figures.entropy(results).axes
    assert [ax.get_title() for ax in axes] == [tables.TITLES[s] for s in DESIGN.schemes]
    for ax, scheme in zip(axes, DESIGN.schemes, strict=True):
        at = pooled[(pooled["scheme"] == scheme) & (pooled["d_head"] == 128)]
        np.testing.assert_allclose(drawn(ax)["128"], means(at, "step", "entropy"))


def test_the_layer_and_the_searches_are_drawn_as_measured(results: Results) -> None:
    layers = results.table("layer")
    layers = layers[layers["scheme"] == PER_D]
    (ax,) = figures.layer(results).axes
    for rho, group in layers.groupby("correlation"):
        np.testing.assert_allclose(drawn(ax)[f"ρ = {rho:g}"], means(group, "d_head", "self_rms"))
    for hp in ("alpha", "eta"):
        for ax, scheme in zip(figures.curves(results, hp).axes, (PER_D, PER_ROOT), strict=True):
            curves = tables.curve_runs(results.runs, hp, scheme)
            for d_head, group in curves.groupby("d_head"):
                mean = means(levelled(group, "x"), "x", "loss")
                np.testing.assert_allclose(drawn(ax)[str(d_head)], mean.astype(float))


def test_drifts_start_at_the_smallest_head(results: Results) -> None:
    for ax, hp in zip(figures.drift(results).axes, ("alpha", "eta"), strict=True):
        for scheme in (PER_D, PER_ROOT):
            x = np.array([o.x for o in tables.optima(results.runs, hp, scheme).values()])
            np.testing.assert_allclose(drawn(ax)[tables.TITLES[scheme]][:, 1], x - x[0])
