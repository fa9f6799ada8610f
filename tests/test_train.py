"""Training: one program for all settings, lanes, chunks, and the numbers themselves, pinned."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umup import data, train
from umup.config import NUMERICS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.rules import SCHEMES

GOLDEN = Path(__file__).parent / "golden/trajectory.json"
STEPS = 10


def make_run(scheme="umup", *, seed=0, eval_batches=3, hps=None, **model):
    shape = {
        "d_model": 16,
        "n_layers": 2,
        "d_head": 8,
        "d_ff": 40,
        "vocab_size": 13,
        "seq_len": 8,
        "base_width": 8,
        "base_depth": 1,
        "base_d_head": 4,
    }
    eta = 0.5 if SCHEMES[scheme].unit_scaled else 0.02
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(shape | model)),
        optim=OptimConfig(steps=STEPS, batch_size=2, warmup_steps=3),
        hps=HPs(**({"eta": eta} | (hps or {}))),
        seed=seed,
        corpus="c",
        tokenizer="t",
        data_digest="d",
        eval_batches=eval_batches,
    )


def stream():
    """Tokens by a formula, so that the pinned losses rest on nothing but this file."""
    i = np.arange(600, dtype=np.uint64)
    return ((i * i + 3 * (i // 5)) % 13).astype(np.uint16)


@cache
def single(run):
    return train.train(run, stream())


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.optimized
def test_golden_trajectory():
    golden = json.loads(GOLDEN.read_text())
    found = {scheme: [round(float(x), 6) for x in single(make_run(scheme))] for scheme in SCHEMES}
    assert golden["numerics"] == NUMERICS, (
        "umup.NUMERICS was bumped: put the new losses into tests/golden/trajectory.json: "
        + json.dumps({"numerics": NUMERICS, "losses": found})
    )
    for scheme in SCHEMES:
        np.testing.assert_allclose(
            found[scheme],
            golden["losses"][scheme],
            rtol=1e-4,
            err_msg=f"the numbers of {scheme} changed. If that is meant, bump umup.NUMERICS, so "
            "that older records are shown as stale, and run this test again for what to store.",
        )


@jax.jit
def initial_loss(lane, ids, targets):
    return train.build(make_run(), lane).loss(ids, targets)


def test_the_first_loss_is_that_of_the_initial_model_on_the_first_batch():
    run = make_run(seed=5)
    batch = jax.jit(lambda: data.batch(stream(), run.seed, 0, batch_size=2, seq_len=8))()
    want = float(initial_loss(one_lane(run), *batch))
    assert float(single(run)[0]) == pytest.approx(want, rel=1e-5)


def test_evaluation_is_the_mean_over_fixed_batches():
    run = make_run()
    programs, lanes = train.programs(run), train.lanes_of([run])
    (found,) = programs.evaluate(jnp.asarray(stream()), programs.init(lanes))
    batch = jax.jit(lambda i: data.eval_batch(stream(), i, batch_size=2, seq_len=8))
    want = np.mean([float(initial_loss(one_lane(run), *batch(i))) for i in range(3)])
    assert float(found) == pytest.approx(want, rel=1e-5)


def one_lane(run):
    return jax.tree.map(lambda x: x[0], train.lanes_of([run]))


# --- one program ----------------------------------------------------------------------------------


def test_no_setting_compiles_again():
    programs = train.programs(make_run())
    tokens = jnp.asarray(stream())

    def go(run):
        mine = train.programs(run)
        lanes = train.lanes_of([run])
        states, _ = mine.chunk(tokens, lanes, mine.init(lanes), STEPS)
        mine.evaluate(tokens, states)
        return mine

    def sizes():
        return [p._cache_size() for p in (programs.init, programs.chunk, programs.evaluate)]

    go(make_run())
    before = sizes()
    assert min(before) >= 1
    for name in SCHEMES["umup"].hps:
        assert go(make_run(hps={name: 0.75})) == programs, name
    assert go(make_run(seed=7)) == programs
    assert sizes() == before
    # Another scheme draws its weights by a program of its own, and shares the rest.
    other = go(make_run("mup"))
    assert (other.chunk, other.evaluate) == (programs.chunk, programs.evaluate)
    assert other.init != programs.init
    assert sizes() == before
    assert train.programs(make_run(d_ff=48)).chunk != programs.chunk


@pytest.mark.parametrize("name", SCHEMES["umup"].hps)
def test_every_hp_of_umup_changes_training(name):
    changed = single(make_run(hps={name: 1.5}))
    assert np.abs(changed - single(make_run())).max() > 1e-5


def test_the_seed_changes_draws_and_batches():
    one, other = single(make_run()), single(make_run(seed=1))
    assert np.abs(one - other).max() > 1e-2


# --- lanes and chunks -----------------------------------------------------------------------------

RUNS = [
    make_run(hps={"eta": 0.25}),
    make_run(),
    make_run(hps={"eta": 1.0, "alpha_ffn_act": 2.0}),
    make_run(seed=3),
    make_run(hps={"weight_decay": 0.0}),
]


def of_lanes(at_once):
    programs, lanes = train.programs(RUNS[0], at_once), train.lanes_of(RUNS)
    _, losses = programs.chunk(jnp.asarray(stream()), lanes, programs.init(lanes), STEPS)
    assert losses.shape == (5, STEPS)
    return losses, np.stack([single(run) for run in RUNS])


@pytest.mark.optimized
def test_lanes_one_after_another_give_the_losses_of_single_runs():
    np.testing.assert_array_equal(*of_lanes(1))


@pytest.mark.parametrize("at_once", [2, 8])
def test_lanes_give_the_losses_of_single_runs(at_once):
    # Side by side: other matrix products, other rounding.
    np.testing.assert_allclose(*of_lanes(at_once), rtol=2e-5)


def test_an_accelerator_runs_all_lanes_at_once(monkeypatch):
    def loops():
        return str(jax.make_jaxpr(train.over_lanes(jnp.sin, 1))(jnp.ones((4, 3)))).count("scan")

    assert loops() == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert loops() == 0
    found = train.over_lanes(lambda x, y: x + y.sum(), 1)(jnp.arange(4.0), jnp.ones((4, 3)))
    np.testing.assert_array_equal(found, np.arange(4.0) + 3)


@pytest.mark.optimized
@pytest.mark.parametrize("chunk_steps", [1, 4])
def test_chunks_do_not_change_the_losses(chunk_steps):
    found = train.train(make_run(), stream(), chunk_steps=chunk_steps)
    np.testing.assert_array_equal(found, single(make_run()))


def test_the_carry_is_donated():
    run = make_run()
    programs, lanes = train.programs(run), train.lanes_of([run])
    states = programs.init(lanes)
    programs.chunk(jnp.asarray(stream()), lanes, states, STEPS)
    leaves = jax.tree.leaves(states.params)
    assert all(leaf.is_deleted() for leaf in leaves)


def test_training_learns_the_stream():
    for scheme in SCHEMES:
        run = make_run(scheme)
        # Outside jit: otherwise every scheme would compile an initialization of its own.
        start = jax.tree.map(lambda x: x[None], train.init(run, one_lane(run)))
        chunk = train.programs(run).chunk
        losses = chunk(jnp.asarray(stream()), train.lanes_of([run]), start, STEPS)[1][0]
        assert losses[-3:].mean() < losses[:3].mean()
