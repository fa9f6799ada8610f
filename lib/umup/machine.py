"""What this machine is, how much memory this process used, and how busy other processes kept it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def core_numbers() -> list[int]:
    """Numbers of the CPU cores that this process may be bound to; none where it cannot be bound.

    Linux binds processes to cores; macOS and Windows do not, nor do some containers.
    """
    try:
        return sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return []


def bind(core: int) -> None:
    """Bind this process to a core, or leave it unbound where that core is no longer allowed."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {core})


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(core_numbers()) or os.cpu_count() or 1


def _lines(path: str) -> list[str]:
    """The lines of a file of Linux's kernel; none if it does not exist or cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def in_haste() -> str:
    """``XLA_FLAGS`` as set, followed by flags that make XLA compile CPU programs quickly.

    The programs themselves run more slowly: for trials of a few steps.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    flags += " --xla_cpu_parallel_codegen_split_count=1"  # parts cost more CPU time than a whole
    # jaxlib 0.11 aborts on this flag, which it does not know; the older emitters convert no FP8
    # without float16.
    if version("jaxlib") < "0.11" and converts_float16():
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags.strip()


def converts_float16() -> bool:
    """Whether XLA may convert float16 by an instruction, as ``XLA_FLAGS`` and the processor allow.

    No x86 CPU older than F16C, which came with AVX2, has such an instruction. XLA:CPU (jaxlib
    0.10.2) has no substitute for it and converts FP8 to wider formats through float16, so that on
    such a CPU it aborts on programs of FP8 recipes.
    """
    if re.search(r"--xla_cpu_max_isa=(SSE4_2|AVX)\b", os.environ.get("XLA_FLAGS", "")):
        return False
    listed = [line.split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")]
    return "f16c" in listed[0] if listed else True


def name() -> str:
    """The processor's model name."""
    lines = _lines("/proc/cpuinfo")
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    # Not ru_maxrss: on Linux that starts from the peak of the process that started this one.
    lines = _lines("/proc/self/status")
    if found := [line.split()[1] for line in lines if line.startswith("VmHWM:")]:
        return int(found[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def cpu_seconds() -> tuple[float, float, float] | None:
    """(busy, all, ours): CPU seconds of the machine and of this process and its children."""
    if not (lines := _lines("/proc/stat")):
        return None
    ticks = [int(x) for x in lines[0].split()[1:9]]
    hertz, idle = os.sysconf("SC_CLK_TCK"), ticks[3] + ticks[4]
    return (sum(ticks) - idle) / hertz, sum(ticks) / hertz, sum(os.times()[:4])


def others_share(before: Sequence[float] | None, after: Sequence[float] | None) -> float | None:
    """Share of the machine's CPU time that other processes took between two `cpu_seconds`."""
    if before is None or after is None:
        return None
    busy, whole, ours = (b - a for a, b in zip(before, after))
    return max(busy - ours, 0.0) / whole if whole > 0 else 0.0


def gemm_flops(dtype: str, size: int = 0, seconds: float = 0.5) -> float:
    """Best FLOP/s over many square matrix products on the default device.

    Args:
        dtype: of operands and result.
        size: of the matrices; 0 takes 1024 on a CPU and 8192 on an accelerator.
        seconds: how long to try.
    """
    import time

    import jax
    import jax.numpy as jnp

    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    a, b = (jnp.full((size, size), 0.5, dtype) for _ in range(2))
    product, best = jax.jit(jnp.dot), float("inf")
    jax.block_until_ready(product(a, b))
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready([product(a, b) for _ in range(4)])
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * size**3 / best
