"""Formulas in JavaScript: what is refused, and that node and Chromium compute what Python does."""

from __future__ import annotations

import inspect
import json
import math
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from umup.book import javascript
from umup.errors import BookError
from umup.plan import budgets, formulas

CASES = 200
MODULES = (formulas, budgets)
SOURCE = "\n".join(Path(str(m.__file__)).read_text(encoding="utf-8") for m in MODULES)
PUBLIC = {n: f for m in MODULES for n, f in vars(m).items() if inspect.isfunction(f)}

SMALL = """
'''A module.'''
from __future__ import annotations
import math

def mixed(a, b):
    'A docstring.'
    out = []
    total = 0
    for i in range(2, a):
        if i % 3 == 0 and not i == b:
            total = total + i // 2
        else:
            out.append(-i ** 2)
    while total > 10:
        total = total - 7
    return {"list": out, "total": total, **more(total), "b": b != 4 or a <= 1}

def more(x):
    return {"total": 0, "floor": math.floor(x / -4), "last": [x, x + 1][1],
            "which": "low" if min(x, 5, 9) < 5 else None, "count": len([1, 2, x])}

def nothing(x):
    if x:
        return
    return max(x, 1e-300)
"""


def run(script: str, expression: str) -> Any:
    """The value of an expression after a script, in node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: Chromium's test has the last word")
    program = f"{script}\nconsole.log(JSON.stringify({expression}))"
    done = subprocess.run([node, "-"], input=program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_construct_means_the_same():
    space: dict[str, Any] = {}
    exec(SMALL, space)
    calls = [(a, b) for a in range(0, 25, 4) for b in (3, 4, 6)]
    expected = [space["mixed"](*call) for call in calls] + [space["nothing"](0)]
    asked = ", ".join(f"small.mixed({a}, {b})" for a, b in calls)
    script = javascript.translate(SMALL, "small")
    assert run(script, f"[{asked}, small.nothing(0)]") == expected
    assert run(script, "small.nothing(1) === undefined") is True


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("return a < b < 3", "Compare"), ("x, y = a, b", "Assign"), ("a += 1", "AugAssign"),
        ("return [i for i in range(a)]", "ListComp"), ("return a is b", "Compare"),
        ("return a[-1]", "Subscript"), ("return a[1:]", "Subscript"), ("return round(a)", "Call"),
        ("return math.log(a, 2)", "Call"), ("return min(a)", "Call"), ("return f(a)", "Call"),
        ("return f(a, b=b)", "Call"), ("return {1: a}", "key that is no string"),
        ("return c", "the name c"), ("new = a\n return a", "the name new"),
        ("for i in a:\n  return i", "For"), ("for i in range(0, a, 2):\n  return i", "step"),
        ("for i in range(a):\n  i = 2", "Assign"), ("for a in range(b):\n  return a", "used"),
        ("while a:\n  return b\n else:\n  return a", "While"), ("with a:\n  return b", "With"),
        ("return 9007199254740995", "float64"), ("return f'{a}'", "JoinedStr"),
        ("import os", "Import"), ("a['x'] = b", "Assign"), ("return a @ b", "BinOp"),
        ("return +a", "UnaryOp"), ("return b''", "Constant"),
    ],
)  # fmt: skip
def test_what_is_not_shared_is_refused(body, named):
    source = f"import math\ndef f(a, b):\n {body}\n"
    with pytest.raises(BookError) as error:
        javascript.translate(source, "small")
    assert named in str(error.value.received)
    assert error.value.field in {f"small.py, line {n}" for n in (3, 4)}


@pytest.mark.parametrize(
    "source",
    ["X = 1", "import os", "import math as m", "class A: pass", "def f(a=1):\n return a",
     "def f(*a):\n return a", "def new(a):\n return a", "def f(var):\n return 1",
     "@g\ndef f(a):\n return a", "def f(*, a):\n return a"],
)  # fmt: skip
def test_what_is_no_plain_module_of_functions_is_refused(source):
    with pytest.raises(BookError, match=r"small\.py, line"):
        javascript.translate(source, "small")


def random_case(r: random.Random) -> dict[str, Any]:
    """A case that divides evenly more often than not."""
    d_head = r.choice([16, 64, 128])
    d_model = d_head * r.choice([1, 4, 12, 32])
    return {
        "d_model": d_model, "n_layers": r.randint(1, 80), "d_head": d_head,
        "d_ff": 64 * r.randint(1, 300), "vocab_size": 2 * r.randint(50, 60000),
        "seq_len": r.choice([31, 256, 1000, 4096]), "batch_size": 2 ** r.randint(0, 8),
        "accumulate": r.choice([1, 1, 2, 4]), "remat": r.choice(["none", "dots", "full"]),
        "attention": r.choice(["xla", "blocked", "cudnn"]), "act_bytes": r.choice([2, 4]),
        "param_bytes": r.choice([2, 4]), "in_bytes": r.choice([1, 2, 4]),
        "wide_bytes": r.choice([1, 2, 4]), "weight_bytes": r.choice([1, 2]),
        "data": r.choice([1, 2, 3]), "fsdp": r.choice([1, 4, 8]), "tensor": r.choice([1, 2]),
        "fp8_share": r.choice([0.0, r.random(), 1.0]), "memory": 10 ** r.uniform(9, 12),
        "usable": r.random(), "bandwidth": 10 ** r.uniform(10, 13),
        "link_bandwidth": 10 ** r.uniform(9, 12), "network_bandwidth": 10 ** r.uniform(9, 11),
        "node_devices": r.choice([1, 4, 8]), "gemm_efficiency": r.uniform(0.1, 1),
        "attention_efficiency": r.uniform(0.1, 1), "overhead": r.choice([0.0, 1e-5, r.random()]),
        "usd_per_hour": r.uniform(0, 9), "copied_moments": r.choice([0, 2]),
        "work_bytes": r.choice([0, 4]), "unfused_sums": r.choice([0, 1]),
        "peak_flops": 10 ** r.uniform(12, 16), "peak_fp8_flops": 10 ** r.uniform(12, 16),
    }  # fmt: skip


def arguments(name: str, r: random.Random) -> list[Any]:
    """Random arguments of a function of the formulas."""
    c = random_case(r)
    total = r.choice([1, 2, 6, 8])
    share = {key: r.random() for key in ("qkv", "out", "gate_up", "down", "readout")}
    machine = {
        "memory_gb": r.uniform(1, 200), "usable": 0.9, "memory_gb_s": r.uniform(1, 9000),
        "link_gb_s": 450.0, "network_gb_s": 50.0, "node_devices": 8, "gemm_efficiency": 0.5,
        "attention_efficiency": 0.4, "overhead_us": r.uniform(0, 99), "usd_per_hour": 3.0,
        "copied_moments": 2, "widens": r.random() < 0.5, "split_sums": r.random() < 0.5,
        "tflops_bfloat16": r.uniform(1, 999), "tflops_float8": r.choice([0.0, 1999.0]),
    }  # fmt: skip
    proportions = {**c, "aspect": r.uniform(16, 200), "ff_ratio": r.uniform(1, 4)}
    special = {
        "assemble": [c, {"bytes": {"act_bytes": 2}, "products": "tflops_bfloat16", "float8": share},
                 machine],
        "shape": [proportions, r.randint(1, 99)],
        "largest": [proportions, total, 10 ** r.uniform(2, 5), 20],
        "quickest": [[{"seconds": r.choice([0.5, 1.0, 2.0]), "i": i} for i in range(total)]],
        "reach": [c, total], "spent": [c, r.uniform(1, 1e6)],
        "divisors": [r.choice([r.randint(1, 99), r.randint(1, 10**6), r.randint(1, 999) ** 2])],
        "meshes": [c, total], "layouts": [c, total], "leanest": [c, total], "enough": [c, total],
        "chinchilla_loss": [10 ** r.uniform(6, 12), 10 ** r.uniform(8, 14)],
    }  # fmt: skip
    if name in special:
        return special[name]
    budget = [10 ** r.uniform(16, 26), r.choice([20, 150]), 10 ** r.uniform(6, 15)]
    by_name = {"c": c, "budget": budget[0], "tokens_per_parameter": budget[1],
               "inference_tokens": budget[2]}  # fmt: skip
    return [by_name[key] for key in inspect.signature(PUBLIC[name]).parameters]


@pytest.fixture(scope="module")
def table() -> list[tuple[str, list[Any], Any]]:
    """(function, arguments, what Python returns) of many random cases of every function."""
    r = random.Random(5)
    rows = []
    for name, function in PUBLIC.items():
        for _ in range(CASES):
            given = arguments(name, r)
            rows.append((name, given, function(*given)))
    return rows


def differences(table: list[tuple[str, list[Any], Any]], found: list[Any]) -> list[str]:
    """Where two languages differ by more than 1e-12 of a value."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, (int, float)) and not isinstance(a, bool):
            return isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=1e-12)
        return type(a) is type(b) and a == b

    assert len(found) == len(table)
    return [
        f"{name}{given}: {expected} {got}"
        for (name, given, expected), got in zip(table, found, strict=True)
        if not same(expected, got)
    ]


def asked(table: list[tuple[str, list[Any], Any]]) -> str:
    """All calls of a table as one JavaScript expression."""
    calls = json.dumps([[name, given] for name, given, _ in table])
    return f"{calls}.map(([name, given]) => formulas[name](...given))"


def test_the_cases_reach_both_outcomes(table):
    outcomes = {
        "largest": lambda v: v["n_layers"] > 0, "layouts": bool, "meshes": bool, "splits": bool,
        "fits": lambda v: v >= 0, "leanest": lambda v: v["bytes"] > 0,
        "enough": lambda v: v["seconds"] > 0, "fastest": lambda v: v["seconds"] > 0,
    }  # fmt: skip
    for name, outcome in outcomes.items():
        share = [outcome(value) for called, _, value in table if called == name]
        assert 10 < sum(share) < CASES - 10, name


def test_formulas_compute_the_same_in_node(table):
    script = javascript.translate(SOURCE, "formulas")
    assert differences(table, run(script, asked(table))) == []


@pytest.mark.browser
def test_formulas_compute_the_same_in_chromium(table, chromium):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    script = javascript.translate(SOURCE, "formulas")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.add_script_tag(content=script)
        found = json.loads(page.evaluate(f"JSON.stringify({asked(table)})"))
        browser.close()
    assert differences(table, found) == []
