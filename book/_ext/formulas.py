"""Formulas are written into the pages as MathML, which browsers draw without a script.

Sphinx's own renderer leaves the TeX in the page for MathJax, 0.7 MB of script for a reader. Here
`math_core` converts every formula as the page is written; TeX that it does not know is a warning,
and a warning fails the book.
"""

import re
from html import escape

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

CONVERTER = LatexToMathML(annotation=True, fancy_error=False)

# Sphinx numbers equations that have a label, so an environment numbers none by itself.
NUMBERED = re.compile(r"\\(begin|end)\{(align|alignat|equation|flalign|gather|multline)\}")
SPLIT = re.compile(r"\\(begin|end)\{split\}")
# Extra room after a line, as in \\[1ex]: the converter would print it. The style sheet gives room.
ROOM = re.compile(r"\\\\\s*\[[^]]*\]")


def mathml(tex: str, *, display: bool) -> str:
    r"""A formula as a <math> element, its TeX kept as an annotation.

    Args:
        tex: the formula without its delimiters; blank lines separate the lines of a display.
        display: True for a formula on its own line.

    Raises:
        LatexError: the converter does not know a command, or the formula is not whole.
    """
    lines = [part.strip() for part in re.split(r"\n\s*\n", tex) if part.strip()]
    tex = r" \\ ".join(lines)
    tex = NUMBERED.sub(r"\\\1{\2*}", ROOM.sub(r"\\\\", SPLIT.sub(r"\\\1{aligned}", tex)))
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
    return CONVERTER.convert_with_local_state(tex, displaystyle=display)


def converted(node: nodes.Element, *, display: bool) -> str:
    """The formula of a node; one that cannot be converted is warned of, and shown as TeX."""
    try:
        return mathml(node.astext(), display=display)
    except LatexError as error:
        text = " ".join(node.astext().split())
        logging.getLogger(__name__).warning("formula %s: %s", text, error, location=node)
        return f"<code>{escape(text)}</code>"


def visit_inline(self, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(converted(node, display=False) + "</span>")
    raise nodes.SkipNode


def visit_display(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(converted(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
