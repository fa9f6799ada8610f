"""The parametrizations as data: for every kind of weight, products of powers of named symbols.

A rule such as ``base_fan_in / fan_in`` is written ``{"base_fan_in": 1, "fan_in": -1}``. From these
tables `umup.rules` evaluates init std, multipliers and learning-rate factors and prints the book's
tables (u-μP paper, Tables 1 to 3, with the book's Errata).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from umup.errors import ConfigError
from umup.powers import Power, inverse, times

ROLES = ("input", "hidden", "output")


@dataclass(frozen=True)
class WeightRule:
    """Rules of one weight type. ``y = forward · x W`` with W drawn at ``init_std``.

    ``backward`` scales the input's gradient, ``weight_grad`` the weight's; ``adam_lr`` and
    ``sgd_lr`` are the factors on η under Adam and under SGD. ``adam_eps`` is how the entries of the
    gradient grow, so that Adam's ε times it stays as far below them (``OptimConfig.eps_rule``).
    """

    init_std: Power
    forward: Power
    backward: Power
    weight_grad: Power
    adam_lr: Power
    sgd_lr: Power
    adam_eps: Power


def _plain(
    init_std: Power, forward: Power, adam_lr: Power, sgd_lr: Power, adam_eps: Power
) -> WeightRule:
    """A rule with true gradients: backward scales equal the forward one."""
    return WeightRule(init_std, forward, forward, forward, adam_lr, sgd_lr, adam_eps)


def _unit(forward: Power, backward: Power, weight_grad: Power, lr: Power) -> WeightRule:
    """A unit-scaled rule: init std 1, gradients of unit size, hence one learning-rate factor."""
    return WeightRule({}, forward, backward, weight_grad, lr, lr, {})


@dataclass(frozen=True)
class Scheme:
    """One parametrization: rules by weight type, for residual branches and attention logits.

    ``residual`` multiplies every branch, ``residual_adam_lr``, ``residual_sgd_lr`` and
    ``residual_adam_eps`` the factors of every weight on one. ``unit_scaled`` schemes also take the
    op scales of the book's Theory, section 5 (attention, gated SiLU, loss), and the τ residual
    scheme in place of ``residual``. A variant names the scheme that it changes, its ``parent``.
    """

    name: str
    title: str
    weights: Mapping[str, WeightRule]
    residual: Power
    residual_adam_lr: Power
    residual_sgd_lr: Power
    attention_logit: Power
    hps: tuple[str, ...]
    residual_adam_eps: Power = field(default_factory=dict)
    unit_scaled: bool = False
    parent: str = ""

    @property
    def counts_depth(self) -> bool:
        """Whether depth enters other than as a ratio to the base model's."""
        every = times(self.residual, self.residual_adam_lr, self.residual_sgd_lr)
        return "depth" in every and "base_depth" not in every


def shift(rule: WeightRule, theta: Power) -> WeightRule:
    """The abc-symmetry: A → Aθ, √B → √B/θ, and C → C/θ under Adam, C/θ² under SGD.

    The network and its training stay what they were: Adam's step is free of the gradient's size
    (for ε → 0), SGD's grows with it, by θ (Tensor Programs V, arXiv 2203.03466, Lemma J.1).
    """
    down = inverse(theta)
    return WeightRule(
        init_std=times(rule.init_std, down),
        forward=times(rule.forward, theta),
        backward=times(rule.backward, theta),
        weight_grad=times(rule.weight_grad, theta),
        adam_lr=times(rule.adam_lr, down),
        sgd_lr=times(rule.sgd_lr, down, down),
        adam_eps=times(rule.adam_eps, theta),
    )


def unit_init(scheme: Scheme, name: str, title: str) -> Scheme:
    """The abc-symmetric twin with unit init, θ = √B (u-μP paper, §2.1 and Table 2)."""
    weights = {role: shift(rule, rule.init_std) for role, rule in scheme.weights.items()}
    return replace(scheme, name=name, title=title, weights=weights)


_BASE_OVER_FAN = {"base_fan_in": 1.0, "fan_in": -1.0}
_BASE_OVER_OUT = {"base_fan_out": 1.0, "fan_out": -1.0}
_ROOT_DEPTH = {"base_depth": 0.5, "depth": -0.5}
_DEPTH = {"base_depth": 1.0, "depth": -1.0}
_DW = {"tokens": -0.5}
_ETA_EMB = {"eta_emb": 1.0}


def _root(power: Power) -> Power:
    return {symbol: exponent / 2 for symbol, exponent in power.items()}


# ε under SP and μP: a readout of init std 1/√fan-in sends back gradients ∝ 1/√width, one of
# constant init under the multiplier 1/width those ∝ 1/width, and a branch multiplies its own by its
# multiplier (arXiv 2407.05872; 2505.01618). Unit-scaled gradients have size 1.
SP = Scheme(
    name="sp",
    title="SP",
    weights={
        "input": _plain({"sigma_init": 1.0}, {}, {}, {}, _root(_BASE_OVER_OUT)),
        "hidden": _plain({"fan_in": -0.5}, {}, {}, {}, _root(_BASE_OVER_FAN)),
        "output": _plain({"fan_in": -0.5}, {}, {}, {}, {}),
    },
    residual={},
    residual_adam_lr={},
    residual_sgd_lr={},
    attention_logit={"d_head": -0.5},
    hps=("eta", "sigma_init", "weight_decay"),
)

# SGD: Tensor Programs V, Table 8, over the base model. Its Table 3 has no multiplier on the output
# weight and the factor 1/fan_in there; the multiplier 1/fan_in is θ, and C/θ² = fan_in. Branch
# weights: their gradient carries the branch multiplier, as 1/√depth under Adam does their factor,
# so that SGD needs none (Tensor Programs VI, arXiv 2310.02244, Table 1).
MUP = Scheme(
    name="mup",
    title="μP",
    weights={
        "input": _plain(
            {"sigma_init": 1.0},
            {"alpha_emb": 1.0},
            _ETA_EMB,
            times(_ETA_EMB, inverse(_BASE_OVER_OUT)),
            _BASE_OVER_OUT,
        ),
        "hidden": _plain(
            {"sigma_init": 1.0, "fan_in": -0.5}, {}, _BASE_OVER_FAN, {}, _BASE_OVER_FAN
        ),
        "output": _plain(
            {"sigma_init": 1.0, "base_fan_in": -0.5},
            times({"alpha_output": 1.0}, _BASE_OVER_FAN),
            {},
            inverse(_BASE_OVER_FAN),
            _BASE_OVER_FAN,
        ),
    },
    residual=_ROOT_DEPTH,
    residual_adam_lr=_ROOT_DEPTH,
    residual_sgd_lr={},
    residual_adam_eps=_ROOT_DEPTH,
    attention_logit={"alpha_attn_softmax": 1.0, "base_d_head": 0.5, "d_head": -1.0},
    hps=(
        "eta",
        "eta_emb",
        "sigma_init",
        "alpha_emb",
        "alpha_output",
        "alpha_attn_softmax",
        "weight_decay",
    ),
)

# SGD: unit-scaled gradients make unit-sized steps, so the factors are Adam's, as in the authors'
# package with a free backward scale at the readout. (Our gate|up gradient is √(d_model/d_ff) of
# theirs, a constant over width: the book's Theory, section 5.)
UMUP = Scheme(
    name="umup",
    title="u-μP",
    weights={
        # The embedding's gradient sums tokens/V draws a row: √(V/tokens), with V its fan_in.
        "input": _unit({}, {}, {"fan_in": 0.5, "tokens": -0.5}, _ETA_EMB | {"fan_out": -0.5}),
        "hidden": _unit({"fan_in": -0.5}, {"fan_in": -0.5}, _DW, {"fan_in": -0.5}),
        "output": _unit({"fan_in": -1.0}, {"fan_out": -0.5}, _DW, {}),
    },
    residual={},
    residual_adam_lr={"depth": -0.5},
    residual_sgd_lr={"depth": -0.5},
    attention_logit={"alpha_attn_softmax": 1.0, "d_head": -1.0},
    # η̂_emb is no HP of the paper's u-μP: neutral at 1, it is what its Figure 4 sweeps.
    hps=(
        "eta",
        "eta_emb",
        "alpha_residual",
        "alpha_residual_attn_ratio",
        "alpha_ffn_act",
        "alpha_attn_softmax",
        "alpha_loss_softmax",
        "weight_decay",
    ),
    unit_scaled=True,
)

INTERMEDIATE = unit_init(MUP, "mup_intermediate", "intermediate μP")

# CompleteP (arXiv 2505.01618, Table 1): branches at (base_depth/depth)^α with α = 1, so that the
# depth factor of hidden weights under Adam, (depth/base_depth)^(α−1), is 1. Under SGD the gradient
# carries the multiplier, and the factor is its inverse. The paper scales Adam's ε, as eps_rule
# does, and coupled decay with the width, as decay_rule "width" does; both are options here.
COMPLETEP = replace(
    MUP,
    name="completep",
    title="CompleteP",
    residual=_DEPTH,
    residual_adam_lr={},
    residual_sgd_lr=inverse(_DEPTH),
    residual_adam_eps=_DEPTH,
)


def _variant(scheme: Scheme, name: str, title: str, **changes: Any) -> Scheme:
    """The scheme with some of its numbers changed, named after what is changed."""
    name, title = f"{scheme.name}_{name}", f"{scheme.title}, {title}"
    return replace(scheme, name=name, title=title, parent=scheme.name, **changes)


def _sqrt_attention(scheme: Scheme) -> Scheme:
    """Logits α·q·k/√d_head in place of the 1/d_head rule."""
    logit = {"alpha_attn_softmax": 1.0, "d_head": -0.5}
    return _variant(scheme, "sqrt_attention", "attention 1/√d", attention_logit=logit)


def _slower(scheme: Scheme, name: str, title: str, **extra: Power) -> Scheme:
    """Further factors on Adam's learning rate, by weight type: {"output": {"fan_in": -1.0}}."""
    weights = {
        role: replace(rule, adam_lr=times(rule.adam_lr, extra.get(role, {})))
        for role, rule in scheme.weights.items()
    }
    return _variant(scheme, name, title, weights=weights)


def _readout_lr(scheme: Scheme, extra: Power) -> Scheme:
    """A further factor on the readout's Adam learning rate (the book's Errata, 8)."""
    return _slower(scheme, "readout_lr", "readout LR 1/width", output=extra)


def _rung(name: str, title: str, parent: str, *columns: str) -> Scheme:
    """SP with some of μP's rows (init, learning rate, multipliers) in place of its own.

    Attention stays SP's 1/√d_head, so that μP itself is the rung after the last.
    """
    lr = MUP if "lr" in columns else SP
    scale = MUP if "multiplier" in columns else SP
    weights = {
        role: _plain(
            MUP.weights[role].init_std,
            scale.weights[role].forward,
            lr.weights[role].adam_lr,
            lr.weights[role].sgd_lr,
            # Without the multiplier μP's readout sends back gradients whose size no width changes.
            MUP.weights[role].adam_eps if scale is MUP else {},
        )
        for role in ROLES
    }
    alphas = ("alpha_emb", "alpha_output") if scale is MUP else ()
    hps = ("eta", *(("eta_emb",) if lr is MUP else ()), "sigma_init", *alphas, "weight_decay")
    return replace(
        SP,
        name=name,
        title=title,
        parent=parent,
        weights=weights,
        hps=hps,
        residual=scale.residual,
        residual_adam_lr=lr.residual_adam_lr,
        residual_sgd_lr=lr.residual_sgd_lr,
        residual_adam_eps=scale.residual_adam_eps,
    )


# What studies compare the schemes with. u-μP has no base model: its readout takes the bare
# 1/fan_in, μP's the ratio to the base width; over width the two are one rule.
VARIANTS = (
    _sqrt_attention(MUP),
    _sqrt_attention(UMUP),
    _readout_lr(MUP, _BASE_OVER_FAN),
    _readout_lr(UMUP, {"fan_in": -1.0}),
    # The embedding's rule (u-μP paper, Appendix A.3): u-μP without its 1/√fan-out, so that the
    # factor is η̂_emb alone, as under μP, and μP with it, as a ratio to the base width.
    _slower(UMUP, "const_emb", "constant embedding LR", input={"fan_out": 0.5}),
    _slower(MUP, "sqrt_emb", "embedding LR 1/√width", input={"base_fan_out": 0.5, "fan_out": -0.5}),
    # SP whose η falls as 1/width for every weight but the embedding, whose rate stays. With one η
    # for all weights, sought at each width, that is an embedding factor of width/base width.
    _slower(SP, "emb_lr", "embedding LR kept", hidden=_BASE_OVER_FAN, output=_BASE_OVER_FAN),
    _rung("ladder_init", "SP + μP's init", "sp"),
    _rung("ladder_lr", "SP + μP's init, LR", "ladder_init", "lr"),
    _rung("ladder_logits", "SP + μP's init, LR, logits", "ladder_lr", "lr", "multiplier"),
)
MAIN = (SP, MUP, UMUP, INTERMEDIATE, COMPLETEP)

SCHEMES: Mapping[str, Scheme] = {s.name: s for s in (*MAIN, *VARIANTS)}
TITLES: Mapping[str, str] = {name: scheme.title for name, scheme in SCHEMES.items()}
"""What pages call a scheme."""


def get(scheme: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ConfigError: there is none.
    """
    if scheme not in SCHEMES:
        raise ConfigError("scheme", scheme, " | ".join(SCHEMES))
    return SCHEMES[scheme]


def check_hps(scheme: str, hps: Mapping[str, float]) -> None:
    """Refuse a hyperparameter that the scheme does not have and that is not at its default 1.

    Raises:
        ConfigError: naming the hyperparameter; silence would mean a sweep that changes nothing.
    """
    known = get(scheme).hps
    for name, value in hps.items():
        if name not in known and value != 1.0:
            raise ConfigError(name, value, f"1, since {scheme} has only {', '.join(known)}")
