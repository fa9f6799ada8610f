"""A new study from the template: a folder with a working notebook, and in a checkout a test.

Everything is first made and run in a temporary folder and then moved into place, so that a failure
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from umup.errors import BookError, StudyError
from umup.lab import notebook, study

TEMPLATE = Path(__file__).parent / "template"
MAX_NAME = 40  # longer ones would make lines that `make lint` refuses
TOC = Path("book", "_toc.yml")
TESTS = Path("tests", "studies")
PAGE = re.compile(r"^([ \t]*- file: studies/)(\w+)[ \t]*$", re.MULTILINE)


def home(start: Path | None = None) -> Path:
    """The folder that contains ``experiments``: the current one or one above it.

    Raises:
        StudyError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for base in (start, *start.parents):
        if (base / "experiments").is_dir():
            return base
    allowed = "a folder that holds a folder `experiments`, or one inside it"
    raise StudyError("folder", str(start), allowed)


def files(root: Path, name: str) -> dict[str, Path]:
    """Template file → its place in the study ``name``, relative to ``root``.

    Only a checkout of umup has tests.
    """
    found = {
        path.name: Path("experiments", name, path.stem)
        for path in sorted(TEMPLATE.glob("*.in"))
        if path.name != "test.py.in"
    }
    if (root / TESTS).is_dir():
        found["test.py.in"] = TESTS / f"test_{name}.py"
    return found


def create(
    root: Path, name: str, title: str | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Make the study ``name``, run it live at smoke, and put it in its place.

    In a checkout of umup it gets a test, and its page in the book is listed.

    Args:
        root: contains the folder ``experiments``.
        name: of the folder ``experiments/NAME``.
        title: first heading of its page; the name in words by default.
        say: receives the progress lines.

    Returns:
        The files made, relative to ``root``; the table of contents comes last.

    Raises:
        StudyError: the name is malformed or taken, the title is malformed, the smoke run failed,
            or a folder cannot be written. Nothing is left behind.
        BookError: the table of contents has no part with studies.
    """
    words = name.replace("_", " ").capitalize()
    title = words if title is None else title.strip()
    targets = files(root, name)
    made = [Path("experiments", name), *(p for p in targets.values() if p.parent == TESTS)]
    _check(root, name, title, made)
    contents = _listed(root, name) if (root / TOC).is_file() else None
    try:
        with tempfile.TemporaryDirectory(prefix=".new-study-", suffix=".tmp", dir=root) as place:
            draft = Path(place)
            _write(draft, targets, name, title)
            say(f"running {name} live at smoke")
            _try_out(draft / "experiments" / name, draft)
            with _all_or_nothing() as move:
                for path in made:
                    move(draft / path, root / path)
                if contents is not None:
                    (draft / TOC.name).write_text(contents, encoding="utf-8")
                    os.replace(draft / TOC.name, root / TOC)  # last, and at once: never half done
    except OSError as error:
        where = error.filename2 or error.filename or str(root)
        allowed = f"a folder that can be written ({error.strerror}); nothing was made"
        raise StudyError("folder", str(where), allowed) from None
    return made if contents is None else [*made, TOC]


def _check(root: Path, name: str, title: str, made: Iterable[Path]) -> None:
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}", name) or keyword.iskeyword(name):
        allowed = f"a to z, 0 to 9 and _, a letter first, at most {MAX_NAME}; no word of Python"
        raise StudyError("name", name, allowed)
    if not title or not title.isprintable():
        raise StudyError("title", title, "one line of text")
    for path in made:
        if os.path.lexists(root / path):
            raise StudyError("name", name, f"another one: {path} exists")


def _listed(root: Path, name: str) -> str:
    """The table of contents with the new study's page after those of the other studies.

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


def _write(draft: Path, targets: Mapping[str, Path], name: str, title: str) -> None:
    values = {"@NAME@": name, "@SLUG@": name.replace("_", "-"), "@TITLE@": title}
    for source, path in targets.items():
        text = (TEMPLATE / source).read_text(encoding="utf-8")
        text = re.sub("@[A-Z]+@", lambda found: values[found[0]], text)
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        (draft / path).write_text(text, encoding="utf-8")


def _try_out(folder: Path, draft: Path) -> None:
    """Make the study's notebook, which has no records yet, and run it live at smoke."""
    written = notebook.make(folder)
    notebook.execute(written, draft / "smoke.ipynb", study.parameters(folder, "smoke"), draft)


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[Callable[[Path, Path], None]]:
    """Moves of files and folders that are undone if the block fails."""
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
    """What was made and what to do next, for the terminal."""
    folder = f"experiments/{name}"
    listed = "\n      ".join(map(str, made))
    return f"""made: {listed}
next: say what is varied: AXIS in {folder}/design.py, and its values
      (the parameters in study.py; the .yaml files beside it hold what differs elsewhere)
      write the claims: {folder}/claims.yaml
      python -m umup.lab.notebook {name}     the notebook anew, after every change
      umup run {name} --profile cpu --dry-run, then without --dry-run
      python -m umup.lab.notebook {name}     once more, to show what was measured
The page shows the claims as not measured until there are records. The book's chapter *Your own
study* goes through these steps."""
