"""What the study ``stability`` says in words: sentences and Markdown tables."""

from __future__ import annotations

from umup.lab.absent import NotMeasured
from umup.lab.records import Results
from umup.lab.report import ABSENT, loss_digits, said, text_of, worded
from umup.lab.tables import NAMES, SCHEMES
from umup.lab.words import nats, table, texts, trained, word
from umup.text import decimals

from . import results as tables
from .results import DEFENCES, MARGIN

KINDS = {
    "clean": "none",
    "poison": "poisoned batches",
    "jump": "η jump",
    "nan": "update not a number",
}
RECOVER = {"healed": True, "alone": False}
TIMED = ("z_loss", "qk_norm", "clip")
WORDS = {
    # octaves
    "gain_{defence}_{scheme}": word(tables.stable_gain),
    "depth_{scheme}": word(tables.stable_gain, defence="depth_init", part="deep"),
    "growth_{scheme}": word(tables.growth, name="logit_max"),  # over four octaves in η
    "held_umup": word(tables.held_back, scheme="umup", name="out_rms", defence="z_loss", octaves=4),
    "norm_ratio": word(tables.norm_ratio, scheme="umup"),
    # nats
    "price_{defence}_{scheme}": word(tables.price, nats),
    "drill_{kind}_{recover}": word(tables.drilled, nats),
    "twins_{norm}": word(tables.twins),  # log₁₀
    # shares and ratios
    "active_{norm}": word(tables.active, scheme="umup"),
    "time_{defence}": word(tables.step_time, text_of, {"defence": TIMED}),
    "bound": word(tables.logit_bound),
}


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text, see ``WORDS``."""
    defences = [name for name in DEFENCES if name != "none"]
    kinds = [name for name in KINDS if name != "clean"]
    norms = ("unscaled", "held")
    axes = {"scheme": SCHEMES, "defence": defences, "kind": kinds, "norm": norms}
    return texts(WORDS, results, digits, recover=RECOVER, **axes)


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    text = numbers(results, digits)
    return (
        f"QK-norm raises the largest stable η (at most {MARGIN} nats above the lowest loss) of "
        f"u-μP by {text['gain_qk_norm_umup']} octaves and of μP by {text['gain_qk_norm_mup']}, and "
        f"changes the loss at the best η by {text['price_qk_norm_umup']} and "
        f"{text['price_qk_norm_mup']} nats per token; the z-loss gives u-μP "
        f"{text['gain_z_loss_umup']} octaves for {text['price_z_loss_umup']} nats. A clip at norm "
        f"1 of the unscaled gradient is active in a share of {text['active_unscaled']} of u-μP's "
        f"steps, by the norm as held in {text['active_held']}. A planted η jump costs "
        f"{text['drill_jump_alone']} nats when left alone and {text['drill_jump_healed']} when the "
        f"loop goes back and skips the batches."
    )


def what_ran(results: Results) -> str:
    """How many runs, of what, on what, and what was measured beside them."""
    runs, kinds = results.runs, results.points["what"].value_counts()
    shapes = sorted(set(zip(runs["d_model"], runs["n_layers"], strict=True)))
    shape = ", ".join(f"width {width} and {depth} layers" for width, depth in shapes)
    return (
        f"{trained(runs, shape=shape)} Beside them {kinds.get('clipped', 0)} clipped runs and "
        f"{kinds.get('drill', 0)} drills."
    )


def defences_table(results: Results, digits: int = 2) -> str:
    """One row per scheme and defence: best η, largest stable η, sensitivity, price."""
    rows = []
    for scheme in SCHEMES:
        for defence, title in DEFENCES.items():
            try:
                best = tables.best(tables.arm(results, scheme, defence))
            except NotMeasured:
                continue
            of, plain = (results, scheme, defence), defence == "none"
            gain = "" if plain else said(digits, tables.stable_gain, *of)
            price = "" if plain else said(loss_digits(digits), tables.price, *of)
            row = {"scheme": NAMES[scheme], "defence": title, "best log₂ η": decimals(best, 0)}
            row["largest stable η, octaves gained"] = gain
            row["loss at the best η, nats gained"] = price
            row["sensitivity to η, nats"] = said(digits, tables.sensitivity, *of)
            rows.append(row)
    return table(rows)


def times_table(results: Results, digits: int = 2) -> str:
    """One row per defence: the time of a step relative to one without."""
    times = {name: said(digits, tables.step_time, results, name) for name in TIMED}
    heading = "time of a step, ratio [95 %]"
    known = {name: text for name, text in times.items() if text != ABSENT}
    return table({"defence": DEFENCES[name], heading: text} for name, text in known.items())


@worded
def drills_table(results: Results, digits: int = 2) -> str:
    """One row per scheme and kind of drill: its cost healed and left alone, what healing took."""
    drills, rows, fine = tables.drills(results), [], loss_digits(digits)
    drills_healed = drills[drills["recover"].astype(bool)]
    for scheme in [name for name in SCHEMES if name in set(drills["scheme"])]:
        for kind, title in KINDS.items():
            at = drills_healed.query("scheme == @scheme and kind == @kind")
            if at.empty:
                continue
            row = {"scheme": NAMES[scheme], "disturbance": title}
            for how in ("alone", "healed"):
                of = (results, kind, RECOVER[how], scheme)
                cost = "" if kind == "clean" else said(fine, tables.drilled, *of)
                row["cost left alone, nats" if how == "alone" else "cost healed, nats"] = cost
            row["interventions"] = decimals(at["interventions"].mean(), digits)
            row["steps thrown away"] = decimals(at["steps_lost"].mean(), 0)
            rows.append(row)
    return table(rows)
