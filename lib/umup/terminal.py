"""What a terminal, pipe or file in the place of one can take: characters, columns, its end."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import unicodedata
from collections.abc import Sequence

SPELLED = {
    "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "±": "+-", "√": "sqrt", "∞": "inf",
    "→": "->", "≤": "<=", "≥": ">=", "≈": "~", "½": "1/2", "‘": "'", "’": "'", "“": '"', "”": '"',
    "µ": "mu",
}  # fmt: skip
"""What stands for a character where an encoding lacks it, beside the rules of `spelled`."""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, as wide as their widest cells."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def spelled(character: str) -> str:
    """A character in ASCII: ``eta`` for η, ``x`` for ×, ``.`` for a dot of a plot, or ``?``."""
    name = unicodedata.name(character, "")
    if letter := re.match(r"GREEK (?:SMALL|CAPITAL) LETTER (\w+)", name):
        return letter[1].lower()
    if name.startswith("BRAILLE"):
        return " " if name.endswith("BLANK") else "."
    if name.startswith("BOX DRAWINGS"):
        sides = ("HORIZONTAL" in name, "VERTICAL" in name)
        return {(True, False): "-", (False, True): "|"}.get(sides, "+")
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return SPELLED.get(character) or plain or "?"


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(spelled, error.object[error.start : error.end])), error.end


def prepare() -> None:
    """Let standard output and error take every character, whatever their encoding, or be closed."""
    codecs.register_error("umup", _spell)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="umup")


def writable() -> bool:
    """False where standard output's reader is gone or its disk is full; no more is written then.

    Python writes what is left in its buffer when it ends, and would complain.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return False
    return True
