"""Numbers from the tables of `umup.schemes`: what a scheme prescribes for a weight, branch or op.

Evaluation is plain arithmetic, so hyperparameters may be Python floats or traced JAX scalars;
nothing here imports JAX. The module also has the scale models of attention and gated SiLU and the τ
of the residual scheme; `umup.rule_tables` renders the rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from umup.config import HPs, ModelConfig
from umup.errors import ConfigError
from umup.powers import HP_SYMBOLS, Number, evaluate, times
from umup.rule_tables import side_by_side as side_by_side
from umup.rule_tables import table as table
from umup.rule_tables import variants_table as variants_table
from umup.schemes import SCHEMES as SCHEMES
from umup.schemes import check_hps as check_hps
from umup.schemes import get


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

    ``derived`` is τ_l = r_l²/Σ_{i<l} r_i², exact by Lemma C.1 (the book's Theory, section 6);
    ``library`` is that of the authors' PyTorch package (L/2 in place of L); ``printed`` is
    equation (22) as the u-μP paper prints it: α̂ not squared, and 1/√L before the fraction but
    not in its sum. No depth-μP network is equivalent to it; it exists for comparison only.

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
    root = math.sqrt(branches)
    # τ = α̂ / (c + d·Σα̂), Σ over the branches below.
    c, d = {"derived": (branches, 1), "library": (n_layers, 1), "printed": (root, root)}[convention]
    taus = []
    for layer in range(n_layers):
        taus.append(attn / (c + d * (layer * attn + layer * ffn)))
        taus.append(ffn / (c + d * ((layer + 1) * attn + layer * ffn)))
    return taus


@dataclass(frozen=True)
class WeightNumbers:
    """The evaluated ``WeightRule`` of one weight."""

    init_std: Number
    forward: Number
    backward: Number
    weight_grad: Number
    adam_lr: Number
    sgd_lr: Number
    adam_eps: Number


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

    @classmethod
    def of_width(
        cls,
        scheme: str,
        width: int,
        base_width: int,
        *,
        depth: int = 1,
        base_depth: int = 1,
        base_d_head: int = 64,
        hps: Mapping[str, float] | None = None,
        tokens: int = 1,
    ) -> Parametrization:
        """The same for a model other than our decoder, from the sizes that the rules need.

        Args:
            scheme: name of the scheme.
            width, base_width: the size to which all growing fans are proportional, and the one at
                which μP equals SP.
            depth, base_depth: blocks of two residual branches, for schemes that scale branches.
            base_d_head: head size at which μP's attention logits equal SP's.
            hps: hyperparameters that are not at their default.
            tokens: rows that a weight sees in one pass, which only unit-scaled schemes need.

        Raises:
            ConfigError: a size below 1, an unknown scheme, or a hyperparameter it does not have.
        """
        given = HPs.from_dict(hps or {}).to_dict()
        check_hps(scheme, {name: given[name] for name in hps or {}})
        try:
            model = ModelConfig(
                d_model=width,
                base_width=base_width,
                n_layers=depth,
                base_depth=base_depth,
                base_d_head=base_d_head,
                d_head=width,
                rope=False,
            )
        except ConfigError as error:
            ours = {"d_model": "width", "d_head": "width", "n_layers": "depth"}
            name = ours.get(error.field, error.field)
            raise ConfigError(name, error.received, error.allowed) from None
        return cls(scheme, model, given, tokens)

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
        ends_branch: bool = False,
        base_fan_in: int | None = None,
    ) -> WeightNumbers:
        """Numbers of a weight of shape (fan_in, fan_out).

        Args:
            role: ``input``, ``hidden`` or ``output``.
            residual: whether it lies on a residual branch (learning-rate factor over depth).
            ends_branch: whether it is the last weight of its branch; with ``depth_scaled_init`` its
                init std is divided by √(2N) (GPT-2, Radford et al. 2019, §2.3).
            base_fan_in: its fan-in in the base model; by default fan_in·base_width/d_model.

        Raises:
            ConfigError: no rule covers the role, or the init of a unit-scaled scheme is to be
                scaled by depth, which its residual multipliers already do.
        """
        scheme = get(self.scheme)
        if self.model.depth_scaled_init and scheme.unit_scaled:
            raise ConfigError("depth_scaled_init", True, f"false under {self.scheme}")
        if role not in scheme.weights:
            raise ConfigError("role", role, " | ".join(scheme.weights))
        rule = scheme.weights[role]

        def in_base(fan: int) -> float:
            return fan * self.model.base_width / self.model.d_model

        symbols = self._symbols(
            fan_in=fan_in,
            fan_out=fan_out,
            base_fan_out=in_base(fan_out),
            base_fan_in=in_base(fan_in) if base_fan_in is None else float(base_fan_in),
        )
        adam, sgd, eps = rule.adam_lr, rule.sgd_lr, rule.adam_eps
        if residual:
            adam, sgd = times(adam, scheme.residual_adam_lr), times(sgd, scheme.residual_sgd_lr)
            eps = times(eps, scheme.residual_adam_eps)
        init_std = evaluate(rule.init_std, symbols)
        if self.model.depth_scaled_init and ends_branch:
            init_std = init_std / math.sqrt(2 * self.model.n_layers)
        powers = (rule.forward, rule.backward, rule.weight_grad, adam, sgd, eps)
        return WeightNumbers(init_std, *(evaluate(power, symbols) for power in powers))

    def attention(self, d_head: int, seq_len: int) -> tuple[Number, Number]:
        """(multiplier of q·k before the softmax, multiplier of the output).

        The scale model of the output takes α as the 1/d_head rule defines it, multiplier·d_head:
        α itself under that rule, α·√d_head under the 1/√d_head rule.
        """
        scheme, symbols = get(self.scheme), self._symbols(d_head=d_head)
        logit = evaluate(scheme.attention_logit, symbols)
        if not scheme.unit_scaled:
            return logit, 1.0
        alpha = evaluate(times(scheme.attention_logit, {"d_head": 1.0}), symbols)
        return logit, 1.0 / attention_out_std(d_head, seq_len, alpha)

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
        alpha, attn_ratio = self.hps["alpha_residual"], self.hps["alpha_residual_attn_ratio"]
        taus = residual_taus(n_layers, alpha, attn_ratio, self.model.tau_convention)
        numbers = []
        for tau in taus:
            add = (tau / (tau + 1.0)) ** 0.5
            numbers.append(ResidualNumbers(add, (1.0 / (tau + 1.0)) ** 0.5, 1.0, add))
        return numbers

    def loss(self, vocab_size: int) -> tuple[Number, Number]:
        """(α on the logits, scale of softmax − onehot in the gradient).

        Unit-scaled schemes use V/√(V−1) per token, neither averaged over tokens nor multiplied by
        α, which gives unit scale at initialization; the others use the true gradient of the mean,
        1/tokens.
        """
        if not get(self.scheme).unit_scaled:
            return 1.0, 1.0 / self.tokens
        return self.hps["alpha_loss_softmax"], vocab_size / math.sqrt(vocab_size - 1)
