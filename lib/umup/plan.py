"""What a run would take before it is paid for: memory, communication, time, cost, and what fits.

`umup.formulas` has the arithmetic; here are the cases it is asked about and the answers in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from umup import budgets, formulas
from umup.config import BLOCK_LINEARS, MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError, PlanError
from umup.hardware import Hardware

Case = dict[str, Any]
GIB = 2**30
TOKENS_PER_PARAMETER = 20.0
SHAPE = (
    "d_model", "n_layers", "d_head", "d_ff", "vocab_size", "seq_len", "remat", "attention",
)  # fmt: skip
BYTES = {"float32": 4, "bfloat16": 2}


def case(
    model: ModelConfig, optim: OptimConfig, layout: MeshConfig, machine: Hardware
) -> Case:  # fmt: skip
    """What the formulas ask of a run on a machine.

    Raises:
        ConfigError: the machine has no products of the model's type.
    """
    kinds = precision(model)
    fields = machine.to_dict()
    if not fields[kinds["products"]]:
        products = kinds["products"].removeprefix("tflops_")
        allowed = f"a machine with {products} products, or another dtype"
        raise ConfigError("hardware", machine.name, allowed)
    shape = {name: getattr(model, name) for name in SHAPE}
    step = {"batch_size": optim.batch_size, "accumulate": optim.accumulate}
    return formulas.assemble(shape | step | layout.to_dict(), kinds, fields)


def precision(model: ModelConfig) -> dict[str, Any]:
    """What a model's types and recipe mean to the formulas, see ``formulas.assemble``."""
    from umup.fp8 import casts  # needs JAX, which the formulas do not

    act = BYTES[model.dtype]
    narrow = casts(model.recipe, "blocks.0.attn.qkv")
    wide = casts(model.recipe, "blocks.0.mlp.down")

    def float8(linear: str) -> bool:
        return _bytes(casts(model.recipe, linear, model.keep_bf16).x, 4) == 1

    blocks = range(model.n_layers)
    return {
        "bytes": {
            "act_bytes": act, "param_bytes": BYTES[model.params_dtype],
            "in_bytes": _bytes(narrow.x, act), "wide_bytes": _bytes(wide.x, act),
            "weight_bytes": _bytes(narrow.w, act),
        },
        "products": f"tflops_{model.dtype if narrow.x is None else 'bfloat16'}",
        "float8": {
            **{name.split(".")[1]: sum(float8(f"blocks.{i}.{name}") for i in blocks) / len(blocks)
               for name in BLOCK_LINEARS},
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
    if formulas.devices(found) == total:
        return f"{_words(found)} fits"
    return f"{formulas.devices(found)} devices would do, as {_words(found)}"


def _words(c: Case) -> str:
    parts = f", optim.accumulate {c['accumulate']}" if c["accumulate"] > 1 else ""
    return f"mesh {c['data']}×{c['fsdp']}×{c['tensor']}, model.remat {c['remat']}{parts}"


def layouts(c: Case, devices: int) -> list[Case]:
    """The layouts over so many devices that fit, fastest first.

    Raises:
        PlanError: none does.
    """
    found = sorted(budgets.layouts(c, devices), key=lambda one: one["seconds"])
    if not found:
        lone = {**c, "data": 1, "fsdp": devices, "tensor": 1, "remat": "full"}
        if budgets.splits(lone):
            raise PlanError("devices", devices, f"more: {nearest(lone)}")
        allowed = "a number that divides batch_size with d_model, heads, d_ff and vocabulary"
        raise PlanError("devices", devices, allowed)
    return found


class Budget(NamedTuple):
    """What a number of device hours buys.

    Attributes:
        case: the largest decoder that sees enough tokens, in its fastest layout.
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
        PlanError: hours or tokens a parameter not positive, or not even two layers fit the budget.
    """
    for name, value in (("hours", hours), ("tokens_per_parameter", tokens_per_parameter)):
        if not (math.isfinite(value) and value > 0):
            raise PlanError(name, value, "a finite number > 0")
    if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
        raise PlanError("inference_tokens", inference_tokens, "a finite number >= 0")
    if devices < 1:
        raise PlanError("devices", devices, "an integer >= 1")
    found = budgets.largest(family, devices, hours * 3600, tokens_per_parameter)
    if not found["n_layers"]:
        raise PlanError(
            "hours", hours, f"more: {_too_small(family, devices, hours, tokens_per_parameter)}"
        )
    flops = 6 * formulas.parameters(found)["total"] * found["tokens"]
    allocations = budgets.allocations(flops, tokens_per_parameter, inference_tokens)
    return Budget(found, found["tokens"], flops, allocations)


def _too_small(family: Case, devices: int, hours: float, ratio: float) -> str:
    smallest = budgets.shape(family, 2)
    fastest = budgets.quickest(budgets.layouts(smallest, devices))
    if not fastest["seconds"]:
        return f"the smallest decoder of the family has no layout on {devices} devices"
    tokens = ratio * formulas.parameters(smallest)["total"]
    steps = tokens / (family["batch_size"] * family["seq_len"])
    needed = steps * fastest["seconds"] / 3600
    return f"{needed:.3g} hours for the smallest decoder of the family, two layers"
