"""The one reader of the project's YAML: run files, profiles, claims, and values on a command line.

Text means what it looks like. A scalar without quotes is ``null`` (``~``), ``true`` or ``false``, a
decimal number (``.inf`` and ``.nan`` too), or the text itself; a key is always text. YAML 1.1,
which PyYAML and papermill read, makes ``0100`` 64, ``1:30`` 90, the key ``on`` true and ``1e-4`` a
string, and silently drops the first of two equal keys. A scalar that looks like a switch but is
text in YAML 1.2, such as ``off``, is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from umup.errors import ConfigError, UmupError

MAX_BYTES = 2**20
"""No file that a person writes is larger; a device or a data file given by mistake is."""

_MAX_NODES = 100_000  # of a file of that size; aliases of aliases would make billions

_DIGITS = "[0-9]+(?:_[0-9]+)*"
_INTEGER = re.compile(rf"[-+]?(?!0_?[0-9]){_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_SWITCHES = ("yes", "no", "on", "off")


class _Loader(yaml.BaseLoader):
    """Composes nodes whose tag is "plain", "quoted" or the one that the file gives after ``!``."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        return "plain" if kind is yaml.ScalarNode and implicit[0] else "quoted"


def read_yaml(text: str, place: str, error: type[UmupError] = ConfigError) -> Any:
    """Plain data from YAML.

    Args:
        text: one document.
        place: the file or option that it comes from, for errors.
        error: the class of the errors raised.

    Raises:
        UmupError: of the class ``error``. The text is not YAML, or has another meaning to some
            readers than it appears to have; the message names the line.
    """
    return _Reading(text, place, error).value()


def read_yaml_file(path: Path | str, error: type[UmupError]) -> Any:
    """Plain data from a YAML file in UTF-8.

    Raises:
        UmupError: of the class ``error``, as ``read_yaml``; also if the file cannot be read.
    """
    return read_yaml(read_text(path, error), str(path), error)


def read_text(path: Path | str, error: type[UmupError]) -> str:
    """The text of a YAML file.

    Raises:
        UmupError: of the class ``error``. The file cannot be read, is too large, or not UTF-8.
    """
    readable = "a readable YAML file in UTF-8"
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as reason:  # ValueError: a zero character in the path
        raise error(str(path), str(reason), readable) from None
    if len(raw) > MAX_BYTES:
        raise error(str(path), f"more than {MAX_BYTES:,} bytes", readable)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = raw.count(b"\n", 0, reason.start) + 1
        raise error(f"{path}, line {line}", f"not UTF-8: {reason}", readable) from None


def read_overrides(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Fields and their values from ``-p NAME VALUE``; each value is read as YAML.

    Raises:
        ConfigError: a value is not YAML, or YAML would ignore a part of it.
    """
    return {name: _Reading(text, f"-p {name}", ConfigError).whole_value() for name, text in pairs}


def line_of(text: str, field: str) -> int | None:
    """The line (from 1) of a dotted field in YAML text; None if it is not there.

    A missing field of a group that is there has the line of the group.
    """
    node, line = yaml.compose(text, Loader=_Loader), None
    for name in field.split("."):
        entries = node.value if isinstance(node, yaml.MappingNode) else ()
        found = [(key, value) for key, value in entries if key.value == name]
        if not found:
            break
        key, node = found[0]
        line = key.start_mark.line + 1
    return line


class _Reading:
    """One text while it is read."""

    def __init__(self, text: str, place: str, error: type[UmupError]):
        self._text, self._place, self._error = text, place, error
        self._left = _MAX_NODES
        try:
            self._root = yaml.compose(text, Loader=_Loader)
        except yaml.reader.ReaderError as reason:
            line = text.count("\n", 0, reason.position)
            character = f"the character {chr(reason.character)!r}"
            raise self._refusal(line, character, "a readable YAML file: printable text") from None
        except yaml.MarkedYAMLError as reason:
            mark = reason.problem_mark or reason.context_mark
            allowed = "a readable YAML file"
            if "'\\t'" in (reason.problem or ""):
                allowed += ": spaces where there is a tab"
            elif "document" in (reason.context or ""):
                allowed += " of one document"
            line = mark.line if mark else 0
            raise self._refusal(line, reason.problem or str(reason), allowed) from None
        except RecursionError:
            raise self._too_deep() from None

    def _refusal(self, line: int, received: object, allowed: str) -> UmupError:
        return self._error(f"{self._place}, line {line + 1}", received, allowed)

    def _too_deep(self) -> UmupError:
        return self._error(self._place, "groups within groups without end", "a readable YAML file")

    def value(self) -> Any:
        """All of the text; None if it is empty."""
        try:
            return None if self._root is None else self._plain(self._root)
        except RecursionError:  # also of an alias within its own anchor
            raise self._too_deep() from None

    def whole_value(self) -> Any:
        """All of the text, provided that no part of it is a comment."""
        if self._root is not None and self._text[self._root.end_mark.index :].strip():
            raise self._error(self._place, self._text, "one value, in quotes if it holds a #")
        return self.value()

    def _plain(self, node: yaml.Node) -> Any:
        self._left -= 1
        line = node.start_mark.line
        if self._left < 0:
            raise self._refusal(line, "too many values", f"at most {_MAX_NODES:,} in a file")
        if node.tag not in ("plain", "quoted"):
            raise self._refusal(line, node.tag, "a value without a tag")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item) for item in node.value]
        return self._scalar(node.value, line) if node.tag == "plain" else node.value

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line
            if not isinstance(key, yaml.ScalarNode):
                raise self._refusal(line, "a key that is a list or a group", "a name as key")
            if key.value == "<<" and key.tag == "plain":
                raise self._refusal(line, "<<", "no merged groups: write their fields out")
            if key.value in values:
                before = f"{key.value!r} once; it is also in line {lines[key.value] + 1}"
                raise self._refusal(line, key.value, before)
            values[key.value], lines[key.value] = self._plain(value), line
        return values

    def _scalar(self, text: str, line: int) -> Any:
        lower = text.lower()
        if lower in _WORDS and text in (lower, lower.title(), lower.upper()):
            return _WORDS[lower]
        if lower in _SWITCHES:
            raise self._refusal(line, text, 'true or false; text that reads so in quotes, "…"')
        if _NOT_FINITE.fullmatch(text):  # so that a field's range refuses it by its name
            return float(text.replace(".", ""))
        if not _FLOAT.fullmatch(text):
            return text
        digits = text.replace("_", "")
        if _INTEGER.fullmatch(text):
            if len(digits) > 100:
                raise self._refusal(line, f"{digits[:20]}…", "an integer of at most 100 digits")
            return int(digits)
        if not re.search(r"[.eE]", text):
            return text  # 0100: an octal number to some readers, a decimal one to others
        number = float(digits)
        mantissa = re.split("[eE]", digits)[0]
        if math.isinf(number) or (number == 0 and mantissa.strip("+-0.")):
            raise self._refusal(line, text, "a number that float64 can hold")
        return number
