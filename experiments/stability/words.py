"""What the study ``stability`` says in words: sentences and Markdown tables."""

from __future__ import annotations

import pandas as pd

from umup.lab.absent import NotMeasured, required
from umup.lab.records import Results
from umup.lab.report import ABSENT, NO_RUNS, loss_digits, markdown, said, worded
from umup.text import decimals

from . import results as tables
from .results import DEFENCES, MARGIN, NAMES, SCHEMES

KINDS = {"clean": "none", "poison": "poisoned batches", "jump": "η jump",
         "nan": "update not a number"}  # fmt: skip


def numbers(results: Results, digits: int = 2) -> dict[str, str]:
    """The numbers that captions name: name → text.

    ``gain_DEFENCE_SCHEME`` (octaves), ``price_DEFENCE_SCHEME`` (nats), ``growth_SCHEME`` (octaves
    of the largest attention logit over four octaves in η), ``held_umup`` (the same of output
    logits, by z-loss), ``twins_NORM`` (log₁₀ nats), ``active_NORM`` (share, u-μP), ``norm_ratio``
    (octaves), ``drill_KIND_healed``, ``drill_KIND_alone`` (nats), ``time_DEFENCE`` (ratio),
    ``depth_SCHEME`` (octaves), ``bound`` (share).
    """
    nats, out = loss_digits(digits), {}
    for scheme in SCHEMES:
        for defence in [d for d in DEFENCES if d != "none"]:
            name = f"{defence}_{scheme}"
            out[f"gain_{name}"] = said(digits, tables.stable_gain, results, scheme, defence)
            out[f"price_{name}"] = said(nats, tables.price, results, scheme, defence)
        out[f"growth_{scheme}"] = said(digits, tables.growth, results, scheme, "logit_max")
        out[f"depth_{scheme}"] = said(
            digits, tables.stable_gain, results, scheme, "depth_init", "deep"
        )
    out["held_umup"] = said(digits, tables.held_back, results, "umup", "out_rms", "z_loss", 4)
    for norm in ("unscaled", "held"):
        out[f"twins_{norm}"] = said(digits, tables.twins, results, norm)
        out[f"active_{norm}"] = said(digits, tables.active, results, "umup", norm)
    out["norm_ratio"] = said(digits, tables.norm_ratio, results, "umup")
    for kind in [k for k in KINDS if k != "clean"]:
        for recover, word in ((True, "healed"), (False, "alone")):
            out[f"drill_{kind}_{word}"] = said(nats, tables.drilled, results, kind, recover)
    for defence in ("z_loss", "qk_norm", "clip"):
        out[f"time_{defence}"] = said(digits, tables.step_time, results, defence)
    out["bound"] = said(digits, tables.logit_bound, results)
    return out


def answer(results: Results, digits: int = 2) -> str:
    """The study's answer in one paragraph."""
    text = numbers(results, digits)
    return (
        f"QK-norm raises the largest stable η (at most {MARGIN} nats above the lowest loss) of "
        f"u-μP by {text['gain_qk_norm_umup']} octaves and of μP by {text['gain_qk_norm_mup']}, and "
        f"changes the loss at the best η by {text['price_qk_norm_umup']} and "
        f"{text['price_qk_norm_mup']} nats a token; the z-loss gives u-μP "
        f"{text['gain_z_loss_umup']} octaves for {text['price_z_loss_umup']} nats. A clip at norm "
        f"1 of the unscaled gradient is active in a share of {text['active_unscaled']} of u-μP's "
        f"steps, by the norm as held in {text['active_held']}. A planted η jump costs "
        f"{text['drill_jump_alone']} nats when left alone and {text['drill_jump_healed']} when the "
        f"loop goes back and skips the batches."
    )


def what_ran(results: Results) -> str:
    """How many runs, of what, on what, and what was measured beside them."""
    kinds = results.points["what"].value_counts()
    return (
        f"{_swept(results.runs)} Beside them {kinds.get('clipped', 0)} clipped runs and "
        f"{kinds.get('drill', 0)} drills."
    )


@worded
def _swept(runs: pd.DataFrame) -> str:
    first, table = required(runs, NO_RUNS).iloc[0], tables.curves(runs)
    shapes = sorted(set(zip(runs["d_model"], runs["n_layers"], strict=True)))
    widths = ", ".join(f"width {width} and {depth} layers" for width, depth in shapes)
    return (
        f"{len(runs)} runs, {int((~table['ok']).sum())} of them diverged: {widths}; "
        f"{first['batch_size']} sequences of {first['seq_len']} tokens a step, {first['steps']} "
        f"steps; {runs['seed'].nunique()} seeds."
    )


def defences_table(results: Results, digits: int = 2) -> str:
    """One row a scheme and defence: best η, largest stable η, sensitivity, price."""
    rows = []
    for scheme in SCHEMES:
        for defence, title in DEFENCES.items():
            try:
                table = tables.arm(results, scheme, defence)
            except NotMeasured:
                continue
            changes = {"gain": "", "price": ""}
            if defence != "none":
                changes = {
                    "gain": said(digits, tables.stable_gain, results, scheme, defence),
                    "price": said(loss_digits(digits), tables.price, results, scheme, defence),
                }
            rows.append({
                "scheme": NAMES[scheme], "defence": title,
                "best": decimals(tables.best(table), 0),
                "sensitivity": said(digits, tables.sensitivity, results, scheme, defence),
                **changes,
            })  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "defence": "defence", "best": "best log₂ η",
         "gain": "largest stable η, octaves gained", "price": "loss at the best η, nats gained",
         "sensitivity": "sensitivity to η, nats"},
    )  # fmt: skip


def times_table(results: Results, digits: int = 2) -> str:
    """One row a defence: the time of a step relative to one without."""
    rows = [
        {"defence": DEFENCES[d], "time": text}
        for d in ("z_loss", "qk_norm", "clip")
        if (text := said(digits, tables.step_time, results, d)) != ABSENT
    ]
    return markdown(
        pd.DataFrame(rows),
        {"defence": "defence", "time": "time of a step, ratio [95 %]"},
    )  # fmt: skip


@worded
def drills_table(results: Results, digits: int = 2) -> str:
    """One row a scheme and kind of drill: its cost healed and left alone, and what healing took."""
    table, rows, nats = tables.drills(results), [], loss_digits(digits)
    for scheme in [s for s in SCHEMES if s in set(table["scheme"])]:
        for kind, title in KINDS.items():
            at = table[(table["scheme"] == scheme) & (table["kind"] == kind)]
            at = at[at["recover"].astype(bool)]
            if at.empty:
                continue
            cost = {word: "" if kind == "clean" else
                    said(nats, tables.drilled, results, kind, recover, scheme)
                    for word, recover in (("healed", True), ("alone", False))}  # fmt: skip
            rows.append({
                "scheme": NAMES[scheme], "kind": title, **cost,
                "interventions": decimals(at["interventions"].mean(), digits),
                "lost": decimals(at["steps_lost"].mean(), 0),
            })  # fmt: skip
    return markdown(
        pd.DataFrame(rows),
        {"scheme": "scheme", "kind": "disturbance", "alone": "cost left alone, nats",
         "healed": "cost healed, nats", "interventions": "interventions",
         "lost": "steps thrown away"},
    )  # fmt: skip
