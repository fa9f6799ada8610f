"""Show a docstring that is not valid reStructuredText as plain text, and name it.

Warnings are errors in this book. A docstring is read in an editor first, so a stray asterisk in it
is not worth a failed build: it is shown verbatim, and its name goes to `plain_docstrings.txt`
beside the site, which the builder prints.
"""

import io
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree
from docutils.utils import SystemMessage
from sphinx.ext.napoleon.docstring import GoogleDocstring

plain: list[str] = []


def problem(text: str, env=None) -> str:
    """The first complaint docutils has about `text`, or an empty string."""
    stream = io.StringIO()
    settings = {"report_level": 2, "halt_level": 5, "warning_stream": stream, "env": env}
    settings |= {"doctitle_xform": False}
    try:
        tree = publish_doctree(text, settings_overrides=settings)
    except (SystemMessage, AttributeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    if next(tree.findall(nodes.section), None) is not None:
        return "docstring: a section title, which has no place inside a definition"
    lines = stream.getvalue().splitlines()
    return lines[0] if lines else ""


def parse_whole(self):
    """Napoleon takes what precedes a colon in a constant's first line for its type: don't."""
    self._what = "function"
    self._parse()
    return []


def on_docstring(app, what, name, obj, options, lines):
    found = problem("\n".join(lines), app.env)
    if found:
        plain.append(f"{name}: {found.split(':', 2)[-1].strip()}")
        lines[:] = ["::", "", *("    " + line for line in lines), ""]


def on_finish(app, exception):
    if exception is None:
        Path(app.outdir, "plain_docstrings.txt").write_text("\n".join(sorted(set(plain))), "utf-8")


def setup(app):
    GoogleDocstring._parse_attribute_docstring = parse_whole
    app.connect("autodoc-process-docstring", on_docstring, priority=900)  # after napoleon
    app.connect("build-finished", on_finish)
    return {"parallel_read_safe": False}
