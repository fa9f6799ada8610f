"""The interactive learning-rate curves of study pages: which figures have them, and their data.

A block stands below the static figure of the same data: curves of held-out loss against η, a panel
per scheme and a line per size (width, steps, depth, ...), and a table of what an η of the reader's
costs at every size. Without a script it is hidden. Its sources are in ``book/curves``: our style,
form and ``curves.js``, and the library that draws, uPlot 1.6.32 as it is published on npm. The data
are inline, so that a page works from a file; scripts are files that its pages alone load.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.colors import to_hex

from umup.errors import BookError
from umup.lab import plots, tables
from umup.lab.absent import NotMeasured
from umup.lab.folders import code
from umup.lab.records import Results, read_results
from umup.lab.study import store

LIBRARY = "uPlot.iife.min.js"
SCRIPTS = (LIBRARY, "curves.js")
FILES = (*SCRIPTS, "uPlot.LICENSE")
"""What a site needs in its folder ``curves``."""
OPEN = 1.0
"""Octaves to which an interval of a best η is drawn where it has no end, as in `plots.star`."""
LIGHTER = 0.4
"""Share of white in a line's colour on a dark page."""


class View(NamedTuple):
    """A choice of what varies from line to line.

    Attributes:
        title: in the list of views.
        size: what varies.
        panels: name of a scheme → value → the runs of one curve.
        above: whether losses are first shown above each curve's lowest.
    """

    title: str
    size: str
    panels: Mapping[str, Mapping[float, pd.DataFrame]]
    above: bool = False


def over_width_and_steps(results: Results, folder: Path) -> Iterator[View]:
    """Every horizon of two widths or more and every width of two horizons, the fullest first."""
    runs = tables.prepare(results.runs)
    names = {"d_model": "width", "steps": "steps"}
    for fixed, size in (("steps", "d_model"), ("d_model", "steps")):
        found = [(at[size].nunique(), value, at) for value, at in runs.groupby(fixed)]
        for _, value, at in sorted(found, key=lambda one: one[:2], reverse=True):
            of = f"{value} steps" if fixed == "steps" else f"width {value}"
            schemes = at.groupby("scheme", sort=False)
            panels = {tables.NAMES[name]: dict(iter(own.groupby(size))) for name, own in schemes}
            yield View(f"{names[size]}, at {of}", names[size], panels)  # type: ignore[arg-type]


def over_depth(results: Results, folder: Path) -> Iterator[View]:
    """The arms of ``residual_tau``."""
    own = code(folder).results
    arms = dict(iter(own.by_depth(results).groupby("scheme")))
    panels = {
        arm.title: dict(iter(arms[name].groupby("d_model")))
        for name, arm in own.ARMS.items()
        if name in arms
    }
    yield View("depth", "depth", panels)  # type: ignore[arg-type]


def over_axes(results: Results, folder: Path) -> Iterator[View]:
    """The axes of ``transfer_axes``, whose losses at different values lie far apart."""
    own = code(folder).results
    for name, axis in own.AXES.items():
        panels = {}
        for scheme in own.SCHEMES:
            try:
                panels[tables.NAMES[scheme]] = own.curves(results.runs, name, scheme)
            except NotMeasured:
                continue
        yield View(axis.title, axis.title.split(",")[0], panels, above=True)


class Place(NamedTuple):
    """The figure below which a block stands, and its views."""

    figure: str
    views: Callable[[Results, Path], Iterator[View]]


PLACES: Mapping[str, Place] = {
    "lr_transfer": Place("fig-lr-transfer", over_width_and_steps),
    "residual_tau": Place("fig-tau-losses", over_depth),
    "transfer_axes": Place("fig-axes-shifts", over_axes),
}
"""By study."""


def curve(runs: pd.DataFrame) -> dict[str, Any]:
    """One curve: ``points`` of `tables.loss_by_lr`, ``best`` of `tables.fits`, null without.

    Points are [log2 η, mean, lo, hi, seeds, diverged runs], each seed's own level taken out
    (`tables.levelled`), as in the figure of ``lr_transfer``. The best is [log2 η, lo, hi, loss]; an
    open end of its interval is ``OPEN`` away.
    """
    prepared = tables.prepare(runs)
    losses = tables.loss_by_lr(tables.levelled(prepared, "log2_lr", "val_loss"))
    columns = losses[["log2_lr", "mean", "lo", "hi", "n", "n_diverged"]]
    (best,) = tables.fits(runs).values()
    ends = (best.x_lo, best.x_hi)
    reach = (end if math.isfinite(end) else best.x + math.copysign(OPEN, end) for end in ends)
    star = None if best.edge else _plain((best.x, *reach, best.loss))
    return {"points": [_plain(row) for row in columns.itertuples(index=False)], "best": star}


def _plain(values: Any) -> list[float | None]:
    """Numbers as JSON has them, to five decimals; null for what is not finite."""
    return [round(float(v), 5) if math.isfinite(v) else None for v in values]


def data(views: Iterator[View]) -> dict[str, Any]:
    """The page's data: ``curves``, each once, and ``views`` that name them by their place.

    A scheme with fewer than two curves that have a loss is left out, and so is a view without
    schemes. A panel's ``from`` is the best η of its first curve, as fitted or, where that is not
    bracketed, as measured.
    """
    places: dict[str, int] = {}
    shown = []
    for view in views:
        measured = {}
        for name, own in view.panels.items():
            made = {value: curve(runs) for value, runs in own.items()}
            made = {value: one for value, one in made.items() if _losses(one)}
            if len(made) > 1:
                measured[name] = made
        if measured:
            shown.append(_view(view, measured, places))
    return {"views": shown, "curves": [json.loads(text) for text in places]}


def _view(view: View, measured: Mapping[str, Mapping[float, Any]], places: dict[str, int]) -> dict:
    """One view of the page's data; new curves are added to ``places`` as JSON."""
    values = sorted({value for made in measured.values() for value in made})
    panels = []
    for name, made in measured.items():
        numbers = [
            places.setdefault(json.dumps(made[value]), len(places)) if value in made else None
            for value in values
        ]
        panels.append({"name": name, "from": _start(made[min(made)]), "curves": numbers})
    curves = [one for made in measured.values() for one in made.values()]
    losses = list(chain.from_iterable(map(_losses, curves)))
    best = [one["best"][3] for one in curves if one["best"]]
    colours = plots.sequence(values).values()
    return {
        "title": view.title,
        "size": view.size,
        "above": view.above,
        "values": [int(value) for value in values],
        "light": [to_hex(c) for c in colours],
        "dark": [to_hex((*(x + LIGHTER * (1 - x) for x in c),)) for c in colours],
        "y": _plain(plots.window(min(losses + best), best, most=max(losses))),
        "panels": panels,
    }


def _losses(one: Mapping[str, Any]) -> list[float]:
    return [point[1] for point in one["points"] if point[1] is not None]


def _start(one: Mapping[str, Any]) -> float:
    measured = [point for point in one["points"] if point[1] is not None]
    return one["best"][0] if one["best"] else min(measured, key=lambda point: point[1])[0]


def block(found: Mapping[str, Any], sources: Path) -> str:
    """The block as HTML, hidden until its script shows it.

    Args:
        found: of `data`.
        sources: the folder with the style and the form.
    """
    names = ("uPlot.min.css", "curves.css", "curves.html")
    library, look, form = ((sources / name).read_text(encoding="utf-8") for name in names)
    known = json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("</", r"<\/")
    loads = "\n".join(f'<script defer src="../curves/{name}"></script>' for name in SCRIPTS)
    return (
        f"<style>\n{library}\n{look}</style>\n{form}"
        f'<script type="application/json" id="curves-data">{known}</script>\n{loads}'
    )


def add(notebook: dict[str, Any], figure: str, html: str) -> None:
    """Insert a block below a figure of a rendered notebook.

    Raises:
        BookError: the notebook has no such figure.
    """
    for number, cell in enumerate(notebook["cells"]):
        if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == figure:
            source = f"````{{raw}} html\n{html}\n````"
            own = {"cell_type": "markdown", "id": "curves", "metadata": {}, "source": source}
            notebook["cells"].insert(number + 1, own)
            return
    raise BookError("curves_page.PLACES", figure, "the name of a figure of the study's notebook")


def generate(folder: Path, profile: str, page: Path, sources: Path, site: Path) -> None:
    """Add the block to a study's rendered page, if the study has curves and records of them.

    Args:
        folder: of the study. profile: whose records. page: its rendered notebook, changed in place.
        sources: ``book/curves``. site: the folder of what stands beside the site's pages.

    Raises:
        BookError: the notebook lacks the figure.
    """
    if folder.name not in PLACES:
        return
    figure, views = PLACES[folder.name]
    results = read_results(store(folder, profile))
    try:
        found = data(views(results, folder))
    except NotMeasured:
        return
    if not found["views"]:
        return
    notebook = json.loads(page.read_text(encoding="utf-8"))
    add(notebook, figure, block(found, sources))
    page.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")
    (site / "curves").mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(sources / name, site / "curves")
