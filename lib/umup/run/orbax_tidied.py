"""Contains the effects of orbax's failed reads and writes on the rest of the process.

Orbax logs, with their tracebacks, failures that it also raises. When it reads or writes several
arrays together, it raises the first failure and closes the event loop on the others, each of which
then reports an unraisable error at some later time. It has no option to change either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator


class _TidyLoops(asyncio.AbstractEventLoopPolicy):  # pyright: ignore[reportGeneralTypeIssues]
    """The usual event loops, except that closing one first cancels its remaining tasks."""

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
                # A cancelled read or write may end in its thread after the loop is closed.
                if not loop.is_closed():
                    raise

        loop.close = end_and_close
        loop.call_soon_threadsafe = hand_over_while_open  # pyright: ignore
        return loop


_at_work: list[object] = []  # a mark for each operation in hand


@contextlib.contextmanager
def orbax_tidied() -> Iterator[None]:
    """In the block, orbax's failures cancel the operations beside them and are raised, not logged.

    Both settings apply to the whole process: the first of overlapping blocks sets them, and the
    last to end resets them. Enter before orbax starts its threads, which create their own loops.
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
