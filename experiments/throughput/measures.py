"""What the study ``throughput`` times: whole steps beside PyTorch's, changes to ours, pieces.

Lanes, compile times, matrix products and resident memory are parts of `umup.lab.bench`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from umup import machine
from umup.config import RunConfig
from umup.errors import StudyError
from umup.lab import bench, bench_torch
from umup.lab.bench import Plan
from umup.lab.timing import CHANGES, PLAIN, Change, Ours, alternate, uncached

TORCH = ("eager", "compiled")
"""The two ways to run the reference."""


def _run(plan: Plan, width: int, n_layers: int, change: Change) -> RunConfig:
    """Layers unrolled, for speed, where the change does not say otherwise."""
    run = plan.run(plan.model(width, n_layers=n_layers, unroll=0))
    return replace(
        run, model=replace(run.model, **change.model), optim=replace(run.optim, **change.optim)
    )


def _plan(shape: Mapping[str, Any]) -> Plan:
    return Plan.from_dict({**shape, "torch": False})


def _loaded(measure: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The measure, with the share of the CPU that other processes took meanwhile."""

    @functools.wraps(measure)
    def measured(**spec: Any) -> dict[str, Any]:
        before = machine.cpu_seconds()
        with uncached():
            found = measure(**spec)
        return found | {"others": machine.others_share(before, machine.cpu_seconds())}

    return measured


def _torch(plan: Plan, width: int, n_layers: int, side: str) -> bench_torch.Step:
    if reason := bench_torch.missing():
        raise StudyError("references", reason, "both packages, or references: [] to do without")
    return bench_torch.Step(
        width=width,
        layers=n_layers,
        heads=plan.model(width).n_heads,
        dtype=plan.dtype,
        vocab_size=plan.vocab_size,
        batch_size=plan.batch_size,
        seq_len=plan.seq_len,
        threads=machine.cores(),
        compiled=side == "compiled",
    )


@_loaded
def step(
    *,
    shape: Mapping[str, Any],
    width: int,
    n_layers: int,
    sides: list[str],
    samples: int,
    steps: int,
) -> dict[str, Any]:
    """Training steps of equal shape, sample by sample in turn.

    Args:
        shape: fields of `bench.Plan`.
        width, n_layers: d_model and depth.
        sides: ``umup``, a name in `timing.CHANGES`, or one in `TORCH`.
        samples, steps: timed samples, each of so many steps.

    Returns:
        ms by side (lists); mib and compile_s by side of ours; n_params, tokens and flops of a step.
    """
    plan = _plan(shape)
    timed: dict[str, Any] = {}
    mib, compile_s = {}, {}
    for side in sides:
        if side in TORCH:
            timed[side] = _torch(plan, width, n_layers, side)
            continue
        change = CHANGES.get(side, PLAIN)
        ours = timed[side] = Ours(_run(plan, width, n_layers, change))
        compile_s[side] = sum(ours.compile(steps, change.options))
        mib[side] = ours.mib()
    model = plan.model(width, n_layers=n_layers)
    return {
        "ms": alternate(timed, samples, steps),
        "mib": mib,
        "compile_s": compile_s,
        "n_params": model.n_params,
        "tokens": plan.batch_size * plan.seq_len,
        "flops": model.step_flops(plan.batch_size),
    }


@_loaded
def parts(
    *, shape: Mapping[str, Any], width: int, n_layers: int, samples: int, steps: int
) -> dict[str, Any]:
    """The step and its pieces, each a program of its own, in turn.

    A piece is timed forward and backward at its size in the model, times how often it occurs there.
    Apart, pieces cannot be fused with their neighbours, so that their sum is near the step, not it.

    Returns:
        ms by piece (lists), of the whole step under ``step``.
    """
    from .pieces import pieces

    plan = _plan(shape)
    run = _run(plan, width, n_layers, PLAIN)
    found = pieces(run)
    ms = alternate({"step": Ours(run), **{n: p for n, (p, _) in found.items()}}, samples, steps)
    counts = {name: count for name, (_, count) in found.items()}
    return {"ms": {n: [counts.get(n, 1) * x for x in v] for n, v in ms.items()}}


@_loaded
def benched(*, part: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What a part of `umup.lab.bench` measures: gemm, lanes, compile_times, memory or probes.

    Returns:
        found: its measurements, flat dictionaries.
    """
    measure = {
        "gemm": bench.gemm,
        "lanes": bench.lanes,
        "compile_times": bench.compile_times,
        "memory": bench.memory,
        "probes": bench.probes,
    }[part]
    given = Plan.from_dict(plan)
    if given.torch and (reason := bench_torch.missing()):
        raise StudyError("references", reason, "both packages, or references: [] to do without")
    return {"found": list(measure(given))}


MEASURES: Mapping = {
    "step": step,
    "tried": step,
    "parts": parts,
    "gemm": benched,
    "lanes": benched,
    "compile_times": benched,
    "memory": benched,
    "probes": benched,
}
