"""Studies of trained decoders: their common shape, and curves of loss over one parameter.

A study with searches lists its curves (``Curves.curves``): each is a line search, and the run at
every point of it. The library requests missing runs, simulates the search to estimate how much is
left, and finds finished runs by their keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pandas as pd

from umup.checked import Count, CountOrZero, Fraction, OneOf, Positive, PositiveOrZero
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design
from umup.lab.search import LRSearch, Result, next_lrs


class Text(NamedTuple):
    """The part of a data set that enters a run's specification."""

    digest: str
    vocab_size: int

    @classmethod
    def of(cls, dataset: Dataset) -> Text:
        """The text of ``dataset``."""
        return cls(dataset.digest, dataset.vocab_size)


NO_TEXT = Text("", 2)
"""Stands for a text where shapes are checked before there is one."""


@dataclass(frozen=True)
class Decoders(Design):
    """The flat parameters of studies that train decoders: one shape, of which few fields vary."""

    n_layers: Count = 2
    """Blocks."""
    d_head: Count = 16
    """Features of a head."""
    ff_ratio: Positive = 2.75
    """d_ff / d_model."""
    seq_len: Count = 64
    """Tokens in a sequence."""
    batch_size: Count = 8
    """Sequences in a batch."""
    weight_decay: PositiveOrZero = 2.0**-13
    """As ``HPs.weight_decay``."""
    base_width: Count = 32
    """The width at which μP equals SP; base depth and head size are those of the model."""
    dtype: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    """Dtype of the activations."""
    unroll: CountOrZero = 0
    """Layers per loop body of the scan over depth (0: all)."""
    eval_batches: Count = 16
    """Number of batches of held-out text evaluated at the end of a run."""
    seeds: Count = 3
    """Number of seeds at each point near the optimum."""

    def model(self, d_model: int, text: Text = NO_TEXT, **changes: Any) -> ModelConfig:
        """The model's shape at a width; ``changes`` are fields of ``ModelConfig``."""
        n_layers = changes.get("n_layers", self.n_layers)
        d_head = changes.get("d_head", self.d_head)
        shape = {
            "n_layers": n_layers,
            "d_head": d_head,
            "d_ff": round(d_model * self.ff_ratio),
            "vocab_size": text.vocab_size,
            "seq_len": self.seq_len,
            "base_width": self.base_width,
            "base_depth": self.n_layers,
            "base_d_head": self.d_head,
            "dtype": self.dtype,
            "unroll": self.unroll,
        }
        return ModelConfig(d_model=d_model, **shape | changes)

    def optim(self, **changes: Any) -> OptimConfig:
        """The optimizer of a run, unless another is given."""
        raise NotImplementedError

    def run(
        self,
        scheme: str,
        model: ModelConfig,
        text: Text,
        seed: int,
        optim: OptimConfig | None = None,
        probe_steps: tuple[int, ...] = (),
        **log2: float,
    ) -> RunConfig:
        """The whole specification of one run.

        Args:
            scheme: a name in ``rules.SCHEMES``.
            model: its shape, whose vocabulary is the text's.
            text: the text it is trained on.
            seed: of its random draws and batches.
            optim: ``self.optim()`` if None.
            probe_steps: steps at which the probes observe the model.
            log2: log2 of hyperparameters, ``eta`` among them; the others are at their defaults.
        """
        return RunConfig(
            scheme=scheme,
            model=model,
            optim=optim or self.optim(),
            hps=HPs(**{"weight_decay": self.weight_decay} | {k: 2.0**x for k, x in log2.items()}),
            seed=seed,
            corpus=self.corpus,
            tokenizer=self.tokenizer,
            data_digest=text.digest,
            eval_batches=self.eval_batches,
            probe_steps=probe_steps,
        )

    def grid(self, name: str, *options: Any) -> LRSearch:
        """The line search between the ends that the parameter ``name`` holds, [low, high] in log2.

        Args:
            name: of the parameter, for errors.
            options: ``refine``, ``window``, ``seeds`` and ``max_extend`` of ``LRSearch``.

        Raises:
            ConfigError: there are not two ends, or they are not the ends of a search.
        """
        ends = getattr(self, name)
        if len(ends) != 2:
            raise ConfigError(name, ends, "two numbers: [low, high] in log2")
        try:
            return LRSearch(*ends, *options)
        except ConfigError as error:
            raise ConfigError(name, ends, f"{error.field}: {error.allowed}") from None


class Curve:
    """Loss over log2 of one hyperparameter, all else being equal: a line search and its runs.

    Args:
        search: which points are wanted.
        run: (log2 value, seed) → the run there.
    """

    def __init__(self, search: LRSearch, run: Callable[[float, int], RunConfig]) -> None:
        self.search = search
        # A design requests the same runs again after each one that finishes.
        self.run = functools.cache(run)
        self.key = functools.cache(lambda x, seed: self.run(x, seed).key())

    def results(self, loss_of: Mapping[str, float], search: LRSearch | None = None) -> list[Result]:
        """The finished runs among all that the search could request.

        Args:
            loss_of: key of a finished run → its final loss.
            search: in place of the curve's own.
        """
        return [
            Result(x, seed, loss_of[key])
            for x, seed in (search or self.search).candidates()
            if (key := self.key(x, seed)) in loss_of
        ]

    def coarse(self) -> list[RunConfig]:
        """The runs wanted whatever the results."""
        return [self.run(x, 0) for x in self.search.coarse()]

    def missing(self, loss_of: Mapping[str, float]) -> list[RunConfig]:
        """The runs to do next; empty when the search is done."""
        return [self.run(x, seed) for x, seed in next_lrs(self.search, self.results(loss_of))]


@dataclass(frozen=True)
class Trained(Decoders):
    """Decoders most of which train for the same number of steps."""

    steps: Count = 400
    """Updates of a run."""
    warmup_ratio: Fraction = 0.25
    """Share of the steps that warm up."""

    def optim(self, **changes: Any) -> OptimConfig:
        """The optimizer; ``changes`` are fields of ``OptimConfig``. Warm-up takes the same share of
        any number of steps."""
        steps = changes.get("steps", self.steps)
        plain = {
            "steps": steps,
            "batch_size": self.batch_size,
            "warmup_steps": round(steps * self.warmup_ratio),
        }
        return OptimConfig(**plain | changes)


@dataclass(frozen=True)
class Curves(Trained):
    """A study of curves: its runs follow from ``curves``."""

    def curves(self, text: Text) -> Iterable[Curve]:
        """Every curve, in the order in which to run them."""
        raise NotImplementedError

    def curve(
        self,
        search: LRSearch,
        scheme: str,
        model: ModelConfig,
        text: Text,
        hp: str = "eta",
        optim: OptimConfig | None = None,
        **log2: float,
    ) -> Curve:
        """Loss over log2 of the hyperparameter ``hp``; the other arguments are those of ``run``."""

        def run(x: float, seed: int) -> RunConfig:
            return self.run(scheme, model, text, seed, optim, (), **log2 | {hp: x})

        return Curve(search, run)

    def fixed(self, text: Text) -> Iterable[RunConfig]:
        """Further runs, wanted whatever the results."""
        return ()

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """The runs wanted whatever the results: the fixed runs and the coarse grids."""
        fixed, curves = _asked(self, Text.of(dataset))
        coarse = [run for curve in curves for run in curve.coarse()]
        return list(dict.fromkeys([*fixed, *coarse]))

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next, given the finished ones (rows of this profile)."""
        loss_of = losses(runs)
        fixed, curves = _asked(self, Text.of(dataset))
        wanted = [run for run, key in fixed.items() if key not in loss_of]
        wanted += [run for curve in curves for run in curve.missing(loss_of)]
        return list(dict.fromkeys(wanted))

    def guess(self, run: RunConfig, runs: pd.DataFrame) -> float:
        """A parabola around the middle of the run's grid, for a search without extensions."""
        text = Text(run.data_digest, run.model.vocab_size)
        for curve in _asked(self, text)[1]:
            for x, seed in curve.search.candidates():
                if seed == run.seed and curve.run(x, seed) == run:
                    return 1.0 + 0.1 * (x - (curve.search.lo + curve.search.hi) / 2) ** 2
        return 1.0


def losses(runs: pd.DataFrame) -> dict[str, float]:
    """Key → final loss of finished runs."""
    return dict(zip(runs["key"], runs["final_loss"], strict=True)) if len(runs) else {}


@functools.lru_cache(maxsize=32)
def _asked(design: Curves, text: Text) -> tuple[dict[RunConfig, str], tuple[Curve, ...]]:
    """The fixed runs with their keys, and the curves, of a design on a text."""
    fixed = {run: run.key() for run in design.fixed(text)}
    return fixed, tuple(design.curves(text))
