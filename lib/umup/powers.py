"""Products of powers of named symbols, in which the rules are written.

Evaluation is plain arithmetic, so hyperparameters may be Python floats or traced JAX scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Number = Any
"""A Python float or a traced scalar."""

Power = Mapping[str, float]
"""A product of powers: ``{"fan_in": -0.5}`` is 1/√fan_in; the empty product is 1."""

HP_SYMBOLS = ("eta_emb", "sigma_init", "alpha_emb", "alpha_output", "alpha_attn_softmax")
"""Symbols that may be traced; all others are shapes, plain Python numbers."""


def times(*powers: Power) -> Power:
    """Product of products of powers; symbols that cancel drop out."""
    out: dict[str, float] = {}
    for power in powers:
        for symbol, exponent in power.items():
            out[symbol] = out.get(symbol, 0.0) + exponent
    return {symbol: exponent for symbol, exponent in out.items() if exponent}


def inverse(power: Power) -> Power:
    """The reciprocal."""
    return {symbol: -exponent for symbol, exponent in power.items()}


def evaluate(power: Power, symbols: Mapping[str, Number]) -> Number:
    """Value of a product of powers.

    Shapes are multiplied as Python floats, numerator over denominator, so that ratios of equal
    shapes are exactly 1; hyperparameters, perhaps traced, come last.
    """
    numerator = denominator = 1.0
    traced: Number = 1.0
    for symbol, exponent in power.items():
        if symbol in HP_SYMBOLS:
            factor = symbols[symbol]
            traced = traced * (factor if exponent == 1 else factor**exponent)
        elif exponent > 0:
            numerator *= float(symbols[symbol]) ** exponent
        else:
            denominator *= float(symbols[symbol]) ** -exponent
    constant = numerator / denominator
    return constant if isinstance(traced, float) and traced == 1.0 else constant * traced


_NAMES = {
    "fan_in": "fan-in",
    "fan_out": "fan-out",
    "base_fan_in": "base-fan-in",
    "base_fan_out": "base-fan-out",
    "depth": "depth",
    "base_depth": "base-depth",
    "d_head": "d_head",
    "base_d_head": "base-d_head",
    "tokens": "tokens",
    "batch": "batch",
    "base_batch": "base-batch",
    "run_tokens": "run-tokens",
    "base_run_tokens": "base-run-tokens",
    "sigma_init": "σ_init",
    "alpha_emb": "α_emb",
    "alpha_output": "α_output",
    "alpha_attn_softmax": "α_attn",
    "eta_emb": "η̂_emb",
}
_LATEX = {
    "sigma_init": r"\sigma_\text{init}",
    "alpha_emb": r"\alpha_\text{emb}",
    "alpha_output": r"\alpha_\text{output}",
    "alpha_attn_softmax": r"\alpha_\text{attn}",
    "eta_emb": r"\hat\eta_\text{emb}",
    "d_head": r"d_\text{head}",
    "base_d_head": r"d_\text{base head}",
}


def _factors(power: Power, sign: int, latex: bool) -> str:
    out = []
    for symbol, exponent in power.items():
        exponent *= sign
        if exponent <= 0:
            continue
        name = _LATEX.get(symbol, rf"\text{{{_NAMES[symbol]}}}") if latex else _NAMES[symbol]
        if exponent == 0.5:
            name = rf"\sqrt{{{name}}}" if latex else f"√{name}"
        elif exponent != 1:
            name = f"{name}^{{{exponent:g}}}" if latex else f"{name}^{exponent:g}"
        out.append(name)
    return (r"\," if latex else "·").join(out)


def render(power: Power, style: str = "text") -> str:
    """A product of powers as ``text`` or ``latex`` (without dollar signs)."""
    latex = style == "latex"
    top, bottom = _factors(power, 1, latex) or "1", _factors(power, -1, latex)
    if not bottom:
        return top
    if latex:
        return rf"\frac{{{top}}}{{{bottom}}}"
    return f"{top}/({bottom})" if "·" in bottom else f"{top}/{bottom}"
