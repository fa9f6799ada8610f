"""The five configurations of a training run: model, optimizer, hyperparameters, mesh, all of it.

The names and defaults of their fields enter the keys of records and so never change. A field that
is added later does nothing at its default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from umup.checked import (
    Config,
    Count,
    CountOrZero,
    Fraction,
    OneOf,
    Positive,
    PositiveOrZero,
    Range,
    Seed,
    digest,
    later,
)
from umup.errors import ConfigError

NUMERICS = 1
"""Version of the numbers umup computes. A golden-trajectory test guards it: change the numbers
on purpose and bump it; records of an older version are then shown as stale, never as current."""

FILE_PREFIX = "file:"
"""Prefix of the name of a user's own text, ``file:PATH``. Its digest identifies the text."""

PROBE_STATS = (
    "rms",
    "mean",
    "max",
    "e4m3_clipped",
    "e4m3_flushed",
    "e5m2_clipped",
    "e5m2_flushed",
)
"""What a probe reports of a tensor; ``umup.probe`` computes them."""

RECIPES = ("plain", "bf16", "fp8_seed", "fp8_e5m2_grad", "fp8_current", "fp8_delayed")
"""``plain``: the model's dtype. ``bf16``: operands in bfloat16. ``fp8_seed``: all E4M3, but E5M2
inputs of the attention-out and FFN-down projections (u-μP paper, Appendix E.2).
``fp8_e5m2_grad``: E4M3 forward, E5M2 gradients, those two projections in bfloat16 (the paper's
later scheme). ``fp8_current``, ``fp8_delayed``: E4M3 forward, E5M2 gradients, each tensor scaled
by its largest magnitude, in this step or in recent ones; unit scaling makes this unnecessary."""

BLOCK_LINEARS = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")

DECAY_RULES = {"constant": 0.0, "inverse_width": -1.0, "sqrt_width": 0.5, "width": 1.0}
"""How λ of hidden weights grows with the width over that of the base model: rule → its power."""

SIZE_RULES = ("none", "sqrt_batch", "half_life", "time_scale", "horizon", "sde_horizon")
"""How η, λ and the betas follow batch and steps, see ``size_rules``."""

SCHEDULES = ("cosine", "linear", "wsd", "wsd_sqrt", "two_step")
"""Decays after the warm-up, see ``umup.optim.schedule``."""

FloatType = Annotated[str, OneOf("float32", "bfloat16")]


@dataclass(frozen=True)
class ModelConfig(Config):
    """Shape of the Llama-style decoder: everything that changes the compiled program."""

    d_model: Count = 256
    """Features of the residual stream."""
    n_layers: Count = 4
    """Transformer blocks."""
    d_head: Count = 64
    """Features of an attention head."""
    d_ff: Count = 1024
    """Hidden features of the feed-forward branch."""
    vocab_size: Annotated[int, Range(2)] = 256
    """Number of distinct tokens."""
    seq_len: Count = 256
    """Tokens in a sequence."""
    base_width: Count = 256
    """The ``d_model`` at which μP equals SP."""
    base_depth: Count = 4
    """The ``n_layers`` at which μP equals SP."""
    base_d_head: Count = 64
    """The ``d_head`` at which μP equals SP."""
    depth_convention: Annotated[str, OneOf("branches", "layers")] = "branches"
    """What the rules count as depth: residual branches, 2N, or blocks, N."""
    tau_convention: Annotated[str, OneOf("derived", "library", "printed")] = "derived"
    """Which formula for u-μP's residual τ to use, see ``rules.residual_taus``."""
    rope: bool = True
    """Whether queries and keys are rotated by their positions."""
    rope_theta: Positive = 10_000.0
    """Base of the rotations' wavelengths, see ``ops.rope_tables``."""
    dtype: FloatType = "float32"
    """Dtype of the activations."""
    unroll: CountOrZero | None = None
    """Layers per loop body of the scan over depth (0: all). More layers run faster on a CPU and
    take longer to compile. None leaves it to the library, see ``model.layers_unrolled``."""
    recipe: Annotated[str, OneOf(*RECIPES)] = "plain"
    """How linears cast their operands, see ``umup.fp8``."""
    keep_bf16: tuple[str, ...] = ()
    """Linears that an FP8 recipe leaves in bfloat16: of one block, of all blocks, or the
    readout."""
    accumulation: Annotated[str, OneOf("fast", "precise")] = "fast"
    """How products of FP8 operands accumulate, see ``umup.fp8``."""
    params_dtype: FloatType = "float32"
    """Dtype of the weights; their optimizer state is float32."""
    remat: Annotated[str, OneOf("none", "dots", "full")] = "none"
    """What the backward pass recomputes of a block: nothing, all but matrix products, or all."""
    attention: Annotated[str, OneOf("xla", "blocked", "cudnn")] = "xla"
    """Implementation of attention, see ``ops.attention``."""
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalized, against instability."""
    depth_scaled_init: bool = False
    """Whether the init of each branch's last weight is divided by √(2N), N = ``n_layers``, against
    instability."""
    z_loss: PositiveOrZero = 0.0
    """Weight of the penalty mean log² Z (PaLM, arXiv 2204.02311, §5), against instability."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.d_head:
            raise ConfigError("d_head", self.d_head, f"a divisor of d_model = {self.d_model}")
        if self.rope and self.d_head % 2:
            raise ConfigError("d_head", self.d_head, "an even number when rope is on")
        if self.attention == "cudnn" and (self.dtype != "bfloat16" or self.d_head % 8):
            raise ConfigError("attention", "cudnn", "xla, or dtype bfloat16 and d_head in eights")
        for name in self.keep_bf16:
            if not self._has_linear(name):
                allowed = f"{', '.join(BLOCK_LINEARS)}, one of these after blocks.0. to "
                allowed += f"blocks.{self.n_layers - 1}., or readout"
                raise ConfigError("keep_bf16", name, allowed)

    def essence(self) -> dict[str, Any]:
        """As for every configuration; ``unroll`` 1 was once the default and keeps its key."""
        essence = super().essence()
        if self.unroll == 1:
            del essence["unroll"]
        return essence

    def _has_linear(self, name: str) -> bool:
        """True if it names a linear: of one block, of all blocks at once, or the readout."""
        if one := re.fullmatch(r"blocks\.(0|[1-9][0-9]*)\.(.+)", name):
            return int(one[1]) < self.n_layers and one[2] in BLOCK_LINEARS
        return name in ("readout", *BLOCK_LINEARS)

    def step_flops(self, batch_size: int) -> int:
        """Floating-point operations of one training step: 6·weights·tokens plus attention's.

        Weights are those in matrix products: all but the embedding, which is a lookup. q·kᵀ and the
        weighted sum of values cost 4·T·d_model per token and layer forward, three times that with
        the backward pass, counted over the full T × T square as PaLM does (arXiv 2204.02311,
        Appendix B). Norms, softmax, loss, optimizer and recomputation (rematerialization) are not
        counted.
        """
        weights = self.n_params - self.vocab_size * self.d_model
        square = 12 * self.n_layers * self.seq_len * self.d_model
        return batch_size * self.seq_len * (6 * weights + square)

    @property
    def n_heads(self) -> int:
        """Number of attention heads."""
        return self.d_model // self.d_head

    @property
    def n_params(self) -> int:
        """Number of trained parameters."""
        per_block = 4 * self.d_model**2 + 3 * self.d_model * self.d_ff
        return 2 * self.vocab_size * self.d_model + self.n_layers * per_block


@dataclass(frozen=True)
class OptimConfig(Config):
    """AdamW and its schedule, by default u-μP's: linear warm-up, then cosine."""

    steps: Count = 8192
    """Updates."""
    batch_size: Count = 64
    """Sequences per update."""
    warmup_steps: CountOrZero = 2000
    """Updates over which the learning rate rises linearly."""
    final_lr_ratio: Fraction = 0.1
    """Learning rate at the end of the schedule, as a share of its peak."""
    beta1: Fraction = 0.9
    """Decay rate of the mean gradient, below 1."""
    beta2: Fraction = 0.999
    """Decay rate of the mean squared gradient, below 1."""
    eps: Positive = 1e-8
    """Added to the root of the mean squared gradient."""
    decay: Annotated[str, OneOf("independent", "coupled")] = "independent"
    """Weight decay per update: λ·schedule, free of η, or λ·η_w·schedule."""
    schedule: Annotated[str, OneOf(*SCHEDULES)] = "cosine"
    """What follows the warm-up, see ``optim.schedule``."""
    decay_steps: CountOrZero = 0
    """Length of the decay that ends a warm-up-stable-decay schedule."""
    clip: PositiveOrZero = 0.0
    """Bound of the global norm of the unscaled gradient, see ``train.step`` (0: none)."""
    accumulate: Count = 1
    """Number of parts of a batch that are processed one after another, to save memory."""
    loss_scale: Positive = later(1.0)  # noqa: RUF009, makes a field
    """Factor on the loss before the backward pass that is divided out of the weights' gradients
    after it (Micikevicius et al., arXiv 1710.03740, §3.2). A power of two affects casts alone."""
    eps_rule: Annotated[str, OneOf("constant", "scaled")] = later("constant")
    """Whether ε is one number, or grows with width and depth as each weight's gradient does (the
    scheme's ``adam_eps``)."""
    decay_rule: Annotated[str, OneOf(*DECAY_RULES)] = later("constant")
    """How λ of hidden weights follows the width: ``width`` keeps η·λ of coupled decay under μP
    (arXiv 2505.01618), ``sqrt_width`` is arXiv 2510.15262's, ``inverse_width`` arXiv 2512.05620's
    of independent decay."""
    size_rule: Annotated[str, OneOf(*SIZE_RULES)] = later("none")
    """How η, λ and the betas, given for ``base_batch_size`` and ``base_steps``, follow batch and
    steps."""
    base_batch_size: CountOrZero = later(0)  # noqa: RUF009
    """Sequences per update of the run for which they were tuned, under a ``size_rule``."""
    base_steps: CountOrZero = later(0)  # noqa: RUF009
    """Updates of that run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps > self.steps:
            raise ConfigError("warmup_steps", self.warmup_steps, f"at most steps = {self.steps}")
        if max(self.beta1, self.beta2) == 1.0:
            field = "beta1" if self.beta1 == 1.0 else "beta2"
            raise ConfigError(field, 1.0, "a number in [0, 1)")
        self._check_decay()
        self._check_size_rule()
        if self.batch_size % self.accumulate:
            allowed = f"a divisor of batch_size = {self.batch_size}"
            raise ConfigError("accumulate", self.accumulate, allowed)

    def _check_size_rule(self) -> None:
        """A rule over size needs the size from which it counts, and without one there is none."""
        for name in ("base_batch_size", "base_steps"):
            given, ruled = getattr(self, name), self.size_rule != "none"
            if ruled != (given > 0):
                some = f"1 or more with size_rule {self.size_rule}"
                allowed = some if ruled else "0, or a size_rule"
                raise ConfigError(name, given, allowed)

    def _check_decay(self) -> None:
        """Only warm-up-stable-decay has a decay, which fits between its warm-up and its end."""
        room = self.steps - self.warmup_steps
        if not self.schedule.startswith("wsd"):
            if self.decay_steps:
                raise ConfigError("decay_steps", self.decay_steps, "0, or schedule wsd | wsd_sqrt")
        elif not 1 <= self.decay_steps <= room:
            allowed = f"1 to {room}, what {self.steps} steps leave after warmup_steps"
            raise ConfigError("decay_steps", self.decay_steps, allowed)


@dataclass(frozen=True)
class HPs(Config):
    """Hyperparameters: traced values, so that one compiled program serves every setting.

    Names follow the u-μP paper; which of them a scheme has is in ``rules.SCHEMES[...].hps``.
    """

    eta: Positive = 1.0
    """Learning rate η."""
    eta_emb: Positive = 1.0
    """Factor on the embedding's learning rate."""
    sigma_init: Positive = 1.0
    """Factor on the standard deviation of every weight's init."""
    alpha_emb: Positive = 1.0
    """Multiplier of the embedding."""
    alpha_output: Positive = 1.0
    """Multiplier of the readout."""
    alpha_attn_softmax: Positive = 1.0
    """Multiplier of the attention logits."""
    alpha_residual: Positive = 1.0
    """Weight of the residual branches relative to the embedding."""
    alpha_residual_attn_ratio: Positive = 1.0
    """Weight of the attention branches relative to the feed-forward branches."""
    alpha_ffn_act: Positive = 1.0
    """Multiplier of the gate inside SwiGLU's sigmoid."""
    alpha_loss_softmax: Positive = 1.0
    """Multiplier of the logits inside the loss's softmax."""
    weight_decay: PositiveOrZero = 2.0**-13
    """λ, see ``OptimConfig.decay``."""


@dataclass(frozen=True)
class MeshConfig(Config):
    """How many devices lie along each axis; their product is the number of devices."""

    data: Count = 1
    """Replicates the weights and splits the batch."""
    fsdp: Count = 1
    """Splits weights and batch."""
    tensor: Count = 1
    """Splits heads, feed-forward features and vocabulary."""

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        return f"{self.data}×{self.fsdp}×{self.tensor}"


def corpus_identity(name: str) -> str:
    """The part of a corpus' name that identifies a run: all but the path of a user's own text."""
    return FILE_PREFIX if name.startswith(FILE_PREFIX) else name


@dataclass(frozen=True)
class RunConfig(Config):
    """One whole training run: its digest, taken with ``NUMERICS``, is the record's key."""

    scheme: str
    """One of ``rules.SCHEMES``."""
    model: ModelConfig
    optim: OptimConfig
    hps: HPs
    seed: Seed
    """Seed of the init and of the order of batches."""
    corpus: str
    """Name of the text, or ``file:PATH`` for a user's own."""
    tokenizer: str
    """Name of the tokenizer, such as ``bytes``."""
    data_digest: str
    """Digest of the tokens."""
    eval_batches: Count = 16
    """Number of batches over which validation loss is averaged."""
    probe_steps: tuple[CountOrZero, ...] = ()
    """Updates before which the probes observe the model; ``optim.steps`` stands for the end of the
    run. Observation does not change training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.probe_steps
        if list(steps) != sorted(set(steps)) or (steps and steps[-1] > self.optim.steps):
            allowed = f"rising steps, 0 to {self.optim.steps}"
            raise ConfigError("probe_steps", steps, allowed)

    def essence(self) -> dict[str, Any]:
        """As for every configuration, without the path of a user's own text, which may change."""
        return super().essence() | {"corpus": corpus_identity(self.corpus)}

    def key(self) -> str:
        """Digest of the specification and of the numerics version."""
        return digest({"spec": self.essence(), "numerics": NUMERICS})

    @property
    def shape(self) -> tuple:
        """What fixes the compiled program: runs of equal shape may be lanes of one group."""
        return (
            self.scheme,
            self.model,
            self.optim,
            self.data_digest,
            self.eval_batches,
            self.probe_steps,
        )
