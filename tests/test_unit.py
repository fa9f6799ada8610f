"""umup.unit: the reference's numbers, its shapes and options, traced values, clear errors."""

from __future__ import annotations

import functools
import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference import CASES, array, sample
from umup import unit
from umup.config import HPs, ModelConfig
from umup.errors import ConfigError
from umup.rules import Parametrization

OPS = {name: case for name, case in CASES.items() if case["op"] != "TransformerDecoder"}
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def normal(seed, *shape):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def pulled(f, cotangent, *inputs):
    """(value, gradients), compiled as one program."""

    @jax.jit
    def both(cotangent, *inputs):
        out, pull = jax.vjp(f, *inputs)
        return out, pull(cotangent)

    return both(cotangent, *inputs)


# --- the reference's numbers ----------------------------------------------------------------------


def call(case, inputs):
    """unit's function on a case's inputs; the reference's weights are (fan_out, fan_in)."""
    args = [
        inputs[name].T if name == "w" and case["op"].startswith("linear") else inputs[name]
        for name in case["inputs"]
    ]
    return getattr(unit, case["op"])(*args, **case["kwargs"])


@functools.cache
def computed(op):
    """{case: (outputs, gradients)} of all cases of a function, compiled as one program."""
    names = [name for name, case in OPS.items() if case["op"] == op]

    def all_of_them(inputs, cotangents):
        found = {}
        for name in names:
            moving = {k: inputs[name][k] for k in OPS[name]["gradients"]}
            f = functools.partial(lambda name, x: call(OPS[name], inputs[name] | x), name)
            out, pull = jax.vjp(f, moving)
            many = isinstance(out, tuple)
            (gradients,) = pull(tuple(cotangents[name]) if many else cotangents[name][0])
            found[name] = (out if many else (out,), gradients)
        return found

    return jax.jit(all_of_them)(
        {n: {k: array(at) for k, at in OPS[n]["inputs"].items()} for n in names},
        {n: [array(at) for at in OPS[n]["cotangents"]] for n in names},
    )


@pytest.mark.optimized
@pytest.mark.parametrize("name", OPS)
def test_forward_and_gradients_are_the_references(name):
    outputs, gradients = computed(OPS[name]["op"])[name]
    for found, want in zip(outputs, OPS[name]["outputs"], strict=True):
        np.testing.assert_allclose(sample(found), array(want), **TOLERANCE)
    for key, want in OPS[name]["gradients"].items():
        np.testing.assert_allclose(sample(gradients[key]), array(want), **TOLERANCE, err_msg=key)


def test_every_function_and_every_constraint_is_compared():
    compared = {case["op"] for case in OPS.values()}
    public = {
        name
        for name, f in inspect.getmembers(unit, inspect.isfunction)
        if f.__module__ == "umup.unit" and not name.startswith("_")
    }
    assert public - compared == {"transformer_residual_taus"}
    for op in ("linear", "linear_readout", "silu", "gelu", "softmax"):
        seen = {c["kwargs"].get("constraint") for c in OPS.values() if c["op"] == op}
        assert seen >= {"to_output_scale", "to_grad_input_scale", "gmean", "hmean", "amean", None}
    for op in ("matmul", "add"):
        seen = {c["kwargs"].get("constraint") for c in OPS.values() if c["op"] == op}
        assert seen >= {"to_left_grad_scale", "to_right_grad_scale", "gmean", "hmean", "amean"}


def test_numbers_by_hand():
    x, w = jnp.ones((2, 4)), jnp.ones((4, 9))
    np.testing.assert_allclose(unit.linear(x, w), 2.0)  # 4/√4
    np.testing.assert_allclose(unit.linear_readout(x, w), 1.0)  # 4/4
    grad = jax.grad(lambda x, w: unit.linear(x, w, constraint=None).sum(), (0, 1))(x, w)
    np.testing.assert_allclose(grad[0], 3.0, rtol=1e-6)  # 9/√9
    np.testing.assert_allclose(grad[1], math.sqrt(2), rtol=1e-6)  # 2/√2
    np.testing.assert_allclose(unit.add(x, x), math.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(unit.add(x, 3), 4.0)  # a constant changes no scale
    branch, skip = unit.residual_split(x, 3.0)
    np.testing.assert_array_equal(branch, x)
    # Variances 3 : 1, so √¾ and ½; the reference's τ would be √3.
    np.testing.assert_allclose(unit.residual_add(0 * x, skip, 3.0), 0.5, rtol=1e-6)
    np.testing.assert_allclose(unit.residual_add(branch, 0 * x, 3.0), math.sqrt(0.75), rtol=1e-6)


@pytest.mark.parametrize("tokens", [1, 6])
def test_the_scales_are_those_of_the_rules(tokens):
    model = ModelConfig(d_model=8, n_layers=1, d_head=4, base_width=8)
    numbers = Parametrization("umup", model, HPs().to_dict(), tokens)
    x, w, g = jnp.ones((tokens, 3)), jnp.ones((3, 5)), jnp.ones((tokens, 5))
    for f, role in ((unit.linear, "hidden"), (unit.linear_readout, "output")):
        want = numbers.weight(role, 3, 5)
        y, (d_x, d_w) = pulled(f, g, x, w)
        np.testing.assert_allclose(y, 3 * want.forward, rtol=1e-6)
        np.testing.assert_allclose(d_x, 5 * want.backward, rtol=1e-6)
        np.testing.assert_allclose(d_w, tokens * want.weight_grad, rtol=1e-6)
    d_w = jax.grad(lambda w: unit.embedding(jnp.zeros(tokens, int), w).sum())(w)
    np.testing.assert_allclose(d_w[0], tokens * numbers.weight("input", 3, 5).weight_grad, 1e-6)


def test_taus_are_the_references_squared():
    by_hand = [1 / 4, 1 / 5, 1 / 6, 1 / 7]  # 1/(4 + l) at α = 1
    np.testing.assert_allclose(unit.transformer_residual_taus(2), by_hand, rtol=1e-12)
    library = unit.transformer_residual_taus(2, residual_mult=0.5**0.5, convention="library")
    np.testing.assert_allclose(library, by_hand, rtol=1e-12)
    amplitudes = [0.7071067811865475, 0.5773502691896258, 0.5, 0.4472135954999579]
    found = unit.transformer_residual_taus(2, convention="library")
    np.testing.assert_allclose(found, np.square(amplitudes), rtol=1e-12)
    far = unit.transformer_residual_taus(3, residual_mult=2.0, residual_attn_ratio=4.0)
    # α̂_f² = 4·2/17, α̂_a² = 16 α̂_f², L = 6
    f = 8 / 17
    np.testing.assert_allclose(far[:2], [16 * f / 6, f / (6 + 16 * f)], rtol=1e-12)
    assert len(far) == 6


# --- unit scale, and where the theory says otherwise ----------------------------------------------


@pytest.mark.parametrize("mult", [0.125, 1.0, 8.0])
@pytest.mark.parametrize("op", ["silu", "gelu"])
def test_activations_are_unit_scaled_each_way_when_unconstrained(op, mult):
    f = partial(getattr(unit, op), mult=mult, constraint=None)
    out, (d_x,) = pulled(f, normal(1, 256, 256), normal(0, 256, 256))
    assert np.std(out) == pytest.approx(1.0, abs=0.1)
    assert rms(d_x) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("seq_len", [16, 256])
def test_full_attention_is_unit_scaled_but_for_q_and_k(seq_len):
    q, k, v = (normal(i, 16, seq_len, 16) for i in range(3))
    out, (d_q, d_k, d_v) = pulled(
        partial(unit.scaled_dot_product_attention, is_causal=False), normal(3, *v.shape), q, k, v
    )
    assert (rms(out), rms(d_v)) == (pytest.approx(1.0, abs=0.12), pytest.approx(1.0, abs=0.12))
    assert rms(d_q) == pytest.approx(1 / 4, rel=0.15)  # 1/√d_head
    assert rms(d_k) == pytest.approx(1 / 4, rel=0.15)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)])
def test_any_leading_dimensions(lead):
    tokens = math.prod(lead)
    x, w, logits = normal(0, *lead, 4), normal(1, 4, 6), normal(3, *lead, 4)
    qkv = [normal(i, *lead, 7, 4) for i in range(3)]
    ids = np.arange(tokens).reshape(lead) % 4

    @jax.jit
    def flat(x, w, qkv):
        """Of inputs with one leading dimension."""
        attention = [
            jax.vmap(partial(unit.scaled_dot_product_attention, is_causal=causal))(*qkv)
            for causal in (True, False)
        ]
        return unit.linear(x, w), *attention

    @jax.jit
    def all_of_them(x, w, ids, qkv, logits):
        attention = [
            unit.scaled_dot_product_attention(*qkv, is_causal=causal) for causal in (True, False)
        ]
        loss = jax.value_and_grad(unit.cross_entropy)(logits, ids)
        return (unit.linear(x, w), *attention), unit.embedding(ids, w), *loss

    found, rows, loss, grad = all_of_them(x, w, ids, qkv, logits)
    y, *attention = flat(x.reshape(tokens, 4), w, [a.reshape(-1, 7, 4) for a in qkv])
    np.testing.assert_array_equal(found[0].reshape(tokens, 6), y)
    np.testing.assert_array_equal(rows, w[ids])
    for one, many in zip(attention, found[1:], strict=True):
        np.testing.assert_allclose(many.reshape(-1, 7, 4), one, rtol=1e-6, atol=1e-6)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -np.mean(log_p.reshape(-1, 4)[np.arange(tokens), np.arange(tokens) % 4])
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert grad.shape == logits.shape


@pytest.mark.parametrize("causal", [True, False])
def test_attention_at_length_one_is_v(causal):
    q, k, v = (normal(i, 2, 1, 4) for i in range(3))
    found = unit.scaled_dot_product_attention(q, k, v, is_causal=causal, mult=0.25)
    np.testing.assert_allclose(found, v, rtol=1e-6)


def test_attention_is_causal_unless_told_otherwise():
    q, k, v = (normal(i, 2, 6, 4) for i in range(3))

    def seen(**kwargs):  # which positions of v each position of the output depends on
        def f(v):
            return unit.scaled_dot_product_attention(q, k, v, **kwargs).sum((0, 2))

        return np.abs(jax.jit(jax.jacrev(f))(v)).sum((1, 3)) > 0

    np.testing.assert_array_equal(seen(), np.tril(np.ones((6, 6), bool)))
    assert seen(is_causal=False).all()


def test_an_ignored_target_counts_nothing():
    z = normal(0, 5, 7)
    targets, kept = np.array([1, -100, 3, -100, 0]), [0, 2, 4]
    summed = jax.jit(jax.value_and_grad(partial(unit.cross_entropy, reduction="sum")))
    loss, grad = summed(z, targets)
    want, want_grad = summed(z[kept], targets[kept])
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(np.asarray(grad)[kept], want_grad, rtol=1e-6)
    assert (np.asarray(grad)[[1, 3]] == 0).all()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int16, jnp.uint32])
def test_compiled_an_index_out_of_range_is_nan_and_spoils_no_other_row(dtype):
    """Eagerly it is refused; a compiled program must neither clamp it nor count from the end."""
    logits, table = jnp.linspace(-1.0, 1.0, 30).reshape(3, 10), jnp.ones((10, 4))
    loss = jax.jit(jax.value_and_grad(lambda x, t: unit.cross_entropy(x, t, reduction="sum")))
    rows_of = jax.jit(unit.embedding)
    for wrong in (-1, -10, 10, 30_000):
        ids = jnp.asarray([0, wrong, 9]).astype(dtype)
        value, grad = loss(logits, ids)
        assert jnp.isnan(value)
        np.testing.assert_array_equal(jnp.isnan(grad).any(-1), [False, True, False])
        rows = rows_of(ids, table)
        np.testing.assert_array_equal(jnp.isnan(rows), np.array([[0], [1], [0]]) * np.ones(4))
    assert jnp.isfinite(loss(logits, jnp.asarray([0, 9, 3]).astype(dtype))[0])


def test_an_ignored_target_is_the_one_that_is_named():
    logits = jnp.linspace(-1.0, 1.0, 30).reshape(3, 10)
    for ignored, other in ((-100, -1), (-1, -100), (3, 10)):
        loss = jax.jit(lambda x, t, i=ignored: unit.cross_entropy(x, t, ignore_index=i))
        assert jnp.isfinite(loss(logits, jnp.asarray([0, ignored, 9])))
        assert jnp.isnan(loss(logits, jnp.asarray([0, other, 9])))


def test_more_classes_than_the_targets_type_has_numbers():
    """Classes 1 and 257 are one number in eight bits."""
    logits = jax.random.normal(jax.random.key(0), (3, 300))
    grad = jax.jit(jax.grad(unit.cross_entropy))
    targets = jnp.asarray([0, 1, 100])
    np.testing.assert_array_equal(grad(logits, targets.astype(jnp.int8)), grad(logits, targets))


def test_an_index_of_64_bits_is_seen_before_it_is_cut():
    with pytest.raises(ConfigError, match=r"received 4294967297"):
        unit.embedding(np.array([2**32 + 1]), jnp.ones((4, 2)))


def test_norms_take_their_shape_from_the_gain():
    x = normal(0, 3, 4, 5) * 3 + 1
    both = unit.rms_norm(x, normalized_shape=(4, 5))
    np.testing.assert_allclose(np.mean(np.square(both), (1, 2)), 1.0, rtol=1e-4)
    np.testing.assert_allclose(unit.rms_norm(x, jnp.full((4, 5), 2.0)), 2 * both, rtol=1e-6)
    centred = np.asarray(unit.layer_norm(x, bias=jnp.ones(5)))
    np.testing.assert_allclose(centred.mean(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(centred.std(-1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(
        unit.layer_norm(x, normalized_shape=5), unit.layer_norm(x), rtol=1e-6
    )


# --- traced values, transformations, types --------------------------------------------------------

WITH_MULT = {
    "silu_glu": (2, {}),
    "silu": (1, {}),
    "gelu": (1, {}),
    "softmax": (1, {}),
    "scaled_dot_product_attention": (3, {}),
    "scaled_dot_product_attention full": (3, {"is_causal": False}),
}


def with_mult(name):
    arity, kwargs = WITH_MULT[name]
    inputs = [normal(i, 6, 4) for i in range(arity)]
    f = getattr(unit, name.split()[0])
    return lambda m, *inputs: f(*inputs, mult=m, **kwargs), inputs


@pytest.mark.parametrize("name", WITH_MULT)
def test_mult_may_be_traced_mapped_and_changed_without_compiling_again(name):
    f, inputs = with_mult(name)
    traces = []

    @jax.jit
    def step(m, *inputs):
        traces.append(1)
        return jax.value_and_grad(lambda *a: f(m, *a).sum(), tuple(range(len(inputs))))(*inputs)

    mults = [0.5, 1.0, 4.0]
    each = [step(m, *inputs) for m in mults]
    assert len(traces) == 1
    together = jax.vmap(step, (0, *[None] * len(inputs)))(jnp.array(mults), *inputs)
    for i, (m, one) in enumerate(zip(mults, each)):

        def total(*a, m=m):
            return f(m, *a).sum()

        plain = jax.jit(jax.value_and_grad(total, tuple(range(len(inputs)))))(*inputs)
        for got in (one, jax.tree.map(lambda a: a[i], together)):  # noqa: B023
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, plain
            )


def test_no_multiplier_receives_a_gradient():
    x, logits, targets = normal(0, 6, 4), normal(1, 6, 4), jnp.arange(6) % 4
    for name in WITH_MULT:
        f, inputs = with_mult(name)
        assert float(jax.grad(lambda m, f=f, a=inputs: f(m, *a).sum())(1.0)) == 0.0, name
    assert float(jax.grad(lambda t: unit.residual_add(x, x, t).sum())(1.0)) == 0.0
    assert float(jax.grad(lambda m: unit.cross_entropy(logits, targets, mult=m))(1.0)) == 0.0


def block(x, w, tau, mult):
    branch, skip = unit.residual_split(x, tau)
    h = unit.rms_norm(branch)
    h = unit.scaled_dot_product_attention(h, h, h, mult=mult)
    h = unit.silu_glu(unit.linear(h, w), h, mult=mult)
    return unit.residual_add(unit.linear(h, w.T), skip, tau)


@pytest.mark.optimized
def test_scan_and_remat_over_layers_give_the_unrolled_numbers():
    x, ws = normal(0, 2, 5, 8), normal(1, 3, 8, 8)
    taus = jnp.asarray(unit.transformer_residual_taus(3)[:3])

    def unrolled(ws, mult):
        y = x
        for w, tau in zip(ws, taus):
            y = block(y, w, tau, mult)
        return jnp.sum(y**2)

    def scanned(ws, mult):
        body = jax.checkpoint(lambda y, layer: (block(y, *layer, mult), None))
        return jnp.sum(jax.lax.scan(body, x, (ws, taus))[0] ** 2)

    want, want_grad = jax.value_and_grad(unrolled)(ws, 2.0)
    loss, grad = jax.jit(jax.value_and_grad(scanned))(ws, 2.0)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_bfloat16_and_close_to_float32():
    x, w, k = normal(0, 6, 8), normal(1, 8, 8), normal(2, 6, 8)
    mult = jnp.float32(2.0)  # a strong type, as a traced float32 is
    calls = {
        "linear": lambda x, w, k: unit.linear(x, w, w[0]),
        "readout": lambda x, w, k: unit.linear_readout(x, w),
        "matmul": lambda x, w, k: unit.matmul(x, w),
        "add": lambda x, w, k: unit.add(x, k),
        "silu_glu": lambda x, w, k: unit.silu_glu(x, k, mult=mult),
        "silu": lambda x, w, k: unit.silu(x, mult=mult),
        "gelu": lambda x, w, k: unit.gelu(x, mult=mult),
        "softmax": lambda x, w, k: unit.softmax(x, mult=mult),
        "attention": lambda x, w, k: unit.scaled_dot_product_attention(x, k, x, mult=mult),
        "full": lambda x, w, k: unit.scaled_dot_product_attention(
            x, k, x, mult=mult, is_causal=False
        ),
        "rms_norm": lambda x, w, k: unit.rms_norm(x, w[0]),
        "layer_norm": lambda x, w, k: unit.layer_norm(x, w[0], w[1]),
        "residual": lambda x, w, k: unit.residual_add(*unit.residual_split(x, mult), mult),
        "embedding": lambda x, w, k: unit.embedding(jnp.array([1, 2]), w),
    }

    @jax.jit
    def all_of_them(*inputs):
        found = {}
        for name, f in calls.items():
            out, pull = jax.vjp(f, *inputs)
            found[name] = [out, *pull(jnp.ones_like(out))]
        return found

    low = all_of_them(*(a.astype(jnp.bfloat16) for a in (x, w, k)))
    for name, wanted in all_of_them(x, w, k).items():
        for found, want in zip(low[name], wanted, strict=True):
            assert found.dtype == jnp.bfloat16, name
            np.testing.assert_allclose(
                found.astype(jnp.float32),
                want,
                atol=0.06 * max(1.0, float(abs(want).max())),
                err_msg=name,
            )
    assert unit.cross_entropy(x.astype(jnp.bfloat16), jnp.arange(6)).dtype == jnp.float32
    assert unit.softmax(x.astype(jnp.bfloat16), dtype=jnp.float32).dtype == jnp.float32


# --- errors ---------------------------------------------------------------------------------------

X, W, IDS = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32), np.array([0, 1, 2])
BAD = {
    "w": [
        lambda: unit.linear(X, W[0]),
        lambda: unit.linear(X, W.astype(int)),
        lambda: unit.embedding(IDS, W[0]),
        lambda: unit.linear(X, np.ones((0, 5), np.float32)),
    ],
    "x": [
        lambda: unit.linear(X, W.T),
        lambda: unit.silu(np.ones((0, 3), np.float32)),
        lambda: unit.rms_norm(np.array([1, 2])),
    ],
    "bias": [lambda: unit.linear(X, W, X[0])],
    "constraint": [
        lambda: unit.linear(X, W, constraint="mean"),
        lambda: unit.gelu(X, constraint="to_left_grad_scale"),
        lambda: unit.matmul(X, W, constraint="to_grad_input_scale"),
        lambda: unit.add(X, X, constraint=""),
    ],
    "mult": [
        lambda: unit.silu_glu(X, X, mult=0.0),
        lambda: unit.silu(X, mult=-1.0),
        lambda: unit.gelu(X, mult=math.nan),
        lambda: unit.softmax(X, mult=math.inf),
        lambda: unit.softmax(X, mult=jnp.float32(0)),
        lambda: unit.silu(X, mult=True),
        lambda: unit.silu(X, mult="2"),
        lambda: unit.silu(X, mult=np.ones(2)),
        lambda: unit.scaled_dot_product_attention(X, X, X, mult=0),
        lambda: unit.cross_entropy(X, IDS, mult=-2),
    ],
    "tau": [
        lambda: unit.residual_split(X, 0.0),
        lambda: unit.residual_add(X, X, -1.0),
        lambda: jax.jit(unit.residual_split)(X, np.ones(3)),
    ],
    "skip": [lambda: unit.residual_add(X, X[:1])],
    "gate": [lambda: unit.silu_glu(X, X[:1])],
    "q": [lambda: unit.scaled_dot_product_attention(X[None], X, X)],
    "k": [lambda: unit.scaled_dot_product_attention(X, X[:2], X)],
    "v": [lambda: unit.scaled_dot_product_attention(X, X, X[0])],
    "left": [lambda: unit.matmul(X[0], W)],
    "right": [lambda: unit.matmul(X, X)],
    "other": [lambda: unit.add(X, W)],
    "logits": [
        lambda: unit.cross_entropy(np.ones((3, 1), np.float32), IDS),
        lambda: unit.cross_entropy(np.float32(1), 0),
    ],
    "targets": [
        lambda: unit.cross_entropy(X, IDS[:2]),
        lambda: unit.cross_entropy(X, IDS.astype(float)),
        lambda: unit.cross_entropy(X, IDS + 2),
        lambda: unit.cross_entropy(X, IDS - 1),
    ],
    "ids": [
        lambda: unit.embedding(IDS + 2, W),
        lambda: unit.embedding(IDS[:0], W),
        lambda: unit.embedding(X, W),
    ],
    "reduction": [lambda: unit.cross_entropy(X, IDS, reduction="none")],
    "approximate": [lambda: unit.gelu(X, approximate="erf")],
    "dim": [lambda: unit.softmax(X, dim=2)],
    "eps": [lambda: unit.rms_norm(X, eps=-1e-5), lambda: unit.layer_norm(X, eps=math.nan)],
    "normalized_shape": [
        lambda: unit.rms_norm(X, normalized_shape=3),
        lambda: unit.layer_norm(X, normalized_shape=()),
        lambda: unit.rms_norm(X, X[0, :3]),
    ],
    "weight or bias": [lambda: unit.layer_norm(X, X[0], X)],
    "n_layers": [
        lambda: unit.transformer_residual_taus(0),
        lambda: unit.transformer_residual_taus(2.0),
    ],
    "residual_mult": [lambda: unit.transformer_residual_taus(2, residual_mult=0.0)],
    "residual_attn_ratio": [lambda: unit.transformer_residual_taus(2, residual_attn_ratio=-1)],
    "convention": [lambda: unit.transformer_residual_taus(2, convention="theirs")],
}


@pytest.mark.parametrize(("field", "bad"), [(k, f) for k, fs in BAD.items() for f in fs])
def test_bad_input_is_named(field, bad):
    with pytest.raises(ConfigError) as caught:
        bad()
    assert caught.value.field == field
    assert "received" in str(caught.value)
    assert caught.value.allowed


def test_the_error_of_a_transposed_weight_says_which_way_round():
    with pytest.raises(ConfigError, match=r"x: received \(3, 4\); allowed: .*\(fan_in, fan_out\)"):
        unit.linear(X, W.T)
