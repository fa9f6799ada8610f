"""``umup plan``: its options, and its output as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from umup import plan
from umup.command import Argument, Option
from umup.config import MeshConfig
from umup.errors import PlanError
from umup.plan import Prediction, formulas, hardware
from umup.plan.formulas import Case
from umup.plan.hardware import Hardware
from umup.run.commands import Fields
from umup.text import columns
from umup.yaml_reader import read_overrides

if TYPE_CHECKING:
    from umup.plan.aot import Report
    from umup.plan.hlo import Traffic
    from umup.run.runfile import TrainConfig

GIB = 2**30
LAYOUT = ("data", "fsdp", "tensor", "remat", "accumulate")
BOUNDS = {
    "time": "limited by the hours: a deeper one would see too few tokens",
    "memory": "limited by memory, not by the hours: no deeper one has a layout that divides evenly "
    "and fits",
    "depth": "the deepest that is tried; the hours allow for more",
}
"""What bounds the largest decoder of a budget, in words."""


@dataclass(frozen=True)
class Plan:
    """Say what a run takes: memory, time, cost; what fits; what a budget buys.

    examples:
      umup plan big.yaml --hardware h100 --devices 64
      umup plan big.yaml --devices 64 --layouts
      umup plan --devices 8 --hours 2 --inference-tokens 1e12
      umup plan big.yaml -p mesh.fsdp 512 --compile
    """

    config: Annotated[str | None, Argument("a run's file, as for umup train")] = None
    parameter: Fields = ()
    hardware: Annotated[str, Option("a machine", "NAME")] = "h100"
    machines: Annotated[str | None, Option("TOML file of machines of your own", "FILE")] = None
    devices: Annotated[int | None, Option("choose the layout (default: the file's mesh)", "N")] = (
        None
    )
    layouts: Annotated[bool, Option("rank all layouts that fit")] = False
    hours: Annotated[float | None, Option("the largest decoder of these proportions", "H")] = None
    tokens_per_parameter: Annotated[
        float | None, Option(f"with --hours (default: {plan.TOKENS_PER_PARAMETER:g})", "R")
    ] = None
    inference_tokens: Annotated[
        float | None, Option("with --hours: over the model's life (default: 0)", "T")
    ] = None
    compile: Annotated[
        bool,
        Option("compile the step for as many devices, which need not be there, and compare"),
    ] = False
    json: Annotated[bool, Option("numbers instead of text")] = False

    def __call__(self) -> int:
        """Answer what was asked; 0.

        Raises:
            PlanError: options that do not go together, or a run that does not fit.
            ConfigError: the file, a field or the machine.
        """
        from umup.run import runfile  # needs JAX, which the other commands' options do not

        overrides = read_overrides(self.parameter)
        config = runfile.read_config(self.config, overrides)
        machine = hardware.get(self.hardware, self.machines)
        if self.devices is not None and self.devices < 1:
            raise PlanError("--devices", self.devices, "an integer >= 1")
        _refuse_moot(self, config, overrides)
        found, text = _answer(self, config, machine)
        print(json.dumps(found, indent=1) if self.json else text)
        return 0


def _answer(asked: Plan, config: TrainConfig, machine: Hardware) -> tuple[Any, str]:
    """What was asked, as plain data and as text."""
    if asked.hours is not None:
        return _budget(config, machine, asked, asked.hours)
    if asked.layouts:
        return _layouts(config, machine, asked.devices or config.mesh.devices)
    given, config = config, _laid_out(config, machine, asked.devices)
    found, text = _one(config, machine)
    if config != given:
        own = layout(_case(given, machine))
        text += f"\nthis is the fastest layout on {asked.devices} devices; the run's is {own}"
    if asked.compile:
        return _compared(config, machine, found, text)
    plan.check(config.model, config.optim, config.mesh, machine)
    return found, text


def _refuse_moot(chosen: Plan, config: TrainConfig, overrides: Mapping[str, Any]) -> None:
    """Raise an error for an option that would have no effect.

    Raises:
        PlanError: the option, or the field of ``-p``, that another option makes moot.
    """
    if chosen.hours is None:
        for name in ("tokens_per_parameter", "inference_tokens"):
            if (value := getattr(chosen, name)) is not None:
                raise PlanError(f"--{name.replace('_', '-')}", value, "a number beside --hours")
    asked = {
        "--hours": chosen.hours is not None,
        "--layouts": chosen.layouts,
        "--compile": chosen.compile,
    }
    questions = [option for option, given in asked.items() if given]
    if len(questions) > 1:
        raise PlanError(questions[1], f"beside {questions[0]}", "one question at a time")
    other = chosen.devices not in (None, config.mesh.devices)
    option = next((one for one in questions if one != "--compile"), "--devices" if other else "")
    if not option:
        return
    decided = {"model.remat", "optim.accumulate"}
    decided |= {"optim.steps"} if chosen.hours is not None else set()
    decided |= {f"mesh.{axis}" for axis in MeshConfig().to_dict()} if other else set()
    for field in decided & overrides.keys():
        by = "--devices" if field.startswith("mesh.") else option
        raise PlanError(f"-p {field}", overrides[field], f"no value beside {by}, which chooses it")


def _case(config: TrainConfig, machine: Hardware) -> Case:
    return plan.case(config.model, config.optim, config.mesh, machine)


def _laid_out(config: TrainConfig, machine: Hardware, devices: int | None) -> TrainConfig:
    """The run in its own layout, or in the fastest one over a given number of devices."""
    if devices is None or devices == config.mesh.devices:
        return config
    best = plan.layouts(_case(config, machine), devices)[0].case
    return dataclasses.replace(
        config,
        mesh=MeshConfig(best.data, best.fsdp, best.tensor),
        model=dataclasses.replace(config.model, remat=best.remat),
        optim=dataclasses.replace(config.optim, accumulate=best.accumulate),
    )


def _one(config: TrainConfig, machine: Hardware) -> tuple[dict[str, Any], str]:
    c = _case(config, machine)
    prediction = plan.predict(c, config.optim.steps)
    head = (
        f"{config.name}: {config.optim.steps:,} steps of {config.optim.batch_size:,} × "
        f"{config.model.seq_len:,} tokens on {config.mesh.devices} × {machine.name}, "
        f"{layout(c)}, {config.model.dtype}, recipe {config.model.recipe}"
    )
    found = {"layout": {name: getattr(c, name) for name in LAYOUT}, **prediction.to_dict()}
    return found, f"{head}\n\n{describe(c, prediction)}"


def layout(c: Case) -> str:
    """A case's layout in words."""
    parts = f", {c.accumulate} parts per batch" if c.accumulate > 1 else ""
    return f"mesh {_mesh(c)}, remat {c.remat}{parts}"


def _mesh(c: Case) -> str:
    return f"{c.data}×{c.fsdp}×{c.tensor}"


def describe(c: Case, prediction: Prediction) -> str:
    """A prediction as aligned text."""
    p, m, s = prediction.parameters, prediction.memory, prediction.step
    f, comm = prediction.flops, prediction.communication
    room = c.memory * c.usable
    verdict = "fits" if m.total <= room else f"{(m.total - room) / GIB:.1f} GiB too much"
    model = {name: count(getattr(p, name)) for name in ("embedding", "attention", "mlp", "readout")}
    memory = {name: f"{size / GIB:.2f}" for name, size in dataclasses.asdict(m).items()}
    arithmetic = {
        "6ND": count(f.six_nd),
        "model": count(f.model),
        "attention in it": f"{1 - (f.compiled - f.attention) / f.compiled:.1%}",
        "computed again": f"{f.recomputed / f.compiled:.1%}",
    }
    received = {
        "fsdp gathers": comm.gathered,
        "fsdp sums": comm.scattered,
        "lookups": comm.lookup,
        "data sums": comm.replicas,
        "tensor sums": comm.sums,
    }
    parts = ("products", "attention", "elementwise", "overhead", "hidden", "exposed")
    time = {name: f"{1e3 * getattr(s, name):.2f}" for name in parts}
    blocks = [
        block(f"parameters: {count(p.total)}", model),
        block(f"GiB per device: {verdict} in {room / GIB:.1f}", memory),
        block("FLOPs per step, all devices", arithmetic),
        block(
            "GiB received per device and step",
            {name: f"{size / GIB:.2f}" for name, size in received.items()},
        ),
        block(f"ms per step: {1e3 * s.seconds:.2f}, limited by {s.limit}", time),
        f"{s.tokens_per_s:,.0f} tokens/s, MFU {s.mfu:.1%}; "
        f"{prediction.hours:.2f} hours, ${prediction.dollars:,.0f}",
    ]
    return "\n".join(blocks)


def block(title: str, rows: Mapping[str, str]) -> str:
    """A title with its rows, names left and values right."""
    width = max(map(len, rows))
    right = max(map(len, rows.values()))
    lines = (f"  {name.ljust(width)}  {value.rjust(right)}" for name, value in rows.items())
    return "\n".join([title, *lines, ""])


def count(number: float) -> str:
    """A count with a unit of thousands: 6.74 G."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _layouts(config: TrainConfig, machine: Hardware, devices: int) -> tuple[list, str]:
    rows = [("mesh", "remat", "parts", "ms per step", "MFU", "GiB per device", "limited by")]
    found = []
    for c, seconds in plan.layouts(_case(config, machine), devices):
        step, memory = formulas.step_time(c), formulas.memory(c).total
        time, size = f"{1e3 * seconds:.2f}", f"{memory / GIB:.1f}"
        parts = str(c.accumulate)
        rows.append((_mesh(c), c.remat, parts, time, f"{step.mfu:.1%}", size, step.limit))
        chosen = {"mesh": _mesh(c), "remat": c.remat, "accumulate": c.accumulate}
        found.append({**chosen, "memory": memory, **dataclasses.asdict(step)})
    return found, columns(rows)


def _budget(
    config: TrainConfig, machine: Hardware, chosen: Plan, hours: float
) -> tuple[dict[str, Any], str]:
    devices = chosen.devices or config.mesh.devices
    ratio = chosen.tokens_per_parameter
    ratio = plan.TOKENS_PER_PARAMETER if ratio is None else ratio
    bought = plan.budget(
        _case(config, machine),
        devices,
        hours,
        tokens_per_parameter=ratio,
        inference_tokens=chosen.inference_tokens or 0.0,
    )
    c = bought.case
    each = bought.tokens / formulas.parameters(c).total
    steps = int(bought.tokens / (c.batch_size * c.seq_len))
    prediction = plan.predict(c, steps)
    rows = [("allocation of these FLOPs", "parameters", "tokens", "tokens each", "loss*")]
    for name, (parameters, tokens, loss) in bought.allocations.items():
        per_parameter = f"{tokens / parameters:.3g}"
        rows.append((name, count(parameters), count(tokens), per_parameter, f"{loss:.3f}"))
    lines = [
        f"{hours:g} hours on {devices} × {machine.name}: {c.n_layers} layers of "
        f"d_model {c.d_model}, d_ff {c.d_ff}; {count(bought.tokens)} tokens in "
        f"{steps:,} steps, {layout(c)}",
        f"{each:.3g} tokens per parameter ({ratio:g} asked); {BOUNDS[bought.bound]}",
        "",
        describe(c, prediction),
        "",
        columns(rows),
        "* of Besiroglu et al.'s fit: for their text; only differences carry over",
    ]
    found = {
        "shape": {name: getattr(c, name) for name in ("n_layers", "d_model", "d_ff", *LAYOUT)},
        "bound": bought.bound,
        "tokens_per_parameter": each,
        "tokens": bought.tokens,
        "flops": bought.flops,
        "steps": steps,
        "allocations": {name: one._asdict() for name, one in bought.allocations.items()},
        **prediction.to_dict(),
    }
    return found, "\n".join(lines)


def _compared(
    config: TrainConfig, machine: Hardware, found: dict[str, Any], text: str
) -> tuple[dict[str, Any], str]:
    """The compiled step beside the planner's prediction for the backend that compiles it.

    For a GPU of ``compiler.DEVICES`` by its own compiler, where that is installed; else by XLA's
    CPU backend.
    """
    from umup.plan import aot, compiler

    model, note, n = config.model, "", config.mesh.devices
    if machine.name in compiler.DEVICES and compiler.available():
        device, planned = machine.name, machine
        where = f"{n} × {machine.name} that need not be there by XLA's GPU backend"
        beside = "that machine"
    else:
        device, planned = "", hardware.get("cpu")
        where, beside = f"{n} virtual devices by XLA's CPU backend", "that backend"
        if model.attention == "cudnn":  # a kernel of NVIDIA GPUs alone
            model, note = dataclasses.replace(model, attention="xla"), ", attention xla for cudnn"
        if machine.name in compiler.DEVICES:
            beside += " (for the GPU's own: make gpu-compiler)"
    report = aot.compiled(aot.Job(config.scheme, model, config.optim, config.mesh), device=device)
    c = plan.case(model, config.optim, config.mesh, planned)
    rows = [("of a device", "planned", "compiled", "ratio")]
    for name, ours, theirs, unit in compared(c, report):
        ratio = f"{ours / theirs:.3f}" if theirs else "-"
        d = 0 if unit == 1 else 2
        rows.append((name, f"{ours / unit:,.{d}f}", f"{theirs / unit:,.{d}f}", ratio))
    text += (
        f"\n\ncompiled for {where} in {report.lower_s + report.compile_s:.0f} s{note}, beside the "
        f"plan for {beside}\n"
        f"{columns(rows)}\n\n{collectives(report.collectives)}"
    )
    return {"plan": found, "compiled": json.loads(report.to_json())}, text


def compared(c: Case, report: Report) -> list[tuple[str, float, float, float]]:
    """(name, planned, compiled, unit) of what a compiled step reports, per device."""
    memory = formulas.memory(c)
    rows: list[tuple[str, float, float, float]] = [
        ("parameters, all", formulas.parameters(c).total, report.n_params, 1),
        ("state, GiB", memory.state, report.argument_bytes, GIB),
        ("all memory, GiB", memory.total, report.total_bytes, GIB),
        ("TFLOP", formulas.flops(c).compiled / c.devices, report.flops, 1e12),
    ]
    for axis, planned in plan.sent(c).items():
        if planned:
            rows.append((f"over {axis}, GiB", planned, _over(report, axis), GIB))
    return rows


def _over(report: Report, axis: str) -> float:
    """Bytes of the compiled step's collectives over one mesh axis."""
    return sum(row.bytes for row in report.collectives if row.axes == (axis,))


def collectives(rows: Sequence[Traffic]) -> str:
    """The bytes that a device receives in the compiled step's collectives, by kind and axis."""
    out = [("collective", "over", "type", "times", "GiB")]
    for row in rows:
        axes, size = "×".join(row.axes) or "?", f"{row.bytes / GIB:.3f}"
        out.append((row.kind, axes, row.dtype, f"{row.count:g}", size))
    return columns(out) if len(out) > 1 else "no collectives"
