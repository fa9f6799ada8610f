"""The study ``decay_transfer``: does weight decay decide whether η transfers over width?

A line search over η for every arm of ``results.ARMS`` and every width, the arms that decide most
first: a run that is stopped has them. The searches go on past their first grids where an end is
best, as for SP at larger widths and where coupled decay moves μP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import pandas as pd

from umup.checked import Count, Fraction, OneOf, Positive, PositiveOrZero
from umup.config import OptimConfig, RunConfig
from umup.errors import ConfigError
from umup.lab.curves import Curve, Curves, Text
from umup.lab.design import Spacing
from umup.lab.search import LRSearch

from .results import ARMS, LONG, STRONG, Arm


@dataclass(frozen=True)
class DecayTransfer(Curves):
    """The flat parameters of the study, beside those of every study of curves."""

    widths: tuple[Count, ...] = (32, 128)
    """Of every arm, rising. The ends decide."""
    d_head: int = 32
    steps: int = 1000
    eval_batches: int = 64
    arms: tuple[Annotated[str, OneOf(*ARMS)], ...] = tuple(ARMS)
    """In the order in which they run."""
    weight_decay: PositiveOrZero = 2.0**-10
    """λ of mild independent decay: over 1000 steps about one time constant."""
    lambda_strong: Positive = 2.0**-5
    """λ of strong independent decay, about η·λ of coupled decay at the base width's best η."""
    lambda_coupled: Positive = 3.0
    """λ of coupled decay under SP and μP. At their best η of 2^-6.5 hidden weights of the base
    width lose 3 % per step."""
    lambda_coupled_umup: Positive = 0.375
    """The same under u-μP. At its best η of 1 and the base width hidden weights lose as much, since
    their learning rate there is 1/√(32·4) of η, with 4 branches."""
    warmup_ratio: Fraction = 0.025
    """Share of the steps that warm up, of most arms."""
    warmup_long: Fraction = 0.25
    """The same of those with a long warm-up."""
    lr_sp: tuple[float, ...] = (-10.0, -6.0)
    """[low, high] in log2 η of SP's coarse grid, at every width."""
    lr_mup: tuple[float, ...] = (-9.0, -5.0)
    """The same of μP."""
    lr_umup: tuple[float, ...] = (-2.0, 2.0)
    """The same of u-μP."""
    refine: Spacing = 0.5
    """See ``LRSearch``."""
    window: PositiveOrZero = 1.0
    """See ``LRSearch``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise ConfigError("widths", self.widths, "one entry or more, rising")
        if not self.arms:
            raise ConfigError("arms", self.arms, "at least one entry")
        # Records tell the arms apart by these bounds.
        share = {n: self._warmup(n) / self.steps for n in ("warmup_ratio", "warmup_long")}
        for name, fits, allowed in (
            ("weight_decay", self.weight_decay < STRONG, f"below {STRONG:g}"),
            ("lambda_strong", self.lambda_strong >= STRONG, f"at least {STRONG:g}"),
            ("warmup_ratio", share["warmup_ratio"] < LONG, f"below {LONG:g}, in whole steps"),
            ("warmup_long", share["warmup_long"] >= LONG, f"at least {LONG:g}, in whole steps"),
        ):
            if not fits:
                raise ConfigError(name, getattr(self, name), allowed)
        for scheme in ("sp", "mup", "umup"):
            self.search(scheme)
        for width in self.widths:
            self.model(width)  # heads that do not divide are an error now

    def search(self, scheme: str) -> LRSearch:
        """The line search of a scheme."""
        return self.grid(f"lr_{scheme}", self.refine, self.window, self.seeds)

    def _warmup(self, name: str) -> int:
        return round(self.steps * getattr(self, name))

    def arm_optim(self, arm: Arm, width: int) -> OptimConfig:
        """The optimizer of an arm.

        At the base width the factor of every rule is 1: the arms share the runs without one.
        """
        rule = arm.rule if width != self.base_width else "constant"
        warmup = self._warmup(arm.warmup)
        return self.optim(decay=arm.decay, decay_rule=rule, warmup_steps=warmup)

    def curves(self, text: Text) -> Iterator[Curve]:
        """A curve for every arm and width, arm by arm."""
        for name in self.arms:
            for width in self.widths:
                yield self._curve(ARMS[name], width, text)

    def _curve(self, arm: Arm, width: int, text: Text) -> Curve:
        model, optim = self.model(width, text), self.arm_optim(arm, width)
        decay = getattr(self, arm.strength)

        def run(x: float, seed: int) -> RunConfig:
            plain = self.run(arm.scheme, model, text, seed, optim, eta=x)
            return replace(plain, hps=replace(plain.hps, weight_decay=decay))

        return Curve(self.search(arm.scheme), run)

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the middle of the scheme's grid."""
        middle = sum(getattr(self, f"lr_{run.scheme}")) / 2
        return 1.0 + 0.1 * (math.log2(run.hps.eta) - middle) ** 2


DESIGN = DecayTransfer
