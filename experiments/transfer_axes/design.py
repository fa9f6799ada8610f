"""The study ``transfer_axes``: line searches over η along every axis in which a proxy is smaller.

Every axis has the base run among its values and changes one thing, with what has to move along:
the warm-up keeps its share of the steps unless the axis fixes it; equal tokens ask for fewer steps
of a larger batch, or for fewer sequences of a longer one. Width, depth, steps and batch also grow
together, to see whether what each moves alone adds up. At the largest depth, and at CompleteP's
best η there, further runs differ in Adam's ε and its rule alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd

from umup.checked import Count, OneOf, Positive, PositiveOrZero
from umup.config import ModelConfig, OptimConfig, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import NO_TEXT, Curve, Curves, Text, losses
from umup.lab.design import Spacing
from umup.lab.search import LRSearch, best_lr

from .results import COMPLETEP, SCHEMES

Scheme = Annotated[str, OneOf(*SCHEMES)]


@dataclass(frozen=True)
class TransferAxes(Curves):
    """The flat parameters of the study, beside those of every study of curves."""

    width: Count = 32
    """Of every model but along its own axis, and where all grow together."""
    d_head: int = 32
    steps: int = 500
    eval_batches: int = 64
    schemes: tuple[Scheme, ...] = ("sp", "mup", "umup")
    """Schemes of every axis."""
    depth_schemes: tuple[Scheme, ...] = ("sp", "mup", "umup", COMPLETEP)
    """Schemes of the axis of depth."""
    fixed_schemes: tuple[Scheme, ...] = ("mup", "umup")
    """Schemes whose steps also vary under the shortest run's warm-up."""
    step_values: tuple[Count, ...] = (250, 1000)
    """Steps, besides the base's."""
    batch_values: tuple[Count, ...] = (2, 32)
    """Sequences in a batch, besides the base's, at equal steps and at equal tokens."""
    length_values: tuple[Count, ...] = (16, 256)
    """Tokens in a sequence, besides the base's, at equal tokens a step."""
    depth_values: tuple[Count, ...] = (8,)
    """Blocks, besides the base's."""
    width_values: tuple[Count, ...] = (64,)
    """Widths, besides the base's."""
    together: tuple[Count, ...] = (64, 8, 1000, 16)
    """Width, blocks, steps and sequences in a batch where all four grow at once; empty: nowhere."""
    unroll: int = 2
    lr_sp: tuple[float, ...] = (-8.0, -5.0)
    """[low, high] in log2 η of SP's coarse grid, which grows where an end is best."""
    lr_mup: tuple[float, ...] = (-8.0, -5.0)
    """The same of μP and CompleteP."""
    lr_umup: tuple[float, ...] = (-2.0, 1.0)
    """The same of u-μP."""
    refine: Spacing = 0.5
    """See ``LRSearch``."""
    window: PositiveOrZero = 1.0
    """See ``LRSearch``."""
    base_seeds: Count = 3
    """Seeds of the base run of ``schemes``, from which every axis departs."""
    eps_large: Positive = 2.0**-13
    """An ε that the gradients of the largest depth feel, and those of the base depth do not."""
    eps_pairs: Count = 6
    """Seeds at which constant and scaled ε are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("schemes", "depth_schemes"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for scheme in SCHEMES:
            self.search(scheme)
        base = (self.width, self.n_layers, self.steps, self.batch_size)
        if self.together and (len(self.together) != 4 or not _above(self.together, base)):
            allowed = f"four values above the base's {list(base)}, or none"
            raise ConfigError("together", list(self.together), allowed)
        tokens, text = self.batch_size * self.steps, self.batch_size * self.seq_len
        for name, whole in (("batch_values", tokens), ("length_values", text)):
            for value in getattr(self, name):
                if whole % value:
                    raise ConfigError(name, value, f"a divisor of {whole}, the tokens to keep")
        for _, _, model, optim in self.settings(NO_TEXT):
            self.run("sp", model, NO_TEXT, 0, optim)  # a bad shape is an error now

    def search(self, scheme: str, seeds: int = 0) -> LRSearch:
        """The line search over η of a scheme, with the study's number of seeds or another."""
        name = "lr_mup" if scheme == COMPLETEP else f"lr_{scheme}"
        return self.grid(name, self.refine, self.window, seeds or self.seeds)

    def settings(self, text: Text) -> Iterator[tuple[str, str, ModelConfig, OptimConfig]]:
        """(axis, scheme, shape, optimizer) of every curve: the base first, then axis by axis."""
        base, plain = self._shape(text), self.optim()
        for scheme in dict.fromkeys((*self.schemes, *self.depth_schemes)):
            yield "base", scheme, base, plain
        for scheme in self.depth_schemes:
            for n in self.depth_values:
                yield "depth", scheme, self._shape(text, n_layers=n), plain
        for scheme in self.schemes:
            for n in self.step_values:
                yield "steps", scheme, base, self.optim(steps=n)
            for n in self.batch_values:
                yield "batch", scheme, base, self.optim(batch_size=n)
                equal = self.optim(batch_size=n, steps=self.steps * self.batch_size // n)
                yield "batch_tokens", scheme, base, equal
            for n in self.length_values:
                fewer = self.optim(batch_size=self.batch_size * self.seq_len // n)
                yield "seq_len", scheme, self._shape(text, seq_len=n), fewer
            for n in self.width_values:
                yield "width", scheme, self.model(n, text), plain
        shortest = min(self.step_values, default=self.steps)
        for scheme in self.fixed_schemes:
            for n in self.step_values:
                warmup = round(shortest * self.warmup_ratio)
                if n != shortest:
                    yield "steps_fixed", scheme, base, self.optim(steps=n, warmup_steps=warmup)
        for scheme in self.schemes if self.together else ():
            width, depth, steps, batch = self.together
            shape = self.model(width, text, n_layers=depth)
            yield "together", scheme, shape, self.optim(steps=steps, batch_size=batch)

    def _shape(self, text: Text, **changes: int) -> ModelConfig:
        return self.model(self.width, text, **changes)

    def curves(self, text: Text) -> Iterator[Curve]:
        """One curve for every setting, each scheme's base before its ends."""
        for axis, scheme, model, optim in self.settings(text):
            own = axis == "base" and scheme in self.schemes
            search = self.search(scheme, self.base_seeds if own else 0)
            yield self.curve(search, scheme, model, text, optim=optim)

    def pending(self, runs: pd.DataFrame, dataset: Dataset) -> list[RunConfig]:
        """The runs to do next: curves, and once CompleteP's deepest is done, those of ε there."""
        text, loss_of = Text.of(dataset), losses(runs)
        wanted = super().pending(runs, dataset)
        wanted += [run for run in self.eps_runs(text, loss_of) if run.key() not in loss_of]
        return list(dict.fromkeys(wanted))

    def eps_runs(self, text: Text, loss_of: Mapping[str, float]) -> list[RunConfig]:
        """Runs with both ε, constant and scaled, at the best η of CompleteP's deepest model."""
        if COMPLETEP not in self.depth_schemes or not self.depth_values:
            return []
        deep = self._shape(text, n_layers=max(self.depth_values))
        curve = self.curve(self.search(COMPLETEP), COMPLETEP, deep, text, optim=self.optim())
        best = None if curve.missing(loss_of) else best_lr(curve.results(loss_of))
        if best is None:
            return []
        optims = [
            self.optim(eps_rule=rule, eps=eps)
            for eps in (OptimConfig().eps, self.eps_large)
            for rule in ("constant", "scaled")
        ]
        return [
            self.run(COMPLETEP, deep, text, seed, optim, eta=best)
            for seed in range(self.eps_pairs)
            for optim in optims
        ]


def _above(values: tuple[int, ...], base: tuple[int, ...]) -> bool:
    return all(value > least for value, least in zip(values, base, strict=True))


DESIGN = TransferAxes
