"""Write constraints.txt: every version, transitive ones too, of umup with all its extras.

    python scripts/constraints.py

pip resolves in a scratch environment's stead (--dry-run --ignore-installed), on the oldest Python
that umup supports. NVIDIA's libraries are left out: jax and torch each pin their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from pip._vendor.packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Every version of umup's requirements, extras included, as tested together.
# Written by `make constraints`; ranges are in pyproject.toml.
"""


def main(*pip_arguments: str) -> None:
    """Resolve and write; `pip_arguments`, say `-c old.txt`, are handed on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ",".join(project["optional-dependencies"])
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), *pip_arguments, f"{ROOT}[{extras}]"]
        subprocess.run(command, check=True)
        found = [i["metadata"] for i in json.loads(report.read_text())["install"]]
    pins = {m["name"].lower().replace("_", "-"): Version(m["version"]).public for m in found}
    lines = [
        f"{name}=={version}\n"
        for name, version in sorted(pins.items())
        if name != "umup" and not name.startswith("nvidia-")
    ]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines), encoding="utf-8")
    print(f"constraints.txt: {len(lines)} versions")


if __name__ == "__main__":
    main(*sys.argv[1:])
