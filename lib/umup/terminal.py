"""Output to a terminal, or to a pipe or file in its place: its characters, and progress lines."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from umup.errors import TrainError

SPELLED = {
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "±": "+-",
    "√": "sqrt",
    "∞": "inf",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "½": "1/2",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "µ": "mu",
}
"""Replacements for characters that an encoding lacks, beside the rules of `spelled`."""


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
    """Make standard output and error accept every character, whatever their encoding, or closed."""
    codecs.register_error("umup", _spell)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="umup")


def writable() -> bool:
    """False if the reader of standard output is gone or its disk is full; output then stops.

    Otherwise Python would flush its buffer at exit and print an error.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return False
    return True


@dataclass
class Progress:
    """Progress, one line per chunk, to a log file and to the terminal if there is one.

    A notebook's outputs get none of it: they must not depend on the machine's speed.
    """

    log_file: Path | None = None
    clock: Callable[[], float] = time.monotonic
    started: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """Write one line, stamped with the seconds since the start.

        Raises:
            TrainError: the log file cannot be written.
        """
        stamped = f"[{self.clock() - self.started:8.1f} s] {text}"
        try:
            if self.log_file is not None:
                self.log_file.parent.mkdir(parents=True, exist_ok=True)
                with self.log_file.open("a", encoding="utf-8") as file:
                    file.write(stamped + "\n")
        except OSError as error:
            todo = "a file that can be written, on a disk with room; the same command then resumes"
            raise TrainError(str(self.log_file), error.strerror or str(error), todo) from error
        with self._terminal() as terminal, contextlib.suppress(OSError):  # its reader may have left
            if terminal is not None:
                print(stamped, file=terminal, flush=True)

    @staticmethod
    def wanted() -> bool:
        """Whether progress goes to standard error: it is a terminal, or UMUP_PROGRESS=1 is set."""
        asked = os.environ.get("UMUP_PROGRESS") == "1"
        return sys.__stderr__ is not None and (asked or sys.__stderr__.isatty())

    def _terminal(self) -> contextlib.AbstractContextManager[TextIO | None]:
        if self.wanted():
            return contextlib.nullcontext(sys.__stderr__)
        return kernel_terminal() or contextlib.nullcontext(None)


def in_kernel() -> bool:
    """Whether this process is a Jupyter kernel: its standard error is an output."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


def kernel_terminal() -> TextIO | None:
    """The terminal behind a Jupyter kernel, or None."""
    if in_kernel():
        with contextlib.suppress(OSError):
            return open("/dev/tty", "w", encoding="utf-8")
    return None
