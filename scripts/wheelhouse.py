"""Fetch the wheels that a box without network needs beside its own JAX.

    python scripts/wheelhouse.py wheelhouse 3.12 [REQUIREMENT …]

The box (Linux x86-64, glibc 2.28 or newer) is expected to have the packages in BOX; their wheels
are left out, which keeps the folder small (a CUDA build of JAX alone is several GB). Further
requirements, say pyarrow, are fetched when named. What a box lacks, `missing.py` says there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from missing import ROOT, roots
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

BOX = {
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-dtypes", "tensorstore"),
    *("numpy", "scipy", "pandas", "pyarrow", "matplotlib", "seaborn", "pillow", "fonttools"),
    *("contourpy", "kiwisolver", "torch"),
}
# pip matches the number in a manylinux tag exactly, so each one is named
PLATFORMS = [
    *(f"manylinux_2_{n}_x86_64" for n in range(28, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]


def pip(*arguments: str | Path) -> None:
    """Run pip, quietly; a failure ends the program with pip's own message."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    if status := subprocess.call(command):
        sys.exit(status)


def main(folder: Path, python: str, extra: list[str]) -> None:
    """Fill `folder` with wheels for CPython `python` and print what lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    named = {canonicalize_name(Requirement(line).name) for line in extra}
    wanted = [str(r) for r in roots() if canonicalize_name(r.name) not in BOX] + extra
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [part for name in PLATFORMS for part in ("--platform", name)]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        resolve = ["install", "-qq", "--dry-run", "--ignore-installed", "--report", report]
        resolve += ["--target", Path(scratch) / "unused", "-c", ROOT / "constraints.txt"]
        pip(*resolve, *target, *wanted)
        found = {
            canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
            for item in json.loads(report.read_text())["install"]
        }
    pins = [f"{n}=={v}" for n, v in sorted(found.items()) if n not in BOX - named]
    pip("download", "-qq", "--no-deps", "-d", folder, *target, *pins)
    pip("wheel", "-qq", "--no-deps", "-w", folder, ROOT)
    files = list(folder.glob("*.whl"))
    size = sum(f.stat().st_size for f in files) / 2**20
    print(f"{folder}: {len(files)} wheels for Python {python}, {size:.0f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], " ".join(sys.argv[3:]).split())
