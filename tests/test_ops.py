"""Ops: against golden numbers of the reference package, against JAX's own gradients, edge shapes,
causality. What all schemes promise of all ops is in test_contract."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umup import ops
from umup.config import HPs, ModelConfig
from umup.fp8 import E4M3, E5M2, Casts
from umup.plan.hlo import Program
from umup.rules import Parametrization
from umup.scale import scale_bwd, scale_fwd

HERE = Path(__file__).parent / "golden"
GOLDEN = json.loads((HERE / "golden.json").read_text())
ARRAYS = np.load(HERE / "golden.npz")
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def golden(case, *names):
    return tuple(jnp.asarray(ARRAYS[f"{case}/{name}"]) for name in names)


def numbers(scheme="umup", *, tokens=1, d_head=16, seq_len=32, **hps):
    model = ModelConfig(
        d_model=2 * d_head,
        n_layers=1,
        d_head=d_head,
        d_ff=8,
        seq_len=seq_len,
        base_depth=1,
        base_width=2 * d_head,
        base_d_head=d_head,
        rope=False,
    )
    return Parametrization(scheme, model, HPs(**hps).to_dict(), tokens)


def check(fn, primals, cotangent, want_out, want_grads):
    """fn's value and its gradients for all ``primals``, at 2e-5."""
    out, gradients = pulled(fn, primals, cotangent)
    np.testing.assert_allclose(out, want_out, **TOLERANCE)
    for found, want in zip(gradients, want_grads, strict=True):
        np.testing.assert_allclose(found, want, **TOLERANCE)


def pulled(fn, primals, cotangent):
    """(value, gradients), compiled as one program."""

    @jax.jit
    def both(primals, cotangent):
        out, pull = jax.vjp(fn, *primals)
        return out, pull(cotangent)

    return both(primals, cotangent)


def check_against(plain, fn, primals, cotangent):
    """fn's value and gradients are those of ``plain``, by JAX's own rules."""
    check(fn, primals, cotangent, *pulled(plain, primals, cotangent))


def normal(seed, *shape):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


# --- golden numbers: constants come from the rules, as in the model -------------------------------


def flat(x):
    return x.reshape(-1, x.shape[-1])


@pytest.mark.optimized
def test_linear_is_the_references():
    x, w, out, g, d_x, d_w = golden("linear", "x", "w", "out", "g", "d_x", "d_w")
    n = numbers(tokens=15).weight("hidden", 24, 96)
    check(
        lambda x, w: ops.linear(x, w, n.forward, n.backward, n.weight_grad),
        (flat(x), w.T),
        flat(g),
        flat(out),
        (flat(d_x), d_w.T),
    )


@pytest.mark.optimized
def test_readout_is_the_references():
    x, w, g, d_w = golden("linear", "x", "w", "g", "d_w")
    out, d_x = golden("linear_readout", "out", "d_x")
    n = numbers(tokens=15).weight("output", 24, 96)
    check(
        lambda x, w: ops.linear(x, w, n.forward, n.backward, n.weight_grad),
        (flat(x), w.T),
        flat(g),
        flat(out),
        (flat(d_x), d_w.T),
    )


@pytest.mark.optimized
def test_embedding_is_the_references():
    ids, w, out, g, d_w = golden("embedding", "ids", "w", "out", "g", "d_w")
    n = numbers(tokens=32).weight("input", 40, 16)
    check(
        lambda w: ops.embed(ids.reshape(-1), w, n.forward, n.weight_grad),
        (w,),
        flat(g),
        flat(out),
        (d_w,),
    )


@pytest.mark.optimized
@pytest.mark.parametrize("alpha", ["0.125", "1.0", "8.0"])
def test_gated_silu_is_the_references(alpha):
    x, gate, g = golden("silu_glu", "x", "gate", "g")
    out, d_x, d_gate = golden(f"silu_glu_m{alpha}", "out", "d_x", "d_gate")
    scales = numbers(alpha_ffn_act=float(alpha)).gated_silu()
    check(lambda x, gate: ops.gated_silu(x, gate, *scales), (x, gate), g, out, (d_x, d_gate))


@pytest.mark.optimized
@pytest.mark.parametrize("alpha", ["0.5", "2.0"])
def test_attention_is_the_references(alpha):
    q, k, v, g = golden("sdpa", "q", "k", "v", "g")
    out, *grads = golden(f"sdpa_m{alpha}", "out", "d_q", "d_k", "d_v")
    scales = numbers(alpha_attn_softmax=float(alpha)).attention(16, 32)
    check(lambda q, k, v: ops.attention(q, k, v, *scales), (q, k, v), g, out, grads)


@pytest.mark.optimized
def test_rms_norm_is_the_references():
    x, out, g, d_x = golden("rms_norm", "x", "out", "g", "d_x")
    check(ops.rms_norm, (x,), g, out, (d_x,))


@pytest.mark.optimized
@pytest.mark.parametrize("alpha", ["0.5", "1.0", "2.0"])
def test_cross_entropy_is_the_references(alpha):
    logits, targets = golden("cross_entropy", "logits", "targets")
    out, d_logits = golden(f"cross_entropy_m{alpha}", "out", "d_logits")
    scales = numbers(alpha_loss_softmax=float(alpha), tokens=24).loss(50)
    check(
        lambda z: ops.cross_entropy(z, targets.astype(jnp.int32), *scales),
        (logits,),
        jnp.float32(1.0),
        out,
        (d_logits,),
    )


@pytest.mark.optimized
@pytest.mark.parametrize("tau", ["0.1", "0.5", "1.0", "2.0"])
def test_residual_is_the_references(tau):
    x, w, g = golden("residual", "x", "W", "g")
    out, d_x, d_branch = golden(f"residual_tau{tau}", "out", "d_x", "d_branch")
    amplitude = float(tau)  # the reference's τ: a = τ/√(1+τ²), b = 1/√(1+τ²)
    add = amplitude / math.sqrt(1 + amplitude**2)
    keep = 1 / math.sqrt(1 + amplitude**2)
    w = jnp.asarray(w)

    def whole(x):
        branch, skip = ops.residual_split(x, add)
        return ops.residual_add(jnp.tanh(branch @ w), skip, add, keep, 1.0)

    check(whole, (x,), g, out, (d_x,))
    # The branch itself sees the cotangent unscaled.
    (branch,) = golden("residual", "branch")
    _, pull = jax.vjp(lambda b: ops.residual_add(b, x, add, keep, 1.0), branch)
    np.testing.assert_allclose(pull(g)[0], d_branch, **TOLERANCE)


# --- true gradients: with SP's numbers the ops are the plain ones ---------------------------------


def plain_attention(q, k, v, logit):
    scores = logit * q @ jnp.swapaxes(k, -1, -2)
    t = q.shape[-2]
    mask = jnp.arange(t)[:, None] >= jnp.arange(t)[None, :]
    return jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1) @ v


@pytest.mark.parametrize(("heads", "t", "d"), [(3, 7, 4), (1, 1, 2), (1, 9, 2), (2, 16, 8)])
@pytest.mark.parametrize("out", [1.0, 2.5])
def test_attention_has_true_gradients(heads, t, d, out):
    q, k, v, g = (normal(i, heads, t, d) * 2 for i in range(4))
    logit = 1 / math.sqrt(d)
    check_against(
        lambda q, k, v: out * plain_attention(q, k, v, logit),
        lambda q, k, v: ops.attention(q, k, v, logit, out),
        (q, k, v),
        g,
    )


@pytest.mark.parametrize("t", [1, 7, 8, 256])  # in one block, one, two and four
def test_attention_in_blocks_has_true_gradients(t):
    q, k, v, g = (normal(i, 2, t, 8) for i in range(4))
    check_against(
        lambda q, k, v: 2.5 * plain_attention(q, k, v, 0.5),
        lambda q, k, v: ops.attention(q, k, v, 0.5, 2.5, "blocked"),
        (q, k, v),
        g,
    )


@pytest.mark.parametrize(
    ("t", "share"), [(7, 1), (8, 3 / 4), (254, 3 / 4), (255, 1), (256, 10 / 16), (258, 1)]
)
def test_attention_in_blocks_computes_its_share_of_the_products(t, share):
    @jax.jit
    def both(q, k, v):
        out, pull = jax.vjp(lambda q, k, v: ops.attention(q, k, v, 0.5, 1.0, "blocked"), q, k, v)
        return pull(out)

    x = jax.ShapeDtypeStruct((1, t, 8), jnp.float32)
    found = Program(both.lower(x, x, x).compile().as_text()).flops()
    assert found == share * 6 * 2 * t * t * 8  # two products forward, four backward


@pytest.mark.parametrize("alpha", [1.0, 0.3, 4.0])
def test_gated_silu_has_true_gradients(alpha):
    x, gate, g = (normal(i, 11, 5) * 3 for i in range(3))
    check_against(
        lambda x, t: 1.7 * x * t / (1 + jnp.exp(-alpha * t)),
        lambda x, t: ops.gated_silu(x, t, alpha, 1.7),
        (x, gate),
        g,
    )


@pytest.mark.parametrize("vocab", [2, 3, 17])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
def test_cross_entropy_has_true_gradients(vocab, alpha):
    z, targets = 3 * normal(0, 6, vocab), np.arange(6) % vocab
    one_hot = np.eye(vocab)[np.arange(6) % vocab]

    def plain(z):
        return -(jax.nn.log_softmax(alpha * z) * one_hot).sum() / 6

    # A cotangent other than 1: the loss may itself be scaled.
    check_against(
        plain, lambda z: ops.cross_entropy(z, targets, alpha, alpha / 6), (z,), np.float32(2.0)
    )


def test_cross_entropy_of_huge_logits_is_finite():
    z = jnp.array([[1e4, -1e4], [0.0, 1e4]])
    targets = np.array([0, 0])
    loss, (grad,) = pulled(lambda z: ops.cross_entropy(z, targets, 1.0, 0.5), (z,), np.float32(1))
    assert float(loss) == pytest.approx(5e3)
    np.testing.assert_allclose(grad, [[0, 0], [-0.5, 0.5]])


def test_linear_has_true_gradients_under_equal_scales():
    x, w, g = normal(0, 5, 3), normal(1, 3, 4), normal(2, 5, 4)
    check_against(lambda x, w: 0.3 * x @ w, lambda x, w: ops.linear(x, w, 0.3, 0.3, 0.3), (x, w), g)


def test_linear_scales_are_independent():
    x, w, g = normal(0, 5, 3), normal(1, 3, 4), normal(2, 5, 4)
    out, (d_x, d_w) = pulled(lambda x, w: ops.linear(x, w, 2.0, 3.0, 5.0), (x, w), g)
    np.testing.assert_allclose(out, 2 * x @ w, **TOLERANCE)
    np.testing.assert_allclose(d_x, 3 * g @ w.T, **TOLERANCE)
    np.testing.assert_allclose(d_w, 5 * x.T @ g, **TOLERANCE)


@pytest.mark.parametrize("casts", [Casts(E4M3, E4M3), Casts(E4M3, E4M3, E5M2)])
def test_a_weight_is_rounded_once(casts):
    # Halfway between two codes of E4M3 and a little more: by way of bfloat16 it would go down.
    x, w = jnp.ones((1, 1), jnp.bfloat16), jnp.full((1, 1), 1.0625 + 2.0**-12)
    out, (d_x, _) = pulled(lambda x, w: ops.linear(x, w, 1.0, 1.0, 1.0, casts), (x, w), x)
    assert (float(out[0, 0]), float(d_x[0, 0])) == (1.125, 1.125)


@pytest.mark.parametrize(
    ("casts", "shape"),
    [(Casts(), "f32[8,32]"), (Casts(x=E4M3), "f32[32,8]"), (Casts(g=E5M2), "f32[32,8]")],
    ids=["neither", "x", "g"],
)
def test_a_weight_gradients_product_takes_x_first_where_x_or_g_is_cast(casts, shape):
    """As FP8 kernels need it; otherwise the narrower first, which is faster on a CPU."""

    @jax.jit
    def gradient(x, w):
        out, pull = jax.vjp(lambda w: ops.linear(x, w, 1.0, 1.0, 1.0, casts), w)
        return pull(out)

    program = gradient.lower(normal(0, 16, 32), normal(1, 32, 8)).compile().as_text()
    assert [product.result for product in Program(program).products()] == ["f32[16,8]", shape]


def test_embed_sums_gradients_of_repeated_ids():
    ids, w, g = jnp.array([2, 0, 2, 2]), normal(0, 4, 3), normal(1, 4, 3)
    out, (d_w,) = pulled(lambda w: ops.embed(ids, w, 2.0, 0.5), (w,), g)
    np.testing.assert_allclose(out, 2 * np.asarray(w)[[2, 0, 2, 2]], rtol=1e-6)
    want = 0.5 * np.stack([g[1], np.zeros(3), g[0] + g[2] + g[3], np.zeros(3)])
    np.testing.assert_allclose(d_w, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [-100, -1, 4, 7])  # of a vocabulary of 4
def test_an_id_or_target_out_of_range_is_nan_under_jit(bad):
    ids, w = jnp.array([2, bad, 0]), normal(0, 4, 3)
    rows = jax.jit(lambda ids: ops.embed(ids, w, 2.0, 1.0))(ids)
    np.testing.assert_array_equal(np.isnan(rows), [[False] * 3, [True] * 3, [False] * 3])
    loss = jax.jit(jax.value_and_grad(lambda z: ops.cross_entropy(z, ids, 1.0, 1 / 3)))
    value, grad = loss(normal(1, 3, 4))
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(grad), [[False] * 4, [True] * 4, [False] * 4])


def test_unsigned_ids_and_targets_are_in_range():
    ids, w = jnp.array([3, 0], jnp.uint16), normal(0, 4, 3)
    np.testing.assert_array_equal(ops.embed(ids, w, 1.0, 1.0), np.asarray(w)[[3, 0]])
    assert np.isfinite(ops.cross_entropy(normal(1, 2, 4), ids, 1.0, 0.5))


@pytest.mark.parametrize("size", [4.0, 3e-3])  # mean x² far above ε, and about ε
def test_rms_norm_has_true_gradients(size):
    x, g = normal(0, 3, 5) * size, normal(1, 3, 5)
    eps = 1e-5
    plain = lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps)  # noqa: E731
    check_against(plain, ops.rms_norm, (x,), g)
    zero = np.zeros((3, 5), np.float32)
    np.testing.assert_array_equal(jax.jit(ops.rms_norm)(zero), zero)


def test_residual_with_plain_numbers_is_a_plain_residual():
    x, g = normal(0, 4, 3), normal(1, 4, 3)

    def ours(x):
        branch, skip = ops.residual_split(x, 1.0)
        return ops.residual_add(jnp.sin(branch), skip, 0.7, 1.0, 0.7)

    check_against(lambda x: 0.7 * jnp.sin(x) + x, ours, (x,), g)


def test_scales_act_in_one_direction():
    x, g = normal(0, 3), normal(1, 3)
    out, pull = jax.vjp(lambda x: scale_fwd(x, 4.0), x)
    np.testing.assert_array_equal(out, 4 * x)
    np.testing.assert_array_equal(pull(g)[0], g)
    out, pull = jax.vjp(lambda x: scale_bwd(x, 4.0), x)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_array_equal(pull(g)[0], 4 * g)


def test_bfloat16_activations_keep_their_type_and_weights_theirs():
    x, w = normal(0, 4, 6).astype(jnp.bfloat16), normal(1, 6, 8)
    q = normal(2, 1, 4, 6).astype(jnp.bfloat16)

    def types():
        out, pull = jax.vjp(lambda x, w: ops.linear(x, w, 0.5, 0.5, 0.5), x, w)
        others = (
            ops.attention(q, q, q, 1.0, 1.0),
            ops.rms_norm(jnp.asarray(x)),
            ops.cross_entropy(jnp.asarray(x), jnp.zeros(4, int), 1.0, 1.0),
        )
        return out, *pull(out), *others

    low, high = jnp.bfloat16, jnp.float32
    found = [array.dtype for array in jax.eval_shape(types)]
    assert found == [low, low, high, low, low, high]


# --- rope ----------------------------------------------------------------------------------------


def test_rope_rotates_pairs_by_position():
    cos, sin = ops.rope_tables(5, 4, theta=100.0)
    x = normal(0, 5, 4)
    found = np.asarray(ops.rope(x, cos, sin))
    for t in range(5):
        for i, angle in enumerate((t, t / 10)):  # θ^(−i/half) = 1, 1/10
            z = complex(x[t, i], x[t, i + 2]) * complex(math.cos(angle), math.sin(angle))
            assert found[t, i] == pytest.approx(z.real, abs=1e-5)
            assert found[t, i + 2] == pytest.approx(z.imag, abs=1e-5)


def test_rope_scores_depend_on_distance_only():
    cos, sin = ops.rope_tables(16, 8)
    q, k = normal(0, 8), normal(1, 8)
    q, k = (np.asarray(ops.rope(np.tile(a, (16, 1)), cos, sin)) for a in (q, k))
    scores = q @ k.T
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
    assert np.std(scores) > 0.1  # and they do depend on it


# --- causality -----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 5, 8])
def test_attention_is_causal(t):
    q, k, v = (normal(i, 2, t, 4) for i in range(3))

    # How the output at each position (first axis) moves with each position's q, k and v.
    jacobian = jax.jit(
        jax.jacrev(lambda q, k, v: ops.attention(q, k, v, 0.5, 1.0).sum((0, 2)), argnums=(0, 1, 2))
    )
    d_q, d_k, d_v = (np.abs(g).sum((1, 3)) for g in jacobian(q, k, v))
    for position in range(t):
        assert (d_v[position, : position + 1] > 0).all(), "sees its past"
        if position:
            assert (d_k[position, : position + 1] > 0).all()
        for name, gradient in (("k", d_k), ("v", d_v)):
            assert (gradient[position, position + 1 :] == 0).all(), f"{name} of the future is seen"
        assert (np.delete(d_q[position], position) == 0).all(), "another position's query is seen"


def test_attention_of_huge_logits_is_finite():
    q = jnp.array([[[30.0], [30.0]]])
    k = jnp.array([[[10.0], [-10.0]]])  # logits ±300: exp overflows without the maximum taken off
    v = jnp.array([[[1.0], [5.0]]])
    out, gradients = pulled(
        lambda q, k, v: ops.attention(q, k, v, 1.0, 1.0), (q, k, v), np.ones((1, 2, 1), np.float32)
    )
    np.testing.assert_allclose(np.asarray(out)[0, :, 0], [1.0, 1.0], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)


def test_a_zero_query_is_reported_as_orthogonal():
    q, k = jnp.zeros((1, 2, 3)), normal(0, 1, 2, 3)
    logits, cosines, entropies = jax.jit(ops.attention_report)(q, k, 1.0)
    np.testing.assert_array_equal([logits, cosines], np.zeros((2, 1, 3)))
    np.testing.assert_allclose(entropies, [[0.0, math.log(2)]], rtol=1e-6)


def test_first_position_attends_to_itself():
    q, k, v = (normal(i, 3, 6, 4) for i in range(3))
    found = np.asarray(jax.jit(ops.attention)(q, k, v, 5.0, 2.0))
    np.testing.assert_allclose(found[:, 0], 2 * v[:, 0], rtol=1e-6)


def test_the_fused_kernel_takes_and_gives_the_same_scales(monkeypatch):
    """cuDNN's attention by JAX's own in its place: one scale goes in on q, another comes out."""
    plain = jax.nn.dot_product_attention

    def stand_in(*arrays, implementation, **options):
        assert implementation == "cudnn" and options == {"scale": 1.0, "is_causal": True}
        return plain(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = (
        jax.random.normal(key, (2, 3, 8, 4)) for key in jax.random.split(jax.random.key(0), 3)
    )
    want, back = jax.vjp(lambda *a: ops.attention(*a, 0.7, 1.9), q, k, v)
    got, fused = jax.vjp(lambda *a: ops.attention(*a, 0.7, 1.9, implementation="cudnn"), q, k, v)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for one, other in zip(fused(want), back(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
