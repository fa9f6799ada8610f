"""The platform that programs are traced for: the default device's, unless another is named.

Some functions trace one program for a CPU and another for an accelerator. They read the platform
here, so that a machine without an accelerator can lower and test an accelerator's program.
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
    """A context in which ``platform()`` is ``name``; programs compiled in it may not run here."""
    token = _NAMED.set(name)
    try:
        yield
    finally:
        _NAMED.reset(token)
