"""The study `hopper`: what the first minutes on an H100 decide.

Points: peaks of products and copies, and twins, short trainings whose losses a CPU has on record.
Runs: u-μP and μP in bfloat16 and by direct cast to FP8 (u-μP paper, Figure 1 right), every arm of
a seed before the next seed, so that a slice of time that ends early has compared something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from umup.checked import Count, CountOrZero, OneOf
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import Text, Trained
from umup.lab.design import Octaves, Point

from .results import TWINS

ARMS = (
    ("umup", "plain", False),
    ("umup", "fp8_seed", False),
    ("mup", "plain", False),
    ("mup", "fp8_seed", False),
    ("umup", "fp8_e5m2_grad", False),
    ("mup", "fp8_e5m2_grad", False),
    ("mup", "fp8_seed", True),
)
"""Scheme, recipe, and whether the loss is scaled; in the order in which they are trained."""
RECIPES = ("plain", "fp8_seed", "fp8_e5m2_grad")
PRODUCTS = ("bf16", "fp8")


@dataclass(frozen=True)
class Hopper(Trained):
    """The flat parameters of the study, in addition to those of every study of decoders."""

    product_size: CountOrZero = 512
    """Rows, columns and contraction of the products timed (0: none)."""
    copy_mib: CountOrZero = 64
    """MiB of the buffer whose copy is timed (0: none)."""
    twins: tuple[Annotated[str, OneOf(*TWINS)], ...] = tuple(TWINS)
    """The twins to run; their shape is the same in all profiles that are compared."""
    twin_d_model: Count = 64
    """Of the twins."""
    twin_layers: Count = 2
    """Of the twins."""
    twin_d_head: Count = 16
    """Of the twins."""
    twin_seq_len: Count = 32
    """Of the twins."""
    twin_batch_size: Count = 4
    """Of the twins."""
    twin_steps: Count = 20
    """Of the twins."""
    twin_lr: Octaves = 0.0
    """Their log2 η."""
    recipes: tuple[Annotated[str, OneOf(*RECIPES)], ...] = RECIPES
    """Recipes of the arms; the others are compared with ``plain``, which is probed."""
    width: Count = 64
    """Of the runs."""
    lr_umup: Octaves = 0.0
    """u-μP's log2 η."""
    lr_mup: Octaves = -6.5
    """μP's log2 η."""
    loss_scale: Octaves = 9.0
    """log2 of the constant loss scale (0: no such arm)."""
    probe_steps: tuple[CountOrZero, ...] = (0, 100)
    """Steps at which the plain arms are probed, besides the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        early = list(self.probe_steps)
        if early != sorted(set(early)) or (early and early[-1] >= self.steps):
            allowed = f"rising steps below steps = {self.steps}"
            raise ConfigError("probe_steps", self.probe_steps, allowed)
        if "plain" not in self.recipes:
            raise ConfigError("recipes", self.recipes, "plain among them: it is compared with")
        for width, d_head in (("width", "d_head"), ("twin_d_model", "twin_d_head")):
            if getattr(self, width) % getattr(self, d_head):
                allowed = f"a divisor of {width} = {getattr(self, width)}"
                raise ConfigError(d_head, getattr(self, d_head), allowed)

    def points(self) -> list[Point]:
        """Peaks, then the twins."""
        points = [
            Point("gemm", {"size": self.product_size, "kind": kind})
            for kind in (PRODUCTS if self.product_size else ())
        ]
        if self.copy_mib:
            points.append(Point("copy", {"mib": self.copy_mib}))
        shape = {
            "d_model": self.twin_d_model,
            "n_layers": self.twin_layers,
            "d_head": self.twin_d_head,
            "seq_len": self.twin_seq_len,
            "batch_size": self.twin_batch_size,
            "steps": self.twin_steps,
            "log2_lr": self.twin_lr,
        }
        asked = [twin for name, twin in TWINS.items() if name in self.twins]
        return points + [Point("twin", {**twin._asdict(), **shape}) for twin in asked]

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Every arm of the first seed, then of the next."""
        asked = [arm for arm in ARMS if arm[1] in self.recipes and (self.loss_scale or not arm[2])]
        text = Text.of(dataset)
        return [self._run(text, seed, *arm) for seed in range(self.seeds) for arm in asked]

    def _run(self, text: Text, seed: int, scheme: str, recipe: str, scaled: bool) -> RunConfig:
        model = self.model(self.width, text, recipe=recipe)
        optim = self.optim(loss_scale=2.0**self.loss_scale if scaled else 1.0)
        probes = (*self.probe_steps, self.steps) if recipe == "plain" else ()
        eta = self.lr_mup if scheme == "mup" else self.lr_umup
        return self.run(scheme, model, text, seed, optim, probes, eta=eta)


DESIGN = Hopper
