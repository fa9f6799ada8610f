"""Study: does the best value of one hyperparameter depend on another?

For every pair of a scheme's hyperparameters a grid of losses, the others at their defaults
(Figures 10 and 11 of the u-μP paper). Grids share their lines through the defaults. With 6
hyperparameters and 5 values of each a scheme has 1 + 6 · 4 + 15 · 16 = 265 points; with three
seeds, two schemes and 500 steps at width 32 that is about 17 minutes on two quiet cores.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from umup.config import RunConfig
from umup.data import Dataset
from umup.lab.curves import Text
from umup.lab.hp_search import Point, Space, Spaces, Trial


@dataclass(frozen=True)
class Coupling(Spaces):
    """The flat parameters of the study, beside those of every study of several hyperparameters."""

    per_line: int = 5

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Every point of every pair's grid with every seed."""
        text = Text.of(dataset)
        return [
            self.trial(space, Trial(point, seed), text)
            for scheme in self.schemes
            for space in [self.space(scheme)]
            for seed in range(self.seeds)
            for point in points(space)
        ]


def points(space: Space) -> list[Point]:
    """The points of all planes of a space, each once; first the lines that planes share."""
    found = [point for name in space.names for point in space.line(name, space.default())]
    for a, b in itertools.combinations(space.names, 2):
        found += space.plane(a, b)
    return list(dict.fromkeys(found))


DESIGN = Coupling
