"""Nothing leaves the page: MathJax comes with the site, and the live-code extension is shut off.

Jupyter Book always loads sphinx_thebe, which names a CDN on every page and, when it is run twice,
declares its constants twice, a script error. It has no switch: its listeners are taken out.
"""

import importlib.util
import shutil
from pathlib import Path

# The parts that our formulas need: the bundle of all is twice as large, with menus and speech.
MATHJAX = (
    "startup.js",
    "core.js",
    "input/tex-base.js",
    "input/tex/extensions",
    "output/chtml.js",
    "output/chtml/fonts",
)


def drop_thebe(app):
    for listeners in app.events.listeners.values():
        ours = [one for one in listeners if one.handler.__module__ == "sphinx_thebe"]
        for listener in ours:
            app.disconnect(listener.id)
    app.registry.css_files[:] = [c for c in app.registry.css_files if "thebe" not in c[0]]


def copy_mathjax(app, exception):
    if exception or app.builder.format != "html":
        return
    # The package name has a hyphen, so it can be found but not imported by statement.
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None:
        raise RuntimeError("sphinx-mathjax-offline is not installed: pip install 'umup[book]'")
    source = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def setup(app):
    app.connect("builder-inited", drop_thebe, priority=0)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
