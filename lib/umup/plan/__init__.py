"""What a run would take before it is paid for: memory, communication, time, cost, and what fits.

`formulas` has the arithmetic; here are the cases it is asked about and the answers in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from umup.config import BLOCK_LINEARS, Config, MeshConfig, ModelConfig, OptimConfig, Range
from umup.errors import ConfigError, PlanError
from umup.plan import budgets, formulas
from umup.plan.hardware import Hardware

Case = dict[str, Any]
GIB = 2**30
TOKENS_PER_PARAMETER = 20.0
SHAPE = (
    "d_model", "n_layers", "d_head", "d_ff", "vocab_size", "seq_len", "remat", "attention",
)  # fmt: skip
BYTES = {"float32": 4, "bfloat16": 2}
SIZES = Range(1, 10**12)
"""Of every size in a case: products of several still are floating-point numbers."""
DEVICES = Range(1, 2**20)
"""Numbers of devices whose layouts are searched."""
HOURS, RATIOS = Range(1e-6, 1e9), Range(1e-3, 1e9)
INFERENCE = Range(0.0, 1e21)


def case(
    model: ModelConfig, optim: OptimConfig, layout: MeshConfig, machine: Hardware
) -> Case:  # fmt: skip
    """What the formulas ask of a run on a machine.

    Raises:
        ConfigError: the machine has no products of the model's type.
        PlanError: a size beyond ``SIZES``.
    """
    _check_sizes(model=model, optim=optim, mesh=layout)
    kinds = precision(model)
    fields = machine.to_dict()
    if not fields[kinds["products"]]:
        products = kinds["products"].removeprefix("tflops_")
        allowed = f"a machine with {products} products, or another dtype"
        raise ConfigError("hardware", machine.name, allowed)
    shape = {name: getattr(model, name) for name in SHAPE}
    step = {"batch_size": optim.batch_size, "accumulate": optim.accumulate}
    return formulas.assemble(shape | step | layout.to_dict(), kinds, fields)


def _check_sizes(**groups: Config) -> None:
    """Refuse sizes of which no plan can be computed, by their dotted names."""
    names = {*SHAPE, *MeshConfig().to_dict(), "batch_size", "steps"}
    for group, config in groups.items():
        for name, value in config.to_dict().items():
            if name in names and isinstance(value, int) and value not in SIZES:
                raise PlanError(f"{group}.{name}", value, str(SIZES))


def precision(model: ModelConfig) -> dict[str, Any]:
    """What a model's types and recipe mean to the formulas, see ``formulas.assemble``."""
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

    return {
        "bytes": {
            "act_bytes": act, "param_bytes": BYTES[model.params_dtype],
            "in_bytes": _bytes(narrow.x, act), "wide_bytes": _bytes(wide.x, act),
            "weight_bytes": _bytes(narrow.w, act),
        },
        "products": f"tflops_{model.dtype if narrow.x is None else 'bfloat16'}",
        "float8": {
            **{name.split(".")[1]: share(name) for name in BLOCK_LINEARS},
            "readout": float(float8("readout")),
        },
    }  # fmt: skip


def _bytes(fmt: Any, act: int) -> int:
    """Bytes of an operand in a format of `umup.fp8` (None: as the activations)."""
    return act if fmt is None else fmt.dtype.itemsize


class Prediction(NamedTuple):
    """What the formulas say of a case; bytes are of one device.

    Attributes:
        parameters: by class, see ``formulas.parameters``.
        flops: of a step, see ``formulas.flops``.
        memory: see ``formulas.memory``.
        communication: see ``formulas.communication``.
        step: seconds and their parts, see ``formulas.step_time``.
        hours, dollars: of the run's steps.
    """

    parameters: Mapping[str, float]
    flops: Mapping[str, float]
    memory: Mapping[str, float]
    communication: Mapping[str, float]
    step: Mapping[str, Any]
    hours: float
    dollars: float


def predict(c: Case, steps: int) -> Prediction:
    """Everything about ``steps`` steps of a case."""
    step = formulas.step_time(c)
    hours = steps * step["seconds"] / 3600
    return Prediction(
        formulas.parameters(c), formulas.flops(c), formulas.memory(c), formulas.communication(c),
        step, hours, hours * formulas.devices(c) * c["usd_per_hour"],
    )  # fmt: skip


def sent(c: Case) -> dict[str, float]:
    """Bytes that a device receives in a step's collectives, by mesh axis."""
    found = formulas.communication(c)
    return {
        "fsdp": found["gathered"] + found["scattered"] + found["lookup"],
        "data": found["replicas"],
        "tensor": found["sums"],
    }


def check(model: ModelConfig, optim: OptimConfig, layout: MeshConfig, machine: Hardware) -> None:
    """Refuse a run that divides unevenly or does not fit, with the nearest change that would do.

    Raises:
        ConfigError: the mesh does not split the model or the batch (``mesh.check``).
        PlanError: too large: by how much, and what would fit.
    """
    from umup import mesh

    mesh.check(layout, model, optim)
    c = case(model, optim, layout, machine)
    missing = -budgets.fits(c)
    if missing > 0:
        raise PlanError(
            "memory", f"{formulas.memory(c)['total'] / GIB:.1f} GiB a device",
            f"up to {c['memory'] * c['usable'] / GIB:.1f} GiB on {machine.name}: "
            f"{missing / GIB:.1f} GiB too much; {nearest(c)}",
        )  # fmt: skip


def nearest(c: Case) -> str:
    """The smallest change with which a case would fit, in words.

    One field first (rematerialization, parts of the batch, layout of the same devices), then more
    devices; of several changes the one whose step is the fastest.
    """
    changes: list[tuple[float, str]] = []

    def offer(trial: Case, words: str) -> None:
        if budgets.splits(trial) and budgets.fits(trial) >= 0:
            changes.append((formulas.step_time(trial)["seconds"], words))

    levels = ("none", "dots", "full")
    for remat in levels[levels.index(c["remat"]) + 1 :]:
        offer({**c, "remat": remat}, f"model.remat {remat} fits")
    rows = c["batch_size"] / (c["data"] * c["fsdp"])
    parts = c["accumulate"]
    while (parts := 2 * parts) <= rows:
        offer({**c, "accumulate": parts}, f"optim.accumulate {parts} fits")
    if changes:
        return min(changes)[1]
    total = formulas.devices(c)
    found = budgets.enough(c, total)
    if not found["seconds"]:
        return "nothing near fits: take a smaller model"
    mesh = "×".join(str(found[axis]) for axis in ("data", "fsdp", "tensor"))
    words = f"mesh {mesh}, model.remat {found['remat']}"
    for name in ("accumulate", "batch_size"):
        if found[name] != c[name]:
            words += f", optim.{name} {found[name]}"
    if formulas.devices(found) == total:
        return f"{words} fits"
    return f"{formulas.devices(found)} devices would do, as {words}"


def layouts(c: Case, devices: int) -> list[Case]:
    """The layouts over so many devices that fit, fastest first.

    Raises:
        PlanError: none does, or ``devices`` is beyond ``DEVICES``.
    """
    _check_devices(devices)
    found = sorted(budgets.layouts(c, devices), key=lambda one: one["seconds"])
    if not found:
        lean = budgets.leanest(c, devices)
        if lean["bytes"]:
            raise PlanError("devices", devices, f"more: {nearest(lean)}")
        near = max(n for n in budgets.divisors(c["batch_size"]) if n <= devices)
        raise PlanError(
            "devices", devices, "a number that divides batch_size with d_model, heads, d_ff and "
            f"vocabulary, such as {near}",
        )  # fmt: skip
    return found


def _check_devices(devices: int) -> None:
    if devices not in DEVICES:
        raise PlanError("devices", devices, f"an integer from 1 to {DEVICES.hi:,}")


class Budget(NamedTuple):
    """What a number of device hours buys.

    Attributes:
        case: the largest decoder that sees enough tokens, in its fastest layout; ``bound`` says
            what keeps a larger one out (`budgets.largest`).
        tokens: that it sees in the time.
        flops: training FLOPs in the time, 6ND.
        allocations: how others would spend them: name → parameters, tokens, loss.
    """

    case: Case
    tokens: float
    flops: float
    allocations: Mapping[str, Mapping[str, float]]


def budget(
    family: Case, devices: int, hours: float, *,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER, inference_tokens: float = 0.0,
) -> Budget:  # fmt: skip
    """The largest compute-optimal decoder for a budget, with other allocations beside it.

    Args:
        family: a case; its vocabulary, context, batch and types are kept, its depth and widths
            replaced in the proportions of ``aspect`` and ``ff_ratio`` (`budgets.shape`).
        devices: how many.
        hours: for how long.
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
    found = budgets.largest(family, devices, hours * 3600, tokens_per_parameter)
    if not found["n_layers"]:
        if found["bound"] == "memory":
            raise PlanError("devices", devices, _without_layout(family, devices))
        allowed = f"more: {_too_small(family, devices, tokens_per_parameter)}"
        raise PlanError("hours", hours, allowed)
    if found["tokens"] < found["batch_size"] * found["seq_len"]:
        raise PlanError("hours", hours, f"more: one step takes {found['seconds']:.3g} s")
    flops = 6 * formulas.parameters(found)["total"] * found["tokens"]
    allocations = budgets.allocations(flops, tokens_per_parameter, inference_tokens)
    return Budget(found, found["tokens"], flops, allocations)


def _without_layout(family: Case, devices: int) -> str:
    smallest = budgets.shape(family, 2)
    lean = budgets.leanest(smallest, devices)
    if lean["bytes"]:
        return f"more, for a decoder of two layers: {nearest(lean)}"
    return (
        "a number over which decoders of these proportions divide evenly: widths are multiples of "
        f"128 and of d_head = {family['d_head']}, batch_size is {family['batch_size']}"
    )


def _too_small(family: Case, devices: int, ratio: float) -> str:
    """Hours of the smallest decoder of the family that has a layout."""
    shapes = (budgets.shape(family, n) for n in range(2, 161))
    ranked = (budgets.quickest(budgets.layouts(one, devices)) for one in shapes)
    smallest = next(one for one in ranked if one["seconds"])
    tokens = ratio * formulas.parameters(smallest)["total"]
    needed = tokens / (family["batch_size"] * family["seq_len"]) * smallest["seconds"] / 3600
    depth = "two" if smallest["n_layers"] == 2 else smallest["n_layers"]
    return f"{needed:.3g} hours for the smallest decoder of the family, {depth} layers"
