"""Which claims answer which decision: the tables of the page on what to tune, as data.

A cell rests on at most two claims: one on *motion*, that the best value stays where it is when
something changes, and one on *price*, what keeping the old value then costs in nats. What their
verdicts allow to say is chosen by `umup.book.advice`.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMES = ("sp", "mup", "umup")
"""The columns, in order."""


@dataclass(frozen=True)
class Cell:
    """The claims behind a piece of advice, by id; "" where there is none.

    ``moves``: the claim on motion says that the value moves, not that it stays.
    """

    motion: str = ""
    price: str = ""
    moves: bool = False


@dataclass(frozen=True)
class Row:
    """A decision, the study that states its claims, and a cell per scheme, None without a claim.

    ``carry`` and ``redo``: what to do where the price is low and where it is high.
    """

    change: str
    study: str = ""
    sp: Cell | None = None
    mup: Cell | None = None
    umup: Cell | None = None
    carry: str = "Carry it over"
    redo: str = "Tune again"


def _along(change: str, axis: str) -> Row:
    """A row on an axis of ``transfer_axes``."""
    sp, mup, umup = (_cell(axis, scheme) for scheme in SCHEMES)
    return Row(f"{change}: η", "transfer_axes", sp, mup, umup)


def _cell(axis: str, scheme: str) -> Cell:
    return Cell(f"{scheme}-still-over-{axis}", f"{scheme}-price-over-{axis}")


def _precision(name: str, **cells: Cell) -> Row:
    """A row on a format of the products, with its price against float32."""
    change = f"Precision: {name}"
    return Row(change, "fp8_drift", carry="Use it", redo="Do without", **cells)


CHANGES = (
    Row(
        "Width: η",
        "lr_transfer",
        sp=Cell("sp-drifts", "sp-price-of-narrow", moves=True),
        mup=Cell("mup-transfers", "mup-price-of-narrow"),
        umup=Cell("umup-transfers", "umup-price-of-narrow"),
    ),
    Row(
        "Width of an MLP on images: η",
        "own_model",
        sp=Cell("mlp-sp-falls", "mlp-sp-price", moves=True),
        mup=Cell("mlp-mup-steady", "mlp-mup-price"),
    ),
    Row(
        "Width of a vision transformer: η",
        "own_model",
        sp=Cell("vit-sp-falls", "vit-sp-price", moves=True),
        mup=Cell("vit-mup-steady", "vit-mup-price"),
    ),
    Row(
        "Width: the embedding's learning rate",
        "embedding_lr",
        mup=Cell("mup-emb-transfers"),
        umup=Cell("rule-transfers"),
    ),
    _along("Depth", "depth"),
    Row("Depth, with CompleteP: η", "transfer_axes", mup=_cell("depth", "completep")),
    Row(
        "Steps, with a warm-up in proportion: η",
        "lr_transfer",
        sp=Cell("sp-still-over-steps", "sp-price-of-short"),
        mup=Cell("mup-still-over-steps", "mup-price-of-short"),
        umup=Cell("umup-still-over-steps", "umup-price-of-short"),
    ),
    Row(
        "Steps, with one warm-up, cosine: η",
        "schedules",
        umup=Cell("eta-still-over-budgets-cosine", "short-rate-serves-cosine"),
    ),
    Row(
        "Steps, with one warm-up, WSD: η",
        "schedules",
        umup=Cell("eta-still-over-budgets-wsd", "short-rate-serves-wsd"),
    ),
    Row(
        "Schedule, from cosine to WSD: η",
        "schedules",
        mup=Cell("eta-still-over-schedules-mup"),
        umup=Cell("eta-still-over-schedules"),
    ),
    Row("Head size: η", "attention_scale", umup=Cell("eta-still-per-d")),
    Row("Head size: α of attention", "attention_scale", umup=Cell("alpha-still-per-d")),
    _along("Batch size, at equal steps", "batch"),
    _along("Batch size, at equal tokens", "batch-tokens"),
    _along("Sequence length, at equal tokens a step", "seq-len"),
    Row(
        "Width, with strong coupled decay: η",
        "decay_transfer",
        sp=Cell("sp-coupled-transfers"),
        mup=Cell("mup-coupled-moves", moves=True),
        umup=Cell("umup-coupled-moves", moves=True),
    ),
    Row(
        "Width, with strong coupled decay, λ ∝ width: η",
        "decay_transfer",
        mup=Cell("mup-coupled-width-transfers"),
    ),
    Row("Corpus"),
    Row("Optimizer, from AdamW to another: η"),
    Row("Adam's β₁ and β₂"),
    Row("Learning rate of the readout"),
    _precision("bfloat16", umup=Cell(price="bf16-is-free")),
    _precision(
        "FP8, cast directly",
        mup=Cell(price="mup-direct-cast-fails"),
        umup=Cell(price="umup-direct-cast"),
    ),
    _precision(
        "FP8, gradients in E5M2",
        mup=Cell(price="mup-e5m2-gradients-do"),
        umup=Cell(price="umup-e5m2-gradients"),
    ),
    _precision("FP8, a scale per tensor", mup=Cell(price="mup-scaled-does")),
)
"""What changes, and what is then carried over: a hyperparameter, or in a format nothing."""

SEARCHES = (
    Row(
        "Only η, the others at their defaults",
        "hp_search",
        mup=Cell(price="eta-line-mup"),
        umup=Cell(price="eta-line-umup"),
        carry="Enough",
        redo="Search on",
    ),
    Row(
        "One line each, then their combination",
        "hp_search",
        mup=Cell(price="combine-mup"),
        umup=Cell(price="combine-umup"),
        carry="Combine",
        redo="Keep the best line alone",
    ),
    Row(
        "Rounds that shrink, not random points",
        "hp_search",
        mup=Cell(price="rounds-mup"),
        umup=Cell(price="rounds-umup"),
        carry="Search in rounds",
        redo="Draw at random",
    ),
    Row(
        "The combination on a wider model",
        "hp_search",
        mup=Cell(price="wide-mup"),
        umup=Cell(price="wide-umup"),
        redo="Keep the defaults",
    ),
    Row(
        "Two hyperparameters, one at a time",
        "coupling",
        mup=Cell(price="mup-cost"),
        umup=Cell(price="umup-cost"),
        carry="One at a time",
        redo="Tune them together",
    ),
    Row(
        "u-μP's defaults, not μP with a tuned embedding",
        "embedding_lr",
        umup=Cell(price="umup-vs-tuned-mup"),
        carry="Take the defaults",
        redo="Tune μP",
    ),
)
"""How to search, and what the cheaper way costs against the dearer."""

SETTINGS = (
    Row(
        "u-μP, not μP, both at their defaults",
        "lr_transfer",
        umup=Cell(price="umup-default-vs-mup"),
        carry="Take u-μP",
        redo="Take μP",
    ),
    Row(
        "u-μP at its defaults, not SP at its best η",
        "lr_transfer",
        umup=Cell(price="umup-default-vs-sp"),
        carry="Take u-μP",
        redo="Take SP",
    ),
    Row(
        "WSD, not cosine",
        "schedules",
        mup=Cell(price="wsd-close-to-cosine-mup"),
        umup=Cell(price="wsd-close-to-cosine"),
        carry="Use WSD",
        redo="Keep cosine",
    ),
    Row(
        "WSD's decay over 20 % of the steps, not 30 %",
        "schedules",
        umup=Cell(price="decay-of-20-is-enough"),
        carry="20 % is enough",
        redo="Decay longer",
    ),
    Row(
        "WSD's decay over 10 % of the steps, not 30 %",
        "schedules",
        umup=Cell(price="decay-of-10-is-enough"),
        carry="10 % is enough",
        redo="Decay longer",
    ),
    Row(
        "One η for all budgets of a plateau",
        "schedules",
        umup=Cell(price="ladder-one-rate"),
        carry="One η serves",
        redo="Tune per budget",
    ),
    Row(
        "QK-norm, at the best η",
        "stability",
        mup=Cell(price="qk-price-mup"),
        umup=Cell(price="qk-price-umup"),
        carry="Use it",
        redo="Only where η must be high",
    ),
    Row(
        "z-loss, at the best η",
        "stability",
        mup=Cell(price="z-price-mup"),
        umup=Cell(price="z-price-umup"),
        carry="Use it if logits grow",
        redo="Do without",
    ),
    Row(
        "Clipping at norm 1 of the unscaled gradient",
        "stability",
        umup=Cell(price="clip-price-umup"),
        carry="Use it",
        redo="Do without",
    ),
    Row(
        "Attention's 1/d, not 1/√d, in a large head",
        "attention_scale",
        umup=Cell(price="per-d-loss"),
        carry="Take 1/d",
        redo="Take 1/√d",
    ),
    Row(
        "Adam's ε constant, not scaled over depth, CompleteP",
        "transfer_axes",
        mup=Cell(price="eps-default-harmless"),
        carry="Leave it",
        redo="Scale it",
    ),
    Row(
        "Strong independent decay, not mild",
        "decay_transfer",
        mup=Cell(price="strong-decay-costs"),
        carry="Take it",
        redo="Keep it mild",
    ),
)
"""Settings with a price of their own, and what they cost."""
