"""pip, resolving for another CPython on Linux x86-64 than the one that runs it.

pip's own `--python-version` and `--platform` choose the wheels, but environment markers such as
`aiohttp; python_version == "3.12"` are evaluated for the interpreter that runs pip, and so is
Requires-Python where an old pip only resolves. Here both are the target's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pip._vendor.packaging.utils import canonicalize_name

# pip matches the number in a manylinux tag exactly, so each one is named.
PLATFORMS = [
    *(f"manylinux_2_{n}_x86_64" for n in range(28, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]
# A marker holds where it holds in any of the given environments; Requires-Python, in the last.
PIP = """\
import json, runpy, sys
from pip._internal.resolution.resolvelib.candidates import RequiresPythonCandidate
from pip._vendor.packaging.markers import Marker

environments = json.loads(sys.argv.pop(1))
version = tuple(map(int, environments[-1]["python_full_version"].split(".")))
evaluate, accept = Marker.evaluate, RequiresPythonCandidate.__init__

def for_target(self, environment=None, *rest, **named):
    extra = environment or {}
    return any(evaluate(self, {**target, **extra}, *rest, **named) for target in environments)

Marker.evaluate = for_target
RequiresPythonCandidate.__init__ = lambda self, py_version_info: accept(self, version)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def environments(python: str) -> list[dict[str, str]]:
    """The values of environment markers on CPython `python`, Linux x86-64.

    A version in two parts, say 3.12, stands for all of its patch releases: the first of them and
    one past the last are returned, since markers compare with `<` and `>=`.

    Raises:
        SystemExit: `python` is not a version of CPython 3 such as 3.12 or 3.12.3.
    """
    if not re.fullmatch(r"3\.\d+(\.\d+)?", python):
        sys.exit(f"PYTHON_VERSION: {python!r} is not a Python version such as 3.12 or 3.12.3")
    minor = ".".join(python.split(".")[:2])
    full = [python] if python != minor else [f"{minor}.0", f"{minor}.99"]
    fixed = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_version": minor,
        "sys_platform": "linux",
    }
    return [{**fixed, "implementation_version": v, "python_full_version": v} for v in full]


def pip(python: str, *arguments: str | Path) -> None:
    """Run pip for CPython `python`, quietly; a failure ends the program with pip's own message."""
    markers = environments(python)
    target = ["--only-binary=:all:", "--implementation", "cp"]
    target += ["--python-version", markers[-1]["python_full_version"]]
    target += [part for name in PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-c", PIP, json.dumps(markers)]
    command += [*map(str, arguments), *target, "-qq", "--disable-pip-version-check"]
    if status := subprocess.call(command):
        sys.exit(status)


def resolved(python: str, *arguments: str | Path) -> dict[str, str]:
    """Versions, by canonical name, that `pip install` would install on a bare CPython `python`."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        dry = ["--dry-run", "--ignore-installed", "--report", report]
        pip(python, "install", *dry, "--target", Path(scratch) / "unused", *arguments)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {canonicalize_name(metadata["name"]): metadata["version"] for metadata in found}
