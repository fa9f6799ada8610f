"""FP8: casts against a table of all codes, recipes, products bit for bit, and delayed scaling."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax import lax

from starts import start
from umup import fp8, ops, train
from umup.config import BLOCK_LINEARS, RECIPES, HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError
from umup.fp8 import BF16, E4M3, E5M2, Casts

CODES = {
    "E4M3": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64),
    "E5M2": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2).astype(np.float64),
}
formats = pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda f: f.name)


def nearest(x, fmt):
    """Independent rounding: the nearest finite code, ties to the even code, magnitudes clipped."""
    positive = CODES[fmt.name][:128]
    finite = positive[np.isfinite(positive)]  # code i has value finite[i], rising
    size = np.minimum(np.abs(x), finite[-1])
    above = np.searchsorted(finite, size).clip(1)
    below = above - 1
    to_above, to_below = finite[above] - size, size - finite[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.copysign(np.where(up, finite[above], finite[below]), x)


def cast(x, fmt):
    return np.asarray(fp8.saturate(jnp.asarray(x, jnp.float32), fmt), np.float64)


@formats
def test_formats_are_those_of_the_dtype(fmt):
    codes = CODES[fmt.name]
    assert fmt.largest == codes[np.isfinite(codes)].max()
    assert fmt.smallest == codes[codes > 0].min()


@pytest.mark.optimized
@formats
def test_every_code_comes_back(fmt):
    codes = CODES[fmt.name]
    finite = np.isfinite(codes)
    found = fp8.saturate(jnp.asarray(codes, jnp.float32), fmt)
    bits = np.asarray(found).view(np.uint8)
    np.testing.assert_array_equal(bits[finite], np.arange(256)[finite])
    assert np.isnan(np.asarray(found, np.float32)[np.isnan(codes)]).all()


@pytest.mark.optimized
@formats
def test_rounding_is_to_nearest_and_ties_to_even(fmt):
    positive = CODES[fmt.name][:128]
    finite = positive[np.isfinite(positive)]
    ties = (finite[:-1] + finite[1:]) / 2
    rng = np.random.default_rng(0)
    spread = rng.normal(size=4000) * 2.0 ** rng.integers(-20, 20, 4000)
    x = np.concatenate([ties, np.nextafter(ties, 0, dtype=np.float32), finite * 1.01, spread])
    x = np.concatenate([x, -x]).astype(np.float32)
    np.testing.assert_array_equal(cast(x, fmt), nearest(x.astype(np.float64), fmt))


@formats
def test_bfloat16_is_cast_by_way_of_float32(fmt):
    """XLA:CPU takes bfloat16 to E5M2 by way of float16, which not every processor converts."""
    x = jnp.asarray([1.1, -300.0, 1e6, 1e-6], jnp.bfloat16)
    closed = jax.make_jaxpr(lambda x: fp8.saturate(x, fmt))(x)
    cast = [e for e in equations(closed.jaxpr) if e.outvars[0].aval.dtype == fmt.dtype]
    assert [e.invars[0].aval.dtype for e in cast] == [jnp.float32]
    codes = np.asarray(fp8.saturate(x, fmt)).view(np.uint8)
    want = np.asarray(fp8.saturate(x.astype(jnp.float32), fmt)).view(np.uint8)
    np.testing.assert_array_equal(codes, want)


def equations(jaxpr):
    """All equations of a jaxpr that convert, those of calls within it too."""
    found = []
    for eqn in jaxpr.eqns:
        inner = [p for p in eqn.params.values() if hasattr(p, "jaxpr")]
        found += [e for p in inner for e in equations(p.jaxpr)]
        found += [eqn] if eqn.primitive.name == "convert_element_type" else []
    return found


@pytest.mark.optimized
@formats
def test_what_lies_beyond_the_range(fmt):
    top = fmt.largest
    beyond = [top * 1.01, top * 1.1, 1e30, np.inf]
    assert cast([*beyond, *(-b for b in beyond)], fmt).tolist() == [top] * 4 + [-top] * 4
    assert np.isnan(cast([np.nan], fmt)).all()
    half = fmt.smallest / 2  # the tie goes to zero, the even code
    low = np.nextafter(np.float32(half), 1)
    assert cast([half, low, -half, 0.0], fmt).tolist() == [0.0, fmt.smallest, 0.0, 0.0]


@pytest.mark.optimized
@pytest.mark.parametrize("a, b", [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (BF16, BF16)])
def test_a_product_is_the_float32_product_of_the_cast_operands(a, b):
    x = jax.random.normal(jax.random.key(0), (48, 33)) * 20
    w = jax.random.normal(jax.random.key(1), (33, 16))
    found = fp8.dot(fp8.cast(x, a), fp8.cast(w, b), (1, 0), jnp.float32)
    wide = [v.astype(jnp.float32) for v in (fp8.saturate(x, a), fp8.saturate(w, b))]
    want = lax.dot_general(*wide, (((1,), (0,)), ((), ())))
    if BF16 in (a, b):  # XLA may sum bfloat16 in another order
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-3)
    else:
        np.testing.assert_array_equal(found, want)


def test_recipes():
    table = {
        "plain": {"mlp.down": Casts(), "readout": Casts()},
        "bf16": {"mlp.down": Casts(BF16, BF16, BF16), "readout": Casts(BF16, BF16, BF16)},
        "fp8_seed": {
            "attn.qkv": Casts(E4M3, E4M3, E4M3),
            "attn.out": Casts(E5M2, E4M3, E4M3),
            "mlp.gate_up": Casts(E4M3, E4M3, E4M3),
            "mlp.down": Casts(E5M2, E4M3, E4M3),
            "readout": Casts(E4M3, E4M3, E4M3),
        },
        "fp8_e5m2_grad": {
            "attn.qkv": Casts(E4M3, E4M3, E5M2),
            "attn.out": Casts(BF16, BF16, BF16),
            "mlp.down": Casts(BF16, BF16, BF16),
            "readout": Casts(E4M3, E4M3, E5M2),
        },
        "fp8_current": {"mlp.down": Casts(E4M3, E4M3, E5M2, "current")},
        "fp8_delayed": {"attn.out": Casts(E4M3, E4M3, E5M2, "delayed")},
    }
    assert set(table) == set(RECIPES)
    for recipe, linears in table.items():
        for linear, want in linears.items():
            name = linear if linear == "readout" else f"blocks.3.{linear}"
            assert fp8.casts(recipe, name) == want, (recipe, linear)
    for recipe, linear in itertools.product(RECIPES, [*BLOCK_LINEARS, "readout"]):
        found = fp8.casts(recipe, linear)
        # XLA has no FP8 GEMM of two E5M2 operands: in none of the three products.
        assert [found.x, found.w, found.g].count(E5M2) <= 1
    with pytest.raises(ConfigError, match=r"recipe: received 'fp8'.*fp8_seed"):
        fp8.casts("fp8", "readout")


def test_single_layers_can_stay_in_bfloat16():
    kept = ("blocks.1.mlp.down", "attn.out")
    wide = Casts(BF16, BF16, BF16)
    assert fp8.casts("fp8_seed", "blocks.1.mlp.down", kept) == wide
    assert fp8.casts("fp8_seed", "blocks.2.mlp.down", kept).x == E5M2
    assert fp8.casts("fp8_seed", "blocks.2.attn.out", kept) == wide
    assert fp8.casts("plain", "blocks.2.attn.out", kept) == Casts()
    with pytest.raises(ConfigError, match=r"keep_bf16: received 'mlp.up'.*blocks\.3"):
        ModelConfig(keep_bf16=("mlp.up",))
    with pytest.raises(ConfigError, match="keep_bf16"):
        ModelConfig(n_layers=2, keep_bf16=("blocks.2.mlp.down",))
    with pytest.raises(ConfigError, match="recipe: received 'fp8'"):
        ModelConfig(recipe="fp8")


SCALES = (0.5, 0.25, 0.125)  # powers of two, so that scaling rounds nothing


def products(x, w, g, casts, history=None):
    """y, dx and dW of ``ops.linear``, and the next history."""

    def f(x, w, history):
        return ops.linear(x, w, *SCALES, casts, history)

    y, pull = jax.vjp(f, x, w, history)
    return y, *pull(g)


def operands(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(24, 16), (16, 32), (24, 32)]
    x, w, g = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    return x.astype(dtype), w, g.astype(dtype)


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["bf16", "fp8_seed", "fp8_e5m2_grad"])
@pytest.mark.parametrize("linear", ["attn.qkv", "mlp.down"])
def test_all_three_products_take_the_cast_operands(recipe, linear, dtype):
    x, w, g = operands(dtype)
    casts = fp8.casts(recipe, linear)
    x8, w8, g8 = (
        np.asarray(fp8.saturate(t.astype(jnp.float32), f), np.float64)
        for t, f in zip((x, w, g), casts[:3], strict=True)
    )
    y, dx, dw, _ = products(x, w, g, casts)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 8e-3, "atol": 0.02}
    )
    for found, want in (
        (y, SCALES[0] * x8 @ w8),
        (dx, SCALES[1] * g8 @ w8.T),
        (dw, SCALES[2] * x8.T @ g8),
    ):
        np.testing.assert_allclose(np.asarray(found, np.float64), want, **tolerance)


def test_current_scaling_saves_what_a_plain_cast_flushes():
    x, w, g = operands()
    tiny = 2.0**-20
    seed, current = fp8.casts("fp8_seed", "attn.qkv"), fp8.casts("fp8_current", "attn.qkv")
    assert not np.asarray(products(x, w, g * tiny, seed)[2]).any(), "all of g flushes"
    _, dx, dw, _ = products(x, w, g, current)
    _, small_dx, small_dw, _ = products(x, w, g * tiny, current)
    np.testing.assert_allclose(small_dx, dx * tiny, rtol=1e-6)
    np.testing.assert_allclose(small_dw, dw * tiny, rtol=1e-6)
    exact = SCALES[2] * np.asarray(x, np.float64).T @ np.asarray(g, np.float64)
    assert np.abs(np.asarray(dw) - exact).max() < 0.1 * np.abs(exact).max()


def test_a_tensor_of_zeros_and_one_with_infinities_can_be_scaled():
    x, w, g = operands()
    casts = fp8.casts("fp8_current", "attn.qkv")
    assert not np.asarray(products(x * 0, w, g, casts)[0]).any()
    assert np.isfinite(products(x.at[0, 0].set(jnp.inf), w, g, casts)[0]).all()


def test_delayed_scaling_takes_the_magnitudes_of_earlier_steps():
    x, w, g = operands()
    delayed, current = fp8.casts("fp8_delayed", "attn.qkv"), fp8.casts("fp8_current", "attn.qkv")
    empty = jnp.zeros((3, fp8.HISTORY))
    y, _, _, history = products(x, w, g, delayed, empty)
    unscaled = products(x, w, g, current._replace(scaling="none"))[0]
    np.testing.assert_array_equal(y, unscaled)  # nothing is remembered yet
    want = [float(jnp.abs(t).max()) for t in (x, w, g)]
    np.testing.assert_allclose(history[:, 0], want)
    assert not np.asarray(history[:, 1:]).any()
    for found, wanted in zip(
        products(x, w, g, delayed, history)[:3], products(x, w, g, current)[:3], strict=True
    ):
        np.testing.assert_array_equal(found, wanted)  # the same data: the same scales
    *_, later = products(x / 4, w, g, delayed, history)
    np.testing.assert_allclose(later[0, :2], [want[0] / 4, want[0]])
    assert float(fp8.remembered(later)[0]) == pytest.approx(want[0]), "the largest, not the last"


def test_a_magnitude_is_remembered_for_sixteen_steps():
    x, w, g = operands()
    delayed = fp8.casts("fp8_delayed", "attn.qkv")
    *_, history = products(100 * x, w, g, delayed, jnp.zeros((3, fp8.HISTORY)))
    seen = []
    for _ in range(17):
        seen.append(float(fp8.remembered(history)[0]))
        *_, history = products(x, w, g, delayed, history)
    largest = float(jnp.abs(x).max())
    np.testing.assert_allclose(seen, [100 * largest] * 16 + [largest], rtol=1e-5)


@pytest.mark.parametrize(
    ("platform", "capability", "native"),
    [("gpu", "9.0", True), ("gpu", "8.9", True), ("gpu", "8.0", False), ("cpu", None, False)],
)
def test_native_fp8_begins_with_compute_capability_8_9(monkeypatch, platform, capability, native):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(fp8.jax, "devices", lambda: [device])
    assert fp8.on_hopper() is native


# --- whole models ---------------------------------------------------------------------------------


def make_run(scheme="umup", steps=6, eta=0.5, **model):
    shape = {
        "d_model": 16,
        "n_layers": 3,
        "d_head": 8,
        "d_ff": 48,
        "vocab_size": 16,
        "seq_len": 8,
        "base_width": 16,
        "base_depth": 3,
        "base_d_head": 8,
        "unroll": 1,
    }
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(shape | model)),
        optim=OptimConfig(steps=steps, batch_size=4, warmup_steps=2),
        hps=HPs(eta=eta),
        seed=1,
        corpus="c",
        tokenizer="t",
        data_digest="d",
    )


TOKENS = (np.arange(4000) ** 2 % 13).astype(np.uint16)


def trained(runs, chunks, at_once=1):
    """Losses (runs, steps) and the last states, of runs of one shape in chunks of given lengths."""
    chunk, (lanes, states), found = train.programs(runs[0], at_once).chunk, start(runs), []
    for steps in chunks:
        states, losses = chunk(jnp.asarray(TOKENS), lanes, states, steps)
        found.append(np.asarray(losses))
    return np.concatenate(found, axis=1), states


@cache
def losses(**model):
    return trained([make_run(**model)], [6])[0][0]


def test_layers_kept_one_by_one_are_the_recipe_of_them_all():
    every = tuple(f"blocks.{i}.{name}" for i in range(3) for name in BLOCK_LINEARS)

    def program(**model):
        run = make_run(**model)
        _, states = start([run])
        ids = jnp.zeros((4, 8), jnp.int32)
        state = jax.tree.map(lambda x: x[0], states)
        return str(jax.make_jaxpr(lambda state: train.gradients(run, state, (ids, ids)))(state))

    assert program(recipe="fp8_seed", keep_bf16=(*every, "readout")) == program(recipe="bf16")
    bf16, seed = losses(recipe="bf16"), losses(recipe="fp8_seed")
    one = losses(recipe="fp8_seed", keep_bf16=("blocks.1.mlp.down",))
    assert (one != seed).any() and (one != bf16).any()
    np.testing.assert_allclose(one, seed, atol=0.05)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_in_chunks_and_lanes_alike(recipe):
    whole = losses(recipe=recipe)
    runs = [make_run(recipe=recipe), make_run(recipe=recipe, eta=1.0)]
    both, _ = trained(runs, [2, 2, 2], at_once=2)
    np.testing.assert_allclose(both[0], whole, rtol=2e-3)
    np.testing.assert_allclose(whole, losses(recipe="plain"), atol=0.1)


def test_a_chunk_takes_up_what_the_one_before_remembered():
    """Delayed scaling alone carries anything from step to step that other recipes do not."""
    found, _ = trained([make_run(recipe="fp8_delayed")], [2, 2, 2])
    np.testing.assert_array_equal(found[0], losses(recipe="fp8_delayed"))


def test_delayed_scaling_remembers_through_training():
    _, states = trained([make_run(recipe="fp8_delayed")], [6])
    memory = dict(nnx.to_flat_state(states.amax))
    assert len(memory) == 5  # four linears, stacked over blocks, and the readout
    for path, amax in memory.items():
        filled = (np.asarray(amax[...])[0] > 0).sum(axis=-1)
        assert (filled == 6).all(), path
    assert not jax.tree.leaves(train.abstract(make_run(recipe="fp8_seed")).amax)


def test_a_unit_scaled_cast_costs_less_precision_than_a_mup_one():
    """Under fp8_seed u-μP's gradients survive the cast and μP's flush."""
    run = {"recipe": "fp8_seed"}
    gap = abs(losses(**run) - losses()).max()
    assert gap < 0.05
    probed = {s: reported(make_run(s, eta=2.0**-6 if s == "mup" else 0.5)) for s in ("umup", "mup")}
    flushed = {s: v["blocks.1.attn.qkv/output_gradient"] for s, v in probed.items()}
    assert flushed["umup"] < 0.1 < 0.5 < flushed["mup"]


def scaled(run, loss_scale, **optim):
    return replace(run, optim=replace(run.optim, loss_scale=loss_scale, **optim))


@pytest.mark.optimized
def test_powers_of_two_as_loss_scales_change_nothing_in_float32():
    """Neither losses nor weights nor moments, with a batch in two parts and a bound on the norm.

    Bit for bit where programs differ in the scale alone; without a scale XLA fuses otherwise.
    """
    for scheme, eta in (("umup", 0.5), ("mup", 2.0**-6)):
        run = make_run(scheme, eta=eta)
        found = [
            trained([scaled(run, scale, clip=100.0, accumulate=2)], [6]) for scale in (1, 2, 2**9)
        ]
        leaves = [jax.tree.leaves((losses, state)) for losses, state in found]
        for none, two, more in zip(*leaves, strict=True):
            np.testing.assert_array_equal(more, two)
            np.testing.assert_allclose(two, none, rtol=1e-3, atol=1e-5)


def test_a_loss_scale_of_one_is_the_program_without_it():
    def program(loss_scale):
        run = scaled(make_run(recipe="fp8_seed"), loss_scale)
        state = jax.tree.map(lambda x: x[0], start([run])[1])
        ids = jnp.zeros((4, 8), jnp.int32)
        return str(jax.make_jaxpr(lambda state: train.gradients(run, state, (ids, ids)))(state))

    assert program(2.0) != program(1.0) == program(1)
    run = make_run()
    assert "loss_scale" not in run.essence()["optim"]
    assert scaled(run, 1.0).key() == run.key() != scaled(run, 2.0).key()


def test_a_loss_scale_lifts_mup_gradients_that_a_cast_flushes():
    run = make_run("mup", eta=2.0**-6, recipe="fp8_seed")
    lifted = scaled(run, 2.0**12)
    name = "blocks.1.attn.qkv/output_gradient"
    assert reported(run)[name] > 0.5 > 0.1 > reported(lifted)[name]


def test_delayed_scaling_remembers_gradients_as_the_casts_see_them():
    run = make_run(recipe="fp8_delayed")
    memory = [
        jax.tree.leaves(trained([scaled(run, scale)], [2])[1].amax) for scale in (1.0, 2.0**9)
    ]
    for one, other in zip(*memory, strict=True):  # (lane, ..., operand, step), the first step's
        np.testing.assert_allclose(other[..., :2, 1], one[..., :2, 1], rtol=1e-6)
        np.testing.assert_allclose(other[..., 2, 1], 2.0**9 * one[..., 2, 1], rtol=1e-6)


def reported(run):
    found = train.programs(run).observe(jnp.asarray(TOKENS), *start([run]))[0]
    return dict(zip(train.observed(run), np.asarray(found)[:, 4], strict=True))
