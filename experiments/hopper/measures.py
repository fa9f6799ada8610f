"""What the study `hopper` measures beside training runs: peaks, and twins of a CPU's losses."""

from __future__ import annotations

import zlib
from typing import Any

import jax

from umup import data, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.plan import products

VOCAB = 256
TEXT = 2**14
"""Number of tokens of the synthetic text (``data.chain``) that twins are trained on."""


def twin(
    dtype: str,
    recipe: str,
    precision: str,
    d_model: int,
    n_layers: int,
    d_head: int,
    seq_len: int,
    batch_size: int,
    steps: int,
    log2_lr: float,
) -> dict[str, Any]:
    """The losses of a small u-μP decoder, for comparison between devices.

    Args:
        dtype, recipe: of the activations and the linears' operands, see ``ModelConfig``.
        precision: of products of float32 operands, ``default`` (TF32 on an H100) or ``highest``.
        d_model, n_layers, d_head, seq_len, batch_size, steps: shapes; a quarter of the steps
            warm up.
        log2_lr: of η.

    Returns:
        losses (steps,), nats per token; text, the CRC-32 of what was trained on (twins are of one
        text); platform and the fields of ``products.device``.
    """
    model = ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        d_head=d_head,
        d_ff=3 * d_model,
        vocab_size=VOCAB,
        seq_len=seq_len,
        base_width=d_model,
        base_depth=n_layers,
        base_d_head=d_head,
        dtype=dtype,
        unroll=0,
        recipe=recipe,
    )
    optim = OptimConfig(steps=steps, batch_size=batch_size, warmup_steps=steps // 4)
    run = RunConfig("umup", model, optim, HPs(eta=2.0**log2_lr), 0, "chain", "none", "chain")
    text = data.chain(TEXT)
    with jax.default_matmul_precision(precision):
        losses = train.train(run, text)
    return {
        "losses": [float(x) for x in losses],
        "text": zlib.crc32(text.tobytes()),
        "platform": jax.default_backend(),
    } | products.device()


MEASURES = {"gemm": products.gemm, "copy": products.copy, "twin": twin}
