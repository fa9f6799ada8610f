"""umup: μP and u-μP on JAX and Flax, and the studies that measure them.

Parametrizations are data (`umup.rules`), models see only numbers (`umup.model`), every
hyperparameter is a traced value, and every result is a record (`umup.records`).
"""

from umup.config import NUMERICS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import (
    BookError,
    ClaimError,
    ConfigError,
    DataError,
    RecordError,
    StudyError,
    UmupError,
)
from umup.rules import SCHEMES, Parametrization

__version__ = "0.1.0"

__all__ = [
    "NUMERICS", "SCHEMES", "BookError", "ClaimError", "ConfigError", "DataError", "HPs",
    "ModelConfig", "OptimConfig", "Parametrization", "RecordError", "RunConfig", "StudyError",
    "UmupError",
]  # fmt: skip
