"""Options of the optimizer: rules of ε and λ over width and depth, of η, λ and betas over size."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umup import optim, schemes, size_rules, train
from umup.config import SIZE_RULES, HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError

MODEL = ModelConfig(
    d_model=32,
    n_layers=2,
    d_head=16,
    d_ff=88,
    vocab_size=64,
    seq_len=32,
    base_width=32,
    base_depth=2,
    base_d_head=16,
)
SMALL = OptimConfig(steps=6, batch_size=4, warmup_steps=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, 8192), jnp.uint16)


def run_of(scheme="mup", model=MODEL, config=SMALL, **hps):
    named = {"corpus": "x", "tokenizer": "x", "data_digest": "x"}
    return RunConfig(scheme, model, config, HPs(**hps), seed=1, **named)


def first(run):
    """The lane of one run, its state and the gradients of its first step."""
    lane = jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))
    state = train.init(run, lane)
    rows = run.optim.batch_size * (run.model.seq_len + 1)
    part = TOKENS[:rows].reshape(run.optim.batch_size, -1).astype(jnp.int32)
    _, grads, _ = train.gradients(run, state, (part[:, :-1], part[:, 1:]))
    return lane, state, grads


def flat(tree):
    return {optim._name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def trained(run):
    programs, lanes = train.programs(run), train.lanes_of([run])
    state, losses = programs.chunk(TOKENS, lanes, programs.init(lanes), run.optim.steps)
    return np.asarray(losses)[0], state


@pytest.mark.parametrize("scheme", ["sp", "mup", "umup", "completep", "mup_intermediate"])
def test_eps_follows_the_gradient(scheme):
    """RMS of each weight's first gradient over its factor of ε, 16× wider or 8× deeper: the same.

    SP's gradients grow with its stream over depth, of which no table speaks: width alone.
    """
    sizes = [{}, {"d_model": 512, "d_ff": 1408}]
    sizes += [{"n_layers": 16}] * (scheme != "sp")
    ratios = []
    for size in sizes:
        model = dataclasses.replace(MODEL, **size)
        config = dataclasses.replace(SMALL, batch_size=16, eps_rule="scaled")
        _, state, grads = first(run_of(scheme, model, config))
        factors = flat(state.numbers.options.eps)
        ratios.append(
            {
                name: float(jnp.sqrt(jnp.mean(jnp.square(g / jnp.max(factors[name])))))
                for name, g in flat(grads).items()
            }
        )
    for other in ratios[1:]:
        for name, base in ratios[0].items():
            # 16× in width would be 16 under a constant ε, 4 under SP; draws leave 40 %.
            assert 0.6 < other[name] / base < 1.7, (name, other[name] / base)
    if scheme == "umup":
        assert all(float(f) == 1.0 for f in jax.tree.leaves(factors))


def test_adam_with_a_factor_on_eps_by_hand():
    """u = m/(√v + ε·f) in float64, beside a weight whose factor is 1."""
    config = OptimConfig(steps=5, warmup_steps=0, final_lr_ratio=1.0, eps=0.5, eps_rule="scaled")
    gradients = np.random.default_rng(1).normal(size=(5, 3))
    eps = {"a": jnp.float32(0.125), "b": jnp.float32(1.0)}
    hps = {"eta": 1.0, "weight_decay": 0.0}
    optimizer = optim.adamw(config, {"a": 1.0, "b": 1.0}, hps, optim.Options(eps=eps))
    params = {name: jnp.zeros(3) for name in eps}
    state = optimizer.init(params)
    m = v = np.zeros(3)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        updates, state = optimizer.update({k: jnp.asarray(g) for k in eps}, state, params)
        for name, factor in eps.items():
            root = np.sqrt(v / (1 - 0.999**t))
            want = -m / (1 - 0.9**t) / (root + 0.5 * float(factor))
            np.testing.assert_allclose(updates[name], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "power"), [("constant", 0), ("inverse_width", -1), ("sqrt_width", 0.5), ("width", 1)]
)
@pytest.mark.parametrize("kind", ["independent", "coupled"])
def test_decay_follows_the_width_in_hidden_weights_alone(rule, power, kind):
    model = dataclasses.replace(MODEL, d_model=128, d_ff=352)
    config = dataclasses.replace(SMALL, decay=kind, decay_rule=rule, warmup_steps=0)
    run = run_of("mup", model, config, eta=0.5, weight_decay=0.25)
    lane, state, grads = first(run)
    still = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = train.optimizer(run, state.numbers, lane).update(still, state.opt, state.params)
    factors, weights = flat(state.numbers.lr_factors), flat(state.params)
    for name, update in flat(updates).items():
        rate = 0.5 * float(factors[name]) if kind == "coupled" else 1.0
        hidden = 4.0**power if name.startswith("blocks") else 1.0
        np.testing.assert_allclose(update, -rate * 0.25 * hidden * weights[name], rtol=1e-5)


def test_width_keeps_eta_times_lambda_of_coupled_decay():
    """At one η, coupled decay with the rule ``width`` is the base model's own (2505.01618)."""
    rates = []
    for size in ({}, {"d_model": 128, "d_ff": 352}):
        config = dataclasses.replace(SMALL, decay="coupled", decay_rule="width")
        _, state, _ = first(run_of("mup", dataclasses.replace(MODEL, **size), config))
        lr, decay = flat(state.numbers.lr_factors), flat(state.numbers.options.decay)
        rates.append({name: float(lr[name] * decay[name]) for name in lr if "blocks" in name})
    assert rates[0] == pytest.approx(rates[1])


def test_rules_of_size_at_the_base_are_none():
    for rule in set(SIZE_RULES) - {"none"}:
        config = dataclasses.replace(SMALL, size_rule=rule, base_batch_size=4, base_steps=6)
        found = size_rules.at_size(config)
        assert found == pytest.approx((1.0, 1.0, 0.9, 0.999)), rule
    assert set(size_rules.RULES) == set(SIZE_RULES)


@pytest.mark.parametrize(
    ("rule", "eta", "decay", "beta1", "beta2"),
    [  # batch 4 times, steps 2 times: 8 times the tokens
        ("sqrt_batch", 2.0, 4.0, 0.9**4, 0.999**4),
        ("half_life", 1.0, 1.0, 0.9, 0.999**4),
        ("time_scale", 1.0, 4.0 * 8**-0.47, 0.9, 0.999),
        ("horizon", 8**-0.32, 1.0, 0.9, 0.999),
        ("sde_horizon", 8**-0.5, 1 / 8, 0.9 ** (1 / 8), 0.999 ** (1 / 8)),
    ],
)
def test_rules_of_size_by_hand(rule, eta, decay, beta1, beta2):
    size = {"steps": 6, "batch_size": 4, "size_rule": rule, "base_batch_size": 1, "base_steps": 3}
    ruled = OptimConfig(warmup_steps=2, **size)
    assert size_rules.at_size(ruled) == pytest.approx((eta, decay, beta1, beta2), rel=1e-12)
    plain = OptimConfig(steps=6, batch_size=4, warmup_steps=2, beta1=beta1, beta2=beta2)
    losses, _ = trained(run_of(config=ruled, eta=2.0**-6, weight_decay=0.01))
    want, _ = trained(run_of(config=plain, eta=2.0**-6 * eta, weight_decay=0.01 * decay))
    np.testing.assert_allclose(losses, want, rtol=2e-5)


def test_eps_follows_the_batch_of_plain_gradients_alone():
    size = {"size_rule": "sqrt_batch", "base_batch_size": 1, "base_steps": 6}
    config = dataclasses.replace(SMALL, eps_rule="scaled", **size)
    for scheme, want in (("mup", 0.5), ("umup", 1.0)):
        _, state, _ = first(run_of(scheme, config=config))
        assert all(float(f) == want for f in jax.tree.leaves(state.numbers.options.eps))


def test_no_option_leaves_the_state_as_it_was():
    _, state, _ = first(run_of())
    assert state.numbers.options == (None, None)
    _, other, _ = first(run_of(config=dataclasses.replace(SMALL, eps_rule="scaled")))
    assert len(jax.tree.leaves(other)) > len(jax.tree.leaves(state))


def test_lanes_with_options_are_the_runs_alone():
    config = dataclasses.replace(SMALL, eps_rule="scaled", decay_rule="width", eps=1e-3)
    model = dataclasses.replace(MODEL, d_model=64, d_ff=176)
    runs = [run_of("mup", model, config, eta=2.0**x, weight_decay=0.1) for x in (-6, -5)]
    programs, lanes = train.programs(runs[0], 2), train.lanes_of(runs)
    _, both = programs.chunk(TOKENS, lanes, programs.init(lanes), 6)
    for run, got in zip(runs, np.asarray(both), strict=True):
        np.testing.assert_allclose(got, trained(run)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps_rule": "yes"}, r"eps_rule: received 'yes'; allowed: constant \| scaled"),
        ({"decay_rule": "depth"}, r"decay_rule: received 'depth'; allowed: constant"),
        ({"size_rule": "step"}, r"size_rule: received 'step'; allowed: none"),
        (
            {"size_rule": "horizon", "base_steps": 4},
            "base_batch_size: received 0; allowed: 1 or more with size_rule horizon",
        ),
        (
            {"size_rule": "horizon", "base_batch_size": 4},
            "base_steps: received 0; allowed: 1 or more with size_rule horizon",
        ),
        ({"base_steps": 4}, "base_steps: received 4; allowed: 0, or a size_rule"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("rule", [{"eps_rule": "scaled"}, {"decay_rule": "width"}])
def test_a_rule_without_its_factors_is_an_error(rule):
    (name,) = rule
    with pytest.raises(ConfigError, match=f"{name}: received '{rule[name]}'"):
        optim.adamw(OptimConfig(**rule), {}, {"eta": 1.0, "weight_decay": 0.0})
    with pytest.raises(ConfigError, match=f"{name}: received '{rule[name]}'"):
        optim.sgd(OptimConfig(**rule), {}, {"eta": 1.0, "weight_decay": 0.0})


def test_the_defaults_of_completep_are_its_papers():
    """ε of a hidden weight ∝ 1/(width·depth), of embedding and readout ∝ 1/width (2505.01618)."""
    branch = schemes.get("completep").residual_adam_eps
    assert branch == {"base_depth": 1.0, "depth": -1.0}
    hidden = schemes.get("completep").weights["hidden"].adam_eps
    assert hidden == {"base_fan_in": 1.0, "fan_in": -1.0}
