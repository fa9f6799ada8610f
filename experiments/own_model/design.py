"""The study ``own_model``: the rules on models that are not ours, an MLP and a vision transformer.

Points only. *Curves* train a model at a width over learning rates and seeds; *checks* are
coordinate checks, some of them with a parameter whose role is wrong on purpose. The models are
those of ``plain`` (SP, as their owner wrote them) and ``models`` (with the
rules); the chapter "Your own model" shows both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from umup.checked import Count, Fraction, OneOf, Range
from umup.errors import ConfigError
from umup.lab.design import Design, Octaves, Point, Spacing

MODELS = ("mlp", "vit")
HEADS = 4  # of the vision transformer, at every width


@dataclass(frozen=True)
class OwnModel(Design):
    """The flat parameters of the study, beside those of every ``Design``.

    Args:
        models: ``mlp``, ``vit`` or both.
        mlp_widths, vit_widths: of either model, the first of them the base width.
        mlp_sp, mlp_mup, vit_sp, vit_mup: log2 η in the middle of the grid, one for every width.
            The first is also measured at every width: the learning rate tuned at the base.
        near, far: half-widths of the grid in octaves, of all seeds at steps of ``spacing`` and of
            one seed at whole octaves.
        steps, mlp_batch, vit_batch, warmup_ratio: of training.
        seeds: of every width; wide_seeds: at the largest, the most expensive.
        held_out: images on which the loss at the end is measured.
        wrong_curves, wrong_checks: ``MODEL.path`` of parameters that are marked as hidden though
            they are not, in curves and in checks.
        check_etas: log2 η of the checks. look_at: numbers of updates after which
            to look. check_seeds: of every width.
        tolerance: the slope that counts as none.
    """

    models: tuple[Annotated[str, OneOf(*MODELS)], ...] = MODELS
    mlp_widths: tuple[Count, ...] = (32, 64, 128)
    vit_widths: tuple[Count, ...] = (8, 16, 32)
    mlp_sp: tuple[Octaves, ...] = (-6.0, -6.0, -6.0)
    mlp_mup: tuple[Octaves, ...] = (-6.0, -6.0, -6.0)
    vit_sp: tuple[Octaves, ...] = (-5.0, -6.0, -7.0)
    vit_mup: tuple[Octaves, ...] = (-5.0, -5.0, -5.0)
    spacing: Spacing = 0.5
    near: Annotated[float, Range(0.0, 8.0)] = 1.0
    far: Annotated[float, Range(0.0, 8.0)] = 2.0
    steps: Count = 50
    mlp_batch: Count = 32
    vit_batch: Count = 16
    warmup_ratio: Fraction = 0.1
    held_out: Count = 256
    seeds: Count = 1
    wide_seeds: Count = 1
    wrong_curves: tuple[str, ...] = ()
    wrong_checks: tuple[str, ...] = ("mlp.hidden.bias",)
    check_etas: tuple[Octaves, ...] = (-10.0, -6.0)
    look_at: tuple[Count, ...] = (1, 10)
    check_seeds: Count = 1
    tolerance: Annotated[float, Range(0.0, 0.5, open_lo=True)] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for model in MODELS:
            widths = getattr(self, f"{model}_widths")
            if list(widths) != sorted(set(widths)) or len(widths) < 3:
                raise ConfigError(f"{model}_widths", widths, "at least three, rising")
            for scheme in ("sp", "mup"):
                centres = getattr(self, f"{model}_{scheme}")
                if len(centres) != len(widths):
                    allowed = f"one log2 η for each of {len(widths)} widths"
                    raise ConfigError(f"{model}_{scheme}", centres, allowed)
        if self.wide_seeds > self.seeds:
            raise ConfigError("wide_seeds", self.wide_seeds, f"at most seeds = {self.seeds}")
        if odd := [w for w in self.vit_widths if w % HEADS]:
            raise ConfigError("vit_widths", odd[0], f"multiples of {HEADS}, the number of heads")
        for name in ("models", "check_etas", "look_at"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")
        for name in ("wrong_curves", "wrong_checks"):
            for path in getattr(self, name):
                model, _, parameter = path.partition(".")
                if model not in self.models or not parameter:
                    models = ", ".join(self.models)
                    raise ConfigError(name, path, f"MODEL.path, MODEL one of {models}")

    def arms(self, wrong: tuple[str, ...]) -> list[dict[str, Any]]:
        """Either model under SP and under μP, and under μP with each wrong role."""
        plain = [(m, s, "") for m in self.models for s in ("sp", "mup")]
        spoilt = [(model, "mup", path) for model, _, path in (p.partition(".") for p in wrong)]
        return [{"model": m, "scheme": s, "wrong": w} for m, s, w in plain + spoilt]

    def grid(self, model: str, scheme: str, width: int) -> tuple[list[float], list[float]]:
        """log2 of the learning rates of all seeds, and of those of one seed."""
        centres = getattr(self, f"{model}_{scheme}")
        centre = centres[getattr(self, f"{model}_widths").index(width)]

        def around(reach: float, spacing: float) -> set[float]:
            steps = int(reach / spacing)
            return {centre + spacing * i for i in range(-steps, steps + 1)}

        near = around(self.near, self.spacing) | {centres[0]}
        return sorted(near), sorted(around(self.far, 1.0) - near)

    def points(self) -> list[Point]:
        """A curve for every arm and width, the most expensive first, and a check for every arm."""
        curves = []
        for arm in self.arms(self.wrong_curves):
            widths = getattr(self, f"{arm['model']}_widths")
            for width in widths:
                near, far = self.grid(arm["model"], arm["scheme"], width)
                curves.append(
                    Point(
                        "curve",
                        arm
                        | {
                            "width": width,
                            "base_width": widths[0],
                            "steps": self.steps,
                            "batch_size": getattr(self, f"{arm['model']}_batch"),
                            "warmup_ratio": self.warmup_ratio,
                            "held_out": self.held_out,
                            "near": near,
                            "far": far,
                            "seeds": self.wide_seeds if width == widths[-1] else self.seeds,
                        },
                    )
                )
        curves.sort(key=lambda p: (p.spec["model"], p.spec["width"]), reverse=True)
        checks = [
            Point(
                "coord",
                arm
                | {
                    "widths": list(getattr(self, f"{arm['model']}_widths")),
                    "base_width": getattr(self, f"{arm['model']}_widths")[0],
                    "batch_size": getattr(self, f"{arm['model']}_batch"),
                    "log2_etas": list(self.check_etas),
                    "seeds": self.check_seeds,
                    "look_at": sorted(set(self.look_at)),
                },
            )
            for arm in self.arms(self.wrong_checks)
        ]
        return curves + checks


DESIGN = OwnModel
