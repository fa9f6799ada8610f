"""What a run would take, before it is paid for: memory, communication, time, cost, and what fits.

`formulas` has the arithmetic and `budgets` the search; this module makes their cases and puts their
answers into words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from umup.checked import Config, Range
from umup.config import BLOCK_LINEARS, MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError, PlanError
from umup.plan import budgets, formulas
from umup.plan.budgets import Allocation, Layout
from umup.plan.formulas import Case
from umup.plan.hardware import Hardware

GIB = 2**30
TOKENS_PER_PARAMETER = 20.0
SHAPE = ("d_model", "n_layers", "d_head", "d_ff", "vocab_size", "seq_len", "remat", "attention")
BYTES = {"float32": 4, "bfloat16": 2}
SIZES = Range(1, 10**12)
"""Largest size in a case, so that products of several sizes are finite floating-point numbers."""
DEVICES = Range(1, 2**20)
"""Largest number of devices whose layouts are searched."""
HOURS, RATIOS = Range(1e-6, 1e9), Range(1e-3, 1e9)
INFERENCE = Range(0.0, 1e21)


class Precision(NamedTuple):
    """A model's dtypes and recipe in the terms of the formulas.

    Attributes:
        act_bytes, param_bytes, in_bytes, wide_bytes, weight_bytes: see `formulas.Case`.
        products: the field of `Hardware` with the peak of the products.
        float8: linear → share of the blocks (of the readout: 1 or 0) in which it is in float8.
    """

    act_bytes: int
    param_bytes: int
    in_bytes: int
    wide_bytes: int
    weight_bytes: int
    products: str
    float8: Mapping[str, float]


def case(model: ModelConfig, optim: OptimConfig, layout: MeshConfig, machine: Hardware) -> Case:
    """A run on a machine in the terms of the formulas.

    Raises:
        ConfigError: the machine has no products of the model's type.
        PlanError: a size beyond ``SIZES``.
    """
    _check_sizes(model=model, optim=optim, mesh=layout)
    kinds = precision(model)
    tflops = getattr(machine, kinds.products)
    if not tflops:
        products = kinds.products.removeprefix("tflops_")
        allowed = f"a machine with {products} products, or another dtype"
        raise ConfigError("hardware", machine.name, allowed)
    shape = {name: getattr(model, name) for name in SHAPE}
    return Case(
        **shape,
        batch_size=optim.batch_size,
        accumulate=optim.accumulate,
        act_bytes=kinds.act_bytes,
        param_bytes=kinds.param_bytes,
        in_bytes=kinds.in_bytes,
        wide_bytes=kinds.wide_bytes,
        weight_bytes=kinds.weight_bytes,
        fp8_share=_float8_share(model, kinds.float8),
        **layout.to_dict(),
        memory=machine.memory_gb * 1e9,
        usable=machine.usable,
        bandwidth=machine.memory_gb_s * 1e9,
        link_bandwidth=machine.link_gb_s * 1e9,
        network_bandwidth=machine.network_gb_s * 1e9,
        node_devices=machine.node_devices,
        peak_flops=tflops * 1e12,
        peak_fp8_flops=(machine.tflops_float8 or tflops) * 1e12,
        gemm_efficiency=machine.gemm_efficiency,
        attention_efficiency=machine.attention_efficiency,
        overhead=machine.overhead_us * 1e-6,
        usd_per_hour=machine.usd_per_hour,
        copied_moments=machine.copied_moments,
        work_bytes=4 if machine.widens else 0,
        unfused_sums=1 if machine.split_sums else 0,
    )


def _check_sizes(**groups: Config) -> None:
    """Raise an error for sizes too large to plan, by their dotted names."""
    names = {*SHAPE, *MeshConfig().to_dict(), "batch_size", "steps"}
    for group, config in groups.items():
        for name, value in config.to_dict().items():
            if name in names and isinstance(value, int) and value not in SIZES:
                raise PlanError(f"{group}.{name}", value, str(SIZES))


def _float8_share(model: ModelConfig, float8: Mapping[str, float]) -> float:
    """The share of all linears' operations that is in float8."""
    d, ff = model.d_model, model.d_ff
    attention = 3 * d * d * float8["qkv"] + d * d * float8["out"]
    mlp = 2 * d * ff * float8["gate_up"] + d * ff * float8["down"]
    readout = model.vocab_size * d
    every = model.n_layers * (4 * d * d + 3 * d * ff) + readout
    return (model.n_layers * (attention + mlp) + readout * float8["readout"]) / every


def precision(model: ModelConfig) -> Precision:
    """A model's dtypes and recipe in the terms of the formulas."""
    from umup.fp8 import casts  # needs JAX, which the formulas do not

    act = BYTES[model.dtype]
    narrow = casts(model.recipe, "blocks.0.attn.qkv")
    wide = casts(model.recipe, "blocks.0.mlp.down")

    def float8(linear: str) -> bool:
        return _bytes(casts(model.recipe, linear, model.keep_bf16).x, 4) == 1

    # Blocks are alike but for those of which a linear is named: these, and one for the others.
    n = model.n_layers
    named = {int(name.split(".")[1]) for name in model.keep_bf16 if name.startswith("blocks.")}
    other = next((i for i in range(n) if i not in named), None)

    def share(linear: str) -> float:
        count = sum(float8(f"blocks.{i}.{linear}") for i in named)
        if other is not None:
            count += (n - len(named)) * float8(f"blocks.{other}.{linear}")
        return count / n

    shares = {name.split(".")[1]: share(name) for name in BLOCK_LINEARS}
    return Precision(
        act_bytes=act,
        param_bytes=BYTES[model.params_dtype],
        in_bytes=_bytes(narrow.x, act),
        wide_bytes=_bytes(wide.x, act),
        weight_bytes=_bytes(narrow.w, act),
        products=f"tflops_{model.dtype if narrow.x is None else 'bfloat16'}",
        float8=shares | {"readout": float(float8("readout"))},
    )


def _bytes(fmt: Any, act: int) -> int:
    """Bytes of an operand in a format of `umup.fp8` (None: as the activations)."""
    return act if fmt is None else fmt.dtype.itemsize


@dataclass(frozen=True)
class Prediction:
    """The formulas' predictions for a case; bytes are per device.

    Attributes:
        parameters, flops, memory, communication, step: see `formulas`.
        hours, dollars: of the run's steps.
    """

    parameters: formulas.Parameters
    flops: formulas.Flops
    memory: formulas.Memory
    communication: formulas.Communication
    step: formulas.StepTime
    hours: float
    dollars: float

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries."""
        return asdict(self)


def predict(c: Case, steps: int) -> Prediction:
    """The complete prediction for ``steps`` steps of a case."""
    step = formulas.step_time(c)
    hours = steps * step.seconds / 3600
    return Prediction(
        formulas.parameters(c),
        formulas.flops(c),
        formulas.memory(c),
        formulas.communication(c),
        step,
        hours,
        dollars=hours * c.devices * c.usd_per_hour,
    )


def sent(c: Case) -> dict[str, float]:
    """Bytes that a device receives in a step's collectives, by mesh axis."""
    found = formulas.communication(c)
    return {
        "fsdp": found.gathered + found.scattered + found.lookup,
        "data": found.replicas,
        "tensor": found.sums,
    }


def check(model: ModelConfig, optim: OptimConfig, layout: MeshConfig, machine: Hardware) -> None:
    """Raise an error for a run that divides unevenly or does not fit, with the smallest remedy.

    Raises:
        ConfigError: the mesh does not split the model or the batch (``mesh.check``).
        PlanError: too large; the message says by how much, and what would fit.
    """
    from umup import mesh

    mesh.check(layout, model, optim)
    c = case(model, optim, layout, machine)
    missing = -budgets.spare(c)
    if missing > 0:
        received = f"{formulas.memory(c).total / GIB:.1f} GiB per device"
        allowed = f"up to {c.memory * c.usable / GIB:.1f} GiB on {machine.name}"
        excess = f"{missing / GIB:.1f} GiB too much"
        raise PlanError("memory", received, f"{allowed}: {excess}; {nearest(c)}")


def nearest(c: Case) -> str:
    """The smallest change with which a case would fit, in words.

    First one field (rematerialization, parts of the batch, layout of the same devices), then more
    devices; of several changes, the one with the fastest step.
    """
    leaner = budgets.REMAT[budgets.REMAT.index(c.remat) + 1 :]
    rows = c.batch_size // (c.data * c.fsdp)
    trials = [(replace(c, remat=remat), f"model.remat {remat} fits") for remat in leaner]
    trials += [
        (replace(c, accumulate=parts), f"optim.accumulate {parts} fits")
        for parts in budgets.doublings(2 * c.accumulate, rows)
    ]
    changes = [
        (formulas.step_time(trial).seconds, words)
        for trial, words in trials
        if budgets.divides_evenly(trial) and budgets.spare(trial) >= 0
    ]
    if changes:
        return min(changes)[1]
    found = budgets.smallest_cluster(c, c.devices)
    if found is None:
        return "nothing near fits: take a smaller model"
    other = found.case
    words = f"mesh {other.data}×{other.fsdp}×{other.tensor}, model.remat {other.remat}"
    for name in ("accumulate", "batch_size"):
        if (value := getattr(other, name)) != getattr(c, name):
            words += f", optim.{name} {value}"
    if other.devices == c.devices:
        return f"{words} fits"
    return f"{other.devices} devices would do, as {words}"


def layouts(c: Case, devices: int) -> list[Layout]:
    """The layouts over ``devices`` devices that fit, fastest first.

    Raises:
        PlanError: none fits, or ``devices`` is beyond ``DEVICES``.
    """
    _check_devices(devices)
    found = sorted(budgets.layouts(c, devices), key=lambda layout: layout.seconds)
    if found:
        return found
    if lean := budgets.leanest(c, devices):
        raise PlanError("devices", devices, f"more: {nearest(lean)}")
    near = max(n for n in budgets.divisors(c.batch_size) if n <= devices)
    allowed = "a number that divides batch_size with d_model, heads, d_ff and vocabulary, such as"
    raise PlanError("devices", devices, f"{allowed} {near}")


def _check_devices(devices: int) -> None:
    if devices not in DEVICES:
        raise PlanError("devices", devices, f"an integer from 1 to {DEVICES.hi:,}")


class Budget(NamedTuple):
    """What a number of device hours buys.

    Attributes:
        case: the largest decoder that can be trained on enough tokens, in its fastest layout.
        bound: why no larger decoder can be (`budgets.Largest`).
        tokens: that it is trained on in the time.
        flops: training FLOPs in the time, 6ND.
        allocations: other ways to spend these FLOPs, by name.
    """

    case: Case
    bound: str
    tokens: float
    flops: float
    allocations: Mapping[str, Allocation]


def budget(
    family: Case,
    devices: int,
    hours: float,
    *,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    inference_tokens: float = 0.0,
) -> Budget:
    """The largest compute-optimal decoder for a budget, with other allocations beside it.

    Args:
        family: a case; its vocabulary, context, batch and types are kept, its depth and widths
            replaced in the proportions of its own (`budgets.with_depth`).
        devices: their number.
        hours: of training.
        tokens_per_parameter: 20 is Chinchilla's rule of thumb.
        inference_tokens: over the model's life, for the over-trained allocation.

    Raises:
        PlanError: a number out of range, or not even two layers fit the budget.
    """
    for name, value, allowed in (
        ("hours", hours, HOURS),
        ("tokens_per_parameter", tokens_per_parameter, RATIOS),
        ("inference_tokens", inference_tokens, INFERENCE),
    ):
        if value not in allowed:
            raise PlanError(name, value, str(allowed))
    _check_devices(devices)
    layout, tokens, bound = budgets.largest(family, devices, hours * 3600, tokens_per_parameter)
    if layout is None:
        if bound == "memory":
            raise PlanError("devices", devices, _without_layout(family, devices))
        allowed = f"more: {_too_small(family, devices, tokens_per_parameter)}"
        raise PlanError("hours", hours, allowed)
    c = layout.case
    if tokens < c.batch_size * c.seq_len:
        raise PlanError("hours", hours, f"more: one step takes {layout.seconds:.3g} s")
    flops = 6 * formulas.parameters(c).total * tokens
    others = budgets.allocations(flops, tokens_per_parameter, inference_tokens)
    return Budget(c, bound, tokens, flops, others)


def _without_layout(family: Case, devices: int) -> str:
    if lean := budgets.leanest(budgets.with_depth(family, 2), devices):
        return f"more, for a decoder of two layers: {nearest(lean)}"
    return (
        "a number over which decoders of these proportions divide evenly: widths are multiples of "
        f"128 and of d_head = {family.d_head}, batch_size is {family.batch_size}"
    )


def _too_small(family: Case, devices: int, ratio: float) -> str:
    """Hours that the smallest decoder of the family with a layout needs."""
    shapes = (budgets.with_depth(family, n) for n in range(2, budgets.DEEPEST + 1))
    fastest = (budgets.fastest_layout(one, devices) for one in shapes)
    c, seconds = next(filter(None, fastest))
    tokens = ratio * formulas.parameters(c).total
    needed = tokens / (family.batch_size * family.seq_len) * seconds / 3600
    depth = "two" if c.n_layers == 2 else c.n_layers
    return f"{needed:.3g} hours for the smallest decoder of the family, {depth} layers"
