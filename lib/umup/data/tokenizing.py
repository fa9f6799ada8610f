"""Tokenizers: bytes, and byte-level BPE. Token 0 separates documents in both.

Bytes are the UTF-8 bytes themselves (text holds no byte 0). BPE is trained with the `tokenizers`
library on the training split alone; the result is stored with the tokens and known by its digest.
Sennrich et al. (2016), arXiv:1508.07909; byte-level alphabet: Radford et al. (2019), GPT-2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from umup.checked import digest
from umup.errors import DataError

SEPARATOR = 0
BPE_SIZES = (512, 32000)
# BPE merges settle on far less text than this; the cap bounds memory on corpora of many GB.
TRAIN_BYTES = 64 * 2**20
_SEPARATOR_NAME = "<|separator|>"


@dataclass(frozen=True)
class Tokenizer:
    """A text ↔ token map. ``json`` is its stored form, empty for bytes."""

    name: str
    vocab_size: int
    digest: str
    json: str = ""
    model: Any = None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of each text, 1-D, without separators."""
        dtype = token_dtype(self.vocab_size)
        if self.model is None:
            return [np.frombuffer(t.encode(), np.uint8).astype(dtype) for t in texts]
        return [np.asarray(e.ids, dtype) for e in self.model.encode_batch_fast(list(texts))]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; separators become line breaks, cut characters ``\ufffd``."""
        ids = [int(t) for t in tokens]
        if self.model is None:
            return bytes(ids).replace(b"\0", b"\n").decode(errors="replace")
        parts: list[list[int]] = [[]]
        for i in ids:
            parts.append([]) if i == SEPARATOR else parts[-1].append(i)
        return "\n".join(self.model.decode(p) for p in parts)


def vocab_size(name: str) -> int:
    """The vocabulary of tokenizer ``name``: ``bytes`` has 256, ``bpe4096`` has 4096.

    Raises:
        DataError: the name is unknown or its size is out of range.
    """
    if name == "bytes":
        return 256
    low, high = BPE_SIZES
    match = re.fullmatch(r"bpe([1-9][0-9]*)", name) if isinstance(name, str) else None
    if match is None or not low <= int(match[1]) <= high:
        raise DataError("tokenizer", name, f"bytes, or bpeN with N from {low} to {high}")
    return int(match[1])


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest stored type, uint16 or uint32, that holds tokens 0 to ``vocab_size - 1``.

    Raises:
        DataError: batches are int32, so a vocabulary above 2³¹ fits no token.
    """
    if not 1 <= vocab_size <= 2**31:
        raise DataError("vocab_size", vocab_size, "1 to 2**31")
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes as tokens; vocabulary 256."""
    return Tokenizer("bytes", 256, digest({"kind": "utf-8 bytes", "separator": SEPARATOR}))


def train(name: str, texts: Iterable[str]) -> Tokenizer:
    """Train byte-level BPE on ``texts`` (at most the first 64 MiB); deterministic.

    Raises:
        DataError: `tokenizers` is not installed, or the text has too few pairs to merge.
    """
    size = vocab_size(name)
    lib = _library()
    model = lib.Tokenizer(lib.models.BPE())
    model.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = lib.decoders.ByteLevel()
    model.train_from_iterator(
        _capped(texts),
        lib.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[_SEPARATOR_NAME],
            initial_alphabet=sorted(lib.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if model.get_vocab_size() != size:
        raise DataError(
            "tokenizer",
            name,
            f"a vocabulary of at most {model.get_vocab_size()} on so little text, or bytes",
        )
    return from_json(name, model.to_str())


def from_json(name: str, text: str) -> Tokenizer:
    """The BPE tokenizer stored as ``text``.

    Raises:
        DataError: `tokenizers` is not installed, or ``text`` is not a tokenizer of this size.
    """
    lib = _library()
    try:
        model = lib.Tokenizer.from_str(text)
        stored = json.loads(text)["model"]
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"stored tokenizer {name}", str(error), "an unchanged file") from error
    if model.get_vocab_size() != vocab_size(name):
        raise DataError(
            f"stored tokenizer {name}", f"{model.get_vocab_size()} tokens", str(vocab_size(name))
        )
    # The separator's name in somebody's text is text like any other.
    model.encode_special_tokens = True
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["merges"]]
    content = {"kind": "byte-level bpe", "vocab": stored["vocab"], "merges": merges}
    return Tokenizer(name, vocab_size(name), digest(content), text, model)


def _capped(texts: Iterable[str]) -> Iterator[str]:
    left = TRAIN_BYTES
    for text in texts:
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise DataError(
            "tokenizer", "no installed package tokenizers", "pip install tokenizers, or use bytes"
        ) from error
    return tokenizers
