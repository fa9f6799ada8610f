"""The training step compiled ahead of time for devices that are absent, and the compiler's report.

The same chunk that a run compiles is lowered for abstract arrays over virtual CPU devices, or over
absent GPUs (`umup.plan.compiler`). This gives bytes per device, floating-point operations, products
and collectives without the machines and without allocating an array. The chunk of a sweep can also
be lowered, without compiling, for an absent platform, to see what it requires of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, Self

import jax

from umup import mesh, target, train
from umup.checked import Config, CountOrZero, OneOf, canonical_json
from umup.config import HPs, MeshConfig, ModelConfig, OptimConfig, RunConfig
from umup.data.tokenizing import token_dtype
from umup.errors import ConfigError, TrainError
from umup.machine import peak_mib
from umup.plan import compiler, stablehlo
from umup.plan.hlo import Program, Traffic, traffic
from umup.plan.stablehlo import Array, Found
from umup.rules import SCHEMES
from umup.run import parallel

LIMIT = 512
"""Largest number of virtual devices: compiled in minutes on two cores."""

_OPTIONS: dict[str, Any] = {
    # The CPU backend widens bfloat16 to float32, and this pass would take the widening of all
    # layers' activations at once out of the loop over layers, which no accelerator does.
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    # A value that is rounded stays marked as such, so that `umup.plan.hlo` sees what would be sent.
    "xla_allow_excess_precision": False,
    # Code that nobody runs need not be fast; the HLO is the same.
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclass(frozen=True)
class Job(Config):
    """What to compile: one step of a run of this shape."""

    scheme: Annotated[str, OneOf(*SCHEMES)]
    model: ModelConfig
    optim: OptimConfig
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009, frozen
    stream_tokens: CountOrZero = 0
    """Length of the token stream that every device holds; 0 if the host reads the windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.model.seq_len + 1
        if 0 < self.stream_tokens < window:
            allowed = f"0, or at least {window} tokens, a window"
            raise ConfigError("stream_tokens", self.stream_tokens, allowed)

    def run(self) -> RunConfig:
        """A run of this shape; the program does not depend on hyperparameters, seed and text."""
        # The mesh stands for accelerators, whatever these virtual devices' own default is.
        model = self.model if self.model.unroll is not None else replace(self.model, unroll=1)
        return RunConfig(self.scheme, model, self.optim, HPs(), 0, "none", "none", "none")


class Report(NamedTuple):
    """The compiler's report on one step.

    Args:
        platform: ``cpu`` for virtual devices, ``gpu`` for a GPU, present or absent.
        devices: of the mesh.
        n_params: trainable parameters of the whole model.
        lower_s, compile_s: seconds.
        peak_rss_mib: peak memory of the process that compiled.
        argument_bytes, output_bytes, alias_bytes, temp_bytes: per device; ``alias_bytes`` are
            outputs that reuse the buffers of arguments.
        flops: of one device's matrix products, see ``hlo.Program.flops``.
        xla_flops: of all operations, those of a loop counted once, by XLA's ``cost_analysis``.
        collectives: of one device and step, see ``hlo.traffic``.
        products: matrix products in the program's text, those of a loop counted once: kind and
            operand types (``hlo.Product``), such as ``__cublas$lt$matmul$f8: f8e4m3fn ×
            f8e4m3fn``, with their counts.
    """

    platform: str
    devices: int
    n_params: int
    lower_s: float
    compile_s: float
    peak_rss_mib: float
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    flops: float
    xla_flops: float
    collectives: tuple[Traffic, ...]
    products: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes per device while the step runs."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes

    def to_json(self) -> str:
        """One line; the inverse of ``from_json``."""
        rows = [row._asdict() for row in self.collectives]
        return json.dumps(self._asdict() | {"collectives": rows})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that ``to_json`` wrote."""
        plain = {"products": {}} | json.loads(text)  # which older reports do not have
        rows = (Traffic(**row | {"axes": tuple(row["axes"])}) for row in plain["collectives"])
        return cls(**plain | {"collectives": tuple(rows)})


def compiled(job: Job, *, native: bool = False, device: str = "") -> Report:
    """Lower and compile the training step of a job, and report what it takes.

    This happens in a separate process, as the devices must be known before JAX starts. A CPU's
    program has the partitioner's collectives, which an accelerator's compiler may still merge or
    convert (an all-reduce of which each device keeps a part becomes a reduce-scatter).

    Args:
        job: what to compile.
        native: compile for this process's devices, with their compiler, as a run would.
        device: one of ``compiler.DEVICES``, which need not be present; "": virtual CPU devices.

    Raises:
        ConfigError: the mesh does not divide the model or the batch, has more devices than
            ``LIMIT``, or under ``native`` a number other than the process has; raised at once.
        TrainError: the compiling process failed.
        ConfigError, TrainError: there is no such ``device``, or no compiler for it.
    """
    mesh.check(job.mesh, job.model, job.optim)
    if native:
        return _report(job, {})
    if job.mesh.devices > LIMIT:
        raise ConfigError("mesh", str(job.mesh), f"up to {LIMIT} virtual devices")
    flags = f"--xla_force_host_platform_device_count={job.mesh.devices}"
    virtual = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",  # what comes from a cache has no memory analysis
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    ours = compiler.environment(device) if device else virtual
    done = subprocess.run(
        [sys.executable, "-m", "umup.plan.aot", device],
        input=canonical_json(job),
        env=os.environ | {"JAX_TRACEBACK_FILTERING": "off"} | ours,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise TrainError("compile", _ending(done), "a step that XLA compiles in the memory here")
    return Report.from_json(done.stdout.splitlines()[-1])


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    """How a process failed: its status or signal, and the end of its output."""
    code = done.returncode
    how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    lines = done.stderr.strip().splitlines()
    return f"{how}: {lines[-1].strip()}" if lines else how


def _report(job: Job, options: dict[str, Any], device: str = "") -> Report:
    if device:
        with target.tracing_for("gpu"), _cudnn():
            there = mesh.make(job.mesh, compiler.devices(device, job.mesh.devices))
            return _report_for(job, there, compiler.OPTIONS)
    return _report_for(job, mesh.make(job.mesh), options)


def _report_for(job: Job, devices: jax.sharding.Mesh, options: dict[str, Any]) -> Report:
    run = job.run()
    began = time.perf_counter()
    lowered = parallel.lower(run, devices, stream_tokens=job.stream_tokens)
    between = time.perf_counter()
    step = lowered.compile(options)
    ended = time.perf_counter()
    memory: Any = step.memory_analysis()
    program = Program(step.as_text() or "")
    weights = jax.tree.leaves(parallel.abstract_state(run, devices).params)
    return Report(
        platform=target.platform(),
        devices=job.mesh.devices,
        n_params=sum(w.size for w in weights),
        lower_s=between - began,
        compile_s=ended - between,
        peak_rss_mib=peak_mib(),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        flops=program.flops(),
        xla_flops=float((step.cost_analysis() or {}).get("flops", 0.0)),
        collectives=tuple(traffic(program.collectives(dict(devices.shape)))),
        products=dict(Counter(f"{one.kind}: {one.text()}" for one in program.products())),
    )


class Facts(NamedTuple):
    """What a chunk of steps requires of a platform, read from its StableHLO.

    An array with the shape of a weight, of all layers or one, counts as a weight. Any other with an
    axis of tokens, or with axes of sequences and positions, counts as an activation: choose shapes
    in which d_ff differs from the number of tokens. Operations are counted as they occur in the
    text, once in a loop over layers.

    Args:
        donated: number of arrays of the state whose buffers the new state reuses.
        copied: names of the arrays for which the new state needs new buffers.
        host: what waits for the host within the chunk.
        transposed: transpositions of weights or their gradients, without those in the dimension
            numbers of products.
        wide: float32 copies of activations: conversions whose result is read by an operation other
            than a reduction or a conversion back, see `stablehlo.Program.widened`.
        carried: arrays of activations that loops carry, with their counts.
        products: matrix products, by the types of operands and result, with their counts.
        kernels: targets of custom calls, with their counts.
    """

    donated: int
    copied: tuple[str, ...]
    host: tuple[Found, ...]
    transposed: tuple[Found, ...]
    wide: tuple[Found, ...]
    carried: Counter[Array]
    products: Counter[tuple[Array, ...]]
    kernels: Counter[str]


def lowered_for(
    platform: str,
    run: RunConfig,
    *,
    lanes: int = 1,
    chunk_steps: int = 100,
    stream_tokens: int = 2**20,
) -> jax.stages.Lowered:
    """The chunk that `train.programs` compiles, lowered for abstract arguments and a platform.

    Nothing is compiled and no array is allocated. The platform to trace for (`umup.target`) is
    ``gpu``; if JAX finds no cuDNN, a version is supplied to it.

    Args:
        platform: ``cuda``, as JAX names it in ``lowering_platforms``.
        run: shapes; the program does not depend on scheme, hyperparameters and text.
        lanes: runs that advance together.
        chunk_steps: steps of a chunk. stream_tokens: length of the token stream.

    Raises:
        ConfigError: unknown platform.
    """
    if platform != "cuda":
        raise ConfigError("platform", platform, "cuda")
    with target.tracing_for("gpu"), _cudnn():
        programs = train.programs(run)
        inputs = jax.eval_shape(lambda: train.lanes_of([run] * lanes))
        states = jax.eval_shape(programs.init, inputs)
        tokens = jax.ShapeDtypeStruct((stream_tokens,), token_dtype(run.model.vocab_size))
        chunk: Any = programs.chunk
        traced = chunk.trace(tokens, inputs, states, chunk_steps)
        return traced.lower(lowering_platforms=(platform,))


@contextlib.contextmanager
def _cudnn() -> Iterator[None]:
    """Supply cuDNN's version to JAX, which needs it to trace, where there is no cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    asked = fused.check_cudnn_version
    try:
        asked()
    except RuntimeError:
        fused.check_cudnn_version = lambda: 91000
    try:
        yield
    finally:
        fused.check_cudnn_version = asked


def facts(run: RunConfig, *, lanes: int = 1, platform: str = "cuda") -> Facts:
    """What a chunk of ``lanes`` runs of this shape requires of a platform, present or absent."""
    program = stablehlo.Program(lowered_for(platform, run, lanes=lanes))
    model, batch = run.model, run.optim.batch_size // run.optim.accumulate
    state = jax.eval_shape(lambda lane: train.init(run, lane), parallel.lane_of(run))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
    flags = program.donated()[-len(names) :]  # the state is the last argument

    weights = _weight_shapes(run, lanes)

    def activations(array: Array) -> bool:
        axes = set(array.shape)
        rows = batch * model.seq_len in axes or {batch, model.seq_len} <= axes
        return rows and _axes(array.shape) not in weights

    least = min(model.d_model, model.vocab_size) * batch * model.seq_len
    matrix = model.d_model * min(model.d_model, model.vocab_size)
    wide = (found for found in program.widened(least) if activations(found.result))
    moved = program.transposed(matrix)
    carried = {a: n for a, n in program.carried().items() if activations(a) and a.size >= least}
    return Facts(
        donated=sum(flags),
        copied=tuple(name for name, flag in zip(names, flags, strict=True) if not flag),
        host=tuple(program.host()),
        transposed=tuple(found for found in moved if _axes(found.result.shape) in weights),
        wide=tuple(found for found in wide if not {"convert", "reduce"} >= set(found.ends)),
        carried=Counter(carried),
        products=Counter((*found.operands, found.result) for found in program.products()),
        kernels=program.calls(),
    )


def _weight_shapes(run: RunConfig, lanes: int) -> set[tuple[int, ...]]:
    """Axes of every weight: of all layers or one, with fused matrices separate or as one."""
    shapes: set[tuple[int, ...]] = set()
    for path, leaf in jax.tree.leaves_with_path(train.abstract(run).params):
        stacked = "blocks" in jax.tree_util.keystr(path)
        for shape in [leaf.shape, leaf.shape[1:]] if stacked else [leaf.shape]:
            for whole in (shape, (*shape[:-2], shape[-2] * shape[-1])):
                shapes.add(_axes((lanes, *whole)))
    return shapes


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of more than one element, whatever their order."""
    return tuple(sorted(size for size in shape if size > 1))


if __name__ == "__main__":
    print(_report(Job.from_dict(json.load(sys.stdin)), _OPTIONS, sys.argv[1]).to_json())
