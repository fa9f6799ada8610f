"""The machines that the planner knows, and those that a user adds as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from umup.config import COUNT, FRACTION, Config, Range
from umup.errors import ConfigError
from umup.text import did_you_mean

# Bounds wide enough for any machine, within which no time or cost is infinite.
_RATE, _NONE_OR, _SHARE = Range(1e-6, 1e9), Range(0.0, 1e9), Range(1e-3, 1.0)


@dataclass(frozen=True)
class Hardware(Config):
    """One kind of device and what joins several of them.

    Args:
        name: as it is asked for.
        description, source: in words.
        tflops_float32, tflops_bfloat16, tflops_float8: dense peaks; 0 means that there are no such
            products (float8 ones then run in bfloat16).
        memory_gb, memory_gb_s: of one device, 10⁹ bytes.
        link_gb_s, network_gb_s: what one device receives from others of its node, and of others.
        node_devices: devices in a node.
        gemm_efficiency, attention_efficiency: share of the peak that products reach.
        overhead_us: what a block costs a step beside its arithmetic: launches, waiting.
        usable: share of the memory that a program may take.
        usd_per_hour: of one device.
        copied_moments: optimizer moments that the compiler cannot update in place.
        widens: computes bfloat16 in float32, so that temporaries take four bytes.
        split_sums: the sums over ``tensor`` of matrices side by side are not merged into one.
    """

    name: str
    description: str
    source: str
    tflops_bfloat16: float
    memory_gb: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    tflops_float32: float = 0.0
    tflops_float8: float = 0.0
    node_devices: int = 8
    gemm_efficiency: float = 0.7
    attention_efficiency: float = 0.5
    overhead_us: float = 50.0
    usable: float = 0.92
    usd_per_hour: float = 0.0
    copied_moments: int = 0
    widens: bool = False
    split_sums: bool = False

    RANGES = {
        "tflops_bfloat16": _RATE,
        "memory_gb": _RATE,
        "memory_gb_s": _RATE,
        "link_gb_s": _RATE,
        "network_gb_s": _RATE,
        "tflops_float32": _NONE_OR,
        "tflops_float8": _NONE_OR,
        "node_devices": COUNT,
        "gemm_efficiency": _SHARE,
        "attention_efficiency": _SHARE,
        "overhead_us": _NONE_OR,
        "usable": FRACTION,
        "usd_per_hour": _NONE_OR,
        "copied_moments": Range(0, 2),
    }


def catalogue(extra: Path | str | None = None) -> dict[str, Hardware]:
    """All machines by name: the built-in ones, and those of a user's file, which come first.

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
    """The machine of that name, of the user's file where there is one.

    Raises:
        ConfigError: unknown, or a built-in machine beside a file that has no such one; the error
            lists the known ones.
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
