"""Corpora, tokens, batches, and the loss in bits per byte: the data interface of umup.

Preparing a corpus reads and checks its text, splits it by document (every tenth is held out, so
that both splits see every period and part), trains the tokenizer on the training split, and writes
two token streams and a manifest of their digests. Loading checks all of it again. Any difference is
an error that says what to do; a tokenizer is never silently retrained on other text.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from umup.data import corpora
from umup.data.token_cache import (
    CacheDir,
    Dataset,
    Progress,
    build,
    check_text,
    find_slot,
    open_slot,
)
from umup.errors import DataError

if TYPE_CHECKING:
    from umup.sampling import batch, eval_batch, n_windows, permute

__all__ = [
    "Dataset",
    "batch",
    "card",
    "chain",
    "eval_batch",
    "load",
    "n_windows",
    "nats_to_bits_per_byte",
    "permute",
    "prepare",
    "verify",
]

_log = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    if name in ("batch", "eval_batch", "n_windows", "permute"):
        from umup import sampling  # needs JAX, which text and tokens do not

        return getattr(sampling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def nats_to_bits_per_byte(nats: Any, bytes_per_token: float) -> Any:
    """Loss in bits per byte from nats per token: nats / ln 2 / bytes_per_token; any array type."""
    return nats / (math.log(2.0) * bytes_per_token)


def load(
    corpus: str = "sotu",
    tokenizer: str = "bytes",
    *,
    seq_len: int | None = None,
    cache_dir: CacheDir = None,
    max_tokens: int | None = None,
) -> Dataset:
    """The tokens of ``corpus``, from the cache, which is prepared first if it does not exist.

    Args:
        corpus: a registered name (`umup data list`) or ``file:PATH``.
        tokenizer: ``bytes`` or ``bpe512`` to ``bpe32000``.
        seq_len: if given, both splits are checked to hold one window of ``seq_len + 1`` tokens.
        cache_dir: folder of the token caches; by default ``UMUP_CACHE`` or the user's cache folder.
        max_tokens: reading stops before the document that would pass this many tokens in all.

    Raises:
        DataError: an unknown name, missing package or network, unreadable text, a changed or
            truncated cache, or splits too short for ``seq_len``.
    """
    slot = find_slot(corpus, tokenizer, cache_dir, max_tokens)
    if seq_len is None:
        return open_slot(slot) if slot.filled else build(slot, _log.info)
    from umup import sampling

    sampling.check_seq_len(seq_len)  # before any work
    dataset = open_slot(slot) if slot.filled else build(slot, _log.info)
    sampling.n_windows(min(dataset.train.size, dataset.val.size), seq_len)
    return dataset


def chain(tokens: int, vocab_size: int = 256, seed: int = 0) -> np.ndarray:
    """A learnable text that needs no file: tokens of a Markov chain, (tokens,) uint16.

    Every symbol has one successor, which follows it with probability ¾; else the next symbol is
    uniform.
    """
    rng = np.random.default_rng(seed)
    successor = rng.permutation(vocab_size)
    jump, where = rng.random(tokens) < 0.25, rng.integers(vocab_size, size=tokens)
    out = np.empty(tokens, np.uint16)
    now = 0
    for i in range(tokens):
        now = where[i] if jump[i] else successor[now]
        out[i] = now
    return out


def prepare(
    corpus: str = "sotu",
    tokenizer: str = "bytes",
    force: bool = False,
    progress: Progress = print,
    *,
    cache_dir: CacheDir = None,
    max_tokens: int | None = None,
) -> Dataset:
    """Tokenize ``corpus`` into the cache; with ``force``, again even if it is there.

    Two processes may prepare the same corpus at once: every file is written atomically under a name
    with its digest, and the manifest that names the files comes last.

    Raises:
        DataError: as ``load``; also when the cache folder cannot be written.
    """
    slot = find_slot(corpus, tokenizer, cache_dir, max_tokens)
    if slot.filled and not force:
        dataset = open_slot(slot)
        progress(f"{corpus} as {tokenizer}: already prepared in {slot.folder}")
        return dataset
    return build(slot, progress)


def verify(
    corpus: str = "sotu",
    tokenizer: str = "bytes",
    *,
    cache_dir: CacheDir = None,
    max_tokens: int | None = None,
) -> list[str]:
    """Problems of the prepared tokens and of the text they came from; empty if there are none."""
    problems: list[str] = []
    try:
        slot = find_slot(corpus, tokenizer, cache_dir, max_tokens)
        if not slot.filled:
            return [f"{corpus} as {tokenizer} is not prepared; run `{slot.command}`"]
        info = open_slot(slot).info
        if not slot.corpus.needs_network:
            check_text(slot, info)
    except DataError as error:
        problems.append(str(error))
    return problems


def card(
    corpus: str = "sotu",
    tokenizer: str = "bytes",
    *,
    cache_dir: CacheDir = None,
    max_tokens: int | None = None,
) -> str:
    """A data sheet in Markdown: source, licence, attribution, sizes, split and digests."""
    dataset = load(corpus, tokenizer, cache_dir=cache_dir, max_tokens=max_tokens)
    source, info = corpora.get(corpus), dataset.info
    lines = [
        f"### {source.title}",
        "",
        "| | |",
        "|---|---|",
        f"| corpus | `{corpus}` |",
        f"| source | {source.source} |",
        f"| licence | {source.licence} |",
        f"| attribution | {source.attribution} |",
        f"| text, SHA-256 | `{info['text_sha256']}` |",
        f"| tokenizer | `{tokenizer}`, vocabulary {dataset.vocab_size:,}, "
        f"digest `{dataset.tokenizer_digest}` |",
        f"| split | {info['split']} |",
        f"| data digest | `{dataset.digest}` |",
        "",
        "| split | documents | bytes | tokens | bytes per token |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in ("train", "val"):
        part = info[name]
        lines.append(
            f"| {name} | {part['documents']:,} | {part['bytes']:,} | {part['tokens']:,} "
            f"| {part['bytes'] / part['tokens']:.3f} |"
        )
    note = "Bytes are those of the text in UTF-8, with one for each separator between documents."
    return "\n".join([*lines, "", note, ""])
