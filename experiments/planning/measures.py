"""What the study ``planning`` measures: compilers' reports on training steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax

from umup.errors import StudyError
from umup.plan import aot

from .design import job


def compiled(
    *, name: str, model: Mapping[str, Any], optim: Mapping[str, Any], mesh: Mapping[str, Any]
) -> dict[str, Any]:
    """What XLA says of a step compiled for virtual CPU devices, see `aot.Report`.

    Args:
        name: of the configuration; no part of what is compiled.
        model, optim, mesh: fields of their configurations.

    Raises:
        TrainError: the compiling process failed.
    """
    return json.loads(aot.compiled(job(model, optim, mesh)).to_json())


def native(
    *, name: str, model: Mapping[str, Any], optim: Mapping[str, Any], mesh: Mapping[str, Any]
) -> dict[str, Any]:
    """The same by the compiler of the accelerator present, with all its passes.

    Raises:
        StudyError: there is none.
    """
    if (found := jax.default_backend()) == "cpu":
        raise StudyError("native", found, "a machine with an accelerator that this JAX can use")
    return json.loads(aot.compiled(job(model, optim, mesh), native=True).to_json())


def hopper(
    *,
    name: str,
    model: Mapping[str, Any],
    optim: Mapping[str, Any],
    mesh: Mapping[str, Any],
    device: str,
) -> dict[str, Any]:
    """The same by the compiler of a GPU, which may be absent, see `umup.plan.compiler`.

    Args:
        device: of ``compiler.DEVICES``.

    Raises:
        TrainError: the compiler is not installed, or failed.
    """
    return json.loads(aot.compiled(job(model, optim, mesh), device=device).to_json())


MEASURES: Mapping = {"compiled": compiled, "native": native, "hopper": hopper}
