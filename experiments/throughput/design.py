"""The study ``throughput``: how fast a training step is, and where its time goes.

Points only, nothing is trained to an end. Steps are timed beside `unit_scaling` in PyTorch, in one
process, sample by sample in turn; so is every change that was tried beside the step without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from umup.checked import Count, CountOrZero, OneOf, Range
from umup.config import FloatType
from umup.errors import ConfigError
from umup.lab.bench import Plan
from umup.lab.design import Design, Point
from umup.lab.timing import CHANGES

from .measures import TORCH


@dataclass(frozen=True)
class Throughput(Design):
    """Parameters of the study.

    Args:
        n_layers, d_head, ff_ratio, vocab_size, seq_len, batch_size, dtype: of the decoder; heads
            are of ``d_head``, at least two of them.
        widths: of the steps beside PyTorch.
        big_width, big_layers: a further step, of another depth (0: none).
        settings: our own steps beside the plain one there, of `CHANGES`.
        references: ways to run PyTorch, of `TORCH`; none does without it.
        compiled_widths: widths with `torch.compile`, which takes a minute per shape.
        samples, steps: number of timed samples, and of steps in each.
        close_widths, close_samples: widths beside PyTorch that need more samples, being close to a
            claim's bound, and their number of samples.
        tried: changes of `CHANGES`, each at ``tried_widths``, one after another.
        parts_widths: where the pieces of a step are timed.
        gemm_sizes: square products tried for the peak.
        depths: whose compile time is measured, layers scanned, at the first width.
        lanes, lanes_at_once, lane_width, lane_steps: sweep of lanes (lane_steps 0: none).
        memory_width: whose resident memory is measured (0: none; on an accelerator it says little).
    """

    n_layers: Count = 1
    d_head: Annotated[int, Range(2)] = 32
    ff_ratio: Count = 4
    vocab_size: Annotated[int, Range(2)] = 64
    seq_len: Count = 32
    batch_size: Count = 4
    dtype: FloatType = "float32"
    widths: tuple[Annotated[int, Range(4)], ...] = (16,)
    big_width: CountOrZero = 0
    big_layers: CountOrZero = 0
    settings: tuple[Annotated[str, OneOf(*CHANGES)], ...] = ()
    references: tuple[Annotated[str, OneOf(*TORCH)], ...] = ()
    compiled_widths: tuple[Annotated[int, Range(4)], ...] = ()
    samples: Count = 2
    steps: Count = 1
    close_widths: tuple[Annotated[int, Range(4)], ...] = ()
    close_samples: Count = 41
    tried: tuple[Annotated[str, OneOf(*CHANGES)], ...] = ("remat_full",)
    tried_widths: tuple[Annotated[int, Range(4)], ...] = (16,)
    parts_widths: tuple[Annotated[int, Range(4)], ...] = (16,)
    gemm_sizes: tuple[Count, ...] = (64,)
    depths: tuple[Count, ...] = (1,)
    lanes: int = 2
    lane_width: Annotated[int, Range(4)] = 16
    lane_steps: CountOrZero = 0
    memory_width: CountOrZero = 0
    probed_widths: tuple[Annotated[int, Range(4)], ...] = ()
    """Widths at which an observation by the probes is timed beside a step."""
    point_seconds: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.big_width) != bool(self.big_layers):
            raise ConfigError("big_layers", self.big_layers, "0 with big_width 0, else neither")
        if not set(self.compiled_widths) <= set(self.widths):
            raise ConfigError("compiled_widths", self.compiled_widths, f"of widths {self.widths}")
        for width in (*self.widths, *self.tried_widths, *self.parts_widths, self.lane_width):
            self.plan().model(width)  # a width without heads is an error now

    def shape(self) -> dict[str, Any]:
        """The decoder's shape but for width and depth, as a point's specification has it."""
        names = ("d_head", "ff_ratio", "vocab_size", "seq_len", "batch_size", "dtype")
        return {name: getattr(self, name) for name in names}

    def plan(self, **changes: Any) -> Plan:
        """The bench's plan of the same shape."""
        return Plan(**{**self.shape(), "n_layers": self.n_layers, "torch": False, **changes})

    def points(self) -> list[Point]:
        """The peak, steps beside PyTorch, what was tried, pieces; then what is not a step."""
        timed = {"shape": self.shape(), "samples": self.samples, "steps": self.steps}
        # torch's peak counts too where torch runs; numpy's is float32 alone, a CPU's.
        torch = bool(self.references)
        cpu = self.dtype == "float32"
        out = [
            self._benched(
                "gemm", gemm_sizes=self.gemm_sizes, torch=torch, profile="cpu" if cpu else "gpu"
            )
        ]
        sizes = [(width, self.n_layers) for width in self.widths]
        sizes += [(self.big_width, self.big_layers)] if self.big_width else []
        for width, n_layers in sizes:
            references = [
                side
                for side in self.references
                if side != "compiled" or width in self.compiled_widths
            ]
            sides = ["umup", *self.settings, *references]
            at = {"width": width, "n_layers": n_layers, "sides": sides}
            more = {"samples": self.close_samples} if width in self.close_widths else {}
            out.append(Point("step", {**timed, **at, **more}))
        for width in self.tried_widths:
            for name in self.tried:
                sides = [CHANGES[name].base, name]
                at = {"width": width, "n_layers": self.n_layers, "sides": sides}
                out.append(Point("tried", {**timed, **at}))
        for width in self.parts_widths:
            out.append(Point("parts", {**timed, "width": width, "n_layers": self.n_layers}))
        if self.lane_steps:
            out.append(
                self._benched(
                    "lanes",
                    widths=(self.lane_width,),
                    lanes=self.lanes,
                    lane_steps=self.lane_steps,
                    lanes_at_once=tuple(sorted({1, self.lanes_at_once})),
                )
            )
        if self.depths:
            first = self.widths[:1]
            out.append(self._benched("compile_times", widths=first, depths=self.depths))
        if self.memory_width:
            out.append(self._benched("memory", widths=(self.memory_width,), torch=torch))
        if self.probed_widths:
            timing = {"samples": self.samples, "steps": self.steps}
            out.append(self._benched("probes", widths=self.probed_widths, **timing))
        return out

    def _benched(self, part: str, **changes: Any) -> Point:
        return Point(part, {"part": part, "plan": self.plan(**changes).essence()})


DESIGN = Throughput
