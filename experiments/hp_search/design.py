"""Study: how many runs does a search of hyperparameters take, and by which search?

For u-μP and μP the same box of six hyperparameters is searched at width 32 in three ways
(`umup.lab.hp_search`): independent line searches, random points, and three rounds of random
points. What the independent search ends with is carried to a wide model and compared there with the
defaults, η tuned. With 9 values per line, 150 random points and rounds of 16, a scheme takes 248
runs for the searches and about 50 for further seeds, at 2.5 s, and 16 at width 256, at 37 s: about
23 minutes for both on two quiet cores.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from umup.checked import Count, CountOrZero
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import hp_search
from umup.lab.curves import Text, losses
from umup.lab.hp_search import Plan, Result, Space, Spaces, Trial

from .results import carried, plans, wide_space


@dataclass(frozen=True)
class HPSearch(Spaces):
    """The flat parameters of the study, beside those of every study of several hyperparameters."""

    n_random: Count = 150
    """Points of the random search."""
    per_round: Count = 16
    """Points of each of the three rounds."""
    seeds: int = 9
    """Runs where a search ends: one that it chose by, the others to judge by."""
    wide: CountOrZero = 256
    """Width to which the found values are carried (0: none)."""
    wide_seeds: Count = 6
    """The same of ``seeds``, there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for scheme in ("umup", "mup"):
            space = self.space(scheme)
            for name, (lo, hi) in zip(space.names, space.box(), strict=True):
                if name != "eta" and not lo <= 0 <= hi:  # else no record shows the box
                    raise ConfigError(name, [lo, hi], "a grid around the default, log2 = 0")
        if self.wide:
            self.model(self.wide)  # heads that do not divide are an error now

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """What is wanted whatever the results."""
        return self.pending(pd.DataFrame(), dataset)

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next, given the finished ones (rows of this profile)."""
        text, loss_of = Text.of(dataset), losses(runs)
        wanted = [run for s in self.schemes for run in self._missing(s, text, loss_of)]
        return list(dict.fromkeys(wanted))

    def _missing(self, scheme: str, text: Text, loss_of: Mapping[str, float]) -> list[RunConfig]:
        """What the searches of a scheme want, and what is to be carried to the wide model."""
        space, wanted = self.space(scheme), []
        ended: dict[str, list[Result]] = {}
        for name, plan in plans(space, self.n_random, self.per_round, self.seeds).items():
            results, todo = self._replay(space, plan, self.width, text, loss_of)
            wanted += [_run(self, space, trial, text, self.width)[0] for trial in todo]
            if not todo:
                ended[name] = results
        if not self.wide:
            return wanted
        narrow, seeds = wide_space(space), self.wide_seeds
        _, todo = self._replay(
            narrow, lambda r: hp_search.independent(narrow, r, seeds), self.wide, text, loss_of
        )
        wanted += [_run(self, narrow, trial, text, self.wide)[0] for trial in todo]
        if (found := ended.get("independent")) is not None:
            for trial in carried(space, found, seeds):
                run, key = _run(self, space, trial, text, self.wide)
                wanted += [] if key in loss_of else [run]
        return wanted

    def _replay(
        self, space: Space, plan: Plan, width: int, text: Text, loss_of: Mapping[str, float]
    ) -> tuple[list[Result], list[Trial]]:
        def look(trial: Trial) -> float | None:
            return loss_of.get(_run(self, space, trial, text, width)[1])

        return hp_search.replay(plan, look)


@functools.lru_cache(maxsize=8192)
def _run(
    design: HPSearch, space: Space, trial: Trial, text: Text, width: int
) -> tuple[RunConfig, str]:
    """The run of a trial with its key; kept, since a plan asks for the same after every group."""
    run = design.trial(space, trial, text, width)
    return run, run.key()


DESIGN = HPSearch
