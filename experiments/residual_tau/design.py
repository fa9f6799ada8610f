"""The study `residual_tau`: what the residual scheme's τ does, and whether η transfers over depth.

Three conventions of τ (the book's Theory, The residual scheme) and the depth rules of SP, μP and
CompleteP: the lemma that makes a unit-scaled network equal to a plain one, what attention, FFN and
embedding contribute to the output of the real model, its scale along the skip stream, and trained
losses over depth.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import pandas as pd

from umup.config import COUNT, POSITIVE, HPs, ModelConfig, OptimConfig, Range, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design, Point
from umup.lab.search import LRSearch, Result, next_lrs

from .lemma import CONVENTIONS
from .results import ARMS

TRAINED = tuple(arm for arm in ARMS if arm != "sp")


@dataclass(frozen=True)
class ResidualTau(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        alphas, ratios: α_residual and α_residual_attn_ratio of the lemma and of the walks.
        lemma_depths, lemma_seeds: N, and random networks at every setting.
        walk_depths, walk_arms, walk_width, walk_seeds: real models at initialization, random
            tokens; those of u-μP also at T = 1, where attention passes its value on and every
            branch has unit scale.
        grid_depth: N of the walks over ``alphas`` and ``ratios``.
        trained_depths, trained_seeds, trained_lr: walks after training at log2 η = trained_lr,
            for the three conventions.
        arms: what is trained: u-μP with τ derived | library | printed, mup, completep.
        depths: N of the trained models; base_depth: N at which μP and CompleteP equal SP.
        lr_umup, lr_mup: (low, high) log2 of the coarse grid of the u-μP arms and of the others.
        refine, window, seeds: see ``LRSearch``.
        ff_ratio: d_ff / d_model. warmup_ratio: share of the steps that warm up.
        unroll: layers unrolled in the scan over depth; 1 keeps the compile time flat over depth.
    """

    alphas: tuple[float, ...] = (0.25, 1.0, 4.0)
    ratios: tuple[float, ...] = (0.25, 1.0, 4.0)
    lemma_depths: tuple[int, ...] = (1, 4, 16)
    lemma_seeds: int = 2
    walk_depths: tuple[int, ...] = (2, 8)
    walk_arms: tuple[str, ...] = tuple(ARMS)
    walk_width: int = 64
    walk_seeds: int = 2
    grid_depth: int = 2
    trained_depths: tuple[int, ...] = ()
    trained_seeds: int = 1
    trained_lr: float = 0.0
    arms: tuple[str, ...] = TRAINED
    depths: tuple[int, ...] = (2, 8)
    d_model: int = 32
    d_head: int = 16
    ff_ratio: float = 2.75
    seq_len: int = 64
    batch_size: int = 8
    steps: int = 400
    warmup_ratio: float = 0.25
    weight_decay: float = 2.0**-13
    base_depth: int = 2
    dtype: str = "float32"
    unroll: int = 1
    lr_umup: tuple[float, ...] = (-1.0, 2.0)
    lr_mup: tuple[float, ...] = (-7.0, -4.0)
    refine: float = 1.0
    window: float = 1.0
    seeds: int = 2
    eval_batches: int = 16

    RANGES = {
        **Design.RANGES, "alphas": POSITIVE, "ratios": POSITIVE, "lemma_depths": COUNT,
        "lemma_seeds": COUNT, "walk_depths": COUNT, "walk_arms": tuple(ARMS), "walk_width": COUNT,
        "walk_seeds": COUNT, "grid_depth": COUNT, "trained_depths": COUNT, "trained_seeds": COUNT,
        "trained_lr": Range(-60, 60), "arms": TRAINED, "depths": COUNT, "d_model": COUNT,
        "d_head": COUNT, "ff_ratio": POSITIVE, "seq_len": COUNT, "batch_size": COUNT,
        "steps": COUNT, "warmup_ratio": Range(0.0, 1.0), "weight_decay": Range(0.0),
        "base_depth": COUNT, "unroll": Range(0), "refine": (0.25, 0.5, 1.0), "window": Range(0.0),
        "seeds": COUNT, "eval_batches": COUNT,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("arms", "depths", "alphas", "ratios", "lemma_depths", "walk_depths"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for name in ("lr_umup", "lr_mup"):
            if len(getattr(self, name)) != 2:
                raise ConfigError(name, getattr(self, name), "two numbers: [low, high] in log2 η")
            try:
                self._search(*getattr(self, name))
            except ConfigError as error:
                allowed = f"{error.field}: {error.allowed}"
                raise ConfigError(name, getattr(self, name), allowed) from None
        if self.walk_width % self.d_head:
            raise ConfigError("walk_width", self.walk_width, f"a multiple of d_head {self.d_head}")
        self._model("mup", self.depths[0], vocab_size=2)  # a bad shape is an error now

    def search(self, arm: str) -> LRSearch:
        """The line search of an arm at one depth."""
        lo, hi = self.lr_umup if ARMS[arm].scheme == "umup" else self.lr_mup
        return self._search(lo, hi)

    def _search(self, lo: float, hi: float) -> LRSearch:
        return LRSearch(lo, hi, self.refine, self.window, self.seeds)

    def points(self) -> list[Point]:
        """The lemma; walks at initialization; walks after training."""
        points = [
            Point("lemma", {"convention": c, "n_layers": n, "alphas": list(self.alphas),
                            "ratios": list(self.ratios), "seeds": self.lemma_seeds})
            for n in self.lemma_depths for c in CONVENTIONS
        ]  # fmt: skip
        points += [
            self._walk(arm, n, alpha, ratio, seq_len)
            for arm in self.walk_arms
            for seq_len in ((self.seq_len, 1) if ARMS[arm].scheme == "umup" else (self.seq_len,))
            for n in sorted({*self.walk_depths, self.grid_depth})
            for alpha, ratio in self._settings(arm, n)
        ]
        shape = {
            "d_model": self.d_model, "d_head": self.d_head, "ff_ratio": self.ff_ratio,
            "seq_len": self.seq_len, "batch_size": self.batch_size, "steps": self.steps,
            "warmup_ratio": self.warmup_ratio, "weight_decay": self.weight_decay,
            "unroll": self.unroll, "dtype": self.dtype,
        }  # fmt: skip
        points += [
            Point("trained", {"convention": c, "n_layers": n, **shape, "log2_lr": self.trained_lr,
                              "seeds": self.trained_seeds, "corpus": self.corpus,
                              "tokenizer": self.tokenizer})
            for n in self.trained_depths for c in CONVENTIONS
        ]  # fmt: skip
        return points

    def _settings(self, arm: str, n_layers: int) -> list[tuple[float, float]]:
        """The (α_residual, α_residual_attn_ratio) of the walks of an arm at a depth."""
        settings = [(1.0, 1.0)] if n_layers in self.walk_depths else []
        if n_layers == self.grid_depth and ARMS[arm].scheme == "umup":
            settings += [(a, 1.0) for a in self.alphas] + [(1.0, r) for r in self.ratios]
        return list(dict.fromkeys(settings))

    def _walk(self, arm: str, n_layers: int, alpha: float, ratio: float, seq_len: int) -> Point:
        scheme, convention = ARMS[arm].scheme, ARMS[arm].convention
        spec = {
            "scheme": scheme, "convention": convention, "n_layers": n_layers, "alpha": alpha,
            "ratio": ratio, "d_model": self.walk_width, "d_head": self.d_head,
            "ff_ratio": self.ff_ratio, "seq_len": seq_len,
            "batch_size": self.batch_size * self.seq_len // seq_len,  # as many tokens
            "base_depth": self.base_depth, "seeds": self.walk_seeds,
        }  # fmt: skip
        return Point("walk", spec)

    def _model(self, arm: str, n_layers: int, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            d_model=self.d_model, n_layers=n_layers, d_head=self.d_head,
            d_ff=round(self.d_model * self.ff_ratio), vocab_size=vocab_size, seq_len=self.seq_len,
            base_width=self.d_model, base_depth=self.base_depth, base_d_head=self.d_head,
            tau_convention=ARMS[arm].convention, dtype=self.dtype, unroll=self.unroll,
        )  # fmt: skip

    def run(
        self, arm: str, n_layers: int, log2_lr: float, seed: int, digest: str, vocab_size: int
    ) -> RunConfig:
        """The whole specification of one run."""
        return RunConfig(
            scheme=ARMS[arm].scheme,
            model=self._model(arm, n_layers, vocab_size),
            optim=OptimConfig(
                steps=self.steps, batch_size=self.batch_size,
                warmup_steps=round(self.steps * self.warmup_ratio),
            ),
            hps=HPs(eta=2.0**log2_lr, weight_decay=self.weight_decay),
            seed=seed, corpus=self.corpus, tokenizer=self.tokenizer, data_digest=digest,
            eval_batches=self.eval_batches,
        )  # fmt: skip

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next: a line search over η for every depth and arm, shallow first."""
        loss_of = dict(zip(runs["key"], runs["final_loss"])) if len(runs) else {}
        out = []
        for n_layers in self.depths:
            for arm in self.arms:
                search, results = self.search(arm), []
                for lr, seed in _candidates(search):
                    key = _key(self, arm, n_layers, lr, seed, dataset.digest, dataset.vocab_size)
                    if key in loss_of:
                        results.append(Result(lr, seed, loss_of[key]))
                todo = next_lrs(search, results)
                text = dataset.digest, dataset.vocab_size
                out += [self.run(arm, n_layers, lr, seed, *text) for lr, seed in todo]
        return out

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the middle of the arm's range: a plan without extensions."""
        lo, hi = self.lr_umup if run.scheme == "umup" else self.lr_mup
        return 1.0 + 0.1 * (math.log2(run.hps.eta) - (lo + hi) / 2) ** 2


def _candidates(search: LRSearch) -> list[tuple[float, int]]:
    """Every (log2 η, seed) the search could ever ask for."""
    lowest, highest = search.ends()
    n = int((highest - lowest) / search.refine) + 1
    return [(lowest + i * search.refine, seed) for i in range(n) for seed in range(search.seeds)]


@functools.lru_cache(maxsize=100_000)
def _key(
    design: ResidualTau, arm: str, n_layers: int, lr: float, seed: int, digest: str, vocab: int
) -> str:
    """The run's key; cached, since a plan asks for the same ones after every group."""
    return design.run(arm, n_layers, lr, seed, digest, vocab).key()


DESIGN = ResidualTau
