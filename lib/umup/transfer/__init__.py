"""Carrying a learning rate from a small run, the proxy, to a large one, the target.

For every axis in which the two differ, log₂ η moves by the doublings along it times the octaves per
doubling by which studies saw the best η move. Those motions, with their 95 % intervals and the
claims that judge them, are the package's data: `umup.book.motions` writes them from the records.
That motions of several axes add is an assumption; a claim measures it, and what it leaves
unexplained widens the interval.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple, Protocol

from umup.config import HPs, ModelConfig, OptimConfig
from umup.errors import ConfigError
from umup.laws import Interval

AXES: Mapping[str, str] = {
    "width": "width",
    "depth": "depth",
    "seq_len": "sequence length, at equal tokens a step",
    "batch": "batch, in tokens, at equal steps",
    "steps": "steps, with a warm-up in proportion",
    "schedule": "schedule, from cosine to WSD",
}
"""Axis → what pages call it, in the order in which the proxy grows."""

BASED = {"mup": "μP", "completep": "CompleteP"}
"""Schemes whose η counts from a base model, which proxy and target must share."""
BASE = ("base_width", "base_depth", "base_d_head")

FREE = {
    "model": {"d_model", "n_layers", "seq_len", "d_ff", "vocab_size", *BASE}
    | {"unroll", "remat", "attention"},
    "optim": {"steps", "batch_size", "warmup_steps", "decay_steps", "schedule", "accumulate"},
    "hps": {"eta"},
}
"""Fields whose difference is an axis, is judged by its share, or does not change the best η."""
SAME_SHARE = 0.05
"""Relative difference up to which two shares, as of the warm-up, count as one."""


class Run(Protocol):
    """What is asked of a proxy and of a target: `umup.run.runfile.TrainConfig` has it."""

    @property
    def scheme(self) -> str:
        """Its name."""
        ...

    @property
    def model(self) -> ModelConfig:
        """Its shape."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """Its optimizer, batch and schedule."""
        ...

    @property
    def hps(self) -> HPs:
        """Its hyperparameters."""
        ...


@dataclass(frozen=True)
class Motion:
    """How far the best η of a scheme moves along an axis.

    Attributes:
        scheme, axis: of ``AXES``.
        octaves: per doubling, as measured; for ``schedule``, from cosine to WSD.
        doublings: how many were measured; a change of schedule counts as one.
        where: what it was measured on.
        study, claim, verdict: the claim that judges whether the best η stays, "" without one.
    """

    scheme: str
    axis: str
    octaves: Interval
    doublings: float
    where: str
    study: str
    claim: str
    verdict: str


class Term(NamedTuple):
    """What one axis adds.

    Attributes:
        axis: of ``AXES``, or "together" for what the sum of several leaves unexplained.
        doublings: from the proxy to the target; negative where the target is smaller.
        octaves: added to log₂ η; not bounded where nothing is measured.
        beyond: doublings beyond those that were measured.
        motion: what was measured, None where nothing is.
    """

    axis: str
    doublings: float
    octaves: Interval
    beyond: float
    motion: Motion | None


@dataclass(frozen=True)
class Carried:
    """A learning rate for the target.

    Attributes:
        log2_eta: log₂ η with its 95 % interval.
        terms: what each axis adds to the proxy's.
        notes: differences between proxy and target along which nothing is measured.
    """

    log2_eta: Interval
    terms: tuple[Term, ...]
    notes: tuple[str, ...]


@cache
def motions() -> Mapping[tuple[str, str], Motion]:
    """(scheme, axis) → its motion; the axis "together" is what a sum leaves unexplained."""
    text = resources.files(__name__).joinpath("motions.toml").read_text(encoding="utf-8")
    found = {}
    for row in tomllib.loads(text)["motion"]:
        value, lo, hi = (float(row.pop(end)) for end in ("octaves", "lo", "hi"))
        found[row["scheme"], row["axis"]] = Motion(octaves=Interval(value, lo, hi), **row)
    return found


def motion(scheme: str, axis: str) -> Motion | None:
    """What was measured of a scheme along an axis; CompleteP is μP but over depth."""
    known = motions()
    same = scheme == "completep" and axis != "depth"
    return known.get((scheme, axis)) or (known.get(("mup", axis)) if same else None)


def sizes(run: Run) -> dict[str, float]:
    """Axis → the run's size along it; the batch is in tokens."""
    model, optim = run.model, run.optim
    return {
        "width": model.d_model,
        "depth": model.n_layers,
        "seq_len": model.seq_len,
        "batch": optim.batch_size * model.seq_len,
        "steps": optim.steps,
    }


def carry(eta: Interval, proxy: Run, target: Run) -> Carried:
    """The target's log₂ η from the proxy's.

    Errors of different axes are of different runs: half-widths add in squares.

    Args:
        eta: log₂ of the proxy's best η, with its interval.
        proxy: the run on which it was found. target: the run that it is wanted for.

    Raises:
        ConfigError: the two differ in scheme or base model, the scheme has no motions, or a run
            moves η by a rule of its own.
    """
    _check(proxy, target)
    small, large = sizes(proxy), sizes(target)
    grown = {axis: math.log2(large[axis] / small[axis]) for axis in small}
    grown["schedule"] = _to_wsd(target.optim) - _to_wsd(proxy.optim)
    terms = [term(proxy.scheme, axis, n) for axis, n in grown.items() if n]
    if len(terms) > 1 and (left := motion(proxy.scheme, "together")):
        most = max(abs(left.octaves.lo), abs(left.octaves.hi))
        terms.append(Term("together", 0.0, Interval(0.0, -most, most), 0.0, left))
    found = eta
    for each in terms:
        found = found.plus(each.octaves)
    return Carried(found, tuple(terms), tuple(notes(proxy, target)))


def term(scheme: str, axis: str, doublings: float) -> Term:
    """What so many doublings along an axis add to log₂ η."""
    measured = motion(scheme, axis)
    if measured is None:
        return Term(axis, doublings, Interval(0.0, -math.inf, math.inf), abs(doublings), None)
    octaves = measured.octaves.scaled(abs(doublings))
    if doublings < 0:
        octaves = Interval(-octaves.value, -octaves.hi, -octaves.lo)
    return Term(axis, doublings, octaves, max(0.0, abs(doublings) - measured.doublings), measured)


def _to_wsd(optim: OptimConfig) -> int:
    return int(optim.schedule.startswith("wsd"))


def _check(proxy: Run, target: Run) -> None:
    if proxy.scheme != target.scheme:
        raise ConfigError("scheme", target.scheme, f"{proxy.scheme}, the proxy's")
    schemes = {scheme for scheme, axis in motions() if axis == "width"} | {"completep"}
    if proxy.scheme not in schemes:
        allowed = f"{' | '.join(sorted(schemes))}, whose motions are measured"
        raise ConfigError("scheme", proxy.scheme, allowed)
    if proxy.scheme in BASED:
        for name in BASE:
            ours, theirs = getattr(proxy.model, name), getattr(target.model, name)
            if ours != theirs:
                allowed = f"{ours}, the proxy's: {BASED[proxy.scheme]}'s η counts from it"
                raise ConfigError(f"model.{name}", theirs, allowed)
    for name, run in (("proxy", proxy), ("target", target)):
        if run.optim.size_rule != "none":
            allowed = "none: a rule would move η once more"
            raise ConfigError(f"optim.size_rule of the {name}", run.optim.size_rule, allowed)


def notes(proxy: Run, target: Run) -> list[str]:
    """The differences of two runs along which no motion of η is measured, a sentence each."""
    found = []
    for group, free in FREE.items():
        ours, theirs = (getattr(run, group).to_dict() for run in (proxy, target))
        for name in ours:
            if name not in free and ours[name] != theirs[name]:
                found.append(f"{group}.{name}: {ours[name]} in the proxy, {theirs[name]} here")
    kinds = {
        "d_ff over d_model": lambda run: run.model.d_ff / run.model.d_model,
        "the warm-up's share of the steps": lambda run: run.optim.warmup_steps / run.optim.steps,
        "the decay's share of the steps": lambda run: run.optim.decay_steps / run.optim.steps,
    }
    for name, share in kinds.items():
        a, b = share(proxy), share(target)
        one_has_none = name.startswith("the decay") and not (a and b)  # the schedule's own motion
        if not one_has_none and abs(a - b) > SAME_SHARE * max(a, b):
            found.append(f"{name}: {a:.3g} in the proxy, {b:.3g} here")
    kind = {run.optim.schedule for run in (proxy, target)}
    if len(kind) > 1 and kind != {"cosine", "wsd"}:
        found.append(f"schedule: {proxy.optim.schedule} in the proxy, {target.optim.schedule} here")
    return found
