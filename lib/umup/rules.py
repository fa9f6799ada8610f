"""The parametrizations as data: one table of exponents, from which every number follows.

A rule is a product of powers of named symbols, such as ``base_fan_in / fan_in``. From the table
come init std, forward and backward multipliers, Adam learning-rate factors and the book's
rendered table (u-μP paper, Tables 1 to 3, with the errata of the theory sheet). Evaluation is
plain arithmetic, so hyperparameters may be Python floats or traced JAX scalars; nothing here
imports JAX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from umup.config import ModelConfig
from umup.errors import ConfigError
from umup.powers import HP_SYMBOLS, Number, Power, evaluate, inverse, render, times

ROLES = ("input", "hidden", "output")


@dataclass(frozen=True)
class WeightRule:
    """Rules of one weight type. ``y = forward · x W`` with W drawn at ``init_std``.

    ``backward`` scales the input's gradient, ``weight_grad`` the weight's, ``adam_lr`` is the
    factor on η under Adam.
    """

    init_std: Power
    forward: Power
    backward: Power
    weight_grad: Power
    adam_lr: Power


def _plain(init_std: Power, forward: Power, adam_lr: Power) -> WeightRule:
    """A rule with true gradients: backward scales equal the forward one."""
    return WeightRule(init_std, forward, forward, forward, adam_lr)


@dataclass(frozen=True)
class Scheme:
    """One parametrization: rules by weight type, for residual branches and attention logits.

    ``unit_scaled`` schemes also take the op scales of the theory sheet's §3 (attention, gated
    SiLU, loss) and the τ residual scheme in place of ``residual``.
    """

    name: str
    title: str
    weights: Mapping[str, WeightRule]
    residual: Power
    residual_adam_lr: Power
    attention_logit: Power
    hps: tuple[str, ...]
    unit_scaled: bool = False


def unit_init(scheme: Scheme, name: str, title: str) -> Scheme:
    """The abc-symmetric twin with unit init: A → Aθ, √B → √B/θ, C → C/θ at θ = √B.

    Under Adam (ε → 0) it trains exactly as ``scheme`` does (u-μP paper, §2.1 and Table 2).
    """

    def shift(rule: WeightRule) -> WeightRule:
        theta = rule.init_std
        return WeightRule(
            init_std={},
            forward=times(rule.forward, theta),
            backward=times(rule.backward, theta),
            weight_grad=times(rule.weight_grad, theta),
            adam_lr=times(rule.adam_lr, inverse(theta)),
        )

    weights = {role: shift(rule) for role, rule in scheme.weights.items()}
    return replace(scheme, name=name, title=title, weights=weights)


_BASE_OVER_FAN = {"base_fan_in": 1.0, "fan_in": -1.0}
_DEPTH = {"base_depth": 0.5, "depth": -0.5}
_DW = {"tokens": -0.5}

SP = Scheme(
    name="sp",
    title="SP",
    weights={
        "input": _plain({"sigma_init": 1.0}, {}, {}),
        "hidden": _plain({"fan_in": -0.5}, {}, {}),
        "output": _plain({"fan_in": -0.5}, {}, {}),
    },
    residual={},
    residual_adam_lr={},
    attention_logit={"d_head": -0.5},
    hps=("eta", "sigma_init", "weight_decay"),
)

MUP = Scheme(
    name="mup",
    title="μP",
    weights={
        "input": _plain({"sigma_init": 1.0}, {"alpha_emb": 1.0}, {"eta_emb": 1.0}),
        "hidden": _plain({"sigma_init": 1.0, "fan_in": -0.5}, {}, _BASE_OVER_FAN),
        "output": _plain(
            {"sigma_init": 1.0, "base_fan_in": -0.5},
            times({"alpha_output": 1.0}, _BASE_OVER_FAN),
            {},
        ),
    },
    residual=_DEPTH,
    residual_adam_lr=_DEPTH,
    attention_logit={"alpha_attn_softmax": 1.0, "base_d_head": 0.5, "d_head": -1.0},
    hps=("eta", "eta_emb", "sigma_init", "alpha_emb", "alpha_output", "alpha_attn_softmax",
         "weight_decay"),
)  # fmt: skip

UMUP = Scheme(
    name="umup",
    title="u-μP",
    weights={
        # The embedding's gradient sums tokens/V draws a row: √(V/tokens), with V its fan_in.
        "input": WeightRule({}, {}, {}, {"fan_in": 0.5, "tokens": -0.5},
                            {"fan_out": -0.5, "eta_emb": 1.0}),
        "hidden": WeightRule({}, {"fan_in": -0.5}, {"fan_in": -0.5}, _DW, {"fan_in": -0.5}),
        "output": WeightRule({}, {"fan_in": -1.0}, {"fan_out": -0.5}, _DW, {}),
    },
    residual={},
    residual_adam_lr={"depth": -0.5},
    attention_logit={"alpha_attn_softmax": 1.0, "d_head": -1.0},
    # η̂_emb is no HP of the paper's u-μP: neutral at 1, it is what its Figure 4 sweeps.
    hps=("eta", "eta_emb", "alpha_residual", "alpha_residual_attn_ratio", "alpha_ffn_act",
         "alpha_attn_softmax", "alpha_loss_softmax", "weight_decay"),
    unit_scaled=True,
)  # fmt: skip

INTERMEDIATE = unit_init(MUP, "mup_intermediate", "intermediate μP")

SCHEMES: Mapping[str, Scheme] = {s.name: s for s in (SP, MUP, UMUP, INTERMEDIATE)}


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


def lerp_log(a: Number, lo: float, hi: float) -> Number:
    """exp(a·ln hi + (1−a)·ln lo): interpolation of the scale models (u-μP paper, Appendix B)."""
    return hi**a * lo ** (1.0 - a)


def attention_out_std(d_head: int, seq_len: int, alpha: Number) -> Number:
    """Std of causal attention's output on unit-scale q, k, v (u-μP paper, Table 4); 1 at T = 1."""
    if seq_len == 1:
        return 1.0
    a = 1.0 / (1.0 + 4.0 * d_head / alpha**2)
    return lerp_log(a, math.sqrt(math.log(seq_len) / seq_len), 1.0)


def gated_silu_std(alpha: Number) -> Number:
    """Std of x·g·sigmoid(α g) on unit-scale inputs (u-μP paper, Table 4)."""
    return lerp_log(1.0 / (1.0 + 1.0 / alpha**2), 0.5, math.sqrt(0.5))


def residual_taus(
    n_layers: int, alpha: Number = 1.0, attn_ratio: Number = 1.0, convention: str = "derived"
) -> list[Number]:
    """Variance ratios τ_l of the L = 2N residual branches, attention first.

    ``derived`` is the theory sheet's §4 (τ_l = r_l²/Σ_{i<l} r_i², exact by Lemma C.1);
    ``library`` is that of the authors' PyTorch package (L/2 in place of L); ``printed`` is
    equation (22) as the u-μP paper prints it: unsquared α̂ over √L. It is equivalent to no
    depth-μP network and exists for comparison alone.

    Raises:
        ConfigError: unknown convention or ``n_layers`` < 1.
    """
    if n_layers < 1:
        raise ConfigError("n_layers", n_layers, "an integer >= 1")
    if convention not in ("derived", "library", "printed"):
        raise ConfigError("convention", convention, "derived | library | printed")
    branches = 2 * n_layers
    ffn = alpha * (2.0 / (attn_ratio**2 + 1.0)) ** 0.5
    attn = attn_ratio * ffn
    if convention != "printed":
        attn, ffn = attn**2, ffn**2
    scale = {"derived": branches, "library": n_layers, "printed": math.sqrt(branches)}[convention]
    taus = []
    for layer in range(n_layers):
        taus.append(attn / (scale + layer * attn + layer * ffn))
        taus.append(ffn / (scale + (layer + 1) * attn + layer * ffn))
    return taus


@dataclass(frozen=True)
class WeightNumbers:
    """The evaluated ``WeightRule`` of one weight."""

    init_std: Number
    forward: Number
    backward: Number
    weight_grad: Number
    adam_lr: Number


@dataclass(frozen=True)
class ResidualNumbers:
    """Numbers of one residual branch: y = ``add``·f(x) + ``skip``·x.

    The branch multiplier reaches the backward pass at the split (``split_grad``, unit scaling's
    delayed multiplier) or at the add (``add_grad``): their product is always ``add``.
    """

    add: Number
    skip: Number
    add_grad: Number
    split_grad: Number


@dataclass(frozen=True)
class Parametrization:
    """A scheme at a model's shape with given hyperparameters: the source of every number.

    Args:
        scheme: name of the scheme.
        model: shapes, base shapes and conventions.
        hps: name → value, floats or traced scalars.
        tokens: tokens in one forward-backward pass (B·T), for weight-gradient scales.
    """

    scheme: str
    model: ModelConfig
    hps: Mapping[str, Number]
    tokens: int

    def _symbols(self, **shape: float) -> dict[str, Number]:
        per_layer = 2 if self.model.depth_convention == "branches" else 1
        return {
            **{name: self.hps[name] for name in HP_SYMBOLS},
            "depth": per_layer * self.model.n_layers,
            "base_depth": per_layer * self.model.base_depth,
            "base_d_head": self.model.base_d_head,
            "tokens": self.tokens,
            **shape,
        }

    def weight(
        self,
        role: str,
        fan_in: int,
        fan_out: int,
        *,
        residual: bool = False,
        base_fan_in: int | None = None,
    ) -> WeightNumbers:
        """Numbers of a weight of shape (fan_in, fan_out).

        Args:
            role: ``input``, ``hidden`` or ``output``.
            residual: whether it lies on a residual branch (learning-rate factor over depth).
            base_fan_in: its fan-in in the base model; by default fan_in·base_width/d_model.

        Raises:
            ConfigError: no rule covers the role.
        """  # fmt: skip
        scheme = get(self.scheme)
        if role not in scheme.weights:
            raise ConfigError("role", role, " | ".join(scheme.weights))
        rule = scheme.weights[role]
        if base_fan_in is None:
            base = fan_in * self.model.base_width / self.model.d_model
        else:
            base = float(base_fan_in)
        symbols = self._symbols(fan_in=fan_in, fan_out=fan_out, base_fan_in=base)
        adam = times(rule.adam_lr, scheme.residual_adam_lr) if residual else rule.adam_lr
        return WeightNumbers(
            *(evaluate(p, symbols) for p in (rule.init_std, rule.forward, rule.backward,
                                             rule.weight_grad, adam))
        )  # fmt: skip

    def attention(self, d_head: int, seq_len: int) -> tuple[Number, Number]:
        """(multiplier of q·k before the softmax, multiplier of the output)."""
        scheme = get(self.scheme)
        logit = evaluate(scheme.attention_logit, self._symbols(d_head=d_head))
        if not scheme.unit_scaled:
            return logit, 1.0
        return logit, 1.0 / attention_out_std(d_head, seq_len, self.hps["alpha_attn_softmax"])

    def gated_silu(self) -> tuple[Number, Number]:
        """(α inside the sigmoid, multiplier of the output)."""
        if not get(self.scheme).unit_scaled:
            return 1.0, 1.0
        alpha = self.hps["alpha_ffn_act"]
        return alpha, 1.0 / gated_silu_std(alpha)

    def residual(self) -> list[ResidualNumbers]:
        """Numbers of the 2N branches in order, attention first."""
        scheme, n_layers = get(self.scheme), self.model.n_layers
        if not scheme.unit_scaled:
            add = evaluate(scheme.residual, self._symbols())
            return [ResidualNumbers(add, 1.0, add, 1.0)] * (2 * n_layers)
        taus = residual_taus(
            n_layers, self.hps["alpha_residual"], self.hps["alpha_residual_attn_ratio"],
            self.model.tau_convention,
        )  # fmt: skip
        numbers = []
        for tau in taus:
            add = (tau / (tau + 1.0)) ** 0.5
            numbers.append(ResidualNumbers(add, (1.0 / (tau + 1.0)) ** 0.5, 1.0, add))
        return numbers

    def loss(self, vocab_size: int) -> tuple[Number, Number]:
        """(α on the logits, scale of softmax − onehot in the gradient).

        Unit-scaled schemes take V/√(V−1) a token, sum style and free of α, which is unit scale
        at initialization; the others the true gradient of the mean, 1/tokens.
        """
        if not get(self.scheme).unit_scaled:
            return 1.0, 1.0 / self.tokens
        return self.hps["alpha_loss_softmax"], vocab_size / math.sqrt(vocab_size - 1)


def table(scheme: str, style: str = "text") -> str:
    """The scheme's rules as a ``text``, ``markdown`` or ``latex`` table.

    Raises:
        ConfigError: unknown scheme or style.
    """
    if style not in ("text", "markdown", "latex"):
        raise ConfigError("style", style, "text | markdown | latex")
    rules = get(scheme)
    cell_style = "text" if style == "text" else "latex"

    def cell(power: Power) -> str:
        text = render(power, cell_style)
        return text if style == "text" else f"${text}$"

    def row(label: str, attribute: str, residual: str) -> list[str]:
        return [label, *(cell(getattr(rules.weights[role], attribute)) for role in ROLES), residual]

    tau = "a_l, b_l from τ_l" if style == "text" else r"$a_l, b_l$ from $\tau_l$"
    branch = tau if rules.unit_scaled else cell(rules.residual)
    header = ["", "input", "hidden", "output", "residual branch"]
    rows = [
        row("init std", "init_std", "–"),
        row("forward multiplier", "forward", branch),
        row("backward multiplier", "backward", branch),
        row("weight-gradient multiplier", "weight_grad", "–"),
        row("Adam LR factor", "adam_lr", cell(rules.residual_adam_lr)),
        ["attention logits (on q·k)", "", cell(rules.attention_logit), "", ""],
    ]
    if style == "markdown":
        lines = ["| " + " | ".join(r) + " |" for r in (header, ["---"] * 5, *rows)]
    elif style == "latex":
        body = [" & ".join(r) + r" \\" for r in (header, *rows)]
        lines = [r"\begin{tabular}{lllll}", *body, r"\end{tabular}"]
    else:
        widths = [max(len(r[i]) for r in (header, *rows)) for i in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths)).rstrip() for r in (header, *rows)]
    return "\n".join(lines)
