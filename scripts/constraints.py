"""Write constraints.txt: every version, transitive ones too, of umup with all its extras.

    python scripts/constraints.py

pip resolves for each Python that pyproject.toml names, and what differs is marked with the Pythons
that it is for. NVIDIA's libraries are left out: jax and torch each pin their own.
"""

from __future__ import annotations

import sys
import tomllib

from matrix import ROOT, supported
from pip._vendor.packaging.version import Version
from target import resolved

NVIDIA = ("nvidia-", "cuda-", "triton")
HEAD = """\
# Every version of umup's requirements, extras included, as tested together on each Python.
# Written by `make constraints`; ranges are in pyproject.toml.
"""


def lines(found: dict[str, dict[str, str]]) -> list[str]:
    """Constraints, sorted, out of the versions by name that each Python, in order, resolved to.

    A Python that does not need a package has no say in its version.
    """
    pins = []
    for name in sorted(set().union(*found.values())):
        asked = [python for python in found if name in found[python]]
        changes = [
            (python, found[python][name])
            for before, python in zip([None, *asked], asked)
            if before is None or found[before][name] != found[python][name]
        ]
        for i, (since, version) in enumerate(changes):
            bounds = [f'python_version >= "{since}"'] if i else []
            bounds += [f'python_version < "{until}"' for until, _ in changes[i + 1 : i + 2]]
            pins.append(f"{name}=={version}" + (f"; {' and '.join(bounds)}" if bounds else ""))
    return pins


def main(*pip_arguments: str) -> None:
    """Resolve and write; `pip_arguments`, say `-c old.txt`, are passed on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    pythons = supported()
    found = {
        python: {
            name: Version(version).public
            for name, version in resolved(python, *pip_arguments, *wanted).items()
            if not name.startswith(NVIDIA)
        }
        for python in pythons
    }
    pins = lines(found)
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(pins)} versions for Python {', '.join(pythons)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
