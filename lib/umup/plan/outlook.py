"""Predictions for jobs on one device before it is available: seconds, MFU and bytes.

    python -m umup.plan.outlook [--hardware h100]

prints the predictions of `umup.plan.formulas` for the jobs of `JOBS`. Records later show the actual
numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from umup import command, plan
from umup.command import Option
from umup.config import HPs, MeshConfig, ModelConfig, OptimConfig, RunConfig
from umup.plan import GIB, formulas, hardware
from umup.plan.hardware import Hardware
from umup.text import columns


class Job(NamedTuple):
    """Runs of one shape that advance together on one device.

    Args:
        model, optim: of each run.
        lanes: number of runs that advance together.
        steps: of the job.
    """

    model: ModelConfig
    optim: OptimConfig
    lanes: int = 1
    steps: int = 1

    def run(self, scheme: str = "umup") -> RunConfig:
        """One run of this shape; the program does not depend on hyperparameters, seed and text."""
        return RunConfig(scheme, self.model, self.optim, HPs(), 0, "none", "none", "none")


class Outlook(NamedTuple):
    """The formulas' prediction for a job on one device.

    Args:
        seconds: of a step of all lanes.
        mfu: share of the step that its products would take at the machine's peak, see
            ``formulas.step_time``.
        tokens_per_s: of all lanes.
        limit: the part of the step that takes longest.
        state_bytes: weights and moments, held between steps.
        bytes: while a step runs.
        job_seconds: of all steps, compilation left out.
    """

    seconds: float
    mfu: float
    tokens_per_s: float
    limit: str
    state_bytes: float
    bytes: float
    job_seconds: float


def outlook(job: Job, machine: Hardware) -> Outlook:
    """The prediction for a job.

    Lanes are treated as one program whose products are larger by the number of lanes, at the same
    efficiency. This is too optimistic if each lane's products are small.

    Raises:
        ConfigError: the machine has no products of the model's type.
        PlanError: a size beyond ``plan.SIZES``.
    """
    case = plan.case(job.model, job.optim, MeshConfig(), machine)
    step, memory = formulas.step_time(case), formulas.memory(case)
    seconds = job.lanes * (step.seconds - step.overhead) + step.overhead
    slower = seconds / (job.lanes * step.seconds)
    return Outlook(
        seconds=seconds,
        mfu=step.mfu / slower,
        tokens_per_s=step.tokens_per_s / slower,
        limit=step.limit,
        state_bytes=job.lanes * memory.state,
        bytes=job.lanes * memory.total,
        job_seconds=job.steps * seconds,
    )


def together(outlooks: Iterable[Outlook]) -> float:
    """Bytes of a device that holds every job's state while they take turns."""
    held = list(outlooks)
    return sum(o.state_bytes for o in held) + max(o.bytes - o.state_bytes for o in held)


def _figure_1(recipe: str) -> Job:
    """Figure 1, right, of the u-μP paper at its own width; u-μP and μP share the program."""
    model = ModelConfig(
        d_model=4096,
        n_layers=4,
        d_head=64,
        d_ff=11264,
        vocab_size=256,
        seq_len=256,
        dtype="bfloat16",
        recipe=recipe,
        unroll=0,
    )
    return Job(model, OptimConfig(steps=400, batch_size=64, warmup_steps=100), steps=400)


def _throughput(width: int, n_layers: int = 4, lanes: int = 1, **fields: str | None) -> Job:
    """A step of the study ``throughput``, profile h100; lanes as `umup.lab.bench` runs them."""
    model = ModelConfig.from_dict(
        {
            "d_model": width,
            "n_layers": n_layers,
            "d_head": min(128, width // 2),
            "d_ff": 4 * width,
            "vocab_size": 512,
            "seq_len": 1024,
            "dtype": "bfloat16",
            "unroll": 0,
            **fields,
        }
    )
    return Job(model, OptimConfig(steps=10_000, batch_size=8, warmup_steps=100), lanes)


JOBS: Mapping[str, Job] = {
    **{
        f"Figure 1, {recipe}": _figure_1(recipe)
        for recipe in ("plain", "fp8_seed", "fp8_e5m2_grad")
    },
    "10⁹ parameters": _throughput(2048, 15),
    "10⁹ parameters, cuDNN": _throughput(2048, 15, attention="cudnn"),
    "width 4096": _throughput(4096),
    "width 4096, FP8": _throughput(4096, recipe="fp8_seed"),
    "width 4096, cuDNN": _throughput(4096, attention="cudnn"),
    "width 4096, FP8, cuDNN": _throughput(4096, recipe="fp8_seed", attention="cudnn"),
    "width 128, 8 lanes": _throughput(128, lanes=8, unroll=None),
}
"""The jobs of the first slices on an H100."""


def table(machine: Hardware, jobs: Mapping[str, Job] = JOBS) -> str:
    """The jobs' predictions on a machine, one per line."""
    rows = [("job", "ms per step", "MFU", "tokens/s", "limit", "state, GiB", "in all, GiB")]
    for name, job in jobs.items():
        o = outlook(job, machine)
        rows.append(
            (
                name,
                f"{1e3 * o.seconds:.1f}",
                f"{o.mfu:.2f}",
                f"{o.tokens_per_s:,.0f}",
                o.limit,
                f"{o.state_bytes / GIB:.1f}",
                f"{o.bytes / GIB:.1f}",
            )
        )
    return columns(rows)


@dataclass(frozen=True)
class Table:
    """Predicted seconds, MFU and bytes."""

    hardware: Annotated[str, Option("a machine that umup plan knows", "NAME")] = "h100"

    def __call__(self) -> int:
        """Print the table; 0.

        Raises:
            ConfigError: the machine is unknown.
        """
        print(table(hardware.get(self.hardware)))
        return 0


if __name__ == "__main__":
    sys.exit(command.run(Table, None, "python -m umup.plan.outlook"))
