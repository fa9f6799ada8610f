"""The study `coord_check`: which scheme keeps activations and their changes free of width.

Decoders of several widths are trained for a few steps at a small and at a large η and watched
with `umup.coord`. The number of heads is fixed, so that the head size grows with the width and the
rule of the attention logits matters. Slopes, rules and verdicts are those of `umup.slopes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from umup import rules
from umup.checked import Count, OneOf, Positive, Range
from umup.config import FloatType
from umup.errors import ConfigError
from umup.lab.design import Design, Octaves, Point

from .results import WHAT


@dataclass(frozen=True)
class CoordStudy(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        schemes: names in ``rules.SCHEMES``.
        widths: d_model, at least three, all with the same n_heads.
        base_width: width at which μP and all rungs of the ladder equal SP.
        n_layers: also the base depth, except under CompleteP, which equals μP at its base depth:
            there the base depth is 1.
        log2_eta_plain, log2_eta_unit: (small, large) η of the plain and of the unit-scaled schemes.
        seeds: of every point; wide_seeds: at the largest width, the most expensive.
        look_at: numbers of updates after which to measure.
        tolerance: the largest slope that counts as zero in verdicts.
    """

    schemes: tuple[Annotated[str, OneOf(*rules.SCHEMES)], ...] = ("sp", "mup", "umup")
    widths: tuple[Count, ...] = (16, 32, 64)
    base_width: Count = 16
    n_heads: Count = 2
    n_layers: Count = 2
    ff_ratio: Positive = 2.75
    seq_len: Annotated[int, Range(2)] = 32
    batch_size: Count = 8
    look_at: tuple[Count, ...] = (1, 10)
    log2_eta_plain: tuple[Octaves, ...] = (-9.0, -5.0)
    log2_eta_unit: tuple[Octaves, ...] = (-3.0, 1.0)
    seeds: Count = 1
    wide_seeds: Count = 1
    tolerance: Annotated[float, Range(0.0, 0.5, open_lo=True)] = 0.2
    dtype: FloatType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schemes:
            raise ConfigError("schemes", self.schemes, "at least one")
        if len(set(self.widths)) < 3:
            raise ConfigError("widths", self.widths, "at least three: two always lie on a line")
        for width in (*self.widths, self.base_width):
            if width % (2 * self.n_heads):
                allowed = f"multiples of 2·n_heads = {2 * self.n_heads}: an even head size"
                raise ConfigError("widths", width, allowed)
        if 1 not in self.look_at or len(set(self.look_at)) < 2:
            raise ConfigError("look_at", self.look_at, "1, the first step, and at least one more")
        for name in ("log2_eta_plain", "log2_eta_unit"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] >= value[1]:
                raise ConfigError(name, value, "two numbers: [small, large] in log2 η")
        if self.wide_seeds > self.seeds:
            raise ConfigError("wide_seeds", self.wide_seeds, f"at most seeds = {self.seeds}")

    def points(self) -> list[Point]:
        """A point for every width, seed, scheme and η, those of equal shape side by side."""
        shape = {
            "n_heads": self.n_heads,
            "n_layers": self.n_layers,
            "ff_ratio": self.ff_ratio,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "base_width": self.base_width,
            "dtype": self.dtype,
            "steps": sorted(set(self.look_at)),
            "corpus": self.corpus,
            "tokenizer": self.tokenizer,
        }
        points = []
        for width in sorted(set(self.widths), reverse=True):  # the most expensive first
            seeds = self.wide_seeds if width == max(self.widths) else self.seeds
            for scheme in self.schemes:
                unit = rules.SCHEMES[scheme].unit_scaled
                depth = 1 if scheme == "completep" else self.n_layers
                for log2_eta in self.log2_eta_unit if unit else self.log2_eta_plain:
                    for seed in range(seeds):
                        own = {
                            "scheme": scheme,
                            "d_model": width,
                            "seed": seed,
                            "log2_eta": log2_eta,
                            "base_depth": depth,
                        }
                        points.append(Point(WHAT, own | shape))
        return points


DESIGN = CoordStudy
