"""The decoder: parity with the reference, μP = SP at the base, abc-symmetry, structure.

The cut-edge rule and edge shapes of its gradients are in test_contract.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from umup import ops, optim, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError
from umup.layers import Weight
from umup.model import Decoder, layers_unrolled, split
from umup.rules import Parametrization
from umup.schemes import SCHEMES, get

HERE = Path(__file__).parent / "golden"
GOLDEN = json.loads((HERE / "golden.json").read_text())
ARRAYS = np.load(HERE / "golden.npz")

# --- small runs -----------------------------------------------------------------------------------

MODEL = {
    "d_model": 32,
    "n_layers": 2,
    "d_head": 16,
    "d_ff": 48,
    "vocab_size": 23,
    "seq_len": 16,
    "base_width": 32,
    "base_depth": 2,
    "base_d_head": 16,
}


def make_run(scheme, *, steps=24, eps=1e-8, seed=0, hps=None, **model):
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(**(MODEL | model)),
        optim=OptimConfig(steps=steps, batch_size=4, warmup_steps=steps // 4, eps=eps),
        hps=HPs(**({"eta": 2.0**-7} | (hps or {}))),
        seed=seed,
        corpus="c",
        tokenizer="t",
        data_digest="d",
    )


def stream(vocab=23, length=4001):
    """Tokens by a formula: learnable (each follows from the two before it), never random."""
    tokens = [1, 2]
    for i in range(length - 2):
        tokens.append((3 * tokens[-1] + 5 * tokens[-2] + (i % 7 == 0)) % vocab)
    return np.asarray(tokens, np.uint16)


def lane_of(run):
    return jax.tree.map(lambda x: x[0], train.lanes_of([run]))


@cache
def losses(run):
    """The losses of a whole run; its start is computed outside jit, which compiles less."""
    start = jax.tree.map(lambda x: x[None], train.init(run, lane_of(run)))
    chunk = train.programs(run).chunk
    tokens = jnp.asarray(stream(run.model.vocab_size))
    return np.asarray(chunk(tokens, train.lanes_of([run]), start, run.optim.steps)[1][0])


def model_of(run):
    return train.build(run, lane_of(run))


def params_of(run):
    """{path: array} of the parameters at initialization."""
    _, params, _ = split(model_of(run))
    flat = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


# --- the reference package's whole decoder --------------------------------------------------------


def reference_model(hps=None, **changes):
    config = ModelConfig(
        **(
            {
                "d_model": 64,
                "n_layers": 2,
                "d_head": 16,
                "d_ff": 256,
                "vocab_size": 96,
                "seq_len": 32,
                "base_width": 64,
                "base_depth": 2,
                "base_d_head": 16,
                "rope": False,
                "tau_convention": "library",
                "depth_convention": "layers",
            }
            | changes
        )
    )
    numbers = Parametrization("umup", config, HPs(**(hps or {})).to_dict(), 4 * 32)
    model = Decoder(config, numbers, rngs=nnx.Rngs(params=0))
    high, low = ARRAYS["decoder_main/weights"]
    stored = ((high.view(np.int8).astype(np.int16) << 8) | low) / 2048
    shapes = GOLDEN["decoder_main"]["weights"]
    place(model, unpack(stored.astype(np.float32), list(shapes.values())))
    return model, numbers, jnp.asarray(ARRAYS["decoder_main/ids"], jnp.int32)


def unpack(stored, shapes):
    """The arrays stored end to end, by the reference's names; (fan_out, fan_in) each."""
    sizes = [rows * columns for rows, columns in shapes]
    parts = np.split(stored, np.cumsum(sizes)[:-1])
    names = GOLDEN["decoder_main"]["weights"]
    return {n: a.reshape(s) for n, a, s in zip(names, parts, shapes, strict=True)}


def by_reference_name(params):
    """Our parameters cut up as the reference names and lays them out."""
    out = {
        "embedding.weight": params["embed"]["w"][...],
        "projection.weight": params["readout"]["w"][...].T,
    }
    for i in range(2):
        attn, mlp = params["blocks"]["attn"], params["blocks"]["mlp"]
        gate, up = mlp["gate_up"]["w"][i].swapaxes(0, 1)
        qkv = attn["qkv"]["w"][i]
        mine = {
            "mhsa.linear_qkv": qkv.reshape(len(qkv), -1),
            "mhsa.linear_o": attn["out"]["w"][i],
            "mlp.linear_1": up,
            "mlp.linear_gate": gate,
            "mlp.linear_2": mlp["down"]["w"][i],
        }
        out |= {f"layers.{i}.{name}.weight": w.T for name, w in mine.items()}
    return {name: np.asarray(w) for name, w in out.items()}


def place(model, weights):
    def stacked(name):
        return jnp.stack([weights[f"layers.{i}.{name}.weight"].T for i in range(2)])

    model.embed.w[...] = weights["embedding.weight"]
    model.readout.w[...] = weights["projection.weight"].T
    qkv = stacked("mhsa.linear_qkv")
    model.blocks.attn.qkv.w[...] = qkv.reshape(*qkv.shape[:2], 3, -1)
    model.blocks.attn.out.w[...] = stacked("mhsa.linear_o")
    gate_up = [stacked("mlp.linear_gate"), stacked("mlp.linear_1")]
    model.blocks.mlp.gate_up.w[...] = jnp.stack(gate_up, axis=-2)
    model.blocks.mlp.down.w[...] = stacked("mlp.linear_2")


@cache
def next_token_loss(graph):
    """(params, scales, ids) → (loss, gradients), compiled once for all settings."""

    def loss(params, scales, ids):
        model = nnx.merge(graph, params, scales)
        logits = model(ids)
        mean = ops.cross_entropy(
            logits[:, :-1].reshape(-1, 96),
            ids[:, 1:].reshape(-1),
            model.loss_alpha[...],
            model.loss_grad[...],
        )
        return mean, logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def reference_loss(hps=None, **changes):
    model, _, ids = reference_model(hps, **changes)
    graph, params, scales = split(model)
    return float(next_token_loss(graph)(params, scales, ids)[0][0])


@pytest.mark.optimized
def test_decoder_matches_the_reference():
    model, _, ids = reference_model()
    graph, params, scales = split(model)
    (loss, logits), grads = next_token_loss(graph)(params, scales, ids)
    np.testing.assert_allclose(logits[0], ARRAYS["decoder_main/logits"], rtol=0, atol=3e-4)
    assert float(loss) == pytest.approx(GOLDEN["decoder_main"]["loss"], abs=5e-5)
    shapes = [(2, columns) for _, columns in GOLDEN["decoder_main"]["weights"].values()]
    want = unpack(ARRAYS["decoder_main/gradients"], shapes)
    for name, gradient in by_reference_name(grads).items():
        # Its MLP takes fan_out^−½ on the way back, ours fan_in^−½: inside the branch the two
        # differ by √(D/F) = ½, outside they agree.
        constant = 0.5 if name.endswith(("linear_1.weight", "linear_gate.weight")) else 1.0
        np.testing.assert_allclose(
            gradient[:2], constant * want[name], atol=5e-3, rtol=5e-3, err_msg=name
        )
        # About unit scale at initialization; correlations over positions keep it from 1 ± 0.1.
        assert 0.7 < np.sqrt(np.mean(gradient**2)) / constant < 1.5, name


@pytest.mark.optimized
@pytest.mark.parametrize("case", GOLDEN["decoder_losses"])
def test_residual_hps_match_the_reference(case):
    golden = GOLDEN["decoder_losses"][case]
    found = reference_loss(
        {
            "alpha_residual": golden["residual_mult"],
            "alpha_residual_attn_ratio": golden["residual_attn_ratio"],
        }
    )
    assert found == pytest.approx(golden["loss"], abs=1e-4)


@pytest.mark.optimized
def test_our_default_residual_is_the_references_at_root_half():
    found = reference_loss(tau_convention="derived")
    want = GOLDEN["decoder_losses"]["decoder_seed_alpha1"]["loss"]
    assert found == pytest.approx(want, abs=1e-4)
    assert found != pytest.approx(GOLDEN["decoder_main"]["loss"], abs=5e-4)


@pytest.mark.optimized
def test_four_steps_of_adamw_match_the_reference():
    golden = GOLDEN["decoder_main"]["adamw"]
    model, numbers, ids = reference_model()
    graph, params, scales = split(model)
    config = OptimConfig(steps=100, warmup_steps=0, final_lr_ratio=1.0)
    factors = optim.lr_factors(params, numbers)
    hps = {"eta": golden["lr"], "weight_decay": golden["weight_decay"]}
    optimizer = optim.adamw(config, factors, hps)
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(5):
        (loss, _), grads = next_token_loss(graph)(params, scales, ids)
        found.append(float(loss))
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert found == pytest.approx(golden["losses"], abs=2e-3)


def test_learning_rate_factors_match_the_reference():
    model, numbers, _ = reference_model()
    _, params, _ = split(model)
    factors = optim.lr_factors(params, numbers)
    spread = jax.tree.map(lambda f, p: jnp.broadcast_to(f, p.shape), factors, params)
    for name, factor in by_reference_name(spread).items():
        np.testing.assert_allclose(
            factor, GOLDEN["decoder_main"]["adam_lr_scale"][name], rtol=1e-6, err_msg=name
        )


# --- μP is SP at the base -------------------------------------------------------------------------


@pytest.mark.optimized
def test_mup_is_sp_at_the_base_bit_for_bit():
    sp, mup = (train.train(make_run(s), stream()) for s in ("sp", "mup"))
    assert len(sp) == 24
    assert sp[-1] < sp[0] - 0.1, "it must train, or equality shows nothing"
    np.testing.assert_array_equal(sp, mup)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"base_width": 16}, {"init", "scales", "factors"}),
        ({"base_depth": 1}, {"scales", "factors"}),
        ({"base_d_head": 8}, {"scales"}),
        ({"d_model": 48, "d_ff": 72}, {"init", "scales", "factors"}),
        ({}, set()),
    ],
)
def test_mup_is_not_sp_elsewhere(changes, moves):
    sp, mup = (
        train.init(run, lane_of(run)) for run in (make_run(s, **changes) for s in ("sp", "mup"))
    )

    def differ(a, b):
        return any(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))

    found = {
        "init": differ(sp.params, mup.params),
        "scales": differ(sp.numbers.scales, mup.numbers.scales),
        "factors": differ(sp.numbers.lr_factors, mup.numbers.lr_factors),
    }
    assert {name for name, changed in found.items() if changed} == moves


def test_mup_trains_unlike_sp_away_from_the_base():
    sp, mup = (losses(make_run(s, base_width=8)) for s in ("sp", "mup"))
    assert np.abs(sp - mup).max() > 1e-3


# --- abc-symmetry ---------------------------------------------------------------------------------


def test_abc_symmetry_holds_for_a_whole_trajectory():
    """A→Aθ, √B→√B/θ, C→C/θ trains alike under Adam with ε → 0."""
    hps = {
        "eta": 2.0**-6,
        "eta_emb": 4.0,
        "sigma_init": 0.5,
        "alpha_emb": 3.0,
        "alpha_output": 2.0,
        "weight_decay": 2.0**-8,
    }
    shape = {"base_width": 8, "base_depth": 1, "base_d_head": 8}
    one, twin = (
        losses(make_run(s, steps=60, eps=1e-30, hps=hps, **shape))
        for s in ("mup", "mup_intermediate")
    )
    assert one[-1] < one[0] - 0.3, "it must train, or equality shows nothing"
    np.testing.assert_allclose(twin, one, rtol=2e-4)


def test_a_large_epsilon_breaks_the_symmetry():
    """So the test above can fail: the twins' gradients do differ by θ."""
    one, twin = (losses(make_run(s, eps=1e-2, base_width=8)) for s in ("mup", "mup_intermediate"))
    assert np.abs(one / twin - 1).max() > 1e-3


def sgd_losses(scheme, steps=40):
    """Losses of SGD with momentum, at a rate where it learns."""
    hps = {"eta": 0.1, "eta_emb": 2.0, "sigma_init": 0.5, "alpha_emb": 3.0, "alpha_output": 2.0}
    run = make_run(
        scheme, steps=steps, hps=hps, base_width=16, base_depth=1, base_d_head=8, n_layers=2
    )
    graph, params, scales = split(model_of(run))
    values = run.hps.to_dict()
    factors = optim.lr_factors(params, train.parametrization(run, values), optimizer="sgd")
    optimizer = optim.sgd(run.optim, factors, values, momentum=0.5)
    tokens = jnp.asarray(stream()[: 4 * 17].reshape(4, 17).astype(np.int32))

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(
            lambda p: nnx.merge(graph, p, scales).loss(tokens[:, :-1], tokens[:, 1:])
        )(params)
        updates, state = optimizer.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), loss

    start = (params, optimizer.init(params))
    return np.asarray(jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps))(start)[1])


def test_abc_symmetry_holds_under_sgd():
    """A→Aθ, √B→√B/θ, C→C/θ²: the gradient grows by θ, and SGD's step with it."""
    one, twin = (sgd_losses(s) for s in ("mup", "mup_intermediate"))
    assert one[-1] < one[0] - 0.3, "it must train, or equality shows nothing"
    np.testing.assert_allclose(twin, one, rtol=2e-4)


# --- draws ----------------------------------------------------------------------------------------


def test_one_seed_gives_one_set_of_draws_under_every_scheme():
    draws = {}
    for scheme in SCHEMES:
        run = make_run(scheme, base_width=8, hps={"sigma_init": 0.25} if scheme == "mup" else {})
        for name, w in params_of(run).items():
            each_layer = tuple(range(1, w.ndim)) if name.startswith("blocks") else None
            stds = w.std(each_layer, keepdims=True)
            draws.setdefault(name, {})[scheme] = w / stds
    assert len(draws) == 6
    for name, of in draws.items():
        for scheme, draw in of.items():
            np.testing.assert_allclose(draw, of["sp"], rtol=2e-5, err_msg=f"{name} {scheme}")


def test_draws_differ_between_seeds_layers_and_weights():
    one, other = (params_of(make_run("umup", seed=s)) for s in (0, 1))
    for name, w in one.items():
        assert abs(np.corrcoef(w.ravel(), other[name].ravel())[0, 1]) < 0.1, name
    for name, w in one.items():
        if w.ndim == 3:
            assert abs(np.corrcoef(w[0].ravel(), w[1].ravel())[0, 1]) < 0.1, name
    square = [w[0][:32, :32].ravel() for w in one.values() if w.ndim == 3]
    assert np.abs(np.corrcoef(square) - np.eye(len(square))).max() < 0.15


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_standard_deviations(scheme):
    run = make_run(scheme, base_width=8)
    found = {name: float(w.std()) for name, w in params_of(run).items()}
    unit = get(scheme).unit_scaled or scheme == "mup_intermediate"
    want = {
        "embed": 1.0,
        "qkv": 32**-0.5,
        "['out']": 32**-0.5,
        "gate_up": 32**-0.5,
        "down": 48**-0.5,
        "readout": (32 if scheme in ("sp", "sp_emb_lr") else 8) ** -0.5,
    }
    for part, std in want.items():
        (name,) = [n for n in found if part in n]
        assert found[name] == pytest.approx(1.0 if unit else std, rel=0.08), name


# --- structure ------------------------------------------------------------------------------------


def test_layers_are_unrolled_by_default_where_it_pays():
    def unrolled(**model):
        return layers_unrolled(make_run("umup", **model).model)

    assert unrolled(n_layers=8) == 0 and unrolled(n_layers=9) == 1  # this is a CPU
    assert unrolled(remat="dots") == 1 and unrolled(remat="full") == 1
    assert [unrolled(unroll=n, n_layers=n_layers) for n, n_layers in ((1, 2), (0, 9))] == [1, 0]
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):
        assert unrolled() == 1
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        assert unrolled() == 0


def test_scan_equals_unrolled():
    run = make_run("umup")
    start = train.init(run, lane_of(run))
    tokens = jnp.asarray(stream()[: 4 * 17].reshape(4, 17).astype(np.int32))

    def step(unroll):
        other = make_run("umup", unroll=unroll)
        batch = (tokens[:, :-1], tokens[:, 1:])
        return jax.jit(lambda state: train.step(other, lane_of(run), state, batch))(start)

    (scan, of_scan), (unrolled, of_unrolled) = step(1), step(0)
    assert float(of_scan.loss) == pytest.approx(float(of_unrolled.loss), rel=1e-6)
    assert float(of_scan.grad_norm) == pytest.approx(float(of_unrolled.grad_norm), rel=1e-5)
    for one, other in zip(jax.tree.leaves(scan.opt), jax.tree.leaves(unrolled.opt)):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)  # Adam's moments


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_layers": 1, "vocab_size": 2},
        {"n_layers": 3, "d_ff": 7, "d_model": 48},
    ],
)
def test_n_params_is_the_number_of_parameters(shape):
    run = make_run("umup", **shape)
    _, params, _ = split(nnx.eval_shape(lambda: model_of(run)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == run.model.n_params


def test_n_params_by_hand():
    # 2·23·32 + 2·(4·32² + 3·32·48)
    assert make_run("sp").model.n_params == 18_880


@pytest.mark.parametrize(
    "shape",
    [
        {"seq_len": 1, "vocab_size": 2},
        {"seq_len": 5, "d_head": 32, "n_layers": 1},
        {"d_ff": 1, "d_head": 2},
        {"d_head": 1, "rope": False},
    ],
)
def test_edge_shapes_train(shape):
    for scheme, away_from_uniform in (("mup", 2.0), ("umup", 0.6)):
        run = make_run(scheme, steps=3, **shape)
        found = losses(run)
        assert np.isfinite(found).all()
        assert abs(found[0] - np.log(run.model.vocab_size)) < away_from_uniform


@pytest.mark.parametrize("scheme", ["mup", "umup"])
def test_the_model_is_causal(scheme):
    model = model_of(make_run(scheme, seq_len=6))
    ids = jnp.asarray(stream()[:6].astype(np.int32))[None]
    forward = nnx.jit(lambda m, x: m(x))
    before = np.asarray(forward(model, ids))
    for t in range(6):
        after = np.asarray(forward(model, ids.at[0, t].add(1) % 23))
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert (np.abs(after - before)[0, t:].max(-1) > 0).all()


def test_sequences_of_a_batch_do_not_meet():
    model = model_of(make_run("umup", seq_len=6))
    ids = jnp.asarray(stream()[:12].astype(np.int32)).reshape(2, 6)
    forward = nnx.jit(lambda m, x: m(x))
    before = forward(model, ids)
    after = forward(model, ids.at[1].set(3))
    np.testing.assert_array_equal(after[0], before[0])


def test_rope_makes_positions_matter():
    ids = jnp.full((1, 6), 5, jnp.int32)  # equal tokens: without positions all rows are equal
    for rope in (True, False):
        model = model_of(make_run("sp", seq_len=6, rope=rope))
        ids_two = ids.at[0, :2].set(jnp.array([7, 3]))
        swapped = ids.at[0, :2].set(jnp.array([3, 7]))
        last = [np.asarray(model(x))[0, -1] for x in (ids_two, swapped)]
        if rope:
            assert np.abs(last[0] - last[1]).max() > 1e-3
        else:
            # One layer of attention without positions is a bag of words; so are two for the
            # last position only up to what positions 0 and 1 themselves saw.
            one = model_of(make_run("sp", seq_len=6, rope=False, n_layers=1))
            last = [np.asarray(one(x))[0, -1] for x in (ids_two, swapped)]
            np.testing.assert_allclose(last[0], last[1], atol=1e-5)


# --- learning-rate factors ------------------------------------------------------------------------


def test_factors_survive_stacking():
    run = make_run("umup")
    _, params, _ = split(model_of(run))
    numbers = train.parametrization(run, run.hps.to_dict())
    factors = optim.lr_factors(params, numbers)
    found = {jax.tree_util.keystr(path): float(f) for path, f in jax.tree.leaves_with_path(factors)}
    want = {
        "embed": 32**-0.5,
        "qkv": 128**-0.5,
        "['out']": 128**-0.5,
        "gate_up": 128**-0.5,
        "down": 192**-0.5,
        "readout": 1.0,
    }  # fan_in^−½ · (4 branches)^−½
    assert len(found) == 6
    for part, value in want.items():
        (name,) = [n for n in found if part in n]
        assert found[name] == pytest.approx(value), name


def test_a_parameter_without_a_role_is_an_error():
    class Odd(nnx.Module):
        def __init__(self):
            self.gain = nnx.Param(jnp.ones(3))

    _, params, _ = split(Odd())
    run = make_run("umup")
    with pytest.raises(ConfigError, match="gain: received 'a parameter without a role'"):
        optim.lr_factors(params, train.parametrization(run, run.hps.to_dict()))


def test_a_weight_of_an_unknown_role_is_an_error():
    numbers = train.parametrization(make_run("mup"), HPs().to_dict())
    with pytest.raises(ConfigError, match="role"):
        Weight(numbers, "gain", 4, 4, axes=("embed", "mlp"), rngs=nnx.Rngs(0))


def test_the_readme_example_runs():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["logits"].shape == (64, 256, 256)
    # u-μP's readout starts at 1/√fan_in: logits of RMS 1/16 at width 256.
    rms = float(jnp.sqrt(jnp.mean(jnp.square(names["logits"]))))
    assert rms == pytest.approx(1 / 16, rel=0.1)


# --- intermediate values --------------------------------------------------------------------------

OPTIONS = (
    {},
    {"qk_norm": True},
    {"rope": False, "unroll": 1},
    {"remat": "full", "attention": "blocked"},
    {"recipe": "fp8_current", "keep_bf16": ("blocks.1.mlp.down",)},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_a_traced_forward_pass_is_the_forward_pass(options):
    model = model_of(make_run("umup", n_layers=3, **options))
    ids = jnp.asarray(stream()[:32].reshape(2, 16), jnp.int32)
    logits, values = model.trace(ids)
    np.testing.assert_array_equal(logits, model(ids))
    assert {name.split(".")[1] for name in values if name != "embed"} == {"0", "1", "2"}


def by_hand(model, ids) -> dict[str, np.ndarray]:
    """What ``trace`` names, in float64, block by block from the weights alone."""

    def norm(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)

    def product(linear, x, i):
        w = np.asarray(linear.w[...], np.float64)[i]
        return float(linear.forward[...][i]) * np.tensordot(x, w, axes=1)

    def rotated(x):
        half = x.shape[-1] // 2
        angles = np.outer(np.arange(x.shape[-2]), 10_000.0 ** (-np.arange(half) / half))
        pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    (batch, seq_len), config, blocks = ids.shape, model.config, model.blocks
    table = np.asarray(model.embed.w[...], np.float64)
    x = float(model.embed.forward[...]) * table[np.asarray(ids).reshape(-1)]
    values = {"embed": x}
    for i in range(config.n_layers):

        def added(x, f, branch, i=i):
            return float(branch.add[...][i]) * f + float(branch.skip[...][i]) * x

        qkv = product(blocks.attn.qkv, norm(x), i)
        heads = qkv.reshape(batch, seq_len, 3, config.n_heads, config.d_head)
        q, k, v = heads.transpose(2, 0, 3, 1, 4)
        if config.qk_norm:
            q, k = norm(q), norm(k)
        if config.rope:
            q, k = rotated(q), rotated(k)
        scores = float(blocks.attn.logit[...][i]) * (q @ k.swapaxes(-1, -2))
        scores[..., ~np.tri(seq_len, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v * float(blocks.attn.out_scale[...][i])
        out = product(blocks.attn.out, y.transpose(0, 2, 1, 3).reshape(x.shape), i)
        middle = added(x, out, blocks.attn_branch)
        gate_up = product(blocks.mlp.gate_up, norm(middle), i)
        gate, up = gate_up[:, 0], gate_up[:, 1]
        silu = gate / (1 + np.exp(-float(blocks.mlp.alpha[...][i]) * gate))
        down = product(blocks.mlp.down, float(blocks.mlp.act_out[...][i]) * up * silu, i)
        x = added(middle, down, blocks.mlp_branch)
        values |= {f"blocks.{i}.attn.{name}": a for name, a in zip("qkv", (q, k, v))}
        values |= {f"blocks.{i}.attn.qkv": qkv, f"blocks.{i}.attn.out": out}
        values |= {f"blocks.{i}.mlp.gate_up": gate_up, f"blocks.{i}.mlp.down": down}
        values |= {f"blocks.{i}.attn_branch": middle, f"blocks.{i}.mlp_branch": x}
    return values


@pytest.mark.parametrize("options", OPTIONS[:3], ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("scheme", ["mup", "umup"])
def test_traced_values_are_those_worked_out_by_hand(scheme, options):
    hps = {"alpha_attn_softmax": 1.5} | ({"alpha_residual": 0.7} if scheme == "umup" else {})
    model = model_of(make_run(scheme, hps=hps, **options))
    ids = jnp.asarray(stream()[:32].reshape(2, 16), jnp.int32)
    values, expected = model.trace(ids)[1], by_hand(model, ids)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
