"""What every scheme promises of every op and of the whole model, in one place.

Ops: gradients are a stated constant times the true ones, unit scale where the theory promises it
and the stated other value where it does not, one program for all schemes and settings. Model: the
cut-edge rule with its constants predicted, edge shapes, causality through gradients. Residual
scheme: Lemma C.1. The plain counterparts are written here in NumPy and plain JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from umup import ops, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.model import split
from umup.rules import Parametrization, attention_out_std, gated_silu_std, residual_taus
from umup.schemes import SCHEMES, get

settings.register_profile("contract", deadline=None, max_examples=12, derandomize=True)
settings.load_profile("contract")

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
UNIT = [name for name, scheme in SCHEMES.items() if scheme.unit_scaled]


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


# --- ops ------------------------------------------------------------------------------------------

TOKENS, D_IN, D_OUT, VOCAB, D_HEAD, SEQ = 512, 64, 128, 256, 16, 128
SHAPE = ModelConfig(
    d_model=D_IN,
    n_layers=3,
    d_head=D_HEAD,
    d_ff=D_OUT,
    vocab_size=VOCAB,
    seq_len=SEQ,
    base_width=16,
    base_depth=2,
    base_d_head=4,
)
IDS = np.random.default_rng(3).integers(VOCAB, size=8 * VOCAB)
TARGETS = np.arange(TOKENS) % VOCAB
MASK = np.tril(np.ones((SEQ, SEQ), bool))


@dataclass(frozen=True)
class Op:
    """An op under contract.

    ``scales(p)`` are its numbers, ``run(scales, *primals)`` the op, ``plain`` the same forward in
    plain JAX; ``constants(scales)`` says what each gradient is, as a multiple of plain's. ``unit``
    holds the RMS of output and gradients for unit-scaled inputs and cotangent under u-μP: (value,
    relative tolerance), or a function of the logit multiplier·d_head for attention.
    """

    scales: Callable[[Parametrization], tuple]
    primals: Callable[[], tuple]
    run: Callable[..., Any]
    plain: Callable[..., Any]
    constants: Callable[..., tuple]
    unit: Any


def weight(role, fan_in, fan_out, tokens_of=lambda p: p):
    def scales(p):
        n = tokens_of(p).weight(role, fan_in, fan_out)
        return n.forward, n.backward, n.weight_grad

    return scales


def linear_op(role, fan_in, fan_out, unit):
    return Op(
        scales=weight(role, fan_in, fan_out),
        primals=lambda: (normal(0, TOKENS, fan_in), normal(1, fan_in, fan_out)),
        run=lambda s, x, w: ops.linear(x, w, *s),
        plain=lambda s, x, w: (x @ w.astype(x.dtype)) * jnp.asarray(s[0], x.dtype),
        constants=lambda f, b, g: (b / f, g / f),
        unit=unit,
    )


def plain_attention(s, q, k, v):
    scores = jnp.einsum("ntd,nsd->nts", q, k) * s[0]
    return jax.nn.softmax(jnp.where(MASK, scores, -1e30), axis=-1) @ v * s[1]


def plain_embedding(s, w):
    return w[IDS] * s[0]


def plain_residual(s, x, w):
    return s[0] * jnp.tanh(x @ w / math.sqrt(D_IN)) + s[1] * x


def residual(s, x, w):
    add, keep, add_grad, split_grad = s
    branch, skip = ops.residual_split(x, split_grad)
    return ops.residual_add(jnp.tanh(branch @ w / math.sqrt(D_IN)), skip, add, keep, add_grad)


def plain_rope(s, x):
    """Complex numbers turned by their position's angle."""
    half = D_HEAD // 2
    angles = np.outer(np.arange(SEQ), 10_000.0 ** (-np.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    c, d = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return jnp.concatenate([a * c - b * d, a * d + b * c], -1)


def plain_loss(s, z):
    return -jnp.mean(jax.nn.log_softmax(s[0] * z)[np.arange(TOKENS), TARGETS])


def attention_unit(alpha):
    # Errata, 7: dq and dk come out at about 0.9·α/√d_head, not at 1.
    return ((1.0, 0.15), *[(0.9 * alpha / math.sqrt(D_HEAD), 0.15)] * 2, (1.0, 0.15))


OPS = {
    "linear": linear_op("hidden", D_IN, D_IN, ((1, 0.1), (1, 0.1), (1, 0.1))),
    # The forward scale both ways: a widening layer's dx has RMS √(fan_out/fan_in).
    "widening": linear_op("hidden", D_IN, D_OUT, ((1, 0.1), (math.sqrt(2), 0.1), (1, 0.1))),
    "narrowing": linear_op("hidden", D_OUT, D_IN, ((1, 0.1), (math.sqrt(0.5), 0.1), (1, 0.1))),
    # Logits shrink like 1/√fan_in, as μP wants; the gradient does not.
    "readout": linear_op("output", D_IN, VOCAB, ((1 / 8, 0.1), (1, 0.1), (1, 0.1))),
    "embedding": Op(
        scales=weight("input", VOCAB, D_IN, lambda p: _with_tokens(p, len(IDS))),
        primals=lambda: (normal(0, VOCAB, D_IN),),
        run=lambda s, w: ops.embed(IDS, w, s[0], s[2]),
        plain=plain_embedding,
        constants=lambda f, b, g: (g / f,),
        unit=((1, 0.1), (1, 0.1)),
    ),
    "attention": Op(
        scales=lambda p: p.attention(D_HEAD, SEQ),
        primals=lambda: tuple(normal(i, 6, SEQ, D_HEAD) for i in range(3)),
        run=lambda s, q, k, v: ops.attention(q, k, v, *s),
        plain=plain_attention,
        constants=lambda logit, out: (1.0, 1.0, 1.0),
        unit=lambda s: attention_unit(s[0] * D_HEAD),
    ),
    "gated_silu": Op(
        scales=lambda p: p.gated_silu(),
        primals=lambda: (normal(0, TOKENS, D_IN), normal(1, TOKENS, D_IN)),
        run=lambda s, x, gate: ops.gated_silu(x, gate, *s),
        plain=lambda s, x, gate: s[1] * x * gate / (1 + jnp.exp(-s[0] * gate)),
        constants=lambda alpha, out: (1.0, 1.0),
        unit=((1, 0.1), (1, 0.1), (1, 0.1)),
    ),
    "rms_norm": Op(
        scales=lambda p: (),
        primals=lambda: (normal(0, TOKENS, D_IN),),
        run=lambda s, x: ops.rms_norm(x),
        plain=lambda s, x: x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5),
        constants=lambda: (1.0,),
        unit=((1, 0.02), (1, 0.05)),
    ),
    "rope": Op(
        scales=lambda p: (),
        primals=lambda: (normal(0, 6, SEQ, D_HEAD),),
        run=lambda s, x: ops.rope(x, *ops.rope_tables(SEQ, D_HEAD)),
        plain=plain_rope,
        constants=lambda: (1.0,),
        unit=((1, 0.02), (1, 0.02)),
    ),
    "residual": Op(
        scales=lambda p: (lambda n: (n.add, n.skip, n.add_grad, n.split_grad))(p.residual()[1]),
        primals=lambda: (normal(0, TOKENS, D_IN), 3 * normal(1, D_IN, D_IN)),
        run=residual,
        plain=plain_residual,
        # The branch's weight misses the multiplier that waits at the split.
        constants=lambda add, keep, add_grad, split_grad: (1.0, add_grad / add),
        unit=None,
    ),
    "cross_entropy": Op(
        scales=lambda p: p.loss(VOCAB),
        primals=lambda: (1e-3 * normal(0, TOKENS, VOCAB),),
        run=lambda s, z: ops.cross_entropy(z, TARGETS, *s),
        plain=plain_loss,
        constants=lambda alpha, grad: (grad * TOKENS / alpha,),
        unit=((math.log(VOCAB), 1e-3), (1, 0.01)),
    ),
}


def _with_tokens(p, tokens):
    return Parametrization(p.scheme, p.model, p.hps, tokens)


def numbers(scheme, model=SHAPE, tokens=TOKENS, **hps):
    return Parametrization(scheme, model, HPs(**hps).to_dict(), tokens)


def floats(values):
    return tuple(float(v) for v in values)


def program(name, which):
    """(scales, primals, cotangent) → (value, gradients), and the value alone; freshly compiled."""
    fn = getattr(OPS[name], which)

    def both(scales, primals, cotangent):
        out, pull = jax.vjp(lambda *x: fn(scales, *x), *primals)
        return out, pull(cotangent)

    return jax.jit(both), jax.jit(lambda scales, *primals: fn(scales, *primals))


compiled = cache(program)


@cache
def primals_of(name, dtype):
    """The op's primals in ``dtype``, weights staying float32."""
    primals = [jnp.asarray(np.float32(x).astype(dtype)) for x in OPS[name].primals()]
    if name in ("linear", "widening", "narrowing", "readout"):
        primals[1] = primals[1].astype(jnp.float32)
    return primals


@lru_cache(maxsize=64)  # many schemes have the same numbers
def evaluated(name, which, scales, dtype):
    """Value and gradients at the op's primals in ``dtype``."""
    primals = primals_of(name, dtype)
    both, forward = compiled(name, which)
    traced = tuple(jnp.float32(s) for s in scales)
    value = forward(traced, *primals)
    cotangent = jnp.asarray(normal(9, *value.shape) if value.shape else 1.0, value.dtype)
    out, gradients = both(traced, tuple(primals), cotangent)
    return primals, value, out, gradients


HP_SETS = (
    {},
    {
        "alpha_attn_softmax": 4.0,
        "alpha_ffn_act": 0.125,
        "alpha_loss_softmax": 8.0,
        "alpha_output": 0.125,
        "alpha_emb": 8.0,
        "sigma_init": 0.25,
        "alpha_residual": 0.25,
        "alpha_residual_attn_ratio": 4.0,
    },
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_gradients_are_the_stated_constant_times_the_true_ones(name, dtype):
    op, exact = OPS[name], dtype == "float32"
    for scheme in SCHEMES:
        for hps in HP_SETS:
            where = f"{name} {dtype} {scheme} {hps}"
            scales = floats(op.scales(numbers(scheme, **hps)))
            primals, value, out, found = evaluated(name, "run", scales, DTYPES[dtype])
            np.testing.assert_array_equal(value, out, err_msg=f"{where}: primal")
            is_loss = name == "cross_entropy"
            assert value.dtype == (jnp.float32 if is_loss else DTYPES[dtype]), where
            # The plain op in float32 on the very inputs: what bfloat16 rounds is the op's affair.
            _, _, want, true = evaluated(name, "plain", scales, jnp.float32)
            tolerance = 1e-5 if exact else 0.04 if not is_loss else 1e-3
            np.testing.assert_allclose(
                np.float32(out), want, rtol=tolerance, atol=tolerance * rms(want), err_msg=where
            )
            for g, t, x, c in zip(found, true, primals, op.constants(*scales), strict=True):
                assert g.dtype == x.dtype, where
                tolerance = (2e-5 if exact else 0.05) * c * np.abs(t).max()
                np.testing.assert_allclose(
                    np.float32(g), c * t, rtol=0, atol=tolerance, err_msg=where
                )


@pytest.mark.parametrize("name", OPS)
def test_one_program_serves_all_schemes_and_settings(name):
    """No recompilation when only values change."""
    both, forward = program(name, "run")
    primals = tuple(jnp.asarray(x, jnp.float32) for x in OPS[name].primals())
    for scheme in ("sp", "mup", "umup"):
        for hps in HP_SETS:
            s = tuple(jnp.float32(x) for x in OPS[name].scales(numbers(scheme, **hps)))
            value = forward(s, *primals)
            both(s, primals, jnp.ones_like(value))
    assert (both._cache_size(), forward._cache_size()) == (1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.unit])
@pytest.mark.parametrize("scheme", UNIT)
def test_rms_is_one_or_the_stated_value(scheme, name, dtype):
    """Theory, section 5: every op at initialization under unit-scaled schemes."""
    op = OPS[name]
    scales = floats(op.scales(numbers(scheme)))
    _, _, out, gradients = evaluated(name, "run", scales, DTYPES[dtype])
    want = op.unit(scales) if callable(op.unit) else op.unit
    for i, (tensor, (value, tolerance)) in enumerate(zip((out, *gradients), want, strict=True)):
        assert rms(tensor) == pytest.approx(value, rel=tolerance), (i, "0 is the output")


@pytest.mark.parametrize("alpha", [0.125, 0.5, 2.0, 8.0])
def test_gated_silu_is_unit_scaled_at_every_alpha(alpha):
    scales = floats(numbers("umup", alpha_ffn_act=alpha).gated_silu())
    _, _, out, gradients = evaluated("gated_silu", "run", scales, jnp.float32)
    assert [rms(t) for t in (out, *gradients)] == pytest.approx([1, 1, 1], abs=0.1)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_attention_gradients_grow_with_alpha(alpha):
    scales = floats(numbers("umup", alpha_attn_softmax=alpha).attention(D_HEAD, SEQ))
    _, _, out, gradients = evaluated("attention", "run", scales, jnp.float32)
    want = [value for value, _ in attention_unit(alpha)]
    assert [rms(t) for t in (out, *gradients)] == pytest.approx(want, rel=0.15)


@pytest.mark.parametrize("tau", [0.05, 1.0, 20.0])
def test_residual_keeps_unit_scale(tau):
    add, keep = math.sqrt(tau / (1 + tau)), math.sqrt(1 / (1 + tau))
    w = np.float32(normal(0, 128, 128) / math.sqrt(128))

    def layer(x):
        branch, skip = ops.residual_split(x, add)
        return ops.residual_add(branch @ w, skip, add, keep, 1.0)

    x, g = np.float32(normal(1, 256, 128)), np.float32(normal(2, 256, 128))
    out, (d_x,) = pulled(layer)((x,), g)
    assert (rms(out), rms(d_x)) == (pytest.approx(1, abs=0.1), pytest.approx(1, abs=0.1))


@pytest.mark.parametrize("vocab", [2, 256])
def test_the_loss_gradient_is_exactly_unit_scaled_for_uniform_predictions(vocab):
    scales = numbers("umup").loss(vocab)
    z, targets = np.zeros((64, vocab), np.float32), np.arange(64) % vocab
    loss, (grad,) = pulled(_loss)((z,), np.float32(1), targets, *scales)
    assert float(loss) == pytest.approx(math.log(vocab))
    assert rms(grad) == pytest.approx(1.0, rel=1e-5)


# --- invariants of ops over shapes ----------------------------------------------------------------

SEEDS = st.integers(0, 2**20)
ALPHAS = st.floats(-6, 6).map(lambda x: 2.0**x)


def sizes(*shapes):
    """Few shapes, so that few programs are compiled; values vary more."""
    return st.sampled_from(shapes)


@cache
def pulled(fn):
    """(primals, cotangent, *rest) → (value, gradients) of fn(*primals, *rest), compiled."""

    def both(primals, g, *rest):
        out, pull = jax.vjp(lambda *x: fn(*x, *rest), *primals)
        return out, pull(g)

    return jax.jit(both)


def arrays(seed, count, *shape):
    return tuple(np.float32(x) for x in normal(seed, count, *shape))


@given(shape=sizes((1, 1, 1), (2, 5, 3), (3, 8, 4)), alpha=ALPHAS, seed=SEEDS)
def test_attention_of_any_shape_is_a_mean_of_the_values(shape, alpha, seed):
    q, k, v, g = arrays(seed, 4, *shape)
    out, (d_q, d_k, d_v) = pulled(ops.attention)((q, k, v), g, np.float32(alpha), np.float32(2))
    assert (np.asarray(out) <= 2 * np.maximum.accumulate(v, axis=1) + 1e-5).all()
    np.testing.assert_allclose(out[:, 0], 2 * v[:, 0], rtol=1e-6)  # T = 1 is the identity
    assert all(np.isfinite(d).all() for d in (d_q, d_k, d_v))
    # Weights sum to one: the values' gradients add up to the cotangent's sum.
    np.testing.assert_allclose(d_v.sum(1), 2 * g.sum(1), rtol=1e-4, atol=1e-4)
    # Shifting all keys by one vector moves no softmax: their gradients add up to zero.
    np.testing.assert_allclose(d_k.sum(1), 0 * d_k[:, 0], atol=2e-5 * max(alpha, 1))
    np.testing.assert_allclose(d_q[:, 0], 0 * d_q[:, 0], atol=2e-5 * max(alpha, 1))


@given(shape=sizes((1, 2), (7, 3), (4, 20)), alpha=ALPHAS, seed=SEEDS)
def test_loss_gradients_of_any_shape_sum_to_zero(shape, alpha, seed):
    (z,), targets = arrays(seed, 1, *shape), np.arange(shape[0]) % shape[1]
    loss, (g,) = pulled(_loss)((z,), np.float32(1), targets, np.float32(alpha), np.float32(3))
    assert float(loss) >= 0
    np.testing.assert_allclose(g.sum(-1), 0 * g[:, 0], atol=1e-5)
    assert (np.asarray(g)[np.arange(shape[0]), targets] <= 0).all()
    assert np.abs(g).max() <= 3.0 + 1e-5


def _loss(z, targets, alpha, grad_scale):
    return ops.cross_entropy(z, targets, alpha, grad_scale)


@given(shape=sizes((1, 2), (5, 7), (3, 16)), size=ALPHAS, seed=SEEDS)
def test_rms_norm_of_any_shape(shape, size, seed):
    x, g = arrays(seed, 2, *shape)
    assume(np.abs(x).max(-1).min() > 0.1)
    x *= np.float32(size)
    out, (d_x,) = pulled(_norm)((x,), g)
    np.testing.assert_allclose(np.mean(np.square(out), -1), np.ones(len(x)), rtol=1e-5)
    np.testing.assert_allclose(out, x / np.sqrt((x**2).mean(-1, keepdims=True)), rtol=1e-4)
    # It sees the direction only: the gradient is orthogonal to x.
    np.testing.assert_allclose((d_x * x).sum(-1), np.zeros(len(x)), atol=1e-4)


def _norm(x):
    return ops.rms_norm(x, eps=0.0)


@given(shape=sizes((1, 2), (5, 6), (9, 4)), seed=SEEDS)
def test_rope_of_any_shape_keeps_norms_both_ways(shape, seed):
    x, g = arrays(seed, 2, *shape)
    out, (d_x,) = pulled(ops.rope)((x,), g, *ops.rope_tables(*shape))
    np.testing.assert_allclose((out**2).sum(-1), (x**2).sum(-1), rtol=1e-4)
    np.testing.assert_allclose((d_x**2).sum(-1), (g**2).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(out[0], x[0], rtol=1e-6)  # position 0 is not turned


# --- the whole model ------------------------------------------------------------------------------

BASE = {
    "d_model": 16,
    "n_layers": 2,
    "d_head": 8,
    "d_ff": 24,
    "vocab_size": 13,
    "seq_len": 6,
    "base_width": 8,
    "base_depth": 1,
    "base_d_head": 4,
}
BATCH = 3


def make_run(scheme, hps=None, **model):
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(BASE | model)),
        hps=HPs(**(hps or {})),
        seed=0,
        optim=OptimConfig(steps=4, batch_size=BATCH, warmup_steps=1),
        corpus="c",
        tokenizer="t",
        data_digest="d",
    )


def state_of(run):
    """(parametrization, parameters, scales) at initialization."""
    lane = jax.tree.map(lambda x: x[0], train.lanes_of([run]))
    _, params, scales = split(train.build(run, lane))
    return train.parametrization(run, run.hps.to_dict()), params, scales


def batch_of(model):
    tokens = np.random.default_rng(4).integers(model.vocab_size, size=(BATCH, model.seq_len + 1))
    return jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])


def plain_model(config, params, numbers, ids):
    """Logits of the forward pass in plain operations, from weights and numbers alone.

    ``numbers``: forward multipliers by weight, (add, skip) by branch, attention's, gated SiLU's.
    """
    batch, seq_len = ids.shape
    half = config.d_head // 2

    def norm(x):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)

    def rotate(a):
        if not config.rope:
            return a
        angles = np.outer(np.arange(seq_len), config.rope_theta ** (-np.arange(half) / half))
        c, s = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        a, b = a[..., :half], a[..., half:]
        return jnp.concatenate([a * c - b * s, a * s + b * c], -1)

    x = params["embed"]["w"][...][ids] * numbers["embed"]
    blocks = params["blocks"]
    for i in range(config.n_layers):
        w = {
            "qkv": blocks["attn"]["qkv"]["w"][i],
            "out": blocks["attn"]["out"]["w"][i],
            "gate_up": blocks["mlp"]["gate_up"]["w"][i],
            "down": blocks["mlp"]["down"]["w"][i],
        }
        w = {name: matrix.reshape(len(matrix), -1) for name, matrix in w.items()}  # parts abreast

        def linear(name, x, w=w):
            return x @ w[name] * numbers[name]

        heads = linear("qkv", norm(x)).reshape(batch, seq_len, 3, config.n_heads, config.d_head)
        q, k, v = heads.transpose(2, 0, 3, 1, 4)
        scores = rotate(q) @ jnp.swapaxes(rotate(k), -1, -2) * numbers["logit"]
        mask = np.arange(seq_len)[:, None] >= np.arange(seq_len)
        y = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1) @ v * numbers["attn_out"]
        y = y.transpose(0, 2, 1, 3).reshape(x.shape)
        x = numbers["add"][2 * i] * linear("out", y) + numbers["skip"][2 * i] * x
        gate, up = jnp.split(linear("gate_up", norm(x)), 2, axis=-1)
        h = up * gate / (1 + jnp.exp(-numbers["alpha_gate"] * gate)) * numbers["gate_out"]
        x = numbers["add"][2 * i + 1] * linear("down", h) + numbers["skip"][2 * i + 1] * x
    return norm(x) @ params["readout"]["w"][...] * numbers["readout"]


def shapes_of(config):
    """(role, fan_in, fan_out) by weight."""
    d, d_ff, vocab = config.d_model, config.d_ff, config.vocab_size
    return {
        "embed": ("input", vocab, d),
        "qkv": ("hidden", d, 3 * d),
        "out": ("hidden", d, d),
        "gate_up": ("hidden", d, 2 * d_ff),
        "down": ("hidden", d_ff, d),
        "readout": ("output", d, vocab),
    }


def numbers_and_constants(p):
    """The plain model's numbers, and what each weight's gradient is as a multiple of the true one.

    The constant of a weight follows the cotangent's way down: the loss's own scale, the readout's
    backward over forward, then for a weight on a branch the multiplier that waits at the split.
    """
    config = p.model
    w = {name: p.weight(*shape) for name, shape in shapes_of(config).items()}
    branches, (alpha, grad) = p.residual(), p.loss(config.vocab_size)
    logit, attn_out = p.attention(config.d_head, config.seq_len)
    alpha_gate, gate_out = p.gated_silu()
    values = {name: n.forward for name, n in w.items()} | {
        "logit": logit,
        "attn_out": attn_out,
        "alpha_gate": alpha_gate,
        "gate_out": gate_out,
        "add": [b.add for b in branches],
        "skip": [b.skip for b in branches],
        "alpha": alpha,
    }
    top = grad * p.tokens / alpha
    trunk = top * w["readout"].backward / w["readout"].forward
    constants = {
        "embed": [trunk * w["embed"].weight_grad / w["embed"].forward],
        "readout": [top * w["readout"].weight_grad / w["readout"].forward],
    }
    for names, kind in ((("qkv", "out"), 0), (("gate_up", "down"), 1)):
        for name in names:
            upper = w[names[1]].backward / w[names[1]].forward if name == names[0] else 1.0
            constants[name] = [
                trunk * b.add_grad / b.add * upper * w[name].weight_grad / w[name].forward
                for b in branches[kind::2]
            ]
    return jax.tree.map(jnp.float32, values), constants


@cache
def gradients_of(config):
    """Our and the plain (parameters, numbers) → (loss, gradients), compiled once a shape."""
    graph = train.graph_of(make_run("sp", **{k: getattr(config, k) for k in MODEL_FIELDS}))
    ids, targets = batch_of(config)

    def ours(params, scales):
        return nnx.merge(graph, params, scales).loss(ids, targets)

    def plain(params, numbers):
        logits = plain_model(config, params, numbers, ids) * numbers["alpha"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return -jnp.mean(picked)

    return (jax.jit(ours), jax.jit(jax.value_and_grad(ours)), jax.jit(jax.value_and_grad(plain)))


MODEL_FIELDS = tuple(ModelConfig().to_dict())


def check_model(run, tolerance=1e-5, primal=False):
    """The cut-edge rule: every weight's gradient is its predicted constant times the true one."""
    p, params, scales = state_of(run)
    values, constants = numbers_and_constants(p)
    loss, ours, plain = gradients_of(run.model)
    value, gradients = ours(params, scales)
    want, truth = plain(params, values)
    if primal:
        assert float(loss(params, scales)) == pytest.approx(float(value), rel=1e-6)
    assert float(value) == pytest.approx(float(want), rel=1e-5, abs=1e-6)
    true = dict(jax.tree.leaves_with_path(truth))
    for path, gradient in jax.tree.leaves_with_path(gradients):
        name = next(p.key for p in reversed(path) if getattr(p, "key", "w") in constants)
        layers = len(constants[name])
        for g, t, constant in zip(
            np.reshape(gradient, (layers, -1)),
            np.reshape(true[path], (layers, -1)),
            constants[name],
            strict=True,
        ):
            found = np.dot(g, t) / np.dot(t, t)
            assert found == pytest.approx(float(constant), rel=20 * tolerance), (name, "constant")
            np.testing.assert_allclose(
                g, found * t, rtol=0, atol=tolerance * np.abs(g).max(), err_msg=name
            )
    return constants


HPS_OF = {
    "sp": {"sigma_init": 2.0},
    "mup": {"alpha_emb": 2.0, "alpha_output": 0.5, "alpha_attn_softmax": 2.0, "sigma_init": 0.5},
    "umup": {
        "alpha_residual": 0.5,
        "alpha_residual_attn_ratio": 2.0,
        "alpha_ffn_act": 2.0,
        "alpha_attn_softmax": 0.5,
        "alpha_loss_softmax": 2.0,
    },
}


def hps_of(scheme):
    family = "umup" if get(scheme).unit_scaled else "mup"
    return {k: v for k, v in HPS_OF[family].items() if k in get(scheme).hps}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_gradient_is_a_constant_times_the_true_one(scheme):
    constants = check_model(make_run(scheme, hps_of(scheme)), primal=True)
    for name, values in constants.items():
        for constant in values:  # and without unit scaling the true one itself
            unit = get(scheme).unit_scaled
            assert (abs(constant - 1) > 0.1) if unit else constant == pytest.approx(1.0), name


def test_one_compiled_model_serves_every_scheme_and_setting():
    ours, gradients, _ = gradients_of(ModelConfig(**BASE))
    for scheme in ("sp", "mup", "umup"):
        for hps in ({}, hps_of(scheme)):
            _, params, scales = state_of(make_run(scheme, hps))
            ours(params, scales), gradients(params, scales)
    assert (ours._cache_size(), gradients._cache_size()) == (1, 1)


@pytest.mark.parametrize(
    "shape",
    [
        {"seq_len": 1, "n_layers": 1, "vocab_size": 2},
        {"seq_len": 7, "d_head": 16, "n_layers": 1, "tau_convention": "library"},  # one head, odd T
        {"d_head": 1, "rope": False, "d_ff": 1, "vocab_size": 2, "tau_convention": "printed"},
    ],
)
def test_edge_shapes(shape):
    for scheme in ("mup", "umup"):
        check_model(make_run(scheme, hps_of(scheme), **shape), tolerance=5e-5)


@given(
    hps=st.fixed_dictionaries(
        {
            name: st.floats(-3, 3).map(lambda x: 2.0**x)
            for name in get("umup").hps
            if name not in ("weight_decay", "eta")
        }
    )
)
def test_the_cut_edge_rule_holds_at_any_setting_of_umup(hps):
    check_model(make_run("umup", hps), tolerance=1e-4)


@given(
    hps=st.fixed_dictionaries(
        {
            name: st.floats(-3, 3).map(lambda x: 2.0**x)
            for name in get("mup").hps
            if name not in ("weight_decay", "eta")
        }
    )
)
def test_the_cut_edge_rule_holds_at_any_setting_of_mup(hps):
    check_model(make_run("mup", hps), tolerance=1e-4)


@pytest.mark.parametrize("scheme", ["mup", "umup"])
def test_gradients_are_causal(scheme):
    """A position's logits move with its own and earlier tokens' embeddings, with no later one's."""
    _, params, scales = state_of(make_run(scheme))
    ids = jnp.asarray([[5, 2, 7, 0, 11, 3]])  # no token twice: a row of the table is a position
    found = np.abs(moved_by_the_table(params, scales, ids)).sum(-1)
    assert found.shape == (6, 13)
    for t in range(6):
        seen = {int(i) for i in np.flatnonzero(found[t])}
        assert seen == {int(i) for i in ids[0, : t + 1]}


@jax.jit
def moved_by_the_table(params, scales, ids):
    """Jacobian of every position's sum of squared logits by the embedding's table."""
    graph = train.graph_of(make_run("sp"))

    def size(table):
        leaf = params["embed"]["w"].replace(table)
        moved = nnx.State({**params, "embed": {"w": leaf}})
        return (nnx.merge(graph, moved, scales)(ids)[0] ** 2).sum(-1)

    return jax.jacrev(size)(params["embed"]["w"][...])


# --- the residual scheme --------------------------------------------------------------------------


def depth_mup(alpha, ratio, n_layers):
    """r_l of the plain network: α̂/√L, attention first (Theory, section 6)."""
    ffn = alpha * math.sqrt(2 / (ratio**2 + 1))
    return [a / math.sqrt(2 * n_layers) for _ in range(n_layers) for a in (ratio * ffn, ffn)]


def networks(taus, r, seed):
    """Outputs of the plain network over √Σr², and of its unit-scaled twin, in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 12))
    weights = rng.normal(size=(len(taus), 12, 12)) * rng.uniform(0.1, 3)
    plain, unit, power = x, x, 1.0
    for w, r_l, tau in zip(weights, r, taus, strict=True):

        def f(h, w=w):
            # Normalised before: f sees only the direction, as in a pre-norm transformer.
            return np.tanh(h / np.sqrt((h**2).mean(-1, keepdims=True)) @ w)

        plain, power = r_l * f(plain) + plain, power + r_l**2
        unit = math.sqrt(tau / (tau + 1)) * f(unit) + math.sqrt(1 / (tau + 1)) * unit
    return plain / math.sqrt(power), unit


SIZES = st.integers(1, 9)
DEPTHS = st.integers(1, 16)


@settings(max_examples=60)
@given(n_layers=DEPTHS, alpha=ALPHAS, ratio=ALPHAS, seed=SEEDS)
def test_lemma_c1_holds_to_rounding(n_layers, alpha, ratio, seed):
    taus = residual_taus(n_layers, alpha, ratio, "derived")
    want, found = networks(taus, depth_mup(alpha, ratio, n_layers), seed)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


@given(n_layers=DEPTHS, alpha=ALPHAS, ratio=ALPHAS, seed=SEEDS)
def test_library_convention_is_the_plain_network_with_alpha_root_two_larger(
    n_layers, alpha, ratio, seed
):
    taus = residual_taus(n_layers, alpha, ratio, "library")
    want, found = networks(taus, depth_mup(alpha * math.sqrt(2), ratio, n_layers), seed)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n_layers", "alpha", "ratio"),
    [(2, 1.0, 1.0), (4, 0.5, 2.0), (8, 2.0, 0.5), (16, 4.0, 1.0), (3, 0.25, 0.25)],
)
def test_printed_convention_is_no_depth_mup_network(n_layers, alpha, ratio):
    taus = residual_taus(n_layers, alpha, ratio, "printed")
    want, found = networks(taus, depth_mup(alpha, ratio, n_layers), 1)
    assert np.abs(found - want).max() > 0.1


@settings(max_examples=60)
@given(n_layers=DEPTHS, alpha=ALPHAS, ratio=ALPHAS)
def test_residual_hps_mean_what_they_say(n_layers, alpha, ratio):
    """With unit-variance branches σ(residual)/σ(embedding) = α_r and σ(attn)/σ(FFN) = α_ρ."""
    model = ModelConfig(n_layers=n_layers)
    branches = numbers(
        "umup", model, alpha_residual=alpha, alpha_residual_attn_ratio=ratio
    ).residual()
    parts = np.array([1.0, 0.0, 0.0])  # variances of embedding, attention, FFN at the output
    for i, b in enumerate(branches):
        assert b.add**2 + b.skip**2 == pytest.approx(1.0, rel=1e-12)
        assert b.add_grad * b.split_grad == pytest.approx(b.add, rel=1e-12)
        parts = parts * b.skip**2
        parts[1 + i % 2] += b.add**2
    embedding, attn, ffn = parts
    assert parts.sum() == pytest.approx(1.0, rel=1e-9)
    assert math.sqrt(attn / ffn) == pytest.approx(ratio, rel=1e-9)
    assert math.sqrt((attn + ffn) / embedding) == pytest.approx(alpha, rel=1e-9)


# --- invariants of the rules ----------------------------------------------------------------------


@given(
    heads=SIZES, d_head=st.integers(1, 12), n_layers=DEPTHS, d_ff=st.integers(1, 99), vocab=SIZES
)
def test_mup_is_sp_at_any_base_shape(heads, d_head, n_layers, d_ff, vocab):
    model = ModelConfig(
        d_model=heads * d_head,
        n_layers=n_layers,
        d_head=d_head,
        d_ff=d_ff,
        vocab_size=vocab + 1,
        base_width=heads * d_head,
        base_depth=n_layers,
        base_d_head=d_head,
        rope=False,
    )
    plain = numbers("sp", model)
    others = (
        "mup",
        "completep",
        "mup_sqrt_attention",
        "mup_readout_lr",
        "mup_sqrt_emb",
        "sp_emb_lr",
        "ladder_init",
        "ladder_lr",
        "ladder_logits",
    )
    for scheme in others:
        p = numbers(scheme, model)
        for shape in shapes_of(model).values():
            for residual in (False, True):
                one = p.weight(*shape, residual=residual)
                assert one == plain.weight(*shape, residual=residual), (scheme, shape)
        assert p.residual() == plain.residual()
        assert p.loss(vocab + 1) == plain.loss(vocab + 1)
        assert p.attention(d_head, 8) == pytest.approx(plain.attention(d_head, 8), rel=1e-15)


@given(d_head=st.integers(1, 256), seq_len=st.integers(3, 4096), alpha=ALPHAS)
def test_scale_models_lie_between_their_ends(d_head, seq_len, alpha):
    low = math.sqrt(math.log(seq_len) / seq_len)
    one, more = (attention_out_std(d_head, seq_len, a) for a in (alpha, 2 * alpha))
    assert low <= one < more <= 1
    assert 0.5 <= gated_silu_std(alpha) < gated_silu_std(2 * alpha) <= math.sqrt(0.5)


@given(data=st.data(), scheme=st.sampled_from(sorted(SCHEMES)), width=st.sampled_from([8, 64, 512]))
def test_forward_times_init_is_the_scale_of_the_output(data, scheme, width):
    """A·√B of hidden weights is 1/√fan_in in every scheme: outputs of unit scale, any shape."""
    fan_in, fan_out = (data.draw(st.integers(1, 4096)) for _ in range(2))
    model = ModelConfig(d_model=width, d_head=8, base_width=data.draw(st.integers(1, 99)))
    n = numbers(scheme, model).weight("hidden", fan_in, fan_out)
    assert n.forward * n.init_std == pytest.approx(fan_in**-0.5, rel=1e-12)
