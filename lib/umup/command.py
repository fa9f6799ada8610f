"""A command line from a dataclass: each option is declared once, as a field with type and help. ::

    @dataclass(frozen=True)
    class Watch:
        '''Plot a run's log in the terminal while it trains.

        example:
          umup watch runs/big
        '''

        folder: Annotated[str, Argument("the run's folder")]
        every: Annotated[float, Option("seconds between pictures")] = 5.0

        def __call__(self) -> int: ...

``parse(Watch, ["runs/big", "--every", "2"], "umup watch")`` is ``Watch("runs/big", every=2.0)``.

A field is a ``bool`` (a flag), ``int``, ``float``, ``str``, ``Path`` or ``Literal``, a tuple of
these (several values), a tuple of tuples (an option that may be repeated), any of them or None, or
another such dataclass, whose options then form a group. This is argparse with help and errors of
our own form. A library such as tyro prints a bad value as a box of ten lines, which only one of
its private modules could change, and doubles the start-up time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

from umup.checked import without_range
from umup.errors import ConfigError, UmupError
from umup.text import did_you_mean

Command = TypeVar("Command", bound=Callable[[], int])

BAD_USAGE = 2
"""Exit status of a command line that cannot be read."""
_IN_WORDS = {int: "an integer", float: "a number"}
_SPELLINGS = (
    (r"^argument ", ""),
    (r"^(.*): expected (.*)$", r"\1: received too few values; allowed: \2"),
    (r"^the following arguments are required: (.*)$", r"\1: received nothing; allowed: a value"),
)
"""Patterns of argparse's messages, and the same in the form of every error here."""


@dataclass(frozen=True)
class Option:
    """What stands in a field's annotation: ``Annotated[int, Option("how many", "N")]``.

    Args:
        help: what it does, in a few words; of a dataclass's field, the title of its group. A
            default is added unless the text has one.
        metavar: what stands for the value; several words for several values.
        names: how it is spelled; ``--field-name`` where nothing is given.
    """

    help: str
    metavar: str | None = None
    names: tuple[str, ...] = ()


class Argument(Option):
    """An ``Option`` given by its position; it may be left out if the field has a default."""


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        for pattern, replacement in _SPELLINGS:
            message = re.sub(pattern, replacement, message)
        self.exit(BAD_USAGE, f"{self.prog}: {message}\n")


def parser(prog: str, about: str) -> argparse.ArgumentParser:
    """A parser whose errors are one line, and whose help ends in the text's examples.

    Args:
        prog: the command, as users type it.
        about: what it does; from a line that begins with "example" on, it stands at the end.
    """
    text, found, examples = inspect.cleandoc(about).partition("\nexample")
    layout = argparse.RawDescriptionHelpFormatter
    epilog = f"example{examples}" if found else None
    return _Parser(prog=prog, description=text, epilog=epilog, formatter_class=layout)


def parse(kind: type[Command], argv: Sequence[str], prog: str) -> Command:
    """The dataclass that a command line describes.

    Args:
        kind: the dataclass; fields whose options are not given keep their defaults.
        argv: the words after ``prog``.
        prog: the command, as users type it.

    Raises:
        UmupError: as the dataclass itself raises; or options of a group are given without the
            option that the group requires.
        SystemExit: with 0 after ``--help``; with 2 after one line on standard error that names the
            option, what was received and what is allowed.
    """
    made = parser(prog, kind.__doc__ or "")
    _declare(made, kind, required=True)
    given, more = made.parse_known_args(argv)
    if more:
        known = [name for one in _every(kind) for name in one.spelled]
        allowed = f"{', '.join(known)}{did_you_mean(more[0], known)}"
        made.error(str(ConfigError("arguments", more[0], allowed)))
    return _built(kind, vars(given))


def run(kind: type[Command], argv: Sequence[str] | None, prog: str) -> int:
    """Parse, call the command, and return its exit status: 1 for an error, printed in one line."""
    try:
        return parse(kind, sys.argv[1:] if argv is None else argv, prog)()
    except UmupError as error:
        print(f"umup: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class _Field:
    """A field that is an option: its name, type without None, default and annotation."""

    name: str
    type: Any
    default: Any
    required: bool
    option: Option

    @property
    def is_group(self) -> bool:
        """Whether its type is a dataclass of options."""
        return dataclasses.is_dataclass(self.type)

    @property
    def spelled(self) -> tuple[str, ...]:
        """The option's names, or an argument's metavar."""
        if isinstance(self.option, Argument):
            return (self.option.metavar or self.name,)
        return self.option.names or (f"--{self.name.replace('_', '-')}",)

    @property
    def help(self) -> str:
        """The help text, with the default if there is one to show."""
        default, text = self.default, self.option.help
        untold = default is None or default is False or default in ("", ())
        if self.required or untold or "(default" in text:
            return text
        shown = f"{default:g}" if isinstance(default, float) else default
        return f"{text} (default: {shown})"


def _fields(kind: type) -> Iterator[_Field]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        typ, *notes = (*typing.get_args(hints[field.name]), None)
        for option in (note for note in notes if isinstance(note, Option)):
            if typing.get_origin(typ) in (typing.Union, types.UnionType):
                (typ,) = (one for one in typing.get_args(typ) if one is not type(None))
            typ = without_range(typ)
            required = field.default is field.default_factory is dataclasses.MISSING
            yield _Field(field.name, typ, field.default, required, option)


def _every(kind: type) -> Iterator[_Field]:
    """The fields of a dataclass, and of its groups in their place."""
    for one in _fields(kind):
        yield from _fields(one.type) if one.is_group else (one,)


def _declare(to: Any, kind: type, required: bool) -> None:
    """Add the dataclass's options to a parser, or to a group of one, where none is required."""
    for one in _fields(kind):
        if one.is_group:
            _declare(to.add_argument_group(one.option.help), one.type, required=False)
            continue
        words: dict[str, Any] = {"help": one.help.replace("%", "%%")}
        item, metavar = one.type, one.option.metavar
        if typing.get_origin(item) is tuple:
            item, words["nargs"] = typing.get_args(item)[0], "+"
            if typing.get_origin(item) is tuple:
                several = typing.get_args(item)
                words |= {"action": "append", "nargs": len(several)}
                item, metavar = several[0], tuple((metavar or one.name).split())
        if item is bool:
            words |= {"action": "store_true", "default": None}
        else:
            words |= {"type": functools.partial(_value, item), "metavar": metavar}
        if isinstance(one.option, Argument):
            words |= {"metavar": one.spelled[0]} | ({} if one.required else {"nargs": "?"})
            to.add_argument(one.name, **words)
        else:
            to.add_argument(
                *one.spelled, dest=one.name, required=required and one.required, **words
            )


def _value(kind: Any, text: str) -> Any:
    """One value of a command line, of the type ``kind``."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text in choices:
            return text
        allowed = f"{' | '.join(choices)}{did_you_mean(text, choices)}"
    else:
        try:
            return kind(text)
        except ValueError:
            allowed = _IN_WORDS[kind]
    raise argparse.ArgumentTypeError(f"received {text!r}; allowed: {allowed}")


def _built(kind: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """The dataclass of the options that were given; None stands for one that was not.

    Raises:
        UmupError: as the dataclass raises; or an option is given without one that it requires.
    """
    fields = list(_fields(kind))  # type: ignore[arg-type]
    values = {}
    for one in fields:
        if one.is_group:
            if any(given[part.name] is not None for part in _fields(one.type)):
                values[one.name] = _built(one.type, given)
        elif (value := given[one.name]) is not None:
            values[one.name] = value
    for one in fields:
        if one.required and one.name not in values:
            (first, value), *_ = values.items()
            allowed = " or ".join(
                f"{one.spelled[0]} {choice}" for choice in (one.option.metavar or "").split("|")
            )
            raise ConfigError(f"--{first.replace('_', '-')}", value, f"together with {allowed}")
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
