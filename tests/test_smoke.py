"""Every study runs live at its smoke profile, from text to verdicts, on any machine.

No trained number is compared: short trainings are chaotic, and differ between processors.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from umup.book import site
from umup.lab import claims, folders, study

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", folders.names())
def test_the_smoke_profile_runs_to_its_verdicts(name: str) -> None:
    folder = ROOT / "experiments" / name
    cells = json.loads(site.smoke(folder, ROOT).read_text(encoding="utf-8"))["cells"]

    made = json.loads("".join(cells[-1]["outputs"][0]["text"]))
    design = study.design_of(name).from_dict(study.parameters(folder, "smoke"))
    assert design.fresh
    runs = pd.DataFrame(made["runs"], columns=["key", "status", "final_loss"])
    assert {p.key() for p in design.points()} == {point["key"] for point in made["points"]}
    if design.trains:
        assert len(runs) and runs["key"].is_unique
        assert design.pending(runs, study.dataset_of(design)) == []
    for run in made["runs"]:
        finite = math.isfinite(run["final_loss"])
        assert (run["status"] == "ok" and finite) or run["status"] == "diverged", run

    (board,) = [c for c in cells if "verdicts" in c["metadata"].get("tags", [])]
    verdicts = "".join(board["outputs"][0]["data"]["text/markdown"])
    rows = verdicts.splitlines()[2:]  # below the heading, in the order of the file
    for claim, row in zip(claims.load(folder / "claims.yaml"), rows, strict=True):
        profile = claim.profile or "smoke"
        statement = claim.statement.format(**claim.args | claim.profiles.get(profile, {}))
        assert row.startswith(f"| {statement} |")
        assert re.search(r"\| (holds|exact|fails|inconclusive|not measured)\b[^|]*\|$", row), row
