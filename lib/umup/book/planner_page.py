"""The chapter on planning: its interactive page, and the numbers of its worked example.

The page is one fragment of HTML that contains its style, data and scripts: it loads nothing and
works from a file. Its sources are in ``book/planner``: ``formulas.js`` has the formulas of
`umup.plan`, translated by hand and compared with the Python ones by a test, and ``planner.js`` has
the form and the answers. Machines, precisions and presets come from this module.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from umup import plan
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import BookError
from umup.plan import budgets, formulas, hardware, plan_cli
from umup.plan.budgets import Layout
from umup.plan.formulas import Case
from umup.plan.hardware import Hardware
from umup.text import markdown

GIB = 2**30

SIZES = ("n_layers", "d_model", "d_ff", "d_head", "vocab_size", "seq_len", "batch_size")
PRESETS: Mapping[str, Mapping[str, int]] = {
    name: dict(zip(SIZES, sizes, strict=True))
    for name, sizes in {
        "55M": (36, 256, 1024, 64, 32768, 1024, 16),
        "125M": (12, 768, 2048, 64, 32000, 2048, 256),
        "350M": (24, 1024, 2816, 64, 32000, 2048, 256),
        "1.3B": (24, 2048, 5632, 128, 32000, 2048, 512),
        "7B": (32, 4096, 11008, 128, 32000, 4096, 1024),
        "70B": (80, 8192, 24576, 128, 32000, 4096, 1024),
    }.items()
}
"""Name → shape and batch of a decoder; 55M is the base model of the chapter's example."""

PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "float32": {"dtype": "float32", "recipe": "plain"},
    "bf16": {"dtype": "bfloat16", "recipe": "bf16"},
    "FP8": {"dtype": "bfloat16", "recipe": "fp8_seed"},
}
"""Name → fields of ``ModelConfig``."""

SCHEMES = ("umup", "sp")
"""Schemes of the run file that the page writes: those that need no base model."""
WARMUP = 0.25
"""Share of the steps, as in the runs that this book measured transfer with."""

BASE = "55M"
DEVICES, HOURS, RATIO, BATCH, INFERENCE = 8, 2.0, 20.0, 128, 1e10
"""The example's budget: H100s, hours, tokens per parameter; sequences per batch of the large run;
inference tokens over the large model's life."""


def configs(preset: str, precision: str, **model: Any) -> tuple[ModelConfig, OptimConfig]:
    """The configurations of a preset in a precision, with other fields of the model."""
    fields = dict(PRESETS[preset])
    batch = fields.pop("batch_size")
    chosen = ModelConfig.from_dict({**fields, **PRECISIONS[precision], **model})
    return chosen, OptimConfig(steps=1, warmup_steps=0, batch_size=batch)


def data() -> dict[str, Any]:
    """The page's data beside the formulas: presets, precisions and machines."""
    machines = {}
    for name, machine in hardware.catalogue().items():
        # The fused attention kernel is cuDNN's.
        fused = machine.description.startswith("NVIDIA")
        machines[name] = machine.to_dict() | {"fused": fused}
    kinds = {name: plan.precision(configs(BASE, name)[0])._asdict() for name in PRECISIONS}
    return {
        "presets": PRESETS,
        "precisions": kinds,
        "fields": PRECISIONS,
        "machines": machines,
        "schemes": SCHEMES,
        "warmup": WARMUP,
    }


def steps_of(c: Case, seconds: float, ratio: float) -> int:
    """Steps that see ``ratio`` tokens per parameter, or as many as fit into so many seconds."""
    wanted = math.ceil(ratio * formulas.parameters(c).total / (c.batch_size * c.seq_len))
    return max(1, min(wanted, math.floor(budgets.spent(c, seconds).steps)))


def run_file(
    c: Case, machine: str, precision: str, *, steps: int, eta: float, scheme: str = "umup"
) -> str:
    """The file with which `umup train` runs a plan; the page writes the same.

    Args:
        c: the chosen layout. machine: its name.
        precision: one of ``PRECISIONS``.
        steps: updates, a share ``WARMUP`` of them warm-up.
        eta: learning rate.
    """
    shape = {name: getattr(c, name) for name in SIZES if name != "batch_size"}
    groups: dict[str, dict[str, object]] = {
        "model": {
            **shape,
            **PRECISIONS[precision],
            "remat": c.remat,
            "attention": c.attention,
        },
        "optim": {
            "steps": steps,
            "batch_size": c.batch_size,
            "warmup_steps": math.floor(WARMUP * steps),
            "accumulate": c.accumulate,
        },
        "hps": {"eta": f"{eta:.4g}"},
        "mesh": {"data": c.data, "fsdp": c.fsdp, "tensor": c.tensor},
    }
    lines = [
        f"# Planned for {c.devices} × {machine}.",
        f"scheme: {scheme}",
        "corpus: sotu  # yours: file:PATH",
        "tokenizer: bytes  # yours: one whose vocabulary is at most vocab_size",
    ]
    for name, fields in groups.items():
        lines += [f"{name}:", *(f"  {field}: {value}" for field, value in fields.items())]
    return "\n".join(lines) + "\n"


def page(folder: Path) -> str:
    """The page as one fragment of HTML.

    Args:
        folder: with ``planner.html``, ``planner.css``, ``formulas.js`` and ``planner.js``.
    """
    files = ("planner.html", "planner.css", "formulas.js", "planner.js")
    html, css, arithmetic, form = ((folder / name).read_text(encoding="utf-8") for name in files)
    known = f"const planning = {json.dumps(data(), ensure_ascii=False)};"
    # The text of a script ends at the first closing tag, even of a string.
    scripts = "\n".join([arithmetic, known, form]).replace("</", r"<\/")
    return f"<style>\n{css}</style>\n{html}<script>\n{scripts}</script>\n"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Text with each ``{{name}}`` replaced by its value.

    Raises:
        BookError: a name without a value, or a value that is not used.
    """
    asked = set(re.findall(r"\{\{(\w+)\}\}", text))
    for name in sorted(asked ^ values.keys()):
        allowed = ", ".join(values) if name in asked else "a place for it in the text"
        raise BookError("planning.md", f"{{{{{name}}}}}", allowed)
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


def generate(staging: Path) -> None:
    """Write the page into ``_generated`` and the numbers into the chapter, in a staged book."""
    fragment = page(staging / "planner")
    target = staging / "_generated" / "planner.html"
    target.parent.mkdir(exist_ok=True)
    target.write_text(fragment, encoding="utf-8")
    chapter = staging / "planning.md"
    laptop = hardware.get("rtx5080_laptop", staging / "planner" / "laptop.toml")
    text = fill(chapter.read_text(encoding="utf-8"), example(laptop))
    chapter.write_text(text, encoding="utf-8")


def example(laptop: Hardware) -> dict[str, str]:
    """The chapter's numbers by name, as text."""
    return _memory(laptop) | _flops() | _largest()


def _case(machine: Hardware, precision: str, **model: Any) -> Case:
    return plan.case(*configs(BASE, precision, **model), MeshConfig(), machine)


def _gib(value: float) -> str:
    return f"{value / GIB:.3g} GiB"


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.0f}\N{NO-BREAK SPACE}%".replace("-", "−")


def _memory(laptop: Hardware) -> dict[str, str]:
    """The base model on one device in four ways, and what a simple estimate leaves out."""
    ways = {
        "whole square": {"attention": "xla"},
        "`remat: dots`": {"attention": "xla", "remat": "dots"},
        "`remat: full`": {"attention": "xla", "remat": "full"},
        "fused kernel": {"attention": "cudnn"},
    }
    cases = [_case(laptop, "bf16", **way) for way in ways.values()]
    rows: dict[str, Callable[[Case], float]] = {
        "state": lambda c: formulas.memory(c).state,
        "gradients": lambda c: formulas.memory(c).gradients,
        "kept: residual stream": lambda c: formulas.kept(c).stream * c.n_layers,
        "kept: operands of linears": lambda c: formulas.kept(c).linears * c.n_layers,
        "kept: attention": lambda c: formulas.kept(c).attention * c.n_layers,
        "workspace": lambda c: formulas.memory(c).workspace,
        "**total**": lambda c: formulas.memory(c).total,
    }
    plain = cases[0]
    m, kept = formulas.memory(plain), formulas.kept(plain)
    certain = m.state + m.gradients
    naive = certain + plain.n_layers * plain.act_bytes * plain.local_tokens * plain.d_model
    parts = formulas.memory(replace(plain, accumulate=2)).total
    room = laptop.memory_gb * 1e9 * laptop.usable
    if not m.total > room > parts:
        received = f"a base model of {_gib(m.total)}, {_gib(parts)} in two parts, for {_gib(room)}"
        allowed = "one that does not fit the laptop, and does in two parts, as the text says"
        raise BookError("planning.md", received, allowed)
    return {
        "base_shape": f"width {plain.d_model}, heads of {plain.d_head}, feed-forward "
        f"{plain.d_ff:,}, a vocabulary of {plain.vocab_size:,}",
        "base_parameters": plan_cli.count(formulas.parameters(plain).total),
        "base_memory": _table(
            ["GiB, one device", *ways],
            [[name, *(f"{row(c) / GIB:.2f}" for c in cases)] for name, row in rows.items()],
        ),
        "base_total": _gib(m.total),
        "base_certain": _percent(certain / m.total),
        "base_naive": _gib(naive),
        "base_factor": f"{m.total / naive:.0f}",
        "base_squares": _gib(kept.attention * plain.n_layers),
        "base_linears": _gib(kept.linears * plain.n_layers),
        "base_workspace": _gib(m.workspace),
        "laptop_room": _gib(room),
        "laptop_parts": _gib(parts),
    }


def _flops() -> dict[str, str]:
    f = formulas.flops(_case(hardware.get("h100"), "bf16", attention="xla"))
    p = formulas.parameters(_case(hardware.get("h100"), "bf16"))
    large = formulas.flops(plan.case(*configs("7B", "bf16"), MeshConfig(), hardware.get("h100")))
    return {
        "six_nd": plan_cli.count(f.six_nd),
        "exact": plan_cli.count(f.model),
        "exact_share": _percent(f.model / f.six_nd - 1, "+"),
        "table_share": _percent(p.embedding / p.total),
        "square_share": _percent(f.attention / f.six_nd),
        "large_share": _percent(large.model / large.six_nd - 1, "+"),
    }


def widest(c: Case, devices: int, seconds: float, ratio: float) -> tuple[Layout, float]:
    """The widest decoder of a case's depth that can see ``ratio`` tokens per parameter in time.

    Widths are multiples of 128, and the feed-forward width grows in proportion. Depth stays that of
    the base model, so that only μP's rules of width are needed for the transfer.

    Returns:
        its fastest layout, and the tokens that it is trained on.

    Raises:
        BookError: even a width of 128 is too large.
    """
    best = None
    for width in range(128, 129 * 128, 128):
        wide = replace(c, d_model=width, d_ff=width * c.d_ff // c.d_model)
        found = budgets.fastest_layout(wide, devices)
        tokens = budgets.spent(found.case, seconds).tokens if found else 0.0
        if found is None or tokens < ratio * formulas.parameters(wide).total:
            break
        best = found, tokens
    if best is None:
        raise BookError("planning.md", f"{seconds:g} s", "enough for a width of 128")
    return best


def _largest() -> dict[str, str]:
    """The largest decoder of the example's budget in four ways, and other allocations."""
    machine = hardware.get("h100")
    ways = [
        ("bf16", "xla", "whole square"),
        ("bf16", "blocked", "causal blocks"),
        ("bf16", "cudnn", "fused kernel"),
        ("FP8", "cudnn", "fused kernel"),
    ]
    rows, found = [], []
    for precision, attention, words in ways:
        c = replace(_case(machine, precision, attention=attention), batch_size=BATCH)
        (best, _), tokens = widest(c, DEVICES, HOURS * 3600, RATIO)
        step = formulas.step_time(best)
        found.append((best, tokens, step))
        row = [
            f"{precision}, {words}",
            f"{best.d_model:,}",
            plan_cli.count(formulas.parameters(best).total),
            plan_cli.count(tokens),
            f"{1e3 * step.seconds:.0f}",
            _percent(step.mfu),
            step.limit,
            f"{formulas.memory(best).total / GIB:.1f}",
        ]
        rows.append(row)
    (_, _, slow), (fused, tokens, quick) = found[0], found[2]
    size = formulas.parameters(fused).total
    peak = DEVICES * machine.tflops_bfloat16 * 1e12 * HOURS * 3600
    columns = "linears, attention|width|parameters|tokens|ms per step|MFU|limited by|GiB per device"
    return {
        "budget_hours": f"{HOURS:g}",
        "budget_devices": f"{DEVICES}",
        "ratio": f"{RATIO:g}",
        "batch": f"{BATCH}",
        "inference": plan_cli.count(INFERENCE),
        "largest": _table(columns.split("|"), rows),
        "fused_width": f"{fused.d_model:,}",
        "fused_times": f"{fused.d_model / PRESETS[BASE]['d_model']:g}",
        "fused_parameters": plan_cli.count(size),
        "fused_layout": plan_cli.layout(fused),
        "fused_cost": f"${budgets.spent(fused, HOURS * 3600).dollars:.0f}",
        "slow_mfu": _percent(slow.mfu),
        "fused_mfu": _percent(quick.mfu),
        "slow_rule": plan_cli.count((slow.mfu * peak / 6 / RATIO) ** 0.5),
        "fused_rule": plan_cli.count((quick.mfu * peak / 6 / RATIO) ** 0.5),
        "elementwise_share": _percent(slow.elementwise / slow.seconds),
        "allocations": _allocations(6 * size * tokens),
    }


def _allocations(budget: float) -> str:
    """Allocations of a budget of FLOPs, as a table."""
    rows = [
        [name, plan_cli.count(n), plan_cli.count(d), f"{d / n:.3g}", f"{loss:.3f}"]
        for name, (n, d, loss) in budgets.allocations(budget, RATIO, INFERENCE).items()
    ]
    return _table(["allocation", "parameters", "tokens", "tokens each", "loss"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown(header, rows, right=True)
