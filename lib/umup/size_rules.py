"""How hyperparameters follow batch and duration: named rules of the optimizer, off by default.

With b the batch over the base run's and t the tokens over its tokens, each rule is a product of
powers for η, for independent λ, and an exponent p for the betas, β ← β^p, so that they stay in
[0, 1). At the base run's own size every rule is 1. None is part of μP or u-μP; the study on axes of
transfer measures what η does along them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from umup import text
from umup.config import OptimConfig
from umup.powers import Power, evaluate, inverse, render

_BATCH = {"batch": 1.0, "base_batch": -1.0}
_TOKENS = {"run_tokens": 1.0, "base_run_tokens": -1.0}


def _power(of: Power, exponent: float) -> Power:
    return {symbol: exponent * each for symbol, each in of.items()}


@dataclass(frozen=True)
class SizeRule:
    """Factors on η and λ, and the exponents of β₁ and β₂."""

    source: str
    eta: Power
    decay: Power
    beta1: Power
    beta2: Power


RULES: Mapping[str, SizeRule] = {
    "none": SizeRule("", {}, {}, {}, {}),
    # Adam's stochastic differential equation: the same path at equal tokens. Its ε ∝ 1/√b is one of
    # `optim.options`.
    "sqrt_batch": SizeRule(
        "Malladi et al., arXiv 2205.10287", _power(_BATCH, 0.5), _BATCH, _BATCH, _BATCH
    ),
    "half_life": SizeRule("Marek et al., arXiv 2507.07101", {}, {}, {}, _BATCH),
    # The averaging time of AdamW in tokens, batch/λ, grows as tokens^0.47 at one model.
    "time_scale": SizeRule(
        "Bergsma et al., arXiv 2505.13738",
        {},
        {**_BATCH, **_power(_TOKENS, -0.47)},
        {},
        {},
    ),
    "horizon": SizeRule("Bjorck et al., arXiv 2409.19913", _power(_TOKENS, -0.32), {}, {}, {}),
    "sde_horizon": SizeRule(
        "Mlodozeniec et al., arXiv 2512.22382",
        _power(_TOKENS, -0.5),
        inverse(_TOKENS),
        inverse(_TOKENS),
        inverse(_TOKENS),
    ),
}


class Size(NamedTuple):
    """What a rule makes of the optimizer: factors on η and λ, and the betas themselves."""

    eta: float
    decay: float
    beta1: float
    beta2: float


def ratio(config: OptimConfig, power: Power) -> float:
    """A power of the run's batch and tokens over those of its base run; 1 without a size rule."""
    if config.size_rule == "none":
        return 1.0
    symbols = {
        "batch": config.batch_size,
        "base_batch": config.base_batch_size,
        "run_tokens": config.batch_size * config.steps,
        "base_run_tokens": config.base_batch_size * config.base_steps,
    }
    return evaluate(power, symbols)


def at_size(config: OptimConfig) -> Size:
    """What the configuration's rule gives at its batch and steps."""
    rule = RULES[config.size_rule]
    return Size(
        ratio(config, rule.eta),
        ratio(config, rule.decay),
        config.beta1 ** ratio(config, rule.beta1),
        config.beta2 ** ratio(config, rule.beta2),
    )


def table() -> str:
    """The rules as a Markdown table: what each does to η, λ, β₁ and β₂, and its source."""
    rows = [
        [
            f"`{name}`",
            *(f"${render(p, 'latex')}$" for p in (r.eta, r.decay, r.beta1, r.beta2)),
            r.source,
        ]
        for name, r in RULES.items()
        if r.source
    ]
    heads = ["rule", "factor on η", "factor on λ", "exponent of β₁", "exponent of β₂", "source"]
    return text.markdown(heads, rows)
