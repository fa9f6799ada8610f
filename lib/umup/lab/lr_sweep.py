"""Sweeps of the learning rate, over widths and horizons or along another field of the run."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import pandas as pd

from umup.checked import Config, Count, CountOrZero, OneOf, PositiveOrZero
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Curve, Curves, Text, Trained, losses
from umup.lab.design import Spacing
from umup.lab.search import LRSearch, around, best_lr, next_lrs, predicted_optimum

Scheme = Annotated[str, OneOf("sp", "mup", "umup")]
Ends = tuple[float, ...]


@dataclass(frozen=True)
class Grids(Trained):
    """Parameters of a line search over η for each scheme."""

    schemes: tuple[Scheme, ...] = ("sp", "mup", "umup")
    """Schemes of the curves."""
    steps: int = 2000
    lr_sp: Ends = (-12.0, -4.0)
    """[low, high] in log2 η of SP's coarse grid."""
    lr_mup: Ends = (-11.0, -4.0)
    """The same of μP."""
    lr_umup: Ends = (-4.0, 3.0)
    """The same of u-μP."""
    refine: Spacing = 0.5
    """See ``LRSearch``."""
    window: PositiveOrZero = 1.0
    """See ``LRSearch``."""
    eval_batches: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schemes:
            raise ConfigError("schemes", self.schemes, "at least one entry")
        for scheme in ("sp", "mup", "umup"):
            self.search(scheme)

    def search(self, scheme: str) -> LRSearch:
        """The full line search of a scheme."""
        return self.grid(f"lr_{scheme}", self.refine, self.window, self.seeds)


@dataclass(frozen=True)
class Arm(Config):
    """One curve of loss against η, of a scheme at a width and a horizon."""

    scheme: str
    d_model: int
    steps: int


@dataclass(frozen=True)
class LRSweep(Grids):
    """The flat parameters of a sweep over widths, added to those of every study of decoders."""

    widths: tuple[Count, ...] = (32, 64)
    """Widths of the main arms, one arm for each scheme and width."""
    full_grid_width: Count = 128
    """Largest width whose grid spans the scheme's whole range; grids of larger widths are centred
    on the optimum predicted from smaller ones."""
    d_head: int = 32
    short_steps: CountOrZero = 0
    """A shorter horizon (0: none)."""
    short_widths: tuple[Count, ...] = ()
    """Widths trained to the shorter horizon."""
    long_steps: CountOrZero = 0
    """A longer horizon (0: none)."""
    long_widths: tuple[Count, ...] = ()
    """Widths trained to the longer horizon."""
    deciding: tuple[Scheme, ...] = ()
    """Schemes whose main arms have further seeds at three points, once their search is done."""
    deciding_seeds: CountOrZero = 0
    """Seeds in all at these points (0: the search's own)."""
    deciding_reach: Spacing = 1.0
    """Octaves from the best η, which is one of the points, to the other two. The further away, the
    more a run says of where the minimum lies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ConfigError("widths", self.widths, "at least one entry")
        # Elsewhere the search has not been, and runs there would be taken for its own.
        if self.deciding_seeds and not self.refine <= self.deciding_reach <= self.window:
            allowed = f"from refine = {self.refine:g} to window = {self.window:g}"
            raise ConfigError("deciding_reach", self.deciding_reach, allowed)
        for width in (*self.widths, *self.short_widths, *self.long_widths):
            self.model(width)  # heads that do not divide are an error now
        # An optimum is predicted from narrower widths of the same horizon: without a width that has
        # a full grid, the rest of the horizon would wait for ever.
        for steps, widths in self._horizons():
            if steps and widths and min(widths) > self.full_grid_width:
                allowed = f"at least {min(widths)}, the narrowest width of {steps} steps"
                raise ConfigError("full_grid_width", self.full_grid_width, allowed)

    def _horizons(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        return (
            (self.steps, self.widths),
            (self.short_steps, self.short_widths),
            (self.long_steps, self.long_widths),
        )

    def arms(self) -> list[Arm]:
        """All arms: the main horizon's first, and cheap ones before expensive ones."""
        horizons = [(steps, widths) for steps, widths in self._horizons() if steps]
        arms = {
            Arm(scheme, width, steps)
            for steps, widths in horizons
            for width in widths
            for scheme in self.schemes
        }
        return sorted(
            arms, key=lambda arm: (arm.steps != self.steps, arm.d_model**2 * arm.steps, arm.scheme)
        )

    def at(self, arm: Arm, text: Text, log2_lr: float, seed: int) -> RunConfig:
        """The run of an arm at one η and seed."""
        model = self.model(arm.d_model, text)
        return self.run(arm.scheme, model, text, seed, self.optim(steps=arm.steps), eta=log2_lr)

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next, given the finished ones (rows of this profile)."""
        loss_of = losses(runs)
        optima: dict[tuple[str, int], dict[int, float]] = {}
        out: list[RunConfig] = []
        deciding: list[RunConfig] = []
        unfinished: set[tuple[str, int]] = set()
        # Narrow before wide at each horizon.
        for arm, curve in _curves(self, Text.of(dataset)).items():
            known = optima.setdefault((arm.scheme, arm.steps), {})
            search = curve.search
            if arm.d_model > self.full_grid_width:
                center = predicted_optimum(known, arm.d_model)
                if center is None or (arm.scheme, arm.steps) in unfinished:
                    continue  # waits for the narrower widths
                search = around(center, search)
            results = curve.results(loss_of, search)
            if todo := next_lrs(search, results):
                unfinished.add((arm.scheme, arm.steps))
            elif (best := best_lr(results)) is not None:
                known[arm.d_model] = best
                if arm.steps == self.steps and arm.scheme in self.deciding:
                    deciding += self._deciding(curve, search, best, loss_of)
            out += [curve.run(lr, seed) for lr, seed in todo]
        return out + deciding

    def _deciding(
        self, curve: Curve, search: LRSearch, best: float, loss_of: Mapping[str, float]
    ) -> list[RunConfig]:
        """The further seeds of a curve whose search is done.

        ``best`` is that of the search's own seeds: what these runs find moves no point.
        """
        lowest, highest = search.ends()
        points = (best, best - self.deciding_reach, best + self.deciding_reach)
        return [
            curve.run(lr, seed)
            for lr in points
            if lowest <= lr <= highest
            for seed in range(self.deciding_seeds)
            if curve.key(lr, seed) not in loss_of
        ]

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the arm's best run so far, or around the middle of its range."""
        search = self.search(run.scheme)
        center, lowest = (search.lo + search.hi) / 2, 1.0
        if len(runs):
            same = (runs["scheme"] == run.scheme) & (runs["d_model"] == run.model.d_model)
            ok = runs[same & (runs["steps"] == run.optim.steps) & (runs["status"] == "ok")]
            if len(ok):
                best = ok.loc[ok["final_loss"].idxmin()]
                center, lowest = math.log2(best["lr"]), float(best["final_loss"])
        return lowest + 0.1 * (math.log2(run.hps.eta) - center) ** 2


@functools.lru_cache(maxsize=32)
def _curves(sweep: LRSweep, text: Text) -> Mapping[Arm, Curve]:
    """The curve of every arm; cached, since a plan needs the same keys after every group."""
    return {
        arm: Curve(sweep.search(arm.scheme), functools.partial(sweep.at, arm, text))
        for arm in sweep.arms()
    }


@dataclass(frozen=True)
class AxisSweep(Grids, Curves):
    """A line search over η at every value of one field of the run.

    A study's own sweep is a subclass that sets ``AXIS`` and, if something else changes with the
    axis, overrides ``at``.
    """

    schemes: tuple[Scheme, ...] = ("umup",)
    width: Count = 32
    """Width of every model."""
    values: tuple[float, ...] = (1, 2)
    """Values of the axis, increasing."""

    AXIS = "model.n_layers"
    """The field that varies: a number in the run's ``model``, ``optim`` or ``hps``, but not η."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
            raise ConfigError("values", self.values, "two or more numbers, rising")
        for curve in self.curves(NO_TEXT):
            curve.run(0.0, 0)  # a value that the axis cannot take is an error now

    def at(self, run: RunConfig, value: float) -> RunConfig:
        """The run with the axis at ``value``, converted to an integer if the field is one."""
        name, _, field = self.AXIS.partition(".")
        part = getattr(run, name)
        if isinstance(getattr(part, field), int) and float(value).is_integer():
            value = int(value)
        return replace(run, **{name: replace(part, **{field: value})})

    def curves(self, text: Text) -> Iterator[Curve]:
        """One curve for every value and scheme."""
        for value in self.values:
            for scheme in self.schemes:
                at = functools.partial(self._at, value, scheme, text)
                yield Curve(self.search(scheme), at)

    def _at(self, value: float, scheme: str, text: Text, log2_lr: float, seed: int) -> RunConfig:
        model = self.model(self.width, text)
        return self.at(self.run(scheme, model, text, seed, eta=log2_lr), value)
