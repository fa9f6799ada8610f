"""Which runs to do next: plans that are pure functions of the results so far.

``next_lrs`` is the adaptive line search over η used for every learning-rate sweep: a coarse grid
in octaves, half-octaves around the best, then further seeds near the optimum. It keeps no state,
so killing a sweep costs nothing: the plan goes on from the records.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import pandas as pd

from umup.checked import (
    Config,
    Count,
    CountOrZero,
    Fraction,
    OneOf,
    Positive,
    PositiveOrZero,
    Range,
)
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design

_Octaves = Annotated[float, Range(-60, 60)]
_Spacing = Annotated[float, OneOf(0.25, 0.5, 1.0)]


class Result(NamedTuple):
    """One finished run: log2 η, seed and final loss in nats (NaN where diverged)."""

    log2_lr: float
    seed: int
    loss: float


@dataclass(frozen=True)
class LRSearch(Config):
    """A line search over log2 η."""

    lo: _Octaves
    """Lower end of the coarse grid (one octave apart, seed 0 only), log2 η."""
    hi: _Octaves
    """Its upper end."""
    refine: _Spacing = 0.5
    """Spacing near the optimum, octaves."""
    window: PositiveOrZero = 1.0
    """Half-width, in octaves, around the best in which refined points and all seeds are run."""
    seeds: Count = 3
    """Runs at every point in the window."""
    max_extend: CountOrZero = 4
    """Octaves by which the grid may grow past an end that holds the best point."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lo", "hi"):
            if getattr(self, name) % 0.25:  # else grid points would not meet to the last bit
                raise ConfigError(name, getattr(self, name), "a multiple of a quarter octave")
        if self.hi <= self.lo:
            raise ConfigError("hi", self.hi, f"more than lo = {self.lo:g}")

    def ends(self) -> tuple[float, float]:
        """The lowest and highest log2 η that the search may ever ask for."""
        return self.lo - self.max_extend, self.hi + self.max_extend

    def coarse(self) -> list[float]:
        """The grid, in octaves, with which the search begins."""
        return [self.lo + i for i in range(int(self.hi - self.lo) + 1)]

    def candidates(self) -> list[tuple[float, int]]:
        """Every (log2 η, seed) that the search may ever ask for."""
        lowest, highest = self.ends()
        n = int((highest - lowest) / self.refine) + 1
        values = [lowest + i * self.refine for i in range(n)]
        return [(value, seed) for value in values for seed in range(self.seeds)]


def around(center: float, search: LRSearch, below: int = 2, above: int = 3) -> LRSearch:
    """The search with its coarse grid moved around a predicted optimum.

    One more point above than below: the side on which training breaks is the informative one.
    """
    middle = round(center)
    return LRSearch(
        middle - below, middle + above, search.refine, search.window, search.seeds,
        search.max_extend,
    )  # fmt: skip


def means(results: Iterable[Result]) -> dict[float, float]:
    """Mean loss at every learning rate; a point with a diverged run counts as infinite."""
    by_lr: dict[float, list[float]] = {}
    for r in results:
        by_lr.setdefault(r.log2_lr, []).append(r.loss if math.isfinite(r.loss) else math.inf)
    return {lr: sum(losses) / len(losses) for lr, losses in by_lr.items()}


def best_lr(results: Iterable[Result]) -> float | None:
    """log2 of the learning rate of the lowest mean loss, or None when every run diverged."""
    table = {lr: loss for lr, loss in means(results).items() if math.isfinite(loss)}
    return min(table, key=lambda lr: (table[lr], lr)) if table else None


def next_lrs(search: LRSearch, results: list[Result]) -> list[tuple[float, int]]:
    """The (log2 η, seed) points to run next, given the finished ones; empty when done.

    Stages, each complete before the next: the coarse grid; an octave more at an end that holds
    the best point; refined points within the window of the best; all seeds there. As seeds may
    move the best, the window follows it.
    """
    have = {(r.log2_lr, r.seed) for r in results}

    def missing(lrs: Iterable[float], seeds: Iterable[int]) -> list[tuple[float, int]]:
        seeds = list(seeds)
        return [(lr, s) for lr in lrs for s in seeds if (lr, s) not in have]

    if todo := missing(search.coarse(), [0]):
        return todo
    best = best_lr(results)
    lowest, highest = search.ends()
    measured = [r.log2_lr for r in results]
    if best is None:  # all diverged
        return missing([min(measured) - 1.0], [0]) if min(measured) - 1.0 >= lowest else []
    if best == min(measured) and best - 1.0 >= lowest:
        return missing([best - 1.0], [0])
    if best == max(measured) and best + 1.0 <= highest:
        return missing([best + 1.0], [0])
    n = int(search.window / search.refine + 1e-9)
    near = [best + i * search.refine for i in range(-n, n + 1)]
    near = [lr for lr in near if lowest <= lr <= highest]
    return missing(near, [0]) or missing(near, range(search.seeds))


def predicted_optimum(optima: dict[int, float], width: int) -> float | None:
    """log2 η* at ``width`` extrapolated in log2 width from the two nearest smaller widths."""
    smaller = sorted((w for w in optima if w < width), reverse=True)
    if not smaller:
        return None
    if len(smaller) == 1:
        return optima[smaller[0]]
    near, far = smaller[:2]
    slope = (optima[near] - optima[far]) / math.log2(near / far)
    return optima[near] + slope * math.log2(width / near)


@dataclass(frozen=True)
class Arm(Config):
    """One curve of loss against η: a scheme at a width and a horizon."""

    scheme: str
    d_model: int
    steps: int


@dataclass(frozen=True)
class LRSweep(Design):
    """The flat parameters of a learning-rate sweep, beside those of every ``Design``."""

    schemes: tuple[Annotated[str, OneOf("sp", "mup", "umup")], ...] = ("sp", "mup", "umup")
    """Of the main arms, one arm for each scheme and width."""
    widths: tuple[Count, ...] = (32, 64)
    """Of the main arms: ``d_model``."""
    full_grid_width: Count = 128
    """Above it, the grid is moved around the optimum predicted from smaller widths instead of
    spanning the scheme's whole range."""
    n_layers: Count = 2
    d_head: Count = 32
    ff_ratio: Positive = 2.75
    """d_ff / d_model."""
    seq_len: Count = 64
    batch_size: Count = 8
    steps: Count = 2000
    """Of the main arms."""
    short_steps: CountOrZero = 0
    """A shorter horizon (0: none)."""
    short_widths: tuple[Count, ...] = ()
    """Widths trained to the shorter horizon."""
    long_steps: CountOrZero = 0
    """A longer horizon (0: none)."""
    long_widths: tuple[Count, ...] = ()
    """Widths trained to the longer horizon."""
    warmup_ratio: Fraction = 0.25
    """Share of the steps that warm up."""
    weight_decay: PositiveOrZero = 2.0**-13
    base_width: Count = 32
    """Width at which μP equals SP; base depth and head size are the model's own."""
    dtype: str = "float32"
    unroll: int = 0
    lr_sp: tuple[float, ...] = (-12.0, -4.0)
    """(low, high) log2 of the coarse grid, as for the other schemes."""
    lr_mup: tuple[float, ...] = (-11.0, -4.0)
    lr_umup: tuple[float, ...] = (-4.0, 3.0)
    refine: _Spacing = 0.5
    """As of ``LRSearch``; so are ``window`` and ``seeds``."""
    window: PositiveOrZero = 1.0
    seeds: Count = 3
    eval_batches: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schemes", "widths"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for name in ("lr_sp", "lr_mup", "lr_umup"):
            if len(getattr(self, name)) != 2:
                raise ConfigError(name, getattr(self, name), "two numbers: [low, high] in log2 η")
            try:
                self.search(name.removeprefix("lr_"))
            except ConfigError as error:
                raise ConfigError(
                    name, getattr(self, name), f"{error.field}: {error.allowed}"
                ) from None
        for width in (*self.widths, *self.short_widths, *self.long_widths):
            self.model(width, vocab_size=2)  # heads that do not divide are an error now
        # An optimum is predicted from narrower widths of the same horizon: without one with a
        # full grid, the rest of the horizon would wait for ever.
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

    def search(self, scheme: str) -> LRSearch:
        """The full line search of a scheme."""
        lo, hi = getattr(self, f"lr_{scheme}")
        return LRSearch(lo, hi, self.refine, self.window, self.seeds)

    def arms(self) -> list[Arm]:
        """All arms: the main horizon's first, and the cheap before the dear."""
        arms = [
            Arm(scheme, width, steps)
            for steps, widths in self._horizons() if steps
            for width in widths
            for scheme in self.schemes
        ]  # fmt: skip
        return sorted(
            set(arms), key=lambda a: (a.steps != self.steps, a.d_model**2 * a.steps, a.scheme)
        )

    def model(self, width: int, vocab_size: int) -> ModelConfig:
        """The model's shape at a width."""
        return ModelConfig(
            d_model=width, n_layers=self.n_layers, d_head=self.d_head,
            d_ff=round(width * self.ff_ratio), vocab_size=vocab_size, seq_len=self.seq_len,
            base_width=self.base_width, base_depth=self.n_layers, base_d_head=self.d_head,
            dtype=self.dtype, unroll=self.unroll,
        )  # fmt: skip

    def run(self, arm: Arm, log2_lr: float, seed: int, dataset: Dataset) -> RunConfig:
        """The whole specification of one run."""
        return self._run(arm, log2_lr, seed, dataset.digest, dataset.vocab_size)

    def _run(
        self, arm: Arm, log2_lr: float, seed: int, data_digest: str, vocab_size: int
    ) -> RunConfig:
        return RunConfig(
            scheme=arm.scheme,
            model=self.model(arm.d_model, vocab_size),
            optim=OptimConfig(
                steps=arm.steps, batch_size=self.batch_size,
                warmup_steps=round(arm.steps * self.warmup_ratio),
            ),
            hps=HPs(eta=2.0**log2_lr, weight_decay=self.weight_decay),
            seed=seed, corpus=self.corpus, tokenizer=self.tokenizer,
            data_digest=data_digest, eval_batches=self.eval_batches,
        )  # fmt: skip

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next, given the finished ones (rows of this profile)."""
        loss_of = dict(zip(runs["key"], runs["final_loss"])) if len(runs) else {}
        optima: dict[tuple[str, int], dict[int, float]] = {}
        out: list[RunConfig] = []
        unfinished: set[tuple[str, int]] = set()
        for arm in self.arms():  # narrow before wide at each horizon
            known = optima.setdefault((arm.scheme, arm.steps), {})
            search = self.search(arm.scheme)
            if arm.d_model > self.full_grid_width:
                center = predicted_optimum(known, arm.d_model)
                if center is None or (arm.scheme, arm.steps) in unfinished:
                    continue  # waits for the narrower widths
                search = around(center, search)
            results = []
            for lr, seed in self._candidates(search):
                key = _key(self, arm, lr, seed, dataset.digest, dataset.vocab_size)
                if key in loss_of:
                    results.append(Result(lr, seed, loss_of[key]))
            todo = next_lrs(search, results)
            if todo:
                unfinished.add((arm.scheme, arm.steps))
            elif (best := best_lr(results)) is not None:
                known[arm.d_model] = best
            out += [self.run(arm, lr, seed, dataset) for lr, seed in todo]
        return out

    def _candidates(self, search: LRSearch) -> list[tuple[float, int]]:
        """Every (log2 η, seed) the search could ever ask for."""
        lowest, highest = search.ends()
        n = int((highest - lowest) / search.refine) + 1
        lrs = [lowest + i * search.refine for i in range(n)]
        return [(lr, seed) for lr in lrs for seed in range(self.seeds)]

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the arm's best run so far, or around the middle of its range."""
        center, lowest = (self.search(run.scheme).lo + self.search(run.scheme).hi) / 2, 1.0
        if len(runs):
            same = (runs["scheme"] == run.scheme) & (runs["d_model"] == run.model.d_model)
            ok = runs[same & (runs["steps"] == run.optim.steps) & (runs["status"] == "ok")]
            if len(ok):
                best = ok.loc[ok["final_loss"].idxmin()]
                center, lowest = math.log2(best["lr"]), float(best["final_loss"])
        return lowest + 0.1 * (math.log2(run.hps.eta) - center) ** 2


@dataclass(frozen=True)
class AtValue(Arm):
    """One curve of loss against η: an arm of a sweep, at a value of its axis."""

    value: float


@dataclass(frozen=True)
class AxisSweep(LRSweep):
    """A line search over η at every value of one number of the run; the width is one.

    A study's own sweep is a subclass that says ``AXIS`` and, where something has to move along
    with the axis, ``at``.

    Args:
        values: of the axis, rising.
    """

    schemes: tuple[str, ...] = ("umup",)
    widths: tuple[int, ...] = (32,)
    full_grid_width: int = 2**20  # every search spans its whole grid
    values: tuple[float, ...] = (1, 2)

    AXIS = "model.n_layers"
    """What is varied: a number of the run's ``model``, ``optim`` or ``hps``, but not η."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != 1:
            raise ConfigError("widths", self.widths, "one width")
        if len(self.values) < 2 or list(self.values) != sorted(set(self.values)):
            raise ConfigError("values", self.values, "two or more numbers, rising")
        for arm in self.arms():
            self._run(arm, 0.0, 0, "", 2)  # a value that the axis cannot take is an error now

    def at(self, run: RunConfig, value: float) -> RunConfig:
        """The run with the axis at ``value``; a whole number where the field holds such."""
        name, _, field = self.AXIS.partition(".")
        part = getattr(run, name)
        if isinstance(getattr(part, field), int) and float(value).is_integer():
            value = int(value)
        return replace(run, **{name: replace(part, **{field: value})})

    def arms(self) -> list[Arm]:
        """The arms of the sweep at every value."""
        arms = super().arms()
        return [AtValue(a.scheme, a.d_model, a.steps, v) for v in self.values for a in arms]

    def _run(
        self, arm: Arm, log2_lr: float, seed: int, data_digest: str, vocab_size: int
    ) -> RunConfig:
        run = super()._run(arm, log2_lr, seed, data_digest, vocab_size)
        return self.at(run, arm.value) if isinstance(arm, AtValue) else run


@functools.lru_cache(maxsize=100_000)
def _key(sweep: LRSweep, arm: Arm, lr: float, seed: int, data_digest: str, vocab_size: int) -> str:
    """The run's key; cached, since a plan asks for the same ones after every group."""
    return sweep._run(arm, lr, seed, data_digest, vocab_size).key()
