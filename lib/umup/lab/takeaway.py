"""The box of advice that a study ends with, and its page in the book begins with.

Advice is a list: each item names the claims that it rests on, as links that the book turns into
badges of their verdicts, and says of what is not decided that it is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from umup.lab.claims import Verdict


def link(claim: str) -> str:
    """A claim of the study by its id, as Markdown."""
    return f"[{claim}](claims.yaml)"


def box(items: Iterable[str], because: str) -> str:
    """The box as MyST: what to do, an item each, and why."""
    listed = "\n".join(f"- {item}" for item in items)
    return f":::{{admonition}} Do this\n:class: takeaway\n{listed}\n\n**Because** {because}\n:::"


def items(verdicts: Sequence[Verdict], said: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What to do, one item per claim that advice hangs on, those that are open last.

    Args:
        verdicts: of a study. said: claim → verdict → what to do then; at any other verdict the item
            says that the claim is open.
    """
    found = []
    for verdict in verdicts:
        if advice := said.get(verdict.id):
            open_ = f"Open ({verdict.verdict}): {verdict.statement}"
            text = advice.get(verdict.verdict, open_)
            found.append((text is open_, f"{text} {link(verdict.id)}"))
    return [text for _, text in sorted(found, key=lambda item: item[0])]
