"""``umup bench``: how fast a training step is, beside PyTorch's `unit_scaling`, and what it costs.

Five things are measured, each written as a record: a training step, alternating pair by pair with
PyTorch's; the machine's own GEMM peak, in the same run; lanes of a sweep against separate runs;
compile time against depth; peak memory. One run of the bench is one JSON file, written atomically
and never edited; `umup.lab.bench_records` keeps and renders them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from umup import machine
from umup.checked import Config, Count, OneOf, Range
from umup.command import Option
from umup.config import NUMERICS, HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError, UmupError
from umup.lab import bench_torch, timing
from umup.lab.bench_records import PARTS, RECORDS, SCHEMA, load_records, page, save, table
from umup.lab.timing import Ours

__all__ = ["Bench", "Plan", "load_records", "measure", "page", "save", "table"]

UNROLLS = {"unrolled": 0, "scanned": 1}
"""The two ways to run the layers, by ``ModelConfig.unroll``; by default, see
``model.layers_unrolled``, the first on a CPU and the second on an accelerator."""


@dataclass(frozen=True)
class Plan(Config):
    """What is measured. Times are of ``samples`` samples, each of ``steps`` training steps."""

    profile: Annotated[str, OneOf("cpu", "gpu")] = "cpu"
    parts: tuple[Annotated[str, OneOf(*PARTS)], ...] = PARTS
    widths: tuple[Annotated[int, Range(4)], ...] = (32, 64, 128, 256)
    n_layers: Count = 4
    ff_ratio: Count = 4
    d_head: Annotated[int, Range(2)] = 32
    vocab_size: Annotated[int, Range(2)] = 512
    seq_len: Count = 128
    batch_size: Count = 16
    dtype: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    samples: Count = 7
    steps: Count = 4
    gemm_sizes: tuple[Count, ...] = (512, 1024, 2048)
    lanes: Count = 8
    lanes_at_once: tuple[Count, ...] = (1, 2, 8)
    lane_steps: Count = 10
    depths: tuple[Count, ...] = (2, 8, 32)
    torch: bool = True
    quick: bool = False

    def model(
        self, width: int, *, n_layers: int | None = None, unroll: int | None = None
    ) -> ModelConfig:
        """The decoder's shape at ``width``: heads of ``d_head``, at least two of them."""
        return ModelConfig(
            d_model=width,
            n_layers=n_layers or self.n_layers,
            d_head=min(self.d_head, width // 2),
            d_ff=self.ff_ratio * width,
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            dtype=self.dtype,
            unroll=unroll,
        )

    def run(self, model: ModelConfig, seed: int = 0) -> RunConfig:
        """A u-μP run of that shape; what it trains on is made up and does not matter here."""
        return RunConfig(
            scheme="umup",
            model=model,
            hps=HPs(eta=0.5),
            seed=seed,
            optim=OptimConfig(steps=10_000, warmup_steps=100, batch_size=self.batch_size),
            corpus="synthetic",
            tokenizer="none",
            data_digest="none",
        )


QUICK = {"samples": 3, "steps": 2, "lane_steps": 2, "depths": (2, 8), "quick": True}
GPU = {
    "profile": "gpu",
    "widths": (256, 512, 1024, 2048, 4096),
    "dtype": "bfloat16",
    "d_head": 128,
    "steps": 20,
    "gemm_sizes": (4096, 8192),
    "lane_steps": 50,
    "torch": False,
}


def measure(plan: Plan = Plan(), say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure what ``plan`` asks for.

    Args:
        plan: the parts and shapes.
        say: receives one line a measurement, as it is made.

    Returns:
        One bench run, as `save` writes it: ``plan``, ``machine``, ``provenance``, ``notes`` and
        ``measurements``, a list of flat dictionaries whose ``part`` says what they measure.

    Raises:
        ConfigError: the plan asks for an accelerator and JAX sees none, or a width has no heads.
    """
    for width in plan.widths:
        plan.model(width)  # a bad width is an error before anything runs
    notes = []
    if plan.torch and (reason := bench_torch.missing()):
        plan = dataclasses.replace(plan, torch=False)
        notes.append(f"No PyTorch columns: {reason}.")
    if plan.profile == "gpu":  # leave memory to the processes that `memory` starts
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from umup.lab.records import provenance

    if plan.profile == "gpu" and jax.default_backend() == "cpu":
        raise ConfigError("--gpu", "cpu", "a machine with an accelerator that this JAX can use")
    parts = {
        "step": steps,
        "lanes": lanes,
        "compile": compile_times,
        "memory": memory,
        "probes": probes,
    }
    found: list[dict[str, Any]] = []
    with timing.uncached():
        for part in sorted(plan.parts, key="memory".__ne__):  # memory while there is most of it
            before = machine.cpu_seconds()
            try:
                for measured in parts[part](plan):
                    say(", ".join(f"{k} {_short(v)}" for k, v in measured.items()))
                    found.append(measured)
            except Exception as error:  # out of memory, say: what is measured so far counts
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                found.append({"part": part, "kind": "failure", "reason": reason})
                notes.append(f"The part {part} stopped early: {reason}.")
                say(notes[-1])
            others = machine.others_share(before, machine.cpu_seconds())
            found.append({"part": part, "kind": "load", "others": others})
    return {
        "schema": SCHEMA,
        "numerics": NUMERICS,
        "notes": notes,
        "plan": json.loads(json.dumps(plan.to_dict())),  # as it comes back from a file
        "machine": {"name": machine.name(), "cores": machine.cores()},
        "measurements": found,
        "provenance": {**provenance(), **(bench_torch.versions() if plan.torch else {})},
    }


def timed_steps(profile: str) -> list[dict[str, Any]]:
    """The training steps that the study ``throughput`` timed in a profile, one point each.

    Returns:
        Their shape (fields of `Plan`), width, n_layers, sides (``umup``, a name in
        `timing.CHANGES` or one of PyTorch's) and ms (side → times of the samples).
    """
    from umup.lab import study
    from umup.lab.records import read_results

    found = read_results(study.store("throughput", profile))
    return [p for what in ("step", "tried") for p in found.table(what).to_dict("records")]


def steps(plan: Plan) -> Iterator[dict[str, Any]]:
    """The GEMM peak, then one training step at each width, ours and PyTorch's in turn."""
    yield from gemm(plan)
    for width in plan.widths:
        sides: dict[str, Any] = {
            name: Ours(plan.run(plan.model(width, unroll=unroll)))
            for name, unroll in UNROLLS.items()
        }
        if plan.torch:
            sides["pytorch"] = _reference(plan, width)
        ms = timing.alternate(sides, plan.samples, plan.steps)
        model = plan.model(width)
        yield {
            "part": "step",
            "kind": "step",
            "d_model": width,
            "n_heads": model.n_heads,
            "n_params": model.n_params,
            "tokens": plan.batch_size * plan.seq_len,
            "flops": model.step_flops(plan.batch_size),
            "ms": ms,
        }


def gemm(plan: Plan) -> Iterator[dict[str, Any]]:
    """GFLOP/s of square products in the plan's dtype: best of the samples, by library and size."""
    libraries = [
        "jax",
        *(["numpy"] if plan.profile == "cpu" else []),
        *(["torch"] if plan.torch else []),
    ]
    for found in timing.gemm(libraries, plan.gemm_sizes, plan.dtype):
        yield {"part": "step", "kind": "gemm", **found}


def lanes(plan: Plan) -> Iterator[dict[str, Any]]:
    """A sweep of ``plan.lanes`` points: as lanes of one program, and as that many runs."""
    import jax

    run = plan.run(plan.model(min(plan.widths)))
    shared = {
        "part": "lanes",
        "kind": "lanes",
        "d_model": run.model.d_model,
        "lanes": plan.lanes,
        "steps": plan.lane_steps,
    }
    compile_s = run_s = 0.0
    for seed in range(plan.lanes):
        one = Ours(dataclasses.replace(run, seed=seed))
        compile_s += sum(one.compile(plan.lane_steps))
        run_s += one.seconds(plan.lane_steps)
    yield {**shared, "at_once": 0, "compile_s": compile_s, "run_s": run_s}
    # An accelerator advances all lanes at once, whatever the setting.
    for at_once in plan.lanes_at_once if jax.default_backend() == "cpu" else (plan.lanes,):
        sweep = Ours(run, runs=plan.lanes, lanes_at_once=at_once)
        compile_s = sum(sweep.compile(plan.lane_steps))
        run_s = sweep.seconds(plan.lane_steps)
        yield {**shared, "at_once": at_once, "compile_s": compile_s, "run_s": run_s}


def compile_times(plan: Plan) -> Iterator[dict[str, Any]]:
    """Seconds to trace and to compile a chunk at each depth, layers scanned."""
    width = plan.widths[0]
    for depth in plan.depths:
        run = plan.run(plan.model(width, n_layers=depth, unroll=1))
        trace_s, compile_s = Ours(run).compile(plan.steps)
        yield {
            "part": "compile",
            "kind": "compile",
            "d_model": width,
            "n_layers": depth,
            "trace_s": trace_s,
            "compile_s": compile_s,
        }


def probes(plan: Plan) -> Iterator[dict[str, Any]]:
    """A training step and an observation in turn, at each width."""
    for width in plan.widths:
        ours = Ours(plan.run(plan.model(width)))
        ours.seconds(plan.steps)  # compiles, as the next
        ours.look()
        step_ms, look_ms = [], []
        for _ in range(plan.samples):
            step_ms.append(1e3 * ours.seconds(plan.steps) / plan.steps)
            look_ms.append(1e3 * ours.look())
        yield {
            "part": "probes",
            "kind": "probes",
            "d_model": width,
            "step_ms": step_ms,
            "look_ms": look_ms,
        }


def memory(plan: Plan) -> Iterator[dict[str, Any]]:
    """Peak resident memory of a process that only trains, at the largest width."""
    width = max(plan.widths)
    for side in ("umup", *(["pytorch"] if plan.torch else [])):
        small = dataclasses.replace(plan, widths=(width,), torch=side == "pytorch")
        told = json.dumps(small.to_dict())
        command = [sys.executable, "-m", "umup.lab.bench", side, told]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UmupError("memory", done.stderr.strip()[-500:], "a process that ends well")
        yield {
            "part": "memory",
            "kind": "memory",
            "side": side,
            "d_model": width,
            **json.loads(done.stdout.splitlines()[-1]),
        }


def memory_of(side: str, plan: Plan) -> dict[str, float | None]:
    """Peak memory of this process, MiB, after importing and after a few steps of ``side``."""
    width = plan.widths[0]
    if side == "pytorch":
        import unit_scaling  # noqa: F401  # pyright: ignore[reportMissingImports]
    else:
        import jax

        import umup.train  # noqa: F401

        jax.devices()
    imported = machine.peak_mib()
    step = _reference(plan, width) if side == "pytorch" else Ours(plan.run(plan.model(width)))
    step.seconds(plan.steps)
    step.seconds(plan.steps)
    device = None
    if side == "umup" and (stats := jax.devices()[0].memory_stats()):
        device = stats["peak_bytes_in_use"] / 2**20
    return {"import_mib": imported, "peak_mib": machine.peak_mib(), "device_mib": device}


def _reference(plan: Plan, width: int) -> bench_torch.Step:
    return bench_torch.Step(
        width=width,
        layers=plan.n_layers,
        heads=plan.model(width).n_heads,
        vocab_size=plan.vocab_size,
        batch_size=plan.batch_size,
        seq_len=plan.seq_len,
        threads=machine.cores(),
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {min(v):.1f}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Bench:
    """Measure step times, lanes, compile time, memory.

    Five things are measured, each written as a record: a training step,
    alternating pair by pair with PyTorch's unit_scaling; the machine's own GEMM
    peak, in the same run; lanes of a sweep against separate runs; compile time
    against depth; peak memory. One run of the bench is one JSON file.

    examples:
      umup bench                            all of it; about ten minutes on two cores
      umup bench --quick                    two widths, few samples; nothing is recorded
      umup bench --widths 128 256 --parts step
      umup bench --gpu                      bfloat16, widths 256 to 4096, on an accelerator

    Close everything else first: the records say how much of the machine others used meanwhile.
    """

    quick: Annotated[bool, Option("two widths, few samples; nothing is recorded")] = False
    gpu: Annotated[bool, Option("bfloat16, wide, on an accelerator")] = False
    widths: Annotated[tuple[int, ...] | None, Option("d_model of the steps", "D")] = None
    parts: Annotated[tuple[str, ...] | None, Option(f"of {', '.join(PARTS)}", "PART")] = None
    samples: Annotated[
        int | None, Option(f"timed samples (default: {Plan.samples}; quick: 3)", "N")
    ] = None
    skip_torch: Annotated[bool, Option("leave the PyTorch columns out")] = False
    records: Annotated[Path | None, Option(f"where to record (default: {RECORDS})", "FOLDER")] = (
        None
    )

    def plan(self) -> Plan:
        """What these options ask to measure.

        Raises:
            ConfigError: names the option and what it allows.
        """
        changes: dict[str, Any] = dict(GPU) if self.gpu else {}
        if self.quick:
            changes |= {**QUICK, "widths": (256, 1024) if self.gpu else (32, 64)}
        if self.skip_torch:
            changes["torch"] = False
        given = {name: getattr(self, name) for name in ("widths", "parts", "samples")}
        return Plan(**changes | {name: value for name, value in given.items() if value is not None})

    def folder(self) -> Path | None:
        """Where to record; None is nowhere."""
        return self.records or (None if self.quick else RECORDS)

    def __call__(self) -> int:
        """Measure, print the tables and record; 0, or 1 where a part stopped, which it says."""
        run = measure(self.plan(), lambda line: print(line, file=sys.stderr, flush=True))
        print(table([run]))
        if (folder := self.folder()) is not None:
            print(f"Recorded in {save(run, folder)}", file=sys.stderr)
        return int(any(m["kind"] == "failure" for m in run["measurements"]))


if __name__ == "__main__":  # the child process of `memory`
    print(json.dumps(memory_of(sys.argv[1], Plan.from_dict(json.loads(sys.argv[2])))))
