"""The figure of the study ``judging``: how often each kind of interval covers, by setting."""

from __future__ import annotations

from matplotlib.figure import Figure

from umup.lab import figures, plots
from umup.lab.records import Results

from . import results as tables

LEAST = 70
"""The left edge, %: what lies below it is an arrow there."""


@figures.drawn
def coverage(results: Results) -> Figure:
    """Share of the intervals that cover, a panel per kind; the band is the claims' bound."""
    table = tables.table(results)
    settings = list(dict.fromkeys(table["setting"]))
    with figures.style():
        height = 1.3 + 0.3 * len(settings)
        figure, axes = figures.subplots(7.2, height, len(tables.JUDGED), sharey=True)
        for ax, (of, title) in zip(axes, tables.JUDGED.items(), strict=True):
            own = table[table["of"] == of]
            plots.band(ax, 93, 97, along="x")
            ax.axvline(95, ls=":", color=plots.GUIDE, lw=1.5)
            for y, row in enumerate(own.to_dict("records")):
                control = row["setting"] == "parabola"
                colour = figures.OTHER if control else figures.COLOURS["umup"]
                reach = [[row["share"] - row["share_lo"]], [row["share_hi"] - row["share"]]]
                if row["share"] < LEAST:
                    ax.plot(LEAST + 1, y, "<", ms=6, color=colour)
                    continue
                style = {"fmt": "o", "ms": 5, "color": colour, "capsize": 2}
                ax.errorbar(row["share"], y, xerr=reach, **style)
            ax.set_xlim(LEAST, 101)
            ax.set_title(title.replace(" ", "\n", 1), fontsize=9)
            ax.set_xlabel("covered, %")
        axes[0].set_yticks(range(len(settings)), settings)
        axes[0].invert_yaxis()
    return figure
