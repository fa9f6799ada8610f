"""Runs that are compared with one another, advanced in turn: equal steps at every moment.

A sweep finishes one group before the next. Where time may end at any moment and states are too
large to be kept, that leaves one run whole and its partner unbegun; in turn, both have come
equally far, and what they have come to is on record.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from umup.checked import canonical_json
from umup.config import RunConfig
from umup.data import Dataset
from umup.errors import memory_for
from umup.lab.design import Point
from umup.lab.records import UNFINISHED, Store
from umup.lab.sweep import Group, OutOfTime, Settings, groups, reported, thinned
from umup.terminal import Progress


def run_in_turn(
    runs: Sequence[RunConfig],
    dataset: Dataset,
    store: Store,
    *,
    study: str,
    profile: str,
    settings: Settings,
    progress: Progress,
) -> None:
    """Train all ``runs`` at once, a chunk each in turn; record each as it is over.

    No state is saved. A round that would not end before the deadline, as the last one took, is not
    begun: what all runs have come to is recorded then, as points of the kind ``UNFINISHED``.

    Args:
        runs: those that are in flight elsewhere or on record are left out.
        dataset, store, study, profile, settings, progress: as for ``sweep.run_pending``.

    Raises:
        OutOfTime: the deadline comes before the end.
        OutOfMemoryError: the states of all do not fit side by side.
    """
    with contextlib.ExitStack() as claims:
        mine = [run for run in runs if claims.enter_context(store.claim(run.key()))]
        with memory_for("runs", len(mine), "fewer runs side by side, or a smaller width or batch"):
            going = [
                Group(group, dataset, store.folder, settings, progress)
                for group in groups(mine, settings.lanes)
            ]
            while going:
                for group in going:
                    try:
                        group.advance()
                    except OutOfTime:
                        _record(going, store, study, profile)
                        raise
                for group in [group for group in going if group.over]:
                    store.append(group.rows(study, profile))
                    going.remove(group)
                # The first chunks compile, which the next ones do not.
                round_s = sum(g.chunks[-1][1] for g in going if len(g.chunks) > 1)
                if going and time.monotonic() + round_s > settings.deadline:
                    _record(going, store, study, profile)
                    raise OutOfTime


def _record(going: Sequence[Group], store: Store, study: str, profile: str) -> None:
    """Record what unfinished runs have come to, those that have begun."""
    rows = []
    for group in [group for group in going if group.done]:
        seconds = sum(seconds for _, seconds in group.chunks) / len(group.runs)
        for i, (run, losses) in enumerate(zip(group.runs, group.losses, strict=True)):
            at, curve = thinned(losses)
            point = Point(UNFINISHED, {"run": run.key(), "steps": group.done})
            result = {"spec": canonical_json(run), "curve_steps": at, "curve_loss": curve}
            seen = reported(run, [report[i] for report in group.seen])
            result |= group.speeds() | {name: np.ravel(v).tolist() for name, v in seen.items()}
            rows.append(point.row(study, profile, result, seconds))
    store.points.append(rows)
