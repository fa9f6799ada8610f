"""The step over a mesh: the single device's numbers on every layout, split as planned."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from multihost import BATCH, SEQ_LEN, STEPS, host_windows, make_run, stream
from umup import mesh, ops, train
from umup.config import MeshConfig
from umup.run import parallel
from umup.run.parallel import Control

LAYOUTS = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
ONE, CUBE = (1, 1, 1), (2, 2, 2)
SCHEMES = ("sp", "mup", "umup")


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Numbers and their places are looked at here, no times: code need not be fast."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def devices(layout):
    config = MeshConfig(*layout)
    return mesh.make(config, jax.devices()[: config.devices])


def programs(run, layout):
    return parallel.programs(run, devices(layout), STEPS)


@functools.cache
def _drawn(run):
    return on_host(programs(run, ONE).init())


def drawn(run):
    """The state before the first step; how a step is computed makes no difference to it."""
    recipe = "fp8_delayed" if run.model.recipe == "fp8_delayed" else "plain"  # which remembers
    model = dataclasses.replace(run.model, remat="none", attention="xla", recipe=recipe)
    optim = dataclasses.replace(run.optim, accumulate=1)
    return _drawn(dataclasses.replace(run, model=model, optim=optim))


def fresh(run, layout):
    """The state before the first step, drawn on one device: saves the compilation of the draws."""
    made = devices(layout)
    return jax.device_put(drawn(run), mesh.shardings(made, parallel.abstract_state(run, made)))


@functools.cache
def tokens(layout):
    return parallel.place(stream(), devices(layout))


@functools.cache
def trained(run, layout):
    """(losses, norms, state after them), all steps in one chunk."""
    chunk = programs(run, layout).chunk
    state, told = chunk(tokens(layout), fresh(run, layout), Control(n_steps=STEPS))
    assert np.asarray(told.ok).all()
    return np.asarray(told.loss), np.asarray(told.grad_norm), state


def windows(run, layout, first=0):
    host = host_windows(run, devices(layout))
    read = host.windows(first, STEPS)
    host.close()
    return read


def on_host(tree):
    return jax.tree.map(np.array, tree)  # a copy: chunks are given the state's own buffers


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- every layout has the numbers of one device ---------------------------------------------------


def test_a_mesh_of_one_device_trains_as_the_loop_without_a_mesh():
    run = make_run()
    np.testing.assert_allclose(trained(run, ONE)[0], train.train(run, stream()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layout_trains_as_one_device(scheme, layout):
    losses, norms, _ = trained(make_run(scheme), layout)
    want, want_norms, _ = trained(make_run(scheme), ONE)
    assert want[0] - want[-1] > 0.2  # there is something to agree on
    np.testing.assert_allclose(losses, want, atol=1e-5, rtol=0)
    np.testing.assert_allclose(norms, want_norms, rtol=1e-4)


def test_options_of_the_optimizer_train_as_on_one_device():
    options = {"eps_rule": "scaled", "decay_rule": "width", "eps": 0.5, "decay": "coupled"}
    losses, norms, _ = trained(make_run(optim=options), CUBE)
    want, want_norms, _ = trained(make_run(optim=options), ONE)
    assert np.abs(want - trained(make_run(), ONE)[0]).max() > 1e-3  # they matter
    np.testing.assert_allclose(losses, want, atol=1e-5, rtol=0)
    np.testing.assert_allclose(norms, want_norms, rtol=1e-4)


@pytest.mark.optimized
def test_a_mesh_draws_the_weights_of_one_device():
    assert_same(on_host(programs(make_run(), CUBE).init()), drawn(make_run()))


def test_evaluation_is_that_of_one_device():
    want, found = (
        float(programs(make_run(), layout).evaluate(tokens(layout), fresh(make_run(), layout)))
        for layout in (ONE, CUBE)
    )
    assert found == pytest.approx(want, abs=1e-6)
    assert abs(want - trained(make_run(), ONE)[0][0]) > 1e-3  # of other batches


@pytest.mark.parametrize(
    "change",
    [{"optim": {"accumulate": 2}, "remat": "dots"}, {"attention": "blocked", "remat": "full"}],
    ids=str,
)
def test_what_saves_memory_changes_no_loss(change):
    losses, norms, _ = trained(make_run(**change), CUBE)
    np.testing.assert_allclose(losses, trained(make_run(), ONE)[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(norms, trained(make_run(), ONE)[1], rtol=1e-4)


def gradient_program(run, layout):
    """``train.gradients`` on the mesh, its results split as the state is."""
    made = devices(layout)
    at = mesh.shardings(made, parallel.abstract_state(run, made))
    program = jax.jit(
        lambda state, batch: train.gradients(run, state, batch),
        out_shardings=(parallel.everywhere(made), at.params, at.amax),
    )
    rows = jax.NamedSharding(made, mesh.spec("batch", None))
    return program, (jax.ShapeDtypeStruct((BATCH, SEQ_LEN), jnp.int32, sharding=rows),) * 2


@pytest.mark.parametrize("recipe", ["fp8_seed", "fp8_current"])
def test_fp8_gradients_are_those_of_one_device(recipe):
    run = make_run(recipe=recipe, n_layers=1)

    def gradients(layout):
        program, shapes = gradient_program(run, layout)
        first = np.asarray(windows(run, ONE))[0].astype(np.int32)
        parts = (first[:, :-1], first[:, 1:])
        batch = tuple(jax.device_put(x, like.sharding) for x, like in zip(parts, shapes))
        with jax.set_mesh(devices(layout)):
            loss, grads, _ = program(fresh(run, layout), batch)
        return float(loss), jax.tree.leaves(on_host(grads))

    (want_loss, want), (loss, found) = map(gradients, (ONE, CUBE))
    assert loss == pytest.approx(want_loss, abs=1e-5)
    for one, other in zip(found, want, strict=True):
        # A sum in another order may move single values over a rounding edge of the format.
        assert np.linalg.norm(one - other) < 1e-2 * np.linalg.norm(other)


def test_delayed_scaling_trains_as_on_one_device():
    run = make_run(recipe="fp8_delayed")
    (losses, _, state), (want, _, alone) = (trained(run, layout) for layout in (CUBE, ONE))
    assert np.abs(want - trained(make_run(), ONE)[0]).max() > 1e-4  # the recipe is on
    np.testing.assert_allclose(losses, want, atol=1e-3, rtol=0)
    assert len(jax.tree.leaves(state.amax)) == 5
    for found, other in zip(*map(jax.tree.leaves, (state.amax, alone.amax)), strict=True):
        assert np.asarray(other)[..., 0].all()  # remembered, of whole tensors
        np.testing.assert_allclose(found, other, rtol=2e-2, atol=0)


def test_bfloat16_parameters_keep_float32_moments():
    run = make_run(dtype="bfloat16", params_dtype="bfloat16")
    losses, _, state = trained(run, (1, 2, 4))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt[0].mu)} == {jnp.dtype(jnp.float32)}
    apart = np.abs(losses - trained(make_run(), ONE)[0]).max()
    assert 1e-4 < apart < 3e-2  # 8 bits of mantissa


# --- how the state lies ---------------------------------------------------------------------------


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
    run, lane = make_run(scheme), parallel.lane_of(make_run(scheme))
    state, alone = trained(run, CUBE)[2], jax.eval_shape(lambda: train.init(run, lane))
    assert metadata(state.params) == metadata(alone.params)
    numbers = jax.jit(lambda: train.init(run, lane).numbers)()
    assert {m["role"] for m in metadata(state.params)} == {"input", "hidden", "output"}
    for found, want in zip(jax.tree.leaves(state.numbers), jax.tree.leaves(numbers), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-6)
    factors = {float(x) for x in jax.tree.leaves(state.numbers.lr_factors)}
    kinds = {"sp": 1, "mup": 2, "umup": 4}  # of fan-ins 16 and 40, embedding, readout
    assert len(factors) == kinds[scheme]


# --- what the host decides ------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    chunk = programs(make_run(), CUBE).chunk
    state, _ = chunk(tokens(CUBE), fresh(make_run(), CUBE), Control(n_steps=3))
    table = state.params.embed.w
    table[...] = table[...].at[5, 3].set(jnp.nan)
    before = on_host(state)
    after, told = chunk(tokens(CUBE), state, Control(n_steps=2))
    assert not np.asarray(told.ok).any()
    assert not np.isfinite(np.asarray(told.loss)[:2]).any()
    assert_same(on_host(after.params), before.params)
    assert_same(on_host(after.opt[0]), before.opt[0])
    assert (int(before.step), int(after.step)) == (3, 5)
    assert (int(before.opt[1].count), int(after.opt[1].count)) == (3, 5)  # the schedule's


def test_a_gradient_that_is_not_finite_is_left_out_and_training_goes_on():
    chunk, state = programs(make_run(), ONE).chunk, fresh(make_run(), ONE)
    factor = state.numbers.scales.loss_grad
    good = np.asarray(factor[...])
    factor[...] = jnp.full_like(factor[...], jnp.inf)
    state, told = chunk(tokens(ONE), state, Control(n_steps=2))
    assert np.isfinite(np.asarray(told.loss)).all() and not np.asarray(told.ok).any()
    assert_same(on_host(state.params), drawn(make_run()).params)
    state.numbers.scales.loss_grad[...] = jnp.asarray(good)
    state, told = chunk(tokens(ONE), state, Control(n_steps=STEPS))
    assert np.asarray(told.ok).all()
    assert told.loss[-1] < told.loss[0] - 0.1


def test_the_shift_takes_later_batches():
    chunk = programs(make_run(), ONE).chunk
    later = windows(make_run(), ONE, first=5)
    _, want = chunk(later, fresh(make_run(), ONE), Control(n_steps=4))
    _, found = chunk(tokens(ONE), fresh(make_run(), ONE), Control(shift=5, n_steps=4))
    assert_same(found, want)
    assert np.abs(np.asarray(found.loss)[:4] - trained(make_run(), ONE)[0][:4]).max() > 1e-3


def test_eta_scale_is_a_factor_on_eta():
    half, whole = make_run(hps={"eta": 0.25}), make_run(hps={"eta": 0.5})
    _, told = programs(half, ONE).chunk(
        tokens(ONE), fresh(whole, ONE), Control(eta_scale=2.0, n_steps=STEPS)
    )
    np.testing.assert_array_equal(told.loss, trained(whole, ONE)[0])
    _, told = programs(half, ONE).chunk(tokens(ONE), fresh(whole, ONE), Control(n_steps=STEPS))
    assert np.abs(np.asarray(told.loss) - trained(whole, ONE)[0]).max() > 1e-3


def test_cuts_and_runs_share_one_program_and_change_no_bit():
    run = make_run()
    losses, norms, last = trained(run, CUBE)
    program, _ = parallel._step_programs(parallel._scheme_free(run), devices(CUBE), STEPS)
    before = program._cache_size()
    for cuts in ((1, 4, 7), (5, 6, 1)):
        state, seen = fresh(run, CUBE), []
        for n in cuts:
            state, told = programs(run, CUBE).chunk(tokens(CUBE), state, Control(n_steps=n))
            seen.append([np.asarray(x)[:n] for x in told[:2]])
            assert not np.asarray(told.ok)[n:].any()
        assert_same([np.concatenate(x) for x in zip(*seen)], [losses, norms])
        assert_same(on_host(state), on_host(last))
    for other in (make_run(seed=3), make_run(hps={"eta": 0.1}), make_run("mup")):
        programs(other, CUBE).chunk(tokens(CUBE), fresh(run, CUBE), Control(shift=1))
    assert program._cache_size() == before == 1


@pytest.mark.optimized
def test_windows_of_the_host_give_the_same_bits():
    run = make_run()
    state, told = programs(run, ONE).chunk(
        windows(run, ONE), fresh(run, ONE), Control(n_steps=STEPS)
    )
    losses, norms, last = trained(run, ONE)
    assert_same([np.asarray(told.loss), np.asarray(told.grad_norm)], [losses, norms])
    assert_same(on_host(state), on_host(last))


# --- what is computed again -----------------------------------------------------------------------


def rows(batch, seq_len):
    return (jax.ShapeDtypeStruct((batch, seq_len), jnp.int32),) * 2


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
    state, batch = parallel.abstract_state(run, devices(ONE)), rows(BATCH, SEQ_LEN)
    jaxpr = jax.make_jaxpr(lambda s, b: train.gradients(run, s, b))(state, batch).jaxpr
    assert (products(jaxpr, False), products(jaxpr, True)) == (linears, attention)


def gradients_lowered(**model):
    run = make_run(seq_len=32, **model)
    state, batch = parallel.abstract_state(run, devices(ONE)), rows(BATCH, 32)
    return jax.jit(lambda s, b: train.gradients(run, s, b)).lower(state, batch)


def test_remat_saves_memory():
    def temporary(remat):
        compiled = gradients_lowered(remat=remat, n_layers=6).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporary, ("none", "dots", "full"))
    assert none > 1.3 * dots > 1.3**2 * full


@pytest.mark.parametrize(
    ("unroll", "n_layers", "barred"), [(1, 3, False), (2, 3, False), (0, 3, True), (1, 1, True)]
)
def test_an_unrolled_remat_is_barred_from_being_undone(unroll, n_layers, barred):
    """Without a scan the second computation would be found equal to the first, and dropped."""
    shape = {"unroll": unroll, "n_layers": n_layers}
    none, full = (  # products have barriers of their own
        gradients_lowered(remat=remat, **shape).as_text().count("optimization_barrier")
        for remat in ("none", "full")
    )
    assert (full > none) == barred and full >= none


# --- attention ------------------------------------------------------------------------------------


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

    @functools.partial(jax.jit, static_argnums=0)
    def both(implementation):
        y, back = jax.vjp(lambda *x: ops.attention(*x, 0.37, 1.7, implementation), q, k, v)
        return y, *back(g)

    found, want = both("cudnn"), both("xla")
    assert seen == {
        "scale": 1.0,
        "is_causal": True,
        "implementation": "cudnn",
        "shape": (batch, length, heads, d_head),
    }
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


# --- what goes between devices --------------------------------------------------------------------


def gathered(text, dtype="f32"):
    """Shapes of what all-gathers of a program return."""
    found = re.findall(rf"= {dtype}\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    return {tuple(map(int, shape.split(","))) for shape in found}


@pytest.mark.parametrize("layout", [(1, 8, 1), CUBE, (1, 2, 4)], ids=str)
def test_only_weights_are_gathered(layout, capfd):
    program, batch = gradient_program(make_run(), layout)
    with jax.set_mesh(devices(layout)):
        state = parallel.abstract_state(make_run(), devices(layout))
        text = program.lower(state, batch).compile().as_text()
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


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    script = Path(__file__).with_name("multihost.py")
    outer = os.environ.get("XLA_FLAGS", "")
    flags = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{outer} --xla_force_host_platform_device_count=4",
    }
    started = [
        subprocess.Popen(
            [sys.executable, script, coordinator, "2", str(i), tmp_path / f"{i}.npz"],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert "Involuntary" not in "".join(said)  # see test_only_weights_are_gathered
    one, other = (dict(np.load(tmp_path / f"{i}.npz")) for i in range(2))
    read = [{k: x.pop(k) for k in list(x) if k.startswith("window")} for x in (one, other)]
    assert_same(one, other)
    assert one["devices"] == 4
    losses, norms, _ = trained(make_run(), CUBE)
    assert one["ok"].all()
    np.testing.assert_allclose(one["loss"], losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(one["grad_norm"], norms, rtol=1e-4)
    # Each host read its half of the rows, and together they are the batches.
    assert [sorted(x) for x in read] == [["window 0", "window 4"], ["window 12", "window 8"]]
    parts = [(read[0] | read[1])[f"window {row}"] for row in (0, 4, 8, 12)]
    assert_same(np.concatenate(parts, axis=1), np.asarray(windows(make_run(), ONE)))
    everywhere = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(trained(make_run(), CUBE)[2])
        for shard in leaf.addressable_shards
    )
    assert 2 * one["state_bytes"] == everywhere  # each holds its devices' part and no more
