"""Errors that say which field is wrong, what was received and what is allowed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class UmupError(ValueError):
    """Base of all errors umup raises on bad input.

    Args:
        field: the name of the offending field, file or argument.
        received: the value that was given.
        allowed: the values that are accepted, or what to do.
    """

    def __init__(self, field: str, received: object, allowed: str):
        super().__init__(field, received, allowed)
        self.field, self.received, self.allowed = field, received, allowed

    def __str__(self) -> str:
        text = f"{self.field}: received {self.received!r}; allowed: {self.allowed}"
        # A path that is not UTF-8 holds surrogates, which no terminal takes.
        return text.encode(errors="backslashreplace").decode()


class ConfigError(UmupError):
    """A configuration value, hyperparameter or shape is out of range."""


class DataError(UmupError):
    """A corpus, tokenizer or token cache is missing, changed or too short."""


class RecordError(UmupError):
    """A record or a shard of records is malformed or cannot be written."""


class StudyError(UmupError):
    """A study, profile, notebook or papermill parameter is unknown or malformed."""


class ClaimError(UmupError):
    """A claims file is malformed."""


class BookError(UmupError):
    """The book's sources are missing or malformed, so that it cannot be built."""


class CheckpointError(UmupError):
    """A checkpoint is missing, damaged, of another run or of a newer umup, or cannot be written."""


class TrainError(UmupError):
    """A training run cannot start, go on, or be forked as asked."""


class PlanError(UmupError):
    """A plan is impossible: the run does not fit, or there is nothing to plan."""


class OutOfMemoryError(UmupError):
    """The host or a device has less memory than the request needs."""


@contextlib.contextmanager
def memory_for(field: str, received: object, allowed: str) -> Iterator[None]:
    """Run a block that may need more memory than there is.

    Args:
        field, received, allowed: those of the error: what was requested, and what needs less.

    Raises:
        OutOfMemoryError: the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:  # JAX's own error is a RuntimeError
        said, signs = str(error), ("RESOURCE_EXHAUSTED", "ut of memory", "bad_alloc")
        known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
        if not known and not any(sign in said for sign in signs):
            raise
        reason = said.splitlines()[0][:200] if said else "the host has none left"
        allowed = f"{allowed} (out of memory: {reason})"
        raise OutOfMemoryError(field, received, allowed) from error
