"""Whether a claim's bound was written before its study's records: what the git history can show.

A claim's terms are its bound, the quantity that is bounded and the arguments of that. They date
from the newest commit that brought them as they are now: the study's ``claims.yaml`` has them
there, and in no parent. Nothing is kept on disk, and a copy without a history (a tarball, a shallow
clone) gives a reason in place of a date.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import yaml

NO_HISTORY = "history not available"
NOT_COMMITTED = "the history has no commit of this bound"

Times = Mapping[tuple[str, str], datetime]
"""(Study, profile) → when the first of its records was made."""


class Commit(NamedTuple):
    """A commit's full hash and when it was made, in UTC."""

    hash: str
    when: datetime


@dataclass(frozen=True)
class Order:
    """Whether a bound is older than every record of its study and profile, and how that is known.

    Attributes:
        shown: the history and the records show it; `reason` says how, or why they do not.
        commit: that brought the bound. first: when the first record was made. None: not known.
    """

    shown: bool
    reason: str
    commit: Commit | None = None
    first: datetime | None = None


class History:
    """The commits of the terms of all claims below a folder of studies.

    Args:
        experiments: the folder; its studies' ``claims.yaml`` are followed through renames.
    """

    def __init__(self, experiments: Path):
        self._root = experiments
        self.known = self._whole()
        self._present: dict[tuple[str, str], str] = {}
        self._commits: dict[tuple[str, str, str], Commit] = {}
        if self.known:
            self._read(sorted(experiments.glob("*/claims.yaml")))

    def commit(self, study: str, claim: str) -> Commit | None:
        """The commit that brought the present terms of a claim, by its id; None: not known."""
        return self._commits.get((study, claim, self._present.get((study, claim), "")))

    def order(self, study: str, claim: str, profile: str, times: Times) -> Order:
        """Whether the present terms of a claim are older than the records of a profile."""
        first = times.get((study, profile))
        if not self.known:
            return Order(False, NO_HISTORY, None, first)
        if (commit := self.commit(study, claim)) is None:
            return Order(False, NOT_COMMITTED, None, first)
        if first is None:
            return Order(True, "no record of it is there yet", commit)
        if commit.when <= first:
            return Order(True, f"no record of the profile {profile} is older", commit, first)
        why = f"the profile {profile} has records that are older than this bound's commit"
        return Order(False, why, commit, first)

    def _git(self, *arguments: str, given: str = "") -> bytes:
        command = ["git", "-C", str(self._root), *arguments]
        return subprocess.run(command, input=given.encode(), capture_output=True, check=True).stdout

    def _whole(self) -> bool:
        try:
            # A shallow clone's oldest commit seems to have brought everything.
            shallow = self._git("rev-parse", "--is-shallow-repository").decode().strip()
            # In someone else's repository nothing of ours is tracked.
            return shallow == "false" and bool(self._git("log", "-1", "--format=%H", "--", "."))
        except (OSError, subprocess.CalledProcessError):
            return False

    def _read(self, files: Iterable[Path]) -> None:
        steps = [(path.parent.name, *step) for path in files for step in self._log(path)]
        places = {place for _, _, own, parents in steps for place in (own, *parents)}
        known = self._terms(sorted(places))
        for path in files:
            for claim, now in terms(path.read_text(encoding="utf-8")).items():
                self._present[path.parent.name, claim] = now
        for study, commit, own, parents in steps:
            for claim, given in known[own].items():
                if all(known[parent].get(claim) != given for parent in parents):
                    before = self._commits.get((study, claim, given), commit)
                    newest = max(before, commit, key=lambda one: one.when)
                    self._commits[study, claim, given] = newest

    def _log(self, path: Path) -> Iterable[tuple[Commit, str, list[str]]]:
        """The commits of a file: each, the file's place there, and in its parents."""
        shape = "--format=%x00%H %P%x00%cI%x00"
        log = self._git("log", "--follow", "--name-status", shape, "--", f"{path.resolve()}")
        parts = log.decode().split("\0")[1:]
        for hashes, when, status in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            own, *parents = hashes.split()
            change, *names = status.strip().split("\t")  # names: the old one of two, the new one
            if not names:
                continue
            copied = change.startswith("C")  # from another study: its history is not ours
            places = [f"{parent}:{names[-1 if copied else 0]}" for parent in parents]
            made = datetime.fromisoformat(when).astimezone(UTC)
            yield Commit(own, made), f"{own}:{names[-1]}", places
            if copied:
                return

    def _terms(self, places: list[str]) -> dict[str, dict[str, str]]:
        """Place (``COMMIT:PATH``) → claim → its terms; empty where there is no such file."""
        out = self._git("cat-file", "--batch", given="".join(f"{place}\n" for place in places))
        found, parsed, at = {}, {}, 0
        for place in places:
            end = out.index(b"\n", at)
            header = out[at:end].split()
            at = end + 1
            found[place] = {}
            if len(header) == 3 and header[1] == b"blob":
                name, size = header[0], int(header[2])
                if name not in parsed:
                    parsed[name] = terms(out[at : at + size].decode("utf-8", "replace"))
                found[place] = parsed[name]
                at += size + 1
        return found


def terms(text: str) -> dict[str, str]:
    """Claim → its terms as one text, in a ``claims.yaml`` of any age, without what is malformed."""
    try:
        # libyaml is a hundred times faster, where PyYAML has it.
        entries = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    entries = entries if isinstance(entries, list) else []
    parts = ("quantity", "args", "bound")
    return {
        str(entry["id"]): json.dumps(
            [entry.get(part) for part in parts], sort_keys=True, default=str
        )
        for entry in entries
        if isinstance(entry, dict) and "id" in entry
    }


def first_records(created: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], datetime]:
    """(Study, profile) → the earliest time, from rows of study, profile and ISO time."""
    first: dict[tuple[str, str], datetime] = {}
    for study, profile, text in created:
        when = datetime.fromisoformat(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        first[study, profile] = min(when, first.get((study, profile), when))
    return first
