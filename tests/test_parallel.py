"""The step over a mesh: the single device's numbers on every layout, split as planned."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from multihost import STEPS, host_windows, make_run, stream

from umup import mesh, ops, parallel, train
from umup.config import MeshConfig
from umup.parallel import Control


LAYOUTS = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
ONE, CUBE = (1, 1, 1), (2, 2, 2)
SCHEMES = ("sp", "mup", "umup")


def devices(layout):
    config = MeshConfig(*layout)
    return mesh.make(config, jax.devices()[: config.devices])


def programs(run, layout):
    return parallel.programs(run, devices(layout), STEPS)


@cache
def tokens(layout):
    return parallel.place(stream(), devices(layout))


@cache
def trained(run, layout):
    """(losses, norms, state after them), all steps in one chunk."""
    compiled = programs(run, layout)
    state, told = compiled.chunk(tokens(layout), compiled.init(), Control(n_steps=STEPS))
    assert np.asarray(told.ok).all()
    return np.asarray(told.loss), np.asarray(told.grad_norm), state


@cache
def single(run):
    """The losses of the loop that knows no mesh."""
    return train.train(run, stream())


def on_host(tree):
    return jax.tree.map(np.array, tree)  # a copy: chunks are given the state's own buffers


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- every layout has the numbers of one device -----------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layout_trains_as_one_device(scheme, layout):
    run = make_run(scheme)
    losses, norms, _ = trained(run, layout)
    assert losses[0] - losses[-1] > 0.2  # there is something to agree on
    np.testing.assert_allclose(losses, single(run), atol=1e-5, rtol=0)
    np.testing.assert_allclose(norms, trained(run, ONE)[1], rtol=1e-4)


def test_every_layout_draws_the_same_weights():
    want = on_host(programs(make_run(), ONE).init())
    for layout in LAYOUTS[1:]:
        assert_same(on_host(programs(make_run(), layout).init()), want)


def test_evaluation_is_that_of_one_device():
    run = make_run()
    alone, lanes = train.programs(run), train.lanes_of([run])
    (want,) = alone.evaluate(jnp.asarray(stream()), alone.init(lanes))
    compiled = programs(run, CUBE)
    found = compiled.evaluate(tokens(CUBE), compiled.init())
    assert float(found) == pytest.approx(float(want), abs=1e-6)


def test_parts_of_a_batch_add_up_on_a_mesh():
    run = make_run(optim={"accumulate": 2})
    np.testing.assert_allclose(trained(run, CUBE)[0], single(make_run()), atol=1e-5, rtol=0)
    np.testing.assert_allclose(trained(run, CUBE)[1], trained(make_run(), ONE)[1], rtol=1e-4)


@pytest.mark.parametrize("recipe", ["fp8_seed", "fp8_current", "fp8_delayed"])
def test_fp8_recipes_split_as_they_are(recipe):
    run = make_run(recipe=recipe)
    losses, _, state = trained(run, CUBE)
    assert np.abs(losses - single(make_run())).max() > 1e-4  # the recipe is on
    # A sum in another order may move a value over a rounding edge of the coarse format.
    np.testing.assert_allclose(losses, single(run), atol=1e-3, rtol=0)
    np.testing.assert_allclose(losses[:2], single(run)[:2], atol=1e-5, rtol=0)
    assert bool(jax.tree.leaves(state.amax)) == (recipe == "fp8_delayed")


def test_bfloat16_parameters_keep_float32_moments():
    run = make_run(dtype="bfloat16", params_dtype="bfloat16")
    losses, _, state = trained(run, (1, 2, 4))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt[0].mu)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(losses, single(run), atol=2e-2, rtol=0)  # 8 bits of mantissa
    assert np.abs(losses - single(make_run())).max() > 1e-4


# --- how the state lies -----------------------------------------------------------------------------


def held(leaf):
    """Bytes of a leaf on each device."""
    return {shard.device.id: shard.data.nbytes for shard in leaf.addressable_shards}


@pytest.mark.parametrize(
    ("layout", "qkv", "embed"),
    [
        # (n_layers, d_model/fsdp, 3, d_model/tensor) and (vocabulary/tensor, d_model/fsdp)
        ((8, 1, 1), 2 * 16 * 3 * 16, 24 * 16),
        ((1, 8, 1), 2 * 2 * 3 * 16, 24 * 2),
        ((2, 2, 2), 2 * 8 * 3 * 8, 12 * 8),
        ((1, 2, 4), 2 * 8 * 3 * 4, 6 * 8),
    ],
    ids=str,
)
def test_state_is_spread_as_planned(layout, qkv, embed):
    state = trained(make_run(), layout)[2]  # after training: what a step leaves is spread, too
    for tree in (state.params, state.opt[0].mu, state.opt[0].nu):
        assert set(held(tree.blocks.attn.qkv.w[...]).values()) == {4 * qkv}
        assert set(held(tree.embed.w[...]).values()) == {4 * embed}
    _, fsdp, tensor = layout
    split = 3 * 4 * make_run().model.n_params // (fsdp * tensor)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((state.numbers, state.step)))
    whole += state.opt[0].count.nbytes + state.opt[1].count.nbytes
    total = {device.id: 0 for device in jax.devices()}
    for leaf in jax.tree.leaves(state):
        for device, size in held(leaf).items():
            total[device] += size
    assert set(total.values()) == {split + whole}
    abstract = parallel.abstract_state(make_run(), devices(layout))
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding.spec), abstract)
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding.spec), state)
    assert jax.tree.leaves(found) == jax.tree.leaves(like)


def metadata(tree):
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return [leaf.get_metadata() for leaf in jax.tree.leaves(tree, is_leaf=is_variable)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_roles_and_factors_survive(scheme):
    run = make_run(scheme)
    alone = train.init(run, parallel.lane_of(run))
    state = trained(run, CUBE)[2]
    assert metadata(state.params) == metadata(alone.params)
    assert {m["role"] for m in metadata(state.params)} == {"input", "hidden", "output"}
    for found, want in zip(
        jax.tree.leaves(state.numbers), jax.tree.leaves(alone.numbers), strict=True
    ):
        np.testing.assert_allclose(found, want, rtol=1e-6)
    factors = {float(x) for x in jax.tree.leaves(state.numbers.lr_factors)}
    assert len(factors) == {"sp": 1, "mup": 2, "umup": 3}[scheme]


# --- what the host decides --------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    compiled = programs(make_run(), CUBE)
    state, _ = compiled.chunk(tokens(CUBE), compiled.init(), Control(n_steps=3))
    table = state.params.embed.w
    table[...] = table[...].at[5, 3].set(jnp.nan)
    before = on_host(state)
    after, told = compiled.chunk(tokens(CUBE), state, Control(n_steps=2))
    assert not np.asarray(told.ok).any()
    assert not np.isfinite(np.asarray(told.loss)[:2]).any()
    assert_same(on_host(after.params), before.params)
    assert_same(on_host(after.opt[0]), before.opt[0])
    assert (int(before.step), int(after.step)) == (3, 5)
    assert (int(before.opt[1].count), int(after.opt[1].count)) == (3, 5)  # the schedule's


def test_training_goes_on_after_a_step_that_is_not_finite():
    """An overflowing gradient in one batch of bad windows, then good ones: as if it had been left out."""
    compiled = programs(make_run(optim={"schedule": "two_step", "warmup_steps": 0}), ONE)
    run = make_run(optim={"schedule": "two_step", "warmup_steps": 0})
    host = host_windows(run, devices(ONE))
    windows = np.asarray(host.windows(0, STEPS))
    host.close()
    state, _ = compiled.chunk(jnp.asarray(windows), compiled.init(), Control(n_steps=2))
    good = on_host(state)
    scales = state.numbers.scales.loss_grad
    kept = np.asarray(scales[...])
    scales[...] = jnp.full_like(scales[...], jnp.inf)
    state, told = compiled.chunk(jnp.asarray(windows[2:].repeat(2, 0)[:STEPS]), state, Control())
    assert (bool(told.ok[0]), np.isfinite(told.loss[0])) == (False, True)  # the gradient alone
    assert_same(on_host(state.params), good.params)
    state.numbers.scales.loss_grad[...] = jnp.asarray(kept)
    _, told = compiled.chunk(jnp.asarray(windows[2:].repeat(2, 0)[:STEPS]), state, Control())
    assert bool(told.ok[0]) and np.isfinite(told.grad_norm[0])


def test_the_shift_takes_later_batches():
    compiled = programs(make_run(), ONE)
    host = host_windows(make_run(), devices(ONE))
    windows = host.windows(5, STEPS)
    host.close()
    _, want = compiled.chunk(windows, compiled.init(), Control(n_steps=4))
    _, found = compiled.chunk(tokens(ONE), compiled.init(), Control(shift=5, n_steps=4))
    assert_same(found, want)
    assert np.abs(np.asarray(found.loss)[:4] - trained(make_run(), ONE)[0][:4]).max() > 1e-3


def test_eta_scale_is_a_factor_on_eta():
    half, whole = make_run(hps={"eta": 0.25}), make_run(hps={"eta": 0.5})
    compiled = programs(half, ONE)
    _, told = compiled.chunk(tokens(ONE), compiled.init(), Control(eta_scale=2.0, n_steps=STEPS))
    np.testing.assert_array_equal(told.loss, trained(whole, ONE)[0])
    assert np.abs(np.asarray(told.loss) - single(half)).max() > 1e-3


def test_cuts_and_runs_share_one_program_and_change_no_bit():
    compiled, run = programs(make_run(), CUBE), make_run()
    losses, norms, last = trained(run, CUBE)
    chunk, _ = parallel._step_programs(
        dataclasses.replace(run, scheme="sp", hps=type(run.hps)()), devices(CUBE), STEPS
    )
    before = chunk._cache_size()
    for cuts in ((1, 4, 7), (5, 6, 1)):
        state, seen = compiled.init(), []
        for n in cuts:
            state, told = compiled.chunk(tokens(CUBE), state, Control(n_steps=n))
            seen.append([np.asarray(x)[:n] for x in told[:2]])
            assert not np.asarray(told.ok)[n:].any()
        assert_same([np.concatenate(x) for x in zip(*seen)], [losses, norms])
        assert_same(on_host(state), on_host(last))
    trained(make_run(seed=3, hps={"eta": 0.1}), CUBE)
    trained(make_run("mup"), CUBE)
    assert chunk._cache_size() == before <= 2  # one of tokens, one of windows


def test_windows_of_the_host_give_the_same_bits():
    compiled = programs(make_run(), CUBE)
    host = host_windows(make_run(), devices(CUBE))
    windows = host.windows(0, STEPS)
    host.close()
    state, told = compiled.chunk(windows, compiled.init(), Control(n_steps=STEPS))
    losses, norms, last = trained(make_run(), CUBE)
    assert_same([np.asarray(told.loss), np.asarray(told.grad_norm)], [losses, norms])
    assert_same(on_host(state), on_host(last))


# --- what is computed again -------------------------------------------------------------------------


def products(jaxpr, batched):
    """Matrix products of a jaxpr, those with batch dimensions or those without."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            count += bool(eqn.params["dimension_numbers"][1][0]) == batched
        for value in eqn.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    count += products(inner, batched)
    return count


@pytest.mark.parametrize("recipe", ["plain", "fp8_current"])
@pytest.mark.parametrize(
    ("remat", "linears", "attention"),
    [
        # Three products a linear, four of them in a block, and the readout; attention has two
        # products forward and four backward.
        ("none", 15, 6),
        # Attention's come again: its scores, and its output, which attn.out must have as input.
        ("dots", 15, 8),
        # So do the linears' but the block's last, whose output nothing on the way back asks for.
        ("full", 18, 8),
    ],
)
def test_remat_computes_again_what_it_says(remat, linears, attention, recipe):
    run = make_run(remat=remat, recipe=recipe)
    state = jax.eval_shape(lambda: train.init(run, parallel.lane_of(run)))
    batch = (jax.ShapeDtypeStruct((16, 8), jnp.int32),) * 2
    jaxpr = jax.make_jaxpr(lambda s, b: train.gradients(run, s, b))(state, batch).jaxpr
    assert (products(jaxpr, False), products(jaxpr, True)) == (linears, attention)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_loss(remat):
    np.testing.assert_allclose(
        trained(make_run(remat=remat), CUBE)[0], single(make_run()), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("unroll", [1, 0])
def test_remat_saves_memory(unroll):
    def temporary(remat):
        run = make_run(remat=remat, unroll=unroll, n_layers=6, seq_len=32)
        state = jax.eval_shape(lambda: train.init(run, parallel.lane_of(run)))
        batch = (jax.ShapeDtypeStruct((16, 32), jnp.int32),) * 2
        program = jax.jit(lambda s, b: train.gradients(run, s, b)).lower(state, batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporary, ("none", "dots", "full"))
    print(unroll, none, dots, full)
    assert none > 1.3 * dots > 1.3**2 * full


# --- attention --------------------------------------------------------------------------------------


def test_blocked_attention_trains_as_xla_on_a_mesh():
    run = make_run(attention="blocked")
    np.testing.assert_allclose(trained(run, CUBE)[0], single(make_run()), atol=1e-5, rtol=0)


def test_the_fused_kernel_is_called_as_its_layout_asks(monkeypatch):
    """The same call, by JAX's own implementation in place of cuDNN's."""
    kernel, seen = jax.nn.dot_product_attention, {}

    def stand_in(q, k, v, *, implementation, **options):
        seen.update(options, implementation=implementation, shape=q.shape)
        return kernel(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    batch, heads, length, d_head = 2, 3, 16, 8
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (batch, heads, length, d_head)) for key in keys)

    def both(implementation):
        y, back = jax.vjp(lambda *x: ops.attention(*x, 0.37, 1.7, implementation), q, k, v)
        return y, *back(g)

    found, want = both("cudnn"), both("xla")
    assert seen == {
        "scale": 1.0, "is_causal": True, "implementation": "cudnn",
        "shape": (batch, length, heads, d_head),
    }  # fmt: skip
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


# --- what goes between devices ----------------------------------------------------------------------


def compiled_text(layout):
    """The step's program; a batch of other rows, so that no earlier compilation serves."""
    run = make_run(optim={"batch_size": 32})
    chunk, _ = parallel._step_programs(run, devices(layout), 2)
    source = jax.ShapeDtypeStruct(
        (4000,), np.uint16, sharding=parallel.everywhere(devices(layout))
    )
    state = parallel.abstract_state(run, devices(layout))
    with jax.set_mesh(devices(layout)):
        lowered = chunk.lower(source, parallel.lane_of(run), state, parallel._plain(Control()))
        return lowered.compile().as_text()


def gathered(text, dtype="f32"):
    """Shapes of what all-gathers of a program return."""
    found = re.findall(rf"= {dtype}\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    return {tuple(map(int, shape.split(","))) for shape in found}


@pytest.mark.parametrize("layout", [(1, 8, 1), CUBE, (1, 2, 4)], ids=str)
def test_only_weights_are_gathered(layout, capfd):
    text = compiled_text(layout)
    assert "Involuntary" not in capfd.readouterr().err  # XLA's word for "no good way from a to b"
    t = layout[2]
    # Of one layer, whole in d_model and split by columns or rows: never logits, never activations.
    d, d_ff, vocab = 16, 40, 24
    weights = {(d, d // t), (d // t, d), (d, d_ff // t), (d_ff // t, d), (d, vocab // t)}
    if t == 1:
        weights |= {(d, 3 * d), (d, 2 * d_ff)}
    assert (d, vocab // t) in gathered(text)
    assert gathered(text) <= weights
    assert "collective-permute" not in text
    # The scan holds its weights split: it gathers a layer's, twice, and keeps neither.
    stacks = re.search(r"= (\(.*f32\[2,.*\)) while\(", text)
    assert stacks and f"f32[2,{d},{2 * d_ff}]" not in text and f"f32[2,{d},{3 * d}]" not in text


# --- several processes ------------------------------------------------------------------------------


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    script = Path(__file__).with_name("multihost.py")
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    import os

    started = [
        subprocess.Popen(
            [sys.executable, script, coordinator, "2", str(i), tmp_path / f"{i}.npz"],
            env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    one, other = (dict(np.load(tmp_path / f"{i}.npz")) for i in range(2))
    assert_same(one, other)
    assert one["devices"] == 4
    losses, norms, _ = trained(make_run(), CUBE)
    for source in ("device", "host"):
        assert one[f"{source}_ok"].all()
        np.testing.assert_allclose(one[f"{source}_loss"], losses, atol=1e-5, rtol=0)
        np.testing.assert_allclose(one[f"{source}_grad_norm"], norms, rtol=1e-4)
    np.testing.assert_array_equal(one["device_loss"], one["host_loss"])
    everywhere = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(trained(make_run(), CUBE)[2])
        for shard in leaf.addressable_shards
    )
    assert 2 * one["state_bytes"] == everywhere  # each holds its devices' part and no more
