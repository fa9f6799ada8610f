"""Atomic file writes, file locks, what a failed write means, and where a checkout is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from umup.errors import UmupError

_REMEDY = {
    errno.ENOSPC: "free some disk space and run the same command again",
    errno.EDQUOT: "free some of your disk quota and run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "no permission to write: choose another folder or change its mode",
    errno.EPERM: "no permission to write: choose another folder or change its mode",
}


def bases() -> tuple[Path, ...]:
    """Where a checkout of umup may be: the current folder, those above it, the library's own."""
    here = Path.cwd().resolve()
    return (here, *here.parents, Path(__file__).resolve().parents[2])


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends, and not before.

    Readers see the old file or the new one. Data is written to a hidden file beside it,
    ``.NAME.*.tmp``, which is synced to disk before it is renamed; it is removed if the block
    raises, and left behind if the process is killed. The folder is created if it does not exist.

    Raises:
        OSError: the file cannot be written; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id alone would recur: containers on two nodes both have a process 1.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # the rename, too, where the file system can sync a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path, kind: type[UmupError], intact: str) -> Iterator[None]:
    """Turn a failed write into an error that says why it failed and what to do.

    Args:
        path: the file to be written; the error's field.
        kind: the class of the error.
        intact: what the failure left unharmed, for the end of the message.
    """
    try:
        yield
    except OSError as error:
        todo = _REMEDY.get(error.errno or 0, "a writable folder")
        received = f"write failed: {error.strerror or error}"
        raise kind(str(path), received, f"{todo}; {intact}") from error


def lock(descriptor: int, path: Path, kind: type[UmupError], *, shared: bool = False) -> bool:
    """Take the advisory lock (flock) of an open file, without waiting.

    The kernel drops the lock when the descriptor is closed or its process ends, however it ends.

    Args:
        descriptor: of the open file.
        path: of the file, for the error.
        kind: the class of the error.
        shared: whether others may hold it too, if theirs is shared as well.

    Returns:
        False if another descriptor, of this process or another, holds it.

    Raises:
        UmupError: of ``kind``; the file system takes no such locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        received = f"a file system that refuses flock: {error.strerror or error}"
        allowed = "one that takes such locks; book/cluster.md says which do"
        raise kind(str(path), received, allowed) from error
    return True
