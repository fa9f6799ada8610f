"""Fetch the wheels that a box without network needs beside its own JAX.

    python scripts/wheelhouse.py wheelhouse 3.12 [REQUIREMENT …]

The box (Linux x86-64, glibc 2.28 or newer) is expected to have the packages in BOX; their wheels
are left out, which keeps the folder small (a CUDA build of JAX alone is several GB). Further
requirements, say pyarrow, are fetched when named. What a box lacks, `missing.py` says there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from missing import ROOT, roots
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
from target import pip, resolved

BOX = {
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-dtypes", "tensorstore"),
    *("numpy", "scipy", "pandas", "pyarrow", "matplotlib", "seaborn", "pillow", "fonttools"),
    *("contourpy", "kiwisolver", "torch"),
}


def main(folder: Path, python: str, extra: list[str]) -> None:
    """Fill `folder` with wheels for CPython `python` and print what lies there."""
    named = {canonicalize_name(Requirement(line).name) for line in extra}
    wanted = [str(r) for r in roots() if canonicalize_name(r.name) not in BOX] + extra
    found = resolved(python, "-c", ROOT / "constraints.txt", *wanted)
    pins = [
        f"{name}=={version}" for name, version in sorted(found.items()) if name not in BOX - named
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pip(python, "download", "--no-deps", "-d", folder, *pins)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-qq",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    subprocess.run([*build, "-w", folder, ROOT], check=True)
    files = list(folder.glob("*.whl"))
    size = sum(f.stat().st_size for f in files) / 2**20
    print(f"{folder}: {len(files)} wheels for Python {python}, {size:.0f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], " ".join(sys.argv[3:]).split())
