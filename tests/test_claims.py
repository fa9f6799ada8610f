"""Claims: verdicts follow from bounds and intervals, and a claims file is checked."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from synthetic import make_runs
from test_records import make_row
from umup.config import NUMERICS
from umup.errors import ClaimError
from umup.lab import claims
from umup.lab.records import Store
from umup.laws import Interval
from umup.text import decimals

HERE = Path(__file__).parent
STUDY = HERE.parent / "experiments" / "lr_transfer"

ENTRY = {
    "id": "a",
    "statement": "It transfers.",
    "source": "someone",
    "quantity": "shift",
    "args": {"scheme": "umup", "factor": 8},
    "bound": {"min": -0.5, "max": 0.5},
    "unit": "octaves",
    "why": "because",
}


def write(folder: Path, *entries) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claims.yaml").write_text(yaml.safe_dump(list(entries), allow_unicode=True))
    return folder


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (-0.5, 0.5, "holds"),
        (0.1, 0.2, "holds"),
        (0.4, 0.6, "inconclusive"),
        (-9.0, 9.0, "inconclusive"),
        (0.51, 0.6, "fails"),
        (-0.6, -0.51, "fails"),
        (-math.inf, 0.0, "inconclusive"),
        (math.inf, math.inf, "fails"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_verdict_follows_from_interval_and_bound(lo, hi, verdict):
    assert claims.judge(Interval(0.0, lo, hi), -0.5, 0.5) == verdict


def test_a_one_sided_bound_leaves_the_other_side_free():
    assert claims.judge(Interval(-9.0, -math.inf, -1.0), -math.inf, -0.5) == "holds"
    assert claims.judge(Interval(9.0, 8.0, math.inf), 0.5, math.inf) == "holds"


def test_the_claims_of_lr_transfer_on_runs_whose_truth_is_known():
    runs = make_runs(steps=(2000,))
    by_id = {v.id: v for v in claims.evaluate(STUDY, runs)}
    expected = {
        "sp-drifts": -1.0,
        "mup-transfers": -0.3,
        "umup-transfers": 0.15,
        "umup-default-vs-mup": -0.03,
        "umup-default-vs-sp": -0.05,
        # a doubling gains 0.05 nats; the last one, 0.2 to 0.3 octaves off, 0.03 · 0.05 less
        "mup-wider-is-better": -0.0485,
        "umup-wider-is-better": -0.0496,
    }
    for name, truth in expected.items():
        v = by_id.pop(name)
        assert v.verdict == "holds", v
        assert v.value == pytest.approx(truth, abs=0.01 if v.unit == "nats" else 0.1)
        assert v.lo <= v.value <= v.hi and (v.study, v.profile) == ("lr_transfer", "cpu")
    assert {v.verdict for v in by_id.values()} == {"not measured"}
    assert len(by_id) == 4 and all("500" in v.note or "8000" in v.note for v in by_id.values())


def test_the_claims_fail_on_runs_that_contradict_them():
    swapped = {"sp": "umup", "umup": "sp", "mup": "mup"}
    runs = make_runs(steps=(500, 2000, 8000))
    runs["scheme"] = runs["scheme"].map(swapped)
    verdicts = {v.id: v.verdict for v in claims.evaluate(STUDY, runs, "cpu")}
    failing = {name for name, verdict in verdicts.items() if verdict == "fails"}
    ours = {f"umup-default-vs-{o}{h}" for o in ("sp", "mup") for h in ("", "-short", "-long")}
    assert failing == {"sp-drifts", "umup-transfers", "umup-wider-is-better"} | ours


def test_smoke_sized_runs_are_not_measured_and_say_why(tmp_path):
    runs = make_runs(widths=(32, 64), seeds=1)
    (v,) = claims.evaluate(write(tmp_path / "s", ENTRY), runs)
    assert v.verdict == "not measured" and math.isnan(v.value)
    assert v.note == "u-μP: widths span 2×, the claim needs 8×"
    (v,) = claims.evaluate(tmp_path / "s", runs.iloc[:0])
    assert (v.verdict, v.note, v.profile) == ("not measured", "no records", "")
    (v,) = claims.evaluate(tmp_path / "s", runs.assign(numerics=NUMERICS - 1))
    assert v.verdict == "not measured" and "stale" in v.note
    (v,) = claims.evaluate(tmp_path / "s", runs[runs.scheme == "sp"])
    assert v.note == "no current u-μP runs"


def test_one_seed_is_inconclusive(tmp_path):
    entry = ENTRY | {"quantity": "default_difference", "args": {"scheme": "umup", "against": "sp"}}
    (v,) = claims.evaluate(write(tmp_path / "s", entry), make_runs(widths=(32,), seeds=1))
    assert (v.verdict, v.note) == ("inconclusive", "the runs do not bound it")
    assert v.value == pytest.approx(-0.05, abs=0.01)


def test_arguments_of_a_profile_override(tmp_path):
    entry = ENTRY | {"args": {"scheme": "umup", "factor": 8, "steps": 9}}
    entry["profiles"] = {"cpu": {"steps": 2000}}
    folder = write(tmp_path / "s", entry)
    assert claims.evaluate(folder, make_runs())[0].verdict == "holds"
    assert claims.evaluate(folder, make_runs(), "h100")[0].verdict == "not measured"


def test_horizon_defaults_to_the_one_with_the_most_widths():
    runs = make_runs(steps=(500, 2000))
    kept = runs[(runs.steps == 500) | (runs.d_model < 128)]
    assert claims.drift(kept, "sp", 8).value == pytest.approx(-1.0, abs=0.05)
    with pytest.raises(claims.NotMeasured, match="span 2×"):
        claims.drift(kept, "sp", 8, 2000)


def test_an_unfinished_sweep_is_no_best_loss():
    runs = make_runs(widths=(32, 64))
    with pytest.raises(claims.NotMeasured, match="span 8×"):
        claims.default_difference(runs, "umup", "sp", factor=8)
    begun = runs[(runs.scheme != "umup") | (runs.lr < 2.0**-1.2)]
    with pytest.raises(claims.NotMeasured, match="u-μP at width 64: lowest at the largest"):
        claims.default_difference(begun, "umup", "sp")
    unstable = make_runs(widths=(32,), diverge_above=-0.2)  # SP's best is just below divergence
    assert math.isfinite(claims.default_difference(unstable, "umup", "sp").lo)


def test_divergence_at_the_transferred_rate_fails():
    runs = make_runs()
    at = (runs.scheme == "mup") & (runs.d_model == 256) & (abs(np.log2(runs.lr) + 7) < 0.6)
    runs.loc[at, ["status", "final_loss"]] = ["diverged", np.nan]
    assert claims.wider_minus_narrower(runs, "mup").lo == math.inf


def test_wider_minus_narrower_takes_the_worst_step():
    runs = make_runs(noise=0)
    runs.loc[(runs.scheme == "umup") & (runs.d_model == 128), "final_loss"] += 0.2
    rise = claims.wider_minus_narrower(runs, "umup")
    # from 64 to 128: -0.05 + 0.2, and 0.03 · (0.1² - 0.05²) for the drifted optimum
    assert rise.value == pytest.approx(0.15 + 0.03 * 0.0075) and rise.lo == pytest.approx(rise.hi)


def test_board_takes_the_best_profile_that_measured_a_claim_and_never_smoke(tmp_path):
    study = write(tmp_path / "one", ENTRY)
    verdicts = claims.board(tmp_path)
    assert [(v.verdict, v.note, v.profile) for v in verdicts] == [
        ("not measured", "no records", "")
    ]

    def save(profile, runs):
        rows = [
            make_row(f"{profile}{i}") | row | {"profile": profile, "study": "one"}
            for i, row in enumerate(runs.to_dict("records"))
        ]
        Store(study / "records" / profile).append(rows)

    runs = make_runs()
    runs = runs[runs.scheme == "umup"]
    save("smoke", runs)
    assert claims.board(tmp_path)[0].verdict == "not measured"
    save("h100", runs[runs.d_model < 128])
    (v,) = claims.board(tmp_path)
    assert (v.verdict, v.profile) == ("not measured", "h100") and "span 2×" in v.note
    save("cpu", runs)
    (v,) = claims.board(tmp_path)
    assert (v.verdict, v.profile, v.study) == ("holds", "cpu", "one")
    shutil.rmtree(study / "records" / "h100")
    save("h100", runs)
    assert claims.board(tmp_path)[0].profile == "h100"


def test_board_says_why_current_records_do_not_do_rather_than_that_others_are_stale(tmp_path):
    study = write(tmp_path / "one", ENTRY)
    rows = {"cpu": make_row("a"), "h100": make_row("b", numerics=NUMERICS - 1)}
    for profile, row in rows.items():
        Store(study / "records" / profile).append([row | {"profile": profile, "study": "one"}])
    (v,) = claims.board(tmp_path)
    assert (v.verdict, v.profile) == ("not measured", "cpu") and "span 1×" in v.note
    shutil.rmtree(study / "records" / "cpu")
    (v,) = claims.board(tmp_path)
    assert (v.verdict, v.profile) == ("not measured", "h100") and "stale" in v.note


def test_a_quantity_of_diverged_runs_alone_is_not_measured(monkeypatch):
    nothing = Interval(math.nan, -math.inf, math.inf)
    monkeypatch.setitem(claims.QUANTITIES, "shift", lambda runs, **args: nothing)
    verdicts = {v.id: v for v in claims.evaluate(STUDY, make_runs())}
    shifts = [v for v in verdicts.values() if v.quantity == "shift"]
    assert shifts and {v.verdict for v in shifts} == {"not measured"}
    assert all("missing or diverged" in v.note for v in shifts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantity": "luck"}, r"quantity: .*'luck'.*one of drift"),
        ({"args": {"scheme": "umup"}}, "args: .*factor"),
        ({"args": {"scheme": "umup", "factor": 8, "widht": 3}}, "args: .*widht"),
        ({"args": 3}, "args"),
        ({"profiles": {"h100": {"widht": 3}}}, r"profiles\.h100: .*widht"),
        ({"profiles": [1]}, "profiles"),
        ({"bound": {}}, "bound"),
        ({"bound": {"max": "0.5"}}, "bound"),
        ({"bound": {"max": True}}, "bound"),
        ({"bound": {"max": math.nan}}, "bound"),
        ({"bound": {"most": 1}}, "bound"),
        ({"bound": {"min": 1, "max": 0}}, "bound: .*min not above max"),
        ({"why": " "}, "why"),
        ({"unit": 3}, "unit"),
        ({"verdict": "holds"}, "verdict"),
    ],
)
def test_a_malformed_claim_is_named(tmp_path, change, said):
    folder = write(tmp_path / "s", ENTRY, ENTRY | {"id": "b"} | change)
    with pytest.raises(ClaimError, match=rf"claims\.yaml\[1\] \(b\): {said}"):
        claims.load(folder / "claims.yaml")


@pytest.mark.parametrize("name", sorted(set(ENTRY) - {"args", "id"}))
def test_a_missing_field_is_named(tmp_path, name):
    entry = {k: v for k, v in ENTRY.items() if k != name}
    with pytest.raises(ClaimError, match=rf"\(a\): {name}"):
        claims.load(write(tmp_path / "s", entry) / "claims.yaml")


@pytest.mark.parametrize("text", ["[", "a: 1", "- 1", ""])
def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path, text):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ClaimError, match=r"claims\.yaml"):
        claims.load(path)


def test_ids_are_unique_and_studies_exist(tmp_path):
    with pytest.raises(ClaimError, match="id of its own"):
        claims.load(write(tmp_path / "s", ENTRY, ENTRY) / "claims.yaml")
    with pytest.raises(ClaimError, match="study: received 'absent'"):
        claims.evaluate("absent", make_runs())


def test_a_study_is_found_by_name_from_its_own_folder(tmp_path, monkeypatch):
    write(tmp_path / "experiments" / "mine", ENTRY)
    (tmp_path / "experiments" / "mine" / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "experiments" / "mine" / "deeper")
    assert claims.evaluate("mine", make_runs())[0].id == "a"
    monkeypatch.chdir(tmp_path.parent)
    assert len(claims.evaluate("lr_transfer", make_runs())) == len(yaml.safe_load(
        (STUDY / "claims.yaml").read_text()))  # fmt: skip


def test_numbers_are_rounded_and_signed_for_reading():
    shown = [decimals(x) for x in (-0.004, 0.0, -1.234, math.inf, -math.inf, math.nan)]
    assert shown == ["0.00", "0.00", "−1.23", "∞", "−∞", "–"]


def test_table_reads_well(tmp_path):
    one_sided = ENTRY | {"id": "b", "bound": {"max": 0.01}, "unit": "nats"}
    folder = write(tmp_path / "s", ENTRY, one_sided)
    measured = claims.format_table(claims.evaluate(folder, make_runs(noise=0, spread=0)))
    head, rule, first, second = measured.splitlines()
    assert first == "| It transfers. | 0.15 [0.15, 0.15] octaves | −0.5 to 0.5 octaves | holds |"
    assert second == "| It transfers. | 0.150 [0.150, 0.150] nats | at most 0.01 nats | fails |"
    assert [claims.format_value(0.1234, u, 1) for u in ("octaves", "nats")] == ["0.1", "0.12"]
    missing = claims.format_table(claims.evaluate(folder, make_runs().iloc[:0])).splitlines()
    assert missing[2].endswith("| – | −0.5 to 0.5 octaves | not measured (no records) |")
    assert head.count("|") == rule.count("|") == first.count("|")
