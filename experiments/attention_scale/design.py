"""Study: how q·k grows with the head size, and which division keeps its optima still.

Three parts. *Points* send vectors of known correlation through the attention layer at
initialization. *Probed runs* watch q·k, the cosine of q and k, and the entropy of the attention
over training. *Line searches* over η and α_attn at several head sizes find how the optima move.

The two divisions are one family: α/√d is (α√d)/d. One curve of loss over α therefore serves both,
and ``attention_scale_tables`` reads it in either unit.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from umup.config import (
    COUNT,
    FRACTION,
    POSITIVE,
    HPs,
    ModelConfig,
    OptimConfig,
    Range,
    RunConfig,
)
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design, Point
from umup.lab.search import LRSearch, Result, next_lrs

from .results import PER_D, PER_ROOT

PROBED = (PER_D, PER_ROOT, "mup", "mup_sqrt_attention")


class Line(NamedTuple):
    """One line search: the hyperparameter ``hp`` (``eta`` or ``alpha``) at a head size."""

    hp: str
    scheme: str
    d_head: int


@dataclass(frozen=True)
class AttentionScale(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        width, n_layers, ff_ratio, seq_len, batch_size, steps, warmup_ratio, weight_decay, dtype,
            unroll, eval_batches: of every training run; n_heads is width / d_head.
        base_width, base_d_head: where μP's logits equal SP's; base depth is the model's own.
        schemes: probed at their default η and α_attn = 1, at every head size.
        d_heads: head sizes of the probed runs and of the searches over α_attn.
        eta_d_heads: head sizes of the searches over η.
        probe_steps: when to look; the step ``steps`` is the end.
        log2_lr_umup, log2_lr_mup: default log2 η of the unit-scaled and the μP schemes.
        eta, alpha: (low, high) log2 of the coarse grids, α as it stands in α·q·k/d.
        refine, window: see ``search.LRSearch``, for η. alpha_refine, alpha_window: the same for α,
            whose basin is several octaves wide.
        seeds, extend: of both searches; the probed runs have all seeds.
        layer_d_heads, layer_width, layer_seq_len, layer_batch, layer_seeds: of the layer at
            initialization.
        correlations: of the coordinates of q and k of one token, there.
    """

    width: int = 32
    n_layers: int = 2
    ff_ratio: float = 2.75
    seq_len: int = 32
    batch_size: int = 8
    steps: int = 100
    warmup_ratio: float = 0.25
    weight_decay: float = 2.0**-13
    dtype: str = "float32"
    unroll: int = 0
    eval_batches: int = 8
    base_width: int = 32
    base_d_head: int = 16
    schemes: tuple[str, ...] = PROBED
    d_heads: tuple[int, ...] = (4, 16)
    eta_d_heads: tuple[int, ...] = ()
    probe_steps: tuple[int, ...] = (0, 100)
    log2_lr_umup: float = 0.0
    log2_lr_mup: float = -6.5
    eta: tuple[float, ...] = (-2.0, 2.0)
    alpha: tuple[float, ...] = (-2.0, 4.0)
    refine: float = 0.5
    window: float = 1.0
    alpha_refine: float = 1.0
    alpha_window: float = 2.0
    seeds: int = 3
    extend: int = 2
    layer_d_heads: tuple[int, ...] = (16, 64)
    layer_width: int = 64
    layer_seq_len: int = 16
    layer_batch: int = 4
    layer_seeds: int = 2
    correlations: tuple[float, ...] = (0.0, 1.0)

    RANGES = {
        **Design.RANGES, "width": COUNT, "n_layers": COUNT, "ff_ratio": POSITIVE,
        "seq_len": COUNT, "batch_size": COUNT, "steps": COUNT, "warmup_ratio": FRACTION,
        "weight_decay": Range(0.0), "eval_batches": COUNT, "base_width": COUNT,
        "base_d_head": COUNT, "schemes": PROBED, "d_heads": COUNT, "eta_d_heads": COUNT,
        "probe_steps": Range(0), "log2_lr_umup": Range(-60, 60), "log2_lr_mup": Range(-60, 60),
        "refine": (0.25, 0.5, 1.0), "window": Range(0.0), "alpha_refine": (0.25, 0.5, 1.0),
        "alpha_window": Range(0.0), "seeds": COUNT, "extend": Range(0),
        "layer_d_heads": COUNT, "layer_width": COUNT, "layer_seq_len": Range(2),
        "layer_batch": COUNT, "layer_seeds": COUNT, "correlations": FRACTION,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schemes", "d_heads", "probe_steps"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for name in ("eta", "alpha"):
            if len(getattr(self, name)) != 2:
                raise ConfigError(name, getattr(self, name), "two numbers: [low, high] in log2")
            try:
                self.search(name)
            except ConfigError as error:
                allowed = f"{error.field}: {error.allowed}"
                raise ConfigError(name, getattr(self, name), allowed) from None
        if max(self.probe_steps) > self.steps:
            raise ConfigError("probe_steps", self.probe_steps, f"at most steps = {self.steps}")
        for d_head in (*self.d_heads, *self.eta_d_heads):
            self.model(d_head, vocab_size=2)  # heads that do not divide the width are an error now
        for d_head in self.layer_d_heads:
            layer_config(d_head, d_head, self.layer_width, self.layer_seq_len)

    def search(self, hp: str) -> LRSearch:
        """The line search over log2 of ``eta`` or ``alpha``."""
        lo, hi = getattr(self, hp)
        near = {"eta": (self.refine, self.window), "alpha": (self.alpha_refine, self.alpha_window)}
        return LRSearch(lo, hi, *near[hp], self.seeds, self.extend)

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
        wanted += [(scheme, self.base_d_head, 0.0, 0) for scheme in ("sp", "mup")]
        return [
            Point("layer", {
                "scheme": scheme, "d_head": d_head, "base_d_head": self.base_d_head,
                "width": self.layer_width, "seq_len": self.layer_seq_len,
                "batch_size": self.layer_batch, "correlation": rho, "seed": seed,
            })
            for scheme, d_head, rho, seed in wanted
        ]  # fmt: skip

    def model(self, d_head: int, vocab_size: int) -> ModelConfig:
        """The model's shape at a head size."""
        return ModelConfig(
            d_model=self.width, n_layers=self.n_layers, d_head=d_head,
            d_ff=round(self.width * self.ff_ratio), vocab_size=vocab_size, seq_len=self.seq_len,
            base_width=self.base_width, base_depth=self.n_layers, base_d_head=self.base_d_head,
            dtype=self.dtype, unroll=self.unroll,
        )  # fmt: skip

    def default(self, scheme: str) -> float:
        """log2 of the scheme's default η."""
        return self.log2_lr_umup if scheme.startswith("umup") else self.log2_lr_mup

    def probed(self, dataset: Dataset) -> list[RunConfig]:
        """The probed runs, equal head sizes side by side."""
        return [
            _run(self, scheme, d_head, self.default(scheme), 0.0, seed, *_text(dataset))
            for d_head in self.d_heads
            for scheme in self.schemes
            for seed in range(self.seeds)
        ]

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """What is wanted whatever the results: the probed runs and the coarse grids."""
        runs = self.probed(dataset)
        for line in self.lines():
            runs += [run for _, _, run in self._candidates(line, dataset, coarse=True)]
        return list(dict.fromkeys(runs))

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next, given the finished ones (rows of this profile)."""
        loss_of = dict(zip(runs["key"], runs["final_loss"], strict=True)) if len(runs) else {}
        wanted = [run for run in self.probed(dataset) if _key(run) not in loss_of]
        for line in self.lines():
            candidates = {(x, s): run for x, s, run in self._candidates(line, dataset)}
            keys = {at: _key(run) for at, run in candidates.items()}
            found = [Result(*at, loss_of[key]) for at, key in keys.items() if key in loss_of]
            wanted += [candidates[at] for at in next_lrs(self.search(line.hp), found)]
        return list(dict.fromkeys(wanted))

    def _candidates(
        self, line: Line, dataset: Dataset, coarse: bool = False
    ) -> list[tuple[float, int, RunConfig]]:
        """Every (log2 value, seed, run) that the search could ask for; its coarse grid alone."""
        search = self.search(line.hp)
        (lo, hi), spacing = search.ends(), search.refine
        if coarse:
            lo, hi, spacing = search.lo, search.hi, 1.0
        default = self.default(line.scheme)
        out = []
        for i in range(int((hi - lo) / spacing) + 1):
            x = lo + i * spacing
            at = (x, 0.0) if line.hp == "eta" else (default, x)
            for seed in range(1 if coarse else search.seeds):
                run = _run(self, line.scheme, line.d_head, *at, seed, *_text(dataset))
                out.append((x, seed, run))
        return out

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola in both hyperparameters, its minimum at the defaults."""
        eta = math.log2(run.hps.eta) - self.default(run.scheme)
        return 1.0 + 0.1 * (eta**2 + math.log2(run.hps.alpha_attn_softmax) ** 2)


def _text(dataset: Dataset) -> tuple[str, int]:
    return dataset.digest, dataset.vocab_size


@functools.lru_cache(maxsize=20_000)  # a plan asks for the same ones after every run
def _run(
    design: AttentionScale, scheme: str, d_head: int, log2_lr: float, log2_alpha: float,
    seed: int, data_digest: str, vocab_size: int,
) -> RunConfig:  # fmt: skip
    """One run; the one at the defaults is probed, whichever part asks for it."""
    at_default = (log2_lr, log2_alpha) == (design.default(scheme), 0.0)
    probed = at_default and scheme in design.schemes and d_head in design.d_heads
    return RunConfig(
        scheme=scheme,
        model=design.model(d_head, vocab_size),
        optim=OptimConfig(
            steps=design.steps, batch_size=design.batch_size,
            warmup_steps=round(design.steps * design.warmup_ratio),
        ),
        hps=HPs(
            eta=2.0**log2_lr, alpha_attn_softmax=2.0**log2_alpha, weight_decay=design.weight_decay
        ),
        seed=seed, corpus=design.corpus, tokenizer=design.tokenizer, data_digest=data_digest,
        eval_batches=design.eval_batches, probe_steps=design.probe_steps if probed else (),
    )  # fmt: skip


_key = functools.lru_cache(maxsize=20_000)(RunConfig.key)


def layer_config(d_head: int, base_d_head: int, width: int, seq_len: int) -> ModelConfig:
    """The model whose attention layer is measured at initialization."""
    return ModelConfig(
        d_model=width, n_layers=1, d_head=d_head, d_ff=width, vocab_size=2, seq_len=seq_len,
        base_width=width, base_depth=1, base_d_head=base_d_head,
    )  # fmt: skip


DESIGN = AttentionScale
