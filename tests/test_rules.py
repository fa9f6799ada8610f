"""Rules: every number of the u-μP paper's Table 1, the residual scheme, and their errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from umup import rules
from umup.config import HPs, ModelConfig
from umup.errors import ConfigError
from umup.rules import Parametrization, check_hps, evaluate, inverse, render, residual_taus, times

GOLDEN = json.loads((Path(__file__).parent / "golden/golden.json").read_text())

# d_model is 4 times the base, N twice the base, d_head 4 times the base; d_ff = 3·d_model.
MODEL = ModelConfig(
    d_model=256, n_layers=8, d_head=64, d_ff=768, vocab_size=512, seq_len=128,
    base_width=64, base_depth=4, base_d_head=16,
)  # fmt: skip
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
    ],
)
def test_table_1(scheme, weight, init_std, forward, adam_lr):
    role, fan_in, fan_out, residual = weight
    found = numbers(scheme).weight(role, fan_in, fan_out, residual=residual)
    assert found.init_std == pytest.approx(init_std, rel=1e-12)
    assert found.forward == pytest.approx(forward, rel=1e-12)
    assert found.adam_lr == pytest.approx(adam_lr, rel=1e-12)


@pytest.mark.parametrize("scheme", ["sp", "mup", "mup_intermediate"])
@pytest.mark.parametrize("weight", [EMBEDDING, HIDDEN, READOUT])
def test_schemes_without_unit_scaling_have_true_gradients(scheme, weight):
    *shape, residual = weight
    found = numbers(scheme, sigma_init=0.5, alpha_output=3.0).weight(*shape, residual=residual)
    assert found.backward == found.weight_grad == found.forward


def test_backward_scales_of_umup():
    embedding = numbers("umup").weight(*EMBEDDING[:3])
    assert embedding.weight_grad == pytest.approx(math.sqrt(512 / 4096))  # √(V/tokens)
    hidden = numbers("umup").weight(*HIDDEN[:3], residual=True)
    assert hidden.backward == hidden.forward == pytest.approx(1 / 16)
    assert hidden.weight_grad == pytest.approx(1 / 64)  # tokens^−½
    readout = numbers("umup").weight(*READOUT[:3])
    assert readout.backward == pytest.approx(1 / math.sqrt(512))  # fan_out, not fan_in
    assert readout.weight_grad == pytest.approx(1 / 64)


@pytest.mark.parametrize(
    ("scheme", "multiplier", "alpha"),
    [("sp", 1 / 8, 1.0), ("mup", 2 * 4 / 64, 2.0), ("umup", 2 / 64, 2.0),
     ("mup_intermediate", 2 * 4 / 64, 2.0)],
)  # fmt: skip
def test_attention_logits(scheme, multiplier, alpha):
    found, _ = numbers(scheme, alpha_attn_softmax=alpha).attention(64, 128)
    assert found == pytest.approx(multiplier)  # 1/√d, α√d_base/d, α/d


def test_mup_attention_equals_sp_at_the_base_head_size():
    assert numbers("mup").attention(16, 128)[0] == numbers("sp").attention(16, 128)[0]


def test_depth_counts_branches_or_layers():
    by_layers = ModelConfig(**(MODEL.to_dict() | {"depth_convention": "layers"}))
    found = numbers("umup", by_layers).weight(*HIDDEN[:3], residual=True).adam_lr
    assert found == pytest.approx(1 / 16 / math.sqrt(8))
    assert numbers("umup", by_layers).weight(*HIDDEN[:3]).adam_lr == pytest.approx(1 / 16)
    # μP's rule is a ratio: the convention cancels.
    by_layers, by_branches = (
        numbers("mup", model).weight(*HIDDEN[:3], residual=True).adam_lr
        for model in (by_layers, MODEL)
    )
    assert by_layers == pytest.approx(by_branches, rel=1e-12)


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


def test_our_alpha_1_is_the_reference_packages_root_half():
    assert residual_taus(3, 1.0, 1.7, "derived") == pytest.approx(
        residual_taus(3, math.sqrt(0.5), 1.7, "library"), rel=1e-12
    )


def depth_mup(alpha, ratio, n_layers):
    """r_l of the plain network: α̂/√L, attention first (theory sheet, §4)."""
    ffn = alpha * math.sqrt(2 / (ratio**2 + 1))
    return [a / math.sqrt(2 * n_layers) for _ in range(n_layers) for a in (ratio * ffn, ffn)]


def networks(taus, r, n_layers, seed):
    """Outputs of the plain network over √Σr², and of its unit-scaled twin, in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 12))
    weights = rng.normal(size=(2 * n_layers, 12, 12)) * rng.uniform(0.1, 3)
    plain, unit, power = x, x, 1.0
    for w, r_l, tau in zip(weights, r, taus):

        def f(h, w=w):
            # Normalised before: f sees only the direction, as in a pre-norm transformer.
            return np.tanh(h / np.sqrt((h**2).mean(-1, keepdims=True)) @ w)

        plain, power = r_l * f(plain) + plain, power + r_l**2
        unit = math.sqrt(tau / (tau + 1)) * f(unit) + math.sqrt(1 / (tau + 1)) * unit
    return plain / math.sqrt(power), unit


@pytest.mark.parametrize("seed", range(12))
def test_lemma_c1_holds_to_rounding(seed):
    rng = np.random.default_rng(100 + seed)
    n_layers = int(rng.integers(1, 9))
    alpha, ratio = np.exp2(rng.uniform(-2, 2, size=2))
    taus = residual_taus(n_layers, alpha, ratio, "derived")
    want, found = networks(taus, depth_mup(alpha, ratio, n_layers), n_layers, seed)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


def test_library_convention_is_the_plain_network_with_alpha_root_two_larger():
    taus = residual_taus(4, 0.7, 2.0, "library")
    want, found = networks(taus, depth_mup(0.7 * math.sqrt(2), 2.0, 4), 4, 0)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


def test_printed_convention_is_no_depth_mup_network():
    for n_layers, alpha, ratio in ((2, 1.0, 1.0), (4, 0.5, 2.0), (8, 2.0, 0.5)):
        taus = residual_taus(n_layers, alpha, ratio, "printed")
        want, found = networks(taus, depth_mup(alpha, ratio, n_layers), n_layers, 1)
        assert np.abs(found - want).max() > 0.1


def test_printed_convention_by_hand():
    # N = 1, α = 1, ratio = 1: α̂ = 1, τ = α̂/(√2 + …), attention then FFN.
    root2 = math.sqrt(2)
    assert residual_taus(1, 1.0, 1.0, "printed") == pytest.approx([1 / root2, 1 / (root2 + 1)])


@pytest.mark.parametrize(("alpha", "ratio"), [(1.0, 1.0), (0.5, 2.0), (3.0, 0.25)])
@pytest.mark.parametrize("n_layers", [1, 2, 7])
def test_residual_hps_mean_what_they_say(alpha, ratio, n_layers):
    """With unit-variance branches σ(residual)/σ(embedding) = α_r and σ(attn)/σ(FFN) = α_ρ."""
    taus = residual_taus(n_layers, alpha, ratio, "derived")
    embedding, attn, ffn = 1.0, 0.0, 0.0  # variances that each part contributes to the output
    for i, tau in enumerate(taus):
        keep, add = 1 / (tau + 1), tau / (tau + 1)
        embedding, attn, ffn = embedding * keep, attn * keep, ffn * keep
        attn, ffn = (attn + add, ffn) if i % 2 == 0 else (attn, ffn + add)
    assert embedding + attn + ffn == pytest.approx(1.0)
    assert math.sqrt(attn / ffn) == pytest.approx(ratio)
    assert math.sqrt((attn + ffn) / embedding) == pytest.approx(alpha)


def test_residual_numbers_of_each_scheme():
    for one in numbers("sp").residual():
        assert (one.add, one.skip, one.add_grad, one.split_grad) == (1.0, 1.0, 1.0, 1.0)
    for one in numbers("mup").residual():
        assert one.add == one.add_grad == pytest.approx(SQRT_HALF)
        assert (one.skip, one.split_grad) == (1.0, 1.0)
    unit = numbers("umup", alpha_residual=2.0).residual()
    assert len(unit) == 16
    for one in unit:
        assert one.add**2 + one.skip**2 == pytest.approx(1.0)
        assert (one.add_grad, one.split_grad) == (1.0, one.add)
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


@pytest.mark.parametrize("scheme", rules.SCHEMES)
def test_every_hp_of_a_scheme_changes_its_numbers_and_no_other_does(scheme):
    default = everything(scheme)
    for name in HPs().to_dict():
        if name in OPTIMIZER_HPS:
            continue
        changed = everything(scheme, **{name: 1.5}) != default
        assert changed == (name in rules.get(scheme).hps), name


def test_check_hps():
    check_hps("umup", HPs(alpha_residual=2.0, weight_decay=0.0).to_dict())
    check_hps("mup", HPs(alpha_emb=2.0).to_dict())
    with pytest.raises(ConfigError, match=r"alpha_emb: received 2.0.*umup has only eta"):
        check_hps("umup", HPs(alpha_emb=2.0).to_dict())
    with pytest.raises(ConfigError, match="alpha_residual"):
        check_hps("sp", HPs(alpha_residual=0.5).to_dict())


def test_unknown_scheme_and_role():
    with pytest.raises(ConfigError, match=r"scheme: received 'muP'; allowed: sp \| mup \| umup"):
        rules.get("muP")
    with pytest.raises(ConfigError, match="role: received 'bias'; allowed: input"):
        numbers("mup").weight("bias", 1, 64)


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
    assert adam.split() == ["Adam", "LR", "factor", "η̂_emb", "base-fan-in/fan-in", "1",
                            "√base-depth/√depth"]  # fmt: skip
    markdown = rules.table("umup", "markdown").splitlines()
    assert all(line.count("|") == 6 for line in markdown)
    assert markdown[1] == "| --- | --- | --- | --- | --- |"
    assert r"$\frac{1}{\sqrt{\text{fan-in}}}$" in markdown[3]
    latex = rules.table("sp", "latex")
    assert latex.startswith(r"\begin{tabular}{lllll}")
    assert latex.endswith(r"\end{tabular}")
    assert all(line.count("&") == 4 for line in latex.splitlines()[1:-1])
    with pytest.raises(ConfigError, match="style: received 'html'"):
        rules.table("sp", "html")
    with pytest.raises(ConfigError, match="scheme"):
        rules.table("ntp")
