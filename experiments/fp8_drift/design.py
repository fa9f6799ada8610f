"""The study `fp8_drift`: where tensors drift to in training, and what FP8 makes of it.

Three sets of runs. *Arms*: μP and u-μP under every recipe, seed by seed, the plain ones probed
throughout (u-μP paper, Figures 1 right, 3, 7, 8). *Settings*: one hyperparameter or one side of
the shape changed at a time, probed at the end (Figure 9). And points: FP8 products as compiled
(``measures``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from umup.checked import Count, CountOrZero, OneOf, Range
from umup.config import RECIPES, ModelConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import Text, Trained
from umup.lab.design import Octaves, Point

from .measures import KINDS, shapes
from .results import SCHEMES, SWEPT

Recipe = Annotated[str, OneOf(*RECIPES)]


@dataclass(frozen=True)
class Fp8Drift(Trained):
    """The flat parameters of the study, in addition to those of every study of decoders."""

    schemes: tuple[Annotated[str, OneOf(*SCHEMES)], ...] = SCHEMES
    """Of arms and settings."""
    lr_mup: Octaves = -6.5
    """μP's log2 η."""
    lr_umup: Octaves = 0.0
    """u-μP's log2 η."""
    recipes: tuple[Recipe, ...] = RECIPES
    """Recipes of the arms; the others are compared with ``plain``, which is probed."""
    precise_recipes: tuple[Annotated[str, OneOf(*RECIPES[2:])], ...] = ()
    """Recipes of the arms that are also trained with precise accumulation."""
    widths: tuple[Count, ...] = (64,)
    """Widths of the arms; heads and depth always equal those of the base."""
    probe_steps: tuple[CountOrZero, ...] = (0, 50, 100, 200)
    """Steps at which the plain arms are probed, besides the end."""
    seeds: int = 2
    effect_width: Count = 32
    """Of the settings."""
    effect_steps: Count = 200
    """Of the settings."""
    effect_seeds: Count = 1
    """Of the settings."""
    effect_log2: tuple[Annotated[float, Range(-20, 20)], ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """log2 of each hyperparameter, relative to its default (η: to that above)."""
    effect_recipes: tuple[Recipe, ...] = ("plain",)
    """Recipes in which hyperparameters are varied."""
    effect_widths: tuple[Count, ...] = ()
    """Widths of the settings, plain."""
    effect_depths: tuple[Count, ...] = ()
    """Depths of the settings, plain."""
    effect_horizons: tuple[Count, ...] = ()
    """Numbers of steps of the settings, plain."""
    effect_batches: tuple[Count, ...] = ()
    """Batch sizes of the settings, plain."""
    gemm_width: CountOrZero = 0
    """Width of the linears whose compiled products are read (0: none)."""
    gemm_tokens: Count = 256
    """Their rows."""
    gemm_recipes: tuple[Recipe, ...] = RECIPES
    """Their recipes."""
    gemm_sizes: tuple[Count, ...] = ()
    """Sizes of single products that are timed."""
    step_widths: tuple[Count, ...] = ()
    """Widths of training steps that are timed."""
    step_layers: Count = 4
    """Blocks in a timed step."""
    step_seq_len: Count = 256
    """Tokens in its sequences."""
    step_batch_size: Count = 16
    """Its sequences."""
    step_steps: Annotated[int, Range(10)] = 100
    """Number of steps that are timed."""

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
        self.model(self.widths[0])  # a bad shape is an error now

    def points(self) -> list[Point]:
        """Compiled products of every linear; speeds of single products; steps."""
        return [*self._linears(), *self._products(), *self._steps()]

    def _linears(self) -> Iterator[Point]:
        for recipe in self.gemm_recipes if self.gemm_width else ():
            for linear, (fan_in, fan_out) in shapes(self.gemm_width, self.ff_ratio).items():
                fans = {"linear": linear, "fan_in": fan_in, "fan_out": fan_out}
                shape = {"tokens": self.gemm_tokens, "dtype": "bfloat16"}
                yield Point("linear", {"recipe": recipe, **fans, **shape})

    def _products(self) -> Iterator[Point]:
        for size, kind in itertools.product(self.gemm_sizes, KINDS):
            for accumulation in ("fast",) if kind == "bf16" else ("fast", "precise"):
                yield Point("gemm", {"size": size, "kind": kind, "accumulation": accumulation})

    def _steps(self) -> Iterator[Point]:
        shape = {
            "n_layers": self.step_layers,
            "d_head": self.d_head,
            "seq_len": self.step_seq_len,
            "batch_size": self.step_batch_size,
            "steps": self.step_steps,
            "dtype": "bfloat16",
        }
        for width, recipe in itertools.product(self.step_widths, RECIPES[1:]):
            for accumulation in ("fast", "precise") if recipe == "fp8_seed" else ("fast",):
                own = {"d_model": width, "recipe": recipe, "accumulation": accumulation}
                yield Point("step", {**own, **shape})

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """The arms, then the settings; runs of one shape side by side."""
        text = Text.of(dataset)
        return list(dict.fromkeys([*self._arms(text), *self._settings(text), *self._shapes(text)]))

    def _arms(self, text: Text) -> Iterator[RunConfig]:
        variants = [(recipe, "fast") for recipe in self.recipes]
        variants += [(recipe, "precise") for recipe in self.precise_recipes]
        for width, (recipe, accumulation) in itertools.product(self.widths, variants):
            model = self.model(width, text, recipe=recipe, accumulation=accumulation)
            probes = (*self.probe_steps, self.steps) if recipe == "plain" else ()
            for scheme, seed in itertools.product(self.schemes, range(self.seeds)):
                yield self.run(scheme, model, text, seed, None, probes, eta=self._eta(scheme))

    def _settings(self, text: Text) -> Iterator[RunConfig]:
        """One hyperparameter at a time."""
        for recipe in self.effect_recipes:
            model = self.model(self.effect_width, text, recipe=recipe)
            for scheme, seed in itertools.product(self.schemes, range(self.effect_seeds)):
                yield self._setting(text, scheme, model, seed)
                for hp, octaves in itertools.product(SWEPT[scheme], self.effect_log2):
                    yield self._setting(text, scheme, model, seed, {hp: octaves})

    def _shapes(self, text: Text) -> Iterator[RunConfig]:
        """One side of the shape at a time."""
        base = self.model(self.effect_width, text)
        shapes: list[tuple[ModelConfig, dict[str, int]]] = [
            *((self.model(width, text), {}) for width in self.effect_widths),
            *((replace(base, n_layers=n), {}) for n in self.effect_depths),
            *((base, {"steps": n}) for n in self.effect_horizons),
            *((base, {"batch_size": n}) for n in self.effect_batches),
        ]
        for model, others in shapes:
            for scheme, seed in itertools.product(self.schemes, range(self.effect_seeds)):
                yield self._setting(text, scheme, model, seed, {}, **others)

    def _setting(
        self,
        text: Text,
        scheme: str,
        model: ModelConfig,
        seed: int,
        log2: Mapping[str, float] = {},
        **others: int,
    ) -> RunConfig:
        """A run that is probed at its end; η's ``log2`` is relative to its default."""
        optim = self.optim(**{"steps": self.effect_steps} | others)
        hps = {**log2, "eta": self._eta(scheme) + log2.get("eta", 0.0)}
        return self.run(scheme, model, text, seed, optim, (optim.steps,), **hps)

    def _eta(self, scheme: str) -> float:
        return self.lr_mup if scheme == "mup" else self.lr_umup


DESIGN = Fp8Drift
