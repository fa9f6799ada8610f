"""The study ``op_scales``: are the ops at unit scale, and where do their scale models err?

Points only, nothing is trained. Every measured value is an RMS over the one that the model
promises, so 1 is right; ``theory`` says what it should be where that can be derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from umup.checked import Count, Fraction, Positive, Range
from umup.config import FloatType
from umup.errors import ConfigError
from umup.lab.design import Design, Point

from . import measures


@dataclass(frozen=True)
class OpScales(Design):
    """Parameters of the study; lists are grids, each measured with ``seeds`` seeds.

    Args:
        seq_lens, d_heads, alphas: grid of attention.
        correlations: between the values of two positions, at the longest sequence.
        ffn_alphas: of gated SiLU. softmax_sizes, softmax_mults: grid of softmax.
        vocab_sizes, loss_alphas, logits_rms: grid of the loss.
        loss_tokens: numbers of tokens, at the middle vocabulary and unit logits.
        widths: of the readout, linears, RMSNorm, residual add, RoPE heads and embeddings.
        readout_vocab_sizes: vocabularies of the readout.
        residual_layers: depth of the model whose first and last branch are measured.
        tokens: rows of the plain ops and of the readout; the loss has at least as many.
        coordinates: least number of heads times head size of attention.
        elements: values per tensor and seed otherwise.
        dtypes: of inputs, weights and cotangents.
    """

    seq_lens: tuple[Count, ...] = (64,)
    d_heads: tuple[Annotated[int, Range(2)], ...] = (16, 64)
    alphas: tuple[Positive, ...] = (0.25, 1.0, 4.0)
    correlations: tuple[Fraction, ...] = (0.1,)
    ffn_alphas: tuple[Positive, ...] = (0.25, 1.0, 4.0)
    softmax_sizes: tuple[Annotated[int, Range(2)], ...] = (64,)
    softmax_mults: tuple[Positive, ...] = (0.25, 1.0, 4.0)
    vocab_sizes: tuple[Annotated[int, Range(2)], ...] = (16, 256)
    loss_alphas: tuple[Positive, ...] = (0.25, 1.0, 4.0)
    logits_rms: tuple[Positive, ...] = (0.0625, 1.0)
    loss_tokens: tuple[Count, ...] = (16, 256)
    widths: tuple[Annotated[int, Range(2)], ...] = (64,)
    readout_vocab_sizes: tuple[Annotated[int, Range(2)], ...] = (256,)
    residual_layers: Count = 4
    tokens: Count = 256
    coordinates: Count = 2048
    elements: Count = 65536
    seeds: Annotated[int, Range(2)] = 3
    dtypes: tuple[FloatType, ...] = ("float32",)
    point_seconds: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seq_lens", "d_heads", "vocab_sizes"):  # of which one value is chosen, too
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "at least one entry")

    def _sequences(self, seq_len: int, d_head: int) -> int:
        """Heads per seed. The first rows have most of the variance and only ``d_head`` values each,
        so their number determines the precision, however long the sequence."""
        return max(self.elements // (seq_len * d_head), -(-self.coordinates // d_head))

    def points(self) -> list[Point]:
        """The grids in turn, those of equal shape next to each other."""
        return [
            Point(what, {**spec, "seeds": self.seeds, "dtype": dtype})
            for dtype in self.dtypes
            for what, spec in self._specs()
        ]

    def _specs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for seq_len in self.seq_lens:
            for d_head in self.d_heads:
                shape = {
                    "seq_len": seq_len,
                    "d_head": d_head,
                    "sequences": self._sequences(seq_len, d_head),
                }
                for alpha in self.alphas:
                    yield "attention", shape | {"alpha": float(alpha)}
        longest, head = max(self.seq_lens), _middle(self.d_heads)
        shape = {
            "seq_len": longest,
            "d_head": head,
            "alpha": 1.0,
            "sequences": self._sequences(longest, head),
        }
        for rho in (0.0, *self.correlations):
            yield "attention_inputs", shape | {"inputs": "normal", "correlation": float(rho)}
        for inputs in measures.INPUTS:
            if inputs != "normal":
                yield "attention_inputs", shape | {"inputs": inputs, "correlation": 0.0}
        for alpha in self.ffn_alphas:
            yield "gated_silu", {"alpha": float(alpha), "elements": self.elements}
        for size in self.softmax_sizes:
            for mult in self.softmax_mults:
                rows = max(1, self.elements // size)
                yield "softmax", {"size": size, "mult": float(mult), "rows": rows}
        for vocab_size in self.vocab_sizes:
            tokens = max(self.tokens, self.elements // vocab_size)
            for logits_rms in self.logits_rms:
                for alpha in self.loss_alphas:
                    yield (
                        "cross_entropy",
                        {
                            "vocab_size": vocab_size,
                            "alpha": float(alpha),
                            "logits_rms": float(logits_rms),
                            "tokens": tokens,
                        },
                    )
        for tokens in self.loss_tokens:
            yield (
                "cross_entropy_tokens",
                {
                    "vocab_size": _middle(self.vocab_sizes),
                    "alpha": 1.0,
                    "logits_rms": 1.0,
                    "tokens": tokens,
                },
            )
        for width in self.widths:
            yield from self._plain(width)

    def _plain(self, width: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The readout and the ops whose scale is exact, at one width."""
        few = {"tokens": self.tokens}
        for vocab_size in self.readout_vocab_sizes:
            for backward in ("fan_out", "fan_in"):
                yield (
                    "readout",
                    {"d_model": width, "vocab_size": vocab_size, "backward": backward, **few},
                )
        yield "linear", {"fan_in": width, "fan_out": width, **few}
        yield "linear", {"fan_in": width, "fan_out": 4 * width, **few}
        yield "rms_norm", {"width": width, **few}
        yield "rope", {"width": width, "seq_len": self.tokens, "heads": 4}
        for branch in (0, 2 * self.residual_layers - 1):
            yield (
                "residual",
                {"width": width, "n_layers": self.residual_layers, "branch": branch, **few},
            )
        yield "embedding", {"vocab_size": _middle(self.vocab_sizes), "width": width, **few}


def _middle(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


DESIGN = OpScales
