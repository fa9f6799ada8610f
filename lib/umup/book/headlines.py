"""The title of every study's page: its finding, chosen by the verdict of one claim.

A title says no more than its claim does, and follows the verdict when the records change. What is
not measured keeps the question of its notebook as its title.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from umup.errors import BookError
from umup.lab.claims import Verdict

LONGEST = 70  # characters: the sidebar shows titles, too


class Headline(NamedTuple):
    """A study's claim by its id, what the title is where it holds or fails, and what it asks."""

    claim: str
    holds: str
    fails: str
    asks: str


HEADLINES: Mapping[str, Headline] = {
    "lr_transfer": Headline(
        "mup-transfers",
        "Wider: μP's best η stays",
        "Wider: μP's best η moves",
        "does μP's best η stay as models widen?",
    ),
    "coord_check": Headline(
        "mup-logits-steady",
        "Under μP the change of the logits does not depend on width",
        "Under μP the change of the logits depends on width",
        "does the change of μP's logits depend on width?",
    ),
    "embedding_lr": Headline(
        "umup-vs-tuned-mup-narrow",
        "Narrow, with its embedding's rate tuned, μP has u-μP's loss",
        "Narrow, tuning the embedding's rate does not make μP's loss u-μP's",
        "narrow, is u-μP's loss that of μP with a tuned embedding?",
    ),
    "decay_transfer": Headline(
        "mup-independent-transfers",
        "With independent decay μP's best η stays over width",
        "With independent decay μP's best η moves over width",
        "does μP's best η stay with independent decay?",
    ),
    "residual_tau": Headline(
        "umup-transfers-over-depth",
        "Deeper: u-μP's best η stays",
        "Deeper: u-μP's best η moves",
        "does u-μP's best η stay as models deepen?",
    ),
    "schedules": Headline(
        "wsd-close-to-cosine",
        "WSD is as good as cosine at equal tokens, or better",
        "WSD is worse than cosine at equal tokens",
        "is WSD as good as cosine at equal tokens?",
    ),
    "transfer_axes": Headline(
        "mup-still-over-steps",
        "Longer: μP's best η stays",
        "Longer: μP's best η moves",
        "does μP's best η stay over more steps?",
    ),
    "attention_scale": Headline(
        "per-d-loss",
        "At the largest head 1/d reaches the loss of 1/√d, or lower",
        "At the largest head 1/d does not reach the loss of 1/√d",
        "does 1/d reach the loss of 1/√d at the largest head?",
    ),
    "op_scales": Headline(
        "attention-output",
        "From 64 tokens up attention's output is within 12 % of unit scale",
        "From 64 tokens up attention's output is not within 12 % of unit scale",
        "from 64 tokens up, is attention's output at unit scale?",
    ),
    "fp8_drift": Headline(
        "mup-direct-cast-fails",
        "A direct cast to FP8 costs μP 0.1 nats or more",
        "A direct cast to FP8 costs μP less than 0.1 nats",
        "does a direct cast to FP8 cost μP 0.1 nats or more?",
    ),
    "hopper": Headline(
        "umup-cast-at-4096",
        "At width 4096 FP8 ends within 0.02 nats of bfloat16 under u-μP",
        "At width 4096 FP8 does not end within 0.02 nats of bfloat16 (u-μP)",
        "at width 4096, is u-μP's loss in FP8 that in bfloat16?",
    ),
    "stability": Headline(
        "qk-widens-umup",
        "QK-norm raises u-μP's largest stable η by an octave or more",
        "QK-norm does not raise u-μP's largest stable η by an octave",
        "does QK-norm raise u-μP's largest stable η by an octave?",
    ),
    "coupling": Headline(
        "umup-cost",
        "u-μP's hyperparameters can be tuned one at a time",
        "Tuning u-μP's hyperparameters one at a time costs loss",
        "can u-μP's hyperparameters be tuned one at a time?",
    ),
    "hp_search": Headline(
        "eta-line-umup",
        "Under u-μP a line over η comes close to 150 random points",
        "Under u-μP a line over η falls short of 150 random points",
        "is a line over η enough under u-μP?",
    ),
    "throughput": Headline(
        "cpu-compiled",
        "At width 64 a step on the CPU is faster than with torch.compile",
        "At width 64 a step on the CPU is slower than with torch.compile",
        "at width 64, is a step faster than with torch.compile?",
    ),
    "planning": Headline(
        "flops",
        "The planner predicts the compiled matrix products to 3 %",
        "The planner misses the compiled matrix products by more than 3 %",
        "does the planner predict the compiled matrix products?",
    ),
    "own_model": Headline(
        "mlp-mup-steady",
        "Under μP the best η of an MLP stays as it widens",
        "Under μP the best η of an MLP moves as it widens",
        "does the best η of an MLP stay as it widens?",
    ),
    "judging": Headline(
        "optimum-covered",
        "Our 95 % intervals of the best η cover it as often as they should",
        "Our 95 % intervals of the best η do not cover it as they should",
        "do our intervals of the best η cover it as they should?",
    ),
}
"""Study → its headline; a study without one is titled by its question."""


def title(study: str, board: Mapping[str, Verdict]) -> str | None:
    """The finding that titles a study's page, or None where its question stays the title.

    Args:
        study: its name.
        board: verdicts by STUDY/ID.

    Raises:
        BookError: the headline's claim is not on the board.
    """
    if (headline := HEADLINES.get(study)) is None:
        return None
    path = f"{study}/{headline.claim}"
    if path not in board:
        raise BookError("claim of a headline", path, "a claim on the board, as STUDY/ID")
    verdict = board[path].verdict
    if verdict == "not measured":
        return None
    if verdict in ("holds", "exact"):
        return headline.holds
    return headline.fails if verdict == "fails" else f"Open: {headline.asks}"
