"""Which runs to do next: plans that are pure functions of the results so far.

``next_lrs`` is the adaptive line search over η used for every learning-rate sweep: a coarse grid
in octaves, half-octaves around the best, then further seeds near the optimum. It keeps no state,
so killing a sweep costs nothing: the plan goes on from the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from umup.checked import (
    Config,
    Count,
    CountOrZero,
    PositiveOrZero,
)
from umup.errors import ConfigError
from umup.lab.design import Octaves, Spacing


class Result(NamedTuple):
    """One finished run: log2 η, seed and final loss in nats (NaN where diverged)."""

    log2_lr: float
    seed: int
    loss: float


@dataclass(frozen=True)
class LRSearch(Config):
    """A line search over log2 η."""

    lo: Octaves
    """Lower end of the coarse grid (one octave apart, seed 0 only), log2 η."""
    hi: Octaves
    """Its upper end."""
    refine: Spacing = 0.5
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
        middle - below,
        middle + above,
        search.refine,
        search.window,
        search.seeds,
        search.max_extend,
    )


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
