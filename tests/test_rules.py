"""Rules: every number of the u-μP paper's Table 1, the residual scheme, and their errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from umup import rules
from umup.config import HPs, ModelConfig
from umup.errors import ConfigError
from umup.powers import evaluate, inverse, render, times
from umup.rules import Parametrization, residual_taus
from umup.schemes import ROLES, SCHEMES, WeightRule, check_hps, get, shift

GOLDEN = json.loads((Path(__file__).parent / "golden/golden.json").read_text())

# d_model is 4 times the base, N twice the base, d_head 4 times the base; d_ff = 3·d_model.
MODEL = ModelConfig(
    d_model=256,
    n_layers=8,
    d_head=64,
    d_ff=768,
    vocab_size=512,
    seq_len=128,
    base_width=64,
    base_depth=4,
    base_d_head=16,
)
TOKENS = 4096


def numbers(scheme, model=MODEL, tokens=TOKENS, **hps):
    return Parametrization(scheme, model, HPs(**hps).to_dict(), tokens)


# (role, fan_in, fan_out, residual): a = forward, b = init std, c = Adam factor; by hand from Table
# 1 with base fan-in = fan_in/4 and √(base_depth/depth) = √½.
EMBEDDING = ("input", 512, 256, False)
HIDDEN = ("hidden", 256, 768, True)
DOWN = ("hidden", 768, 256, True)
READOUT = ("output", 256, 512, False)
SQRT_HALF = 0.7071067811865476


@pytest.mark.parametrize(
    ("scheme", "weight", "init_std", "forward", "adam_lr"),
    [
        ("sp", EMBEDDING, 1.0, 1.0, 1.0),
        ("sp", HIDDEN, 1 / 16, 1.0, 1.0),
        ("sp", DOWN, 1 / 27.712812921102035, 1.0, 1.0),
        ("sp", READOUT, 1 / 16, 1.0, 1.0),
        ("mup", EMBEDDING, 1.0, 1.0, 1.0),
        ("mup", HIDDEN, 1 / 16, 1.0, 0.25 * SQRT_HALF),
        ("mup", DOWN, 1 / 27.712812921102035, 1.0, 0.25 * SQRT_HALF),
        ("mup", READOUT, 1 / 8, 0.25, 1.0),  # base fan-in 64: std 1/8 and multiplier 64/256
        ("umup", EMBEDDING, 1.0, 1.0, 1 / 16),
        ("umup", HIDDEN, 1.0, 1 / 16, 1 / 16 / 4),  # depth: 16 branches
        ("umup", DOWN, 1.0, 1 / 27.712812921102035, 1 / 27.712812921102035 / 4),
        ("umup", READOUT, 1.0, 1 / 256, 1.0),
        # intermediate μP: A·θ, 1, C/θ with θ the μP init std.
        ("mup_intermediate", EMBEDDING, 1.0, 1.0, 1.0),
        ("mup_intermediate", HIDDEN, 1.0, 1 / 16, 0.25 * SQRT_HALF * 16),
        ("mup_intermediate", READOUT, 1.0, 0.25 / 8, 8.0),
        # CompleteP: hidden Adam factors without depth.
        ("completep", EMBEDDING, 1.0, 1.0, 1.0),
        ("completep", HIDDEN, 1 / 16, 1.0, 0.25),
        ("completep", READOUT, 1 / 8, 0.25, 1.0),
        # The readout's extra factor: base-width/width = ¼, and the bare 1/width.
        ("mup_readout_lr", HIDDEN, 1 / 16, 1.0, 0.25 * SQRT_HALF),
        ("mup_readout_lr", READOUT, 1 / 8, 0.25, 0.25),
        ("umup_readout_lr", HIDDEN, 1.0, 1 / 16, 1 / 16 / 4),
        ("umup_readout_lr", READOUT, 1.0, 1 / 256, 1 / 256),
        # The embedding's rule: without 1/√256, and with √(64/256).
        ("umup_const_emb", EMBEDDING, 1.0, 1.0, 1.0),
        ("umup_const_emb", HIDDEN, 1.0, 1 / 16, 1 / 16 / 4),
        ("umup_const_emb", READOUT, 1.0, 1 / 256, 1.0),
        ("mup_sqrt_emb", EMBEDDING, 1.0, 1.0, 0.5),
        ("mup_sqrt_emb", HIDDEN, 1 / 16, 1.0, 0.25 * SQRT_HALF),
        ("mup_sqrt_emb", READOUT, 1 / 8, 0.25, 1.0),
        # SP's scales; base-width/width = ¼ on all but the embedding, and nothing of depth.
        ("sp_emb_lr", EMBEDDING, 1.0, 1.0, 1.0),
        ("sp_emb_lr", HIDDEN, 1 / 16, 1.0, 0.25),
        ("sp_emb_lr", DOWN, 1 / 27.712812921102035, 1.0, 0.25),
        ("sp_emb_lr", READOUT, 1 / 16, 1.0, 0.25),
        # From SP to μP: init, then learning rates, then multipliers.
        ("ladder_init", HIDDEN, 1 / 16, 1.0, 1.0),
        ("ladder_init", READOUT, 1 / 8, 1.0, 1.0),
        ("ladder_lr", HIDDEN, 1 / 16, 1.0, 0.25 * SQRT_HALF),
        ("ladder_lr", READOUT, 1 / 8, 1.0, 1.0),
        ("ladder_logits", HIDDEN, 1 / 16, 1.0, 0.25 * SQRT_HALF),
        ("ladder_logits", READOUT, 1 / 8, 0.25, 1.0),
    ],
)
def test_table_1(scheme, weight, init_std, forward, adam_lr):
    role, fan_in, fan_out, residual = weight
    found = numbers(scheme).weight(role, fan_in, fan_out, residual=residual)
    assert found.init_std == pytest.approx(init_std, rel=1e-12)
    assert found.forward == pytest.approx(forward, rel=1e-12)
    assert found.adam_lr == pytest.approx(adam_lr, rel=1e-12)


HPS = {"eta_emb": 5.0, "sigma_init": 0.5, "alpha_emb": 3.0, "alpha_output": 7.0}


@pytest.mark.parametrize(
    ("scheme", "weight", "init_std", "forward", "adam_lr", "sgd_lr"),
    [
        ("sp", EMBEDDING, 0.5, 1.0, 1.0, 1.0),
        ("mup", EMBEDDING, 0.5, 3.0, 5.0, 20.0),
        ("mup", HIDDEN, 0.5 / 16, 1.0, 0.25 * SQRT_HALF, 1.0),
        ("mup", READOUT, 0.5 / 8, 7 / 4, 1.0, 4.0),
        ("mup_intermediate", EMBEDDING, 1.0, 1.5, 10.0, 80.0),
        ("mup_intermediate", READOUT, 1.0, 7 / 64, 16.0, 4 * 256.0),
        ("umup", EMBEDDING, 1.0, 1.0, 5 / 16, 5 / 16),
        ("umup_const_emb", EMBEDDING, 1.0, 1.0, 5.0, 5 / 16),
        ("mup_sqrt_emb", EMBEDDING, 0.5, 3.0, 2.5, 20.0),
        ("sp_emb_lr", EMBEDDING, 0.5, 1.0, 1.0, 1.0),
        ("ladder_init", EMBEDDING, 0.5, 1.0, 1.0, 1.0),
        ("ladder_init", READOUT, 0.5 / 8, 1.0, 1.0, 1.0),
        ("ladder_lr", EMBEDDING, 0.5, 1.0, 5.0, 20.0),
        ("ladder_logits", EMBEDDING, 0.5, 3.0, 5.0, 20.0),
        ("ladder_logits", READOUT, 0.5 / 8, 7 / 4, 1.0, 4.0),
    ],
)
def test_hyperparameters_enter_where_table_1_says(
    scheme, weight, init_std, forward, adam_lr, sgd_lr
):
    *shape, residual = weight
    found = numbers(scheme, **HPS).weight(*shape, residual=residual)
    assert (found.init_std, found.forward, found.adam_lr, found.sgd_lr) == pytest.approx(
        (init_std, forward, adam_lr, sgd_lr), rel=1e-12
    )


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not get(s).unit_scaled])
@pytest.mark.parametrize("weight", [EMBEDDING, HIDDEN, READOUT])
def test_schemes_without_unit_scaling_have_true_gradients(scheme, weight):
    *shape, residual = weight
    found = numbers(scheme, sigma_init=0.5, alpha_output=3.0).weight(*shape, residual=residual)
    assert found.forward > 0
    assert found.backward == found.weight_grad == found.forward


def test_backward_scales_of_umup():
    embedding = numbers("umup").weight(*EMBEDDING[:3])
    assert embedding.forward == embedding.backward == 1.0
    assert embedding.weight_grad == pytest.approx(math.sqrt(512 / 4096))  # √(V/tokens)
    hidden = numbers("umup").weight(*HIDDEN[:3], residual=True)
    assert hidden.backward == hidden.forward == pytest.approx(1 / 16)
    assert hidden.weight_grad == pytest.approx(1 / 64)  # tokens^−½
    readout = numbers("umup").weight(*READOUT[:3])
    assert readout.backward == pytest.approx(1 / math.sqrt(512))  # fan_out, not fan_in
    assert readout.weight_grad == pytest.approx(1 / 64)


@pytest.mark.parametrize(
    ("scheme", "multiplier", "alpha"),
    [
        ("sp", 1 / 8, 1.0),
        ("mup", 2 * 4 / 64, 2.0),
        ("umup", 2 / 64, 2.0),
        ("mup_intermediate", 2 * 4 / 64, 2.0),
        ("completep", 2 * 4 / 64, 2.0),
        ("mup_sqrt_attention", 2 / 8, 2.0),
        ("umup_sqrt_attention", 2 / 8, 2.0),
        ("mup_readout_lr", 2 * 4 / 64, 2.0),
        ("umup_readout_lr", 2 / 64, 2.0),
        ("umup_const_emb", 2 / 64, 2.0),
        ("mup_sqrt_emb", 2 * 4 / 64, 2.0),
        ("sp_emb_lr", 1 / 8, 1.0),
        ("ladder_init", 1 / 8, 1.0),
        ("ladder_lr", 1 / 8, 1.0),
        ("ladder_logits", 1 / 8, 1.0),
    ],
)
def test_attention_logits(scheme, multiplier, alpha):
    found, _ = numbers(scheme, alpha_attn_softmax=alpha).attention(64, 128)
    assert found == pytest.approx(multiplier)  # 1/√d, α√d_base/d, α/d


def test_mup_attention_equals_sp_at_the_base_head_size():
    assert numbers("mup").attention(16, 128)[0] == numbers("sp").attention(16, 128)[0]


def test_the_scale_model_follows_the_attention_rule():
    """α/√d_head is α·√d_head under the 1/d_head rule: equal logits have equal output scales."""
    for alpha in (0.5, 1.0, 3.0):
        logit, out = numbers("umup_sqrt_attention", alpha_attn_softmax=alpha).attention(64, 128)
        same = numbers("umup", alpha_attn_softmax=8 * alpha).attention(64, 128)
        assert (logit, out) == pytest.approx(same, rel=1e-12)
    # By hand at d = 64, T = 128, α = 1: a = 1/(1 + 4·64/64) = 1/5, σ = (ln T/T)^(½·(1 − a)).
    _, out = numbers("umup_sqrt_attention").attention(64, 128)
    assert out == pytest.approx((math.log(128) / 128) ** -0.4, rel=1e-12)
    assert numbers("mup_sqrt_attention").attention(64, 128)[1] == 1.0


# --- learning-rate factors under SGD --------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "weight", "want"),
    [
        *(("sp", weight, 1.0) for weight in (EMBEDDING, HIDDEN, READOUT)),
        # Tensor Programs V, Table 8: fan_out, 1, fan_in over the base; a branch's gradient carries
        # √(base_depth/depth), which is the whole of its factor under Adam.
        ("mup", EMBEDDING, 4.0),
        ("mup", HIDDEN, 1.0),
        ("mup", READOUT, 4.0),
        ("mup_intermediate", HIDDEN, 256.0),  # C/θ² with θ = fan_in^−½
        ("mup_intermediate", DOWN, 768.0),
        ("mup_intermediate", READOUT, 4.0 * 64),
        ("completep", HIDDEN, 2.0),  # the branch's gradient carries base_depth/depth = ½
        ("completep", READOUT, 4.0),
        ("umup", EMBEDDING, 1 / 16),
        ("umup", HIDDEN, 1 / 16 / 4),
        ("umup", DOWN, 1 / 27.712812921102035 / 4),
        ("umup", READOUT, 1.0),
        ("umup_readout_lr", READOUT, 1.0),  # the blog's argument is about Adam
        # The embedding's rules are about Adam too: under SGD nothing changes.
        ("umup_const_emb", EMBEDDING, 1 / 16),
        ("mup_sqrt_emb", EMBEDDING, 4.0),
        *(("sp_emb_lr", weight, 1.0) for weight in (EMBEDDING, HIDDEN, READOUT)),
        ("ladder_init", READOUT, 1.0),
        ("ladder_lr", READOUT, 4.0),
    ],
)
def test_sgd_factors(scheme, weight, want):
    *shape, residual = weight
    found = numbers(scheme).weight(*shape, residual=residual).sgd_lr
    assert found == pytest.approx(want, rel=1e-12)


def test_sgd_factors_of_umup_are_the_reference_packages():
    """unit_scaling.optim.lr_scale_func_sgd(None) on its TransformerDecoder (hidden 64, d_ff 256,
    vocabulary 96, 2 layers), tensor by tensor."""
    model = ModelConfig(
        d_model=64,
        n_layers=2,
        d_head=16,
        d_ff=256,
        vocab_size=96,
        seq_len=32,
        depth_convention="layers",
    )
    p = numbers("umup", model)
    found = {
        "embedding": p.weight("input", 96, 64),
        "linear_qkv": p.weight("hidden", 64, 192, residual=True),
        "linear_o": p.weight("hidden", 64, 64, residual=True),
        "linear_1": p.weight("hidden", 64, 256, residual=True),
        "linear_2": p.weight("hidden", 256, 64, residual=True),
        "projection": p.weight("output", 64, 96),
    }
    want = {
        "embedding": 0.125,
        "linear_qkv": 0.08838834764831845,
        "linear_o": 0.08838834764831845,
        "linear_1": 0.08838834764831845,
        "linear_2": 0.04419417382415922,
        "projection": 1.0,
    }
    for name, n in found.items():
        assert n.sgd_lr == pytest.approx(want[name], rel=1e-12), name
        assert n.adam_lr == pytest.approx(want[name], rel=1e-12), name


def test_our_output_rule_is_tensor_programs_v_table_3_shifted():
    """Its Table 3 puts the output's 1/fan_in into init std and learning rates, ours into A."""
    ratio = {"base_fan_in": 1.0, "fan_in": -1.0}
    std = {"sigma_init": 1.0, "base_fan_in": 0.5, "fan_in": -1.0}
    table_3 = WeightRule(std, {}, {}, {}, ratio, ratio, {})
    shifted, ours = shift(table_3, ratio), get("mup").weights["output"]
    assert shifted.init_std == ours.init_std
    assert shifted.forward == {k: v for k, v in ours.forward.items() if k != "alpha_output"}
    assert (shifted.adam_lr, shifted.sgd_lr) == (ours.adam_lr, ours.sgd_lr)
    assert shifted.adam_eps == ours.adam_eps


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("role", ROLES)
def test_the_shift_keeps_what_training_sees(scheme, role):
    """A·√B, A·C under Adam, A²·C under SGD and ε/A are all that training depends on."""
    rule = get(scheme).weights[role]
    theta = {"fan_in": -0.5, "alpha_emb": 2.0}
    moved = shift(rule, theta)

    def seen(r):
        a = r.forward
        eps = times(r.adam_eps, inverse(a))
        return times(a, r.init_std), times(a, r.adam_lr), times(a, a, r.sgd_lr), eps

    for name in ("forward", "backward", "weight_grad"):
        old = getattr(rule, name)
        assert getattr(moved, name) == times(old, theta) != old, name
    assert seen(moved) == seen(rule)


def test_depth_counts_branches_or_layers():
    by_layers = replace(MODEL, depth_convention="layers")
    found = numbers("umup", by_layers).weight(*HIDDEN[:3], residual=True).adam_lr
    assert found == pytest.approx(1 / 16 / math.sqrt(8))
    assert numbers("umup", by_layers).weight(*HIDDEN[:3]).adam_lr == pytest.approx(1 / 16)
    # μP's rule and CompleteP's are ratios: the convention cancels.
    for scheme in ("mup", "completep"):
        one, other = (
            numbers(scheme, model).weight(*HIDDEN[:3], residual=True)
            for model in (by_layers, MODEL)
        )
        assert vars(one) == pytest.approx(vars(other), rel=1e-12)
    assert {s for s in SCHEMES if get(s).counts_depth} == {
        "umup",
        "umup_sqrt_attention",
        "umup_readout_lr",
        "umup_const_emb",
    }


def test_base_fan_in_may_be_given():
    found = numbers("mup").weight("hidden", 256, 256, base_fan_in=32)
    assert found.adam_lr == pytest.approx(1 / 8)


@pytest.mark.parametrize("size", [3, 7, 49, 98, 103, 161])
def test_ratios_of_equal_shapes_are_exactly_one(size):
    # 49 · (1/49) is 0.9999999999999999 in floating point: a product of powers must not do that.
    symbols = {"base_fan_in": size, "fan_in": size, "base_depth": size, "depth": size}
    assert evaluate({"base_fan_in": 1.0, "fan_in": -1.0}, symbols) == 1.0
    assert evaluate({"base_depth": 0.5, "depth": -0.5}, symbols) == 1.0
    model = ModelConfig(d_model=size, d_head=1, rope=False, base_width=size, d_ff=3 * size)
    for fan_in in (size, 3 * size):
        assert numbers("mup", model).weight("hidden", fan_in, size).adam_lr == 1.0
    mine, plain = (numbers(s, model).weight("output", size, 9) for s in ("mup", "sp"))
    assert mine == plain


def test_powers():
    assert times({"a": 1.0, "b": -0.5}, {"a": -1.0, "b": 1.0}) == {"b": 0.5}
    assert inverse({"a": 2.0, "b": -0.5}) == {"a": -2.0, "b": 0.5}
    symbols = {"fan_in": 16, "fan_out": 9, "alpha_emb": 3.0, "sigma_init": 4.0}
    power = {"fan_in": -0.5, "fan_out": 1.0, "alpha_emb": 2.0, "sigma_init": -1.0}
    assert evaluate(power, symbols) == pytest.approx(9 / 4 * 9 / 4)
    assert evaluate({}, {}) == 1.0


@pytest.mark.parametrize("case", GOLDEN["tau"])
def test_residual_taus_match_the_reference(case):
    golden = GOLDEN["tau"][case]
    alpha, ratio = (float(x) for x in case.split("_res")[1].split("_ratio"))
    library = residual_taus(golden["n_layers"], alpha, ratio, "library")
    np.testing.assert_allclose(library, np.square(golden["library_amplitude"]), rtol=1e-12)
    derived = residual_taus(golden["n_layers"], alpha, ratio, "derived")
    np.testing.assert_allclose(derived, golden["derived_variance"], rtol=1e-12)


def test_defaults_of_the_residual_scheme_are_neutral():
    assert residual_taus(3) == residual_taus(3, 1.0, 1.0, "derived")


def test_our_alpha_1_is_the_reference_packages_root_half():
    assert residual_taus(3, 1.0, 1.7, "derived") == pytest.approx(
        residual_taus(3, math.sqrt(0.5), 1.7, "library"), rel=1e-12
    )


def test_printed_convention_by_hand():
    # N = 1, α = 1, ratio = 1: α̂ = 1, τ = α̂/√2/(1 + …), attention then FFN.
    root2 = math.sqrt(2)
    assert residual_taus(1, 1.0, 1.0, "printed") == pytest.approx([1 / root2, 1 / (root2 * 2)])


def test_residual_numbers_of_each_scheme():
    for one in numbers("sp").residual():
        assert (one.add, one.skip, one.add_grad, one.split_grad) == (1.0, 1.0, 1.0, 1.0)
    for one in numbers("mup").residual():
        assert one.add == one.add_grad == pytest.approx(SQRT_HALF)
        assert (one.skip, one.split_grad) == (1.0, 1.0)
    for one in numbers("completep").residual():
        assert (one.add, one.add_grad, one.skip, one.split_grad) == (0.5, 0.5, 1.0, 1.0)
    for scheme, add in (("ladder_init", 1.0), ("ladder_lr", 1.0), ("ladder_logits", SQRT_HALF)):
        assert numbers(scheme).residual()[0].add == pytest.approx(add)
    unit = numbers("umup", alpha_residual=2.0).residual()
    assert len(unit) == 16
    for one in unit:
        assert one.add**2 + one.skip**2 == pytest.approx(1.0)
        assert (one.add_grad, one.split_grad) == (1.0, one.add)
    assert all(not s.residual for s in SCHEMES.values() if s.unit_scaled)  # τ takes its place
    # l = 1: τ = α̂²/L = 4/16.
    assert unit[0].add == pytest.approx(math.sqrt(0.25 / 1.25))


@pytest.mark.parametrize("bad", [0, -1])
def test_residual_taus_refuse_no_layers(bad):
    with pytest.raises(ConfigError, match=f"n_layers: received {bad}"):
        residual_taus(bad)


def test_residual_taus_refuse_an_unknown_convention():
    with pytest.raises(ConfigError, match=r"derived \| library \| printed"):
        residual_taus(2, convention="seed")


@pytest.mark.parametrize("case", GOLDEN["sdpa_scale"])
def test_attention_out_std(case):
    found = rules.attention_out_std(case["d_head"], case["seq"], case["mult"])
    assert 1 / found == pytest.approx(case["scale"], rel=1e-12)


def test_attention_out_std_at_one_position():
    assert rules.attention_out_std(64, 1, 1.0) == 1.0
    # T = 2, α → ∞ (a → 1): σ → 1; α → 0 (a → 0): σ → √(ln 2/2).
    assert rules.attention_out_std(1, 2, 1e6) == pytest.approx(1.0)
    assert rules.attention_out_std(1, 2, 1e-6) == pytest.approx(math.sqrt(math.log(2) / 2))


@pytest.mark.parametrize("alpha", [0.125, 0.5, 1.0, 2.0, 8.0])
def test_gated_silu_std(alpha):
    want = GOLDEN["silu_glu_scale"][str(alpha)]
    assert numbers("umup", alpha_ffn_act=alpha).gated_silu() == (alpha, pytest.approx(want))
    assert numbers("mup").gated_silu() == (1.0, 1.0)


def test_loss_numbers():
    assert numbers("umup", alpha_loss_softmax=2.0).loss(50) == (2.0, pytest.approx(50 / 7))
    assert numbers("sp").loss(50) == (1.0, 1 / TOKENS)


def everything(scheme, **hps):
    """All numbers of a model, as a flat list."""
    p = numbers(scheme, **hps)
    weights = [p.weight(*w[:3], residual=w[3]) for w in (EMBEDDING, HIDDEN, READOUT)]
    parts = [vars(x) for x in [*weights, *p.residual()]]
    flat = [v for part in parts for v in part.values()]
    return [*flat, *p.attention(64, 128), *p.gated_silu(), *p.loss(512)]


OPTIMIZER_HPS = {"eta", "weight_decay"}  # enter in the optimizer, not in the rules


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_hp_of_a_scheme_changes_its_numbers_and_no_other_does(scheme):
    default = everything(scheme)
    for name in HPs().to_dict():
        if name in OPTIMIZER_HPS:
            continue
        changed = everything(scheme, **{name: 1.5}) != default
        assert changed == (name in get(scheme).hps), name


def test_check_hps():
    check_hps("umup", HPs(alpha_residual=2.0, weight_decay=0.0).to_dict())
    check_hps("mup", HPs(alpha_emb=2.0).to_dict())
    with pytest.raises(ConfigError, match=r"alpha_emb: received 2.0.*umup has only eta"):
        check_hps("umup", HPs(alpha_emb=2.0).to_dict())
    with pytest.raises(ConfigError, match="alpha_residual"):
        check_hps("sp", HPs(alpha_residual=0.5).to_dict())


def test_unknown_scheme_and_role():
    with pytest.raises(ConfigError, match=r"scheme: received 'muP'; allowed: sp \| mup \| umup"):
        get("muP")
    with pytest.raises(ConfigError, match="role: received 'bias'; allowed: input"):
        numbers("mup").weight("bias", 1, 64)


@pytest.mark.parametrize("scheme", ["sp", "mup", "umup"])
@pytest.mark.parametrize("role", ["input", "hidden", "output"])
def test_numbers_of_a_width_are_those_of_the_decoder(scheme, role):
    decoder = numbers(scheme, ModelConfig(d_model=1024, base_width=128), tokens=1)
    mine = Parametrization.of_width(scheme, 1024, 128)
    assert mine.weight(role, 1024, 26) == decoder.weight(role, 1024, 26)
    assert mine.attention(32, 17) == decoder.attention(32, 17)


def test_numbers_of_a_width_by_hand():
    got = Parametrization.of_width("mup", 512, 128, depth=8, base_depth=2, hps={"sigma_init": 2.0})
    output = got.weight("output", 512, 10)
    assert output.init_std == pytest.approx(2 / math.sqrt(128))
    assert (output.forward, output.adam_lr) == (0.25, 1.0)
    assert got.weight("hidden", 2048, 512).adam_lr == 0.25
    assert got.residual()[0].add == 0.5  # √(2/8)
    small = Parametrization.of_width("mup", 64, 8, base_d_head=2)
    assert small.attention(16, 1)[0] == pytest.approx(math.sqrt(2) / 16)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scheme": "pm"}, "scheme"),
        ({"width": 0}, "width"),
        ({"depth": 0}, "depth"),
        ({"base_width": 0}, "base_width"),
        ({"hps": {"alpha_residual": 2.0}}, "alpha_residual"),
        ({"hps": {"sigma": 2.0}}, "sigma"),
    ],
)
def test_bad_numbers_of_a_width_are_errors(changes, field):
    with pytest.raises(ConfigError) as error:
        Parametrization.of_width(**({"scheme": "mup", "width": 8, "base_width": 8} | changes))
    assert error.value.field == field


def test_render():
    assert render({}) == "1"
    assert render({"fan_in": -0.5}) == "1/√fan-in"
    assert render({"alpha_output": 1.0, "base_fan_in": 1.0, "fan_in": -1.0}) == (
        "α_output·base-fan-in/fan-in"
    )
    assert render({"fan_in": -0.5, "depth": -0.5}) == "1/(√fan-in·√depth)"
    assert render({"fan_in": 2.0}) == "fan-in^2"
    assert render({"fan_in": -0.5}, "latex") == r"\frac{1}{\sqrt{\text{fan-in}}}"


def test_tables_in_three_styles():
    text = rules.table("mup").splitlines()
    assert text[0].split() == ["input", "hidden", "output", "residual", "branch"]
    adam = next(line for line in text if line.startswith("Adam"))
    assert adam.split() == [
        "Adam",
        "LR",
        "factor",
        "η̂_emb",
        "base-fan-in/fan-in",
        "1",
        "√base-depth/√depth",
    ]
    sgd = next(line for line in text if line.startswith("SGD"))
    assert sgd.split() == [
        "SGD",
        "LR",
        "factor",
        "η̂_emb·fan-out/base-fan-out",
        "1",
        "fan-in/base-fan-in",
        "1",
    ]
    markdown = rules.table("umup", "markdown").splitlines()
    assert all(line.count("|") == 6 for line in markdown)
    assert markdown[1] == "| --- | --- | --- | --- | --- |"
    assert r"$\frac{1}{\sqrt{\text{fan-in}}}$" in markdown[3]
    latex = rules.table("sp", "latex")
    assert latex.startswith(r"\begin{tabular}{lllll}")
    assert latex.endswith(r"\end{tabular}")
    assert all(line.count("&") == 4 for line in latex.splitlines()[1:-1])
    for broken in (rules.table, lambda _, style: rules.variants_table(style)):
        with pytest.raises(ConfigError, match="style: received 'html'"):
            broken("sp", "html")
    with pytest.raises(ConfigError, match="scheme"):
        rules.table("ntp")


@pytest.mark.parametrize("style", ["text", "markdown", "latex"])
def test_the_table_says_what_depth_counts_where_it_matters(style):
    last = rules.table("umup", style).splitlines()[-2 if style == "latex" else -1]
    assert "branches" in last and "layers" in last
    assert "layers" not in rules.table("mup", style)


def test_the_table_of_variants():
    lines = [line.split("  ") for line in rules.variants_table().splitlines()]
    cells = [[c.strip() for c in line if c.strip()] for line in lines]
    assert cells[0] == ["variant", "from", "number", "there", "here"]
    assert ["umup_readout_lr", "umup", "output Adam LR", "1", "1/fan-in"] in cells
    hat = "η\u0302_emb"
    assert ["umup_const_emb", "umup", "input Adam LR", f"{hat}/√fan-out", hat] in cells
    assert [
        "umup_sqrt_attention",
        "umup",
        "attention logits",
        "α_attn/d_head",
        "α_attn/√d_head",
    ] in cells
    assert {c[0] for c in cells if len(c) == 5} - {"variant"} == {
        s.name for s in SCHEMES.values() if s.parent
    }
    assert all(line.count("|") == 6 for line in rules.variants_table("markdown").splitlines())
    assert all(line.count("&") == 4 for line in rules.variants_table("latex").splitlines()[1:-1])
