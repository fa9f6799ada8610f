"""The generated parts of the pages on theory: tables of the rules, and the picture of branches."""

from __future__ import annotations

from fractions import Fraction

from umup import rules, size_rules


def _grid(markdown: str, caption: str = "", name: str = "", kind: str = "") -> str:
    """A Markdown table with what the book knows of it."""
    options = {":name:": name, ":class:": kind}
    lines = [f"{option} {value}" for option, value in options.items() if value]
    return "\n".join([f"```{{table}} {caption}".rstrip(), *lines, "", markdown, "```", ""])


def _foldout(title: str, *parts: str) -> str:
    """Parts behind a title that opens them."""
    return "\n".join([f"`````{{dropdown}} {title}", *parts, "`````", ""])


def side_by_side() -> str:
    """The schemes in one table; below it intermediate μP, and the table as LaTeX."""
    caption = "What each scheme gives every weight, branch and attention."
    grid = rules.side_by_side("markdown")
    twins = rules.side_by_side("markdown", ("mup", "mup_intermediate", "umup"))
    latex = rules.side_by_side("latex")
    return "\n".join(
        [
            _grid(grid, caption, "tab-side-by-side", "wide"),
            _foldout("Intermediate μP, between μP and u-μP", _grid(twins, kind="wide")),
            _foldout(
                "The table as LaTeX, to copy (it needs amsmath)", "```latex", latex, "```", ""
            ),
        ]
    )


def schemes() -> str:
    """Every scheme by itself, in a foldout, with its hyperparameters."""
    parts = []
    for name, scheme in rules.SCHEMES.items():
        if scheme.parent:
            continue
        hps = ", ".join(f"`{hp}`" for hp in scheme.hps)
        grid = _grid(rules.table(name, style="markdown"), kind="wide")
        text = f"In the code `{name}`. Its hyperparameters: {hps}.\n"
        parts.append(_foldout(scheme.title, text, grid))
    return "\n".join(parts)


def variants() -> str:
    """What every variant changes."""
    return _grid(rules.variants_table(style="markdown"), kind="wide")


def sizes() -> str:
    """The rules of batch and duration."""
    return _grid(size_rules.table(), kind="wide wider")


_ROW, _STREAM, _BOX = 68, 76, 190
"""Height of a branch; x of the stream and of the middle of the branches, in pixels."""


def _text(x: float, y: float, words: str, size: int = 14, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def _sub(letter: str, number: int) -> str:
    """A letter with an index."""
    return f'{letter}<tspan dy="4" font-size="10">{number}</tspan><tspan dy="-4">&#8203;</tspan>'


def _box(x: float, y: float, width: float, words: str, fill: str) -> str:
    box = f'<rect x="{x}" y="{y}" width="{width}" height="28" rx="7" {fill} stroke-width="1.3"/>'
    return box + _text(x + width / 2, y + 19, words, anchor="middle")


_FILLS = (
    'fill="var(--umup-teal, #1f6f63)" fill-opacity="0.28" stroke="currentColor"',
    'fill="currentColor" fill-opacity="0.06" stroke="currentColor"',
)
"""Of attention and of FFN branches."""


def branches(n_layers: int = 2) -> str:
    """An SVG of the residual branches of a few blocks, with τ of each and its share of the output.

    It takes its colours from the page, so that it serves the light and the dark theme.
    """
    taus = [Fraction(t).limit_denominator(1000) for t in rules.residual_taus(n_layers)]
    total = 2 * n_layers
    lines = [_box(_STREAM - 50, 8, 100, "embedding", _FILLS[1])]
    for i, tau in enumerate(taus):
        top = 44 + _ROW * i
        add = top + 52
        kind = ("attention", "FFN")[i % 2]
        lines += [
            f'<path d="M{_STREAM} {top - 8 - 8 * (i > 0)} V{add - 9}" class="line"/>',
            f'<path d="M{_STREAM} {top + 2} H{_BOX} V{top + 11} m-4 -5 l4 5 l4 -5" class="line"/>',
            _box(_BOX - 50, top + 12, 100, kind, _FILLS[i % 2]),
            f'<path d="M{_BOX} {top + 40} V{add} H{_STREAM + 10} m5 -4 l-5 4 l5 4" class="line"/>',
            f'<circle cx="{_STREAM}" cy="{add}" r="8" class="line"/>',
            f'<path d="M{_STREAM - 4} {add} h8 M{_STREAM} {add - 4} v8" class="line"/>',
            _text(_STREAM - 8, top + 32, f"·{_sub('b', i + 1)}", anchor="end"),
            _text(_STREAM + 24, add - 7, f"·{_sub('a', i + 1)}"),
            _text(_BOX + 62, top + 22, f"{_sub('τ', i + 1)} = {tau}"),
            _text(_BOX + 62, top + 40, f"a² = {tau / (tau + 1)}, b² = {1 / (tau + 1)}", 12),
        ]
    for block in range(n_layers):
        top = 46 + 2 * _ROW * block
        middle = top + _ROW - 6
        lines += [
            f'<path d="M28 {top} h-6 v{2 * _ROW - 16} h6" class="line"/>',
            f'<text x="14" y="{middle}" font-size="12" text-anchor="middle" '
            f'transform="rotate(-90 14 {middle})">block {block + 1}, ℓ = {block}</text>',
        ]
    end = 44 + _ROW * total
    lines += [
        f'<path d="M{_STREAM} {end - 8} V{end + 7} m-4 -5 l4 5 l4 -5" class="line"/>',
        _box(_STREAM - 50, end + 8, 100, "output", _FILLS[1]),
        _text(_BOX - 50, end + 27, "its variance comes from", 13),
    ]
    # What reaches the output: a² of the branch times b² of all branches above it.
    left, shares = 8.0, [Fraction(1)]
    for tau in taus:
        shares = [share / (tau + 1) for share in shares] + [tau / (tau + 1)]
    for i, share in enumerate(shares):
        width = 344 * float(share)
        lines.append(
            f'<rect x="{left:.1f}" y="{end + 44}" width="{width:.1f}" height="26" '
            f'{_FILLS[i == 0 or (i - 1) % 2]} stroke-width="1"/>'
        )
        words = f"embedding {share}" if i == 0 else str(share)
        lines.append(_text(left + width / 2, end + 62, words, 12, "middle"))
        left += width
    title = (
        f"{n_layers} blocks are {total} residual branches, attention and FFN in turn. Each is "
        "added to the stream with weight a, the stream with weight b; at the output the embedding "
        f"has {shares[0]} of the variance and every branch {shares[1]}."
    )
    style = ".branches .line{fill:none;stroke:currentColor;stroke-width:1.5}"
    return "\n".join(
        [
            '<figure class="branches">',
            f'<svg viewBox="0 0 360 {end + 78}" role="img" aria-label="{title}" '
            'xmlns="http://www.w3.org/2000/svg" fill="currentColor">',
            f"<title>{title}</title><style>{style}</style>",
            *lines,
            "</svg>",
            "</figure>",
            "",
        ]
    )


def fragments() -> dict[str, str]:
    """All parts by name."""
    return {
        "side-by-side": side_by_side(),
        "schemes": schemes(),
        "variants": variants(),
        "sizes": sizes(),
        "branches": branches(),
    }
