"""Probes: statistics by hand, the identity they are, and what a probed model reports."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from starts import start
from umup import probe, train
from umup.config import PROBE_STATS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError

TOKENS = (np.arange(4000) ** 2 % 13).astype(np.uint16)


def make_run(scheme="umup", *, seed=1, eta=0.5, steps=6, probe_steps=(), **model):
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
        seed=seed,
        corpus="c",
        tokenizer="t",
        data_digest="squares",
        probe_steps=probe_steps,
    )


def lane_of(lanes, i=0):
    return jax.tree.map(lambda leaf: leaf[i], lanes)


def first_ids(run, lanes):
    return jax.jit(partial(train._batch, run))(jnp.asarray(TOKENS), lane_of(lanes), jnp.int32(0))[0]


def reported(run, lanes, states):
    """For every lane tensor → {statistic: value}, from the batch of the next step."""
    report = np.asarray(train.programs(run).observe(jnp.asarray(TOKENS), lanes, states))
    assert np.isfinite(report).all()
    names = train.observed(run)
    return [{n: dict(zip(PROBE_STATS, row)) for n, row in zip(names, r)} for r in report]


statistics = jax.jit(probe.statistics)


def test_statistics_by_hand():
    x = jnp.asarray([3.0, -4.0, 0.0, 448.0, -449.0, 60000.0, 2.0**-10, 2.0**-9, 2.0**-17, 1.0])
    found = dict(zip(PROBE_STATS, np.asarray(probe.statistics(x), np.float64)))
    a = np.asarray(x, np.float64)
    assert found["rms"] == pytest.approx(np.sqrt(np.mean(a**2)))
    assert found["mean"] == pytest.approx(a.mean())
    assert found["max"] == 60000.0
    # 449 and 60000 exceed 448; 2^-10 and 2^-17 are at most half of 2^-9.
    assert (found["e4m3_clipped"], found["e4m3_flushed"]) == pytest.approx((0.2, 0.2))
    # 60000 exceeds 57344; 2^-17 is half of 2^-16, the tie.
    assert (found["e5m2_clipped"], found["e5m2_flushed"]) == pytest.approx((0.1, 0.1))


def test_flushed_and_clipped_are_what_the_cast_does():
    from umup import fp8

    x = jnp.asarray(np.random.default_rng(0).normal(size=20000) * 2.0**-8, jnp.float32)
    found = dict(zip(PROBE_STATS, np.asarray(probe.statistics(x))))
    for fmt in (fp8.E4M3, fp8.E5M2):
        zero = np.mean(np.asarray(fp8.saturate(x, fmt), np.float32) == 0)
        assert found[f"{fmt.name.lower()}_flushed"] == pytest.approx(zero, abs=1e-6)
    assert found["e4m3_flushed"] > 0.1


def test_a_tap_is_the_identity_and_its_dummy_carries_the_report():
    x, w = jnp.arange(6.0).reshape(2, 3), jnp.full((3,), -2.0)

    def f(x, dummy):
        return (probe.tap(x * 2, dummy, (w, x)) ** 2).sum()

    value, (dx, report) = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, probe.blank(3))
    assert float(value) == 4 * 55
    np.testing.assert_array_equal(dx, 8 * x)
    for row, tensor in zip(report, (w, x, 4 * x), strict=True):
        np.testing.assert_allclose(row, probe.statistics(tensor))


def test_a_tensor_with_an_infinite_derivative_spoils_no_gradient():
    def f(x, dummy):
        return probe.tap(x, dummy, (jnp.log(x - 1.0),)).sum()

    dx = jax.grad(f)(jnp.ones(3), probe.blank(2))
    np.testing.assert_array_equal(dx, np.ones(3))


def test_a_model_names_what_it_reports():
    names = train.observed(make_run())
    assert len(names) == len(set(names)) == 3 * (4 * 3 + 4 + 2 * 2) + 3 + 2 + 2
    for name in (
        "blocks.2.attn.qkv/output_gradient",
        "blocks.0.mlp.down/input",
        "readout/weight",
        "blocks.1.attn.scores/entropy",
        "blocks.2.mlp_branch/value",
        "embed/gradient",
        "logits/value",
    ):
        assert name in names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", ["plain", "fp8_seed", "fp8_delayed"])
def test_reports_are_of_the_right_tensors(recipe, dtype):
    run = make_run(recipe=recipe, dtype=dtype)
    lanes, states = start([run])
    (found,) = reported(run, lanes, states)
    blocks = states.params["blocks"]
    down, qkv = (
        np.asarray(w[...])[0] for w in (blocks["mlp"]["down"]["w"], blocks["attn"]["qkv"]["w"])
    )
    for layer in range(3):
        for name, w in (("mlp.down", down), ("attn.qkv", qkv)):
            want = np.asarray(statistics(w[layer]))
            got = list(found[f"blocks.{layer}.{name}/weight"].values())
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert found[f"blocks.{layer}.attn.qkv/input"]["rms"] == pytest.approx(1.0, abs=0.01)
    assert found["logits/gradient"] == found["readout/output_gradient"]
    assert found["logits/gradient"]["rms"] == pytest.approx(1.0, abs=0.1)
    # The stream's gradient after the last block is that which enters it by the norm.
    assert 0.2 < found["blocks.2.mlp_branch/gradient"]["rms"] < 3


def test_attention_is_reported_as_numpy_has_it():
    run = make_run(rope=False, n_layers=1, base_depth=1)
    lanes, states = start([run])
    table, qkv = (
        np.asarray(w[...], np.float64)[0]
        for w in (states.params["embed"]["w"], states.params["blocks"]["attn"]["qkv"]["w"])
    )
    x = table[np.asarray(first_ids(run, lanes)).reshape(-1)]  # u-μP multiplies it by 1
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    w = qkv[0]
    qkv = (x @ w.reshape(16, -1)) / np.sqrt(16)
    q, k, _ = qkv.reshape(4, 8, 3, 2, 8).transpose(2, 0, 3, 1, 4)
    allowed = np.tril(np.ones((8, 8), bool))
    dots = np.einsum("bhtd,bhsd->bhts", q, k)
    cosines = dots / np.linalg.norm(q, axis=-1)[..., None] / np.linalg.norm(k, axis=-1)[:, :, None]
    p = np.where(allowed, np.exp(dots / 8), 0)
    p /= p.sum(-1, keepdims=True)
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
    (found,) = reported(run, lanes, states)
    for name, want in (("qk", dots[..., allowed] / 8), ("cosine", cosines[..., allowed])):
        got = found[f"blocks.0.attn.scores/{name}"]
        assert got["rms"] == pytest.approx(np.sqrt((want**2).mean()), rel=1e-4)
        assert got["max"] == pytest.approx(abs(want).max(), rel=1e-4)
    assert found["blocks.0.attn.scores/entropy"]["mean"] == pytest.approx(entropy.mean(), rel=1e-4)


@pytest.mark.optimized
@pytest.mark.one_device
def test_looking_changes_no_number(tmp_path):
    from umup.data import Dataset
    from umup.lab.sweep import Settings, run_group

    dataset = Dataset(
        corpus="c",
        tokenizer="t",
        vocab_size=16,
        train=TOKENS,
        val=TOKENS,
        bytes_per_token=1.0,
        digest="squares",
        tokenizer_digest="t",
    )
    steps, by_twos = (0, 1, 4, 6), Settings(chunk_steps=2)
    plain, probed = (
        run_group([run], dataset, tmp_path, study="s", profile="p", settings=by_twos)[0]
        for run in (make_run(), make_run(probe_steps=steps))
    )
    np.testing.assert_array_equal(plain["curve_loss"], probed["curve_loss"])
    assert plain["val_loss"] == probed["val_loss"]
    assert tuple(probed["probe_steps"]) == steps and len(plain["probe_steps"]) == 0
    values = probed["probe_values"].reshape(4, -1, len(PROBE_STATS))
    compiled, lanes = train.programs(make_run()), train.lanes_of([make_run()])
    states, _ = compiled.chunk(jnp.asarray(TOKENS), lanes, compiled.init(lanes), 4)
    (late,) = reported(make_run(), lanes, states)
    names = probed["probe_tensors"]
    np.testing.assert_allclose(values[2], [list(late[n].values()) for n in names], rtol=1e-5)
    assert (values[0] != values[3]).any()


def test_off_is_the_same_program():
    run = make_run()
    probed = replace(run, probe_steps=(0, 3))
    assert train.programs(run) == train.programs(probed), "one compiled step for both"
    assert run.key() != probed.key()
    assert not jax.tree.leaves(train.abstract(run).taps)
    ids = jnp.zeros((1, 8), jnp.int32)
    text = jax.jit(lambda: train.build(run, train.Lane(HPs().to_dict(), jnp.int32(0)))(ids))
    assert "_tap" not in str(jax.make_jaxpr(text)())


def test_lanes_report_apart():
    one, other = make_run(), make_run(seed=2)
    together = reported(one, *start([one, other]))
    for run, report in zip((one, other), together, strict=True):
        alone = reported(run, *start([run, run]))[0]
        for name in ("blocks.1.mlp.down/input", "readout/output_gradient"):
            assert report[name]["rms"] == pytest.approx(alone[name]["rms"], rel=1e-4)
    assert together[0] != together[1]


def test_a_batch_split_over_devices_reports_the_same():
    run = make_run()
    parts = train.parts_of(train.build(run, lane_of(train.lanes_of([run])), probed=True))
    ids, targets = (jnp.asarray(TOKENS[i : i + 64].reshape(8, 8), jnp.int32) for i in (0, 1))

    @jax.jit
    def report(taps, ids, targets):
        def loss(taps):
            model = nnx.merge(parts.graph, parts.params, parts.amax, taps, parts.scales)
            return model.loss(ids, targets)

        return jax.grad(loss)(taps)

    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    found = report(parts.taps, *(jax.device_put(a, split) for a in (ids, targets)))
    want = report(parts.taps, ids, targets)
    # Sums in another order. No shares: what is zero but for rounding, as the gradient of the first
    # position's query is, counts as flushed on one processor and as zero on another.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[..., :3], b[..., :3], rtol=2e-5, atol=1e-6)
    # Three quarters of a power of two is far from every edge: there, shares are exact.
    x = 0.75 * 2.0 ** np.random.default_rng(0).integers(-24, 24, (64, 32)).astype(np.float32)
    x[::5] = 0.0
    alone, shared = statistics(x), statistics(jax.device_put(x, split))
    np.testing.assert_array_equal(shared[3:], alone[3:])
    np.testing.assert_allclose(shared[:3], alone[:3], rtol=1e-6)
    assert (alone[3:] > 0.1).all()


def test_bad_steps():
    for steps in ((3, 1), (1, 1), (7,), (-1,)):
        with pytest.raises(ConfigError, match="probe_steps"):
            make_run(probe_steps=steps)
