"""The study `residual_tau`: what the residual scheme's τ does, and whether η transfers over depth.

Three conventions of τ (the book's Theory, section 6) and the depth rules of SP, μP and
CompleteP: the lemma that makes a unit-scaled network equal to a plain one, what attention, FFN and
embedding contribute to the output of the real model, its scale along the skip stream, and trained
losses over depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from umup.checked import Count, CountOrZero, OneOf, Positive, Range
from umup.config import ModelConfig
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Curve, Curves, Text
from umup.lab.design import Octaves, Point, Spacing
from umup.lab.search import LRSearch

from .lemma import CONVENTIONS
from .results import ARMS

TRAINED = tuple(arm for arm in ARMS if arm != "sp")


@dataclass(frozen=True)
class ResidualTau(Curves):
    """The flat parameters of the study, in addition to those of every study of curves."""

    alphas: tuple[Positive, ...] = (0.25, 1.0, 4.0)
    """Values of α_residual for the lemma and the walks."""
    ratios: tuple[Positive, ...] = (0.25, 1.0, 4.0)
    """α_residual_attn_ratio, likewise."""
    lemma_depths: tuple[Count, ...] = (1, 4, 16)
    """N of the lemma's networks."""
    lemma_seeds: Count = 2
    """Number of random networks at every setting."""
    walk_depths: tuple[Count, ...] = (2, 8)
    """N of the walks: real models at initialization, random tokens; those of u-μP also at T = 1,
    where attention passes its value on and every branch has unit scale."""
    walk_arms: tuple[Annotated[str, OneOf(*ARMS)], ...] = tuple(ARMS)
    """What walks."""
    walk_width: Count = 64
    """Width of the models that are walked."""
    walk_seeds: Count = 2
    """Number of models per walk."""
    grid_depth: Count = 2
    """N of the walks over ``alphas`` and ``ratios``."""
    trained_depths: tuple[Count, ...] = ()
    """N of the walks after training, for the three conventions."""
    trained_seeds: Count = 1
    """Of those."""
    trained_lr: Octaves = 0.0
    """Their log2 η."""
    arms: tuple[Annotated[str, OneOf(*TRAINED)], ...] = TRAINED
    """What is trained: u-μP with τ derived, library or printed, μP, CompleteP."""
    depths: tuple[Count, ...] = (2, 8)
    """N of the trained models."""
    d_model: Count = 32
    """Their width."""
    n_layers: int = 2
    """The N at which μP and CompleteP equal SP."""
    unroll: CountOrZero = 1
    """Layers per loop body of the scan over depth; 1 keeps the compile time flat over depth."""
    lr_umup: tuple[float, ...] = (-1.0, 2.0)
    """[low, high] in log2 η of the u-μP arms' coarse grid."""
    lr_mup: tuple[float, ...] = (-7.0, -4.0)
    """The same of the other arms."""
    refine: Spacing = 1.0
    """See ``LRSearch``."""
    window: Annotated[float, Range(0.0)] = 1.0
    """See ``LRSearch``."""
    seeds: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("arms", "depths", "alphas", "ratios", "lemma_depths", "walk_depths"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        self.search(TRAINED[0])
        self.search("mup")
        if self.walk_width % self.d_head:
            raise ConfigError("walk_width", self.walk_width, f"a multiple of d_head {self.d_head}")
        self._decoder("mup", self.depths[0])  # a bad shape is an error now

    def search(self, arm: str) -> LRSearch:
        """The line search of an arm at one depth."""
        name = "lr_umup" if ARMS[arm].scheme == "umup" else "lr_mup"
        return self.grid(name, self.refine, self.window, self.seeds)

    def points(self) -> list[Point]:
        """The lemma; walks at initialization; walks after training."""
        lemma = self.pick("alphas", "ratios") | {"seeds": self.lemma_seeds}
        points = [
            Point("lemma", {"convention": convention, "n_layers": n, **lemma})
            for n in self.lemma_depths
            for convention in CONVENTIONS
        ]
        points += [
            self._walk(arm, n, alpha, ratio, seq_len)
            for arm in self.walk_arms
            for seq_len in ((self.seq_len, 1) if ARMS[arm].scheme == "umup" else (self.seq_len,))
            for n in sorted({*self.walk_depths, self.grid_depth})
            for alpha, ratio in self._settings(arm, n)
        ]
        shape = self.pick("d_model", "d_head", "ff_ratio", "seq_len", "batch_size", "steps")
        shape |= self.pick("warmup_ratio", "weight_decay", "unroll", "dtype")
        shape |= self.pick("corpus", "tokenizer")
        shape |= {"log2_lr": self.trained_lr, "seeds": self.trained_seeds}
        points += [
            Point("trained", {"convention": convention, "n_layers": n, **shape})
            for n in self.trained_depths
            for convention in CONVENTIONS
        ]
        return points

    def _settings(self, arm: str, n_layers: int) -> list[tuple[float, float]]:
        """The (α_residual, α_residual_attn_ratio) of the walks of an arm at a depth."""
        settings = [(1.0, 1.0)] if n_layers in self.walk_depths else []
        if n_layers == self.grid_depth and ARMS[arm].scheme == "umup":
            settings += [(a, 1.0) for a in self.alphas] + [(1.0, r) for r in self.ratios]
        return list(dict.fromkeys(settings))

    def _walk(self, arm: str, n_layers: int, alpha: float, ratio: float, seq_len: int) -> Point:
        spec = {
            "scheme": ARMS[arm].scheme,
            "convention": ARMS[arm].convention,
            "n_layers": n_layers,
            "alpha": alpha,
            "ratio": ratio,
            "d_model": self.walk_width,
            "seq_len": seq_len,
            "batch_size": self.batch_size * self.seq_len // seq_len,  # as many tokens
            "base_depth": self.n_layers,
            "seeds": self.walk_seeds,
        }
        return Point("walk", spec | self.pick("d_head", "ff_ratio"))

    def _decoder(self, arm: str, n_layers: int, text: Text = NO_TEXT) -> ModelConfig:
        return self.model(
            self.d_model,
            text,
            n_layers=n_layers,
            tau_convention=ARMS[arm].convention,
        )

    def curves(self, text: Text) -> Iterator[Curve]:
        """A line search over η for every depth and arm, shallow first."""
        for n_layers in self.depths:
            for arm in self.arms:
                model = self._decoder(arm, n_layers, text)
                yield self.curve(self.search(arm), ARMS[arm].scheme, model, text)


DESIGN = ResidualTau
