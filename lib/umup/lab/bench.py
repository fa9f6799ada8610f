"""Benchmarks beside the training step: a decoder's shape, and measurements other than steps.

The study ``throughput`` times steps beside PyTorch's `unit_scaling` and uses this module for the
rest: matrix products, lanes of a sweep against separate runs, compile time against depth, peak
memory. ``umup bench`` repeats that study on the present machine.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from umup import machine
from umup.checked import Config, Count, OneOf, Range
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import UmupError
from umup.lab import bench_torch, timing
from umup.lab.timing import Ours


@dataclass(frozen=True)
class Plan(Config):
    """What to measure. Times are taken over ``samples`` samples, each of ``steps`` steps."""

    profile: Annotated[str, OneOf("cpu", "gpu")] = "cpu"
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
        """A u-μP run of that shape, trained on synthetic data, which do not matter here."""
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


def gemm(plan: Plan) -> Iterator[dict[str, Any]]:
    """GFLOP/s of square products in the plan's dtype: the best sample, by library and size."""
    libraries = [
        "jax",
        *(["numpy"] if plan.profile == "cpu" else []),
        *(["torch"] if plan.torch else []),
    ]
    for found in timing.gemm(libraries, plan.gemm_sizes, plan.dtype):
        yield {"part": "step", "kind": "gemm", **found}


def lanes(plan: Plan) -> Iterator[dict[str, Any]]:
    """A sweep of ``plan.lanes`` points: as lanes of one program, and as separate runs."""
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
    """A training step and an observation by the probes, alternately, at each width."""
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
    """Peak resident memory of a process that does nothing but train, at the largest width."""
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


if __name__ == "__main__":  # the child process of `memory`
    print(json.dumps(memory_of(sys.argv[1], Plan.from_dict(json.loads(sys.argv[2])))))
