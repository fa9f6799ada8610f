"""Tables and quantities of the study ``decay_transfer``, from its records alone.

An *arm* is a scheme with a kind and strength of weight decay, a rule for λ over width, and a length
of warm-up. Losses are held-out; intervals are 95 %, and differences of losses are paired by seed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from umup import laws
from umup.lab import records, tables
from umup.lab.absent import NotMeasured, required
from umup.lab.quantities import Quantities, spanning
from umup.lab.records import Results
from umup.lab.report import NO_RUNS
from umup.lab.tables import NAMES, SCHEMES, remembered
from umup.laws import Interval, Optimum

quantity = QUANTITIES = Quantities()

STRONG = 2.0**-7
"""λ from which on independent decay is strong; coupled decay always is."""
LONG = 0.1
"""Share of the steps from which on a warm-up is long."""


class Arm(NamedTuple):
    """What has one curve of loss over η per width.

    Attributes:
        scheme: its parametrization.
        title: how it differs from other arms of the scheme.
        decay, rule: as ``OptimConfig.decay`` and ``decay_rule``.
        strength, warmup: the design's parameters that hold λ and the share of warm-up.
    """

    scheme: str
    title: str = "independent"
    decay: str = "independent"
    strength: str = "weight_decay"
    rule: str = "constant"
    warmup: str = "warmup_ratio"

    @property
    def name(self) -> str:
        """Scheme and title, as ``μP, coupled``."""
        return f"{NAMES[self.scheme]}, {self.title}"


STRENGTHS = {"sp": "lambda_coupled", "mup": "lambda_coupled", "umup": "lambda_coupled_umup"}
GROUPS: tuple[dict[str, Arm], ...] = (
    {s: Arm(s) for s in SCHEMES},
    {f"{s}_coupled": Arm(s, "coupled", "coupled", STRENGTHS[s]) for s in SCHEMES},
    {
        "mup_coupled_sqrt": Arm(
            "mup", "coupled, λ ∝ √width", "coupled", "lambda_coupled", "sqrt_width"
        ),
        "mup_coupled_width": Arm("mup", "coupled, λ ∝ width", "coupled", "lambda_coupled", "width"),
        "mup_inverse_width": Arm(
            "mup", "strong, λ ∝ 1/width", "independent", "lambda_strong", "inverse_width"
        ),
    },
    {f"{s}_long": Arm(s, "long warm-up", warmup="warmup_long") for s in SCHEMES},
    {f"{s}_strong": Arm(s, "strong", strength="lambda_strong") for s in SCHEMES},
)
"""Arms by what they share, the deciding groups first."""
ARMS = {name: arm for group in GROUPS for name, arm in group.items()}


@remembered
def known(runs: pd.DataFrame) -> pd.DataFrame:
    """Current runs with their specification and two switches: ``strong`` decay, ``long`` warm-up.

    Raises:
        NotMeasured: there are none.
    """
    found = records.current(required(runs, NO_RUNS))
    found = records.with_spec(required(found, "no current runs"))
    coupled = found["optim.decay"] == "coupled"
    return found.assign(
        strong=coupled | (found["hps.weight_decay"] >= STRONG),
        long=found["optim.warmup_steps"] >= LONG * found["steps"],
    )


@remembered
def arm_runs(runs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The runs of an arm, prepared (``tables.prepare``), with its name as the ``scheme``.

    At the base width a rule's factor on λ is 1: the runs there are those without a rule.

    Raises:
        NotMeasured: there are none.
    """
    every, wanted = known(runs), ARMS[arm]
    rule, base = every["optim.decay_rule"], every["d_model"] == every["model.base_width"]
    own = every[
        (every["scheme"] == wanted.scheme)
        & (every["optim.decay"] == wanted.decay)
        & (every["strong"] == (wanted.strength != "weight_decay"))
        & (every["long"] == (wanted.warmup == "warmup_long"))
        & ((rule == wanted.rule) | base & (rule == "constant"))
    ]
    return tables.prepare(required(own, f"no runs of {wanted.name}").assign(scheme=arm))


@remembered
def optima(runs: pd.DataFrame, arm: str) -> dict[int, Optimum]:
    """Width → the best log₂ η of an arm, widths rising.

    Raises:
        NotMeasured: there are no runs.
    """
    found = {width: o for (_, width, _), o in tables.fits(arm_runs(runs, arm)).items()}
    return dict(sorted(found.items()))


def _ends(results: Results, arm: str, factor: float) -> dict[int, Optimum]:
    """The optima at the narrowest and widest models, which differ by ``factor`` in width or more.

    Raises:
        NotMeasured: they do not, or one has no steady learning rate.
    """
    found = optima(results.runs, arm)
    ends = spanning(found, factor, f"{ARMS[arm].name}: widths")
    for width in ends:
        if not math.isfinite(found[width].x):
            raise NotMeasured(f"{ARMS[arm].name} at width {width}: {found[width].reason}")
    return {width: found[width] for width in ends}


def _where(arm: str, widths: dict[int, Optimum]) -> str:
    return f"{ARMS[arm].name}, widths {' and '.join(map(str, widths))}"


@quantity
def shift(results: Results, arm: str, factor: float = 2) -> Interval:
    """Octaves from the best η of the narrowest model to that of the widest."""
    ends = _ends(results, arm, factor)
    return laws.drift(ends).shift.at(_where(arm, ends))


@quantity
def shift_difference(results: Results, arm: str, against: str, factor: float = 2) -> Interval:
    """The ``shift`` of an arm minus that of another, octaves."""
    one, other = (shift(results, name, factor) for name in (arm, against))
    return one.minus(other).at(f"{ARMS[arm].name} and {ARMS[against].title}")


@quantity
def price(results: Results, arm: str, factor: float = 2) -> Interval:
    """What the narrowest model's best η costs in the widest, nats: see ``tables.price``."""
    ends = _ends(results, arm, factor)
    (_, narrow), (width, wide) = ends.items()
    runs = arm_runs(results.runs, arm)
    found = tables.price(runs[runs["d_model"] == width], narrow, wide)
    return found.at(_where(arm, ends))


@quantity
def difference(results: Results, arm: str, against: str, factor: float = 2) -> Interval:
    """Loss of an arm minus that of another at the largest width, each at its own best η, nats.

    Both searches must bracket their optimum.
    """
    width = max(_ends(results, arm, factor))
    for name in (arm, against):
        o = optima(results.runs, name).get(width)
        if o is None or o.edge:
            reason = o.reason if o else "no runs"
            raise NotMeasured(f"{ARMS[name].name} at width {width}: {reason}")
    both = pd.concat([arm_runs(results.runs, name) for name in (arm, against)])
    found = tables.default_differences(both[both["d_model"] == width], arm)
    missing = f"{ARMS[arm].name} and {ARMS[against].name}: no steady η at width {width}"
    row = required(found, missing).iloc[0]
    return Interval.of(row, "difference").at(f"width {width}", int(row["n"]))
