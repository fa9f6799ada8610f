"""Arithmetic that a training step takes."""

from __future__ import annotations

from umup import formulas
from umup.config import ModelConfig


def step_flops(model: ModelConfig, batch_size: int) -> int:
    """Floating-point operations of one training step: 6·weights·tokens, and attention's.

    Weights are those that multiply: all but the embedding, which is a lookup. q·kᵀ and the
    weighted sum of values cost 4·T·d_model a token and layer forward, three times that with the
    backward pass, counted over the full T × T square as PaLM does (arXiv 2204.02311, Appendix B).
    Norms, softmax, loss, optimizer and what is computed again to save memory are not counted.
    """
    names = ("d_model", "n_layers", "d_ff", "vocab_size", "seq_len")
    case = {name: getattr(model, name) for name in names}
    return formulas.flops({**case, "batch_size": batch_size, "attention": "xla", "remat": "none"})[
        "model"
    ]
