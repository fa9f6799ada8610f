"""A Llama-style decoder (RMSNorm, SwiGLU, RoPE, untied) that sees only numbers, never a scheme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from umup import draws, mesh, ops, target
from umup.config import ModelConfig
from umup.layers import (
    Block,
    BlockCasts,
    Embedding,
    Linear,
    Probe,
    block_casts,
    linear_casts,
    scale,
)
from umup.rules import Parametrization, ResidualNumbers


class Decoder(nnx.Module):
    """Decoder-only transformer language model.

    Args:
        config: shapes.
        numbers_of: the parametrization: every init std, multiplier and learning-rate factor.
        rngs: the random keys; equal seeds give equal draws under every scheme.
        probed: whether the model holds probes (``umup.probe``) of its tensors.

    Blocks are stacked along a leading layer axis and run by a scan, so compile time does not grow
    with depth; each sequence of blocks whose linears cast alike has its own scan.
    """

    def __init__(
        self,
        config: ModelConfig,
        numbers_of: Parametrization,
        *,
        rngs: draws.Rngs,
        probed: bool = False,
    ):
        self.config = config
        vocab, d, kind = config.vocab_size, config.d_model, {"rngs": rngs, "probed": probed}
        self.embed = Embedding(numbers_of, "input", vocab, d, axes=("vocab", "embed"), **kind)
        residual = numbers_of.residual()
        attn, ffn = _stack(residual[0::2]), _stack(residual[1::2])

        def block(key, attn, ffn):
            rngs = draws.Keys(key, 4)  # a key for each of its weights
            branches = ResidualNumbers(*attn), ResidualNumbers(*ffn)
            return Block(config, numbers_of, *branches, rngs=rngs, probed=probed)

        keys = draws.split(rngs.params(), config.n_layers)
        self.blocks = nnx.vmap(block, in_axes=(0, 0, 0))(keys, attn, ffn)
        kind |= {"recipe": config.recipe}
        self.readout = Linear(numbers_of, "output", d, vocab, axes=("embed", "vocab"), **kind)
        self.logits = Probe("value", "gradient", on=probed)
        alpha, grad_scale = numbers_of.loss(config.vocab_size)
        self.loss_alpha, self.loss_grad = scale(alpha), scale(grad_scale)

    def __call__(self, ids: Array) -> Array:
        """ids (B, T) → logits (B, T, V)."""
        return self._forward(ids, watched=False)[0]

    def trace(self, ids: Array) -> tuple[Array, dict[str, Array]]:
        """The forward pass with its intermediate values.

        Under ``jax.jit``, values that the caller does not use cost nothing.

        Args:
            ids: (B, T).

        Returns:
            Logits (B, T, V), bit for bit those of calling the model (in bfloat16 up to rounding:
            XLA rounds a value that is handed out, and may keep one that is not in float32), and
            arrays by name: ``embed`` (B·T, D), and of every block i

            - ``blocks.i.attn.qkv`` (B·T, 3, D), and ``blocks.i.attn.q``, ``.k`` and ``.v``
              (B, H, T, K), normalized and rotated as the softmax sees them;
            - ``blocks.i.mlp.gate_up`` (B·T, 2, F);
            - ``blocks.i.attn.out`` and ``blocks.i.mlp.down`` (B·T, D), what the branches add,
              before their multiplier;
            - ``blocks.i.attn_branch`` and ``blocks.i.mlp_branch`` (B·T, D), the residual stream
              after them.
        """
        return self._forward(ids, watched=True)

    def _forward(self, ids: Array, *, watched: bool) -> tuple[Array, dict[str, Array]]:
        batch, seq_len = ids.shape
        x = self.embed(ids.reshape(-1)).astype(self.config.dtype)
        x = mesh.constrain(x, "batch", None)
        values = {"embed": x} if watched else {}
        graph, state = nnx.split(self.blocks)
        for casts, first, last in self._segments():
            part = state
            if (first, last) != (0, self.config.n_layers):
                part = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], state)

            def layer(x, block_state, casts=casts):
                block = nnx.merge(graph, block_state)
                run = _watched(block) if watched else lambda *args: (block(*args), {})
                y, seen = run(x, seq_len, casts)
                return mesh.constrain(y, "batch", None), seen

            # The unroll factor of a sequence of blocks: as many as configured, or all (0).
            unroll = min(layers_unrolled(self.config) or last - first, last - first)
            layer = _rematerialized(layer, self.config.remat, inlined=unroll == last - first)
            x, seen = jax.lax.scan(layer, x, part, unroll=unroll)
            for name, stacked in seen.items():
                values |= {f"blocks.{i}.{name}": stacked[i - first] for i in range(first, last)}
        z = self.readout(ops.rms_norm(x), linear_casts(self.config, "readout"))
        return self.logits(z, z).reshape(batch, seq_len, -1), values

    def _segments(self) -> list[tuple[BlockCasts, int, int]]:
        """(casts, first, last + 1) of the maximal sequences of blocks that cast alike."""
        of = [block_casts(self.config, layer) for layer in range(self.config.n_layers)]
        starts = [i for i in range(len(of)) if i == 0 or of[i] != of[i - 1]]
        return [(of[a], a, b) for a, b in zip(starts, [*starts[1:], len(of)])]

    def loss(self, ids: Array, targets: Array) -> Array:
        """Mean cross-entropy, nats per token; ids and targets (B, T)."""
        logits = self(ids).reshape(-1, self.config.vocab_size)
        scales = self.loss_alpha[...], self.loss_grad[...]
        return ops.cross_entropy(logits, targets.reshape(-1), *scales, self.config.z_loss)

    def gradient_units(self, tokens: int) -> dict[str, Array]:
        """The constant by which each weight's gradient differs from that of its effective weight.

        The effective weight is W times its forward multiplier, on which the model's function
        depends. Schemes with the same function have the same gradient of it, however each one
        scales W and its gradients (the book's Theory, section 5): division by these constants makes
        norms over several tensors mean the same under every scheme.

        Args:
            tokens: per batch, B·T.

        Returns:
            Name of a weight (``embed``, ``blocks.attn.qkv``, …) → scalar, or (L,) in blocks.
        """
        top = self.loss_grad[...] * tokens / self.loss_alpha[...]
        trunk = top * _passed(self.readout)
        units = {
            "readout": top * self.readout.weight_grad[...],
            "embed": trunk * self.embed.weight_grad[...],
        }
        attn, mlp = self.blocks.attn, self.blocks.mlp
        for branch, name, first, last in (
            (self.blocks.attn_branch, "attn", ("qkv", attn.qkv), ("out", attn.out)),
            (self.blocks.mlp_branch, "mlp", ("gate_up", mlp.gate_up), ("down", mlp.down)),
        ):
            # If the multiplier is applied at the split, gradients inside the branch lack it.
            end = trunk * branch.add_grad[...] / branch.add[...]
            begin = end * _passed(last[1])
            units[f"blocks.{name}.{last[0]}"] = end * last[1].weight_grad[...]
            units[f"blocks.{name}.{first[0]}"] = begin * first[1].weight_grad[...]
        return units


def _passed(linear: Linear) -> Array:
    """The factor between the cotangent that a linear passes on and the true one."""
    return linear.backward[...] / linear.forward[...]


def _watched(block: Block) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The block as a function that also returns its intermediate values, see ``Decoder.trace``."""

    def run(*args):
        capture = nnx.capture(block, nnx.Intermediate, method_outputs=nnx.Intermediate)
        y, found = capture(*args)
        attn, mlp = found["attn"], found["mlp"]
        q, k, v = _output(attn["heads"])
        return y, {
            "attn.qkv": _output(attn["qkv"]),
            "attn.q": q,
            "attn.k": k,
            "attn.v": v,
            "attn.out": _output(attn["out"]),
            "attn_branch": _output(found["attn_branch"]),
            "mlp.gate_up": _output(mlp["gate_up"]),
            "mlp.down": _output(mlp["down"]),
            "mlp_branch": _output(found["mlp_branch"]),
        }

    return run


def _output(found: Any) -> Any:
    """The captured return value of a method; captures hold one value per call."""
    (value,) = found["__call__"] if isinstance(found, nnx.State) else found
    return value


UNROLLED_DEPTH = 8
"""Layers up to which one CPU's program has all of them one after another by default."""


def layers_unrolled(config: ModelConfig) -> int:
    """Layers per loop body of the scan over depth (0: all), by depth and device.

    A loop copies what the backward pass needs into and out of arrays over all layers, which takes a
    good part of a step on a CPU (the book's chapter on speed times both). Unrolled layers copy
    nothing, but compile time grows with each layer, rematerialization is undone on a CPU, and on
    several devices the weights of all layers could be gathered at once.
    """
    if config.unroll is not None:
        return config.unroll
    one_cpu = target.platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
    shallow = config.n_layers <= UNROLLED_DEPTH and config.remat == "none"
    return 0 if one_cpu and shallow else 1


def _rematerialized(layer, remat: str, *, inlined: bool):
    """The layer with recomputation in the backward pass, as the policy says.

    If the scan is fully unrolled, forward and backward are one program, and XLA would merge the
    recomputation with the first computation and keep its results: only a barrier prevents that.
    (XLA's CPU backend removes barriers before it merges, so that a full unroll undoes
    rematerialization there.)
    """
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = {"dots": policies.dots_with_no_batch_dims_saveable, "full": None}[remat]
    return jax.checkpoint(layer, policy=policy, prevent_cse=inlined)


def _stack(numbers: list[ResidualNumbers]) -> tuple[Array, ...]:
    fields = zip(*((n.add, n.skip, n.add_grad, n.split_grad) for n in numbers))
    return tuple(jnp.stack([jnp.asarray(v, jnp.float32) for v in field]) for field in fields)


def tensor_names(taps: nnx.State, n_layers: int) -> tuple[str, ...]:
    """Names of the tensors that the probes report on, in the order of ``reports``.

    A name is such as ``blocks.3.attn.qkv/input``; the ``Tap`` variables name their tensors.
    """
    names = []
    for path, tap in nnx.to_flat_state(taps):
        *place, _ = (str(part) for part in path)  # the last is "tap"
        place = place[:-1] if place[-1] == "probe" else place
        rows = tap.get_metadata()["tensors"]
        layers = range(n_layers) if place[0] == "blocks" else [None]
        for layer in layers:
            middle = [] if layer is None else [str(layer)]
            at = ".".join([place[0], *middle, *place[1:]])
            names += [f"{at}/{row}" for row in rows]
    return tuple(names)


def reports(taps: nnx.State) -> Array:
    """The "gradients" of the probes' dummies as one array (tensors, statistics)."""
    leaves = [tap[...] for _, tap in nnx.to_flat_state(taps)]
    return jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves])


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graph, trained parameters, scales and other state)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, params, rest
