"""Run the test suite under other processors' instructions, thread counts and Pythons, and compare.

    python3 scripts/matrix.py [--list] [--only NAME …] [-- PYTEST ARGUMENTS]

Every setting is one `make test`, and they run one after another. Each level of each factor occurs,
not each combination: every instruction set on the Python that runs this, every other Python of
pyproject.toml in a virtual environment of its own under .cache, while the number of threads and
OpenBLAS's kernels take turns. With UMUP_TEST_IN_HASTE=0 every test has programs as users have
them, in twice the time; else those marked `optimized` have. What a setting gave is kept under
.cache by commit, so an interrupted matrix resumes. Standard library only: it
runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
HERE = ".".join(platform.python_version_tuple()[:2])
# XLA's name -> the flags in /proc/cpuinfo that it needs, and OpenBLAS's name for such a processor
INSTRUCTIONS = {
    "SSE4_2": ({"sse4_2"}, "Nehalem"),
    "AVX2": ({"avx2", "fma"}, "Haswell"),
    "AVX512": ({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}, "SkylakeX"),
}
NATIVE = "native"
HEADINGS = ("setting", "passed", "failed", "skipped", "minutes", "failing tests")


@dataclass(frozen=True)
class Setting:
    """One way to run the suite; ``coretype`` is OpenBLAS's, None for the one it finds itself."""

    python: str
    instructions: str
    threads: int
    coretype: str | None

    @property
    def name(self) -> str:
        """Say `python3.11-avx2-4`; with OpenBLAS's kernels, if they are chosen, at its end."""
        parts = (f"python{self.python}", self.instructions, str(self.threads), self.coretype)
        return "-".join(part.lower() for part in parts if part)

    def environment(self, outer: dict[str, str]) -> dict[str, str]:
        """The environment to run in: ``outer`` with this setting's variables."""
        flags = outer.get("XLA_FLAGS", "")
        if self.instructions != NATIVE:
            flags = f"{flags} --xla_cpu_max_isa={self.instructions}".strip()
        threads = str(self.threads)  # XLA takes NPROC before the processors that it may run on
        ours = {"XLA_FLAGS": flags, "NPROC": threads, "OMP_NUM_THREADS": threads}
        if self.coretype is not None:
            ours["OPENBLAS_CORETYPE"] = self.coretype
        return {k: v for k, v in outer.items() if k != "OPENBLAS_CORETYPE"} | ours


def supported() -> list[str]:
    """The versions of Python, say 3.11, that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    label = "Programming Language :: Python :: 3."
    return [c.split(" :: ")[-1] for c in project["classifiers"] if c.startswith(label)]


def interpreter(version: str) -> str | None:
    """A Python of this version that starts, from PATH or from pyenv; None if there is none."""
    candidates = [shutil.which(f"python{version}")]
    if pyenv := shutil.which("pyenv"):  # its python3.12 on PATH starts only where it is selected
        prefix = subprocess.run([pyenv, "prefix", version], capture_output=True, text=True).stdout
        candidates.append(f"{prefix.strip()}/bin/python")
    code = (
        "import ensurepip, sys, venv; print(*sys.version_info[:2], sep='.'); print(sys.executable)"
    )
    for path in filter(None, candidates):
        with contextlib.suppress(OSError):
            done = subprocess.run([path, "-c", code], capture_output=True, text=True)
            told, _, executable = done.stdout.strip().partition("\n")
            if told == version:
                return executable
    return None


def processor_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo; none where there is no such file."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def design(pythons: Iterable[str], flags: set[str]) -> list[Setting]:
    """The settings for these Pythons, the first with every instruction set among ``flags``."""
    first, *others = pythons
    kernels: dict[str, str | None] = {
        name: core for name, (needs, core) in INSTRUCTIONS.items() if needs <= flags
    }
    pairs = [(first, NATIVE), *((first, name) for name in kernels)]
    pairs += [(python, NATIVE) for python in others]
    kernels[NATIVE] = next(iter(kernels.values()), None)
    turns = zip(itertools.cycle((2, 1, 4)), itertools.cycle((False, True)))
    return [
        Setting(python, name, threads, kernels[name] if chosen else None)
        for (python, name), (threads, chosen) in zip(pairs, turns)
    ]


def state(arguments: list[str]) -> str:
    """The commit and a checksum of what else decides a result: changed files, how tests compile,
    arguments."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *command], capture_output=True, check=True)
        return done.stdout.decode(errors="replace")

    haste = os.environ.get("UMUP_TEST_IN_HASTE", "")
    rest = "\0".join([git("diff", "HEAD"), git("status", "--porcelain"), haste, *arguments])
    return f"{git('rev-parse', '--short', 'HEAD').strip()}-{zlib.crc32(rest.encode()):08x}"


@contextlib.contextmanager
def processors(count: int) -> Iterator[int]:
    """Let this process and those that it starts run on at most ``count`` processors."""
    if not hasattr(os, "sched_setaffinity"):
        yield min(count, os.cpu_count() or 1)
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield min(count, len(before))
    finally:
        os.sched_setaffinity(0, before)


def run(setting: Setting, path: Path, arguments: list[str]) -> None:
    """Run the suite under ``setting``; pytest's report goes to ``path`` when it is complete."""
    half = path.with_suffix(".part")
    with processors(setting.threads) as jobs:
        command = ["make", "--no-print-directory", "test", f"JOBS={jobs}"]
        command += [f"TESTS=--junit-xml={shlex.quote(str(half))} {shlex.join(arguments)}"]
        if setting.python != HERE:
            found = interpreter(setting.python)
            command += [f"PYTHON={found}", f"VENV=.cache/python{setting.python}"]
        subprocess.run(command, cwd=ROOT, env=setting.environment(dict(os.environ)))
    if half.exists():
        half.replace(path)


def row(name: str, path: Path) -> tuple[str, ...]:
    """A setting's cells: name, passed, failed, skipped, minutes, failing tests."""
    if not path.exists():
        return name, "-", "-", "-", "-", "did not come to its end"
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    seconds = sum(float(s.get("time", 0)) for s in ElementTree.parse(path).iter("testsuite"))
    passed = len(cases) - len(failed) - len(skipped)
    names = sorted({f"{c.get('classname')}::{c.get('name')}" for c in failed})
    counts = (passed, len(failed), len(skipped))
    return name, *map(str, counts), f"{seconds / 60:.1f}", " ".join(names)


def table(rows: list[tuple[str, ...]]) -> str:
    """The rows under their headings, in columns."""
    rows = [HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in rows)


def main(argv: list[str]) -> int:
    """Run what is not yet known, print the table; 1 if a test failed or a setting did not end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the settings and run none")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="part of a name")
    parser.add_argument("tests", nargs="*", help="handed on to pytest")
    chosen = parser.parse_args(argv)
    others = [python for python in supported() if python != HERE]
    there = [HERE, *filter(interpreter, others)]
    for python in others:
        if python not in there:
            print(f"python{python}: neither on PATH nor among pyenv's; its setting is left out")
    named = [part.lower() for part in chosen.only]
    every = design(there, processor_flags())
    settings = [s for s in every if any(part in s.name for part in named)]
    if not settings:
        parser.error(
            f"--only {' '.join(named)}: no setting among {', '.join(s.name for s in every)}"
        )
    if chosen.list:
        print(*(s.name for s in settings), sep="\n")
        return 0
    folder = ROOT / ".cache" / "matrix" / state(chosen.tests)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{s.name}.xml" for s in settings]
    for number, (setting, path) in enumerate(zip(settings, paths), 1):
        known = " (known; remove its file to run it again)" if path.exists() else ""
        print(f"[matrix {number}/{len(settings)}] {setting.name}{known}", flush=True)
        if not known:
            run(setting, path, chosen.tests)
    rows = [row(setting.name, path) for setting, path in zip(settings, paths)]
    print(table(rows))
    return int(any(cells[2] != "0" for cells in rows))


if __name__ == "__main__":
    if not shutil.which("make"):
        sys.exit("scripts/matrix.py runs `make test`: install make")
    sys.exit(main(sys.argv[1:]))
