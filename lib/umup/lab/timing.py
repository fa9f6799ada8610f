"""The timings of the study ``throughput``: our training steps, and matrix products.

Programs that are compared take turns sample by sample, so that a drift of the machine's speed
affects all of them.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from umup import machine
from umup.config import RunConfig
from umup.lab import bench_torch

GEMM_SECONDS = 0.7
"""Seconds for which each library and size of matrix product is tried for its best time."""
SEED = 0
"""Number of tokens of the synthetic text."""
REST = 0.3
"""Seconds between samples. Threads of one library busy-wait for their next work for a while, and
would take a core from the next side's threads."""


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Disable the cache of compiled programs on disk in the block."""
    import jax

    before = jax.config.jax_enable_compilation_cache  # pyright: ignore
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


class Change(NamedTuple):
    """One change to the step, and what it was expected to do to its time.

    Attributes:
        title: in words. predicted: ratio of times with and without it, written before the run.
        model, optim: fields of the configuration. options: XLA's, by name.
        base: what it is compared with: the plain step, or another of `CHANGES`.
    """

    title: str
    predicted: float
    model: Mapping[str, Any] = {}
    optim: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    base: str = "umup"


PLAIN = Change("plain", 1.0)
"""The step without a change, layers unrolled."""


def _library(kind: str) -> dict[str, str]:
    return {"xla_cpu_experimental_ynn_fusion_type": f"LIBRARY_FUSION_TYPE_{kind}"}


CHANGES = {
    "blocked": Change("attention in causal blocks", 0.9, {"attention": "blocked"}),
    "cudnn": Change("attention by cuDNN", 0.8, {"attention": "cudnn"}),
    "no_rope": Change("no rotary embedding", 0.95, {"rope": False}),
    "scanned": Change("layers scanned, not unrolled", 1.2, {"unroll": 1}),
    "remat_dots": Change(
        "scanned, recomputing all but products", 1.1, {"remat": "dots", "unroll": 1}, base="scanned"
    ),
    "remat_full": Change(
        "scanned, recomputing blocks", 1.3, {"remat": "full", "unroll": 1}, base="scanned"
    ),
    # In unrolled code, XLA's CPU backend merges the recomputation with the first computation.
    "remat_unrolled": Change("unrolled, recomputing blocks", 1.3, {"remat": "full"}),
    "accumulate": Change("batch in four parts", 1.05, optim={"accumulate": 4}),
    "bfloat16": Change("activations in bfloat16", 0.8, {"dtype": "bfloat16"}),
    "float32": Change("activations in float32", 2.0, {"dtype": "float32"}),
    "fp8": Change("linears in FP8", 0.8, {"recipe": "fp8_seed"}),
    "wide_vectors": Change(
        "vectors of 512 bits", 0.97, options={"xla_cpu_prefer_vector_width": 512}
    ),
    "fast_math": Change("fast math", 0.95, options={"xla_cpu_enable_fast_math": True}),
    "no_library": Change("no library kernels", 1.2, options=_library("INVALID")),
    "library_dots": Change("library kernels for products alone", 1.0, options=_library("DOT")),
    "old_emitters": Change(
        "older loop emitters", 1.05, options={"xla_cpu_use_fusion_emitters": False}
    ),
}
"""Changes to our step that studies time for comparison, by name."""


class Timed(Protocol):
    """Something whose steps can be timed."""

    def seconds(self, steps: int) -> float:
        """Wall time of ``steps`` steps."""
        ...


class Ours:
    """Training steps as users run them: chunks of the compiled scan, which gathers the data.

    Args:
        run: shape and scheme; the data are synthetic.
        runs: number of lanes, each with its own seed. lanes_at_once: see ``train.over_lanes``.
    """

    def __init__(self, run: RunConfig, *, runs: int = 1, lanes_at_once: int = 1):
        import jax.numpy as jnp

        from umup import train

        self.programs = train.programs(run, lanes_at_once)
        self.lanes = train.lanes_of([replace(run, seed=i) for i in range(runs)])
        ids = np.random.default_rng(SEED).integers(0, run.model.vocab_size, 200_000)
        self.tokens = jnp.asarray(ids.astype(np.uint16))
        self.states = self.programs.init(self.lanes)
        self.chunk: Callable = self.programs.chunk
        self.program: Any = None

    def compile(self, steps: int, options: Mapping[str, Any] | None = None) -> tuple[float, float]:
        """(trace, compile) seconds of the program of ``steps`` steps; see also `uncached`.

        ``options`` are XLA's, by name.
        """
        import jax

        jax.clear_caches()
        start = time.perf_counter()
        lowered = self.programs.chunk.lower(self.tokens, self.lanes, self.states, steps)
        traced = time.perf_counter()
        program = lowered.compile(compiler_options=dict(options) if options else None)
        self.program = program
        self.chunk = lambda tokens, lanes, states, _: program(tokens, lanes, states)
        return traced - start, time.perf_counter() - traced

    def mib(self) -> float:
        """Memory of the compiled program, MiB: its operands, results and temporaries.

        The numbers are the compiler's; call ``compile`` first. Results that reuse an operand's
        buffer count once.
        """
        plan = self.program.memory_analysis()
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return (held + plan.temp_size_in_bytes) / 2**20

    def look(self) -> float:
        """Wall time of one observation of all lanes."""
        start = time.perf_counter()
        np.asarray(self.programs.observe(self.tokens, self.lanes, self.states))
        return time.perf_counter() - start

    def seconds(self, steps: int) -> float:
        """Wall time of ``steps`` steps of all lanes."""
        start = time.perf_counter()
        self.states, losses = self.chunk(self.tokens, self.lanes, self.states, steps)
        np.asarray(losses)  # waits for the device
        return time.perf_counter() - start


def alternate(sides: Mapping[str, Timed], samples: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds per step of each side: ``samples`` samples, the sides taking turns.

    One sample of each is discarded first, for compilation and warm-up.
    """
    for side in sides.values():
        side.seconds(steps)
    ms: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(samples):
        for name, side in sides.items():
            time.sleep(REST)
            ms[name].append(1e3 * side.seconds(steps) / steps)
    return ms


def gemm(libraries: Sequence[str], sizes: Sequence[int], dtype: str) -> Iterator[dict[str, Any]]:
    """Best GFLOP/s of square products within ``GEMM_SECONDS``.

    Args:
        libraries: of ``jax``, ``numpy`` (always float32) and ``torch``.
        sizes: rows and columns of the matrices.
        dtype: ``float32`` or ``bfloat16``.

    Yields:
        library, dtype, size and gflops.
    """
    import jax
    import jax.numpy as jnp

    def with_jax(size: int) -> Callable:
        a, b = (jnp.full((size, size), 0.5, dtype) for _ in range(2))
        return functools.partial(jax.jit(jnp.dot), a, b)

    def with_numpy(size: int) -> Callable:
        return functools.partial(np.dot, *np.full((2, size, size), 0.5, np.float32))

    def with_torch(size: int) -> Callable:
        return bench_torch.matmul(size, machine.cores(), dtype)

    makers = {"jax": with_jax, "numpy": with_numpy, "torch": with_torch}
    for library in libraries:
        for size in sizes:
            product, calls, best = makers[library](size), 4, float("inf")
            wait = bench_torch.wait if library == "torch" else jax.block_until_ready
            wait(product())
            until = time.perf_counter() + GEMM_SECONDS
            while time.perf_counter() < until:
                start = time.perf_counter()
                wait([product() for _ in range(calls)])
                best = min(best, (time.perf_counter() - start) / calls)
            gflops = 2 * size**3 / best / 1e9
            yield {"library": library, "dtype": dtype, "size": size, "gflops": gflops}
