"""umup: μP and u-μP on JAX and Flax, and the studies that measure them.

Parametrizations are data (`umup.rules`), models see only numbers (`umup.model`), every
hyperparameter is a traced value, and every result is a record (`umup.lab.records`). `umup.unit` has
the unit-scaled operations under the names of PyTorch's `unit_scaling.functional`, `umup.interop`
moves weights to and from it, and `umup.coord_check` tests a model of your own.
"""

from typing import TYPE_CHECKING, Any

from umup.config import NUMERICS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import (
    BookError,
    CheckpointError,
    ClaimError,
    ConfigError,
    DataError,
    RecordError,
    StudyError,
    TrainError,
    UmupError,
)
from umup.rules import SCHEMES, Parametrization

if TYPE_CHECKING:
    from umup import interop, unit
    from umup.coord import coord_check

__version__ = "0.1.0"

__all__ = [
    "NUMERICS",
    "SCHEMES",
    "BookError",
    "CheckpointError",
    "ClaimError",
    "ConfigError",
    "DataError",
    "HPs",
    "ModelConfig",
    "OptimConfig",
    "Parametrization",
    "RecordError",
    "RunConfig",
    "StudyError",
    "TrainError",
    "UmupError",
    "coord_check",
    "interop",
    "unit",
]


def __getattr__(name: str) -> Any:
    """The names that need JAX, imported when they are first used: plans and claims need no JAX."""
    import importlib

    if name in ("interop", "unit"):
        return importlib.import_module(f"umup.{name}")
    if name == "coord_check":
        return importlib.import_module("umup.coord").coord_check
    raise AttributeError(f"module 'umup' has no attribute {name!r}")
