"""The worked examples of the page of advice: from a budget to the run file of a large model.

Each takes a proxy, carries its η to a target by `umup.transfer`, plans the target as the planner's
page does, and ends in the file with which `umup train` runs it. All numbers are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import yaml

from umup import plan, transfer
from umup.book import composer_page, planner_page
from umup.book.markdown import table
from umup.config import MeshConfig
from umup.errors import BookError
from umup.laws import Interval
from umup.plan import budgets, formulas, hardware, plan_cli
from umup.plan.formulas import Case
from umup.run.runfile import TrainConfig
from umup.schemes import TITLES
from umup.text import decimals

ERROR = 0.25
"""Octaves to either side of a proxy's best η: half the spacing of a sweep in half octaves."""


@dataclass(frozen=True)
class Example:
    """A user's question.

    Attributes:
        title: the question.
        text: what is supposed, in Markdown.
        preset, precision: the target's shape and products, of ``planner_page``.
        devices, hours, ratio: H100s, the longest time, tokens per parameter.
        proxy: fields of ``model`` and ``optim`` in which the proxy differs from the target.
        log2_eta: of the proxy's sweep, supposed.
    """

    title: str
    text: str
    preset: str
    devices: int
    hours: float
    proxy: Mapping[str, int]
    log2_eta: float
    scheme: str = "umup"
    precision: str = "bf16"
    ratio: float = 20.0


EXAMPLES = (
    Example(
        "A model of seven billion parameters on 64 H100s",
        "The proxy has the target's depth and sequences, an eighth of its width, and steps and "
        "batches that a few GPUs can sweep. Suppose that its sweep finds the best η at 1.",
        "7B",
        64,
        96.0,
        {"d_model": 512, "d_ff": 1376, "batch_size": 128, "steps": 4000},
        0.0,
    ),
    Example(
        "Four hundred million on one H100 for a day",
        "The target sees forty tokens per parameter, or as many as a day has time for. The proxy "
        "is a quarter as wide. Suppose that its sweep finds the best η at 2⁰·⁵.",
        "350M",
        1,
        24.0,
        {"d_model": 256, "d_ff": 704, "batch_size": 64, "steps": 2000},
        0.5,
        ratio=40.0,
    ),
    Example(
        "SP code, and one sweep",
        "The code stays SP, whose best η falls with every doubling of the width. Suppose one sweep "
        "at a quarter of the width, with the best η at 2⁻⁹.",
        "1.3B",
        8,
        120.0,
        {"d_model": 512, "d_ff": 1408, "batch_size": 128, "steps": 4000},
        -9.0,
        scheme="sp",
    ),
)


class Worked(NamedTuple):
    """An example with its answer.

    Attributes:
        proxy, target: the two runs.
        carried: the target's η.
        chosen: the layout. steps: of the target.
        file: the run file's text.
    """

    proxy: TrainConfig
    target: TrainConfig
    carried: transfer.Carried
    chosen: Case
    steps: int
    file: str


def work(example: Example) -> Worked:
    """Plan an example's target and carry η to it.

    Raises:
        BookError: no layout fits.
    """
    model, optim = planner_page.configs(example.preset, example.precision, attention="cudnn")
    start = plan.case(model, optim, MeshConfig(), hardware.get("h100"))
    best = budgets.fastest_layout(start, example.devices)
    if best is None:
        raise BookError("example", example.title, "a model that fits its devices")
    steps = planner_page.steps_of(best.case, 3600 * example.hours, example.ratio)
    target = _train(example, best.case, steps, 1.0)
    given = target.to_dict()
    for name, value in example.proxy.items():
        given["optim" if name in given["optim"] else "model"][name] = value
    warmup = int(planner_page.WARMUP * example.proxy["steps"])
    given["optim"] |= {"warmup_steps": warmup, "accumulate": 1}
    given["mesh"] = {}
    proxy = TrainConfig.from_dict(given | {"name": "proxy"})
    eta = Interval(example.log2_eta, example.log2_eta - ERROR, example.log2_eta + ERROR)
    carried = transfer.carry(eta, proxy, target)
    rate = 2**carried.log2_eta.value
    file = _file(example, best.case, steps, rate)
    return Worked(proxy, target, carried, best.case, steps, file)


def _file(example: Example, case: Case, steps: int, eta: float) -> str:
    return planner_page.run_file(
        case, "h100", example.precision, steps=steps, eta=eta, scheme=example.scheme
    )


def _train(example: Example, case: Case, steps: int, eta: float) -> TrainConfig:
    fields: dict[str, Any] = yaml.safe_load(_file(example, case, steps, eta))
    return TrainConfig.from_dict({"name": "big", **fields})


def composer_link(example: Example, worked: Worked) -> str:
    """The composer's form, filled with the example."""
    given: dict[str, Any] = {"scheme": example.scheme}
    for name, run in (("proxy", worked.proxy), ("target", worked.target)):
        sizes = transfer.sizes(run) | {"batch": run.optim.batch_size}
        given |= {f"{name}_{axis}": int(size) for axis, size in sizes.items()}
    given |= {"eta": f"{2**example.log2_eta:.4g}", "error": ERROR}
    return "what-to-tune.html#" + urlencode(given)


def planner_link(example: Example, worked: Worked) -> str:
    """The planner's form, filled with the example."""
    given: dict[str, Any] = dict(planner_page.PRESETS[example.preset])
    given |= {"precision": example.precision, "attention": "cudnn", "machine": "h100"}
    given |= {"devices": example.devices, "hours": example.hours, "ratio": example.ratio}
    given |= {"scheme": example.scheme, "eta": f"{2**worked.carried.log2_eta.value:.4g}"}
    return "planning.html#" + urlencode(given)


def shown(example: Example) -> str:
    """An example in Markdown."""
    worked = work(example)
    chosen, eta = worked.chosen, worked.carried.log2_eta
    size = formulas.parameters(chosen).total
    tokens = worked.steps * chosen.batch_size * chosen.seq_len
    hours = worked.steps * formulas.step_time(chosen).seconds / 3600
    dollars = hours * chosen.devices * chosen.usd_per_hour
    small = worked.proxy.model
    rates = [f"{2**end:.3g}" for end in (eta.value, eta.lo, eta.hi)]
    words = composer_page.axes()
    rows = [
        [
            words[term.axis],
            "" if term.axis == "together" else decimals(term.doublings, 2),
            _interval(term.octaves),
            f"{decimals(term.beyond, 1)} beyond what was measured" if term.beyond else "",
        ]
        for term in worked.carried.terms
    ]
    return "\n\n".join(
        [
            f"### {example.title}",
            example.text,
            f"*Target*, {TITLES[example.scheme]}: {plan_cli.count(size)} parameters, "
            f"{plan_cli.count(tokens)} tokens ({tokens / size:.3g} per parameter) in "
            f"{worked.steps:,} steps; by the planner {plan_cli.layout(chosen)}, {hours:.3g} hours, "
            f"${dollars:,.0f}. *Proxy*: {plan_cli.count(small.n_params)} parameters, "
            f"{worked.proxy.optim.steps:,} steps of {worked.proxy.optim.batch_size} sequences.",
            table(["what changes", "doublings", "octaves of η", ""], rows),
            f"**η = {rates[0]} [{rates[1]}, {rates[2]}]** for the target; log₂ η = "
            f"{_interval(eta)}. The same numbers "
            f'<a href="{composer_link(example, worked)}">in the composer</a> and '
            f'<a href="{planner_link(example, worked)}">in the planner</a>, which writes the file:',
            f":::{{dropdown}} big.yaml\n```yaml\n{worked.file}```\n:::",
        ]
    )


def _interval(found: Interval) -> str:
    value, lo, hi = (decimals(end, 2) for end in (found.value, found.lo, found.hi))
    return f"{value} [{lo},\N{NO-BREAK SPACE}{hi}]"


def generate(staging: Path) -> None:
    """Write the examples into ``_generated`` of a staged book."""
    text = "\n\n".join(map(shown, EXAMPLES)) + "\n"
    (staging / "_generated" / "examples.md").write_text(text, encoding="utf-8")
