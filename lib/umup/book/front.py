"""The front page: what was found, each line with its verdict, and the scale of the evidence.

A finding is a topic with one claim; what is said of it is chosen by the claim's verdict, so that no
line outlives it. All numbers come from claims and records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import pandas as pd

from umup.book.markdown import BADGES, badge, measured, table
from umup.book.scale import measure
from umup.errors import BookError
from umup.lab.claims import PROFILES, Verdict


class Finding(NamedTuple):
    """A topic, the claim that decides it (STUDY/ID), and what to say where it holds or fails."""

    topic: str
    claim: str
    holds: str
    fails: str


FINDINGS = (
    Finding(
        "Wider, SP",
        "lr_transfer/sp-drifts",
        "The best η falls with every doubling: sweep at the final width.",
        "The best η stays.",
    ),
    Finding(
        "Wider, μP",
        "lr_transfer/mup-transfers",
        "The best η stays: tune a narrow model.",
        "The best η moves: tune again.",
    ),
    Finding(
        "Wider, u-μP",
        "lr_transfer/umup-transfers",
        "The best η stays: tune a narrow model.",
        "The best η moves: tune again.",
    ),
    Finding(
        "Deeper, u-μP",
        "residual_tau/umup-transfers-over-depth",
        "The best η stays: tune a shallow model.",
        "The best η moves: tune at the final depth.",
    ),
    Finding(
        "Longer, μP",
        "lr_transfer/mup-still-over-steps",
        "The best η stays: tune short runs.",
        "The best η moves; what keeping it costs is on the page.",
    ),
    Finding(
        "Larger batch, μP",
        "transfer_axes/mup-still-over-batch",
        "At equal steps the best η stays: tune on small batches.",
        "At equal steps the best η moves with the batch: tune again.",
    ),
    Finding(
        "Longer sequences, μP",
        "transfer_axes/mup-still-over-seq-len",
        "At equal tokens a step the best η stays: tune on short ones.",
        "The best η moves: tune at the final length.",
    ),
    Finding(
        "All at once, u-μP",
        "transfer_axes/umup-drifts-add",
        "Where width, depth, steps and batch grow together, the best η moves by the sum.",
        "Where width, depth, steps and batch grow together, the sum misses the best η.",
    ),
    Finding(
        "u-μP or μP",
        "embedding_lr/umup-vs-tuned-mup-narrow",
        "Narrow, with its embedding's rate tuned, μP has u-μP's loss.",
        "Narrow, tuning the embedding's rate does not make μP's loss u-μP's.",
    ),
    Finding(
        "Twice the width",
        "lr_transfer/umup-is-mup-twice-as-wide-128",
        "u-μP reaches μP's loss at twice the width.",
        "u-μP does not reach μP's loss at twice the width.",
    ),
    Finding(
        "FP8, u-μP",
        "fp8_drift/umup-direct-cast",
        "Cast directly, the loss is float32's.",
        "A direct cast costs loss.",
    ),
    Finding(
        "FP8, μP",
        "fp8_drift/mup-direct-cast-fails",
        "A direct cast fails.",
        "A direct cast trains.",
    ),
    Finding(
        "Schedule",
        "schedules/wsd-close-to-cosine",
        "WSD is as good as cosine at equal tokens, or better.",
        "WSD is worse than cosine.",
    ),
    Finding(
        "High η",
        "stability/qk-widens-umup",
        "QK-norm makes a larger η stable.",
        "QK-norm does not make a larger η stable.",
    ),
    Finding(
        "Searching, u-μP",
        "hp_search/eta-line-umup",
        "A line over η is enough: many random points of all hyperparameters are hardly better.",
        "A line over η is not enough.",
    ),
    Finding(
        "Searching, μP",
        "hp_search/eta-line-mup",
        "A line over η leaves loss on the table: search on.",
        "A line over η is enough.",
    ),
    Finding(
        "Tuning one by one",
        "coupling/umup-cost",
        "u-μP's hyperparameters can be tuned one at a time.",
        "Tuning u-μP's hyperparameters one at a time costs loss.",
    ),
)
"""In the order of the page."""


def said(finding: Finding, verdict: Verdict) -> str:
    """What the verdict lets one say."""
    if verdict.verdict in ("holds", "exact"):
        return finding.holds
    if verdict.verdict == "fails":
        return finding.fails
    return "Open: " + verdict.statement[0].lower() + verdict.statement[1:]


def findings(verdicts: Sequence[Verdict]) -> str:
    """A row per finding: what is said of the topic, verdict and value, links to study and claim.

    Raises:
        BookError: a finding's claim is not on the board.
    """
    board = {f"{v.study}/{v.id}": v for v in verdicts}
    rows = []
    for finding in FINDINGS:
        if finding.claim not in board:
            raise BookError("claim of a finding", finding.claim, "a claim on the board: STUDY/ID")
        v = board[finding.claim]
        profile = "" if v.profile in (PROFILES[-1], "") else f", profile `{v.profile}`"
        link = f'<a href="claims.html#{v.study}-{v.id}">claim</a>'
        study = f'<a href="studies/{v.study}.html#claim-{v.id}">study</a>'
        where = f"<small>{study}, {link}{profile}</small>"
        value = "" if v.verdict == "not measured" else f" {measured(v)}"
        found = f"**{finding.topic}.** {said(finding, v)}"
        rows.append([found, f"{badge(v)}{value}<br>{where}"])
    return table(["what was found", "verdict"], rows, "findings")


def tally(verdicts: Sequence[Verdict]) -> str:
    """One sentence: how many claims there are, by verdict, with a link to those that fail."""
    counts = Counter(v.verdict for v in verdicts)
    by_kind = ", ".join(f"{counts[kind]} {_VERBS[kind]}" for kind in BADGES if counts[kind])
    board = '<a href="claims.html">all of them, failures first</a>'
    return f"**{len(verdicts)} claims**: {by_kind} ({board})."


_VERBS = {
    "holds": "hold",
    "exact": "hold exactly",
    "fails": "fail",
    "inconclusive": "are inconclusive",
    "not measured": "are not measured yet",
}


def scale(runs: pd.DataFrame, per_hour: Mapping[str, float]) -> str:
    """One sentence on what the evidence is: trainings, their largest, devices, hours, dollars.

    Args:
        runs: all records, runs and points.
        per_hour: US dollars per hour by machine, as ``pages.prices`` gives them.
    """
    whole = measure(runs, per_hour)
    if whole.last is None:
        return "**Evidence so far**: none; no records are committed yet."
    gpu = "" if whole.gpu else " No GPU yet."
    return (
        f"**Evidence so far**: {whole.trainings:,} trainings, {whole.others:,} other "
        f"measurements; models of at most {whole.weights[1] / 1e6:.1f} M parameters and "
        f"{whole.tokens[1] / 1e6:.1f} M tokens per run; {whole.all_tokens / 1e9:.1f} G tokens, "
        f"{whole.hours:.0f} hours and {whole.dollars:.2f} dollars of computing in all.{gpu}"
    )


def updated(runs: pd.DataFrame) -> str:
    """The day of the newest record."""
    if runs.empty:
        return "no records yet"
    newest = max(datetime.fromisoformat(day) for day in runs["created"])
    return f"newest record of {newest:%-d %B %Y}"


def page(verdicts: Sequence[Verdict], runs: pd.DataFrame, per_hour: Mapping[str, float]) -> str:
    """The generated part of the front page, in Markdown."""
    lines = [f"{tally(verdicts)} {scale(runs, per_hour)} Updated: {updated(runs)}."]
    return "\n\n".join([*lines, findings(verdicts)])
