"""umup.interop: a PyTorch TransformerDecoder's logits, loss, gradients and training."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reference import CASES, array, by_name
from umup import interop, optim, unit
from umup.config import OptimConfig
from umup.errors import ConfigError
from umup.model import split

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
BOTH = ("decoder", "decoder_far")
IDS = jnp.asarray(array(CASES["decoder"]["arrays"]["ids"]))
WEIGHTS = by_name("decoder", "weights")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def build(case="decoder", **changes):
    golden = CASES[case]
    kwargs = {k: golden[k] for k in ("n_heads", "residual_mult", "residual_attn_ratio")}
    return interop.from_unit_scaling(WEIGHTS, **(kwargs | changes))


@nnx.jit
def loss_and_gradients(model, ids):
    return nnx.value_and_grad(interop.loss)(model, ids)


@pytest.mark.optimized
@pytest.mark.parametrize("case", BOTH)
def test_logits_loss_and_every_gradient_are_the_references(case):
    model = build(case)
    np.testing.assert_allclose(
        nnx.jit(lambda m, x: m(x))(model, IDS), array(CASES[case]["arrays"]["logits"]), **TOLERANCE
    )
    loss, gradients = loss_and_gradients(model, IDS)
    np.testing.assert_allclose(loss, CASES[case]["losses"][0], **TOLERANCE)
    found, want = interop.to_unit_scaling(gradients), by_name(case, "gradients")
    assert list(found) == list(want)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, want[name], **TOLERANCE, err_msg=name)


def test_the_scales_follow_the_shape_of_the_ids():
    """One model, another number of tokens and length: the reference's numbers there too."""
    for case in BOTH:
        _, gradients = loss_and_gradients(build(case), IDS[:1, :4])
        want = by_name(case, "short_gradients")
        for name, gradient in interop.to_unit_scaling(gradients).items():
            np.testing.assert_allclose(gradient, want[name], **TOLERANCE, err_msg=name)


@pytest.mark.optimized
@pytest.mark.parametrize("case", BOTH)
def test_four_steps_of_adamw_are_the_references(case):
    golden, model = CASES[case], build(case)
    graph, params, rest = split(model)
    config = OptimConfig(steps=100, warmup_steps=0, final_lr_ratio=1.0)
    hps = {"eta": golden["lr"], "weight_decay": golden["weight_decay"]}
    optimizer = optim.adamw(config, interop.lr_factors(model), hps)

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(
            lambda p: interop.loss(nnx.merge(graph, p, rest), IDS)
        )(params)
        updates, state = optimizer.update(gradients, state, params)
        return loss, jax.tree.map(jnp.add, params, updates), state

    state, losses = optimizer.init(params), []
    for _ in range(5):
        loss, params, state = step(params, state)
        losses.append(float(loss))
        if case == "decoder" and len(losses) == 1:
            want = by_name(case, "after_one_step")
            for name, weight in interop.to_unit_scaling(params).items():
                np.testing.assert_allclose(weight, want[name], **TOLERANCE, err_msg=name)
    np.testing.assert_allclose(losses, golden["losses"], **TOLERANCE)


def test_learning_rate_factors_by_hand():
    factors = split(build())[1]  # their shapes, to spread the factors over
    spread = jax.tree.map(lambda f, p: jnp.full(p.shape, f), interop.lr_factors(build()), factors)
    for name, factor in interop.to_unit_scaling(spread).items():
        fan_in = 32 if "linear_2" in name else 8
        want = {"embedding.weight": 8**-0.5, "projection.weight": 1.0}
        np.testing.assert_allclose(
            factor, want.get(name, fan_in**-0.5 * 3**-0.5), rtol=1e-6, err_msg=name
        )


def test_weights_survive_the_way_there_and_back():
    model = build()
    for tree in (model, nnx.state(model, nnx.Param), nnx.to_pure_dict(nnx.state(model))):
        found = interop.to_unit_scaling(tree)
        assert list(found) == list(WEIGHTS)
        for name, weight in found.items():
            assert isinstance(weight, np.ndarray)
            np.testing.assert_array_equal(weight, WEIGHTS[name], err_msg=name)


def test_order_and_precision_of_the_given_weights_do_not_matter():
    turned = {name: WEIGHTS[name].astype(np.float64) for name in reversed(WEIGHTS)}
    model = interop.from_unit_scaling(turned, n_heads=2)
    np.testing.assert_array_equal(
        interop.to_unit_scaling(model)["layers.1.mlp.linear_1.weight"],
        WEIGHTS["layers.1.mlp.linear_1.weight"],
    )


def test_a_call_changes_nothing_in_the_model():
    model = build()
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    first = model(IDS)
    np.testing.assert_array_equal(model(IDS), first)
    for old, new in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_residual_hyperparameters_may_be_traced():
    @jax.jit
    def loss(mult, ratio):
        return interop.loss(build(residual_mult=mult, residual_attn_ratio=ratio), IDS)

    for case in BOTH:
        golden = CASES[case]
        found = float(loss(golden["residual_mult"], golden["residual_attn_ratio"]))
        assert found == pytest.approx(golden["losses"][0], rel=2e-5)
    assert loss._cache_size() == 1


# --- errors ---------------------------------------------------------------------------------------


def without(name):
    return {k: w for k, w in WEIGHTS.items() if k != name}


UP = "layers.1.mlp.linear_1.weight"


@pytest.mark.parametrize(
    ("field", "weights"),
    [
        (UP, without(UP)),
        ("embedding.weight", without("embedding.weight")),
        ("embedding.weight", {}),
        ("layers.1.mlp.linear_1.bias", WEIGHTS | {"layers.1.mlp.linear_1.bias": np.ones(32)}),
        (
            "layers.3.mhsa.linear_qkv.weight",
            WEIGHTS | {"layers.4.mlp.linear_1.weight": WEIGHTS[UP]},
        ),
        ("head.weight", WEIGHTS | {"head.weight": WEIGHTS["projection.weight"]}),
        (UP, WEIGHTS | {UP: WEIGHTS[UP].T}),
        (UP, WEIGHTS | {UP: WEIGHTS[UP].ravel()}),
        (UP, WEIGHTS | {UP: WEIGHTS[UP].astype(int)}),
        (
            "layers.0.mhsa.linear_qkv.weight",
            WEIGHTS | {"layers.0.mhsa.linear_qkv.weight": np.ones((16, 8))},
        ),
        ("projection.weight", WEIGHTS | {"projection.weight": np.ones((13, 8))}),
    ],
)
def test_bad_weights_are_named(field, weights):
    with pytest.raises(ConfigError) as caught:
        interop.from_unit_scaling(weights, n_heads=2)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_heads", 3),
        ("n_heads", 0),
        ("n_heads", 2.0),
        ("n_heads", True),
        ("residual_mult", 0.0),
        ("residual_attn_ratio", -1.0),
        ("residual_mult", float("nan")),
    ],
)
def test_bad_numbers_are_named(field, value):
    with pytest.raises(ConfigError) as caught:
        interop.from_unit_scaling(WEIGHTS, **({"n_heads": 2} | {field: value}))
    assert caught.value.field == field


def test_ids_of_a_wrong_shape_and_a_foreign_tree_are_named():
    model = build()
    for bad in (
        lambda: model(IDS[0]),
        lambda: interop.loss(model, IDS[:, :1]),
        lambda: model(IDS[:0]),
    ):
        with pytest.raises(ConfigError, match="ids"):
            bad()
    with pytest.raises(ConfigError, match=r"blocks\.attn\.qkv\.w"):
        interop.to_unit_scaling({"embed": {"w": np.ones((2, 2))}})


def test_the_porting_chapters_example_runs():
    chapter = (Path(__file__).parents[1] / "book" / "porting.md").read_text(encoding="utf-8")
    example = "\n".join(re.findall(r"```python\n(.*?)```", chapter, re.DOTALL))
    names: dict = {}
    exec(example, names)
    rms = float(jnp.sqrt(jnp.mean(jnp.square(names["y"]))))
    assert rms == pytest.approx(1.0, abs=0.1)
    # The same in plain operations, theirs: weights (fan_out, fan_in), τ = 0.5 an amplitude.
    x, up, gate, down = (
        np.asarray(names[n], np.float64) for n in ("x", "w_up", "w_gate", "w_down")
    )
    h = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)
    u, g = h @ up / 8, h @ gate / 8
    scale = 2 ** (1 - 0.5 * 1 / (1 + 1 / 4))  # lerp(4/5; 2, √2)
    h = (u * g / (1 + np.exp(-2 * g)) * scale) @ down / 16
    np.testing.assert_allclose(names["y"], (0.5 * h + x) / np.sqrt(1.25), rtol=1e-4, atol=1e-4)
    assert names["logits"].shape == (4, 32, 96)
    assert float(names["loss"]) == pytest.approx(np.log(96), abs=0.5)
    assert {n: g.shape for n, g in names["theirs"].items()} == names["shapes"]


def test_every_function_is_in_the_porting_chapters_table():
    chapter = (Path(__file__).parents[1] / "book" / "porting.md").read_text(encoding="utf-8")
    for name, f in inspect.getmembers(unit, inspect.isfunction):
        if f.__module__ == "umup.unit" and not name.startswith("_"):
            assert f"`{name}" in chapter, name
