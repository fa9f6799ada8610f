"""The rules of `umup.schemes` as tables: of one scheme, of several side by side, of the variants.

A table is made in one of three styles: ``text`` for a terminal, ``markdown`` for a page of the book
and ``latex`` for a paper. `umup.rules` has these functions, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from umup import text
from umup.errors import ConfigError
from umup.powers import Power, render
from umup.schemes import ROLES, SCHEMES, get

_DEPTHS = {
    "text": "2N (branches) or N (layers)",
    "markdown": "$2N$ (`branches`) or $N$ (`layers`)",
    "latex": r"$2N$ (branches) or $N$ (layers)",
}


def _check_style(style: str) -> None:
    if style not in _DEPTHS:
        raise ConfigError("style", style, " | ".join(_DEPTHS))


def _cell(power: Power, style: str) -> str:
    return render(power) if style == "text" else f"${render(power, 'latex')}$"


_LETTERS = str.maketrans({"μ": r"$\mu$", "ε": r"$\varepsilon$", "·": r"$\cdot$", "–": "--"})


def _latex_words(cell: str) -> str:
    """A cell without formulas in the letters that every LaTeX has."""
    return cell if "$" in cell else cell.translate(_LETTERS)


def _lines(rows: list[list[str]], style: str) -> str:
    """Rows as a table; the first row is the header."""
    if style == "markdown":
        return text.markdown(rows[0], rows[1:])
    if style == "latex":
        body = [" & ".join(map(_latex_words, row)) + r" \\" for row in rows]
        begin = rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}"
        return "\n".join([begin, *body, r"\end{tabular}"])
    return text.columns(rows)


def table(scheme: str, style: str = "text") -> str:
    """The scheme's rules as a ``text``, ``markdown`` or ``latex`` table.

    Raises:
        ConfigError: unknown scheme or style.
    """
    _check_style(style)
    rules = get(scheme)

    def row(label: str, attribute: str, residual: str) -> list[str]:
        powers = (getattr(rules.weights[role], attribute) for role in ROLES)
        return [label, *(_cell(power, style) for power in powers), residual]

    tau = "a_l, b_l from τ_l" if style == "text" else r"$a_l, b_l$ from $\tau_l$"
    branch = tau if rules.unit_scaled else _cell(rules.residual, style)
    rows = [
        ["", "input", "hidden", "output", "residual branch"],
        row("init std", "init_std", "–"),
        row("forward multiplier", "forward", branch),
        row("backward multiplier", "backward", branch),
        row("weight-gradient multiplier", "weight_grad", "–"),
        row("Adam LR factor", "adam_lr", _cell(rules.residual_adam_lr, style)),
        row("SGD LR factor", "sgd_lr", _cell(rules.residual_sgd_lr, style)),
        row("Adam ε factor (option)", "adam_eps", _cell(rules.residual_adam_eps, style)),
        ["attention logits (on q·k)", "", _cell(rules.attention_logit, style), "", ""],
    ]
    if rules.counts_depth:
        rows.append(["depth", "", "", "", _DEPTHS[style]])
    return _lines(rows, style)


SIDE_BY_SIDE = ("sp", "mup", "umup", "completep")
"""The schemes that are compared by default."""

_WEIGHT_ROWS = {
    "init std": "init_std",
    "forward multiplier": "forward",
    "backward multiplier": "backward",
    "gradient multiplier": "weight_grad",
    "Adam LR factor": "adam_lr",
    "SGD LR factor": "sgd_lr",
    "Adam ε factor": "adam_eps",
}
_BRANCH_ROWS = {
    "Adam LR factor": "residual_adam_lr",
    "SGD LR factor": "residual_sgd_lr",
    "Adam ε factor": "residual_adam_eps",
}
_GROUPS = {
    "input": "Input weights",
    "hidden": "Hidden weights",
    "output": "Output weights",
    "branch": "Residual branches",
    "attention": "Attention",
}


def side_by_side(style: str = "text", schemes: Sequence[str] = SIDE_BY_SIDE) -> str:
    """The rules of several schemes as one table: a column per scheme, a row per number.

    Rows are grouped by type of weight, with branches and attention below; the factors of branches
    multiply those of every weight on one.

    Args:
        style: ``text``, ``markdown`` or ``latex``.
        schemes: their names, in the order of the columns.

    Raises:
        ConfigError: unknown scheme or style.
    """
    _check_style(style)
    chosen = [get(name) for name in schemes]
    taus, sigma = (r"$a_l, b_l$", r"$1/\sigma$") if style != "text" else ("a_l, b_l", "1/σ")
    groups: dict[str, dict[str, list[str]]] = {
        role: {
            label: [_cell(getattr(scheme.weights[role], field), style) for scheme in chosen]
            for label, field in _WEIGHT_ROWS.items()
        }
        for role in ROLES
    }
    groups["branch"] = {
        "multiplier": [taus if s.unit_scaled else _cell(s.residual, style) for s in chosen]
    } | {
        label: [_cell(getattr(scheme, field), style) for scheme in chosen]
        for label, field in _BRANCH_ROWS.items()
    }
    groups["attention"] = {
        "multiplier of q·k": [_cell(s.attention_logit, style) for s in chosen],
        "multiplier of the output": [sigma if s.unit_scaled else _cell({}, style) for s in chosen],
    }
    rows = [["", *(scheme.title for scheme in chosen)]]
    for group, cells in groups.items():
        title = _GROUPS[group]
        bold = {"text": title, "markdown": f"**{title}**", "latex": rf"\textbf{{{title}}}"}
        rows.append([bold[style], *[""] * len(chosen)])
        rows += [[label, *line] for label, line in cells.items()]
    return _lines(rows, style)


def variants_table(style: str = "text") -> str:
    """What every variant changes: its name, the scheme it starts from, and the numbers of both.

    Raises:
        ConfigError: unknown style.
    """
    _check_style(style)
    labels = {
        "init_std": "init std",
        "forward": "multiplier",
        "adam_lr": "Adam LR",
        "sgd_lr": "SGD LR",
    }
    branch = {
        "residual": "branch multiplier",
        "residual_adam_lr": "branch Adam LR",
        "residual_sgd_lr": "branch SGD LR",
        "attention_logit": "attention logits",
    }
    rows = [["variant", "from", "number", "there", "here"]]
    for name, scheme in SCHEMES.items():
        if not scheme.parent:
            continue
        old = get(scheme.parent)
        pairs = [
            (f"{role} {label}", getattr(old.weights[role], field), getattr(rule, field))
            for field, label in labels.items()
            for role, rule in scheme.weights.items()
        ]
        pairs += [(label, getattr(old, f), getattr(scheme, f)) for f, label in branch.items()]
        quoted = [name, scheme.parent] if style == "text" else [f"`{name}`", f"`{scheme.parent}`"]
        if style == "latex":
            quoted = [rf"\verb|{name}|", rf"\verb|{scheme.parent}|"]
        changed = [[label, _cell(a, style), _cell(b, style)] for label, a, b in pairs if a != b]
        rows += [[*(quoted if i == 0 else ["", ""]), *cells] for i, cells in enumerate(changed)]
    return _lines(rows, style)
