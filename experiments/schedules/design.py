"""Study: learning-rate schedules at equal tokens, and one plateau that serves many budgets.

*Runs* train cosine, linear and two-step schedules from scratch over a grid of η. *Points* train
one plateau for each η and fork every warm-up-stable-decay (WSD) run from it: such a fork is the run
that was never forked, bit for bit, so that the points hold all of WSD for a part of the steps.
Everything is compared by its held-out loss at the end: the training loss of the last tenth, in
which schedules still differ in η, would favour those that decay early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from umup.checked import Count, CountOrZero, Fraction, OneOf, Range
from umup.config import OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Decoders, Text
from umup.lab.design import Octaves, Point, Spacing

from .results import SCHEDULES, WSD

SHAPE = (
    "width",
    "n_layers",
    "d_head",
    "ff_ratio",
    "seq_len",
    "batch_size",
    "warmup_steps",
    "final_lr_ratio",
    "weight_decay",
    "base_width",
    "dtype",
    "unroll",
    "eval_batches",
    "corpus",
    "tokenizer",
)
"""Parameters that all runs share, and that a point's specification holds."""

Share = Annotated[float, Range(0.0, 1.0, open_lo=True)]
Ends = tuple[Octaves, ...]


@dataclass(frozen=True)
class Schedules(Decoders):
    """The flat parameters of the study, in addition to those of every study of decoders."""

    width: Count = 32
    """Of every run."""
    n_layers: int = 1
    seq_len: int = 16
    base_width: int = 16
    eval_batches: int = 4
    warmup_steps: CountOrZero = 10
    """Steps of warm-up, equal for all budgets, since forks of one plateau share it."""
    final_lr_ratio: Fraction = 0.1
    """Final share of η of every schedule but two-step (0.1)."""
    schedules: tuple[Annotated[str, OneOf(*SCHEDULES)], ...] = SCHEDULES
    """Which to train: cosine at every budget, WSD as forks, others at ``main``."""
    budgets: tuple[Count, ...] = (40, 80)
    """Steps of the runs from scratch and of the ladder, under u-μP."""
    main: Count = 80
    """The budget at which all schedules are compared."""
    compare: tuple[Annotated[str, OneOf("mup", "sp")], ...] = ()
    """Further schemes, at the main budget only."""
    share: Share = 0.2
    """Share of a WSD run's steps that decays."""
    shares: tuple[Share, ...] = (0.1,)
    """Further shares, of linear decay."""
    share_budgets: tuple[Count, ...] = (80,)
    """Their budgets."""
    lr_umup: Ends = (-1.0, 1.0)
    """[low, high] in log2 η of u-μP's grid."""
    lr_mup: Ends = (-7.0, -5.0)
    """The same for the other schemes."""
    spacing: Spacing = 1.0
    """Octaves between a grid's points, each with all seeds."""
    seeds: int = 2
    fork_budgets: tuple[Count, ...] = (40,)
    """Step at which forked and unforked runs are compared bit for bit, at η = 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schedules", "budgets"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for steps in (self.main, *self.share_budgets):
            if steps not in self.budgets:
                field = "main" if steps == self.main else "share_budgets"
                raise ConfigError(field, steps, f"one of budgets = {list(self.budgets)}")
        for name in ("lr_umup", "lr_mup"):
            ends = getattr(self, name)
            if len(ends) != 2 or ends[1] <= ends[0]:
                raise ConfigError(name, ends, "two numbers, the lower first: [low, high] in log2")
        self.trained("umup", 0.0, 0, self.schedule("cosine", self.main))  # bad shapes are errors
        for rung in self.rungs("umup"):
            self.schedule(*rung)  # so are decays that begin before the warm-up's end

    @property
    def shape(self) -> dict[str, Any]:
        """What all runs share, as plain data."""
        return self.pick(*SHAPE)

    def schedule(self, schedule: str, steps: int, decay_steps: int = 0) -> OptimConfig:
        """The optimizer of a run that follows a schedule."""
        given = self.pick("batch_size", "warmup_steps", "final_lr_ratio")
        return OptimConfig(steps=steps, schedule=schedule, decay_steps=decay_steps, **given)

    def trained(
        self, scheme: str, log2_lr: float, seed: int, optim: OptimConfig, text: Text = NO_TEXT
    ) -> RunConfig:
        """A run of the study's shape."""
        return self.run(scheme, self.model(self.width, text), text, seed, optim, eta=log2_lr)

    def lrs(self, scheme: str) -> list[float]:
        """The grid of log2 η: μP's serves SP too, whose optimum is near at small widths."""
        lo, hi = self.lr_umup if scheme == "umup" else self.lr_mup
        return [lo + i * self.spacing for i in range(int((hi - lo) / self.spacing + 1e-9) + 1)]

    def kinds(self, forked: bool) -> list[str]:
        """The schedules that are forked from a plateau, or those that are not."""
        return [kind for kind in self.schedules if (kind in WSD) == forked]

    def rungs(self, scheme: str) -> list[tuple[str, int, int]]:
        """(schedule, steps, decay steps) of every fork of a scheme's plateau."""
        budgets = self.budgets if scheme == "umup" else (self.main,)
        wanted = [(kind, n, self.share) for kind in self.kinds(True) for n in budgets]
        if scheme == "umup" and "wsd" in self.schedules:
            wanted += [("wsd", n, share) for n in self.share_budgets for share in self.shares]
        return list(dict.fromkeys((kind, n, max(round(n * s), 1)) for kind, n, s in wanted))

    def points(self) -> list[Point]:
        """The check of forking, then a plateau with its forks for every scheme and η."""
        shared = {"seeds": self.seeds, "shape": self.shape}
        checks = [
            Point("fork", {"schedule": kind, "steps": n, "decay_steps": round(n * share), **shared})
            for kind, share in zip(WSD, (self.share, self.share / 2), strict=True)
            for n in self.fork_budgets
            if kind in self.schedules
        ]
        plateaus = [
            Point("ladder", {"scheme": scheme, "log2_lr": log2_lr, "rungs": rungs, **shared})
            for scheme in ("umup", *self.compare)
            if (rungs := [list(rung) for rung in self.rungs(scheme)])
            for log2_lr in self.lrs(scheme)
        ]
        return checks + plateaus

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Cosine at every budget, linear and two-step at the main one, over η and seeds."""
        kinds = self.kinds(False)
        arms = [("umup", "cosine", n) for n in sorted(self.budgets, reverse=True)]
        arms += [(scheme, k, self.main) for scheme in ("umup", *self.compare) for k in kinds]
        arms = [arm for arm in dict.fromkeys(arms) if arm[1] in kinds]
        return [
            self.trained(scheme, lr, seed, self.schedule(kind, steps), Text.of(dataset))
            for scheme, kind, steps in arms
            for lr in self.lrs(scheme)
            for seed in range(self.seeds)
        ]


def of_shape(shape: Mapping[str, Any]) -> Schedules:
    """The design whose runs have a point's ``shape``; its other parameters are not needed."""
    long = shape["warmup_steps"] + 100  # a budget must have room for warm-up and decay
    return Schedules(**dict(shape), budgets=(long,), main=long, share_budgets=())


DESIGN = Schedules
