"""Training of runs that are compared with one another, in turn, so that all are equally far.

A sweep finishes one group before it begins the next. If time may end at any moment and states are
too large to be saved, that can leave one run finished and its partner not begun. In turn, both have
come equally far, and their progress is recorded.
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
    """Train all ``runs`` together, one chunk of each in turn; record each when it ends.

    No state is saved. If the next round, taking as long as the last, would not end before the
    deadline, the progress of all runs is recorded as points of the kind ``UNFINISHED``.

    Args:
        runs: those in flight elsewhere or on record are left out.
        dataset, store, study, profile, settings, progress: as for ``sweep.run_pending``.

    Raises:
        OutOfTime: the deadline comes before the end.
        OutOfMemoryError: the states of all runs do not fit together.
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
    """Record the progress of unfinished runs that have begun."""
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
