"""The residual study: its lemma, walks, plan, quantities and figures against known answers."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from synthetic import EMPTY, drawn, marks, played, point_row
from umup import data, ops, rules, schemes, train
from umup.config import NUMERICS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import claims, plots, records
from umup.lab.folders import code
from umup.lab.records import Results

study = code("residual_tau").design
figures = code("residual_tau").figures
lemma = code("residual_tau").lemma
words = code("residual_tau").words
tables = code("residual_tau").results
walks = code("residual_tau").measures

WALK = {
    "d_model": 16,
    "d_head": 8,
    "ff_ratio": 2.0,
    "seq_len": 4,
    "batch_size": 2,
    "base_depth": 2,
    "seeds": 2,
}


# ---------------------------------------------------------------------------------- the lemma


def test_shares_by_hand():
    # τ = 1, 1/2: a² = 1/2, 1/3; b² = 1/2, 2/3. The embedding keeps 1/2 · 2/3.
    found = lemma.shares([1.0, 0.5])
    assert found.embedding == pytest.approx(1 / 3)
    assert found.attention == pytest.approx(1 / 2 * 2 / 3)
    assert found.ffn == pytest.approx(1 / 3)
    np.testing.assert_allclose(found.branches, [1 / 3, 1 / 3])


@pytest.mark.parametrize(("alpha", "ratio"), [(1.0, 1.0), (0.5, 4.0), (3.0, 0.25)])
def test_shares_of_the_derived_scheme_are_what_the_hyperparameters_say(alpha, ratio):
    for n_layers in (1, 3, 32):
        found = lemma.shares(rules.residual_taus(n_layers, alpha, ratio))
        assert math.sqrt((found.attention + found.ffn) / found.embedding) == pytest.approx(alpha)
        assert math.sqrt(found.attention / found.ffn) == pytest.approx(ratio)


def test_plain_multipliers_by_hand():
    # α = 2, ratio = 1: α̂ = 2 on both, over √4.
    np.testing.assert_allclose(lemma.plain_multipliers(2, 2.0, 1.0), [1, 1, 1, 1])
    # ratio 7: α̂_f = √(2/50) = 1/5, α̂_a = 7/5, over √2.
    np.testing.assert_allclose(lemma.plain_multipliers(1, 1.0, 7.0) * math.sqrt(2), [1.4, 0.2])


def test_branches_see_only_the_direction():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8))
    for f in lemma.branch_functions(rng, 6, 8):
        np.testing.assert_allclose(f(5.0 * x), f(x), rtol=1e-12)
        assert np.abs(f(x) - f(x[::-1])).max() > 0.1


@pytest.mark.parametrize("convention", ["derived", "library"])
def test_lemma_holds_against_the_network_that_a_convention_equals(convention):
    found = lemma.lemma(convention, 5, [0.3, 2.0], [0.5, 3.0], 2)
    assert len(found["alpha"]) == 8
    assert max(found["own_error"]) < 1e-12
    assert max(found["own_distance"]) < 1e-12
    off = max(found["error"])
    assert off < 1e-12 if convention == "derived" else off > 0.05


def test_a_wrong_tau_breaks_the_lemma(monkeypatch):
    taus = rules.residual_taus
    monkeypatch.setattr(lemma, "residual_taus", lambda *a: [t * 1.01 for t in taus(*a)])
    assert max(lemma.lemma("derived", 3, [1.0], [1.0], 1)["error"]) > 1e-4


def test_conventions_share_their_random_networks():
    rng = [np.random.default_rng([4, 1]) for _ in range(2)]
    x = [r.normal(size=(2, 8)) for r in rng]
    f, g = (lemma.branch_functions(r, 2, 8)[1] for r in rng)
    np.testing.assert_array_equal(f(x[0]), g(x[1]))


def test_nearest_finds_a_depth_mup_network_again():
    rng = np.random.default_rng(3)
    x, branches = rng.normal(size=(8, 32)), lemma.branch_functions(rng, 8, 32)
    taus = rules.residual_taus(4, 2.0, 3.0)
    alpha, ratio, distance = lemma.nearest(x, taus, branches, 1.0, 1.0)
    assert alpha == pytest.approx(2.0, rel=0.01) and ratio == pytest.approx(3.0, rel=0.01)
    assert distance < 0.003


def test_distance_of_opposite_outputs_is_two():
    x = [np.ones((2, 3))]
    assert lemma._distance(x, [-4 * x[0]]) == pytest.approx(2.0)
    assert lemma._distance(x, [4 * x[0]]) == pytest.approx(0.0)


# ---------------------------------------------------------------------------------- the walks


@pytest.fixture(scope="module")
def model_walk():
    """``parts`` of a model of two blocks with α_residual = 2; its embedding and logits too.

    And its readout of the sum of the parts.
    """
    model = ModelConfig(
        d_model=16, n_layers=2, d_head=8, d_ff=32, vocab_size=11, seq_len=5, base_width=16
    )
    run = RunConfig("umup", model, OptimConfig(1, 2, 0), HPs(), 0, "none", "none", "none")
    ids = jax.random.randint(jax.random.key(1), (2, 5), 0, 11)

    @jax.jit
    def go():
        decoder = train.build(run, train.Lane(HPs(alpha_residual=2.0).to_dict(), jnp.int32(0)))
        found = walks.parts(decoder, ids)
        read = decoder.readout(ops.rms_norm(found[0] + found[1] + found[2]))
        return found, decoder.embed(ids.reshape(-1)), decoder(ids), read.reshape(2, 5, 11)

    return go()


def test_parts_sum_to_the_stream_of_the_model(model_walk):
    found, _, logits, read = model_walk
    np.testing.assert_allclose(read, logits, rtol=1e-4, atol=1e-6)
    assert found[3]["stream"].shape == (5,) and found[3]["attn"].shape == (2,)
    whole = walks._rms(found[0] + found[1] + found[2])
    np.testing.assert_allclose(found[3]["stream"][-1], whole, rtol=1e-5)


def test_the_embedding_is_damped_by_every_skip(model_walk):
    (embedding, _, _, _), first, _, _ = model_walk
    keep = math.prod(math.sqrt(1 / (1 + t)) for t in rules.residual_taus(2, 2.0))
    assert keep == pytest.approx(math.sqrt(1 / 5))  # α_r = 2: the embedding is a fifth
    np.testing.assert_allclose(embedding, keep * first, rtol=1e-5)


@pytest.fixture(scope="module")
def control():
    """Walks of u-μP with one token a sequence: convention → result."""
    spec = WALK | {"d_model": 64, "seq_len": 1, "batch_size": 256, "seeds": 3}
    return {c: walks.walk("umup", c, 2, 1.0, 1.0, **spec) for c in lemma.CONVENTIONS}


def test_the_real_model_realises_the_exact_shares_where_branches_have_unit_scale(control):
    for convention, found in control.items():
        exact = lemma.shares(rules.residual_taus(2, convention=convention))
        for part in ("embedding", "attention", "ffn"):
            measured = np.mean(np.square(found[part]) / np.square(found["output"]))
            assert measured == pytest.approx(getattr(exact, part), abs=0.04), (convention, part)
        np.testing.assert_allclose(found["stream"], 1.0, atol=0.1)


def test_a_walk_at_one_token_has_nothing_in_common_over_positions_but_itself(control):
    np.testing.assert_allclose(control["derived"]["common"], 1.0, rtol=1e-5)


def test_a_scheme_without_residual_hps_is_walked_at_one_alone():
    with pytest.raises(ConfigError, match="alpha_residual"):
        walks.walk("sp", "derived", 2, 2.0, 1.0, **WALK)


def test_trained_walks_see_training(monkeypatch):
    tokens = np.tile(np.arange(7, dtype=np.uint16), 400)
    text = Dataset("c", "bytes", 11, tokens, tokens[:700], 1.0, "d", "t")
    monkeypatch.setattr(data, "load", lambda *a, **k: text)
    spec = {k: WALK[k] for k in ("d_model", "d_head", "ff_ratio", "seq_len", "batch_size")}
    found = walks.trained(
        "derived",
        1,
        **spec,
        steps=30,
        warmup_ratio=0.1,
        weight_decay=0.0,
        unroll=1,
        dtype="float32",
        log2_lr=0.0,
        seeds=1,
        corpus="c",
        tokenizer="bytes",
    )
    assert found["loss"][0] < 2.0 < math.log(11)
    assert found["stream_before"][0][0] == pytest.approx(1.0, abs=0.2)
    assert found["output"] != found["output_before"]


# ----------------------------------------------------------------------------------- the plan


def test_every_arm_is_a_scheme():
    for arm in tables.ARMS.values():
        assert schemes.get(arm.scheme).unit_scaled == (arm.scheme == "umup")


def test_points_cover_every_setting_once():
    design = study.ResidualTau(walk_depths=(2, 4), grid_depth=4, alphas=(1.0, 2.0), ratios=(3.0,))
    points = design.points()
    assert len({p.key() for p in points}) == len(points)
    at = [p.spec for p in points if p.what == "walk" and p.spec["convention"] == "printed"]
    settings = {(s["n_layers"], s["seq_len"], s["alpha"], s["ratio"]) for s in at}
    grid = {(1.0, 1.0), (2.0, 1.0), (1.0, 3.0)}
    assert settings == {(2, t, 1.0, 1.0) for t in (1, 64)} | {
        (4, t, *g) for t in (1, 64) for g in grid
    }
    assert all(s["batch_size"] * s["seq_len"] == 512 for s in at)
    plain = [p.spec for p in points if p.what == "walk" and p.spec["scheme"] == "sp"]
    assert [(s["n_layers"], s["seq_len"]) for s in plain] == [(2, 64), (4, 64)]
    assert sum(p.what == "lemma" for p in points) == 3 * len(design.lemma_depths)


def test_the_plan_searches_every_arm_and_depth_and_ends():
    design = study.ResidualTau(arms=("derived", "mup"), depths=(2, 4), seeds=2)
    zeros = np.zeros(9, np.uint16)
    text = Dataset("c", "bytes", 7, zeros, zeros, 1.0, "d", "t")
    seen = played(design, text, lambda run: design.guess(run, EMPTY.runs))
    assert len(seen) < 200
    shapes = {(r.scheme, r.model.n_layers) for r in seen}
    assert shapes == {("umup", 2), ("umup", 4), ("mup", 2), ("mup", 4)}
    for scheme, middle in (("umup", 0.5), ("mup", -5.5)):
        mine = [r for r in seen if r.scheme == scheme and r.model.n_layers == 2]
        assert {r.seed for r in mine} == {0, 1}
        assert abs(np.mean([math.log2(r.hps.eta) for r in mine]) - middle) < 1
    assert {r.model.base_depth for r in seen} == {2}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"arms": ("sp",)}, "arms"),
        ({"depths": ()}, "depths"),
        ({"alphas": (0.0,)}, "alphas"),
        ({"lr_umup": (1.0,)}, "lr_umup"),
        ({"lr_mup": (1.0, 0.0)}, "lr_mup"),
        ({"walk_width": 24}, "walk_width"),
        ({"d_model": 24}, "d_head"),
        ({"walk_arms": ("x",)}, "walk_arms"),
    ],
)
def test_bad_parameters_are_errors_that_name_the_field(bad, message):
    with pytest.raises(ConfigError, match=message):
        study.ResidualTau(**bad)


# ------------------------------------------------------------------- quantities and figures

SHIFTS = {"derived": 0.1, "library": -0.1, "printed": 0.6, "mup": 0.3, "completep": 0.0}
LEVELS = {"derived": 2.0, "library": 2.005, "printed": 2.1, "mup": 2.05, "completep": 2.0}
CENTRES = {"mup": -6.0, "completep": -6.0}


def runs_of(depths=(2, 8, 32), arms=tuple(SHIFTS), spread=2, noise=0.001):
    """Runs from parabolas whose optimum moves by SHIFTS octaves a doubling of depth."""
    rng, rows = np.random.default_rng(0), []
    for arm in arms:
        for depth in depths:
            middle = CENTRES.get(arm, 0.0) + SHIFTS[arm] * math.log2(depth / 2)
            for x in round(middle) + np.arange(-spread, spread + 1):
                for seed in range(3):
                    loss = LEVELS[arm] - 0.02 * math.log2(depth) + 0.03 * (x - middle) ** 2
                    scheme, convention, _ = tables.ARMS[arm]
                    spec = {"scheme": scheme, "model": {"tau_convention": convention}}
                    rows.append(
                        {
                            "key": f"{arm}{depth}{x}{seed}",
                            "scheme": scheme,
                            "d_model": 32,
                            "n_layers": depth,
                            "steps": 400,
                            "lr": 2.0**x,
                            "seed": seed,
                            "status": "ok",
                            "val_loss": loss + noise * rng.normal(),
                            "batch_size": 8,
                            "seq_len": 64,
                            "study": "residual_tau",
                            "profile": "cpu",
                            "numerics": NUMERICS,
                            "spec": json.dumps(spec),
                        }
                    )
    return pd.DataFrame(rows)


def walked(arm, n_layers, seq_len, alpha=1.0, ratio=1.0, attention=1.0, wobble=0.01):
    """A walk whose attention is `attention` times what the recursion says."""
    scheme, convention, _ = tables.ARMS[arm]
    spec = {
        "scheme": scheme,
        "convention": convention,
        "n_layers": n_layers,
        "alpha": alpha,
        "ratio": ratio,
        "seq_len": seq_len,
    }
    exact = lemma.shares(rules.residual_taus(n_layers, alpha, ratio, convention))
    result: dict[str, list] = {}
    for seed in range(3):
        near = 1 + wobble * (seed - 1)
        e, a, f = (math.sqrt(s) for s in exact[:3])
        a *= attention * near
        values = {
            "embedding": e,
            "attention": a,
            "ffn": f,
            "residual": math.hypot(a, f),
            "output": math.sqrt(e * e + a * a + f * f),
            "common": [0.5] * n_layers,
            "stream": np.linspace(1, attention * near, 2 * n_layers + 1).tolist(),
        }
        for name, value in values.items():
            result.setdefault(name, []).append(value)
    return point_row("walk", spec, result)


@pytest.fixture(scope="module")
def results():
    points = [
        point_row("lemma", {"convention": c, "n_layers": n}, lemma.lemma(c, n, [1.0], [1.0], 1))
        for c in lemma.CONVENTIONS
        for n in (1, 16)
    ]
    for n in (2, 64):
        points += [walked(a, n, t) for a in lemma.CONVENTIONS for t in (1, 64)]
        points += [walked(a, n, 64) for a in ("mup", "completep", "sp")]
    for t, attention in ((1, 1.0), (64, 1.5)):
        points += [walked(a, 2, t, 4.0, 1.0, attention) for a in lemma.CONVENTIONS]
        points += [walked(a, 2, t, 1.0, 4.0, attention) for a in lemma.CONVENTIONS]
    both = {
        f"{name}{end}": [value]
        for end in ("", "_before")
        for name, value in {"embedding": 0.5, "attention": 0.6, "ffn": 0.7, "output": 1.0}.items()
    }
    points += [
        point_row("trained", {"convention": c, "n_layers": 2}, both) for c in lemma.CONVENTIONS
    ]
    return Results(runs_of(), pd.DataFrame(points))


def test_depth_shift_recovers_the_known_drift(results):
    for arm, slope in SHIFTS.items():
        found = tables.depth_shift(results, arm, 16)
        assert found.value == pytest.approx(4 * slope, abs=0.05)
        assert found.lo < found.value < found.hi < found.lo + 0.2


def test_loss_differences_are_those_of_the_known_levels(results):
    found = tables.loss_difference(results, "printed", "derived")
    assert found.value == pytest.approx(0.1, abs=0.003)
    assert found.lo < 0.1 < found.hi
    assert tables.loss_difference(results, "library", "derived").value == pytest.approx(
        0.005, abs=0.003
    )
    assert sorted(tables.differences(results, "completep", "mup", 3)) == [8, 32]


def test_deeper_gain(results):
    found = tables.deeper_gain(results, "derived", 16)
    assert found.value == pytest.approx(-0.08, abs=0.004)
    assert found.lo < -0.08 < found.hi


def test_lemma_error_picks_convention_depth_and_extreme(results):
    exact = tables.lemma_error(results, "derived", "same")
    assert exact.value < 1e-12 and exact.lo == exact.hi == exact.value
    log = tables.lemma_error(results, "derived", "same", log10=True)
    assert log.value == pytest.approx(math.log10(exact.value))
    largest = tables.lemma_error(results, "library", "same")
    smallest = tables.lemma_error(results, "library", "same", "smallest")
    assert largest.value > smallest.value > 0.01
    deep = lemma.lemma("library", 16, [1.0], [1.0], 1)["error"][0]
    assert tables.lemma_error(results, "library", "same", from_depth=2).value == deep


def test_realised_over_nominal_finds_the_worst_setting(results):
    fine = tables.realised_over_nominal(results, "derived", "residual", seq_len=1)
    assert fine.value == pytest.approx(1.0, abs=0.02)
    # Seeds wobble by 1 %, so the t interval of three is about 2.5 %.
    assert tables.realised_over_nominal(results, "derived", "attention").value == pytest.approx(1.5)
    root = tables.realised_over_nominal(results, "library", "residual", 1, target=math.sqrt(2))
    assert root.value == pytest.approx(math.sqrt(2), rel=0.02)


def test_stream_finds_the_furthest_value_and_growth_the_ratio():
    points = [walked("sp", 2, 8), walked("sp", 64, 8, attention=3.0)]
    some = Results(EMPTY.runs, pd.DataFrame(points))
    found = tables.stream(some, "sp", factor=32)
    assert found.value == pytest.approx(3.0, rel=0.01) and found.lo < 3.0 < found.hi
    exact = math.sqrt(0.75 + 0.25 * 9)
    assert tables.output_growth(some, "sp", factor=32).value == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    ("quantity", "args"),
    [
        ("lemma_error", {"convention": "derived"}),
        ("stream", {"arm": "derived"}),
        ("output_growth", {"arm": "sp"}),
        ("realised_over_nominal", {"arm": "derived", "what": "residual"}),
        ("depth_shift", {"arm": "derived", "factor": 2}),
        ("loss_difference", {"arm": "mup", "against": "derived"}),
        ("deeper_gain", {"arm": "derived", "factor": 2}),
    ],
)
def test_nothing_on_record_is_not_measured(quantity, args):
    with pytest.raises(claims.NotMeasured):
        tables.QUANTITIES[quantity](EMPTY, **args)


def test_too_short_a_span_is_not_measured(results):
    short = Results(runs_of(depths=(2, 4)), results.points)
    for quantity in (tables.depth_shift, tables.deeper_gain):
        with pytest.raises(claims.NotMeasured, match="16×"):
            quantity(short, "derived", 16)
    with pytest.raises(claims.NotMeasured, match="64×"):
        tables.stream(results, "derived", factor=64)


def test_an_unbracketed_sweep_gives_no_difference(results):
    runs = runs_of()
    edge = Results(runs[~((runs["scheme"] == "mup") & (runs["lr"] > 2.0**-6))], results.points)
    with pytest.raises(claims.NotMeasured, match="needs 3"):
        tables.loss_difference(edge, "mup", "completep")


def test_every_claim_is_measured_by_full_records(results):
    verdicts = claims.evaluate("residual_tau", results, "cpu")
    missing = {v.id: v.note for v in verdicts if v.verdict == "not measured"}
    assert missing == {"completep-is-better": missing["completep-is-better"]}  # 3 depths, not 2
    by_id = {v.id: v.verdict for v in verdicts}
    assert by_id["lemma-derived"] == by_id["lemma-library"] == "exact"
    assert by_id["printed-trains-alike"] == by_id["alpha-ratio-realised-long"] == "fails"


DRAW = ("lemma", "contributions", "realised", "stream", "trained", "loss_by_lr", "over_depth")


@pytest.mark.parametrize("name", DRAW)
def test_figures_draw_and_have_labels(results, name):
    figure = getattr(figures, name)(results)
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert all(ax.get_xlabel() for ax in figure.axes) and figure.axes[0].get_ylabel()


@pytest.mark.parametrize("name", DRAW)
def test_figures_say_that_there_is_nothing(name):
    figure = getattr(figures, name)(EMPTY)
    assert figure.axes[0].texts[0].get_text().startswith("not measured: no ")


def test_words(results):
    said = words.answer(results)
    assert "16×" in said and "CompleteP" in said
    assert words.texts(results)["emb_derived"] == "50"
    assert words.answer(EMPTY).count("not measured") == 3
    assert "derived" in words.realised_table(results)
    assert words.optima_table(results).count("\n") == 1 + 5 * 3
    assert "6 random networks" in words.what_ran(results)
    assert words.what_ran(EMPTY).startswith("0 random networks")


def test_records_table_opens_the_points(results):
    assert set(tables.walks(results, "sp")["n_layers"]) == {2, 64}
    assert records.with_spec(results.runs)["model.tau_convention"].nunique() == 3


def test_contributions_are_markers_on_the_exact_lines(results):
    table = tables.contributions(results)
    for ax, convention in zip(figures.contributions(results).axes, lemma.CONVENTIONS, strict=True):
        mine = table[table["arm"] == convention].sort_values("n_layers")
        for part, (_, _, name) in figures.PARTS.items():
            np.testing.assert_allclose(drawn(ax)[name], mine[["n_layers", part]])
    both = tables.contributions(results, "trained")
    first, *_ = figures.trained(results).axes
    heights = [bars[0].get_height() for bars in first.containers]
    mine = both[both["arm"] == lemma.CONVENTIONS[0]].set_index("stage")
    parts = [(part, stage) for part in figures.PARTS for stage in ("init", "trained")]
    np.testing.assert_allclose(heights, [mine.loc[stage, part] for part, stage in parts])


def test_realised_ratios_are_drawn_over_their_hyperparameters(results):
    tables_ = {t: tables.realised(results, t) for t in (1, None)}
    for ax, what, hp, other in zip(
        figures.realised(results).axes,
        ("residual", "attention"),
        ("alpha", "ratio"),
        ("ratio", "alpha"),
        strict=True,
    ):
        wanted = []
        for convention in lemma.CONVENTIONS:
            for table in tables_.values():
                at = table[(table["arm"] == convention) & (table["n_layers"] == 2)]
                wanted += at[at[other] == 1.0].sort_values(hp)[what].tolist()
        np.testing.assert_allclose(marks(ax)[:, 1], wanted)


def test_the_lemma_and_the_stream_are_drawn_as_measured(results):
    left, right = figures.lemma(results).axes
    table = tables.networks(results)
    for convention in lemma.CONVENTIONS:
        mine = table[table["convention"] == convention].sort_values("n_layers")
        assert drawn(left)[convention][:, 1].tolist() == [max(e) for e in mine["own_error"]]
        exact = lemma.shares(rules.residual_taus(16, convention=convention)).branches
        assert drawn(right)[convention][0, 1] == pytest.approx(exact[0] * len(exact))
    axes = {ax.get_title(): ax for ax in figures.stream(results).axes}
    assert list(axes) == [
        "SP\nT = 64",
        "μP\nT = 64",
        "CompleteP\nT = 64",
        "u-μP\nT = 64",
        "u-μP\nT = 1",
    ]
    for row in tables.walks(results, "sp").to_dict("records"):
        mean = np.mean(row["stream"], axis=0)
        np.testing.assert_allclose(drawn(axes["SP\nT = 64"])[str(row["n_layers"])][:, 1], mean)


def test_losses_and_optima_over_depth_are_drawn(results):
    losses, optima = tables.losses(results), tables.optima(results)
    for ax, arm in zip(figures.loss_by_lr(results).axes, optima, strict=True):
        for depth, group in losses[losses["arm"] == arm].groupby("depth"):
            np.testing.assert_allclose(drawn(ax)[str(depth)], group[["log2_lr", "mean"]])
        stars = [(o.x, o.loss) for o in optima[arm].values() if not o.edge]
        np.testing.assert_allclose(marks(ax), stars)
    left, middle, right = figures.over_depth(results).axes
    shifts = [o.x - fits[min(fits)].x for fits in optima.values() for o in fits.values()]
    np.testing.assert_allclose(marks(left)[:, 1], shifts, atol=1e-12)
    losses = [o.loss for fits in optima.values() for o in fits.values()]
    np.testing.assert_allclose(marks(middle)[:, 1], losses)
    pairs = {"CompleteP − μP": ("completep", "mup", 3)} | {
        f"{arm} − derived": (arm, "derived", 1) for arm in ("library", "printed")
    }
    for label, points in drawn(right).items():
        own = tables.differences(results, *pairs.pop(label))
        np.testing.assert_allclose(points, list(own.items()))
    assert not pairs
    means = [tables.loss_difference(results, arm, "derived") for arm in ("library", "printed")]
    np.testing.assert_allclose(marks(right)[:, 1], [mean.value for mean in means])
    grey = [line.get_ydata() for line in right.lines if line.get_color() == plots.SHADE]
    assert [float(ends[1]) for ends in grey] == [0.01, 0.02, 0.02]
