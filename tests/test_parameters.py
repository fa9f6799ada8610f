"""Every parameter of a study changes what it asks for: none is accepted and then ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from umup.checked import canonical_json
from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab import folders, study
from umup.lab.design import Design

HOW = {field.name for field in dataclasses.fields(Design)}
"""How a study is run, and on what text."""
SHOWN = {"tolerance"}
"""What a page judges by."""
NAMES = ("bfloat16", "mup", "umup", "plain", "bf16", "fp8_seed", "eager", "mlp", "vit", "h200")
HPS = ("eta_emb", "alpha_emb")


def others(value: Any) -> Iterator[Any]:
    """Other values of a parameter's type, near ones first."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, 2 * value, value - 1, value + 2, value / 2, value + 0.25)
        yield from (value / 4, 4 * value, value + 16, value - 0.25, value // 2)
    elif isinstance(value, tuple):
        yield from (value[:-1], value[1:])
        for new in others(value[-1]) if value else ():
            yield from ((*value[:-1], new), (*value, new))
        yield from ((name,) for name in NAMES)
        yield from ((*value[:-1], name) for name in HPS)
    elif isinstance(value, str):
        yield from NAMES


def asked(design: Design, text: Dataset, play: int = 0) -> set:
    """What is wanted: at once, or until searches end, larger (1) or smaller (−1) being better."""
    points = {canonical_json({"what": p.what, "spec": dict(p.spec)}) for p in design.points()}
    if not design.trains:
        return points
    if not play:
        return points.union(design.runs(text) or design.pending(frame({}), text))
    found: dict[str, float] = {}
    while runs := design.pending(frame(found), text):
        found |= {r.key(): -play * r.hps.eta * r.hps.alpha_attn_softmax for r in runs}
    return points | found.keys()


def frame(losses: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"key": list(losses), "final_loss": list(losses.values())})


def matters(design: Design, field: str, text: Dataset) -> bool:
    for play in (0, 1, -1) if design.trains else (0,):
        base = asked(design, text, play)
        for value in others(getattr(design, field)):
            try:
                changed = dataclasses.replace(design, **{field: value})
                if asked(changed, text, play) != base:
                    return True
            except ConfigError:
                continue
    return False


@pytest.mark.parametrize("name", folders.names())
def test_every_parameter_changes_what_is_asked_for(name: str) -> None:
    text = object.__new__(Dataset)
    for field, value in (("digest", "d"), ("vocab_size", 256)):
        object.__setattr__(text, field, value)
    kind = study.design_of(name)
    # What one profile leaves out, another has: no timed steps at smoke, say.
    designs = [kind.from_dict(study.parameters(name, p)) for p in ("smoke", "cpu", "h100")]
    fields = [f.name for f in dataclasses.fields(kind) if f.name not in HOW | SHOWN]
    assert [f for f in fields if not any(matters(design, f, text) for design in designs)] == []
