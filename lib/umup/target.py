"""For which platform programs are traced: that of the default device, unless another is named.

A few places trace one program for a CPU and another for an accelerator. They ask here, so that a
machine without an accelerator can lower, and test, what one with an accelerator would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_NAMED: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``, as ``jax.default_backend`` names them."""
    return _NAMED.get() or jax.default_backend()


@contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Within it ``platform()`` is ``name``. What is compiled there may not run on this machine."""
    token = _NAMED.set(name)
    try:
        yield
    finally:
        _NAMED.reset(token)
