"""The log: what was measured on which day, newest first, each entry titled by its verdicts.

Days are those of the records; a study that is measured on several has an entry for each, whose
verdicts are today's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import pandas as pd

from umup.book.board import StudyPage
from umup.book.markdown import BADGES
from umup.lab.claims import Verdict


def page(runs: pd.DataFrame, verdicts: Sequence[Verdict], studies: Sequence[StudyPage]) -> str:
    """A heading per day, and under it an entry per study in Markdown.

    Args:
        runs: all records. verdicts: the whole board. studies: what was rendered.
    """
    if runs.empty:
        return "No records are committed yet.\n"
    titles = {study.name: study.title for study in studies}
    day = runs["created"].map(lambda created: datetime.fromisoformat(created).date())
    lines: list[str] = []
    for when, group in sorted(runs.groupby(day), key=lambda pair: pair[0], reverse=True):
        lines.append(f"## {when:%-d %B %Y}\n")
        for (name, profile), own in group.groupby(["study", "profile"]):
            title = titles.get(name, name)
            hours = float(own["wall_s"].sum()) / 3600
            count = f"{len(own):,} record{'s' * (len(own) != 1)}, {hours:.1f} hours"
            where = f"[{title}](studies/{name}.ipynb)" if name in titles else f"`{name}`"
            lines.append(f"- **{where}** {_verdicts(verdicts, name)}. {count}, `{profile}`.")
        lines.append("")
    return "\n".join(lines)


def _verdicts(verdicts: Sequence[Verdict], study: str) -> str:
    """How many of the study's claims have which verdict, and which of them fail."""
    mine = [v for v in verdicts if v.study == study]
    counts = Counter(v.verdict for v in mine)
    said = ", ".join(f"{kind} {counts[kind]}" for kind in BADGES if counts[kind])
    failed = [f'<a href="claims.html#{study}-{v.id}">{v.id}</a>' for v in mine if _fails(v)]
    return f"{said or 'no claims'}" + (f" (fails: {', '.join(failed)})" if failed else "")


def _fails(verdict: Verdict) -> bool:
    return verdict.verdict == "fails"
