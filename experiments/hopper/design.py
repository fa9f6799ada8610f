"""The study `hopper`: what the first minutes on an H100 decide.

Points: peaks of products and copies, and twins, short trainings whose losses a CPU has on record.
Runs: u-μP and μP in bfloat16 and by direct cast to FP8 (u-μP paper, Figure 1 right), every arm of
a seed before the next seed, so that a slice of time that ends early has compared something.
"""

from __future__ import annotations

from dataclasses import dataclass

from umup.config import COUNT, POSITIVE, HPs, ModelConfig, OptimConfig, Range, RunConfig
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.design import Design, Point

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
class Hopper(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        product_size: rows, columns and contraction of the products timed (0: none).
        copy_mib: MiB of the buffer whose copy is timed (0: none).
        twins: of ``TWINS``.
        twin_d_model, twin_layers, twin_d_head, twin_seq_len, twin_batch_size, twin_steps, twin_lr:
            of the twins; log2 η. The same in every profile that is to be compared.
        width, n_layers, d_head, ff_ratio, seq_len, batch_size, steps, warmup_ratio, weight_decay,
            base_width, dtype, unroll: of the runs; d_ff / d_model, share of the steps that warm up.
        recipes: of the arms; ``plain`` is what the others are compared with, and is probed.
        lr_umup, lr_mup: log2 η. loss_scale: log2 of the constant loss scale (0: no such arm).
        probe_steps: when the plain arms are probed, the end too.
        seeds: of every arm.
    """

    product_size: int = 512
    copy_mib: int = 64
    twins: tuple[str, ...] = tuple(TWINS)
    twin_d_model: int = 64
    twin_layers: int = 2
    twin_d_head: int = 16
    twin_seq_len: int = 32
    twin_batch_size: int = 4
    twin_steps: int = 20
    twin_lr: float = 0.0
    recipes: tuple[str, ...] = RECIPES
    width: int = 64
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
    lr_umup: float = 0.0
    lr_mup: float = -6.5
    loss_scale: float = 9.0
    probe_steps: tuple[int, ...] = (0, 100)
    seeds: int = 3
    eval_batches: int = 16

    RANGES = {
        **Design.RANGES, "product_size": Range(0), "copy_mib": Range(0),
        "twins": tuple(TWINS), "recipes": RECIPES, "twin_d_model": COUNT,
        "twin_layers": COUNT, "twin_d_head": COUNT, "twin_seq_len": COUNT,
        "twin_batch_size": COUNT, "twin_steps": COUNT, "twin_lr": Range(-60, 60), "width": COUNT,
        "n_layers": COUNT, "d_head": COUNT, "ff_ratio": POSITIVE, "seq_len": COUNT,
        "batch_size": COUNT, "steps": COUNT, "warmup_ratio": Range(0.0, 1.0),
        "weight_decay": Range(0.0), "base_width": COUNT, "dtype": ("float32", "bfloat16"),
        "unroll": Range(0), "lr_umup": Range(-60, 60), "lr_mup": Range(-60, 60),
        "loss_scale": Range(-60, 60), "probe_steps": Range(0), "seeds": COUNT,
        "eval_batches": COUNT,
    }  # fmt: skip

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
            "d_model": self.twin_d_model, "n_layers": self.twin_layers, "d_head": self.twin_d_head,
            "seq_len": self.twin_seq_len, "batch_size": self.twin_batch_size,
            "steps": self.twin_steps, "log2_lr": self.twin_lr,
        }  # fmt: skip
        asked = [twin for name, twin in TWINS.items() if name in self.twins]
        return points + [Point("twin", {**twin._asdict(), **shape}) for twin in asked]

    def runs(self, dataset: Dataset) -> list[RunConfig]:
        """Every arm of the first seed, then of the next."""
        asked = [arm for arm in ARMS if arm[1] in self.recipes and (self.loss_scale or not arm[2])]
        return [self._run(dataset, seed, *arm) for seed in range(self.seeds) for arm in asked]

    def _run(
        self, dataset: Dataset, seed: int, scheme: str, recipe: str, scaled: bool
    ) -> RunConfig:
        log2_lr = self.lr_mup if scheme == "mup" else self.lr_umup
        return RunConfig(
            scheme=scheme,
            model=ModelConfig(
                d_model=self.width, n_layers=self.n_layers, d_head=self.d_head,
                d_ff=round(self.width * self.ff_ratio), vocab_size=dataset.vocab_size,
                seq_len=self.seq_len, base_width=self.base_width, base_depth=self.n_layers,
                base_d_head=self.d_head, dtype=self.dtype, unroll=self.unroll, recipe=recipe,
            ),
            optim=OptimConfig(
                steps=self.steps, batch_size=self.batch_size,
                warmup_steps=round(self.steps * self.warmup_ratio),
                loss_scale=2.0**self.loss_scale if scaled else 1.0,
            ),
            hps=HPs(eta=2.0**log2_lr, weight_decay=self.weight_decay), seed=seed,
            corpus=self.corpus, tokenizer=self.tokenizer, data_digest=dataset.digest,
            eval_batches=self.eval_batches,
            probe_steps=(*self.probe_steps, self.steps) if recipe == "plain" else (),
        )  # fmt: skip


DESIGN = Hopper
