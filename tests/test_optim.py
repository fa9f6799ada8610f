"""Schedule, AdamW and SGD against numbers computed by hand in float64."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from umup import optim, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError
from umup.rules import Parametrization


def factors(**config):
    found = optim.schedule(OptimConfig(**config))
    return [float(found(step)) for step in range(config["steps"])]


def test_warm_up_then_cosine():
    found = factors(steps=9, warmup_steps=4, final_lr_ratio=0.2)
    # (t+1)/4 up to 1, then 0.2 + 0.8·(1 + cos πp)/2 at p = 0, ¼, ½, ¾, 1.
    c = math.cos(math.pi / 4)
    want = [0.25, 0.5, 0.75, 1.0, 1.0, 0.2 + 0.4 * (1 + c), 0.6, 0.2 + 0.4 * (1 - c), 0.2]
    assert found == pytest.approx(want, rel=1e-6)


def test_no_warm_up():
    assert factors(steps=5, warmup_steps=0, final_lr_ratio=0.0) == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0], abs=1e-6
    )


def test_warm_up_only():
    assert factors(steps=4, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_constant_rate_and_one_step():
    assert factors(steps=3, warmup_steps=0, final_lr_ratio=1.0) == [1.0, 1.0, 1.0]
    assert factors(steps=1, warmup_steps=0) == [1.0]
    assert factors(steps=1, warmup_steps=1) == [1.0]


def test_the_schedule_of_the_papers_table_6():
    found = optim.schedule(OptimConfig())
    assert float(found(0)) == pytest.approx(1 / 2000)
    assert float(found(1999)) == float(found(2000)) == 1.0
    assert float(found(8191)) == pytest.approx(0.1)
    assert float(found(9999)) == pytest.approx(0.1)  # never beyond


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_one_step_after_the_warm_up_is_at_the_end_of_the_decay(kind):
    found = factors(schedule=kind, steps=4, warmup_steps=3, final_lr_ratio=0.25)
    assert found == pytest.approx([1 / 3, 2 / 3, 1.0, 0.25])
    assert factors(schedule=kind, steps=2, warmup_steps=1) == pytest.approx([1.0, 0.1])


def test_warm_up_then_linear():
    found = factors(schedule="linear", steps=7, warmup_steps=2, final_lr_ratio=0.2)
    # ½, 1, then 1 − 0.8·k/4: the first step after the warm-up is still at 1.
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("kind", "decay"),
    [
        ("wsd", [0.8, 0.6, 0.4, 0.2]),  # 0.2 + 0.8·(1 − x) at x = ¼, ½, ¾, 1
        ("wsd_sqrt", [0.6, 1.0 - 0.8 * math.sqrt(0.5), 1.0 - 0.8 * math.sqrt(0.75), 0.2]),
    ],
)
def test_warm_up_stable_decay(kind, decay):
    config = {"schedule": kind, "warmup_steps": 2, "decay_steps": 4, "final_lr_ratio": 0.2}
    assert factors(steps=9, **config) == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, *decay])
    assert factors(steps=6, **config) == pytest.approx([0.5, 1.0, *decay])  # no plateau
    found = optim.schedule(OptimConfig(steps=9, **config))
    assert float(found(99)) == pytest.approx(0.2)  # never beyond


def test_a_decay_of_one_step_is_its_end():
    found = factors(schedule="wsd", steps=3, warmup_steps=0, decay_steps=1, final_lr_ratio=0.0)
    assert found == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["wsd", "wsd_sqrt"])
def test_a_plateau_is_the_same_however_long_its_run(kind):
    """What forking rests on: up to where the shorter run decays, the factors are equal bits."""
    short, long = (
        factors(schedule=kind, steps=n, warmup_steps=7, decay_steps=k)
        for n, k in ((60, 20), (101, 1))
    )
    assert short[:40] == long[:40]
    assert short[40] < 1.0 == long[40]


def test_two_steps_down_at_80_and_90_per_cent():
    found = factors(schedule="two_step", steps=20, warmup_steps=4)
    assert found == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 13, *[0.31622777] * 2, 0.1, 0.1])
    # 80 % and 90 % of 7 steps are 5.6 and 6.3: steps 6 is the first beyond the one, none the other
    seven = factors(schedule="two_step", steps=7, warmup_steps=0)
    assert seven == pytest.approx([1.0] * 6 + [0.31622777])


def trained(run, tokens, parts):
    """States and losses of a run whose steps are those of several configurations in turn."""
    lanes, losses = train.lanes_of([run]), []
    states = train.programs(run).init(lanes)
    for optim_config, n in parts:
        chunk = train.programs(dataclasses.replace(run, optim=optim_config)).chunk
        states, new = chunk(tokens, lanes, states, n)
        losses.append(np.asarray(new))
    return jax.tree.leaves(states), np.concatenate(losses, axis=1)


@pytest.mark.parametrize("kind", ["wsd", "wsd_sqrt"])
def test_a_forked_decay_is_the_unforked_run_bit_for_bit(kind):
    model = ModelConfig(
        d_model=16,
        n_layers=2,
        d_head=8,
        d_ff=32,
        vocab_size=32,
        seq_len=16,
        base_width=8,
        base_depth=2,
        base_d_head=8,
    )
    whole = OptimConfig(steps=12, batch_size=4, warmup_steps=3, schedule=kind, decay_steps=6)
    longer = dataclasses.replace(whole, steps=40, decay_steps=20)
    run = RunConfig("umup", model, whole, HPs(), seed=1, corpus="x", tokenizer="x", data_digest="x")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, 4096), jnp.uint16)
    unforked, wanted = trained(run, tokens, [(whole, 6), (whole, 6)])
    forked, losses = trained(run, tokens, [(longer, 6), (whole, 6)])
    np.testing.assert_array_equal(losses, wanted)
    for a, b in zip(forked, unforked, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    _, undecayed = trained(run, tokens, [(longer, 6), (longer, 6)])
    assert (undecayed[:, :7] == wanted[:, :7]).all()  # the first decayed step shows one later
    assert (undecayed[:, 7:] != wanted[:, 7:]).all()


def by_hand(config, w, gradients, factor, eta, decay):
    """AdamW of one weight in float64, textbook form."""
    m = v = np.zeros_like(w)
    out = []
    for t, g in enumerate(gradients):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g * g
        unbiased_m = m / (1 - config.beta1 ** (t + 1))
        unbiased_v = v / (1 - config.beta2 ** (t + 1))
        adam = unbiased_m / (np.sqrt(unbiased_v) + config.eps)
        s = (t + 1) / 4 if t < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * (t - 4) / 3))
        rate = s * (eta * factor if config.decay == "coupled" else 1.0)
        w = w - s * eta * factor * adam - rate * decay * w
        out.append(w)
    return out


@pytest.mark.parametrize("decay", ["independent", "coupled"])
@pytest.mark.parametrize(("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-8), (0.5, 0.9, 0.1)])
def test_adamw_by_hand(decay, beta1, beta2, eps):
    config = OptimConfig(steps=8, warmup_steps=4, beta1=beta1, beta2=beta2, eps=eps, decay=decay)
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    scale = {"a": 0.25, "b": 3.0}
    gradients = [{k: rng.normal(size=p.shape) for k, p in params.items()} for _ in range(8)]
    want = {
        k: by_hand(config, params[k], [g[k] for g in gradients], scale[k], 0.05, 0.02)
        for k in params
    }

    @jax.jit
    def step(state, w, g, eta, weight_decay):  # traced hyperparameters, as in training
        hps = {"eta": eta, "weight_decay": weight_decay}
        optimizer = optim.adamw(config, scale, hps)
        updates, state = optimizer.update(g, state, w)
        return state, jax.tree.map(jnp.add, w, updates)

    w = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optim.adamw(config, scale, {"eta": 0.05, "weight_decay": 0.02}).init(w)
    for t, g in enumerate(gradients):
        state, w = step(state, w, g, 0.05, 0.02)
        for k in params:
            np.testing.assert_allclose(w[k], want[k][t], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("decay", ["independent", "coupled"])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_sgd_by_hand(decay, momentum):
    config = OptimConfig(steps=8, warmup_steps=4, decay=decay)
    rng = np.random.default_rng(1)
    w = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    scale = {"a": 0.25, "b": 3.0}
    optimizer = optim.sgd(config, scale, {"eta": 0.05, "weight_decay": 0.02}, momentum=momentum)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w)
    state, m = optimizer.init(ours), {k: np.zeros_like(x) for k, x in w.items()}
    for t in range(8):
        g = {k: rng.normal(size=x.shape) for k, x in w.items()}
        updates, state = optimizer.update(g, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        s = (t + 1) / 4 if t < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * (t - 4) / 3))
        for k in w:
            m[k] = momentum * m[k] + g[k]
            rate = s * 0.05 * scale[k]
            w[k] = w[k] - rate * m[k] - (rate if decay == "coupled" else s) * 0.02 * w[k]
            np.testing.assert_allclose(ours[k], w[k], rtol=2e-5, atol=1e-6)


# --- in Flax's own loop ---------------------------------------------------------------------------


class Two(nnx.Module):
    """y = W₂ W₁ x with biases; its factors differ by layer."""

    def __init__(self, dtype=jnp.float32):
        kind = {"rngs": nnx.Rngs(0), "param_dtype": dtype}
        self.first, self.second = nnx.Linear(3, 8, **kind), nnx.Linear(8, 8, **kind)
        optim.mark(self.first, "input")
        optim.mark(self.second, "hidden")

    def __call__(self, x):
        return self.second(self.first(x))


def labels(params):
    return jax.tree.map_with_path(
        lambda path, _: "frozen" if "bias" in str(path) else "trained", params
    )


FLAX = OptimConfig(steps=9, warmup_steps=0, final_lr_ratio=1.0)
WRAPPED = {
    "plain": lambda t: t,
    "clipped": lambda t: optax.chain(optax.clip_by_global_norm(1e9), t),
    "one in two": lambda t: optax.MultiSteps(t, 2),
    "if finite": lambda t: optax.apply_if_finite(t, 3),
    "by label": lambda t: optax.multi_transform(
        {"trained": t, "frozen": optax.set_to_zero()}, labels
    ),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_flax_optimizer_makes_adams_first_step_times_each_factor(name, jit):
    """Adam's first step has size η times the factor wherever the gradient is not zero."""
    model = Two()
    numbers = Parametrization.of_width("mup", 8, base_width=2)
    factors = optim.lr_factors(nnx.state(model, nnx.Param), numbers)
    transform = optim.adamw(FLAX, factors, {"eta": 0.125, "weight_decay": 0.0})
    optimizer = nnx.Optimizer(model, WRAPPED[name](transform), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (4, 3))

    def step(model, optimizer):
        _, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1.0) ** 2))(model)
        optimizer.update(model, grads)

    before = jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for _ in range(2 if name == "one in two" else 1):
        (nnx.jit(step) if jit else step)(model, optimizer)
    after = jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after, before)
    bias = 0.0 if name == "by label" else 0.125
    assert moved == {
        "first": {"kernel": pytest.approx(0.125, rel=1e-3), "bias": pytest.approx(bias, rel=1e-3)},
        "second": {
            "kernel": pytest.approx(0.125 / 4, rel=1e-3),
            "bias": pytest.approx(bias, rel=1e-3),
        },
    }


def test_a_mask_and_a_part_of_the_weights_leave_the_rest_as_it_is():
    model = Two()
    factors = optim.lr_factors(
        nnx.state(model, nnx.Param), Parametrization.of_width("mup", 8, base_width=2)
    )
    transform = optim.sgd(FLAX, factors, {"eta": 0.1, "weight_decay": 0.5}, momentum=0.5)
    masked = optax.masked(
        transform, lambda p: jax.tree.map(lambda label: label == "trained", labels(p))
    )
    part = nnx.All(nnx.Param, nnx.PathContains("second"))
    for tx, wrt in ((masked, nnx.Param), (transform, part)):
        grads = jax.tree.map(jnp.zeros_like, nnx.state(model, wrt))
        before = model.second.kernel[...]
        nnx.Optimizer(model, tx, wrt=wrt).update(model, grads)
        np.testing.assert_allclose(model.second.kernel[...], 0.5 * before, rtol=1e-6)


def test_a_weight_without_a_factor_and_an_update_without_weights_are_errors():
    optimizer = optim.adamw(FLAX, {"a": 1.0}, {"eta": 1.0, "weight_decay": 0.0})
    w = {"b": jnp.ones(2)}
    with pytest.raises(ConfigError, match="b: received 'a weight without a factor'; allowed: a"):
        optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(ConfigError, match=r"params: received None; allowed: the weights"):
        optimizer.update(w, optimizer.init(w))


# --- weights of few bits --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_at_random_is_right_on_average_and_to_a_neighbour(dtype):
    # A step of a quarter and of a sixteenth of what separates 1 and the next value down.
    gap = float(jnp.finfo(dtype).epsneg)
    for share in (0.25, 0.0625):
        x = jnp.full((64, 64), 1.0 - share * gap, jnp.float32)
        found = np.asarray(optim.round_at_random(x, dtype, "w", jnp.int32(3)))
        assert set(np.unique(found)) == {1.0 - gap, 1.0}
        down = np.mean(found < 1.0)
        assert abs(down - share) < 5 * math.sqrt(share * (1 - share) / x.size)
    kept = jnp.asarray([1.0, -2.5, 0.0, jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(optim.round_at_random(kept, dtype, "w", jnp.int32(0)), kept)


def test_draws_differ_by_step_name_and_element_and_by_nothing_else():
    x = jnp.full((4, 512), 1.0 + 2.0**-8, jnp.float32)  # half-way between neighbours

    def drawn(name, step):
        return np.asarray(optim.round_at_random(x, jnp.bfloat16, name, jnp.int32(step))) > 1.0

    first = drawn("w", 0)
    np.testing.assert_array_equal(first, drawn("w", 0))
    for other in (drawn("w", 1), drawn("v", 0), np.roll(first, 1, 1), np.roll(first, 1, 0)):
        assert 0.4 < np.mean(first == other) < 0.6


@pytest.mark.parametrize("momentum", [None, 0.5])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_of_few_bits_decay_as_asked(dtype, momentum):
    """Decay of 2⁻¹² per step is below half of what separates neighbours: to nearest, none moves."""
    config = OptimConfig(steps=256, warmup_steps=0, final_lr_ratio=1.0)
    hps = {"eta": 0.0, "weight_decay": 2.0**-12}
    one = {"w": 1.0}
    optimizer = (
        optim.adamw(config, one, hps)
        if momentum is None
        else optim.sgd(config, one, hps, momentum=momentum)
    )
    w = {"w": jax.random.uniform(jax.random.key(0), (1024,), minval=1.0, maxval=2.0).astype(dtype)}
    state = optimizer.init(w)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape]
    assert moments and {leaf.dtype.name for leaf in moments} == {"float32"}

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, w), state, w)
        return (optax.apply_updates(w, updates), state), None

    (after, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=256))((w, state))
    assert after["w"].dtype == dtype
    kept = float(jnp.mean(after["w"].astype(jnp.float32)) / jnp.mean(w["w"].astype(jnp.float32)))
    assert kept == pytest.approx((1 - 2.0**-12) ** 256, abs=0.004)  # of 0.939


@pytest.mark.parametrize("momentum", [1.0, -0.1, math.nan])
def test_bad_momentum(momentum):
    with pytest.raises(ConfigError, match=r"momentum: received .*; allowed: a number in \[0, 1\)"):
        optim.sgd(OptimConfig(), {}, {"eta": 1.0, "weight_decay": 0.0}, momentum=momentum)


# --- factors from the rules -----------------------------------------------------------------------

NUMBERS = Parametrization(
    "mup",
    ModelConfig(d_model=128, d_head=16, base_width=32, n_layers=8, base_depth=2),
    HPs().to_dict(),
    tokens=64,
)


def test_factors_follow_the_optimizer():
    meta = {"fan_in": 512, "fan_out": 128}
    params = nnx.State(
        {
            "embed": nnx.Param(jnp.ones(2), role="input", residual=False, **meta),
            "block": {"w": nnx.Param(jnp.ones((2, 3)), role="hidden", residual=True, **meta)},
            "readout": nnx.Param(jnp.ones(1), role="output", residual=False, **meta),
        }
    )
    found = {
        name: [float(x) for x in jax.tree.leaves(optim.lr_factors(params, NUMBERS, optimizer=name))]
        for name in ("adam", "sgd")
    }  # in the order block, embed, readout
    assert found["adam"] == pytest.approx([0.25 * 0.5, 1.0, 1.0])  # ¼ and √(2/8)
    assert found["sgd"] == pytest.approx([1.0, 4.0, 4.0])
    with pytest.raises(ConfigError, match=r"optimizer: received 'lion'; allowed: adam \| sgd"):
        optim.lr_factors(params, NUMBERS, optimizer="lion")


META = {"role": "hidden", "fan_in": 4, "fan_out": 4, "residual": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": None}, "gain: received 'a parameter without a role'; allowed: input"),
        ({"role": "norm"}, r"gain's role: received 'norm'; allowed: input \| hidden \| output"),
        ({"fan_out": None}, "gain: received 'a parameter without fan_out'"),
        ({"residual": None}, "gain: received 'a parameter without residual'"),
    ],
)
def test_a_parameter_that_no_rule_covers_is_an_error(changes, message):
    meta = {k: v for k, v in (META | changes).items() if v is not None}
    params = nnx.State({"norm": {"gain": nnx.Param(jnp.ones(4), **meta)}})
    with pytest.raises(ConfigError, match=rf"norm\.{message}"):
        optim.lr_factors(params, NUMBERS)


def test_a_bare_array_is_covered_by_no_rule():
    with pytest.raises(ConfigError, match="w: received 'a parameter without a role'"):
        optim.lr_factors({"w": jnp.ones(3)}, NUMBERS)  # type: ignore[arg-type]


def test_independent_decay_is_free_of_eta_and_factor():
    zero = {"w": jnp.zeros(1)}
    for factor, eta in ((1.0, 1.0), (0.01, 8.0)):
        optimizer = optim.adamw(
            OptimConfig(steps=10, warmup_steps=0), {"w": factor}, {"eta": eta, "weight_decay": 0.25}
        )
        w = {"w": jnp.ones(1)}
        updates, _ = optimizer.update(zero, optimizer.init(w), w)
        assert float(updates["w"][0]) == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 11}, "warmup_steps: received 11; allowed: at most steps = 10"),
        ({"beta1": 1.0}, r"beta1: received 1.0; allowed: a number in \[0, 1\)"),
        ({"beta2": 1.0}, "beta2"),
        ({"beta2": -0.1}, "beta2"),
        ({"eps": 0.0}, "eps: received 0.0; allowed: a finite number > 0"),
        ({"final_lr_ratio": 1.1}, "final_lr_ratio"),
        ({"decay": "l2"}, r"decay: received 'l2'; allowed: independent \| coupled"),
        ({"steps": 0, "warmup_steps": 0}, "steps: received 0"),
        ({"batch_size": 2.0}, "batch_size: received 2.0; allowed: a value of type int"),
    ],
)
def test_bad_optimizer_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**({"steps": 10, "warmup_steps": 0} | changes))
