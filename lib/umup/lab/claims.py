"""Claims: statements with a bound written before the run, and what the records say of them.

`claims.yaml` of a study is a list of

    - id: umup-transfers            # unique in the file
      statement: ...                # one sentence a reader can check; {steps} is that of args
      source: arXiv:2407.17465      # who says so
      quantity: shift               # a name in the QUANTITIES of its results.py
      args: {scheme: umup, factor: 8}
      profiles: {h100: {steps: 8192}}     # optional: args that differ in a profile
      profile: bpe                  # optional: whose records alone judge it
      bound: {min: -0.5, max: 0.5}  # either or both
      unit: octaves
      why: ...                      # the reason for the bound
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from umup import files
from umup.errors import ClaimError
from umup.lab import records, schemas
from umup.lab.absent import NotMeasured
from umup.lab.folders import code
from umup.lab.records import Results, Store
from umup.laws import Interval
from umup.schemes import TITLES as NAMES
from umup.text import decimals, markdown, significant
from umup.yaml_reader import read_yaml_file

PROFILES = ("h100", "cpu")  # best first; a smoke run proves nothing but that the study runs
NO_RECORDS = "no records"
STALE = "only stale records, measured with other numerics"
CLOSE = "close: the bound is less than half the interval's width away"
ONCE = "measured once: no interval"
SIZES = {
    "scheme": lambda value: NAMES.get(value, value),
    "d_model": "width {}".format,
    "depth": "{} layers".format,
    "d_head": "head size {}".format,
    "steps": "{} steps".format,
    "factor": "over {}×".format,
}
"""Argument of a claim → how the board says it, where its quantity does not say more."""


@dataclass(frozen=True)
class Claim:
    """One entry of claims.yaml."""

    id: str
    statement: str
    source: str
    quantity: str
    args: Mapping[str, Any]
    profiles: Mapping[str, Mapping[str, Any]]
    bound_min: float
    bound_max: float
    unit: str
    why: str
    profile: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim beside its measurement.

    Attributes:
        value, lo, hi: the measurement and its 95 % interval, in `unit`; NaN when not measured.
        bound_min, bound_max: infinite where there is no bound.
        verdict: "holds" with the interval inside the bound, "exact" where that interval has no
            width (arithmetic, or a measurement that repeats), "fails" with it outside,
            "inconclusive" with it across an end, else "not measured". note: why, in words; of what
            holds or fails, that less than half the interval's width parts it from the bound.
        n: seeds behind it, 0 where they are not counted. where: what it was measured on.
    """

    id: str
    statement: str
    source: str
    quantity: str
    value: float
    lo: float
    hi: float
    bound_min: float
    bound_max: float
    unit: str
    verdict: str
    note: str
    study: str
    profile: str
    n: int = 0
    where: str = ""


def quantities(study: str | Path) -> dict[str, Callable[..., Interval]]:
    """What the claims of a study may name: the ``QUANTITIES`` of its ``results.py``, by name.

    Each takes ``records.Results`` first.
    """
    results = code(study).find("results")
    return getattr(results, "QUANTITIES", {})


def load(path: str | Path) -> list[Claim]:
    """Read and check a claims file.

    Raises:
        ClaimError: names the entry and the field that is missing, unknown or malformed.
    """
    path = Path(path)
    entries = read_yaml_file(path, ClaimError)
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ClaimError(str(path), type(entries).__name__, "a YAML list of mappings")
    known = quantities(path.parent)
    claims = [_parse(f"{path.name}[{i}]", entry, known) for i, entry in enumerate(entries)]
    ids = [claim.id for claim in claims]
    if twice := [i for i in ids if ids.count(i) > 1]:
        raise ClaimError(f"{path.name}: id", twice[0], "an id of its own for every claim")
    return claims


def bound(study: str, claim: str) -> float:
    """The upper bound of a claim of a study, which its figures draw."""
    path = _folder(study) / "claims.yaml"
    return _bounds(path, path.stat().st_mtime_ns)[claim]


@functools.lru_cache  # figures ask for one bound after the other
def _bounds(path: Path, changed: int) -> dict[str, float]:
    return {claim.id: claim.bound_max for claim in load(path)}


_TEXTS = ("id", "statement", "source", "quantity", "unit", "why")


def _parse(
    place: str, entry: Mapping[str, Any], known: Mapping[str, Callable[..., Interval]]
) -> Claim:
    place = f"{place} ({entry['id']})" if isinstance(entry.get("id"), str) else place
    allowed = {*_TEXTS, "args", "profiles", "profile", "bound"}
    for name in sorted({*_TEXTS, "bound"} - set(entry)):
        raise ClaimError(f"{place}: {name}", None, "every claim has it")
    for name in sorted(set(entry) - allowed, key=str):
        raise ClaimError(f"{place}: {name}", entry[name], f"only {', '.join(sorted(allowed))}")
    for name in (*_TEXTS, *(["profile"] if "profile" in entry else [])):
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise ClaimError(f"{place}: {name}", entry[name], "a text")
    if entry["quantity"] not in known:
        allowed_names = f"one of {', '.join(known)}"
        raise ClaimError(f"{place}: quantity", entry["quantity"], allowed_names)
    args, profiles = entry.get("args", {}), entry.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(v, dict) for v in profiles.values()):
        raise ClaimError(f"{place}: profiles", profiles, "profile → mapping of args")
    for name, given in {"args": args, **{f"profiles.{p}": a for p, a in profiles.items()}}.items():
        if not isinstance(given, dict):
            raise ClaimError(f"{place}: {name}", given, "a mapping of arguments")
        signature = inspect.signature(known[entry["quantity"]])
        try:
            signature.bind(None, **{**args, **given})
        except TypeError as error:
            raise ClaimError(f"{place}: {name}", given, f"{signature} ({error})") from error
        try:
            entry["statement"].format(**{**args, **given})
        except (KeyError, ValueError, IndexError) as error:
            allowed_names = f"fields of args ({', '.join(args)})"
            raise ClaimError(f"{place}: statement", entry["statement"], allowed_names) from error
    return Claim(
        args=args,
        profiles=profiles,
        profile=entry.get("profile", ""),
        **_bound(place, entry["bound"]),
        **{n: entry[n] for n in _TEXTS},
    )


def _bound(place: str, bound: Any) -> dict[str, float]:
    if not isinstance(bound, dict) or not bound or not set(bound) <= {"min", "max"}:
        raise ClaimError(f"{place}: bound", bound, "min, max or both")
    for value in bound.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ClaimError(f"{place}: bound", value, "a number")
    lo, hi = float(bound.get("min", -math.inf)), float(bound.get("max", math.inf))
    if lo > hi:
        raise ClaimError(f"{place}: bound", bound, "min not above max")
    return {"bound_min": lo, "bound_max": hi}


def judge(measured: Interval, bound_min: float, bound_max: float) -> str:
    """Where an interval lies against a bound: "holds", "exact", "fails" or "inconclusive"."""
    if bound_min <= measured.lo and measured.hi <= bound_max:
        sure = measured.lo == measured.hi and math.isfinite(measured.value) and measured.n != 1
        return "exact" if sure else "holds"
    return "fails" if measured.hi < bound_min or measured.lo > bound_max else "inconclusive"


def close(measured: Interval, bound_min: float, bound_max: float) -> bool:
    """Whether a bound lies within half the interval's width of the interval.

    As many seeds again may then change the verdict.
    """
    if not (math.isfinite(measured.lo) and math.isfinite(measured.hi)):
        return False
    half = (measured.hi - measured.lo) / 2
    return any(
        math.isfinite(bound) and 0 < min(abs(measured.lo - bound), abs(measured.hi - bound)) < half
        for bound in (bound_min, bound_max)
    )


def evaluate(
    study: str | Path,
    results: Results | pd.DataFrame,
    profile: str | None = None,
    beside: Mapping[str, Results] | None = None,
) -> list[Verdict]:
    """The verdict on every claim of a study from its records.

    Args:
        study: the study's folder, or its name (looked for in `experiments/` above the working
            directory, then beside the package).
        results: of one profile: all its records, or the runs alone; stale rows are left out.
        profile: what to report and whose arguments to use; that of the records by default.
        beside: other profile → its records, which judge the claims that name it.

    Raises:
        ClaimError: the claims file is absent or malformed.
    """
    folder = _folder(study)
    if not isinstance(results, Results):
        results = Results(results, pd.DataFrame(columns=list(schemas.POINTS.columns)))
    if profile is None:
        some = results.runs if len(results.runs) else results.points
        profile = str(some["profile"].iloc[0]) if len(some) else ""
    known = {name: _current(one) for name, one in {**(beside or {}), profile: results}.items()}
    return [
        _verdict(claim, known.get(name, NO_RECORDS), folder, name)
        for claim in load(folder / "claims.yaml")
        for name in [claim.profile or profile]
    ]


def _current(results: Results) -> Results | str:
    """The rows of the present numerics, or why there are none.

    A frame that is current stays the same object, so that what is ``remembered`` of it serves.
    """
    if results.runs.empty and results.points.empty:
        return NO_RECORDS
    stale = [len(t) > 0 and len(records.stale(t)) > 0 for t in results]
    found = Results(*(records.current(t) if s else t for t, s in zip(results, stale, strict=True)))
    if found.runs.empty and found.points.empty:
        return STALE
    return found


def _folder(study: str | Path) -> Path:
    for root in (Path(), *(base / "experiments" for base in files.bases())):
        if (root / study / "claims.yaml").is_file():
            return (root / study).resolve()
    raise ClaimError("study", str(study), "a study with a claims.yaml, or the path of its folder")


def _verdict(claim: Claim, known: Results | str, study: Path, profile: str) -> Verdict:
    """The verdict from current records, or from a sentence that says why there are none."""
    args = {**claim.args, **claim.profiles.get(profile, {})}
    empty = Verdict(
        claim.id,
        claim.statement.format(**args),
        claim.source,
        claim.quantity,
        math.nan,
        math.nan,
        math.nan,
        claim.bound_min,
        claim.bound_max,
        claim.unit,
        "not measured",
        "",
        study.name,
        profile,
    )
    if isinstance(known, str):
        return replace(empty, note=known)
    try:
        m = quantities(study)[claim.quantity](known, **args)
        if math.isnan(m.value):
            raise NotMeasured("the runs that it needs are missing or diverged")
    except NotMeasured as missing:
        return replace(empty, note=str(missing))
    verdict = judge(m, claim.bound_min, claim.bound_max)
    note = ""
    if verdict == "inconclusive":
        bounded = math.isfinite(m.lo) and math.isfinite(m.hi)
        note = "the interval crosses the bound" if bounded else "the runs do not bound it"
    elif m.n == 1 and m.lo == m.hi:
        note = ONCE
    elif close(m, claim.bound_min, claim.bound_max):
        note = CLOSE
    values = {"value": float(m.value), "lo": float(m.lo), "hi": float(m.hi), "n": m.n}
    where = m.where or ", ".join(say(args[name]) for name, say in SIZES.items() if name in args)
    return replace(empty, **values, verdict=verdict, note=note, where=where)


def board(experiments: str | Path) -> list[Verdict]:
    """Verdicts on all claims of all studies, from their committed records.

    A claim is judged in the best profile that measured it (h100 before cpu; never smoke), or in the
    one that it names, from `NAME/records/PROFILE`.
    """
    verdicts = []
    for path in sorted(Path(experiments).glob("*/claims.yaml")):
        claims = load(path)
        named = {claim.profile for claim in claims} - {""}
        found = {p: _read(Store(path.parent / "records" / p)) for p in {*PROFILES, *named}}
        for claim in claims:
            profiles = (claim.profile,) if claim.profile else PROFILES
            tried = [_verdict(claim, found[p], path.parent, p) for p in profiles]
            known = [v for v in tried if v.verdict != "not measured"]
            tried.sort(key=lambda v: (v.note == NO_RECORDS, v.note == STALE))  # why, not "stale"
            best = tried[0] if tried[0].note != NO_RECORDS else replace(tried[0], profile="")
            verdicts.append(known[0] if known else best)
    return verdicts


def _read(store: Store) -> Results | str:
    return _current(Results(store.read(), store.points.read()))


def format_value(value: float, unit: str, digits: int = 2) -> str:
    """A measurement as pages show it: octaves to `digits` decimals, losses to one more."""
    return decimals(value, digits + unit.startswith("nats"))


def format_table(verdicts: Sequence[Verdict], digits: int = 2) -> str:
    """The verdicts as a Markdown table; measurements as `format_value` rounds them."""
    rows = []
    for v in verdicts:
        value, lo, hi = (format_value(x, v.unit, digits) for x in (v.value, v.lo, v.hi))
        measured = "–" if math.isnan(v.value) else f"{value} [{lo}, {hi}] {v.unit}"
        note = f" ({v.note})" if v.note else ""
        rows.append((v.statement, evidence(v), measured, format_bound(v), f"{v.verdict}{note}"))
    return markdown(("claim", "evidence", "measured [95 %]", "bound", "verdict"), rows)


def evidence(v: Verdict) -> str:
    """What a verdict rests on: "3 seeds, width 256"; a dash where nothing is known."""
    seeds = f"{v.n} seed{'s' * (v.n > 1)}" if v.n else ""
    return ", ".join(part for part in (seeds, v.where) if part) or "–"


def format_bound(v: Verdict) -> str:
    """The bound in words and signs, such as "at most 0.01 nats"."""
    lo, hi = (significant(b, 6) for b in (v.bound_min, v.bound_max))
    if math.isinf(v.bound_min):
        return f"at most {hi} {v.unit}"
    return f"at least {lo} {v.unit}" if math.isinf(v.bound_max) else f"{lo} to {hi} {v.unit}"
