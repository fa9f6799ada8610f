"""Study: how q·k grows with the head size, and under which division optima do not move.

It has three parts. *Points* send vectors of known correlation through the attention layer at
initialization. *Probed runs* follow q·k, the cosine of q and k, and the entropy of attention
during training, at a fixed width and, where asked for, with a fixed number of heads. *Line
searches* over η and α_attn at several head sizes, at the fixed width, show how the optima move.

The two divisions are one family: α/√d is (α√d)/d. One curve of loss over α therefore serves both,
and ``results`` reads it in either unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

from umup.checked import Count, CountOrZero, Fraction, OneOf, PositiveOrZero, Range
from umup.config import ModelConfig, RunConfig
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Curve, Curves, Text
from umup.lab.design import Octaves, Point, Spacing
from umup.lab.search import LRSearch

from .results import PER_D, PER_ROOT

PROBED = (PER_D, PER_ROOT, "mup", "mup_sqrt_attention")


class Line(NamedTuple):
    """One line search: the hyperparameter ``hp`` (``eta`` or ``alpha``) at a head size."""

    hp: str
    scheme: str
    d_head: int


@dataclass(frozen=True)
class AttentionScale(Curves):
    """The flat parameters of the study, in addition to those of every study of curves."""

    width: Count = 32
    """d_model of the training runs, where n_heads is width / d_head; see ``heads``."""
    seq_len: int = 32
    steps: int = 100
    eval_batches: int = 8
    d_head: int = 16
    """With ``base_width``, where μP's logits equal SP's; base depth is that of the model."""
    schemes: tuple[Annotated[str, OneOf(*PROBED)], ...] = PROBED
    """Schemes probed at their default η and α_attn = 1, at every head size."""
    d_heads: tuple[Count, ...] = (4, 16)
    """Head sizes of the probed runs and of the searches over α_attn."""
    eta_d_heads: tuple[Count, ...] = ()
    """Head sizes of the searches over η."""
    heads: Count = 2
    """Number of heads of further probed runs, whose width is this times their head size."""
    heads_d_heads: tuple[Count, ...] = ()
    """Head sizes of these runs; empty: none."""
    probe_steps: tuple[CountOrZero, ...] = (0, 100)
    """Steps to probe; the step ``steps`` is the end."""
    log2_lr_umup: Octaves = 0.0
    """Default log2 η of the unit-scaled schemes."""
    log2_lr_mup: Octaves = -6.5
    """Default log2 η of the μP schemes."""
    eta: tuple[float, ...] = (-2.0, 2.0)
    """[low, high] in log2 of the coarse grid of η."""
    alpha: tuple[float, ...] = (-2.0, 4.0)
    """The same for α as in α·q·k/d."""
    refine: Spacing = 0.5
    """Refinement of the search over η, see ``LRSearch``."""
    window: PositiveOrZero = 1.0
    """Likewise."""
    alpha_refine: Spacing = 1.0
    """Refinement of the search over α, whose basin is several octaves wide."""
    alpha_window: PositiveOrZero = 2.0
    """Likewise."""
    extend: CountOrZero = 2
    """Seeds of both searches. The probed runs have all seeds."""
    layer_d_heads: tuple[Count, ...] = (16, 64)
    """Head sizes of the layer that is measured at initialization."""
    layer_width: Count = 64
    """Its width."""
    layer_seq_len: Annotated[int, Range(2)] = 16
    """Sequence length of this layer."""
    layer_batch: Count = 4
    """Number of sequences."""
    layer_seeds: Count = 2
    """Number of layers."""
    correlations: tuple[Fraction, ...] = (0.0, 1.0)
    """Correlations of the coordinates of one token's q and k in this layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schemes", "d_heads", "probe_steps"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for name in ("eta", "alpha"):
            self.search(name)
        if max(self.probe_steps) > self.steps:
            raise ConfigError("probe_steps", self.probe_steps, f"at most steps = {self.steps}")
        for d_head in (*self.d_heads, *self.eta_d_heads):
            self.decoder(d_head)  # heads that do not divide the width are an error now
        for d_head in self.heads_d_heads:
            self.decoder(d_head, width=self.heads * d_head)
            if self.heads * d_head == self.width and d_head not in self.d_heads:
                allowed = f"{d_head} in d_heads too: at that size the width is the study's"
                raise ConfigError("heads_d_heads", self.heads_d_heads, allowed)
        for d_head in self.layer_d_heads:
            layer_config(d_head, d_head, self.layer_width, self.layer_seq_len)

    def search(self, hp: str) -> LRSearch:
        """The line search over log2 of ``eta`` or ``alpha``."""
        near = {"eta": (self.refine, self.window), "alpha": (self.alpha_refine, self.alpha_window)}
        return self.grid(hp, *near[hp], self.seeds, self.extend)

    def lines(self) -> list[Line]:
        """Every line search: α under 1/d, which serves both divisions, and η under either."""
        alpha = [Line("alpha", PER_D, d_head) for d_head in self.d_heads]
        eta = [Line("eta", s, d_head) for d_head in self.eta_d_heads for s in (PER_D, PER_ROOT)]
        return alpha + eta

    def points(self) -> list[Point]:
        """The layer over head sizes and correlations; SP's and μP's logits at the base size."""
        wanted = [
            (PER_D, d_head, rho, seed)
            for d_head in self.layer_d_heads
            for rho in self.correlations
            for seed in range(self.layer_seeds)
        ]
        wanted += [(scheme, self.d_head, 0.0, 0) for scheme in ("sp", "mup")]
        shape = {
            "base_d_head": self.d_head,
            "width": self.layer_width,
            "seq_len": self.layer_seq_len,
            "batch_size": self.layer_batch,
        }
        return [
            Point("layer", {"scheme": s, "d_head": d, "correlation": rho, "seed": seed, **shape})
            for s, d, rho, seed in wanted
        ]

    def decoder(self, d_head: int, text: Text = NO_TEXT, width: int = 0) -> ModelConfig:
        """The model's shape at a head size, of the study's width unless told."""
        return self.model(width or self.width, text, d_head=d_head)

    def default(self, scheme: str) -> float:
        """log2 of the scheme's default η."""
        return self.log2_lr_umup if scheme.startswith("umup") else self.log2_lr_mup

    def fixed(self, text: Text) -> Iterator[RunConfig]:
        """The probed runs, equal head sizes side by side."""
        for d_head in self.d_heads:
            for scheme in self.schemes:
                for seed in range(self.seeds):
                    yield self._at(scheme, d_head, text, self.default(scheme), 0.0, seed)
        for d_head in self.heads_d_heads:  # where the width is the study's, the run is one of those
            for scheme in self.schemes:
                for seed in range(self.seeds):
                    at = (self.default(scheme), 0.0, seed, self.heads * d_head)
                    yield self._at(scheme, d_head, text, *at)

    def curves(self, text: Text) -> Iterator[Curve]:
        """Every line search."""
        for line in self.lines():
            yield Curve(self.search(line.hp), partial(self._on, line, text))

    def _on(self, line: Line, text: Text, x: float, seed: int) -> RunConfig:
        at = (x, 0.0) if line.hp == "eta" else (self.default(line.scheme), x)
        return self._at(line.scheme, line.d_head, text, *at, seed)

    def _at(
        self,
        scheme: str,
        d_head: int,
        text: Text,
        eta: float,
        alpha: float,
        seed: int,
        width: int = 0,
    ) -> RunConfig:
        """One run, of the study's width unless told; the run at the defaults is probed, whichever
        part requests it."""
        at_default = (eta, alpha) == (self.default(scheme), 0.0)
        probed = at_default and scheme in self.schemes and (d_head in self.d_heads or width > 0)
        return self.run(
            scheme,
            self.decoder(d_head, text, width),
            text,
            seed,
            probe_steps=self.probe_steps if probed else (),
            eta=eta,
            alpha_attn_softmax=alpha,
        )


def layer_config(d_head: int, base_d_head: int, width: int, seq_len: int) -> ModelConfig:
    """The model whose attention layer is measured at initialization."""
    return ModelConfig(
        d_model=width,
        n_layers=1,
        d_head=d_head,
        d_ff=width,
        vocab_size=2,
        seq_len=seq_len,
        base_width=width,
        base_depth=1,
        base_d_head=base_d_head,
    )


DESIGN = AttentionScale
