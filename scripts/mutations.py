"""Flip each constant of the rules and ops in turn, and show which test fails for it.

    .venv/bin/python scripts/mutations.py --jobs 2 > mutations.md
    .venv/bin/python scripts/mutations.py --only ops.py --limit 20

Mutations are made from the source, not listed: see `mutants`. Each is applied to a copy of the
package in a temporary folder, and the fast tests of that module run against it until the first one
fails. Prints a Markdown table; exits 1 if a mutation survives.

A worker process imports JAX and pytest once and forks for every mutation; compiled programs are
kept in one cache, since most mutations of the rules change values and no program.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from mutants import Mutation, mutations

ROOT = Path(__file__).resolve().parent.parent

_RULES = ("test_rules.py", "test_contract.py")
_OPS = ("test_contract.py", "test_ops.py")
TESTS = {
    "powers.py": _RULES,
    "schemes.py": _RULES,
    "rules.py": (
        *_RULES,
        "test_stability.py::test_only_the_weights_that_end_branches_are_scaled_by_depth",
    ),
    "scale.py": _OPS,
    "ops.py": (
        *_OPS,
        "test_fp8.py::test_all_three_products_take_the_cast_operands",
        "test_fp8.py::test_delayed_scaling_takes_the_magnitudes_of_earlier_steps",
        "test_probe.py::test_attention_is_reported_as_numpy_has_it",
        "test_stability.py::test_z_loss_adds_its_gradient_at_the_scale_of_the_cross_entropys",
    ),
    "fp8.py": ("test_fp8.py",),
    "probe.py": ("test_probe.py", "test_fp8.py"),
}
"""Module → tests that must notice, quickest first."""

RENDERED = ("tables_in_three_styles", "table_of_variants", "table_says", "test_render")
"""Tests of printed tables: left out, so that what kills a mutation of a rule is a number."""

UNREADABLE = [f"Error {what} persistent compilation cache entry" for what in ("reading", "writing")]
"""JAX's warnings of an entry that another process is still writing, or was killed at: no failure,
since the program is compiled instead. JAX writes entries in place and without a lock."""

_FORWARD_ONLY = "the value alone is kept, the backward scale is not read"
_OF_LINEAR = "_linear_fwd(x, w, forward, backward, weight_grad, history, casts, fused)"
EQUIVALENT = {
    (
        "powers.py",
        "evaluate",
        "1.0 → 2.0 in numerator = denominator = 1.0",
    ): "both begin alike, and only their ratio is used",
    (
        "schemes.py",
        "_rung",
        "scale.weights[role].forward → scale.weights[role].backward",
    ): "SP and μP have true gradients: their scales of the two directions are one",
    ("ops.py", "_linear", f"backward → forward in {_OF_LINEAR}"): _FORWARD_ONLY,
    ("ops.py", "_linear", f"weight_grad → backward in {_OF_LINEAR}"): _FORWARD_ONLY,
    (
        "ops.py",
        "_linear_bwd",
        "casts.x → casts.w",
    ): "every recipe casts inputs and weights both, or neither",
    (
        "ops.py",
        "attention",
        "2 → 4 in 4 if q.shape[-2] >= 256 else 2",
    ): "how many blocks is speed: their numbers are equal",
    (
        "ops.py",
        "_residual_add_fwd",
        "add_grad → add in residual_add(branch, skip, add, keep, add_grad)",
    ): _FORWARD_ONLY,
    (
        "ops.py",
        "_cross_entropy",
        "grad_scale → alpha in _cross_entropy_fwd(logits, targets, alpha, grad_scale, z_loss)",
    ): _FORWARD_ONLY,
    (
        "ops.py",
        "_norm2",
        "jnp.sum(jnp.square(x.astype(jnp… + 1e-30 → jnp.sum(jnp.square(x.astype(jnp… + 2e-30",
    ): "any number far below a square keeps a zero vector from 0/0",
    (
        "fp8.py",
        "cast",
        "1.0 → 2.0 in jnp.where(usable, largest, 1.0)",
    ): "guards a division whose result is not used",
}
"""(module, function, mutation) → why no test can see it."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said: the first that failed, or "" where the mutation survived."""

    killer: str
    seconds: float


# --- running --------------------------------------------------------------------------------------


class _FirstFailure:
    """A pytest plugin that remembers the first failing test or collection error."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.name:
            self.name = f"{report.nodeid} (on import)"


def _child(folder: Path, package: Path, tests: Sequence[str], log: Path) -> str:
    """In a forked process: run ``tests`` against ``package``; the first failure's name."""
    import pytest

    sys.path.insert(0, str(package))
    os.chdir(folder)
    first = _FirstFailure()
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        import umup

        where = Path(umup.__file__).parent.parent  # type: ignore[arg-type]
        assert where == package, f"the tests would see {where}, not the copy"
        files = [f"tests/{name}" for name in tests]
        chosen = ["-k", " and ".join(f"not {name}" for name in RENDERED)]
        passed_over = [f"-Wignore:{warning}" for warning in UNREADABLE]
        options = ["-x", "-q", "-p", "no:cacheprovider", *passed_over, *chosen, *files]
        status = int(pytest.main(options, plugins=[first]))
    log.write_text(out.getvalue(), encoding="utf-8")
    return first.name or (f"pytest's status {status}" if status else "")


def _fork(job: Callable[[], str], report: Path, core: int | None) -> int:
    """Run ``job`` in a child; what it returns is written to ``report`` as JSON."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if core is not None:
            os.sched_setaffinity(0, {core})
        result = job()
    except BaseException as error:  # a mutated package may fail in any way at import
        result = f"import: {type(error).__name__}"
    try:
        report.write_text(json.dumps(result), encoding="utf-8")
    finally:  # whatever happens, a child never goes on as its parent
        os._exit(0)


def _kill(pid: int) -> None:
    """End a child and what it started, wherever it is."""
    for kill in (os.killpg, os.kill):  # before its `setsid` it leads no group
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _package(folder: Path, snapshot: Path, module: str, source: str) -> Path:
    """A copy of the package, all but the mutated module by link; its parent folder."""
    package = folder / "lib"
    (package / "umup").mkdir(parents=True)
    for path in snapshot.iterdir():
        if path.name not in (module, "__pycache__"):
            (package / "umup" / path.name).symlink_to(path)
    (package / "umup" / module).write_text(source, encoding="utf-8")
    return package


def _snapshot(folder: Path) -> None:
    """Package and tests as they are now, so that edits of the checkout do not disturb the run."""
    ignore = shutil.ignore_patterns("__pycache__", "studies", "book")
    shutil.copytree(
        ROOT / "lib" / "umup", folder / "umup", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def _prepare(folder: Path) -> None:
    """Settings of the children, and the imports that they share. JAX must not start here."""
    os.environ |= {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    sys.dont_write_bytecode = True
    import flax.nnx  # noqa: F401
    import hypothesis  # noqa: F401
    import jax  # noqa: F401
    import numpy  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401

    assert "umup" not in sys.modules


def _pool(
    folder: Path, mutants: Sequence[Mutation], jobs: int, limits: Mapping[str, float]
) -> Generator[tuple[int, Outcome], None, None]:
    """(index, outcome) of each mutation as it ends, ``jobs`` at once, each on its own core.

    ``limits``: seconds by module after which a mutation counts as noticed, since a hang is. Closed
    before its end, it kills what still runs.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    free = [cores[i] if i < len(cores) else None for i in range(jobs)]
    running: dict[int, tuple[int, float, Path, int | None]] = {}
    waiting = list(enumerate(mutants))
    try:
        while waiting or running:
            while waiting and free:
                index, mutant = waiting.pop(0)
                place, core = folder / f"run{index}", free.pop()
                package = _package(place, folder / "umup", mutant.module, mutant.source)

                def job(package=package, tests=TESTS[mutant.module], log=place / "log"):
                    return _child(folder, package, tests, log)

                running[_fork(job, place / "report", core)] = (index, time.monotonic(), place, core)
            time.sleep(0.02)
            for pid, (index, began, place, core) in list(running.items()):
                seconds = time.monotonic() - began
                ended, _ = os.waitpid(pid, os.WNOHANG)
                if not ended and seconds < limits.get(mutants[index].module, math.inf):
                    continue
                if not ended:
                    _kill(pid)
                del running[pid]
                report = place / "report"
                silence = "a crash" if ended else "no end in time"
                killer = json.loads(report.read_text("utf-8")) if report.exists() else silence
                shutil.rmtree(place)
                free.append(core)
                yield index, Outcome(killer, seconds)
    finally:
        for pid in running:
            _kill(pid)


def run(mutants: Sequence[Mutation], *, jobs: int) -> list[Outcome]:
    """Run the tests of each mutation's module against it.

    Args:
        mutants: what to try.
        jobs: processes at once.

    Raises:
        SystemExit: a module's tests fail without any mutation.
    """
    outcomes: dict[int, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name)
        _snapshot(folder)
        _prepare(folder)
        # First each module as it is: its tests must pass, and their programs enter the cache.
        whole, limits = [], {}
        for module in dict.fromkeys(m.module for m in mutants):
            source = (folder / "umup" / module).read_text("utf-8")
            whole.append(Mutation(module, 0, "", "none", "as it is", source))
        with closing(_pool(folder, whole, jobs, {})) as ended:
            for index, outcome in ended:
                _say(whole[index], outcome, "passes")
                if outcome.killer:
                    raise SystemExit(f"{whole[index].module} fails as it is: {outcome.killer}")
                limits[whole[index].module] = 60 + 5 * outcome.seconds
        with closing(_pool(folder, mutants, jobs, limits)) as ended:
            for index, outcome in ended:
                _say(mutants[index], outcome, "SURVIVES")
                outcomes[index] = outcome
    return [outcomes[i] for i in range(len(mutants))]


def _say(mutant: Mutation, outcome: Outcome, otherwise: str) -> None:
    said = f"{outcome.killer or otherwise} [{outcome.seconds:.0f} s]"
    print(f"{mutant.module}:{mutant.line} {mutant.text}: {said}", file=sys.stderr, flush=True)


# --- report ---------------------------------------------------------------------------------------


def verdict(mutant: Mutation, outcome: Outcome) -> str:
    """``noticed``, ``equivalent`` or ``SURVIVES``."""
    if outcome.killer:
        return "noticed"
    known = (mutant.module, mutant.function, mutant.text) in EQUIVALENT
    return "equivalent" if known else "SURVIVES"


def report(mutants: Sequence[Mutation], outcomes: Sequence[Outcome]) -> str:
    """The Markdown table, with a line of totals."""

    def code(text: str) -> str:
        return f"`{text.replace('|', '¦').replace('`', chr(39))}`"

    rows = ["| place | kind | mutation | first failing test |", "| --- | --- | --- | --- |"]
    for m, o in zip(mutants, outcomes, strict=True):
        said = o.killer.removeprefix("tests/")
        if not said:
            reason = EQUIVALENT.get((m.module, m.function, m.text))
            said = f"equivalent: {reason}" if reason else "**survives**"
        else:
            said = code(said)
        place = f"{m.module}:{m.line}" + (f" `{m.function}`" if m.function else "")
        rows.append(f"| {place} | {m.kind} | {code(m.text)} | {said} |")
    counts = [verdict(m, o) for m, o in zip(mutants, outcomes, strict=True)]
    total = ", ".join(f"{counts.count(v)} {v}" for v in ("noticed", "equivalent", "SURVIVES"))
    return "\n".join([*rows, "", f"{len(mutants)} mutations: {total}."])


def every(modules: Iterable[str] = TESTS) -> list[Mutation]:
    """All mutations of these modules as they are in the checkout."""
    sources = {name: (ROOT / "lib" / "umup" / name).read_text("utf-8") for name in modules}
    return [mutant for name, source in sources.items() for mutant in mutations(source, name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="mutations at once")
    parser.add_argument("--only", action="append", choices=sorted(TESTS), help="a module")
    parser.add_argument("--limit", type=int, help="an even sample of that many")
    parser.add_argument("--match", default="", help="only mutations whose text contains this")
    parser.add_argument("--list", action="store_true", help="name the mutations and run nothing")
    options = parser.parse_args(arguments)
    mutants = [m for m in every(options.only or TESTS) if options.match in m.text]
    if options.limit and options.limit < len(mutants):
        step = len(mutants) / options.limit
        mutants = [mutants[int(i * step)] for i in range(options.limit)]
    if options.list:
        print("\n".join(f"{m.module}:{m.line} {m.function}: {m.kind}: {m.text}" for m in mutants))
        return 0
    outcomes = run(mutants, jobs=options.jobs)
    print(report(mutants, outcomes))
    survivors = [m for m, o in zip(mutants, outcomes) if verdict(m, o) == "SURVIVES"]
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
