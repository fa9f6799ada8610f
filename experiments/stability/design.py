"""Study: what each defence against instability does, and what it costs a run that is well.

Three parts. *Arms*: the loss over η, from about the best η to far above it, with one defence at a
time (z-loss, QK-norm, both, clipping, no warm-up; depth-scaled initialization in a deeper model),
attention and output logits probed. *Clipped runs* compare clipping by the unscaled norm with
clipping by the norm of the gradients as held. *Drills* plant a spike and let the loop heal it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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

from .drills import KINDS
from .results import DEFENCES, SCHEMES

TIMED = ("z_loss", "qk_norm", "clip")


class Arm(NamedTuple):
    """One curve: a scheme with a defence; ``cap`` is the multiplier of q·k times d_head."""

    scheme: str
    defence: str
    deep: bool = False
    cap: float | None = None


@dataclass(frozen=True)
class Stability(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        schemes, defences: of the arms.
        width, n_layers, d_head, ff_ratio, seq_len, batch_size, steps, warmup_ratio, weight_decay,
            dtype, unroll, eval_batches: of every training run.
        base_width: where μP equals SP; base depth is ``n_layers``, base head size ``d_head``.
        probe_steps: when to look; the step ``steps`` is the end, which tables read.
        z_loss, clip: strength of these defences.
        caps: of u-μP's arms with and without QK-norm, beside the defaults: powers of d_head.
        deep_layers, deep_width: of the arms with depth-scaled initialization (0 layers: none).
        lr_sp, lr_mup, lr_umup: log2 of the lowest η of each scheme; octaves: of the grid, upwards.
        seeds: of every point.
        best_sp, best_mup, best_umup: about the best log2 η; of the drills.
        clip_octaves: above these, where clipped runs are compared; empty: none.
        time_repeats, time_chunk: of the timed steps (0 repeats: none).
        drill_schemes, drill_kinds: of the drills; empty: none. drill_steps, drill_width,
            drill_seeds: of their runs, disturbed half way. drill_length: batches that are
            disturbed. drill_factor: on η, in a jump.
    """

    schemes: tuple[str, ...] = SCHEMES
    defences: tuple[str, ...] = tuple(DEFENCES)
    width: int = 64
    n_layers: int = 2
    d_head: int = 16
    ff_ratio: float = 2.75
    seq_len: int = 64
    batch_size: int = 8
    steps: int = 256
    warmup_ratio: float = 0.25
    weight_decay: float = 2.0**-13
    dtype: str = "float32"
    unroll: int = 0
    eval_batches: int = 4
    base_width: int = 32
    probe_steps: tuple[int, ...] = (256,)
    z_loss: float = 1e-4
    clip: float = 1.0
    caps: tuple[float, ...] = (0.0, 0.5, 1.0)
    deep_layers: int = 8
    deep_width: int = 32
    lr_sp: float = -8.0
    lr_mup: float = -7.0
    lr_umup: float = 0.0
    octaves: int = 6
    seeds: int = 3
    clip_octaves: tuple[int, ...] = (0, 4)
    best_sp: float = -7.0
    best_mup: float = -6.0
    best_umup: float = 1.0
    time_repeats: int = 40
    time_chunk: int = 16
    drill_schemes: tuple[str, ...] = ("mup", "umup")
    drill_kinds: tuple[str, ...] = KINDS
    drill_steps: int = 400
    drill_width: int = 32
    drill_seeds: int = 3
    drill_length: int = 8
    drill_factor: float = 64.0

    RANGES = {
        **Design.RANGES, "schemes": SCHEMES, "defences": tuple(DEFENCES), "width": COUNT,
        "n_layers": COUNT, "d_head": COUNT, "ff_ratio": POSITIVE, "seq_len": COUNT,
        "batch_size": COUNT, "steps": COUNT, "warmup_ratio": Range(0.0, 1.0, open_lo=True),
        "weight_decay": Range(0.0), "eval_batches": COUNT, "base_width": COUNT,
        "probe_steps": Range(0), "z_loss": POSITIVE, "clip": POSITIVE, "caps": FRACTION,
        "deep_layers": Range(0), "deep_width": COUNT, "lr_sp": Range(-60, 60),
        "lr_mup": Range(-60, 60), "lr_umup": Range(-60, 60), "octaves": COUNT, "seeds": COUNT,
        "clip_octaves": Range(-60, 60), "best_sp": Range(-60, 60), "best_mup": Range(-60, 60),
        "best_umup": Range(-60, 60), "time_repeats": Range(0), "time_chunk": COUNT,
        "drill_schemes": SCHEMES, "drill_kinds": KINDS, "drill_steps": Range(160),
        "drill_width": COUNT, "drill_seeds": COUNT, "drill_length": COUNT,
        "drill_factor": POSITIVE,
    }  # fmt: skip

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

    def model(self, vocab_size: int, deep: bool = False, defence: str = "none") -> ModelConfig:
        """The model's shape with a defence."""
        return self._model(
            self.deep_width if deep else self.width,
            self.deep_layers if deep else self.n_layers, vocab_size, defence,
        )  # fmt: skip

    def _model(
        self, width: int, n_layers: int, vocab_size: int, defence: str = "none"
    ) -> ModelConfig:
        return ModelConfig(
            d_model=width, n_layers=n_layers, d_head=self.d_head,
            d_ff=round(width * self.ff_ratio), vocab_size=vocab_size, seq_len=self.seq_len,
            base_width=self.base_width, base_depth=self.n_layers,
            base_d_head=self.d_head, dtype=self.dtype, unroll=self.unroll,
            qk_norm=defence in ("qk_norm", "both"),
            z_loss=self.z_loss if defence in ("z_loss", "both") else 0.0,
            depth_scaled_init=defence == "depth_init",
        )  # fmt: skip

    def optim(self, defence: str = "none") -> OptimConfig:
        """The optimizer with a defence."""
        warmup = 0 if defence == "no_warmup" else round(self.steps * self.warmup_ratio)
        return OptimConfig(
            steps=self.steps, batch_size=self.batch_size, warmup_steps=warmup,
            clip=self.clip if defence == "clip" else 0.0,
        )  # fmt: skip

    def alpha(self, arm: Arm) -> float:
        """α_attn of an arm. QK-norm takes u-μP's from 1 to √d, with which logits reach ±√d, as
        they do in SP and, at the base head size, in μP."""
        if arm.scheme != "umup":
            return 1.0
        if arm.cap is not None:
            return arm.cap
        return self.d_head**0.5 if arm.defence in ("qk_norm", "both") else 1.0

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Every arm at every η and seed."""
        runs = []
        for arm in self.arms():
            start = getattr(self, f"lr_{arm.scheme}")
            for seed in range(self.seeds):
                runs += [self._run(arm, start + i, seed, dataset) for i in range(self.octaves + 1)]
        return list(dict.fromkeys(runs))

    def _run(self, arm: Arm, log2_lr: float, seed: int, dataset: Dataset) -> RunConfig:
        return RunConfig(
            scheme=arm.scheme, model=self.model(dataset.vocab_size, arm.deep, arm.defence),
            optim=self.optim(arm.defence),
            hps=HPs(
                eta=2.0**log2_lr, alpha_attn_softmax=self.alpha(arm),
                weight_decay=self.weight_decay,
            ),
            seed=seed, corpus=self.corpus, tokenizer=self.tokenizer, data_digest=dataset.digest,
            eval_batches=self.eval_batches, probe_steps=self.probe_steps,
        )  # fmt: skip

    def points(self) -> list[Point]:
        """Drills, clipped runs and timed steps."""
        what: dict[str, Any] = {
            "corpus": self.corpus, "tokenizer": self.tokenizer, "model": self.model(2).to_spec(),
            "optimizer": self.optim().to_spec(),
        }  # fmt: skip
        points = self._drills(what)
        points += [
            Point("clipped", {
                "scheme": scheme, "norm": norm, "octaves": octaves, "clip": self.clip,
                "log2_lr": getattr(self, f"best_{scheme.split('_')[0]}") + octaves, "seed": seed,
                **what,
            })
            for norm in ("unscaled", "held") for octaves in self.clip_octaves
            for scheme in (*self.schemes, *(["mup_intermediate"] if "mup" in self.schemes else []))
            for seed in range(self.seeds)
        ]  # fmt: skip
        changes = {"z_loss": {"z_loss": self.z_loss}, "qk_norm": {"qk_norm": True}, "clip": {}}
        for defence in TIMED if self.time_repeats else ():
            clip = self.clip if defence == "clip" else 0.0
            points.append(Point("step_time", {
                "defence": defence, "changes": changes[defence], "clip": clip,
                "repeats": self.time_repeats, "chunk": self.time_chunk, **what,
            }))  # fmt: skip
        return points

    def _drills(self, what: dict[str, Any]) -> list[Point]:
        steps = self.drill_steps
        warmup = round(steps * self.warmup_ratio)
        drilled = {
            "model": self._model(self.drill_width, self.n_layers, 2).to_spec(),
            "optimizer": replace(self.optim(), steps=steps, warmup_steps=warmup).to_spec(),
            "recovery": {"window": 64, "warmup": max(warmup, 40), "margin": steps // 20},
            "every": steps // 8, "chunk": steps // 16, "at": steps // 2,
            "length": self.drill_length, "factor": self.drill_factor,
        }  # fmt: skip
        return [
            Point("drill", {
                **what, **drilled, "kind": kind, "recover": recover, "scheme": scheme,
                "log2_lr": getattr(self, f"best_{scheme}"), "seed": seed,
            })
            for kind in self.drill_kinds for recover in (True, False)
            if kind != "clean" or recover
            for scheme in self.drill_schemes for seed in range(self.drill_seeds)
        ]  # fmt: skip


DESIGN = Stability
