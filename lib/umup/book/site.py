"""Build and check the book: run every study, render it from its records, make the site.

``umup book`` runs, in order: every notebook live at its smoke profile, unless that has been done
with the same code; every notebook again, loading the records of its best committed profile; the
fragments of `umup.book.pages`; jupyter-book with warnings as errors; `check`; and, if asked, one
PDF of all pages. Everything is written to ``book/_build``: the sources to ``src/``, the site to
``html/``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from umup import files, machine
from umup.book import access, board, glossary, pages, printed, slim
from umup.book.shown import best_profile
from umup.errors import BookError
from umup.lab.notebook import AT_ONCE, execute, finish
from umup.lab.study import parameters

EXPECTED = {"smoke": 15.0, "render": 8.0, "pages": 10.0, "html": 40.0, "check": 2.0, "pdf": 45.0}
"""Seconds that each kind of step takes on two cores, used until a build has measured it here."""


def find_root() -> Path:
    """The checkout that contains `book/` and `experiments/`, see ``files.bases``.

    Raises:
        BookError: there is none.
    """
    for folder in files.bases():
        if (folder / "book" / "_toc.yml").exists():
            return folder
    raise BookError("root", str(Path.cwd()), "a checkout of umup with book/ in it; use --root")


class Steps:
    """Announces steps with the time that they took and the time left.

    Args:
        names: (kind, text) of every step, in order; kinds are the keys of `EXPECTED`.
        memory: JSON file that keeps how long each step took, for the next estimate.
        say: receives each line.
    """

    def __init__(
        self, names: Sequence[tuple[str, str]], memory: Path, say: Callable[[str], None] = print
    ):
        self.names, self.memory, self.say, self.done = list(names), memory, say, 0
        self.seconds = json.loads(memory.read_text("utf-8")) if memory.exists() else {}

    def left(self) -> str:
        """Estimate of the time to the end."""
        rest = self.names[self.done :]
        seconds = sum(self.seconds.get(text, EXPECTED[kind]) for kind, text in rest)
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run the next step in this block."""
        _, text = self.names[self.done]
        self.say(f"[{self.done + 1}/{len(self.names)}] {text} (about {self.left()} left)")
        start = time.monotonic()
        yield
        self.seconds[text] = round(time.monotonic() - start, 1)
        self.done += 1
        self.say(f"      done in {self.seconds[text]:.0f} s")
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        self.memory.write_text(json.dumps(self.seconds, indent=1), "utf-8")


def study_folders(root: Path) -> list[Path]:
    """The folders of all studies, in the order of the table of contents.

    Raises:
        BookError: there is none, or one that has no page, or a page without a study.
    """
    found = {path.parent.name: path.parent for path in (root / "experiments").glob("*/study.ipynb")}
    if not found:
        raise BookError("experiments", "no study.ipynb", "at least one study")
    toc = (root / "book" / "_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*- file: studies/(\w+)\s*$", toc, re.MULTILINE)
    for name in sorted({*found} ^ {*listed}):
        lacks = "a page in the table of contents" if name in found else "a study.ipynb"
        raise BookError("book/_toc.yml", f"studies/{name}, which lacks {lacks}", "both of them")
    return [found[name] for name in listed]


def smoke(folder: Path, root: Path) -> Path:
    """The study's notebook, executed live at its smoke profile.

    Its programs are compiled with little optimization, since its numbers are not used. The result
    is cached in ``.cache/smoke`` until something that can change it does: the library, the study,
    a package, the machine's cores, or the environment variables of JAX and its libraries.

    Args:
        folder: of the study.
        root: the checkout; the kernel runs there.

    Returns:
        The executed notebook. Its last output is JSON of what was made, as no records are kept:
        ``runs`` with key, status and final_loss, ``points`` with key and result.

    Raises:
        StudyError: the study fails.
    """
    kept = root / ".cache" / "smoke" / f"{folder.name}-{_smoke_digest(folder, root)}.ipynb"
    if not kept.exists():
        notebook = json.loads((folder / "study.ipynb").read_text(encoding="utf-8"))
        cell = {"cell_type": "code", "execution_count": None, "id": "made", "metadata": {}}
        notebook["cells"].append(cell | {"outputs": [], "source": MADE})
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=kept.parent) as draft:
            given, output = Path(draft, "study.ipynb"), Path(draft, "output.ipynb")
            given.write_text(json.dumps(notebook), encoding="utf-8")
            hasty = {"XLA_FLAGS": machine.in_haste(), "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0"}
            execute(given, output, parameters(folder, "smoke"), root, hasty)
            for older in kept.parent.glob(f"{folder.name}-*.ipynb"):
                older.unlink(missing_ok=True)
            output.replace(kept)
    return kept


MADE = """\
import json

print(json.dumps({
    "runs": results.runs[["key", "status", "final_loss"]].to_dict("records"),
    "points": results.points[["key", "result"]].to_dict("records"),
}))
"""
"""The last cell of a smoke run."""

SMOKE_VARIABLES = ("JAX_", "XLA_", "OMP_", "OPENBLAS_", "MKL_")
"""Prefixes of the environment variables that may change what a smoke run computes."""


def _smoke_digest(folder: Path, root: Path) -> str:
    """Digest of everything that can change the study's smoke run."""
    packages = sorted(f"{d.name}=={d.version}" for d in metadata.distributions())
    environment = sorted(i for i in os.environ.items() if i[0].startswith(SMOKE_VARIABLES))
    seen = hashlib.sha256(repr((sys.version, packages, environment, machine.cores())).encode())
    library = (path for path in (root / "lib").rglob("*") if path.suffix != ".pyc")
    study = (path for path in folder.rglob("*") if "records" not in path.relative_to(folder).parts)
    for path in sorted(path for path in (*library, *study) if path.is_file()):
        seen.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def render(study: pages.Study, root: Path) -> None:
    """Write the study's page: its notebook, executed on the records of its profile.

    Raises:
        StudyError: the study fails.
    """
    given = parameters(study.folder, study.profile) | {"mode": "load"}
    notebook = finish(execute(study.folder / "study.ipynb", study.page, given, root))
    study.page.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _at_once(jobs: Sequence[Callable[[], object]]) -> Iterator[list[Future]]:
    """Run the jobs, `AT_ONCE` at a time; after an error, no further job is started."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield [pool.submit(job) for job in jobs]
        finally:
            pool.shutdown(cancel_futures=True)


def stage(root: Path, staging: Path) -> None:
    """Copy the book's sources, without what was built, into an empty staging folder."""
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(root / "book", staging, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    (staging / "studies").mkdir(exist_ok=True)


def make_html(root: Path, staging: Path, build_folder: Path) -> list[str]:
    """Build the site with warnings as errors; return the log's notes on plain docstrings.

    Raises:
        BookError: jupyter-book warned or failed.
    """
    # A page that failed one build with a warning is cached and silent in the next: start afresh.
    for name in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(build_folder / name, ignore_errors=True)
    builder = "from jupyter_book.cli.main import main; main()"
    paths = [str(staging), "--path-output", str(build_folder.parent)]
    options = ["-W", "--keep-going", "--all", "-q"]
    command = [sys.executable, "-c", builder, "build", *paths, *options]
    environment = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"} | dict(os.environ)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    (build_folder / "build.log").write_text(log, encoding="utf-8")
    if done.returncode:
        told = [line for line in log.splitlines() if re.search("WARNING|ERROR|Exception", line)]
        received = "\n".join(told[:20] or log.splitlines()[-20:]).replace(f"{staging}/", "")
        todo = f"a build without warnings; all of it is in {build_folder / 'build.log'}"
        raise BookError("jupyter-book", "\n" + received, todo)
    plain = build_folder / "html" / "plain_docstrings.txt"
    found = plain.read_text("utf-8").splitlines() if plain.exists() else []
    plain.unlink(missing_ok=True)
    if (beside := staging / board.SITE).is_dir():
        shutil.copytree(beside, build_folder / "html", dirs_exist_ok=True)
    return found


LOADING_TAGS = {"script", "img", "source", "iframe", "embed", "object", "video", "audio", "input"}
LOADING_RELS = {
    "stylesheet",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "icon",
    "apple-touch-icon",
    "manifest",
}
SCRIPT_LOADS = re.compile(r"""\b(?:from|import|fetch)\s*\(?\s*["'](https?://[^"']+)""")


class _Links(HTMLParser):
    """Collects a page's ids, its links and what it loads, inline styles and imports included."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attrs if value}
        self._inside = tag
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        if tag in LOADING_TAGS:
            self.loads += [values[key] for key in ("src", "data", "poster") if key in values]
        for part in values.get("srcset", "").split(","):
            self.loads += part.split()[:1]
        if tag == "link" and LOADING_RELS & set(values.get("rel", "").lower().split()):
            self.loads += [values["href"]] if "href" in values else []
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += css_urls(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.loads += css_urls(data)
        elif self._inside == "script":
            self.loads += SCRIPT_LOADS.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def css_urls(text: str) -> list[str]:
    """What a style sheet loads: `url(...)` and `@import`, data URLs left out."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = re.findall(r"""url\(\s*["']?([^"')]+)["']?\s*\)""", text)
    found += re.findall(r"""@import\s+["']([^"']+)""", text)
    return [url for url in found if not url.startswith(("data:", "#"))]


def check(html: Path) -> list[str]:
    """Problems of a built site: missing files and anchors, and anything loaded from elsewhere.

    Args:
        html: the folder with `index.html`.

    Returns:
        One line per problem; links to other sites are allowed, loading from them is not.

    Raises:
        BookError: there is no site in the folder.
    """
    html = html.resolve()
    if not (html / "index.html").exists():
        raise BookError("html", str(html), "a built site; `make book` builds one")
    parsed: dict[Path, _Links] = {}
    for path in sorted(html.rglob("*.html")):
        if "_static" not in path.relative_to(html).parts:
            parsed[path] = _Links()
            parsed[path].feed(path.read_text(encoding="utf-8"))
    problems = []

    def local(page: Path, url: str) -> Path | None:
        parts = urlsplit(url)
        if parts.scheme or parts.netloc:
            return None
        base = html if parts.path.startswith("/") else page.parent
        return (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page

    def look(page: Path, url: str) -> None:
        where, parts = page.relative_to(html), urlsplit(url)
        if parts.scheme in ("http", "https") or parts.netloc:
            problems.append(f"{where}: loads from another site: {url}")
        elif not parts.scheme:
            target = local(page, url)
            if target is None or not target.exists():
                problems.append(f"{where}: missing file: {url}")

    for page, found in parsed.items():
        for url in found.loads:
            look(page, url)
        for url in found.links:
            target, anchor = local(page, url), unquote(urlsplit(url).fragment)
            if "=" in anchor:  # what a form on the page holds, and no place
                anchor = ""
            if target is None:
                continue
            if not target.exists():
                problems.append(f"{page.relative_to(html)}: broken link: {url}")
            elif anchor and target in parsed and anchor not in parsed[target].ids:
                problems.append(f"{page.relative_to(html)}: no such place: {url}")
    for sheet in sorted(html.rglob("*.css")):
        for url in css_urls(sheet.read_text(encoding="utf-8")):
            look(sheet, url)
    return problems


def build(
    root: Path | None = None,
    *,
    live: bool = True,
    pdf: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Build the whole book and return the folder of the site.

    Args:
        root: the checkout; found by itself when None.
        live: run every study at its smoke profile first.
        pdf: print the site's pages into ``book/_build/umup.pdf`` at the end.
        say: receives the progress lines.

    Raises:
        StudyError: a study fails or is malformed.
        BookError: the book warns, misses a file or would load something from another site.
    """
    root = (root or find_root()).resolve()
    folders = study_folders(root)
    out = root / "book" / "_build"
    staging = out / "src"
    best = {folder: best_profile(folder) for folder in folders}
    steps = Steps(
        [
            *(("smoke", f"{f.name}: live at smoke") for f in folders if live),
            *(("render", f"{f.name}: page from {best[f]} records") for f in folders),
            ("pages", "boards and tables from the records"),
            ("html", "the site, warnings are errors"),
            ("check", "missing files and requests that leave the site"),
            *([("pdf", "all pages in one PDF")] if pdf else []),
        ],
        out / "timings.json",
        say,
    )
    with _at_once([partial(smoke, folder, root) for folder in folders if live]) as runs:
        for run in runs:
            with steps.step():
                run.result()
    stage(root, staging)
    studies = [
        pages.Study(f.name, f, staging / "studies" / f"{f.name}.ipynb", best[f]) for f in folders
    ]
    with _at_once([partial(render, study, root) for study in studies]) as runs:
        for run in runs:
            with steps.step():
                run.result()
    with steps.step():
        pages.generate(root, staging, studies)
    with steps.step():
        plain = make_html(root, staging, out)
        slim.slim(out / "html")
        access.mend(out / "html")
        glossary.mark(out / "html")
    for line in plain:
        say(f"      shown as plain text, its docstring is not valid RST: {line}")
    with steps.step():
        if problems := check(out / "html"):
            listed = "\n" + "\n".join(problems[:30])
            raise BookError("site", listed, "a site that is whole and loads nothing from elsewhere")
    if pdf:
        with steps.step():
            file = printed.book(root)
        say(f"      {file}, {file.stat().st_size / 1e6:.1f} MB")
    say(f"The book is {out / 'html' / 'index.html'}")
    return out / "html"


def picture(root: Path) -> Path:
    """Redraw the README's picture from the committed records; returns its path."""
    from umup.lab.folders import code
    from umup.lab.records import read_results
    from umup.lab.study import store

    folder = root / "experiments" / "lr_transfer"
    results = read_results(store(folder, best_profile(folder)))
    target = root / "book" / "images" / "lr_transfer.png"
    target.parent.mkdir(exist_ok=True)
    code(folder).figures.by_lr(results).savefig(target, dpi=160)
    return target
