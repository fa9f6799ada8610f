"""Study: what each defence against instability does, and what it costs a healthy run.

Three parts. *Arms*: the loss over η, from about the best η to far above it, with one defence at a
time (z-loss, QK-norm, both, clipping, no warm-up; depth-scaled initialization in a deeper model),
attention and output logits probed; the grid of an arm may grow downwards. *Clipped runs* compare
clipping by the unscaled norm with clipping by the norm of the gradients as held. *Drills* plant a
spike and let the loop heal it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import pandas as pd

from umup.checked import Count, CountOrZero, Fraction, OneOf, Positive, Range
from umup.config import ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Text, Trained, losses
from umup.lab.design import Octaves, Point

from .drills import KINDS
from .results import DEFENCES, SCHEMES

BELOW = 2
"""η of an arm's grid that must lie below its best: as many octaves as the wider fit takes in."""
TIMED = ("z_loss", "qk_norm", "clip")


class Arm(NamedTuple):
    """One curve: a scheme with a defence; ``cap`` is the multiplier of q·k times d_head."""

    scheme: str
    defence: str
    deep: bool = False
    cap: float | None = None


Scheme = Annotated[str, OneOf(*SCHEMES)]


@dataclass(frozen=True)
class Stability(Trained):
    """The flat parameters of the study, in addition to those of every study of decoders."""

    schemes: tuple[Scheme, ...] = SCHEMES
    """Of the arms."""
    defences: tuple[Annotated[str, OneOf(*DEFENCES)], ...] = tuple(DEFENCES)
    """Of the arms; none is among them, to compare with."""
    width: Count = 64
    """Of every training run."""
    steps: int = 256
    warmup_ratio: Annotated[float, Range(0.0, 1.0, open_lo=True)] = 0.25
    eval_batches: int = 4
    probe_steps: tuple[CountOrZero, ...] = (256,)
    """Steps to probe; the step ``steps`` is the end, which tables read."""
    z_loss: Positive = 1e-4
    """Strength of that defence."""
    clip: Positive = 1.0
    """Strength of that defence."""
    caps: tuple[Fraction, ...] = (0.0, 0.5, 1.0)
    """Of u-μP's arms with and without QK-norm, beside the defaults: powers of d_head."""
    deep_layers: CountOrZero = 8
    """Of the arms with depth-scaled initialization (0: none)."""
    deep_width: Count = 32
    """Of those arms."""
    lr_sp: Octaves = -8.0
    """log2 of SP's lowest η."""
    lr_mup: Octaves = -7.0
    """log2 of μP's lowest η."""
    lr_umup: Octaves = 0.0
    """log2 of u-μP's lowest η."""
    octaves: Count = 6
    """Octaves of the grid, upwards from the lowest η."""
    extend: CountOrZero = 0
    """Octaves by which an arm's grid may grow downwards, until ``BELOW`` η lie below its best."""
    clip_octaves: tuple[Annotated[int, Range(-60, 60)], ...] = (0, 4)
    """Octaves above the best η at which clipped runs are compared; empty: none."""
    best_sp: Octaves = -7.0
    """About SP's best log2 η."""
    best_mup: Octaves = -6.0
    """About μP's best log2 η."""
    best_umup: Octaves = 1.0
    """About u-μP's best log2 η."""
    time_repeats: CountOrZero = 40
    """Of the timed steps (0: none)."""
    time_chunk: Count = 16
    """Steps in a timed program."""
    drill_schemes: tuple[Scheme, ...] = ("mup", "umup")
    """Of the drills; empty: none."""
    drill_kinds: tuple[Annotated[str, OneOf(*KINDS)], ...] = KINDS
    """Of the drills; empty: none."""
    drill_steps: Annotated[int, Range(160)] = 400
    """Steps of the drills' runs, which are disturbed half way."""
    drill_width: Count = 32
    """Of the drills' runs."""
    drill_seeds: Count = 3
    """Of every drill."""
    drill_length: Count = 8
    """Number of batches that are disturbed."""
    drill_factor: Positive = 64.0
    """Factor on η in a jump."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schemes", "defences"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        if "none" not in self.defences:
            raise ConfigError("defences", self.defences, "none among them, to compare with")
        if 0 < self.deep_layers <= self.n_layers:
            raise ConfigError("deep_layers", self.deep_layers, f"0 or above {self.n_layers}")
        if max(self.probe_steps, default=0) > self.steps:
            raise ConfigError("probe_steps", self.probe_steps, f"at most steps = {self.steps}")
        for width in (self.width, self.deep_width, self.drill_width):
            if width % self.d_head:
                allowed = f"a divisor of every width, {width} among them"
                raise ConfigError("d_head", self.d_head, allowed)

    def arms(self) -> list[Arm]:
        """Every curve, those that share a program side by side."""
        arms = [Arm(s, d) for d in self.defences for s in self.schemes]
        if "umup" in self.schemes:
            for defence in ("none", "qk_norm"):
                if defence in self.defences:
                    arms += [Arm("umup", defence, cap=self.d_head**c) for c in self.caps]
        if self.deep_layers:
            arms += [Arm(s, "none", deep=True) for s in self.schemes]
            arms += [Arm(s, "depth_init", deep=True) for s in self.schemes if s != "umup"]
        return arms

    def decoder(self, text: Text = NO_TEXT, deep: bool = False, defence: str = "") -> ModelConfig:
        """The model's shape with a defence; ``deep`` is that of the depth-scaled arms."""
        defended = {
            "qk_norm": defence in ("qk_norm", "both"),
            "z_loss": self.z_loss if defence in ("z_loss", "both") else 0.0,
            "depth_scaled_init": defence == "depth_init",
        }
        if deep:
            defended |= {"n_layers": self.deep_layers}
        return self.model(self.deep_width if deep else self.width, text, **defended)

    def optimizer(self, defence: str = "") -> OptimConfig:
        """The optimizer with a defence."""
        changes: dict[str, Any] = {"warmup_steps": 0} if defence == "no_warmup" else {}
        return self.optim(clip=self.clip if defence == "clip" else 0.0, **changes)

    def alpha(self, arm: Arm) -> float:
        """α_attn of an arm. QK-norm takes u-μP's from 1 to √d, with which logits reach ±√d, as
        they do in SP and, at the base head size, in μP."""
        if arm.scheme != "umup":
            return 1.0
        if arm.cap is not None:
            return arm.cap
        return self.d_head**0.5 if arm.defence in ("qk_norm", "both") else 1.0

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Every arm at every η and seed of the first grid."""
        runs, text = [], Text.of(dataset)
        for arm in self.arms():
            for seed in range(self.seeds):
                runs += [_run_of(self, arm, i, seed, text)[0] for i in range(self.octaves + 1)]
        return list(dict.fromkeys(runs))

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """What the first grids lack; then, arm by arm, an octave below a grid whose best η is too
        near its lower end."""
        wanted, loss_of, text = super().pending(runs, dataset), losses(runs), Text.of(dataset)
        for arm in self.arms() if self.extend else ():
            wanted += [run for run, key in self._lower(arm, loss_of, text) if key not in loss_of]
        return list(dict.fromkeys(wanted))

    def _lower(
        self, arm: Arm, loss_of: dict[str, float], text: Text
    ) -> list[tuple[RunConfig, str]]:
        """The runs, with their keys, at the next η below an arm's finished grid, if it is wanted.

        The best η is that of the lowest mean loss. A diverged run counts as infinite.
        """
        grid: dict[int, float] = {}
        for i in range(self.octaves, -self.extend - 1, -1):
            at = [_run_of(self, arm, i, seed, text) for seed in range(self.seeds)]
            if any(key not in loss_of for _, key in at):
                open_above = i >= 0 or min(grid, key=lambda j: (grid[j], j)) - i > BELOW
                return [] if open_above else at
            found = [loss_of[key] for _, key in at]
            grid[i] = sum(x if math.isfinite(x) else math.inf for x in found)
        return []

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the middle of the first grid."""
        middle = getattr(self, f"lr_{run.scheme}") + self.octaves / 2
        return 1.0 + 0.1 * (math.log2(run.hps.eta) - middle) ** 2

    def points(self) -> list[Point]:
        """Drills, clipped runs and timed steps."""
        what = self.pick("corpus", "tokenizer") | {
            "model": self.decoder().to_spec(),
            "optimizer": self.optimizer().to_spec(),
        }
        return [*self._drills(what), *self._clipped(what), *self._timed(what)]

    def _clipped(self, what: dict[str, Any]) -> Iterator[Point]:
        schemes = (*self.schemes, *(["mup_intermediate"] if "mup" in self.schemes else []))
        grid = itertools.product(
            ("unscaled", "held"), self.clip_octaves, schemes, range(self.seeds)
        )
        for norm, octaves, scheme, seed in grid:
            best = getattr(self, f"best_{scheme.split('_')[0]}")
            own = {"scheme": scheme, "norm": norm, "octaves": octaves, "seed": seed}
            yield Point("clipped", {**what, **own, "clip": self.clip, "log2_lr": best + octaves})

    def _timed(self, what: dict[str, Any]) -> Iterator[Point]:
        changes = {"z_loss": {"z_loss": self.z_loss}, "qk_norm": {"qk_norm": True}, "clip": {}}
        how = {"repeats": self.time_repeats, "chunk": self.time_chunk}
        for defence in TIMED if self.time_repeats else ():
            clip = self.clip if defence == "clip" else 0.0
            own = {"defence": defence, "changes": changes[defence], "clip": clip}
            yield Point("step_time", {**what, **own, **how})

    def _drills(self, what: dict[str, Any]) -> Iterator[Point]:
        steps = self.drill_steps
        warmup = round(steps * self.warmup_ratio)
        drilled = {
            "model": self.model(self.drill_width).to_spec(),
            "optimizer": self.optim(steps=steps).to_spec(),
            "recovery": {"window": 64, "warmup": max(warmup, 40), "margin": steps // 20},
            "every": steps // 8,
            "chunk": steps // 16,
            "at": steps // 2,
            "length": self.drill_length,
            "factor": self.drill_factor,
        }
        for kind, recover in itertools.product(self.drill_kinds, (True, False)):
            if kind == "clean" and not recover:
                continue
            for scheme, seed in itertools.product(self.drill_schemes, range(self.drill_seeds)):
                own = {"kind": kind, "recover": recover, "scheme": scheme, "seed": seed}
                lr = {"log2_lr": getattr(self, f"best_{scheme}")}
                yield Point("drill", {**what, **drilled, **own, **lr})


@functools.lru_cache(maxsize=4096)  # a design requests the same runs again after each that finishes
def _run_of(
    design: Stability, arm: Arm, octave: int, seed: int, text: Text
) -> tuple[RunConfig, str]:
    """The run ``octave`` octaves above an arm's lowest η of the first grid, and its key."""
    log2_lr = getattr(design, f"lr_{arm.scheme}") + octave
    model = design.decoder(text, arm.deep, arm.defence)
    optim = design.optimizer(arm.defence)
    run = design.run(arm.scheme, model, text, seed, optim, design.probe_steps, eta=log2_lr)
    run = replace(run, hps=replace(run.hps, alpha_attn_softmax=design.alpha(arm)))
    return run, run.key()


DESIGN = Stability
