"""Searches over several hyperparameters at once: plans that are pure functions of the results.

A search is given what is finished and says which runs it wants next, nothing once it is done:

- ``independent``: a line over η, then one line per other hyperparameter at the best η, all of them
  at once, then the best of every line combined (u-μP paper, Appendix F.1),
- ``random``: log-uniform points of a generator,
- ``rounds``: a few rounds of random points, each in a smaller box around the best so far.

Everything is chosen by the runs of seed 0. Further seeds are run where a search ends, so that what
it found can be judged by losses that had no part in the choice. A run that diverged has lost
against every other; of equal losses the one asked for first wins.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd

from umup import schemes
from umup.checked import Count, OneOf, Range
from umup.config import RunConfig
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Text, Trained

FINE = 1024
"""Random points lie on multiples of 1/FINE octave, which are exact in binary."""

SYMBOLS = {
    "eta": "η",
    "eta_emb": "η̂_emb",
    "sigma_init": "σ_init",
    "alpha_emb": "α_emb",
    "alpha_output": "α_output",
    "alpha_attn_softmax": "α_attn",
    "alpha_ffn_act": "α_ffn",
    "alpha_residual": "α_res",
    "alpha_residual_attn_ratio": "α_ratio",
    "alpha_loss_softmax": "α_loss",
}
"""What pages call the hyperparameters."""

Point = tuple[float, ...]
"""log2 of every hyperparameter of a space, in its order."""


class Trial(NamedTuple):
    """A run that a search asks for."""

    point: Point
    seed: int


class Result(NamedTuple):
    """A finished one: its loss in nats, NaN or infinite where it diverged."""

    point: Point
    seed: int
    loss: float


Plan = Callable[[Sequence[Result]], list[Trial]]
"""What to run next, given what is finished."""


@dataclass(frozen=True)
class Space:
    """Hyperparameters of a scheme, each with its grid in log2, rising; η is one of them.

    Raises:
        ConfigError: the scheme has no such hyperparameter, η is missing, a name comes twice, or a
            grid is not of two or more finite numbers that rise.
    """

    scheme: str
    names: tuple[str, ...]
    grids: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        # Its default is not 1, so that it is left alone.
        known = [hp for hp in schemes.get(self.scheme).hps if hp != "weight_decay"]
        for name in self.names:
            if name not in known:
                raise ConfigError("hps", name, f"of {self.scheme}: {', '.join(known)}")
        if "eta" not in self.names or len(set(self.names)) < len(self.names):
            raise ConfigError("hps", list(self.names), "different names, eta among them")
        if len(self.grids) != len(self.names):
            raise ConfigError("grids", len(self.grids), f"one per hyperparameter: {self.names}")
        for name, grid in zip(self.names, self.grids, strict=True):
            rising = all(a < b for a, b in itertools.pairwise(grid))
            if len(grid) < 2 or not rising or not all(map(math.isfinite, grid)):
                raise ConfigError(name, list(grid), "two or more finite numbers in log2, rising")

    @classmethod
    def of(cls, scheme: str, grids: Mapping[str, Iterable[float]]) -> Space:
        """The space of name → grid, in the scheme's order: random points go by that."""
        order = schemes.get(scheme).hps
        names = sorted(grids, key=lambda name: order.index(name) if name in order else -1)
        return cls(scheme, tuple(names), tuple(tuple(map(float, grids[name])) for name in names))

    def grid(self, name: str) -> tuple[float, ...]:
        """The grid of a hyperparameter."""
        return self.grids[self.names.index(name)]

    def default(self) -> Point:
        """η in the middle of its grid (the lower of two), the others at 1."""
        eta = self.grid("eta")
        return tuple(eta[(len(eta) - 1) // 2] if name == "eta" else 0.0 for name in self.names)

    def moved(self, point: Point, **log2: float) -> Point:
        """The point with some hyperparameters elsewhere."""
        values = dict(zip(self.names, point, strict=True)) | log2
        return tuple(values[name] for name in self.names)

    def log2(self, point: Point) -> dict[str, float]:
        """Name → log2 value."""
        return dict(zip(self.names, point, strict=True))

    def line(self, name: str, point: Point) -> list[Point]:
        """The points of a hyperparameter's grid, the others as they are at ``point``."""
        return [self.moved(point, **{name: x}) for x in self.grid(name)]

    def plane(self, a: str, b: str) -> list[Point]:
        """The grid of two hyperparameters, row by row of ``a``, the others at their defaults."""
        return [
            self.moved(self.default(), **{a: x, b: y})
            for x, y in itertools.product(self.grid(a), self.grid(b))
        ]

    def box(self) -> list[tuple[float, float]]:
        """The ends of every grid."""
        return [(grid[0], grid[-1]) for grid in self.grids]


def missing(
    results: Iterable[Result], points: Iterable[Point], seeds: Iterable[int] = (0,)
) -> list[Trial]:
    """Of the points with every seed those that are not finished, each once."""
    have, seeds = {(r.point, r.seed) for r in results}, list(seeds)
    wanted = dict.fromkeys(Trial(point, seed) for point in points for seed in seeds)
    return [trial for trial in wanted if trial not in have]


def best(results: Iterable[Result], points: Sequence[Point]) -> Point | None:
    """The point of the lowest loss at seed 0; None where all diverged or none is finished."""
    loss = {r.point: r.loss for r in results if r.seed == 0 and math.isfinite(r.loss)}
    return min((p for p in points if p in loss), key=loss.__getitem__, default=None)


class Lines(NamedTuple):
    """What an independent search has found: the best of the η line, of each line, of all."""

    start: Point
    bests: Mapping[str, Point]
    combined: Point


def lines(space: Space, results: Sequence[Result]) -> Lines | None:
    """The bests of an independent search so far; None while no η has a finite loss.

    A line's best is the best η with the default where nothing else on the line is lower.
    """
    start = best(results, space.line("eta", space.default()))
    if start is None:
        return None
    others = [name for name in space.names if name != "eta"]
    bests = {n: best(results, [start, *space.line(n, start)]) or start for n in others}
    found = {name: space.log2(point)[name] for name, point in bests.items()}
    return Lines(start, bests, space.moved(start, **found))


def independent(space: Space, results: Sequence[Result], seeds: int = 1) -> list[Trial]:
    """A line over η, lines over all others at the best η, and the best of each combined.

    Args:
        space: what is searched.
        results: what is finished, in any order.
        seeds: runs at the combination and at the best of every line.

    Returns:
        The next runs: each of the three stages is complete before the next. Empty when done, or
        when every η diverged.
    """
    if todo := missing(results, space.line("eta", space.default())):
        return todo
    found = lines(space, results)
    if found is None:
        return []
    others = [p for name in found.bests for p in space.line(name, found.start)]
    if todo := missing(results, others):
        return todo
    ends = [found.combined, found.start, *found.bests.values()]
    return missing(results, ends, range(seeds))


def drawn(box: Sequence[tuple[float, float]], *key: int) -> Point:
    """A log-uniform point of a box; the same for the same non-negative integers ``key``."""
    shares = np.random.default_rng(key).random(len(box))
    at = (lo + share * (hi - lo) for (lo, hi), share in zip(box, shares, strict=True))
    return tuple(round(float(x) * FINE) / FINE for x in at)


def random_points(space: Space, n: int, draw: int = 0) -> list[Point]:
    """The first n points of a random search, each a function of its number and ``draw`` alone."""
    return [drawn(space.box(), draw, index) for index in range(n)]


def random(
    space: Space, results: Sequence[Result], n: int, seeds: int = 1, draw: int = 0
) -> list[Trial]:
    """``n`` random points, then all seeds at the best; arguments as of ``independent``."""
    points = random_points(space, n, draw)
    return missing(results, points) or _confirmed(results, points, seeds)


def round_points(
    space: Space,
    results: Sequence[Result],
    per_round: int,
    n_rounds: int = 3,
    shrink: float = 0.5,
    draw: int = 0,
) -> list[Point]:
    """The points of all rounds that can begin: those before the last are finished.

    Args:
        space: whose box the first round fills.
        results: what is finished.
        per_round: points of a round.
        n_rounds: how many rounds there may be.
        shrink: side of a box over that of the box before; it is centred at the best point so far
            and stays inside the space.
        draw: of the generator.
    """
    points: list[Point] = []
    box = space.box()
    for number in range(n_rounds):
        # The last number is never 0: trailing zeros of a key make no difference.
        points += [drawn(box, draw, index, number + 1) for index in range(per_round)]
        if missing(results, points):
            break
        centre = best(results, points)
        if centre is not None:
            ends = zip(space.box(), centre, strict=True)
            box = [_around(lo, hi, x, shrink ** (number + 1)) for (lo, hi), x in ends]
    return points


def rounds(
    space: Space,
    results: Sequence[Result],
    per_round: int,
    n_rounds: int = 3,
    shrink: float = 0.5,
    seeds: int = 1,
    draw: int = 0,
) -> list[Trial]:
    """Rounds of random points as ``round_points``, then all seeds at the best."""
    points = round_points(space, results, per_round, n_rounds, shrink, draw)
    return missing(results, points) or _confirmed(results, points, seeds)


def _around(lo: float, hi: float, x: float, share: float) -> tuple[float, float]:
    """A ``share`` of the stretch around x, moved inside it."""
    size = share * (hi - lo)
    low = min(max(x - size / 2, lo), hi - size)
    return low, low + size


def _confirmed(results: Sequence[Result], points: Sequence[Point], seeds: int) -> list[Trial]:
    """The further seeds of the best point."""
    found = best(results, points)
    return [] if found is None else missing(results, [found], range(seeds))


def replay(
    plan: Plan, loss_of: Callable[[Trial], float | None]
) -> tuple[list[Result], list[Trial]]:
    """What a search has asked for that is finished, in the order of asking, and what it wants next.

    Args:
        plan: the search.
        loss_of: trial → its loss, or None where it is not finished.
    """
    results: list[Result] = []
    while todo := plan(results):
        known = [Result(*t, loss) for t in todo if (loss := loss_of(t)) is not None]
        if not known:
            return results, todo
        results += known
    return results, []


def log2_hps(runs: pd.DataFrame) -> pd.DataFrame:
    """log2 of the hyperparameters of every run, a column each, by its name.

    Rounded to 1e-12 octave: the values of grids and of random points come back exactly.
    """
    names = list(SYMBOLS)
    hps = pd.DataFrame([json.loads(spec)["hps"] for spec in runs["spec"]], runs.index, names)
    return np.log2(hps.astype(float)).round(12)


@dataclass(frozen=True)
class Spaces(Trained):
    """Parameters of a study that searches the hyperparameters of some schemes."""

    schemes: tuple[Annotated[str, OneOf("umup", "mup")], ...] = ("umup", "mup")
    """Whose hyperparameters are searched."""
    width: Count = 32
    """Of the models on which they are."""
    per_line: Annotated[int, Range(2)] = 9
    """Points of every grid, evenly spaced in log2."""
    hps_umup: tuple[str, ...] = ("eta", "alpha_attn_softmax")
    """Hyperparameters of u-μP."""
    lo_umup: tuple[float, ...] = (-2.0, -2.0)
    """Lower ends of their grids, log2."""
    hi_umup: tuple[float, ...] = (2.0, 2.0)
    """Upper ends of their grids, log2."""
    hps_mup: tuple[str, ...] = ("eta", "eta_emb")
    """The same of μP."""
    lo_mup: tuple[float, ...] = (-8.5, 0.0)
    """The same of μP."""
    hi_mup: tuple[float, ...] = (-4.5, 8.0)
    """The same of μP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schemes:
            raise ConfigError("schemes", self.schemes, "at least one entry")
        for scheme in ("umup", "mup"):
            self.space(scheme)
        self.model(self.width)  # heads that do not divide are an error now

    def space(self, scheme: str) -> Space:
        """The hyperparameters of a scheme with their grids."""
        names = getattr(self, f"hps_{scheme}")
        for end in ("lo", "hi"):
            if len(ends := getattr(self, f"{end}_{scheme}")) != len(names):
                allowed = f"{len(names)} numbers, one per entry of hps_{scheme}"
                raise ConfigError(f"{end}_{scheme}", list(ends), allowed)
        ends = zip(getattr(self, f"lo_{scheme}"), getattr(self, f"hi_{scheme}"), strict=True)
        last = self.per_line - 1
        if len(set(names)) < len(names):
            raise ConfigError(f"hps_{scheme}", list(names), "different names")
        grids = [[lo + i * (hi - lo) / last for i in range(last + 1)] for lo, hi in ends]
        return Space.of(scheme, dict(zip(names, grids, strict=True)))

    def trial(
        self, space: Space, trial: Trial, text: Text = NO_TEXT, width: int | None = None
    ) -> RunConfig:
        """The run of a trial, at ``self.width`` unless another is given."""
        model = self.model(width or self.width, text)
        return self.run(space.scheme, model, text, trial.seed, None, (), **space.log2(trial.point))
