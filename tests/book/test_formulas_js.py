"""The page's formulas compute what Python's do: `book/planner/formulas.js` beside `umup.plan`."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from book.test_browser import browser  # noqa: F401
from umup import plan
from umup.config import RECIPES, MeshConfig, ModelConfig, OptimConfig
from umup.plan import Case, budgets, formulas, hardware

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "planner" / "formulas.js"
CLOSE = 1e-9
"""How near the two must come, relatively: a browser may round a power otherwise."""

PUBLIC: dict[str, Callable[..., Any]] = {
    name: function
    for module in (formulas, budgets)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and not name.startswith("_")
}
PROPERTIES = ("devices", "local_tokens")
"""Of a case, which are functions in JavaScript."""
ALONE = {"doublings"}
"""Functions that JavaScript keeps to itself: others show what they do."""


class Call(NamedTuple):
    """A function's name, its arguments, and what Python returns."""

    name: str
    given: list[Any]
    expected: Any


def plain(value: Any) -> Any:
    """A value as JSON has it, keys by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, Iterator)):
        return [plain(one) for one in value]
    return value


def call(name: str, *given: Any) -> Call:
    """A call of a function, or of a case's property."""
    value = getattr(given[0], name) if name in PROPERTIES else PUBLIC[name](*given)
    return Call(name, plain(list(given)), plain(value))


def of_a_case(c: Case) -> Iterator[Call]:
    """Every formula that is asked about a case alone, searches over meshes apart."""
    yield from (call(name, c) for name in PROPERTIES)
    for name, function in PUBLIC.items():
        if list(inspect.signature(function).parameters) == ["c"]:
            yield call(name, c)


def random_case(r: random.Random) -> Case:
    """Any numbers, also such as no machine or recipe has; sizes often divide evenly."""
    d_head = r.choice([16, 64, 128])
    return Case(
        d_model=d_head * r.choice([1, 4, 12, 32]),
        n_layers=r.randint(1, 80),
        d_head=d_head,
        d_ff=64 * r.randint(1, 300),
        vocab_size=2 * r.randint(50, 60000),
        seq_len=r.choice([31, 256, 1000, 4096]),
        remat=r.choice(["none", "dots", "full"]),
        attention=r.choice(["xla", "blocked", "cudnn"]),
        batch_size=2 ** r.randint(0, 8),
        accumulate=r.choice([1, 1, 2, 4]),
        act_bytes=r.choice([2, 4]),
        param_bytes=r.choice([2, 4]),
        in_bytes=r.choice([1, 2, 4]),
        wide_bytes=r.choice([1, 2, 4]),
        weight_bytes=r.choice([1, 2]),
        fp8_share=r.choice([0.0, r.random(), 1.0]),
        data=r.choice([1, 2, 3]),
        fsdp=r.choice([1, 4, 8]),
        tensor=r.choice([1, 2]),
        memory=10 ** r.uniform(9, 12),
        usable=r.random(),
        bandwidth=10 ** r.uniform(10, 13),
        link_bandwidth=10 ** r.uniform(9, 12),
        network_bandwidth=10 ** r.uniform(9, 11),
        node_devices=r.choice([1, 4, 8]),
        peak_flops=10 ** r.uniform(12, 16),
        peak_fp8_flops=10 ** r.uniform(12, 16),
        gemm_efficiency=r.uniform(0.1, 1),
        attention_efficiency=r.uniform(0.1, 1),
        overhead=r.choice([0.0, 1e-5, r.random()]),
        usd_per_hour=r.uniform(0, 9),
        copied_moments=r.choice([0, 2]),
        work_bytes=r.choice([0, 4]),
        unfused_sums=r.choice([0, 1]),
    )


def searches(r: random.Random) -> Iterator[Call]:
    """Searches over layouts, and what budgets buy, of one random case."""
    c, total = random_case(r), r.choice([1, 2, 6, 8])
    for name in ("meshes", "layouts", "fastest_layout", "leanest", "smallest_cluster", "reach"):
        yield call(name, c, total)
    yield call("smallest_cluster", c, r.choice([2**16, 2**17]))  # the most, and too many
    yield call("largest", c, total, 10 ** r.uniform(2, 10), r.choice([1, 20]))
    yield call("with_depth", c, r.randint(1, 99))
    yield call("spent", c, r.uniform(1, 1e6))
    for n in (r.randint(1, 99), r.randint(1, 10**6), r.randint(1, 999) ** 2):
        yield call("divisors", n)
    budget, ratio, inference = 10 ** r.uniform(16, 26), r.choice([20, 150]), 10 ** r.uniform(6, 15)
    yield call("allocations", budget, ratio, inference)
    yield call("overtrained", budget, inference)
    yield call("rule_of_thumb", budget, ratio)
    yield from (call(name, budget) for name in ("chinchilla", "kaplan"))
    yield call("chinchilla_loss", 10 ** r.uniform(6, 12), 10 ** r.uniform(8, 14))


def real_case(
    r: random.Random, machine: hardware.Hardware, dtype: str, recipe: str, mesh: MeshConfig
) -> tuple[Case, Call]:
    """A random decoder on a machine, and the call that makes its case in JavaScript."""
    shape = random_case(r)
    names = ("d_model", "n_layers", "d_head", "d_ff", "vocab_size", "seq_len", "remat")
    fused = ["cudnn"] if dtype == "bfloat16" else []
    fields = {name: getattr(shape, name) for name in names}
    fields |= {"attention": r.choice(["xla", "blocked", *fused]), "dtype": dtype, "recipe": recipe}
    model = ModelConfig.from_dict(fields)
    parts = r.choice([1, 1, 2, 4])
    batch = parts * 2 ** r.randint(0, 8)
    optim = OptimConfig(steps=1, warmup_steps=0, batch_size=batch, accumulate=parts)
    c = plan.case(model, optim, mesh, machine)
    names = (*plan.SHAPE, "batch_size", "accumulate", "data", "fsdp", "tensor")
    run = {name: getattr(c, name) for name in names}
    given = [run, plain(plan.precision(model)), machine.to_dict()]
    return c, Call("assemble", given, plain(c))


def real_calls(r: random.Random) -> Iterator[Call]:
    """Every machine, type, recipe and sharding."""
    machines = hardware.catalogue().values()
    meshes = [MeshConfig(*ways) for ways in itertools.product((1, 3), (1, 16), (1, 2))]
    for machine, recipe, mesh in itertools.product(machines, RECIPES, meshes):
        dtypes = ("bfloat16", "float32") if machine.tflops_float32 else ("bfloat16",)
        for dtype in dtypes:
            c, assembled = real_case(r, machine, dtype, recipe, mesh)
            yield assembled
            yield from of_a_case(c)


@pytest.fixture(scope="module")
def table() -> list[Call]:
    """Calls of every formula, with what Python returns."""
    r = random.Random(5)
    calls = list(real_calls(r))
    for _ in range(100):
        calls += [*of_a_case(random_case(r)), *searches(r)]
    return calls


def same(a: Any, b: Any) -> bool:
    """Whether two values are alike, numbers to ``CLOSE``."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (int, float)) and not isinstance(a, bool):
        return isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=CLOSE)
    return type(a) is type(b) and a == b


def test_the_calls_reach_every_formula_and_both_outcomes(table: list[Call]) -> None:
    called = {one.name for one in table}
    assert called == {*PUBLIC, *PROPERTIES, "assemble"} - ALONE
    outcomes: dict[str, Callable[[Any], bool]] = {
        "meshes": bool,
        "layouts": bool,
        "fastest": bool,
        "fastest_layout": bool,
        "leanest": bool,
        "smallest_cluster": bool,
        "divides_evenly": bool,
        "spare": lambda bytes_: bytes_ >= 0,
        "largest": lambda found: found["layout"] is not None,
    }
    for name, outcome in outcomes.items():
        reached = [outcome(one.expected) for one in table if one.name == name]
        assert 10 < sum(reached) < len(reached) - 10, name
    limits = {one.expected["limit"] for one in table if one.name == "step_time"}
    assert limits == {"products", "attention", "memory bandwidth", "overhead", "communication"}
    bounds = {one.expected["bound"] for one in table if one.name == "largest"}
    assert bounds == {"time", "memory", "depth"}


@pytest.mark.browser
def test_formulas_compute_the_same_in_chromium(table: list[Call], browser) -> None:  # noqa: F811
    page = browser.new_page()
    page.add_script_tag(path=str(SCRIPT))
    assert set(page.evaluate("Object.keys(formulas)")) == {one.name for one in table}
    calls = json.dumps([[name, given] for name, given, _ in table])
    script = f"JSON.stringify({calls}.map(([name, given]) => formulas[name](...given)))"
    found = json.loads(page.evaluate(script))
    page.close()
    wrong = [(*one, got) for one, got in zip(table, found, strict=True) if not same(one[2], got)]
    assert wrong == []
