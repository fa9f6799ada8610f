"""The study ``embedding_lr``: how the embedding's learning rate scales, and what it explains.

Two kinds of line search. *Over η̂_emb* at one η, for u-μP and for μP at every width: a rule of the
embedding's learning rate only changes the unit of η̂_emb, so that one curve serves both rules of a
scheme, and ``results`` reads it in either unit. *Over η*, for arms that differ in the embedding's
learning rate, with more seeds at the best η of each, where their losses are compared.

One arm is μP with the η̂_emb that is best at the narrowest width. It waits for that curve.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd

from umup.checked import Count, OneOf, PositiveOrZero
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import Curve, Curves, Text, losses
from umup.lab.design import Octaves, Spacing
from umup.lab.search import LRSearch, best_lr

from .results import ARMS, CONSTANT, RULES, TUNED, offset


@dataclass(frozen=True)
class EmbeddingLR(Curves):
    """The flat parameters of the study, beside those of every study of curves."""

    widths: tuple[Count, ...] = (32, 64)
    """Of every curve, rising. ``CONSTANT`` has its curve over η at the largest alone, since it is
    u-μP itself at the narrowest."""
    d_head: int = 32
    steps: int = 1000
    eval_batches: int = 64
    log2_lr_umup: Octaves = 0.0
    """log2 η of u-μP's curves over η̂_emb, and the middle of its grid of η. It is u-μP's best
    measured η with HPs at default in ``lr_transfer`` (profile cpu): at 500 and 2000 steps and
    widths 32 to 256, but for 0.5 at width 64 and 500 steps."""
    log2_lr_mup: Octaves = -6.5
    """The same of μP, but for −6 at width 64 and 500 steps; SP's best at width 32, where it is
    μP."""
    emb_umup: tuple[float, ...] = (-2.0, 2.0)
    """[low, high] log2 of the coarse grid of u-μP's η̂_emb."""
    emb_mup: tuple[float, ...] = (1.0, 5.0)
    """The same of μP. At 4 its embedding has u-μP's learning rate at width 32."""
    emb_refine: Spacing = 1.0
    """Of the searches over η̂_emb, see ``LRSearch``. In a basin of several octaves, three seeds an
    octave to each side place the optimum as well as half octaves do, which take half as many runs
    again."""
    emb_window: PositiveOrZero = 1.0
    """Likewise; ``seeds`` are run in it."""
    arms: tuple[Annotated[str, OneOf(*ARMS)], ...] = tuple(ARMS)
    """Of the curves over η."""
    reach: Count = 1
    """Octaves of η to either side of the middle in the coarse grid of these."""
    refine: Spacing = 0.5
    """Of these, see ``LRSearch``; they have one seed."""
    window: PositiveOrZero = 0.5
    """Likewise."""
    pairs: Count = 6
    """Seeds at the best η of every arm and width: they decide."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise ConfigError("widths", self.widths, "one entry or more, rising")
        for width in self.widths:
            self.model(width)  # heads that do not divide are an error now
        for scheme in ("umup", "mup"):
            self.emb_search(scheme)
            try:
                self.eta_search(scheme)
            except ConfigError as error:
                name = f"log2_lr_{scheme}"
                raise ConfigError(name, getattr(self, name), error.allowed) from None
        if TUNED in self.arms and "mup" not in self.arms:
            raise ConfigError("arms", self.arms, f"mup beside {TUNED}")

    def middle(self, scheme: str) -> float:
        """log2 η at which a scheme's curves over η̂_emb are taken."""
        return self.log2_lr_umup if scheme.startswith("umup") else self.log2_lr_mup

    def emb_search(self, scheme: str) -> LRSearch:
        """The line search over η̂_emb of u-μP or of μP."""
        return self.grid(f"emb_{scheme}", self.emb_refine, self.emb_window, self.seeds)

    def eta_search(self, scheme: str) -> LRSearch:
        """The line search over η of a scheme, with one seed."""
        at = self.middle(scheme)
        return LRSearch(at - self.reach, at + self.reach, self.refine, self.window, seeds=1)

    def at(
        self, scheme: str, d_model: int, text: Text, seed: int, log2_eta: float, log2_emb: float
    ) -> RunConfig:
        """One run."""
        model = self.model(d_model, text)
        return self.run(scheme, model, text, seed, eta=log2_eta, eta_emb=log2_emb)

    def fixed(self, text: Text) -> Iterator[RunConfig]:
        """Two runs for every rule that is read off another's curve: one learning rate, two units.

        At the second of three widths or more, since ratios to the base width are 1 at the
        narrowest; at that one where a second is the most expensive.
        """
        width = self.widths[1 if len(self.widths) > 2 else 0]
        for rule, scheme in RULES.items():
            if rule == scheme:
                continue
            middle = sum(getattr(self, f"emb_{scheme}")) / 2
            aside = offset(rule, width, self.base_width)
            for name, x in ((rule, middle - aside), (scheme, middle)):
                yield self.at(name, width, text, 0, self.middle(scheme), x)

    def curves(self, text: Text) -> Iterator[Curve]:
        """Those over η̂_emb, and those over η that wait for nothing; the narrow first."""
        for width in self.widths:
            for scheme in dict.fromkeys(RULES.values()):
                yield _over_emb(self, text, scheme, width)
            for arm in self._arms(width):
                if arm != TUNED:
                    yield _over_eta(self, text, arm, width, self._default(arm))

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next: curves, the arm that waits for one, and seeds where arms meet."""
        text, loss_of = Text.of(dataset), losses(runs)
        wanted = super().pending(runs, dataset)
        tuned = self.tuned(text, loss_of)
        for width in self.widths:
            for arm in self._arms(width):
                emb = tuned if arm == TUNED else self._default(arm)
                if emb is not None:
                    wanted += self._deciding(_over_eta(self, text, arm, width, emb), loss_of)
        return list(dict.fromkeys(wanted))

    def tuned(self, text: Text, loss_of: Mapping[str, float]) -> float | None:
        """log2 of μP's best η̂_emb at the narrowest width; None until its search is done."""
        curve = _over_emb(self, text, "mup", self.widths[0])
        return None if curve.missing(loss_of) else best_lr(curve.results(loss_of))

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the middle of the grids of η and of η̂_emb."""
        scheme = RULES.get(run.scheme, "mup")
        ends = getattr(self, f"emb_{scheme}")
        off = math.log2(run.hps.eta_emb) - sum(ends) / 2
        return 1.0 + 0.1 * (math.log2(run.hps.eta) - self.middle(scheme)) ** 2 + 0.02 * off**2

    def _arms(self, width: int) -> list[str]:
        last = width == self.widths[-1]
        return [arm for arm in self.arms if arm != CONSTANT or last]

    def _default(self, arm: str) -> float:
        """log2 η̂_emb of an arm but ``TUNED``: 0, or what makes it u-μP at the narrowest width."""
        return -offset(CONSTANT, self.widths[0], self.base_width) if arm == CONSTANT else 0.0

    def _deciding(self, curve: Curve, loss_of: Mapping[str, float]) -> list[RunConfig]:
        """The next runs of a curve over η; once it is done, the other seeds at its best η."""
        if todo := curve.missing(loss_of):
            return todo
        best = best_lr(curve.results(loss_of))
        seeds = range(self.pairs) if best is not None else ()
        return [curve.run(best, s) for s in seeds if curve.key(best, s) not in loss_of]


# A design asks for the same curves after every run that finishes.
@functools.lru_cache(maxsize=256)
def _over_emb(design: EmbeddingLR, text: Text, scheme: str, width: int) -> Curve:
    """Loss over log2 η̂_emb of u-μP or of μP at its one η."""

    def run(x: float, seed: int) -> RunConfig:
        return design.at(scheme, width, text, seed, design.middle(scheme), x)

    return Curve(design.emb_search(scheme), run)


@functools.lru_cache(maxsize=256)
def _over_eta(design: EmbeddingLR, text: Text, arm: str, width: int, log2_emb: float) -> Curve:
    """Loss over log2 η of an arm."""
    scheme = ARMS[arm].scheme

    def run(x: float, seed: int) -> RunConfig:
        return design.at(scheme, width, text, seed, x, log2_emb)

    return Curve(design.eta_search(scheme), run)


DESIGN = EmbeddingLR
