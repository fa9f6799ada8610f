"""The study ``judging``: how often do our intervals cover the truth?

Points only, nothing is trained: sweeps are drawn from curves whose optimum is known. ``SETTINGS``
says what they are like; bend, curvature, noise and spread of the first are those of the committed
sweeps of ``lr_transfer``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from umup.checked import Count, OneOf
from umup.lab.design import Design, Point

USUAL: dict[str, Any] = {
    "widths": 4,
    "seeds": 3,
    "bend": [0.2, 0.9],
    "noise": [0.003, 0.012],
    "spread": 0.012,
    "departure": 0.0,
    "degree": 3,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "usual": USUAL,
    "bent": USUAL | {"bend": [0.8, 1.4]},
    "noisy": USUAL | {"noise": [0.012, 0.03]},
    "departing": USUAL | {"departure": 0.15},
    "three widths": USUAL | {"widths": 3},
    "one seed": USUAL | {"seeds": 1},
    "six seeds": USUAL | {"seeds": 6},
    "parabola": USUAL | {"degree": 2, "window": 1.25},
}
"""What sweeps are like, by name; the last is the control, fitted by a parabola
within 1.25 octaves of the best."""


@dataclass(frozen=True)
class Judging(Design):
    """Parameters of the study."""

    settings: tuple[Annotated[str, OneOf(*SETTINGS)], ...] = tuple(SETTINGS)
    """Names in ``SETTINGS``."""
    draws: Count = 1000
    """Families of sweeps, each over all widths, of every setting."""
    point_seconds: float = 20.0

    def points(self) -> list[Point]:
        """One for every setting."""
        return [Point("coverage", SETTINGS[name] | {"draws": self.draws}) for name in self.settings]


DESIGN = Judging
