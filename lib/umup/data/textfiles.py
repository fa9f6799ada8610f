"""Text from the bytes of a user's files: formats, compression, encoding, and places for errors.

A file holds plain text or rows (JSON Lines, one object with a string "text" per line). A file
whose name or first characters show that it is neither is refused, so that braces, commas or
compressed bytes are never tokenized as text.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from umup.errors import DataError

ROWS = (".jsonl", ".ndjson", ".jsonlines", ".json")
"""Suffixes, in any case, of files that hold rows."""

_COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_OTHER_FORMATS = re.compile(
    r"\.(7z|arrow|avro|bin|csv|docx?|epub|feather|h5|hdf5|lz4|np[yz]|od[st]|orc|parquet|pdf"
    r"|pickle|pkl|pt|rar|rtf|safetensors|sqlite|tar|tbz2|tgz|tsv|txz|xlsx?|zip|zst)"
)
_READABLE = (
    f'plain text, or JSON Lines ({", ".join(ROWS)}) with a string "text" in the object on each '
    "line, as it is or compressed (.gz, .bz2, .xz); convert the file"
)
_ROW = 'one JSON object per line, with a non-empty string "text"'
_LIKE_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|$)|\s*\[\s*$')
_BOM = "\ufeff"
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def holds_rows(path: Path) -> bool:
    """True if the file's name says that it holds rows, False if plain text.

    Raises:
        DataError: the name says that it holds neither.
    """
    suffix = _suffix(path)
    if _OTHER_FORMATS.fullmatch(suffix):
        raise DataError(str(path), f"a {suffix} file", _READABLE)
    return suffix in ROWS


def below(
    folder: Path, left_out: Counter[str], above: frozenset[Path] = frozenset()
) -> Iterator[Path]:
    """The files below a folder by relative path, also those behind links.

    Args:
        folder: where to look.
        left_out: counts hidden files and folders.
        above: the folders that contain this one.

    Raises:
        DataError: something is neither file nor folder, or a link leads back.
    """
    above |= {folder.resolve()}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            left_out["hidden files or folders"] += 1
        elif path.is_file():
            yield path
        elif not path.is_dir():
            raise DataError(str(path), "no file or folder", "text, or a link to it; remove it")
        elif path.resolve() in above:
            raise DataError(str(path), "a link to a folder that it lies in", "text; remove it")
        else:
            yield from below(path, left_out, above)


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The place (for errors) and the text of each line, without its line end.

    Raises:
        DataError: the file cannot be read to its end, or a line is not UTF-8 or holds a zero
            character.
    """
    number = 0
    try:
        with _opened(path) as stream:
            for number, raw in enumerate(stream, start=1):
                place = f"{path}, line {number}"
                # Files with a byte-order mark that were joined have marks within.
                yield place, decode(raw, place).removeprefix(_BOM).rstrip("\r\n")
    except _FAULTS as error:
        raise _unreadable(f"{path}, after line {number:,}", error) from error


def whole(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: the file cannot be read, is blank, is not UTF-8, holds a zero character, or
            begins as JSON does.
    """
    try:
        with _opened(path) as stream:
            raw = stream.read()
    except _FAULTS as error:
        raise _unreadable(str(path), error) from error
    text = decode(raw, str(path)).removeprefix(_BOM)
    if not text.strip():
        raise blank(path)
    refuse_json(text, str(path))
    return text


def row_text(line: str, place: str) -> str:
    """The string "text" of the JSON object on a line.

    Raises:
        DataError: it is no such object, or its text is blank, not UTF-8 or holds a zero character.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also integers of too many digits
        raise DataError(place, f"{line[:60]} ({type(error).__name__})", _ROW) from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(place, line[:60], _ROW)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(place, str(error), "text that UTF-8 can hold") from error
    return _without_zero(text, place)


def decode(raw: bytes, place: str) -> str:
    """Text from UTF-8.

    Raises:
        DataError: it is not UTF-8, or holds a zero character, which separates documents.
    """
    try:
        return _without_zero(raw.decode("utf-8"), place)
    except UnicodeDecodeError as error:
        utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        received = "UTF-16 or UTF-32" if utf16 else f"not UTF-8: {error}"
        raise DataError(place, received, "text in UTF-8; convert it") from error


def refuse_json(text: str, place: str) -> None:
    """Raise a DataError if what should be plain text begins as a JSON object does."""
    if _LIKE_JSON.match(text):
        allowed = f"plain text; a file of rows has a name in {', '.join(ROWS)}"
        raise DataError(place, f"JSON: {text.strip()[:60]}", allowed)


def blank(path: Path) -> DataError:
    """The error of a file without text, which would otherwise be left out in silence."""
    return DataError(str(path), "an empty file", "text; remove the file or fill it")


def _suffix(path: Path) -> str:
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in _COMPRESSED else name.suffix


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw, contextlib.ExitStack() as stack:
        unpacked = _COMPRESSED.get(path.suffix.lower())
        yield stack.enter_context(unpacked(raw)) if unpacked else raw


def _unreadable(place: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return DataError(place, reason, "a file that can be read to its end")


def _without_zero(text: str, place: str) -> str:
    if "\0" in text:
        allowed = "text in UTF-8 without zero characters; convert it, or remove them"
        raise DataError(place, "a zero character", allowed)
    return text
