"""Tables and quantities of the study ``hp_search``: what each search found, and in how many runs.

A search chooses by the training loss of seed 0, as a user would, and is judged by the held-out loss
of further seeds, which had no part in the choice: else of many runs the luckiest would look best.
Both in nats per token; intervals are 95 % over seeds, and differences are paired by seed. The
searches and their boxes are read off the records: what a search asked for is played out again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from umup import schemes
from umup.lab import hp_search, tables
from umup.lab.absent import NotMeasured, required
from umup.lab.hp_search import Lines, Plan, Point, Result, Space, Trial
from umup.lab.quantities import Quantities
from umup.lab.records import Results
from umup.lab.report import NO_RUNS
from umup.lab.tables import NAMES, loss_of, remembered
from umup.laws import Interval

quantity = QUANTITIES = Quantities()

SCHEMES = ("umup", "mup")
SEARCHES = {"independent": "independent", "random": "random", "rounds": "three rounds"}
ENDS = {
    "eta": "η alone",
    "line": "best single line",
    "combined": "lines combined",
    "rounds": "three rounds",
    "random": "random",
}
"""Where a search may end, and what pages call it: the first three are the independent search's."""
ORDERS = 2000  # resampled orders of a random search


def plans(space: Space, n_random: int, per_round: int, seeds: int) -> dict[str, Plan]:
    """The searches of a space by name."""
    return {
        "independent": functools.partial(hp_search.independent, space, seeds=seeds),
        "random": functools.partial(hp_search.random, space, n=n_random, seeds=seeds),
        "rounds": functools.partial(hp_search.rounds, space, per_round=per_round, seeds=seeds),
    }


def wide_space(space: Space) -> Space:
    """η alone, at the middle half of its grid."""
    grid = space.grid("eta")
    aside = len(grid) // 4
    return Space.of(space.scheme, {"eta": grid[aside : len(grid) - aside]})


def carried(space: Space, results: Sequence[Result], seeds: int) -> list[Trial]:
    """The trials of the combined optimum on the wide model."""
    found = hp_search.lines(space, results)
    return [] if found is None else [Trial(found.combined, seed) for seed in range(seeds)]


class Found(NamedTuple):
    """The records of one scheme at one width.

    Attributes:
        space: what was searched, as its lines show it.
        chosen: (point, seed) → training loss, by which a search chooses; NaN where it diverged.
        judged: (point, seed) → held-out loss.
    """

    space: Space
    chosen: Mapping[Trial, float]
    judged: Mapping[Trial, float]

    def on_record(self, trial: Trial) -> float | None:
        """The training loss of a trial, for ``replay``."""
        return self.chosen.get(trial)


@remembered
def trials(results: Results) -> pd.DataFrame:
    """The runs with the loss that judges (``held``) and log2 of every hyperparameter by its name.

    Raises:
        NotMeasured: there are none.
    """
    runs = required(results.runs, NO_RUNS)
    columns = ["scheme", "d_model", "seed", "final_loss", "status"]
    plain = runs[columns].assign(held=loss_of(runs))
    return pd.concat([plain, hp_search.log2_hps(runs)], axis=1)


def _of(rows: pd.DataFrame, space: Space) -> Found:
    points = rows[list(space.names)].itertuples(index=False, name=None)
    named = [Trial(p, int(s)) for p, s in zip(points, rows["seed"], strict=True)]
    chosen = rows["final_loss"].where(rows["status"] == "ok")
    return Found(
        space,
        dict(zip(named, chosen.astype(float), strict=True)),
        dict(zip(named, rows["held"], strict=True)),
    )


@remembered
def narrow(results: Results, scheme: str) -> Found:
    """What is on record of a scheme at the width of its searches.

    Raises:
        NotMeasured: its lines are not there, from which the space is read.
    """
    table = trials(results)
    mine = table[(table["scheme"] == scheme) & (table["d_model"] == table["d_model"].min())]
    names = [n for n in schemes.get(scheme).hps if n in mine and mine[n].nunique() > 1]
    others = [name for name in names if name != "eta"]
    missing = f"{NAMES[scheme]}: the lines of the independent search are not on record"
    line = mine[(mine[others] == 0).all(axis=1) & (mine["seed"] == 0)].sort_values("eta")
    if "eta" not in names or line["eta"].nunique() < 2:
        raise NotMeasured(missing)
    start = line.loc[line["final_loss"].fillna(math.inf).idxmin(), "eta"]
    grids = {"eta": sorted(line["eta"].unique())}
    at_best = mine[mine["eta"] == start]
    for name in others:
        rest = [other for other in others if other != name]
        grids[name] = sorted(at_best[(at_best[rest] == 0).all(axis=1)][name].unique())
        if len(grids[name]) < 2:
            raise NotMeasured(missing)
    return _of(mine, Space.of(scheme, grids))


def _count(found: Found, points: Sequence[Point]) -> int:
    """How many of the points, from the first on, are on record."""
    known = itertools.takewhile(lambda p: Trial(p, 0) in found.chosen, points)
    return sum(1 for _ in known)


@remembered
def searched(results: Results, scheme: str, search: str) -> list[Result]:
    """The finished runs of seed 0 of a search, in the order in which it asked for them.

    Raises:
        NotMeasured: there are none, or the search has not come to its end.
    """
    found = narrow(results, scheme)
    box, most = found.space.box(), len(found.chosen)
    n_random = _count(found, hp_search.random_points(found.space, most))
    per_round = _count(found, [hp_search.drawn(box, 0, i, 1) for i in range(most)])
    if not {"random": n_random, "rounds": per_round}.get(search, 1):
        raise NotMeasured(f"{NAMES[scheme]}: no runs of the {SEARCHES[search]} search")
    plan = plans(found.space, n_random, per_round, seeds=1)[search]
    done, todo = hp_search.replay(plan, found.on_record)
    if todo:
        raise NotMeasured(f"{NAMES[scheme]}: the {SEARCHES[search]} search is not at its end")
    return done


@remembered
def lines(results: Results, scheme: str) -> Lines:
    """What the independent search found."""
    done = searched(results, scheme, "independent")
    found = hp_search.lines(narrow(results, scheme).space, done)
    if found is None:
        raise NotMeasured(f"{NAMES[scheme]}: every η diverged")
    return found


def combines(results: Results, scheme: str) -> bool:
    """True if the combination is a run of its own, and not the best of one line."""
    found = lines(results, scheme)
    return found.combined not in (found.start, *found.bests.values())


def end(results: Results, scheme: str, name: str) -> Point:
    """The point of one of ``ENDS``.

    Raises:
        NotMeasured: the search has not come to its end, or all of it diverged.
    """
    if name in ("random", "rounds"):
        done = searched(results, scheme, name)
        best = hp_search.best(done, [r.point for r in done])
        if best is None:
            raise NotMeasured(f"{NAMES[scheme]}: every run of the {SEARCHES[name]} search diverged")
        return best
    found = lines(results, scheme)
    if name == "line":
        done = searched(results, scheme, "independent")
        best = hp_search.best(done, [found.start, *found.bests.values()])
        assert best is not None  # the start has a finite loss
        return best
    return found.start if name == "eta" else found.combined


def spent(results: Results, scheme: str, name: str) -> int:
    """How many runs one of ``ENDS`` takes, further seeds not counted."""
    if name == "eta":
        return stops(results, scheme, "independent")[0]
    if name == "line":
        return len(searched(results, scheme, "independent")) - combines(results, scheme)
    search = "independent" if name == "combined" else name
    return len(searched(results, scheme, search))


def judged(found: Found, point: Point, what: str) -> pd.Series:
    """Held-out losses of a point by seed, those that chose it left out; infinite where diverged.

    Raises:
        NotMeasured: there are none; ``what`` names the point.
    """
    own = {t.seed: loss for t, loss in found.judged.items() if t.point == point and t.seed > 0}
    if not own:
        raise NotMeasured(f"{NAMES[found.space.scheme]}, {what}: no further seeds")
    return pd.Series(own, dtype=float).fillna(math.inf).sort_index()


def _gap(ours: pd.Series, theirs: pd.Series) -> Interval:
    """The mean difference over the seeds that both have; infinite where one of ours diverged."""
    if np.isinf(ours).any():
        return Interval(math.inf, math.inf, math.inf)
    return tables.paired(ours, theirs.replace(math.inf, np.nan))[0]


@quantity
def gap(results: Results, scheme: str, of: str, against: str, runs: int = 1) -> Interval:
    """Held-out loss where one search ends minus that where another does, paired by seed.

    Args:
        results: of a profile.
        scheme: whose hyperparameters are searched.
        of, against: of ``ENDS``.
        runs: that ``against`` took at least.
    """
    a, b = (end(results, scheme, name) for name in (of, against))
    if (took := spent(results, scheme, against)) < runs:
        raise NotMeasured(f"{NAMES[scheme]}: {took} runs of {ENDS[against]}, not {runs}")
    if a == b:
        return Interval.exact(0.0)  # the same runs
    found = narrow(results, scheme)
    return _gap(judged(found, a, ENDS[of]), judged(found, b, ENDS[against]))


@remembered
def widened(results: Results, scheme: str) -> tuple[Found, Point, Found, Point]:
    """On the wide model: η's line and its best, and the runs of the combined optimum and it.

    Raises:
        NotMeasured: there is no wide model, or no η of it has a finite loss.
    """
    table, space = trials(results), narrow(results, scheme).space
    wide = table[(table["scheme"] == scheme) & (table["d_model"] > table["d_model"].min())]
    combined = lines(results, scheme).combined
    others = [name for name in space.names if name != "eta"]
    default = wide[(wide[others] == 0).all(axis=1)]
    if default["eta"].nunique() < 2:
        raise NotMeasured(f"{NAMES[scheme]}: no line over η on a wider model")
    eta = Space.of(scheme, {"eta": sorted(default["eta"].unique())})
    of_line = _of(default, eta)
    done = [Result(*trial, loss) for trial, loss in of_line.chosen.items()]
    best = hp_search.best(done, eta.line("eta", eta.default()))
    if best is None:
        raise NotMeasured(f"{NAMES[scheme]}: every η of the wider model diverged")
    return of_line, best, _of(wide, space), combined


@quantity
def wide_gap(results: Results, scheme: str, factor: float = 1) -> Interval:
    """On the wide model: the combined optimum's held-out loss minus that of the best default η.

    ``factor``: how many times as wide it is at least.
    """
    table = trials(results)
    of_line, best, of_all, combined = widened(results, scheme)
    if (times := table["d_model"].max() / table["d_model"].min()) < factor:
        raise NotMeasured(f"widths span {times:g}×, the claim needs {factor:g}×")
    ours = judged(of_all, combined, "carried")
    return _gap(ours, judged(of_line, best, "wide line"))


def best_so_far(done: Sequence[Result]) -> NDArray[np.float64]:
    """The lowest training loss after every run, infinite while all diverged."""
    loss = np.array([r.loss for r in done], float)
    return np.minimum.accumulate(np.where(np.isnan(loss), math.inf, loss))


@remembered
def random_band(results: Results, scheme: str) -> NDArray[np.float64]:
    """The random search's best so far over orders of its runs: median, 2.5 and 97.5 %, (3, n)."""
    loss = np.array([r.loss for r in searched(results, scheme, "random")], float)
    loss = np.where(np.isnan(loss), math.inf, loss)
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(loss) for _ in range(ORDERS)])
    best = np.minimum.accumulate(orders, axis=1)
    return np.quantile(best, [0.5, 0.025, 0.975], axis=0, method="lower")


def stops(results: Results, scheme: str, search: str) -> list[int]:
    """After how many runs a search may be left: at ends of lines, of rounds, or after any run."""
    n = len(searched(results, scheme, search))
    if search == "random":
        return list(range(1, n + 1))
    if search == "rounds":
        return list(range(n // 3, n + 1, n // 3))
    space = narrow(results, scheme).space
    # A further line finds the default measured already.
    sizes = [len(space.grid("eta"))]
    sizes += [len(space.grid(name)) - 1 for name in space.names if name != "eta"]
    return [*itertools.accumulate(sizes), n][: len(sizes) + combines(results, scheme)]


def runs_needed(results: Results, scheme: str, search: str, within: float) -> int | None:
    """Runs until a search's best training loss is within so many nats of the lowest of any search.

    Counted at its ``stops``; of the random search the median over orders. None if it never is.
    """
    curves = {name: best_so_far(searched(results, scheme, name)) for name in SEARCHES}
    level = min(curve[-1] for curve in curves.values()) + within
    curve = random_band(results, scheme)[0] if search == "random" else curves[search]
    return next((n for n in stops(results, scheme, search) if curve[n - 1] <= level), None)
