"""The machines that the planner knows, and those that a user adds in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from umup.checked import Config, Count, Fraction, Range
from umup.errors import ConfigError
from umup.text import did_you_mean

# Bounds wide enough for any machine, within which every time and cost is finite.
_Rate = Annotated[float, Range(1e-6, 1e9)]
_RateOrZero = Annotated[float, Range(0.0, 1e9)]
_Share = Annotated[float, Range(1e-3, 1.0)]


@dataclass(frozen=True)
class Hardware(Config):
    """A kind of device and its interconnect. A gigabyte is 10⁹ bytes."""

    name: str
    """Name by which to select it."""
    description: str
    """In words."""
    source: str
    """Source of the numbers."""
    tflops_bfloat16: _Rate
    """Dense peak of products in bfloat16."""
    memory_gb: _Rate
    """Memory of one device."""
    memory_gb_s: _Rate
    """Bandwidth of that memory."""
    link_gb_s: _Rate
    """Bandwidth at which one device receives from others of its node."""
    network_gb_s: _Rate
    """Bandwidth at which one device receives from other nodes."""
    tflops_float32: _RateOrZero = 0.0
    """Dense peak; 0 if the device has no such products."""
    tflops_float8: _RateOrZero = 0.0
    """Dense peak; 0 if the device has no such products, which then run in bfloat16."""
    node_devices: Count = 8
    """Devices in a node."""
    gemm_efficiency: _Share = 0.7
    """Share of the peak that products of weights reach."""
    attention_efficiency: _Share = 0.5
    """Share of the peak that attention's products reach."""
    overhead_us: _RateOrZero = 50.0
    """Time per block and step besides its arithmetic: launches, waiting."""
    usable: Fraction = 0.92
    """Share of the memory that a program may use."""
    usd_per_hour: _RateOrZero = 0.0
    """Price of one device."""
    copied_moments: Annotated[int, Range(0, 2)] = 0
    """Optimizer moments that the compiler cannot update in place."""
    widens: bool = False
    """True if bfloat16 is computed in float32, so that temporaries take four bytes."""
    split_sums: bool = False
    """True if the sums over ``tensor`` of fused matrices are not merged into one."""


def catalogue(extra: Path | str | None = None) -> dict[str, Hardware]:
    """All machines by name: the built-in ones and those of a user's file, which take precedence.

    Raises:
        ConfigError: the file cannot be read, or a machine in it lacks a field, has an unknown one,
            or one out of range.
    """
    builtin = tomllib.loads(
        resources.files("umup.plan").joinpath("hardware.toml").read_text("utf-8")
    )
    found = {name: _machine(name, fields) for name, fields in builtin.items()}
    own = {} if extra is None else _own(extra)
    return own | {name: machine for name, machine in found.items() if name not in own}


def _own(path: Path | str) -> dict[str, Hardware]:
    try:
        own = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("hardware", str(path), f"a TOML file ({error})") from None
    return {name: _machine(name, fields) for name, fields in own.items()}


def get(name: str, extra: Path | str | None = None) -> Hardware:
    """The machine of that name, from the user's file if it is there.

    Raises:
        ConfigError: the name is unknown, or is a built-in machine that the given file lacks; the
            error lists the known ones.
    """
    known = catalogue(extra)
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError("hardware", name, f"{', '.join(known)}, or a TOML file's own{hint}")
    if extra is not None and name not in (own := _own(extra)):
        raise ConfigError("hardware", name, f"a machine of {extra}: {', '.join(own) or 'none yet'}")
    return known[name]


def _machine(name: str, fields: Any) -> Hardware:
    if not isinstance(fields, Mapping):
        raise ConfigError(name, fields, f"a table [{name}] of a machine's fields")
    try:
        return Hardware.from_dict({"description": "", "source": ""} | dict(fields) | {"name": name})
    except ConfigError as error:
        raise ConfigError(f"{name}.{error.field}", error.received, error.allowed) from None
