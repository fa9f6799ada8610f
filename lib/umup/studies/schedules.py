"""Study: learning-rate schedules at equal tokens, and one plateau that serves many budgets.

*Runs* train cosine, linear and two-step schedules from scratch over a grid of η. *Points* train
one plateau for each η and fork every warm-up-stable-decay (WSD) run from it: such a fork is the run
that was never forked, bit for bit, so that the points hold all of WSD for a part of the steps.
Everything is compared by its held-out loss at the end: the training loss of the last tenth, in
which schedules still differ in η, would favour those that decay early.
"""

from __future__ import annotations

import dataclasses
import math
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
from umup.studies.schedules_tables import QUANTITIES, SCHEDULES, WSD

__all__ = ["DESIGN", "MEASURES", "QUANTITIES", "Schedules", "fork", "ladder"]

SHAPE = (
    "width", "n_layers", "d_head", "ff_ratio", "seq_len", "batch_size", "warmup_steps",
    "final_lr_ratio", "weight_decay", "base_width", "dtype", "unroll", "eval_batches", "corpus",
    "tokenizer",
)  # fmt: skip
CURVE_POINTS = 60


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
        _run(self.shape, "umup", 0.0, 0, "", 2, steps=self.main)  # bad shapes are errors now
        for rung in self.rungs("umup"):
            _optim(self.shape, *rung)  # so are decays that begin before the warm-up's end

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
            _run(self.shape, scheme, log2_lr, seed, dataset.digest, dataset.vocab_size,
                 schedule=kind, steps=steps)
            for scheme, kind, steps in arms
            for log2_lr in self.lrs(scheme)
            for seed in range(self.seeds)
        ]  # fmt: skip


def _optim(
    shape: Mapping[str, Any], schedule: str, steps: int, decay_steps: int = 0
) -> OptimConfig:
    return OptimConfig(
        steps=steps, batch_size=shape["batch_size"], warmup_steps=shape["warmup_steps"],
        final_lr_ratio=shape["final_lr_ratio"], schedule=schedule, decay_steps=decay_steps,
    )  # fmt: skip


def _run(
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
        optim=_optim(shape, schedule, steps, decay_steps),
        hps=HPs(eta=2.0**log2_lr, weight_decay=shape["weight_decay"]),
        seed=seed, corpus=shape["corpus"], tokenizer=shape["tokenizer"], data_digest=data_digest,
        eval_batches=shape["eval_batches"],
    )  # fmt: skip


class _Plateau:
    """Runs of one η and several seeds at the full rate, from which decays are forked.

    Args:
        shape: as ``Schedules.shape``. end: last step at which a fork begins.
    """

    def __init__(self, shape: Mapping[str, Any], scheme: str, log2_lr: float, seeds: int, end: int):
        import jax.numpy as jnp

        from umup import data, train
        from umup.lab import sweep

        text = data.load(shape["corpus"], shape["tokenizer"], seq_len=shape["seq_len"])
        self.tokens = sweep.device_tokens(text)
        self.held_out = jnp.asarray(text.val)
        self.runs = [
            _run(shape, scheme, log2_lr, seed, text.digest, text.vocab_size,
                 schedule="wsd", steps=end + 1, decay_steps=1)
            for seed in range(seeds)
        ]  # fmt: skip
        self.shape, self.lanes = shape, train.lanes_of(self.runs)
        self.programs = train.programs(self.runs[0])
        self.states, self.done = self.programs.init(self.lanes), 0

    def to(self, step: int, chunk: int):
        """Train on to ``step`` and return the losses on the way, (seeds, steps)."""
        import numpy as np

        losses = [np.zeros((len(self.runs), 0), np.float32)]
        while self.done < step:
            n = min(chunk, step - self.done)
            self.states, new = self.programs.chunk(self.tokens, self.lanes, self.states, n)
            losses.append(np.asarray(new))
            self.done += n
        return np.concatenate(losses, axis=1)

    def decayed(self, schedule: str, steps: int, decay_steps: int):
        """States after a decay from here, and the losses on the way; the plateau stays as it is."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from umup import train

        optim = _optim(self.shape, schedule, steps, decay_steps)
        programs = train.programs(dataclasses.replace(self.runs[0], optim=optim))
        copy = jax.tree.map(jnp.copy, self.states)  # a chunk takes its states' buffers
        states, losses = programs.chunk(self.tokens, self.lanes, copy, decay_steps)
        return states, np.asarray(losses)

    def held_out_loss(self, states) -> list[float | None]:
        """Loss of each seed on the held-out text, nats a token; None where it diverged."""
        losses = self.programs.evaluate(self.held_out, states)
        limit = math.log(self.runs[0].model.vocab_size)
        return [float(x) if float(x) <= limit else None for x in losses]  # NaN is not <= either


def _thin(losses, first: int, points: int) -> dict[str, list]:
    """The curve as means over ``points`` stretches of steps, and over seeds."""
    import numpy as np

    parts = np.array_split(losses.mean(0, dtype=float), min(points, losses.shape[1]))
    ends = first + np.cumsum([len(part) for part in parts])
    means = [float(part.mean()) for part in parts]
    return {"curve_steps": ends.tolist(),
            "curve_loss": [m if math.isfinite(m) else None for m in means]}  # fmt: skip


def ladder(
    *, scheme: str, log2_lr: float, seeds: int, rungs: list[list], shape: dict[str, Any]
) -> dict[str, Any]:
    """One plateau a seed, and every rung forked from it.

    Args:
        scheme, log2_lr, seeds, shape: of all runs.
        rungs: (schedule, steps, decay_steps) of the forks; one begins at steps − decay_steps.

    Returns:
        rungs, each with schedule, steps, decay_steps, loss (held out, by seed, None where it
        diverged) and its curve; curve_steps and curve_loss of the plateau; trained: the steps that
        all of this took a seed.
    """
    import numpy as np

    todo = sorted((steps - decay, kind, steps, decay) for kind, steps, decay in rungs)
    plateau = _Plateau(shape, scheme, log2_lr, seeds, todo[-1][0])
    chunk = math.gcd(*(start for start, *_ in todo))  # one program for the whole plateau
    out, losses = [], []
    for start, kind, steps, decay in todo:
        losses.append(plateau.to(start, chunk))
        states, falling = plateau.decayed(kind, steps, decay)
        out.append({"schedule": kind, "steps": steps, "decay_steps": decay,
                    "loss": plateau.held_out_loss(states), **_thin(falling, start, 8)})  # fmt: skip
    trained = plateau.done + sum(decay for *_, decay in todo)
    curve = _thin(np.concatenate(losses, axis=1), 0, CURVE_POINTS)
    return {"rungs": out, "trained": trained, **curve}


def fork(
    *, schedule: str, steps: int, decay_steps: int, seeds: int, shape: dict[str, Any]
) -> dict[str, float]:
    """A run forked from a plateau twice as long as it needs, against the same run unforked.

    Returns:
        losses, weights: largest differences between the two, of any training loss and of any
        weight at the end, at η = 1 under u-μP; 0 where they are bit for bit alike.
    """
    import jax
    import numpy as np

    from umup import train

    plateau = _Plateau(shape, "umup", 0.0, seeds, 2 * steps)
    start = steps - decay_steps
    losses = plateau.to(start, math.gcd(start, steps))
    states, falling = plateau.decayed(schedule, steps, decay_steps)
    whole = dataclasses.replace(plateau.runs[0], optim=_optim(shape, schedule, steps, decay_steps))
    fresh = plateau.programs.init(plateau.lanes)
    unforked, wanted = train.programs(whole).chunk(plateau.tokens, plateau.lanes, fresh, steps)
    pairs = zip(jax.tree.leaves(states.params), jax.tree.leaves(unforked.params), strict=True)
    apart = [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs]
    got = np.concatenate([losses, falling], axis=1)
    return {"losses": float(np.abs(got - np.asarray(wanted)).max()), "weights": max(apart)}


DESIGN = Schedules
MEASURES: Mapping = {"ladder": ladder, "fork": fork}
