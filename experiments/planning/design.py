"""The study ``planning``: is the planner right?

Points only: the training step of a list of configurations, compiled ahead of time for absent
meshes. Records hold the compiler's report; the predictions of `umup.plan.formulas` are computed
when the tables are made, so that a change of the planner shows. Step times are those on record in
the study ``throughput``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from umup import mesh
from umup.checked import Count, OneOf
from umup.config import RECIPES
from umup.errors import ConfigError
from umup.lab.design import Design, Point
from umup.plan import aot, compiler
from umup.plan.aot import Job

PARTS = ("model", "optim", "mesh")


def job(model: Mapping[str, Any], optim: Mapping[str, Any], mesh: Mapping[str, Any]) -> Job:
    """The u-μP step to compile, from the fields that a point's specification has."""
    return Job.from_dict({"scheme": "umup", "model": model, "optim": optim, "mesh": mesh})


@dataclass(frozen=True)
class Planning(Design):
    """Parameters of the study.

    Args:
        configurations: ``name``, and ``model``, ``optim``, ``mesh``: fields that differ from the
            defaults.
        sizes: ``name`` and ``model``; each is compiled in every layout with every recipe.
        layouts: meshes.
        recipes: of the linears.
        sequences: of the batch, per device along ``data`` and ``fsdp``.
        native: compile for the devices of this machine rather than virtual ones.
        gpu: also compile for as many of these GPUs, which may be absent; "": for none. Steps with
            cuDNN's attention are compiled for them alone.
    """

    configurations: tuple[dict, ...] = ()
    sizes: tuple[dict, ...] = ()
    layouts: tuple[dict, ...] = ()
    recipes: tuple[Annotated[str, OneOf(*RECIPES)], ...] = ("plain",)
    sequences: Count = 1
    native: bool = False
    gpu: Annotated[str, OneOf("", *compiler.DEVICES)] = ""
    point_seconds: float = 12.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, allowed in (("configurations", ("name", *PARTS)), ("sizes", ("name", "model"))):
            for entry in getattr(self, given):
                if "name" not in entry or not set(entry) <= set(allowed):
                    raise ConfigError(given, entry, f"a name, and of {', '.join(allowed)}")
        for point in self.points():
            self._check(point)

    def _check(self, point: Point) -> None:
        """Raise the error of a step that cannot be compiled now rather than after an hour."""
        spec = {part: point.spec[part] for part in PARTS}
        name = point.spec["name"]
        try:
            wanted = job(**spec)
            mesh.check(wanted.mesh, wanted.model, wanted.optim)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.field}", error.received, error.allowed) from None
        if wanted.mesh.devices > aot.LIMIT:
            allowed = f"up to {aot.LIMIT} virtual devices"
            raise ConfigError(f"{name}: mesh", str(wanted.mesh), allowed)

    def points(self) -> list[Point]:
        """The listed configurations, then every size in every layout with every recipe.

        They are compiled for virtual devices, then for GPUs; or for the devices present.
        """
        plain: dict[str, Any] = {part: {} for part in PARTS}
        specs = [plain | entry for entry in self.configurations]
        for size, layout in itertools.product(self.sizes, self.layouts):
            rows = self.sequences * layout.get("data", 1) * layout.get("fsdp", 1)
            specs += [
                {
                    "name": size["name"],
                    "model": size["model"] | {"recipe": recipe},
                    "optim": {"batch_size": rows},
                    "mesh": layout,
                }
                for recipe in self.recipes
            ]
        if self.native:
            return [Point("native", spec) for spec in specs]
        fused = [spec for spec in specs if spec["model"].get("attention") == "cudnn"]
        points = [Point("compiled", spec) for spec in specs if spec not in fused]
        if self.gpu:
            points += [Point("hopper", spec | {"device": self.gpu}) for spec in specs]
        return points


DESIGN = Planning
