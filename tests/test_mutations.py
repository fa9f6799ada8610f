"""The mutation check: what it flips, and that it tells noticed changes from survivors."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """The two modules; `mutations` imports `mutants` as a script does."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return importlib.import_module("mutants"), importlib.import_module("mutations")


def texts(mutants, source):
    return {(m.kind, m.text) for m in mutants.mutations(source, "rules.py")}


def test_tables_are_flipped_in_every_exponent_sign_and_fan(scripts):
    mutants, _ = scripts
    power = "{'fan_in': -0.5, 'depth': 1.0}"
    assert texts(mutants, f"_P = {power}\nq = {{}}\nr = f(_P)") == {
        ("exponent", f"{power} → {{'fan_in': -1.0, 'depth': 1.0}}"),
        ("sign", f"{power} → {{'fan_in': 0.5, 'depth': 1.0}}"),
        ("swapped fan", f"{power} → {{'fan_out': -0.5, 'depth': 1.0}}"),
        ("exponent", f"{power} → {{'fan_in': -0.5, 'depth': 2.0}}"),
        ("sign", f"{power} → {{'fan_in': -0.5, 'depth': -1.0}}"),
        ("factor", "{} → {'depth': 0.5}"),
        ("exponent", "_P → {} in f(_P)"),
    }


def test_code_is_flipped_in_factors_operators_signs_and_directions(scripts):
    mutants, _ = scripts
    source = "def f(x, forward, backward):\n    return -x * forward + 2.0"
    assert texts(mutants, source) == {
        ("operator", "-x * forward + 2.0 → -x * forward - 2.0"),
        ("factor", "-x * forward + 2.0 → -x * forward + 4.0"),
        ("operator", "-x * forward → -x / forward"),
        ("sign", "-x → x"),
        ("swapped scales", "forward → backward in -x * forward"),
    }
    scales = "WeightRule(a, b, c, d, e, f)"
    assert ("swapped scales", f"{scales} → WeightRule(a, c, b, d, e, f)") in texts(mutants, scales)
    assert texts(mutants, "x: int = f('-'.join(y) + 'a')\nz: A | None") == set()
    assert texts(mutants, "def table():\n    return 2.0 * 3.0") == set()  # prints, computes nothing


def test_every_module_under_mutation_exists_and_has_tests(scripts):
    _, mutations = scripts
    for module, tests in mutations.TESTS.items():
        assert (SCRIPTS.parent / "lib" / "umup" / module).exists(), module
        for test in tests:
            file, _, name = test.partition("::")
            text = (SCRIPTS.parent / "tests" / file).read_text(encoding="utf-8")
            assert f"def {name}" in text, test


def test_the_report_tells_noticed_equivalent_and_surviving(scripts, monkeypatch):
    mutants, mutations = scripts
    found = [mutants.Mutation("ops.py", i, "f", "factor", f"{i} → {2 * i}", "") for i in (1, 2, 3)]
    monkeypatch.setitem(mutations.EQUIVALENT, ("ops.py", "f", "2 → 4"), "only read by nobody")
    outcomes = [mutations.Outcome(killer, 1.0) for killer in ("tests/test_ops.py::t", "", "")]
    text = mutations.report(found, outcomes)
    assert "| ops.py:1 `f` | factor | `1 → 2` | `test_ops.py::t` |" in text
    assert "| equivalent: only read by nobody |" in text
    assert "| `3 → 6` | **survives** |" in text
    assert text.endswith("3 mutations: 1 noticed, 1 equivalent, 1 SURVIVES.")


def test_every_equivalent_mutation_is_one_that_is_made(scripts):
    _, mutations = scripts
    made = Counter((m.module, m.function, m.text) for m in mutations.every())
    assert {key: made[key] for key in mutations.EQUIVALENT if made[key] != 1} == {}


def alone(code: str) -> str:
    """What ``code`` prints in a process of its own: it forks, which must be before JAX starts."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SCRIPTS), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_module_that_fails_as_it_is_ends_everything(tmp_path):
    said = alone(
        f"""
import os, tempfile, time
import mutations
from mutants import Mutation

tempfile.tempdir = {str(tmp_path)!r}
mutations._prepare = lambda folder: None

def child(folder, package, tests, log):
    if "test_fp8.py" not in tests:
        (folder.parent / "began").touch()
        time.sleep(15)
    while not (folder.parent / "began").exists():
        time.sleep(0.01)
    return "broken"

mutations._child = child
try:
    mutations.run([Mutation(m, 1, "", "k", "t", "") for m in ("ops.py", "fp8.py")], jobs=2)
except SystemExit as error:
    print(error)
try:
    print("left:", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child is left")
"""
    )
    assert said == "fp8.py fails as it is: broken\nno child is left\n"
    assert [path.name for path in tmp_path.iterdir()] == ["began"]


def test_a_cache_entry_that_another_process_is_writing_is_no_failure(tmp_path):
    """And every other warning still is one."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        """
import warnings

def test_cache():
    for what in ("reading", "writing"):
        warnings.warn(f"Error {what} persistent compilation cache entry for 'jit_f': ZlibError")

def test_other():
    warnings.warn("Error reading something else")
""",
        encoding="utf-8",
    )
    shutil.copy(SCRIPTS.parent / "pyproject.toml", tmp_path)
    said = alone(
        f"""
from pathlib import Path
import mutations

folder, package = Path({str(tmp_path)!r}), Path({str(SCRIPTS.parent / "lib")!r})
print(mutations._child(folder, package, ["test_it.py"], folder / "log"))
"""
    )
    assert said == "tests/test_it.py::test_other\n"


@pytest.mark.slow
def test_a_change_is_noticed_and_a_harmless_one_survives():
    said = alone(
        "import mutations; from mutants import Mutation\n"
        "from pathlib import Path\n"
        "mutations.TESTS['errors.py'] = ('test_config.py::test_unknown_and_nested_fields',)\n"
        "source = Path('lib/umup/errors.py').read_text()\n"
        "bad = source.replace('received', 'got')\n"
        "both = [Mutation('errors.py', 1, '', 'k', t, s) for t, s in (('a', bad), ('b', source))]\n"
        "assert bad != source\n"
        "print([o.killer for o in mutations.run(both, jobs=1)])\n"
    )
    assert "'tests/test_config.py::" in said and said.rstrip().endswith(", '']")
