"""While the house is rebuilt: every page says and draws what it did, from the committed records.

`python tests/test_house.py` writes `tests/golden/house.json` anew, where a text or a figure was
changed on purpose. Both files go when the house stands.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.collections as mcollections
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from studies.test_part_done import Page, play, whole
from umup.lab import folders

GOLDEN = Path(__file__).parent / "golden" / "house.json"


def numbers(values: object) -> str:
    """Numbers to six digits: their last bits are the processor's."""
    return " ".join(f"{v + 0.0:.6g}" for v in np.asarray(values, float).ravel())


def drawn(figure: Figure) -> Iterator[str]:
    """What a figure shows, a line of text for each thing in it."""
    for ax in figure.axes:
        yield f"axes {ax.get_title()!r} {ax.get_xlabel()!r} {ax.get_ylabel()!r} {ax.get_xscale()}"
        if legend := ax.get_legend():
            yield f"legend {[text.get_text() for text in legend.get_texts()]}"
        for text in ax.texts:
            yield f"text {text.get_text()!r} {numbers(text.get_position())}"
        for line in ax.lines:
            style = f"{to_hex(line.get_color())} {line.get_marker()}"
            yield f"line {style} {numbers(line.get_xydata())}"
        for patch in ax.patches:
            shape = patch.get_transform() - ax.transData
            yield f"patch {numbers(shape.transform_path(patch.get_path()).vertices)}"
        for each in ax.collections:
            if isinstance(each, mcollections.LineCollection):
                yield f"segments {[numbers(s) for s in each.get_segments()]}"
            else:
                yield f"collection {numbers(each.get_offsets())}"
                yield from (f"path {numbers(path.vertices)}" for path in each.get_paths())


def digest(texts: object) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:12]  # type: ignore[call-overload]


def summary(page: Page) -> dict[str, object]:
    return {
        "figures": [digest(drawn(figure)) for figure in page.figures],
        "texts": [digest([text]) for text in page.texts],
        "glued": {name: digest([text]) for name, text in page.glued.items()},
        "verdicts": {v.id: f"{v.verdict} {numbers([v.value, v.lo, v.hi])}" for v in page.verdicts},
    }


@pytest.mark.parametrize("name", folders.names())
def test_a_page_is_what_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert summary(play(name, whole(name), monkeypatch)) == before


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        now = {name: summary(play(name, whole(name), patch)) for name in folders.names()}
    GOLDEN.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    sys.exit()
