"""The studies' folders and code, found by path.

A study is a folder in ``experiments``, named after its question. Beside ``study.ipynb``, its source
``study.py``, ``claims.yaml``, the parameter files and the records, it contains its code:

- ``design.py``: ``DESIGN``, the class of its parameters, a ``design.Design``,
- ``measures.py``: ``MEASURES``, name → function from a point's specification to its plain result,
  if it measures anything besides training runs,
- ``results.py``: tables of the records, and ``QUANTITIES``, a ``quantities.Quantities`` of what
  its ``claims.yaml`` may name,
- ``figures.py`` and ``words.py``: what its page shows and says.

Nothing is installed or listed, so that a copied folder runs wherever umup is installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from umup import files
from umup.errors import StudyError
from umup.text import did_you_mean


def experiments_folder() -> Path:
    """The folder ``experiments`` in the current folder or one above it, else in the checkout.

    Raises:
        StudyError: there is none.
    """
    for base in files.bases():
        if (base / "experiments").is_dir():
            return base / "experiments"
    raise StudyError("experiments", str(Path.cwd()), "a folder inside a checkout of umup")


def names() -> list[str]:
    """All studies, by name."""
    return sorted(path.parent.name for path in experiments_folder().glob("*/study.ipynb"))


def folder(study: str | Path) -> Path:
    """The study's folder; a path is used unchanged.

    Raises:
        StudyError: there is no such study.
    """
    if isinstance(study, Path):
        return study
    path = experiments_folder() / study
    if not (path / "study.ipynb").exists() and not (path / "study.py").exists():
        raise StudyError("study", study, choices(study, names()))
    return path


def choices(received: object, options: list[str]) -> str:
    """What is allowed, for an error: the options, and the one with the nearest spelling."""
    return f"one of {', '.join(options)}{did_you_mean(str(received), options)}"


class Code(ModuleType):
    """A study's folder as a package; its modules are attributes, imported when first used."""

    def __getattr__(self, name: str) -> ModuleType:
        found = self.find(name)
        if found is None:
            raise AttributeError(f"{self.__path__[0]} has no {name}.py", name=name)
        return found

    def find(self, name: str) -> ModuleType | None:
        """The module ``name``, or None if the folder has no such file."""
        if name.startswith("_") or not (Path(self.__path__[0]) / f"{name}.py").is_file():
            return None
        return importlib.import_module(f"{self.__name__}.{name}")


def code(study: str | Path) -> Code:
    """The code of a study: ``code("schedules").figures`` is ``experiments/schedules/figures.py``.

    Its modules import one another relatively (``from .results import …``). Two folders of one name
    are two packages.

    Raises:
        StudyError: there is no such study.
    """
    home = folder(study).resolve()
    place = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    package = f"umup_study_{home.name}_{place}"
    if package not in sys.modules:
        module = Code(package)
        module.__spec__ = ModuleSpec(package, None, is_package=True)
        module.__path__ = module.__spec__.submodule_search_locations = [str(home)]
        sys.modules[package] = module
    return sys.modules[package]  # type: ignore[return-value]
