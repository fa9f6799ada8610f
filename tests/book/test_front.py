"""The front page: findings follow verdicts, and the scale of the evidence is counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from umup.book import front
from umup.errors import BookError
from umup.lab import claims
from umup.lab.claims import Verdict

ROOT = Path(__file__).parents[2]
BOARD = claims.board(ROOT / "experiments")


def verdict(finding: front.Finding, kind: str) -> Verdict:
    (found,) = (v for v in BOARD if f"{v.study}/{v.id}" == finding.claim)
    return replace(found, verdict=kind)


def test_every_finding_rests_on_a_claim_of_the_board() -> None:
    known = {f"{v.study}/{v.id}" for v in BOARD}
    assert {finding.claim for finding in front.FINDINGS} <= known
    shown = front.findings(BOARD)
    assert shown.count("claims.html#") == len(front.FINDINGS)


@pytest.mark.parametrize("finding", front.FINDINGS, ids=lambda finding: finding.topic)
def test_what_is_said_goes_no_further_than_the_verdict(finding: front.Finding) -> None:
    assert front.said(finding, verdict(finding, "holds")) == finding.holds
    assert front.said(finding, verdict(finding, "fails")) == finding.fails
    for kind in ("inconclusive", "not measured"):
        said = front.said(finding, verdict(finding, kind))
        assert said.startswith("Open: ") and finding.holds not in said


def test_an_unknown_claim_is_an_error() -> None:
    with pytest.raises(BookError, match="lr_transfer/sp-drifts"):
        front.findings([v for v in BOARD if v.id != "sp-drifts"])


def test_claims_are_counted_by_verdict() -> None:
    some = [replace(BOARD[0], verdict=kind) for kind in ("holds", "holds", "exact", "fails")]
    said = front.tally(some)
    assert said.startswith("**4 claims**: 2 hold, 1 hold exactly, 1 fail (<a href=")


def record(device: str, hours: float, **changes: object) -> dict[str, object]:
    model = {"d_model": 64, "n_layers": 2, "d_head": 32, "d_ff": 176, "vocab_size": 256}
    row = {"scheme": "mup", "spec": json.dumps({"model": model}), "batch_size": 8, "seq_len": 64}
    row |= {"steps": 1000, "device": device, "device_count": 1, "wall_s": 3600 * hours}
    return row | {"created": "2026-11-20T10:00:00+00:00"} | changes


def test_the_scale_of_the_evidence_is_counted() -> None:
    point = record("cpu", 0.5, scheme=math.nan, spec="{}", created="2026-11-28T09:00:00+00:00")
    runs = pd.DataFrame([record("cpu", 1.0), record("cpu", 1.0, steps=4000), point])
    said = front.scale(runs, {"cpu": 0.1, "h100": 3.0})
    # 2·256·64 + 2·(4·64² + 3·64·176) weights; 8·64·4000 tokens; 2.5 hours at 0.1 dollars
    assert "2 trainings, 1 other measurements; models" in said
    assert "0.1 M parameters and 2.0 M tokens per run" in said
    assert "2 hours and 0.25 dollars" in said and said.endswith("No GPU yet.")
    gpu = pd.concat([runs, pd.DataFrame([record("NVIDIA H100", 1.0)])])
    assert "No GPU" not in front.scale(gpu, {"cpu": 0.1, "h100": 3.0})
    assert "3.25 dollars" in front.scale(gpu, {"cpu": 0.1, "h100": 3.0})
    assert front.updated(runs) == "newest record of 28 November 2026"


def test_without_records_it_says_so() -> None:
    nothing = pd.DataFrame(columns=["scheme"])
    assert "none" in front.scale(nothing, {})
    assert front.updated(nothing) == "no records yet"
