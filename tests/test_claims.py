"""Claims: verdicts follow from bounds and intervals, and a claims file is checked."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import yaml

from synthetic import EMPTY, make_runs
from test_records import make_row
from umup.config import NUMERICS
from umup.errors import ClaimError
from umup.lab import claims
from umup.lab.records import Results, Store
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


QUANTITIES = f"""
from pathlib import Path
from umup.lab.folders import code
QUANTITIES = dict(code(Path({str(STUDY)!r})).results.QUANTITIES)
"""


def write(folder: Path, *entries) -> Path:
    """A study that claims what is given, with the quantities of a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.py").write_text(QUANTITIES)
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


def said_of(monkeypatch, tmp_path, measured, **entry):
    """The verdict on a claim whose quantity is ``measured``, bound −0.5 to 0.5."""
    monkeypatch.setitem(claims.quantities(STUDY), "shift", lambda results, **args: measured)
    folder = write(tmp_path / "s", ENTRY | entry)
    monkeypatch.setattr(claims, "quantities", lambda study: {"shift": lambda r, **a: measured})
    return claims.evaluate(folder, make_runs())[0]


@pytest.mark.parametrize(
    ("measured", "verdict", "note"),
    [
        (Interval.exact(0.1), "exact", ""),
        (Interval.exact(0.6), "fails", ""),
        (Interval.once(0.1), "holds", "measured once"),
        (Interval(0.0, -0.2, 0.2), "holds", ""),
        (Interval(0.2, -0.1, 0.45), "holds", "close"),
        (Interval(0.9, 0.51, 1.3), "fails", "close"),
        (Interval(math.inf, math.inf, math.inf), "fails", ""),
    ],
)
def test_exact_close_and_once_are_told_apart(monkeypatch, tmp_path, measured, verdict, note):
    v = said_of(monkeypatch, tmp_path, measured)
    assert v.verdict == verdict and v.note.startswith(note) and bool(v.note) == bool(note)


def test_evidence_and_statement_come_from_the_measurement_and_the_arguments(monkeypatch, tmp_path):
    entry = {"statement": "Over {factor}× {scheme} stays.", "args": {"scheme": "umup", "factor": 8}}
    v = said_of(monkeypatch, tmp_path, Interval(0.1, 0.0, 0.2, 3, "width 64"), **entry)
    assert (v.statement, v.n, claims.evidence(v)) == (
        "Over 8× umup stays.",
        3,
        "3 seeds, width 64",
    )
    v = said_of(monkeypatch, tmp_path, Interval(0.1, 0.0, 0.2), **entry)
    assert claims.evidence(v) == "u-μP, over 8×"


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


def test_a_claim_that_names_a_profile_is_judged_by_its_records_alone(tmp_path):
    own = ENTRY | {"id": "b", "profile": "text", "profiles": {"text": {"factor": 2}}}
    folder = write(tmp_path / "one", ENTRY, own)
    runs = make_runs()
    narrow = Results(runs[runs.d_model < 128].assign(profile="text"), EMPTY.points)
    first, second = claims.evaluate(folder, runs, "cpu")
    assert (first.profile, first.verdict) == ("cpu", "holds")
    assert (second.profile, second.verdict, second.note) == ("text", "not measured", "no records")
    _, second = claims.evaluate(folder, runs, "cpu", {"text": narrow})
    assert (second.profile, second.verdict) == ("text", "holds")

    def rows(table, profile):
        return [
            make_row(f"{profile}{i}") | row | {"profile": profile, "study": "one"}
            for i, row in enumerate(table.to_dict("records"))
        ]

    umup = runs[runs.scheme == "umup"]
    Store(folder / "records" / "cpu").append(rows(umup, "cpu"))
    assert [v.profile for v in claims.board(tmp_path)] == ["cpu", ""]
    Store(folder / "records" / "text").append(rows(umup[umup.d_model < 128], "text"))
    first, second = claims.board(tmp_path)
    assert (first.profile, second.profile, second.verdict) == ("cpu", "text", "holds")


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
    known = claims.quantities(STUDY)
    monkeypatch.setitem(known, "largest_shift", lambda results, **args: nothing)
    verdicts = {v.id: v for v in claims.evaluate(STUDY, make_runs())}
    shifts = [v for v in verdicts.values() if v.quantity == "largest_shift"]
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
        ({"profile": ""}, "profile: .*a text"),
        ({"unit": 3}, "unit"),
        ({"verdict": "holds"}, "verdict"),
        ({"statement": "After {stpes} steps."}, "statement: .*stpes.*scheme"),
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


def test_a_study_without_results_has_no_quantities(tmp_path):
    folder = write(tmp_path / "s", ENTRY)
    (folder / "results.py").unlink()
    with pytest.raises(ClaimError, match="quantity: received 'shift'"):
        claims.load(folder / "claims.yaml")


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
    listed = yaml.safe_load((STUDY / "claims.yaml").read_text())
    assert len(claims.evaluate("lr_transfer", make_runs())) == len(listed)


def test_numbers_are_rounded_and_signed_for_reading():
    shown = [decimals(x) for x in (-0.004, 0.0, -1.234, math.inf, -math.inf, math.nan)]
    assert shown == ["0.00", "0.00", "−1.23", "∞", "−∞", "–"]


def test_table_reads_well(tmp_path):
    one_sided = ENTRY | {"id": "b", "bound": {"max": 0.01}, "unit": "nats"}
    folder = write(tmp_path / "s", ENTRY, one_sided)
    measured = claims.format_table(claims.evaluate(folder, make_runs(noise=0, spread=0)))
    head, rule, first, second = measured.splitlines()
    seen = "3 seeds, u-μP, widths 32 to 256, 2000 steps"
    octaves = "0.15 [0.15, 0.15] octaves | −0.5 to 0.5 octaves | holds |"
    assert first == f"| It transfers. | {seen} | {octaves}"
    nats = "0.150 [0.150, 0.150] nats | at most 0.01 nats | fails |"
    assert second == f"| It transfers. | {seen} | {nats}"
    assert [claims.format_value(0.1234, u, 1) for u in ("octaves", "nats")] == ["0.1", "0.12"]
    missing = claims.format_table(claims.evaluate(folder, make_runs().iloc[:0])).splitlines()
    assert missing[2].endswith("| – | −0.5 to 0.5 octaves | not measured (no records) |")
    assert head.count("|") == rule.count("|") == first.count("|")
