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
from typing import Any

from umup.config import (
    COUNT,
    FRACTION,
    POSITIVE,
    HPs,
    ModelConfig,
    OptimConfig,
    Range,
    RunConfig,
)
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design, Point

from .results import SCHEDULES, WSD

SHAPE = (
    "width", "n_layers", "d_head", "ff_ratio", "seq_len", "batch_size", "warmup_steps",
    "final_lr_ratio", "weight_decay", "base_width", "dtype", "unroll", "eval_batches", "corpus",
    "tokenizer",
)  # fmt: skip


@dataclass(frozen=True)
class Schedules(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        width, n_layers, d_head, ff_ratio, seq_len, batch_size, weight_decay, dtype, unroll,
            eval_batches: of every run; base_width: at which μP equals SP.
        warmup_steps: the same for every budget, as a plateau that is forked needs it.
        final_lr_ratio: where every schedule but two-step (0.1) ends.
        schedules: which to train; cosine at every budget, WSD as forks, others at ``main``.
        budgets: steps of the runs from scratch and of the ladder, under u-μP.
        main: the budget at which all schedules are compared.
        compare: further schemes, at the main budget only.
        share: of a WSD run's steps that decays. shares: further ones, of linear decay, at the
            budgets share_budgets.
        lr_umup, lr_mup: (low, high) log2 of the grid of η. spacing: octaves between its points.
        seeds: at every point of the grid.
        fork_budgets: at which forked and unforked runs are compared bit for bit, at η = 1.
    """

    width: int = 32
    n_layers: int = 1
    d_head: int = 16
    ff_ratio: float = 2.75
    seq_len: int = 16
    batch_size: int = 8
    warmup_steps: int = 10
    final_lr_ratio: float = 0.1
    weight_decay: float = 2.0**-13
    base_width: int = 16
    dtype: str = "float32"
    unroll: int = 0
    eval_batches: int = 4
    schedules: tuple[str, ...] = SCHEDULES
    budgets: tuple[int, ...] = (40, 80)
    main: int = 80
    compare: tuple[str, ...] = ()
    share: float = 0.2
    shares: tuple[float, ...] = (0.1,)
    share_budgets: tuple[int, ...] = (80,)
    lr_umup: tuple[float, ...] = (-1.0, 1.0)
    lr_mup: tuple[float, ...] = (-7.0, -5.0)
    spacing: float = 1.0
    seeds: int = 2
    fork_budgets: tuple[int, ...] = (40,)

    RANGES = {
        **Design.RANGES, "width": COUNT, "n_layers": COUNT, "d_head": COUNT, "ff_ratio": POSITIVE,
        "seq_len": COUNT, "batch_size": COUNT, "warmup_steps": Range(0),
        "final_lr_ratio": FRACTION, "weight_decay": Range(0.0), "base_width": COUNT,
        "eval_batches": COUNT, "schedules": SCHEDULES, "budgets": COUNT, "main": COUNT,
        "compare": ("mup", "sp"),
        "share": Range(0.0, 1.0, open_lo=True), "shares": Range(0.0, 1.0, open_lo=True),
        "share_budgets": COUNT, "lr_umup": Range(-60, 60), "lr_mup": Range(-60, 60),
        "spacing": (0.25, 0.5, 1.0), "seeds": COUNT, "fork_budgets": COUNT,
    }  # fmt: skip

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
        run_of(self.shape, "umup", 0.0, 0, "", 2, steps=self.main)  # bad shapes are errors now
        for rung in self.rungs("umup"):
            optim_of(self.shape, *rung)  # so are decays that begin before the warm-up's end

    @property
    def shape(self) -> dict[str, Any]:
        """What all runs share, as plain data."""
        return {name: getattr(self, name) for name in SHAPE}

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
        checks = [
            Point("fork", {"schedule": kind, "steps": steps, "decay_steps": round(steps * share),
                           "seeds": self.seeds, "shape": self.shape})
            for kind, share in zip(WSD, (self.share, self.share / 2), strict=True)
            for steps in self.fork_budgets if kind in self.schedules
        ]  # fmt: skip
        plateaus = [
            Point("ladder", {"scheme": scheme, "log2_lr": log2_lr, "seeds": self.seeds,
                             "rungs": [list(rung) for rung in self.rungs(scheme)],
                             "shape": self.shape})
            for scheme in ("umup", *self.compare)
            for log2_lr in self.lrs(scheme) if self.rungs(scheme)
        ]  # fmt: skip
        return checks + plateaus

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Cosine at every budget, linear and two-step at the main one, over η and seeds."""
        kinds = self.kinds(False)
        arms = [("umup", "cosine", n) for n in sorted(self.budgets, reverse=True)]
        arms += [(scheme, k, self.main) for scheme in ("umup", *self.compare) for k in kinds]
        arms = [arm for arm in dict.fromkeys(arms) if arm[1] in kinds]
        return [
            run_of(self.shape, scheme, log2_lr, seed, dataset.digest, dataset.vocab_size,
                 schedule=kind, steps=steps)
            for scheme, kind, steps in arms
            for log2_lr in self.lrs(scheme)
            for seed in range(self.seeds)
        ]  # fmt: skip


def optim_of(
    shape: Mapping[str, Any], schedule: str, steps: int, decay_steps: int = 0
) -> OptimConfig:
    """The optimizer of a run of ``Schedules.shape``."""
    return OptimConfig(
        steps=steps, batch_size=shape["batch_size"], warmup_steps=shape["warmup_steps"],
        final_lr_ratio=shape["final_lr_ratio"], schedule=schedule, decay_steps=decay_steps,
    )  # fmt: skip


def run_of(
    shape: Mapping[str, Any], scheme: str, log2_lr: float, seed: int, data_digest: str,
    vocab_size: int, *, schedule: str = "cosine", steps: int, decay_steps: int = 0,
) -> RunConfig:  # fmt: skip
    width = shape["width"]
    return RunConfig(
        scheme=scheme,
        model=ModelConfig(
            d_model=width, n_layers=shape["n_layers"], d_head=shape["d_head"],
            d_ff=round(width * shape["ff_ratio"]), vocab_size=vocab_size,
            seq_len=shape["seq_len"], base_width=shape["base_width"],
            base_depth=shape["n_layers"], base_d_head=shape["d_head"], dtype=shape["dtype"],
            unroll=shape["unroll"],
        ),
        optim=optim_of(shape, schedule, steps, decay_steps),
        hps=HPs(eta=2.0**log2_lr, weight_decay=shape["weight_decay"]),
        seed=seed, corpus=shape["corpus"], tokenizer=shape["tokenizer"], data_digest=data_digest,
        eval_batches=shape["eval_batches"],
    )  # fmt: skip


DESIGN = Schedules
