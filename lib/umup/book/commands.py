"""``umup book`` and ``umup new-study``: their options and their actions.

What needs more than these is imported when a command is called.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from umup.command import Argument, Option
from umup.errors import UmupError


@dataclass(frozen=True)
class Book:
    """Build the book into book/_build/html.

    examples:
      umup book --no-live
      umup book --pdf        and book/_build/umup.pdf, all pages but the library reference
      umup book check        what is built: is it whole, does it load anything from elsewhere
      umup book picture      draw the README's picture anew from the records
    """

    action: Annotated[Literal["build", "check", "picture"], Argument("build, check or picture")] = (
        "build"
    )
    no_live: Annotated[bool, Option("skip the live smoke runs")] = False
    pdf: Annotated[bool, Option("build, then print all pages into one PDF")] = False
    root: Annotated[Path | None, Option("the checkout (default: found by itself)", "FOLDER")] = None

    def __call__(self) -> int:
        """Run the command; 0, or 1 if the site is incomplete or cannot be built, with a message."""
        from umup.book import site

        try:
            root = self.root or site.find_root()
            if self.action == "build":
                say = functools.partial(print, flush=True)
                site.build(root, live=not self.no_live, pdf=self.pdf, say=say)
                return 0
            if self.action == "picture":
                print(site.picture(root).relative_to(root))
                return 0
            problems = site.check(root / "book" / "_build" / "html")
            print("\n".join(problems) or "ok")
            return int(bool(problems))
        except UmupError as error:  # what was received may be a log of many lines
            received = error.received
            shown = received if isinstance(received, str) and "\n" in received else repr(received)
            print(f"{error.field}: received {shown}\nallowed: {error.allowed}", file=sys.stderr)
            return 1


@dataclass(frozen=True)
class NewStudy:
    """Make a study of your own that passes all checks, in the folder experiments.

    example:
      umup new-study batch_size --title 'Does the best learning rate follow the batch?'
    """

    name: Annotated[str, Argument("a to z, 0 to 9 and _; of its folder")]
    title: Annotated[
        str | None, Option("first heading of its page (default: the name in words)")
    ] = None

    def __call__(self) -> int:
        """Make the study, and print what to do with it; returns 0.

        Raises:
            StudyError: the name is malformed, or there is no folder ``experiments``.
        """
        from umup.book import new_study

        made = new_study.create(new_study.home(), self.name, self.title)
        print(new_study.next_steps(self.name, made))
        return 0
