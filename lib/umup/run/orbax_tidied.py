"""What a failed read or write of orbax does to the whole process, held back while orbax works.

Orbax offers no option for either: it logs, traceback and all, the failures that it also raises,
and of arrays that it reads or writes together it raises the first failure and closes the event
loop on the others, each of which then complains, unraisably and at any later time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator


class _TidyLoops(asyncio.AbstractEventLoopPolicy):  # pyright: ignore[reportGeneralTypeIssues]
    """Event loops as before, but one that is closed first ends the tasks that it still holds."""

    def __init__(self, before: asyncio.AbstractEventLoopPolicy):
        self.before = before

    def get_event_loop(self) -> asyncio.AbstractEventLoop:
        return self.before.get_event_loop()

    def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.before.set_event_loop(loop)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = self.before.new_event_loop()
        close = loop.close

        def end_and_close() -> None:
            if left := asyncio.all_tasks(loop):
                for task in left:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            close()

        hand_over = loop.call_soon_threadsafe

        def hand_over_while_open(*args, **named):
            try:
                return hand_over(*args, **named)
            except RuntimeError:
                # A read or write that was cancelled may end in its thread after the loop has.
                if not loop.is_closed():
                    raise

        loop.close = end_and_close
        loop.call_soon_threadsafe = hand_over_while_open  # pyright: ignore
        return loop


_at_work: list[object] = []  # a mark for each operation in hand


@contextlib.contextmanager
def orbax_tidied() -> Iterator[None]:
    """While the block runs, what orbax does ends with its failure, and is raised but not logged.

    Both settings are the process's: the first of overlapping blocks makes them, and the last to
    end takes them back. Enter before orbax starts its threads, which make their own loops.
    """
    mark, absl = object(), logging.getLogger("absl")
    if not _at_work:
        asyncio.set_event_loop_policy(_TidyLoops(asyncio.get_event_loop_policy()))
        absl.addFilter(_no_error_of_orbax)
    _at_work.append(mark)
    try:
        yield
    finally:
        _at_work.remove(mark)
        if not _at_work:
            absl.removeFilter(_no_error_of_orbax)
            if isinstance(policy := asyncio.get_event_loop_policy(), _TidyLoops):
                asyncio.set_event_loop_policy(policy.before)


def _no_error_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname
