"""The stability kit: z-loss, QK-norm, depth-scaled initialization, clipping by the unscaled norm.

Gradients are compared with autodiff of a plain decoder that is written out here, in terms of the
effective weights, and knows nothing of the library's scales.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from umup import data, ops, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError

VOCAB, STEPS = 17, 12


def make_run(scheme, *, hps=None, clip=0.0, seed=0, **model):
    shape: dict[str, Any] = {
        "d_model": 16,
        "n_layers": 2,
        "d_head": 8,
        "d_ff": 24,
        "vocab_size": VOCAB,
        "seq_len": 8,
        "base_width": 8,
        "base_depth": 1,
        "base_d_head": 4,
    }
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(shape | model)),
        optim=OptimConfig(steps=STEPS, batch_size=3, warmup_steps=3, clip=clip),
        hps=HPs(**({"eta": 0.5 if scheme == "umup" else 0.02} | (hps or {}))),
        seed=seed,
        corpus="c",
        tokenizer="t",
        data_digest="d",
    )


def stream():
    i = np.arange(700, dtype=np.uint64)
    return ((i * i + 3 * (i // 5)) % VOCAB).astype(np.uint16)


def lane_of(run):
    return jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))


def first_batch(run):
    return batch_of(run.seed, run.model.seq_len)


@cache
def batch_of(seed, seq_len):
    return jax.jit(lambda: data.batch(stream(), seed, 0, batch_size=3, seq_len=seq_len))()


def by_name(tree):
    """Weight name → array."""
    flat = nnx.to_flat_state(tree)
    return {".".join(map(str, path[:-1])): leaf[...] for path, leaf in flat}


# --- a plain decoder ------------------------------------------------------------------------------


def normed(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def rotated(x):
    half = x.shape[-1] // 2
    angles = jnp.outer(jnp.arange(x.shape[-2]), 1e4 ** (-jnp.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def plain_loss(weights, model, ids, targets):
    """Mean cross-entropy of the decoder with the given effective weights, all gradients true."""
    config, (batch, seq) = model.config, ids.shape
    heads, d = config.n_heads, config.d_head
    attn, mlp, blocks = model.blocks.attn, model.blocks.mlp, model.blocks
    x = weights["embed"][ids]
    for i in range(config.n_layers):
        qkv = jnp.einsum("btd,dpe->pbte", normed(x), weights["blocks.attn.qkv"][i])
        q, k, v = qkv.reshape(3, batch, seq, heads, d).swapaxes(2, 3)
        if config.qk_norm:
            q, k = normed(q), normed(k)
        scores = attn.logit[i] * jnp.einsum("bhtd,bhsd->bhts", rotated(q), rotated(k))
        seen = jnp.where(jnp.tri(seq, dtype=bool), scores, -jnp.inf)
        y = attn.out_scale[i] * jnp.einsum("bhts,bhsd->bthd", jax.nn.softmax(seen), v)
        y = y.reshape(batch, seq, -1) @ weights["blocks.attn.out"][i]
        x = blocks.attn_branch.add[i] * y + blocks.attn_branch.skip[i] * x
        gate, up = jnp.einsum("btd,dpe->pbte", normed(x), weights["blocks.mlp.gate_up"][i])
        y = mlp.act_out[i] * up * gate * jax.nn.sigmoid(mlp.alpha[i] * gate)
        y = y @ weights["blocks.mlp.down"][i]
        x = blocks.mlp_branch.add[i] * y + blocks.mlp_branch.skip[i] * x
    logits = model.loss_alpha[...] * (normed(x) @ weights["readout"])
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(log_z - picked + config.z_loss * log_z**2)


def effective(model):
    """Name → weight times its forward multiplier."""
    forward = {
        "embed": model.embed,
        "readout": model.readout,
        "blocks.attn.qkv": model.blocks.attn.qkv,
        "blocks.attn.out": model.blocks.attn.out,
        "blocks.mlp.gate_up": model.blocks.mlp.gate_up,
        "blocks.mlp.down": model.blocks.mlp.down,
    }
    out = {}
    for name, layer in forward.items():
        w, scale = layer.w[...], layer.forward[...]
        out[name] = w * scale.reshape(scale.shape + (1,) * (w.ndim - scale.ndim))
    return out


@cache
def initial(run):
    """The state before the first step: outside jit, so that all schemes share their draws."""
    return train.init(run, lane_of(run))


def merged(run, state):
    parts = train.abstract(run)
    params = jax.tree.map(jnp.asarray, state.params)  # new variables: models may be changed
    return nnx.merge(parts.graph, params, parts.amax, parts.taps, state.numbers.scales)


@partial(jax.jit, static_argnums=0)
def gradients(run, state, batch):
    """(library's gradients, plain gradients, units, norm), of one batch."""
    model = merged(run, state)
    _, grads, _ = train.gradients(run, state, batch)
    plain = jax.grad(plain_loss)(effective(model), model, *batch)
    units = model.gradient_units(run.optim.batch_size * run.model.seq_len)
    return grads, plain, units, train.grad_norm(run, state.numbers, grads)


@cache
def both(run):
    """As ``gradients``, of the first batch; one program serves every scheme."""
    return gradients(replace(run, scheme="sp", hps=HPs()), initial(run), first_batch(run))


CASES = [
    make_run("sp"),
    make_run("mup"),
    make_run("mup_intermediate"),
    make_run("umup"),
    make_run("umup", hps={"alpha_residual_attn_ratio": 0.3, "alpha_attn_softmax": 3.0}),
    make_run("umup", hps={"alpha_residual": 0.5, "alpha_loss_softmax": 0.5}),
    make_run("umup", hps={"alpha_residual": 2.0, "alpha_loss_softmax": 2.0}),
    make_run("sp", n_layers=1, qk_norm=True, z_loss=0.1),
    make_run("umup", n_layers=1, qk_norm=True, z_loss=0.1, hps={"alpha_loss_softmax": 2.0}),
]
cases = pytest.mark.parametrize("run", CASES, ids=range(len(CASES)))


@cases
def test_gradients_over_their_units_are_those_of_the_effective_weights(run):
    grads, plain, units, _ = both(run)
    for name, grad in by_name(grads).items():
        unit = np.asarray(units[name])
        found = np.asarray(grad) / unit.reshape(unit.shape + (1,) * (grad.ndim - unit.ndim))
        want = np.asarray(plain[name])
        np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max(), err_msg=name)


@cases
def test_the_norm_is_that_of_the_true_gradient(run):
    _, plain, _, norm = both(run)
    want = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in plain.values()))
    assert float(norm) == pytest.approx(want, rel=1e-4)


# --- z-loss ---------------------------------------------------------------------------------------

LOGITS = np.float32(3.0 * np.random.default_rng(0).normal(size=(6, VOCAB)))
TARGETS = np.arange(6) % VOCAB


def penalised(logits, alpha, z):
    log_z = jax.nn.logsumexp(alpha * logits, axis=-1)
    picked = (alpha * logits)[np.arange(6), TARGETS]
    return jnp.mean(log_z - picked) + z * jnp.mean(log_z**2)


penalised_gradient = jax.jit(jax.grad(penalised))
cross_entropy = jax.jit(jax.value_and_grad(ops.cross_entropy), static_argnums=4)


@pytest.mark.parametrize(("alpha", "grad_scale"), [(1.0, 1 / 6), (0.5, 4.25), (2.0, 1.0)])
def test_z_loss_adds_its_gradient_at_the_scale_of_the_cross_entropys(alpha, grad_scale):
    _, found = cross_entropy(LOGITS, TARGETS, alpha, grad_scale, 0.3)
    true = np.asarray(penalised_gradient(LOGITS, alpha, 0.3))
    np.testing.assert_allclose(found, true * grad_scale * 6 / alpha, rtol=1e-4, atol=1e-6)


def test_z_loss_pushes_the_log_partition_towards_zero():
    logits = np.full((1, 4), 5.0, np.float32)  # log Z = 5 + ln 4 > 0: all are pushed down, equally
    grad, plain = (
        np.asarray(cross_entropy(logits, np.array([0]), 1.0, 1.0, z)[1]) for z in (0.1, 0.0)
    )
    np.testing.assert_allclose(grad - plain, 0.2 * (5 + math.log(4)) / 4, rtol=1e-5)


def test_the_value_with_z_loss_is_still_the_cross_entropy():
    plain, with_it = (cross_entropy(LOGITS, TARGETS, 1.0, 1.0, z)[0] for z in (0.0, 0.3))
    assert float(plain) == float(with_it)


def test_no_z_loss_is_no_code():
    def program(*z):
        return str(
            jax.make_jaxpr(jax.grad(lambda x: ops.cross_entropy(x, TARGETS, 1.0, 1.0, *z)))(LOGITS)
        )

    assert program(0.0) == program()
    assert program(1e-4) != program()


# --- QK-norm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["sp", "umup"])
def test_qk_norm_makes_unit_rms_and_bounds_logits(scheme, monkeypatch):
    seen = []

    def spy(q, k, v, logit, out, implementation):
        seen.append((q, k, logit))
        return v

    run = make_run(scheme, qk_norm=True, n_layers=1)
    monkeypatch.setattr(ops, "attention", spy)
    monkeypatch.setattr(jax.lax, "scan", lambda f, x, part, **_: f(x, first_of(part)))

    @jax.jit
    def of_attention(state, ids):
        model = merged(run, state)
        model.blocks.attn.qkv.w[...] = 1e3 * model.blocks.attn.qkv.w[...]
        model(ids)
        return seen.pop()

    q, k, logit = map(np.asarray, of_attention(initial(run), first_batch(run)[0]))
    for x in (q, k):
        np.testing.assert_allclose(np.sqrt(np.mean(x**2, axis=-1)), 1.0, rtol=1e-4)
    scores = logit * np.einsum("bhtd,bhsd->bhts", q, k)
    assert 0.5 < float(np.abs(scores).max() / (logit * 8)) <= 1.0 + 1e-5
    assert not seen


def first_of(stacked):
    return jax.tree.map(lambda leaf: leaf[0], stacked)


@pytest.mark.parametrize(("qk_norm", "moves"), [(True, False), (False, True)])
def test_qk_norm_takes_the_scale_of_the_weights_out_of_the_function(qk_norm, moves):
    run = make_run("umup", qk_norm=qk_norm, n_layers=1)

    @jax.jit
    def loss(state, batch, factor):
        model = merged(run, state)
        w = model.blocks.attn.qkv.w[...]
        model.blocks.attn.qkv.w[...] = w.at[:, :, :2].multiply(factor)  # q and k
        return model.loss(*batch)

    one, other = (float(loss(initial(run), first_batch(run), factor)) for factor in (1.0, 100.0))
    assert (abs(other - one) > 1e-4) == moves


# --- depth-scaled initialization ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["sp", "mup"])
def test_only_the_weights_that_end_branches_are_scaled_by_depth(scheme):
    plain, scaled = (
        by_name(initial(make_run(scheme, depth_scaled_init=on)).params) for on in (False, True)
    )
    for name, w in plain.items():
        ends = name in ("blocks.attn.out", "blocks.mlp.down")
        factor = 0.5 if ends else 1.0  # 1/√(2N), N = 2
        np.testing.assert_allclose(scaled[name], factor * w, rtol=1e-6, err_msg=name)


def test_a_unit_scaled_scheme_has_no_init_to_scale():
    with pytest.raises(ConfigError) as error:
        train.build(make_run("umup", depth_scaled_init=True), lane_of(make_run("umup")))
    assert (error.value.field, error.value.received) == ("depth_scaled_init", True)


# --- clipping -------------------------------------------------------------------------------------


@cache
def trained(run):
    """(losses, unscaled norms, norms as held) over the run."""
    state = initial(replace(run, optim=replace(run.optim, clip=0.0)))
    signals = steps(replace(run, scheme="sp", hps=HPs()), lane_of(run), state)
    return [np.asarray(x) for x in signals]


@partial(jax.jit, static_argnums=0)
def steps(run, lane, state):
    """The signals of every step; one program serves every scheme."""

    def body(state, _):
        batch = data.batch(jnp.asarray(stream()), lane.seed, state.step, batch_size=3, seq_len=8)
        _, grads, _ = train.gradients(run, state, batch)
        state, signals = train.step(run, lane, state, batch)
        return state, (*signals, optax.tree.norm(grads))

    return jax.lax.scan(body, state, None, length=STEPS)[1]


def test_equivalent_schemes_have_one_norm_and_one_clipped_run():
    free = trained(make_run("mup"))[1]
    clip = float(np.median(free))  # active in some steps, not in all
    one, other = (trained(make_run(s, clip=clip)) for s in ("mup", "mup_intermediate"))
    assert 0 < np.mean(one[1] > clip) < 1
    np.testing.assert_allclose(one[1], other[1], rtol=2e-3)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-4)
    assert np.abs(one[0] - trained(make_run("mup"))[0]).max() > 1e-4, "the clip does something"


def test_the_norm_as_held_differs_between_equivalent_schemes():
    one, other = (trained(make_run(s)) for s in ("mup", "mup_intermediate"))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-4)  # one run
    ratio = one[2] / other[2]
    assert np.all((ratio < 0.8) | (ratio > 1.25)), "one bound would clip one and not the other"


@partial(jax.jit, static_argnums=0)
def step(run, lane, state, batch):
    return train.step(run, lane, state, batch)


@pytest.mark.parametrize("scheme", ["sp", "umup"])
@pytest.mark.parametrize("clips", [True, False])
def test_clipping_multiplies_every_gradient_by_the_same_factor(scheme, clips):
    norms = {s: float(both(make_run(s))[3]) for s in ("sp", "umup")}
    clip = 0.25 * min(norms.values()) if clips else 3.0 * max(norms.values())
    run = make_run(scheme)
    clipped = make_run("sp", clip=clip)
    after, signals = step(clipped, lane_of(run), initial(run), first_batch(run))
    assert float(signals.grad_norm) == pytest.approx(norms[scheme], rel=1e-5)  # before the clip
    moment = by_name(after.opt[0].mu)  # (1 − β1) times what Adam was given
    for name, grad in by_name(both(run)[0]).items():
        want = min(1.0, clip / norms[scheme]) * np.asarray(grad) * 0.1
        np.testing.assert_allclose(moment[name], want, rtol=1e-4, atol=1e-7 * np.abs(want).max())


def test_a_plain_scheme_has_units_of_one():
    for name, unit in both(make_run("sp"))[2].items():
        np.testing.assert_allclose(unit, 1.0, rtol=1e-6, err_msg=name)
