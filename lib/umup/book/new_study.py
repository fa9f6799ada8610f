"""A new study from the template: files, a notebook that runs, its test and its page in the book.

All of it is made and run in a temporary folder of the checkout first, and moved into place at the
end, so that a failure leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from umup.errors import BookError, StudyError
from umup.lab import notebook, study

TEMPLATE = Path(__file__).parent / "template"
MAX_NAME = 40  # longer ones would make lines that `make lint` refuses
TOC = Path("book", "_toc.yml")
PAGE = re.compile(r"^([ \t]*- file: studies/)(\w+)[ \t]*$", re.MULTILINE)


def checkout(start: Path | None = None) -> Path:
    """The checkout of umup that holds the current folder, or ``start``.

    Raises:
        StudyError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for base in (start, *start.parents):
        if (base / TOC).is_file() and (base / "lib" / "umup" / "studies").is_dir():
            return base
    raise StudyError("folder", str(start), "a folder inside a checkout of umup")


def files(name: str) -> dict[str, Path]:
    """Template file → where the study ``name`` has it, relative to the checkout."""
    folder = Path("experiments", name)
    of_folder = ("study.py", "smoke.yaml", "h100.yaml", "claims.yaml")
    return {f"{file}.in": folder / file for file in of_folder} | {
        "module.py.in": Path("lib", "umup", "studies", f"{name}.py"),
        "test.py.in": Path("tests", "studies", f"test_{name}.py"),
    }


def create(
    root: Path, name: str, title: str | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Make the study ``name``, run it live at smoke, and put it into the checkout and its book.

    Args:
        root: the checkout.
        name: of the folder ``experiments/NAME`` and of the module ``umup.studies.NAME``.
        title: first heading of its page; the name in words by default.
        say: receives the progress lines.

    Returns:
        What was made, relative to ``root``; the table of contents comes last.

    Raises:
        StudyError: the name is malformed or taken, the title is, the smoke run failed, or a folder
            cannot be written. Nothing is left behind.
        BookError: the table of contents has no part with studies.
    """
    words = name.replace("_", " ").capitalize()
    title = words if title is None else title.strip()
    _check(root, name, title)
    contents = _listed(root, name)
    made = [Path("experiments", name), *list(files(name).values())[-2:]]
    try:
        with tempfile.TemporaryDirectory(prefix=".new-study-", suffix=".tmp", dir=root) as place:
            draft = Path(place)
            _write(draft, name, title)
            _link_library(root, draft)
            say(f"running {name} live at smoke")
            with _library(draft / "lib"):
                _try_out(draft / "experiments" / name, draft)
            (draft / "_toc.yml").write_text(contents, encoding="utf-8")
            with _all_or_nothing() as move:
                for path in made:
                    move(draft / path, root / path)
                os.replace(draft / "_toc.yml", root / TOC)  # last, and at once: never half done
    except OSError as error:
        where = error.filename2 or error.filename or str(root)
        allowed = f"a checkout that can be written ({error.strerror}); nothing was made"
        raise StudyError("folder", str(where), allowed) from None
    return [*made, TOC]


def _check(root: Path, name: str, title: str) -> None:
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}", name) or keyword.iskeyword(name):
        allowed = f"a to z, 0 to 9 and _, a letter first, at most {MAX_NAME}; no word of Python"
        raise StudyError("name", name, allowed)
    if not title or not title.isprintable():
        raise StudyError("title", title, "one line of text")
    for path in {p.parent if p.parent.name == name else p for p in files(name).values()}:
        if os.path.lexists(root / path):
            raise StudyError("name", name, f"another one: {path} exists")


def _listed(root: Path, name: str) -> str:
    """The table of contents with the study's page after the last study.

    Raises:
        BookError: it lists no study, or this one already.
    """
    text = (root / TOC).read_text(encoding="utf-8")
    pages = list(PAGE.finditer(text))
    if not pages:
        allowed = "a part with a line `- file: studies/NAME`, after which the page can stand"
        raise BookError(str(TOC), "no page of a study", allowed)
    if name in {page[2] for page in pages}:
        raise BookError(str(TOC), f"studies/{name}", "a page that is not listed yet")
    last = pages[-1]
    return f"{text[: last.end()]}\n{last[1]}{name}{text[last.end() :]}"


def _write(draft: Path, name: str, title: str) -> None:
    values = {"@NAME@": name, "@SLUG@": name.replace("_", "-"), "@TITLE@": title}
    for source, path in files(name).items():
        text = (TEMPLATE / source).read_text(encoding="utf-8")
        text = re.sub("@[A-Z]+@", lambda found: values[found[0]], text)
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        (draft / path).write_text(text, encoding="utf-8")


def _link_library(root: Path, draft: Path) -> None:
    """Make the draft a small checkout: the library of ``root`` as links, beside the new module."""
    for folder in (Path("lib", "umup"), Path("lib", "umup", "studies")):
        (draft / folder).mkdir(parents=True, exist_ok=True)
        for entry in (root / folder).iterdir():
            if entry.name not in ("studies", "__pycache__"):
                (draft / folder / entry.name).symlink_to(entry)


def _try_out(folder: Path, draft: Path) -> None:
    """Make the study's notebook, which has no records to show yet, and run it live at smoke."""
    written = notebook.make(folder)
    notebook.execute(written, draft / "smoke.ipynb", study.parameters(folder, "smoke"), draft)


@contextlib.contextmanager
def _library(folder: Path) -> Iterator[None]:
    """Let kernels that are started in this block import the library in ``folder``."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[Callable[[Path, Path], None]]:
    """Moves of files and folders that are taken back when the block fails."""
    moved: list[Path] = []

    def move(source: Path, target: Path) -> None:
        source.rename(target)
        moved.append(target)

    try:
        yield move
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def next_steps(name: str, made: list[Path]) -> str:
    """What was made and what to do with it, for the terminal."""
    lines = "\n      ".join(map(str, made))
    return f"""made: {lines}
next: say what is varied (AXIS and `at` in lib/umup/studies/{name}.py) and its values
      (the parameters in study.py; the .yaml files beside it hold what differs elsewhere)
      write the claims: experiments/{name}/claims.yaml
      make notebook STUDY={name}     the notebook anew, after every change
      umup run {name} --profile cpu --dry-run, then without --dry-run
      make notebook STUDY={name}     once more, to show what was measured
The book shows the claims as not measured until there are records. Its chapter *Your own
study* goes through these steps."""
