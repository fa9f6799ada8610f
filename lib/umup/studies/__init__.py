"""The code of each study: what it runs, measures, tabulates and draws.

A module ``umup.studies.NAME`` belongs to the notebook ``experiments/NAME``. It has

- ``DESIGN``: the ``design.Design`` that its parameters make,
- ``MEASURES``: name → function from a point's specification to its plain result, if it measures
  other things than training runs,
- ``QUANTITIES``: name → function from ``records.Results`` to an ``Interval``, which its
  ``claims.yaml`` may name.

A study that sweeps learning rates alone needs no module.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def find(name: str) -> ModuleType | None:
    """The module of the study ``name``, or None when it has none."""
    full = f"{__name__}.{name}"
    if not name.isidentifier() or importlib.util.find_spec(full) is None:
        return None
    return importlib.import_module(full)
