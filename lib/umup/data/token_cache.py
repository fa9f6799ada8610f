"""The token cache: a corpus as two streams of tokens on disk, checked whenever it is read.

A cache folder holds token files and a stored tokenizer, each under a name with its own digest, and
a manifest that names them. Each file is written atomically and the manifest comes last, so that a
killed build leaves no partial cache, and two concurrent builds leave a correct one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from umup.checked import digest
from umup.data import corpora, tokenizing
from umup.data.corpora import Corpus
from umup.errors import DataError
from umup.files import atomic_write

FORMAT = 1
HOLD_OUT_EVERY = 10
SPLIT_RULE = f"by document: each {HOLD_OUT_EVERY}th in reading order is held out"
_CHUNK_BYTES = 4 * 2**20
_STALE_S = 3600.0

_log = logging.getLogger(__name__)

Progress = Callable[[str], object]
CacheDir = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Dataset:
    """One tokenized corpus.

    ``train`` and ``val`` are 1-D uint16 or uint32 token streams (read-only), documents joined by
    the separator token 0. ``bytes_per_token`` is that of ``val``; a separator counts as one byte
    under every tokenizer, so that bits per byte are comparable (and ``bytes`` has exactly 1).
    ``digest`` covers text, tokenizer, split and tokens together, ``tokenizer_digest`` the tokenizer
    alone. ``info`` is the content of the cache's manifest.

    Raises:
        DataError: a stream is not 1-D uint16 or uint32, or holds tokens outside the vocabulary.
    """

    corpus: str
    tokenizer: str
    vocab_size: int
    train: np.ndarray
    val: np.ndarray
    bytes_per_token: float
    digest: str
    tokenizer_digest: str
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            tokens = getattr(self, name)
            if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32) or not tokens.size:
                received = f"{tokens.dtype} of shape {tokens.shape}"
                raise DataError(name, received, "a non-empty 1-D array of uint16 or uint32")
            if self.vocab_size - 1 > np.iinfo(tokens.dtype).max:
                limit = f"at most {np.iinfo(tokens.dtype).max + 1} with {tokens.dtype} tokens"
                raise DataError("vocab_size", self.vocab_size, limit)
            if int(tokens.max()) >= self.vocab_size:
                raise DataError(name, f"token {tokens.max()}", f"below {self.vocab_size}")


@dataclass(frozen=True)
class Slot:
    """The cache of one (corpus, tokenizer, budget), and the command that fills it."""

    corpus: Corpus
    tokenizer: str
    vocab_size: int
    max_tokens: int | None
    root: Path
    folder: Path

    @property
    def manifest(self) -> Path:
        """The file that is written last and makes the cache valid."""
        return self.folder / "manifest.json"

    @property
    def filled(self) -> bool:
        """True if there is a manifest, whether or not it is right.

        Raises:
            DataError: the cache cannot be accessed.
        """
        try:
            return self.manifest.exists()
        except OSError as error:
            raise self.unusable(error) from error

    @property
    def command(self) -> str:
        """The shell command that prepares this cache."""
        budget = f" --max-tokens {self.max_tokens}" if self.max_tokens else ""
        name = shlex.quote(self.corpus.name)
        return f"umup data prepare {name} --tokenizer {self.tokenizer}{budget}"

    def changed(self, where: object, received: object) -> DataError:
        """The error for a cache that differs from its manifest."""
        return DataError(str(where), received, f"an unchanged cache; run `{self.command} --force`")

    def unusable(self, error: OSError) -> DataError:
        """The error for a cache whose folder cannot be accessed."""
        allowed = "a writable folder with room; point UMUP_CACHE to one"
        return DataError(f"token cache {self.folder}", str(error), allowed)


def find_slot(corpus: str, tokenizer: str, cache_dir: CacheDir, max_tokens: int | None) -> Slot:
    """The slot of these choices, whether filled or not.

    Raises:
        DataError: unknown corpus or tokenizer, or a ``max_tokens`` out of range.
    """
    entry, size = corpora.get(corpus), tokenizing.vocab_size(tokenizer)
    if max_tokens is None:
        max_tokens = entry.options.get("max_tokens")
    elif isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 2:
        raise DataError("max_tokens", max_tokens, "an integer of at least 2")
    name = re.sub(r"[^\w+.-]", "-", entry.name)
    if entry.kind == "file":
        path = entry.options["path"]
        name = f"file-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    root = corpora.cache_root(cache_dir)
    budget = f"-{max_tokens}" if max_tokens else ""
    folder = root / "tokens" / f"{name}-{tokenizer}{budget}"
    return Slot(entry, tokenizer, size, max_tokens, root, folder)


def open_slot(slot: Slot) -> Dataset:
    """Read a prepared slot and check every digest.

    Raises:
        DataError: anything is missing, truncated or changed; the message has the command to run.
    """
    try:
        manifest = json.loads(slot.manifest.read_text(encoding="utf-8"))
        info = manifest["content"]
        intact = manifest["digest"] == digest(info)
        version, stored = info["format"], manifest["tokenizer_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise slot.changed(slot.manifest, f"an unreadable manifest ({error})") from error
    if not intact:
        raise slot.changed(slot.manifest, "a manifest that differs from its digest")
    if version != FORMAT or info["tokenizer"] != slot.tokenizer:
        raise slot.changed(slot.manifest, f"format {version} of {info.get('tokenizer')}")
    pinned = slot.corpus.sha256
    if pinned and slot.max_tokens is None and info["text_sha256"] != pinned:
        raise slot.changed(slot.manifest, f"text of sha256 {info['text_sha256']}, not {pinned}")
    _check_pin(slot, info["tokenizer_digest"])
    if slot.corpus.kind == "file":
        check_text(slot, info)
    if slot.tokenizer != "bytes":
        _check_stored_tokenizer(slot, stored)
    return Dataset(
        corpus=slot.corpus.name,
        tokenizer=slot.tokenizer,
        vocab_size=slot.vocab_size,
        train=_read_tokens(slot, "train", info["train"]),
        val=_read_tokens(slot, "val", info["val"]),
        bytes_per_token=info["val"]["bytes"] / info["val"]["tokens"],
        digest=manifest["digest"],
        tokenizer_digest=info["tokenizer_digest"],
        info=info,
    )


def check_text(slot: Slot, info: dict[str, Any]) -> None:
    """Raise a DataError if the corpus' text has changed since it was tokenized."""
    count = info["train"]["documents"] + info["val"]["documents"]
    texts = corpora.documents(slot.corpus, slot.root)
    now, _, _ = corpora.text_digest(itertools.islice(texts, count))
    more = slot.max_tokens is None and next(texts, None) is not None
    if more or now != info["text_sha256"]:
        raise slot.changed(slot.corpus.name, "text that changed since it was tokenized")


def _check_pin(slot: Slot, found: str) -> None:
    pinned = slot.corpus.tokenizers.get(slot.tokenizer)
    if pinned and found != pinned:
        raise DataError(
            f"tokenizer {slot.tokenizer} of {slot.corpus.name}",
            f"digest {found}",
            f"{pinned}, as trained by the version of tokenizers in constraints.txt; install that "
            f"and run `{slot.command} --force`",
        )


def _check_stored_tokenizer(slot: Slot, sha256: str) -> None:
    path = slot.folder / _tokenizer_file(sha256)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise slot.changed(path, f"unreadable ({error})") from error
    if found != sha256:
        raise slot.changed(path, f"sha256 {found}, not {sha256}")


def _read_tokens(slot: Slot, split: str, part: dict[str, Any]) -> np.ndarray:
    path = slot.folder / part["file"]
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise slot.changed(path, f"unreadable {split} tokens ({error})") from error
    if tokens.size != part["tokens"] or _array_sha256(tokens) != part["sha256"]:
        raise slot.changed(path, f"{split} tokens that differ from their sha256")
    return tokens


def _array_sha256(tokens: np.ndarray) -> str:
    sha = hashlib.sha256(f"{tokens.dtype.str} {tokens.shape}\n".encode())
    sha.update(np.ascontiguousarray(tokens).data)
    return sha.hexdigest()


@dataclass
class _Split:
    """One split being built: token arrays with separators between documents, and counts."""

    pieces: list[np.ndarray]
    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, text_bytes: int, tokens: np.ndarray) -> None:
        if self.documents:
            self.pieces.append(np.full(1, tokenizing.SEPARATOR, tokens.dtype))
        self.pieces.append(tokens)
        joint = int(self.documents > 0)
        self.documents += 1
        self.bytes += text_bytes + joint
        self.tokens += tokens.size + joint


def build(slot: Slot, progress: Progress) -> Dataset:
    """Tokenize the corpus into its slot, replacing what is there, and open it.

    Raises:
        DataError: the text cannot be read or split, or the cache folder cannot be written.
    """
    start = time.monotonic()
    label = f"{slot.corpus.name} as {slot.tokenizer}"
    progress(f"{label}: reading" + ("" if slot.tokenizer == "bytes" else ", training tokenizer"))
    tokenizer = _tokenizer(slot)
    _check_pin(slot, tokenizer.digest)
    left_out = Counter[str]()
    splits, text_sha256 = _encode(slot, tokenizer, progress, left_out)
    for what, count in left_out.items():
        if count:
            _log.warning("%s: left out %s: %s", slot.corpus.name, what, f"{count:,}")
    for name, split in splits.items():
        if not split.documents:
            raise DataError(
                f"{name} split of {slot.corpus.name}",
                "no document",
                f"at least {HOLD_OUT_EVERY} documents ({SPLIT_RULE}), and a max_tokens that "
                "reaches them; a file holds one document per line, a folder one per file",
            )
    try:
        _store(slot, tokenizer, splits, text_sha256)
    except OSError as error:
        raise slot.unusable(error) from error
    progress(
        f"{label}: {splits['train'].tokens:,} training and {splits['val'].tokens:,} held-out "
        f"tokens in {time.monotonic() - start:.0f} s"
    )
    return open_slot(slot)


def _store(
    slot: Slot, tokenizer: tokenizing.Tokenizer, splits: Mapping[str, _Split], text_sha256: str
) -> None:
    """Write tokens and tokenizer, then the manifest that names them; other files go."""
    info: dict[str, Any] = {
        "format": FORMAT,
        "text_sha256": text_sha256,
        "tokenizer": slot.tokenizer,
        "tokenizer_digest": tokenizer.digest,
        "split": SPLIT_RULE,
        "separator": tokenizing.SEPARATOR,
    }
    slot.folder.mkdir(parents=True, exist_ok=True)
    stored = hashlib.sha256(tokenizer.json.encode()).hexdigest() if tokenizer.json else ""
    files = {slot.manifest.name}
    if stored:
        files.add(_tokenizer_file(stored))
        _write(slot.folder / _tokenizer_file(stored), tokenizer.json)
    for name, split in splits.items():
        tokens = np.concatenate(split.pieces)
        sha256 = _array_sha256(tokens)
        info[name] = {
            "file": f"{name}-{sha256[:16]}.npy",
            "sha256": sha256,
            "documents": split.documents,
            "bytes": split.bytes,
            "tokens": split.tokens,
        }
        files.add(info[name]["file"])
        _write(slot.folder / info[name]["file"], tokens)
    manifest = {
        "corpus": slot.corpus.name,
        "digest": digest(info),
        "content": info,
        "tokenizer_sha256": stored,
    }
    _write(slot.manifest, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    _sweep(slot.folder, files)


def _tokenizer(slot: Slot) -> tokenizing.Tokenizer:
    if slot.tokenizer == "bytes":
        return tokenizing.byte_tokenizer()
    texts = corpora.documents(slot.corpus, slot.root)
    train = (text for i, text in enumerate(texts) if _split_of(i) == "train")
    return tokenizing.train(slot.tokenizer, train)


def _split_of(document: int) -> Literal["train", "val"]:
    return "val" if document % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1 else "train"


def _encode(
    slot: Slot, tokenizer: tokenizing.Tokenizer, progress: Progress, left_out: Counter[str]
) -> tuple[dict[str, _Split], str]:
    splits = {"train": _Split([]), "val": _Split([])}
    budget = math.inf if slot.max_tokens is None else slot.max_tokens
    sha, index, said = hashlib.sha256(), 0, time.monotonic()
    for texts in _chunks(corpora.documents(slot.corpus, slot.root, left_out)):
        for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
            if sum(s.tokens for s in splits.values()) + tokens.size + 1 > budget:
                return splits, sha.hexdigest()
            raw = text.encode()
            sha.update(raw if index == 0 else b"\0" + raw)
            splits[_split_of(index)].add(len(raw), tokens)
            index += 1
        if time.monotonic() - said > 10:
            said = time.monotonic()
            progress(f"{slot.corpus.name}: {index:,} documents read")
    return splits, sha.hexdigest()


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _write(path: Path, content: str | np.ndarray) -> None:
    with atomic_write(path) as stream:
        if isinstance(content, str):
            stream.write(content.encode())
        else:
            np.save(stream, content, allow_pickle=False)


def _tokenizer_file(sha256: str) -> str:
    return f"tokenizer-{sha256[:16]}.json"


def _sweep(folder: Path, keep: set[str]) -> None:
    """Delete files that no manifest names, unless less than an hour old: a build may need them."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process renamed or swept it
            if path.name not in keep and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
