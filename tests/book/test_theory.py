"""The pages on theory: their tables are the rules' numbers, and what they quote and cite exists."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from umup import rules
from umup.book import quotes, theory_page
from umup.config import HPs, ModelConfig
from umup.errors import BookError, ConfigError
from umup.lab import claims
from umup.rules import Parametrization
from umup.schemes import SCHEMES

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"

MODEL = ModelConfig(
    d_model=192,
    d_head=48,
    n_layers=6,
    seq_len=64,
    base_width=48,
    base_depth=2,
    base_d_head=12,
)
VALUES = {"eta_emb": 3.0, "sigma_init": 5.0, "alpha_emb": 7.0, "alpha_output": 11.0}
VALUES |= {"alpha_attn_softmax": 13.0}
TOKENS = 1000
FANS = {"input": (500, 192), "hidden": (192, 330), "output": (192, 500)}
SYMBOLS = {
    r"\sigma_\text{init}": 5.0,
    r"\hat\eta_\text{emb}": 3.0,
    r"\alpha_\text{emb}": 7.0,
    r"\alpha_\text{output}": 11.0,
    r"\alpha_\text{attn}": 13.0,
    r"d_\text{head}": 48.0,
    r"d_\text{base head}": 12.0,
    r"\text{tokens}": 1000.0,
    r"\text{depth}": 12.0,
    r"\text{base-depth}": 4.0,
}
"""How the tables write a symbol, and its value here; depth counts branches."""


def value(latex: str, fan_in: float = 0.0, fan_out: float = 0.0) -> float:
    """A product of powers as the tables write it, evaluated."""
    fans = {"fan-in": fan_in, "base-fan-in": fan_in / 4, "fan-out": fan_out}
    fans["base-fan-out"] = fan_out / 4
    for name, number in (SYMBOLS | {rf"\text{{{n}}}": v for n, v in fans.items()}).items():
        latex = latex.replace(name, f"({number!r})")
    latex = latex.strip("$").replace(r"\,", "*")
    latex = re.sub(r"\^\{([\d.]+)\}", r"**\1", latex)
    latex = re.sub(r"\\sqrt\{([^{}]*)\}", r"((\1)**0.5)", latex)
    latex = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", latex)
    return eval(latex, {"__builtins__": {}})


def test_a_cell_is_read_as_it_is_written():
    cell = r"$\frac{\alpha_\text{output}\,\text{base-fan-in}}{\sqrt{\text{fan-in}}}$"
    assert value(cell, fan_in=16.0) == 11.0


def cells(style: str) -> dict[tuple[str, str], list[str]]:
    """(group, label) → the cells of a row of the table of all schemes."""
    text = rules.side_by_side(style, tuple(MAIN))
    bar, bold = ("|", r"\*\*(.*)\*\*") if style == "markdown" else ("&", r"\\textbf\{(.*)\}")
    found, group = {}, ""
    for line in text.splitlines():
        row = [cell.strip() for cell in line.strip("| ").removesuffix(r"\\").split(bar)]
        if head := re.fullmatch(bold, row[0]):
            group = head[1]
        elif group and len(row) > 1:
            found[group, row[0].replace("$", "").replace(r"\varepsilon", "ε")] = row[1:]
    return found


MAIN = [name for name, scheme in SCHEMES.items() if not scheme.parent]
FIELDS = {
    "init std": "init_std",
    "forward multiplier": "forward",
    "backward multiplier": "backward",
    "gradient multiplier": "weight_grad",
    "Adam LR factor": "adam_lr",
    "SGD LR factor": "sgd_lr",
    "Adam ε factor": "adam_eps",
}


@pytest.mark.parametrize("style", ["markdown", "latex"])
def test_the_table_of_all_schemes_has_the_numbers_of_the_rules(style):
    table = cells(style)
    assert len(table) == 3 * 7 + 4 + 2
    for column, name in enumerate(MAIN):
        known = SCHEMES[name].hps
        hps = HPs(**{hp: v for hp, v in VALUES.items() if hp in known}).to_dict()
        numbers = Parametrization(name, MODEL, hps, TOKENS)
        for role, fans in FANS.items():
            weight = numbers.weight(role, *fans)
            branch = numbers.weight(role, *fans, residual=True)
            for label, field in FIELDS.items():
                cell = table[f"{role.capitalize()} weights", label][column]
                right = getattr(weight, field)
                assert value(cell, *fans) == pytest.approx(right), (name, role, label)
                if field in ("adam_lr", "sgd_lr", "adam_eps"):
                    factor = value(table["Residual branches", label][column])
                    assert factor * right == pytest.approx(getattr(branch, field)), (name, label)
        logit, _ = numbers.attention(48, 64)
        q_k, multiplier = next(
            (row, table["Residual branches", "multiplier"])
            for (group, label), row in table.items()
            if group == "Attention" and label.startswith("multiplier of q")
        )
        assert value(q_k[column]) == pytest.approx(logit)
        out = table["Attention", "multiplier of the output"][column]
        if SCHEMES[name].unit_scaled:
            assert multiplier[column] == "$a_l, b_l$" and out == r"$1/\sigma$"
        else:
            assert value(multiplier[column]) == pytest.approx(numbers.residual()[0].add)
            assert value(out) == 1.0


def test_the_table_has_three_styles_and_the_columns_that_are_asked_for():
    heads = rules.side_by_side().splitlines()[0].split()
    assert heads == ["SP", "μP", "u-μP", "CompleteP"]
    latex = rules.side_by_side("latex", ("mup",)).splitlines()
    assert latex[1] == r" & $\mu$P \\"
    assert "ε" not in rules.side_by_side("latex") and "·" not in rules.side_by_side("latex")
    with pytest.raises(ConfigError, match="style: received 'html'"):
        rules.side_by_side("html")
    with pytest.raises(ConfigError, match="scheme: received 'ntp'"):
        rules.side_by_side("text", ("ntp",))


def test_every_scheme_has_its_table():
    whole = [s for s in SCHEMES.values() if not s.parent]
    text = theory_page.schemes()
    assert all(f"{{dropdown}} {s.title}\n" in text for s in whole)
    assert text.count("| Adam LR factor |") == text.count("| SGD LR factor |") == len(whole)
    for scheme in SCHEMES.values():
        if scheme.parent:
            assert f"| `{scheme.name}` | `{scheme.parent}` |" in theory_page.variants()


def test_the_picture_has_two_branches_per_block_and_their_shares():
    # τ_l = 1/(L + l − 1) at α̂ = 1; a product of b² leaves the embedding ½, every branch 1/2L.
    picture = theory_page.branches(2)
    assert picture.count(">attention<") == picture.count(">FFN<") == 2
    assert [f"= 1/{n}<" in picture for n in (4, 5, 6, 7)] == [True] * 4
    assert ">embedding 1/2<" in picture and picture.count(">1/8<") == 4
    assert 'role="img" aria-label="2 blocks are 4 residual branches' in picture
    assert "\n\n" not in picture  # a blank line ends HTML in Markdown
    assert f">{Fraction(1, 12)}<" in theory_page.branches(3)


def hand_written() -> dict[str, str]:
    """Name → text of the book's pages and of the sources of its studies."""
    paths = [*BOOK.glob("*.md"), *(ROOT / "experiments").glob("*/study.py")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def board() -> dict[str, claims.Verdict]:
    return {f"{v.study}/{v.id}": v for v in claims.board(ROOT / "experiments")}


def test_every_quoted_claim_is_on_the_board(board):
    for page, text in hand_written().items():
        filled = quotes.fill(page, text, board)
        assert not re.search(r"\{\{(badge|claim)\b", filled), page


def test_every_erratum_shows_a_verdict_or_says_that_none_is_measured():
    text = (BOOK / "errata.md").read_text(encoding="utf-8")
    whole = re.split(r"^\(erratum-(\d+)\)=$", text, flags=re.MULTILINE)
    parts = dict(zip(map(int, whole[1::2]), whole[2::2], strict=True))
    assert list(parts) == list(range(1, len(parts) + 1))
    rows = re.findall(r"^\* - \[(\d+)\]\(erratum-(\d+)\)", whole[0], re.MULTILINE)
    assert [(int(a), int(b)) for a, b in rows] == [(n, n) for n in parts]
    for number, part in parts.items():
        assert part.strip().startswith(f"## {number}. ")
        assert "{{claim " in part or "`tests/" in part, number
        assert "training" in part, number


def test_a_quote_is_the_verdict_of_the_board(board):
    page = "A {{badge residual_tau/lemma-derived}} b. {{claim residual_tau/lemma-derived}}"
    verdict = board["residual_tau/lemma-derived"]
    filled = quotes.fill("x.md", page, board)
    badge = f"{{bdg-info}}`{verdict.verdict}`"
    assert filled.startswith(f"A {badge} b. {badge} {verdict.statement} Measured: **")
    assert "[`lemma-derived`](studies/residual_tau.ipynb)" in filled
    with pytest.raises(BookError, match="residual_tau/gone"):
        quotes.fill("x.md", "{{badge residual_tau/gone}}", board)


def test_staged_pages_are_filled_in(tmp_path, board):
    (tmp_path / "a.md").write_text("{{badge residual_tau/lemma-derived}}", encoding="utf-8")
    (tmp_path / "b.md").write_text("{{ratio}} stays", encoding="utf-8")
    quotes.generate(tmp_path, board.values())
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "{bdg-info}`exact`"
    assert (tmp_path / "b.md").read_text(encoding="utf-8") == "{{ratio}} stays"


def test_every_citation_has_an_entry_and_every_entry_a_citation():
    entries = re.findall(r"^@\w+\{([\w-]+),", (BOOK / "references.bib").read_text("utf-8"), re.M)
    assert len(set(entries)) == len(entries)
    cited = {
        key.strip()
        for text in hand_written().values()
        for keys in re.findall(r"\{cite\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    assert cited == set(entries)


def test_the_theory_is_read_in_one_sitting():
    text = (BOOK / "theory.md").read_text(encoding="utf-8")
    open_text = re.sub(r"^`````\{dropdown\}.*?^`````$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(open_text.split()) <= 1500


def test_fragments_are_those_that_pages_include():
    included = set()
    for text in hand_written().values():
        included |= set(re.findall(r"\{include\} _generated/([\w-]+)\.md", text))
    assert set(theory_page.fragments()) <= included
