"""The decoder as the coordinate check sees it: activations by name, and one point's measurement."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from umup import data, ops, optim, train
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.coord import Coord, observe
from umup.layers import Attention
from umup.model import Decoder

WATCHED = 8  # windows of held-out text on which activations are watched


def activations(model: Decoder, ids: Array, readout: Array) -> tuple[Array, dict[str, Array]]:
    """The model's forward pass, layer by layer, with what a coordinate check looks at.

    Args:
        model: the decoder.
        ids: (B, T).
        readout: (d_model, V), the readout's weight at initialization.

    Returns:
        Logits (B·T, V), and by name: ``embed``; of every block i ``blocks.i.attn.qk`` (attention
        logits of allowed pairs), ``blocks.i.attn`` and ``blocks.i.mlp`` (what the branches add,
        before their multiplier) and ``blocks.i`` (the residual stream after it); ``logits``; and
        ``logits.readout``, the part of the logits that the readout's own change makes.
    """
    # Not ``model.trace``: its program rounds otherwise, and at a large learning rate a run that is
    # rounded otherwise is another run after 100 updates than the one on record.
    seq_len = ids.shape[1]
    graph, state = nnx.split(model.blocks)
    x = model.embed(ids.reshape(-1))
    seen = {"embed": x}

    def branch(name: str, module, *args):
        def run(h):
            seen[name] = module(ops.rms_norm(h), *args)
            return seen[name]

        return run

    for i in range(model.config.n_layers):
        block = nnx.merge(graph, jax.tree.map(operator.itemgetter(i), state))
        name = f"blocks.{i}"
        seen[f"{name}.attn.qk"] = _attention_logits(block.attn, ops.rms_norm(x), seq_len)
        x = block.attn_branch(x, branch(f"{name}.attn", block.attn, seq_len))
        x = block.mlp_branch(x, branch(f"{name}.mlp", block.mlp))
        seen[name] = x
    h = ops.rms_norm(x)
    logits = model.readout(h)
    moved = (model.readout.w[...] - readout) * model.readout.forward[...]
    return logits, seen | {"logits": logits, "logits.readout": h @ moved}


def _attention_logits(attention: Attention, x: Array, seq_len: int) -> Array:
    """(B·h, pairs): q·k times its multiplier, of every position and those it sees."""
    q, k, _ = attention.heads(x, seq_len)
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) * attention.logit[...]
    return scores[..., *np.tril_indices(seq_len)].reshape(-1, seq_len * (seq_len + 1) // 2)


class Programs(NamedTuple):
    """Functions that serve every scheme, η and seed of one shape, so that each compiles once.

    ``loss`` and ``update`` are ``Coord``'s; what differs from run to run (multipliers, the
    initial readout, learning-rate factors, η) reaches them as values, in the batch and in the
    optimizer's state.
    """

    loss: Callable
    update: Callable
    batch: Callable
    probe: Callable


@functools.lru_cache(maxsize=16)
def programs(model: ModelConfig, config: OptimConfig) -> Programs:
    """The functions of one shape."""
    graph = train.graph_of(_run("sp", model, config, 0, 0.0))
    size = {"seq_len": model.seq_len}

    def loss(params, batch):
        scales, readout, ids, targets = batch
        decoder = nnx.merge(graph, params, scales)
        logits, seen = activations(decoder, ids, readout)
        alpha, grad_scale = decoder.loss_alpha[...], decoder.loss_grad[...]
        return ops.cross_entropy(logits, targets.reshape(-1), alpha, grad_scale), seen

    def update(gradients, state, params):
        inner, factors, hps = state
        updates, inner = optim.adamw(config, factors, hps).update(gradients, inner, params)
        return updates, (inner, factors, hps)

    @jax.jit
    def batch(tokens, seed, step):
        return data.batch(tokens, seed, step, batch_size=config.batch_size, **size)

    @jax.jit
    def probe(tokens):
        return data.eval_batch(tokens, 0, batch_size=WATCHED, **size)

    return Programs(loss, update, batch, probe)


def _run(
    scheme: str, model: ModelConfig, config: OptimConfig, seed: int, log2_eta: float
) -> RunConfig:
    hps = HPs(eta=2.0**log2_eta, weight_decay=0.0)
    return RunConfig(scheme, model, config, hps, seed, "", "", "")


def decoder(
    scheme: str,
    model: ModelConfig,
    config: OptimConfig,
    seed: int,
    log2_eta: float,
    tokens: np.ndarray,
    held_out: np.ndarray,
) -> Coord:
    """The decoder of a scheme as ``umup.coord_check`` takes it.

    Args:
        scheme, model, config, seed, log2_eta: of the run.
        tokens: training text; held_out: the text on which activations are watched.
    """
    run = _run(scheme, model, config, seed, log2_eta)
    lane = jax.tree.map(lambda leaf: leaf[0], train.lanes_of([run]))
    state = train.init(run, lane)  # not compiled: its draws are, once for all schemes
    use = programs(model, config)
    scales, readout = state.numbers.scales, state.params["readout"]["w"][...]
    forward = train.parametrization(run, run.hps.to_dict()).weight
    multipliers = {}
    for path, leaf in nnx.to_flat_state(state.params):
        meta = leaf.get_metadata()
        name = ".".join(map(str, path))
        multipliers[name] = float(forward(meta["role"], meta["fan_in"], meta["fan_out"]).forward)
    device, watched = jnp.asarray(tokens), use.probe(jnp.asarray(held_out))
    inner = (state.opt, state.numbers.lr_factors, lane.hps)
    return Coord(
        params=state.params,
        loss=use.loss,
        optimizer=optax.GradientTransformation(lambda _: inner, use.update),
        batch=lambda step: (scales, readout, *use.batch(device, seed, step)),
        multipliers=multipliers,
        probe=(scales, readout, *watched),
    )


@functools.lru_cache(maxsize=2)
def _text(corpus: str, tokenizer: str, seq_len: int) -> data.Dataset:
    return data.load(corpus, tokenizer, seq_len=seq_len)


def measure(
    scheme: str,
    d_model: int,
    n_heads: int,
    n_layers: int,
    ff_ratio: float,
    seq_len: int,
    batch_size: int,
    base_width: int,
    base_depth: int,
    dtype: str,
    seed: int,
    log2_eta: float,
    steps: list[int],
    corpus: str,
    tokenizer: str,
) -> dict[str, Any]:
    """One point: a decoder trained at one η, measured at step 0 and after each of ``steps``.

    Returns:
        The columns of ``umup.slopes`` as lists, an entry a measurement: step, kind, tensor,
        quantity, value (None where not finite), shape.
    """
    text = _text(corpus, tokenizer, seq_len)
    model = ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        d_head=d_model // n_heads,
        d_ff=round(ff_ratio * d_model),
        vocab_size=text.vocab_size,
        seq_len=seq_len,
        base_width=base_width,
        base_depth=base_depth,
        base_d_head=base_width // n_heads,
        dtype=dtype,
        unroll=0,
    )
    # η is what the name says from the first step on: no warm-up and no schedule, whatever `steps`.
    config = OptimConfig(steps=1, batch_size=batch_size, warmup_steps=0, final_lr_ratio=1.0)
    rows = observe(decoder(scheme, model, config, seed, log2_eta, text.train, text.val), steps)
    # A weight with a side that does not grow with width is judged by its Frobenius norm.
    fixed = rows["tensor"].isin(["embed.w", "readout.w"])
    frobenius = rows["quantity"].str.endswith("_frobenius")
    rows = rows[(rows["kind"] != "weight") | (fixed == frobenius)]
    return {
        "step": [int(s) for s in rows["step"]],
        **{name: list(rows[name]) for name in ("kind", "tensor", "quantity")},
        "value": [float(f"{v:.5g}") if math.isfinite(v) else None for v in rows["value"]],
        "shape": [list(shape) for shape in rows["shape"]],
    }


MEASURES = {"decoder": measure}
