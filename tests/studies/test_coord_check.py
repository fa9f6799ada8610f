"""The study coord_check: what is watched and trained, the claims' quantities, the figures."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from synthetic import EMPTY, drawn, marks, point_row
from umup import train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.coord import _step
from umup.errors import ConfigError
from umup.lab.claims import NotMeasured
from umup.lab.folders import code
from umup.lab.records import Results
from umup.layers import Attention
from umup.rules import Parametrization

study = code("coord_check").design
figures = code("coord_check").figures
measuring = code("coord_check").measures
tables = code("coord_check").results
words = code("coord_check").words

MODEL = ModelConfig(
    d_model=8,
    n_layers=2,
    d_head=4,
    d_ff=16,
    vocab_size=11,
    seq_len=6,
    base_width=4,
    base_depth=2,
    base_d_head=2,
    unroll=0,
)
OPTIM = OptimConfig(steps=1, batch_size=2, warmup_steps=0, final_lr_ratio=1.0)
TEXT = np.random.default_rng(0).integers(0, 11, 400).astype(np.uint16)
HELD_OUT = np.random.default_rng(1).integers(0, 11, 400).astype(np.uint16)


def run(**shape) -> RunConfig:
    config = dataclasses.replace(MODEL, **shape)
    return RunConfig("umup", config, OPTIM, HPs(eta=0.5, weight_decay=0.0), 3, "", "", "")


def lane_of(run: RunConfig) -> train.Lane:
    return jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))


def model(run: RunConfig):
    return train.build(run, lane_of(run))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_watched_forward_pass_is_the_models(qk_norm: bool) -> None:
    wanted = run(qk_norm=qk_norm)
    decoder, ids = model(wanted), jnp.asarray(TEXT[:12].reshape(2, 6).astype(np.int32))
    both = jax.jit(
        lambda ids: (measuring.activations(decoder, ids, decoder.readout.w[...]), decoder(ids))
    )
    (logits, seen), theirs = both(ids)
    assert np.asarray(logits) == pytest.approx(np.asarray(theirs).reshape(12, 11), abs=1e-5)
    blocks = [f"blocks.{i}{part}" for i in (0, 1) for part in (".attn.qk", ".attn", ".mlp", "")]
    assert set(seen) == {"embed", *blocks, "logits", "logits.readout"}
    assert np.asarray(seen["logits"]) == pytest.approx(np.asarray(logits))
    assert not np.asarray(seen["logits.readout"]).any()
    values = decoder.trace(ids)[1]
    theirs = {"": ".mlp_branch", ".attn": ".attn.out", ".mlp": ".mlp.down"}
    for name in blocks:
        if not name.endswith(".qk"):
            traced = values[name[:8] + theirs[name[8:]]]
            assert np.asarray(seen[name]) == pytest.approx(np.asarray(traced), abs=1e-5), name


@pytest.mark.parametrize("qk_norm", [False, True])
def test_watched_attention_logits_are_those_that_the_models_probes_report(qk_norm: bool) -> None:
    wanted = run(qk_norm=qk_norm)
    lane, tokens = lane_of(wanted), jnp.asarray(TEXT)
    ids, _ = train._batch(wanted, tokens, lane, jnp.int32(0))
    decoder = model(wanted)
    _, seen = measuring.activations(decoder, ids, decoder.readout.w[...])
    values = train.observe(wanted, tokens, lane, train.init(wanted, lane))
    reported = dict(zip(train.observed(wanted), np.asarray(values), strict=True))
    for i in (0, 1):
        rms = np.sqrt(np.square(np.asarray(seen[f"blocks.{i}.attn.qk"], float)).mean())
        assert rms == pytest.approx(reported[f"blocks.{i}.attn.scores/qk"][0], rel=1e-4)


def test_attention_logits_are_products_of_queries_with_keys_not_after_them() -> None:
    config = ModelConfig(**(MODEL.to_dict() | {"rope": False}))
    numbers = Parametrization("mup", config, HPs().to_dict(), 12)
    attention = Attention(config, numbers, rngs=nnx.Rngs(params=2))
    x = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)
    w = np.asarray(attention.qkv.w[...]).reshape(8, -1)
    q, k, _ = np.split(x @ w, 3, axis=-1)
    by_hand = [
        math.sqrt(2) / 4 * q[t, 4 * h : 4 * h + 4] @ k[s, 4 * h : 4 * h + 4]  # √base_d_head/d_head
        for h in range(2)
        for t in range(6)
        for s in range(t + 1)
    ]
    found = measuring._attention_logits(attention, jnp.asarray(x), 6)
    assert np.asarray(found).ravel() == pytest.approx(by_hand, abs=1e-5)


def test_training_is_the_librarys() -> None:
    coord = measuring.decoder("umup", MODEL, OPTIM, 3, -1.0, TEXT, HELD_OUT)
    params, opt = coord.params, coord.optimizer.init(coord.params)
    lane = lane_of(run())
    state, step = train.init(run(), lane), jax.jit(functools.partial(train.step, run()))
    for i in range(2):
        batch = coord.batch(i)
        params, opt = _step(coord.loss, coord.optimizer.update, params, opt, batch)
        state, _ = step(lane, state, batch[2:])
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert np.asarray(ours) == pytest.approx(np.asarray(theirs), abs=1e-5)


@pytest.mark.parametrize(
    ("scheme", "hidden", "readout"),
    [("sp", 1, 1), ("mup", 1, 4 / 8), ("umup", 8**-0.5, 1 / 8)],
)
def test_multipliers_are_the_forward_ones(scheme: str, hidden: float, readout: float) -> None:
    found = measuring.decoder(scheme, MODEL, OPTIM, 0, -1.0, TEXT, HELD_OUT).multipliers
    assert found["blocks.attn.qkv.w"] == pytest.approx(hidden)
    assert found["readout.w"] == pytest.approx(readout)
    assert found["embed.w"] == 1


def point(**changes) -> dict:
    return {
        "scheme": "mup",
        "d_model": 8,
        "n_heads": 2,
        "n_layers": 1,
        "ff_ratio": 2.0,
        "seq_len": 8,
        "batch_size": 2,
        "base_width": 8,
        "base_depth": 1,
        "dtype": "float32",
        "seed": 0,
        "log2_eta": -5.0,
        "steps": [1, 2],
        "corpus": "sotu",
        "tokenizer": "bytes",
    } | changes


def test_at_the_base_width_every_rung_of_the_ladder_is_one_model() -> None:
    found = {scheme: measuring.measure(**point(scheme=scheme)) for scheme in tables.LADDER}
    first = found["sp"]
    assert set(first["step"]) == {0, 1, 2}
    assert all(math.isfinite(value) for value in first["value"])
    for scheme in tables.LADDER:
        assert found[scheme] == first, scheme
    assert measuring.measure(**point(seed=1))["value"] != first["value"]
    # of weights with a side that does not grow, the Frobenius norm alone is kept
    kept = {
        (t, q)
        for t, q, k in zip(first["tensor"], first["quantity"], first["kind"])
        if k == "weight"
    }
    assert ("readout.w", "norm_frobenius") in kept
    assert ("embed.w", "update_frobenius") in kept
    assert ("blocks.attn.out.w", "update") in kept
    assert len(kept) == 2 * 6
    json.dumps(first, allow_nan=False)


def test_points_are_every_width_scheme_eta_and_seed_the_widest_first() -> None:
    design = study.DESIGN(
        schemes=("sp", "umup", "completep"),
        widths=(8, 32, 16),
        base_width=8,
        seeds=2,
        look_at=(5, 1),
        log2_eta_plain=(-9.0, -5.0),
        log2_eta_unit=(-3.0, 1.0),
    )
    specs = [p.spec for p in design.points()]
    assert len(specs) == 3 * 2 * (1 + 2 + 2)
    assert [s["d_model"] for s in specs] == [32] * 6 + [16] * 12 + [8] * 12
    assert {s["log2_eta"] for s in specs if s["scheme"] == "umup"} == {-3, 1}
    assert {s["log2_eta"] for s in specs if s["scheme"] == "sp"} == {-9, -5}
    assert {s["base_depth"] for s in specs if s["scheme"] == "completep"} == {1}
    assert {s["base_depth"] for s in specs if s["scheme"] == "sp"} == {2}
    assert all(s["steps"] == [1, 5] for s in specs)
    assert len({p.key() for p in design.points()}) == len(specs)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("schemes", {"schemes": ("sp", "nup")}),
        ("schemes", {"schemes": ()}),
        ("widths", {"widths": (16, 32)}),
        ("widths", {"widths": (16, 32, 50)}),
        ("widths", {"base_width": 6}),
        ("look_at", {"look_at": (1,)}),
        ("look_at", {"look_at": (2, 10)}),
        ("log2_eta_plain", {"log2_eta_plain": (-5.0, -9.0)}),
        ("log2_eta_unit", {"log2_eta_unit": (1.0,)}),
        ("wide_seeds", {"wide_seeds": 2}),
        ("tolerance", {"tolerance": 0.0}),
    ],
)
def test_bad_parameters_are_errors(field: str, values: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        study.DESIGN(**values)
    assert caught.value.field == field


SLOPES = {"sp": 0.5, "mup": 0.0, "umup": -0.5, "mup_readout_lr": -1.0}


def results(lost: bool = False, widths=(16, 32, 64, 128)) -> Results:
    """Points whose every change goes like width^SLOPES[scheme], three times that at the small η."""
    rows = []
    for scheme, p in SLOPES.items():
        for width in widths:
            for seed in (0, 1):
                for log2_eta, factor in ((-9.0, 3), (-5.0, 1)):
                    spec = point(scheme=scheme, d_model=width, seed=seed, log2_eta=log2_eta)
                    noise = 1 + 0.01 * (-1) ** (seed + width // 16)
                    rows.append(_row(spec, noise * width ** (factor * p), width, lost))
    return Results(EMPTY.runs, pd.DataFrame(rows))


def _row(spec: dict, value: float, width: int, lost: bool) -> dict:
    names = [
        ("activation", "logits", "change", [16, 11]),
        ("activation", "logits.readout", "change", [16, 11]),
        ("activation", "blocks.0", "change", [16, width]),
        ("activation", "blocks.1", "change", [16, width]),
        ("activation", "blocks.1.attn.qk", "change", [4, 36]),
        ("weight", "embed.w", "update_frobenius", [11, width]),
    ]
    found = [(1, *name, value) for name in names]
    found += [(2, *name, None if lost and width == 128 else value) for name in names]
    found += [(0, "weight", "embed.w", "norm_frobenius", [11, width], 1.0)]
    step, kind, tensor, quantity, shape, values = (list(column) for column in zip(*found))
    result = {
        "step": step,
        "kind": kind,
        "tensor": tensor,
        "quantity": quantity,
        "shape": shape,
        "value": values,
    }
    return point_row("decoder", spec, result)


def test_slopes_are_recovered() -> None:
    for scheme, p in SLOPES.items():
        found = tables.slope(results(), scheme, "blocks.-1", "change", 2)
        assert found.value == pytest.approx(p, abs=0.02)
        assert found.lo < p < found.hi
        small = tables.slope(results(), scheme, "embed", "update", 1, pace="small")
        assert small.value == pytest.approx(3 * p, abs=0.02)


def test_difference_of_slopes() -> None:
    a, b = (tables.slope(results(), s, "logits", "change", 1) for s in ("sp", "umup"))
    found = tables.slope_difference(results(), "sp", "umup", "logits", "change", 1)
    assert found.value == pytest.approx(1, abs=0.02)
    half = math.hypot(a.hi - a.value, b.hi - b.value)
    assert (found.lo, found.hi) == pytest.approx((found.value - half, found.value + half))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheme": "completep"}, "no points of CompleteP"),
        ({"tensor": "blocks.7"}, "no change of blocks.7"),
        ({"step": 3}, "after 3 steps at large η"),
        ({"factor": 16}, "widths span 8×, the claim needs 16×"),
    ],
)
def test_what_is_absent_is_not_measured(changes: dict, said: str) -> None:
    args = {"scheme": "sp", "tensor": "logits", "quantity": "change", "step": 2}
    with pytest.raises(NotMeasured, match=said):
        tables.slope(results(), **(args | changes))
    with pytest.raises(NotMeasured):
        tables.slope(EMPTY, **args)


def test_a_diverged_width_is_growth_without_bound() -> None:
    assert tables.slope(results(lost=True), "mup", "logits", "change", 2).lo == math.inf
    assert tables.slope(results(lost=True), "mup", "logits", "change", 1).hi < 1
    check = tables.checks(results(lost=True), 0.2)["mup"]
    assert check.diverged[-1] == "diverges at η = 0.03125 from width 128 on, by step 2"


def test_words() -> None:
    found = tables.checks(results(), 0.2)
    assert list(found) == ["sp", "mup", "umup", "mup_readout_lr"]
    answer = words.answer(found, 1)
    assert "After 2 steps" in answer
    assert "0.5 under SP, 0.0 under μP, −0.5 under u-μP" in answer
    assert "SP 6 of 7" in answer
    assert "μP 0 of 7" in answer
    assert "its own part of the first change goes like the power −3.0" in answer
    glued = words.glued(found, 2, 1)
    assert (glued["coord_sp_qk"], glued["coord_blog_readout"]) == ("0.5", "−3.0")
    assert "| u-μP | 6 of 7 | embed update −1.5 |" in words.broken_table(found, 1)
    assert "| SP | 0.0 |" in words.norms_table(found, 1)
    assert "widths 16, 32, 64, 128" in words.what_ran(results())


def labels(figure) -> str:
    texts = [
        t.get_text()
        for ax in figure.axes
        for t in (
            *ax.texts,
            ax.title,
            ax.xaxis.label,
            ax.yaxis.label,
            *ax.get_xticklabels(),
            *ax.get_yticklabels(),
        )
    ]
    return " ".join(texts)


def test_figures_draw_what_the_tables_say() -> None:
    slopes = tables.fitted(tables.checks(results(), 0.2))
    ladder = figures.ladder(slopes, 0.2, 2)
    assert "slope of the change over width" in labels(ladder)
    drawn = {round(float(y), 1) for line in ladder.axes[0].lines for y in line.get_ydata()}
    assert {0.5, -0.5, 1.5} <= drawn
    heat = labels(figures.heat(slopes, 0.2))
    assert "−1.0" in heat
    assert "SP" in heat
    assert "embed" in labels(figures.heat(slopes, 0.2, kind="weight"))
    assert "width d_model" in labels(figures.growth(results()))
    assert "readout's own part" in labels(figures.readout(results()))
    for figure in (figures.growth(EMPTY), figures.readout(EMPTY)):
        assert "not measured" in labels(figure)


def test_slopes_and_growth_are_drawn_as_fitted() -> None:
    slopes = tables.fitted(tables.checks(results(), 0.2))
    ax = figures.ladder(slopes, 0.2, 2).axes[0]
    at = slopes[(slopes["tensor"] == "logits") & (slopes["quantity"] == "change")]
    at = at[(at["step"] == 2) & at["scheme"].isin(["sp", "mup", "umup"])]
    wanted = at.sort_values("pace", ascending=False, kind="stable")["slope"]
    np.testing.assert_allclose(marks(ax)[:, 1], wanted)
    (heat, _) = figures.heat(slopes, 0.2).axes
    at = slopes[(slopes["kind"] == "activation") & (slopes["quantity"] == "change")]
    at = at[(at["step"] == 2) & (at["pace"] == "large")]
    grid = at.pivot(index="scheme", columns="tensor", values="slope")
    rows, columns = list(SLOPES), list(dict.fromkeys(at["tensor"]))
    np.testing.assert_allclose(heat.images[0].get_array(), grid.loc[rows, columns])
    widths = np.array([16, 32, 64, 128])
    for ax, power in ((figures.growth(results()).axes[1], 0.5),):
        points = drawn(ax)["SP"]
        assert points[:, 0].tolist() == widths.tolist()
        np.testing.assert_allclose(points[:, 1], (widths / 16) ** power, rtol=0.03)
    left, right = figures.readout(results()).axes
    np.testing.assert_allclose(drawn(left)["μP"][:, 1], 1.0, rtol=0.03)
    label = tables.TITLES["mup_readout_lr"]
    np.testing.assert_allclose(drawn(right)[label][:, 1], (widths / 16) ** -1.0, rtol=0.03)
