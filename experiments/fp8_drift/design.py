"""The study `fp8_drift`: where tensors drift to in training, and what FP8 makes of it.

Three sets of runs. *Arms*: μP and u-μP under every recipe, seed by seed, the plain ones probed
throughout (u-μP paper, Figures 1 right, 3, 7, 8). *Settings*: one hyperparameter or one side of
the shape changed at a time, probed at the end (Figure 9). And points: FP8 products as compiled
(``fp8_drift_gemm``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from umup.config import (
    COUNT,
    POSITIVE,
    RECIPES,
    HPs,
    ModelConfig,
    OptimConfig,
    Range,
    RunConfig,
)
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design, Point

from .measures import KINDS, shapes
from .results import SCHEMES, SWEPT


@dataclass(frozen=True)
class Fp8Drift(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        schemes: of mup and umup; lr_mup, lr_umup: their log2 η.
        recipes: of the arms; ``plain`` is what the others are compared with, and is probed.
        precise_recipes: of the arms, trained again with precise accumulation.
        widths, steps, seeds: of the arms. probe_steps: when the plain ones are probed, the end too.
        base_width: where μP equals SP (heads and depth always equal the base's).
        effect_width, effect_steps, effect_seeds: of the settings, at ``n_layers`` and
            ``batch_size`` unless these vary.
        effect_log2: log2 of each hyperparameter, relative to its default (η: to that above).
        effect_recipes: recipes in which hyperparameters are varied.
        effect_widths, effect_depths, effect_horizons, effect_batches: of the shapes; plain.
        ff_ratio: d_ff / d_model. warmup_ratio: share of the steps that warm up.
        gemm_width, gemm_tokens, gemm_recipes: linears whose compiled products are read (0: none).
        gemm_sizes: of single products, timed. step_widths: of training steps, timed, with
            step_layers, step_seq_len, step_batch_size and step_steps.
    """

    schemes: tuple[str, ...] = SCHEMES
    lr_mup: float = -6.5
    lr_umup: float = 0.0
    recipes: tuple[str, ...] = RECIPES
    precise_recipes: tuple[str, ...] = ()
    widths: tuple[int, ...] = (64,)
    n_layers: int = 2
    d_head: int = 16
    ff_ratio: float = 2.75
    seq_len: int = 64
    batch_size: int = 8
    steps: int = 400
    warmup_ratio: float = 0.25
    weight_decay: float = 2.0**-13
    base_width: int = 32
    dtype: str = "float32"
    unroll: int = 0
    probe_steps: tuple[int, ...] = (0, 50, 100, 200)
    seeds: int = 2
    eval_batches: int = 16
    effect_width: int = 32
    effect_steps: int = 200
    effect_seeds: int = 1
    effect_log2: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    effect_recipes: tuple[str, ...] = ("plain",)
    effect_widths: tuple[int, ...] = ()
    effect_depths: tuple[int, ...] = ()
    effect_horizons: tuple[int, ...] = ()
    effect_batches: tuple[int, ...] = ()
    gemm_width: int = 0
    gemm_tokens: int = 256
    gemm_recipes: tuple[str, ...] = RECIPES
    gemm_sizes: tuple[int, ...] = ()
    step_widths: tuple[int, ...] = ()
    step_layers: int = 4
    step_seq_len: int = 256
    step_batch_size: int = 16
    step_steps: int = 100

    RANGES = {
        **Design.RANGES, "schemes": SCHEMES, "lr_mup": Range(-60, 60), "lr_umup": Range(-60, 60),
        "recipes": RECIPES, "precise_recipes": RECIPES[2:], "widths": COUNT, "n_layers": COUNT,
        "d_head": COUNT, "ff_ratio": POSITIVE, "seq_len": COUNT, "batch_size": COUNT,
        "steps": COUNT, "warmup_ratio": Range(0.0, 1.0), "weight_decay": Range(0.0),
        "base_width": COUNT, "dtype": ("float32", "bfloat16"), "unroll": Range(0),
        "probe_steps": Range(0), "seeds": COUNT, "eval_batches": COUNT, "effect_width": COUNT,
        "effect_steps": COUNT, "effect_seeds": COUNT, "effect_log2": Range(-20, 20),
        "effect_recipes": RECIPES, "effect_widths": COUNT, "effect_depths": COUNT,
        "effect_horizons": COUNT, "effect_batches": COUNT, "gemm_width": Range(0),
        "gemm_tokens": COUNT, "gemm_recipes": RECIPES, "gemm_sizes": COUNT, "step_widths": COUNT,
        "step_layers": COUNT, "step_seq_len": COUNT, "step_batch_size": COUNT,
        "step_steps": Range(10),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schemes", "recipes", "widths"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        if "plain" not in self.recipes:
            raise ConfigError("recipes", self.recipes, "plain among them: it is compared with")
        early = list(self.probe_steps)
        if len(early) < 1 or early != sorted(set(early)) or early[-1] >= self.steps:
            allowed = f"one or more rising steps below steps = {self.steps}"
            raise ConfigError("probe_steps", self.probe_steps, allowed)
        if self.step_steps % 5:
            raise ConfigError("step_steps", self.step_steps, "a multiple of 5")
        for field in ("widths", "effect_width", "effect_widths", "base_width"):
            given = getattr(self, field)
            for width in given if isinstance(given, tuple) else (given,):
                if width % self.d_head:
                    raise ConfigError(field, width, f"a multiple of d_head = {self.d_head}")
        self._model(self.widths[0], "plain", 2)  # a bad shape is an error now

    def points(self) -> list[Point]:
        """Compiled products of every linear; speeds of single products; steps."""
        points = []
        for recipe in self.gemm_recipes if self.gemm_width else ():
            for linear, (fan_in, fan_out) in shapes(self.gemm_width, self.ff_ratio).items():
                spec = {"recipe": recipe, "linear": linear, "fan_in": fan_in, "fan_out": fan_out,
                        "tokens": self.gemm_tokens, "dtype": "bfloat16"}  # fmt: skip
                points.append(Point("linear", spec))
        for size, kind in itertools.product(self.gemm_sizes, KINDS):
            accumulations = ("fast",) if kind == "bf16" else ("fast", "precise")
            points += [
                Point("gemm", {"size": size, "kind": kind, "accumulation": accumulation})
                for accumulation in accumulations
            ]
        shape = {
            "n_layers": self.step_layers, "d_head": self.d_head, "seq_len": self.step_seq_len,
            "batch_size": self.step_batch_size, "steps": self.step_steps, "dtype": "bfloat16",
        }  # fmt: skip
        for width, recipe in itertools.product(self.step_widths, RECIPES[1:]):
            accumulations = ("fast", "precise") if recipe == "fp8_seed" else ("fast",)
            points += [
                Point("step", {"d_model": width, "recipe": recipe, "accumulation": a, **shape})
                for a in accumulations
            ]
        return points

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """The arms, then the settings; runs of one shape side by side."""
        runs = [*self._arms(dataset), *self._settings(dataset)]
        return list({run.key(): run for run in runs}.values())

    def _arms(self, dataset: Dataset) -> Iterator[RunConfig]:
        variants = [(recipe, "fast") for recipe in self.recipes]
        variants += [(recipe, "precise") for recipe in self.precise_recipes]
        for width, (recipe, accumulation) in itertools.product(self.widths, variants):
            model = self._model(width, recipe, dataset.vocab_size, accumulation=accumulation)
            probes = (*self.probe_steps, self.steps) if recipe == "plain" else ()
            for scheme, seed in itertools.product(self.schemes, range(self.seeds)):
                yield self._run(dataset, scheme, model, self.steps, seed, probes)

    def _settings(self, dataset: Dataset) -> Iterator[RunConfig]:
        seeds, base = range(self.effect_seeds), self.effect_width
        for recipe in self.effect_recipes:
            model = self._model(base, recipe, dataset.vocab_size)
            for scheme, seed in itertools.product(self.schemes, seeds):
                for hp, octaves in [
                    (None, 0.0),
                    *itertools.product(SWEPT[scheme], self.effect_log2),
                ]:
                    hps = {} if hp is None else {hp: octaves}
                    yield self._setting(dataset, scheme, model, seed, hps)
        vocab = dataset.vocab_size
        shapes_: list[tuple[ModelConfig, dict[str, int]]] = [
            *((self._model(width, "plain", vocab), {}) for width in self.effect_widths),
            *((self._model(base, "plain", vocab, n_layers=n), {}) for n in self.effect_depths),
            *((self._model(base, "plain", vocab), {"steps": n}) for n in self.effect_horizons),
            *((self._model(base, "plain", vocab), {"batch_size": n}) for n in self.effect_batches),
        ]  # fmt: skip
        for model, others in shapes_:
            for scheme, seed in itertools.product(self.schemes, seeds):
                yield self._setting(dataset, scheme, model, seed, {}, **others)

    def _setting(
        self, dataset: Dataset, scheme: str, model: ModelConfig, seed: int,
        octaves: Mapping[str, float], **others: int,
    ) -> RunConfig:  # fmt: skip
        steps = others.pop("steps", self.effect_steps)
        return self._run(dataset, scheme, model, steps, seed, (steps,), octaves, **others)

    def _run(
        self, dataset: Dataset, scheme: str, model: ModelConfig, steps: int, seed: int,
        probe_steps: tuple[int, ...], octaves: Mapping[str, float] | None = None,
        batch_size: int = 0,
    ) -> RunConfig:  # fmt: skip
        log2: dict[str, float] = dict(octaves or {})
        log2["eta"] = log2.get("eta", 0.0) + (self.lr_mup if scheme == "mup" else self.lr_umup)
        values: dict[str, Any] = {name: 2.0**x for name, x in log2.items()}
        return RunConfig(
            scheme=scheme, model=model,
            optim=OptimConfig(
                steps=steps, batch_size=batch_size or self.batch_size,
                warmup_steps=round(steps * self.warmup_ratio),
            ),
            hps=HPs(weight_decay=self.weight_decay, **values), seed=seed, corpus=self.corpus,
            tokenizer=self.tokenizer, data_digest=dataset.digest, eval_batches=self.eval_batches,
            probe_steps=probe_steps,
        )  # fmt: skip

    def _model(
        self, width: int, recipe: str, vocab_size: int, n_layers: int = 0,
        accumulation: str = "fast",
    ) -> ModelConfig:  # fmt: skip
        return ModelConfig(
            d_model=width, n_layers=n_layers or self.n_layers, d_head=self.d_head,
            d_ff=round(width * self.ff_ratio), vocab_size=vocab_size, seq_len=self.seq_len,
            base_width=self.base_width, base_depth=self.n_layers, base_d_head=self.d_head,
            dtype=self.dtype, unroll=self.unroll, recipe=recipe, accumulation=accumulation,
        )  # fmt: skip


DESIGN = Fp8Drift
