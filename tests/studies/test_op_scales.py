"""The study of the ops' scales: measures against limits that are known, words and figures against
made-up points."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from synthetic import EMPTY, drawn, marks, points_of
from umup.errors import ConfigError
from umup.lab import claims, study
from umup.lab.claims import NotMeasured
from umup.lab.design import Point
from umup.lab.folders import code
from umup.lab.records import Results

op_scales = code("op_scales").design
op_scales_figures = code("op_scales").figures
measures = code("op_scales").measures
words = code("op_scales").words
theory = code("op_scales").theory
OpScales = code("op_scales").design.OpScales
tables = code("op_scales").results

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "op_scales"
ONCE = {"seeds": 2, "dtype": "float32"}


def mean(result: dict, field: str) -> float:
    return float(np.mean(result[field]))


# Theory.


def test_harmonic_numbers_and_the_gradient_of_flat_attention() -> None:
    assert theory.harmonic(4) == pytest.approx(25 / 12)
    assert theory.qk_gradient(1) == 0.0
    # T = 2: row 1 has no gradient, row 2 has d·(2−1)/2²; over 2 rows, over σ² = ln 2 / 2
    assert theory.qk_gradient(2) == pytest.approx(math.sqrt(0.25 / math.log(2)))


@pytest.mark.parametrize(("alpha", "limit"), [(1e-4, 0.5), (1e4, math.sqrt(0.5))])
def test_gated_silu_integrals_meet_the_limits(alpha: float, limit: float) -> None:
    scales = theory.gated_silu_scales(alpha)
    assert scales["out"] == scales["dx"] == pytest.approx(limit, rel=1e-3)
    assert scales["dgate"] == pytest.approx(limit, rel=2e-3)


def test_the_derived_scales_meet_their_limits() -> None:
    assert theory.derived_scale(1, 3.0) == pytest.approx(1.0)
    assert theory.derived_scale(9, 0.0) == pytest.approx(math.sqrt(theory.harmonic(9) / 9))
    assert theory.derived_scale(9, 50.0) == pytest.approx(1.0)  # one-hot
    assert theory.derived_softmax(7, 1e-6) == pytest.approx(1.0)
    assert theory.derived_softmax(7, 9.0) == pytest.approx(math.sqrt(7))
    rng = np.random.default_rng(0)
    weights = np.exp(0.5 * rng.normal(size=(20_000, 64)))
    weights /= weights.sum(axis=1, keepdims=True)
    assert theory.derived_softmax(64, 0.5) == pytest.approx(
        64 * math.sqrt((weights**2).mean()), rel=5e-3
    )


def test_correlated_values_pass_whole() -> None:
    assert theory.correlated(0.0, 1.07, 0.25) == pytest.approx(1.07)
    assert theory.correlated(1.0, 1.07, 0.25) == pytest.approx(4.0)


# Measures.


ATTENTION = {"seq_len": 12, "d_head": 16, "sequences": 2048, **ONCE}  # one shape, one compile


def test_one_position_is_the_value_itself() -> None:
    found = measures.attention(seq_len=1, d_head=16, alpha=1.0, sequences=2048, **ONCE)
    assert found["model"] == 1.0
    assert found["positions"] == [1]
    assert mean(found, "out") == pytest.approx(1.0, abs=0.01)
    assert found["dq"] == found["dk"] == [0.0, 0.0]


def test_flat_attention_averages_and_its_gradients_follow_the_formula() -> None:
    alpha, seq_len, d_head = 1e-3, ATTENTION["seq_len"], ATTENTION["d_head"]
    found = measures.attention(alpha=alpha, **ATTENTION)
    sigma = math.sqrt(theory.harmonic(seq_len) / seq_len)
    assert found["model"] == pytest.approx(math.sqrt(math.log(seq_len) / seq_len), rel=1e-3)
    for field in ("out", "dv"):
        assert mean(found, field) * found["model"] == pytest.approx(sigma, rel=0.015)
    unit = alpha / math.sqrt(d_head)
    for field in ("dq", "dk"):
        assert mean(found, field) / unit == pytest.approx(theory.qk_gradient(seq_len), rel=0.015)
    assert found["positions"] == [1, 2, 4, 8]
    rows = np.array(found["by_position"]) * found["model"]
    np.testing.assert_allclose(rows, [1, 2**-0.5, 4**-0.5, 8**-0.5], rtol=0.02)


def test_sharp_attention_passes_one_value() -> None:
    found = measures.attention(alpha=1e4, **ATTENTION)
    assert found["model"] == pytest.approx(1.0, rel=1e-3)
    assert mean(found, "out") == pytest.approx(1.0, rel=0.02)


def test_values_that_agree_leave_attention_undiminished() -> None:
    found = measures.attention(alpha=1.0, correlation=1.0, **ATTENTION)
    assert mean(found, "out") * found["model"] == pytest.approx(1.0, rel=0.02)
    half = measures.attention(alpha=1.0, correlation=0.5, **ATTENTION)
    alone = mean(measures.attention(alpha=1.0, **ATTENTION), "out")
    expected = theory.correlated(0.5, alone, found["model"])
    assert mean(half, "out") == pytest.approx(expected, rel=0.02)


def test_blocks_only_split_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measures.attention(alpha=2.0, **ATTENTION)
    monkeypatch.setattr(measures, "BLOCK", 12**2 * 500)  # 5 blocks of 500
    blocks = measures.attention(alpha=2.0, **ATTENTION)
    for field in ("out", "dq", "dk", "dv"):
        assert mean(blocks, field) == pytest.approx(mean(whole, field), rel=0.02)


@pytest.mark.parametrize("inputs", sorted(measures.INPUTS))
def test_inputs_have_mean_0_and_variance_1(inputs: str) -> None:
    import jax

    x = np.asarray(measures.INPUTS[inputs](jax.random.key(0), (400_000,)))
    assert abs(x.mean()) < 0.01
    assert x.var() == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 8.0])
def test_gated_silu_agrees_with_the_integrals(alpha: float) -> None:
    found = measures.gated_silu(alpha=alpha, elements=2**18, **ONCE)
    for field, exact in theory.gated_silu_scales(alpha).items():
        assert mean(found, field) * found["model"] == pytest.approx(exact, rel=0.01), field


def test_flat_softmax_has_unit_rms_and_a_gradient_of_alpha() -> None:
    found = measures.softmax(size=8, mult=0.01, rows=8192, **ONCE)
    assert mean(found, "out") == pytest.approx(1.0, rel=1e-3)
    assert mean(found, "dx") == pytest.approx(0.01 * math.sqrt(7 / 8), rel=0.01)


def test_the_loss_gradient_is_exact_on_equal_logits_and_above_1_on_sharp_ones() -> None:
    shape = {"vocab_size": 4, "logits_rms": 1.0, "tokens": 4096, **ONCE}
    equal = measures.cross_entropy(alpha=1e-6, **shape)
    np.testing.assert_allclose(equal["dlogits"], 1.0, rtol=1e-5)
    # one-hot: ¾ of the tokens have two entries ±1 of 4, the rest none; times V/√(V−1)
    sharp = mean(measures.cross_entropy(alpha=1e4, **shape), "dlogits")
    assert sharp == pytest.approx(math.sqrt(0.75 * 2 / 4) * 4 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("backward", "expected"), [("fan_out", 1.0), ("fan_in", 4.0)])
def test_the_readout_gradient_needs_fan_out(backward: str, expected: float) -> None:
    found = measures.readout(d_model=32, vocab_size=512, backward=backward, tokens=512, **ONCE)
    assert mean(found, "dx") == pytest.approx(expected, rel=0.03)
    assert mean(found, "dw") == pytest.approx(1.0, rel=0.03)
    assert mean(found, "out") == pytest.approx(32**-0.5, rel=0.03)


def test_the_exact_ops_are_at_unit_scale() -> None:
    found = {
        "linear": measures.linear(fan_in=64, fan_out=256, tokens=512, seeds=2, dtype="bfloat16"),
        "rms_norm": measures.rms_norm(width=128, tokens=512, **ONCE),
        "rope": measures.rope(seq_len=16, width=32, heads=64, **ONCE),
        "residual": measures.residual(width=64, n_layers=2, branch=1, tokens=512, **ONCE),
        "embedding": measures.embedding(vocab_size=64, width=32, tokens=512, **ONCE),
    }
    exempt = {("linear", "dx"): 2.0}  # √(fan_out/fan_in)
    for op, result in found.items():
        for field in result:
            expected = exempt.get((op, field), 1.0)
            assert mean(result, field) == pytest.approx(expected, rel=0.03), (op, field)


@pytest.mark.parametrize(
    ("name", "field", "wrong"),
    [
        ("attention", "inputs", {"inputs": "cauchy"}),
        ("attention", "correlation", {"correlation": 1.5}),
        ("attention", "alpha_attn_softmax", {"alpha": 0.0}),
        ("readout", "backward", {"backward": "both"}),
        ("residual", "branch", {"branch": 4}),
        ("gated_silu", "seeds", {"seeds": 0}),
    ],
)
def test_bad_specifications_name_the_field(name: str, field: str, wrong: dict) -> None:
    good = {
        "attention": {"seq_len": 4, "d_head": 4, "alpha": 1.0, "sequences": 2},
        "readout": {"d_model": 4, "vocab_size": 4, "backward": "fan_in", "tokens": 4},
        "residual": {"width": 4, "n_layers": 2, "branch": 0, "tokens": 4},
        "gated_silu": {"alpha": 1.0, "elements": 4},
    }
    with pytest.raises(ConfigError) as error:
        getattr(measures, name)(**{**good[name], **ONCE, **wrong})
    assert error.value.field == field


# Design.


def test_points_cover_the_grids_once_and_can_be_measured() -> None:
    design = OpScales(seq_lens=(2, 8), d_heads=(4, 8), alphas=(0.5, 1.0), dtypes=("float32",))
    points = design.points()
    keys = [point.key() for point in points]
    assert len(set(keys)) == len(keys)
    attention = [p.spec for p in points if p.what == "attention"]
    assert [(s["seq_len"], s["d_head"], s["alpha"]) for s in attention] == [
        (t, d, a) for t in (2, 8) for d in (4, 8) for a in (0.5, 1.0)
    ]
    for point in points:
        inspect.signature(measures.MEASURES[point.what]).bind(**point.spec)
    both = replace(design, dtypes=("float32", "bfloat16")).points()
    assert len(both) == 2 * len(points)


def test_long_sequences_keep_enough_heads() -> None:
    design = OpScales(seq_lens=(1, 1024), d_heads=(16,), elements=65536, coordinates=2048)
    sequences = {p.spec["seq_len"]: p.spec["sequences"] for p in design.points()[:6]}
    assert sequences == {1: 65536 // 16, 1024: 2048 // 16}


def test_whole_numbers_and_floats_make_one_key() -> None:
    a, b = (OpScales(ffn_alphas=alphas).points() for alphas in ((1,), (1.0,)))
    assert [p.key() for p in a] == [p.key() for p in b]


@pytest.mark.parametrize(
    "wrong",
    [
        {"seq_lens": [0]},
        {"alphas": [-1.0]},
        {"dtypes": ["float16"]},
        {"seeds": 1},
        {"correlations": [2.0]},
        {"corelations": [0.1]},
    ],
    ids=lambda w: next(iter(w)),
)
def test_bad_parameters_name_the_field(wrong: dict) -> None:
    with pytest.raises(ConfigError) as error:
        OpScales.from_dict(wrong)
    assert error.value.field == next(iter(wrong))


@pytest.mark.parametrize("profile", ["smoke", "cpu", "h100"])
def test_profiles_are_designs(profile: str) -> None:
    assert OpScales.from_dict(study.parameters("op_scales", profile)).profile == profile


def test_every_claim_is_shown_beside_its_evidence() -> None:
    ids = [claim.id for claim in claims.load(FOLDER / "claims.yaml")]
    shown = re.findall('"claim:([a-z0-9-]+)"', (FOLDER / "study.py").read_text(encoding="utf-8"))
    assert sorted(ids) == sorted(shown)


# Quantities, words and figures, on made-up points.


def made_up(points: list, **noise: float) -> Results:
    """Points whose fields are 1 ± ``noise`` (0.01) over three seeds; dq is 0.9·α/√d_head."""
    size = noise.get("noise", 0.01)
    jitter = [1.0 - size, 1.0, 1.0 + size]

    def result(point: Point) -> dict:
        spec = point.spec
        found: dict = dict.fromkeys(("out", "dx", "dgate", "dlogits", "dw"), jitter)
        if point.what.startswith("attention"):
            small = 0.9 * spec["alpha"] / math.sqrt(spec["d_head"])
            t = spec["seq_len"]
            at = [2**i for i in range(t.bit_length())]
            found = {
                "out": jitter,
                "dv": jitter,
                "dq": [small * j for j in jitter],
                "dk": [small * j for j in jitter],
                "model": 0.25,
                "positions": at,
                "by_position": [4.0 / math.sqrt(i) for i in at],
            }
        if spec.get("backward") == "fan_in":
            found["dx"] = [math.sqrt(spec["vocab_size"] / spec["d_model"]) * j for j in jitter]
        return found

    return Results(EMPTY.runs, points_of(points, result))


@pytest.fixture(scope="module")
def results() -> Results:
    design = OpScales(
        seq_lens=(1, 2, 16, 64, 256),
        d_heads=(16, 64, 256),
        alphas=(0.125, 0.25, 1.0, 4.0, 16.0),
        ffn_alphas=(0.0625, 1.0, 16.0),
        correlations=(0.03, 0.1),
        softmax_sizes=(64, 512),
        readout_vocab_sizes=(256, 4096),
        vocab_sizes=(2, 256, 4096),
        loss_tokens=(4, 64),
        widths=(64, 256),
    )
    return made_up(design.points())


def test_farthest_is_the_worst_cell_with_its_interval(results: Results) -> None:
    half = 100 * 4.302652729911275 * 0.01 / math.sqrt(3)  # Student's t, two degrees of freedom
    exact = tables.farthest(results, "attention", ["out"])
    assert exact.value == pytest.approx(0.0, abs=1e-9)
    assert (exact.lo, exact.hi) == pytest.approx((0.0, half))
    law = tables.farthest(results, "attention", ["dq_beta"], 0.9, {"alpha": 1.0})
    assert law.value == pytest.approx(0.0, abs=1e-9)
    unit = tables.farthest(results, "attention", ["dq", "dk"], within={"alpha": 1.0})
    assert unit.value == pytest.approx(100 * (1 - 0.9 / 16))
    trunk = tables.farthest(results, "readout", ["dx"], within={"backward": "fan_in"})
    assert trunk.value == pytest.approx(100 * (math.sqrt(4096 / 64) - 1))
    assert trunk.lo < trunk.value < trunk.hi


def test_the_output_is_held_against_the_derived_scale(results: Results) -> None:
    table = tables.cells(results, "attention")
    row = table[(table["seq_len"] == 2) & (table["alpha"] == 4.0) & (table["d_head"] == 16)].iloc[0]
    assert row["logit_variance"] == 1.0
    # two rows: 1, and e/(e+1)
    assert row["out_derived"] == pytest.approx(0.25 / math.sqrt((1 + math.e / (math.e + 1)) / 2))


def test_exponent_and_spread_recover_what_was_made(results: Results) -> None:
    within = {"alpha": 1.0, "seq_len": [64, None]}
    slope = tables.exponent(results, "attention", "dq", "d_head", within)
    assert (slope.value, slope.lo, slope.hi) == pytest.approx((-0.5, -0.5, -0.5))
    same = tables.spread(results, "cross_entropy_tokens", "dlogits", "tokens")
    assert same.value == pytest.approx(0.0)
    points = OpScales(loss_tokens=(4, 64)).points()
    two = made_up([p for p in points if p.what == "cross_entropy_tokens"])
    two.points.loc[1, "result"] = json.dumps({"dlogits": [1.1 * x for x in (0.99, 1.0, 1.01)]})
    assert tables.spread(two, "cross_entropy_tokens", "dlogits", "tokens").value == (
        pytest.approx(10.0, abs=0.01)
    )


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("farthest", {"what": "rotation", "fields": ["out"]}),
        ("farthest", {"what": "attention", "fields": ["dgate"]}),
        ("farthest", {"what": "attention", "fields": ["out"], "within": {"alpha": 3.0}}),
        ("farthest", {"what": "attention", "fields": ["out"], "within": {"alpha": [0.1, 4.0]}}),
        ("farthest", {"what": "attention", "fields": ["out"], "within": {"alpha": [1.0, 99.0]}}),
        ("farthest", {"what": "attention", "fields": ["out"], "within": {"seq_length": 4}}),
        (
            "exponent",
            {"what": "attention", "field": "dq", "over": "d_head", "within": {"d_head": 16}},
        ),
        ("spread", {"what": "gated_silu", "field": "out", "by": "dtype"}),
    ],
)
def test_what_is_absent_is_not_measured(results: Results, name: str, args: dict) -> None:
    with pytest.raises(NotMeasured):
        tables.QUANTITIES[name](results, **args)


def test_all_claims_can_be_judged_and_the_wrong_ones_fail(results: Results) -> None:
    verdicts = {v.id: v for v in claims.evaluate(FOLDER, results, "cpu")}
    assert "not measured" not in {v.verdict for v in verdicts.values()}, verdicts
    assert verdicts["readout-fan-in"].verdict == "fails"
    assert verdicts["attention-dq-unit"].verdict == "fails"
    assert verdicts["attention-dq-law"].verdict in ("holds", "exact")
    assert verdicts["attention-dq-exponent"].verdict in ("holds", "exact")


def test_words_come_from_the_points(results: Results) -> None:
    text = words.answer(results, 2)
    assert "4.00 at V = 4096 and d_model = 256" in text  # √(4096/256)
    assert "0.90 times 1/√d_head" in text
    assert words.what_ran(results).endswith("each with 3 seeds, in float32.")
    texts = words.texts(results, 2)
    assert texts["first_row"] == "4.00"
    assert texts["last_row"] == "0.25"  # 4/√256


def test_the_table_names_where_the_worst_is(results: Results) -> None:
    lines = words.worst_table(results, 2).splitlines()
    (dx,) = [line for line in lines if line.startswith("| readout | dx |")]
    assert dx.endswith("| 8.00 [7.80, 8.20] (V 4096, scale fan_in, D 64) |")
    assert not any("(T 1," in line for line in lines)


FIGURES = (
    "attention_output",
    "attention_error",
    "attention_rows",
    "attention_gradients",
    "attention_correlated",
    "gated_silu",
    "softmax",
    "loss_gradient",
    "readout",
)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_and_are_labelled(results: Results, name: str, tmp_path: Path) -> None:
    figure = getattr(op_scales_figures, name)(results)
    figure.savefig(tmp_path / "figure.png", dpi=40)
    panels = [ax for ax in figure.axes if ax.get_xlabel()]
    assert panels
    assert panels[0].get_ylabel()


def test_the_bound_in_a_figure_is_that_of_the_claim(results: Results) -> None:
    found = {claim.id: claim for claim in claims.load(FOLDER / "claims.yaml")}
    half = found["attention-output"].bound_max / 100
    assert tables.bound("attention-output") == half
    ax = op_scales_figures.attention_output(results).axes[0]
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((1 - half, 1 + half))


def plain(results: Results) -> pd.DataFrame:
    table = tables.cells(results, "attention")
    return table[table["seq_len"] > 1]


def test_attention_is_drawn_by_head_size_and_alpha(results: Results) -> None:
    table = plain(results)
    axes = op_scales_figures.attention_output(results).axes
    assert [ax.get_title() for ax in axes] == ["α = ¼", "α = 1", "α = 4"]
    for ax, alpha in zip(axes, (0.25, 1.0, 4.0), strict=True):
        for d_head in (16, 64, 256):
            at = table[(table["alpha"] == alpha) & (table["d_head"] == d_head)]
            at = at.sort_values("seq_len")[["seq_len", "out"]]
            np.testing.assert_allclose(drawn(ax)[str(d_head)], at)
    left, right = op_scales_figures.attention_gradients(results).axes
    at = table[(table["alpha"] == 1.0) & (table["d_head"] == 64)].sort_values("seq_len")
    np.testing.assert_allclose(drawn(left)["d_head 64"], at[["seq_len", "dq_beta"]])
    longest = table[(table["seq_len"] == 256) & table["alpha"].isin([0.25, 1.0, 4.0])]
    longest = longest.sort_values(["alpha", "d_head"])[["d_head", "dq"]]
    np.testing.assert_allclose(marks(right), longest)
    (ax,) = op_scales_figures.attention_rows(results).axes
    row = table[(table["alpha"] == 1.0) & (table["d_head"] == 64) & (table["seq_len"] == 256)]
    points = np.array([row["positions"].item(), row["by_position"].item()]).T
    np.testing.assert_allclose(drawn(ax)["T = 256"], points)


def test_the_maps_of_the_models_error_are_in_per_cent(results: Results) -> None:
    first, *_ = op_scales_figures.attention_error(results).axes
    table = plain(results)
    at = table[table["seq_len"] == int(first.get_title().removeprefix("T = "))]
    grid = 100 * (at.pivot(index="d_head", columns="alpha", values="out") - 1)
    np.testing.assert_allclose(first.images[0].get_array(), grid)


def test_other_ops_are_drawn_as_measured(results: Results) -> None:
    (ax,) = op_scales_figures.attention_correlated(results).axes
    inputs = tables.cells(results, "attention_inputs")
    inputs = inputs[inputs["inputs"] == "normal"].sort_values("correlation")
    np.testing.assert_allclose(drawn(ax)["measured"], inputs[["correlation", "out"]])
    silu = tables.cells(results, "gated_silu").sort_values("alpha")
    left, right = op_scales_figures.gated_silu(results).axes
    np.testing.assert_allclose(drawn(left)["output"], silu[["alpha", "out"]])
    np.testing.assert_allclose(drawn(right)["gradient of the gate"], silu[["alpha", "dgate"]])
    softmax = tables.cells(results, "softmax")
    for ax, field in zip(op_scales_figures.softmax(results).axes, ("out", "dx"), strict=True):
        at = softmax[softmax["mult"] == 1.0].sort_values("size")
        np.testing.assert_allclose(drawn(ax)["1"], at[["size", field]])


def test_the_loss_and_the_readout_are_drawn_as_measured(results: Results) -> None:
    *panels, last = op_scales_figures.loss_gradient(results).axes
    loss = tables.cells(results, "cross_entropy")
    for ax, rms in zip(panels, sorted(loss["logits_rms"].unique()), strict=True):
        at = loss[(loss["logits_rms"] == rms) & (loss["alpha"] == 0.25)].sort_values("vocab_size")
        np.testing.assert_allclose(drawn(ax)["¼"], at[["vocab_size", "dlogits"]])
    tokens = tables.cells(results, "cross_entropy_tokens").sort_values("tokens")
    np.testing.assert_allclose(marks(last), tokens[["tokens", "dlogits"]])
    (ax,) = op_scales_figures.readout(results).axes
    readout = tables.cells(results, "readout")
    wanted = {(r.vocab_size / r.d_model, round(r.dx, 9)) for r in readout.itertuples()}
    assert {(x, round(y, 9)) for x, y in marks(ax)} == wanted
