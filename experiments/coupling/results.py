"""Tables and quantities of the study ``coupling``: what the wrong row's optimum costs.

A *grid* is the loss of every pair of values of two hyperparameters. Along each row the best value
of the second is chosen and used on every other row, where it costs what it is above that row's own
best; columns likewise. The *cost* of a pair is the mean over rows, wrong rows and both directions,
in nats per token.

The paper chooses and reads in the same runs (``naive``). The lowest of some noisy losses is lower
than the loss that one would get again, so that this is above 0 even where nothing is coupled. Here
(``crossed``) both optima, the right and the wrong row's, are chosen in the runs of one seed, and
their losses are read in those of another: without coupling the mean is 0, whatever the noise. The
control (``floor``) is what the *right* row's optimum costs when another seed chose it, above the
lowest of the runs that are read.

Intervals are 95 % and by seed: the jackknife's error with Student's t. They say how far other seeds
would move a mean over these pairs, which are all pairs of a scheme and no sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from umup import schemes
from umup.lab.absent import NotMeasured, required
from umup.lab.hp_search import log2_hps
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.report import NO_RUNS
from umup.lab.tables import NAMES, loss_of, remembered
from umup.laws import Interval, mean_interval, student

quantity = QUANTITIES = Quantities()

KINDS = ("crossed", "naive", "floor")
SCHEMES = ("mup", "umup")


class Grid(NamedTuple):
    """The losses of one pair.

    Attributes:
        a, b: names of the hyperparameters.
        x, y: log2 of their values, shapes (n,) and (m,).
        loss: (seeds, n, m), NaN where a run diverged.
        guess: the loss of a uniform guess, ln V, which such runs count with.
    """

    a: str
    b: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    loss: NDArray[np.float64]
    guess: float


@remembered
def trials(results: Results) -> pd.DataFrame:
    """One row per run: scheme, seed, loss, guess, and log2 of every hyperparameter by its name.

    Raises:
        NotMeasured: there are no runs.
    """
    runs = required(results.runs, NO_RUNS)
    plain = {"scheme": runs["scheme"], "seed": runs["seed"], "loss": loss_of(runs)}
    plain["guess"] = np.log(runs["vocab_size"].astype(float))
    return pd.concat([pd.DataFrame(plain), log2_hps(runs)], axis=1)


def varied(mine: pd.DataFrame, scheme: str) -> dict[str, float]:
    """Hyperparameter → its default (log2), of those that a scheme's runs ``mine`` vary.

    The default is the value of most runs: each varies in some of the grids alone.
    """
    names = [name for name in schemes.get(scheme).hps if name in mine]
    found = [name for name in names if mine[name].nunique() > 1]
    return {name: float(mine[name].mode().iloc[0]) for name in found}


@remembered
def grids(results: Results, scheme: str) -> list[Grid]:
    """The grids of a scheme that are complete, with the seeds that all of them have.

    Raises:
        NotMeasured: none is.
    """
    table = trials(results)
    mine = table[table["scheme"] == scheme]
    defaults = varied(mine, scheme)
    sides = {name: mine[name].nunique() for name in defaults}
    planes, seeds = {}, set(mine["seed"])
    for a, b in itertools.combinations(defaults, 2):
        others = [name for name in defaults if name not in (a, b)]
        plane = mine[(mine[others] == pd.Series(defaults)[others]).all(axis=1)]
        counts = plane.groupby("seed").size()
        if whole := set(counts[counts == sides[a] * sides[b]].index):
            planes[a, b] = plane
            seeds &= whole
    if not planes or not seeds:
        raise NotMeasured(f"{NAMES[scheme]}: no grid is complete")
    return [_grid(a, b, plane, sorted(seeds)) for (a, b), plane in planes.items()]


def _grid(a: str, b: str, plane: pd.DataFrame, seeds: Sequence[int]) -> Grid:
    rows = plane[plane["seed"].isin(seeds)].sort_values(["seed", a, b])
    x, y = (np.sort(rows[name].unique()) for name in (a, b))
    loss = rows["loss"].to_numpy(float).reshape(len(seeds), len(x), len(y))
    return Grid(a, b, x, y, loss, float(rows["guess"].iloc[0]))


def wrong_row(chosen: NDArray, read: NDArray) -> float:
    """What the optimum of a wrong row costs, mean over rows and wrong rows.

    Args:
        chosen: losses in which every row's optimum is chosen, (rows, values).
        read: losses in which their cost is read, of the same shape.
    """
    at = chosen.argmin(axis=1)
    cost = read[:, at] - read[np.arange(len(at)), at][:, None]  # (row read, row that chose)
    return float(cost.sum() / (cost.size - len(at)))


def right_row(chosen: NDArray, read: NDArray) -> float:
    """What every row's own optimum costs above the lowest that is read there, mean over rows."""
    at = chosen.argmin(axis=1)
    return float((read[np.arange(len(at)), at] - read.min(axis=1)).mean())


def cost(grid: Grid, kind: str, seeds: Sequence[int]) -> float:
    """The cost of a pair, mean over both directions and over (ordered pairs of) seeds.

    A row on which every run of a seed diverged has no optimum, and is left out.

    Args:
        grid: of the pair.
        kind: ``crossed``, ``naive`` or ``floor``, see the head of this module.
        seeds: places along the grid's first axis.

    Raises:
        NotMeasured: fewer than two rows have an optimum.
    """
    measure: Callable[[NDArray, NDArray], float] = right_row if kind == "floor" else wrong_row
    over = [(s, s) for s in seeds] if kind == "naive" else itertools.permutations(seeds, 2)
    filled = np.where(np.isnan(grid.loss), grid.guess, grid.loss)
    found = []
    for chooser, reader in over:
        for turn in (np.asarray, np.transpose):
            alive = ~np.isnan(turn(grid.loss[chooser])).all(axis=1)
            if alive.sum() < 2:
                raise NotMeasured(f"{grid.a} and {grid.b}: fewer than two rows have an optimum")
            found.append(measure(turn(filled[chooser])[alive], turn(filled[reader])[alive]))
    return float(np.mean(found))


def jackknifed(statistic: Callable[[Sequence[int]], float], seeds: int) -> Interval:
    """A statistic of ``seeds`` seeds with the jackknife's interval; open below three seeds.

    Args:
        statistic: of some of the seeds 0 … seeds − 1; it needs two of them.
        seeds: how many there are.
    """
    everything = range(seeds)
    if seeds < 3:
        return Interval(statistic(everything), -math.inf, math.inf)
    left = np.array([statistic([s for s in everything if s != out]) for out in everything])
    error = math.sqrt((seeds - 1) / seeds * float(((left - left.mean()) ** 2).sum()))
    value, half = statistic(everything), student(seeds - 1) * error
    return Interval(value, value - half, value + half)


@remembered
def pair_costs(results: Results, scheme: str, kind: str = "crossed") -> dict[tuple, Interval]:
    """(a, b) → the cost of every complete pair."""
    return {
        (grid.a, grid.b): jackknifed(lambda seeds, g=grid: cost(g, kind, seeds), len(grid.loss))
        for grid in _several(results, scheme, kind)
    }


def _several(results: Results, scheme: str, kind: str) -> list[Grid]:
    """The grids of a scheme, of two seeds where one chooses and another reads."""
    found = grids(results, scheme)
    if kind != "naive" and len(found[0].loss) < 2:
        raise NotMeasured(f"{NAMES[scheme]}: one seed chooses and another reads; there is one")
    return found


def _mean(found: Sequence[Grid], kind: str, seeds: Sequence[int]) -> float:
    return float(np.mean([cost(grid, kind, seeds) for grid in found]))


def _enough(results: Results, scheme: str, kind: str, pairs: int) -> list[Grid]:
    found = _several(results, scheme, kind)
    if len(found) < pairs:
        raise NotMeasured(f"{NAMES[scheme]}: {len(found)} complete grids, the claim needs {pairs}")
    return found


@quantity
def mean_cost(
    results: Results, scheme: str, kind: str = "crossed", pairs: int = 1, without: str = ""
) -> Interval:
    """What the wrong row's optimum costs, nats per token, mean over at least ``pairs`` pairs.

    ``without``: a hyperparameter whose pairs are left out.
    """
    found = [g for g in _enough(results, scheme, kind, pairs) if without not in (g.a, g.b)]
    seeds = len(found[0].loss)
    return jackknifed(lambda some: _mean(found, kind, some), seeds).at(n=seeds)


@quantity
def difference(results: Results, kind: str = "crossed", pairs: int = 1) -> Interval:
    """The mean cost under μP minus that under u-μP, nats per token, paired by seed."""
    mup, umup = (_enough(results, scheme, kind, pairs) for scheme in SCHEMES)
    seeds = min(len(mup[0].loss), len(umup[0].loss))
    gap = jackknifed(lambda some: _mean(mup, kind, some) - _mean(umup, kind, some), seeds)
    return gap.at(f"{len(mup)} pairs each", seeds)


def pair_of(results: Results, scheme: str, hp: str, other: str) -> tuple[NDArray, NDArray, Grid]:
    """The values of ``hp`` and of ``other``, and the grid turned so that ``other`` gives the rows.

    Raises:
        NotMeasured: the pair's grid is not complete.
    """
    for grid in grids(results, scheme):
        if (grid.a, grid.b) == (other, hp):
            return grid.y, grid.x, grid
        if (grid.a, grid.b) == (hp, other):
            turned = np.transpose(grid.loss, (0, 2, 1))
            return grid.x, grid.y, Grid(other, hp, grid.y, grid.x, turned, grid.guess)
    raise NotMeasured(f"{NAMES[scheme]}: the grid of {hp} and {other} is not complete")


def vertex(x: NDArray, loss: NDArray) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest.

    The lowest point itself at an end of the grid and beside a run that diverged (NaN).
    """
    i = int(np.nanargmin(loss))
    if i in (0, len(x) - 1) or np.isnan(loss[i - 1 : i + 2]).any():
        return float(x[i])
    below, above = loss[i - 1] - loss[i], loss[i + 1] - loss[i]
    step = x[i + 1] - x[i]  # grids are even
    rise = below + above
    return float(x[i] + (step * (below - above) / (2 * rise) if rise > 0 else 0.0))


def tracks(results: Results, scheme: str, hp: str, other: str) -> tuple[NDArray, NDArray]:
    """The values of ``other``, (m,), and the best ``hp`` at each by seed, (seeds, m), in log2.

    Values at which all runs of a seed diverged are left out.

    Raises:
        NotMeasured: the pair's grid is not complete, or fewer than three values are left.
    """
    values, at, grid = pair_of(results, scheme, hp, other)
    alive = ~np.isnan(grid.loss).all(axis=2).any(axis=0)
    if alive.sum() < 3:
        raise NotMeasured(f"{NAMES[scheme]}: {hp} has an optimum at fewer than three {other}")
    found = [[vertex(values, row) for row in of_seed] for of_seed in grid.loss[:, alive]]
    return at[alive], np.array(found)


@quantity
def slope(results: Results, scheme: str, hp: str, other: str) -> Interval:
    """Octaves by which the best ``hp`` moves per octave of ``other``: least squares, by seed."""
    at, found = tracks(results, scheme, hp, other)
    u = at - at.mean()
    return mean_interval(found @ u / float(u @ u))


def strongest(results: Results, scheme: str) -> tuple[tuple, Interval]:
    """The pair of the highest cost, and that."""
    costs: Mapping[tuple, Interval] = pair_costs(results, scheme)
    pair = max(costs, key=lambda p: costs[p].value)
    return pair, costs[pair]
