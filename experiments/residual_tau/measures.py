"""Walks along the skip stream of the real model: what embedding, attention and FFN contribute.

The stream is kept as three parts, c ← skip·c for each and + add·f(stream) for the part whose branch
it is; their sum is the stream. At the output each part's RMS is its contribution, to be compared
with the exact recursion of ``lemma.shares``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from umup import data, ops, rules, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.model import Decoder

from .lemma import lemma

VOCAB = 4096  # random tokens hardly repeat, so values that attention averages are independent


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def parts(model: Decoder, ids: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
    """The output's parts and the scales on the way.

    Args:
        model: any scheme's.
        ids: (B, T).

    Returns:
        Embedding's, attention's and FFN's part of the last stream, each (B·T, d_model), which sum
        to it; and RMS values: ``stream`` (2N+1,), after the embedding and after every branch's
        add, ``attn`` and ``ffn`` (N,), the branches' own outputs; ``common`` (N,), the share of the
        attention branch's mean square that is the same at all positions of a sequence.
    """
    seq_len = ids.shape[1]
    first = model.embed(ids.reshape(-1)).astype(model.config.dtype)
    graph, state = nnx.split(model.blocks)

    def layer(carry, block_state):
        block = nnx.merge(graph, block_state)
        embedding, attention, ffn = carry
        branch = block.attn_branch
        add, skip = (s[...].astype(first.dtype) for s in (branch.add, branch.skip))
        f = block.attn(ops.rms_norm(embedding + attention + ffn), seq_len)
        embedding, attention, ffn = skip * embedding, skip * attention + add * f, skip * ffn
        middle, size = _rms(embedding + attention + ffn), _rms(f)
        mean = jnp.mean(f.reshape(-1, seq_len, f.shape[-1]), axis=1)
        common = jnp.square(_rms(mean) / size)
        branch = block.mlp_branch
        add, skip = (s[...].astype(first.dtype) for s in (branch.add, branch.skip))
        f = block.mlp(ops.rms_norm(embedding + attention + ffn))
        embedding, attention, ffn = skip * embedding, skip * attention, skip * ffn + add * f
        last = _rms(embedding + attention + ffn)
        return (embedding, attention, ffn), (middle, last, size, _rms(f), common)

    zero = jnp.zeros_like(first)
    (embedding, attention, ffn), seen = jax.lax.scan(layer, (first, zero, zero), state)
    middle, last, attn, mlp, common = seen
    stream = jnp.concatenate([_rms(first)[None], jnp.stack([middle, last], 1).reshape(-1)])
    return embedding, attention, ffn, {"stream": stream, "attn": attn, "ffn": mlp, "common": common}


def scales(model: Decoder, ids: Array) -> dict[str, Array]:
    """RMS of the parts at the output and along the way, as ``parts`` finds them.

    Keys: embedding, attention, ffn, residual (attention and FFN together), output (all), and
    ``parts``' stream, attn, ffn, common as ``stream``, ``branch_attention``, ``branch_ffn``,
    ``common``.
    """
    embedding, attention, ffn, seen = parts(model, ids)
    return {
        "embedding": _rms(embedding),
        "attention": _rms(attention),
        "ffn": _rms(ffn),
        "residual": _rms(attention + ffn),
        "output": _rms(embedding + attention + ffn),
        "stream": seen["stream"],
        "branch_attention": seen["attn"],
        "branch_ffn": seen["ffn"],
        "common": seen["common"],
    }


@functools.lru_cache(maxsize=64)
def _at_init(run: RunConfig):
    """One program for every τ: conventions differ in the branches' numbers alone."""

    def go(hps: dict, adds: Array, skips: Array, seed: Array) -> dict[str, Array]:
        model = train.build(run, train.Lane(hps, seed))
        for i, branch in enumerate((model.blocks.attn_branch, model.blocks.mlp_branch)):
            branch.add[...], branch.skip[...] = adds[i::2], skips[i::2]
        key = jax.random.fold_in(jax.random.key(seed), 1)  # apart from the weights' draws
        shape = (run.optim.batch_size, run.model.seq_len)
        return scales(model, jax.random.randint(key, shape, 0, run.model.vocab_size))

    return jax.jit(go)


def walk(
    scheme: str,
    convention: str,
    n_layers: int,
    alpha: float,
    ratio: float,
    d_model: int,
    d_head: int,
    ff_ratio: float,
    seq_len: int,
    batch_size: int,
    base_depth: int,
    seeds: int,
) -> dict:
    """Contributions and scales of the real model at initialization, on independent random tokens.

    Args:
        scheme, convention: whose numbers, with which τ (a scheme that is not unit-scaled has none).
        n_layers: N. alpha, ratio: α_residual, α_residual_attn_ratio. seeds: initial draws.
        The others: shape.

    Returns:
        ``scales``, each a list with an entry per seed.
    """
    model = ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        d_head=d_head,
        d_ff=round(d_model * ff_ratio),
        vocab_size=VOCAB,
        seq_len=seq_len,
        base_width=d_model,
        base_depth=base_depth,
        base_d_head=d_head,
        tau_convention=convention,
    )
    optim = OptimConfig(steps=1, batch_size=batch_size, warmup_steps=0)
    run = RunConfig(scheme, model, optim, HPs(), 0, "none", "none", "none")
    hps = HPs(alpha_residual=alpha, alpha_residual_attn_ratio=ratio).to_dict()
    if scheme != "umup":  # these have neither, and are walked at 1 alone
        rules.check_hps(scheme, hps)
    numbers = train.parametrization(run, hps).residual()
    adds, skips = (jnp.asarray([getattr(n, name) for n in numbers]) for name in ("add", "skip"))
    program = _at_init(replace(run, model=replace(model, tau_convention="derived")))
    values = {name: jnp.float32(value) for name, value in hps.items()}
    return _by_seed([program(values, adds, skips, jnp.int32(seed)) for seed in range(seeds)])


def trained(
    convention: str,
    n_layers: int,
    d_model: int,
    d_head: int,
    ff_ratio: float,
    seq_len: int,
    batch_size: int,
    steps: int,
    warmup_ratio: float,
    weight_decay: float,
    unroll: int,
    dtype: str,
    log2_lr: float,
    seeds: int,
    corpus: str,
    tokenizer: str,
) -> dict:
    """Contributions of u-μP before and after training, on held-out text.

    Args:
        convention: of τ. n_layers: N. log2_lr: log2 η. seeds: runs. The others as the study's.

    Returns:
        ``scales`` after training, and with ``_before`` behind the name those before it, each a
        list with an entry per seed; ``loss``, that of the last tenth of the steps.
    """
    dataset = data.load(corpus, tokenizer, seq_len=seq_len)
    model = ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        d_head=d_head,
        d_ff=round(d_model * ff_ratio),
        vocab_size=dataset.vocab_size,
        seq_len=seq_len,
        base_width=d_model,
        base_d_head=d_head,
        tau_convention=convention,
        dtype=dtype,
        unroll=unroll,
    )
    optim = OptimConfig(
        steps=steps, batch_size=batch_size, warmup_steps=round(steps * warmup_ratio)
    )
    hps = HPs(eta=2.0**log2_lr, weight_decay=weight_decay)
    tokens, held_out = jnp.asarray(dataset.train), jnp.asarray(dataset.val)
    ids, _ = data.eval_batch(held_out, jnp.int32(0), batch_size=batch_size, seq_len=seq_len)
    first = RunConfig("umup", model, optim, hps, 0, corpus, tokenizer, dataset.digest)
    programs, graph, rows = train.programs(first), train.graph_of(first), []

    @jax.jit
    def look(state: Any) -> dict[str, Array]:
        params, numbers = jax.tree.map(lambda leaf: leaf[0], (state.params, state.numbers.scales))
        return scales(nnx.merge(graph, params, numbers), ids)

    for seed in range(seeds):
        lanes = train.lanes_of([replace(first, seed=seed)])
        state = programs.init(lanes)
        before = {f"{name}_before": value for name, value in look(state).items()}
        state, losses = programs.chunk(tokens, lanes, state, steps)
        tail = max(steps // 10, 1)
        rows.append({**look(state), **before, "loss": jnp.mean(losses[0, -tail:])})
    return _by_seed(rows)


def _by_seed(rows: Sequence[dict[str, Array]]) -> dict:
    """Name → list over seeds."""
    return {name: [np.asarray(row[name], float).tolist() for row in rows] for name in rows[0]}


MEASURES = {"lemma": lemma, "walk": walk, "trained": trained}
